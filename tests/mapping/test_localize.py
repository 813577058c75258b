"""Poses of photographs in a model: closed form, and a made-up room with true poses."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import torch

import tiepoint as tp
from textured_room import CAMERA, Pose, Room, look, rotation_error
from tiepoint.cli import main
from tiepoint.errors import ArgumentError, InputError
from tiepoint.geometry import Camera
from tiepoint.mapping import NewImage, PairResult, Store
from tiepoint.mapping.online.localize import Localizer, write_localizations

pycolmap = pytest.importorskip("pycolmap")

PLACES = [look((x, 0.1 * x, -1.5 + 0.3 * abs(x)), -0.12 * x, 0.02) for x in np.linspace(-1.5, 1.5, 6)]
QUERIES = {"near.png": look((0.2, 0.1, -1.2), 0.05, 0.03), "aside.png": look((-1.0, -0.3, -0.9), 0.1, -0.05)}


# --- A model of a room, made from photographs with known poses ---


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``tiepoint map`` would write, but with true poses; queries lie beside it."""
    folder = tmp_path_factory.mktemp("scene")
    room = Room()
    camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=320, height=240, params=[260, 160, 120], camera_id=1)
    sift = tp.features.load("sift", max_keypoints=800)
    nearest = tp.matchers.load("nearest")
    names = [f"{i}.png" for i in range(len(PLACES))]
    features = [sift(room.photograph(pose)) for pose in PLACES]
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(camera)
    with Store.open(folder / "database.db") as store:
        ids = store.add_images([NewImage(name, camera, "one") for name in names])
        store.write_features(zip(ids.values(), features, strict=True))
        results = []
        for i, j in itertools.combinations(range(len(names)), 2):
            pair = nearest(features[i], features[j])
            found = tp.geometry.estimate_fundamental(pair.points0, pair.points1)
            results.append(
                PairResult(
                    ids[names[i]],
                    ids[names[j]],
                    pair.indices,
                    pair.scores,
                    inliers=found.inliers,
                    config="UNCALIBRATED",
                )
            )
        store.write_matches(results)
    for name, pose, one in zip(names, PLACES, features, strict=True):
        image = pycolmap.Image(
            name=name, image_id=ids[name], camera_id=1, keypoints=one.keypoints.numpy().astype(float) + 0.5
        )
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(np.column_stack(pose)))
    sparse = folder / "sparse" / "0"
    sparse.mkdir(parents=True)
    model = pycolmap.triangulate_points(model, folder / "database.db", folder, sparse)
    assert model.num_points3D() > 300
    model.write(sparse)
    settings = {"features": "sift", "matcher": "nearest", "max_keypoints": 800, "long_side": None}
    (folder / "settings.json").write_text(json.dumps(settings))
    for name, pose in QUERIES.items():
        PIL.Image.fromarray(room.photograph(pose)).save(folder / name)
    PIL.Image.fromarray(Room(seed=9).photograph(PLACES[2])).save(folder / "elsewhere.png")
    return folder


@pytest.fixture(scope="module")
def localizer(scene: Path) -> Localizer:
    return Localizer.open(scene)


def _centre(pose: Pose) -> np.ndarray:
    return -pose[0].T @ pose[1]


@pytest.mark.parametrize("name", QUERIES)
@pytest.mark.parametrize("how", ["camera", "focal", "nothing"])
def test_queries_are_found(localizer: Localizer, scene: Path, name: str, how: str) -> None:
    known = {"camera": {"camera": CAMERA}, "focal": {"focal": 260.0}, "nothing": {}}[how]
    result = localizer(scene / name, **known)
    assert result.pose is not None and result.problem == "" and result.inliers >= 50
    assert result.matches >= result.inliers
    near = 0.15 if how == "nothing" else 0.03
    np.testing.assert_allclose(result.pose.centre, _centre(QUERIES[name]), atol=near)
    assert rotation_error(result.pose.R, QUERIES[name][0]) < 0.5
    assert result.pose.camera.focal_lengths[0] == pytest.approx(260, rel=0.04 if how == "nothing" else 1e-9)


def test_another_place_is_refused(localizer: Localizer, scene: Path) -> None:
    result = localizer(scene / "elsewhere.png", camera=CAMERA)
    assert result.pose is None and result.inliers < 15
    assert result.problem == f"not found: {result.inliers} inliers"
    summary = result.summary()
    assert summary["found"] is False and summary["R"] is None


