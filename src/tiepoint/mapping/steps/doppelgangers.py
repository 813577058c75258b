"""Doppelgangers: pairs that match but show different places, such as two identical facades or two sides of a cup.

Two-view geometry cannot detect them, because what matches has the same shape in both places. The other photographs can.

*Context.* What surrounds the twins differs. A keypoint that other photographs of the same place match is a landmark,
and it is expected in every image whose view reaches it. In a right pair landmarks match nearly everywhere, if fewer and
fewer as the views part. In a wrong one they match in one region, and around it, well inside both photographs, there are
only landmarks without a match (Zach et al., CVPR 2010). Cells of the image are counted, not keypoints, or one rich
texture would outweigh all its surroundings.

*Agreement.* Between two photographs of one place there are others, and a right match agrees with theirs: from a to c to
b leads to the same keypoint as from a to b. A match that no such chain confirms is ambiguous (the tracks of Wilson and
Snavely, ICCV 2013; the paths of Yan et al., CVPR 2017).

So pairs join photographs into clusters, as in Kruskal's spanning tree, those first that cover the most of both images:
neighbours resemble each other everywhere, twins do not. The best pair between two clusters needs some context. Every
other pair must cover nearly all of both images, as one that closes a ring does, or its matches must agree with
chains of pairs already accepted. What does neither is suspicious.

Limit: twins that no chain of photographs connects are detected only if they are a small part of the views.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..store import Store, pair_ids

CELLS = 8  # along the longer side of an image
WITNESSES = 10  # partners of an image, those with the most matches, that say what its landmarks are
NEIGHBOURS = 5  # matches around a place that say where it lies in the other image
CHAINS = 8  # third images through which a pair is looked at, those with the most matches

# On a ring around a cup with twin sides, matches between neighbours cover 0.57 to 1 of the images (median 0.89), those
# between the two sides up to 0.52; on a street with twin fronts it is 0.58 to 1 (0.85), and up to 0.57.
TRUSTED = 0.65  # of both images covered: the pair needs no chain
JOINING = 0.3  # of the common view covered: the pair may join two clusters

# Agreement: so many, and such a share, of a pair's matches have to come out by way of others.
AGREEING, AGREEING_SHARE = 5, 0.2
SAME_PLACE = 0.005  # of the image's longer side: keypoints closer than this are one
SAME_WAY = 0.05  # of it: what chains and matches may differ in on where points go, on the median
HARMFUL = 30  # matches: COLMAP places no image by fewer, and weaker pairs often hold a sparse map together

Points = NDArray[np.float32]
Links = NDArray[np.int32]  # matches (K, 2)
Pair = tuple[int, int]  # image ids, the smaller first


@dataclass(frozen=True)
class SuspiciousPair:
    """A verified pair that probably shows two different places.

    Attributes
    ----------
    id0, id1 : int
        Image ids, the smaller first.
    names : (str, str)
        Of the two images.
    inliers : int
        Matches of the two-view geometry.
    agreeing : int
        How many of them also come out by way of a third image.
    context : float
        Share, in [0, 1], of the view that the images should have in common in which something matches.

    Examples
    --------
    >>> print(SuspiciousPair(1, 2, ("front.jpg", "back.jpg"), 427, 0, 0.42))
    front.jpg, back.jpg: 427 matches, in 42 % of the view that both should share, but none of them comes out by way of
    other images
    """

    id0: int
    id1: int
    names: tuple[str, str]
    inliers: int
    agreeing: int
    context: float

    @property
    def reason(self) -> str:
        """Why it is suspicious, in words."""
        agreeing = f"only {self.agreeing} of them come" if self.agreeing else "none of them comes"
        return (
            f"{self.inliers} matches, in {100 * self.context:.0f} % of the view that both should share, "
            f"but {agreeing} out by way of other images"
        )

    def __str__(self) -> str:
        return f"{', '.join(self.names)}: {self.reason}"


def suspicious_pairs(store: Store) -> list[SuspiciousPair]:
    """Find the verified pairs whose two images match but seem to show different places.

    Nothing is written. All keypoints and the matches of all verified pairs are in memory, 8 bytes each.

    Parameters
    ----------
    store : Store
        Holds keypoints and two-view geometries.

    Returns
    -------
    list of SuspiciousPair
        Those with the least context first.

    Raises
    ------
    InputError
        The store cannot be read.

    Examples
    --------
    ::

        with Store.open("map/database.db") as store:
            for pair in suspicious_pairs(store):
                print(pair)
    """
    names = {image.image_id: image.name for image in store.images()}
    matches = {}
    for a, b in store.verified_pairs():
        geometry = store.geometry(a, b)
        assert geometry is not None  # it is among the verified
        matches[a, b] = geometry.matches.astype(np.int32)
    features = {image: store.features(image, descriptors=False) for image in {i for pair in matches for i in pair}}
    graph = MatchGraph(
        {image: found.keypoints.numpy() for image, found in features.items()},
        {image: found.image_size for image, found in features.items()},
        matches,
    )
    found = (
        SuspiciousPair(*pair, (names[pair[0]], names[pair[1]]), len(matches[pair]), agreeing, graph.covered(*pair)[1])
        for pair, agreeing in graph.unexplained().items()
    )
    return sorted(found, key=lambda pair: (pair.context, pair.id0, pair.id1))


def hide_doppelgangers(store: Store) -> list[SuspiciousPair]:
    """Hide the two-view geometries of suspicious pairs from mappers; `Store.show_hidden_pairs` undoes it.

    Their matches stay. All pairs are evaluated anew each time, those that an earlier call hid among them.

    Parameters
    ----------
    store : Store
        Holds keypoints and two-view geometries.

    Returns
    -------
    list of SuspiciousPair
        What was hidden, see `suspicious_pairs`.

    Raises
    ------
    InputError
        The store cannot be read or written to.

    Examples
    --------
    ::

        with Store.open("map/database.db") as store:
            for pair in hide_doppelgangers(store):
                print(pair)
    """
    store.show_hidden_pairs()
    found = suspicious_pairs(store)
    store.hide_pairs(pair_ids([(pair.id0, pair.id1) for pair in found]))
    return found


class MatchGraph:
    """Images, linked by verified matches.

    Parameters
    ----------
    points : dict
        Image id -> keypoints (N, 2) in pixels.
    sizes : dict
        Image id -> (width, height).
    matches : dict
        Pair (smaller id, larger id) -> matches (K, 2), at least one, in the order of the pair.
    """

    def __init__(
        self, points: dict[int, Points], sizes: dict[int, tuple[int, int]], matches: dict[Pair, Links]
    ) -> None:
        self.points, self.sizes, self.matches = points, sizes, matches
        self.cells = {image: _cells(points[image], sizes[image]) for image in points}
        strength: dict[int, list[tuple[int, int]]] = {image: [] for image in points}
        for (a, b), table in matches.items():
            strength[a].append((-len(table), b))
            strength[b].append((-len(table), a))
        self.witnesses = {a: [b for _, b in sorted(found)[: WITNESSES + 1]] for a, found in strength.items()}

    def covered(self, a: int, b: int) -> tuple[float, float]:
        """Return the shares, in [0, 1], of the two images and of their common view in which something matches.

        Each image has to explain the other, so it is the smaller of the two directions that counts.
        """
        (whole, common), (whole_back, common_back) = self._covered(a, b), self._covered(b, a)
        return min(whole, whole_back), min(common, common_back)

    def _covered(self, a: int, b: int) -> tuple[float, float]:
        """Return the shares of the cells of ``a`` with landmarks, all and in the view of ``b``, that have matches."""
        here, there = _between(self.matches, a, b).T
        matched = np.zeros(len(self.points[a]), bool)
        matched[here] = True
        landmark = matched.copy()
        for witness in [image for image in self.witnesses[a] if image != b][:WITNESSES]:
            landmark[_between(self.matches, a, witness)[:, 0]] = True
        cell, centres = self.cells[a]
        landmarks, found = (np.bincount(cell[kind], minlength=len(centres)) for kind in (landmark, matched))
        seen = _warp(self.points[a][here], self.points[b][there], centres)
        in_view = ((seen > 0) & (seen < self.sizes[b])).all(axis=1) | (found > 0)
        weight = np.minimum(landmarks, 2)  # a landmark alone in its cell may be a chance match
        whole, common = (np.average(found > 0, weights=w) for w in (weight, weight * in_view))
        return float(whole), float(common)

    def unexplained(self) -> dict[Pair, int]:
        """Return the pairs without context and agreement, and how many of their matches agree with chains of others."""
        cluster = {image: image for image in self.points}

        def root(image: int) -> int:
            while cluster[image] != image:
                cluster[image] = image = cluster[cluster[image]]
            return image

        covered = {pair: self.covered(*pair) for pair in self.matches}
        believed: dict[Pair, Links] = {}
        rest = []
        for pair in sorted(covered, key=lambda pair: (-covered[pair][0], pair)):
            (whole, common), a, b = covered[pair], root(pair[0]), root(pair[1])
            if whole >= TRUSTED or (a != b and common >= JOINING):
                believed[pair] = self.matches[pair]
            else:
                rest.append(pair)
            cluster[a] = b  # the best pair of two clusters decides; lesser ones may only see less of what is wrong

        partners: dict[int, set[int]] = {image: set() for image in self.points}
        news: Collection[Pair] = believed.keys()
        counts: dict[Pair, int] = {}
        while news:
            for a, b in news:
                partners[a].add(b)
                partners[b].add(a)
            agree = {pair: self._agreeing(*pair, self._chains(*pair, believed, partners)) for pair in rest}
            counts = {pair: int(right.sum()) for pair, right in agree.items()}
            news = {pair for pair in rest if counts[pair] >= max(AGREEING, AGREEING_SHARE * len(self.matches[pair]))}
            # Only what agrees is passed on: a pair may have right matches and wrong ones.
            believed.update({pair: self.matches[pair][agree[pair]] for pair in news})
            rest = [pair for pair in rest if pair not in news]
        # Where matches are few, the same keypoints seldom come out. That they go the same way as the chains is enough
        # to be kept, if not to vouch for others.
        kept = {pair for pair in rest if self._same_way(*pair, self._chains(*pair, believed, partners))}
        return {pair: counts[pair] for pair in rest if pair not in kept and len(self.matches[pair]) >= HARMFUL}

    def _chains(self, a: int, b: int, believed: dict[Pair, Links], partners: dict[int, set[int]]) -> Links:
        """Return the matches (K, 2) from ``a`` to ``b`` by way of third images, along believed matches."""
        links = {c: (_between(believed, a, c), _between(believed, c, b)) for c in partners[a] & partners[b]}
        found = [np.zeros((0, 2), np.int32)]
        for c in sorted(links, key=lambda c: (-min(map(len, links[c])), c))[:CHAINS]:
            first, second = links[c]
            on = np.full(len(self.points[c]), -1, np.int32)
            on[second[:, 0]] = second[:, 1]
            through = np.stack([first[:, 0], on[first[:, 1]]], axis=1)
            found.append(through[through[:, 1] >= 0])
        return np.concatenate(found)

    def _agreeing(self, a: int, b: int, chains: Links) -> NDArray[np.bool_]:
        """Say which matches (K,) of ``a`` and ``b`` come out along chains, too."""
        here, there = self.matches[a, b].T
        row = np.full(len(self.points[a]), -1)
        row[here] = np.arange(len(here))
        chains = chains[row[chains[:, 0]] >= 0]
        rows = row[chains[:, 0]]
        apart = np.linalg.norm(self.points[b][chains[:, 1]] - self.points[b][there[rows]], axis=1)
        agree = np.zeros(len(here), bool)
        agree[rows[apart <= SAME_PLACE * max(self.sizes[b])]] = True
        return agree

    def _same_way(self, a: int, b: int, chains: Links) -> bool:
        """Say whether chains lead from ``a`` to where the matches with ``b`` around them do."""
        start, first = np.unique(chains[:, 0], return_index=True)
        if len(start) < AGREEING:
            return False
        here, there = self.matches[a, b].T
        expected = _warp(self.points[a][here], self.points[b][there], self.points[a][start])
        apart = np.linalg.norm(expected - self.points[b][chains[first, 1]], axis=1)
        return bool(np.median(apart) <= SAME_WAY * max(self.sizes[b]))


def _between(matches: dict[Pair, Links], a: int, b: int) -> Links:
    """Return the matches (K, 2) from image ``a`` to image ``b``."""
    return matches[a, b] if a < b else matches[b, a][:, ::-1]


def _cells(points: Points, size: tuple[int, int]) -> tuple[NDArray[np.int64], Points]:
    """Return the number (N,) of each keypoint's cell, and the centres (C, 2) of all cells."""
    side = max(size) / CELLS
    columns, rows = (int(np.ceil(length / side)) for length in size)
    column, row = np.clip(points // side, 0, (columns - 1, rows - 1)).astype(np.int64).T
    y, x = np.divmod(np.arange(rows * columns), columns)
    return row * columns + column, ((np.stack([x, y], axis=1) + 0.5) * side).astype(np.float32)


def _warp(here: Points, there: Points, places: Points) -> Points:
    """Say where places (C, 2) of one image lie in another, by the points (K, 2) that match.

    They move by the similarity that fits all matches best, and by what the matches nearest to them depart from it.
    """
    u, v, w = (points[:, 0] + 1j * points[:, 1] for points in (here, there, places))
    from_centre = u - u.mean()
    turn = np.vdot(from_centre, v - v.mean()) / max(np.vdot(from_centre, from_centre).real, 1e-9)
    rest = v - v.mean() - turn * from_centre
    near = min(NEIGHBOURS, len(u))
    nearest = np.argpartition(abs(w[:, None] - u), near - 1, axis=1)[:, :near]
    moved = v.mean() + turn * (w - u.mean())
    x, y = (
        part + np.median(error[nearest], axis=1) for part, error in ((moved.real, rest.real), (moved.imag, rest.imag))
    )
    return np.stack([x, y], axis=1).astype(np.float32)
