"""Cairn's descriptor learns from a teacher: what another extractor says about the same keypoints.

The teacher has seen millions of real pairs, in other light, season and from other places; homographies of single
photographs cannot teach that. It describes a keypoint as the photograph stands. The student's descriptor is steerable
(`tiepoint.features.steerable`), so the two can be compared at any roll: a view turns the photograph by a known angle at
each keypoint, and the descriptor is turned back by that angle.

The teacher sees the photograph as it is, the student two views of it, warped and under other light. Four terms:

- **answer**: squared distance between the teacher's descriptor and a linear map of the student's, as in EdgePoint2
  (arXiv 2504.17280), which is learned too and not needed afterwards.
- **relations**: Kullback-Leibler divergence between the soft-max over the teacher's similarities of one keypoint to all
  others, of all photographs of the batch, and that over the student's: what looks alike to the teacher shall look alike
  to the student.
- **what**: a dual soft-max over the keypoints of a pair, whose correspondence is known; for descriptors turned by the
  keypoint's own direction, as they are matched first, and turned by the true angle, as they are matched after
  `tiepoint.matchers.lightglue.align`. It keeps precision.
- **direction**: that of the partner, turned as the view was turned.

Keypoints come from the teacher's answers. The detector is not trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...features.cairn import CairnNet, SteerableDescriber, to_grey
from ...features.steerable import steer
from ..data import homographies, photometric
from ..data._random import Draw, seeded
from ..data.photographs import PhotoCache
from ..data.teacher import Answers
from ..pairs.views import CHUNK, ViewConfig, _carry_by_homography
from .base import Objective, Output
from .cairn import APART, SHARPNESS, _labels, _log_softmax, _mean

RELATIONS = 20.0  # sharpness of the soft-max over similarities, the teacher's and the student's
JITTER = 0.3  # standard deviation, in pixels of its level, by which a keypoint is displaced before it is described
_ANSWER, _WHAT, _DIRECTION = 4.0, 0.5, 0.5  # weights of the terms; that of the relations is 1


@dataclass(frozen=True, eq=False)
class TaughtViews:
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

    def tensors(self) -> dict[str, Tensor]:
        """All fields by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def to(self, device: torch.device | str) -> TaughtViews:
        """Return the pairs on another device."""
        return TaughtViews(**{k: v.to(device, non_blocking=True) for k, v in self.tensors().items()})


