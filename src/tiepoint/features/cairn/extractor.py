"""The extractor Cairn: an image in, features out."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ... import weights as weights_module
from ...devices import keep_freed_memory
from ...types import Features
from ..base import Extractor, ExtractorOptions, best
from .config import DIAMETER, CairnConfig
from .description import Description
from .detection import to_grey
from .network import CairnNet


class Cairn(Extractor):
    """tiepoint's own extractor.

    The score of a keypoint is how right a match of it is expected to be, where the other photograph shows it: the mean
    of the probabilities that mutual nearest neighbours match it with an error below 1, 2 and 3 pixels. Of keypoints
    closer together than the NMS radius, which are mostly one found on several levels, the one of highest score stays.

    ``Features.covariances`` hold how precisely each keypoint is located.

    Parameters
    ----------
    options : ExtractorOptions, optional
        The common controls.
    device : torch.device or str
        Where the networks run.
    weights : str or path, optional
        Those of a training of one's own, in place of the bundled ones.
    bfloat16 : bool
        Compute in 16 bits: faster where the processor can, and nearly the same.

    Raises
    ------
    WeightsError
        The weights are not on this machine, or of another layout.
    """

    name: ClassVar[str] = "cairn"
    default_threshold: ClassVar[float] = 0.02
    default_nms_radius: ClassVar[int] = 2
    min_side: ClassVar[int] = 24
    # 16 float32 channels at half resolution on seven levels, several at a time
    max_untiled_pixels: ClassVar[int] = 12_000_000
    tile_side: ClassVar[int] = 3072
    tile_overlap: ClassVar[int] = 384  # the radius of a patch on the coarsest level, and what its keypoint sees

    def __init__(
        self,
        options: ExtractorOptions | None = None,
        device: torch.device | str = "cpu",
        weights: str | os.PathLike[str] | None = None,
        bfloat16: bool = False,
    ) -> None:
        super().__init__(options, device)
        self.bfloat16 = bfloat16
        source = weights or self.name
        state, config = weights_module.load(source)
        self.net = weights_module.load_into(CairnNet(CairnConfig.from_dict(config, source)), state, source)
        self.harmonics = self.net.config.harmonics
        # channels-last convolutions are 1.3 times as fast on CPUs
        self.net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.device.type == "cpu":
            keep_freed_memory()

    @torch.inference_mode()
    def _extract(self, pixels: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> Features:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            images = self._levels(pixels)
            scores = self.net.score(images)
            # Several levels find the same point, and a mask forbids some: choose among more than are wanted.
            count = int(scores.ranks.isfinite().sum())
            if mask is None and self.options.max_keypoints is not None:
                count = min(count, 4 * self.options.max_keypoints)
            found = self.net.detect(scores, count)
            values = found.ranks[0].sigmoid()
            good = torch.nonzero(values > (self.options.detection_threshold or 0)).flatten()
            kept = good[best(found.positions[0, good], values[good], mask, self.options)]
            positions, levels = found.positions[:, kept], found.levels[:, kept]
            described = self.net.describe(images, positions, levels)
        size = pixels.shape[1], pixels.shape[0]
        features = Features(positions[0], values[kept], described.descriptors.float(), size, self.name)
        return self._described(features, levels[0], described)

    @torch.inference_mode()
    def _describe(self, pixels: NDArray[np.uint8], given: Features) -> Features:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            levels = torch.zeros(len(given), dtype=torch.long, device=self.device)
            if given.scales is not None:
                nearest = (2 * torch.log2(given.scales.to(self.device) / DIAMETER)).round().long()
                levels = nearest.clamp(0, self.net.config.levels - 1)
            described = self.net.describe(self._levels(pixels), given.keypoints.to(self.device)[None], levels[None])
        return self._described(given, levels, described)

    def _levels(self, pixels: NDArray[np.uint8]) -> list[Tensor]:
        """Return the pyramid of RGB pixels (H, W, 3)."""
        return self.net.levels(to_grey(torch.tensor(pixels, device=self.device).permute(2, 0, 1))[None])

    def _described(self, found: Features, levels: Tensor, described: Description) -> Features:
        """Add what the network says about keypoints of levels (N,)."""
        scale = torch.exp2(levels / 2)
        spreads = described.spreads.float() * scale[:, None, None]
        return replace(
            found,
            extractor=self.name,
            descriptors=F.normalize(described.descriptors.float(), dim=1),
            scales=DIAMETER * scale,
            orientations=torch.atan2(described.directions[:, 1].float(), described.directions[:, 0].float()),
            covariances=spreads @ spreads.mT,
        )
