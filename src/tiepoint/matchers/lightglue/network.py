"""LightGlue as its paper states it: one pair of images, plain tensors.

P. Lindenberger, P.-E. Sarlin, M. Pollefeys, "LightGlue: Local Feature Matching at Light Speed", ICCV 2023,
arXiv 2306.13643. Equation numbers are the paper's, and the equations stand in its order: sections 3.1 (layers), 3.2
(correspondences) and 3.3 (early exit and pruning; `match`).

This file is the reference. `packed` computes the same for many pairs at once, with the same parameters, and is what the
matcher runs; the tests compare the two. Shapes: N and M points in the two images, d numbers in a state, h heads of
D = d / h numbers.

Parameters are stored in another order than in the authors' code, see `upstream`: query, key and value are not
interleaved, the two numbers that a rotation turns stand D / 2 apart, and the linear layer that follows attention is
multiplied into the first layer of the MLP.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...features.steerable import steer
from ..mutual import mutual_nearest
from .alignment import FRAME_CODE, frame_code
from .config import LightGlueConfig

Rotation = Sequence[Tensor]  # cosines and sines (N, D / 2) of one image's positions


class Update(nn.Module):
    """x <- x + MLP([x | m]), Eq. (1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.expand = nn.Linear(2 * dim, 2 * dim)
        self.norm = nn.LayerNorm(2 * dim)
        self.reduce = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor, message: Tensor) -> Tensor:
        """Return the new states (N, d) from states and messages of that shape."""
        return x + self.reduce(F.gelu(self.norm(self.expand(torch.cat([x, message], dim=-1)))))


