"""LightGlue: local feature matching at light speed (Lindenberger, Sarlin, Pollefeys, ICCV 2023, arXiv 2306.13643).

The file reads like the paper, top to bottom: positions become rotary encodings, a layer is one self- and one
cross-attention unit, a head turns states into an assignment, and the matcher stops early and drops points.

Two things differ from the paper's own code, neither of them in what is computed:

- *Layout.* The points of all images of all pairs are the rows of one matrix. Every linear layer is then one
  large product, pairs of different sizes need no padding, and both kinds of adaptivity become the same cheap
  step: keeping some rows. `Layout` knows which rows belong to which image.
- *Parameters.* Query, key and value weights are stored de-interleaved, rotary pairs are split into halves, and
  the attention's output projection is folded into the next linear layer, which sees it first:
  ``W [x; Wo c + bo] + b = [Wx, Wm Wo] [x; c] + (b + Wm bo)``. `from_upstream` converts checkpoints of the
  original layout, exactly in real numbers; `to_upstream` goes back, with an identity as output projection.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import weights as weights_module
from ...errors import ArgumentError, WeightsError
from ...features.steerable import length, steer
from ...types import Features, Matches
from ..base import Matcher, Pair, make_matches


@dataclass(frozen=True)
class LightGlueConfig:
    """Architecture and thresholds of one LightGlue; stored in the metadata of its weights.

    Attributes
    ----------
    features : tuple of str
        Extractors whose features it was trained on; empty means unknown, and then only shapes are checked.
    input_dim, dim, heads, layers : int
        Descriptor size, state size, attention heads per unit, layers. 128 or 256, 256, 4, 9 in the paper.
    scale_orientation : bool
        Whether scale and orientation of a keypoint enter its positional encoding (SIFT-like features).
    log_scale : bool
        Whether the scale enters as log2 pixels: differences then do not depend on the photograph's resolution.
        The original authors' weights take it plain.
    align : bool
        Whether a pair is brought to one roll, scale and place before it is matched, see `align`; where its keypoints
        lie then joins their descriptors, see `frame_code`.
    harmonics : tuple of int
        How the descriptors turn with the image, see `tiepoint.features.steerable`; empty if they do not. They come
        turned to the direction of their keypoint, and are matched turned to that which the pair is aligned to.
    match_threshold : float
        τ: matches with assignment P below it are dropped.
    exit_confidence : tuple of layers - 1 floats, or None
        λ_l: a point is confident after layer l if its confidence exceeds this. None: no early exit.
    exit_share : float
        α: a pair stops as soon as more than this share of its points is confident.
    prune_matchability : tuple of layers - 1 floats, or None
        β_l: after layer l a confident point with at most this matchability is dropped. None: no pruning.
    overlap_threshold : float or None
        Two photographs overlap if `Matches.evidence` exceeds this. None: not calibrated.
    """

    features: tuple[str, ...] = ()
    input_dim: int = 256
    dim: int = 256
    heads: int = 4
    layers: int = 9
    scale_orientation: bool = False
    log_scale: bool = False
    align: bool = False
    harmonics: tuple[int, ...] = ()
    match_threshold: float = 0.1
    exit_confidence: tuple[float, ...] | None = None
    exit_share: float = 0.95
    prune_matchability: tuple[float, ...] | None = None
    overlap_threshold: float | None = None

    def __post_init__(self) -> None:
        if self.dim % (2 * self.heads):
            raise ArgumentError(f"dim ({self.dim}) must be a multiple of 2 * heads ({2 * self.heads})")
        if self.align and not (self.scale_orientation and self.log_scale):
            raise ArgumentError("align needs the scale and orientation of keypoints: scale_orientation and log_scale")
        if self.align and self.dim <= FRAME_CODE:
            raise ArgumentError(f"align needs dim above {FRAME_CODE}, the numbers that code a keypoint's frame")
        if self.harmonics and not (self.align and length(self.harmonics) == self.input_dim):
            raise ArgumentError(f"harmonics need align, and must make input_dim ({self.input_dim}) numbers")
        for name in ("exit_confidence", "prune_matchability"):
            schedule = getattr(self, name)
            if schedule is not None and len(schedule) != self.layers - 1:
                raise ArgumentError(f"{name} needs {self.layers - 1} values, not {len(schedule)}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str | os.PathLike[str] = "these weights") -> LightGlueConfig:
        """Read the configuration that a weights file carries, see `tiepoint.weights.read_config`."""
        return weights_module.read_config(cls, values, source)


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
    """Rotary encoding, Eq. (7) and (8): turn the pair (x_i, x_{i + D/2}) by the i-th angle."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)], dim=-1)


