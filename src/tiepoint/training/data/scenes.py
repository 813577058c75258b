"""Two views of a made-up 3D scene, drawn on the training device, with exact depth and pose.

Five kinds of scene, each textured with photographs: rooms, streets, facades, terrain from above, and table tops. On
purpose they hold what misleads local matching: the same facade on several houses, rows of identical objects, the same
poster twice, textures that repeat, things in front, objects that moved between the views, another light in each view.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from ...errors import ArgumentError
from ._random import Draw
from .raycast import BOX, CYLINDER, ELLIPSOID, NOTHING, ROOM, TERRAIN, Light, TextureAtlas, World, cast, shade

_BOXES, _ELLIPSOIDS, _CYLINDERS = 14, 2, 2
_SHAPE = (BOX,) * _BOXES + (ELLIPSOID,) * _ELLIPSOIDS + (CYLINDER,) * _CYLINDERS + (ROOM, TERRAIN)
_SURFACES = len(_SHAPE)
_ROOM, _TERRAIN = _SURFACES - 2, _SURFACES - 1
_ROUND = slice(_BOXES, _ROOM)
TEXTURES_PER_SCENE = 6
_CAMERAS = 10  # cameras put into each scene; the two whose overlap comes closest to what is wanted are used
_PROBE = (12, 16)  # rows and columns of rays with which those overlaps are measured
_TERRAIN_GRID = 129
# On a CPU, one view at a time stays in its cache; on a GPU the limit is memory (about 1 kB a ray).
_RAYS_AT_ONCE = {"cpu": 2**17}


@dataclass(frozen=True)
class SceneConfig:
    """What is drawn.

    Attributes
    ----------
    size : (int, int)
        (height, width) of both views, in pixels.
    overlap : (float, float)
        Range of the share of one view that the other one sees too (the smaller of both directions). Each pair gets a
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
    >>> SceneConfig.roll360().max_roll > 3
    True
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
    def standard(size: tuple[int, int] = (480, 640)) -> SceneConfig:
        """Return cameras held as people hold them."""
        return SceneConfig(size)

    @staticmethod
    def roll360(size: tuple[int, int] = (480, 640)) -> SceneConfig:
        """Return cameras rolled by any angle, with stronger zoom."""
        return SceneConfig(size, max_roll=math.pi, focal=(0.5, 2.0))


@dataclass(frozen=True, eq=False)
class ScenePairs:
    """A batch of B pairs of views.

    Attributes
    ----------
    images0, images1 : float32 tensor (B, 3, h, w)
        RGB in [0, 1].
    depth0, depth1 : float32 tensor (B, h, w)
        z in the camera's frame, in metres, at the pixel's centre. 0 where there is nothing (sky), and on objects that
        moved between the views: the pose says nothing about where their points went, just as no depth is measured for
        a passer-by in a collection of photographs.
    moved0, moved1 : bool tensor (B, h, w)
        Pixels on moved objects, for those who want to tell them from sky.
    K0, K1 : float32 tensor (B, 3, 3)
        Intrinsics; (0, 0) is the centre of the top-left pixel.
    R, t : float32 tensor (B, 3, 3), (B, 3)
        Relative pose: ``x1 = R x0 + t``, in metres.
    overlap : float32 tensor (B, 2)
        Share of view 0's pixels whose point is seen in view 1 (inside, and not hidden), and the other way round.
    """

    images0: torch.Tensor
    images1: torch.Tensor
    depth0: torch.Tensor
    depth1: torch.Tensor
    moved0: torch.Tensor
    moved1: torch.Tensor
    K0: torch.Tensor
    K1: torch.Tensor
    R: torch.Tensor
    t: torch.Tensor
    overlap: torch.Tensor


@dataclass(frozen=True, eq=False)
class _Cameras:
    """B cameras: intrinsics (B, 3, 3), world-to-camera rotation (B, 3, 3), centre in the world (B, 3)."""

    K: torch.Tensor
    R: torch.Tensor
    centre: torch.Tensor

    def select(self, rows: torch.Tensor) -> _Cameras:
        rows = rows.to(self.K.device)
        return _Cameras(self.K[rows], self.R[rows], self.centre[rows])

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


