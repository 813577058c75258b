"""Draw textured boxes, ellipsoids, cylinders, rooms and terrain by casting one ray per pixel, in plain PyTorch.

A batch of worlds is drawn at once; every world has the same number of objects of each shape (some switched off), so
all work is element-wise on tensors (B, 3, N) of N rays. What is drawn and what is measured is the same thing: the depth
of a pixel is where its ray meets the surface.

World axes: x, y on the ground, z up, in metres. Nothing here multiplies matrices, since matmul may run in TF32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from ..tensors import Tensors
from .textures import TextureAtlas

BOX, ELLIPSOID, CYLINDER, ROOM, TERRAIN = range(5)
NOTHING = -1
_FAR = 1e6
_MARCH_STEPS = 40
_BISECTIONS = 14


@dataclass(frozen=True, eq=False)
class World(Tensors):
    """B worlds of S surfaces each. The last two surfaces are the room and the terrain.

    Attributes
    ----------
    shape : tuple of int, length S
        `BOX`, `ELLIPSOID` or `CYLINDER` for each object, then `ROOM`, `TERRAIN`; the same in every world.
    present : bool tensor (B, S)
        Surfaces that exist. On the CPU, where it decides what work is skipped.
    centre : float tensor (B, S, 3)
    rotation : float tensor (B, S, 3, 3)
        From the object's axes to the world's.
    half : float tensor (B, S, 3)
        Half the object's extent along its own axes. The cylinder's axis is z. Terrain spans x and y, and heights in ±z.
    texture : int64 tensor (B, S, 6)
        Textures of the sides (+x, -x, +y, -y, +z, -z); round objects have sides too. Repetition (i, j) of side s shows
        number s + 2 i + 3 j (modulo 6): six equal ones repeat themselves, six different ones make a patchwork.
    tile : float tensor (B, S)
        Width of one repetition of the texture, in metres.
    offset : float tensor (B, S, 2)
        Where in the texture the middle of a side lies, in repetitions.
    weathering : float tensor (B, S)
        How much the next side's texture, three times as wide, modulates this one's: repetitions then differ a little.
    gloss : float tensor (B, S)
        Strength of highlights.
    height : float tensor (B, 1, G, G)
        Terrain height in units of its half extent, read bilinearly; row is y, column is x.
    """

    shape: tuple[int, ...]
    present: torch.Tensor
    centre: torch.Tensor
    rotation: torch.Tensor
    half: torch.Tensor
    texture: torch.Tensor
    tile: torch.Tensor
    offset: torch.Tensor
    weathering: torch.Tensor
    gloss: torch.Tensor
    height: torch.Tensor

    def to(self, device: torch.device | str) -> World:
        """Return the same worlds on another device."""
        return replace(super().to(device), present=self.present)


@dataclass(frozen=True, eq=False)
class Light(Tensors):
    """Illumination of B views.

    Attributes
    ----------
    direction : float tensor (B, 3)
        Unit vector towards the sun (or the window), in the world.
    sun, ambient : float tensor (B, 3)
        RGB strength of directed and of diffuse light.
    sky : float tensor (B, 2, 3)
        RGB where rays meet nothing, at the zenith and at the horizon.
    """

    direction: torch.Tensor
    sun: torch.Tensor
    ambient: torch.Tensor
    sky: torch.Tensor


def cast(world: World, origin: torch.Tensor, direction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find what each ray meets first.

    Parameters
    ----------
    world : World
        B worlds.
    origin : float tensor (B, 3) or (B, 3, N)
        Where the rays start: one place per world, or one per ray.
    direction : float tensor (B, 3, N)
        Any length; distances count in multiples of it.

    Returns
    -------
    distance : float tensor (B, N)
        Multiple of ``direction`` at which the surface lies; 0 where there is none.
    surface : int64 tensor (B, N)
        Number of the surface, or `NOTHING`.
    """
    if origin.ndim == 2:
        origin = origin[..., None]
    nearest = torch.full_like(direction[:, 0], _FAR)
    surface = torch.full_like(nearest, NOTHING, dtype=torch.int64)
    for number, shape in enumerate(world.shape):
        part = _worlds_with(world, number)
        if part is None:
            continue
        if shape == TERRAIN:
            enter = _march(world.height[part], world.half[part, number], origin[part], direction[part])
        else:
            enter = _enter(shape, world, number, part, origin[part], direction[part])
        closer = enter < nearest[part]
        nearest[part] = torch.minimum(nearest[part], enter)
        surface[part] = surface[part].masked_fill(closer, number)
    return nearest.masked_fill(surface == NOTHING, 0), surface


