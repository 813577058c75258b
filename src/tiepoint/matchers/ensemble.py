"""The matcher of several extractors: each member matches the keypoints of its own, and the matches are united."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from ..features.ensemble import part
from ..types import Features, Matches
from .base import Matcher, Pair, make_matches, no_matches
from .union import undisputed

RADIUS = 1 / 512  # of the long side of a photograph: matches this close in both photographs are the same match


class Ensemble(Matcher):
    """Union of the matches of several matchers, one for each member of an ensemble of extractors.

    Of matches of two members that are near each other in both photographs the one with the better score stays.
    Pruning and layers are not reported, since they differ between members.

    Parameters
    ----------
    members : sequence of Matcher
        One for each extractor.
    features : sequence of str
        The names of the extractors, see `tiepoint.features.ensemble`.

    Raises
    ------
    ArgumentError
        Not one matcher for each extractor; when called: features of another ensemble.
    """

    def __init__(self, members: Sequence[Matcher], features: Sequence[str]) -> None:
        if len(members) != len(features):
            raise ArgumentError(f"there are {len(members)} matchers for {len(features)} extractors")
        super().__init__(members[0].device)
        self.members = tuple(members)
        self.features = tuple(features)
        names = [member.name for member in members]
        # a class attribute of every other matcher
        self.name = names[0] if len(set(names)) == 1 else "+".join(names)  # type: ignore[misc]

    @property
    def overlap_threshold(self) -> float | None:
        """The sum of the members' thresholds: photographs that reach it exceed at least one of them."""
        thresholds = [member.overlap_threshold for member in self.members]
        return None if None in thresholds else sum(value for value in thresholds if value is not None)

    def _check(self, features: Features) -> None:
        if features.extractor != "+".join(self.features):
            raise ArgumentError(
                f"this matcher is set up for {'+'.join(self.features)!r} features, not {features.extractor!r}"
            )

    def _match_many(self, pairs: Sequence[Pair]) -> list[Matches]:
        results = [no_matches(*pair) for pair in pairs]
        for k, matcher in enumerate(self.members):
            parts = [[part(side, self.features, k, matcher.descriptor_size) for side in pair] for pair in pairs]
            found = matcher.match_many([(first, second) for (first, _), (second, _) in parts])
            for p, (pair, matches) in enumerate(zip(pairs, found, strict=True)):
                rows = [rows.cpu().numpy()[matches.indices[:, side]] for side, (_, rows) in enumerate(parts[p])]
                results[p] = _union(results[p], replace(matches, indices=np.stack(rows, axis=1)), pair)
        threshold = self.overlap_threshold
        return results if threshold is None else [replace(m, overlaps=m.evidence > threshold) for m in results]


def _union(first: Matches, second: Matches, pair: Pair) -> Matches:
    """Put two sets of matches of one pair together, without those that are the same match."""
    radii = RADIUS * max(pair[0].image_size), RADIUS * max(pair[1].image_size)
    stay0, stay1 = undisputed(first, second, radii)
    indices: NDArray[np.int64] = np.concatenate([first.indices[stay0], second.indices[stay1]])
    scores = np.concatenate([first.scores[stay0], second.scores[stay1]])
    order = np.argsort(indices[:, 0], kind="stable")
    return make_matches(*pair, indices[order], scores[order])


__all__ = ["Ensemble"]
