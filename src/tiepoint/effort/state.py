"""A pair between two tries: what was extracted, matched and tried so far, and how the matches of two tries join."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..features import Extractor, ExtractorOptions
from ..features.tiling import concatenate
from ..matchers import Matcher
from ..matchers.base import make_matches, no_matches
from ..matchers.union import undisputed
from ..types import Features, Image, Matches
from .views import working_frame

NEAR = 2.0  # working pixels: matches of two tries this close in both photographs are the same match


@dataclass(frozen=True)
class Attempt:
    """What one rung found.

    Attributes
    ----------
    name : str
        The rung.
    matches : int
        Number of its matches.
    evidence : float
        Sum of the scores of its strongest call of the matcher.
    seconds : float
        What it cost.
    kept : int
        How many matches of the result come from it.
    """

    name: str
    matches: int
    evidence: float
    seconds: float
    kept: int


@dataclass(frozen=True, eq=False)
class State:
    """A pair on the ladder.

    Attributes
    ----------
    images : (Image, Image)
        The photographs.
    extractor, matcher : Extractor, Matcher
        What all rungs but the last use.
    features : (Features, Features)
        First the keypoints of the photographs as they are, ``detected`` of each; then those that later rungs matched.
        Where another extractor found them their descriptors are zeros, since its descriptors cannot be compared; then
        all have covariances, see `Extractor.with_covariances`.
    detected : (int, int)
        How many features come from the photographs as they are.
    matches : Matches
        Indices into ``features``. Pruning and matchability are told only if one pass over all keypoints of the
        photographs as they are made them.
    sources : int64 array (K,)
        Which of ``attempts`` each match comes from.
    attempts : tuple of Attempt
        What was tried, in order.
    second : callable or None
        Loads another extractor and its matcher.
    """

    images: tuple[Image, Image]
    extractor: Extractor
    matcher: Matcher
    features: tuple[Features, Features]
    detected: tuple[int, int]
    matches: Matches
    sources: NDArray[np.int64]
    attempts: tuple[Attempt, ...] = ()
    second: Callable[[], tuple[Extractor, Matcher]] | None = None

    @classmethod
    def begin(
        cls,
        images: tuple[Image, Image],
        extractor: Extractor,
        matcher: Matcher,
        second: Callable[[], tuple[Extractor, Matcher]] | None = None,
        features: tuple[Features, Features] | None = None,
    ) -> State:
        """Extract both photographs, unless their features are known; nothing is matched yet."""
        features = features or (extractor(images[0]), extractor(images[1]))
        nothing = no_matches(*features)
        detected = len(features[0]), len(features[1])
        return cls(images, extractor, matcher, features, detected, nothing, np.zeros(0, np.int64), (), second)

    def swapped(self) -> State:
        """Return the same state with the two photographs exchanged."""
        order = np.argsort(self.matches.indices[:, 1], kind="stable")
        return replace(
            self,
            images=self.images[::-1],
            features=self.features[::-1],
            detected=self.detected[::-1],
            matches=self.matches.swapped(),
            sources=self.sources[order],
        )

    def own(self, side: int) -> Features:
        """Return the keypoints of a photograph as it is."""
        return self.features[side].first(self.detected[side])

    @property
    def evidence(self) -> float:
        """Evidence of the strongest try so far; 0 if nothing was tried."""
        return max((attempt.evidence for attempt in self.attempts), default=0.0)

    def without_matches(self) -> State:
        """Return the state as `begin` left it, with what has been tried."""
        features = self.own(0), self.own(1)
        return replace(self, features=features, matches=no_matches(*features), sources=np.zeros(0, np.int64))


Merge = Literal["replace", "join", "drop"]


@dataclass(frozen=True, eq=False)
class Found:
    """Matches of one call of a matcher, and the features that they index.

    ``features`` are in pixels of the photographs; None stands for the state's own features of that photograph. Matches
    that were found where the geometry of others says do not count for the ``evidence``.
    """

    matches: Matches
    evidence: float
    features: tuple[Features | None, Features | None] = (None, None)


def merge(state: State, name: str, found: Sequence[Found], begin: float, how: Merge) -> State:
    """Add what a rung found to the state, and note the attempt."""
    number = len(state.attempts)
    alone = state.without_matches()
    for part in found:
        alone = add(alone, part, number)
    result = {"replace": alone, "join": state, "drop": state}[how]
    if how == "join":
        for part in found:
            result = add(result, part, number)
    evidence = max(part.evidence for part in found)
    attempt = Attempt(name, len(alone.matches), evidence, time.perf_counter() - begin, 0)
    kept = np.bincount(result.sources, minlength=number + 1).tolist()
    return replace(
        result,
        matches=replace(result.matches, overlaps=_either(state.matches.overlaps, alone.matches.overlaps)),
        attempts=tuple(replace(a, kept=n) for a, n in zip((*state.attempts, attempt), kept, strict=True)),
    )


def _either(first: bool | None, second: bool | None) -> bool | None:
    """Return the verdict of two tries, of which one may have none."""
    return second if first is None else first if second is None else first or second


def add(state: State, found: Found, number: int) -> State:
    """Return the union of the state's matches and those found; of rivals the better score stays.

    Rivals are matches that share a keypoint, or that lie within `NEAR` of each other in both photographs.
    """
    old, new = state.matches, found.matches
    if len(old) == 0 and found.features == (None, None):
        return replace(state, matches=new, sources=np.full(len(new), number))
    theirs = [state.own(i) if features is None else features for i, features in enumerate(found.features)]
    radii = _radius(state.images[0], state.extractor.options), _radius(state.images[1], state.extractor.options)
    remains, stays = undisputed(old, new, radii, (found.features[0] is None, found.features[1] is None))

    both, columns = [], []
    for side in (0, 1):
        rows = new.indices[stays, side]
        if found.features[side] is None:
            both.append(state.features[side])
        else:
            both.append(_appended(state.extractor, state.features[side], theirs[side].select(torch.from_numpy(rows))))
            rows = len(state.features[side]) + np.arange(len(rows))
        columns.append(np.concatenate([old.indices[remains, side], rows]))
    order = np.argsort(columns[0], kind="stable")
    scores = np.concatenate([old.scores[remains], new.scores[stays]])[order]
    sources = np.concatenate([state.sources[remains], np.full(stays.sum(), number)])[order]
    matches = make_matches(both[0], both[1], np.stack(columns, axis=1)[order], scores)
    matches = replace(matches, overlaps=_either(old.overlaps, new.overlaps))
    return replace(state, features=(both[0], both[1]), matches=matches, sources=sources)


def _radius(image: Image, options: ExtractorOptions) -> float:
    """Return `NEAR` in pixels of the photograph."""
    return NEAR / float(np.sqrt(np.linalg.det(working_frame(image.size, options)[1])))


def _appended(extractor: Extractor, features: Features, more: Features) -> Features:
    """Append keypoints that may come from another extractor; what one of the two does not measure is dropped."""
    if more.extractor != features.extractor:
        nothing = features.descriptors.new_zeros(len(more), features.descriptors.shape[1])
        more = replace(more, extractor=features.extractor, descriptors=nothing)
        features = extractor.with_covariances(features)
    optional = ("scales", "orientations", "covariances")
    missing: dict[str, Any] = {
        name: None for name in optional if getattr(features, name) is None or getattr(more, name) is None
    }
    return concatenate([replace(features, **missing), replace(more.to(features.device), **missing)])
