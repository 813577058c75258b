"""Guided matching: the geometry of the matches so far says where the partner of every other keypoint has to be.

A keypoint that is not distinct among all keypoints of the other photograph may well be among those along its epipolar
line. So the nearest neighbours are looked for there only, where the matches lie on a plane around the place to which
its homography carries the keypoint. What is found agrees with the geometry by construction: it makes a thin result
denser and more precise, but it is no evidence that two photographs overlap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..geometry import estimate_fundamental, estimate_homography, transform
from ..matchers.base import make_matches
from ..types import Features, Matches
from .views import Array

LEAST = 12  # matches that agree with the geometry: fewer may do so by chance
PLANAR = 0.8  # of the matches that agree with a fundamental matrix: so many on one plane determine it badly
INLIER = 2.0  # working pixels from the geometry to a match that it is estimated from
NEAR = 3.0  # working pixels from an epipolar line, or from where a homography puts a keypoint, to a new match
RATIO = 0.85  # distance of the descriptors against that of the second nearest along the line, from either side
ALIKE = 0.9  # so many of the known matches have descriptors at least as similar as a new one has to have
KEPT = 0.9  # of the known matches that have to agree with the geometry of all

_ROWS = 512  # keypoints compared with all others at one time, which bounds memory


@dataclass(frozen=True, eq=False)
class Geometry:
    """What relates two photographs in working pixels: a homography (3, 3) if ``planar``, else a fundamental matrix."""

    model: Array
    planar: bool
    inliers: NDArray[np.bool_]

    def allows(self, points0: torch.Tensor, points1: torch.Tensor) -> torch.Tensor:
        """Return which points (N, 2) and (M, 2) may be the same, bool (N, M): near in either photograph."""
        if self.planar:
            forth = torch.from_numpy(transform(self.model, points0.numpy()))
            back = torch.from_numpy(transform(np.linalg.inv(self.model), points1.numpy()))
            return (torch.cdist(forth, points1) <= NEAR) & (torch.cdist(points0, back) <= NEAR)
        F = torch.from_numpy(self.model)
        x0, x1 = (torch.cat([points, torch.ones(len(points), 1)], 1) for points in (points0, points1))
        lines1, lines0 = x0 @ F.T, x1 @ F
        product = (lines1 @ x1.T).abs()
        return (product <= NEAR * lines1[:, :2].norm(dim=1)[:, None]) & (product <= NEAR * lines0[:, :2].norm(dim=1))


def estimate(points0: Array, points1: Array) -> Geometry | None:
    """Return the geometry that most matches (K, 2) agree with, in working pixels, or None."""
    plane = estimate_homography(points0, points1, INLIER)
    scene = estimate_fundamental(points0, points1, INLIER)
    planar = plane.model is not None and plane.inliers.sum() >= PLANAR * scene.inliers.sum()
    best = plane if planar else scene
    if best.model is None or best.inliers.sum() < LEAST:
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
    pairs = [f.descriptors.cpu().double()[matches.indices[geometry.inliers, i]] for i, f in enumerate(features)]
    real = pairs[0].any(dim=1) & pairs[1].any(dim=1)  # those of another extractor are zeros
    if not real.any():
        return None
    limit = float(torch.quantile(_distance((pairs[0] * pairs[1]).sum(1)[real]), ALIKE))
    points = [torch.from_numpy(_at_work(M, f.keypoints.cpu().numpy())) for M, f in zip(frames, own, strict=True)]
    found = _mutual(
        own[0].descriptors.cpu().double(),
        own[1].descriptors.cpu().double(),
        lambda rows: geometry.allows(points[0][rows], points[1]),
        limit,
    )
    new = make_matches(*own, *found)
    fresh = ~np.isin(new.indices[:, 0], matches.indices[:, 0]) & ~np.isin(new.indices[:, 1], matches.indices[:, 1])
    new = new[fresh]
    both = [
        np.concatenate([a, p[new.indices[:, i]].numpy()]) for i, (a, p) in enumerate(zip(known, points, strict=True))
    ]
    again = estimate(*both)
    agrees = np.zeros(len(new), bool)
    if again is not None and again.inliers.sum() > geometry.inliers.sum():
        old = again.inliers[: len(matches)] & geometry.inliers
        if old.sum() >= KEPT * geometry.inliers.sum():
            agrees = again.inliers[len(matches) :]
    return new[agrees]


def _at_work(frame: Array, points: NDArray[np.float32]) -> Array:
    return transform(frame, points.astype(np.float64))


def _distance(cosines: torch.Tensor) -> torch.Tensor:
    return (2 - 2 * cosines).clamp(min=0).sqrt()


def _mutual(
    a: torch.Tensor, b: torch.Tensor, allowed: Callable[[slice], torch.Tensor], limit: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return mutual nearest neighbours among the allowed pairs that pass the ratio test, and their scores."""
    nearest, forth = [], []
    back = torch.full((2, len(b)), -torch.inf, dtype=a.dtype)
    owner = torch.full((len(b),), -1)
    for begin in range(0, len(a), _ROWS):
        rows = slice(begin, begin + _ROWS)
        similarity = torch.where(allowed(rows), a[rows] @ b.T, -torch.inf)
        best, columns = _two_best(similarity, 1)
        nearest.append(columns)
        forth.append(best)
        best, place = _two_best(similarity, 0)
        owner = torch.where(best[0] > back[0], place + begin, owner)
        back = torch.cat([back, best]).topk(2, dim=0).values
    column, (first, second) = torch.cat(nearest), torch.cat(forth, dim=1)
    row = torch.arange(len(a))
    distance = _distance(first)
    runner_up = torch.minimum(_distance(second), _distance(back[1, column])).clamp(max=2.0)
    keep = (first > -torch.inf) & (owner[column] == row) & (distance <= limit) & (distance < RATIO * runner_up)
    pairs = torch.stack([row, column], dim=1)[keep].numpy()
    return pairs, (1 - distance / runner_up)[keep].float().numpy()


def _two_best(similarity: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest and second largest values along ``dim``, (2, ...), and where the largest is."""
    padding = (0, 1) if dim else (0, 0, 0, 1)
    padded = torch.nn.functional.pad(similarity, padding, value=-torch.inf)
    values, places = padded.topk(2, dim=dim)
    return values.movedim(dim, 0), places.movedim(dim, 0)[0].clamp(max=similarity.shape[dim] - 1)
