"""Repeated and displaced objects: which consistent geometries there are between two photographs.

Two identical chairs, or one product on a shelf of ten: a matcher that gives each keypoint one partner mixes the copies.
Here every keypoint keeps several *candidates*, its most similar keypoints in the other photograph, and homographies are
estimated from them one after the other (`find_groups`): each leaves the candidates that agree with it to its `Group`.

A group is a *rival* of the first one if it wants the same keypoints: it is another copy of what the first one found.
It is *displaced* if it has no such rival, but stands farther from where the first group's homography puts it than it is
large, and what surrounds it in both photographs agrees with the first group: an object that was moved, or a copy whose
original is hidden. A depth at which a scene has parallax also displaces its parts; so a group that agrees with the
epipolar geometry of the other matches is never called displaced, unless these lie on one plane, which determines none.

References
----------
E. Vincent and R. Laganière, Detecting planar homographies in an image pair, ISPA 2001: sequential estimation.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from .geometry import estimate_fundamental, estimate_homography, reprojection_error, sampson_error, transform
from .matchers.base import comes_before, make_matches
from .matchers.nearest import candidates
from .matchers.union import one_to_one
from .types import Features, Group, Matches

THRESHOLD = 3 / 1024  # of the long side of photograph 1: how far from a homography its matches may lie
EDGE = 3  # times that: what a group leaves to no other
LEAST = 12  # matches of a group: fewer agree by chance
LEAST_SHARE = 0.2  # of the strongest group: parts of another instance, where several are wanted
MORE = 3  # groups to look for beyond those that are wanted: their matches are not mixed with the others
SHARED = 0.3  # of a group's keypoints: so many that another one wants make the two rivals
PLANAR = 0.8  # of the matches that agree with a fundamental matrix: so many on one plane determine it badly
NEIGHBOURS = 8
AROUND = 1 / 4  # of the long side of photograph 0: neighbours of a candidate
COARSE = 0.3  # how wrong a keypoint's scale and orientation may put a neighbour, as a share of its distance
AGREE = 4  # neighbours that have to agree with a candidate
ITERATIONS = 50_000  # of ten copies each has a tenth of the candidates

_ROWS = 256  # candidates compared with all others at one time, which bounds memory

Array = NDArray[np.float64]


def find_groups(
    features0: Features, features1: Features, matches: Matches, instances: int = 1
) -> tuple[tuple[Group, ...], NDArray[np.bool_]]:
    """Find the consistent geometries between two photographs.

    Parameters
    ----------
    features0, features1 : Features
        Of the two photographs.
    matches : Matches
        What a matcher found between them.
    instances : int
        How many copies to find at most, of an object that photograph 0 shows alone.

    Returns
    -------
    groups : tuple of Group
        The strongest first: by the number of its matches, and of the matcher's that agree with it, since the matcher
        sees the surroundings.
    keep : bool array (K,)
        False for ``matches`` that belong to a rival of the first group, or to a displaced one.

    Notes
    -----
    Descriptors are compared as they are: those that turn with the image find no copies that are turned.
    """
    if comes_before(features1, features0):
        swapped, kept = find_groups(features1, features0, matches.swapped(), instances)
        back = np.argsort(np.argsort(matches.indices[:, 1], kind="stable"), kind="stable")
        return tuple(group.swapped() for group in swapped), kept[back]
    keep = np.ones(len(matches), bool)
    found = _sequential(features0, features1, matches, instances)
    if not found:
        return (), keep
    first, *others = found
    limit = THRESHOLD * max(features1.image_size)
    agrees = reprojection_error(first.homography, matches.points0, matches.points1) <= limit
    groups = [first]
    for group in others:
        rival = _want_the_same(first, group)
        errors = np.where(agrees, np.inf, reprojection_error(group.homography, matches.points0, matches.points1))
        mine, edge = errors <= limit, errors <= EDGE * limit
        if rival or (mine.any() and _displaced(first, group, matches, mine, edge, limit)):
            keep &= ~edge
        if rival or instances > 1:
            groups.append(replace(group, rival=rival))
    return tuple(groups if instances == 1 else groups[:instances]), keep


def _sequential(features0: Features, features1: Features, matches: Matches, instances: int) -> list[Group]:
    """Return groups of candidates, the strongest first."""
    pairs, scores = candidates(features0, features1, instances + 1)
    # The matcher's own count as well: it may see what nearest neighbours do not.
    known = {(i, j) for i, j in pairs.tolist()}
    own = [k for k, (i, j) in enumerate(matches.indices.tolist()) if (i, j) not in known]
    own = [k for k in own if (matches.indices[k] < (len(features0), len(features1))).all()]
    pairs = np.concatenate([pairs, matches.indices[own]])
    scores = np.concatenate([scores, matches.scores[own]])
    points0 = features0.keypoints.cpu().numpy().astype(np.float64)[pairs[:, 0]]
    points1 = features1.keypoints.cpu().numpy().astype(np.float64)[pairs[:, 1]]
    limit = THRESHOLD * max(features1.image_size)
    free = _coherent(features0, features1, pairs)
    groups: list[Group] = []
    while len(groups) < instances + MORE:
        rows = np.flatnonzero(free)
        estimate = estimate_homography(points0[rows], points1[rows], limit, max_iterations=ITERATIONS)
        if estimate.model is None:
            break
        errors = reprojection_error(estimate.model, points0[rows], points1[rows])
        rows_in = rows[estimate.inliers]
        chosen = one_to_one(pairs[rows_in], errors[estimate.inliers])
        if len(chosen) < LEAST:
            break
        mine = rows_in[chosen]
        mine = mine[np.argsort(pairs[mine, 0], kind="stable")]
        groups.append(Group(estimate.model, make_matches(features0, features1, pairs[mine], scores[mine])))
        free[rows[errors <= EDGE * limit]] = False  # what is left of the same thing is no group of its own
    if instances > 1 and groups:
        most = max(len(group.matches) for group in groups)
        groups = [group for group in groups if len(group.matches) >= LEAST_SHARE * most]

    def support(group: Group) -> int:
        agree = reprojection_error(group.homography, matches.points0, matches.points1) <= limit
        return len(group.matches) + int(agree.sum())

    return sorted(groups, key=support, reverse=True)


def _coherent(features0: Features, features1: Features, pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which candidates (K, 2) their neighbours agree with; all where keypoints have no scale and orientation.

    A candidate says by the scales and orientations of its two keypoints where those around it should be. Most wrong
    ones have no neighbour there; so a sample of the others is often one of right ones, however many copies there are.
    """
    if not all(f.scales is not None and f.orientations is not None for f in (features0, features1)):
        return np.ones(len(pairs), bool)
    (points0, scales0, angles0), (points1, scales1, angles1) = (
        [
            part.cpu().numpy().astype(np.float64)[rows]
            for part in (f.keypoints, f.scales, f.orientations)
            if part is not None
        ]
        for f, rows in zip((features0, features1), pairs.T, strict=True)
    )
    scale, angle = scales1 / scales0, angles1 - angles0
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    turn = np.stack([np.stack([c, -s], 1), np.stack([s, c], 1)], 1)
    agree = np.zeros(len(pairs), np.int64)
    for begin in range(0, len(pairs), _ROWS):
        rows = slice(begin, begin + _ROWS)
        steps0 = points0 - points0[rows, None]
        steps1 = points1 - points1[rows, None]
        distance = np.linalg.norm(steps0, axis=2)
        around = (distance > 0) & (distance <= AROUND * max(features0.image_size))
        error = np.linalg.norm(steps0 @ turn[rows].transpose(0, 2, 1) - steps1, axis=2)
        agree[rows] = (around & (error <= COARSE * scale[rows, None] * distance)).sum(axis=1)
    return agree >= AGREE


