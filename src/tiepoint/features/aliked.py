"""ALIKED: a lighter keypoint and descriptor extraction network via deformable transformation.

Zhao, Wu, Chen, Chen, Xu, Li, IEEE Transactions on Instrumentation and Measurement 2023, arXiv 2304.03608. A
small encoder (two plain, two deformable blocks) gives features at 1, 1/2, 1/8 and 1/32 of full size. A score
head makes one score map from them; the descriptor head looks, for each keypoint, at M places of its own choice.

The authors' code concatenates the four levels at full size: 128 channels, normalised, for every pixel. Two
things make that unnecessary, and extraction about twice as fast, with the same result:

- the score head begins with a 1x1 convolution, which may as well act before the levels are enlarged (both are
  linear, they commute), where it leaves 8 channels instead of 128;
- the descriptor head reads the features of few pixels, so only those are interpolated and normalised.

Deformable convolution is `grid_sample` and a matrix product, which needs no compiled operator.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import weights as weights_module
from ..errors import WeightsError
from ..types import Features
from .base import Extractor, ExtractorOptions, best
from .dense import peaks, sample, to_tensor

STRIDE = 32  # of the coarsest level: images are padded to multiples of it
RADIUS = 2  # of the window in which a score must be the highest, and which then refines its position
TEMPERATURE = 0.1  # of the soft-argmax there
DESCRIBED_AT_ONCE = 512  # keypoints; bounds the memory of the descriptor head


def deform_conv2d(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    """Convolve with a kernel each of whose taps is displaced, at each pixel, by an offset of its own.

    Dai et al., Deformable Convolutional Networks, ICCV 2017; stride 1, zero padding that keeps the size.

    Parameters
    ----------
    x : tensor (1, C, H, W)
        Beyond its border are zeros.
    offset : tensor (1, 2 K², H, W)
        (dy, dx) in pixels of each tap, in row-major order of the K x K taps.
    weight : tensor (D, C, K, K)
        The kernel, K odd.

    Returns
    -------
    tensor (1, D, H, W)

    Examples
    --------
    With offsets of zero it is a plain convolution:

    >>> import torch
    >>> x, w = torch.arange(12.0).view(1, 1, 3, 4), torch.ones(1, 1, 3, 3)
    >>> plain = torch.nn.functional.conv2d(x, w, padding=1)
    >>> torch.allclose(deform_conv2d(x, torch.zeros(1, 18, 3, 4), w), plain)
    True
    """
    channels, height, width = x.shape[1:]
    kernel = weight.shape[-1]
    taps = torch.arange(kernel, device=x.device) - kernel // 2
    by_tap = offset.reshape(kernel, kernel, 2, height, width)
    y = by_tap[:, :, 0] + taps[:, None, None, None] + torch.arange(height, device=x.device)[:, None]
    x_ = by_tap[:, :, 1] + taps[None, :, None, None] + torch.arange(width, device=x.device)
    positions = torch.stack([(2 * x_ + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    displaced = F.grid_sample(x, positions.view(1, -1, width, 2), align_corners=False)
    columns = displaced.reshape(channels * kernel**2, height * width)
    return (weight.reshape(len(weight), -1) @ columns).view(1, -1, height, width)


class _DeformableConv(nn.Module):
    """A deformable convolution that predicts its offsets from its input."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.offset_conv = nn.Conv2d(c_in, 2 * 9, 3, padding=1)
        self.regular_conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        limit = max(x.shape[2:]) / 4
        return deform_conv2d(x, self.offset_conv(x).clamp(-limit, limit), self.regular_conv.weight)


def _plain_conv(c_in: int, c_out: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)


