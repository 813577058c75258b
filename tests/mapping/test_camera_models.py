"""Every camera model that ``--camera-model`` accepts: a map at the right places, or a refusal before the work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
import pytest
from numpy.typing import NDArray

from room_by_camera import FISHEYES, PLACES, POSES, QUERY, ROOM, TRUE, camera_of, photographs
from textured_room import Room, align
from tiepoint.mapping.exchange.colmap import write_undistorted


def places_of(model: pycolmap.Reconstruction) -> dict[int, NDArray[np.float64]]:
    return {int(image.name[0]): image.projection_center() for image in model.images.values()}


def test_every_model_is_here() -> None:
    assert {*TRUE, "INVALID"} == set(pycolmap.CameraModelId.__members__)


@pytest.mark.parametrize("model", TRUE)
def test_map_page_undistort_text_localize(tiepoint: Any, tmp_path: Path, model: str) -> None:
    photographs(model, tmp_path / "photos")
    query = tmp_path / "query.png"
    (tmp_path / "photos" / f"{QUERY}.png").rename(query)
    out = tmp_path / "out"
    command = ["map", tmp_path / "photos", "-o", out, "-f", "sift", "-m", "nearest", "-k", "500", "--workers", "0"]
    command += ["--camera-model", model, "--text", "--json"]
    panorama = model == "EQUIRECTANGULAR"
    if panorama:
        refused = tiepoint(*command, "--undistort")
        assert (refused.code, "--undistort" in refused.err) == (2, True)
        assert not (out / "database.db").exists()  # before the work
    ran = tiepoint(*command, *([] if panorama else ["--undistort", "--focal", TRUE[model][0]]))
    assert ran.code == 0, ran.err
    found = places_of(pycolmap.Reconstruction(out / "sparse/0"))
    assert len(found) == len(POSES) - 1
    numbers = sorted(found)
    error = np.linalg.norm(align(np.array([found[n] for n in numbers]), PLACES[numbers]) - PLACES[numbers], axis=1)
    assert error.max() < 0.005 * ROOM

    text = pycolmap.Reconstruction(out / "text")
    assert {camera.model_name for camera in text.cameras.values()} == {model}
    assert "@DATA@" not in (out / "scene.html").read_text()
    if not panorama:
        straight = pycolmap.Reconstruction(out / "undistorted/sparse/0")
        for image in straight.images.values():
            camera = straight.cameras[image.camera_id]
            assert camera.model_name == "PINHOLE"
            picture = cv2.imread(str(out / "undistorted/images" / image.name))
            assert picture.shape[:2] == (camera.height, camera.width)

    located = json.loads(tiepoint("localize", query, "--model", out, "--json").out)[0]
    if panorama:
        assert "panorama" in located["problem"]
    else:
        both = align(np.array([*(found[n] for n in numbers), located["centre"]]), PLACES[[*numbers, QUERY]])
        assert np.linalg.norm(both[-1] - PLACES[QUERY]) < 0.005 * ROOM


@pytest.mark.parametrize("model", [*FISHEYES, "SIMPLE_RADIAL", "EUCM", "PINHOLE"])
def test_undistorted_pictures_are_those_of_their_pinhole_camera(tmp_path: Path, model: str) -> None:
    """Draw the room once more through the camera that was written: pixel by pixel it is the same picture."""
    photographs(model, tmp_path / "photos", [2])
    reconstruction = pycolmap.Reconstruction()
    camera = camera_of(model)
    camera.camera_id = 1
    reconstruction.add_camera_with_trivial_rig(camera)
    R, t = POSES[2]
    pose = pycolmap.Rigid3d(np.column_stack([R, t]))
    reconstruction.add_image_with_trivial_frame(pycolmap.Image(name="2.png", image_id=1, camera_id=1), pose)
    write_undistorted(reconstruction, tmp_path / "photos", tmp_path / "out")
    written = pycolmap.Reconstruction(tmp_path / "out/sparse/0").cameras[1]
    picture = cv2.imread(str(tmp_path / "out/images/2.png"))[..., ::-1].astype(float)
    x, y = np.meshgrid(np.arange(written.width) + 0.5, np.arange(written.height) + 0.5)
    rays = np.asarray(written.cam_ray_from_img(np.column_stack([x.ravel(), y.ravel()])))
    true = Room(1).look_along(POSES[2], rays).reshape(picture.shape).astype(float)
    # Two interpolations blur the finest texture differently; what is larger has to lie where it should.
    raw = cv2.resize(cv2.imread(str(tmp_path / "photos/2.png"))[..., ::-1], picture.shape[1::-1]).astype(float)
    picture, true, raw = (cv2.GaussianBlur(one, (0, 0), 2) for one in (picture, true, raw))
    assert np.abs(picture - true).mean() < 1.5
    if model != "PINHOLE":
        assert np.abs(raw - true).mean() > 4
    assert written.model_name == "PINHOLE"


def test_a_fisheye_without_a_focal_length_is_a_question(tiepoint: Any, tmp_path: Path) -> None:
    photographs("SIMPLE_FISHEYE", tmp_path / "photos")
    for model in FISHEYES:
        ran = tiepoint("map", tmp_path / "photos", "-o", tmp_path / "out", "--camera-model", model)
        assert ran.code == 2
        assert "--focal" in ran.err
        assert not (tmp_path / "out/database.db").exists()


def test_a_photograph_is_no_panorama(tiepoint: Any, tmp_path: Path) -> None:
    photographs("PINHOLE", tmp_path / "photos")
    ran = tiepoint("map", tmp_path / "photos", "-o", tmp_path / "out", "--camera-model", "EQUIRECTANGULAR")
    assert ran.code == 2
    assert "twice as wide as high" in ran.err
    ran = tiepoint(
        "map", tmp_path / "photos", "-o", tmp_path / "out", "--camera-model", "EQUIRECTANGULAR", "--focal", 100
    )
    assert ran.code == 2


def test_masks_and_transparency_are_warped_along(tmp_path: Path) -> None:
    """Under transparent pixels lies a colour that was not meant to be seen; a mask hides another part."""
    camera = pycolmap.Camera(model="SIMPLE_FISHEYE", width=320, height=240, params=(150, 160, 120), camera_id=1)
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    photos.mkdir()
    masks.mkdir()
    picture = np.full((240, 320, 4), (90, 120, 150, 255), np.uint8)
    picture[100:140, 40:100] = (255, 0, 0, 0)  # hidden red
    cv2.imwrite(str(photos / "a.png"), cv2.cvtColor(picture, cv2.COLOR_RGBA2BGRA))
    cv2.imwrite(str(photos / "b.png"), picture[..., [2, 1, 0]])
    mask = np.full((240, 320), 255, np.uint8)
    mask[100:140, 220:280] = 0
    cv2.imwrite(str(masks / "a.png.png"), mask)
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(camera)
    for number, name in enumerate(("a.png", "b.png"), start=1):
        model.add_image_with_trivial_frame(pycolmap.Image(name=name, image_id=number, camera_id=1), pycolmap.Rigid3d())
    out = tmp_path / "out"
    write_undistorted(model, photos, out, masks)
    seen, warped = cv2.imread(str(out / "images/a.png"))[..., ::-1], cv2.imread(str(out / "masks/a.png.png"), 0)
    assert warped.shape == seen.shape[:2]
    assert set(np.unique(warped)) == {0, 255}
    assert not ((seen[..., 0] > 160) & (seen[..., 1] < 60)).any()  # no red
    straight = pycolmap.Reconstruction(out / "sparse/0").cameras[1]
    for at, value in (((70, 120), 0), ((250, 120), 0), ((160, 120), 255), ((160, 60), 255)):
        ray = camera.cam_ray_from_img(np.array([at], float) + 0.5)
        x, y = np.asarray(straight.img_from_cam(np.asarray(ray)))[0].astype(int)
        assert warped[y, x] == value, at
    assert (seen[warped == 255] == (90, 120, 150)).all()  # nothing of the black bled in
    assert (cv2.imread(str(out / "masks/b.png.png"), 0) == 255).all()
    frames = json.loads((out / "transforms.json").read_text())["frames"]
    assert [frame["mask_path"] for frame in frames] == ["masks/a.png.png", "masks/b.png.png"]


def test_png_files_are_written_whether_pycolmap_comes_next_or_not(tmp_path: Path) -> None:
    """Imported before the system's zlib is loaded, pycolmap makes Pillow crash or hang."""
    code = (
        "import tiepoint, pycolmap, PIL.Image, numpy; "
        "pixels = numpy.random.default_rng(0).integers(0, 255, (200, 300, 3)).astype(numpy.uint8); "
        f"[PIL.Image.fromarray(pixels).save({str(tmp_path / 'a.png')!r}) for _ in range(20)]; "
        f"assert (numpy.asarray(PIL.Image.open({str(tmp_path / 'a.png')!r})) == pixels).all()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_keypoint_without_a_ray_is_no_observation(tmp_path: Path) -> None:
    """A polynomial fitted to few points may turn back on itself: COLMAP then finds no ray for pixels near a corner."""
    wild = (220.0, 222.4, 160, 120, 2.8712, -4.0311, 0.00106, -0.00104, -1.095, 2.9673, -3.7262, -1.6042)
    camera = pycolmap.Camera(model="FULL_OPENCV", width=320, height=240, params=wild, camera_id=1)
    pixels = np.array([(160.5, 120.5), (303.5, 1.5), (305.5, 3.5)])
    assert np.isnan(np.asarray(camera.cam_from_img(pixels))).any(axis=1).tolist() == [False, True, True]
    (tmp_path / "photos").mkdir()
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(camera)
    for number in (1, 2):
        cv2.imwrite(str(tmp_path / f"photos/{number}.png"), np.full((240, 320, 3), 90, np.uint8))
        points = [pycolmap.Point2D(xy) for xy in pixels]
        image = pycolmap.Image(name=f"{number}.png", image_id=number, camera_id=1, points2D=points)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d())
    for index in (0, 1):
        track = pycolmap.Track([pycolmap.TrackElement(number, index) for number in (1, 2)])
        model.add_point3D(np.array([0.0, 0.0, 2.0]), track, np.zeros(3, np.uint8))
    write_undistorted(model, tmp_path / "photos", tmp_path / "out")
    written = pycolmap.Reconstruction(tmp_path / "out/sparse/0")
    assert len(written.points3D) == 1
    for image in written.images.values():
        assert [point.has_point3D() for point in image.points2D] == [True, False, False]
        assert [tuple(point.xy) for point in image.points2D[1:]] == [(-1, -1), (-1, -1)]
