"""Rendered scenes: depth and pose are true, colours follow them, and what misleads a matcher is labelled rightly."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tiepoint.errors import ArgumentError
from tiepoint.training.data import raycast
from tiepoint.training.data.raycast import BOX, CYLINDER, ELLIPSOID, NOTHING, ROOM, TERRAIN, World
from tiepoint.training.data.scene_layouts import SceneConfig, yaw_rotation
from tiepoint.training.data.scenes import ScenePairs, make_pairs
from tiepoint.training.data.textures import TextureAtlas

KINDS = ("room", "street", "facade", "terrain", "table")


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def textures(texture: NDArray[np.uint8]) -> torch.Tensor:
    """Sixteen different pieces (16, 3, 64, 64) of the made-up picture."""
    picture = torch.from_numpy(texture).permute(2, 0, 1).float() / 255
    pieces = picture.unfold(1, 60, 60).unfold(2, 80, 80).permute(1, 2, 0, 3, 4).flatten(0, 1)
    return F.interpolate(pieces, size=(64, 64), mode="bilinear", antialias=True)


def _world(objects: list[tuple[int, list[float], list[float], float]], hills: torch.Tensor | None = None) -> World:
    """One world of (shape, centre, half, yaw); without a room, and with terrain only if ``hills`` are given."""
    count = len(objects) + 2
    flat = torch.zeros(1, 1, 9, 9) if hills is None else hills
    centre, half, yaw = torch.zeros(1, count, 3), torch.ones(1, count, 3), torch.zeros(1, count)
    for i, (_, c, h, angle) in enumerate(objects):
        centre[0, i], half[0, i], yaw[0, i] = torch.tensor(c), torch.tensor(h), angle
    half[0, -1] = torch.tensor([8.0, 8, 1.5])
    return World(
        shape=(*(shape for shape, *_ in objects), ROOM, TERRAIN),
        present=torch.tensor([[True] * len(objects) + [False, hills is not None]]),
        centre=centre,
        rotation=yaw_rotation(yaw),
        half=half,
        texture=torch.zeros(1, count, 6, dtype=torch.int64),
        tile=torch.ones(1, count),
        offset=torch.zeros(1, count, 2),
        weathering=torch.zeros(1, count),
        gloss=torch.zeros(1, count),
        height=flat,
    )


def _rays(count: int, seed: int = 0) -> torch.Tensor:
    """Directions (1, 3, count) all round, downwards, of different lengths."""
    rays = torch.randn(1, 3, count, generator=_generator(seed))
    rays[:, 2] = -rays[:, 2].abs() - 0.05
    return rays


# --- The ray caster against closed forms ---


def test_depth_of_a_plane() -> None:
    world = _world([(BOX, [0, 0, -1.0], [1e4, 1e4, 1.0], 0.3)])
    rays = _rays(500)
    distance, surface = raycast.cast(world, torch.tensor([[3.0, -2, 4]]), rays)
    torch.testing.assert_close(distance, -4 / rays[:, 2], rtol=1e-4, atol=1e-4)
    assert (surface == 0).all()


def test_sphere_and_ellipsoid() -> None:
    centre, half, angle = torch.tensor([1.0, 2, -3]), torch.tensor([2.0, 1, 1.5]), 0.7
    world = _world([(ELLIPSOID, centre.tolist(), half.tolist(), angle)])
    rays = _rays(4000)
    distance, surface = raycast.cast(world, torch.tensor([[0.5, 0, 2]]), rays)
    hit = surface[0] == 0
    assert hit.sum() > 100 and (surface[0][~hit] == NOTHING).all() and (distance[0][~hit] == 0).all()
    points = torch.tensor([0.5, 0, 2])[:, None] + distance[0] * rays[0]
    turned = yaw_rotation(torch.tensor(-angle)) @ (points - centre[:, None])
    on_surface = ((turned / half[:, None]) ** 2).sum(0)[hit]
    assert (on_surface - 1).abs().max() < 1e-4
    # It is the near side: a step back along the ray is outside.
    before = torch.tensor([0.5, 0, 2])[:, None] + 0.99 * distance[0] * rays[0]
    outside = ((yaw_rotation(torch.tensor(-angle)) @ (before - centre[:, None]) / half[:, None]) ** 2).sum(0)[hit]
    assert (outside > 1).all()


def test_boxes_and_cylinders_against_marching() -> None:
    """Many small steps along each ray find the same first point inside."""
    objects = [(BOX, [0.0, 1, -2], [1.0, 0.5, 0.7], 0.4), (CYLINDER, [1.0, -1, -1.5], [0.6, 0.9, 1.2], 1.1)]
    world = _world(objects)
    rays = F.normalize(_rays(1500, 3), dim=1)
    distance, surface = raycast.cast(world, torch.tensor([[0.2, 0.1, 2]]), rays)
    steps = torch.arange(0, 8, 0.004)
    points = torch.tensor([0.2, 0.1, 2.0])[:, None, None] + rays[0][:, :, None] * steps
    inside = []
    for shape, centre, half, angle in objects:
        offset = points.flatten(1) - torch.tensor(centre)[:, None]
        local = yaw_rotation(torch.tensor(-angle)) @ offset / torch.tensor(half)[:, None]
        across = local[:2].abs().amax(0) if shape == BOX else local[:2].norm(dim=0)
        within = (across < 1) & (local[2].abs() < 1)
        inside.append(within.view(len(rays[0, 0]), -1))
    any_inside = inside[0] | inside[1]
    first = any_inside.int().argmax(1)
    met = any_inside.any(1)
    assert 0.05 < met.float().mean() < 0.95
    assert ((surface[0] != NOTHING) == met).float().mean() > 0.995  # a step may miss a corner
    both = met & (surface[0] != NOTHING)
    assert (distance[0] - steps[first])[both].abs().quantile(0.99) < 0.005
    which = torch.where(inside[0].gather(1, first[:, None])[:, 0], 0, 1)
    assert (which == surface[0])[both].float().mean() > 0.99


def test_terrain_is_hit_where_its_height_is() -> None:
    hills = F.interpolate(torch.rand(1, 1, 6, 6, generator=_generator()) * 1.8 - 0.9, size=(65, 65), mode="bicubic")
    world = _world([], hills.clamp(-1, 1))
    origin = torch.tensor([[0.5, -1, 5.0]])
    rays = _rays(3000)
    distance, surface = raycast.cast(world, origin, rays)
    points = (origin[..., None] + distance[:, None] * rays)[0]
    hit = surface[0] == 1
    assert hit.float().mean() > 0.5
    ground = F.grid_sample(hills.clamp(-1, 1), (points[:2] / 8).T[None, None], align_corners=True)[0, 0, 0] * 1.5
    assert (points[2] - ground)[hit].abs().max() < 2e-3
    # No ray that hits passes under the ground on its way.
    for share in (0.2, 0.5, 0.8, 0.95):
        on_way = (origin[..., None] + share * distance[:, None] * rays)[0]
        ground = F.grid_sample(hills.clamp(-1, 1), (on_way[:2] / 8).T[None, None], align_corners=True)[0, 0, 0] * 1.5
        assert ((on_way[2] > ground - 1e-3) | ~hit).float().mean() > 0.999


def test_textures_do_not_alias_far_away_or_at_a_slant() -> None:
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    board = ((x // 4 + y // 4) % 2).float().expand(1, 3, -1, -1)
    world = _world([(BOX, [0, 0, -1.0], [1e3, 1e3, 1.0], 0.0)])
    atlas = TextureAtlas.build(board)
    v, u = torch.meshgrid(torch.arange(60.0), torch.arange(80.0), indexing="ij")
    rays = torch.stack([u.flatten() / 80 - 0.5, torch.ones(4800), -(v.flatten() + 1) / 120])[None]
    origin, right, down = torch.tensor([[0.0, 0, 1]]), torch.tensor([[1 / 80, 0, 0]]), torch.tensor([[0, 0, -1 / 120]])
    distance, surface = raycast.cast(world, origin, rays)
    colour = raycast.shade(world, atlas, None, origin, rays, right, down, distance, surface)
    rows = colour[0, 0].view(60, 80)
    assert rows[:10].std(1).max() < 0.05  # towards the horizon: grey
    assert (rows[:10].mean() - 0.5).abs() < 0.03
    assert rows[-10:].std() > 0.25  # at one's feet: black and white


def test_atlas_reads_what_interpolation_says(textures: torch.Tensor) -> None:
    atlas = TextureAtlas.build(textures)
    generator = _generator()
    u, v = torch.rand(1, 400, generator=generator) * 4 - 2, torch.rand(1, 400, generator=generator) * 4 - 2
    which = torch.randint(len(textures), (1, 400), generator=generator)
    for level in range(atlas.levels):
        reduced = F.avg_pool2d(textures, 1 << level)
        side = 64 >> level
        tiled = F.pad(reduced, (1, 1, 1, 1), "circular")
        expected = []
        for n, a, b in zip(which[0], u[0] % 1, v[0] % 1, strict=True):
            place = torch.stack([a * side + 1, b * side + 1]) * 2 / (side + 2) - 1
            expected.append(F.grid_sample(tiled[n : n + 1], place[None, None, None], align_corners=False)[0, :, 0, 0])
        read = atlas.read(which, u, v, torch.full_like(u, level))[0]
        assert (read - torch.stack(expected, 1)).abs().max() < 2e-3


# --- Pairs ---


def _pixels(batch: int, size: tuple[int, int]) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)]).flatten(1).double().expand(batch, 3, -1)


def _carry(pairs: ScenePairs, t: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Carry view 0's pixels into view 1: places (B, N, 2), depth (B, N), and whether they are seen there.

    By matrices in float64, independent of the code under test, and visibility by comparing depth maps.
    """
    size = tuple(pairs.depth0.shape[1:])
    batch = len(pairs.depth0)
    depth = pairs.depth0.double().flatten(1)
    t = pairs.t if t is None else t
    points = torch.linalg.inv(pairs.K0.double()) @ _pixels(batch, size) * depth[:, None]
    mapped = pairs.K1.double() @ (pairs.R.double() @ points + t.double()[..., None])
    z = mapped[:, 2]
    places = (mapped[:, :2] / z[:, None]).transpose(1, 2)
    limit = torch.tensor([size[1] - 1, size[0] - 1])
    inside = ((places >= 0) & (places <= limit)).all(-1) & (z > 0) & (depth > 0)
    unit = places / limit * 2 - 1
    # 1/z is linear on planes, so it can be interpolated however steeply they are seen; but not across outlines.
    inverse = (1 / pairs.depth1.double().clamp(min=1e-6))[:, None]
    there = 1 / F.grid_sample(inverse, unit[:, :, None], align_corners=True)[:, 0, :, 0]
    nearest = F.grid_sample(pairs.depth1.double()[:, None], unit[:, :, None], mode="nearest", align_corners=True)
    same = ((there / z - 1).abs() < 0.02) | ((nearest[:, 0, :, 0] / z - 1).abs() < 0.02)
    return places, z, inside & same


