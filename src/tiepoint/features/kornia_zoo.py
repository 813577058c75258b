"""Learned extractors whose networks come from kornia: DISK, XFeat, DeDoDe, Key.Net + AffNet + HardNet.

kornia supplies the layers; the weights come through `tiepoint.weights`, and thresholds, suppression, the
choice of the best K and pixel coordinates follow the conventions of all our extractors. kornia is imported by
the constructors, because it is optional.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import weights as weights_module
from ..errors import MissingDependencyError
from ..types import Features
from .base import Extractor, ExtractorOptions, best
from .dense import peaks, sample, to_tensor


def _kornia(purpose: str, name: str) -> Any:
    """Return one class of ``kornia.feature``; versions before 0.8.3 lack some."""
    try:
        return getattr(import_module("kornia.feature"), name)
    except (ImportError, AttributeError) as error:
        raise MissingDependencyError("kornia>=0.8.3", "zoo", f"{purpose}, with Python 3.11 or later,") from error


def _load(net: nn.Module, name: str) -> Any:
    """Give a network its weights, passing over what the file holds beyond them."""
    wanted = net.state_dict()
    return weights_module.load_into(net, {k: v for k, v in weights_module.load(name)[0].items() if k in wanted}, name)


class DISK(Extractor):
    """DISK: learning local features with policy gradient (Tyszkiewicz, Fua, Trulls, NeurIPS 2020).

    Peaks of a heatmap in 5x5 windows, at full pixels. ``detection_threshold`` is in the unit of the heatmap, as
    in the authors' code, and 0 by default; a height h becomes the score (1 + h / (1 + abs(h))) / 2.
    Normalisation layers look at the whole image, so tiles of a very large one are each seen in their own
    contrast.

    Parameters
    ----------
    options : ExtractorOptions, optional
        The common controls; NMS with radius 2 is part of the detector, more comes on top.
    device : torch.device or str
        Where the network runs.

    Raises
    ------
    MissingDependencyError
        kornia is not installed.
    WeightsError
        The weights are not on this machine.
    """

    name: ClassVar[str] = "disk"
    default_threshold: ClassVar[float] = 0.0
    min_side: ClassVar[int] = 32  # below, nothing is left to normalise at the deepest level
    # 129 float32 channels at full size: half a gigabyte for each megapixel
    max_untiled_pixels: ClassVar[int] = 3_000_000
    tile_side: ClassVar[int] = 1536

    def __init__(self, options: ExtractorOptions | None = None, device: torch.device | str = "cpu") -> None:
        super().__init__(options, device)
        self.net = _load(_kornia("DISK", "DISK")(), "disk").to(self.device)

    @torch.inference_mode()
    def _extract(self, pixels: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> Features:
        height, width = pixels.shape[:2]
        padded = F.pad(to_tensor(pixels, self.device), (0, -width % 16, 0, -height % 16))
        heatmap, dense = self.net.heatmap_and_dense_descriptors(padded)
        heights = heatmap[0, 0, :height, :width]
        x, y = peaks(heights, _threshold(self), radius=2).T
        keypoints = torch.stack([x, y], dim=1).float()
        kept = best(keypoints, heights[y, x], mask, self.options)
        x, y = x[kept], y[kept]
        descriptors = F.normalize(dense[0, :, y, x].T, dim=1)
        return Features(keypoints[kept], (1 + F.softsign(heights[y, x])) / 2, descriptors, (width, height), self.name)


class XFeat(Extractor):
    """XFeat: accelerated features for lightweight image matching (Potje, Cadar, Araujo, Martins, CVPR 2024).

    The sparse kind. The image is resized to multiples of 32; peaks of the keypoint heatmap in 5x5 windows
    above 0.05 are scored by heatmap times reliability. Its normalisation looks at the whole image, see `DISK`.

    Parameters
    ----------
    options : ExtractorOptions, optional
        The common controls; NMS with radius 2 is part of the detector, more comes on top.
    device : torch.device or str
        Where the network runs.

    Raises
    ------
    MissingDependencyError
        kornia is not installed, or older than 0.8.3.
    WeightsError
        The weights are not on this machine.
    """

    name: ClassVar[str] = "xfeat"
    default_threshold: ClassVar[float] = 0.05
    deviation: ClassVar[float] = 0.94
    min_side: ClassVar[int] = 32

    def __init__(self, options: ExtractorOptions | None = None, device: torch.device | str = "cpu") -> None:
        super().__init__(options, device)
        self.net = _load(_kornia("XFeat", "XFeat")().net, "xfeat").to(self.device)

    @torch.inference_mode()
    def _extract(self, pixels: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> Features:
        height, width = pixels.shape[:2]
        inner = height // 32 * 32, width // 32 * 32
        image = F.interpolate(to_tensor(pixels, self.device), inner, mode="bilinear", align_corners=False)
        dense, logits, reliability = self.net(image)
        heatmap = F.pixel_shuffle(logits.softmax(dim=1)[:, :-1], 8)[0, 0]
        positions = peaks(heatmap, _threshold(self), radius=2)
        size = torch.tensor(inner[::-1], device=self.device)
        # The authors' normalisation, which belongs to align_corners=True, with the sampling that does not: it
        # reads up to 1/16 of a cell off, outwards, and matchers were trained on that.
        grid = 2 * positions / (size - 1) - 1
        scores = heatmap[positions[:, 1], positions[:, 0]] * sample(reliability, grid)[:, 0]
        original = torch.tensor([width, height], device=self.device)
        keypoints = (positions + 0.5) * (original / size) - 0.5
        kept = best(keypoints, scores, mask, self.options)
        descriptors = F.normalize(sample(F.normalize(dense, dim=1), grid[kept], "bicubic"), dim=1)
        return Features(keypoints[kept], scores[kept], descriptors, (width, height), self.name)


class DeDoDe(Extractor):
    """DeDoDe: detect, don't describe - describe, don't detect (Edstedt et al., 3DV 2024).

    Detector L of version 2 and descriptor B. A score is the probability of its pixel among all pixels of the
    image, divided by the root of the density around it: useful for ranking only, and comparable within one
    image only, so the default threshold is 0 and ``max_keypoints`` (None means 10,000) decides. The networks
    were trained at 784x784 pixels; ``long_side=1024`` or so serves them well.

    Parameters
    ----------
    options : ExtractorOptions, optional
        The common controls.
    device : torch.device or str
        Where the networks run.

    Raises
    ------
    MissingDependencyError
        kornia is not installed.
    WeightsError
        The weights ``dedode-detector`` or ``dedode-descriptor`` are not on this machine.
    """

    name: ClassVar[str] = "dedode"
    default_threshold: ClassVar[float] = 0.0
    default_nms_radius: ClassVar[int] = 1
    min_side: ClassVar[int] = 14
    # a tile's scores cannot be compared with another's, so there are none where memory allows it
    max_untiled_pixels: ClassVar[int] = 4_000_000
    tile_side: ClassVar[int] = 1792

    def __init__(self, options: ExtractorOptions | None = None, device: torch.device | str = "cpu") -> None:
        super().__init__(options, device)
        for name in ("dedode-detector", "dedode-descriptor"):
            weights_module.resolve(name)  # before seconds are spent on building the networks
        self.net = _kornia("DeDoDe", "DeDoDe")("L", "B", torch.float32)
        _load(self.net.detector, "dedode-detector")
        _load(self.net.descriptor, "dedode-descriptor")
        self.net.eval().to(self.device)

    @torch.inference_mode()
    def _extract(self, pixels: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> Features:
        height, width = pixels.shape[:2]
        image = to_tensor(pixels, self.device)
        normalised, scores = self.net.detect(image, n=None)
        # normalised positions are those of pixel centres, from edge to edge of the image
        x, y = ((normalised[0] + 1) / 2 * normalised.new_tensor([width, height]) - 0.5).round().long().T
        score_map = torch.empty(height, width, device=self.device)
        score_map[y, x] = scores[0]
        positions = peaks(score_map, _threshold(self), radius=self.options.nms_radius or 0)
        values = score_map[positions[:, 1], positions[:, 0]]
        kept = best(positions.float(), values, mask, self.options)[:10_000]
        positions, values = positions[kept], values[kept]
        grid = (2 * positions + 1) / torch.tensor([width, height], device=self.device) - 1
        descriptors = F.normalize(self.net.describe(image, grid[None])[0], dim=1)
        return Features(positions.float(), values, descriptors, (width, height), self.name)


class KeyNetAffNetHardNet(Extractor):
    """Key.Net detector, AffNet shapes, OriNet orientations and HardNet descriptors.

    Barroso-Laguna et al., ICCV 2019; Mishkin et al., ECCV 2018; Mishchuk et al., NeurIPS 2017. Scores are
    r / (1 + r) of Key.Net's response r, in which unit ``detection_threshold`` is too. ``max_keypoints=None``
    means 8,000.

    Parameters
    ----------
    options : ExtractorOptions, optional
        The common controls; NMS in windows of 15x15 on every level of the pyramid is part of the detector,
        more comes on top.
    device : torch.device or str
        Where the networks run.

    Raises
    ------
    MissingDependencyError
        kornia is not installed.
    WeightsError
        The weights ``keynet``, ``affnet``, ``orinet`` or ``hardnet`` are not on this machine.
    """

    name: ClassVar[str] = "keynet"
    default_threshold: ClassVar[float] = 0.0
    min_side: ClassVar[int] = 64  # the smallest level of the pyramid is still larger than a window

    def __init__(self, options: ExtractorOptions | None = None, device: torch.device | str = "cpu") -> None:
        super().__init__(options, device)
        affine = _kornia("Key.Net", "LAFAffNetShapeEstimator")(False, preserve_orientation=False)
        orientation = _kornia("Key.Net", "OriNet")(False)
        describe = _kornia("Key.Net", "HardNet")(False)
        detector = _centred(_kornia("Key.Net", "KeyNetDetector"))(
            False,
            num_features=self.options.max_keypoints or 8000,
            aff_module=_load(affine, "affnet"),
            ori_module=_kornia("Key.Net", "LAFOrienter")(angle_detector=_load(orientation, "orinet")),
        )
        _load(detector.model, "keynet")
        descriptor = _kornia("Key.Net", "LAFDescriptor")(
            _load(describe, "hardnet"), patch_size=32, grayscale_descriptor=True
        )
        self.net = _kornia("Key.Net", "LocalFeature")(detector, descriptor).eval().to(self.device)

    @torch.inference_mode()
    def _extract(self, pixels: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> Features:
        rgb = to_tensor(pixels, self.device)
        grey = (rgb * rgb.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)
        where = None if mask is None else torch.tensor(mask > 0, device=self.device)[None, None].float()
        frames, responses, descriptors = (part[0] for part in self.net(grey, where))
        scores = responses / (1 + responses)
        found = scores > _threshold(self)  # places that were not filled have a response of 0
        frames, scores, descriptors = frames[found], scores[found], descriptors[found]
        shape = frames[:, :, :2]  # maps the patch, from -1 to 1, to the image
        return Features(
            frames[:, :, 2].contiguous(),
            scores,
            descriptors,
            (pixels.shape[1], pixels.shape[0]),
            self.name,
            scales=2 * torch.linalg.det(shape).abs().sqrt(),
            orientations=torch.atan2(shape[:, 1, 0], shape[:, 0, 0]),
        )


def _centred(detector: Any) -> Any:
    """Return kornia's detector class with positions mapped between pyramid levels by pixel centres.

    kornia, as Key.Net's authors, multiplies them by the factor alone, which is wrong by up to half of it.
    """

    class Centred(detector):
        def detect_features_on_single_level(
            self, level: Tensor, count: int, factor: tuple[float, float], **mask: Any
        ) -> tuple[Tensor, Tensor]:
            scores, frames = super().detect_features_on_single_level(level, count, factor, **mask)
            frames[..., 2] += (frames.new_tensor(factor) - 1) / 2
            return scores, frames

    return Centred


def _threshold(extractor: Extractor) -> float:
    threshold = extractor.options.detection_threshold
    assert threshold is not None  # the base class has filled in the default
    return threshold
