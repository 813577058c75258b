"""What each kind of matcher minimises, as modules that turn a `Batch` into a loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...matchers.lightglue import (
    FRAME_CODE,
    AssignmentHead,
    Layout,
    LightGlueConfig,
    LightGlueNet,
    Update,
    align,
    attend,
)
from ...matchers.superglue import MLP, SuperGlueNet, normalise_keypoints
from ..data.ground_truth import Labels
from ..pairs.batch import Batch
from . import losses


@dataclass(frozen=True, eq=False)
class Output:
    """One forward pass: the loss of a batch, and what the matcher would report.

    Attributes
    ----------
    loss : scalar tensor
    log_p : tensor (B, N, M)
        Log assignment of the last layer.
    labels : Labels
        What it should have been.
    parts : dict of scalar tensors
        Other numbers worth a column in the metrics.
    threshold : float
        P above which a mutual maximum of ``log_p`` is reported as a match.
    """

    loss: Tensor
    log_p: Tensor
    labels: Labels
    parts: dict[str, Tensor] = field(default_factory=dict)
    threshold: float = 0.1


def lightglue_inputs(batch: Batch, config: LightGlueConfig) -> tuple[Tensor, Tensor, Layout]:
    """Return descriptors (T, D), positions (T, 2 or 4) and layout of a batch, as `LightGlueNet` wants them."""
    size = batch.sizes[:, None]
    positions = (batch.keypoints - size / 2) / (size.amax(-1, keepdim=True) / 2)
    if config.scale_orientation:
        scales = batch.scales.log2() if config.log_scale else batch.scales
        positions = torch.cat([positions, scales[..., None], batch.orientations[..., None]], dim=-1)
    present, counts = batch.present, batch.counts.tolist()
    if config.align:
        for i in range(0, len(counts), 2):
            d0, d1 = (batch.descriptors[j, : counts[j]].detach().float() for j in (i, i + 1))
            p0, p1 = (positions[j, : counts[j]] for j in (i, i + 1))
            both = align(d0, d1, p0, p1, float(batch.sizes[i].max()), float(batch.sizes[i + 1].max()))
            for j in (0, 1):
                positions[i + j, : counts[i + j]] = both[j]
    return batch.descriptors.float()[present], positions[present], Layout(counts)


def _pairs(states: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cut packed states (T, d) into those of first and second pictures, (B, N, d) each, and what is not padding."""
    present = batch.present
    padded = states.new_zeros(*present.shape, states.shape[-1]).masked_scatter(present[..., None], states)
    both, there = padded.unflatten(0, (-1, 2)), present.unflatten(0, (-1, 2))
    return both[:, 0], both[:, 1], there[:, 0], there[:, 1]


class Objective(nn.Module):
    """A network and what it minimises; `fit` trains it.

    Attributes
    ----------
    net : Module
        What is averaged, saved and resumed.
    """

    net: nn.Module

    def forward(self, batch: Any) -> Output:
        """Return the loss of a batch."""
        raise NotImplementedError

    def compile_parts(self) -> None:
        """Compile what does not depend on the layout of a batch, so that one compilation serves batches of any."""
        for module in self.modules():
            if isinstance(module, (Update, AssignmentHead, MLP)):
                module.compile(dynamic=True)