def _colour_difference(pairs: ScenePairs, t: torch.Tensor | None = None) -> tuple[float, float]:
    """Mean difference of colour between view 0 and view 1 carried onto it, and the share of pixels compared."""
    places, _, seen = _carry(pairs, t)
    size = pairs.depth0.shape[1:]
    unit = places / torch.tensor([size[1] - 1, size[0] - 1]) * 2 - 1
    there = F.grid_sample(pairs.images1.double(), unit[:, :, None], align_corners=True)[..., 0]
    difference = (there - pairs.images0.double().flatten(2)).abs().mean(1)
    return float(difference[seen].mean()), float(seen.float().mean())


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_point_has_the_same_colour(kind: str, textures: torch.Tensor) -> None:
    config = SceneConfig((96, 128), kinds=(kind,), lit=False, moved=0.0, overlap=(0.4, 0.9))
    pairs = make_pairs(textures, 6, config, _generator(1))
    right, share = _colour_difference(pairs)
    # A pose wrong by a tenth of the viewing distance.
    distance = pairs.depth0[pairs.depth0 > 0].median()
    wrong, _ = _colour_difference(pairs, pairs.t + torch.tensor([0.1, 0.05, 0]) * distance)
    assert share > 0.3
    assert right < 0.045 and wrong > 1.8 * right