def message(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """m_i = sum_j softmax_j(a_ij) v_j with v_j = W x_j, Eq. (2), and a_ij = q_i . k_j / sqrt(D), in every head.

    q is (h, N, D), k and v are (h, M, D); the heads' messages are joined to (N, d).
    """
    a = q @ k.mT / math.sqrt(q.shape[-1])
    return (a.softmax(-1) @ v).transpose(0, 1).flatten(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """R(p_i) x_i of Eq. (4): turn the pair (x_n, x_{n + D/2}) by the angle b_n . p_i.

    Rotations compose, so the score of Eq. (3) is the inner product of a rotated query and a rotated key:
    q_i . R(p_j - p_i) k_j = (R(p_i) q_i) . (R(p_j) k_j).
    """
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class SelfAttention(nn.Module):
    """Every point attends to the points of its own image, by their relative positions: Eq. (3)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.update = Update(dim)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """Return the new states (N, d) of one image."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(1, 2, 0, 3)
        return self.update(x, message(rotate(q, *rotation), rotate(k, *rotation), v))


class CrossAttention(nn.Module):
    """Every point attends to the points of the other image; keys alone, so that a_ij = k_i . k_j = a_ji: Eq. (5)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.kv = nn.Linear(dim, 2 * dim)
        self.update = Update(dim)

    def forward(self, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
        """Return the new states (N, d) and (M, d) of both images."""
        (k0, v0), (k1, v1) = (self.kv(x).unflatten(-1, (2, self.heads, -1)).permute(1, 2, 0, 3) for x in (x0, x1))
        return self.update(x0, message(k0, k1, v1)), self.update(x1, message(k1, k0, v0))


class Layer(nn.Module):
    """One self-attention and one cross-attention unit; both images share their parameters."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.self_attention = SelfAttention(dim, heads)
        self.cross_attention = CrossAttention(dim, heads)

    def forward(self, x0: Tensor, x1: Tensor, rotation0: Rotation, rotation1: Rotation) -> tuple[Tensor, Tensor]:
        """Return the new states (N, d) and (M, d)."""
        return self.cross_attention(self.self_attention(x0, rotation0), self.self_attention(x1, rotation1))


class AssignmentHead(nn.Module):
    """Read correspondences off the states of a layer: similarity of points, matchability of each."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, dim)
        self.matchability = nn.Linear(dim, 1)

    def similarity(self, x0: Tensor, x1: Tensor) -> Tensor:
        """Scores S (..., N, M), Eq. (6), divided by sqrt(d)."""
        m0, m1 = self.project(x0), self.project(x1)
        return m0 @ m1.mT / math.sqrt(m0.shape[-1])

    def logits(self, x: Tensor) -> Tensor:
        """Logits z (..., N) of the matchability sigma = sigmoid(z), Eq. (7)."""
        return self.matchability(x).squeeze(-1)

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        """Return log P (N, M): P_ij = sigma_i sigma_j softmax_k(S_kj)_i softmax_k(S_ik)_j, Eq. (8)."""
        s = self.similarity(x0, x1)
        z0, z1 = self.logits(x0), self.logits(x1)
        return F.logsigmoid(z0)[:, None] + F.logsigmoid(z1) + s.log_softmax(0) + s.log_softmax(1)


class LightGlueNet(nn.Module):
    """All layers, with a head after each and a confidence classifier after each but the last; sizes from ``config``."""

    layers: Any  # lists of modules, of which PyTorch does not say the kind
    heads: Any
    confidence: Any

    def __init__(self, config: LightGlueConfig) -> None:
        super().__init__()
        self.config = config
        d = config.dim
        given = config.input_dim + (FRAME_CODE if config.align else 0)
        self.input = nn.Identity() if given == d and not config.align else nn.Linear(given, d)
        self.frequencies = nn.Linear(4 if config.scale_orientation else 2, d // config.heads // 2, bias=False)
        nn.init.normal_(self.frequencies.weight)
        self.layers = nn.ModuleList(Layer(d, config.heads) for _ in range(config.layers))
        self.heads = nn.ModuleList(AssignmentHead(d) for _ in range(config.layers))
        self.confidence = nn.ModuleList(nn.Linear(d, 1) for _ in range(config.layers - 1))

    def encode(self, descriptors: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project descriptors and compute the rotary encoding, once for all layers.

        ``descriptors`` are (N, input_dim) and ``positions``, from `alignment.pair_positions`, (N, 2) or (N, 4). Returns
        the first states (N, d), cosines and sines (N, D / 2) of the angles b_n . p_i in Eq. (4); the b_n are learned.
        """
        with torch.autocast(positions.device.type, enabled=False):  # positions need float32
            angles = self.frequencies(positions)
            if self.config.harmonics:
                descriptors = steer(descriptors, positions[:, 3], self.config.harmonics)
            if self.config.align:
                descriptors = torch.cat([descriptors, frame_code(positions)], dim=1)
            return self.input(descriptors), angles.cos(), angles.sin()

    def forward(self, descriptors0: Tensor, positions0: Tensor, descriptors1: Tensor, positions1: Tensor) -> Tensor:
        """Return log P (N, M) after all layers."""
        x0, *rotation0 = self.encode(descriptors0, positions0)
        x1, *rotation1 = self.encode(descriptors1, positions1)
        for layer in self.layers:
            x0, x1 = layer(x0, x1, rotation0, rotation1)
        return self.heads[-1](x0, x1)


class Assignment(NamedTuple):
    """Result of a pair: matches (K, 2), their P (K,), layers run; of every point its layers and its last sigma."""

    pairs: Tensor
    scores: Tensor
    layers: int
    depth0: Tensor
    depth1: Tensor
    matchability0: Tensor
    matchability1: Tensor


class _Points:
    """The points of one image that still take part, and what is recorded of all."""

    def __init__(self, net: LightGlueNet, descriptors: Tensor, positions: Tensor) -> None:
        self.x, *self.rotation = net.encode(descriptors, positions)
        self.index = torch.arange(len(descriptors), device=descriptors.device)
        self.depth, self.sigma = torch.zeros_like(self.index), torch.zeros_like(descriptors[:, 0])
        self.confident = torch.ones_like(self.index, dtype=torch.bool)

    def record(self, layers: int, head: AssignmentHead) -> None:
        self.depth[self.index] = layers
        self.sigma[self.index] = head.logits(self.x).sigmoid()

    def drop(self, gone: Tensor) -> None:
        self.x, self.index, self.confident, *self.rotation = (
            tensor[~gone] for tensor in (self.x, self.index, self.confident, *self.rotation)
        )


@torch.inference_mode()
def match(net: LightGlueNet, config: LightGlueConfig, *inputs: tuple[Tensor, Tensor]) -> Assignment:
    """Match one pair with the thresholds of ``config``, section 3.3; ``inputs`` are two (descriptors, positions).

    Stops if more than ``exit_share`` of all points are confident, c_i = sigmoid(Linear(x_i)) > lambda_l: Eq. (9), (10).
    Else points that are confident and hardly matchable, sigma_i <= beta_l, are dropped; they still count as confident.
    """
    a, b = (_Points(net, *one) for one in inputs)
    for i, (layer, head) in enumerate(zip(net.layers, net.heads, strict=True)):
        a.x, b.x = layer(a.x, b.x, a.rotation, b.rotation)
        for image in (a, b):
            image.record(i + 1, head)
        if i + 1 == config.layers:
            break
        if config.exit_confidence is not None:
            for image in (a, b):
                image.confident = net.confidence[i](image.x)[:, 0].sigmoid() > config.exit_confidence[i]
            waiting = int((~a.confident).sum() + (~b.confident).sum())
            if 1 - waiting / (len(a.depth) + len(b.depth)) > config.exit_share:
                break
        if config.prune_matchability is not None:
            for image in (a, b):
                image.drop(image.confident & (image.sigma[image.index] <= config.prune_matchability[i]))
            if len(a.x) == 0 or len(b.x) == 0:
                break
    (rows, columns), scores = read_matches(head(a.x, b.x), config.match_threshold)
    pairs = torch.stack([a.index[rows], b.index[columns]], 1)
    return Assignment(pairs, scores, i + 1, a.depth, b.depth, a.sigma, b.sigma)


def read_matches(log_p: Tensor, threshold: float | Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns (2, K) where P is the largest of its row and its column and above the threshold, and P (K,)."""
    if 0 in log_p.shape:
        return torch.zeros(2, 0, dtype=torch.int64, device=log_p.device), log_p.new_zeros(0)
    best, columns, mutual = mutual_nearest(log_p)
    p = best.exp()
    rows = torch.nonzero(mutual & (p > threshold))[:, 0]
    return torch.stack([rows, columns[rows]]), p[rows]
