"""Architecture and thresholds of a LightGlue."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ... import weights as weights_module
from ...errors import ArgumentError
from ...features.steerable import length
from .alignment import FRAME_CODE


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
