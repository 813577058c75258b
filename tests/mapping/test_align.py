"""A model in the user's frame: metres, east-north-up, by GPS, measured positions, or distances."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest

from room_by_camera import PLACES
from room_by_camera import photographs as photograph_room
from synthetic_scene import SyntheticScene
from tiepoint.errors import ArgumentError, InputError
from tiepoint.mapping.steps import align as alignment
from two_walls import CLASSIC, view

pycolmap = pytest.importorskip("pycolmap")

NAMES = [f"{n}.jpg" for n in range(9)]
TURN = np.linalg.qr(np.array([[0.3, 1, 0.2], [-1, 0.4, 0.1], [0.2, 0.1, 1.5]]))[0]
TURN *= np.sign(np.linalg.det(TURN))


@pytest.fixture
def scene() -> SyntheticScene:
    made = SyntheticScene(NAMES, points=60)
    rng = np.random.default_rng(1)  # off the arc, so that the cameras do not lie near one line
    made.poses = [(R, t + rng.uniform(-0.5, 0.5, 3)) for R, t in made.poses]
    made.place_points()
    return made


def measured(scene: SyntheticScene, noise: float = 0.0) -> dict[str, np.ndarray]:
    """Return where the cameras are in a frame 30 times as large, turned and moved."""
    rng = np.random.default_rng(0)
    return {
        name: 30 * TURN @ (-R.T @ t) + (100, 200, 50) + rng.normal(0, noise, 3)
        for name, (R, t) in zip(scene.names, scene.poses, strict=True)
    }


def centres(model: Any) -> dict[str, np.ndarray]:
    return {image.name: image.projection_center() for image in model.images.values()}


def test_a_model_goes_where_the_positions_are_and_wrong_ones_do_not_count(scene: SyntheticScene) -> None:
    model, true = scene.model(), measured(scene)
    given = measured(scene, noise=0.05)
    given["2.jpg"] = given["2.jpg"] + (400, 0, 0)
    given["5.jpg"] = np.array([0.0, 0, 0])
    point = next(iter(model.points3D))
    xyz = 30 * TURN @ model.points3D[point].xyz + (100, 200, 50)
    told = alignment.to_positions(model, given)
    assert told.problem == ""
    assert (told.given, told.used) == (9, 7)
    assert told.scale == pytest.approx(30, rel=0.01)
    assert 0.01 < told.residual_median < 0.2
    for name, centre in centres(model).items():
        assert np.linalg.norm(centre - true[name]) < 0.25
    assert np.linalg.norm(model.points3D[point].xyz - xyz) < 0.5  # metres, of 120 away
    assert "7 of 9 positions" in str(told)


def test_positions_on_a_line_are_not_trusted(scene: SyntheticScene) -> None:
    scene.poses = [(np.eye(3), np.array([-0.5 * n, 0, 4.0])) for n in range(9)]
    scene.place_points()
    model = scene.model()
    before = centres(model)
    told = alignment.to_positions(model, measured(scene))
    assert "on a line" in told.problem
    assert "not aligned" in str(told)
    assert all(np.array_equal(centre, before[name]) for name, centre in centres(model).items())


def test_gps_is_east_north_up() -> None:
    latitude, longitude = 48.0, 11.0
    metre = 180 / np.pi / 6378137.0
    places = {
        "middle": (latitude, longitude, 500.0),
        "north": (latitude + 100 * metre, longitude, 500.0),
        "east": (latitude, longitude + 100 * metre / np.cos(np.radians(latitude)), 500.0),
        "up": (latitude, longitude, 600.0),
        "nowhere": None,
    }
    found, origin = alignment.gps_positions(places, (latitude, longitude, 500.0))
    assert origin == (latitude, longitude, 500.0)
    assert set(found) == set(places) - {"nowhere"}
    for name, true in (("middle", (0, 0, 0)), ("north", (0, 100, 0)), ("east", (100, 0, 0)), ("up", (0, 0, 100))):
        np.testing.assert_allclose(found[name], true, atol=0.7)  # the Earth is no ball
    _, median = alignment.gps_positions(places)
    assert median == (latitude, longitude, 500.0)
    flat, _ = alignment.gps_positions({name: (place[0], place[1], np.nan) for name, place in places.items() if place})
    np.testing.assert_allclose(np.array(list(flat.values()))[:, 2], 0, atol=0.01)
    with pytest.raises(InputError, match="only 2 of 2"):
        alignment.gps_positions({"a": (1.0, 2.0, 3.0), "b": (1.0, 2.0, 3.0)})


def test_distances_scale(scene: SyntheticScene) -> None:
    model = scene.model()
    place = centres(model)
    apart = [float(np.linalg.norm(place[a] - place[b])) for a, b in (("0.jpg", "8.jpg"), ("1.jpg", "5.jpg"))]
    told = alignment.to_distances(model, [("0.jpg", "8.jpg", 7 * apart[0]), ("1.jpg", "5.jpg", 7 * apart[1] + 0.001)])
    assert told.scale == pytest.approx(7, rel=1e-3)
    now = centres(model)
    assert np.linalg.norm(now["0.jpg"] - now["8.jpg"]) == pytest.approx(7 * apart[0], rel=1e-3)
    assert "none of the pairs" in alignment.to_distances(model, [("x.jpg", "y.jpg", 1.0)]).problem


def test_files_name_the_first_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "positions.txt"
    path.write_text("# frame of the site\na b.jpg 1 2 3\nc.jpg,4,5,6\nd.jpg 7 8 9\nother.jpg 1 1 1\n")
    found = alignment.read_positions(path, ["a b.jpg", "c.jpg", "d.jpg"])
    assert {name: place.tolist() for name, place in found.items()} == {
        "a b.jpg": [1, 2, 3], "c.jpg": [4, 5, 6], "d.jpg": [7, 8, 9]
    }  # fmt: skip
    with pytest.raises(InputError, match="1 of its 4 names"):
        alignment.read_positions(path, ["c.jpg"])
    path.write_text("a.jpg 1 2 3\nb.jpg 1 2\n")
    with pytest.raises(InputError, match="line 2"):
        alignment.read_positions(path, ["a.jpg"])
    path.write_text("a.jpg,b.jpg,2.5\nb.jpg c.jpg 1\n")
    assert alignment.read_distances(path, ["a.jpg", "b.jpg", "c.jpg"])[1] == ("b.jpg", "c.jpg", 1.0)
    with pytest.raises(InputError, match=r"line 2: there is no photograph c\.jpg"):
        alignment.read_distances(path, ["a.jpg", "b.jpg"])
    for much in ("1e200", "nan", "-inf"):
        path.write_text(f"a.jpg 1 2 3\nb.jpg 1 {much} 2\nc.jpg 1 1 1\n")
        with pytest.raises(InputError, match="line 2"):
            alignment.read_positions(path, ["a.jpg", "b.jpg", "c.jpg"])
    for wrong in (
        "a.jpg,b.jpg,1e300",
        "a.jpg,b.jpg,1e-300",
        "a.jpg,b.jpg",
        "a.jpg,b.jpg,-1",
        "a.jpg,a.jpg,1",
        "a.jpg,b.jpg,nan",
    ):
        with pytest.raises(ArgumentError, match="METRES"):
            alignment.read_distances(wrong, ["a.jpg", "b.jpg"])


def exif_with(x: float, y: float, z: float) -> PIL.Image.Exif:
    """Return EXIF of a place x m east, y m north, z m above 48 N, 11 E, 500 m."""
    exif = PIL.Image.Exif()
    latitude, longitude = 48 + y / 111_200, 11 + x / (111_320 * np.cos(np.radians(48)))

    def angle(value: float) -> tuple[float, float, float]:
        return int(value), 0.0, round((value - int(value)) * 3600, 6)

    exif[0x8825] = {1: "N", 2: angle(latitude), 3: "E", 4: angle(longitude), 5: b"\0", 6: 500.0 + z}
    return exif


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Return views of a flight: x of the pictures is east, and 1 unit is 40 m; they are taken at one height."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(5):
        picture = cv2.cvtColor(view(0.3 * n), cv2.COLOR_BGR2RGB)
        PIL.Image.fromarray(picture).save(folder / f"{n}.jpg", quality=98, exif=exif_with(12 * n, 0, 0))
    return folder


def test_map_says_that_there_is_gps_and_refuses_before_the_work(
    tiepoint: Any, photographs: Path, tmp_path: Path
) -> None:
    command = ["map", photographs, "-o", tmp_path / "out", *CLASSIC]
    for wrong, code, words in (
        (["--align", "gps", "--scale", "0.jpg,1.jpg,2"], 2, "exclude each other"),
        (["--align", "gps:1,2"], 2, "LATITUDE"),
        (["--align", "nowhere.txt"], 2, "neither"),
        (["--scale", "0.jpg,lost.jpg,2"], 3, "no photograph lost.jpg"),
    ):
        ran = tiepoint(*command, *wrong)
        assert (ran.code, words in ran.err) == (code, True), ran.err
    assert not (tmp_path / "out/database.db").exists()
    ran = tiepoint(*command)
    assert ran.code == 0, ran.err
    assert "--align gps" in ran.out
    ran = tiepoint(*command, "--align", "gps")  # the flight is a line
    assert "not aligned" in ran.out
    assert "on a line" in ran.out


def test_map_is_brought_to_gps_and_every_export_follows(tiepoint: Any, tmp_path: Path) -> None:
    """A room, ten times as large, on a meadow: x of the room is east, z north, -y up; one GPS is 300 m off."""
    photograph_room("SIMPLE_PINHOLE", tmp_path / "drawn")
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    true = 10 * PLACES[:, [0, 2, 1]] * (1, 1, -1)
    for n, (x, y, z) in enumerate(true):
        with PIL.Image.open(tmp_path / "drawn" / f"{n}.png") as picture:
            picture.save(photos / f"{n}.jpg", quality=97, exif=exif_with(x + 300 * (n == 4), y, z))
    command = ["map", photos, "-o", out, "-f", "sift", "-m", "nearest", "-k", "600", "--workers", "0", "--focal", 220]
    command += ["--camera-model", "SIMPLE_PINHOLE", "--undistort", "--text", "--json"]
    ran = tiepoint(*command, "--align", "gps:48,11,500")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    told = report["alignments"][0]
    assert (told["given"], told["used"], told["origin"]) == (len(PLACES), len(PLACES) - 1, [48, 11, 500])
    assert told["residual_max"] < 0.5
    assert any("6 of 7 GPS positions" in note for note in report["notes"])
    sparse = centres(pycolmap.Reconstruction(out / "sparse/0"))
    for name, centre in sparse.items():
        assert np.linalg.norm(centre - true[int(name[0])]) < 0.6  # 0.5 % of the room
    for other in (pycolmap.Reconstruction(out / "text"), pycolmap.Reconstruction(out / "undistorted/sparse/0")):
        for name, centre in centres(other).items():
            np.testing.assert_allclose(centre, sparse[name], atol=1e-6)
    in_order = [sparse[name] for name in sorted(sparse)]
    np.testing.assert_allclose(np.loadtxt(out / "trajectory.txt")[:, 1:4], in_order, atol=1e-4)
    frames = json.loads((out / "undistorted/transforms.json").read_text())["frames"]
    np.testing.assert_allclose([np.array(f["transform_matrix"])[:3, 3] for f in frames], in_order, atol=1e-6)

    ran = tiepoint(*command, "--scale", "0.jpg,6.jpg,5")  # and another frame the next time
    sparse = centres(pycolmap.Reconstruction(out / "sparse/0"))
    assert np.linalg.norm(sparse["0.jpg"] - sparse["6.jpg"]) == pytest.approx(5, rel=1e-6)
    assert json.loads(ran.out)["alignments"][0]["by"] == "distances"
