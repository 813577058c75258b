"""Guided matching before the poses are known: more matches for pairs that are too thin to hold a model together.

A model falls apart where photographs share few points: on a walk ahead, say, most of what one shows is out of sight in
the next but one. The two-view geometry of a verified pair says along which lines its other keypoints match
(`tiepoint.effort.along_lines`), which gives two to three times as many.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from ...effort.along_lines import match_along
from ...matchers.base import joined, make_matches
from ..blocks import FeatureCache, in_blocks
from ..overlays import Overlays
from ..progress import Progress, Report, silent
from ..store import Store
from .verify import LEAST_INLIERS, verify

PARTNERS = 5  # photographs that each is matched with again, those with most inliers; 3 left a step of a walk wrong
KEYPOINTS = 4096  # of a photograph, the best: the time grows with the square
WORTH = 0.05  # share of the connected photographs that a model lacks, from which a second try is worth its time

_PIXELS = np.eye(3)  # from pixels to working pixels: limits are in pixels of the photographs, as in `verify`


def torn_apart(placed: Collection[int], verified: Mapping[tuple[int, int], int]) -> set[int]:
    """Return the images that pairs connect with those of a model, if the model lacks more than `WORTH` of them.

    Parameters
    ----------
    placed : ids
        Of the images in the model; without any, the largest connected group counts.
    verified : mapping
        Pair of image ids -> inliers, see `Store.verified_pairs`.

    Returns
    -------
    set of int
        All connected images, those of the model as well; empty if it lacks few.

    Examples
    --------
    >>> sorted(torn_apart({1, 2}, {(1, 2): 90, (2, 3): 40, (8, 9): 50}))
    [1, 2, 3]
    >>> torn_apart({1, 2, 3}, {(1, 2): 90, (2, 3): 40, (8, 9): 50})
    set()
    """
    groups = connected({pair for pair, inliers in verified.items() if inliers >= LEAST_INLIERS})
    around = max(groups, key=lambda group: (len(group & set(placed)), len(group)), default=set())
    return around if len(around - set(placed)) > WORTH * len(around) else set()


def thicken(store: Store, images: Collection[int], report: Report = silent) -> int:
    """Match the keypoints of verified pairs along their epipolar lines, and write what is found to the store.

    Parameters
    ----------
    store : Store
        Holds features, matches and geometries; the thicker pairs replace theirs.
    images : ids
        Whose pairs: of each image those with its `PARTNERS` best partners among them.
    report : callable
        Gets a `Progress` after each pair.

    Returns
    -------
    int
        How many inliers came on top of those that there were.

    Raises
    ------
    InputError
        Features are damaged, or the store cannot be written to.
    """
    verified = {
        pair: n for pair, n in store.verified_pairs().items() if n >= LEAST_INLIERS and set(pair) <= set(images)
    }
    ranking = sorted(verified, key=lambda pair: (-verified[pair], pair))
    chosen = {pair for image in images for pair in [pair for pair in ranking if image in pair][:PARTNERS]}
    cameras = {image.image_id: image.camera for image in store.images()}
    cache, overlays, gained = FeatureCache(store), Overlays(store), 0
    for done, (a, b) in enumerate(in_blocks(sorted(chosen)).tolist()):
        report(Progress("matching along lines", done, len(chosen)))
        stored = store.matches(a, b)
        assert stored is not None  # it is verified
        both = cache[a], cache[b]
        before = make_matches(*both, stored.indices, stored.scores)
        new = match_along(both, before, (both[0].first(KEYPOINTS), both[1].first(KEYPOINTS)), (_PIXELS, _PIXELS))
        if new is None:
            continue
        matches = overlays.without(joined(*both, before, new), *both)
        matches = replace(matches, overlaps=stored.overlaps)
        result = verify(a, b, cameras[a], cameras[b], matches)
        more = 0 if result.inliers is None else int(result.inliers.sum()) - verified[a, b]
        if more > 0:
            store.write_matches([result])
            gained += more
    report(Progress("matching along lines", len(chosen), len(chosen)))
    return gained


def connected(pairs: Collection[tuple[int, int]]) -> list[set[int]]:
    """Return the groups of images that pairs connect."""
    groups: list[set[int]] = []
    for pair in pairs:
        touched = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if not group & set(pair)] + [set(pair).union(*touched)]
    return groups
