"""Pairs of views of a photograph whose keypoints a teacher has described."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import homographies, photometric
from ..data._random import Draw, seeded
from ..data.photographs import PhotoCache
from ..data.teacher import Answers
from ..tensors import Tensors
from .views import CHUNK, ViewConfig, carry_by_homography

JITTER = 0.3  # standard deviation, in pixels of its level, by which a keypoint is displaced before it is described


@dataclass(frozen=True, eq=False)
class TaughtViews(Tensors):
    """B pairs of views of a photograph, and the teacher's answers about N of its keypoints.

    Attributes
    ----------
    images : uint8 tensor (2 B, 3, H, W)
        RGB; rows 2p and 2p + 1 are the two views of pair p.
    positions : float32 tensor (2 B, N, 2)
        Where the photograph's keypoints are in each view, pixels.
    levels : int64 tensor (2 B, N)
        On which level of the view's pyramid.
    angles : float32 tensor (2 B, N)
        By which the photograph is turned there, radians.
    seen : bool tensor (2 B, N)
        Whether the view shows it, at a size that it can be described at.
    answers : float16 tensor (B, N, D)
        The teacher's descriptors.
    """

    images: Tensor
    positions: Tensor
    levels: Tensor
    angles: Tensor
    seen: Tensor
    answers: Tensor

    def __len__(self) -> int:
        return len(self.answers)


class TaughtViewMaker:
    """Makes the pairs of a step: draws photographs, warps them twice, relights, carries the keypoints along.

    Parameters
    ----------
    answers : Answers
        Photographs, their keypoints, and what the teacher says about them.
    config : ViewConfig
        What is made; ``scenes`` is not used, since the teacher has described photographs only.
    keypoints : int
        Of each pair.
    levels : int
        On which Cairn describes.
    seed : int
        Of all random choices.
    held_out : bool
        Use the photographs kept for evaluation.
    """

    def __init__(
        self, answers: Answers, config: ViewConfig, keypoints: int, levels: int, seed: int, held_out: bool = False
    ) -> None:
        self.answers, self.config, self.keypoints, self.levels = answers, config, keypoints, levels
        self.seed, self.held_out = seed, held_out

    @property
    def photos(self) -> PhotoCache:
        """Where pictures come from."""
        return self.answers.photos

    def __call__(self, step: int, chunks: range) -> TaughtViews:
        """Return these chunks of `CHUNK` pairs of a step, the same at every call."""
        pairs: list[TaughtViews] = []
        for rows, generator in self._draw(step, chunks):
            pairs.extend(self._pair(row, generator) for row in rows)
        return TaughtViews.cat(pairs)

    def rows(self, step: int, chunks: range) -> set[int]:
        """Return which photographs these chunks show."""
        return {row for rows, _ in self._draw(step, chunks) for row in rows}

    def _draw(self, step: int, chunks: range) -> Iterator[tuple[list[int], torch.Generator]]:
        for chunk in chunks:
            generator = seeded(self.seed, self.held_out, step, chunk)
            yield self.photos.draw(CHUNK, generator, self.held_out).tolist(), generator

    def _pair(self, row: int, generator: torch.Generator) -> TaughtViews:
        config = self.config
        photo = torch.from_numpy(self.photos[row].copy()).permute(2, 0, 1)[None].float() / 255
        wanted = replace(config.homographies, zoom=0.35, min_overlap=0.5)
        # Each maps pixels of a view to those of the photograph.
        both = homographies.sample_views(1, (photo.shape[2], photo.shape[3]), wanted, generator)
        images = [
            photometric.augment(homographies.warp(photo, view, config.size), config.light, generator)[0]
            for view in both
        ]
        points, levels, descriptors = (torch.from_numpy(part.copy()) for part in self.answers[row])
        H = torch.linalg.inv(torch.cat(both)).float()
        size = torch.tensor([[config.size[1], config.size[0]]]).expand(2, 2)
        carried = carry_by_homography(points.expand(2, -1, 2), H, size)
        J = carried.jacobian
        draw = Draw(generator)
        # Detection in the view would not find just this level and place.
        ideal = levels + torch.linalg.det(J).abs().clamp(1e-4, 1e4).log2() + draw.uniform(-0.4, 0.4, *levels.shape)
        level = ideal.round().clamp(0, self.levels - 1)
        seen = carried.seen & (ideal > -0.75) & (ideal < self.levels - 0.25)
        # Those that both views show come first, a random choice of them.
        order = (seen.sum(0) + draw.uniform(0, 0.9, len(points))).argsort(descending=True)[: self.keypoints]
        missing = self.keypoints - len(order)
        shift = JITTER * torch.exp2(level / 2)[..., None] * torch.randn(carried.points.shape, generator=generator)
        positions = torch.where(seen[..., None], carried.points + shift, 0.0)
        angles = torch.atan2(J[..., 1, 0] - J[..., 0, 1], J[..., 0, 0] + J[..., 1, 1])
        return TaughtViews(
            images=(torch.stack(images) * 255).round().byte(),
            positions=F.pad(positions[:, order], (0, 0, 0, missing)),
            levels=F.pad(level[:, order].long(), (0, missing)),
            angles=F.pad(angles[:, order], (0, missing)),
            seen=F.pad(seen[:, order], (0, missing)),
            answers=F.pad(descriptors[order], (0, 0, 0, missing))[None],
        )
