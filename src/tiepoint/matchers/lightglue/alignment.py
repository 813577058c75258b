"""The geometry of a pair before it is matched: normalised positions, one common roll, scale and place, its code.

`normalise_positions` is the paper's. `align` and `frame_code` are ours: weights whose configuration says ``align`` were
trained with them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..mutual import mutual_nearest

if TYPE_CHECKING:
    from .config import LightGlueConfig


class Keypoints(Protocol):
    """What `pair_positions` asks of an image."""

    @property
    def keypoints(self) -> Tensor:
        """Pixels (N, 2)."""

    @property
    def descriptors(self) -> Tensor:
        """Unit vectors (N, D)."""

    @property
    def image_size(self) -> tuple[float, float]:
        """Width and height, pixels."""

    @property
    def scales(self) -> Tensor | None:
        """Pixels (N,)."""

    @property
    def orientations(self) -> Tensor | None:
        """Radians (N,)."""


def normalise_positions(
    keypoints: Tensor,
    image_size: tuple[float, float],
    scales: Tensor | None = None,
    orientations: Tensor | None = None,
) -> Tensor:
    """Centre pixel coordinates (N, 2) and divide by half the longer side; append scale and orientation.

    Examples
    --------
    >>> normalise_positions(torch.tensor([[320.0, 240.0], [640.0, 480.0]]), (640, 480))
    tensor([[0.0000, 0.0000],
            [1.0000, 0.7500]])
    """
    size = keypoints.new_tensor(image_size)
    positions = (keypoints - size / 2) / (size.max() / 2)
    if scales is None or orientations is None:
        return positions
    return torch.cat([positions, scales[:, None], orientations[:, None]], dim=-1)


def pair_positions(config: LightGlueConfig, image0: Keypoints, image1: Keypoints) -> tuple[Tensor, Tensor]:
    """Return the positions (N, 2 or 4), (M, 2 or 4) of a pair as the network of this configuration takes them.

    Matching and training prepare their inputs here. The images may be `tiepoint.Features`, or anything that has their
    keypoints, size, scales and orientations, and descriptors if pairs are aligned.
    """
    p0, p1 = (_positions(config, image) for image in (image0, image1))
    if not config.align:
        return p0, p1
    return align(image0.descriptors, image1.descriptors, p0, p1, max(image0.image_size), max(image1.image_size))


def _positions(config: LightGlueConfig, image: Keypoints) -> Tensor:
    if not config.scale_orientation:
        return normalise_positions(image.keypoints, image.image_size)
    assert image.scales is not None  # the caller has checked
    scales = image.scales.log2() if config.log_scale else image.scales
    return normalise_positions(image.keypoints, image.image_size, scales, image.orientations)


_VOTES = 512  # nearest neighbours that are asked how image 1 lies to image 0; the most distinct ones
_ROLL, _OCTAVES = 0.2, 0.5  # standard deviations of what a right match says of roll (radians) and scale
_SHIFT = 0.15  # the same of the place, in half long sides
_UPRIGHT = 4.0  # votes that every pair has for "neither rolled nor scaled"


def align(
    descriptors0: Tensor,
    descriptors1: Tensor,
    positions0: Tensor,
    positions1: Tensor,
    long_side0: float | Tensor,
    long_side1: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """Bring a pair to one roll, scale and place, before anything is matched: then true matches look alike in both.

    Each mutual nearest neighbour says how image 1 lies to image 0: by its orientations how it is rolled, by its scales
    how much larger it is, by its places where it has gone. The mode of these votes, weighted by distinctness, is right
    long before most neighbours are (weak geometric consistency, Jégou et al., ECCV 2008). Two views of a scene are not
    similar to each other, so this is a hint and no more; what it is worth is learned.

    Parameters
    ----------
    descriptors0, descriptors1 : (N, D), (M, D)
        Unit vectors that do not change when the camera rolls.
    positions0, positions1 : (N, 4), (M, 4)
        From `normalise_positions`, with log2 of the scale in pixels.
    long_side0, long_side1 : float or tensor ()
        Of the images, pixels.

    Returns
    -------
    (N, 4), (M, 4)
        Image 1 as image 0 would show it; the unit of length is half the long side of the larger one.

    Examples
    --------
    >>> d = torch.nn.functional.normalize(torch.randn(50, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    >>> p = torch.cat([torch.linspace(-1, 1, 100).view(50, 2), torch.ones(50, 2)], 1)
    >>> moved = p + torch.tensor([0.3, -0.2, 0, 0])
    >>> a, b = align(d, d, p, moved, 640, 640)
    >>> torch.allclose(a, b, atol=1e-3)
    True
    """
    if descriptors0.shape[0] < 2 or descriptors1.shape[0] < 2:
        roll = octaves = positions0.new_zeros(())
        shift = positions0.new_zeros(2)
        i = j = torch.zeros(0, dtype=torch.long, device=positions0.device)
        share = positions0.new_zeros(0)
    else:
        i, j, weight = _neighbours(descriptors0, descriptors1)
        roll, octaves, share = _roll_and_scale(positions1[j, 2:] - positions0[i, 2:], weight)
    unit1 = long_side1 * torch.exp2(-octaves)
    unit = torch.clamp(unit1, min=long_side0)
    cos, sin = roll.cos(), roll.sin()
    x, y, size, angle = positions1.unbind(1)
    turned = torch.stack([cos * x + sin * y, cos * y - sin * x], 1) * (unit1 / unit)
    place = positions0[:, :2] * (long_side0 / unit)
    if i.shape[0]:
        shift = _mode(turned[j] - place[i], share)
    return (
        torch.cat([place, positions0[:, 2:]], 1),
        torch.cat([turned - shift, torch.stack([size - octaves, angle - roll], 1)], 1),
    )


def _neighbours(descriptors0: Tensor, descriptors1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Most distinct nearest neighbours: indices (K,), (K,), and weights (K,), zero where they are not mutual."""
    similarity = descriptors0 @ descriptors1.T
    best, second = similarity.topk(2, dim=1)[0].unbind(1)
    _, nearest, mutual = mutual_nearest(similarity)
    distances = (2 - 2 * torch.stack([best, second])).clamp(min=1e-6).sqrt()
    weight = torch.where(mutual, 1 - distances[0] / distances[1], 0)  # how much nearer than the second nearest
    weight, i = weight.topk(torch.sym_min(_VOTES, weight.shape[0]))
    return i, nearest[i], weight


def _roll_and_scale(votes: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mode of votes (K, 2), octaves and radians: roll, octaves, and how much each vote agrees (K,)."""
    votes = torch.cat([votes, votes.new_zeros(1, 2)])
    weight = torch.cat([weight, _UPRIGHT * weight.mean()[None]])
    zoom, turn = (votes - votes[:, None]).unbind(2)
    turn = torch.remainder(turn + math.pi, 2 * math.pi) - math.pi
    support = torch.exp(-0.5 * ((turn / _ROLL) ** 2 + (zoom / _OCTAVES) ** 2)) * weight
    mode = support.sum(1).argmax()
    share = support[mode] / support[mode].sum().clamp(min=1e-9)
    octaves = votes[mode, 0] + (zoom[mode] * share).sum()
    roll = votes[mode, 1] + (turn[mode] * share).sum()
    return torch.remainder(roll + math.pi, 2 * math.pi) - math.pi, octaves, share[:-1]


def _mode(votes: Tensor, weight: Tensor) -> Tensor:
    """Mode of weighted votes (K, 2) for a shift."""
    squared = (votes[:, None] - votes).square().sum(2)
    support = torch.exp(-0.5 / _SHIFT**2 * squared) * weight
    share = support[support.sum(1).argmax()]
    return (votes * share[:, None]).sum(0) / share.sum().clamp(min=1e-9)


# What `frame_code` takes cosine and sine of: waves over the picture, in radians for a half long side, in four
# directions; one and two turns of the orientation; radians for an octave of scale.
_WAVES = torch.tensor(
    [
        [wave * math.cos(direction), wave * math.sin(direction), 0.0, 0.0]
        for wave in (1.0, 2.2, 5.0)
        for direction in (0.0, math.pi / 4, math.pi / 2, 3 * math.pi / 4)
    ]
    + [[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 2.0], [0.0, 0.0, 0.8, 0.0], [0.0, 0.0, 1.6, 0.0]],
    dtype=torch.float32,  # whatever the user has chosen as defaults before this is imported
    device="cpu",
)
# As much for orientation and scale together as for two octaves.
_WAVE_WEIGHTS = torch.tensor([1.0] * 12 + [2.0] * 4, dtype=torch.float32, device="cpu")
FRAME_CODE = 2 * len(_WAVES)


def frame_code(positions: Tensor) -> Tensor:
    """Write aligned places, scales and orientations (T, 4) as unit vectors (T, `FRAME_CODE`).

    The inner product of two says how well two keypoints agree: a sum of cosines of their differences, largest where
    there are none. So a network that begins with inner products of descriptors can weigh geometry from the start.

    Examples
    --------
    >>> code = frame_code(torch.tensor([[0.0, 0, 3, 1], [0.1, 0, 3, 1.2], [0.9, 0, 1, 4]]))
    >>> (code @ code.T)[0].round(decimals=2)
    tensor([1.0000, 0.9700, 0.0400])
    """
    angles = positions @ _WAVES.to(positions).T
    weights = (_WAVE_WEIGHTS / _WAVE_WEIGHTS.sum()).sqrt().to(positions)
    return torch.cat([angles.cos() * weights, angles.sin() * weights], 1)