class _Block(nn.Module):
    """Two convolutions with batch normalisation and SELU; all but the first block have a skip connection."""

    def __init__(self, c_in: int, c_out: int, deformable: bool, skip: bool) -> None:
        super().__init__()
        conv = _DeformableConv if deformable else _plain_conv
        self.conv1, self.bn1 = conv(c_in, c_out), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = conv(c_out, c_out), nn.BatchNorm2d(c_out)
        self.downsample = nn.Conv2d(c_in, c_out, 1) if skip else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.selu(self.bn1(self.conv1(x)))))
        return F.selu(y if self.downsample is None else y + self.downsample(x))


class _DescriptorHead(nn.Module):
    """Sparse deformable descriptor head (SDDH): M sample positions for each keypoint, aggregated.

    Parameters
    ----------
    dim : int
        Channels of the features, and size of the descriptors.
    samples : int
        M.
    """

    def __init__(self, dim: int, samples: int) -> None:
        super().__init__()
        self.offset_conv = nn.Sequential(
            nn.Conv2d(dim, 2 * samples, 3), nn.SELU(), nn.Conv2d(2 * samples, 2 * samples, 1)
        )
        self.sf_conv = nn.Conv2d(dim, dim, 1, bias=False)
        self.agg_weights = nn.Parameter(torch.empty(samples, dim, dim))

    def forward(self, features: _Pyramid, keypoints: Tensor) -> Tensor:
        """Describe keypoints (N, 2): unit descriptors (N, dim)."""
        n, dim = len(keypoints), self.sf_conv.in_channels
        size = keypoints.new_tensor(features.size)
        # the 3x3 pixels around each keypoint say where to look
        steps = torch.arange(-1, 2, device=keypoints.device)
        around = torch.cartesian_prod(steps, steps).flip(1)  # row by row, as (x, y)
        centres = keypoints.long().clamp(min=1).minimum(size.long() - 2)
        patches = features.at((centres[:, None] + around).view(-1, 2))
        offsets = self.offset_conv(patches.view(n, 3, 3, dim).permute(0, 3, 1, 2))
        limit = float(size.max()) / 4
        offsets = offsets.clamp(-limit, limit).view(n, 2, len(self.agg_weights)).transpose(1, 2)
        looked_at = features.between((keypoints[:, None] + offsets).reshape(-1, 2))
        looked_at = F.selu(F.linear(looked_at, self.sf_conv.weight[:, :, 0, 0]))
        return F.normalize(looked_at.view(n, len(self.agg_weights) * dim) @ self.agg_weights.flatten(0, 1), dim=1)


class _Pyramid:
    """Features of all levels, read as if they were enlarged to full size, concatenated and normalised.

    Parameters
    ----------
    levels : tensors (1, C, H / s, W / s)
        Features of the padded image; the corner pixels of all levels lie on each other.
    size : (int, int)
        (width, height) of the image without padding.
    padding : (int, int)
        Columns and rows of padding at the left and at the top.
    """

    def __init__(self, levels: list[Tensor], size: tuple[int, int], padding: tuple[int, int]) -> None:
        self.levels, self.size, self.padding = levels, size, padding

    def at(self, pixels: Tensor) -> Tensor:
        """Return the unit features (N, dim) of pixels (N, 2), int64 (x, y)."""
        height, width = self.levels[0].shape[2:]
        edge = torch.tensor([width - 1, height - 1], device=pixels.device)
        positions = 2 * (pixels + torch.tensor(self.padding, device=pixels.device)) / edge - 1
        values = [F.grid_sample(level, positions[None, None], align_corners=True)[0, :, 0] for level in self.levels]
        return F.normalize(torch.cat(values).T, dim=1)

    def between(self, positions: Tensor) -> Tensor:
        """Return features (N, dim) at positions (N, 2) between pixels, interpolated; zero outside."""
        first = positions.floor()
        part = positions - first
        limit = torch.tensor(self.size, device=positions.device) - 1
        result = positions.new_zeros(())
        for dx in (0, 1):
            for dy in (0, 1):
                pixel = first.long() + torch.tensor([dx, dy], device=positions.device)
                inside = ((pixel >= 0) & (pixel <= limit)).all(dim=1)
                share = (part[:, 0] if dx else 1 - part[:, 0]) * (part[:, 1] if dy else 1 - part[:, 1])
                values = self.at(pixel.clamp(min=0).minimum(limit))
                result = result + (share * inside)[:, None] * values
        return result