def test_sift_agrees_with_the_pose(data_dir, textures: torch.Tensor) -> None:
    """Matches of an extractor that knows neither depth nor pose lie on the epipolar lines."""
    del textures
    files = sorted((data_dir / "train" / "cid22").glob("*.webp"))[:12]
    photos = [cv2.resize(cv2.cvtColor(cv2.imread(str(f)), cv2.COLOR_BGR2RGB), (256, 256)) for f in files]
    real = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).float() / 255
    config = SceneConfig((240, 320), overlap=(0.5, 0.9), moved=0.0, repeated=0.0)
    pairs = make_pairs(real, 4, config, _generator(2))
    sift, distances = cv2.SIFT_create(), []
    for b in range(4):
        images = [(i[b].permute(1, 2, 0).numpy() * 255).astype(np.uint8) for i in (pairs.images0, pairs.images1)]
        (k0, d0), (k1, d1) = (sift.detectAndCompute(image, None) for image in images)
        knn = cv2.BFMatcher().knnMatch(d0, d1, k=2)
        good = [m for m, n in knn if m.distance < 0.7 * n.distance]
        tx, ty, tz = pairs.t[b].tolist()
        cross = np.array([[0, -tz, ty], [tz, 0, -tx], [-ty, tx, 0]])
        K0, K1, R = (m[b].double().numpy() for m in (pairs.K0, pairs.K1, pairs.R))
        fundamental = np.linalg.inv(K1).T @ cross @ R @ np.linalg.inv(K0)
        for m in good:
            line = fundamental @ [*k0[m.queryIdx].pt, 1]
            distances.append(abs(line @ [*k1[m.trainIdx].pt, 1]) / np.hypot(*line[:2]))
    assert len(distances) > 40
    assert np.mean(np.array(distances) < 2) > 0.7


