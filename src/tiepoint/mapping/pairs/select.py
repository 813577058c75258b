"""Which pairs of photographs to match.

Every function returns one kind of array: int32 (P, 2) of image ids, the smaller first, sorted, each pair once.
`union` joins them:

    pairs = union(sequential(ids), by_position(ids, earth_centred(gps)))

Pairs by image retrieval take `tiepoint.mapping.pairs.retrieval.describe_images` first:

    ids, descriptors = describe_images(store)
    pairs = by_retrieval(ids, descriptors)                # an unordered collection
    loops = by_retrieval(ids, descriptors, min_gap=50)    # a video: where it returns to a place
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import ArgumentError, import_optional
from ...geometry.colmap import import_pycolmap
from ...io.pair_lists import Pairs, union
from .retrieval import most_similar

_MOST_EXHAUSTIVE = 50_000  # images; their pairs fill 10 GB


def exhaustive(ids: ArrayLike) -> Pairs:
    """Pair every image with every other.

    Parameters
    ----------
    ids : ints (N,)
        Image ids.

    Returns
    -------
    int32 array (N (N - 1) / 2, 2)

    Raises
    ------
    ArgumentError
        More than 50,000 images.

    Examples
    --------
    >>> exhaustive([3, 1, 2]).tolist()
    [[1, 2], [1, 3], [2, 3]]
    """
    ordered = np.unique(np.asarray(ids, np.int32))
    n = len(ordered)
    if n > _MOST_EXHAUSTIVE:
        raise ArgumentError(
            f"{n:,} images make {n * (n - 1) // 2:,} pairs, too many to match exhaustively; choose pairs by retrieval"
        )
    later = n - 1 - np.arange(n)  # how many partners each image has behind it
    pairs = np.empty((int(later.sum()), 2), np.int32)
    pairs[:, 0] = np.repeat(ordered, later)
    for i, end in enumerate(np.cumsum(later)):
        pairs[end - later[i] : end, 1] = ordered[i + 1 :]
    return pairs


def sequential(ids: ArrayLike, overlap: int = 10, powers_of_two: bool = True) -> Pairs:
    """Pair every image of a video with those that follow it.

    Parameters
    ----------
    ids : ints (N,)
        Image ids in the order in which the photographs were taken.
    overlap : int
        Each image is paired with the next this many.
    powers_of_two : bool
        And with those 2, 4, 8, … up to ``2**(overlap - 1)`` images later, as COLMAP's quadratic overlap does: a
        camera that stops or moves slowly sees the same thing for much longer than it usually does.

    Returns
    -------
    int32 array (P, 2)

    Raises
    ------
    ArgumentError
        ``overlap`` is less than 1.

    Examples
    --------
    >>> sequential([1, 2, 3, 4, 5, 6], overlap=3).tolist()
    [[1, 2], [1, 3], [1, 4], [1, 5], [2, 3], [2, 4], [2, 5], [2, 6], [3, 4], [3, 5], [3, 6], [4, 5], [4, 6], [5, 6]]
    """
    video = np.asarray(ids, np.int32)
    _at_least_one("overlap", overlap)
    gaps = set(range(1, min(overlap + 1, len(video))))
    if powers_of_two:
        gaps |= {2**k for k in range(min(overlap, len(video).bit_length())) if 2**k < len(video)}
    return union(*(np.stack([video[:-gap], video[gap:]], axis=1) for gap in gaps))


def earth_centred(positions: ArrayLike) -> NDArray[np.float64]:
    """Turn GPS positions into metres, in which distances can be measured.

    The altitude is ignored: photographs of one place from the ground and from the air belong together, and many
    cameras write no altitude, or a wrong one.

    Parameters
    ----------
    positions : floats (N, 2) or (N, 3)
        Latitude and longitude in degrees (WGS 84), and an altitude. nan is "unknown".

    Returns
    -------
    float64 array (N, 3)
        On the ellipsoid, in metres from the Earth's centre (ECEF). Straight lines between such points are shorter
        than the way over the ground by 4 mm in 10 km, and nothing special happens at the poles or at 180 degrees.

    Raises
    ------
    ArgumentError
        Not N rows of two or three, or a latitude beyond 90 or a longitude beyond 360 degrees.
    MissingDependencyError
        pycolmap is not installed.

    Examples
    --------
    >>> one_degree_north = earth_centred([[48.0, 11.0], [49.0, 11.0]])
    >>> float(np.linalg.norm(one_degree_north[1] - one_degree_north[0]).round(-2))
    111200.0
    """
    table = np.asarray(positions, np.float64)
    if table.ndim != 2 or table.shape[1] not in (2, 3):
        raise ArgumentError(f"positions must be N rows of latitude, longitude (and altitude), not {table.shape}")
    if (np.abs(table[:, :2]) > (90, 360)).any():
        raise ArgumentError("latitudes must lie within 90 degrees and longitudes within 360; are they swapped?")
    at_sea_level = np.column_stack([table[:, :2], np.zeros(len(table))])
    return np.asarray(import_pycolmap().GPSTransform().ellipsoid_to_ecef(at_sea_level), np.float64)


def by_position(
    ids: ArrayLike, positions: ArrayLike, nearest: int = 20, max_distance: float = 100.0, at_least: int = 5
) -> Pairs:
    """Pair every image with those taken nearest to it.

    Exact, by a k-d tree, in memory that grows with N alone.

    Parameters
    ----------
    ids : ints (N,)
        Image ids.
    positions : floats (N, 3)
        Where each was taken: camera centres of known poses, or `earth_centred` of GPS positions. Images whose
        position is nan are in no pair.
    nearest : int
        How many neighbours each image chooses; a pair is kept if either of its images chose it. Of equally near ones
        the one that comes first in ``ids`` goes first.
    max_distance : float
        Neighbours farther away than this are no neighbours; in the unit of ``positions``. May be inf.
    at_least : int
        Each image chooses this many of its ``nearest`` whatever their distance: photographs from the air are often
        taken farther apart than any limit that suits a street.

    Returns
    -------
    int32 array (P, 2)

    Raises
    ------
    ArgumentError
        As many positions as ids are needed; ``nearest`` is less than 1, or ``max_distance`` or ``at_least`` negative.
    MissingDependencyError
        scipy is not installed.

    Examples
    --------
    >>> by_position([1, 2, 3], [[0, 0, 0], [1, 0, 0], [50, 0, 0]], nearest=1, max_distance=10).tolist()
    [[1, 2], [2, 3]]
    >>> by_position([1, 2, 3], [[0, 0, 0], [1, 0, 0], [50, 0, 0]], nearest=1, max_distance=10, at_least=0).tolist()
    [[1, 2]]
    """
    numbers, places = np.asarray(ids, np.int32), np.asarray(positions, np.float64)
    if places.shape != (len(numbers), 3):
        raise ArgumentError(f"positions must be ({len(numbers)}, 3), one for each id, not {places.shape}")
    _at_least_one("nearest", nearest)
    if not max_distance >= 0 or at_least < 0:
        raise ArgumentError(f"max_distance and at_least must be 0 or more, not {max_distance} and {at_least}")
    known = np.isfinite(places).all(axis=1)
    numbers, places = numbers[known], places[known]
    if len(numbers) < 2:
        return union()
    tree = import_optional("scipy.spatial", "scipy", "map", "choosing pairs by position").cKDTree(places)
    reach = tree.query(places, min(nearest + 1, len(places)))[0][:, -1] * (1 + 1e-12)  # all that are equally near
    chosen = []
    for row, place in enumerate(places):
        around = np.array(tree.query_ball_point(place, reach[row], return_sorted=True))
        distance = np.linalg.norm(places[around] - place, axis=1)
        distance[around == row] = np.inf  # itself comes last
        ranked = np.argsort(distance, kind="stable")[: min(nearest, len(around) - 1)]
        near = around[ranked[(distance[ranked] <= max_distance) | (np.arange(len(ranked)) < at_least)]]
        chosen.append(np.stack([np.full(len(near), numbers[row]), numbers[near]], axis=1))
    return union(*chosen)


def by_retrieval(ids: ArrayLike, descriptors: NDArray[np.float32], top_k: int = 10, min_gap: int = 1) -> Pairs:
    """Pair every image with those most similar to it by image retrieval.

    Parameters
    ----------
    ids : ints (N,)
        Image ids; for a video, in its order.
    descriptors : float32 array (N, M)
        What `tiepoint.mapping.pairs.retrieval.describe_images` returns with them.
    top_k : int
        How many partners each image chooses; a pair is kept if either of its images chose it. Images without
        keypoints choose none.
    min_gap : int
        Choose only among images at least this many places away in ``ids``. 1 allows all; for a video that `sequential`
        has paired already, a few times its overlap leaves the places to which the camera came back.

    Returns
    -------
    int32 array (P, 2)
        Between N top_k / 2 and N top_k pairs.

    Raises
    ------
    ArgumentError
        As many descriptors as ids are needed; ``top_k`` or ``min_gap`` is less than 1.
    MissingDependencyError
        faiss is not installed.

    Examples
    --------
    >>> looks = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    >>> by_retrieval([1, 2, 3], looks, top_k=1).tolist()
    [[1, 2], [2, 3]]
    """
    numbers = np.asarray(ids, np.int32)
    if len(descriptors) != len(numbers):
        raise ArgumentError(f"there are {len(descriptors)} descriptors for {len(numbers)} ids")
    _at_least_one("top_k", top_k)
    _at_least_one("min_gap", min_gap)
    # Of the images nearer than min_gap, itself included, all may be among the most similar.
    found, _ = most_similar(descriptors, descriptors, top_k + 2 * min_gap - 1)
    rows = np.arange(len(numbers))[:, None]
    allowed = (found >= 0) & (np.abs(found - rows) >= min_gap)
    allowed &= np.cumsum(allowed, axis=1) <= top_k
    image, column = np.nonzero(allowed)
    return union(np.stack([numbers[image], numbers[found[image, column]]], axis=1))


def expand_covisibility(
    verified: Mapping[tuple[int, int], int], tried: Collection[tuple[int, int]], top_k: int = 10
) -> Pairs:
    """Pair images that both overlap a third, where that was not tried yet.

    Retrieval forgets some neighbours of almost every image, but seldom all of the ways to them.

    Parameters
    ----------
    verified : mapping of (id, id) to int
        The pairs that geometry confirms, and their numbers of inliers: `Store.verified_pairs`.
    tried : collection of (id, id)
        The pairs that were matched, whatever came of it: `Store.matched_pair_ids`.
    top_k : int
        How many new partners each image chooses, those with the best evidence: the sum, over all images in between,
        of the inliers of the weaker of the two links. A pair is kept if either of its images chose it.

    Returns
    -------
    int32 array (P, 2)
        New pairs; none when the graph of verified pairs is closed. Calling it again after matching them goes one step
        farther.

    Raises
    ------
    ArgumentError
        ``top_k`` is less than 1.

    Examples
    --------
    >>> expand_covisibility({(1, 2): 50, (2, 3): 40, (3, 4): 30}, tried={(1, 2), (2, 3), (3, 4), (2, 4)}).tolist()
    [[1, 3]]
    """
    _at_least_one("top_k", top_k)
    links: dict[int, dict[int, int]] = {}
    for (a, b), inliers in verified.items():
        links.setdefault(a, {})[b] = inliers
        links.setdefault(b, {})[a] = inliers
    known = {(min(pair), max(pair)) for pair in tried}
    chosen = []
    for image, near in links.items():
        evidence: dict[int, int] = {}
        for middle, first in near.items():
            for other, second in links[middle].items():
                if other != image and other not in near and (min(image, other), max(image, other)) not in known:
                    evidence[other] = evidence.get(other, 0) + min(first, second)
        best = sorted(evidence, key=lambda other: (-evidence[other], other))[:top_k]
        chosen += [(image, other) for other in best]
    return union(chosen)


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ArgumentError(f"{name} must be 1 or more, not {value}")