class LightGlueObjective(Objective):
    """The assignment's negative log-likelihood, averaged over all layers (paper, section 3.4).

    Parameters
    ----------
    net : LightGlueNet
        What is trained.
    save_memory : bool
        Recompute the states inside each layer in the backward pass instead of keeping them.
    """

    net: LightGlueNet

    def __init__(self, net: LightGlueNet, save_memory: bool = False) -> None:
        super().__init__()
        self.net, self.save_memory = net, save_memory
        net.confidence.requires_grad_(False)  # a stage of its own

    def forward(self, batch: Batch) -> Output:
        """Return the loss of a batch."""
        net = self.net
        descriptors, positions, layout = lightglue_inputs(batch, net.config)
        x, cos, sin = net.encode(descriptors, positions)
        total = torch.zeros((), device=x.device)
        for layer, head in zip(net.layers, net.heads, strict=True):
            x = (
                checkpoint(layer, x, cos, sin, layout, use_reentrant=False)
                if self.save_memory
                else layer(x, cos, sin, layout)
            )
            with torch.autocast(x.device.type, enabled=False):  # bfloat16 rounds a log-probability of -20 by 0.1
                log_p, z0, z1 = head(*_pairs(x.float(), batch))
            per_pair = losses.lightglue_nll(log_p, z0, z1, batch.labels)
            total = total + losses.mean_over_labelled(per_pair, batch.labels)
        return Output(total / len(net.layers), log_p, batch.labels, threshold=net.config.match_threshold)


class ConfidenceObjective(Objective):
    """Cross-entropy of the confidence classifiers: does this layer agree with the last? The matcher is frozen."""

    net: LightGlueNet

    def __init__(self, net: LightGlueNet) -> None:
        super().__init__()
        self.net = net
        net.requires_grad_(False)
        net.confidence.requires_grad_(True)

    def forward(self, batch: Batch) -> Output:
        """Return the loss of a batch."""
        with torch.no_grad():
            states = self.net(*lightglue_inputs(batch, self.net.config))
            fates = []
            for x, head in zip(states, self.net.heads, strict=True):
                with torch.autocast(x.device.type, enabled=False):
                    log_p, z0, z1 = head(*_pairs(x.float(), batch))
                fates.append(losses.partners(log_p, F.logsigmoid(-z0), F.logsigmoid(-z1)))
        total = torch.zeros((), device=log_p.device)
        for x, layer_fates, classifier in zip(states, fates, self.net.confidence, strict=False):
            pairs = _pairs(x.float(), batch)
            for side in (0, 1):
                logits = classifier(pairs[side]).squeeze(-1)
                agrees = layer_fates[side] == fates[-1][side]
                total = total + 0.5 * losses.confidence_bce(logits, agrees, pairs[2 + side])
        loss = total / max(1, len(self.net.confidence))
        return Output(loss, log_p, batch.labels, threshold=self.net.config.match_threshold)


class SuperGlueObjective(Objective):
    """The negative log-likelihood of SuperGlue's only assignment, after its last layer, as published.

    Unlike `SuperGlueNet.forward` it takes pictures with different numbers of keypoints: tokens are packed without
    padding, which also keeps padding out of the batch normalisation.
    """

    net: SuperGlueNet

    def __init__(self, net: SuperGlueNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Batch) -> Output:
        """Return the loss of a batch."""
        net, present = self.net, batch.present
        layout = Layout(batch.counts.tolist())
        position = torch.cat([normalise_keypoints(batch.keypoints, batch.sizes), batch.scores[..., None]], dim=-1)
        x = batch.descriptors.float()[present] + net.keypoint_encoder(position[present])  # equation 2
        for i, layer in enumerate(net.layers):
            x = _attend_packed(layer, x, layout, cross=i % 2 == 1)
        f0, f1, present0, present1 = _pairs(net.projection(x), batch)
        with torch.autocast(x.device.type, enabled=False):
            similarity = f0.float() @ f1.float().mT / net.config.dim**0.5
            log_p = _masked_transport(similarity, net.dustbin, present0, present1, net.config.sinkhorn_iterations)
        loss = losses.mean_over_labelled(losses.superglue_nll(log_p, batch.labels), batch.labels)
        return Output(loss, log_p[:, :-1, :-1], batch.labels, threshold=net.config.match_threshold)


def _attend_packed(layer: Any, x: Tensor, layout: Layout, cross: bool) -> Tensor:
    """SuperGlue's `AttentionLayer` on the packed tokens (T, dim) of all pictures at once."""
    q = layer.query(x).unflatten(-1, (layer.heads, -1))
    k, v = layer.key_value(x).unflatten(-1, (2, layer.heads, -1)).unbind(1)
    message = layer.merge(attend(q, k, v, layout, cross))
    return x + layer.mlp(torch.cat([x, message], dim=-1))


