"""Clocks, logos and other overlays that are burnt into the pictures: they match in all pictures, and stand still.

Matches that stay where they are in the picture while what surrounds them moves are no part of the scene. A camera at
rest has such matches as well, but all over the picture; and in a view ahead the horizon stands still, but what is next
to it moves only a little more. Neither is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ..types import Features, Matches
from .nearest import NearestNeighbour
from .union import near_points

STILL = 1.5  # pixels that an overlay's keypoints differ by: compression, rounding
JUMP = 2.0  # pixels that the surroundings move by more
NEIGHBOURS = 5
CELLS = 8  # along the longer side
SMALL = 0.35  # an overlay covers at most this share of the cells that have keypoints
LEAST_STILL = 5
NEAR = 1 / 20  # of the longer side: what begins and ends so near to an overlay is taken for a part of it
LEAST_MOVING = 15  # matches that prove that the camera moved, where nothing else does
KEYPOINTS = 1024  # of an image, the best, that tell where a collection has overlays: 10 ms a pair

NONE_KNOWN = np.zeros((0, 2), np.float32)


def without_overlay(
    matches: Matches,
    features0: Features,
    features1: Features,
    least_moving: int = LEAST_MOVING,
    known: NDArray[np.floating] = NONE_KNOWN,
) -> Matches:
    """Return the matches without those of an overlay.

    Parameters
    ----------
    matches : Matches
    features0, features1 : Features
        What was matched.
    least_moving : int
        So many matches have to move, or nothing is dropped. Two photographs of a fixed camera, by day and by night,
        have few matches; where a camera is known to move, 0 also drops an overlay that is all that matches.
    known : array (N, 2)
        Pixels where images of this size have an overlay, see `overlay_of`.

    Returns
    -------
    Matches
        The same object if there is no overlay.

    Examples
    --------
    >>> import torch
    >>> rng = np.random.default_rng(0)
    >>> x0 = rng.uniform(0, 420, (100, 2)).astype(np.float32)
    >>> x1 = x0 + np.float32([20, 5])
    >>> x0[:10] = x1[:10] = np.float32([600, 460]) + np.arange(10)[:, None]  # a clock
    >>> f0, f1 = (Features(torch.from_numpy(x), torch.ones(100), torch.eye(100), (640, 480), "sift") for x in (x0, x1))
    >>> found = Matches(np.arange(100).repeat(2).reshape(-1, 2), np.ones(100, np.float32), x0, x1)
    >>> len(without_overlay(found, f0, f1))
    90
    """
    if features0.image_size != features1.image_size:
        return matches
    if len(known):
        matches = _away_from(known, matches, features0)
    while len(left := _without_part(matches, features0, features1, least_moving)) < len(matches):
        matches = left  # without the letters that move, the rest of an overlay shows more clearly
    return matches


def _stands_still(
    matches: Matches, features0: Features, features1: Features, least_moving: int = 0
) -> NDArray[np.bool_]:
    """Return which matches (K,) stand still while what is around them moves; none where still ones are all over."""
    motion = np.linalg.norm(matches.points1 - matches.points0, axis=1)
    still = motion <= STILL
    if still.sum() < LEAST_STILL or (~still).sum() < least_moving:
        return np.zeros_like(still)
    if max(_covered(points[still], features) for points, features in _sides(matches, features0, features1)) >= SMALL:
        return np.zeros_like(still)
    # The middle of the two places, so that both images count alike.
    middle = (matches.points0 + matches.points1) / 2
    overlay = still.copy()
    if (~still).sum() >= NEIGHBOURS:
        for i in np.flatnonzero(still):
            near = np.argsort(np.linalg.norm(middle[~still] - middle[i], axis=1), kind="stable")[:NEIGHBOURS]
            overlay[i] = np.median(motion[~still][near]) > motion[i] + JUMP
    return overlay


def _without_part(matches: Matches, features0: Features, features1: Features, least_moving: int) -> Matches:
    overlay = _stands_still(matches, features0, features1, least_moving)
    if not overlay.any():
        return matches
    middle = (matches.points0 + matches.points1) / 2
    still = np.linalg.norm(matches.points1 - matches.points0, axis=1) <= STILL
    # Where the scene hardly moves, the neighbours of a match say too little; but one that stands still beside an
    # overlay belongs to it. So does a match between two places beside it: a letter, and the same letter further on.
    # What passes by there in both images is lost too, 5 in 100 matches of a film with a clock and a logo.
    reach = _reach(features0)
    overlay |= still & (_distance_to(middle[overlay], middle) <= reach)
    places = np.concatenate([middle[overlay], _still_keypoints(features0, features1, middle[overlay], reach)])
    return _away_from(places, matches, features0)


def overlay_of(images: Sequence[Features]) -> NDArray[np.float32]:
    """Return where images of one size have an overlay: where the same keypoints stand still in half of the pairs.

    A pair alone shows an overlay by matches that stand still. Where a matcher finds none of those, but takes a letter
    for another one, only the other pairs tell.

    Parameters
    ----------
    images : sequence of Features
        A few of a collection, far apart, all of the same extractor and image size. All pairs are compared.

    Returns
    -------
    float32 array (N, 2)
        Whole pixels, each place once; none with fewer than three images.

    Examples
    --------
    >>> import torch
    >>> rng = np.random.default_rng(0)
    >>> scene, clock = rng.uniform(0, 420, (100, 2)), 600 + np.arange(10)[:, None] * np.ones(2)
    >>> points = [torch.tensor(np.vstack([scene + (20 * n, 5), clock]), dtype=torch.float32) for n in range(3)]
    >>> frames = [Features(x, torch.ones(110), torch.eye(110), (640, 640), "sift") for x in points]
    >>> overlay_of(frames)[:, 0].tolist()
    [600.0, 601.0, 602.0, 603.0, 604.0, 605.0, 606.0, 607.0, 608.0, 609.0]
    """
    if len(images) < 3:
        return NONE_KNOWN
    matcher = NearestNeighbour(images[0].extractor)
    found = []
    for features0, features1 in combinations([image.first(KEYPOINTS) for image in images], 2):
        matches = matcher(features0, features1)
        found.append(((matches.points0 + matches.points1) / 2)[_stands_still(matches, features0, features1)])
    places, pair = np.concatenate(found), np.repeat(np.arange(len(found)), [len(one) for one in found])
    i, j = near_points(places, places, STILL)
    seen = np.unique(np.stack([i, pair[j]], axis=1), axis=0)[:, 0]
    return np.unique(places[2 * np.bincount(seen, minlength=len(places)) >= len(found)].round(), axis=0)


def _reach(features: Features) -> float:
    return NEAR * max(features.image_size)


def _away_from(places: NDArray[np.floating], matches: Matches, features: Features) -> Matches:
    """Return the matches of which at least one end is not near the places (N, 2); the same object if all are."""
    ends = [_distance_to(places, points) for points in (matches.points0, matches.points1)]
    away = np.maximum(*ends) > _reach(features)
    return matches if away.all() else matches[away]


def _still_keypoints(
    features0: Features, features1: Features, places: NDArray[np.floating], reach: float
) -> NDArray[np.floating]:
    """Return keypoints (N, 2) next to an overlay that both images have there: letters, also those matched wrongly."""
    first, second = (features.keypoints.cpu().numpy() for features in (features0, features1))
    i, _ = near_points(first, second, STILL)
    still = first[np.unique(i)]
    return still[_distance_to(places, still) <= reach]


def _distance_to(places: NDArray[np.floating], points: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return how far each point (N, 2) is from the nearest of the places (M, 2)."""
    return np.linalg.norm(points[:, None] - places, axis=2).min(axis=1)


def _sides(
    matches: Matches, features0: Features, features1: Features
) -> tuple[tuple[NDArray[np.float32], Features], tuple[NDArray[np.float32], Features]]:
    return (matches.points0, features0), (matches.points1, features1)


def _covered(points: NDArray[np.float32], features: Features) -> float:
    """Return the share of the cells with keypoints in which these points (N, 2) lie."""
    cell = max(features.image_size) / CELLS
    all_cells = np.unique((features.keypoints.cpu().numpy() // cell).astype(int), axis=0)
    return len(np.unique((points // cell).astype(int), axis=0)) / max(1, len(all_cells))


__all__ = ["overlay_of", "without_overlay"]
