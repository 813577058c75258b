"""What each kind of matcher minimises, as modules that turn a `Batch` into a loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..matchers.lightglue import Layout, LightGlueConfig, LightGlueNet
from ..matchers.superglue import SuperGlueNet
from . import losses
from .batches import Batch


@dataclass(frozen=True, eq=False)
class Output:
    """One forward pass: the loss of a batch, and what the matcher would report.

    Attributes
    ----------
    loss : scalar tensor
    log_p : tensor (B, N, M)
        Log assignment of the last layer.
    """

    loss: Tensor
    log_p: Tensor


def lightglue_inputs(batch: Batch, config: LightGlueConfig) -> tuple[Tensor, Tensor, Layout]:
    """Return descriptors (T, D), positions (T, 2 or 4) and layout of a batch, as `LightGlueNet` wants them."""
    size = batch.sizes[:, None]
    positions = (batch.keypoints - size / 2) / (size.amax(-1, keepdim=True) / 2)
    if config.scale_orientation:
        scales = batch.scales.log2() if config.log_scale else batch.scales
        positions = torch.cat([positions, scales[..., None], batch.orientations[..., None]], dim=-1)
    present = batch.present
    return batch.descriptors.float()[present], positions[present], Layout(batch.counts.tolist())


def _pairs(states: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cut packed states (T, d) into those of first and second pictures, (B, N, d) each, and what is not padding."""
    present = batch.present
    padded = states.new_zeros(*present.shape, states.shape[-1]).masked_scatter(present[..., None], states)
    both, there = padded.unflatten(0, (-1, 2)), present.unflatten(0, (-1, 2))
    return both[:, 0], both[:, 1], there[:, 0], there[:, 1]


class LightGlueObjective(nn.Module):
    """The assignment's negative log-likelihood, averaged over all layers (paper, section 3.4).

    Parameters
    ----------
    net : LightGlueNet
        What is trained.
    save_memory : bool
        Recompute the states inside each layer in the backward pass instead of keeping them.
    """

    def __init__(self, net: LightGlueNet, save_memory: bool = False) -> None:
        super().__init__()
        self.net, self.save_memory = net, save_memory
        net.confidence.requires_grad_(False)  # a stage of its own

    def forward(self, batch: Batch) -> Output:
        net = self.net
        descriptors, positions, layout = lightglue_inputs(batch, net.config)
        with torch.autocast(descriptors.device.type, enabled=False):  # positions need float32
            x, cos, sin = net.encode(descriptors, positions)
        total = torch.zeros((), device=x.device)
        for layer, head in zip(net.layers, net.heads, strict=True):
            x = (
                checkpoint(layer, x, cos, sin, layout, use_reentrant=False)
                if self.save_memory
                else layer(x, cos, sin, layout)
            )
            log_p, z0, z1 = head(*_pairs(x, batch))
            per_pair = losses.lightglue_nll(log_p, z0, z1, batch.labels)
            total = total + losses.mean_over_labelled(per_pair, batch.labels)
        return Output(total / len(net.layers), log_p)


class ConfidenceObjective(nn.Module):
    """Cross-entropy of the confidence classifiers on a frozen matcher: does this layer agree with the last?"""

    def __init__(self, net: LightGlueNet) -> None:
        super().__init__()
        self.net = net
        net.requires_grad_(False)
        net.confidence.requires_grad_(True)

    def forward(self, batch: Batch) -> Output:
        with torch.no_grad():
            states = self.net(*lightglue_inputs(batch, self.net.config))
            fates = []
            for x, head in zip(states, self.net.heads, strict=True):
                log_p, z0, z1 = head(*_pairs(x, batch))
                fates.append(losses.partners(log_p, F.logsigmoid(-z0), F.logsigmoid(-z1)))
        total = torch.zeros((), device=log_p.device)
        for x, layer_fates, classifier in zip(states, fates, self.net.confidence, strict=False):
            pairs = _pairs(x.float(), batch)
            for side in (0, 1):
                logits = classifier(pairs[side]).squeeze(-1)
                agrees = layer_fates[side] == fates[-1][side]
                total = total + 0.5 * losses.confidence_bce(logits, agrees, pairs[2 + side])
        return Output(total / max(1, len(self.net.confidence)), log_p)


class SuperGlueObjective(nn.Module):
    """The negative log-likelihood of SuperGlue's only assignment, after its last layer, as published."""

    def __init__(self, net: SuperGlueNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Batch) -> Output:
        two = [
            t.unflatten(0, (-1, 2))
            for t in (batch.descriptors.float(), batch.keypoints, batch.scores, batch.sizes)
        ]
        log_assignment = self.net(*(t[:, side] for side in (0, 1) for t in two))
        loss = losses.mean_over_labelled(losses.superglue_nll(log_assignment, batch.labels), batch.labels)
        return Output(loss, log_assignment[:, :-1, :-1])


@torch.no_grad()
def start_as_nearest_neighbour(net: LightGlueNet, sharpness: float = 24.0) -> None:
    """Initialise a LightGlue so that it begins as a soft nearest-neighbour matcher, and has only to improve on it.

    The last linear layer of every residual branch is zero, so states are projected descriptors; the projection is
    orthogonal, and each head multiplies by a temperature such that S_ij = ``sharpness`` * cosine. Frequencies of the
    orientation are small integers: a full turn then changes nothing.

    Parameters
    ----------
    net : LightGlueNet
        Changed in place. Its random numbers (see `torch.manual_seed`) are those of its construction.
    sharpness : float
        Similarity of two equal descriptors.
    """
    config = net.config
    gain = config.dim**0.5  # unit descriptors have entries of 1 / gain; layers like entries of about 1
    if isinstance(net.input, nn.Linear):
        nn.init.orthogonal_(net.input.weight)
        net.input.weight.mul_(gain)
        net.input.bias.zero_()
        state_norm = gain
    else:
        state_norm = 1.0
        for layer in net.layers:
            layer.self_attention.qkv.weight.mul_(gain)
            layer.cross_attention.kv.weight.mul_(gain)
    for layer in net.layers:
        for unit in (layer.self_attention, layer.cross_attention):
            unit.update.reduce.weight.zero_()
            unit.update.reduce.bias.zero_()
            if state_norm == 1.0:
                unit.update.expand.weight[:, : config.dim].mul_(gain)
    # S = |m0| |m1| cos / sqrt(dim) with m = temperature * state
    temperature = (sharpness * config.dim**0.5) ** 0.5 / state_norm
    for head in net.heads:
        head.project.weight.copy_(temperature * torch.eye(config.dim))
        head.project.bias.zero_()
        head.matchability.weight.zero_()
        head.matchability.bias.zero_()
    for classifier in net.confidence:
        classifier.weight.zero_()
        classifier.bias.zero_()
    if config.scale_orientation:
        net.frequencies.weight[:, 2].mul_(0.5)  # octaves
        turns = torch.arange(len(net.frequencies.weight)) % 4
        net.frequencies.weight[:, 3] = turns.to(net.frequencies.weight)
