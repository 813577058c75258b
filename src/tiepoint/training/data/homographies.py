"""Two views of one photograph, related by a random homography.

Both views lie entirely within the photograph, so no border, black or mirrored, gives the pair away. Reduced
views are read from reduced copies of the photograph (mip maps), so they hold no aliases.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ...errors import ArgumentError
from ._random import Draw

_CANDIDATES = 16  # pairs of views drawn for each photograph; the first that overlaps enough is taken


@dataclass(frozen=True)
class HomographyConfig:
    """What the two views may differ by.

    Attributes
    ----------
    size : (int, int)
        (height, width) of both views, in pixels.
    difficulty : float in [0, 1]
        Perspective and stretch of each view. At 0 the views differ by a similarity; at 1 the two sides of a view
        may differ in scale by a factor of up to 2.3 in each direction, and it may be stretched 1.5 to 1.
    max_roll : float
        The views are rolled against each other by an angle uniform in ±``max_roll``, in radians.
    max_scale : float
        Their scales, measured at the views' centres, differ by a log-uniform factor between 1/``max_scale`` and
        ``max_scale``.
    zoom : float
        The wider view takes a fraction between this and 1 of the largest size that fits into the photograph.
    translation : float in [0, 1]
        At 0 both views look at the photograph's centre; at 1 each lies anywhere within it.
    min_overlap : float in [0, 1)
        At least this fraction of one of the views, the one that sees more of it in the other, is common.

    Examples
    --------
    >>> HomographyConfig((480, 640), max_roll=3.14, max_scale=4.0).min_overlap
    0.3
    """

    size: tuple[int, int] = (480, 640)
    difficulty: float = 0.7
    max_roll: float = math.pi / 4
    max_scale: float = 2.0
    zoom: float = 0.7
    translation: float = 1.0
    min_overlap: float = 0.3

    def __post_init__(self) -> None:
        if min(self.size) < 16:
            raise ArgumentError(f"size is {self.size}; views need at least 16 pixels on each side")
        for name, low, high in (
            ("difficulty", 0, 1),
            ("max_roll", 0, math.pi),
            ("max_scale", 1, math.inf),
            ("zoom", 0.05, 1),
            ("translation", 0, 1),
            ("min_overlap", 0, 0.99),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ArgumentError(f"{name} is {value}; it must lie between {low:g} and {high:g}")


@dataclass(frozen=True, eq=False)
class HomographyPairs:
    """A batch of B pairs of views.

    Attributes
    ----------
    images0, images1 : float32 tensor (B, 3, h, w)
        RGB in [0, 1].
    homography : float32 tensor (B, 3, 3)
        Maps pixels (x, y, 1) of view 0 to view 1; (0, 0) is the centre of the top-left pixel.
    overlap : float32 tensor (B, 2)
        Fraction of view 0 that lies in view 1, and fraction of view 1 that lies in view 0.
    """

    images0: torch.Tensor
    images1: torch.Tensor
    homography: torch.Tensor
    overlap: torch.Tensor


@torch.no_grad()
def make_pairs(photos: torch.Tensor, config: HomographyConfig, generator: torch.Generator) -> HomographyPairs:
    """Take two views of each photograph.

    Parameters
    ----------
    photos : float32 tensor (B, 3, H, W)
        On the device where the pairs are wanted. Ideally larger than the views.
    config : HomographyConfig
        What the views may differ by.
    generator : torch.Generator
        On the CPU: the same seed gives the same pairs on every device, up to rounding.

    Returns
    -------
    HomographyPairs
        Without photometric changes; see `tiepoint.training.data.photometric.augment`.

    Examples
    --------
    >>> photos = torch.rand(2, 3, 60, 80)
    >>> pairs = make_pairs(photos, HomographyConfig(size=(48, 64)), torch.Generator().manual_seed(0))
    >>> pairs.images0.shape, pairs.homography.shape, bool((pairs.overlap.amax(1) > 0.29).all())
    (torch.Size([2, 3, 48, 64]), torch.Size([2, 3, 3]), True)
    """
    height, width = photos.shape[2:]
    view0, view1 = sample_views(len(photos), (height, width), config, generator)
    homography = torch.linalg.inv(view1) @ view0
    homography = homography / homography[:, 2:, 2:]
    return HomographyPairs(
        images0=warp(photos, view0, config.size),
        images1=warp(photos, view1, config.size),
        homography=homography.float().to(photos.device),
        overlap=_overlap(homography, config.size).float().to(photos.device),
    )


def sample_views(
    count: int, photo_size: tuple[int, int], config: HomographyConfig, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose two views of each of ``count`` photographs.

    Parameters
    ----------
    count : int
        Number of photographs, B.
    photo_size : (int, int)
        (height, width) of all of them.
    config : HomographyConfig
        What the views may differ by.
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    two float64 tensors (B, 3, 3)
        On the CPU. Each maps pixels of a view to pixels of the photograph.
    """
    draw = Draw(generator)
    shape = (count, _CANDIDATES)
    roll = draw.uniform(-config.max_roll, config.max_roll, *shape)
    share = draw.uniform(0, 1, *shape)  # of the roll that view 0 takes; view 1 takes the rest
    ratio = draw.log_uniform(1 / config.max_scale, config.max_scale, *shape)
    shapes = [_shape_of_view(draw, shape, config, angle.double()) for angle in (-share * roll, (1 - share) * roll)]
    # Scale the pair up together until one of the views fills the photograph, so that their ratio is kept.
    limits = [_largest_scale(view, config.size, photo_size) for view in shapes]
    root = ratio.double().sqrt()
    scale = torch.minimum(limits[0] / root, limits[1] * root) * draw.uniform(config.zoom, 1, *shape)
    views = [
        _place(draw, view, factor, config, photo_size)
        for view, factor in zip(shapes, (scale * root, scale / root), strict=True)
    ]
    overlap = _overlap(torch.linalg.inv(views[1]) @ views[0], config.size).amax(-1)
    good = overlap >= config.min_overlap
    # argmax finds the first good candidate. If there is none, the one that overlaps most.
    best = torch.where(good.any(1), good.int().argmax(1), overlap.argmax(1))
    rows = torch.arange(count)
    return views[0][rows, best], views[1][rows, best]