class ALIKEDNet(nn.Module):
    """The network.

    Parameters
    ----------
    widths : four ints
        Channels of the four blocks.
    dim : int
        Size of the descriptors.
    samples : int
        Sample positions for each descriptor, M.
    """

    def __init__(self, widths: tuple[int, int, int, int], dim: int, samples: int) -> None:
        super().__init__()
        c1, c2, c3, c4 = widths
        self.block1 = _Block(3, c1, deformable=False, skip=False)
        self.block2 = _Block(c1, c2, deformable=False, skip=True)
        self.block3 = _Block(c2, c3, deformable=True, skip=True)
        self.block4 = _Block(c3, c4, deformable=True, skip=True)
        self.conv1, self.conv2, self.conv3, self.conv4 = (nn.Conv2d(c, dim // 4, 1, bias=False) for c in widths)
        self.score_head = nn.Sequential(
            nn.Conv2d(dim, 8, 1, bias=False),
            nn.SELU(),
            _plain_conv(8, 4),
            nn.SELU(),
            _plain_conv(4, 4),
            nn.SELU(),
            _plain_conv(4, 1),
        )
        self.desc_head = _DescriptorHead(dim, samples)

    @classmethod
    def from_state(cls, state: dict[str, Tensor], source: str | os.PathLike[str]) -> ALIKEDNet:
        """Build the network that these weights fit: their shapes say all there is to choose."""
        try:
            c1, c2, c3, c4 = (len(state[f"block{i}.bn2.weight"]) for i in range(1, 5))
            samples, dim = state["desc_head.agg_weights"].shape[:2]
        except (KeyError, ValueError) as error:
            raise WeightsError(f"{source}: these are not weights of ALIKED: no {error}") from error
        return weights_module.load_into(cls((c1, c2, c3, c4), dim, samples), state, source)

    def pyramid(self, image: Tensor) -> _Pyramid:
        """Return the features of an image (1, 3, H, W) in [0, 1]."""
        height, width = image.shape[2:]
        extra_x, extra_y = -width % STRIDE, -height % STRIDE
        left, top = extra_x // 2, extra_y // 2
        padded = F.pad(image, (left, extra_x - left, top, extra_y - top), mode="replicate")
        x1 = self.block1(padded)
        x2 = self.block2(F.avg_pool2d(x1, 2))
        x3 = self.block3(F.avg_pool2d(x2, 4))
        x4 = self.block4(F.avg_pool2d(x3, 4))
        convs = (self.conv1, self.conv2, self.conv3, self.conv4)
        levels = [F.selu(conv(x)) for conv, x in zip(convs, (x1, x2, x3, x4), strict=True)]
        return _Pyramid(levels, (width, height), (left, top))

    def scores(self, features: _Pyramid) -> Tensor:
        """Return the score (H, W) of each pixel."""
        first = next(self.score_head.parameters()).chunk(4, dim=1)  # one kernel for each level
        mixed = sum(
            F.interpolate(F.conv2d(level, w), features.levels[0].shape[2:], mode="bilinear", align_corners=True)
            for level, w in zip(features.levels, first, strict=True)
        )
        (width, height), (left, top) = features.size, features.padding
        return self.score_head[1:](mixed).sigmoid()[0, 0, top : top + height, left : left + width]

    def describe(self, features: _Pyramid, keypoints: Tensor) -> Tensor:
        """Return the unit descriptors (N, dim) of keypoints (N, 2), in pixels."""
        parts = [self.desc_head(features, some) for some in keypoints.split(DESCRIBED_AT_ONCE)]
        return torch.cat(parts)


def refine(scores: Tensor, positions: Tensor) -> Tensor:
    """Move peaks (N, 2) to the soft-argmax of the scores in the window around each."""
    steps = torch.arange(-RADIUS, RADIUS + 1, device=scores.device)
    around = torch.cartesian_prod(steps, steps).flip(1)
    x, y = (positions[:, None] + around).unbind(dim=-1)
    share = (scores[y, x] / TEMPERATURE).softmax(dim=1)
    return positions + share @ around.to(scores.dtype)


class ALIKED(Extractor):
    """ALIKED with 128 numbers for each keypoint and 16 sample positions (n16).

    Detection is that of the authors' code: scores above 0.2, suppression in 5x5 windows of the score map, no
    keypoints 2 pixels from the border, sub-pixel refinement. Where that leaves nothing, there are no
    keypoints; their code then lowers the threshold to the mean score.

    The published weights place keypoints a fraction of a pixel beside what they mark, each variant in its own
    direction. Between views of one scale and roll this cancels out (below 0.02 pixels for any shift). Of a picture
    shrunk to one half, n16 finds the points 0.1 pixels off on average, and of one turned upside down, n16rot finds
    them 0.7 pixels off. The authors' code has the same positions.

    Parameters
    ----------
    options : ExtractorOptions, optional
        The common controls; ``nms_radius``, 0 by default, acts on the refined keypoints, on top of that.
    device : torch.device or str
        Where the network runs.
    weights : str or path, optional
        A file of one's own with the same layout, in place of the published weights.

    Raises
    ------
    WeightsError
        The weights are not on this machine, or of another layout.
    """

    name: ClassVar[str] = "aliked-n16"
    default_threshold: ClassVar[float] = 0.2
    deviation: ClassVar[float] = 0.45
    min_side: ClassVar[int] = 2 * RADIUS + 1
    max_untiled_pixels: ClassVar[int] = 6_000_000
    tile_side: ClassVar[int] = 2048

    def __init__(
        self,
        options: ExtractorOptions | None = None,
        device: torch.device | str = "cpu",
        weights: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(options, device)
        source = weights or self.name
        self.net = ALIKEDNet.from_state(weights_module.load(source)[0], source).to(self.device)

    @torch.inference_mode()
    def _extract(self, pixels: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> Features:
        features = self.net.pyramid(to_tensor(pixels, self.device))
        scores = self.net.scores(features)
        threshold = self.options.detection_threshold
        assert threshold is not None  # the base class has filled in the default
        keypoints = refine(scores, peaks(scores, threshold, RADIUS, border=RADIUS, rescue_rounds=2))
        size = keypoints.new_tensor(features.size)
        values = sample(scores[None, None], (2 * keypoints + 1) / size - 1)[:, 0]
        kept = best(keypoints, values, mask, self.options)
        keypoints, values = keypoints[kept], values[kept]
        return Features(keypoints, values, self.net.describe(features, keypoints), features.size, self.name)

    @torch.inference_mode()
    def _describe(self, pixels: NDArray[np.uint8], given: Features) -> Features:
        features = self.net.pyramid(to_tensor(pixels, self.device))
        descriptors = self.net.describe(features, given.keypoints.to(self.device))
        return replace(given, descriptors=descriptors.to(given.device), extractor=self.name)


class ALIKEDT16(ALIKED):
    """The smallest ALIKED: 64 numbers for each keypoint, 16 sample positions; see `ALIKED`."""

    name: ClassVar[str] = "aliked-t16"


class ALIKEDN16Rot(ALIKED):
    """ALIKED n16 trained with rotated images; see `ALIKED`."""

    name: ClassVar[str] = "aliked-n16rot"


class ALIKEDN32(ALIKED):
    """ALIKED with 32 sample positions for each descriptor; see `ALIKED`."""

    name: ClassVar[str] = "aliked-n32"