def _worlds_with(world: World, number: int) -> torch.Tensor | slice | None:
    """Return the rows of the worlds that have this surface; None if there are none."""
    rows = world.present[:, number].nonzero()[:, 0]
    if not len(rows):
        return None
    return slice(None) if len(rows) == len(world) else rows.to(world.centre.device)


def _enter(
    shape: int, world: World, number: int, rows: torch.Tensor | slice, origin: torch.Tensor, direction: torch.Tensor
) -> torch.Tensor:
    """Return the distance at which rays meet one object, `_FAR` where they do not.

    In the object's own frame, scaled so that its half extents are 1, every shape is an intersection of
    slabs and quadrics, and the ray is inside between ``near`` and ``far``.
    """
    to_local = _transpose(world.rotation[rows, number]) / world.half[rows, number][:, :, None]
    o = _rotate(to_local, origin - world.centre[rows, number][:, :, None])
    d = _rotate(to_local, direction)
    if shape in (BOX, ROOM, CYLINDER):
        inverse = 1 / (d + 1e-12)
        middle, reach = -o * inverse, inverse.abs()
        near, far = middle - reach, middle + reach
        if shape == CYLINDER:
            near_side, far_side = _quadric(o[:, :2], d[:, :2])
            near, far = torch.maximum(near[:, 2], near_side), torch.minimum(far[:, 2], far_side)
        else:
            near, far = near.amax(1), far.amin(1)
    else:
        near, far = _quadric(o, d)
    if shape == ROOM:  # seen from inside
        return torch.where(far > 1e-4, far, _FAR)
    return torch.where((near < far) & (near > 1e-4), near, _FAR)


