"""Objective of SuperGlue."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...matchers.lightglue import Layout, attend
from ...matchers.superglue import MLP, SuperGlueNet, log_optimal_transport, normalise_keypoints
from ..pairs.batch import Batch
from . import losses
from .base import Objective, Output


class SuperGlueObjective(Objective):
    """The negative log-likelihood of SuperGlue's only assignment, after its last layer, as published.

    Unlike `SuperGlueNet.forward` it takes pictures with different numbers of keypoints: tokens are packed without
    padding, which also keeps padding out of the batch normalisation.
    """

    net: SuperGlueNet
    compiled = (MLP,)

    def forward(self, batch: Batch) -> Output:
        """Return the loss of a batch."""
        net, present = self.net, batch.present
        layout = Layout(batch.counts.tolist())
        position = torch.cat([normalise_keypoints(batch.keypoints, batch.sizes), batch.scores[..., None]], dim=-1)
        x = batch.descriptors.float()[present] + net.keypoint_encoder(position[present])  # equation 2
        for i, layer in enumerate(net.layers):
            x = _attend_packed(layer, x, layout, cross=i % 2 == 1)
        f0, f1, present0, present1 = batch.unpack(net.projection(x))
        with torch.autocast(x.device.type, enabled=False):
            similarity = f0.float() @ f1.float().mT / net.config.dim**0.5
            log_p = log_optimal_transport(similarity, net.dustbin, net.config.sinkhorn_iterations, present0, present1)
        loss = losses.mean_over_labelled(losses.superglue_nll(log_p, batch.labels), batch.labels)
        return Output(loss, log_p[:, :-1, :-1], batch.labels, threshold=net.config.match_threshold)


def _attend_packed(layer: Any, x: Tensor, layout: Layout, cross: bool) -> Tensor:
    """SuperGlue's `AttentionLayer` on the packed tokens (T, dim) of all pictures at once."""
    q = layer.query(x).unflatten(-1, (layer.heads, -1))
    k, v = layer.key_value(x).unflatten(-1, (2, layer.heads, -1)).unbind(1)
    message = layer.merge(attend(q, k, v, layout, cross))
    return x + layer.mlp(torch.cat([x, message], dim=-1))
