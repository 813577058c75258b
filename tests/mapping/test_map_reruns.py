"""A map that is run again with other options or other photographs: applied or refused, never ignored."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tiepoint.mapping.run import map_photographs
from tiepoint.mapping.steps.doppelgangers import SuspiciousPair
from tiepoint.mapping.store import Store, pairs_of
from two_walls import CLASSIC, FOCAL, view

pycolmap = pytest.importorskip("pycolmap")

NAMES = [f"{n}.png" for n in range(4)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photographs, photos/, and the finished map of them, out/."""
    from tiepoint.cli import main

    folder = tmp_path_factory.mktemp("finished")
    (folder / "photos").mkdir()
    for n, name in enumerate(NAMES):
        cv2.imwrite(str(folder / "photos" / name), view(0.35 * n))
    assert main(["map", str(folder / "photos"), "-o", str(folder / "out"), *CLASSIC]) == 0
    return folder


@pytest.fixture
def scene(finished: Path, tmp_path: Path) -> Path:
    """Return a copy that the test may change."""
    shutil.copytree(finished, tmp_path / "scene")
    return tmp_path / "scene"


class Again:
    """Runs the map again and tells what came of it."""

    def __init__(self, scene: Path, tiepoint: Any) -> None:
        self.photos, self.out, self._run = scene / "photos", scene / "out", tiepoint

    def __call__(self, *options: object, base: list[str] = CLASSIC) -> tuple[Any, dict[str, Any]]:
        ran = self._run("map", self.photos, "-o", self.out, *base, *options, "--json")
        return ran, json.loads(ran.out) if ran.code == 0 else {}

    def features(self) -> dict[str, NDArray[np.float32]]:
        with Store.open(self.out / "database.db") as store:
            return {
                image.name: store.features(image.image_id).keypoints.numpy()
                for image in store.images()
                if image.image_id in store.has_features()
            }

    def pairs(self) -> set[tuple[str, str]]:
        with Store.open(self.out / "database.db") as store:
            names = {image.image_id: image.name for image in store.images()}
            return {(names[a], names[b]) for a, b in pairs_of(store.matched_pair_ids()).tolist()}

    def cameras(self) -> list[Any]:
        with Store.open(self.out / "database.db") as store:
            return [image.camera for image in store.images()]

    def model(self) -> Any:
        return pycolmap.Reconstruction(self.out / "sparse/0")


@pytest.fixture
def again(scene: Path, tiepoint: Any) -> Again:
    return Again(scene, tiepoint)


def without_focal() -> list[str]:
    return CLASSIC[: CLASSIC.index("--focal")]


def test_nothing_changed(again: Again) -> None:
    before = again.features()
    ran, report = again()
    assert ran.code == 0, ran.err
    assert (report["images"]["extracted"], report["pairs"][0]["matched"]) == (0, 0)
    assert not any("changed" in note or "camera" in note for note in report["notes"])
    assert all(np.array_equal(again.features()[name], before[name]) for name in before)


# ---- options ----

REFUSED = {
    "quality": (["--quality", "balanced"], "--quality fast --max-keypoints 600"),
    "features": (["-f", "orb"], "--features sift"),
    "matcher": (["-m", "lightglue"], "--matcher nearest"),
    "max_keypoints": (["-k", "300"], "--max-keypoints 600"),
    "long_side": (["--long-side", "200"], "--long-side 1600"),
    "bands": (["--bands", "3,2,1"], "no --bands"),
}
APPLIED = {
    "pairs", "trust_doppelgangers", "mapper", "masks", "cameras", "camera_model", "focal", "camera", "fix_cameras",
    "effort", "refine", "undistort", "text", "align", "scale", "fresh",
}  # fmt: skip
NO_PART_OF_THE_RESULT = {"photographs", "output", "device", "workers", "ray", "report"}
ONLY_FROM_PYTHON = {"seed"}  # of the mapper, which runs each time
OF_A_VIDEO = {"frames", "every"}  # other frames are other photographs


