"""Sizes of Cairn's network, and the constants of its geometry."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ... import weights as weights_module
from ...errors import ArgumentError
from ..steerable import length

CELL = 2  # pixels along the side of a cell of the detector
DIAMETER = 8.0  # pixels of its level that a keypoint's `Features.scales` covers
NOISE = 0.01  # standard deviation that even a flat surface has, for pixels in [0, 1]
RADIUS = 1.25  # of the innermost ring, in pixels of the keypoint's level
RINGS_PER_OCTAVE = 3


@dataclass(frozen=True)
class CairnConfig:
    """Size of the network.

    Attributes
    ----------
    levels : int
        Levels of the pyramid on which keypoints are looked for, two to the octave.
    width : int
        Channels of the detector at half resolution, 8 or more; twice as many at a quarter.
    rings, angles : int
        Samples of a patch: so many circles, so many points on each, an even number.
    channels, depth : int
        Of the descriptor head: numbers for each angle, and layers after the first.
    dim : int
        Of the descriptor.
    harmonics : tuple of int
        How many of the orders 0, 1, 2 … the descriptor has, see `tiepoint.features.steerable`; they make ``dim``
        numbers. Empty: a descriptor that is read at the keypoint's own direction only.

    Examples
    --------
    >>> CairnConfig().outermost_radius  # in pixels of the keypoint's level
    40.0
    """

    levels: int = 7
    width: int = 16
    rings: int = 16
    angles: int = 32
    channels: int = 64
    depth: int = 2
    dim: int = 128
    harmonics: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.width < 2 * CELL**2:
            raise ArgumentError(f"width must be at least {2 * CELL**2}, not {self.width}")
        if self.angles < 2 or self.angles % 2:
            raise ArgumentError(f"angles must be an even number, not {self.angles}")
        if self.harmonics and (length(self.harmonics) != self.dim or 4 * len(self.harmonics) > self.angles + 4):
            raise ArgumentError(
                f"harmonics {self.harmonics} make {length(self.harmonics)} numbers, not {self.dim}, or are of orders "
                f"above {self.angles // 4}"
            )

    @property
    def outermost_radius(self) -> float:
        """Of a patch, in pixels of the keypoint's level."""
        return RADIUS * 2 ** ((self.rings - 1) / RINGS_PER_OCTAVE)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str | os.PathLike[str] = "these weights") -> CairnConfig:
        """Read the configuration that a weights file carries, see `tiepoint.weights.read_config`."""
        return weights_module.read_config(cls, values, source)
