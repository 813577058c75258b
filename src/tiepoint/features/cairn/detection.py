"""Where keypoints are: the image pyramid, the detector network, and its scores on all levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import CELL, NOISE

LOGIT_GAIN = 4.0
BORDER = 6  # pixels of a level along its edges without keypoints: the network sees padding there
GREY = (0.299, 0.587, 0.114)  # of red, green and blue in the brightness


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


def normalise_contrast(image: Tensor) -> Tensor:
    """Subtract from each pixel of (B, 1, h, w) the mean around it and divide by the standard deviation around it.

    Both are those of squares of 8 pixels, interpolated. Light and contrast then matter little, and noise in flat parts
    is not amplified.
    """
    size = image.shape[2:]
    squares = torch.cat([image, image * image], 1)
    squares = F.avg_pool2d(squares, 8, 8, ceil_mode=True, count_include_pad=False)
    squares = F.avg_pool2d(squares, 3, 1, 1, count_include_pad=False)
    mean, square = F.interpolate(squares, size=size, mode="bilinear", align_corners=False).split(1, 1)
    return (image - mean) / ((square - mean * mean).clamp(min=0).sqrt() + 3 * NOISE)


class Detector(nn.Module):
    """Grey image of one level (B, 1, h, w) -> a logit for each pixel and a rank for each cell.

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
        positive and the negative part through the layers; the others begin at random and do not reach the output.
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
        x = normalise_contrast(image)
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % CELL, 0, -height % CELL), mode="replicate")
        fine = self.fine(F.pixel_unshuffle(x, CELL).contiguous(memory_format=torch.channels_last))
        context = F.interpolate(self.coarse(fine), size=fine.shape[2:], mode="bilinear", align_corners=False)
        # in place: `context` is needed for no gradient
        out = _mix(self.head[1], self.head[0](context.add_(fine).relu_()))
        # Peaks stand out by several units, which small weights should reach.
        return LOGIT_GAIN * out[:, :-1], out[:, -1]


def _mix(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a convolution of 1 x 1 as a product of matrices: of few outputs three times as fast on CPUs."""
    assert isinstance(layer, nn.Conv2d) and layer.bias is not None
    return (layer.weight.flatten(1) @ x.flatten(2) + layer.bias[:, None]).unflatten(2, x.shape[2:])


def _highest_around(x: Tensor) -> Tensor:
    """Return the maximum of each 3 x 3 window of (B, h, w): `F.max_pool2d`, twenty times as fast on CPUs."""
    x = F.pad(x, (1, 1, 1, 1), value=-torch.inf)
    x = torch.maximum(torch.maximum(x[:, :-2], x[:, 1:-1]), x[:, 2:])
    return torch.maximum(torch.maximum(x[..., :-2], x[..., 1:-1]), x[..., 2:])


def _laplacian() -> Tensor:
    """Return a Laplacian of Gaussian (5, 5) for blobs of sigma 1 pixel, of zero sum."""
    steps = torch.arange(-2.0, 3.0)
    squared = steps[:, None] ** 2 + steps**2
    kernel = (2 - squared) * torch.exp(-squared / 2)
    kernel = kernel - kernel.mean()
    return kernel / kernel.clamp(min=0).sum()


@dataclass(frozen=True, eq=False)
class Scores:
    """What the detector says about every level of B images, level after level in one row.

    Attributes
    ----------
    logits : float32 tensor (B, pixels)
        Of each pixel, those of one place in the cell after those of another; only differences between neighbours mean
        anything.
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
            peak = highest == _highest_around(highest)
            inner = torch.zeros_like(peak[0])
            height, width = image.shape[2:]
            edge = BORDER // CELL
            inner[edge : (height - BORDER) // CELL, edge : (width - BORDER) // CELL] = True
            ranked.append(torch.where(peak & inner, ranks.float(), -torch.inf).flatten(1))
            flat.append(logits.float().flatten(1))
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
        columns, rows = self.cells[level].unbind(-1)
        size = (columns * rows)[..., None]
        begins = CELL**2 * (self.cells.prod(1).cumsum(0) - self.cells.prod(1))[level]
        # Only where an image has fewer peaks than asked for does a window leave its level.
        x = (x[..., None] + steps).clamp(min=0).minimum(CELL * columns[..., None] - 1)
        y = (y[..., None] + steps).clamp(min=0).minimum(CELL * rows[..., None] - 1)
        across = x // CELL + x % CELL * size
        down = y // CELL * columns[..., None] + CELL * (y % CELL) * size
        index = (begins[..., None] + down)[..., None] + across[..., None, :]
        return self.logits.gather(1, index.flatten(1)).view(index.shape)

    def to_image(self, at: Tensor, level: Tensor) -> Tensor:
        """Map positions (B, N, 2) on levels (B, N) to pixels of the image."""
        return (at + 0.5) * (self.pixels.new_tensor(self.size) / self.pixels)[level] - 0.5

    def to_level(self, at: Tensor, level: Tensor) -> Tensor:
        """Map pixels (B, N, 2) of the image to those of levels (B, N)."""
        return (at + 0.5) * (self.pixels / self.pixels.new_tensor(self.size))[level] - 0.5
