"""Objectives of LightGlue: its assignments, then its confidence classifiers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...matchers.lightglue import (
    Layout,
    LightGlueConfig,
    LightGlueNet,
    Update,
    assign,
    pair_positions,
    run_layer,
    run_layers,
)
from ..pairs.batch import Batch
from . import losses
from .base import Objective, Output


def lightglue_inputs(batch: Batch, config: LightGlueConfig) -> tuple[Tensor, Tensor, Layout]:
    """Return descriptors (T, D), positions (T, 2 or 4) and layout of a batch, as `run_layers` wants them."""
    pictures = batch.pictures()
    positions = [
        each
        for image0, image1 in zip(pictures[0::2], pictures[1::2], strict=True)
        for each in pair_positions(config, image0, image1)
    ]
    layout = Layout([len(picture.keypoints) for picture in pictures])
    return batch.descriptors.float()[batch.present], torch.cat(positions), layout


class _OfLightGlue(Objective):
    net: LightGlueNet
    compiled = (Update,)

    def __init__(self, net: LightGlueNet) -> None:
        super().__init__(net)
        self.assign = assign

    def compile_parts(self) -> None:
        """Compile the parts of the network that take most of the time."""
        super().compile_parts()
        self.assign = torch.compile(assign, dynamic=True)


class LightGlueObjective(_OfLightGlue):
    """The assignment's negative log-likelihood, averaged over all layers (paper, section 3.4).

    Parameters
    ----------
    net : LightGlueNet
        What is trained.
    save_memory : bool
        Recompute the states inside each layer in the backward pass instead of keeping them.
    """

    def __init__(self, net: LightGlueNet, save_memory: bool = False) -> None:
        super().__init__(net)
        self.save_memory = save_memory
        net.confidence.requires_grad_(False)  # a stage of its own

    def forward(self, batch: Batch) -> Output:
        """Return the loss of a batch."""
        net = self.net
        descriptors, positions, layout = lightglue_inputs(batch, net.config)
        x, cos, sin = net.encode(descriptors, positions)
        total = torch.zeros((), device=x.device)
        for layer, head in zip(net.layers, net.heads, strict=True):
            x = (
                checkpoint(run_layer, layer, x, cos, sin, layout, use_reentrant=False)
                if self.save_memory
                else run_layer(layer, x, cos, sin, layout)
            )
            with torch.autocast(x.device.type, enabled=False):  # bfloat16 rounds a log-probability of -20 by 0.1
                log_p, z0, z1 = self.assign(head, *batch.unpack(x.float()))
            per_pair = losses.lightglue_nll(log_p, z0, z1, batch.labels)
            total = total + losses.mean_over_labelled(per_pair, batch.labels)
        return Output(total / len(net.layers), log_p, batch.labels, threshold=net.config.match_threshold)


class ConfidenceObjective(_OfLightGlue):
    """Cross-entropy of the confidence classifiers: does this layer agree with the last? The matcher is frozen."""

    def __init__(self, net: LightGlueNet) -> None:
        super().__init__(net)
        net.requires_grad_(False)
        net.confidence.requires_grad_(True)

    def forward(self, batch: Batch) -> Output:
        """Return the loss of a batch."""
        with torch.no_grad():
            states = run_layers(self.net, *lightglue_inputs(batch, self.net.config))
            labels = []
            for x, head in zip(states, self.net.heads, strict=True):
                with torch.autocast(x.device.type, enabled=False):
                    log_p, z0, z1 = self.assign(head, *batch.unpack(x.float()))
                labels.append(losses.partners(log_p, F.logsigmoid(-z0), F.logsigmoid(-z1)))
        total = torch.zeros((), device=log_p.device)
        for x, layer_labels, classifier in zip(states, labels, self.net.confidence, strict=False):
            pairs = batch.unpack(x.float())
            for side in (0, 1):
                logits = classifier(pairs[side]).squeeze(-1)
                agrees = layer_labels[side] == labels[-1][side]
                total = total + 0.5 * losses.confidence_bce(logits, agrees, pairs[2 + side])
        loss = total / max(1, len(self.net.confidence))
        return Output(loss, log_p, batch.labels, threshold=self.net.config.match_threshold)
