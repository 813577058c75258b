"""Repeating textures, read at the size that a pixel covers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

_PROBES = 4  # texture readings along the direction in which a pixel's footprint is longest


@dataclass(frozen=True, eq=False)
class TextureAtlas:
    """Square repeating textures with all their reduced copies in one picture, so that one call reads any of them.

    Attributes
    ----------
    picture : float tensor (1, 3, H, W)
        Equal cells below each other; in each the texture at the left, its reduced copies one below the other at the
        right. Every copy has a border of one pixel, repeated from the other side.
    count, size, levels : int
        Number of textures, their side in pixels, number of copies.
    """

    picture: torch.Tensor
    count: int
    size: int
    levels: int

    @staticmethod
    def build(textures: torch.Tensor) -> TextureAtlas:
        """Build from a float tensor (N, 3, size, size); ``size`` is a power of two."""
        count, _, size, _ = textures.shape
        levels = int(math.log2(size)) - 1  # down to 4 x 4
        cells = textures.new_zeros(3, count, *_cell(size))
        for level in range(levels):
            side = size >> level
            top, left = (0, 0) if level == 0 else _place_of_level(level, size)
            padded = F.pad(textures, (1, 1, 1, 1), "circular").transpose(0, 1)
            cells[:, :, top : top + side + 2, left : left + side + 2] = padded
            textures = F.avg_pool2d(textures, 2)
        return TextureAtlas(cells.flatten(1, 2)[None], count, size, levels)

    def read(self, texture: torch.Tensor, u: torch.Tensor, v: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """Read textures bilinearly.

        Parameters
        ----------
        texture : int64 tensor (B, N)
        u, v : float tensors (B, N)
            Position in repetitions: [0, 1) spans the texture.
        level : float tensor (B, N)
            Whole number of halvings in [0, ``levels``).

        Returns
        -------
        float tensor (B, 3, N)
        """
        side = self.size * torch.exp2(-level)
        # Level 1 and smaller stand below each other at the right: level l starts at size - 2^(1-l) size + 2 (l - 1).
        small = (level > 0).to(u)
        top = small * (self.size - 2 * side + 2 * (level - 1))
        left = small * (self.size + 2)
        height, width = self.picture.shape[2:]
        x = left + 1 + (u - u.floor()) * side
        y = texture * _cell(self.size)[0] + top + 1 + (v - v.floor()) * side
        place = torch.stack([x * (2 / width) - 1, y * (2 / height) - 1], -1)[:, :, None]
        picture = self.picture.expand(len(u), -1, -1, -1)
        return F.grid_sample(picture, place, align_corners=False)[..., 0]

    def read_stretched(
        self,
        texture: torch.Tensor,
        u: torch.Tensor,
        v: torch.Tensor,
        footprint: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        """Read a texture over a pixel's footprint, which is long and thin on surfaces seen at a slant.

        Several readings along its longer side, each from a copy reduced to fit the shorter one. They round the level of
        reduction at different thresholds, so that their mean changes smoothly from level to level.
        """
        (ux, vx), (uy, vy) = footprint
        length_x, length_y = (ux * ux + vx * vx).sqrt(), (uy * uy + vy * vy).sqrt()
        x_longer = length_x > length_y
        long_u, long_v = torch.where(x_longer, ux, uy), torch.where(x_longer, vx, vy)
        longer = torch.maximum(length_x, length_y).clamp(min=1e-9)
        # The footprint is a parallelogram; its width is its area over its longer side.
        shorter = (ux * vy - uy * vx).abs() / longer
        width = torch.maximum(shorter, longer / _PROBES) * self.size
        level = width.clamp(min=1e-6).log2()
        colour: torch.Tensor | float = 0.0
        for number, threshold in enumerate((0.125, 0.625, 0.875, 0.375)):
            at = (number + 0.5) / _PROBES - 0.5
            probe_level = (level + threshold).floor().clamp(0, self.levels - 1)
            colour = colour + self.read(texture, u + at * long_u, v + at * long_v, probe_level)
        return colour / _PROBES  # type: ignore[return-value]

    def read_weather(
        self,
        texture: torch.Tensor,
        u: torch.Tensor,
        v: torch.Tensor,
        footprint: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        """Read a texture's brightness about its middle, three times as wide as it is otherwise shown (B, 1, N)."""
        wide = 0.317
        longest = torch.stack([*footprint[0], *footprint[1]]).abs().amax(0)
        level = (longest * wide * self.size).clamp(min=1e-6).log2().round().clamp(2, self.levels - 1)
        return (self.read(texture, u * wide, v * wide, level).mean(1, keepdim=True) - 0.45) * 2


def _cell(size: int) -> tuple[int, int]:
    """Return (height, width) of a cell that holds a texture, its reduced copies, and their borders."""
    return size + 2 * int(math.log2(size)), size + size // 2 + 4


def _place_of_level(level: int, size: int) -> tuple[int, int]:
    """Return (top, left) of the border of a reduced copy in its cell."""
    return size - 2 * (size >> level) + 2 * (level - 1), size + 2
