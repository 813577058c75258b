"""``tiepoint map`` on the small inputs that once went wrong; what is right stands in shared/cases/README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tiepoint.mapping.store import Store, pairs_of

pycolmap = pytest.importorskip("pycolmap")

SIFT = ["-f", "sift", "-m", "nearest", "-k", "800", "--workers", "0"]


@pytest.mark.parametrize("mapper", ["incremental", "global"])
def test_of_a_tripod_no_model_is_claimed(tiepoint: Any, cases_dir: Path, tmp_path: Path, mapper: str) -> None:
    ran = tiepoint("map", cases_dir / "tripod", "-o", tmp_path / "out", *SIFT, "--mapper", mapper)
    assert ran.code == 3
    assert "only turned" in ran.err
    assert "no model" in ran.err
    assert not (tmp_path / "out/sparse").exists()


def on_overlay(points: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether points (N, 2) lie on the clock (first row) and on the logo."""
    boxes = ((0, 2), (205, 25)), ((513, 446), (626, 478))
    return np.array([((points >= low) & (points <= high)).all(axis=1) for low, high in boxes])


def test_a_burnt_in_clock_does_not_break_the_map(tiepoint: Any, cases_dir: Path, tmp_path: Path) -> None:
    ran = tiepoint("map", cases_dir / "burnt_in", "-o", tmp_path / "out", *SIFT, "--json")
    assert ran.code == 0, ran.err
    models = json.loads(ran.out)["models"]
    assert [model["registered"] for model in models] == [24]
    assert models[0]["assessment"]["verdict"] == "good"
    # A point on the overlay would be where it is in all pictures.
    model = pycolmap.Reconstruction(tmp_path / "out/sparse/0")
    burnt = 0
    for point in model.points3D.values():
        at = np.array([model.images[e.image_id].points2D[e.point2D_idx].xy for e in point.track.elements])
        assert len(at) < 6 or np.ptp(at, axis=0).max() > 3
        burnt += on_overlay(at - 0.5).any(axis=0).all()
    # Matching along epipolar lines takes some letters of two pictures for one place: 75 of 2,770 points where overlays
    # are not looked for.
    assert burnt < 5
    with Store.open(tmp_path / "out/database.db", read_only=True) as store:
        points = {image.image_id: store.features(image.image_id).keypoints.numpy() for image in store.images()}
        assert sum(len(one) for one in points.values()) > sum(on_overlay(one).sum() for one in points.values()) > 500
        on_it = {"matched": 0, "verified": 0}
        for a, b in pairs_of(store.matched_pair_ids()).tolist():
            for kind, found in (("matched", store.matches(a, b).indices), ("verified", store.geometry(a, b))):
                rows = found if kind == "matched" else np.zeros((0, 2), int) if found is None else found.matches
                on_it[kind] += (on_overlay(points[a][rows[:, 0]]) & on_overlay(points[b][rows[:, 1]])).sum()
    assert on_it == {"matched": 0, "verified": 0}


def test_a_fisheye_is_really_undistorted(tiepoint: Any, cases_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["map", cases_dir / "fisheye150", "-o", out, *SIFT, "--camera-model", "SIMPLE_FISHEYE", "--focal", 244]
    ran = tiepoint(*command, "--undistort", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["models"][0]["registered"] == 10
    straight = pycolmap.Reconstruction(out / "undistorted/sparse/0")
    curved = pycolmap.Reconstruction(out / "sparse/0").cameras[1]
    for image in straight.images.values():
        camera = straight.cameras[image.camera_id]
        written = cv2.imread(str(out / "undistorted/images" / image.name)).astype(np.float32)
        assert (camera.model_name, written.shape[:2]) == ("PINHOLE", (camera.height, camera.width))
        # The picture is the fisheye one, looked up along the rays of the pinhole camera.
        x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
        rays = np.asarray(camera.cam_ray_from_img(np.column_stack([x.ravel(), y.ravel()])))
        at = np.asarray(curved.img_from_cam(rays)).reshape(*x.shape, 2).astype(np.float32) - 0.5
        source = cv2.imread(str(cases_dir / "fisheye150" / image.name)).astype(np.float32)
        expected = cv2.remap(source, at[..., 0], at[..., 1], cv2.INTER_LINEAR)
        assert np.abs(written - expected).mean() < 4
        same = cv2.resize(source, written.shape[1::-1])
        assert np.abs(same - expected).mean() > 10


def test_panoramas(tiepoint: Any, cases_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = tiepoint("map", cases_dir / "panorama", "-o", out, *SIFT, "--camera-model", "EQUIRECTANGULAR", "--json")
    assert ran.code == 0, ran.err
    model = json.loads(ran.out)["models"][0]
    assert (model["registered"], model["assessment"]["verdict"]) == (8, "good")
    assert model["error"] < 0.5
    ran = tiepoint("map", cases_dir / "panorama", "-o", tmp_path / "lens", *SIFT)
    assert "bug" not in ran.err
    assert "EQUIRECTANGULAR" in ran.out + ran.err