@pytest.mark.parametrize("moved", [0.0, 1.0])
def test_overlap_is_what_depth_maps_say(moved: float, textures: torch.Tensor) -> None:
    config = SceneConfig((96, 128), moved=moved)
    pairs = make_pairs(textures, 10, config, _generator(3))
    _, _, seen = _carry(pairs)
    assert (seen.double().mean(1) - pairs.overlap[:, 0]).abs().max() < 0.06
    back = replace(
        pairs,
        depth0=pairs.depth1,
        depth1=pairs.depth0,
        K0=pairs.K1,
        K1=pairs.K0,
        R=pairs.R.transpose(1, 2),
        t=-(pairs.R.transpose(1, 2) @ pairs.t[..., None])[..., 0],
    )
    assert (_carry(back)[2].double().mean(1) - pairs.overlap[:, 1]).abs().max() < 0.06


def test_overlap_is_chosen(textures: torch.Tensor) -> None:
    for low, high in ((0.1, 0.3), (0.6, 0.9)):
        pairs = make_pairs(textures, 24, SceneConfig((48, 64), overlap=(low, high), moved=0.0), _generator(4))
        smaller = pairs.overlap.amin(1)
        assert ((smaller > low - 0.12) & (smaller < high + 0.12)).float().mean() > 0.8


def test_moved_objects_have_no_depth_and_the_rest_is_static(textures: torch.Tensor) -> None:
    config = SceneConfig((96, 128), kinds=("room", "table"), lit=False, moved=1.0, overlap=(0.4, 0.9))
    pairs = make_pairs(textures, 8, config, _generator(5))
    assert 0.01 < pairs.moved0.float().mean() < 0.6 and pairs.moved1.any()
    assert (pairs.depth0[pairs.moved0] == 0).all() and (pairs.depth1[pairs.moved1] == 0).all()
    assert _colour_difference(pairs)[0] < 0.045
    still = make_pairs(textures, 8, replace(config, moved=0.0), _generator(5))
    assert not still.moved0.any() and not still.moved1.any()


