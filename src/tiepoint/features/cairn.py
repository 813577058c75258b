"""Cairn: tiepoint's own extractor, a SIFT whose parts are learned.

What SIFT has by construction, Cairn keeps by construction: keypoints are found on every level of an image pyramid,
so scale is measured and not learned; each is described by a patch around it whose size follows that level and whose
direction is the keypoint's own, so a camera may be rolled and zoomed. What SIFT has by hand is learned from
photographs: where a keypoint is (`Detector`), how likely it is to be matched, which direction is its own, how
precisely it is located, and its descriptor (`Describer`).

1. `pyramid`: the grey image, each level smaller by the square root of 2.
2. `Detector`: a small convolutional network, the same on every level: for each pixel a logit of being the keypoint of
   its neighbourhood, for each cell of 2 x 2 pixels the logit that its keypoint would be matched correctly (the rank).
3. `CairnNet.detect`: peaks of the former, the best by the latter, placed between pixels by a soft arg-max.
4. `CairnNet.describe`: rings of samples around each keypoint, wide ones read from coarse levels of the pyramid, so
   that the patch is fine at its centre, coarse outside, and nowhere aliased. Turning the photograph turns the rings;
   convolutions along them commute with that, so the keypoint's direction is equivariant without being taught.

`Cairn` makes an `Extractor` of it. It is trained by ``tiepoint train features``, see
`tiepoint.training.objectives.cairn`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import weights as weights_module
from ..errors import ArgumentError
from ..types import Features
from .base import Extractor, ExtractorOptions, best
from .steerable import length, steer

CELL = 2  # pixels along the side of a cell of the detector
WINDOW = 2  # pixels to each side of a peak over which its position is averaged
LOGIT_GAIN = 4.0
BORDER = 6  # pixels of a level along its edges without keypoints: the network sees padding there
DIAMETER = 8.0  # pixels of its level that a keypoint's `Features.scales` covers
NOISE = 0.01  # standard deviation that even a flat surface has, for pixels in [0, 1]
FAINT = 0.1  # amplitude of the harmonic below which a direction means little
RADIUS = 1.25  # of the innermost ring, in pixels of the keypoint's level
RINGS_PER_OCTAVE = 3
_AT_ONCE = {"cpu": 64}  # patches whose layers stay in a core's cache: a third faster than all at once
GREY = (0.299, 0.587, 0.114)  # of red, green and blue in the brightness
PITCH = 0.25  # pixel of the level that a ring is read from, as a share of its radius


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
        Of the describer: numbers for each angle, and layers after the first.
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


class Level(NamedTuple):
    """Where one level of the pyramid lies in the atlas, which holds all of them side by side."""

    left: int
    top: int
    width: int
    height: int


class Keypoints(NamedTuple):
    """What `CairnNet.detect` finds in each of B images, sorted by falling rank.

    Attributes
    ----------
    positions : tensor (B, N, 2)
        (x, y) in pixels of the image.
    levels : int64 tensor (B, N)
        Of the pyramid.
    ranks : tensor (B, N)
        Logit of being matched correctly; ``-inf`` where an image has fewer than N peaks.
    """

    positions: Tensor
    levels: Tensor
    ranks: Tensor


class Description(NamedTuple):
    """What `Describer` says about N keypoints.

    Attributes
    ----------
    descriptors : tensor (N, D)
        Of unit length.
    directions : tensor (N, 2)
        (cos, sin) of the keypoint's direction, of unit length.
    spreads : tensor (N, 2, 2)
        Lower triangular L, in pixels of the keypoint's level and along the image's axes: L L^T is the covariance of
        its position.
    """

    descriptors: Tensor
    directions: Tensor
    spreads: Tensor


def to_grey(rgb: Tensor) -> Tensor:
    """Return the brightness (..., 1, H, W) in [0, 1] of uint8 pictures (..., 3, H, W)."""
    return sum(weight / 255 * rgb[..., i : i + 1, :, :] for i, weight in enumerate(GREY))  # type: ignore[return-value]


def pyramid(grey: Tensor, levels: int) -> list[Tensor]:
    """Return images (B, 1, h, w), each smaller than the one before by the square root of 2, none under 8 pixels.

    Parameters
    ----------
    grey : tensor (B, 1, H, W)
        The first level.
    levels : int
        How many at most.

    Examples
    --------
    >>> [tuple(level.shape[2:]) for level in pyramid(torch.zeros(1, 1, 48, 64), 9)]
    [(48, 64), (34, 45), (24, 32), (17, 23), (12, 16), (8, 11)]
    """
    height, width = grey.shape[2:]
    images = [grey]
    for level in range(1, levels):
        size = round(height / 2 ** (level / 2)), round(width / 2 ** (level / 2))
        if min(size) < 8:
            break
        # from an octave before where there is one: a filter over 2 pixels and a bit leaves few aliases
        source = images[max(0, level - 2)]
        images.append(F.interpolate(source, size=size, mode="bilinear", antialias=True))
    return images


def even_out(image: Tensor) -> Tensor:
    """Subtract from each pixel of (B, 1, h, w) the mean around it and divide by the standard deviation around it.

    Both are those of squares of 8 pixels, interpolated. Light and contrast then matter little, and noise in flat parts
    is not blown up.
    """
    size = image.shape[2:]
    squares = torch.cat([image, image * image], 1)
    squares = F.avg_pool2d(squares, 8, 8, ceil_mode=True, count_include_pad=False)
    squares = F.avg_pool2d(squares, 3, 1, 1, count_include_pad=False)
    mean, square = F.interpolate(squares, size=size, mode="bilinear", align_corners=False).split(1, 1)
    return (image - mean) / ((square - mean * mean).clamp(min=0).sqrt() + 3 * NOISE)


class Detector(nn.Module):
    """Grey image of one level (B, 1, h, w) -> what each pixel is worth.

    At half resolution for precision, at a quarter for context, added together.
    """

    def __init__(self, width: int) -> None:
        super().__init__()

        def conv(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1), nn.ReLU(inplace=True))

        self.fine = nn.Sequential(conv(CELL**2, width), conv(width, width))
        self.coarse = nn.Sequential(
            conv(width, 2 * width, stride=2),
            conv(2 * width, 2 * width),
            conv(2 * width, 2 * width),
            nn.Conv2d(2 * width, width, 1),
        )
        self.head = nn.Sequential(conv(width, width), nn.Conv2d(width, CELL**2 + 1, 1))
        self._start_as_blob_detector()

    @torch.no_grad()
    def _start_as_blob_detector(self) -> None:
        """Let the logit of a pixel begin as the strength of a Laplacian of Gaussian there, and the rank as its sum.

        Random peaks are not found again, and a network that learns from what is found again begins by flattening them;
        blobs are, as SIFT has shown, so it has only to improve. Two channels for each of a cell's pixels carry the
        positive and the negative part through the layers; the others begin at random and without a say.
        """
        convolutions = [module for module in self.modules() if isinstance(module, nn.Conv2d)]
        for convolution in convolutions:
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)
        first, second, *_, context, third, last = convolutions
        kernel = _laplacian()
        pixels = CELL**2
        first.weight[: 2 * pixels] = 0
        for pixel in range(pixels):
            # a 3 x 3 window of cells, laid out as pixels, and in it the kernel around one pixel of the middle cell
            window = torch.zeros(3 * CELL, 3 * CELL)
            row, column = pixel // CELL, pixel % CELL
            window[row : row + 5, column : column + 5] = kernel
            cells = F.pixel_unshuffle(window[None, None], CELL)[0]
            first.weight[2 * pixel], first.weight[2 * pixel + 1] = cells, -cells
        for passing in (second, third):
            nn.init.dirac_(passing.weight[: 2 * pixels])
        nn.init.zeros_(context.weight)
        nn.init.zeros_(last.weight)
        for pixel in range(pixels):
            last.weight[pixel, 2 * pixel : 2 * pixel + 2] = 1
        last.weight[-1, : 2 * pixels] = 0.5
        assert last.bias is not None
        last.bias[-1] = -2

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of pixels (B, 4, h', w'), as `pixel_shuffle` orders them, and ranks of cells (B, h', w').

        h' and w' are those of the image, divided by 2 and rounded up.
        """
        x = even_out(image)
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % CELL, 0, -height % CELL), mode="replicate")
        fine = self.fine(F.pixel_unshuffle(x, CELL).contiguous(memory_format=torch.channels_last))
        context = F.interpolate(self.coarse(fine), size=fine.shape[2:], mode="bilinear", align_corners=False)
        out = self.head(F.relu(fine + context))
        # Peaks stand out by several units, which small weights should reach.
        return LOGIT_GAIN * out[:, :-1], out[:, -1]


