"""Pairs of images -> matches and two-view geometry in the store: `match_into`.

Three kinds of threads work at once: this one reads features and writes results, a second one runs the matcher (on a
GPU, or on all cores by torch's own threads), and a pool verifies the pairs that are matched. Memory is bounded by the
cache of `tiepoint.mapping.blocks` and a few batches, whatever the number of images and pairs.

A batch of pairs is matched together and committed together. Which pairs form a batch follows from the list of pairs
alone, not from what is already done. So a run that was killed and resumed ends with the same database as one that was
not: even where a network's rounding depends on its batch, each batch is the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import InputError
from ...matchers import Matcher
from ...types import Features, Matches
from ..blocks import CACHE_BYTES, FeatureCache, in_blocks
from ..overlays import Overlays
from ..progress import Progress, Report, silent
from ..store import PairResult, Store, pair_ids
from ..workers import Commits, cores, stopping, windowed
from . import verify as verification

if TYPE_CHECKING:
    import pycolmap

# Pairs matched together: on a GPU an 8 x 8 square of images, enough to fill it; elsewhere what is soon done.
BATCH = {"cuda": 64}
SMALL_BATCH = 8
BATCHES_AHEAD = 3  # one being matched, one being verified, one waiting with its features in memory

FutureResult = tuple[Future[PairResult], int | None]  # of a pair, and the layer after which the matcher stopped


@dataclass(frozen=True)
class Matching:
    """What `match_into` did.

    Attributes
    ----------
    pairs : int
        Different pairs that were asked for.
    matched, already : int
        Pairs matched now, and those that were in the store before.
    without_features : int
        Pairs left out because one of their images has no features in the store (its photograph could not be read).
    verified : int
        Pairs matched now that have a two-view geometry; 0 if none were verified.
    unrelated : int
        Pairs matched now of which the matcher itself says that they show nothing in common.
    early_exits : float or None
        Share of the pairs matched now that an adaptive matcher stopped before its last layer.
    seconds : float
        Wall-clock time.
    reads : int
        How often an image's features were read from the store.
    """

    pairs: int
    matched: int
    already: int
    without_features: int
    verified: int
    unrelated: int
    early_exits: float | None
    seconds: float
    reads: int


def match_into(
    store: Store,
    pairs: ArrayLike | Iterable[tuple[int, int]],
    matcher: Matcher,
    *,
    verify: bool = True,
    most: int | None = None,
    cache_bytes: int = CACHE_BYTES,
    workers: int | None = None,
    report: Report = silent,
) -> Matching:
    """Match pairs of images whose features are in the store, and write what is found.

    Parameters
    ----------
    store : Store
        Holds the features; gets matches, their scores, and two-view geometries.
    pairs : ints (P, 2), or any iterable of two image ids
        In any order; see `tiepoint.mapping.pairs`. Those that are in the store already are not matched again.
    matcher : Matcher
        See `tiepoint.matchers.load`.
    verify : bool
        Also find the geometry that most matches agree with (`tiepoint.mapping.steps.verify`), which reconstruction
        needs. Pairs that were matched before, without it, get theirs too.
    most : int, optional
        Match only this many keypoints of each image, the best.
    cache_bytes : int
        Memory for features. Less means that they are read more often; the result is the same.
    workers : int, optional
        Threads that verify; by default one for each core.
    report : callable
        Gets a `Progress` after each batch.

    Returns
    -------
    Matching
        Counts.

    Raises
    ------
    ArgumentError
        A pair of an image with itself, or features that this matcher does not understand.
    InputError
        A pair names an image that the store does not have; or the store cannot be written to.

    Examples
    --------
    ::

        with Store.open("map/database.db") as store:
            ids = [image.image_id for image in store.images()]
            match_into(store, pairs.exhaustive(ids), tiepoint.matchers.load("nearest", "sift"))
    """
    run = MatchRun(store, pairs, matcher, verify)
    if verify and run.already:
        verification.verify_into(store, run.matched_before, cache_bytes=cache_bytes, workers=workers, report=report)
    cache = FeatureCache(store, cache_bytes, most=most)
    report(run.progress())
    with (
        stopping(ThreadPoolExecutor(1, "match")) as matching,
        stopping(ThreadPoolExecutor(workers or cores(), "verify")) as verifying,
        Commits(store.write_matches) as commits,
    ):
        # Features are read in this thread, to which the store belongs.
        batches = map(np.ndarray.tolist, run.batches(0, len(run.ordered)))
        jobs = ((batch, {i: cache[i] for pair in batch for i in pair}) for batch in batches)

        def match(job: tuple[list[tuple[int, int]], dict[int, Features]]) -> list[FutureResult]:
            return match_batch(matcher, *job, run.cameras, run.overlays, verifying, verify)

        for _, results in windowed(matching, match, jobs, BATCHES_AHEAD):
            for future, stop_layer in results:
                run.count(future.result(), stop_layer)
            commits.add(*(future.result() for future, _ in results))
            report(run.progress())
    return run.summary(cache.reads)


class MatchRun:
    """The pairs of one call of `match_into`: which of them to match, and counts of those that were.

    Parameters
    ----------
    store : Store
    pairs : ints (P, 2), or any iterable of two image ids
    matcher : Matcher
    verify : bool
        See `match_into`. If not, each pair is matched for itself, whatever else the store holds.

    Attributes
    ----------
    cameras : dict
        Image id -> camera, of all images of the store.
    overlays : Overlays
        Of the images of the store; unknown where no pair is left to match.
    ordered : int32 array (Q, 2)
        Each pair once, see `in_blocks`.
    todo : bool array (Q,)
        Whether both images have features, and the pair is not matched yet.
    matched_before : int32 array (R, 2)
        The pairs that the store has matches of.
    already, total : int
        R, and how many pairs are matched at the end.

    Raises
    ------
    InputError
        A pair names an image that the store does not have.
    """

    def __init__(
        self, store: Store, pairs: ArrayLike | Iterable[tuple[int, int]], matcher: Matcher, verify: bool
    ) -> None:
        self.begin = time.monotonic()
        self.cameras = {image.image_id: image.camera for image in store.images()}
        self.ordered = in_blocks(pairs)
        unknown = np.setdiff1d(self.ordered, np.fromiter(self.cameras, np.int64))
        if len(unknown):
            raise InputError(
                f"{store.path}: has no image {unknown[0]}, which the list of pairs names; make the list anew"
            )
        usable = np.all(np.isin(self.ordered, np.fromiter(store.has_features(), np.int64)), axis=1)
        self.todo = usable & ~np.isin(pair_ids(self.ordered), store.matched_pair_ids())
        self.matched_before = self.ordered[usable & ~self.todo]
        self.already, self.total = len(self.matched_before), int(usable.sum())
        self.batch_size = BATCH.get(matcher.device.type, SMALL_BATCH)
        self.overlays = Overlays(store if verify and self.todo.any() else None)
        self.layers: int | None = getattr(getattr(matcher, "config", None), "layers", None)
        self.matched = self.verified = self.unrelated = self.early = 0

    def batches(self, begin: int, end: int) -> Iterator[NDArray[np.int32]]:
        """Yield the pairs to do among ``ordered[begin:end]``, those together that are matched together."""
        for at in range(begin, min(end, len(self.ordered)), self.batch_size):
            some = slice(at, at + self.batch_size)
            if self.todo[some].any():
                yield self.ordered[some][self.todo[some]]

    def count(self, result: PairResult, stop_layer: int | None) -> None:
        """Count a pair that was matched; ``stop_layer`` is as in `Matches`."""
        self.matched += 1
        self.verified += result.inliers is not None and bool(result.inliers.any())
        self.unrelated += result.overlaps is False
        self.early += self.layers is not None and stop_layer is not None and stop_layer < self.layers

    def progress(self) -> Progress:
        """Return how far it is."""
        return Progress("matching", self.already + self.matched, self.total, self._early_exits)

    def summary(self, reads: int) -> Matching:
        """Return all counts; ``reads`` is as in `Matching`."""
        return Matching(
            pairs=len(self.ordered),
            matched=self.matched,
            already=self.already,
            without_features=len(self.ordered) - self.total,
            verified=self.verified,
            unrelated=self.unrelated,
            early_exits=self._early_exits,
            seconds=time.monotonic() - self.begin,
            reads=reads,
        )

    @property
    def _early_exits(self) -> float | None:
        return None if self.layers is None or not self.matched else self.early / self.matched


def match_batch(
    matcher: Matcher,
    pairs: list[tuple[int, int]],
    features: Mapping[int, Features],
    cameras: Mapping[int, pycolmap.Camera],
    overlays: Overlays,
    pool: Executor,
    verify: bool,
) -> list[FutureResult]:
    """Match pairs of image ids together; each goes on to the threads of ``pool``, which verify it, if that is wanted.

    Returns
    -------
    list of (Future of PairResult, int or None)
        With the layer after which the matcher stopped.
    """
    both = [(features[a], features[b]) for a, b in pairs]
    found = [overlays.without(matches, *pair) for pair, matches in zip(both, matcher.match_many(both), strict=True)]
    finish = verification.verify if verify else _unverified
    return [
        (pool.submit(finish, a, b, cameras[a], cameras[b], matches), matches.stop_layer)
        for (a, b), matches in zip(pairs, found, strict=True)
    ]


def _unverified(id0: int, id1: int, camera0: pycolmap.Camera, camera1: pycolmap.Camera, matches: Matches) -> PairResult:
    """Return the matches of a pair as they are: what stands in for `verify` where no geometry is wanted."""
    return PairResult(id0, id1, matches.indices, matches.scores, matches.overlaps)
