"""SuperGlue: matching as optimal transport, after attention within and across the two images.

Sarlin, DeTone, Malisiewicz and Rabinovich, "SuperGlue: Learning Feature Matching with Graph Neural Networks",
CVPR 2020 (arXiv 1911.11763). From top to bottom: the keypoint encoder (section 3.1), attentional aggregation
(3.1), the optimal matching layer (3.2), the network, and the matcher that reads matches off its result.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.fusion import fuse_linear_bn_eval

from .. import weights as weights_module
from ..errors import ArgumentError, WeightsError
from ..types import Features, Matches
from ..weights import registry
from .base import Matcher, Pair, make_matches
from .mutual import mutual_nearest

WEIGHTS_FOR = registry.WEIGHTS_FOR["superglue"]
_NOTHING = -1e5  # logarithm of the score and the mass of padding


@dataclass(frozen=True)
class SuperGlueConfig:
    """Architecture and thresholds of one SuperGlue; the defaults are the paper's.

    Attributes
    ----------
    features : tuple of str
        Extractors whose features it was trained on.
    dim : int
        Size of descriptors and of the state.
    keypoint_encoder : tuple of int
        Widths of the hidden layers of the keypoint encoder.
    heads : int
        Attention heads.
    layers : int
        Attention layers; self and cross-attention alternate, self first.
    sinkhorn_iterations : int
        Iterations of the optimal transport solver.
    match_threshold : float
        Matches with a lower assignment probability are dropped.
    """

    features: tuple[str, ...] = ("superpoint",)
    dim: int = 256
    keypoint_encoder: tuple[int, ...] = (32, 64, 128, 256)
    heads: int = 4
    layers: int = 18
    sinkhorn_iterations: int = 100
    match_threshold: float = 0.2

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ArgumentError(f"dim ({self.dim}) must be a multiple of heads ({self.heads})")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str | os.PathLike[str] = "these weights") -> SuperGlueConfig:
        """Read the configuration that a weights file carries, see `tiepoint.weights.read_config`."""
        return weights_module.read_config(cls, values, source)


class TokenNorm(nn.BatchNorm1d):
    """Batch normalisation over all tokens of (B, N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each of the C channels over B and N."""
        return super().forward(x.flatten(0, -2)).view_as(x)


class MLP(nn.Sequential):
    """Linear layers with batch normalisation and ReLU between them."""

    def __init__(self, *widths: int) -> None:
        layers: list[nn.Module] = []
        for before, after in pairwise(widths[:-1]):
            layers += [nn.Linear(before, after), TokenNorm(after), nn.ReLU()]
        last = nn.Linear(widths[-2], widths[-1])
        nn.init.zeros_(last.bias)
        super().__init__(*layers, last)

    def fold(self) -> None:
        """Merge each normalisation into the linear layer before it; exact in evaluation mode only."""
        for i, (linear, norm) in enumerate(pairwise(self)):
            if isinstance(linear, nn.Linear) and isinstance(norm, TokenNorm):
                dtype = linear.weight.dtype  # in float64, so that one rounding is all that folding costs
                self[i] = fuse_linear_bn_eval(linear.double(), norm.double()).to(dtype)
                self[i + 1] = nn.Identity()


class AttentionLayer(nn.Module):
    """Update each token by what it attends to: equations 3 to 5 of the paper."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.merge = nn.Linear(dim, dim)
        self.mlp = MLP(2 * dim, 2 * dim, dim)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """Return the new state of ``x`` (B, N, dim), which attends to ``source`` (B, M, dim)."""
        q = self._split_heads(self.query(x))
        k, v = (self._split_heads(part) for part in self.key_value(source).chunk(2, dim=-1))
        message = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)  # equation 4
        return x + self.mlp(torch.cat([x, self.merge(message)], dim=-1))  # equation 3

    def _split_heads(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, heads, N, dim / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def normalise_keypoints(keypoints: Tensor, size: Tensor) -> Tensor:
    """Move the origin to the middle of the image and divide by 0.7 of its longer side.

    ``keypoints`` are pixels (B, N, 2), ``size`` is (width, height) as (B, 2).
    """
    size = size.to(keypoints)[:, None]
    return (keypoints - size / 2) / (0.7 * size.amax(dim=-1, keepdim=True))


def log_optimal_transport(
    scores: Tensor,
    dustbin: Tensor,
    iterations: int,
    present0: Tensor | None = None,
    present1: Tensor | None = None,
) -> Tensor:
    """Assign softly, with a dustbin on each side: the optimal matching layer, section 3.2.

    Sinkhorn's algorithm, in log space: rows and columns of exp(scores) are scaled in turn until each point
    gives away a mass of 1 and each dustbin one of the number of points on the other side.

    Parameters
    ----------
    scores : tensor (B, N, M)
        How well points go together; the logits.
    dustbin : scalar tensor
        The score of going unmatched, z.
    iterations : int
        Number of Sinkhorn iterations.
    present0, present1 : bool tensors (B, N), (B, M), optional
        False for padding, which takes no part; by default there is none.

    Returns
    -------
    tensor (B, N + 1, M + 1)
        Logarithm of the assignment P, -inf for padding; its last row and column are the dustbins.
    """
    b, n, m = scores.shape
    everyone = scores.new_ones(b, max(n, m) + 1, dtype=torch.bool)
    there0, there1 = (
        everyone[:, : count + 1] if present is None else F.pad(present, (0, 1), value=True)
        for present, count in ((present0, n), (present1, m))
    )
    absent = ~(there0[:, :, None] & there1[:, None])
    padded = torch.cat([scores, dustbin.expand(b, n, 1)], dim=2)
    padded = torch.cat([padded, dustbin.expand(b, 1, m + 1)], dim=1)  # equation 8
    # Padding gets scores and masses so low that it adds exactly nothing to any sum, but finite, so that no gradient
    # becomes NaN.
    padded = padded.masked_fill(absent, _NOTHING)
    count0, count1 = (there[:, :-1].sum(1, keepdim=True).to(scores) for there in (there0, there1))
    # Masses of equation 9, divided by their total.
    total = (count0 + count1).log()
    log_a, log_b = (
        torch.cat([torch.zeros_like(there[:, :-1], dtype=scores.dtype), others.log()], dim=1)
        .sub(total)
        .masked_fill(~there, _NOTHING)
        for there, others in ((there0, count1), (there1, count0))
    )
    u, v = padded.new_zeros(b, n + 1, 1), padded.new_zeros(b, 1, m + 1)
    for _ in range(iterations):
        u = log_a[:, :, None] - torch.logsumexp(padded + v, dim=2, keepdim=True)
        v = log_b[:, None] - torch.logsumexp(padded + u, dim=1, keepdim=True)
    return (padded + u + v + total[:, :, None]).masked_fill(absent, -torch.inf)


class SuperGlueNet(nn.Module):
    """The network, trainable as it stands (with batch normalisation in the MLPs)."""

    def __init__(self, config: SuperGlueConfig) -> None:
        super().__init__()
        self.config = config
        self.keypoint_encoder = MLP(3, *config.keypoint_encoder, config.dim)
        self.layers = nn.ModuleList(AttentionLayer(config.dim, config.heads) for _ in range(config.layers))
        self.projection = nn.Linear(config.dim, config.dim)
        self.dustbin = nn.Parameter(torch.ones(()))

    def forward(
        self,
        descriptors0: Tensor,
        keypoints0: Tensor,
        scores0: Tensor,
        size0: Tensor,
        descriptors1: Tensor,
        keypoints1: Tensor,
        scores1: Tensor,
        size1: Tensor,
    ) -> Tensor:
        """Match B pairs of images with N and M keypoints each.

        Parameters
        ----------
        descriptors0, descriptors1 : tensor (B, N, dim), (B, M, dim)
            Of unit length.
        keypoints0, keypoints1 : tensor (B, N, 2), (B, M, 2)
            Pixels.
        scores0, scores1 : tensor (B, N), (B, M)
            Detection confidences.
        size0, size1 : tensor (B, 2)
            (width, height) of the images in pixels.

        Returns
        -------
        tensor (B, N + 1, M + 1)
            Logarithm of the soft assignment; its last row and column are the dustbins.
        """
        x0 = self._encode(descriptors0, keypoints0, scores0, size0)
        x1 = self._encode(descriptors1, keypoints1, scores1, size1)
        for i, layer in enumerate(self.layers):
            x0, x1 = (layer(x0, x0), layer(x1, x1)) if i % 2 == 0 else (layer(x0, x1), layer(x1, x0))
        f0, f1 = self.projection(x0), self.projection(x1)  # equation 6
        similarity = f0 @ f1.mT / self.config.dim**0.5  # equation 7
        return log_optimal_transport(similarity, self.dustbin, self.config.sinkhorn_iterations)

    def _encode(self, descriptors: Tensor, keypoints: Tensor, scores: Tensor, size: Tensor) -> Tensor:
        """Add what the position and confidence of a keypoint say to its descriptor: equation 2."""
        position = torch.cat([normalise_keypoints(keypoints, size), scores[..., None]], dim=-1)
        return descriptors + self.keypoint_encoder(position)

    def fold(self) -> None:
        """Merge the normalisations into the linear layers: faster, and the same in evaluation mode."""
        for module in self.modules():
            if isinstance(module, MLP):
                module.fold()


class SuperGlue(Matcher):
    """Match with SuperGlue.

    The official weights may be used for non-commercial research only, and loading them says so.

    Parameters
    ----------
    features : str
        Extractor of the features to match; chooses the weights.
    device : torch.device or str
        Where it runs.
    weights : str or path, optional
        ``"superglue-outdoor"`` (default), ``"superglue-indoor"``, or a file, safetensors of ours or an
        official ``.pth``.
    match_threshold : float, optional
        Least assignment probability of a match; by default what the weights say, 0.2 for the official ones.

    Raises
    ------
    ArgumentError
        No weights exist for these features.
    WeightsError
        The weights file is not on this machine, or is not SuperGlue's.
    """

    name = "superglue"

    def __init__(
        self,
        features: str = "superpoint",
        device: torch.device | str = "cpu",
        weights: str | os.PathLike[str] | None = None,
        match_threshold: float | None = None,
    ) -> None:
        super().__init__(device)
        if weights is None:
            if features not in WEIGHTS_FOR:
                raise ArgumentError(
                    f"there are no SuperGlue weights for {features!r} features, only for "
                    f"{', '.join(WEIGHTS_FOR)}; train some, give weights=FILE, or use the matcher 'nearest'"
                )
            weights = WEIGHTS_FOR[features]
        state, config = weights_module.load(weights)
        self.config = SuperGlueConfig.from_dict(config, weights)
        self.match_threshold = self.config.match_threshold if match_threshold is None else match_threshold
        if "bin_score" in state:
            try:
                state = from_upstream(state, self.config.heads)
            except (KeyError, ValueError, RuntimeError) as error:
                raise WeightsError(f"{weights}: these are not weights of a {self.config}: {error}") from error
        with weights_module.unfilled():
            net = SuperGlueNet(self.config)
        self.net = weights_module.load_into(net, state, weights)
        self.net.fold()
        self.net.to(self.device)  # after folding, because not every device has float64

    @property
    def descriptor_size(self) -> int:
        """See `Matcher.descriptor_size`."""
        return self.config.dim

    def _check(self, features: Features) -> None:
        if features.extractor not in self.config.features:
            raise ArgumentError(
                f"these SuperGlue weights match features of {', '.join(self.config.features)}, "
                f"not of {features.extractor!r}"
            )
        if features.descriptors.shape[1] != self.config.dim or features.is_binary:
            raise ArgumentError(
                f"these SuperGlue weights need float descriptors of {self.config.dim} numbers, not "
                f"{features.descriptors.shape[1]} ({features.descriptors.dtype}) of {features.extractor!r}"
            )

    @torch.inference_mode()
    def _match_many(self, pairs: Sequence[Pair]) -> list[Matches]:
        return [self._match(*pair) for pair in pairs]

    def _match(self, features0: Features, features1: Features) -> Matches:
        P = self.net(*_inputs(features0), *_inputs(features1))[0].exp()
        best, nearest, mutual = mutual_nearest(P[:-1, :-1])
        rows = torch.nonzero(mutual & (best > self.match_threshold))[:, 0]
        matches = torch.stack([rows, nearest[rows]], dim=1).cpu().numpy()
        # A point that is not in the dustbin has a partner.
        matchability0, matchability1 = ((1 - dustbin).clamp(0, 1).cpu().numpy() for dustbin in (P[:-1, -1], P[-1, :-1]))
        return replace(
            make_matches(features0, features1, matches, best[rows].clamp(max=1).cpu().numpy()),
            matchability0=matchability0,
            matchability1=matchability1,
        )


def _inputs(features: Features) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return one image's arguments to `SuperGlueNet.forward`, as a batch of one."""
    size = torch.tensor([features.image_size], device=features.device)
    return features.descriptors[None], features.keypoints[None], features.scores[None], size


def from_upstream(state: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Rename and rearrange the tensors of an official ``superglue_*.pth`` for `SuperGlueNet`.

    There the linear layers are convolutions of width 1, and an attention head has every ``heads``-th channel;
    here its channels are consecutive.
    """
    tensors = {name: value.squeeze(-1) if value.ndim == 3 else value for name, value in state.items()}
    dim = len(tensors["final_proj.bias"])
    consecutive = torch.arange(dim).view(-1, heads).T.flatten()
    new = {
        "dustbin": tensors["bin_score"],
        "projection.weight": tensors["final_proj.weight"],
        "projection.bias": tensors["final_proj.bias"],
    }
    for name, value in tensors.items():
        if name.startswith("kenc.encoder."):
            new["keypoint_encoder." + name.removeprefix("kenc.encoder.")] = value
        elif ".mlp." in name:
            new[name.removeprefix("gnn.")] = value
    for i in range(1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("gnn.layers."))):
        source, target = f"gnn.layers.{i}.attn", f"layers.{i}"
        q, k, v = ({p: tensors[f"{source}.proj.{j}.{p}"][consecutive] for p in ("weight", "bias")} for j in range(3))
        for p in ("weight", "bias"):
            new[f"{target}.query.{p}"] = q[p]
            new[f"{target}.key_value.{p}"] = torch.cat([k[p], v[p]])
        new[f"{target}.merge.weight"] = tensors[f"{source}.merge.weight"][:, consecutive]
        new[f"{target}.merge.bias"] = tensors[f"{source}.merge.bias"]
    return new