@torch.no_grad()
def make_pairs(textures: torch.Tensor, count: int, config: SceneConfig, generator: torch.Generator) -> ScenePairs:
    """Make scenes and take two views of each.

    Scene b takes its six textures from a window that starts at ``b / count`` of the given ones. Scenes half a batch
    apart so share none, if there are at least twelve: view 0 of one and view 1 of the other make a pair to which
    the right answer is "no matches".

    Parameters
    ----------
    textures : float32 tensor (N, 3, S, S) in [0, 1]
        Photographs, on the device where the pairs are wanted. S is a power of two, best about the views' size; N at
        least 6. Six to eight for each scene give the greatest variety, but one for each will do.
    count : int
        Number of pairs, B.
    config : SceneConfig
        What is drawn.
    generator : torch.Generator
        On the CPU: the same seed gives the same pairs on every device, up to rounding.

    Returns
    -------
    ScenePairs

    Raises
    ------
    ArgumentError
        The textures have the wrong shape or are too few.

    Examples
    --------
    >>> textures = torch.rand(6, 3, 32, 32)
    >>> pairs = make_pairs(textures, 2, SceneConfig(size=(24, 32)), torch.Generator().manual_seed(0))
    >>> pairs.images0.shape, pairs.depth1.shape, pairs.t.shape
    (torch.Size([2, 3, 24, 32]), torch.Size([2, 24, 32]), torch.Size([2, 3]))
    """
    side = textures.shape[-1]
    if textures.ndim != 4 or textures.shape[1:] != (3, side, side) or side < 8 or side & (side - 1):
        raise ArgumentError(f"textures must be (N, 3, S, S) with S a power of two, not {tuple(textures.shape)}")
    if len(textures) < TEXTURES_PER_SCENE:
        raise ArgumentError(f"{len(textures)} textures; scenes need at least {TEXTURES_PER_SCENE}")
    draw = Draw(generator)
    device = textures.device
    world, cameras, movable, scale = _make_scenes(draw, count, len(textures), config)
    world = world.to(device)
    cameras = _Cameras(cameras.K.to(device), cameras.R.to(device), cameras.centre.to(device))
    chosen = _choose_cameras(draw, world, cameras, scale.to(device), config)
    later, moved = _move_objects(draw, world, movable, scale, config)
    light = _make_light(draw, world, device) if config.lit else None

    both = World.stack([world, later])
    height, width = config.size
    atlas = TextureAtlas.build(textures)
    at_once = max(1, _RAYS_AT_ONCE.get(device.type, 2**22) // (height * width))
    drawn = [
        _render(both.select(rows), atlas, light and light.select(rows), chosen.select(rows), config.size)
        for rows in torch.arange(2 * count).split(at_once)
    ]
    images, depth, surface = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    on_moved = moved.to(device).repeat(2, 1).gather(1, surface.clamp(min=0)) & (surface != NOTHING)
    depth = depth.masked_fill(on_moved, 0)

    cameras0, cameras1 = (chosen.select(rows) for rows in torch.arange(2 * count).chunk(2))
    grid = (torch.arange(2, height, 5)[:, None] * width + torch.arange(2, width, 5)).flatten().to(device)
    grid_x, grid_y = (grid % width).float(), torch.div(grid, width, rounding_mode="floor").float()
    depth0, depth1 = depth.chunk(2)
    overlap = [
        _visible(there, a, b, grid_x, grid_y, depth_here[:, grid], config.size).float().mean(1)
        for there, a, b, depth_here in (
            (later, cameras0, cameras1, depth0),
            (world, cameras1, cameras0, depth1),
        )
    ]
    R, t = _relative_pose(cameras0, cameras1)
    images0, images1 = images.chunk(2)
    moved0, moved1 = on_moved.unflatten(1, (height, width)).chunk(2)
    return ScenePairs(
        images0=images0,
        images1=images1,
        depth0=depth0.unflatten(1, (height, width)),
        depth1=depth1.unflatten(1, (height, width)),
        moved0=moved0,
        moved1=moved1,
        K0=cameras0.K,
        K1=cameras1.K,
        R=R,
        t=t,
        overlap=torch.stack(overlap, 1),
    )


def _render(
    world: World,
    atlas: TextureAtlas,
    light: Light | None,
    cameras: _Cameras,
    size: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return images (B, 3, h, w), and depth and surface (B, h * w)."""
    device = cameras.K.device
    y, x = torch.meshgrid(torch.arange(size[0], device=device), torch.arange(size[1], device=device), indexing="ij")
    rays = cameras.rays(x.flatten().float(), y.flatten().float())
    # Rays of neighbouring pixels differ by a constant: that is how large a pixel's footprint is.
    right, down = (cameras.R[:, i] / cameras.K[:, i, i, None] for i in (0, 1))
    depth, surface = cast(world, cameras.centre, rays)
    colour = shade(world, atlas, light, cameras.centre, rays, right, down, depth, surface)
    return _smooth_edges(colour.unflatten(2, size), surface.unflatten(1, size)), depth, surface


def _visible(
    world: World,
    here: _Cameras,
    there: _Cameras,
    x: torch.Tensor,
    y: torch.Tensor,
    depth: torch.Tensor,
    size: tuple[int, int],
) -> torch.Tensor:
    """Say which pixels x, y (N,) of cameras ``here``, with their depth (B, N), the cameras ``there`` see; bool (B, N).

    Exact: a ray is cast back from ``there`` to each point, in the world as it is for that view.
    """
    points = here.centre[..., None] + depth[:, None] * here.rays(x, y)
    px, py, z = there.project(points)
    inside = (px >= -0.5) & (px < size[1] - 0.5) & (py >= -0.5) & (py < size[0] - 0.5)
    # Along this direction the point lies at distance 1, if nothing comes before.
    reached, _ = cast(world, there.centre, points - there.centre[..., None])
    return (depth > 0) & (z > 0) & inside & ((reached - 1).abs() < 5e-3)


def _choose_cameras(draw: Draw, world: World, cameras: _Cameras, scale: torch.Tensor, config: SceneConfig) -> _Cameras:
    """Choose two of the cameras of each scene, by the overlap measured between all of them; (2 B) first 0, then 1."""
    count, device = len(world), cameras.centre.device
    height, width = config.size
    y, x = torch.meshgrid(
        (torch.arange(_PROBE[0], device=device) + 0.5) * height / _PROBE[0] - 0.5,
        (torch.arange(_PROBE[1], device=device) + 0.5) * width / _PROBE[1] - 0.5,
        indexing="ij",
    )
    x, y = x.flatten(), y.flatten()
    each = world.select(torch.arange(count).repeat_interleave(_CAMERAS))
    depth, _ = cast(each, cameras.centre, cameras.rays(x, y))
    # A camera is of use if it is not stuck in or in front of an object, and does not look into the sky.
    seen = (depth > 0).float().mean(1)
    close = ((depth > 0) & (depth < 0.25 * scale.repeat_interleave(_CAMERAS)[:, None])).float().mean(1)
    useless = ((seen < 0.5) | (close > 0.15) | _inside_object(each, cameras.centre)).view(count, _CAMERAS)
    # Overlap by projection and comparison of depths with the coarse depth map; exact enough to choose by.
    first, second = torch.triu_indices(_CAMERAS, _CAMERAS, 1, device=device)
    base = torch.arange(count, device=device)[:, None] * _CAMERAS
    a, b = (base + first).flatten(), (base + second).flatten()
    shares = [
        _coarse_overlap(cameras.select(i), cameras.select(j), x, y, depth[i], depth[j], config.size)
        for i, j in ((a, b), (b, a))
    ]
    overlap = torch.minimum(*shares).view(count, -1)
    wanted = draw.uniform(*config.overlap, count, 1).to(device)
    cost = (overlap - wanted).abs() + (useless[:, first] | useless[:, second]) * 10.0
    cost = cost + ((overlap < config.overlap[0]) | (overlap > config.overlap[1])) * 1.0
    best = cost.argmin(1)
    swap = draw.chance(0.5, count).to(device)
    i, j = first[best], second[best]
    i, j = torch.where(swap, j, i), torch.where(swap, i, j)
    return cameras.select(torch.cat([base[:, 0] + i, base[:, 0] + j]))


def _coarse_overlap(
    here: _Cameras,
    there: _Cameras,
    x: torch.Tensor,
    y: torch.Tensor,
    depth: torch.Tensor,
    depth_there: torch.Tensor,
    size: tuple[int, int],
) -> torch.Tensor:
    """Share of ``here``'s probing rays (B, N) that ``there`` sees, judged by its own probing rays."""
    px, py, z = there.project(here.centre[..., None] + depth[:, None] * here.rays(x, y))
    column = ((px + 0.5) / size[1] * _PROBE[1]).floor()
    row = ((py + 0.5) / size[0] * _PROBE[0]).floor()
    inside = (column >= 0) & (column < _PROBE[1]) & (row >= 0) & (row < _PROBE[0]) & (z > 0) & (depth > 0)
    index = (row * _PROBE[1] + column).clamp(0, _PROBE[0] * _PROBE[1] - 1).long()
    facing = depth_there.gather(1, index)
    return (inside & ((facing - z).abs() < 0.15 * z)).float().mean(1)


def _inside_object(world: World, place: torch.Tensor) -> torch.Tensor:
    """Say which places (B, 3) lie within (the box around) an object of their world."""
    offset = place[:, None] - world.centre[:, :_ROOM]
    local = (world.rotation[:, :_ROOM] * offset[..., None]).sum(2) / world.half[:, :_ROOM]
    return ((local.abs().amax(2) < 1.1) & world.present[:, :_ROOM].to(place.device)).any(1)


def _relative_pose(cameras0: _Cameras, cameras1: _Cameras) -> tuple[torch.Tensor, torch.Tensor]:
    R = (cameras1.R[:, :, None] * cameras0.R[:, None]).sum(-1)
    t = (cameras1.R * (cameras0.centre - cameras1.centre)[:, None]).sum(-1)
    return R, t


def _smooth_edges(images: torch.Tensor, surface: torch.Tensor) -> torch.Tensor:
    """Blur (B, 3, h, w) across the outlines of surfaces, which one ray per pixel draws with stairs."""
    across, along = surface[:, :, 1:] != surface[:, :, :-1], surface[:, 1:] != surface[:, :-1]
    edge = F.pad(across, (1, 0)) | F.pad(across, (0, 1)) | F.pad(along, (0, 0, 1, 0)) | F.pad(along, (0, 0, 0, 1))
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    rows = (padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]) / 4
    blurred = (rows[..., :-2, :] + 2 * rows[..., 1:-1, :] + rows[..., 2:, :]) / 4
    return torch.where(edge[:, None], blurred, images)


def _move_objects(
    draw: Draw, world: World, movable: torch.Tensor, scale: torch.Tensor, config: SceneConfig
) -> tuple[World, torch.Tensor]:
    """Return the worlds as they are for view 1, and which surfaces moved, bool (B, S) on the CPU."""
    count = len(world)
    moved = draw.chance(config.moved, count, 1) & draw.chance(0.5, count, _SURFACES) & movable & world.present
    angle = draw.uniform(0, 2 * math.pi, count, _SURFACES)
    far = draw.uniform(0.3, 1.2, count, _SURFACES) * scale[:, None]
    step = torch.stack([angle.cos() * far, angle.sin() * far, torch.zeros_like(far)], -1)
    turn = _yaw(draw.uniform(-1.5, 1.5, count, _SURFACES))
    device = world.centre.device
    step, turn, now = step.to(device), turn.to(device), moved.to(device)
    later = replace(
        world,
        centre=torch.where(now[..., None], world.centre + step, world.centre),
        rotation=torch.where(now[..., None, None], _product(turn, world.rotation), world.rotation),
    )
    return later, moved


def _make_light(draw: Draw, world: World, device: torch.device) -> Light:
    """Draw an independent light for each of the 2 B views."""
    count = 2 * len(world)
    azimuth, up = draw.uniform(0, 2 * math.pi, count), draw.uniform(0.25, 0.95, count)
    flat = (1 - up * up).sqrt()
    direction = torch.stack([azimuth.cos() * flat, azimuth.sin() * flat, up], -1)
    warmth = draw.uniform(-0.15, 0.15, count, 1)
    tint = torch.cat([1 + warmth, torch.ones_like(warmth), 1 - warmth], 1)
    share = draw.uniform(0.0, 0.65, count, 1)  # of the sun: none on an overcast day
    level = draw.uniform(0.95, 1.4, count, 1)
    day, cloud = torch.tensor([0.35, 0.55, 0.9]), torch.tensor([0.75, 0.78, 0.82])
    zenith = torch.lerp(cloud, day, draw.uniform(0, 1, count, 1)) * draw.uniform(0.5, 1.1, count, 1)
    horizon = torch.lerp(zenith, draw.uniform(0.7, 1.0, count, 3), draw.uniform(0.2, 0.8, count, 1))
    return Light(
        direction.to(device),
        (1.1 * level * share * tint).to(device),
        (level * (1 - 0.75 * share) / tint).to(device),
        torch.stack([zenith, horizon], 1).to(device),
    )


# --- Scenes ------------------------------------------------------------------------------------------------------
#
# A builder fills a `_Plan` for n scenes of its kind, all on the CPU. Numbers are metres. Objects that it does not
# mention are absent.


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
        self.texture[~self.repeats, _ROOM:] = varied[~self.repeats, _ROOM:]
        self.tile = torch.ones(n, _SURFACES)
        # An object's side shows a texture from edge to edge; a building may start anywhere.
        self.offset = torch.where(draw.chance(0.5, n, _SURFACES, 1), draw.uniform(0, 1, n, _SURFACES, 2), 0.5)
        self.height = torch.zeros(n, 1, _TERRAIN_GRID, _TERRAIN_GRID)
        self.place = torch.zeros(n, _CAMERAS, 3)
        self.target = torch.zeros(n, _CAMERAS, 3)
        self.scale = torch.ones(n)  # the distance at which things are looked at

    def put(
        self,
        slots: slice,
        centre: torch.Tensor,
        half: torch.Tensor,
        tile: torch.Tensor,
        yaw: torch.Tensor | float = 0.0,
        probability: float = 1.0,
        movable: bool = False,
    ) -> None:
        """Place objects: ``centre`` and ``half`` (n, k, 3), ``tile`` (n, k) or (n, 1)."""
        count = len(range(*slots.indices(_SURFACES)))
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


def _xyz(*parts: torch.Tensor) -> torch.Tensor:
    return torch.stack(torch.broadcast_tensors(*parts), -1)


def _build_room(plan: _Plan) -> None:
    """Furnish a room, hang pictures on its walls; seen from within."""
    n, draw = plan.n, plan.draw
    room = _xyz(draw.uniform(2, 5, n), draw.uniform(2, 5, n), draw.uniform(1.2, 1.8, n))
    plan.put(
        slice(_ROOM, _TERRAIN),
        (room * torch.tensor([0.0, 0, 1]))[:, None],
        room[:, None],
        draw.log_uniform(1.2, 6, n, 1),
    )
    floor = room[:, :2] - 0.6
    furniture = slice(0, 5)
    centre, half = plan.scatter(5, draw.log_uniform(0.15, 0.8, n, 5, 2), draw.log_uniform(0.2, 0.9, n, 5, 1), floor)
    plan.put(furniture, centre, half, 2 * half.amax(-1), _often_aligned(draw, n, 5), 0.8, movable=True)
    # A row of things, all alike if the scene repeats.
    row = slice(5, 9)
    centre, half = plan.scatter(4, draw.uniform(0.12, 0.4, n, 4, 2), draw.uniform(0.15, 0.7, n, 4, 1), floor)
    spacing = draw.uniform(0.5, 1.2, n)
    start = centre[:, :1, :2]
    along = _xyz(spacing, draw.uniform(-0.2, 0.2, n))[:, None] * torch.arange(4)[None, :, None]
    centre[..., :2] = torch.where(
        plan.repeats[:, None, None], start + along - 1.5 * spacing[:, None, None], centre[..., :2]
    )
    plan.put(row, centre, half, 2 * half.amax(-1), _often_aligned(draw, n, 4), 0.8, movable=True)
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
    plan.put(slice(9, 14), _xyz(x, y, z), half, 2 * half.amax(-1), 0.0, 0.8)
    same = plan.repeats & draw.chance(0.6, n)
    plan.texture[same, 9:14] = plan.texture[same, 9:10]
    plan.offset[same, 9:14] = plan.offset[same, 9:10]
    _put_round(plan, floor, (0.1, 0.45))
    plan.place[:] = _xyz(
        *(draw.uniform(-0.85, 0.85, n, _CAMERAS) * (room[:, i, None]) for i in range(2)),
        draw.uniform(0.5, 1.7, n, _CAMERAS).minimum(1.8 * rz),
    )
    # All look about the same way, at one of the walls or corners.
    direction = draw.uniform(0, 2 * math.pi, n, 1)
    focus = _xyz(direction.cos() * rx, direction.sin() * ry, draw.uniform(0.3, 1.5, n, 1))
    plan.target[:] = focus + draw.uniform(-1, 1, n, _CAMERAS, 3) * torch.tensor([1.2, 1.2, 0.5])
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
    plan.put(clutter, centre, half, 2 * half.amax(-1), _often_aligned(draw, n, 5), 0.7, movable=True)
    plan.make_identical(clutter, aligned=False)
    _put_round(plan, area, (0.2, 0.9))
    plan.place[:] = _xyz(
        draw.uniform(-14, 14, n, _CAMERAS),
        draw.uniform(-3.2, 3.2, n, _CAMERAS),
        draw.log_uniform(1.2, 5, n, _CAMERAS),
    )
    focus = _xyz(
        draw.uniform(-8, 8, n, 1),
        draw.uniform(4, 8, n, 1) * (draw.chance(0.5, n, 1) * 2.0 - 1),
        draw.uniform(1, 5, n, 1),
    )
    plan.target[:] = focus + draw.uniform(-1, 1, n, _CAMERAS, 3) * torch.tensor([5.0, 2, 1.5])
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
    pitch_x, pitch_z = (
        wall[:, :1] * draw.uniform(0.4, 0.62, n, 1),
        wall[:, 2:] * draw.uniform(0.45, 0.6, n, 1),
    )
    half = _xyz(draw.uniform(0.4, 1.2, n, 9), draw.uniform(0.08, 0.6, n, 9), draw.uniform(0.4, 1.0, n, 9))
    centre = _xyz(column * pitch_x, -half[..., 1] * draw.uniform(0.2, 1, n, 1), half[..., 2] + 0.4 + row * pitch_z)
    plan.put(relief, centre, half, 2 * half.amax(-1), 0.0, 0.9)
    plan.make_identical(relief)
    area = torch.tensor([7.0, 2.0]).expand(n, 2)
    centre, half = plan.scatter(3, draw.log_uniform(0.2, 1.0, n, 3, 2), draw.log_uniform(0.3, 1.5, n, 3, 1), area)
    centre[..., 1] -= 3.0
    plan.put(slice(11, 14), centre, half, 2 * half.amax(-1), _often_aligned(draw, n, 3), 0.6, movable=True)
    _put_round(plan, area, (0.2, 0.7))
    plan.centre[:, _ROUND, 1] -= 3.0
    plan.place[:] = _xyz(
        draw.uniform(-9, 9, n, _CAMERAS),
        -draw.log_uniform(5, 16, n, _CAMERAS),
        draw.log_uniform(1.2, 8, n, _CAMERAS),
    )
    focus = _xyz(draw.uniform(-4, 4, n, 1), torch.zeros(n, 1), draw.uniform(1.5, 5, n, 1))
    plan.target[:] = focus + draw.uniform(-1, 1, n, _CAMERAS, 3) * torch.tensor([3.0, 1, 1.5])
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
    plan.put(houses, centre, half, 2 * half.amax(-1), draw.uniform(-math.pi, math.pi, n, 14), 0.6)
    plan.make_identical(slice(0, 7), aligned=False)
    _put_round(plan, area, (0.4, 1.5))
    # Things stand on the ground, half sunk into it by way of a cellar.
    everything = slice(0, _ROOM)
    where = (plan.centre[:, everything, :2] / extent[:, None])[:, :, None]
    ground = F.grid_sample(plan.height, where, "bilinear", "border", True)[:, 0, :, 0] * relief
    plan.centre[:, everything, 2] += ground - 0.5 * plan.half[:, everything, 2]
    focus = _xyz(*draw.uniform(-8, 8, n, 2, 1).unbind(1), torch.zeros(n, 1))
    plan.target[:] = focus + draw.uniform(-1, 1, n, _CAMERAS, 3) * torch.tensor([5.0, 5, 0.5])
    far, azimuth = (
        draw.log_uniform(9, 26, n, _CAMERAS),
        draw.uniform(0, 2 * math.pi, n, 1) + draw.uniform(-1.2, 1.2, n, _CAMERAS),
    )
    elevation = draw.uniform(0.5, 1.5, n, 1) + draw.uniform(-0.25, 0.25, n, _CAMERAS)
    plan.place[:] = plan.target + _spherical(far, azimuth, elevation.clamp(0.35, 1.55))
    plan.place[..., 2] = plan.place[..., 2].maximum(relief + 2)
    plan.scale[:] = 10.0


def _build_table(plan: _Plan) -> None:
    """Put small things on a table, seen from nearby, in a room or outdoors."""
    n, draw = plan.n, plan.draw
    room = _xyz(draw.uniform(3, 6, n), draw.uniform(3, 6, n), torch.full((n,), 2.0))
    plan.put(
        slice(_ROOM, _TERRAIN),
        _xyz(torch.zeros(n), torch.zeros(n), torch.full((n,), 1.2))[:, None],
        room[:, None],
        draw.log_uniform(1.5, 5, n, 1),
        probability=0.7,
    )
    top = _xyz(draw.uniform(0.9, 1.6, n), draw.uniform(0.9, 1.6, n), torch.full((n,), 0.05))
    plan.put(
        slice(0, 1),
        (top * torch.tensor([0.0, 0, -1]))[:, None],
        top[:, None],
        draw.log_uniform(0.6, 2.5, n, 1),
    )
    area = top[:, :2] * 0.75
    things = slice(1, 9)
    centre, half = plan.scatter(8, draw.log_uniform(0.06, 0.3, n, 8, 2), draw.log_uniform(0.04, 0.35, n, 8, 1), area)
    plan.put(things, centre, half, 2 * half.amax(-1), draw.uniform(-math.pi, math.pi, n, 8), 0.8, movable=True)
    plan.make_identical(slice(1, 6), aligned=False)
    # A few lie on others, or hang in the air, which no matcher minds.
    centre, half = plan.scatter(5, draw.log_uniform(0.06, 0.25, n, 5, 2), draw.log_uniform(0.03, 0.2, n, 5, 1), area)
    centre[..., 2] += draw.uniform(0.1, 0.5, n, 5)
    plan.put(
        slice(9, 14),
        centre,
        half,
        2 * half.amax(-1),
        draw.uniform(-math.pi, math.pi, n, 5),
        0.6,
        movable=True,
    )
    _put_round(plan, area, (0.07, 0.3))
    plan.target[:] = draw.uniform(-0.4, 0.4, n, 1, 3) * torch.tensor([1.0, 1, 0.3]) + draw.uniform(
        -0.25, 0.25, n, _CAMERAS, 3
    )
    azimuth = draw.uniform(0, 2 * math.pi, n, 1) + draw.uniform(-1.1, 1.1, n, _CAMERAS)
    plan.place[:] = plan.target + _spherical(
        draw.log_uniform(0.9, 2.6, n, _CAMERAS), azimuth, draw.uniform(0.2, 1.4, n, _CAMERAS)
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
    plan.put(_ROUND, centre, half, 2 * half.amax(-1), draw.uniform(-math.pi, math.pi, n, 4), 0.5, movable=True)


def _make_scenes(
    draw: Draw, count: int, textures: int, config: SceneConfig
) -> tuple[World, _Cameras, torch.Tensor, torch.Tensor]:
    """Return worlds, ``_CAMERAS`` cameras for each, movable surfaces (B, S), viewing distance (B,); on the CPU."""
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
                rotation=_yaw(plan.yaw),
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
    by_camera = (back[:, None] * _CAMERAS + torch.arange(_CAMERAS)).flatten()
    all_cameras = _Cameras(*(torch.cat([getattr(c, name) for c in cameras]) for name in ("K", "R", "centre")))
    return (
        World.stack(worlds).select(back),
        all_cameras.select(by_camera),
        torch.cat(movable)[back],
        torch.cat(scale)[back],
    )


def _point_cameras(draw: Draw, place: torch.Tensor, target: torch.Tensor, config: SceneConfig) -> _Cameras:
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
    return _Cameras(K, torch.stack([right, down, forward], 1), place)


def _often_aligned(draw: Draw, *shape: int) -> torch.Tensor:
    """Yaw angles, half of which are zero."""
    return draw.uniform(-math.pi, math.pi, *shape) * draw.chance(0.5, *shape)


def _spherical(radius: torch.Tensor, azimuth: torch.Tensor, elevation: torch.Tensor) -> torch.Tensor:
    flat = radius * elevation.cos()
    return _xyz(flat * azimuth.cos(), flat * azimuth.sin(), radius * elevation.sin())


def _yaw(angle: torch.Tensor) -> torch.Tensor:
    """Rotations (*shape, 3, 3) about z."""
    cosine, sine, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([cosine, -sine, zero, sine, cosine, zero, zero, zero, one], -1).unflatten(-1, (3, 3))


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the product of matrices (..., 3, 3), element by element: matmul may run in TF32."""
    return (a[..., None] * b[..., None, :, :]).sum(-2)
