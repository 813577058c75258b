"""Descriptors that turn with the image, in closed form (steerable: Bökman et al., CVPR 2024, arXiv 2312.02152).

A descriptor is a row of circular harmonics. Those of order 0 do not change when the camera rolls; a pair of numbers of
order m turns by m times the angle of the roll. So one descriptor serves both needs: turned to the direction of its own
keypoint it is the same at any roll, and turned to a direction that two photographs share it also tells apart what
differs by its direction only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def length(harmonics: Sequence[int]) -> int:
    """Return how many numbers a descriptor has: one for each of order 0, two for each of a higher order.

    Examples
    --------
    >>> length((64, 32, 16))
    160
    """
    return 2 * sum(harmonics) - harmonics[0]


def steer(descriptors: Tensor, angles: Tensor, harmonics: Sequence[int]) -> Tensor:
    """Return the descriptors of the image turned by an angle.

    Parameters
    ----------
    descriptors : float tensor (..., D)
        First the numbers of order 0, then for each order m the real parts and the imaginary parts of its harmonics.
    angles : float tensor (...)
        Radians from +x towards +y.
    harmonics : sequence of int
        How many harmonics there are of the orders 0, 1, 2 …

    Returns
    -------
    float tensor (..., D)
        Of the same length (norm) as before.

    Examples
    --------
    >>> steer(torch.tensor([[5.0, 1.0, 0.0]]), torch.tensor([torch.pi / 2]), (1, 1)).round()
    tensor([[5., -0., 1.]])
    """
    sizes = [harmonics[0], *(2 * count for count in harmonics[1:])]
    parts = list(descriptors.split(sizes, dim=-1))
    for order, part in enumerate(parts[1:], start=1):
        real, imaginary = part.chunk(2, dim=-1)
        cos, sin = (order * angles[..., None]).cos(), (order * angles[..., None]).sin()
        parts[order] = torch.cat([cos * real - sin * imaginary, sin * real + cos * imaginary], dim=-1)
    return torch.cat(parts, dim=-1)
