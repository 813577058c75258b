"""What SuperGlue minimises."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...matchers.lightglue import Layout, attend
from ...matchers.superglue import MLP, SuperGlueNet, normalise_keypoints
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
        f0, f1, present0, present1 = batch.unpack(net.projection(x))
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