def _laplacian() -> Tensor:
    """Return a Laplacian of Gaussian (5, 5) for blobs of sigma 1 pixel, of zero sum."""
    steps = torch.arange(-2.0, 3.0)
    squared = steps[:, None] ** 2 + steps**2
    kernel = (2 - squared) * torch.exp(-squared / 2)
    kernel = kernel - kernel.mean()
    return kernel / kernel.clamp(min=0).sum()


class Describer(nn.Module):
    """Patches in polar coordinates (N, angles, rings) -> `Description`."""

    def __init__(self, config: CairnConfig) -> None:
        super().__init__()
        c = config.channels
        self.first = nn.Linear(5 * config.rings, c)
        self.second = nn.Linear(3 * c, c)
        self.third = nn.Linear(3 * c, c)
        self.compass = nn.Linear(c, 1)
        self.descriptor = nn.Linear(c * config.angles // 2, config.dim)
        self.spread = nn.Linear(c * config.angles // 2, 3)

    def forward(self, patches: Tensor) -> Description:
        """Describe patches, each of any brightness and contrast."""
        x = F.layer_norm(patches, patches.shape[1:], eps=NOISE**2)
        x = _norm(F.relu(self.first(_around(x, 2)[:, ::2])))
        x = _norm(F.relu(self.second(_around(x, 1))))
        x = _norm(F.relu(self.third(_around(x, 1))))
        direction = self._direction(x)
        x = _turn(x, direction).flatten(1)
        descriptors = F.normalize(self.descriptor(x), dim=1)
        # how precise a position is must not bend what describes it
        return Description(descriptors, direction, self._spread(x.detach(), direction.detach()))

    def _direction(self, x: Tensor) -> Tensor:
        """Return the phase of the first harmonic of one feature around the circle, as a unit vector.

        Where the harmonic all but vanishes its phase is chance, whose gradient would be without bounds: the gradient is
        that of a vector which shrinks there.
        """
        angle = torch.arange(x.shape[1], device=x.device) * (2 * math.pi / x.shape[1])
        compass = self.compass(x)[..., 0].float()
        # the same on all sides means angle 0
        harmonic = torch.stack([(compass * angle.cos()).sum(1) + 1e-6, (compass * angle.sin()).sum(1)], 1)
        shrinking = harmonic * (harmonic.square().sum(1, keepdim=True) + FAINT**2).rsqrt()
        return F.normalize(harmonic, dim=1).detach() + (shrinking - shrinking.detach())

    def _spread(self, x: Tensor, direction: Tensor) -> Tensor:
        """Return a Cholesky factor: predicted along the keypoint's direction, turned to the image's axes."""
        a, b, c = self.spread(x).float().unbind(1)
        cos, sin = direction.float().unbind(1)
        a, c = a.clamp(-4, 4).exp(), c.clamp(-4, 4).exp()
        # turned: rows of R L; its covariance factored again, in closed form
        xx, xy, yx, yy = cos * a - sin * b, -sin * c, sin * a + cos * b, cos * c
        first = torch.sqrt(xx * xx + xy * xy)
        second = (xx * yx + xy * yy) / first
        third = a * c / first  # the determinant stays
        return torch.stack([first, torch.zeros_like(first), second, third], 1).unflatten(1, (2, 2))


class SteerableDescriber(nn.Module):
    """Patches in polar coordinates (N, angles, rings) -> `Description`, all of it read from circular harmonics.

    After the layers each patch is a function on the circle with values in R^channels. Its Fourier coefficients of order
    m turn by m times the angle by which the photograph is turned. A coefficient of order 1 gives the direction, one of
    order 0 and one of order 2 the covariance, and linear maps that keep the orders apart give the descriptor.
    """

    def __init__(self, config: CairnConfig) -> None:
        super().__init__()
        c = config.channels
        self.harmonics = config.harmonics
        self.first = nn.Linear(5 * config.rings, c)
        self.layers = nn.ModuleList(nn.Linear(3 * c, c) for _ in range(config.depth))
        self.compass = nn.Linear(c, 2, bias=False)
        # real and imaginary parts of complex weights
        self.descriptor = nn.ModuleList(
            nn.Linear(c, (2 if order else 1) * count, bias=order == 0) for order, count in enumerate(config.harmonics)
        )
        self.size = nn.Linear(c, 1)
        self.stretch = nn.Linear(c, 2, bias=False)

    def forward(self, patches: Tensor) -> Description:
        """Describe patches, each of any brightness and contrast."""
        x = F.layer_norm(patches, patches.shape[1:], eps=NOISE**2)
        x = _norm(F.relu(self.first(_around(x, 2)[:, ::2])))
        for layer in self.layers:
            x = _norm(x + F.relu(layer(_around(x, 1))))
        real, imaginary = self.orders(x)
        direction = _unit(torch.cat(_complex(self.compass, real[:, 1], imaginary[:, 1]), 1))
        read = self.read(real, imaginary)
        turned = steer(read, -torch.atan2(direction[:, 1], direction[:, 0]), self.harmonics)
        return Description(turned, direction, self._spread(real.detach(), imaginary.detach()))

    def orders(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return real and imaginary parts (N, orders, C) of the Fourier coefficients of (N, A, C) around the circle."""
        orders = max(3, len(self.harmonics))  # direction and covariance need three
        angle = torch.arange(x.shape[1], device=x.device) * (2 * math.pi / x.shape[1])
        phase = torch.arange(orders, device=x.device)[:, None] * angle
        x = x.float()
        return phase.cos() @ x / x.shape[1], phase.sin() @ x / x.shape[1]

    def read(self, real: Tensor, imaginary: Tensor) -> Tensor:
        """Return unit descriptors (N, D) as the image stands."""
        parts = [self.descriptor[0](real[:, 0])]
        for order in range(1, len(self.harmonics)):
            parts.extend(_complex(self.descriptor[order], real[:, order], imaginary[:, order]))
        return F.normalize(torch.cat(parts, 1), dim=1)

    def _spread(self, real: Tensor, imaginary: Tensor) -> Tensor:
        """Return the Cholesky factor of a covariance with axes exp(size ± stretch), stretched in a direction."""
        size = self.size(real[:, 0])[:, 0].clamp(-4, 4)
        x, y = (part[:, 0].clamp(-4, 4) for part in _complex(self.stretch, real[:, 2], imaginary[:, 2]))
        stretch = (x * x + y * y + 1e-6).sqrt()
        along = torch.sinh(stretch.clamp(max=4)) / stretch
        a, b, c = torch.cosh(stretch.clamp(max=4)) + along * x, along * y, torch.cosh(stretch.clamp(max=4)) - along * x
        first = a.sqrt()
        second = b / first
        third = (c - second * second).clamp(min=1e-6).sqrt()
        rows = torch.stack([first, torch.zeros_like(first), second, third], 1).unflatten(1, (2, 2))
        return rows * size.exp()[:, None, None]


def _complex(weights: nn.Module, real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply complex numbers (N, C) by the complex matrix whose real and imaginary parts a linear layer holds."""
    (a, b), (c, d) = weights(real).chunk(2, 1), weights(imaginary).chunk(2, 1)
    return a - d, b + c


def _unit(harmonic: Tensor) -> Tensor:
    """Return vectors (N, 2) at unit length.

    Where one all but vanishes its direction is chance, whose gradient would be without bounds: the gradient is that of
    a vector which shrinks there.
    """
    harmonic = harmonic + harmonic.new_tensor([1e-6, 0.0])  # the same on all sides means angle 0
    shrinking = harmonic * (harmonic.square().sum(1, keepdim=True) + FAINT**2).rsqrt()
    return F.normalize(harmonic, dim=1).detach() + (shrinking - shrinking.detach())


def _around(x: Tensor, reach: int) -> Tensor:
    """Join each angle of (N, A, C) with its neighbours on both sides: (N, A, (2 reach + 1) C)."""
    return torch.cat([x.roll(shift, 1) for shift in range(reach, -reach - 1, -1)], 2)


def _norm(x: Tensor) -> Tensor:
    """Standardise each patch as a whole, so that what holds for one angle holds for all."""
    return F.layer_norm(x, x.shape[1:])


def _turn(x: Tensor, direction: Tensor) -> Tensor:
    """Turn (N, A, C) so that angle 0 is that of ``direction`` (N, 2); linear between angles."""
    count = x.shape[1]
    angle = torch.atan2(direction[:, 1], direction[:, 0]) * (count / (2 * math.pi))
    whole = angle.detach().floor()
    part = (angle - whole)[:, None, None].to(x.dtype)
    index = (whole.long()[:, None] + torch.arange(count, device=x.device)) % count
    x = torch.lerp(x, x.roll(-1, 1), part)
    return x.gather(1, index[..., None].expand_as(x))


@dataclass(frozen=True, eq=False)
class Scores:
    """What the detector says about every level of B images, level after level in one row.

    Attributes
    ----------
    logits : float32 tensor (B, pixels)
        Of each pixel; only differences between neighbours mean anything.
    ranks : float32 tensor (B, cells)
        Logit of "the keypoint of this cell would be matched correctly"; ``-inf`` in a cell whose highest pixel does
        not overtop those of the cells around, and along the edges.
    size : (int, int)
        (width, height) of the image.
    cells, pixels : int64 tensor (levels, 2)
        (columns, rows) of each level: of cells, and of true pixels (cells may reach beyond them).
    """

    logits: Tensor
    ranks: Tensor
    size: tuple[int, int]
    cells: Tensor
    pixels: Tensor

    @staticmethod
    def join(levels: list[tuple[Tensor, Tensor, Tensor]]) -> Scores:
        """Join images (B, 1, h, w), logits (B, 4, h', w') and ranks (B, h', w') of all levels."""
        flat, ranked = [], []
        for image, logits, ranks in levels:
            highest = logits.amax(1)
            peak = highest == F.max_pool2d(highest, 3, 1, 1)
            inner = torch.zeros_like(peak[0])
            height, width = image.shape[2:]
            edge = BORDER // CELL
            inner[edge : (height - BORDER) // CELL, edge : (width - BORDER) // CELL] = True
            ranked.append(torch.where(peak & inner, ranks.float(), -torch.inf).flatten(1))
            flat.append(F.pixel_shuffle(logits.float(), CELL).flatten(1))
        first = levels[0][0]
        table = [[(image.shape[3], image.shape[2]), (ranks.shape[2], ranks.shape[1])] for image, _, ranks in levels]
        pixels, cells = torch.tensor(table, device=first.device).unbind(1)
        return Scores(torch.cat(flat, 1), torch.cat(ranked, 1), (first.shape[3], first.shape[2]), cells, pixels)

    def locate(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return level, column and row of cells given by their places in `ranks`, each (B, N)."""
        ends = self.cells.prod(1).cumsum(0)
        level = torch.bucketize(index, ends, right=True)
        index = index - (ends - self.cells.prod(1))[level]
        columns = self.cells[level, 0]
        return level, index % columns, torch.div(index, columns, rounding_mode="floor")

    def window(self, level: Tensor, x: Tensor, y: Tensor, steps: Tensor) -> Tensor:
        """Read the logits around pixels (B, N) of their levels: (B, N, len(steps) rows, len(steps) columns)."""
        columns, rows = (CELL * self.cells[level]).unbind(-1)
        begins = CELL**2 * (self.cells.prod(1).cumsum(0) - self.cells.prod(1))[level]
        # Only where an image has fewer peaks than asked for does a window leave its level.
        x = (x[..., None] + steps).clamp(min=0).minimum(columns[..., None] - 1)
        y = (y[..., None] + steps).clamp(min=0).minimum(rows[..., None] - 1)
        index = (begins[..., None] + y * columns[..., None])[..., None] + x[..., None, :]
        return self.logits.gather(1, index.flatten(1)).view(index.shape)

    def to_image(self, at: Tensor, level: Tensor) -> Tensor:
        """Map positions (B, N, 2) on levels (B, N) to pixels of the image."""
        return (at + 0.5) * (self.pixels.new_tensor(self.size) / self.pixels)[level] - 0.5

    def to_level(self, at: Tensor, level: Tensor) -> Tensor:
        """Map pixels (B, N, 2) of the image to those of levels (B, N)."""
        return (at + 0.5) * (self.pixels / self.pixels.new_tensor(self.size))[level] - 0.5


class CairnNet(nn.Module):
    """Detector and describer, and the pyramid that both read.

    Parameters
    ----------
    config : CairnConfig
        Size.
    """

    def __init__(self, config: CairnConfig) -> None:
        super().__init__()
        self.config = config
        self.detector = Detector(config.width)
        self.describer = SteerableDescriber(config) if config.harmonics else Describer(config)

    def forward(self, pictures: Tensor, count: int) -> tuple[Keypoints, Description]:
        """Find and describe ``count`` keypoints in each of B pictures, uint8 (B, 3, H, W).

        No shape depends on what the pictures show, so this can be compiled, and exported to ONNX.
        """
        images = self.levels(to_grey(pictures))
        found = self.detect(self.score(images), count)
        return found, self.describe(images, found.positions, found.levels)

    def levels(self, grey: Tensor) -> list[Tensor]:
        """Return the pyramid of grey images (B, 1, H, W), as deep as the widest rings of the last level need it."""
        return pyramid(grey, self.config.levels + _level_of_ring(self.config.outermost_radius))

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
        coarser = torch.tensor([_level_of_ring(radius) for radius in radii], device=device)
        read = (levels[..., None] + coarser).clamp(max=len(images) - 1)  # (B, N, rings): level of each ring
        angle = torch.arange(config.angles, device=device) * (2 * math.pi / config.angles)
        radius = torch.tensor(radii, device=device) * torch.exp2(levels[..., None] / 2)  # pixels of the image
        axes = []
        for axis, (full, whole, unit) in enumerate(
            ((width, atlas.shape[3], angle.cos()), (height, atlas.shape[2], angle.sin()))
        ):
            start = torch.tensor([place[axis] for place in places], device=device, dtype=dtype)[read]
            length = torch.tensor([place[axis + 2] for place in places], device=device, dtype=dtype)[read]
            # -1 and 1 are the atlas's edges; a level goes on beyond its own edges with its outermost pixels
            scale = 2 / whole
            centre = ((positions[..., axis, None] + 0.5) * (length / full) + start) * scale - 1
            low, high = (start + 0.5) * scale - 1, (start + length - 0.5) * scale - 1
            at = centre[..., None, :] + (radius * (length / full) * scale)[..., None, :] * unit[:, None]
            axes.append(at.maximum(low[..., None, :]).minimum(high[..., None, :]))
        grid = torch.stack(axes, -1).flatten(2, 3)  # (B, N, angles * rings, 2)
        values = F.grid_sample(atlas, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return values[:, 0].unflatten(2, (config.angles, config.rings))

    def describe(self, images: list[Tensor], positions: Tensor, levels: Tensor) -> Description:
        """Describe the keypoints of all images, one after the other: B N rows."""
        patches = self.patches(images, positions, levels).flatten(0, 1)
        parts = [self.describer(part) for part in patches.split(_AT_ONCE.get(patches.device.type, len(patches) or 1))]
        return Description(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _level_of_ring(radius: float) -> int:
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


class Cairn(Extractor):
    """tiepoint's own extractor.

    The score of a keypoint is how right a match of it is expected to be, where the other photograph shows it: the mean
    of the probabilities that mutual nearest neighbours match it with an error below 1, 2 and 3 pixels. Of keypoints
    closer together than the NMS radius, which are mostly one found on several levels, the one of highest score stays.

    ``Features.covariances`` hold how precisely each keypoint is located.

    Parameters
    ----------
    options : ExtractorOptions, optional
        The common controls.
    device : torch.device or str
        Where the networks run.
    weights : str or path, optional
        Those of a training of one's own, in place of the bundled ones.
    bfloat16 : bool
        Compute in 16 bits: faster where the processor can, and nearly the same.

    Raises
    ------
    WeightsError
        The weights are not on this machine, or of another layout.
    """

    name: ClassVar[str] = "cairn"
    default_threshold: ClassVar[float] = 0.02
    default_nms_radius: ClassVar[int] = 2
    min_side: ClassVar[int] = 24
    # 16 float32 channels at half resolution on seven levels, several at a time
    max_untiled_pixels: ClassVar[int] = 12_000_000
    tile_side: ClassVar[int] = 3072
    tile_overlap: ClassVar[int] = 384  # the radius of a patch on the coarsest level, and what its keypoint sees

    def __init__(
        self,
        options: ExtractorOptions | None = None,
        device: torch.device | str = "cpu",
        weights: str | os.PathLike[str] | None = None,
        bfloat16: bool = False,
    ) -> None:
        super().__init__(options, device)
        self.bfloat16 = bfloat16
        source = weights or self.name
        state, config = weights_module.load(source)
        with torch.device("meta"):
            net = CairnNet(CairnConfig.from_dict(config, source))
        self.net = weights_module.load_into(net, state, source)
        self.harmonics = self.net.config.harmonics
        # channels-last convolutions are 1.3 times as fast on CPUs
        self.net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def _extract(self, pixels: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> Features:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            images = self._levels(pixels)
            scores = self.net.score(images)
            # Several levels find the same point, and a mask forbids some: choose among more than are wanted.
            count = int(scores.ranks.isfinite().sum())
            if mask is None and self.options.max_keypoints is not None:
                count = min(count, 4 * self.options.max_keypoints)
            found = self.net.detect(scores, count)
            values = found.ranks[0].sigmoid()
            good = torch.nonzero(values > (self.options.detection_threshold or 0)).flatten()
            kept = good[best(found.positions[0, good], values[good], mask, self.options)]
            positions, levels = found.positions[:, kept], found.levels[:, kept]
            described = self.net.describe(images, positions, levels)
        size = pixels.shape[1], pixels.shape[0]
        features = Features(positions[0], values[kept], described.descriptors.float(), size, self.name)
        return self._described(features, levels[0], described)

    @torch.inference_mode()
    def _describe(self, pixels: NDArray[np.uint8], given: Features) -> Features:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            levels = torch.zeros(len(given), dtype=torch.long, device=self.device)
            if given.scales is not None:
                nearest = (2 * torch.log2(given.scales.to(self.device) / DIAMETER)).round().long()
                levels = nearest.clamp(0, self.net.config.levels - 1)
            described = self.net.describe(self._levels(pixels), given.keypoints.to(self.device)[None], levels[None])
        return self._described(given, levels, described)

    def _levels(self, pixels: NDArray[np.uint8]) -> list[Tensor]:
        """Return the pyramid of RGB pixels (H, W, 3)."""
        return self.net.levels(to_grey(torch.tensor(pixels, device=self.device).permute(2, 0, 1))[None])

    def _described(self, found: Features, levels: Tensor, described: Description) -> Features:
        """Add what the network says about keypoints of levels (N,)."""
        scale = torch.exp2(levels / 2)
        spreads = described.spreads.float() * scale[:, None, None]
        return replace(
            found,
            extractor=self.name,
            descriptors=F.normalize(described.descriptors.float(), dim=1),
            scales=DIAMETER * scale,
            orientations=torch.atan2(described.directions[:, 1].float(), described.directions[:, 0].float()),
            covariances=spreads @ spreads.mT,
        )
