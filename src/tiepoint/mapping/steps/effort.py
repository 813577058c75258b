"""Pairs that one pass did not solve and a map needs: `try_harder` climbs the ladder of `tiepoint.effort` for them.

Tracks need the same keypoints in every pair. So matches of later rungs, whose keypoints come from warped photographs or
another extractor, are snapped to the keypoints that the store has, and verified like all others.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from ... import effort as ladder
from ...effort import Effort, State
from ...effort.views import working_frame
from ...errors import InputError
from ...features import Extractor
from ...io.folders import mask_of
from ...io.images import read_image
from ...matchers import Matcher
from ...matchers.base import make_matches, no_matches
from ...matchers.union import one_to_one
from ...types import Matches
from ..progress import Progress, Report, silent
from ..store import Store, pairs_of
from .thicken import connected
from .verify import LEAST_INLIERS, verify

FEW_PARTNERS = 3  # an image with fewer verified pairs is tried with more images
TRIES = 3  # failed pairs tried for such an image, and for two models; those with most evidence
SNAP = 2.0  # working pixels from a match to a keypoint of the store


@dataclass(frozen=True)
class Tried:
    """What `try_harder` did: how many pairs were tried, and how many now have a two-view geometry."""

    tried: int
    solved: int


def try_harder(
    store: Store,
    folder: str | os.PathLike[str],
    extractor: Extractor,
    matcher: Matcher,
    effort: Effort,
    *,
    second: Callable[[], tuple[Extractor, Matcher]] | None = None,
    masks: str | os.PathLike[str] | None = None,
    report: Report = silent,
) -> Tried:
    """Try harder on pairs that were matched and not verified, where the map needs them.

    Parameters
    ----------
    store : Store
        Holds features and matches; gets the matches and geometries of the pairs that are solved.
    folder, masks : path
        The photographs and their masks, see `tiepoint.mapping.steps.extract.extract_into`.
    extractor, matcher : Extractor, Matcher
        Those of the store; of its features the extractor's ``max_keypoints`` best are used.
    effort : {"fast", "auto", "thorough"}
        How hard; ``"fast"`` tries nothing.
    second : callable, optional
        Loads another extractor and its matcher, see `tiepoint.pipeline.another`.
    report : callable
        Gets a `Progress` after each pair.

    Returns
    -------
    Tried
        A pair whose photographs cannot be read any more is tried and not solved.

    Raises
    ------
    InputError
        The store cannot be written to.
    """
    if effort == "fast":
        return Tried(0, 0)
    folder, masks = Path(folder), None if masks is None else Path(masks)
    images = {image.image_id: image for image in store.images()}
    pairs = hopeful_pairs(store)
    solved = 0
    for done, (a, b) in enumerate(pairs):
        report(Progress("trying harder", done, len(pairs), note=f"{solved} solved" if solved else ""))
        try:
            first, last = (
                read_image(folder / images[i].name, mask_of(masks, images[i].name), bands=extractor.options.bands)
                for i in (a, b)
            )
        except InputError:
            continue
        most = extractor.options.max_keypoints
        features = store.features(a).first(most), store.features(b).first(most)
        state = ladder.climb(State.begin((first, last), extractor, matcher, second, features), effort)
        result = verify(a, b, images[a].camera, images[b].camera, snapped(state))
        # A matcher that cannot say "unrelated" leaves that to the geometry, which many tries may meet by chance.
        least = LEAST_INLIERS if state.matches.overlaps else 2 * LEAST_INLIERS
        if result.inliers is not None and result.inliers.sum() >= least:
            store.write_matches([result])
            solved += 1
    report(Progress("trying harder", len(pairs), len(pairs), note=f"{solved} solved"))
    return Tried(len(pairs), solved)


def hopeful_pairs(store: Store) -> list[tuple[int, int]]:
    """Return the pairs to try, those with most evidence first.

    They were matched and not verified, and are among the `TRIES` best of an image with few verified partners, or of
    those that would join two groups of images.
    """
    verified = set(store.verified_pairs())
    pairs = [(int(a), int(b)) for a, b in pairs_of(store.matched_pair_ids()) if (int(a), int(b)) not in verified]
    found = {pair: store.matches(*pair) for pair in pairs}
    evidence = {pair: float(m.scores.sum(dtype=np.float64)) for pair, m in found.items() if m is not None}
    ranking = sorted(evidence, key=lambda pair: (-evidence[pair], pair))
    partners = Counter(image for pair in verified for image in pair)
    chosen: set[tuple[int, int]] = set()
    for image in {image for pair in ranking for image in pair}:
        if partners[image] < FEW_PARTNERS:
            chosen.update([pair for pair in ranking if image in pair][:TRIES])
    groups = connected(verified)
    for one, other in combinations(groups, 2):
        chosen.update([pair for pair in ranking if one & set(pair) and other & set(pair)][:TRIES])
    return [pair for pair in ranking if pair in chosen]


def snapped(state: State) -> Matches:
    """Return the matches of a state on the keypoints of the photographs as they are.

    A match goes to the nearest keypoint of either photograph, if both are at most `SNAP` away. Of several that go to
    one keypoint the best score stays.
    """
    columns, near = [], np.ones(len(state.matches), bool)
    for side, points in enumerate((state.matches.points0, state.matches.points1)):
        size = state.images[side].size
        radius = SNAP * max(size) / max(working_frame(size, state.extractor.options)[0])
        keypoints = state.own(side).keypoints.cpu().numpy()
        if not len(keypoints):
            return no_matches(state.own(0), state.own(1))
        nearest = np.zeros(len(points), np.int64)
        for begin in range(0, len(points), 1024):  # bounds memory
            away = np.linalg.norm(points[begin : begin + 1024, None] - keypoints, axis=2)
            nearest[begin : begin + 1024] = away.argmin(axis=1)
        # Several keypoints may share a place: those that were matched as they are stay themselves.
        index = state.matches.indices[:, side]
        nearest = np.where(index < state.detected[side], index, nearest)
        near &= np.linalg.norm(points - keypoints[nearest], axis=1) <= radius
        columns.append(nearest)
    pairs = np.stack(columns, axis=1)[near]
    scores = state.matches.scores[near]
    rows = one_to_one(pairs, -scores)
    rows = rows[np.argsort(pairs[rows, 0], kind="stable")]
    matches = make_matches(state.own(0), state.own(1), pairs[rows], scores[rows])
    return replace(matches, overlaps=state.matches.overlaps)
