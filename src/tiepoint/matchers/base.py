"""The one interface of all matchers: two `Features` -> `Matches`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..devices import plain_torch
from ..errors import ArgumentError
from ..types import Features, Matches

Pair = tuple[Features, Features]


class Matcher(ABC):
    """Base class of all matchers.

    Matching (b, a) is exactly matching (a, b) with columns swapped: the base class hands every pair to
    `_match_many` in one canonical order, so that not even rounding differs.
    """

    name: ClassVar[str]

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):  # where networks are made
            cls.__init__ = plain_torch(keep_seed=True)(cls.__init__)  # type: ignore[method-assign]

    @property
    def overlap_threshold(self) -> float | None:
        """The evidence (`Matches.evidence`) that unrelated photographs hardly reach; None if it was not calibrated."""
        return None

    @property
    def descriptor_size(self) -> int | None:
        """How many numbers the descriptors it matches have; None if any number will do."""
        return None

    @abstractmethod
    def _match_many(self, pairs: Sequence[Pair]) -> list[Matches]:
        """Match pairs whose two sides are never empty and already on ``self.device``."""

    def _check(self, features: Features) -> None:  # noqa: B027 - optional: some matchers take anything
        """Raise `ArgumentError` if these features are not what the matcher understands."""

    def __call__(self, features0: Features, features1: Features) -> Matches:
        """Match one pair.

        Raises
        ------
        ArgumentError
            The features come from different extractors, or from one this matcher does not understand.
        """
        return self.match_many([(features0, features1)])[0]

    @plain_torch()
    def match_many(self, pairs: Sequence[Pair]) -> list[Matches]:
        """Match many pairs, of any numbers of keypoints; the result equals matching one by one.

        A pair with an empty side has no matches. Raises what `__call__` raises, before anything is matched.
        """
        results: list[Matches | None] = [None] * len(pairs)
        todo: list[tuple[int, bool, Pair]] = []
        for i, (f0, f1) in enumerate(pairs):
            if _kind(f0) != _kind(f1):
                raise ArgumentError(
                    f"pair {i}: these descriptors cannot be compared: {_kind(f0)} and {_kind(f1)}; extract both "
                    "images with the same extractor"
                )
            if f0.descriptors.shape[1] == 0:
                raise ArgumentError(
                    f"pair {i}: {f0.extractor} keypoints have no descriptors (a dense matcher made them) and cannot be "
                    "matched; extract features, or import the matches that belong to them"
                )
            self._check(f0)
            self._check(f1)
            if len(f0) == 0 or len(f1) == 0:
                results[i] = no_matches(f0, f1)
                continue
            swap = comes_before(f1, f0)
            first, second = (f1, f0) if swap else (f0, f1)
            todo.append((i, swap, (first.to(self.device), second.to(self.device))))
        matched = self._match_many([pair for _, _, pair in todo]) if todo else []
        for (i, swap, _), result in zip(todo, matched, strict=True):
            results[i] = result.swapped() if swap else result
        return [result for result in results if result is not None]


def _kind(features: Features) -> str:
    """Say what must be equal for two sets of descriptors to be comparable."""
    return f"{features.extractor} ({features.descriptors.shape[1]} columns of {features.descriptors.dtype})"


def comes_before(a: Features, b: Features) -> bool:
    """Whether ``a`` comes before ``b`` in an order that looks at the content alone.

    The fewer keypoints first; at equal numbers, whoever has the smaller value where the two first differ. So
    the descriptors, which are large, are compared only when all keypoints are equal.
    """
    if len(a) != len(b):
        return len(a) < len(b)
    for name in ("keypoints", "descriptors", "scores", "scales", "orientations", "covariances"):
        x, y = getattr(a, name), getattr(b, name)
        if x is None or y is None:
            if x is not y:
                return x is None
            continue
        x, y = x.cpu(), y.cpu()
        if not torch.equal(x, y):
            first = int((x != y).flatten().int().argmax())
            return bool(x.flatten()[first] < y.flatten()[first])
    return a.image_size < b.image_size


def no_matches(features0: Features, features1: Features) -> Matches:
    """Return the result of a pair in which at least one image has no keypoints."""
    return make_matches(features0, features1, np.zeros((0, 2), np.int64), np.zeros(0, np.float32))


def make_matches(
    features0: Features, features1: Features, indices: NDArray[np.int64], scores: NDArray[np.float32]
) -> Matches:
    """Build `Matches` from index pairs (K, 2) and scores (K,)."""
    i, j = indices.T
    S0, S1 = features0.covariances, features1.covariances
    return Matches(
        indices,
        scores,
        features0.keypoints.cpu().numpy()[i],
        features1.keypoints.cpu().numpy()[j],
        covariances=None if S0 is None or S1 is None else (S0.cpu().numpy()[i], S1.cpu().numpy()[j]),
    )


def joined(features0: Features, features1: Features, first: Matches, second: Matches) -> Matches:
    """Put two sets of matches of the same features together, in the order of the first keypoints."""
    indices = np.concatenate([first.indices, second.indices])
    scores = np.concatenate([first.scores, second.scores])
    order = np.argsort(indices[:, 0], kind="stable")
    return make_matches(features0, features1, indices[order], scores[order])