def _masked_transport(scores: Tensor, dustbin: Tensor, present0: Tensor, present1: Tensor, iterations: int) -> Tensor:
    """SuperGlue's `log_optimal_transport` (B, N + 1, M + 1) where padding, ``present`` False, takes no part.

    Padding gets scores and masses so low that it adds exactly nothing to any sum, but finite, so that no gradient
    becomes NaN.
    """
    nothing = -1e5
    there0, there1 = (F.pad(there, (0, 1), value=True) for there in (present0, present1))
    n, m = present0.sum(1, keepdim=True), present1.sum(1, keepdim=True)
    b, height, width = scores.shape
    padded = torch.cat([scores, dustbin.expand(b, height, 1)], dim=2)
    padded = torch.cat([padded, dustbin.expand(b, 1, width + 1)], dim=1)  # equation 8
    padded = padded.masked_fill(~(there0[:, :, None] & there1[:, None]), nothing)
    total = (n + m).log()
    log_a, log_b = (
        torch.cat([torch.zeros_like(there[:, :-1], dtype=scores.dtype), others.log()], dim=1)
        .sub(total)
        .masked_fill(~there, nothing)
        for there, others in ((there0, m), (there1, n))
    )  # equation 9
    v = padded.new_zeros(b, 1, width + 1)
    for _ in range(iterations):
        u = log_a[:, :, None] - torch.logsumexp(padded + v, dim=2, keepdim=True)
        v = log_b[:, None] - torch.logsumexp(padded + u, dim=1, keepdim=True)
    result = padded + u + v + total[:, :, None]
    return result.masked_fill(~(there0[:, :, None] & there1[:, None]), -math.inf)


_SLOWEST, _FASTEST = 1.0, 40.0  # radians over half the long side of a picture
_NEARNESS = 10.0  # logarithm of how much more than a far point the nearest one is attended to


_WHITENING = 0.5  # 0: principal axes as they are, 1: all of the same variance


