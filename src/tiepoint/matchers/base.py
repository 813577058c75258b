"""The one interface of all matchers: two `Features` -> `Matches`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

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

    @abstractmethod
    def _match_many(self, pairs: Sequence[Pair]) -> list[Matches]:
        """Match pairs whose two sides are never empty and already on ``self.device``."""

    def _check(self, features: Features) -> None:
        """Raise `ArgumentError` if these features are not what the matcher understands."""

    def __call__(self, features0: Features, features1: Features) -> Matches:
        """Match one pair."""
        return self.match_many([(features0, features1)])[0]

    def match_many(self, pairs: Sequence[Pair]) -> list[Matches]:
        """Match many pairs, of any numbers of keypoints; the result equals matching one by one."""
        results: list[Matches | None] = [None] * len(pairs)
        todo: list[tuple[int, bool, Pair]] = []
        for i, (f0, f1) in enumerate(pairs):
            if f0.descriptors.shape[1] != f1.descriptors.shape[1] or f0.is_binary != f1.is_binary:
                raise ArgumentError(
                    f"pair {i}: {f0.extractor} and {f1.extractor} descriptors cannot be compared "
                    f"({f0.descriptors.shape[1]} and {f1.descriptors.shape[1]} columns)"
                )
            self._check(f0)
            self._check(f1)
            if len(f0) == 0 or len(f1) == 0:
                results[i] = no_matches(f0, f1)
                continue
            swap = _order(f0) > _order(f1)
            pair = (f1, f0) if swap else (f0, f1)
            todo.append((i, swap, (pair[0].to(self.device), pair[1].to(self.device))))
        matched = self._match_many([pair for _, _, pair in todo]) if todo else []
        for (i, swap, _), result in zip(todo, matched, strict=True):
            results[i] = result.swapped() if swap else result
        return [result for result in results if result is not None]


def _order(features: Features) -> tuple[int, bytes, bytes]:
    """Return a sort key that depends on the content alone, so that a pair has one canonical order."""
    return (
        len(features),
        features.keypoints.cpu().numpy().tobytes(),
        features.descriptors.cpu().numpy().tobytes(),
    )


def no_matches(features0: Features, features1: Features) -> Matches:
    """Return the result of a pair in which at least one image has no keypoints."""
    return make_matches(features0, features1, np.zeros((0, 2), np.int64), np.zeros(0, np.float32))


def make_matches(
    features0: Features, features1: Features, matches: NDArray[np.int64], scores: NDArray[np.float32]
) -> Matches:
    """Build `Matches` from index pairs (K, 2) and scores (K,)."""
    return Matches(
        matches,
        scores,
        features0.keypoints.cpu().numpy()[matches[:, 0]],
        features1.keypoints.cpu().numpy()[matches[:, 1]],
    )
