"""Pictures whose corners are known: drawn shapes, and photographs seen through many homographies (arXiv 1712.07629)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from ...features.cairn import to_grey
from ...features.dense import peaks
from ...features.superpoint import CELL, SuperPointNet, scores_of
from ...io.files import atomic
from ..data import homographies, photometric
from ..data._random import seeded
from ..data.photographs import PhotoCache
from ..data.shapes import draw_shapes
from ..tensors import Tensors
from .views import CHUNK

NO_CORNER = CELL**2  # the class of a cell without one
NMS_RADIUS, BORDER = 4, 4  # pixels
_SAVE_EVERY = 20  # photographs


@dataclass(frozen=True)
class CornersConfig:
    """How corners of photographs are found.

    Attributes
    ----------
    views : int
        Warped views of each photograph that are looked at.
    threshold : float
        Mean score from which a pixel is a corner.
    most : int
        Corners kept of each photograph.
    """

    views: int = 100
    threshold: float = 0.015
    most: int = 600


@dataclass(frozen=True, eq=False)
class Corners(Tensors):
    """B pictures whose corners are known; rows 2p and 2p + 1 are views of one photograph where there are homographies.

    Attributes
    ----------
    images : uint8 tensor (B, 3, H, W)
    cells : int64 tensor (B, H // 8, W // 8)
        Which pixel of the cell is a corner, row by row, or `NO_CORNER`.
    homography : float32 tensor (B // 2, 3, 3), or (0, 3, 3) for single pictures
        Maps pixels of the first view to the second.
    """

    images: Tensor
    cells: Tensor
    homography: Tensor

    def __len__(self) -> int:
        return len(self.images) if not len(self.homography) else len(self.homography)


def cells_of(corners: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the class of each cell (h // 8, w // 8) of a picture with corners (N, 2) at (x, y); the first one wins.

    Examples
    --------
    >>> cells_of(torch.tensor([[9.2, 2.0]]), (8, 16)).tolist()
    [[64, 17]]
    """
    rows, columns = size[0] // CELL, size[1] // CELL
    x, y = corners.flip(0).round().long().unbind(1)
    inside = (x >= 0) & (y >= 0) & (x < columns * CELL) & (y < rows * CELL)
    x, y = x[inside], y[inside]
    cells = torch.full((rows, columns), NO_CORNER)
    cells[y // CELL, x // CELL] = (y % CELL) * CELL + x % CELL  # of several the last is written
    return cells


class ShapesMaker:
    """Makes pictures of synthetic shapes: a function of seed, step and chunk.

    Parameters
    ----------
    size : (int, int)
        (height, width).
    seed : int
    held_out : bool
        Pictures for evaluation.
    """

    def __init__(self, size: tuple[int, int], seed: int, held_out: bool = False) -> None:
        self.size, self.seed, self.held_out = size, seed, held_out

    def __call__(self, step: int, chunks: range) -> Corners:
        """Return these chunks of `CHUNK` pictures of a step, the same at every call."""
        images, cells = [], []
        for chunk in chunks:
            random = np.random.default_rng([self.seed, self.held_out, step, chunk])
            for _ in range(CHUNK):
                picture, corners = draw_shapes(random, self.size)
                images.append(torch.from_numpy(picture).expand(3, -1, -1))
                cells.append(cells_of(torch.from_numpy(corners), self.size))
        return Corners(torch.stack(images), torch.stack(cells), torch.zeros(0, 3, 3))


class CornerPairsMaker:
    """Makes pairs of views of photographs whose corners are known.

    Parameters
    ----------
    photos : PhotoCache
        Where pictures come from.
    corners : list of tensors (N, 2)
        Of each row of ``photos``, see `find_corners`.
    size : (int, int)
        (height, width) of the views.
    light : str
        Preset of `tiepoint.training.data.photometric.PhotometricConfig`.
    seed : int
    held_out : bool
        Use the photographs kept for evaluation.
    """

    def __init__(
        self,
        photos: PhotoCache,
        corners: list[Tensor],
        size: tuple[int, int],
        light: str,
        seed: int,
        held_out: bool = False,
    ) -> None:
        self.photos, self.corners, self.size, self.light = photos, corners, size, light
        self.seed, self.held_out = seed, held_out

    def __call__(self, step: int, chunks: range) -> Corners:
        """Return these chunks of `CHUNK` pairs of a step, the same at every call."""
        images, cells, maps = [], [], []
        config = homographies.HomographyConfig(self.size, zoom=0.5)
        for chunk in chunks:
            generator = seeded(self.seed, self.held_out, step, chunk)
            for row in self.photos.draw(CHUNK, generator, self.held_out).tolist():
                photo = whole(self.photos, row, self.size)
                both = homographies.sample_views(1, (photo.shape[2], photo.shape[3]), config, generator)
                light = photometric.PhotometricConfig.preset(self.light)
                for view in both:
                    picture = photometric.augment(homographies.warp(photo, view, self.size), light, generator)
                    images.append((picture[0] * 255).round().byte())
                    seen = homographies.transform(torch.linalg.inv(view)[0], self.corners[row].double())
                    cells.append(cells_of(seen, self.size))
                maps.append((torch.linalg.inv(both[1]) @ both[0])[0])
        homography = torch.stack(maps)
        return Corners(torch.stack(images), torch.stack(cells), (homography / homography[:, 2:, 2:]).float())


def whole(photos: PhotoCache, row: int, size: tuple[int, int]) -> Tensor:
    """Return the piece of a photograph (1, 3, 2 h, 2 w) that views of ``size`` are cut from, always the same."""
    twice = 2 * size[0], 2 * size[1]
    return photos.sample([row], twice, torch.Generator().manual_seed(row), smallest_crop=1.0)


@torch.no_grad()
def adapt(net: SuperPointNet, photo: Tensor, config: CornersConfig, generator: torch.Generator) -> Tensor:
    """Find the corners of one photograph by homographic adaptation.

    Parameters
    ----------
    net : SuperPointNet
        In evaluation mode, on the photograph's device.
    photo : tensor (1, 3, H, W) in [0, 1]
    config : CornersConfig
        How.
    generator : torch.Generator
        On the CPU; chooses the views.

    Returns
    -------
    float32 tensor (N, 2)
        (x, y), by falling score.
    """
    height, width = (side // CELL * CELL for side in photo.shape[2:])
    grey = to_grey(photo[:, :, :height, :width] * 255)
    wanted = homographies.HomographyConfig((height, width), difficulty=0.5, zoom=0.4, max_scale=1.0)
    seen, _ = homographies.sample_views(max(1, config.views), (height, width), wanted, generator)
    seen[0] = torch.eye(3)
    total, times = torch.zeros_like(grey), torch.zeros_like(grey)
    covered = F.pad(torch.ones_like(grey)[:, :, 1:-1, 1:-1], (1, 1, 1, 1))  # zero beyond the edges, when read from
    for view in seen[:, None]:
        scores = scores_of(net.heads(homographies.warp(grey, view, (height, width)))[0].float())[:, None]
        back = torch.linalg.inv(view)
        total += homographies.warp(scores * covered, back, (height, width))
        times += homographies.warp(covered, back, (height, width))
    mean = torch.where(times >= 1, total / times.clamp(min=1), 0.0)[0, 0]
    found = peaks(mean, config.threshold, NMS_RADIUS, BORDER)
    best = mean[found[:, 1], found[:, 0]].argsort(descending=True)[: config.most]
    return found[best].float().cpu()


def find_corners(
    net: SuperPointNet,
    photos: PhotoCache,
    size: tuple[int, int],
    config: CornersConfig,
    path: str | os.PathLike[str],
    device: torch.device,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Tensor]:
    """Find the corners of all photographs and keep them in a file. Resumes a partial file.

    Parameters
    ----------
    net : SuperPointNet
        A detector of corners.
    photos : PhotoCache
    size : (int, int)
        Of the views that will be cut from the photographs, see `whole`.
    config : CornersConfig
        How.
    path : path
        The file.
    device : torch.device
        Where the network runs.
    report : callable
        Called with the numbers of photographs done and of all.
    """
    path = Path(path)
    corners: list[Tensor] = []
    if path.exists():
        saved = safetensors.torch.load_file(path)
        corners = list(saved["points"].split(saved["counts"].tolist()))
    net = net.to(device).eval()
    for row in range(len(corners), len(photos)):
        photo = whole(photos, row, size).to(device)
        corners.append(adapt(net, photo, config, torch.Generator().manual_seed(row)))
        if len(corners) % _SAVE_EVERY == 0 or len(corners) == len(photos):
            counts = torch.tensor([len(points) for points in corners])
            with atomic(path) as unfinished:
                unfinished.write_bytes(safetensors.torch.save({"points": torch.cat(corners), "counts": counts}))
            report(len(corners), len(photos))
    # One storage for all: each of its own would cost every worker process a file descriptor.
    return list(torch.cat(corners).split([len(points) for points in corners]))
