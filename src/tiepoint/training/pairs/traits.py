"""What the features of an extractor are like, found by trying it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ... import features as extractors
from ...errors import ArgumentError, InputError
from ..data.photographs import PhotoCache
from .maker import PairConfig

_LEAST = 32  # keypoints of a typical photograph, below which the extractor is of no use here


@dataclass(frozen=True)
class Traits:
    """What a matcher has to know of an extractor's features.

    Attributes
    ----------
    input_dim : int
        Numbers of a descriptor.
    scale_orientation : bool
        Whether scale and orientation of a keypoint are measured.
    on_device : bool
        Whether the extractor ran on the device that it was given.
    harmonics : tuple of int
        How descriptors turn with the image, see `tiepoint.features.steerable`.
    """

    input_dim: int
    scale_orientation: bool
    on_device: bool
    harmonics: tuple[int, ...] = ()


def try_extractor(photos: PhotoCache, pairs: PairConfig, device: torch.device) -> Traits:
    """Run the extractor on a handful of photographs and say what its features are like.

    Raises
    ------
    InputError
        It finds next to nothing.
    ArgumentError
        Its descriptors are binary; or what `tiepoint.features.load` raises.
    """
    extractor = extractors.load(
        pairs.features, device=device, max_keypoints=pairs.keypoints, detection_threshold=pairs.detection_threshold
    )
    generator = torch.Generator().manual_seed(0)
    views = photos.sample(photos.draw(5, generator), pairs.size, generator)
    found = [extractor(view) for view in (views * 255).round().byte().permute(0, 2, 3, 1).numpy()]
    counts = sorted(len(features) for features in found)
    if counts[len(counts) // 2] < _LEAST:
        raise InputError(
            f"the extractor {pairs.features!r} finds {', '.join(map(str, counts))} keypoints in five of the "
            f"photographs; a matcher cannot learn from fewer than {_LEAST}. Lower its detection threshold, take "
            "another extractor, or give photographs with more texture"
        )
    best = max(found, key=len)
    if best.is_binary:
        raise ArgumentError(
            f"the descriptors of {pairs.features!r} are bit strings; only float descriptors can be trained on"
        )
    return Traits(
        best.descriptors.shape[1],
        best.scales is not None and best.orientations is not None,
        best.device.type != "cpu",
        extractor.harmonics,
    )