def _want_the_same(first: Group, second: Group) -> bool:
    """Whether two groups want the same keypoints, of either photograph."""
    return any(
        np.isin(second.matches.indices[:, side], first.matches.indices[:, side]).mean() >= SHARED for side in (0, 1)
    )


def _displaced(
    first: Group, group: Group, matches: Matches, mine: NDArray[np.bool_], edge: NDArray[np.bool_], limit: float
) -> bool:
    """Whether a group stands where the first one's homography does not put it, and its surroundings do.

    Its surroundings are matches that do not even nearly agree with it (``edge``) and lie outside of its outline: wrong
    matches may lie on an object that hides what was there.
    """
    points0, points1 = matches.points0[mine].astype(np.float64), matches.points1[mine].astype(np.float64)
    expected = transform(first.homography, points0)
    extent = np.linalg.norm(np.ptp(points1, axis=0))
    if np.median(np.linalg.norm(expected - points1, axis=1)) <= extent:
        return False
    others = matches[~edge]
    agree = reprojection_error(first.homography, others.points0, others.points1) <= limit
    for points, outline, other in (
        (points0, group.matches.points0, others.points0),
        (points1, group.matches.points1, others.points1),
    ):
        rows = np.flatnonzero(~_inside(outline, other))
        if len(rows) < NEIGHBOURS:
            return False
        away = np.linalg.norm(points[:, None] - other[rows], axis=2)
        near = np.argsort(away, axis=1, kind="stable")[:, :NEIGHBOURS]
        if agree[rows][near].mean() < 0.5:
            return False
    epipolar = estimate_fundamental(others.points0, others.points1, threshold=limit)
    if epipolar.model is None or agree.sum() >= PLANAR * epipolar.inliers.sum():
        return True
    return bool((sampson_error(epipolar.model, points0, points1) <= limit).mean() < 0.5)


def _inside(outline: NDArray[np.float32], points: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which points (N, 2) lie within the convex hull of others."""
    hull = cv2.convexHull(outline)
    return np.array([cv2.pointPolygonTest(hull, (x, y), False) >= 0 for x, y in points.tolist()], bool)