def _quadric(o: torch.Tensor, d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where rays o + t d (B, 2 or 3, N) enter and leave the unit circle or sphere; near > far for a miss."""
    a, b, c = (d * d).sum(1) + 1e-20, (o * d).sum(1), (o * o).sum(1) - 1
    discriminant = b * b - a * c
    root = discriminant.clamp(min=0).sqrt() * torch.where(discriminant > 0, 1.0, -1.0) - (discriminant <= 0) * 1e-6
    return (-b - root) / a, (-b + root) / a


def _march(height: torch.Tensor, half: torch.Tensor, origin: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """Return the distance at which rays meet terrain: steps until a ray is below it, then bisection."""
    scale = 1 / half[:, :, None]
    o, d = origin * scale, direction * scale
    inverse = 1 / (d + 1e-12)
    middle, reach = -o * inverse, inverse.abs()
    start, stop = (middle - reach).amax(1).clamp(min=1e-3), (middle + reach).amin(1)
    step = (stop - start) / _MARCH_STEPS

    def above(distance: torch.Tensor) -> torch.Tensor:
        place = o + distance[:, None] * d
        ground = F.grid_sample(height, place[:, :2].transpose(1, 2)[:, :, None], "bilinear", "border", True)
        return place[:, 2] > ground[:, 0, :, 0]

    was_above = above(start)
    found = torch.zeros_like(was_above)
    low = start
    for number in range(1, _MARCH_STEPS + 1):
        is_above = above(start + number * step)
        crossing = was_above & ~is_above & ~found
        low = torch.where(crossing, start + (number - 1) * step, low)
        found |= crossing
        was_above = is_above
    high = low + step
    for _ in range(_BISECTIONS):
        centre = (low + high) / 2
        over = above(centre)
        low, high = torch.where(over, centre, low), torch.where(over, high, centre)
    return torch.where(found & (step > 0), (low + high) / 2, _FAR)


def shade(
    world: World,
    atlas: TextureAtlas,
    light: Light | None,
    origin: torch.Tensor,
    direction: torch.Tensor,
    right: torch.Tensor,
    down: torch.Tensor,
    distance: torch.Tensor,
    surface: torch.Tensor,
) -> torch.Tensor:
    """Colour what `cast` found.

    Parameters
    ----------
    world, atlas, light
        What is there, what it looks like, and the light on it. Without light, textures show as they are, and black
        where there is nothing.
    origin : float tensor (B, 3)
        The camera.
    direction : float tensor (B, 3, N)
        Rays.
    right, down : float tensor (B, 3)
        What is added to a ray to get the ray of the next pixel in the row and in the column.
    distance, surface : tensors (B, N)
        From `cast`.

    Returns
    -------
    float tensor (B, 3, N)
        RGB, in [0, 1].
    """
    kind = torch.tensor(world.shape, device=surface.device)
    seen = surface.clamp(min=0)
    shape = kind[seen]
    point = origin[..., None] + distance[:, None] * direction
    # The object's frame, scaled to half extents of 1.
    to_local = _transpose(world.rotation) / world.half[..., None]
    local_frame = _gather(to_local.flatten(2), seen)  # (B, 9, N)
    offset_to_centre = point - _gather(world.centre, seen)
    local = _per_ray(local_frame, offset_to_centre)
    half = _gather(world.half, seen)

    # Which side, and the surface's normal there. Sides of round objects are those of the box around them.
    magnitude = local.abs()
    on_z = (magnitude[:, 2] >= torch.maximum(magnitude[:, 0], magnitude[:, 1])) | (shape == TERRAIN)
    on_x = (magnitude[:, 0] >= magnitude[:, 1]) & ~on_z
    on_y = ~(on_x | on_z)
    one_hot = torch.stack([on_x, on_y, on_z], 1).to(local)
    # Terrain is a height above the ground, not a side of a box: it is not projected.
    major = torch.where(shape == TERRAIN, 1.0, (local * one_hot).sum(1))
    sign = torch.where(major >= 0, 1.0, -1.0)
    keep = _ROUND.to(local)[shape].transpose(1, 2)  # which of the local coordinates bend the surface
    on_cap = (magnitude[:, 2] > 0.9999) & (shape == CYLINDER)
    bent = keep.any(1) & ~on_cap
    local_normal = torch.where(bent[:, None], local * keep, one_hot * sign[:, None])
    normal = _per_ray_transposed(local_frame, local_normal)
    rows = world.present[:, -1].nonzero()[:, 0].to(surface.device)
    if len(rows):
        slope = _terrain_slope(world.height[rows], world.half[rows, -1], local[rows])
        normal[rows] = torch.where((shape[rows] == TERRAIN)[:, None], slope, normal[rows])
    normal = _unit(normal)
    facing = (normal * direction).sum(1, keepdim=True)
    normal = torch.where(facing > 0, -normal, normal)  # a room shows its inner side
    facing = -facing.abs().clamp(min=1e-3)

    # Texture coordinates, in metres: the two other local coordinates, projected onto the side from the object's middle.
    divisor = major.abs().clamp(min=1e-6)
    u, v, width, height = *_others(local, on_x, on_z), *_others(half, on_x, on_z)
    tile = _gather(world.tile[..., None], seen)[:, 0]
    centre_u, centre_v = _gather(world.offset, seen).unbind(1)
    scale_u, scale_v = width / tile, height / tile
    # Photographs stand upright on walls, and are not mirrored when seen from outside a box or inside a room.
    mirror = torch.where(on_y ^ (shape == ROOM), -1.0, 1.0) * sign
    footprint = []
    for neighbour in (right, down):
        # Where the next pixel's ray meets the surface's tangent plane, and what that changes in u and v.
        along = (normal * neighbour[..., None]).sum(1, keepdim=True) / facing
        moved = _per_ray(local_frame, distance[:, None] * (neighbour[..., None] - direction * along))
        moved_u, moved_v = _others(moved, on_x, on_z)
        # A side's coordinates are divided by the major one; on flat sides that one does not change.
        growth = (moved * one_hot).sum(1) * torch.where(bent, sign, 0.0)
        footprint.append(
            ((moved_u - u / divisor * growth) / divisor * scale_u, (moved_v - v / divisor * growth) / divisor * scale_v)
        )
    u = u / divisor * scale_u * mirror + centre_u
    v = centre_v - v / divisor * scale_v
    footprint = [(du * mirror, -dv) for du, dv in footprint]
    side = on_y * 2 + on_z * 4 + (sign < 0) + 2 * u.floor().long() + 3 * v.floor().long()
    textures, others = (world.texture.flatten(1).gather(1, seen * 6 + (side + i) % 6) for i in (0, 1))
    colour = atlas.read_stretched(textures, u, v, footprint)
    wear = _gather(world.weathering[..., None], seen)
    colour = colour * (1 + wear * atlas.read_weather(others, u, v, footprint))

    nothing = (surface == NOTHING)[:, None]
    if light is None:
        return colour.masked_fill(nothing, 0).clamp(0, 1)

    # Light: diffuse from above, directed with cast shadows, and a highlight.
    lit = (normal * light.direction[..., None]).sum(1, keepdim=True).clamp(min=0)
    lit = lit * ~_in_shadow(world, point + normal * 2e-3, light.direction)[:, None]
    ambient = light.ambient[..., None] * (0.75 + 0.25 * normal[:, 2:])
    toward = _unit(-direction)
    halfway = _unit(toward + light.direction[..., None])
    highlight = (normal * halfway).sum(1, keepdim=True).clamp(min=0) ** 32 * (lit > 0)
    sun = light.sun[..., None]
    colour = colour * (ambient + sun * lit) + _gather(world.gloss[..., None], seen) * sun * highlight
    up = (-toward[:, 2:]).clamp(0, 1).sqrt()
    sky = torch.lerp(light.sky[:, 1, :, None], light.sky[:, 0, :, None], up)
    return torch.where(nothing, sky, colour).clamp(0, 1)


# Which local coordinates the normal of each shape follows: none on flat sides.
_ROUND = torch.tensor([[0, 0, 0], [1, 1, 1], [1, 1, 0], [0, 0, 0], [0, 0, 0]], dtype=torch.bool, device="cpu")


def _in_shadow(world: World, point: torch.Tensor, toward_sun: torch.Tensor) -> torch.Tensor:
    """Say which points (B, 3, N) an object (not the room, nor the terrain) hides from the sun."""
    hidden = torch.zeros_like(point[:, 0], dtype=torch.bool, device="cpu")
    for number, shape in enumerate(world.shape[:-2]):
        part = _worlds_with(world, number)
        if part is not None:
            hidden[part] |= _enter(shape, world, number, part, point[part], toward_sun[part][..., None]) < _FAR
    return hidden


def _terrain_slope(height: torch.Tensor, half: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
    """Return the terrain's upward normal (B, 3, N), not normalised, at local coordinates."""
    spacing = 2 / (height.shape[-1] - 1)
    dy, dx = torch.gradient(height[:, 0], spacing=spacing, dim=(1, 2))
    place = local[:, :2].transpose(1, 2)[:, :, None]
    slope = F.grid_sample(torch.stack([dx, dy], 1), place, "bilinear", "border", True)[..., 0]
    slope = slope * (half[:, 2:, None] / half[:, :2, None])
    return torch.cat([-slope, torch.ones_like(slope[:, :1])], 1)


def _gather(per_surface: torch.Tensor, surface: torch.Tensor) -> torch.Tensor:
    """Values (B, S, C) of the surface of each ray (B, N), as (B, C, N)."""
    index = surface[:, None].expand(-1, per_surface.shape[2], -1)
    return per_surface.transpose(1, 2).gather(2, index)


def _others(vector: torch.Tensor, on_x: torch.Tensor, on_z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two coordinates (B, N) of vectors (B, 3, N) along the side they are on, the horizontal one first."""
    x, y, z = vector.unbind(1)
    return torch.where(on_x, y, x), torch.where(on_z, y, z)


def _rotate(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Return matrix (B, 3, 3) times vectors (B, 3, N)."""
    return sum(matrix[:, :, i, None] * vector[:, i, None] for i in range(3))  # type: ignore[return-value]


def _per_ray(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Return matrices (B, 9, N), row by row, times vectors (B, 3, N)."""
    return torch.stack([(matrix[:, 3 * row : 3 * row + 3] * vector).sum(1) for row in range(3)], 1)


def _per_ray_transposed(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Return the transposes of matrices (B, 9, N), row by row, times vectors (B, 3, N)."""
    return torch.stack([(matrix[:, row::3] * vector).sum(1) for row in range(3)], 1)


def _unit(vector: torch.Tensor) -> torch.Tensor:
    """Return vectors (B, 3, N) at length 1."""
    return vector * ((vector * vector).sum(1, keepdim=True) + 1e-18).rsqrt()


def _transpose(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.transpose(-1, -2)