def test_light_changes_colours_but_not_geometry(textures: torch.Tensor) -> None:
    config = SceneConfig((48, 64), moved=0.0)
    lit = make_pairs(textures, 4, config, _generator(6))
    unlit = make_pairs(textures, 4, replace(config, lit=False), _generator(6))
    assert torch.equal(lit.depth0, unlit.depth0) and torch.equal(lit.t, unlit.t)
    assert (lit.images0 - unlit.images0).abs().mean() > 0.03
    assert _colour_difference(lit)[0] > 1.3 * _colour_difference(unlit)[0]
    for image in (lit.images0, lit.images1):
        assert image.min() >= 0 and image.max() <= 1 and image.isfinite().all()


def test_poses_are_rigid_and_roll_is_honoured(textures: torch.Tensor) -> None:
    rolls = {}
    for name, asked, limit in (("held", 1.0, 0.35), ("rolled", 3.14, math.pi)):
        config = replace(SceneConfig.rolled((24, 32), asked), kinds=("facade",))
        assert config.max_roll == pytest.approx(limit)
        pairs = make_pairs(textures, 40, config, _generator(7))
        identity = pairs.R @ pairs.R.transpose(1, 2)
        assert (identity - torch.eye(3)).abs().max() < 1e-5 and (torch.linalg.det(pairs.R) > 0.99).all()
        rolls[name] = torch.atan2(pairs.R[:, 1, 0], pairs.R[:, 0, 0]).abs()
        focal = torch.cat([pairs.K0[:, 0, 0], pairs.K1[:, 0, 0]]) / 32
        assert config.focal[0] <= focal.min() and focal.max() <= config.focal[1] and focal.std() > 0.1
    # All look at one wall: their roll differs by what is asked for, and a little by perspective.
    assert rolls["held"].quantile(0.9) < 0.7 and rolls["rolled"].quantile(0.8) > 2


def test_scenes_half_a_batch_apart_share_no_texture() -> None:
    """Textures of the first half are red, of the second half blue."""
    textures = torch.zeros(12, 3, 16, 16)
    textures[:6, 0], textures[6:, 2] = 1, 1
    pairs = make_pairs(textures, 2, SceneConfig((48, 64), lit=False), _generator(8))
    for images in (pairs.images0, pairs.images1):
        assert images[0, 0].mean() > 0.2 and images[0, 2].max() < 1e-3
        assert images[1, 2].mean() > 0.2 and images[1, 0].max() < 1e-3


def test_the_same_seed_gives_the_same_pairs(textures: torch.Tensor) -> None:
    config = SceneConfig((24, 32))
    first, second, other = (make_pairs(textures, 5, config, _generator(seed)) for seed in (9, 9, 10))
    for name in vars(first):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert not torch.equal(first.images0, other.images0)


def test_rendering_in_parts_is_rendering_at_once(textures: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SceneConfig((24, 32))
    parts = make_pairs(textures, 6, config, _generator(11))
    monkeypatch.setattr("tiepoint.training.data.scenes._RAYS_AT_ONCE", {"cpu": 1})
    single = make_pairs(textures, 6, config, _generator(11))
    assert (parts.depth0 - single.depth0).abs().max() < 1e-4
    assert (parts.images1 - single.images1).abs().mean() < 1e-4


@pytest.mark.parametrize(
    "wrong",
    [{"overlap": (0.5, 0.2)}, {"focal": (0.0, 1.0)}, {"moved": 2.0}, {"kinds": ("castle",)}, {"kinds": ()}],
)
def test_options_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match=r"castle|empty|overlap|focal|moved"):
        SceneConfig(**wrong)  # type: ignore[arg-type]


def test_bad_textures() -> None:
    with pytest.raises(ArgumentError, match="power of two"):
        make_pairs(torch.rand(8, 3, 48, 48), 2, SceneConfig((24, 32)), _generator())
    with pytest.raises(ArgumentError, match="at least 6"):
        make_pairs(torch.rand(3, 3, 32, 32), 2, SceneConfig((24, 32)), _generator())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_makes_the_same_scenes(textures: torch.Tensor) -> None:
    config = SceneConfig((96, 128))
    cpu, gpu = (make_pairs(textures.to(d), 8, config, _generator()) for d in ("cpu", "cuda"))
    assert (cpu.t - gpu.t.cpu()).abs().max() < 1e-4
    assert ((cpu.depth0 - gpu.depth0.cpu()).abs() < 1e-2).float().mean() > 0.99
