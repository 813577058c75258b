"""Two views of one photograph: the homography is true, the views stay inside, and the ranges are what was asked for."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tiepoint.errors import ArgumentError
from tiepoint.training.data.homographies import HomographyConfig, make_pairs, sample_views, warp

PRESETS = [HomographyConfig((60, 80)), HomographyConfig((80, 60), max_roll=math.pi, max_scale=4.0)]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _ramps(count: int, height: int, width: int) -> torch.Tensor:
    """Photographs whose red and green are x / width and y / height."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    return torch.stack([x, y, torch.zeros_like(x)]).expand(count, -1, -1, -1)


def _apply(matrix: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    mapped = torch.cat([points, torch.ones_like(points[..., :1])], -1) @ matrix.transpose(-1, -2)
    return mapped[..., :2] / mapped[..., 2:]


def _derivative(view: torch.Tensor, x: float, y: float) -> torch.Tensor:
    point = torch.tensor([x, y], dtype=torch.float64)
    return torch.stack([torch.autograd.functional.jacobian(lambda p, v=v: _apply(v, p[None])[0], point) for v in view])


@pytest.mark.parametrize("config", PRESETS)
def test_homography_maps_each_pixel_to_its_colour(config: HomographyConfig) -> None:
    height, width = 200, 260
    pairs = make_pairs(_ramps(12, height, width), config, _generator())
    h, w = config.size
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    points = torch.stack([x, y], -1).reshape(1, -1, 2).double().expand(12, -1, -1)
    mapped = _apply(pairs.homography.double(), points)
    inside = ((mapped >= 0) & (mapped <= torch.tensor([w - 1, h - 1]))).all(-1)
    unit = mapped / torch.tensor([w - 1, h - 1]) * 2 - 1
    there = torch.nn.functional.grid_sample(pairs.images1.double(), unit[:, :, None], align_corners=True)[..., 0]
    here = pairs.images0.double().flatten(2)
    scale = torch.tensor([width, height])[:, None]
    error = ((there - here)[:, :2] * scale).abs().amax(1)[inside]  # in pixels of the photograph
    assert inside.float().mean() > 0.2
    assert error.mean() < 0.1 and error.quantile(0.999) < 1
    # The same with a homography that is off by two pixels in the view is much worse: the test can fail.
    shifted = ((there.roll(2, -1) - here)[:, :2] * scale).abs().amax(1)[inside]
    assert shifted.mean() > 1


@pytest.mark.parametrize("config", PRESETS)
def test_views_lie_within_the_photograph(config: HomographyConfig) -> None:
    for size in ((120, 200), (333, 90)):
        h, w = config.size
        x, y = np.meshgrid(np.arange(w), np.arange(h))
        points = torch.from_numpy(np.stack([x, y], -1).reshape(-1, 2)).double()
        for view in sample_views(50, size, config, _generator(1)):
            places = _apply(view, points)
            assert places.amin() > -1e-6
            assert (places.amax((0, 1)) < torch.tensor([size[1] - 1, size[0] - 1]) + 1e-6).all()


@pytest.mark.parametrize("config", [*PRESETS, HomographyConfig((60, 80), max_roll=0.1, max_scale=1.2)])
def test_roll_and_scale_fill_the_range_and_no_more(config: HomographyConfig) -> None:
    h, w = config.size
    view0, view1 = sample_views(300, (240, 320), config, _generator(2))
    at_centre = [_derivative(view, (w - 1) / 2, (h - 1) / 2) for view in (view0, view1)]
    ratio = (torch.linalg.det(at_centre[0]) / torch.linalg.det(at_centre[1])).sqrt().log()
    limit = math.log(config.max_scale)
    assert ratio.abs().max() <= limit + 1e-6 and ratio.max() > 0.8 * limit and ratio.min() < -0.8 * limit
    # The rotation nearest to each derivative (polar decomposition).
    turn = []
    for derivative in at_centre:
        u, _, vh = torch.linalg.svd(derivative)
        turn.append(torch.atan2((u @ vh)[:, 1, 0], (u @ vh)[:, 0, 0]))
    roll = turn[1] - turn[0]
    roll = torch.atan2(roll.sin(), roll.cos())
    assert roll.abs().max() <= config.max_roll + 1e-6 or config.max_roll == math.pi
    assert roll.max() > 0.8 * config.max_roll and roll.min() < -0.8 * config.max_roll


def test_difficulty_zero_is_a_similarity_and_one_is_not() -> None:
    flat = HomographyConfig((60, 80), difficulty=0)
    for view in sample_views(20, (200, 200), flat, _generator(3)):
        linear = view[:, :2, :2]
        gram = linear.transpose(1, 2) @ linear
        assert view[:, 2, :2].abs().max() < 1e-12
        assert (gram[:, 0, 0] / gram[:, 1, 1] - 1).abs().max() < 1e-9
        assert (gram[:, 0, 1] / gram[:, 0, 0]).abs().max() < 1e-9
    steep = HomographyConfig((60, 80), difficulty=1.0)
    view, _ = sample_views(200, (200, 200), steep, _generator(3))
    corners = torch.tensor([[0.0, 0], [79, 0], [79, 59], [0, 59]], dtype=torch.float64)
    area = [torch.linalg.det(_derivative(view, *corner.tolist())) for corner in corners]
    assert (area[0] / area[2]).max() > 20  # one corner is seen much larger than the opposite one


def test_overlap_is_the_area_of_the_intersection() -> None:
    config = HomographyConfig((60, 80), min_overlap=0.1)
    pairs = make_pairs(torch.rand(20, 3, 120, 160), config, _generator(4))
    frame = np.array([[-0.5, -0.5], [79.5, -0.5], [79.5, 59.5], [-0.5, 59.5]], np.float32)
    for homography, overlap in zip(pairs.homography, pairs.overlap, strict=True):
        for matrix, share in zip((homography, torch.linalg.inv(homography)), (overlap[1], overlap[0]), strict=True):
            moved = cv2.perspectiveTransform(frame[None], matrix.double().numpy())[0]
            area, _ = cv2.intersectConvexConvex(frame, moved.astype(np.float32))
            assert abs(area / 4800 - float(share)) < 0.03
    assert pairs.overlap.amax(1).min() >= 0.1


def test_translation_zero_looks_at_the_centre() -> None:
    config = HomographyConfig((60, 80), difficulty=0, translation=0.0)
    for view in sample_views(10, (101, 201), config, _generator(5)):
        centre = _apply(view, torch.tensor([[39.5, 29.5]], dtype=torch.float64))
        assert (centre - torch.tensor([100.0, 50])).abs().max() < 1e-6


def test_enlarging_agrees_with_opencv(texture: NDArray[np.uint8]) -> None:
    view = torch.tensor([[[0.5, 0.1, 90], [-0.08, 0.55, 70], [2e-4, 1e-4, 1]]], dtype=torch.float64)
    photo = torch.from_numpy(texture).permute(2, 0, 1)[None].float() / 255
    ours = warp(photo, view, (100, 150))[0].permute(1, 2, 0).numpy() * 255
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    theirs = cv2.warpPerspective(texture.astype(np.float32), view[0].numpy(), (150, 100), flags=flags)
    # OpenCV rounds positions to 1/32 pixel.
    assert np.abs(ours - theirs).mean() < 1.0


def test_reducing_does_not_alias() -> None:
    y, x = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    board = ((x + y) % 2).float().expand(1, 3, -1, -1)
    view = torch.diag(torch.tensor([3.3, 3.3, 1], dtype=torch.float64))[None]
    assert warp(board, view, (64, 64)).std() < 0.02
    plain = torch.nn.functional.interpolate(board, size=(64, 64), mode="nearest")
    assert plain.std() > 0.4 or plain.std() == 0  # what happens without: noise, or one colour for a grey field
    # A level gradient stays where it is, whichever level it is read from.
    ramp = _ramps(1, 256, 256)
    small = warp(ramp, view, (64, 64))[0, 0, 20, 10:50] * 256
    assert (small - 3.3 * torch.arange(10, 50)).abs().max() < 0.1


def test_a_batch_is_its_pairs_one_by_one_and_a_seed_is_a_batch(texture: NDArray[np.uint8]) -> None:
    photos = torch.from_numpy(texture).permute(2, 0, 1).float().expand(3, -1, -1, -1) / 255
    photos = torch.stack([photos[0], photos[1].flip(1), photos[2].flip(2)])
    config = HomographyConfig((48, 64), max_roll=math.pi, max_scale=4.0)
    views, _ = sample_views(3, (240, 320), config, _generator(6))
    together = warp(photos, views, config.size)
    for b in range(3):
        assert torch.equal(together[b], warp(photos[b : b + 1], views[b : b + 1], config.size)[0])
    first, second = (make_pairs(photos, config, _generator(7)) for _ in range(2))
    assert torch.equal(first.images1, second.images1) and torch.equal(first.homography, second.homography)
    assert not torch.equal(first.homography, make_pairs(photos, config, _generator(8)).homography)


@pytest.mark.parametrize(
    "wrong", [{"difficulty": 1.2}, {"max_scale": 0.5}, {"max_roll": 7.0}, {"size": (5, 5)}, {"zoom": 0.0}]
)
def test_options_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        HomographyConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_makes_the_same_pairs(texture: NDArray[np.uint8]) -> None:
    photos = torch.from_numpy(texture).permute(2, 0, 1).float().expand(4, -1, -1, -1) / 255
    cpu, gpu = (make_pairs(photos.to(d), PRESETS[1], _generator()) for d in ("cpu", "cuda"))
    assert (cpu.homography - gpu.homography.cpu()).abs().max() < 1e-6
    assert (cpu.images1 - gpu.images1.cpu()).abs().max() < 1e-3
