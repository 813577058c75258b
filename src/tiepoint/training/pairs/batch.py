"""Features of pairs with ground truth, padded to tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from ...types import Features
from ..data.ground_truth import IGNORED, Labels
from ..tensors import Tensors


class Picture(NamedTuple):
    """Keypoints of one picture without padding, see `Batch`; scales and orientations only where they are measured."""

    keypoints: torch.Tensor
    scores: torch.Tensor
    descriptors: torch.Tensor
    image_size: tuple[float, float]
    scales: torch.Tensor | None
    orientations: torch.Tensor | None


@dataclass(frozen=True, eq=False)
class Batch(Tensors):
    """Features of B pairs, at most N of each picture, and their labels.

    Pictures are ordered pair by pair: rows 2p and 2p + 1 are the two pictures of pair p. Pictures with fewer
    than N keypoints are padded with zeros.

    Attributes
    ----------
    descriptors : float16 tensor (2 B, N, D)
    keypoints : float32 tensor (2 B, N, 2)
        Pixels.
    scores : float32 tensor (2 B, N)
    scales, orientations : float32 tensors (2 B, N), or (2 B, 0) where the extractor does not measure them
    counts : int64 tensor (2 B,)
        Keypoints of each picture.
    sizes : float32 tensor (2 B, 2)
        (width, height) of each picture.
    matches0, matches1 : int64 tensors (B, N)
        The two sides of `Labels`.
    related : bool tensor (B,)
        False for a pair of two unrelated photographs.
    """

    descriptors: torch.Tensor
    keypoints: torch.Tensor
    scores: torch.Tensor
    scales: torch.Tensor
    orientations: torch.Tensor
    counts: torch.Tensor
    sizes: torch.Tensor
    matches0: torch.Tensor
    matches1: torch.Tensor
    related: torch.Tensor

    @property
    def labels(self) -> Labels:
        """Ground truth."""
        return Labels(self.matches0, self.matches1)

    def __len__(self) -> int:
        return len(self.related)

    @property
    def present(self) -> torch.Tensor:
        """False for padding, bool (2 B, N)."""
        return torch.arange(self.keypoints.shape[1], device=self.counts.device) < self.counts[:, None]

    @property
    def has_scales(self) -> bool:
        """Whether the extractor measures scale and orientation of a keypoint."""
        return self.scales.shape[1] > 0

    def pictures(self) -> list[Picture]:
        """Return the keypoints of each picture, with float32 descriptors that carry no gradient."""
        columns = (self.keypoints, self.scores, self.descriptors.detach().float(), self.scales, self.orientations)
        pictures = []
        for i, (count, (width, height)) in enumerate(zip(self.counts.tolist(), self.sizes.tolist(), strict=True)):
            keypoints, scores, descriptors, *frame = (column[i, :count] for column in columns)
            scales, orientations = frame if self.has_scales else (None, None)
            pictures.append(Picture(keypoints, scores, descriptors, (width, height), scales, orientations))
        return pictures

    def features(self, extractor: str) -> list[tuple[Features, Features]]:
        """Return the features of each pair, as a matcher takes them."""
        rows = []
        for keypoints, scores, descriptors, (width, height), *frame in self.pictures():
            rows.append(Features(keypoints, scores, descriptors, (int(width), int(height)), extractor, *frame))
        return list(zip(rows[0::2], rows[1::2], strict=True))

    def unpack(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Cut packed states (T, d) of all keypoints into those of first and second pictures.

        Returns
        -------
        states0, states1 : tensors (B, N, d)
            Zero where padded.
        present0, present1 : bool tensors (B, N)
            False for padding.
        """
        present = self.present
        padded = states.new_zeros(*present.shape, states.shape[-1]).masked_scatter(present[..., None], states)
        both, there = padded.unflatten(0, (-1, 2)), present.unflatten(0, (-1, 2))
        return both[:, 0], both[:, 1], there[:, 0], there[:, 1]

    def head(self, keypoints: int) -> Batch:
        """Keep the best ``keypoints`` of each picture; a point whose partner was dropped is ignored from now on."""
        n = keypoints
        matches = [torch.where(m[:, :n] >= n, IGNORED, m[:, :n]) for m in (self.matches0, self.matches1)]
        per_point = {
            name: getattr(self, name)[:, :n]
            for name in ("descriptors", "keypoints", "scores", "scales", "orientations")
        }
        return replace(self, **per_point, counts=self.counts.clamp(max=n), matches0=matches[0], matches1=matches[1])

    def reframed(self, random: np.random.Generator, largest: float = 2.5) -> Batch:
        """Pretend that every picture is a part of a larger one, taken with the camera rolled.

        A matcher sees photographs only through keypoints, so one extraction serves many frames. Points are then as
        dense as in photographs with more of them, small scales occur in large photographs, and nothing depends on the
        position in the frame. Where the extractor measures orientations (its descriptors then do not change when the
        camera rolls) pictures are rolled, too.

        Parameters
        ----------
        random : numpy.random.Generator
            Chooses.
        largest : float
            How much longer, at most, the side of the frame is than that of the picture.
        """
        pairs = len(self)
        sizes, keypoints, orientations = self.sizes, self.keypoints, self.orientations
        if self.has_scales:
            turn = torch.from_numpy(random.uniform(-math.pi, math.pi, (2 * pairs, 1))).float()
            cos, sin = turn.cos(), turn.sin()
            x, y = (keypoints - (sizes[:, None] - 1) / 2).unbind(-1)
            bounds = torch.stack([(sizes * torch.cat(row, 1).abs()).sum(1) for row in ((cos, sin), (sin, cos))], 1)
            keypoints = torch.stack([cos * x - sin * y, sin * x + cos * y], -1) + (bounds[:, None] - 1) / 2
            orientations = torch.remainder(orientations + turn, 2 * math.pi)
            sizes = bounds
        frames = sizes * torch.from_numpy(random.uniform(1, largest, (2 * pairs, 1))).float()
        offsets = (frames - sizes) * torch.from_numpy(random.random((2 * pairs, 2))).float()
        return replace(self, keypoints=keypoints + offsets[:, None], orientations=orientations, sizes=frames)
