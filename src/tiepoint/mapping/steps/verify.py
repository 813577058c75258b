"""Two-view geometry of matched pairs: `verify` for one pair, `verify_into` for those of a store that lack it.

COLMAP's own estimator decides, so that its mappers get what they expect: an essential matrix where the focal lengths
are known, a fundamental matrix where they are not, a homography where the scene is flat or the camera only turned; and
matches of a watermark are recognised. It releases Python's lock, so threads use all cores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ...geometry.colmap import import_pycolmap, to_colmap
from ...types import Matches
from ..blocks import CACHE_BYTES, FeatureCache, in_blocks
from ..progress import Progress, Report, silent
from ..store import CONFIGS, PairResult, Store, pair_ids
from ..workers import Commits, cores, stopping, windowed

if TYPE_CHECKING:
    import pycolmap

Job = tuple[int, int, "pycolmap.Camera", "pycolmap.Camera", Matches]

LEAST_INLIERS = 15  # of a pair, to be used at all: COLMAP's; fewer agree with some geometry by chance


def verify(
    id0: int, id1: int, camera0: pycolmap.Camera, camera1: pycolmap.Camera, matches: Matches, seed: int = 0
) -> PairResult:
    """Find the two-view geometry that most matches of a pair agree with.

    Parameters
    ----------
    id0, id1 : int
        Image ids, for the result.
    camera0, camera1 : pycolmap.Camera
        As in `Store.images`.
    matches : Matches
        In our pixels. If ``overlaps`` is False, or there are fewer than 15, nothing is estimated.
    seed : int
        Of the sampling; equal inputs and seeds give equal results.

    Returns
    -------
    PairResult
        Without inliers and with config "DEGENERATE" where no geometry was found.

    Examples
    --------
    >>> import pycolmap
    >>> rng = np.random.default_rng(0)
    >>> x0 = rng.uniform(0, 600, (60, 2)).astype(np.float32)
    >>> x1 = x0 + np.float32([9, 0]) * rng.uniform(1, 4, (60, 1)).astype(np.float32)  # a camera that moved sideways
    >>> x1[:20] = rng.uniform(0, 600, (20, 2))  # outliers
    >>> pairs = np.arange(60).repeat(2).reshape(-1, 2)
    >>> camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=600, height=600, params=[700, 300, 300])
    >>> found = verify(1, 2, camera, camera, Matches(pairs, np.ones(60, np.float32), x0, x1))
    >>> found.config, bool(found.inliers[20:].all())
    ('UNCALIBRATED', True)
    """
    pycolmap = import_pycolmap()
    none = np.zeros(len(matches), bool)
    nothing = PairResult(id0, id1, matches.indices, matches.scores, matches.overlaps, none, "DEGENERATE")
    if matches.overlaps is False or len(matches) < LEAST_INLIERS:
        return nothing
    options = pycolmap.TwoViewGeometryOptions(min_num_inliers=LEAST_INLIERS, compute_relative_pose=True)
    options.ransac.random_seed = seed
    # COLMAP counts pixels from the image's corner.
    points0, points1 = (to_colmap(points.astype(np.float64)) for points in (matches.points0, matches.points1))
    rows = np.arange(len(matches), dtype=np.uint32).repeat(2).reshape(-1, 2)
    found = pycolmap.estimate_two_view_geometry(camera0, points0, camera1, points1, rows, options)
    if len(found.inlier_matches) < LEAST_INLIERS:
        return nothing
    pose = found.cam2_from_cam1
    return replace(
        nothing,
        inliers=np.isin(rows[:, 0], found.inlier_matches[:, 0]),
        config=CONFIGS[int(found.config)],
        F=found.F,
        E=found.E,
        H=found.H,
        R=None if pose is None else pose.rotation.matrix(),
        t=None if pose is None else pose.translation,
    )


def verify_into(
    store: Store,
    pairs: ArrayLike | Iterable[tuple[int, int]],
    *,
    cache_bytes: int = CACHE_BYTES,
    workers: int | None = None,
    report: Report = silent,
) -> int:
    """Find the geometry of pairs that have matches but were not verified yet, such as imported ones.

    Parameters
    ----------
    store : Store
        Holds the matches; gets the geometries.
    pairs : ints (P, 2), or any iterable of two image ids
        Those without matches are left alone.
    cache_bytes, workers, report
        As in `tiepoint.mapping.steps.match.match_into`.

    Returns
    -------
    int
        How many pairs were verified now.

    Raises
    ------
    ArgumentError
        A pair of an image with itself.
    InputError
        The store cannot be written to.
    """
    cameras = {image.image_id: image.camera for image in store.images()}
    ordered = in_blocks(pairs)
    ids = pair_ids(ordered)
    todo = ordered[np.isin(ids, store.matched_pair_ids()) & ~np.isin(ids, store.verified_pair_ids())]
    cache = FeatureCache(store, cache_bytes, descriptors=False)

    def jobs() -> Iterator[Job]:
        for a, b in todo.tolist():
            stored = store.matches(a, b)
            assert stored is not None  # it is in matched_pair_ids
            x0, x1 = (cache[i].keypoints.numpy()[stored.indices[:, side]] for side, i in enumerate((a, b)))
            matches = Matches(stored.indices, stored.scores, x0, x1, overlaps=stored.overlaps)
            yield a, b, cameras[a], cameras[b], matches

    workers = workers or cores()
    with stopping(ThreadPoolExecutor(workers, "verify")) as threads, Commits(store.write_matches) as commits:
        for n, (_, result) in enumerate(windowed(threads, lambda job: verify(*job), jobs(), 4 * workers), start=1):
            commits.add(result)
            report(Progress("verifying", n, len(todo)))
    return len(todo)