def test_every_option_of_map_is_in_this_matrix() -> None:
    here = {*REFUSED, *APPLIED, *NO_PART_OF_THE_RESULT, *ONLY_FROM_PYTHON, *OF_A_VIDEO}
    assert set(inspect.signature(map_photographs).parameters) == here
    tests = {name for name in globals() if name.startswith("test_option_")}
    assert all(any(name.endswith(f"_{option}") for name in tests) for option in APPLIED)


@pytest.mark.parametrize("option", REFUSED)
def test_another_extraction_is_refused_and_the_way_out_named(again: Again, option: str) -> None:
    arguments, line = REFUSED[option]
    model = (again.out / "sparse/0/images.bin").read_bytes()
    ran, _ = again(*arguments)
    assert ran.code == 2
    assert line in ran.err
    assert "--fresh" in ran.err
    assert (again.out / "sparse/0/images.bin").read_bytes() == model


def test_option_fresh(again: Again) -> None:
    (again.out / "mine.txt").write_text("not tiepoint's")
    ran, report = again("-k", "300", "--fresh")
    assert ran.code == 0, ran.err
    assert report["images"]["extracted"] == 4
    assert all(len(points) <= 300 for points in again.features().values())
    assert (again.out / "mine.txt").read_text() == "not tiepoint's"
    for wrong in (["--camera", "LENS:1"], ["-f", "sifd"], ["--align", "gps"], ["--camera-model", "LENS"]):
        assert again(*wrong, "--fresh", base=without_focal())[0].code in (2, 3)
        assert (again.out / "sparse/0/images.bin").is_file()  # the map is still there


