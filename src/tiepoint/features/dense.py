"""What extractors that look for peaks in a network's score map share."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def to_tensor(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return RGB pixels (H, W, 3) as a float32 tensor (1, 3, H, W) in [0, 1]."""
    return torch.tensor(pixels, device=device).permute(2, 0, 1)[None].contiguous().float() / 255


def peaks(scores: Tensor, threshold: float, radius: int, border: int = 0, rescue_rounds: int = 0) -> Tensor:
    """Find the local maxima of a score map.

    Parameters
    ----------
    scores : tensor (H, W)
        One score for each pixel.
    threshold : float
        Peaks must be higher.
    radius : int
        A peak is the highest in the square of this many pixels to each side; 0 takes every pixel.
    border : int
        No peaks this many pixels from the edge.
    rescue_rounds : int
        A pixel overtopped only by pixels that are no peaks themselves is a peak of what remains once the
        squares around the found peaks are cleared. So many times this is looked for; the published SuperPoint
        and ALIKED do so twice.

    Returns
    -------
    int64 tensor (N, 2)
        (x, y) in raster order.

    Examples
    --------
    >>> import torch
    >>> peaks(torch.tensor([[0.0, 0.9, 0.8, 0.0, 0.5]]), threshold=0.1, radius=1).tolist()
    [[1, 0], [4, 0]]
    """

    def highest(x: Tensor) -> Tensor:
        size = 2 * radius + 1  # a square window is a row, then a column: 2 size instead of size² comparisons
        x = F.max_pool2d(x[None], (1, size), stride=1, padding=(0, radius))
        return F.max_pool2d(x, (size, 1), stride=1, padding=(radius, 0))[0]

    found = scores > threshold
    if radius > 0:
        is_peak = scores == highest(scores)
        for _ in range(rescue_rounds):
            covered = highest(is_peak.to(scores.dtype)) > 0
            remaining = scores.masked_fill(covered, 0)
            is_peak |= (remaining == highest(remaining)) & ~covered
        found &= is_peak
    if border > 0:
        inside = torch.zeros_like(found)
        inside[border:-border, border:-border] = True
        found &= inside
    return found.nonzero().flip(1)


def sample(dense: Tensor, positions: Tensor, mode: str = "bilinear") -> Tensor:
    """Read a map (1, C, h, w) at positions (N, 2), normalised so that -1 and 1 are its edges: (N, C)."""
    values = F.grid_sample(dense, positions[None, None], mode=mode, align_corners=False)
    return values[0, :, 0].T
