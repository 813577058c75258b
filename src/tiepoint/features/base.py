"""The one interface of all extractors: `Image` and mask -> `Features`.

`Extractor` does what is common (resizing, tiling of large photographs, masks, the cut to the best K, and the way
back to original coordinates); a subclass supplies `Extractor._extract`, which sees one array at working size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ArgumentError
from ..images import ImageSource, read_image, resize
from ..types import Features, Image


@dataclass(frozen=True)
class ExtractorOptions:
    """The controls that every extractor understands.

    Attributes
    ----------
    max_keypoints : int or None
        Keep the best this many; None keeps all.
    detection_threshold : float or None
        In the unit of the detector's own score; None is the extractor's published default.
    nms_radius : int or None
        No two keypoints within this many working-size pixels in x and y; 0 switches it off; None is the
        extractor's default.
    long_side : int or None
        Resize so that the longer side has this many pixels. None works at full size.
    enlarge : bool
        Whether ``long_side`` may also enlarge smaller images.
    """

    max_keypoints: int | None = 2048
    detection_threshold: float | None = None
    nms_radius: int | None = None
    long_side: int | None = None
    enlarge: bool = False

    def __post_init__(self) -> None:
        for name in ("max_keypoints", "long_side"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArgumentError(f"{name} must be at least 1, not {value}")
        if self.nms_radius is not None and self.nms_radius < 0:
            raise ArgumentError(f"nms_radius must be 0 or more, not {self.nms_radius}")


class Extractor(ABC):
    """Base class of all extractors.

    A subclass sets the class attributes and implements `_extract`. It takes the common options as one
    `ExtractorOptions` and its own as keyword arguments.
    """

    name: ClassVar[str]
    default_threshold: ClassVar[float]
    default_nms_radius: ClassVar[int] = 0

    def __init__(self, options: ExtractorOptions | None = None, device: torch.device | str = "cpu") -> None:
        options = options or ExtractorOptions()
        self.options = replace(
            options,
            detection_threshold=self.default_threshold
            if options.detection_threshold is None
            else options.detection_threshold,
            nms_radius=self.default_nms_radius if options.nms_radius is None else options.nms_radius,
        )
        self.device = torch.device(device)

    @abstractmethod
    def _extract(self, pixels: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> Features:
        """Extract from RGB ``pixels`` (H, W, 3) at working size; coordinates are those of ``pixels``.

        Must honour ``self.options`` (threshold, NMS, max_keypoints) and ``mask`` (H, W), 0 = no keypoints.
        """

    def __call__(self, image: ImageSource, mask: ImageSource | None = None) -> Features:
        """Extract the features of one image.

        Parameters
        ----------
        image : Image, path, array or file object
            See `tiepoint.read_image`.
        mask : same kinds, or None
            0 means "no keypoints here"; replaces the image's own mask.
        """
        picture = read_image(image, mask)
        pixels = picture.pixels
        if self.options.long_side is not None:
            pixels = resize(pixels, self.options.long_side, self.options.enlarge)
        features = self._extract(pixels, picture.mask)
        return to_original(features, pixels.shape[1::-1], picture.size)

    def extract_many(self, images: Sequence[ImageSource]) -> list[Features]:
        """Extract the features of many images; the result equals calling one by one."""
        return [self(image) for image in images]


def to_original(features: Features, working: tuple[int, int], original: tuple[int, int]) -> Features:
    """Map features from working-size to original pixels (sizes are (width, height))."""
    factor = torch.tensor([original[0] / working[0], original[1] / working[1]], device=features.device)
    return replace(
        features,
        keypoints=(features.keypoints + 0.5) * factor - 0.5,
        scales=None if features.scales is None else features.scales * factor.mean(),
        image_size=original,
    )


__all__ = ["Extractor", "ExtractorOptions", "Image", "to_original"]
