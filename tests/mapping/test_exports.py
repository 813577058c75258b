from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import PIL.Image
import pycolmap
import pytest

from splat_readers import read_sparse, read_transforms, reprojection_errors
from synthetic_scene import SyntheticScene
from tiepoint.errors import ArgumentError, InputError
from tiepoint.geometry import Camera
from tiepoint.mapping.exchange import colmap as exports

NAMES = ["a/1.jpg", "a/2.png", "b/3.tif"]


@pytest.fixture(scope="module")
def scene() -> SyntheticScene:
    return SyntheticScene(NAMES, points=40)


@pytest.fixture(scope="module")
def photographs(scene: SyntheticScene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    scene.write_photographs(folder)
    return folder


def centre_of_blob(pixels: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Return the centre of mass (x, y) of the brightness around a place; pixel centres are whole numbers."""
    x0, y0 = np.rint(near).astype(int) - 3
    patch = pixels[y0 : y0 + 7, x0 : x0 + 7].astype(float).sum(axis=2)
    y, x = np.mgrid[y0 : y0 + 7, x0 : x0 + 7]
    return np.array([(x * patch).sum(), (y * patch).sum()]) / patch.sum()


def lonely(pixels: np.ndarray, distance: float = 12) -> np.ndarray:
    """Return which pixels (N, 2) have no other nearby."""
    apart = np.linalg.norm(pixels[:, None] - pixels[None], axis=2) + np.eye(len(pixels)) * 1e9
    return apart.min(axis=1) > distance


@pytest.mark.parametrize("kind", ["binary", "text"])
def test_a_written_model_reads_back(scene: SyntheticScene, tmp_path: Path, kind: str) -> None:
    model = scene.model()
    exports.write_model(model, tmp_path / "out", kind)
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".bin" if kind == "binary" else ".txt"}
    back = pycolmap.Reconstruction(tmp_path / "out")
    assert back.num_points3D() == model.num_points3D()
    for image_id, image in model.images.items():
        np.testing.assert_allclose(back.images[image_id].cam_from_world().matrix(), image.cam_from_world().matrix())
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_undistorted_photographs_fit_transforms_json(scene: SyntheticScene, photographs: Path, tmp_path: Path) -> None:
    """Carry the world's points through transforms.json by OpenGL's rules: they must land on their blobs."""
    exports.write_undistorted(scene.model(), photographs, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "transforms.json").read_text())
    assert content["camera_model"] == "PINHOLE"
    assert [frame["file_path"] for frame in content["frames"]] == [
        "images/a/1.jpg",
        "images/a/2.png",
        "images/b/3.tif.png",
    ]
    checked = 0
    for frame, visible in zip(content["frames"], scene.visible, strict=True):
        pixels = np.asarray(PIL.Image.open(tmp_path / "out" / frame["file_path"]))
        assert pixels.shape == (content["h"], content["w"], 3)
        world = np.column_stack([scene.points[visible], np.ones(len(visible))])
        x, y, z, _ = np.linalg.inv(frame["transform_matrix"]) @ world.T
        assert (z < 0).all()  # OpenGL looks along -z, and y points up
        u = content["cx"] + content["fl_x"] * x / -z - 0.5
        v = content["cy"] - content["fl_y"] * y / -z - 0.5
        expected = np.column_stack([u, v])
        inside = ((expected > 6) & (expected < (content["w"] - 7, content["h"] - 7))).all(axis=1)
        for place in expected[lonely(expected) & inside]:
            assert np.linalg.norm(centre_of_blob(pixels, place) - place) < 0.15
            checked += 1
    assert checked > 20


@pytest.mark.parametrize("cameras", ["one", "each its own"])
def test_what_trains_splats_reads_the_same_scene_from_both_files(
    scene: SyntheticScene, photographs: Path, tmp_path: Path, cameras: str
) -> None:
    """Readers of the documented formats: half a pixel, a turned axis or another lens would miss by more than 0.01."""
    model = scene.model()
    if cameras == "each its own":
        model.cameras[2].params = model.cameras[2].params * (1.01, 1, 1, 1.2)
        for point in model.images[2].points2D:
            if point.has_point3D():
                point.xy = model.images[2].project_point(model.points3D[point.point3D_id].xyz)
    out = tmp_path / "out"
    exports.write_undistorted(model, photographs, out)
    for errors in reprojection_errors(out):
        assert len(errors) == sum(point.track.length() for point in model.points3D.values())
        assert errors.max() < 0.01
    for shots in (read_sparse(out / "sparse/0")[0], read_transforms(out)[0]):
        for name, shot in shots.items():
            with PIL.Image.open(out / "images" / name) as picture:
                assert picture.size == shot.size


def test_the_principal_point_of_undistorted_photographs_is_in_the_middle(tmp_path: Path) -> None:
    """Readers that take it to be there see the same scene, to half a pixel; the blobs are where the model says."""
    scene = SyntheticScene(NAMES, points=40, camera=Camera("SIMPLE_RADIAL", 400, 300, (380.0, 206.3, 141.8, -0.12)))
    scene.write_photographs(tmp_path / "in")
    exports.write_undistorted(scene.model(), tmp_path / "in", tmp_path / "out")
    checked = 0
    for errors in reprojection_errors(tmp_path / "out"):
        assert errors.max() < 0.01
    for name, shot in read_transforms(tmp_path / "out")[0].items():
        pixels = np.asarray(PIL.Image.open(tmp_path / "out" / "images" / name))
        assert (pixels.shape[1], pixels.shape[0]) == shot.size
        assert np.abs(shot.K[:2, 2] - np.divide(shot.size, 2)).max() <= 0.5
        expected = shot.project(scene.points) - 0.5
        inside = ((expected > 6) & (expected < np.subtract(shot.size, 7))).all(axis=1)
        for place in expected[lonely(expected) & inside]:
            assert np.linalg.norm(centre_of_blob(pixels, place) - place) < 0.15
            checked += 1
    assert checked > 20


def test_undistorted_model_agrees_with_itself(scene: SyntheticScene, photographs: Path, tmp_path: Path) -> None:
    model = scene.model()
    exports.write_undistorted(model, photographs, tmp_path / "out")
    straight = pycolmap.Reconstruction(tmp_path / "out" / "sparse" / "0")
    assert {camera.model_name for camera in straight.cameras.values()} == {"PINHOLE"}
    assert model.cameras[1].model_name == "SIMPLE_RADIAL"  # the model given stays as it is
    for image in straight.images.values():
        for point in image.points2D:
            if point.has_point3D():
                projected = image.project_point(straight.points3D[point.point3D_id].xyz)
                np.testing.assert_allclose(projected, point.xy, atol=1e-3)


def test_pinhole_photographs_are_copied_unless_turned(tmp_path: Path) -> None:
    pinhole = Camera("PINHOLE", 80, 60, (90.0, 90.0, 39.5, 29.5))
    scene = SyntheticScene(["upright.jpg", "turned.jpg"], points=30, camera=pinhole)
    scene.write_photographs(tmp_path / "in")
    turned = tmp_path / "in" / "turned.jpg"
    seen = PIL.Image.open(turned).copy()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # stored on its side
    seen.transpose(PIL.Image.Transpose.ROTATE_90).save(turned, exif=exif, quality=98)
    exports.write_undistorted(scene.model(), tmp_path / "in", tmp_path / "out")
    images = tmp_path / "out" / "images"
    assert (images / "upright.jpg").read_bytes() == (tmp_path / "in" / "upright.jpg").read_bytes()
    with PIL.Image.open(images / "turned.jpg") as written:
        assert written.size == (80, 60)
        assert 0x0112 not in written.getexif()
        assert np.abs(np.asarray(written, float) - np.asarray(seen, float)).mean() < 3
    content = json.loads((tmp_path / "out" / "transforms.json").read_text())
    assert (content["fl_x"], content["cx"], content["cy"]) == (90, 40, 30)  # from the corner


def test_another_photograph_is_refused_and_nothing_left_behind(
    scene: SyntheticScene, photographs: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"1\.jpg: no such file"):
        exports.write_undistorted(scene.model(), tmp_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    smaller = SyntheticScene(NAMES, points=40, camera=Camera.from_focal(300, (320, 240)))
    with pytest.raises(InputError, match=r"400x300 pixels, but 320x240 in the model"):
        exports.write_undistorted(smaller.model(), photographs, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_trajectory_is_camera_to_world(scene: SyntheticScene, tmp_path: Path) -> None:
    path = tmp_path / "trajectory.txt"
    exports.write_trajectory(scene.model(), path)
    rows = np.loadtxt(path)
    assert rows.shape == (3, 8)
    assert rows[:, 0].tolist() == [0, 1, 2]
    for (_, x, y, z, qx, qy, qz, qw), (R, t) in zip(rows, scene.poses, strict=True):
        np.testing.assert_allclose([x, y, z], -R.T @ t, atol=1e-7)
        # A quaternion turns by twice its angle around its axis (Rodrigues' formula).
        axis, angle = np.array([qx, qy, qz]), 2 * math.atan2(np.linalg.norm([qx, qy, qz]), qw)
        K = np.cross(np.eye(3), axis / np.linalg.norm(axis))
        turn = np.eye(3) + math.sin(angle) * K + (1 - math.cos(angle)) * K @ K
        np.testing.assert_allclose(turn, R.T, atol=1e-7)


def test_trajectory_with_timestamps_is_in_order_of_time(scene: SyntheticScene, tmp_path: Path) -> None:
    path = tmp_path / "trajectory.txt"
    exports.write_trajectory(scene.model(), path, {"b/3.tif": 1.25, "a/1.jpg": 2.5})
    rows = np.loadtxt(path)
    assert rows[:, 0].tolist() == [1.25, 2.5]
    R, t = scene.poses[2]
    np.testing.assert_allclose(rows[0, 1:4], -R.T @ t, atol=1e-7)
    with pytest.raises(ArgumentError, match="none of the timestamps"):
        exports.write_trajectory(scene.model(), path, {"c.jpg": 1.0})


def test_ply_holds_points_and_colours(scene: SyntheticScene, tmp_path: Path) -> None:
    model = scene.model()
    exports.write_ply(model, tmp_path / "points.ply")
    header, _, body = (tmp_path / "points.ply").read_bytes().partition(b"end_header\n")
    assert f"element vertex {model.num_points3D()}".encode() in header
    kind = [("xyz", "<f4", 3), ("rgb", "u1", 3)]
    vertices = np.frombuffer(body, kind)
    truth = {tuple(np.float32(xyz)): tuple(rgb) for xyz, rgb in zip(scene.points, scene.colours, strict=True)}
    assert len(vertices) == model.num_points3D()
    assert all(truth[tuple(vertex["xyz"])] == tuple(vertex["rgb"]) for vertex in vertices)
    with pytest.raises(InputError, match="does not exist"):
        exports.write_ply(model, tmp_path / "nowhere" / "points.ply")


def test_unknown_kind(scene: SyntheticScene, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="'binary' or 'text'"):
        exports.write_model(scene.model(), tmp_path / "out", "xml")  # type: ignore[arg-type]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with pytest.raises(RuntimeError), exports.atomic_folder(out) as folder:
        (folder / "new").write_text("new")
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]
    with exports.atomic_folder(out) as folder:
        (folder / "new").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "new"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"), exports.atomic_folder(tmp_path / "file"):
        pass
