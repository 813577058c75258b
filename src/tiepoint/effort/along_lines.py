"""Guided matching: the geometry of the matches so far says where the partner of every other keypoint has to be.

A keypoint that is not distinct among all keypoints of the other photograph may well be among those along its epipolar
line. So the nearest neighbours are looked for there only, where the matches lie on a plane around the place to which
its homography carries the keypoint. What is found agrees with the geometry by construction: it makes a thin result
denser and more precise, but it is no evidence that two photographs overlap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..geometry import estimate_fundamental, estimate_homography, homogeneous, transform
from ..matchers.base import make_matches
from ..matchers.union import near_points
from ..types import Features, Matches
from .views import Array

LEAST = 12  # matches that agree with the geometry: fewer may do so by chance
PLANAR = 0.8  # of the matches that agree with a fundamental matrix: so many on one plane determine it badly
INLIER = 2.0  # working pixels from the geometry to a match that it is estimated from
NEAR = 3.0  # working pixels from an epipolar line, or from where a homography puts a keypoint, to a new match
RATIO = 0.85  # distance of the descriptors against that of the second nearest along the line, from either side
ALIKE = 0.9  # so many of the known matches have descriptors at least as similar as a new one has to have
KEPT = 0.9  # of the known matches that have to agree with the geometry of all
AGAIN = 200  # samples of robust estimation where nearly all matches agree

_ROWS = 512  # keypoints compared with all others at one time, which bounds memory

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Geometry:
    """What relates two photographs in working pixels: a homography (3, 3) if ``planar``, else a fundamental matrix."""

    model: Array
    planar: bool
    inliers: NDArray[np.bool_]

    def candidates(self, points0: Array, points1: Array) -> tuple[Indices, Indices]:
        """Return which of the points (N, 2) and (M, 2) may be the same, rows and columns: near in either photograph."""
        if self.planar:
            forth, back = transform(self.model, points0), transform(np.linalg.inv(self.model), points1)
            i, j = near_points(forth, points1, NEAR)
            keep = (
                np.maximum(np.linalg.norm(forth[i] - points1[j], axis=1), np.linalg.norm(points0[i] - back[j], axis=1))
                <= NEAR
            )
        else:
            i, j = _near_lines(homogeneous(points0) @ self.model.T, points1)
            lines = (homogeneous(points1) @ self.model)[j]
            offsets = np.abs((lines * homogeneous(points0)[i]).sum(axis=1))
            keep = offsets <= NEAR * np.linalg.norm(lines[:, :2], axis=1)
        return i[keep], j[keep]


def estimate(
    points0: Array, points1: Array, planar: bool | None = None, max_iterations: int = 10_000
) -> Geometry | None:
    """Return the geometry that most matches (K, 2) agree with, in working pixels, or None.

    ``planar`` says which kind to estimate; by default it is the homography where that explains nearly as many matches.
    """
    plane = scene = None
    if planar is not False:
        plane = estimate_homography(points0, points1, INLIER, max_iterations=max_iterations)
    if planar is not True:
        scene = estimate_fundamental(points0, points1, INLIER, max_iterations=max_iterations)
    if plane is not None and scene is not None:
        planar = plane.model is not None and bool(plane.inliers.sum() >= PLANAR * scene.inliers.sum())
    best = plane if planar else scene
    if best is None or best.model is None or best.inliers.sum() < LEAST:
        return None
    return Geometry(best.model, bool(planar), best.inliers)


def match_along(
    features: tuple[Features, Features], matches: Matches, own: tuple[Features, Features], frames: tuple[Array, Array]
) -> Matches | None:
    """Match keypoints along their epipolar lines.

    Parameters
    ----------
    features : (Features, Features)
        What ``matches`` index.
    matches : Matches
        What is known.
    own : (Features, Features)
        The keypoints to match.
    frames : two arrays (3, 3)
        From pixels of each photograph to working pixels.

    Returns
    -------
    Matches or None
        Indices into ``own``, of keypoints that had no match; they agree with the geometry of all matches, known and
        new, and are none if that has no more support than before. Scores are 1 - d / d2, where d2 is the distance of
        the second nearest. None if the known matches have no geometry, or descriptors are binary.
    """
    if own[0].is_binary:
        return None
    known = _at_work(frames[0], matches.points0), _at_work(frames[1], matches.points1)
    geometry = estimate(*known)
    if geometry is None:
        return None
    pairs = [f.descriptors.cpu()[matches.indices[geometry.inliers, i]] for i, f in enumerate(features)]
    real = pairs[0].any(dim=1) & pairs[1].any(dim=1)  # those of another extractor are zeros
    if not real.any():
        return None
    limit = float(np.quantile(_distance(pairs[0][real], pairs[1][real]), ALIKE))
    points = [_at_work(M, f.keypoints.cpu().numpy()) for M, f in zip(frames, own, strict=True)]
    found = nearest_of(*geometry.candidates(*points), own[0].descriptors.cpu(), own[1].descriptors.cpu(), limit)
    new = make_matches(*own, *found)
    fresh = ~np.isin(new.indices[:, 0], matches.indices[:, 0]) & ~np.isin(new.indices[:, 1], matches.indices[:, 1])
    new = new[fresh]
    first, second = (np.concatenate([known[i], points[i][new.indices[:, i]]]) for i in (0, 1))
    again = estimate(first, second, geometry.planar, AGAIN)
    agrees = np.zeros(len(new), bool)
    if again is not None and again.inliers.sum() > geometry.inliers.sum():
        old = again.inliers[: len(matches)] & geometry.inliers
        if old.sum() >= KEPT * geometry.inliers.sum():
            agrees = again.inliers[len(matches) :]
    return new[agrees]


def nearest_of(
    rows: Indices, columns: Indices, a: torch.Tensor, b: torch.Tensor, limit: float
) -> tuple[Indices, NDArray[np.float32]]:
    """Choose among candidates the mutual nearest that pass the ratio test.

    Parameters
    ----------
    rows, columns : int64 arrays (C,)
        The candidates: rows of ``a``, and of ``b``.
    a, b : tensors (N, D), (M, D)
        Descriptors of unit length.
    limit : float
        Largest distance of two descriptors.

    Returns
    -------
    pairs, scores : arrays (K, 2), (K,)
        1 - d / d2 with the distance d2 of the second nearest candidate, from either side.
    """
    distance = np.empty(len(rows), np.float32)
    for begin in range(0, len(rows), _ROWS * 128):
        some = slice(begin, begin + _ROWS * 128)
        distance[some] = _distance(a[torch.from_numpy(rows[some])], b[torch.from_numpy(columns[some])])
    forth, beyond0 = _two_nearest(rows, distance, len(a))
    back, beyond1 = _two_nearest(columns, distance, len(b))
    mutual = np.intersect1d(forth, back)
    runner_up = np.minimum(beyond0[rows[mutual]], beyond1[columns[mutual]])
    keep = (distance[mutual] <= limit) & (distance[mutual] < RATIO * runner_up)
    chosen = mutual[keep]
    scores = (1 - distance[chosen] / runner_up[keep]).astype(np.float32)
    return np.stack([rows[chosen], columns[chosen]], axis=1), scores


def _two_nearest(groups: Indices, distance: NDArray[np.float32], count: int) -> tuple[Indices, NDArray[np.float32]]:
    """Return the nearest candidate of each group that has one, and of all ``count`` groups the second distance.

    That is 2, the largest there is, where a group has no second candidate.
    """
    order = np.lexsort((distance, groups))
    sorted_groups = groups[order]
    best = np.flatnonzero(np.diff(sorted_groups, prepend=-1))
    second = np.full(count, 2.0, np.float32)
    more = best[best + 1 < len(order)]
    more = more[sorted_groups[more + 1] == sorted_groups[more]]
    second[sorted_groups[more]] = distance[order[more + 1]]
    return order[best], second


def _near_lines(lines: Array, points: Array) -> tuple[Indices, Indices]:
    """Return which points (M, 2) lie within `NEAR` of which lines (N, 3); good to 0.001 px."""
    with np.errstate(divide="ignore", invalid="ignore"):  # the line of the epipole is none
        unit = (lines / np.linalg.norm(lines[:, :2], axis=1, keepdims=True)).astype(np.float32)
    at = homogeneous(points).astype(np.float32).T
    found = []
    for begin in range(0, len(unit), _ROWS):
        i, j = np.nonzero(np.abs(unit[begin : begin + _ROWS] @ at) <= NEAR)
        found.append((i + begin, j))
    return np.concatenate([i for i, _ in found]), np.concatenate([j for _, j in found])


def _at_work(frame: Array, points: NDArray[np.float32]) -> Array:
    return transform(frame, points.astype(np.float64))


def _distance(a: torch.Tensor, b: torch.Tensor) -> NDArray[np.float32]:
    """Return the distances of rows of unit length."""
    distance: NDArray[np.float32] = (a - b).float().norm(dim=1).numpy()
    return distance
