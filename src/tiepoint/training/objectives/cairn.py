"""Objective of Cairn: where keypoints are, which are worth keeping, what they look like.

It needs no corners marked by hand or by another detector. Two pictures of a pair are processed as in use, and the
targets follow from their geometry (`Views.carry`):

- **where**: what is a keypoint in one picture should be the peak of its neighbourhood in the other. Cross-entropy of
  the logits around the place it is carried to; and the distance of two keypoints that correspond, which the soft
  arg-max makes differentiable (as in ALIKE, arXiv 2112.02906), for the fraction of a pixel.
- **which**: the rank of a keypoint is the logit of "mutual nearest neighbours match it correctly", learned by watching
  whether they do (or whether the matcher does that is trained with it, see `joint`). Keypoints that the other
  picture does not show are left out.
- **direction**: that of the partner, turned as the picture was turned.
- **what**: a dual soft-max over all keypoints of a pair, in which keypoints too near to a partner to be told from it
  take no part (as in DISK, arXiv 2006.13566, but without sampling: the correspondence is known).
- **how precisely**: the likelihood of the measured reprojection error under the predicted covariances.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...features.cairn import (
    CairnNet,
    Description,
    DescriptorHead,
    Detector,
    Keypoints,
    Scores,
    SteerableDescriptorHead,
    to_grey,
)
from ...matchers.mutual import mutual_nearest
from ..data.ground_truth import IGNORED, UNMATCHABLE, Labels
from ..pairs.views import Carried, Views
from .base import Objective, Output
from .losses import mean_where

SHARPNESS = 20.0  # of the soft-max over similarities
RIGHT = (1.0, 2.0, 3.0)  # pixels: how right a match is: the fraction of these that its error is below
APART = 6.0  # pixels from a partner within which another keypoint is no wrong answer
LEVELS_APART = 1.5  # levels by which the sizes of two keypoints may differ and still be one
EXPLORATION = 0.5  # scale of the noise; at 1 a keypoint twice as likely to be right is drawn twice as often
REACH = 3  # pixels to each side of a keypoint's place in which it should be the peak


class Comparison(NamedTuple):
    """How a pair's keypoints were matched.

    Attributes
    ----------
    closeness : tensor (B, N, M)
        Two keypoints match that are closest to each other.
    matcher : Output or None
        Of a matcher that is trained too.
    """

    closeness: Tensor
    matcher: Output | None


class CairnObjective(Objective):
    """Everything that `Cairn` learns, on its own keypoints.

    Parameters
    ----------
    net : CairnNet
        What is trained.
    keypoints : int
        Of each picture.
    """

    compiled: tuple[type[nn.Module], ...] = (Detector, DescriptorHead, SteerableDescriptorHead)

    def __init__(self, net: nn.Module, keypoints: int) -> None:
        super().__init__(net)
        self.keypoints = keypoints

    @property
    def extractor(self) -> CairnNet:
        """The part of the network that finds and describes."""
        return cast(CairnNet, self.net)

    def match(
        self, batch: Views, found: Keypoints, described: Description, similarity: Tensor, labels: Labels
    ) -> Comparison:
        """Match the keypoints of B pairs as users will, here by mutual nearest neighbours.

        Parameters
        ----------
        batch, found, described
            Pictures, and what the networks say about them.
        similarity : tensor (B, N, M)
            Cosines of the descriptors.
        labels : Labels
            What is right.
        """
        real = found.ranks.unflatten(0, (-1, 2)).isfinite()
        return Comparison(similarity.masked_fill(~(real[:, 0, :, None] & real[:, 1, None]), -2), None)

    def forward(self, batch: Views) -> Output:
        """Return the loss of pairs of pictures."""
        net = self.extractor
        images = net.levels(to_grey(batch.images))
        scores = net.score(images)
        noise = _gumbel(scores.ranks, batch.seed) if self.training else None
        found = net.detect(scores, self.keypoints, noise)
        described = net.describe(images, found.positions.detach(), found.levels)
        with torch.autocast(batch.images.device.type, enabled=False):
            return self._compare(batch, scores, found, Description(*(part.float() for part in described)))

    def _compare(self, batch: Views, scores: Scores, found: Keypoints, described: Description) -> Output:
        points0, points1 = found.positions.unflatten(0, (-1, 2)).unbind(1)
        levels0, levels1 = found.levels.unflatten(0, (-1, 2)).unbind(1)
        ranks = found.ranks.unflatten(0, (-1, 2))
        real = ranks.isfinite()
        with torch.no_grad():
            carried0, carried1 = batch.carry(points0, True), batch.carry(points1, False)
            ideal0, ideal1 = _ideal_level(carried0, levels0), _ideal_level(carried1, levels1)
            most = len(scores.cells) - 1
            seen0 = carried0.seen & real[:, 0] & (ideal0 > -0.75) & (ideal0 < most + 0.75)
            seen1 = carried1.seen & real[:, 1] & (ideal1 > -0.75) & (ideal1 < most + 0.75)
            error = _errors(carried0, carried1, points0, points1, real)
            alike = ((ideal0[:, :, None] - levels1[:, None]).abs() <= LEVELS_APART) & seen0[:, :, None] & seen1[:, None]
            _, partner, matched = mutual_nearest(-error.masked_fill(~alike, torch.inf))
            matched &= error.gather(2, partner[..., None])[..., 0] < RIGHT[-1]
            # Near the horizon it is without bounds, and a gradient of zero times that would be NaN.
            jacobian = torch.where(matched[..., None, None], carried0.jacobian, torch.eye(2, device=error.device))

        # what
        d0, d1 = described.descriptors.unflatten(0, (len(batch), 2, -1)).unbind(1)
        similarity = d0 @ d1.mT
        with torch.no_grad():
            mine = F.one_hot(partner, similarity.shape[2]).bool() & matched[..., None]
            no_answer = ((error < APART) & ~mine) | ~real[:, 0, :, None] | ~real[:, 1, None]
        logits = (SHARPNESS * similarity).masked_fill(no_answer, -torch.inf)
        log_p = dual_softmax(logits)
        likely = log_p.gather(2, partner[..., None])[..., 0]
        what = -mean_where(likely, matched)
        labels = label_matches(partner, matched, error, seen0, seen1)

        # which
        closeness, matcher = self.match(batch, found, described, similarity, labels)
        with torch.no_grad():
            _, nearest, mutual = mutual_nearest(closeness)
            right0 = _rightness(error.gather(2, nearest[..., None])[..., 0]) * mutual
            back = closeness.argmax(1)
            right1 = right0.gather(1, back) * (nearest.gather(1, back) == torch.arange(back.shape[1]).to(back))
        target, taught = torch.stack([right0, right1], 1), torch.stack([seen0, seen1], 1)
        which = mean_where(F.binary_cross_entropy_with_logits(ranks.clamp(min=-30), target, reduction="none"), taught)

        # where
        where = 0.5 * sum(
            self._peak(scores, side, carried, ideal, seen, ranks[:, 1 - side].sigmoid().detach())
            for side, carried, ideal, seen in ((1, carried0, ideal0, seen0), (0, carried1, ideal1, seen1))
        )
        theirs = partner[..., None].expand(-1, -1, 2)
        moved = (jacobian @ (points0 - points0.detach())[..., None])[..., 0]
        offset = torch.where(matched[..., None], carried0.points, 0.0) + moved - points1.gather(1, theirs)
        offset = torch.where(matched[..., None], offset, 0.0)
        size1 = torch.exp2(levels1.gather(1, partner) / 2)
        precise = mean_where(
            F.huber_loss(offset.norm(dim=2) / size1, torch.zeros_like(size1), reduction="none"), matched
        )

        # direction
        u0, u1 = described.directions.unflatten(0, (len(batch), 2, -1)).unbind(1)
        turned = F.normalize((jacobian @ u0[..., None])[..., 0], dim=2)
        direction = mean_where(1 - (turned * u1.gather(1, theirs)).sum(2), matched)

        # how precisely
        spreads = (
            described.spreads.unflatten(0, (len(batch), 2, -1))
            * torch.exp2(found.levels.unflatten(0, (-1, 2)) / 2)[..., None, None]
        )
        first = jacobian @ spreads[:, 0]
        second = spreads[:, 1].gather(1, partner[..., None, None].expand(-1, -1, 2, 2))
        surprise = _surprise(offset.detach(), first @ first.mT + second @ second.mT)
        spread = mean_where(surprise, matched & (nearest == partner) & mutual)

        loss = what + which + where + precise + 0.5 * direction + 0.1 * spread
        parts = {
            "what": what, "which": which, "where": where, "precise": precise, "direction": direction, "spread": spread,
            "repeated": matched.sum() / seen0.sum().clamp(min=1),
            "matched": mean_where(right0, seen0),
        }  # fmt: skip
        if matcher is None:
            return Output(loss, log_p, labels, parts)
        parts["assignment"] = matcher.loss
        return Output(loss + matcher.loss, matcher.log_p, matcher.labels, parts, matcher.threshold)

    @staticmethod
    def _peak(scores: Scores, side: int, carried: Carried, ideal: Tensor, seen: Tensor, weight: Tensor) -> Tensor:
        """Cross-entropy of the logits around the places that keypoints of the other picture are carried to."""
        level = ideal.round().long().clamp(0, len(scores.cells) - 1)
        rows = torch.arange(side, len(scores.logits), 2, device=level.device)
        mine = Scores(scores.logits[rows], scores.ranks[rows], scores.size, scores.cells, scores.pixels)
        at = mine.to_level(torch.where(seen[..., None], carried.points, 0.0), level)
        whole = at.round().long()
        steps = torch.arange(-REACH, REACH + 1, device=level.device)
        logits = mine.window(level, whole[..., 0], whole[..., 1], steps)
        off = at - whole
        column = (1 - (steps - off[..., :1]).abs()).clamp(min=0)  # bilinear weights
        row = (1 - (steps - off[..., 1:]).abs()).clamp(min=0)
        target = (row[..., :, None] * column[..., None, :]).flatten(2)
        cost = -(target * logits.flatten(2).log_softmax(2)).sum(2)
        inside = (whole > REACH).all(2) & (whole < mine.pixels[level] - 1 - REACH).all(2)
        weight = (weight + 0.05) * (seen & inside)
        return (cost * weight).sum() / weight.sum().clamp(min=1)


def _gumbel(like: Tensor, seed: Tensor) -> Tensor:
    """Return noise by which keypoints are drawn that are not thought to be the best."""
    generator = torch.Generator(like.device).manual_seed(int(seed))
    uniform = torch.rand(like.shape, generator=generator, device=like.device)
    return -EXPLORATION * torch.log(-torch.log(uniform.clamp(1e-6, 1 - 1e-6)))


def _ideal_level(carried: Carried, levels: Tensor) -> Tensor:
    """Level (B, N) on which a keypoint would be found in the other picture if it were found at the same size there."""
    return levels + torch.linalg.det(carried.jacobian).abs().clamp(1e-4, 1e4).log2()  # two levels to the octave


def _errors(carried0: Carried, carried1: Carried, points0: Tensor, points1: Tensor, real: Tensor) -> Tensor:
    """Reprojection error (B, N, M) in the picture that shows the place smaller; infinite where either is not seen."""
    forth = torch.cdist(carried0.points, points1, compute_mode="donot_use_mm_for_euclid_dist")
    back = torch.cdist(points0, carried1.points, compute_mode="donot_use_mm_for_euclid_dist")
    known = (carried0.seen & real[:, 0])[:, :, None] & (carried1.seen & real[:, 1])[:, None]
    return torch.where(known, torch.minimum(forth, back), torch.inf)


def _rightness(error: Tensor) -> Tensor:
    return sum((error < limit).float() for limit in RIGHT) / len(RIGHT)  # type: ignore[return-value]


def dual_softmax(logits: Tensor) -> Tensor:
    """Return the logarithm of the product of soft-maxes over rows and columns of (B, N, M).

    A row or column that allows no answer, all -inf, gives -inf throughout, without a gradient of NaN.
    """
    parts = []
    for dim in (2, 1):
        nothing = logits.isneginf().all(dim, keepdim=True)
        parts.append(logits.masked_fill(nothing, 0.0).log_softmax(dim).masked_fill(nothing, -torch.inf))
    return parts[0] + parts[1]


def _surprise(offset: Tensor, covariance: Tensor) -> Tensor:
    """Negative log-likelihood of offsets (B, N, 2) under normal distributions, but for its constant."""
    a, b, c = covariance[..., 0, 0], covariance[..., 0, 1], covariance[..., 1, 1]
    determinant = (a * c - b * b).clamp(min=1e-8)
    x, y = offset.unbind(-1)
    return 0.5 * ((c * x * x - 2 * b * x * y + a * y * y) / determinant + determinant.log())


def label_matches(partner: Tensor, matched: Tensor, error: Tensor, seen0: Tensor, seen1: Tensor) -> Labels:
    """Label matches as for a matcher: right ones, and keypoints with nothing near where they should be."""
    count = error.shape[2]
    alone0 = seen0 & (error.amin(2) > APART)
    alone1 = seen1 & (error.amin(1) > APART)
    matches0 = torch.where(matched, partner, IGNORED)
    index = torch.where(matched, partner, count)
    matches1 = torch.full((len(partner), count + 1), IGNORED, device=partner.device)
    matches1 = matches1.scatter(1, index, torch.arange(partner.shape[1], device=partner.device).expand_as(partner))
    return Labels(matches0.masked_fill(alone0, UNMATCHABLE), matches1[:, :-1].masked_fill(alone1, UNMATCHABLE))
