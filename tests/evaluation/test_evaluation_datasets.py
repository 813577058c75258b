"""Readers of evaluation sets: real ones, and tiny ones made here in the published layouts."""

from __future__ import annotations

import json
import math

import cv2
import numpy as np
import pytest

from tiepoint.errors import ArgumentError, InputError
from tiepoint.evaluation import EvalPair, HomographyTruth, Picture, PoseTruth, load_pairs, match_errors, roll
from tiepoint.geometry.homography import transform

PAIRS = {
    "7scenes": 30,
    "entry": 40,
    "fountain": 40,
    "graf": 5,
    "kitti": 30,
    "kodak": 96,
    "lund_door": 40,
    "sacre_coeur": 45,
}
POSE_ROW = "0.8 -0.6 0 0.1 0.6 0.8 0 0.2 0 0 1 0.3 0 0 0 1"


def bilinear(pixels: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Grey values at subpixel positions, by the four neighbours; the reference for what a warp must do."""
    grey = pixels.astype(float).mean(axis=2)
    x0, y0 = np.floor(points).astype(int).T
    fx, fy = (points - np.floor(points)).T
    top = grey[y0, x0] * (1 - fx) + grey[y0, x0 + 1] * fx
    bottom = grey[y0 + 1, x0] * (1 - fx) + grey[y0 + 1, x0 + 1] * fx
    return top * (1 - fy) + bottom * fy


def test_all_sets_are_found_and_complete(data_dir) -> None:
    pairs = load_pairs(data_dir / "eval")
    assert {name: sum(p.set == name for p in pairs) for name in PAIRS} == PAIRS
    assert len({(p.set, p.name) for p in pairs}) == len(pairs) == sum(PAIRS.values())
    assert all(p.image0.path.is_file() and p.image1.path.is_file() for p in pairs)
    for pair in pairs:
        if isinstance(pair.truth, PoseTruth):
            np.testing.assert_allclose(pair.truth.R @ pair.truth.R.T, np.eye(3), atol=1e-6)
            assert (pair.truth.depth0 is not None) == (pair.set == "7scenes")


def test_limit_spreads_over_the_set(data_dir) -> None:
    levels = {p.name.split("-")[1] for p in load_pairs(data_dir / "eval", ["kodak"], limit=10)}
    assert len(levels) > 1
    assert len(load_pairs(data_dir / "eval", limit=2)) == 2 * len(PAIRS)
    assert len(load_pairs(data_dir / "eval" / "graf")) == 5


def test_warped_picture_holds_the_right_pixels(data_dir, rng) -> None:
    for pair in load_pairs(data_dir / "eval", ["kodak"], limit=6):
        source, warped = pair.image0.read().pixels, pair.image1.read().pixels
        assert isinstance(pair.truth, HomographyTruth)
        assert warped.shape[1::-1] == pair.image1.size
        height, width = warped.shape[:2]
        points1 = rng.integers([2, 2], [width - 3, height - 3], (4000, 2)).astype(float)
        points0 = transform(np.linalg.inv(pair.truth.H), points1)
        inside = ((points0 > 1) & (points0 < np.array([source.shape[1], source.shape[0]]) - 3)).all(axis=1)
        assert inside.sum() > 500
        there = bilinear(warped, points1[inside])
        error = np.abs(there - bilinear(source, points0[inside]))
        shifted = np.abs(there - bilinear(source, points0[inside] + 0.5))  # a wrong pixel convention
        assert np.median(error) < 0.6
        assert error.mean() < 0.5 * shifted.mean()


def test_graf_homographies_map_real_structure(data_dir) -> None:
    pair = load_pairs(data_dir / "eval", ["graf"])[0]
    image0, image1 = pair.image0.read().pixels, pair.image1.read().pixels
    grid = np.stack(np.meshgrid(np.arange(150, 650, 4), np.arange(150, 500, 4)), -1).reshape(-1, 2).astype(float)
    there = transform(pair.truth.H, grid)
    inside = ((there > 1) & (there < np.array(image1.shape[1::-1]) - 3)).all(axis=1)
    assert np.corrcoef(bilinear(image0, grid[inside]), bilinear(image1, there[inside]))[0, 1] > 0.8


def test_hpatches_layout(tmp_path, texture) -> None:
    H = np.array([[0.9, 0.1, 5.0], [-0.1, 1.1, 3.0], [1e-4, 0, 1]])
    for name in ("v_wall", "i_road", "i_dc", "notes"):
        (tmp_path / name).mkdir()
        for k in range(1, 7):
            large = cv2.resize(texture, (1000, 750))  # shorter side 750 -> 480
            cv2.imwrite(str(tmp_path / name / f"{k}.ppm"), large)
            if k > 1:
                np.savetxt(tmp_path / name / f"H_1_{k}", H, fmt="%.8f")
    pairs = load_pairs(tmp_path)
    assert [p.name for p in pairs[:2]] == ["i_road-1-2", "i_road-1-3"]
    assert len(pairs) == 10  # two sequences; i_dc is too large by agreement
    pair = pairs[0]
    assert pair.set == "hpatches"
    assert pair.image0.read().size == (640, 480)
    points = np.array([[100.0, 50.0], [900.0, 700.0]])
    scaled = (points + 0.5) * 0.64 - 0.5
    target = (transform(H, points) + 0.5) * 0.64 - 0.5
    np.testing.assert_allclose(match_errors(pair.truth, scaled, target), 0, atol=1e-5)


@pytest.mark.parametrize("turns", ["0 0", ""])
@pytest.mark.parametrize("name", ["scannet_test_pairs_with_gt.txt", "pairs_calibrated.txt"])
def test_calibrated_pairs(tmp_path, texture, turns, name) -> None:
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "a.png"), texture)
    cv2.imwrite(str(tmp_path / "images" / "b.png"), texture)
    line = f"a.png b.png {turns} 500 0 160 0  510 120 0 0 1  600 0 150 0 610 110 0 0 1 {POSE_ROW}"
    (tmp_path / name).write_text(f"# header\n{line}\n\n")
    (pair,) = load_pairs(tmp_path)
    assert pair.image0.path == tmp_path / "a.png"
    assert pair.image1.path == tmp_path / "images" / "b.png"
    np.testing.assert_array_equal(pair.truth.K0, [[500, 0, 160], [0, 510, 120], [0, 0, 1]])
    np.testing.assert_array_equal(pair.truth.K1[0], [600, 0, 150])
    np.testing.assert_array_equal(pair.truth.R, [[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    np.testing.assert_array_equal(pair.truth.t, [0.1, 0.2, 0.3])
    assert load_pairs(tmp_path / name)[0].name == pair.name


def test_calibrated_pairs_with_r_and_t(tmp_path) -> None:
    file = tmp_path / "pairs_calibrated.txt"
    K = "500 0 160 0 510 120 0 0 1"
    file.write_text(f"a.png b.png {K} {K} 0.8 -0.6 0 0.6 0.8 0 0 0 1 1 2 3\n")
    (pair,) = load_pairs(file)
    np.testing.assert_array_equal(pair.truth.R[0], [0.8, -0.6, 0])
    np.testing.assert_array_equal(pair.truth.t, [1, 2, 3])


@pytest.mark.parametrize("turns", [(1, 0), (0, 3), (2, 1), (3, 2)])
def test_turned_pictures_keep_their_geometry(tmp_path, texture, rng, turns) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), texture)
    K = "500 0 160 0 510 120 0 0 1"
    pose = "0.96 -0.28 0 0.1 0.28 0.96 0 0.2 0 0 1 0.3 0 0 0 1"
    (tmp_path / "pairs_with_gt.txt").write_text(
        f"a.png a.png 0 0 {K} {K} {pose}\na.png a.png {turns[0]} {turns[1]} {K} {K} {pose}\n"
    )
    straight, turned = load_pairs(tmp_path)
    for picture, number in ((turned.image0, turns[0]), (turned.image1, turns[1])):
        expected = np.rot90(straight.image0.read().pixels, number)
        np.testing.assert_array_equal(picture.read().pixels, expected)
    # A point of the world, seen by both cameras, turned by hand.
    world = rng.uniform([-1, -1, 4], [1, 1, 8], (20, 3))

    def turn(points: np.ndarray, times: int) -> np.ndarray:
        width, height = 320, 240
        for _ in range(times):
            points = np.stack([points[:, 1], width - 1 - points[:, 0]], axis=1)
            width, height = height, width
        return points

    def see(pair, R, t, K):
        seen = (world @ R.T + t) @ K.T
        return seen[:, :2] / seen[:, 2:]

    x0 = turn(see(straight, np.eye(3), np.zeros(3), straight.truth.K0), turns[0])
    x1 = turn(see(straight, straight.truth.R, straight.truth.t, straight.truth.K1), turns[1])
    np.testing.assert_allclose(match_errors(turned.truth, x0, x1), 0, atol=1e-8)
    assert np.abs(match_errors(straight.truth, x0, x1)).max() > 5


@pytest.mark.parametrize("degrees", [0, 30, 90, 215])
@pytest.mark.parametrize("size", [None, (160, 120)])
def test_rolled_pairs_are_those_of_a_rolled_camera(tmp_path, texture, rng, degrees, size) -> None:
    """Pixels and truth move together, onto a canvas that holds all of the picture."""
    cv2.imwrite(str(tmp_path / "a.png"), texture)
    picture = Picture(tmp_path / "a.png", size)
    width, height = picture.read().size
    turn = math.radians(degrees)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    corners = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]) @ rotation.T

    def turned(points: np.ndarray) -> np.ndarray:
        return points @ rotation.T - corners.min(0)

    K = np.array([[500.0, 0, 80], [0, 500, 60], [0, 0, 1]])
    R, t = cv2.Rodrigues(np.array([0.1, -0.2, 0.05]))[0], np.array([0.1, 0.2, 0.3])
    pose = EvalPair("mine", "a-a", picture, picture, PoseTruth(K, K, R, t, depth1=tmp_path / "depth.png"))
    rolled = roll(pose, turn)
    assert rolled.name == f"a-a@{degrees}" and rolled.truth.depth1 is None and rolled.image0 == picture
    after = rolled.image1.read()
    assert (turned(corners @ rotation) <= np.array(after.size) - 1 + 1e-6).all()
    at = rng.uniform(3, [width - 4, height - 4], (200, 2))
    # bilinear twice where no quarter turns are made
    difference = bilinear(picture.read().pixels, at) - bilinear(after.pixels, turned(at))
    assert np.abs(difference).mean() < (0.5 if degrees % 90 == 0 else 6)
    world = rng.uniform([-1, -1, 4], [1, 1, 8], (20, 3))
    x0, x1 = (seen[:, :2] / seen[:, 2:] for seen in (world @ K.T, (world @ R.T + t) @ K.T))
    np.testing.assert_allclose(match_errors(rolled.truth, x0, turned(x1)), 0, atol=1e-6)
    H = np.array([[0.9, 0.1, 3], [-0.1, 1.1, 5], [1e-4, 0, 1]])
    plane = roll(EvalPair("mine", "a-a", picture, picture, HomographyTruth(H)), turn)
    np.testing.assert_allclose(match_errors(plane.truth, at, turned(transform(H, at))), 0, atol=1e-6)


def test_errors_name_the_file(tmp_path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        load_pairs(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no evaluation set"):
        load_pairs(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "pairs.json").write_text(json.dumps({"set": "mine", "type": "odd", "pairs": [{}]}))
    with pytest.raises(InputError, match=r"mine.pairs\.json"):
        load_pairs(tmp_path)
    with pytest.raises(ArgumentError, match="graf"):
        load_pairs(tmp_path, sets=["graf"])
    with pytest.raises(ArgumentError, match="limit"):
        load_pairs(tmp_path, limit=0)
    (tmp_path / "pairs_with_gt.txt").write_text("a.png b.png 1 2 3\n")
    with pytest.raises(InputError, match="line 1"):
        load_pairs(tmp_path)
    with pytest.raises(InputError, match=r"gone\.png"):
        Picture(tmp_path / "gone.png").read()