class TaughtViewMaker:
    """Makes the pairs of a step: draws photographs, warps them twice, relights, carries the keypoints along.

    Parameters
    ----------
    answers : Answers
        Photographs, their keypoints, and what the teacher says about them.
    config : ViewConfig
        What is made; ``scenes`` is not used, since nobody was asked about rendered pictures.
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
        joined = {f.name: torch.cat([getattr(pair, f.name) for pair in pairs]) for f in fields(TaughtViews)}
        return TaughtViews(**joined)

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
        wanted = homographies.HomographyConfig(
            config.size, config.difficulty, config.max_roll, config.max_scale, zoom=0.35, min_overlap=0.5
        )
        # Each maps pixels of a view to those of the photograph.
        both = homographies.sample_views(1, (photo.shape[2], photo.shape[3]), wanted, generator)
        light = photometric.PhotometricConfig.preset(config.photometric)
        images = [
            photometric.augment(homographies.warp(photo, view, config.size), light, generator)[0] for view in both
        ]
        points, levels, descriptors = (torch.from_numpy(part.copy()) for part in self.answers[row])
        H = torch.linalg.inv(torch.cat(both)).float()
        size = torch.tensor([[config.size[1], config.size[0]]]).expand(2, 2)
        carried = _carry_by_homography(points.expand(2, -1, 2), H, size)
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


class Student(nn.Module):
    """An extractor, and the map from its descriptors to those of a teacher.

    Parameters
    ----------
    extractor : CairnNet
        With a steerable descriptor.
    dim : int
        Numbers of the teacher's descriptor.
    """

    def __init__(self, extractor: CairnNet, dim: int) -> None:
        super().__init__()
        self.config = extractor.config
        self.extractor, self.map = extractor, nn.Linear(extractor.config.dim, dim)


class DistillationObjective(Objective):
    """The descriptor learns what a teacher says, as the module describes.

    Parameters
    ----------
    net : Student
        What is trained, but for its detector.
    """

    compiled = (SteerableDescriber,)

    def __init__(self, net: Student) -> None:
        super().__init__()
        self.net = net
        net.extractor.detector.requires_grad_(False)
        describer = net.extractor.describer
        for part in (describer.size, describer.stretch):  # how precise a place is only a detector's peaks can tell
            cast(nn.Module, part).requires_grad_(False)

    def forward(self, batch: TaughtViews) -> Output:
        """Return the loss of pairs of views."""
        student = cast(Student, self.net)
        net, harmonics = student.extractor, student.config.harmonics
        patches = net.patches(net.levels(to_grey(batch.images)), batch.positions, batch.levels)
        described = net.describer(patches[batch.seen])
        with torch.autocast(batch.images.device.type, enabled=False):
            shape = batch.seen.shape
            turned, direction = (
                values.new_zeros(*shape, values.shape[1]).masked_scatter(batch.seen[..., None], values)
                for values in (described.descriptors.float(), described.directions.float())
            )
            angle = torch.atan2(direction[..., 1], direction[..., 0])
            # As the photograph stands: turned by the keypoint's direction in the view, and back by the view's angle.
            standing = steer(turned, angle - batch.angles, harmonics)
            answers = batch.answers.float()

            errors = (student.map(standing) - answers.repeat_interleave(2, 0)).square().sum(-1)
            answer = _mean(errors, batch.seen)
            relations = self._relations(standing, answers, batch.seen)

            seen0, seen1 = batch.seen.unflatten(0, (-1, 2)).unbind(1)
            both = seen0 & seen1
            near = self._near(batch, both)
            log_p, what = self._what(turned, both, near)
            _, upright = self._what(standing, both, near)

            u0, u1 = direction.unflatten(0, (-1, 2)).unbind(1)
            a0, a1 = batch.angles.unflatten(0, (-1, 2)).unbind(1)
            cos, sin = (a1 - a0).cos(), (a1 - a0).sin()
            expected = torch.stack([cos * u0[..., 0] - sin * u0[..., 1], sin * u0[..., 0] + cos * u0[..., 1]], -1)
            turn = _mean(1 - (expected * u1).sum(-1), both)

            loss = _ANSWER * answer + relations + _WHAT * (what + upright) + _DIRECTION * turn
            with torch.no_grad():
                mean = answers[both].mean(0) if both.any() else answers.mean((0, 1))
                spread = _mean((answers - mean).square().sum(-1), both)
                index = torch.arange(shape[1], device=both.device).expand_as(both)
                error = torch.where(near, 0.0, torch.inf).masked_fill(~both[:, None], torch.inf)
                labels = _labels(index, both, error, seen0, seen1)
                hits = (log_p.argmax(2) == index) & (log_p.argmax(1) == index)
            parts = {
                "explained": 1 - answer / spread.clamp(min=1e-6), "relations": relations, "what": what,
                "upright": upright, "direction": turn, "matched": _mean(hits.float(), both),
            }  # fmt: skip
        return Output(loss, log_p, labels, parts)

    @staticmethod
    def _relations(standing: Tensor, answers: Tensor, seen: Tensor) -> Tensor:
        """Divergence between the teacher's similarities and those of first views to second views."""
        seen0, seen1 = seen.unflatten(0, (-1, 2)).unbind(1)
        d0, d1 = standing.unflatten(0, (-1, 2)).unbind(1)
        both = (seen0 & seen1).flatten()
        d0, d1, t = (part.flatten(0, 1)[both] for part in (d0, d1, answers))
        with torch.no_grad():
            target = (RELATIONS * t @ t.mT).softmax(1)
            entropy = torch.special.entr(target).sum(1)
        cross = -(target * (RELATIONS * d0 @ d1.mT).log_softmax(1)).sum(1)
        return (cross - entropy).mean() if len(t) else standing.sum() * 0

    @staticmethod
    def _near(batch: TaughtViews, both: Tensor) -> Tensor:
        """Which keypoints (B, N, N) are so near to each other in the second view that neither is a wrong match."""
        second = batch.positions.unflatten(0, (-1, 2))[:, 1]
        return (torch.cdist(second, second) < APART) & both[:, None] & both[:, :, None]

    @staticmethod
    def _what(descriptors: Tensor, both: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, N, N) of a dual soft-max over similarities, and the loss of the true partners."""
        d0, d1 = descriptors.unflatten(0, (-1, 2)).unbind(1)
        own = torch.eye(both.shape[1], dtype=torch.bool, device=both.device)
        no_answer = (near & ~own) | ~(both[:, :, None] & both[:, None])
        logits = (SHARPNESS * d0 @ d1.mT).masked_fill(no_answer, -torch.inf)
        log_p = _log_softmax(logits, 2) + _log_softmax(logits, 1)
        return log_p, -_mean(log_p.diagonal(dim1=1, dim2=2), both)
