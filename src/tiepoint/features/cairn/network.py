"""Cairn's network: detector and descriptor head, and the pyramid that both read."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import CELL, RADIUS, RINGS_PER_OCTAVE, CairnConfig
from .description import Description, DescriptorHead, SteerableDescriptorHead
from .detection import Detector, Keypoints, Scores, pyramid, to_grey

WINDOW = 2  # pixels to each side of a peak over which its position is averaged
PITCH = 0.25  # pixel of the level that a ring is read from, as a share of its radius
_AT_ONCE = {"cpu": 1024}  # patches described together: 30 MB in each layer, few operators


class Level(NamedTuple):
    """Where one level of the pyramid lies in the atlas, which holds all of them side by side."""

    left: int
    top: int
    width: int
    height: int


class CairnNet(nn.Module):
    """Detector and descriptor head, and the pyramid that both read.

    Parameters
    ----------
    config : CairnConfig
        Size.
    """

    def __init__(self, config: CairnConfig) -> None:
        super().__init__()
        self.config = config
        self.detector = Detector(config.width)
        self.describer = SteerableDescriptorHead(config) if config.harmonics else DescriptorHead(config)

    def forward(self, pictures: Tensor, count: int) -> tuple[Keypoints, Description]:
        """Find and describe ``count`` keypoints in each of B pictures, uint8 (B, 3, H, W).

        No shape depends on what the pictures show, so this can be compiled, and exported to ONNX.
        """
        images = self.levels(to_grey(pictures))
        found = self.detect(self.score(images), count)
        return found, self.describe(images, found.positions, found.levels)

    def levels(self, grey: Tensor) -> list[Tensor]:
        """Return the pyramid of grey images (B, 1, H, W), as deep as the widest rings of the last level need it."""
        return pyramid(grey, self.config.levels + level_of_ring(self.config.outermost_radius))

    def score(self, images: list[Tensor]) -> Scores:
        """Return what the detector says about the levels on which keypoints are looked for."""
        kept = [image for i, image in enumerate(images[: self.config.levels]) if not i or min(image.shape[2:]) >= 24]
        return Scores.join([(image, *self.detector(image)) for image in kept])

    def detect(self, scores: Scores, count: int, noise: Tensor | None = None) -> Keypoints:
        """Choose the ``count`` peaks of highest rank and place them between pixels.

        Parameters
        ----------
        scores : Scores
            From `score`.
        count : int
            Keypoints to choose; fewer come only if the image has fewer cells.
        noise : tensor (B, cells), optional
            Added to the ranks when choosing: training looks at keypoints that are not yet thought good, too.
        """
        noisy = scores.ranks if noise is None else scores.ranks + noise
        chosen = noisy.topk(min(count, noisy.shape[1]), dim=1).indices
        ranks = scores.ranks.gather(1, chosen)
        if noise is not None:
            ranks, order = ranks.sort(dim=1, descending=True)
            chosen = chosen.gather(1, order)
        level, x, y = scores.locate(chosen)
        inside = torch.arange(CELL, device=x.device)
        logits = scores.window(level, CELL * x, CELL * y, inside)
        top = logits.flatten(2).argmax(2)
        x, y = CELL * x + top % CELL, CELL * y + top // CELL
        step = torch.arange(-WINDOW, WINDOW + 1, device=x.device)
        share = scores.window(level, x, y, step).flatten(2).softmax(2).unflatten(2, (len(step), len(step)))
        at = torch.stack([x + (share.sum(2) * step).sum(2), y + (share.sum(3) * step).sum(2)], 2)
        return Keypoints(scores.to_image(at, level), level, ranks)

    @torch.no_grad()
    def patches(self, images: list[Tensor], positions: Tensor, levels: Tensor) -> Tensor:
        """Read the patch around each keypoint: (B, N, angles, rings).

        Parameters
        ----------
        images : list of tensors (B, 1, h, w)
            From `levels`.
        positions, levels : tensors (B, N, 2), (B, N)
            From `detect`.
        """
        config = self.config
        atlas, places = _atlas(images)
        device, dtype = atlas.device, atlas.dtype
        height, width = images[0].shape[2:]
        radii = [RADIUS * 2 ** (ring / RINGS_PER_OCTAVE) for ring in range(config.rings)]
        coarser = torch.tensor([level_of_ring(radius) for radius in radii], device=device)
        read = (levels[..., None] + coarser).clamp(max=len(images) - 1)  # (B, N, rings): level of each ring
        angle = torch.arange(config.angles, device=device, dtype=dtype) * (2 * math.pi / config.angles)
        unit = torch.stack([angle.cos(), angle.sin()], 1)
        radius = torch.tensor(radii, device=device, dtype=dtype) * torch.exp2(levels[..., None] / 2)  # image pixels
        table = torch.tensor(places, device=device, dtype=dtype)  # (levels of the pyramid, 4)
        start, length = table[read].split(2, -1)  # (B, N, rings, 2), as all that follows: x and y side by side
        # -1 and 1 are the atlas's edges; a level goes on beyond its own edges with its outermost pixels
        pixel = 2 / table.new_tensor([atlas.shape[3], atlas.shape[2]])
        share = length / table.new_tensor([width, height])
        centre = ((positions[:, :, None] + 0.5) * share + start) * pixel - 1
        reach = radius[..., None] * share * pixel
        low, high = (start + 0.5) * pixel - 1, (start + length - 0.5) * pixel - 1
        # x and y of all rings in one row of numbers, so that each operator runs over long rows
        centre, reach, low, high = (part.flatten(2)[:, :, None] for part in (centre, reach, low, high))
        grid = (centre + reach * unit.repeat(1, config.rings)).clamp(low, high)
        grid = grid.unflatten(3, (config.rings, 2)).flatten(2, 3)  # (B, N, angles * rings, 2)
        values = F.grid_sample(atlas, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return values[:, 0].unflatten(2, (config.angles, config.rings))

    def describe(self, images: list[Tensor], positions: Tensor, levels: Tensor) -> Description:
        """Describe the keypoints of all images, one after the other: B N rows."""
        return self.read(self.patches(images, positions, levels).flatten(0, 1))

    def read(self, patches: Tensor) -> Description:
        """Describe patches (N, angles, rings), some at a time."""
        parts = [self.describer(part) for part in patches.split(_AT_ONCE.get(patches.device.type, len(patches) or 1))]
        if len(parts) == 1:
            return Description(*parts[0])
        return Description(*(torch.cat(part) for part in zip(*parts, strict=True)))


def level_of_ring(radius: float) -> int:
    """How many levels coarser than the keypoint's own a ring is read from."""
    return max(0, round(2 * math.log2(PITCH * radius)))


def _atlas(images: list[Tensor]) -> tuple[Tensor, list[Level]]:
    """Put all levels on one sheet: the first two below each other, the rest below each other beside them."""
    columns = [images[:2], images[2:]]
    height = max(sum(image.shape[2] for image in column) for column in columns)
    sheets, places, left = [], [], 0
    for column in columns:
        if not column:
            continue
        width, top, parts = column[0].shape[3], 0, []
        for image in column:
            places.append(Level(left, top, image.shape[3], image.shape[2]))
            parts.append(F.pad(image, (0, width - image.shape[3])))
            top += image.shape[2]
        sheets.append(F.pad(torch.cat(parts, 2), (0, 0, 0, height - top)))
        left += width
    return torch.cat(sheets, 3), places
