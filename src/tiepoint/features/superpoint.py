"""SuperPoint: self-supervised interest point detection and description.

DeTone, Malisiewicz, Rabinovich, CVPR Workshops 2018, arXiv 1712.07629. One VGG-like encoder brings the grey
image down to 1/8; the detector head says for each 8x8 cell which of its 64 pixels is a keypoint, or none; the
descriptor head gives each cell 256 numbers, interpolated between cells.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import weights as weights_module
from ..types import Features
from .base import Extractor, ExtractorOptions, best
from .dense import peaks, sample, to_tensor

CELL = 8


class _Layer(nn.Sequential):
    """Convolution, ReLU, and for the open weights batch normalisation, in that order."""

    def __init__(self, c_in: int, c_out: int, kernel: int, relu: bool, batch_norm: bool) -> None:
        super().__init__()
        self.add_module("conv", nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2))
        if relu:
            self.add_module("activation", nn.ReLU(inplace=True))
        if batch_norm:
            self.add_module("bn", nn.BatchNorm2d(c_out, eps=1e-3))


@dataclass(frozen=True)
class SuperPointConfig:
    """Whether every layer ends with batch normalisation."""

    batch_norm: bool


class SuperPointNet(nn.Module):
    """The network; grey image (1, 1, H, W) in [0, 1] -> scores (H // 8 * 8, W // 8 * 8), descriptor map.

    Parameters
    ----------
    batch_norm : bool
        Whether every layer ends with batch normalisation, as in the open weights.
    """

    def __init__(self, batch_norm: bool) -> None:
        super().__init__()
        self.config = SuperPointConfig(batch_norm)
        widths = [1, 64, 64, 128, 128]
        stages = [
            [_Layer(a, b, 3, True, batch_norm), _Layer(b, b, 3, True, batch_norm), nn.MaxPool2d(2)]
            for a, b in pairwise(widths)
        ]
        stages[-1].pop()  # the last stage stays at 1/8
        self.backbone = nn.Sequential(*(nn.Sequential(*stage) for stage in stages))
        self.detector = nn.Sequential(
            _Layer(128, 256, 3, True, batch_norm), _Layer(256, CELL**2 + 1, 1, False, batch_norm)
        )
        self.descriptor = nn.Sequential(_Layer(128, 256, 3, True, batch_norm), _Layer(256, 256, 1, False, batch_norm))

    def heads(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, 65, h, w) and unit descriptors (B, 256, h, w) of grey images (B, 1, H, W)."""
        features = self.backbone(images)
        return self.detector(features), F.normalize(self.descriptor(features), dim=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (h * 8, w * 8) and unit descriptors (1, 256, h, w)."""
        logits, descriptors = self.heads(image)
        return scores_of(logits)[0], descriptors


def scores_of(logits: Tensor) -> Tensor:
    """Return the score of each pixel (B, 8 h, 8 w); the 65th class of a cell is "no keypoint here"."""
    return F.pixel_shuffle(logits.softmax(dim=1)[:, :-1], CELL)[:, 0]


class SuperPoint(Extractor):
    """SuperPoint with the official weights, licensed for **non-commercial** use only.

    The result is that of the authors' code: scores above 0.005, non-maximum suppression by max-pooling with
    radius 4, no keypoints 4 pixels from the border. Any image size will do; the up to 7 columns and rows beyond
    the last full cell get no keypoints. Descriptors are interpolated bilinearly, as in that code, where the
    paper says bicubically: matchers were trained on the former.

    Parameters
    ----------
    options : ExtractorOptions, optional
        The common controls.
    device : torch.device or str
        Where the network runs.
    weights : str or path, optional
        A file of one's own with the same layout, in place of the published weights.

    Raises
    ------
    WeightsError
        The weights are not on this machine, or of another layout.
    """

    name: ClassVar[str] = "superpoint"
    default_threshold: ClassVar[float] = 0.005
    default_nms_radius: ClassVar[int] = 4
    min_side: ClassVar[int] = CELL
    # 64 float32 channels at full size: 256 MB for each megapixel and layer
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
        self.net = self._build(weights_module.load(source)[0], source)
        # channels-last convolutions are 1.3 times as fast on CPUs
        self.net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @staticmethod
    def _build(state: dict[str, Tensor], source: str | os.PathLike[str]) -> SuperPointNet:
        return weights_module.load_into(
            SuperPointNet(batch_norm=False), {_our_key(k): v for k, v in state.items()}, source
        )

    @staticmethod
    def _sample(dense: Tensor, keypoints: Tensor) -> Tensor:
        """Sample the descriptor map at keypoints (N, 2), in pixels.

        The first and the last column of the map have their centres at the pixels 3.5 and 8 w - 4.5. The authors'
        code divides by the latter, where the distance between both would be right. So descriptors come from too
        far left and up, by up to 0.44 cells at the far end. SuperGlue and LightGlue were trained on just that.
        """
        cells = keypoints.new_tensor(dense.shape[:1:-1])
        at = (keypoints - (CELL - 1) / 2) / (CELL * cells - (CELL + 1) / 2) * (cells - 1)
        return F.normalize(sample(dense, (2 * at + 1) / cells - 1), dim=1)

    @torch.inference_mode()
    def _extract(self, pixels: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> Features:
        scores, dense = self._run(pixels)
        threshold = self.options.detection_threshold
        radius = self.options.nms_radius
        assert threshold is not None and radius is not None  # the base class has filled in the defaults
        positions = peaks(scores, threshold, radius, border=4, rescue_rounds=2)
        values = scores[positions[:, 1], positions[:, 0]]
        keypoints = positions.float()
        kept = best(keypoints, values, mask, self.options)
        return Features(
            keypoints[kept],
            values[kept],
            self._sample(dense, keypoints[kept]),
            (pixels.shape[1], pixels.shape[0]),
            self.name,
        )

    @torch.inference_mode()
    def _describe(self, pixels: NDArray[np.uint8], given: Features) -> Features:
        descriptors = self._sample(self._run(pixels)[1], given.keypoints.to(self.device))
        return replace(given, descriptors=descriptors.to(given.device), extractor=self.name)

    def _run(self, pixels: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Return scores (H, W) and the descriptor map of RGB pixels (H, W, 3)."""
        rgb = to_tensor(pixels, self.device)
        grey = (rgb * rgb.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)
        return self.net(grey)


class SuperPointOpen(SuperPoint):
    """SuperPoint as re-trained by Pautrat and Sarlin, under the MIT licence, or by ``tiepoint train superpoint``.

    Source: https://github.com/rpautrat/SuperPoint. The same network with batch normalisation after every
    activation; descriptors are sampled where the keypoints are.

    Parameters
    ----------
    options : ExtractorOptions, optional
        The common controls.
    device : torch.device or str
        Where the network runs.
    weights : str or path, optional
        A file of one's own with the same layout, in place of the published weights.

    Raises
    ------
    WeightsError
        The weights are not on this machine, or of another layout.
    """

    name: ClassVar[str] = "superpoint-open"

    @staticmethod
    def _build(state: dict[str, Tensor], source: str | os.PathLike[str]) -> SuperPointNet:
        return weights_module.load_into(SuperPointNet(batch_norm=True), state, source)

    @staticmethod
    def _sample(dense: Tensor, keypoints: Tensor) -> Tensor:
        size = CELL * keypoints.new_tensor(dense.shape[:1:-1])
        return F.normalize(sample(dense, (2 * keypoints + 1) / size - 1), dim=1)


def _our_key(official: str) -> str:
    """Translate a parameter name of the official weights, for example ``conv3b.weight``."""
    layer, _, kind = official.partition(".")
    places = {f"conv{i}{ab}": f"backbone.{i - 1}.{'ab'.index(ab)}" for i in range(1, 5) for ab in "ab"}
    places |= {f"convP{ab}": f"detector.{'ab'.index(ab)}" for ab in "ab"}
    places |= {f"convD{ab}": f"descriptor.{'ab'.index(ab)}" for ab in "ab"}
    return f"{places.get(layer, layer)}.conv.{kind}"