def warp(photos: torch.Tensor, view: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Read a view out of each photograph, without aliases where it is reduced.

    Parameters
    ----------
    photos : float32 tensor (B, 3, H, W)
        The photographs.
    view : float64 tensor (B, 3, 3)
        On the CPU. Maps pixels of the view to pixels of the photograph. Places outside it take the colour of its
        nearest border pixel.
    size : (int, int)
        (height, width) of the view.

    Returns
    -------
    float32 tensor (B, 3, h, w)
    """
    if photos.device.type == "cpu" and len(photos) > 1:  # one at a time stays in the processor's cache
        return torch.cat([warp(*one, size) for one in zip(photos.split(1), view.split(1), strict=True)])
    device = photos.device
    height, width = photos.shape[2:]
    # Photograph coordinates in [-1, 1], where -1 and 1 are the outer edges of the border pixels at every mip level.
    to_unit = torch.tensor(
        [[2 / width, 0, 1 / width - 1], [0, 2 / height, 1 / height - 1], [0, 0, 1]], dtype=torch.float64
    )
    x, y = (axis.float().to(device) for axis in _grid(range(size[1]), range(size[0])))
    grid = torch.stack(_map(to_unit @ view, x, y), -1)
    views = F.grid_sample(photos, grid, padding_mode="border", align_corners=False)
    # Where a view is reduced, blend in reduced photographs, level by level. Near enough the greatest reduction is found
    # in a corner; it is computed on the CPU, so that no GPU is waited for.
    most = _level_of_detail(view, *_grid((0, size[1] - 1), (0, size[0] - 1))).amax((1, 2))
    for level in range(1, int(math.log2(min(height, width))) - 2):
        rows = (most > level - 1).nonzero()[:, 0]
        if not len(rows):
            break
        photos = _halve(photos)
        share = (_level_of_detail(view[rows], x, y) - (level - 1)).clamp(0, 1)[:, None]
        rows = rows.to(device)
        reduced = F.grid_sample(photos[rows], grid[rows], padding_mode="border", align_corners=False)
        views[rows] = torch.lerp(views[rows], reduced, share)
    return views


def transform(homography: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Map points (N, 2) by homographies (*shape, 3, 3): (*shape, N, 2), infinite behind the camera.

    Written out because a matrix product may run in TF32, whose rounding is pixels wide.

    Examples
    --------
    >>> transform(torch.diag(torch.tensor([2.0, 2.0, 1.0])), torch.tensor([[3.0, 4.0]])).tolist()
    [[6.0, 8.0]]
    """
    h = (homography * torch.linalg.det(homography).sign()[..., None, None])[..., None]
    x, y = points.unbind(-1)
    u, v, w = (h[..., i, 0, :] * x + h[..., i, 1, :] * y + h[..., i, 2, :] for i in range(3))
    front = (w > 0)[..., None]
    return torch.where(front, torch.stack([u, v], -1) / torch.where(front, w[..., None], 1.0), torch.inf)


def _shape_of_view(draw: Draw, shape: tuple[int, int], config: HomographyConfig, roll: torch.Tensor) -> torch.Tensor:
    """Return homographies (*shape, 3, 3) from a view's pixels to a plane whose origin is the view's centre.

    Their derivative at the centre is a rotation by ``roll`` times a stretch that keeps areas, so roll and scale mean
    what they say there.
    """
    height, width = config.size
    centre = torch.eye(3, dtype=torch.float64)
    centre[0, 2], centre[1, 2] = -(width - 1) / 2, -(height - 1) / 2
    perspective = torch.eye(3, dtype=torch.float64).repeat(*shape, 1, 1)
    tilt = draw.uniform(-0.4, 0.4, *shape, 2) * config.difficulty  # |tilt_x| + |tilt_y| < 1: the horizon stays outside
    perspective[..., 2, :2] = tilt / torch.tensor([width / 2, height / 2])
    stretch = draw.log_uniform(1 / 1.225, 1.225, *shape).double() ** config.difficulty
    axis = draw.uniform(0, math.pi, *shape).double()
    stretching = (
        _rotation(axis)
        @ torch.diag_embed(torch.stack([stretch, 1 / stretch, torch.ones_like(stretch)], -1))
        @ _rotation(-axis)
    )
    return _rotation(roll) @ stretching @ perspective @ centre


def _largest_scale(view: torch.Tensor, size: tuple[int, int], photo_size: tuple[int, int]) -> torch.Tensor:
    """Return the factor (*shape) by which a view can grow until its bounding box fills the photograph."""
    low, high = _bounding_box(view, size)
    room = torch.tensor([photo_size[1] - 1, photo_size[0] - 1], dtype=torch.float64)
    return (room / (high - low)).amin(-1)


def _place(
    draw: Draw, view: torch.Tensor, scale: torch.Tensor, config: HomographyConfig, photo_size: tuple[int, int]
) -> torch.Tensor:
    """Scale a view and move it to a random place from where it does not leave the photograph."""
    scaled = torch.diag_embed(torch.stack([scale, scale, torch.ones_like(scale)], -1)) @ view
    low, high = _bounding_box(scaled, config.size)
    room = torch.tensor([photo_size[1] - 1, photo_size[0] - 1], dtype=torch.float64) - (high - low)
    position = 0.5 + config.translation * draw.uniform(-0.5, 0.5, *scale.shape, 2)
    move = torch.eye(3, dtype=torch.float64).repeat(*scale.shape, 1, 1)
    move[..., :2, 2] = room.clamp(min=0) * position - low
    return move @ scaled


def _bounding_box(view: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the least and greatest (x, y) that a view covers: those of its corners."""
    x = torch.tensor([0.0, size[1] - 1, size[1] - 1, 0], dtype=torch.float64)
    y = torch.tensor([0.0, 0, size[0] - 1, size[0] - 1], dtype=torch.float64)
    corners = view @ torch.stack([x, y, torch.ones_like(x)])
    corners = corners[..., :2, :] / corners[..., 2:, :]
    return corners.amin(-1), corners.amax(-1)


def _overlap(homography: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Share of view 0 inside view 1, and of view 1 inside view 0 (*shape, 2), counted on a 32 x 24 grid."""
    height, width = size
    x, y = _grid(range(32), range(24))
    x, y = (x + 0.5) / 32 * width - 0.5, (y + 0.5) / 24 * height - 0.5
    points = torch.stack([x.flatten(), y.flatten(), torch.ones(x.numel(), dtype=torch.float64)])
    shares = []
    for matrix in (homography, torch.linalg.inv(homography)):
        # A homography between two views of a front side has a positive determinant; then w > 0 is "in front".
        mapped = matrix * torch.linalg.det(matrix).sign()[..., None, None] @ points
        px, py = (mapped[..., i, :] / mapped[..., 2, :] for i in (0, 1))
        inside = (px >= -0.5) & (px < width - 0.5) & (py >= -0.5) & (py < height - 0.5)
        shares.append((inside & (mapped[..., 2, :] > 0)).double().mean(-1))
    return torch.stack(shares, -1)


def _grid(columns: Iterable[int], rows: Iterable[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x and y of every crossing, float64 (rows, columns)."""
    axes = (torch.tensor(list(values), dtype=torch.float64) for values in (columns, rows))
    x, y = torch.meshgrid(*axes, indexing="xy")
    return x, y


def _halve(photos: torch.Tensor) -> torch.Tensor:
    """Reduce to half the size, rounded up, so that the outer edges stay where they are."""
    height, width = photos.shape[2:]
    size = (math.ceil(height / 2), math.ceil(width / 2))
    return F.interpolate(photos, size=size, mode="bilinear", antialias=True, align_corners=False)


def _map(matrix: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply homographies (B, 3, 3) to points x, y (h, w), in the points' type and on their device.

    Written out because a matrix product may run in TF32, whose rounding is pixels wide.
    """
    h = matrix.to(x)[..., None, None]
    w = h[:, 2, 0] * x + h[:, 2, 1] * y + h[:, 2, 2]
    return (h[:, 0, 0] * x + h[:, 0, 1] * y + h[:, 0, 2]) / w, (h[:, 1, 0] * x + h[:, 1, 1] * y + h[:, 1, 2]) / w


def _level_of_detail(view: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """How often to halve the photograph before it is read at points x, y (h, w) of a view; (B, h, w).

    From the larger singular value of the homography's derivative: the number of photograph pixels that one pixel of the
    view spans in the direction where it spans most. A reduction by up to 1.2 is left to the bilinear reading.
    """
    h = view.to(x)[..., None, None]
    w = h[:, 2, 0] * x + h[:, 2, 1] * y + h[:, 2, 2]
    u, v = _map(view, x, y)
    ux, uy = (h[:, 0, 0] - u * h[:, 2, 0]) / w, (h[:, 0, 1] - u * h[:, 2, 1]) / w
    vx, vy = (h[:, 1, 0] - v * h[:, 2, 0]) / w, (h[:, 1, 1] - v * h[:, 2, 1]) / w
    total = ux * ux + uy * uy + vx * vx + vy * vy
    determinant = ux * vy - uy * vx
    squared = (total + (total * total - 4 * determinant * determinant).clamp(min=0).sqrt()) / 2
    return 0.5 * squared.log2() - math.log2(1.2)


def _rotation(angle: torch.Tensor) -> torch.Tensor:
    """Rotations (*shape, 3, 3) from +x towards +y."""
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    cosine, sine = angle.cos(), angle.sin()
    return torch.stack([cosine, -sine, zero, sine, cosine, zero, zero, zero, one], -1).unflatten(-1, (3, 3))