@torch.no_grad()
def start_as_nearest_neighbour(
    net: LightGlueNet, descriptors: Tensor | None = None, sharpness: float = 14.0, geometry: float = 8.0
) -> None:
    """Initialise a LightGlue so that it begins as a soft nearest-neighbour matcher, and has only to improve on it.

    The last linear layer of every residual branch is zero, so states are projected descriptors, and each head
    multiplies by a temperature such that S_ij = ``sharpness`` * cosine. Where pairs are aligned, the agreement of
    places, scales and orientations (`tiepoint.matchers.lightglue.frame_code`) adds up to ``geometry``. Points know
    their neighbourhood from the first step: frequencies of the positional encoding span all distances.

    Parameters
    ----------
    net : LightGlueNet
        Changed in place. Its random numbers (see `torch.manual_seed`) are those of its construction.
    descriptors : (N, D), optional
        Some of those to match, unit vectors, at least a few times D. With them the first projection is their principal
        axes, half whitened: on SIFT as good a start as thousands of steps of training.
    sharpness : float
        Similarity of two equal descriptors.
    geometry : float
        Similarity of two keypoints that agree perfectly in place, scale and orientation.
    """
    config = net.config
    layers: list[Any] = list(net.layers)
    heads: list[Any] = list(net.heads)
    gain = config.dim**0.5  # unit descriptors have entries of 1 / gain; layers like entries of about 1
    coded = FRAME_CODE if config.align else 0
    kept = config.dim - coded  # numbers of the state that tell what a keypoint looks like
    norm = torch.ones(config.dim)  # of a state's two parts
    if isinstance(net.input, nn.Linear):
        weight = net.input.weight.zero_()
        net.input.bias.zero_()
        if descriptors is None:
            nn.init.orthogonal_(weight[:kept, : config.input_dim]).mul_(kept**0.5)
        else:
            axes, mean = _whitening(descriptors, kept)
            weight[: len(axes), : config.input_dim] = axes * kept**0.5
            net.input.bias[: len(axes)] = -(axes @ mean) * kept**0.5
        if coded:
            weight[kept:, config.input_dim :] = torch.eye(coded) * coded**0.5
        norm[:kept], norm[kept:] = kept**0.5, coded**0.5
    else:
        for layer in layers:
            layer.self_attention.qkv.weight.mul_(gain)
            layer.cross_attention.kv.weight.mul_(gain)
    for layer in layers:
        for unit in (layer.self_attention, layer.cross_attention):
            unit.update.reduce.weight.zero_()
            unit.update.reduce.bias.zero_()
            if isinstance(net.input, nn.Identity):
                unit.update.expand.weight[:, : config.dim].mul_(gain)
    # S = |m0| |m1| cos / sqrt(dim) with m = temperature * state
    wanted = torch.full((config.dim,), sharpness)
    wanted[kept:] = geometry
    temperature = (wanted * gain).sqrt() / norm
    for head in heads:
        head.project.weight.copy_(temperature.diag())
        head.project.bias.zero_()
        head.matchability.weight.zero_()
        head.matchability.bias.fill_(2.0)  # most points may match: P of a sure match is 0.78, far above any threshold
    confidence: list[Any] = list(net.confidence)
    for classifier in confidence:
        classifier.weight.zero_()
        classifier.bias.zero_()
    # Frequencies from one wave over the picture to several between neighbouring keypoints, so that what is near is
    # known at the start and need not be discovered.
    rates = net.frequencies.weight
    count = len(rates)
    number = torch.arange(count)
    octave = (number // 4) / max(1, (count - 1) // 4)
    direction = torch.atan2(rates[:, 1], rates[:, 0])
    rates[:, :2] = (
        torch.stack([direction.cos(), direction.sin()], 1) * (_SLOWEST * (_FASTEST / _SLOWEST) ** octave)[:, None]
    )
    of_place = torch.ones(count, dtype=torch.bool)
    if config.scale_orientation:
        # Of four, two tell position alone, one also orientation, and one orientation and scale without position. A
        # full turn changes nothing: turns are whole numbers.
        kind = number % 4
        rates[:, 3] = torch.tensor([0.0, 0.0, 1.0, 2.0])[kind]
        rates[:, 2] = torch.where(kind == 3, 0.5 + 0.8 * octave, 0.0)  # radians for each octave
        rates[kind == 3, :2] = 0.0
        of_place = kind < 2
    # Constant queries and keys, turned by the positions, attend to what is near: the sum of cosines peaks at distance
    # zero. The first head looks at the nearest points, the others, which have only the slow half, wider.
    for layer in layers:
        bias = layer.self_attention.qkv.bias.view(3, config.heads, 2, count)
        bias[:2] = 0.0
        for head in range(config.heads):
            there = of_place & ((octave <= 0.5) if head else True)
            bias[:2, head, 0] = there * (_NEARNESS * (2 * count) ** 0.5 / there.sum()) ** 0.5
        if isinstance(net.input, nn.Linear):
            # A point sees first what resembles it.
            nn.init.orthogonal_(layer.cross_attention.kv.weight[: config.dim])


def _whitening(descriptors: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Principal axes (K, D), at most so many, and mean (D,): projections have length 1 on average, half whitened."""
    mean = descriptors.mean(0)
    values, axes = torch.linalg.eigh(torch.cov(descriptors.T))
    values, axes = values.flip(0)[:most], axes.flip(1)[:, :most]
    values = values.clamp(min=1e-4 * float(values[0]))  # directions that the sample hardly has are not blown up
    axes = axes * values ** -(_WHITENING / 2)
    return (axes / ((descriptors - mean) @ axes).norm(dim=1).mean()).T, mean
