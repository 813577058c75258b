"""Cairn's descriptor learns from a teacher: what another extractor says about the same keypoints.

The teacher has seen millions of real pairs, in other light, season and from other places; homographies of single
photographs cannot teach that. It describes a keypoint as the photograph stands. The student's descriptor is steerable
(`tiepoint.features.steerable`), so the two can be compared at any roll: a view turns the photograph by a known angle at
each keypoint, and the descriptor is turned back by that angle.

The teacher sees the photograph as it is, the student two views of it, warped and under other light. Four terms:

- **answer**: squared distance between the teacher's descriptor and a linear map of the student's, as in EdgePoint2
  (arXiv 2504.17280), which is learned too and not needed afterwards.
- **relations**: Kullback-Leibler divergence between the soft-max over the teacher's similarities of one keypoint to all
  others, of all photographs of the batch, and that over the student's: what is similar for the teacher
  becomes similar for the student.
- **what**: a dual soft-max over the keypoints of a pair, whose correspondence is known; for descriptors turned by the
  keypoint's own direction, as they are matched first, and turned by the true angle, as they are matched after
  `tiepoint.matchers.lightglue.align`. It keeps precision.
- **direction**: that of the partner, turned as the view was turned.

Keypoints come from the teacher's answers. The detector is not trained.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ...features.cairn import CairnNet, SteerableDescriptorHead, to_grey
from ...features.steerable import steer
from ...matchers.mutual import mutual_nearest
from ..pairs.taught_views import TaughtViews
from .base import Objective, Output
from .cairn import APART, SHARPNESS, dual_softmax, label_matches
from .losses import mean_where

RELATIONS = 20.0  # sharpness of the soft-max over similarities, the teacher's and the student's
_ANSWER, _WHAT, _DIRECTION = 4.0, 0.5, 0.5  # weights of the terms; that of the relations is 1


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
    """The descriptor learns from a teacher, as the module describes.

    Parameters
    ----------
    net : Student
        What is trained, but for its detector.
    """

    compiled = (SteerableDescriptorHead,)

    def __init__(self, net: Student) -> None:
        super().__init__(net)
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
            answer = mean_where(errors, batch.seen)
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
            turn = mean_where(1 - (expected * u1).sum(-1), both)

            loss = _ANSWER * answer + relations + _WHAT * (what + upright) + _DIRECTION * turn
            with torch.no_grad():
                mean = answers[both].mean(0) if both.any() else answers.mean((0, 1))
                spread = mean_where((answers - mean).square().sum(-1), both)
                index = torch.arange(shape[1], device=both.device).expand_as(both)
                error = torch.where(near, 0.0, torch.inf).masked_fill(~both[:, None], torch.inf)
                labels = label_matches(index, both, error, seen0, seen1)
                _, partner, mutual = mutual_nearest(log_p)
                hits = mutual & (partner == index)
            parts = {
                "explained": 1 - answer / spread.clamp(min=1e-6), "relations": relations, "what": what,
                "upright": upright, "direction": turn, "matched": mean_where(hits.float(), both),
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
        log_p = dual_softmax(logits)
        return log_p, -mean_where(log_p.diagonal(dim1=1, dim2=2), both)
