"""Two views of a synthetic 3D scene, rendered on the training device, with exact depth and pose.

Five kinds of scene, each textured with photographs: rooms, streets, facades, terrain from above, and table tops. On
purpose they hold what misleads local matching: the same facade on several houses, rows of identical objects, the same
poster twice, textures that repeat, things in front, objects that moved between the views, another light in each view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ...errors import ArgumentError
from ._random import Draw
from .raycast import NOTHING, Light, World, cast, shade
from .scene_layouts import CAMERAS, ROOM_SLOT, TEXTURES_PER_SCENE, Cameras, SceneConfig, make_scenes, move_objects
from .textures import TextureAtlas

_PROBE = (12, 16)  # rows and columns of rays with which those overlaps are measured
# On a CPU, one view at a time stays in its cache; on a GPU the limit is memory (about 1 kB a ray).
_RAYS_AT_ONCE = {"cpu": 2**17}


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
        Fraction of view 0's pixels whose point is seen in view 1 (inside, and not hidden), and the other way round.
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
    world, cameras, movable, scale = make_scenes(draw, count, len(textures), config)
    world, cameras = world.to(device), cameras.to(device)
    chosen = _choose_cameras(draw, world, cameras, scale.to(device), config)
    later, moved = move_objects(draw, world, movable, scale, config)
    light = _make_light(draw, world, device) if config.lit else None

    both = World.cat([world, later])
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
        for there, a, b, depth_here in ((later, cameras0, cameras1, depth0), (world, cameras1, cameras0, depth1))
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
    world: World, atlas: TextureAtlas, light: Light | None, cameras: Cameras, size: tuple[int, int]
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
    here: Cameras,
    there: Cameras,
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


def _choose_cameras(draw: Draw, world: World, cameras: Cameras, scale: torch.Tensor, config: SceneConfig) -> Cameras:
    """Choose two of the cameras of each scene, by the overlap measured between all of them; (2 B) first 0, then 1."""
    count, device = len(world), cameras.centre.device
    height, width = config.size
    y, x = torch.meshgrid(
        (torch.arange(_PROBE[0], device=device) + 0.5) * height / _PROBE[0] - 0.5,
        (torch.arange(_PROBE[1], device=device) + 0.5) * width / _PROBE[1] - 0.5,
        indexing="ij",
    )
    x, y = x.flatten(), y.flatten()
    each = world.select(torch.arange(count).repeat_interleave(CAMERAS))
    depth, _ = cast(each, cameras.centre, cameras.rays(x, y))
    # A camera is of use if it is not stuck in or in front of an object, and does not look into the sky.
    seen = (depth > 0).float().mean(1)
    close = ((depth > 0) & (depth < 0.25 * scale.repeat_interleave(CAMERAS)[:, None])).float().mean(1)
    useless = ((seen < 0.5) | (close > 0.15) | _inside_object(each, cameras.centre)).view(count, CAMERAS)
    # Overlap by projection and comparison of depths with the coarse depth map; exact enough to choose by.
    first, second = torch.triu_indices(CAMERAS, CAMERAS, 1, device=device)
    base = torch.arange(count, device=device)[:, None] * CAMERAS
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
    here: Cameras,
    there: Cameras,
    x: torch.Tensor,
    y: torch.Tensor,
    depth: torch.Tensor,
    depth_there: torch.Tensor,
    size: tuple[int, int],
) -> torch.Tensor:
    """Fraction of ``here``'s probing rays (B, N) that ``there`` sees, compared with its own probing rays."""
    px, py, z = there.project(here.centre[..., None] + depth[:, None] * here.rays(x, y))
    column = ((px + 0.5) / size[1] * _PROBE[1]).floor()
    row = ((py + 0.5) / size[0] * _PROBE[0]).floor()
    inside = (column >= 0) & (column < _PROBE[1]) & (row >= 0) & (row < _PROBE[0]) & (z > 0) & (depth > 0)
    index = (row * _PROBE[1] + column).clamp(0, _PROBE[0] * _PROBE[1] - 1).long()
    facing = depth_there.gather(1, index)
    return (inside & ((facing - z).abs() < 0.15 * z)).float().mean(1)


def _inside_object(world: World, place: torch.Tensor) -> torch.Tensor:
    """Say which places (B, 3) lie within (the box around) an object of their world."""
    offset = place[:, None] - world.centre[:, :ROOM_SLOT]
    local = (world.rotation[:, :ROOM_SLOT] * offset[..., None]).sum(2) / world.half[:, :ROOM_SLOT]
    return ((local.abs().amax(2) < 1.1) & world.present[:, :ROOM_SLOT].to(place.device)).any(1)


def _relative_pose(cameras0: Cameras, cameras1: Cameras) -> tuple[torch.Tensor, torch.Tensor]:
    R = (cameras1.R[:, :, None] * cameras0.R[:, None]).sum(-1)
    t = (cameras1.R * (cameras0.centre - cameras1.centre)[:, None]).sum(-1)
    return R, t


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
    sun, ambient = 1.1 * level * share * tint, level * (1 - 0.75 * share) / tint
    return Light(direction, sun, ambient, torch.stack([zenith, horizon], 1)).to(device)


def _smooth_edges(images: torch.Tensor, surface: torch.Tensor) -> torch.Tensor:
    """Blur (B, 3, h, w) across the outlines of surfaces, which one ray per pixel draws with stairs."""
    across, along = surface[:, :, 1:] != surface[:, :, :-1], surface[:, 1:] != surface[:, :-1]
    edge = F.pad(across, (1, 0)) | F.pad(across, (0, 1)) | F.pad(along, (0, 0, 1, 0)) | F.pad(along, (0, 0, 0, 1))
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    rows = (padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]) / 4
    blurred = (rows[..., :-2, :] + 2 * rows[..., 1:-1, :] + rows[..., 2:, :]) / 4
    return torch.where(edge[:, None], blurred, images)
