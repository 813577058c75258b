"""Many pairs at once: what `network` computes for one pair, in few large operations.

The points of all images of all pairs are the rows of one matrix. Every linear layer is then one large product, pairs of
different sizes need no padding, and stopping early and dropping points are the same cheap step: keeping some rows.
`Layout` knows which rows belong to which image. Parameters are those of `network`; the tests hold the two together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import LightGlueConfig
from .network import Assignment, AssignmentHead, Layer, LightGlueNet, read_matches


class Layout:
    """Which rows of the token matrix belong to which image; images 2p and 2p + 1 are pair p."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)

    @property
    def is_uniform(self) -> bool:
        """Whether all images have the same number of points, so that a plain view batches them."""
        return min(self.lengths) == max(self.lengths)

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Cut a matrix of all tokens (T, ...) into one matrix per image."""
        return rows.split(self.lengths)

    def owners(self, device: torch.device) -> Tensor:
        """Return the number of the image that each token belongs to, int64 (T,)."""
        lengths = torch.tensor(self.lengths, device=device)
        return torch.repeat_interleave(
            torch.arange(len(lengths), device=device), lengths, output_size=sum(self.lengths)
        )


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, cross: bool) -> Tensor:
    """Multi-head attention (T, heads, D) of every image to itself or, if ``cross``, to its partner."""
    images = len(layout.lengths)
    if layout.is_uniform:
        q, k, v = (t.unflatten(0, (images, -1)).transpose(1, 2) for t in (q, k, v))
        if cross:
            k, v = (t.unflatten(0, (-1, 2)).flip(1).flatten(0, 1) for t in (k, v))
        return attention(q, k, v).transpose(1, 2).flatten(0, 1).flatten(1)
    partner = [i ^ cross for i in range(images)]
    if q.device.type == "cpu":
        by_image = [[t.transpose(0, 1)[None] for t in layout.split(rows)] for rows in (q, k, v)]
        contexts = [attention(by_image[0][i], by_image[1][j], by_image[2][j])[0] for i, j in enumerate(partner)]
        return torch.cat([context.transpose(0, 1).flatten(1) for context in contexts])
    return attend_padded(q, k, v, layout, cross)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention (images, heads, N, D); to train in bfloat16 on a CPU, its plain formula.

    There PyTorch's fused kernel multiplies without the bfloat16 units: forward and backward take twice as long.
    """
    if v.requires_grad and v.device.type == "cpu" and v.dtype == torch.bfloat16:
        with torch.autocast("cpu", enabled=False):
            return ((q * q.shape[-1] ** -0.5).bfloat16() @ k.bfloat16().mT).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


