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
from collections.abc import Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import InputError
from ...matchers import Matcher
from ...matchers.base import Pair
from ...matchers.overlay import without_overlay
from ...types import Matches
from ..blocks import CACHE_BYTES, FeatureCache, in_blocks
from ..progress import Progress, Report, silent
from ..store import PairResult, Store, pair_ids
from ..workers import Commits, cores, stopping, windowed
from . import verify as verification

# Pairs matched together: on a GPU an 8 x 8 square of images, enough to fill it; elsewhere what is soon done.
BATCH = {"cuda": 64}
SMALL_BATCH = 8
BATCHES_AHEAD = 3  # one being matched, one being verified, one waiting with its features in memory

Job = list[tuple[int, int, Pair]]  # image ids and features


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
    begin = time.monotonic()
    cameras = {image.image_id: image.camera for image in store.images()}
    ordered, usable, todo = what_to_match(store, cameras, pairs)
    already = int((usable & ~todo).sum())
    total = already + int(todo.sum())
    if verify and already:
        verification.verify_into(
            store, ordered[usable & ~todo], cache_bytes=cache_bytes, workers=workers, report=report
        )

    cache = FeatureCache(store, cache_bytes, most=most)
    size = batch_size(matcher)
    batches = (ordered[at : at + size][todo[at : at + size]].tolist() for at in range(0, len(ordered), size))
    finish = verification.verify if verify else unverified
    tally = Tally.of(matcher)
    report(Progress("matching", already, total))
    with (
        stopping(ThreadPoolExecutor(1, "match")) as matching,
        stopping(ThreadPoolExecutor(workers or cores(), "verify")) as verifying,
        Commits(store.write_matches) as commits,
    ):

        def match(job: Job) -> list[tuple[Matches, Future[PairResult]]]:
            found = [
                without_overlay(matches, *pair, least_moving=0)
                for (_, _, pair), matches in zip(job, matcher.match_many([pair for _, _, pair in job]), strict=True)
            ]
            return [
                (matches, verifying.submit(finish, a, b, cameras[a], cameras[b], matches))
                for (a, b, _), matches in zip(job, found, strict=True)
            ]

        jobs = ([(a, b, (cache[a], cache[b])) for a, b in batch] for batch in batches if batch)
        for _, results in windowed(matching, match, jobs, BATCHES_AHEAD):
            for matches, future in results:
                tally.add(future.result(), matches.stop_layer)
            commits.add(*(future.result() for _, future in results))
            report(Progress("matching", already + tally.matched, total, tally.early_exits))
    return tally.summary(len(ordered), already, len(ordered) - int(usable.sum()), time.monotonic() - begin, cache.reads)


def what_to_match(
    store: Store, known: Collection[int], pairs: ArrayLike | Iterable[tuple[int, int]]
) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Sort pairs by blocks, and look up what the store has of them.

    Parameters
    ----------
    store : Store
    known : image ids
        Of all images of the store.
    pairs : ints (P, 2), or any iterable of two image ids

    Returns
    -------
    ordered : int32 array (Q, 2)
        Each pair once, see `in_blocks`.
    usable, todo : bool array (Q,)
        Whether both images have features, and whether the pair is besides not matched yet.

    Raises
    ------
    InputError
        A pair names an image that is not known.
    """
    ordered = in_blocks(pairs)
    unknown = np.setdiff1d(ordered, np.fromiter(known, np.int64))
    if len(unknown):
        raise InputError(f"{store.path}: has no image {unknown[0]}, which the list of pairs names; make the list anew")
    usable = np.all(np.isin(ordered, np.fromiter(store.has_features(), np.int64)), axis=1)
    return ordered, usable, usable & ~np.isin(pair_ids(ordered), store.matched_pair_ids())


def batch_size(matcher: Matcher) -> int:
    """Return how many pairs are matched together."""
    return BATCH.get(matcher.device.type, SMALL_BATCH)


def unverified(id0: int, id1: int, camera0: Any, camera1: Any, matches: Matches) -> PairResult:
    """Return the matches of a pair as they are: what stands in for `verify` where no geometry is wanted."""
    return PairResult(id0, id1, matches.indices, matches.scores, matches.overlaps)


@dataclass
class Tally:
    """Counts over the pairs matched in this run; ``layers`` is the number a matcher has, None if it has none."""

    layers: int | None
    matched: int = 0
    verified: int = 0
    unrelated: int = 0
    early: int = 0

    @classmethod
    def of(cls, matcher: Matcher) -> Tally:
        """Begin to count what a matcher does."""
        return cls(layers=getattr(getattr(matcher, "config", None), "layers", None))

    def add(self, result: PairResult, stop_layer: int | None) -> None:
        """Count a pair; ``stop_layer`` is as in `Matches`."""
        self.matched += 1
        self.verified += result.inliers is not None and bool(result.inliers.any())
        self.unrelated += result.overlaps is False
        self.early += self.layers is not None and stop_layer is not None and stop_layer < self.layers

    @property
    def early_exits(self) -> float | None:
        """See `Matching`."""
        return None if self.layers is None or not self.matched else self.early / self.matched

    def summary(self, pairs: int, already: int, without_features: int, seconds: float, reads: int) -> Matching:
        """Return these counts together with those that are known elsewhere."""
        return Matching(
            pairs=pairs,
            matched=self.matched,
            already=already,
            without_features=without_features,
            verified=self.verified,
            unrelated=self.unrelated,
            early_exits=self.early_exits,
            seconds=seconds,
            reads=reads,
        )
