"""The networks of Cairn and LightGlue as modules of plain tensors, for pictures and pairs of any size.

They call the modules that tiepoint trains and runs. What is written anew here has the same result, in a form without
sizes that depend on a picture: one level of the pyramid at a time, all levels in one row of pixels, one pair.
The loops around them are those of `tiepoint.runtimes.run`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..features.cairn import CELL, CairnNet
from ..features.cairn.config import DIAMETER, RADIUS, RINGS_PER_OCTAVE
from ..features.cairn.detection import BORDER
from ..features.cairn.network import WINDOW, level_of_ring
from ..matchers.lightglue import LightGlueConfig, LightGlueNet, align
from ..matchers.lightglue.network import AssignmentHead, read_matches


class Detect(nn.Module):
    """One level of the pyramid -> its keypoints and their scores."""

    def __init__(self, net: CairnNet) -> None:
        super().__init__()
        self.detector = net.detector

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x, y) in pixels of the level (N, 2), and scores (N,), of its grey image (h, w) in [0, 1]."""
        height, width = image.shape
        logits, ranks = (out[0] for out in self.detector(image[None, None]))
        highest = logits.amax(0)
        peak = highest == F.max_pool2d(highest[None], 3, 1, 1)[0]
        edge = BORDER // CELL
        row, column = torch.arange(ranks.shape[0])[:, None], torch.arange(ranks.shape[1])
        peak = peak & (row >= edge) & (row < (height - BORDER) // CELL)
        peak = peak & (column >= edge) & (column < (width - BORDER) // CELL)
        y, x = torch.nonzero(peak).unbind(1)
        scores = ranks[y, x].sigmoid()
        pixels = F.pixel_shuffle(logits[None], CELL)[0, 0]
        inside = torch.arange(CELL)
        top = (
            pixels[(CELL * y)[:, None, None] + inside[:, None], (CELL * x)[:, None, None] + inside].flatten(1).argmax(1)
        )
        x, y = CELL * x + top % CELL, CELL * y + torch.div(top, CELL, rounding_mode="floor")
        steps = torch.arange(-WINDOW, WINDOW + 1)  # BORDER keeps them inside
        around = pixels[y[:, None, None] + steps[:, None], x[:, None, None] + steps]
        offsets = torch.stack([steps.repeat(len(steps)), steps.repeat_interleave(len(steps))], 1).float()
        # One product: sums over rows and columns of the window come out wrong by OpenVINO's CPU plugin (2026.4.1).
        at = torch.stack([x, y], 1).float() + around.flatten(1).softmax(1) @ offsets
        return at, scores


class Describe(nn.Module):
    """Keypoints and the pyramid -> what `Features` hold of them."""

    radii: Tensor
    coarser: Tensor

    def __init__(self, net: CairnNet) -> None:
        super().__init__()
        self.describer = net.describer
        self.angles = net.config.angles
        radii = [RADIUS * 2 ** (ring / RINGS_PER_OCTAVE) for ring in range(net.config.rings)]
        self.register_buffer("radii", torch.tensor(radii), persistent=False)
        self.register_buffer("coarser", torch.tensor([level_of_ring(radius) for radius in radii]), persistent=False)

    def forward(
        self, pixels: Tensor, places: Tensor, positions: Tensor, levels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return descriptors (N, D), diameters (N,), directions (N,) and covariances (N, 2, 2) of keypoints.

        ``pixels`` (P,) are those of all levels, row after row, level after level; ``places`` (levels, 3) are the index
        of a level's first pixel in them, its width and its height; ``positions`` (N, 2) are pixels of the first level.
        """
        description = self.describer(self.patches(pixels, places, positions, levels))
        scale = torch.exp2(levels / 2)
        spreads = description.spreads * scale[:, None, None]
        return (
            F.normalize(description.descriptors, dim=1),
            DIAMETER * scale,
            torch.atan2(description.directions[:, 1], description.directions[:, 0]),
            spreads @ spreads.mT,
        )

    def patches(self, pixels: Tensor, places: Tensor, positions: Tensor, levels: Tensor) -> Tensor:
        """`CairnNet.patches` (N, angles, rings), without an atlas."""
        read = torch.clamp(levels[:, None] + self.coarser, max=places.shape[0] - 1)
        start, width, height = places[read].unbind(2)  # (N, rings)
        radius = self.radii * torch.exp2(levels[:, None] / 2)  # in pixels of the first level
        angle = torch.arange(self.angles) * (2 * math.pi / self.angles)
        corners, parts = [], []
        for axis, (length, unit) in enumerate(((width, angle.cos()), (height, angle.sin()))):
            ratio = length / places[0, 1 + axis]
            centre = (positions[:, axis, None] + 0.5) * ratio - 0.5
            at = centre[:, None] + (radius * ratio)[:, None] * unit[:, None]
            last = length[:, None] - 1  # a level goes on beyond its edges with its outermost pixels
            at = at.clamp(min=0).minimum(last.to(at.dtype))
            low = at.floor().long()
            corners.append((low, (low + 1).minimum(last)))
            parts.append(at - low)
        rows = [start[:, None] + y * width[:, None] for y in corners[1]]
        top, bottom = (torch.lerp(pixels[row + corners[0][0]], pixels[row + corners[0][1]], parts[0]) for row in rows)
        return torch.lerp(top, bottom, parts[1])


class Begin(nn.Module):
    """Features of two images -> the first states of LightGlue and their rotary encoding."""

    def __init__(self, net: LightGlueNet, config: LightGlueConfig) -> None:
        super().__init__()
        self.net, self.config = net, config

    def forward(
        self,
        keypoints0: Tensor,
        scales0: Tensor,
        orientations0: Tensor,
        descriptors0: Tensor,
        size0: Tensor,
        keypoints1: Tensor,
        scales1: Tensor,
        orientations1: Tensor,
        descriptors1: Tensor,
        size1: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return states (N, d), cosines and sines (N, D / 2) of image 0, then of image 1; sizes are (width, height)."""
        p0 = self._positions(keypoints0, scales0, orientations0, size0)
        p1 = self._positions(keypoints1, scales1, orientations1, size1)
        if self.config.align:
            p0, p1 = align(descriptors0, descriptors1, p0, p1, size0.amax(0), size1.amax(0))
        return *self.net.encode(descriptors0, p0), *self.net.encode(descriptors1, p1)

    def _positions(self, keypoints: Tensor, scales: Tensor, orientations: Tensor, size: Tensor) -> Tensor:
        positions = (keypoints - size / 2) / (size.amax(0) / 2)
        scales = scales.log2() if self.config.log_scale else scales
        return torch.cat([positions, scales[:, None], orientations[:, None]], 1)


class OneLayer(nn.Module):
    """Layer i of LightGlue, with what decides whether it is the last, and for which points."""

    def __init__(self, net: LightGlueNet, i: int) -> None:
        super().__init__()
        self.layer = net.layers[i]
        self.matchability = net.heads[i].matchability
        self.confidence = net.confidence[i] if i + 1 < net.config.layers else None

    def forward(
        self, x0: Tensor, cos0: Tensor, sin0: Tensor, x1: Tensor, cos1: Tensor, sin1: Tensor
    ) -> tuple[Tensor, ...]:
        """Return new states, matchability and, but for the last layer, confidence of image 0, then of image 1."""
        states = self.layer(x0, x1, (cos0, sin0), (cos1, sin1))
        classifiers = [one for one in (self.matchability, self.confidence) if one is not None]
        return tuple(out for x in states for out in (x, *(one(x)[:, 0].sigmoid() for one in classifiers)))


class Assign(nn.Module):
    """States of both images -> matches."""

    def __init__(self, head: AssignmentHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, x0: Tensor, x1: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        """Return matches (K, 2) with an assignment P above ``threshold``, and their P (K,)."""
        rows, scores = read_matches(self.head(x0, x1), threshold)
        return rows.T, scores