def attend_padded(q: Tensor, k: Tensor, v: Tensor, layout: Layout, cross: bool) -> Tensor:
    """`attend` for images of different sizes, as one masked call: on a GPU that beats many small ones."""
    lengths = torch.tensor(layout.lengths, device=q.device)
    present = torch.arange(max(layout.lengths), device=q.device) < lengths[:, None]
    q, k, v = (
        torch.zeros(*present.shape, *t.shape[1:], dtype=t.dtype, device=t.device)
        .masked_scatter(present[..., None, None], t)
        .transpose(1, 2)
        for t in (q, k, v)
    )
    partner = torch.arange(len(lengths), device=q.device) ^ int(cross)
    mask = present[partner][:, None, None]
    context = F.scaled_dot_product_attention(q, k[partner], v[partner], attn_mask=mask)
    return context.transpose(1, 2)[present].flatten(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`network.rotate` in fewer passes over memory, about three times as fast on a CPU."""
    half = x.shape[-1] // 2
    out = x * torch.cat([cos, cos], dim=-1)
    out[..., :half].addcmul_(x[..., half:], sin, value=-1)
    out[..., half:].addcmul_(x[..., :half], sin)
    return out


def run_layer(layer: Layer, x: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
    """Return the states (T, dim) after one layer; ``cos`` and ``sin`` (T, D / 2) are those of `LightGlueNet.encode`."""
    unit = layer.self_attention
    qkv = unit.qkv(x).unflatten(-1, (3, unit.heads, -1))
    q, k = rotate(qkv[:, :2], cos[:, None, None], sin[:, None, None]).unbind(1)
    x = unit.update(x, attend(q, k, qkv[:, 2], layout, cross=False))
    cross = layer.cross_attention
    k, v = cross.kv(x).unflatten(-1, (2, cross.heads, -1)).unbind(1)
    return cross.update(x, attend(k, k, v, layout, cross=True))


def run_layers(net: LightGlueNet, descriptors: Tensor, positions: Tensor, layout: Layout) -> list[Tensor]:
    """Return the states (T, dim) after every layer, without early exit and pruning (for training)."""
    x, cos, sin = net.encode(descriptors, positions)
    states = []
    for layer in net.layers:
        x = run_layer(layer, x, cos, sin, layout)
        states.append(x)
    return states


def assign(
    head: AssignmentHead, x0: Tensor, x1: Tensor, present0: Tensor | None = None, present1: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log assignment and matchability logits; `AssignmentHead.forward` for batches, with fewer passes over (N, M).

    Parameters
    ----------
    head : AssignmentHead
        Of one layer.
    x0, x1 : float tensors (..., N, dim), (..., M, dim)
        States of the two images.
    present0, present1 : bool tensors (..., N), (..., M), both or neither
        False for padding (in training, where pairs are batched): it takes no part, and its log P is -inf.

    Returns
    -------
    log_p : (..., N, M)
    z0, z1 : (..., N), (..., M)
    """
    s = head.similarity(x0, x1)
    z0, z1 = head.logits(x0), head.logits(x1)
    s0, s1 = s, s
    if present0 is not None and present1 is not None:
        s0 = s.masked_fill(~present1.unsqueeze(-2), -math.inf)
        s1 = s.masked_fill(~present0.unsqueeze(-1), -math.inf)
    row = F.logsigmoid(z0) - s0.logsumexp(-1)
    column = F.logsigmoid(z1) - s1.logsumexp(-2)
    log_p = 2 * s + row.unsqueeze(-1) + column.unsqueeze(-2)
    if present0 is not None and present1 is not None:
        log_p = log_p.masked_fill(~(present0.unsqueeze(-1) & present1.unsqueeze(-2)), -math.inf)
    return log_p, z0, z1


@dataclass
class Tokens:
    """The points that still take part: states (T, dim), rotary encoding, their numbers (T,), and whose they are."""

    x: Tensor
    cos: Tensor
    sin: Tensor
    number: Tensor
    layout: Layout

    def select(self, keep: Tensor, images: Sequence[bool] | None = None) -> Tokens:
        """Keep some tokens (T,), of some images only."""
        counts = torch.bincount(self.layout.owners(keep.device)[keep], minlength=len(self.layout.lengths)).tolist()
        if images is not None:
            counts = [count for count, stays in zip(counts, images, strict=True) if stays]
        return Tokens(self.x[keep], self.cos[keep], self.sin[keep], self.number[keep], Layout(counts))


class Adaptive:
    """Pairs on their way through the layers side by side; each stops, and drops points, as if it were alone.

    Call `step` for one layer after another until no pair is active, then `finish`.

    Parameters
    ----------
    net : LightGlueNet
        The network.
    config : LightGlueConfig
        Its thresholds are used; those of ``net`` are not.
    descriptors, positions : tensors (T, input_dim), (T, 2 or 4)
        Of all images.
    layout : Layout
        Which rows belong to which image.
    autocast : bool
        Compute the layers in bfloat16; states and read-out stay in float32.
    """

    def __init__(
        self,
        net: LightGlueNet,
        config: LightGlueConfig,
        descriptors: Tensor,
        positions: Tensor,
        layout: Layout,
        autocast: bool = False,
    ) -> None:
        self.net, self.config, self.layout, self.autocast = net, config, layout, autocast
        self.device = descriptors.device
        everything = torch.arange(len(descriptors), device=self.device)
        self.tokens = Tokens(*net.encode(descriptors, positions), everything, layout)
        self.depth = torch.zeros_like(everything)  # layers that each point took part in
        self.matchability = torch.zeros(len(descriptors), device=self.device)  # after the last of them
        self.active = list(range(len(layout.lengths) // 2))  # numbers of pairs
        self.points = torch.tensor(layout.lengths, device=self.device).view(-1, 2).sum(1)  # that each began with
        self.found: dict[int, tuple[Tensor, Tensor, int]] = {}  # pair -> points (2, K), scores (K,), layers

    @torch.inference_mode()
    def step(self, i: int) -> bool:
        """Run layer ``i`` for the active pairs and let go what is finished; return whether a pair is still active."""
        tokens, last = self.tokens, i == self.config.layers - 1
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            tokens.x = run_layer(self.net.layers[i], tokens.x, tokens.cos, tokens.sin, tokens.layout)
        done = torch.full((len(self.active),), last, device=self.device)
        if not last:
            done, prune = self._decide(i)
            if prune.any():
                self._record(i, prune)
                self.tokens = tokens = tokens.select(~prune)
                # An image that lost all its points ends its pair: nothing is left to match.
                done |= torch.tensor(tokens.layout.lengths, device=self.device).view(-1, 2).amin(1) == 0
        if done.any():
            self._release(i, done)
        return bool(self.active)

    def finish(self) -> list[Assignment]:
        """Return what became of each pair, on the CPU, in the order of ``layout``."""
        first = torch.tensor([0, *self.layout.lengths]).cumsum(0)  # number of the point that starts an image
        depth, matchability = (self.layout.split(t.cpu()) for t in (self.depth, self.matchability))
        result = []
        for p in range(len(self.found)):
            points, scores, layers = self.found[p]
            two = slice(2 * p, 2 * p + 2)
            result.append(
                Assignment(points.cpu().T - first[two], scores.cpu(), layers, *depth[two], *matchability[two])
            )
        return result

    def _decide(self, i: int) -> tuple[Tensor, Tensor]:
        """Decide after layer i which pairs are done, Eq. (10), and which tokens of the others are dropped."""
        config, x = self.config, self.tokens.x
        pair = self.tokens.layout.owners(self.device) // 2
        done = torch.zeros(len(self.active), dtype=torch.bool, device=self.device)
        prune = torch.zeros_like(pair, dtype=torch.bool)
        unsure = torch.zeros_like(prune)
        if config.exit_confidence is not None:
            unsure = self.net.confidence[i](x).squeeze(-1).sigmoid() <= config.exit_confidence[i]
            waiting = torch.bincount(pair[unsure], minlength=len(done))
            done = 1 - waiting / self.points[self.active] > config.exit_share
        if config.prune_matchability is not None:
            prune = self.net.heads[i].logits(x).sigmoid() <= config.prune_matchability[i]
            prune &= ~unsure & ~done[pair]  # a pair that is done is read out as it stands
        return done, prune

    def _release(self, i: int, done: Tensor) -> None:
        """Read out the pairs that end after layer i, and let them go."""
        tokens, ending = self.tokens, done.tolist()
        states, numbers = tokens.layout.split(tokens.x), tokens.layout.split(tokens.number)
        for k, p in enumerate(self.active):
            if ending[k]:
                (x0, x1), (n0, n1) = states[2 * k : 2 * k + 2], numbers[2 * k : 2 * k + 2]
                log_p = assign(self.net.heads[i], x0, x1)[0]
                (rows, columns), scores = read_matches(log_p, self.config.match_threshold)
                self.found[p] = torch.stack([n0[rows], n1[columns]]), scores, i + 1
        gone = done[tokens.layout.owners(self.device) // 2]
        self._record(i, gone)
        self.tokens = tokens.select(~gone, [not ending[image // 2] for image in range(2 * len(ending))])
        self.active = [p for k, p in enumerate(self.active) if not ending[k]]

    def _record(self, i: int, gone: Tensor) -> None:
        """Record how many layers the tokens that take no further part went through."""
        self.depth[self.tokens.number[gone]] = i + 1
        self.matchability[self.tokens.number[gone]] = self.net.heads[i].logits(self.tokens.x[gone]).sigmoid()