class Update(nn.Module):
    """State update x + MLP([x | message]), Eq. (1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.expand = nn.Linear(2 * dim, 2 * dim)
        self.norm = nn.LayerNorm(2 * dim)
        self.reduce = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor, message: Tensor) -> Tensor:
        """Return the new states (T, dim) from states and messages of that shape."""
        return x + self.reduce(F.gelu(self.norm(self.expand(torch.cat([x, message], dim=-1)))))


class SelfAttention(nn.Module):
    """Every point looks at the points of its own image, relative positions rotated into q and k, Eq. (3)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.update = Update(dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
        """Return the new states (T, dim); ``cos`` and ``sin`` are those of `LightGlueNet.encode`."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q, k = rotate(qkv[:, :2], cos, sin).unbind(1)
        return self.update(x, attend(q, k, qkv[:, 2], layout, cross=False))


class CrossAttention(nn.Module):
    """Every point looks at the points of the other image; queries serve as keys, no positions, Eq. (4)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.kv = nn.Linear(dim, 2 * dim)
        self.update = Update(dim)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Return the new states (T, dim)."""
        k, v = self.kv(x).unflatten(-1, (2, self.heads, -1)).unbind(1)
        return self.update(x, attend(k, k, v, layout, cross=True))


class Layer(nn.Module):
    """One self-attention and one cross-attention unit, on both images of all pairs at once."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.self_attention = SelfAttention(dim, heads)
        self.cross_attention = CrossAttention(dim, heads)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
        """Return the new states (T, dim)."""
        return self.cross_attention(self.self_attention(x, cos, sin, layout), layout)


class AssignmentHead(nn.Module):
    """What a layer's states say: similarity of points and matchability of each, kept apart."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, dim)
        self.matchability = nn.Linear(dim, 1)

    def logits(self, x: Tensor) -> Tensor:
        """Matchability logits (...,) of states (..., dim); Eq. (6) is their sigmoid."""
        return self.matchability(x).squeeze(-1)

    def forward(
        self, x0: Tensor, x1: Tensor, present0: Tensor | None = None, present1: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log assignment and matchability logits.

        Parameters
        ----------
        x0, x1 : float tensors (..., N, dim), (..., M, dim)
            States of the two images.
        present0, present1 : bool tensors (..., N), (..., M), both or neither
            False for padding (in training, where pairs are batched): it takes no part, and its log P is -inf.

        Returns
        -------
        log_p : (..., N, M)
            log P_ij = log σ(z_i) + log σ(z_j) + log softmax_rows(S)_ij + log softmax_columns(S)_ij, Eq. (8).
        z0, z1 : (..., N), (..., M)
            Matchability logits.
        """
        m0, m1 = self.project(x0), self.project(x1)
        s = m0 @ m1.transpose(-1, -2) / math.sqrt(m0.shape[-1])  # Eq. (5)
        z0, z1 = self.logits(x0), self.logits(x1)
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


class LightGlueNet(nn.Module):
    """The network alone: tensors in, states and assignments out. `LightGlue` matches with it.

    Parameters
    ----------
    config : LightGlueConfig
        Sizes; its thresholds are not used here.
    """

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

        Parameters
        ----------
        descriptors : (T, input_dim)
        positions : (T, 2) or (T, 4)
            From `normalise_positions`.

        Returns
        -------
        x : (T, dim)
            First states.
        cos, sin : (T, 1, 1, D / 2)
            Of the learned Fourier frequencies times the positions, Eq. (7); broadcast over (q, k) and heads.
        """
        with torch.autocast(positions.device.type, enabled=False):  # positions need float32
            angles = self.frequencies(positions)[:, None, None]
            if self.config.harmonics:
                descriptors = steer(descriptors, positions[:, 3], self.config.harmonics)
            if self.config.align:
                descriptors = torch.cat([descriptors, frame_code(positions)], dim=1)
            return self.input(descriptors), angles.cos(), angles.sin()

    def forward(self, descriptors: Tensor, positions: Tensor, layout: Layout) -> list[Tensor]:
        """Return the states (T, dim) after every layer, without adaptivity (for training)."""
        x, cos, sin = self.encode(descriptors, positions)
        states = []
        for layer in self.layers:
            x = layer(x, cos, sin, layout)
            states.append(x)
        return states


def normalise_positions(
    keypoints: Tensor,
    image_size: tuple[int, int],
    scales: Tensor | None = None,
    orientations: Tensor | None = None,
) -> Tensor:
    """Centre pixel coordinates (N, 2) and divide by half the longer side; append scale and orientation.

    Examples
    --------
    >>> normalise_positions(torch.tensor([[320.0, 240.0], [640.0, 480.0]]), (640, 480))
    tensor([[0.0000, 0.0000],
            [1.0000, 0.7500]])
    """
    size = keypoints.new_tensor(image_size)
    positions = (keypoints - size / 2) / (size.max() / 2)
    if scales is None or orientations is None:
        return positions
    return torch.cat([positions, scales[:, None], orientations[:, None]], dim=-1)


_VOTES = 512  # nearest neighbours that are asked how image 1 lies to image 0; the most distinct ones
_ROLL, _OCTAVES = 0.2, 0.5  # standard deviations of what a right match says of roll (radians) and scale
_SHIFT = 0.15  # the same of the place, in half long sides
_UPRIGHT = 4.0  # votes that every pair has for "neither rolled nor scaled"


def align(
    descriptors0: Tensor,
    descriptors1: Tensor,
    positions0: Tensor,
    positions1: Tensor,
    long_side0: float,
    long_side1: float,
) -> tuple[Tensor, Tensor]:
    """Bring a pair to one roll, scale and place, before anything is matched: then true matches look alike in both.

    Each mutual nearest neighbour says how image 1 lies to image 0: by its orientations how it is rolled, by its scales
    how much larger it is, by its places where it has gone. The mode of these votes, weighted by distinctness, is right
    long before most neighbours are (weak geometric consistency, Jégou et al., ECCV 2008). Two views of a scene are not
    similar to each other, so this is a hint and no more; what it is worth is learned.

    Parameters
    ----------
    descriptors0, descriptors1 : (N, D), (M, D)
        Unit vectors that do not change when the camera rolls.
    positions0, positions1 : (N, 4), (M, 4)
        From `normalise_positions`, with log2 of the scale in pixels.
    long_side0, long_side1 : float
        Of the images, pixels.

    Returns
    -------
    (N, 4), (M, 4)
        Image 1 as image 0 would show it; the unit of length is half the long side of the larger one.

    Examples
    --------
    >>> d = F.normalize(torch.randn(50, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    >>> p = torch.cat([torch.linspace(-1, 1, 100).view(50, 2), torch.ones(50, 2)], 1)
    >>> moved = p + torch.tensor([0.3, -0.2, 0, 0])
    >>> a, b = align(d, d, p, moved, 640, 640)
    >>> torch.allclose(a, b, atol=1e-3)
    True
    """
    if min(len(descriptors0), len(descriptors1)) < 2:
        roll = octaves = positions0.new_zeros(())
        shift = positions0.new_zeros(2)
        i = j = torch.zeros(0, dtype=torch.long, device=positions0.device)
        share = positions0.new_zeros(0)
    else:
        i, j, weight = _neighbours(descriptors0, descriptors1)
        roll, octaves, share = _roll_and_scale(positions1[j, 2:] - positions0[i, 2:], weight)
    unit1 = long_side1 * torch.exp2(-octaves)
    unit = torch.clamp(unit1, min=long_side0)
    cos, sin = roll.cos(), roll.sin()
    x, y, size, angle = positions1.unbind(1)
    turned = torch.stack([cos * x + sin * y, cos * y - sin * x], 1) * (unit1 / unit)
    place = positions0[:, :2] * (long_side0 / unit)
    if len(i):
        shift = _mode(turned[j] - place[i], share)
    return (
        torch.cat([place, positions0[:, 2:]], 1),
        torch.cat([turned - shift, torch.stack([size - octaves, angle - roll], 1)], 1),
    )


def _neighbours(descriptors0: Tensor, descriptors1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Most distinct nearest neighbours: indices (K,), (K,), and weights (K,), zero where they are not mutual."""
    similarity = descriptors0 @ descriptors1.T
    (best, second), nearest = similarity.topk(2, dim=1)[0].unbind(1), similarity.argmax(1)
    mutual = similarity.argmax(0)[nearest] == torch.arange(len(nearest), device=nearest.device)
    distances = (2 - 2 * torch.stack([best, second])).clamp(min=1e-6).sqrt()
    weight = torch.where(mutual, 1 - distances[0] / distances[1], 0)  # how much nearer than the second nearest
    weight, i = weight.topk(min(_VOTES, len(weight)))
    return i, nearest[i], weight


def _roll_and_scale(votes: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mode of votes (K, 2), octaves and radians: roll, octaves, and how much each vote agrees (K,)."""
    votes = torch.cat([votes, votes.new_zeros(1, 2)])
    weight = torch.cat([weight, _UPRIGHT * weight.mean()[None]])
    zoom, turn = (votes - votes[:, None]).unbind(2)
    turn = torch.remainder(turn + math.pi, 2 * math.pi) - math.pi
    support = torch.exp(-0.5 * ((turn / _ROLL) ** 2 + (zoom / _OCTAVES) ** 2)) * weight
    mode = support.sum(1).argmax()
    share = support[mode] / support[mode].sum().clamp(min=1e-9)
    octaves = votes[mode, 0] + (zoom[mode] * share).sum()
    roll = votes[mode, 1] + (turn[mode] * share).sum()
    return torch.remainder(roll + math.pi, 2 * math.pi) - math.pi, octaves, share[:-1]


def _mode(votes: Tensor, weight: Tensor) -> Tensor:
    """Mode of weighted votes (K, 2) for a shift."""
    support = torch.exp(-0.5 * (torch.cdist(votes, votes) / _SHIFT) ** 2) * weight
    share = support[support.sum(1).argmax()]
    return (votes * share[:, None]).sum(0) / share.sum().clamp(min=1e-9)


# What `frame_code` takes cosine and sine of: waves over the picture, in radians for a half long side, in four
# directions; one and two turns of the orientation; radians for an octave of scale.
_WAVES = torch.tensor(
    [
        [wave * math.cos(direction), wave * math.sin(direction), 0.0, 0.0]
        for wave in (1.0, 2.2, 5.0)
        for direction in (0.0, math.pi / 4, math.pi / 2, 3 * math.pi / 4)
    ]
    + [[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 2.0], [0.0, 0.0, 0.8, 0.0], [0.0, 0.0, 1.6, 0.0]],
    dtype=torch.float32,  # whatever the user has chosen as defaults before this is imported
    device="cpu",
)
# As much for orientation and scale together as for two octaves.
_WAVE_WEIGHTS = torch.tensor([1.0] * 12 + [2.0] * 4, dtype=torch.float32, device="cpu")
FRAME_CODE = 2 * len(_WAVES)


def frame_code(positions: Tensor) -> Tensor:
    """Write aligned places, scales and orientations (T, 4) as unit vectors (T, `FRAME_CODE`).

    The inner product of two says how well two keypoints agree: a sum of cosines of their differences, largest where
    there are none. So a network that begins with inner products of descriptors can weigh geometry from the start.

    Examples
    --------
    >>> code = frame_code(torch.tensor([[0.0, 0, 3, 1], [0.1, 0, 3, 1.2], [0.9, 0, 1, 4]]))
    >>> (code @ code.T)[0].round(decimals=2)
    tensor([1.0000, 0.9700, 0.0400])
    """
    angles = positions @ _WAVES.to(positions).T
    weights = (_WAVE_WEIGHTS / _WAVE_WEIGHTS.sum()).sqrt().to(positions)
    return torch.cat([angles.cos() * weights, angles.sin() * weights], 1)


# The registry names of the weights that match each extractor's features.
WEIGHTS_FOR = {
    "cairn": "cairn-lightglue",
    "sift": "sift-lightglue",
    "superpoint": "superpoint-lightglue",
    "superpoint-open": "superpoint-lightglue",
    "aliked-n16": "aliked-lightglue",
    "aliked-n16rot": "aliked-lightglue",
    "aliked-n32": "aliked-lightglue",
    "disk": "disk-lightglue",
    "doghardnet": "doghardnet-lightglue",
    "xfeat": "xfeat-lighterglue",
}


class LightGlue(Matcher):
    """Match with LightGlue, adapting depth and width to each pair.

    Parameters
    ----------
    features : str, optional
        Extractor of the features to match; chooses the weights (see `WEIGHTS_FOR`). By default the one that the weights
        were trained on, without weights SIFT.
    device : torch.device or str
        Where it runs.
    weights : str or path, optional
        Another name from the registry, or a file: safetensors of ours or a ``.pth`` of the original authors.
    adaptive : bool
        False runs all layers on all points, whatever the weights' thresholds say.
    match_threshold : float, optional
        Least assignment P of a match; the weights know a default.
    precision : "float32" or "bfloat16"
        Of the layers; states and read-out stay in float32. bfloat16 is faster on GPUs and on CPUs that have it
        (AVX-512-BF16, AMX) and moves matches near the threshold.

    Raises
    ------
    ArgumentError
        No weights are known for these features, or those given are for others; or an unknown precision.
    WeightsError
        The file is not on this machine, is damaged, or holds another architecture.

    Examples
    --------
    >>> import tiepoint as tp
    >>> matcher = tp.matchers.load("lightglue", features="aliked-n16")  # doctest: +SKIP
    >>> matches = matcher(features0, features1)  # doctest: +SKIP
    """

    name = "lightglue"
    # Tokens processed together: enough to fill the machine, few enough to stay in its caches or memory.
    tokens_at_once: ClassVar[dict[str, int]] = {"cpu": 4096, "cuda": 1 << 17}

    def __init__(
        self,
        features: str | None = None,
        device: torch.device | str = "cpu",
        weights: str | None = None,
        adaptive: bool = True,
        match_threshold: float | None = None,
        precision: str = "float32",
    ) -> None:
        super().__init__(device)
        if precision not in ("float32", "bfloat16"):
            raise ArgumentError(f"precision must be float32 or bfloat16, not {precision!r}")
        if weights is None:
            features = features or "sift"
            if features not in WEIGHTS_FOR:
                raise ArgumentError(
                    f"there are no LightGlue weights for {features!r} features, only for "
                    f"{', '.join(WEIGHTS_FOR)}; train some, give weights=FILE, or use the matcher 'nearest'"
                )
            weights = WEIGHTS_FOR[features]
        state, config = weights_module.load(weights)
        try:
            self.config = LightGlueConfig.from_dict(config or shape_of_upstream(state), weights)
            if any(name.endswith("Wqkv.weight") for name in state):
                state = from_upstream(state, self.config.heads)
        except (KeyError, IndexError, ValueError, RuntimeError, ZeroDivisionError) as error:
            raise WeightsError(f"{weights}: these are not weights of a LightGlue: {error}") from error
        self.features = self.config.features or tuple(f for f, name in WEIGHTS_FOR.items() if name == weights)
        self.adaptive = adaptive
        self.precision = precision
        self.match_threshold = self.config.match_threshold if match_threshold is None else match_threshold
        if features and self.config.features and features not in self.config.features:
            raise ArgumentError(f"the weights {weights} match {', '.join(self.config.features)}, not {features}")
        with torch.device("meta"):
            net = LightGlueNet(self.config)
        self.net = weights_module.load_into(net, state, weights)
        self.net.to(self.device)

    def _check(self, features: Features) -> None:
        if self.features and features.extractor not in self.features:
            raise ArgumentError(
                f"these LightGlue weights match features of {', '.join(self.features)}, not of {features.extractor!r}"
            )
        if features.descriptors.shape[1] != self.config.input_dim or features.is_binary:
            raise ArgumentError(
                f"these LightGlue weights need float descriptors of {self.config.input_dim} numbers, not "
                f"{features.descriptors.shape[1]} ({features.descriptors.dtype}) of {features.extractor!r}"
            )
        if self.config.scale_orientation and (features.scales is None or features.orientations is None):
            raise ArgumentError("these LightGlue weights need the scale and orientation of each keypoint")

    def _positions(self, features: Features) -> Tensor:
        if not self.config.scale_orientation:
            return normalise_positions(features.keypoints, features.image_size)
        assert features.scales is not None  # see _check
        scales = features.scales.log2() if self.config.log_scale else features.scales
        return normalise_positions(features.keypoints, features.image_size, scales, features.orientations)

    def _aligned_positions(self, features0: Features, features1: Features) -> tuple[Tensor, Tensor]:
        p0, p1 = self._positions(features0), self._positions(features1)
        if not self.config.align:
            return p0, p1
        descriptors = features0.descriptors, features1.descriptors
        return align(*descriptors, p0, p1, max(features0.image_size), max(features1.image_size))

    @property
    def overlap_threshold(self) -> float | None:
        """See `Matcher.overlap_threshold`; the weights know it."""
        return self.config.overlap_threshold

    def match_many(self, pairs: Sequence[Pair]) -> list[Matches]:
        """Match many pairs, see `Matcher.match_many`; calibrated weights also tell which pairs overlap."""
        results = super().match_many(pairs)
        threshold = self.overlap_threshold
        return results if threshold is None else [replace(m, overlaps=m.evidence > threshold) for m in results]

    def _match_many(self, pairs: Sequence[Pair]) -> list[Matches]:
        # Pairs of similar size share a call; the order of the results is the caller's.
        order = sorted(range(len(pairs)), key=lambda p: len(pairs[p][0]) + len(pairs[p][1]))
        limit = self.tokens_at_once.get(self.device.type, 1 << 14)
        results: dict[int, Matches] = {}
        chunk: list[int] = []
        tokens = 0
        for p in order:
            size = len(pairs[p][0]) + len(pairs[p][1])
            if chunk and tokens + size > limit:
                results.update(zip(chunk, self._match_together([pairs[q] for q in chunk]), strict=True))
                chunk, tokens = [], 0
            chunk.append(p)
            tokens += size
        results.update(zip(chunk, self._match_together([pairs[q] for q in chunk]), strict=True))
        return [results[p] for p in range(len(pairs))]

    @torch.inference_mode()
    def _match_together(self, pairs: Sequence[Pair]) -> list[Matches]:
        """Run pairs through the layers side by side; each leaves when it is done, as if it were alone."""
        images = [image for pair in pairs for image in pair]
        everything = Layout([len(image) for image in images])
        tokens = _Tokens(
            *self.net.encode(
                torch.cat([image.descriptors for image in images]),
                torch.cat([positions for pair in pairs for positions in self._aligned_positions(*pair)]),
            ),
            torch.arange(sum(everything.lengths), device=self.device),
            everything,
        )
        # Of every keypoint: how many layers it took part in, and its matchability in the last of them.
        depth = torch.zeros_like(tokens.keypoint)
        matchability = torch.zeros(len(depth), device=self.device)
        found: dict[int, tuple[Tensor, Tensor, int]] = {}  # pair -> keypoints (K, 2), scores (K,), layers run
        playing = list(range(len(pairs)))

        def leave(i: int, tokens: _Tokens, gone: Tensor) -> None:
            depth[tokens.keypoint[gone]] = i + 1
            matchability[tokens.keypoint[gone]] = self._head(i).logits(tokens.x[gone]).sigmoid()

        for i, layer in enumerate(self.net.layers):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                tokens.x = layer(tokens.x, tokens.cos, tokens.sin, tokens.layout)
            last = i == self.config.layers - 1
            if not (last or self.adaptive):
                continue
            done = torch.full((len(playing),), last, device=self.device)
            if not last:
                points = torch.tensor([sum(map(len, pairs[p])) for p in playing], device=self.device)
                done, prune = self._adapt(i, tokens, points)
                if prune.any():
                    leave(i, tokens, prune)
                    tokens = tokens.select(~prune)
                    # An image that lost all its points ends its pair: nothing is left to match.
                    done |= torch.tensor(tokens.layout.lengths, device=self.device).view(-1, 2).amin(1) == 0
            if done.any():
                ending = done.tolist()
                states, keypoints = tokens.layout.split(tokens.x), tokens.layout.split(tokens.keypoint)
                for k, p in enumerate(playing):
                    if ending[k]:
                        two = slice(2 * k, 2 * k + 2)
                        found[p] = (*self._read_out(self._head(i), *states[two], *keypoints[two]), i + 1)
                gone = done[tokens.layout.owners(self.device) // 2]
                leave(i, tokens, gone)
                tokens = tokens.select(~gone, [not ending[image // 2] for image in range(2 * len(ending))])
                playing = [p for k, p in enumerate(playing) if not ending[k]]
            if not playing:
                break

        first = torch.tensor([0, *everything.lengths]).cumsum(0).tolist()  # keypoint number that starts an image
        depths, matchabilities = (everything.split(t.cpu()) for t in (depth, matchability))
        results = []
        for p, pair in enumerate(pairs):
            index, score, layers = found[p]
            index = index.cpu() - torch.tensor(first[2 * p : 2 * p + 2])
            matches = make_matches(*pair, index.numpy(), score.cpu().numpy())
            results.append(
                replace(
                    matches,
                    stop_layer=layers,
                    prune_layer0=depths[2 * p].numpy(),
                    prune_layer1=depths[2 * p + 1].numpy(),
                    matchability0=matchabilities[2 * p].numpy(),
                    matchability1=matchabilities[2 * p + 1].numpy(),
                )
            )
        return results

    def _head(self, i: int) -> AssignmentHead:
        return cast(AssignmentHead, self.net.heads[i])

    def _adapt(self, i: int, tokens: _Tokens, points: Tensor) -> tuple[Tensor, Tensor]:
        """Decide after layer i which pairs are done and which tokens of the others are pruned (section 3.3).

        ``points`` are the keypoints that each pair began with: a pruned point counts as confident, for it was, or it
        would not have been pruned.
        """
        config = self.config
        pair = tokens.layout.owners(self.device) // 2
        done = torch.zeros(len(points), dtype=torch.bool, device=self.device)
        prune = torch.zeros_like(pair, dtype=torch.bool)
        unsure = torch.zeros_like(prune)
        if config.exit_confidence is not None:
            confidence = self.net.confidence[i](tokens.x).squeeze(-1).sigmoid()
            waiting = torch.bincount(pair[confidence < config.exit_confidence[i]], minlength=len(points))
            done = 1 - waiting / points > config.exit_share
            unsure = confidence <= config.exit_confidence[i]
        if config.prune_matchability is not None:
            prune = self._head(i).logits(tokens.x).sigmoid() <= config.prune_matchability[i]
            prune &= ~unsure & ~done[pair]  # a pair that is done is read out as it stands
        return done, prune

    def _read_out(
        self, head: AssignmentHead, x0: Tensor, x1: Tensor, keypoints0: Tensor, keypoints1: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mutual arg-max of the assignment above the threshold -> keypoint numbers (K, 2), scores (K,)."""
        if len(x0) == 0 or len(x1) == 0:
            return keypoints0.new_zeros(0, 2), x0.new_zeros(0)
        log_p, _, _ = head(x0, x1)
        best, j = log_p.max(1)
        score = best.exp()
        mutual = log_p.argmax(0)[j] == torch.arange(len(j), device=j.device)
        chosen = mutual & (score > self.match_threshold)
        return torch.stack([keypoints0[chosen], keypoints1[j[chosen]]], dim=1), score[chosen]


@dataclass
class _Tokens:
    """The points still in play: states (T, dim), rotary encoding, keypoint numbers (T,), and whose they are."""

    x: Tensor
    cos: Tensor
    sin: Tensor
    keypoint: Tensor
    layout: Layout

    def select(self, keep: Tensor, images: Sequence[bool] | None = None) -> _Tokens:
        """Keep some tokens (T,), of some images only."""
        counts = torch.bincount(self.layout.owners(keep.device)[keep], minlength=len(self.layout.lengths)).tolist()
        if images is not None:
            counts = [count for count, stays in zip(counts, images, strict=True) if stays]
        return _Tokens(self.x[keep], self.cos[keep], self.sin[keep], self.keypoint[keep], Layout(counts))


def from_upstream(state: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Convert a checkpoint of the original authors, or of LighterGlue, to `LightGlueNet`'s parameters.

    Understands the current key names, the older ones (``self_attn.0.`` for ``transformers.0.self_attn.``) and
    the prefix ``matcher.`` of XFeat's file. Products of weights are formed, and returned, in float64.
    """
    old = {name.removeprefix("matcher."): tensor.double() for name, tensor in state.items()}
    for kind in ("self_attn", "cross_attn"):
        old = {
            f"transformers.{name.split('.')[1]}.{kind}.{name.split('.', 2)[2]}" if name.startswith(kind) else name: t
            for name, t in old.items()
        }
    new = {"frequencies.weight": old["posenc.Wr.weight"]}
    for part in ("weight", "bias"):
        if f"input_proj.{part}" in old:
            new[f"input.{part}"] = old[f"input_proj.{part}"]

    def fold_update(source: str, output: str, target: str) -> None:
        """Fold the output projection of an attention unit into the first linear layer of its update."""
        w, b = old[f"{source}.ffn.0.weight"], old[f"{source}.ffn.0.bias"]
        w_x, w_message = w.chunk(2, dim=1)
        new[f"{target}.expand.weight"] = torch.cat([w_x, w_message @ old[f"{source}.{output}.weight"]], dim=1)
        new[f"{target}.expand.bias"] = b + w_message @ old[f"{source}.{output}.bias"]
        for part in ("weight", "bias"):
            new[f"{target}.norm.{part}"] = old[f"{source}.ffn.1.{part}"]
            new[f"{target}.reduce.{part}"] = old[f"{source}.ffn.3.{part}"]

    layers = 1 + max(int(name.split(".")[1]) for name in old if name.startswith("transformers."))
    for i in range(layers):
        source, target = f"transformers.{i}", f"layers.{i}"
        for part in ("weight", "bias"):
            # Rows of Wqkv are ordered (head, D, qkv); rotary pairs are neighbours in D.
            qkv = old[f"{source}.self_attn.Wqkv.{part}"].unflatten(0, (heads, -1, 3))
            q, k, v = qkv.unbind(2)
            q, k = (t.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2) for t in (q, k))
            new[f"{target}.self_attention.qkv.{part}"] = torch.stack([q, k, v]).flatten(0, 2)
            new[f"{target}.cross_attention.kv.{part}"] = torch.cat(
                [old[f"{source}.cross_attn.to_{name}.{part}"] for name in ("qk", "v")]
            )
            new[f"heads.{i}.project.{part}"] = old[f"log_assignment.{i}.final_proj.{part}"]
            new[f"heads.{i}.matchability.{part}"] = old[f"log_assignment.{i}.matchability.{part}"]
            if i < layers - 1:
                new[f"confidence.{i}.{part}"] = old[f"token_confidence.{i}.token.0.{part}"]
        fold_update(f"{source}.self_attn", "out_proj", f"{target}.self_attention.update")
        fold_update(f"{source}.cross_attn", "to_out", f"{target}.cross_attention.update")
    return new


def shape_of_upstream(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the sizes of a checkpoint of the original authors, which holds no configuration, for `LightGlueConfig`."""
    shapes = {name.removeprefix("matcher."): tensor.shape for name, tensor in state.items()}
    if "posenc.Wr.weight" not in shapes or "log_assignment.0.final_proj.weight" not in shapes:
        return {}
    waves, numbers = shapes["posenc.Wr.weight"]
    dim = shapes["log_assignment.0.final_proj.weight"][0]
    return {
        "input_dim": shapes.get("input_proj.weight", (dim, dim))[1],
        "dim": dim,
        "heads": dim // (2 * waves),
        "layers": sum(name.startswith("log_assignment.") and name.endswith("final_proj.weight") for name in shapes),
        "scale_orientation": numbers == 4,
    }


def to_upstream(state: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Convert `LightGlueNet`'s parameters to the original layout, for the original authors' code and hloc.

    The folded output projection becomes an identity; what the network computes is the same.
    """
    new = {"posenc.Wr.weight": state["frequencies.weight"]}
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers."))
    for i in range(layers):
        source, target = f"layers.{i}", f"transformers.{i}"
        for part in ("weight", "bias"):
            if f"input.{part}" in state:
                new[f"input_proj.{part}"] = state[f"input.{part}"]
            q, k, v = state[f"{source}.self_attention.qkv.{part}"].unflatten(0, (3, heads, -1)).unbind(0)
            q, k = (t.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2) for t in (q, k))
            new[f"{target}.self_attn.Wqkv.{part}"] = torch.stack([q, k, v], dim=2).flatten(0, 2)
            kv = state[f"{source}.cross_attention.kv.{part}"].chunk(2)
            new[f"{target}.cross_attn.to_qk.{part}"], new[f"{target}.cross_attn.to_v.{part}"] = kv
            new[f"log_assignment.{i}.final_proj.{part}"] = state[f"heads.{i}.project.{part}"]
            new[f"log_assignment.{i}.matchability.{part}"] = state[f"heads.{i}.matchability.{part}"]
            if i < layers - 1:
                new[f"token_confidence.{i}.token.0.{part}"] = state[f"confidence.{i}.{part}"]
            for unit, output in (("self", "out_proj"), ("cross", "to_out")):
                update = f"{source}.{unit}_attention.update"
                new[f"{target}.{unit}_attn.ffn.0.{part}"] = state[f"{update}.expand.{part}"]
                new[f"{target}.{unit}_attn.ffn.1.{part}"] = state[f"{update}.norm.{part}"]
                new[f"{target}.{unit}_attn.ffn.3.{part}"] = state[f"{update}.reduce.{part}"]
                dim = len(state[f"{update}.reduce.bias"])
                identity = torch.eye(dim) if part == "weight" else torch.zeros(dim)
                new[f"{target}.{unit}_attn.{output}.{part}"] = identity
    return new
