from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from synthetic_scene import CAMERA, SyntheticScene, make_features, to_pycolmap
from tiepoint.errors import ArgumentError, InputError
from tiepoint.mapping import NewImage, PairResult, Store
from tiepoint.mapping.steps.reconstruct import Quality, reconstruct

NAMES = [f"{i}.jpg" for i in range(6)]


@pytest.fixture(scope="module")
def world() -> SyntheticScene:
    return SyntheticScene(NAMES, noise=0.3)


@pytest.fixture(scope="module")
def folder(world: SyntheticScene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the world's photographs, ``images/``, and its ``database.db``."""
    folder = tmp_path_factory.mktemp("world")
    world.write_photographs(folder / "images")
    world.write_database(folder / "database.db")
    return folder


def centre_errors(model: pycolmap.Reconstruction, world: SyntheticScene) -> np.ndarray:
    """Return how far each camera is from its true place, after the best similarity (Umeyama, PAMI 1991)."""
    truth = {name: -R.T @ t for name, (R, t) in zip(world.names, world.poses, strict=True)}
    images = [image for image in model.images.values() if image.has_pose]
    a = np.array([image.projection_center() for image in images])
    b = np.array([truth[image.name] for image in images])
    a0, b0 = a - a.mean(axis=0), b - b.mean(axis=0)
    U, S, Vt = np.linalg.svd(b0.T @ a0)
    D = np.diag([1, 1, np.sign(np.linalg.det(U @ Vt))])
    scale = (S * np.diag(D)).sum() / (a0**2).sum()
    return np.linalg.norm(b0 - scale * a0 @ (U @ D @ Vt).T, axis=1)


@pytest.mark.parametrize("mapper", ["incremental", "global"])
def test_finds_the_cameras(
    world: SyntheticScene, folder: Path, tmp_path: Path, mapper: str, capfd: pytest.CaptureFixture[str]
) -> None:
    placed = []
    scene = reconstruct(
        folder / "database.db",
        folder / "images",
        tmp_path,
        mapper=mapper,
        refine_cameras=False,
        threads=1,
        report=lambda progress: placed.append((progress.step, progress.done, progress.total)),
    )
    assert "adjustment" not in capfd.readouterr().err, "COLMAP's log is not for users"
    (model,), (quality,) = scene.models, scene.qualities
    assert scene.left_out == {}
    assert quality.registered == quality.total == 6
    assert centre_errors(model, world).max() < 0.01  # the arc has a radius of 4
    assert 0.2 < quality.error < 0.6  # noise of 0.3 px in x and y
    between = 4 if mapper == "incremental" else 0  # all but the first pair
    assert placed == [("mapping", n, 6) for n in (0, *range(1, 1 + between), 6)] + [("adjusting", 0, 0)]

    points = list(model.points3D.values())
    world_colours = {tuple(colour) for colour in world.colours}
    near = [min(np.abs(np.subtract(p.color, c, dtype=float)).max() for c in world_colours) for p in points]
    assert np.median(near) < 15

    assert sorted(path.name for path in tmp_path.iterdir()) == ["quality.json", "sparse"]
    assert pycolmap.Reconstruction(tmp_path / "sparse" / "0").num_points3D() == quality.points
    written = json.loads((tmp_path / "quality.json").read_text())
    assert written["models"][0]["registered"] == 6
    assert written["models"][0]["images"][0]["observations"] == quality.images[0].observations


def test_same_seed_same_model(folder: Path, tmp_path: Path) -> None:
    first, second = (
        reconstruct(folder / "database.db", folder / "images", tmp_path / name, threads=1).models[0] for name in "ab"
    )
    for image_id, image in first.images.items():
        assert (image.cam_from_world().matrix() == second.images[image_id].cam_from_world().matrix()).all()
    for name in ("cameras.bin", "images.bin", "points3D.bin"):
        assert (tmp_path / "a/sparse/0" / name).read_bytes() == (tmp_path / "b/sparse/0" / name).read_bytes()


def test_cameras_are_refined_if_asked(world: SyntheticScene, folder: Path, tmp_path: Path) -> None:
    f = CAMERA.focal_lengths[0]
    off = SyntheticScene(NAMES, noise=0.3)
    off.camera = type(CAMERA)("SIMPLE_RADIAL", 400, 300, (f * 1.08, 199.5, 149.5, 0.0))
    off.write_database(tmp_path / "off.db")
    kept, refined = (
        reconstruct(tmp_path / "off.db", folder / "images", tmp_path / "out", threads=1, refine_cameras=refine)
        for refine in (False, True)
    )
    assert {camera.params[0] for camera in kept.models[0].cameras.values()} == {f * 1.08}
    focal = np.median([camera.params[0] for camera in refined.models[0].cameras.values()])
    assert abs(focal / f - 1) < 0.03
    assert refined.qualities[0].error < kept.qualities[0].error


def test_quality_agrees_with_colmap(world: SyntheticScene) -> None:
    model = world.model()
    quality = Quality.of(model)
    assert quality.points == model.num_points3D()
    assert quality.observations == model.compute_num_observations()
    assert quality.track_length == pytest.approx(model.compute_mean_track_length())
    by_hand, of_points = {}, defaultdict(list)
    for image in model.images.values():
        by_hand[image.name] = [
            float(np.linalg.norm(image.project_point(model.points3D[point.point3D_id].xyz) - point.xy))
            for point in image.points2D
            if point.has_point3D()
        ]
        for point, error in zip((p for p in image.points2D if p.has_point3D()), by_hand[image.name], strict=True):
            of_points[point.point3D_id].append(error)
    assert quality.error == pytest.approx(np.mean([np.mean(errors) for errors in of_points.values()]))
    assert quality.error == pytest.approx(model.compute_mean_reprojection_error())
    for image in quality.images:
        assert image.observations == len(by_hand[image.name])
        assert image.error == pytest.approx(np.mean(by_hand[image.name]))
    counts = [image.observations for image in quality.images]
    assert counts == sorted(counts)


def test_groups_become_models_and_every_left_out_image_has_its_reason(tmp_path: Path) -> None:
    large = SyntheticScene([f"large/{i}.jpg" for i in range(5)], seed=1)
    small = SyntheticScene([f"small/{i}.jpg" for i in range(4)], seed=2)
    couple = SyntheticScene([f"couple/{i}.jpg" for i in range(2)], seed=3)
    path = tmp_path / "database.db"
    for group in (small, large, couple):
        group.write_database(path)
    with Store.open(path) as store:
        camera = to_pycolmap(CAMERA)
        ids = store.add_images([NewImage(f"{name}.jpg", camera) for name in ("empty", "alone", "weak", "wrong")])
        ids |= {image.name: image.image_id for image in store.images()}
        rng = np.random.default_rng(0)
        anywhere = rng.uniform(5, 290, (60, 2))
        store.write_features(
            [(ids["empty.jpg"], make_features(np.zeros((0, 2)), CAMERA))]
            + [(ids[name], make_features(anywhere, CAMERA)) for name in ("alone.jpg", "weak.jpg", "wrong.jpg")]
        )
        for name, count in (("weak.jpg", 9), ("wrong.jpg", 40)):
            rows = np.arange(count)
            pair = PairResult(
                ids["large/0.jpg"],
                ids[name],
                np.column_stack([rows, rows]),
                np.ones(count),
                inliers=np.ones(count, bool),
                config="UNCALIBRATED",
                F=np.ones((3, 3)),
            )
            store.write_matches([pair])
    with pytest.warns(UserWarning, match="no colours from this photograph"):
        scene = reconstruct(path, tmp_path / "no photographs", tmp_path / "out", threads=1)
    assert [quality.registered for quality in scene.qualities] == [5, 4]
    assert {quality.total for quality in scene.qualities} == {15}
    assert [image.name for image in scene.qualities[1].images if not image.name.startswith("small/")] == []
    assert sorted(path.name for path in (tmp_path / "out/sparse").iterdir()) == ["0", "1"]
    assert set(scene.left_out) == {
        "alone.jpg",
        "couple/0.jpg",
        "couple/1.jpg",
        "empty.jpg",
        "weak.jpg",
        "wrong.jpg",
    }
    assert scene.left_out["empty.jpg"] == "it has no keypoints"
    assert scene.left_out["alone.jpg"] == "no other photograph was found to show the same place"
    assert "at most 9 verified matches with any other, large/0.jpg; 15 are needed" in scene.left_out["weak.jpg"]
    assert "shares 40 verified matches with large/0.jpg, but" in scene.left_out["wrong.jpg"]
    assert "left out too, such as couple/1.jpg" in scene.left_out["couple/0.jpg"]


def test_databases_without_a_model_say_what_they_lack(tmp_path: Path) -> None:
    def fails(match: str, name: str) -> None:
        with pytest.raises(InputError, match=match):
            reconstruct(tmp_path / name, tmp_path, tmp_path / "out", threads=1)
        assert not (tmp_path / "out" / "sparse").exists()

    fails("does not exist", "missing.db")
    (tmp_path / "text.db").write_text("no database")
    fails("not a database", "text.db")
    Store.open(tmp_path / "empty.db").close()
    fails("holds 0 images", "empty.db")
    SyntheticScene(NAMES).write_database(tmp_path / "unmatched.db", pairs=[])
    fails("no pairs of its 6 images were matched; match them first", "unmatched.db")
    SyntheticScene(NAMES, points=12).write_database(tmp_path / "few.db", pairs=[(0, 5)])
    fails("15 are needed", "few.db")


def test_a_camera_that_does_not_move_gives_no_model(tmp_path: Path) -> None:
    world = SyntheticScene(NAMES[:3])
    world.poses = [world.poses[0]] * 3
    world.visible, world.keypoints = [world.visible[0]] * 3, [world.keypoints[0]] * 3
    world.write_database(tmp_path / "still.db")
    with pytest.raises(InputError, match="no model can be made of it: the camera stood still, only turned"):
        reconstruct(tmp_path / "still.db", tmp_path, tmp_path / "out", threads=1)
    with pytest.raises(InputError, match="the camera stood still, only turned"):
        reconstruct(tmp_path / "still.db", tmp_path, tmp_path / "out", mapper="global", threads=1)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_walk_straight_ahead_is_mapped(tmp_path: Path) -> None:
    world = SyntheticScene(NAMES)
    R, t = world.poses[0]
    world.poses = [(R, t - (0, 0, 0.15 * step)) for step in range(6)]
    world.place_points()
    world.write_database(tmp_path / "ahead.db")
    with pytest.warns(UserWarning, match="no colours"):
        scene = reconstruct(tmp_path / "ahead.db", tmp_path, tmp_path / "out", threads=1)
    assert scene.qualities[0].registered == 6
    assert centre_errors(scene.models[0], world).max() < 0.01


def test_arguments(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="incremental, global"):
        reconstruct(folder / "database.db", folder, tmp_path, mapper="both")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="at least 1"):
        reconstruct(folder / "database.db", folder, tmp_path, threads=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        reconstruct(folder / "database.db", folder, tmp_path / "file")


def test_real_photographs(data_dir: Path, tmp_path: Path) -> None:
    """COLMAP's own features and matches of three photographs of a street."""
    images = data_dir / "demo" / "berlin" / "images"
    reader = pycolmap.ImageReaderOptions(camera_params="1166.7,600,450,0")
    extraction = pycolmap.FeatureExtractionOptions(num_threads=1, max_image_size=600)
    before = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = pycolmap.logging.ERROR
    pycolmap.extract_features(
        tmp_path / "a.db",
        images,
        camera_mode=pycolmap.CameraMode.SINGLE,
        reader_options=reader,
        extraction_options=extraction,
    )
    pycolmap.match_exhaustive(tmp_path / "a.db", matching_options=pycolmap.FeatureMatchingOptions(num_threads=1))
    pycolmap.logging.minloglevel = before
    scene = reconstruct(tmp_path / "a.db", images, tmp_path / "out", threads=1)
    assert pycolmap.logging.minloglevel == before
    quality = scene.qualities[0]
    assert quality.registered == 3
    assert quality.points > 100
    assert quality.error < 1
    colours = np.array([point.color for point in scene.models[0].points3D.values()])
    assert 60 < colours.mean() < 200
    assert colours.std(axis=0).min() > 15