@pytest.fixture(scope="module")
def photographs(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the map's photographs."""
    folder = tmp_path_factory.mktemp("photographs")
    room = Room()
    for i, pose in enumerate(PLACES):
        PIL.Image.fromarray(room.photograph(pose)).save(folder / f"{i}.png")
    return folder


def test_auto_tries_harder_where_one_pass_does_not_find(scene: Path, photographs: Path) -> None:
    """A query from far aside, whose matches in one pass are held not to be enough."""
    room, pose = Room(), look((2.5, 0.2, 0.5), -1.1, 0.0)
    query = room.photograph(pose)
    fast = Localizer.open(scene)(query, camera=CAMERA)
    assert fast.inliers >= 15
    limits = {"least_inliers": fast.inliers + 10}
    assert Localizer.open(scene, **limits)(query, camera=CAMERA).pose is None
    found = Localizer.open(scene, effort="auto", images=photographs, **limits)(query, camera=CAMERA)
    assert found.pose is not None and found.inliers >= fast.inliers + 10
    np.testing.assert_allclose(found.pose.centre, _centre(pose), atol=0.05)
    # What one pass finds costs nothing more.
    plain = Localizer.open(scene, effort="auto", images=photographs)(query, camera=CAMERA)
    assert (plain.inliers, plain.matches) == (fast.inliers, fast.matches)


def test_another_place_is_refused_with_all_tries(scene: Path, photographs: Path) -> None:
    localizer = Localizer.open(scene, candidates=1, effort="auto", images=photographs)
    result = localizer(scene / "elsewhere.png", camera=CAMERA)
    assert result.pose is None and result.inliers < 15


def test_effort_needs_the_photographs_of_the_map(scene: Path, tmp_path: Path, photographs: Path) -> None:
    with pytest.raises(ArgumentError, match="say in which folder"):
        Localizer.open(scene, effort="auto")
    with pytest.raises(ArgumentError, match="'fast' does not look"):
        Localizer.open(scene, images=photographs)
    with pytest.raises(InputError, match=r"\.png: no such file"):
        elsewhere = Localizer.open(scene, effort="thorough", images=tmp_path)
        elsewhere(scene / "near.png", camera=CAMERA)


def test_only_similar_photographs_are_matched(scene: Path) -> None:
    pytest.importorskip("faiss")
    result = Localizer.open(scene, candidates=2)(scene / "aside.png", camera=CAMERA)
    assert len(result.similar) == 2
    # Those whose cameras are nearest; all look the same way.
    distance = [np.linalg.norm(_centre(pose) - _centre(QUERIES["aside.png"])) for pose in PLACES]
    assert set(result.similar) <= {f"{i}.png" for i in np.argsort(distance)[:3]}
    np.testing.assert_allclose(result.pose.centre, _centre(QUERIES["aside.png"]), atol=0.05)


def test_files_and_command_line(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queries = [str(scene / name) for name in (*QUERIES, "elsewhere.png", "missing.png")]
    files = [str(tmp_path / "poses.json"), str(tmp_path / "poses.csv")]
    options = ["--model", str(scene), "--focal", "260", "-o", files[0], "-o", files[1]]
    assert main(["localize", *queries, *options]) == 1
    said = capsys.readouterr()
    assert "2 of 4 found" in said.out and "not found:" in said.out and "missing.png: no such file" in said.out
    assert "1 of 4 could not be read" in said.err and "missing.png" in said.err
    rows = json.loads(Path(files[0]).read_text())["localizations"]
    assert [row["found"] for row in rows] == [True, True, False, False]
    table = np.genfromtxt(files[1], delimiter=",", names=True, dtype=None, encoding="utf-8")
    assert table["found"].tolist() == [1, 1, 0, 0] and np.isnan(table["tx"][2:]).all()
    for row, line, pose in zip(rows, table, QUERIES.values(), strict=False):
        np.testing.assert_allclose(row["R"], pose[0], atol=0.01)
        matrix = pycolmap.Rotation3d([line[f"q{axis}"] for axis in "xyzw"]).matrix()
        np.testing.assert_allclose(matrix, row["R"], atol=1e-6)
        np.testing.assert_allclose([line["tx"], line["ty"], line["tz"]], row["t"], atol=1e-6)
    assert main(["localize", queries[0], "--model", str(tmp_path)]) == 3
    assert "give the folder that 'tiepoint map' wrote" in capsys.readouterr().err


def test_wrong_use(localizer: Localizer, scene: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="320x240 pixels, but the camera 640x480"):
        localizer(scene / "near.png", camera=Camera.from_focal(500, (640, 480)))
    with pytest.raises(ArgumentError, match="candidates"):
        Localizer.open(scene, candidates=0)
    with pytest.raises(ArgumentError, match=r"\.json, \.csv"):
        write_localizations(tmp_path / "poses.txt", [])
    with Store.open(tmp_path / "other.db") as store:
        store.add_images([NewImage("other.jpg", localizer.model.cameras[1])])
        with pytest.raises(InputError, match="none of the photographs"):
            Localizer(localizer.model, store, localizer.extractor, localizer.matcher)
    shutil.copytree(scene, tmp_path / "copy")
    (tmp_path / "copy" / "settings.json").write_text("[]")
    with pytest.raises(InputError, match="cannot be read as a map"):
        Localizer.open(tmp_path / "copy")


def test_folders_of_queries(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queries = tmp_path / "queries"
    (queries / "day 2").mkdir(parents=True)
    shutil.copy(scene / "near.png", queries)
    shutil.copy(scene / "aside.png", queries / "day 2")
    assert main(["localize", str(queries), "--model", str(scene), "--focal", "260", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(Path(row["name"]).relative_to(queries).as_posix(), row["found"]) for row in rows} == {
        ("near.png", True),
        ("day 2/aside.png", True),
    }


def test_the_exit_code_says_that_no_query_could_be_read(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, output = tmp_path / "bad.jpg", tmp_path / "poses.json"
    bad.write_bytes(b"no photograph")
    words = ["--model", str(scene), "--focal", "260", "-o", str(output)]
    assert main(["localize", str(bad), str(tmp_path / "none.jpg"), *words]) == 3
    assert "none of the photographs could be read" in capsys.readouterr().err
    assert len(json.loads(output.read_text())["localizations"]) == 2  # why, for each of them
    assert main(["localize", str(bad), str(scene / "near.png"), *words]) == 1


def test_a_scene_that_cannot_be_written_to(scene: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(scene, copy)
    before = sorted(path.relative_to(copy) for path in copy.rglob("*"))
    # As on a read-only disk, which would refuse root, too.
    monkeypatch.setattr("tiepoint.mapping.store.file.os.access", lambda path, mode: False)
    found = Localizer.open(copy)(scene / "near.png", focal=260.0)
    assert found.pose is not None
    assert sorted(path.relative_to(copy) for path in copy.rglob("*")) == before
    with Store.open(copy / "database.db", read_only=True) as store, pytest.raises(InputError, match="readonly"):
        store.write_features([(1, store.features(1))])


def test_photographs_of_every_kind_are_found(scene: Path, tmp_path: Path) -> None:
    pixels = np.asarray(PIL.Image.open(scene / "near.png").convert("RGB"))
    kinds = [scene / "near.png", pixels, PIL.Image.fromarray(pixels), torch.from_numpy(pixels).permute(2, 0, 1)]
    seen = []
    by_path, *others = tp.localize(
        kinds, scene, [tmp_path / "poses.csv"], focal=260.0, progress=lambda *args: seen.append(args)
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert by_path.pose is not None and by_path.name == str(scene / "near.png")
    for other in others:
        assert other.pose is not None
        np.testing.assert_allclose(other.pose.centre, by_path.pose.centre, atol=1e-6)
    assert len((tmp_path / "poses.csv").read_text().splitlines()) == 5
    same = tp.localize(pixels, scene, camera="SIMPLE_PINHOLE:260,160,120")[0]
    assert same.pose is not None
    np.testing.assert_allclose(same.pose.centre, by_path.pose.centre, atol=1e-3)
    with pytest.raises(ArgumentError, match="exclude each other"):
        tp.localize(pixels, scene, camera="SIMPLE_PINHOLE:260,160,120", focal=260.0)
    (broken,) = tp.localize(np.zeros((4, 4, 2), np.uint8), scene)
    assert broken.pose is None and not broken.readable and "shape (4, 4, 2)" in broken.problem


def test_a_video_and_a_page_of_what_was_found(scene: Path, tmp_path: Path) -> None:
    """Frames of a video are queries; on the page they see the points of the map, where these project to."""
    room, path = Room(), tmp_path / "clip.avi"
    poses = [look((0.2 + 0.02 * n, 0.1, -1.2), 0.05, 0.03) for n in range(8)]
    film = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 4.0, (320, 240))
    for pose in poses:
        film.write(cv2.cvtColor(room.photograph(pose), cv2.COLOR_RGB2BGR))
    film.release()
    page = tmp_path / "page.html"
    results = tp.localize([path, scene / "elsewhere.png"], scene, [page], camera=CAMERA, every=1.0)
    assert [result.name.startswith(f"{path}/frame_00000") for result in results] == [True, True, False]
    assert len(results) == 3 and [result.pose is None for result in results] == [False, False, True]
    for result in results[:2]:
        assert result.pose is not None and result.pose.centre is not None
        frame = int(result.name[-6:])
        np.testing.assert_allclose(result.pose.centre, _centre(poses[frame]), atol=0.05)
        assert result.keypoints is not None and len(result.keypoints) == result.inliers
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])  # type: ignore[index]
    cameras = data["models"][0]["cameras"]
    assert [camera["found"] for camera in cameras].count(True) == 2
    for camera in cameras:
        if camera["found"]:
            assert camera["observations"] > 20 and 0 < camera["error"] < 6
    names = data["images"]
    assert sum(name.startswith("found: ") for name in names) == 2
    assert {names[int(key)] for key in data["thumbnails"]} == {name for name in names if name.startswith("found: ")}
