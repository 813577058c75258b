"""The best keypoints of a pair first, and all only where these leave a doubt: `BestFirst`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from ..types import Matches
from .base import Matcher, Pair, make_matches

BEST = 512  # keypoints of each photograph that are matched first
# Evidence (`Matches.evidence`) of the best 512 that needs no more: enough for a pose, and where a map needs more
# matches it looks for them itself (`tiepoint.mapping.steps.thicken`). With 0 that could not save lund, a walk along a
# street. Below the overlap threshold no more is tried either: of 14 pairs of sacre_coeur four had less, and at most 13
# matches of all keypoints agreed with a geometry.
ENOUGH = 30.0


class BestFirst(Matcher):
    """Another matcher, which sees all keypoints of a pair only where the best 512 of each leave a doubt.

    A network's work grows with the square of their number. This is for maps: the best keypoints tell what shows the
    same place and give poses; all others are matched along epipolar lines later (`tiepoint.mapping.steps.densify`).

    Parameters
    ----------
    matcher : Matcher
        Whose features are sorted, the best keypoints first.

    Examples
    --------
    >>> from tiepoint import matchers
    >>> BestFirst(matchers.load("lightglue", features="cairn")).descriptor_size
    128
    """

    name: ClassVar[str] = "best-first"

    def __init__(self, matcher: Matcher) -> None:
        super().__init__(matcher.device)
        self.matcher = matcher

    @property
    def config(self) -> Any:
        """That of the matcher; None if it has none."""
        return getattr(self.matcher, "config", None)

    @property
    def overlap_threshold(self) -> float | None:
        """See `Matcher.overlap_threshold`."""
        return self.matcher.overlap_threshold

    @property
    def descriptor_size(self) -> int | None:
        """See `Matcher.descriptor_size`."""
        return self.matcher.descriptor_size

    def _match_many(self, pairs: Sequence[Pair]) -> list[Matches]:
        few = self.matcher.match_many([(a.first(BEST), b.first(BEST)) for a, b in pairs])
        # What the matcher says of each keypoint would be about the best alone.
        results = [
            replace(
                make_matches(a, b, found.indices, found.scores), overlaps=found.overlaps, stop_layer=found.stop_layer
            )
            for found, (a, b) in zip(few, pairs, strict=True)
        ]
        again = [
            i
            for i, (a, b) in enumerate(pairs)
            if max(len(a), len(b)) > BEST and results[i].overlaps is not False and results[i].evidence < ENOUGH
        ]
        for i, found in zip(again, self.matcher.match_many([pairs[i] for i in again]), strict=True):
            results[i] = found
        return results
