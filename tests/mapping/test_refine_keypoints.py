from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from synthetic_scene import SyntheticScene
from tiepoint.mapping.steps import refine as refinement
from tiepoint.mapping.steps.reconstruct import reconstruct

NAMES = [f"{i}.png" for i in range(5)]
NOISE = 0.7


@pytest.fixture(scope="module")
def exact() -> SyntheticScene:
    return SyntheticScene(NAMES, points=60)


@pytest.fixture(scope="module")
def photographs(exact: SyntheticScene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    exact.write_photographs(folder)
    return folder


@pytest.fixture
def noisy() -> SyntheticScene:
    """The same world, its keypoints detected badly."""
    return SyntheticScene(NAMES, points=60, noise=NOISE)


def test_observations_of_a_track_come_to_agree(exact: SyntheticScene, noisy: SyntheticScene, photographs: Path) -> None:
    """Relative to the one that stays, the others go to where the same spot of the surface is."""
    model = noisy.model()
    before = {i: np.array([p.xy for p in image.points2D]) for i, image in model.images.items()}
    count = refinement.refine_keypoints(model, photographs)
    moved = {
        i: (np.array([p.xy for p in image.points2D]) != before[i]).any(axis=1) for i, image in model.images.items()
    }
    assert sum(m.sum() for m in moved.values()) == count
    errors = []
    for point in model.points3D.values():
        track = point.track.elements
        still = [e for e in track if not moved[e.image_id][e.point2D_idx]]
        if len(still) != 1:
            continue  # some stayed because their blobs overlap with others
        (anchor,) = still
        offset = before[anchor.image_id][anchor.point2D_idx] - 0.5
        offset = offset - exact.keypoints[anchor.image_id - 1][anchor.point2D_idx]
        for e in track:
            if e is not anchor and moved[e.image_id][e.point2D_idx]:
                now = model.images[e.image_id].points2D[e.point2D_idx].xy - 0.5
                # The cameras see the spot from nearly the same distance, so its offset is nearly the same.
                errors.append(np.linalg.norm(now - exact.keypoints[e.image_id - 1][e.point2D_idx] - offset))
    assert len(errors) > 60
    assert np.median(errors) < 0.12  # NOISE * 1.67 = 1.2 before: two noisy positions, two dimensions
    assert np.quantile(errors, 0.8) < 0.4


def test_refined_maps_are_more_accurate(noisy: SyntheticScene, photographs: Path, tmp_path: Path) -> None:
    noisy.write_database(tmp_path / "database.db")
    plain, refined = (
        reconstruct(
            tmp_path / "database.db",
            photographs,
            tmp_path / "out",
            refine_cameras=False,
            refine_keypoints=refine,
            threads=1,
        ).qualities[0]
        for refine in (False, True)
    )
    assert refined.error < 0.4 * plain.error
    assert refined.registered == plain.registered == 5
    assert refined.points > 0.9 * plain.points


def test_photographs_that_cannot_be_used_are_named(noisy: SyntheticScene, photographs: Path, tmp_path: Path) -> None:
    model = noisy.model()
    before = [point.xy.copy() for point in model.images[2].points2D]
    for name in NAMES:
        picture = cv2.imread(str(photographs / name))
        if name == NAMES[1]:
            picture = picture[:-1]
        if name != NAMES[3]:
            cv2.imwrite(str(tmp_path / name), picture)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert refinement.refine_keypoints(model, tmp_path) > 0
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2  # each photograph once
    assert "1.png: is not 400x300 pixels as in the model" in messages[0]
    assert "3.png: no such file" in messages[1]
    assert all((point.xy == xy).all() for point, xy in zip(model.images[2].points2D, before, strict=True))


def test_sampling_is_bilinear_and_counts_from_the_corner() -> None:
    y, x = np.mgrid[:20, :30].astype(np.float32)
    pixels = np.array([[0.5, 0.5], [10.25, 7.75], [29.5, 19.5], [0.4, 5.0], [29.6, 5.0]])
    layers = torch.from_numpy(np.stack([3 * x + 5 * y, 6 * x + 10 * y]))
    here = np.zeros((len(pixels), len(refinement.OFFSETS), 2), np.float32)
    values, twice = refinement._sample(layers, pixels, here)[..., 0]
    np.testing.assert_allclose(values[:3], (3 * (pixels[:3, 0] - 0.5) + 5 * (pixels[:3, 1] - 0.5)), rtol=1e-6)
    assert np.isnan(values[3:]).all()
    np.testing.assert_allclose(twice, 2 * values, rtol=1e-6)
    # A patch of 13 x 13 pixels that leaves the picture by a part of a pixel is no patch.
    square = np.broadcast_to(refinement.OFFSETS, (2, *refinement.OFFSETS.shape)).astype(np.float32)
    fits, leaves = refinement._sample(layers, np.array([[6.5, 10], [6.4, 10]]), square)[0]
    np.testing.assert_allclose(fits, 3 * (6 + square[0, :, 0]) + 5 * (9.5 + square[0, :, 1]), rtol=1e-5, atol=1e-4)
    assert np.isnan(leaves).all()


def test_alignment_undoes_a_known_warp(texture: np.ndarray) -> None:
    """Independent reference: OpenCV warps the picture, and so says where the points are."""
    grey = cv2.GaussianBlur(cv2.cvtColor(texture, cv2.COLOR_RGB2GRAY), (0, 0), 1.5).astype(np.float32)
    A = np.array([[0.9, -0.25], [0.2, 1.15]])
    t = np.array([25.0, -8.0])
    height, width = grey.shape
    warped = cv2.warpAffine(grey * 0.6 + 30, np.column_stack([A, t]), (width, height), flags=cv2.INTER_CUBIC)
    corners = cv2.goodFeaturesToTrack(grey, 150, 0.02, 8).reshape(-1, 2).astype(float)
    true = corners @ A.T + t + 0.5
    inside = (true > 15) & (true < (width - 15, height - 15)) & (corners > 12) & (corners < (width - 12, height - 12))
    corners, true = corners[inside.all(axis=1)] + 0.5, true[inside.all(axis=1)]
    shape = len(true), *refinement.OFFSETS.shape
    square, offsets = (
        np.broadcast_to(x, shape).astype(np.float32) for x in (refinement.OFFSETS, refinement.OFFSETS @ A.T)
    )
    patches = refinement._normalise(refinement._sample(torch.from_numpy(grey[None]), corners, square)[0])[0]
    start = true + np.random.default_rng(0).uniform(-1.2, 1.2, true.shape)
    found, good = refinement._align(refinement._with_slopes(warped), start, offsets, patches)
    errors = np.linalg.norm(found - true, axis=1)[good]
    assert len(true) > 40
    assert good.mean() > 0.8
    assert np.median(errors) < 0.03
    assert np.quantile(errors, 0.95) < 0.15