def test_option_pairs(again: Again, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("0.png 1.png\n1.png 2.png\n")
    ran, report = again("--pairs", pairs)
    assert ran.code == 0, ran.err
    assert again.pairs() == {("0.png", "1.png"), ("1.png", "2.png")}
    assert report["models"][0]["registered"] == 3
    assert set(report["left_out"]) == {"3.png"}
    pairs.write_text("1.png 2.png\n2.png 3.png\n")  # the same name, another list
    ran, report = again("--pairs", pairs)
    assert again.pairs() == {("1.png", "2.png"), ("2.png", "3.png")}
    assert set(report["left_out"]) == {"0.png"}
    ran, report = again()
    assert len(again.pairs()) == 6


SUSPICIOUS = SuspiciousPair(1, 4, ("0.png", "3.png"), 100, 0, 0.1)


def test_option_trust_doppelgangers(again: Again, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiepoint.mapping.steps.doppelgangers.suspicious_pairs", lambda _: [SUSPICIOUS])
    assert len(again()[1]["doppelgangers"]) == 1
    with Store.open(again.out / "database.db") as store:
        assert len(store.verified_pairs()) == 5
    assert again("--trust-doppelgangers")[1]["doppelgangers"] == []
    with Store.open(again.out / "database.db") as store:
        assert len(store.verified_pairs()) == 6


def test_option_mapper(again: Again) -> None:
    before = (again.out / "sparse/0/images.bin").read_bytes()
    ran, _ = again("--mapper", "global")
    assert ran.code == 0, ran.err
    assert (again.out / "sparse/0/images.bin").read_bytes() != before


def test_option_masks(again: Again, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    mask = np.full((240, 320), 255, np.uint8)
    mask[:, :160] = 0
    cv2.imwrite(str(masks / "1.png.png"), mask)
    before = again.features()
    _, report = again("--masks", masks)
    assert report["images"]["extracted"] == 1
    after = again.features()
    assert (after["1.png"][:, 0] > 150).all()
    assert np.array_equal(after["2.png"], before["2.png"])
    assert any("1.png" in note and "mask" in note for note in report["notes"])
    mask[:] = 255
    mask[:120] = 0
    cv2.imwrite(str(masks / "1.png.png"), mask)  # another mask of the same name
    again("--masks", masks)
    assert (again.features()["1.png"][:, 1] > 110).all()
    again()  # without masks
    assert np.array_equal(again.features()["1.png"], before["1.png"])


def test_option_cameras(again: Again) -> None:
    assert len({camera.camera_id for camera in again.cameras()}) == 1
    ran, _ = again("--cameras", "image")
    assert ran.code == 0, ran.err
    assert len({camera.camera_id for camera in again.cameras()}) == 4
    assert len(again.model().cameras) == 4
    again("--cameras", "all")
    assert len(again.model().cameras) == 1
    with Store.open(again.out / "database.db") as store:
        assert len(store.verified_pairs()) == 6


def test_option_camera_model(again: Again) -> None:
    ran, report = again("--camera-model", "OPENCV")
    assert ran.code == 0, ran.err
    assert {camera.model_name for camera in again.model().cameras.values()} == {"OPENCV"}
    assert report["images"]["extracted"] == 0
    assert any("another camera" in note for note in report["notes"])


def test_option_focal(again: Again) -> None:
    ran, _ = again("--focal", "310", base=without_focal())
    assert ran.code == 0, ran.err
    assert {camera.params[0] for camera in again.cameras()} == {310}
    again(base=without_focal())
    assert {(camera.params[0], camera.has_prior_focal_length) for camera in again.cameras()} == {(384, False)}


def test_option_camera(again: Again, tmp_path: Path) -> None:
    ran, _ = again("--camera", "SIMPLE_PINHOLE:301,160,120", base=without_focal())
    assert ran.code == 0, ran.err
    assert [(c.model_name, list(c.params)) for c in again.cameras()] == [("SIMPLE_PINHOLE", [301, 160, 120])] * 4
    file = tmp_path / "cameras.txt"
    file.write_text("# as COLMAP writes it\n7 PINHOLE 640 480 600 600 320 240\n9 PINHOLE 320 240 302 303 160 120\n")
    ran, _ = again("--camera", file, base=without_focal())
    assert ran.code == 0, ran.err
    assert [list(camera.params) for camera in again.cameras()] == [[302, 303, 160, 120]] * 4
    for wrong, words in (
        ("PINHOLE:1,2", "takes 4"),
        ("SIMPLE_PINHOLE:300,x", "numbers"),
        ("SIMPLE_PINHOLE:300,900,120", "principal point"),
        ("LENS:1", "no camera model"),
        ("nowhere/cameras.txt", "no such file"),
        ("", "no camera model"),
        ("SIMPLE_PINHOLE:" + "3" * 400, "SIMPLE_PINHOLE takes 3"),
    ):
        ran, _ = again("--camera", wrong, base=without_focal())
        assert ran.code == 2
        assert words in ran.err
    assert again("--camera", file)[0].code == 2  # beside --focal
    file.write_text("7 PINHOLE 640 480 600 600 320 240\n")
    ran, _ = again("--camera", file, base=without_focal())
    assert (ran.code, "320x240" in ran.err) == (2, True)
    cv2.imwrite(str(again.photos / "3.png"), view(1.05)[:200])
    ran, _ = again("--camera", "SIMPLE_PINHOLE:301,160,100", base=without_focal())
    assert (ran.code, "2 sizes" in ran.err) == (2, True)


def test_option_fix_cameras(again: Again) -> None:
    ran, _ = again("--focal", "290", "--fix-cameras", base=without_focal())
    assert ran.code == 0, ran.err
    assert {tuple(camera.params) for camera in again.model().cameras.values()} == {(290, 160, 120, 0)}
    again("--focal", "290", base=without_focal())
    assert abs(next(iter(again.model().cameras.values())).params[0] - 290) > 1
    ran, _ = again("--fix-cameras", base=without_focal())
    assert ran.code == 2
    assert "--focal" in ran.err


def test_option_effort(again: Again) -> None:
    assert any(note.startswith("effort auto: ") for note in again("--effort", "auto")[1]["notes"])
    assert not any(note.startswith("effort") for note in again()[1]["notes"])


def test_option_refine(again: Again) -> None:
    plain = again()[1]["models"][0]["error"]
    refined = again("--refine")[1]["models"][0]["error"]
    assert refined < 0.95 * plain
    assert again()[1]["models"][0]["error"] == pytest.approx(plain, rel=0.02)  # the database keeps its keypoints


def stale_export_is_named(again: Again, option: str, folder: str) -> None:
    assert again(option)[0].code == 0
    assert (again.out / folder).is_dir()
    _, report = again()
    assert any(str(again.out / folder) in note and "earlier" in note for note in report["notes"])


def test_option_text(again: Again) -> None:
    stale_export_is_named(again, "--text", "text")


def test_option_undistort(again: Again) -> None:
    stale_export_is_named(again, "--undistort", "undistorted")


def test_option_scale(again: Again) -> None:
    again("--scale", "0.png,3.png,21")
    centres = {image.name: image.projection_center() for image in again.model().images.values()}
    assert np.linalg.norm(centres["0.png"] - centres["3.png"]) == pytest.approx(21)


def test_option_align(again: Again, tmp_path: Path) -> None:
    positions = tmp_path / "positions.txt"
    positions.write_text("0.png 0 0 0\n1.png 1 0 0\n2.png 2 0 0\n3.png 3 0 0\n")
    _, report = again("--align", positions)  # on a line: said, not ignored
    assert "on a line" in report["alignments"][0]["problem"]
    assert any("not aligned" in note for note in report["notes"])
    assert again("--align", tmp_path / "none.txt")[0].code == 2


# ---- files ----


def test_a_photograph_that_is_added(again: Again) -> None:
    cv2.imwrite(str(again.photos / "4.png"), view(1.4))
    _, report = again()
    assert (report["images"]["extracted"], report["models"][0]["registered"]) == (1, 5)
    assert any("new (4.png)" in note for note in report["notes"])


def test_a_photograph_that_is_removed_leaves_with_its_pairs(again: Again) -> None:
    (again.photos / "3.png").unlink()
    ran, report = again("--undistort")
    assert ran.code == 0, ran.err
    assert set(again.features()) == {"0.png", "1.png", "2.png"}
    assert len(again.pairs()) == 3
    assert (report["models"][0]["registered"], report["models"][0]["total"]) == (3, 3)
    assert report["left_out"] == {}
    assert any("3.png" in note and "removed" in note for note in report["notes"])
    cv2.imwrite(str(again.photos / "3.png"), view(1.05))  # and comes back
    assert again()[1]["models"][0]["registered"] == 4


@pytest.mark.parametrize("trick", ["plain", "same time"])
def test_a_photograph_that_is_replaced_is_extracted_and_matched_again(again: Again, trick: str) -> None:
    path = again.photos / "2.png"
    before, old = again.features(), path.stat()
    cv2.imwrite(str(path), view(0.8))
    if trick != "plain":
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    _, report = again()
    assert report["images"]["extracted"] == 1
    assert report["pairs"][0]["matched"] == 3
    after = again.features()
    assert not np.array_equal(after["2.png"], before["2.png"])
    assert np.array_equal(after["1.png"], before["1.png"])
    x = {image.name: image.projection_center() for image in again.model().images.values()}
    along = np.linalg.norm(x["2.png"] - x["0.png"]) / np.linalg.norm(x["1.png"] - x["0.png"])
    assert abs(along - 0.8 / 0.35) < 0.1


def test_other_bytes_at_the_same_size(again: Again) -> None:
    """Two photographs exchange their contents, padded to one size: each is done again."""
    contents = {name: (again.photos / name).read_bytes() for name in ("0.png", "3.png")}
    size = max(map(len, contents.values()))
    for name, content in contents.items():
        (again.photos / name).write_bytes(content.ljust(size, b"\0"))
    again()
    before = again.features()
    for name, other in (("0.png", "3.png"), ("3.png", "0.png")):
        stat = (again.photos / name).stat()
        (again.photos / name).write_bytes(contents[other].ljust(size, b"\0"))
        os.utime(again.photos / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    _, report = again()
    assert report["images"]["extracted"] == 2
    after = again.features()
    assert np.array_equal(after["0.png"], before["3.png"])
    assert np.array_equal(after["3.png"], before["0.png"])


def test_a_photograph_of_another_size_in_its_place(again: Again) -> None:
    cv2.imwrite(str(again.photos / "2.png"), view(0.7)[:200])
    ran, report = again()
    assert ran.code == 0, ran.err
    sizes = {camera.height for camera in again.cameras()}
    assert sizes == {200, 240}
    assert report["images"]["failed"] == {}
    assert report["images"]["extracted"] == 1


def test_a_photograph_that_is_renamed_keeps_its_features_and_pairs(again: Again) -> None:
    before = again.features()
    (again.photos / "1.png").rename(again.photos / "one.png")
    ran, report = again("--undistort")
    assert ran.code == 0, ran.err
    assert (report["images"]["extracted"], report["pairs"][0]["matched"]) == (0, 0)
    assert np.array_equal(again.features()["one.png"], before["1.png"])
    assert (again.out / "undistorted/images/one.png").is_file()
    assert any("1.png -> one.png" in note for note in report["notes"])


def test_a_photograph_that_was_only_touched_is_the_same(again: Again) -> None:
    os.utime(again.photos / "1.png")
    _, report = again()
    assert (report["images"]["extracted"], report["pairs"][0]["matched"]) == (0, 0)


def test_another_folder_altogether_is_refused(again: Again, tmp_path: Path) -> None:
    again.photos = tmp_path / "others"
    again.photos.mkdir()
    for n in range(3):
        cv2.imwrite(str(again.photos / f"other{n}.png"), view(3 + 0.1 * n))
    ran, _ = again()
    assert ran.code == 3
    assert "none of the 4 photographs" in ran.err
    assert len(again.features()) == 4


def test_another_video_of_the_same_name_is_refused(tmp_path: Path, tiepoint: Any) -> None:
    def film(step: float) -> bytes:
        path = tmp_path / "made.avi"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (320, 240))
        for n in range(12):
            writer.write(view(step * n))
        writer.release()
        return path.read_bytes()

    first, second = film(0.1), film(0.11)
    size = max(len(first), len(second))
    path, arguments = tmp_path / "clip.avi", ["map", tmp_path / "clip.avi", "-o", tmp_path / "out", *CLASSIC]
    path.write_bytes(first.ljust(size, b"\0"))
    assert tiepoint(*arguments).code == 0
    path.write_bytes(second.ljust(size, b"\0"))
    ran = tiepoint(*arguments)
    assert ran.code == 2
    assert "another video" in ran.err
    assert "--fresh" in ran.err
    assert tiepoint(*arguments, "--fresh").code == 0


@pytest.mark.parametrize("place", ["undistorted/images", "sparse", "text"])
def test_an_input_where_the_map_writes_is_refused(again: Again, place: str) -> None:
    inside = again.out / place / "mine"
    shutil.copytree(again.photos, inside)
    again.photos = inside
    ran, _ = again("--undistort", "--text", "--fresh")
    assert ran.code == 2
    assert f"is replaced as a whole, and the input {inside} lies in it" in ran.err
    assert len(list(inside.iterdir())) == 4


@pytest.mark.parametrize(("made", "option"), [("sparse", None), ("points.ply", None), ("database.db", "--fresh")])
def test_what_no_map_has_written_is_neither_replaced_nor_deleted(
    again: Again, tiepoint: Any, tmp_path: Path, made: str, option: str | None
) -> None:
    """As a project of COLMAP's has it: ``project/images``, ``project/database.db`` and ``project/sparse/0``."""
    project = tmp_path / "project"
    project.mkdir()
    copy = shutil.copytree if (again.out / made).is_dir() else shutil.copy
    copy(again.out / made, project / made)
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    ran = tiepoint("map", again.photos, "-o", project, *CLASSIC, *([option] if option else []))
    assert ran.code == 2
    assert f"holds {made}, but no settings.json" in ran.err
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before


def test_a_database_brought_along_keeps_its_cameras_until_an_option_says_otherwise(again: Again) -> None:
    for path in again.out.iterdir():
        if path.name != "database.db":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with Store.open(again.out / "database.db") as store, store.file.transaction() as db:
        db.execute("DELETE FROM tiepoint_files")
        db.execute("DELETE FROM tiepoint_cameras")
        db.execute("UPDATE cameras SET params = ?", (np.array([303.0, 160, 120, 0.001]).tobytes(),))
    for _ in range(2):
        assert again(base=without_focal())[0].code == 0
        assert {camera.params[0] for camera in again.cameras()} == {303}
    assert again()[0].code == 0  # with --focal
    assert {camera.params[0] for camera in again.cameras()} == {FOCAL}
