"""Layouts of synthetic scenes: what stands where, under which light, and where the cameras are.

A builder fills a `_Plan` for n scenes of its kind, all on the CPU. Numbers are metres. Objects that it does not
mention are absent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from ...errors import ArgumentError
from ..tensors import Tensors
from ._random import Draw
from .raycast import BOX, CYLINDER, ELLIPSOID, ROOM, TERRAIN, World

_BOXES, _ELLIPSOIDS, _CYLINDERS = 14, 2, 2
_SHAPE = (BOX,) * _BOXES + (ELLIPSOID,) * _ELLIPSOIDS + (CYLINDER,) * _CYLINDERS + (ROOM, TERRAIN)
_SURFACES = len(_SHAPE)
ROOM_SLOT, _TERRAIN = _SURFACES - 2, _SURFACES - 1
_ROUND = slice(_BOXES, ROOM_SLOT)
TEXTURES_PER_SCENE = 6
CAMERAS = 10  # cameras put into each scene; the two whose overlap comes closest to what is wanted are used
_TERRAIN_GRID = 129


@dataclass(frozen=True)
class SceneConfig:
    """What is drawn.

    Attributes
    ----------
    size : (int, int)
        (height, width) of both views, in pixels.
    overlap : (float, float)
        Range of the fraction of one view that the other one sees too (the smaller of both directions). Each pair gets a
        value drawn uniformly from it, as nearly as its scene offers one.
    max_roll : float
        Each camera is rolled by an angle uniform in ±``max_roll``, in radians.
    focal : (float, float)
        Range of the focal length, in image widths; log-uniform, drawn for each view.
    moved : float in [0, 1]
        Probability that some of a scene's objects move between the views.
    repeated : float in [0, 1]
        Probability that a group of objects of a scene is of identical size and texture, as are its facades.
    kinds : tuple of str
        Drawn from with equal probability: ``room``, ``street``, ``facade``, ``terrain``, ``table``.
    lit : bool
        False shows textures without light and shadow: the same surface then has the same colour in both views.

    Examples
    --------
    >>> SceneConfig.rolled((480, 640), max_roll=3.14).focal
    (0.5, 2.0)
    """

    size: tuple[int, int] = (480, 640)
    overlap: tuple[float, float] = (0.1, 0.8)
    max_roll: float = 0.35
    focal: tuple[float, float] = (0.6, 1.3)
    moved: float = 0.3
    repeated: float = 0.5
    kinds: tuple[str, ...] = ("room", "street", "facade", "terrain", "table")
    lit: bool = True

    def __post_init__(self) -> None:
        if min(self.size) < 16:
            raise ArgumentError(f"size is {self.size}; views need at least 16 pixels on each side")
        if not 0 <= self.overlap[0] <= self.overlap[1] <= 1:
            raise ArgumentError(f"overlap is {self.overlap}; it must be a range within 0 to 1")
        if not 0 < self.focal[0] <= self.focal[1]:
            raise ArgumentError(f"focal is {self.focal}; it must be a range of positive numbers")
        for name, high in (("max_roll", math.pi), ("moved", 1), ("repeated", 1)):
            if not 0 <= getattr(self, name) <= high:
                raise ArgumentError(f"{name} is {getattr(self, name)}; it must lie between 0 and {high:g}")
        if not self.kinds or (unknown := set(self.kinds) - set(_KINDS)):
            wrong = f"unknown kind of scene {', '.join(sorted(unknown))}" if self.kinds else "kinds is empty"
            raise ArgumentError(f"{wrong}; choose from {', '.join(_KINDS)}")

    @staticmethod
    def rolled(size: tuple[int, int], max_roll: float) -> SceneConfig:
        """Return cameras held as people do or, for rolls beyond 3 radians, rolled by any angle with more zoom."""
        return SceneConfig(size, max_roll=math.pi, focal=(0.5, 2.0)) if max_roll > 3 else SceneConfig(size)


@dataclass(frozen=True, eq=False)
class Cameras(Tensors):
    """B cameras: intrinsics (B, 3, 3), world-to-camera rotation (B, 3, 3), centre in the world (B, 3)."""

    K: torch.Tensor
    R: torch.Tensor
    centre: torch.Tensor

    def rays(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """World directions (B, 3, N) through pixels (N,); their z in the camera's frame is 1."""
        fx, fy, cx, cy = (self.K[:, i, j, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
        dx, dy = ((x - cx) / fx)[:, None], ((y - cy) / fy)[:, None]
        return dx * self.R[:, 0, :, None] + dy * self.R[:, 1, :, None] + self.R[:, 2, :, None]

    def project(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pixel coordinates x, y and depth z, each (B, N), of world points (B, 3, N)."""
        local = points - self.centre[..., None]
        x, y, z = ((self.R[:, i, :, None] * local).sum(1) for i in range(3))
        safe = torch.where(z.abs() < 1e-6, 1e-6, z)
        fx, fy, cx, cy = (self.K[:, i, j, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
        return fx * x / safe + cx, fy * y / safe + cy, z


def make_scenes(
    draw: Draw, count: int, textures: int, config: SceneConfig
) -> tuple[World, Cameras, torch.Tensor, torch.Tensor]:
    """Return worlds, ``CAMERAS`` cameras for each, movable surfaces (B, S), viewing distance (B,); on the CPU."""
    kind = draw.integers(len(config.kinds), count)
    worlds, cameras, movable, scale, order = [], [], [], [], []
    for number, name in enumerate(config.kinds):
        rows = (kind == number).nonzero()[:, 0]
        if not len(rows):
            continue
        plan = _Plan(draw, len(rows), config.repeated)
        _KINDS[name](plan)
        window = torch.div(rows * textures, count, rounding_mode="floor")
        worlds.append(
            World(
                shape=_SHAPE,
                present=plan.present,
                centre=plan.centre,
                rotation=yaw_rotation(plan.yaw),
                half=plan.half,
                texture=(plan.texture + window[:, None, None]) % textures,
                tile=plan.tile,
                offset=plan.offset,
                weathering=draw.uniform(0, 0.5, plan.n, _SURFACES) * draw.chance(0.6, plan.n, _SURFACES),
                gloss=draw.uniform(0, 0.5, plan.n, _SURFACES) * draw.chance(0.3, plan.n, _SURFACES),
                height=plan.height,
            )
        )
        cameras.append(_point_cameras(draw, plan.place.flatten(0, 1), plan.target.flatten(0, 1), config))
        movable.append(plan.movable)
        scale.append(plan.scale)
        order.append(rows)
    back = torch.cat(order).argsort()
    by_camera = (back[:, None] * CAMERAS + torch.arange(CAMERAS)).flatten()
    return (
        World.cat(worlds).select(back),
        Cameras.cat(cameras).select(by_camera),
        torch.cat(movable)[back],
        torch.cat(scale)[back],
    )


class _Plan:
    """Scenes being laid out: the fields of `World` for n scenes, and cameras' places and targets."""

    def __init__(self, draw: Draw, n: int, repeated: float) -> None:
        self.n = n
        self.draw = draw
        self.repeats = draw.chance(repeated, n)  # scenes with identical facades and identical objects
        self.present = torch.zeros(n, _SURFACES, dtype=torch.bool)
        self.movable = torch.zeros(n, _SURFACES, dtype=torch.bool)
        self.centre = torch.zeros(n, _SURFACES, 3)
        self.yaw = torch.zeros(n, _SURFACES)
        self.half = torch.ones(n, _SURFACES, 3)
        # Textures count from the start of the scene's window. Half of the surfaces have one, the others six.
        self.texture = draw.integers(TEXTURES_PER_SCENE, n, _SURFACES, 1).repeat(1, 1, 6)
        varied = torch.rand(n, _SURFACES, 6, generator=draw.generator).argsort(-1)
        self.texture = torch.where(draw.chance(0.5, n, _SURFACES, 1), varied, self.texture)
        self.texture[~self.repeats, ROOM_SLOT:] = varied[~self.repeats, ROOM_SLOT:]
        self.tile = torch.ones(n, _SURFACES)
        # An object's side shows a texture from edge to edge; a building may start anywhere.
        self.offset = torch.where(draw.chance(0.5, n, _SURFACES, 1), draw.uniform(0, 1, n, _SURFACES, 2), 0.5)
        self.height = torch.zeros(n, 1, _TERRAIN_GRID, _TERRAIN_GRID)
        self.place = torch.zeros(n, CAMERAS, 3)
        self.target = torch.zeros(n, CAMERAS, 3)
        self.scale = torch.ones(n)  # the distance at which things are looked at

    def put(
        self,
        slots: slice,
        centre: torch.Tensor,
        half: torch.Tensor,
        tile: torch.Tensor | None = None,
        yaw: torch.Tensor | float = 0.0,
        probability: float = 1.0,
        movable: bool = False,
    ) -> None:
        """Place objects: ``centre`` and ``half`` (n, k, 3), ``tile`` (n, k) or (n, 1).

        By default a texture is as wide as an object's longest side.
        """
        count = len(range(*slots.indices(_SURFACES)))
        tile = 2 * half.amax(-1) if tile is None else tile
        self.present[:, slots] = self.draw.chance(probability, self.n, count)
        self.movable[:, slots] = movable
        self.centre[:, slots], self.half[:, slots], self.tile[:, slots] = centre, half, tile
        self.yaw[:, slots] = yaw

    def make_identical(self, slots: slice, aligned: bool = True) -> None:
        """Give objects the size, texture (and direction) of the first of them, in scenes that repeat."""
        first = slice(slots.start, slots.start + 1)
        fields = [self.texture, self.tile, self.offset] + ([self.yaw] if aligned else [])
        for values in fields:
            values[self.repeats, slots] = values[self.repeats, first].expand_as(values[self.repeats, slots])
        # The same size, standing on what they stood on.
        bottom = self.centre[:, slots, 2] - self.half[:, slots, 2]
        half = self.half[:, first].expand_as(self.half[:, slots])
        rows = self.repeats
        self.half[rows, slots] = half[rows]
        self.centre[rows, slots, 2] = (bottom + half[..., 2])[rows]

    def scatter(
        self, count: int, width: torch.Tensor, height: torch.Tensor, area: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return centre and half (n, count, 3) of objects on the ground, within ±``area`` (n, 2)."""
        half = torch.cat([width, height], -1)
        flat = self.draw.uniform(-1, 1, self.n, count, 2) * area[:, None]
        return torch.cat([flat, half[..., 2:]], -1), half


def _build_room(plan: _Plan) -> None:
    """Furnish a room, hang pictures on its walls; seen from within."""
    n, draw = plan.n, plan.draw
    room = _xyz(draw.uniform(2, 5, n), draw.uniform(2, 5, n), draw.uniform(1.2, 1.8, n))
    plan.put(
        slice(ROOM_SLOT, _TERRAIN),
        (room * torch.tensor([0.0, 0, 1]))[:, None],
        room[:, None],
        draw.log_uniform(1.2, 6, n, 1),
    )
    floor = room[:, :2] - 0.6
    furniture = slice(0, 5)
    centre, half = plan.scatter(5, draw.log_uniform(0.15, 0.8, n, 5, 2), draw.log_uniform(0.2, 0.9, n, 5, 1), floor)
    plan.put(furniture, centre, half, yaw=_often_aligned(draw, n, 5), probability=0.8, movable=True)
    # A row of things, all alike if the scene repeats.
    row = slice(5, 9)
    centre, half = plan.scatter(4, draw.uniform(0.12, 0.4, n, 4, 2), draw.uniform(0.15, 0.7, n, 4, 1), floor)
    spacing = draw.uniform(0.5, 1.2, n)
    start = centre[:, :1, :2]
    along = _xyz(spacing, draw.uniform(-0.2, 0.2, n))[:, None] * torch.arange(4)[None, :, None]
    centre[..., :2] = torch.where(
        plan.repeats[:, None, None], start + along - 1.5 * spacing[:, None, None], centre[..., :2]
    )
    plan.put(row, centre, half, yaw=_often_aligned(draw, n, 4), probability=0.8, movable=True)
    plan.make_identical(row)
    # Pictures hang on the walls: thin boxes.
    size = draw.uniform(0.25, 0.9, n, 5)
    wall = draw.integers(4, n, 5)
    on_x = wall < 2
    sign = (wall % 2 * 2 - 1).float()
    along_wall = draw.uniform(-0.8, 0.8, n, 5)
    rx, ry, rz = (room[:, i, None] for i in range(3))
    x = torch.where(on_x, sign * rx, along_wall * rx)
    y = torch.where(on_x, along_wall * ry, sign * ry)
    thin = torch.full_like(size, 0.03)
    half = _xyz(torch.where(on_x, thin, size), torch.where(on_x, size, thin), size * draw.uniform(0.6, 1.2, n, 5))
    z = rz * draw.uniform(0.9, 1.4, n, 5)
    plan.put(slice(9, 14), _xyz(x, y, z), half, probability=0.8)
    same = plan.repeats & draw.chance(0.6, n)
    plan.texture[same, 9:14] = plan.texture[same, 9:10]
    plan.offset[same, 9:14] = plan.offset[same, 9:10]
    _put_round(plan, floor, (0.1, 0.45))
    plan.place[:] = _xyz(
        *(draw.uniform(-0.85, 0.85, n, CAMERAS) * (room[:, i, None]) for i in range(2)),
        draw.uniform(0.5, 1.7, n, CAMERAS).minimum(1.8 * rz),
    )
    # All look about the same way, at one of the walls or corners.
    direction = draw.uniform(0, 2 * math.pi, n, 1)
    focus = _xyz(direction.cos() * rx, direction.sin() * ry, draw.uniform(0.3, 1.5, n, 1))
    plan.target[:] = focus + draw.uniform(-1, 1, n, CAMERAS, 3) * torch.tensor([1.2, 1.2, 0.5])
    plan.scale[:] = 2.0


def _build_street(plan: _Plan) -> None:
    """Put houses on both sides of a street, and things on it."""
    n, draw = plan.n, plan.draw
    _put_ground(plan, 0, 80.0, draw.log_uniform(2, 8, n, 1))
    houses = slice(1, 9)
    side = torch.tensor([-1.0, 1] * 4)
    half = _xyz(draw.uniform(2, 5, n, 8), draw.uniform(2, 4, n, 8), draw.uniform(2, 7, n, 8))
    lot = draw.uniform(0.0, 2.0, n, 1) + 2 * half[..., 0].amax(1, keepdim=True)
    x = (torch.arange(8) // 2 - 1.5) * lot
    y = side * (draw.uniform(3.5, 8, n, 1) + half[..., 1] + draw.uniform(0, 1.0, n, 8))
    tile = draw.log_uniform(1.5, 8, n, 8)
    plan.put(houses, _xyz(x, y, half[..., 2]), half, tile, draw.uniform(-0.06, 0.06, n, 8), 0.9)
    plan.make_identical(houses)
    # A repeated facade is one texture, again and again.
    plan.texture[plan.repeats, houses] = plan.texture[plan.repeats, houses][..., :1].expand(-1, -1, 6)
    clutter = slice(9, 14)
    area = torch.tensor([12.0, 3.5]).expand(n, 2)
    centre, half = plan.scatter(5, draw.log_uniform(0.2, 1.6, n, 5, 2), draw.log_uniform(0.3, 1.5, n, 5, 1), area)
    plan.put(clutter, centre, half, yaw=_often_aligned(draw, n, 5), probability=0.7, movable=True)
    plan.make_identical(clutter, aligned=False)
    _put_round(plan, area, (0.2, 0.9))
    plan.place[:] = _xyz(
        draw.uniform(-14, 14, n, CAMERAS), draw.uniform(-3.2, 3.2, n, CAMERAS), draw.log_uniform(1.2, 5, n, CAMERAS)
    )
    focus = _xyz(
        draw.uniform(-8, 8, n, 1),
        draw.uniform(4, 8, n, 1) * (draw.chance(0.5, n, 1) * 2.0 - 1),
        draw.uniform(1, 5, n, 1),
    )
    plan.target[:] = focus + draw.uniform(-1, 1, n, CAMERAS, 3) * torch.tensor([5.0, 2, 1.5])
    plan.scale[:] = 8.0


def _build_facade(plan: _Plan) -> None:
    """Build one large wall with a grid of balconies or windows in relief."""
    n, draw = plan.n, plan.draw
    _put_ground(plan, 0, 60.0, draw.log_uniform(1.5, 6, n, 1))
    wall = _xyz(draw.uniform(5, 11, n), torch.full((n,), 0.5), draw.uniform(3.5, 7, n))
    plan.put(
        slice(1, 2),
        _xyz(torch.zeros(n), torch.full((n,), 0.5), wall[:, 2])[:, None],
        wall[:, None],
        draw.log_uniform(1.5, 10, n, 1),
    )
    relief = slice(2, 11)
    column, row = torch.arange(9) % 3 - 1, torch.arange(9) // 3
    pitch_x, pitch_z = (wall[:, :1] * draw.uniform(0.4, 0.62, n, 1), wall[:, 2:] * draw.uniform(0.45, 0.6, n, 1))
    half = _xyz(draw.uniform(0.4, 1.2, n, 9), draw.uniform(0.08, 0.6, n, 9), draw.uniform(0.4, 1.0, n, 9))
    centre = _xyz(column * pitch_x, -half[..., 1] * draw.uniform(0.2, 1, n, 1), half[..., 2] + 0.4 + row * pitch_z)
    plan.put(relief, centre, half, probability=0.9)
    plan.make_identical(relief)
    area = torch.tensor([7.0, 2.0]).expand(n, 2)
    centre, half = plan.scatter(3, draw.log_uniform(0.2, 1.0, n, 3, 2), draw.log_uniform(0.3, 1.5, n, 3, 1), area)
    centre[..., 1] -= 3.0
    plan.put(slice(11, 14), centre, half, yaw=_often_aligned(draw, n, 3), probability=0.6, movable=True)
    _put_round(plan, area, (0.2, 0.7))
    plan.centre[:, _ROUND, 1] -= 3.0
    plan.place[:] = _xyz(
        draw.uniform(-9, 9, n, CAMERAS), -draw.log_uniform(5, 16, n, CAMERAS), draw.log_uniform(1.2, 8, n, CAMERAS)
    )
    focus = _xyz(draw.uniform(-4, 4, n, 1), torch.zeros(n, 1), draw.uniform(1.5, 5, n, 1))
    plan.target[:] = focus + draw.uniform(-1, 1, n, CAMERAS, 3) * torch.tensor([3.0, 1, 1.5])
    plan.scale[:] = 8.0


def _build_terrain(plan: _Plan) -> None:
    """Raise hills with houses on them, seen from the air: straight down to oblique."""
    n, draw = plan.n, plan.draw
    extent, relief = draw.uniform(25, 40, n, 1), draw.uniform(0.5, 6.0, n, 1)
    hills = torch.zeros_like(plan.height)
    for cells, share in ((5, 0.6), (11, 0.3), (25, 0.1)):
        coarse = draw.uniform(-share, share, n, 1, cells, cells)
        hills += F.interpolate(coarse, size=hills.shape[2:], mode="bicubic", align_corners=True)
    plan.height[:] = hills.clamp(-0.98, 0.98)
    half = torch.cat([extent, extent, relief], 1)[:, None]
    plan.put(slice(_TERRAIN, _SURFACES), torch.zeros(n, 1, 3), half, draw.log_uniform(8, 30, n, 1))
    houses = slice(0, 14)
    area = torch.full((n, 2), 11.0)
    centre, half = plan.scatter(14, draw.uniform(0.6, 2.2, n, 14, 2), draw.uniform(0.5, 2.0, n, 14, 1), area)
    plan.put(houses, centre, half, yaw=draw.uniform(-math.pi, math.pi, n, 14), probability=0.6)
    plan.make_identical(slice(0, 7), aligned=False)
    _put_round(plan, area, (0.4, 1.5))
    # Things stand on the ground, half sunk into it by way of a cellar.
    everything = slice(0, ROOM_SLOT)
    where = (plan.centre[:, everything, :2] / extent[:, None])[:, :, None]
    ground = F.grid_sample(plan.height, where, "bilinear", "border", True)[:, 0, :, 0] * relief
    plan.centre[:, everything, 2] += ground - 0.5 * plan.half[:, everything, 2]
    focus = _xyz(*draw.uniform(-8, 8, n, 2, 1).unbind(1), torch.zeros(n, 1))
    plan.target[:] = focus + draw.uniform(-1, 1, n, CAMERAS, 3) * torch.tensor([5.0, 5, 0.5])
    far, azimuth = (
        draw.log_uniform(9, 26, n, CAMERAS),
        draw.uniform(0, 2 * math.pi, n, 1) + draw.uniform(-1.2, 1.2, n, CAMERAS),
    )
    elevation = draw.uniform(0.5, 1.5, n, 1) + draw.uniform(-0.25, 0.25, n, CAMERAS)
    plan.place[:] = plan.target + _spherical(far, azimuth, elevation.clamp(0.35, 1.55))
    plan.place[..., 2] = plan.place[..., 2].maximum(relief + 2)
    plan.scale[:] = 10.0


def _build_table(plan: _Plan) -> None:
    """Put small things on a table, seen from nearby, in a room or outdoors."""
    n, draw = plan.n, plan.draw
    room = _xyz(draw.uniform(3, 6, n), draw.uniform(3, 6, n), torch.full((n,), 2.0))
    plan.put(
        slice(ROOM_SLOT, _TERRAIN),
        _xyz(torch.zeros(n), torch.zeros(n), torch.full((n,), 1.2))[:, None],
        room[:, None],
        draw.log_uniform(1.5, 5, n, 1),
        probability=0.7,
    )
    top = _xyz(draw.uniform(0.9, 1.6, n), draw.uniform(0.9, 1.6, n), torch.full((n,), 0.05))
    plan.put(slice(0, 1), (top * torch.tensor([0.0, 0, -1]))[:, None], top[:, None], draw.log_uniform(0.6, 2.5, n, 1))
    area = top[:, :2] * 0.75
    things = slice(1, 9)
    centre, half = plan.scatter(8, draw.log_uniform(0.06, 0.3, n, 8, 2), draw.log_uniform(0.04, 0.35, n, 8, 1), area)
    plan.put(things, centre, half, yaw=draw.uniform(-math.pi, math.pi, n, 8), probability=0.8, movable=True)
    plan.make_identical(slice(1, 6), aligned=False)
    # A few lie on others, or hang in the air, which no matcher minds.
    centre, half = plan.scatter(5, draw.log_uniform(0.06, 0.25, n, 5, 2), draw.log_uniform(0.03, 0.2, n, 5, 1), area)
    centre[..., 2] += draw.uniform(0.1, 0.5, n, 5)
    plan.put(slice(9, 14), centre, half, yaw=draw.uniform(-math.pi, math.pi, n, 5), probability=0.6, movable=True)
    _put_round(plan, area, (0.07, 0.3))
    plan.target[:] = draw.uniform(-0.4, 0.4, n, 1, 3) * torch.tensor([1.0, 1, 0.3]) + draw.uniform(
        -0.25, 0.25, n, CAMERAS, 3
    )
    azimuth = draw.uniform(0, 2 * math.pi, n, 1) + draw.uniform(-1.1, 1.1, n, CAMERAS)
    plan.place[:] = plan.target + _spherical(
        draw.log_uniform(0.9, 2.6, n, CAMERAS), azimuth, draw.uniform(0.2, 1.4, n, CAMERAS)
    )
    plan.scale[:] = 1.2


_KINDS: dict[str, Callable[[_Plan], None]] = {
    "room": _build_room,
    "street": _build_street,
    "facade": _build_facade,
    "terrain": _build_terrain,
    "table": _build_table,
}


def _put_ground(plan: _Plan, slot: int, extent: float, tile: torch.Tensor) -> None:
    half = torch.tensor([extent, extent, 1.0]).expand(plan.n, 1, 3)
    plan.put(slice(slot, slot + 1), torch.tensor([0.0, 0, -1]).expand(plan.n, 1, 3), half, tile)


def _put_round(plan: _Plan, area: torch.Tensor, size: tuple[float, float]) -> None:
    """Place balls and eggs, tins and columns."""
    n, draw = plan.n, plan.draw
    radius = draw.log_uniform(*size, n, 4, 1)
    tall = torch.cat([draw.uniform(0.6, 1.2, n, 2, 1), draw.log_uniform(0.7, 4, n, 2, 1)], 1)
    centre, half = plan.scatter(4, radius.expand(n, 4, 2), radius * tall, area)
    plan.put(_ROUND, centre, half, yaw=draw.uniform(-math.pi, math.pi, n, 4), probability=0.5, movable=True)


def _point_cameras(draw: Draw, place: torch.Tensor, target: torch.Tensor, config: SceneConfig) -> Cameras:
    """Cameras at ``place`` that look at ``target`` (B, 3)."""
    count = len(place)
    height, width = config.size
    forward = F.normalize(target - place, dim=1)
    # "Up" is z, unless the camera looks straight down.
    up = torch.where((forward[:, 2:].abs() > 0.98), torch.tensor([0.0, 1, 0]), torch.tensor([0.0, 0, 1]))
    right = F.normalize(torch.linalg.cross(forward, up), dim=1)
    down = torch.linalg.cross(forward, right)
    roll = draw.uniform(-config.max_roll, config.max_roll, count, 1)
    right, down = right * roll.cos() + down * roll.sin(), down * roll.cos() - right * roll.sin()
    focal = draw.log_uniform(*config.focal, count) * width
    K = torch.zeros(count, 3, 3)
    K[:, 0, 0] = K[:, 1, 1] = focal
    K[:, 0, 2], K[:, 1, 2], K[:, 2, 2] = (width - 1) / 2, (height - 1) / 2, 1
    return Cameras(K, torch.stack([right, down, forward], 1), place)


def move_objects(
    draw: Draw, world: World, movable: torch.Tensor, scale: torch.Tensor, config: SceneConfig
) -> tuple[World, torch.Tensor]:
    """Return the worlds as they are for view 1, and which surfaces moved, bool (B, S) on the CPU."""
    count = len(world)
    moved = draw.chance(config.moved, count, 1) & draw.chance(0.5, count, _SURFACES) & movable & world.present
    angle = draw.uniform(0, 2 * math.pi, count, _SURFACES)
    far = draw.uniform(0.3, 1.2, count, _SURFACES) * scale[:, None]
    step = torch.stack([angle.cos() * far, angle.sin() * far, torch.zeros_like(far)], -1)
    turn = yaw_rotation(draw.uniform(-1.5, 1.5, count, _SURFACES))
    device = world.centre.device
    step, turn, now = step.to(device), turn.to(device), moved.to(device)
    later = replace(
        world,
        centre=torch.where(now[..., None], world.centre + step, world.centre),
        rotation=torch.where(now[..., None, None], _product(turn, world.rotation), world.rotation),
    )
    return later, moved


def _often_aligned(draw: Draw, *shape: int) -> torch.Tensor:
    """Yaw angles, half of which are zero."""
    return draw.uniform(-math.pi, math.pi, *shape) * draw.chance(0.5, *shape)


def _spherical(radius: torch.Tensor, azimuth: torch.Tensor, elevation: torch.Tensor) -> torch.Tensor:
    flat = radius * elevation.cos()
    return _xyz(flat * azimuth.cos(), flat * azimuth.sin(), radius * elevation.sin())


def _xyz(*parts: torch.Tensor) -> torch.Tensor:
    return torch.stack(torch.broadcast_tensors(*parts), -1)


def yaw_rotation(angle: torch.Tensor) -> torch.Tensor:
    """Rotations (*shape, 3, 3) about z."""
    cosine, sine, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([cosine, -sine, zero, sine, cosine, zero, zero, zero, one], -1).unflatten(-1, (3, 3))


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the product of matrices (..., 3, 3), element by element: matmul may run in TF32."""
    return (a[..., None] * b[..., None, :, :]).sum(-2)
