"""``tiepoint map`` and ``tiepoint db``: from photographs to cameras at known places, and every error on the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest

from splat_readers import reprojection_errors
from stored import matched_pairs
from tiepoint import matchers
from tiepoint.cli import main
from tiepoint.errors import ArgumentError, InputError
from tiepoint.mapping import pairs
from tiepoint.mapping.pairs import earth_centred
from tiepoint.mapping.store import Store
from two_walls import CLASSIC, SIZE, view, wall

pytest.importorskip("pycolmap")

PLACES = {f"{n}.png": 0.3 * n for n in range(5)}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with five views, a copy of one, one of nothing, and one that is not a photograph at all."""
    folder = tmp_path_factory.mktemp("photographs")
    for name, x in PLACES.items():
        cv2.imwrite(str(folder / name), view(x))
    shutil.copy(folder / "3.png", folder / "copy of 3.png")
    cv2.imwrite(str(folder / "blank.png"), np.full((240, 320), 90, np.uint8))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 this is not a photograph")
    return folder


@pytest.fixture(scope="module")
def mapped(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a map, begun with three of the photographs only."""
    some, out = tmp_path_factory.mktemp("some"), tmp_path_factory.mktemp("map") / "out"
    for name in ("0.png", "1.png", "2.png"):
        shutil.copy(photographs / name, some)
    assert main(["map", str(some), "-o", str(out), *CLASSIC]) == 0
    return out


def test_map_finds_the_places_goes_on_and_leaves_out(tiepoint: Any, photographs: Path, mapped: Path) -> None:
    ran = tiepoint("map", photographs, "-o", mapped, *CLASSIC, "--text", "--undistort", "--json")
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    assert result == json.loads((mapped / "report.json").read_text())
    assert result["images"]["already"] == 3
    assert result["images"]["extracted"] == 3  # two views, and the blank one
    assert set(result["images"]["failed"]) == {"copy of 3.png", "broken.jpg"}
    assert "same as 3.png" in ran.err
    assert "broken.jpg" in ran.err
    assert (result["pairs"][0]["already"], result["pairs"][0]["matched"]) == (3, 12)
    assert result["models"][0]["registered"] == 5
    assert set(result["left_out"]) == {"blank.png"}

    table = np.loadtxt(mapped / "trajectory.txt")
    places, truth = table[:, 1:4], np.array(sorted(PLACES.values()))
    along = places - places[0]
    scale = np.linalg.norm(along[-1]) / truth[-1]
    assert np.allclose(np.linalg.norm(along, axis=1) / scale, truth, atol=0.03)
    assert np.linalg.norm(
        along @ (np.eye(3) - np.outer(along[-1], along[-1]) / (along[-1] @ along[-1])), axis=1
    ).max() < (0.05 * scale)
    files = "sparse/0/images.bin text/images.txt points.ply quality.json scene.html undistorted/transforms.json"
    for file in files.split():
        assert (mapped / file).stat().st_size > 0
    for errors in reprojection_errors(mapped / "undistorted"):
        assert len(errors) == result["models"][0]["observations"]
        assert abs(errors.mean() - result["models"][0]["error"]) < 0.01

    again = json.loads(tiepoint("map", photographs, "-o", mapped, *CLASSIC, "--json").out)
    assert (again["images"]["extracted"], again["pairs"][0]["matched"]) == (0, 0)
    assert [model["registered"] for model in again["models"]] == [model["registered"] for model in result["models"]]
    # Sums of several threads differ in their last digits (`reconstruct`), and so may an observation at the limit; the
    # error is a few hundredths of a pixel here, of which one observation is a hundredth.
    for name in ("points", "observations", "error"):
        assert again["models"][0][name] == pytest.approx(result["models"][0][name], rel=0.01, abs=0.002), name


def test_a_begun_map_keeps_its_features(tiepoint: Any, photographs: Path, mapped: Path) -> None:
    ran = tiepoint("map", photographs, "-o", mapped, "-f", "orb")
    assert ran.code == 2
    assert "features sift" in ran.err
    assert tiepoint("map", photographs, "-o", mapped, *CLASSIC[:4], "-k", 99).code == 2


def test_ctrl_c_is_an_exit_code_and_loses_nothing(
    tiepoint: Any, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    pairs = tmp_path / "pairs.txt"
    pairs.write_text("0.png 1.png\n1.png 2.png\n0.png lost.png\n")
    options = ["map", photographs, "-o", tmp_path / "out", *CLASSIC, "--pairs", pairs, "--json"]
    with monkeypatch.context() as patch:
        patch.setattr("tiepoint.mapping.run.match_into", interrupted)
        ran = tiepoint(*options)
        assert (ran.code, ran.out) == (130, "")
    ran = tiepoint(*options)
    result = json.loads(ran.out)
    assert (result["images"]["already"], result["images"]["extracted"]) == (6, 0)
    assert result["pairs"][0]["matched"] == 2
    assert any("lost.png" in note for note in result["notes"])
    assert result["models"][0]["registered"] == 3


@pytest.mark.parametrize("pairs", ["sequential", "retrieval"])
def test_other_pairs_map_too_and_are_chosen_again(
    tiepoint: Any, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: str
) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr("tiepoint.mapping.pairs.choose.SIMILAR", 2)  # so that a second round finds more
    monkeypatch.setattr("tiepoint.mapping.pairs.choose.LOOP", 3)
    options = ["map", photographs, "-o", tmp_path / "out", *CLASSIC, "--pairs", pairs, "--json"]
    first = json.loads(tiepoint(*options).out)
    assert first["models"][0]["registered"] == 5
    assert len(first["pairs"]) == (2 if pairs == "retrieval" else 1)
    again = json.loads(tiepoint(*options).out)
    assert [one["pairs"] for one in again["pairs"]] == [one["pairs"] for one in first["pairs"]]
    assert sum(one["matched"] for one in again["pairs"]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere", "-o", "out"], 3, "no such file"),
        (["empty", "-o", "out"], 3, "a map needs two"),
        (["unrelated", "-o", "out", *CLASSIC], 3, "in none of its 1 matched pairs"),
        (["unrelated", "-o", "out", *CLASSIC, "--pairs", "none.txt"], 3, "none.txt"),
        (["unrelated", "-o", "unrelated/out"], 2, "choose another"),
        (["unrelated", "-o", "out", "--pairs", "some"], 2, "exhaustive"),
        (["unrelated", "-o", "out", *CLASSIC, "--pairs", "position"], 3, "GPS"),
        (["text.txt", "-o", "out"], 3, "not a video"),
        (["unrelated", "-o", "out", "--every", "1"], 2, "is no video"),
        (["unrelated", "-o", "text.txt"], 3, "text.txt"),
        (["unrelated", "-o", "out", "-f", "sifd", "-m", "nearest"], 2, "sifd"),
    ],
)
def test_errors_are_one_message(
    tiepoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "unrelated"):
        Path(folder).mkdir()
    for n in range(2):
        cv2.imwrite(f"unrelated/{n}.png", wall(10 + n)[:240, :320])
    Path("text.txt").write_text("not a video")
    Path("none.txt").write_text("0.png 7.png\n")
    ran = tiepoint("map", *arguments)
    assert ran.code == code
    assert words in ran.err
    assert "bug" not in ran.err
    assert "verify" not in ran.err  # those are steps of `map`, not the user's
    assert ("overlap more" in ran.err) == ("matched pairs" in words)  # never where none were matched
    assert ran.out == ""


def test_a_database_of_another_kind_is_refused(tiepoint: Any, photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "database.db").write_bytes(b"something else")
    ran = tiepoint("map", photographs, "-o", tmp_path, *CLASSIC)
    assert ran.code == 3
    assert "database" in ran.err


def test_a_video_becomes_key_frames_and_a_timed_path(tiepoint: Any, tmp_path: Path) -> None:
    film = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"MJPG"), 10, SIZE)
    for n in range(12):
        writer.write(view(0.1 * n))
    writer.release()
    ran = tiepoint("map", film, "-o", tmp_path / "out", *CLASSIC, "--frames", "6", "--json")
    assert ran.code == 0, ran.err
    frames = json.loads((tmp_path / "out/frames/key_frames.json").read_text())["key_frames"]
    assert len(frames) == 6 and {frame["index"] // 2 for frame in frames} == set(range(6))
    sheet = PIL.Image.open(tmp_path / "out/frames.jpg")
    assert min(sheet.size) > 2 * 120  # six pictures of 160 x 120, in rows and columns
    times = np.loadtxt(tmp_path / "out/trajectory.txt")[:, 0]
    assert set(times.round(3)) <= {round(frame["time"], 3) for frame in frames}
    assert json.loads(ran.out)["models"][0]["registered"] == len(times)


def test_db_info_export_and_import_make_a_round(tiepoint: Any, photographs: Path, mapped: Path, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    database = mapped / "database.db"
    told = json.loads(tiepoint("db", "info", database, "--json").out)
    assert told["features"] == "sift"
    files = ["--features", tmp_path / "f.h5", "--matches", tmp_path / "m.h5"]
    assert tiepoint("db", "export", database, *files, "--pairs", tmp_path / "p.txt").code == 0
    assert len((tmp_path / "p.txt").read_text().splitlines()) == told["verified pairs"]

    copy = tmp_path / "copy.db"
    ran = tiepoint("db", "import", copy, "--images", photographs, *files, "--extractor", "sift")
    assert ran.code == 0, ran.err
    assert "broken.jpg" in ran.err
    with Store.open(copy) as ours, Store.open(database) as theirs:
        assert matched_pairs(ours) == matched_pairs(theirs)
        # one of them was told the focal length, so the geometries differ; the pairs that have one do not
        assert set(ours.verified_pairs()) == set(theirs.verified_pairs())
    assert tiepoint("db", "import", copy).code == 2
    assert tiepoint("db", "export", tmp_path / "none.db", "--pairs", tmp_path / "p.txt").code == 3


# ------------------------------------------------- every input is used, or named as unused


def gps(latitude: float, longitude: float) -> PIL.Image.Exif:
    """Return EXIF that holds a place, to a hundredth of a second of arc."""
    exif = PIL.Image.Exif()

    def degrees(value: float) -> tuple[float, float, float]:
        minutes = value % 1 * 60
        return float(int(value)), float(int(minutes)), round(minutes % 1 * 60, 2)

    exif.get_ifd(0x8825).update({1: "N", 2: degrees(latitude), 3: "E", 4: degrees(longitude)})
    return exif


def save_views(folder: Path, names: list[str], exifs: list[PIL.Image.Exif] | None = None) -> Path:
    """Photograph the walls from places 0.3 apart, in the order of the names."""
    folder.mkdir()
    for n, name in enumerate(names):
        picture = PIL.Image.fromarray(view(0.3 * n)[..., ::-1])
        picture.save(folder / name, **({} if exifs is None else {"exif": exifs[n].tobytes()}))
    return folder


def test_masks_are_counted(tiepoint: Any, photographs: Path, tmp_path: Path) -> None:
    options = ["map", photographs, "-o", tmp_path / "out", *CLASSIC, "--json", "--masks"]
    ran = tiepoint(*options, tmp_path / "nowhere")
    assert ran.code == 3 and "nowhere: no such folder; give the folder of the masks" in ran.err
    masks = tmp_path / "masks"
    masks.mkdir()
    cv2.imwrite(str(masks / "1.png"), np.full((240, 320), 255, np.uint8))
    ran = tiepoint(*options, masks)
    assert ran.code == 3 and f"the mask of 0.png must be called {masks / '0.png.png'}" in ran.err
    assert not (tmp_path / "out" / "database.db").exists()
    (masks / "1.png").rename(masks / "1.png.png")
    assert "masks: 1 of 6 photographs have one" in json.loads(tiepoint(*options, masks).out)["notes"]
    ran = tiepoint("extract", photographs / "0.png", "-f", "orb", "-o", tmp_path / "f.npz", "--masks", masks)
    assert ran.code == 3 and "no mask of any of the 1 photographs" in ran.err and not (tmp_path / "f.npz").exists()


@pytest.mark.parametrize("place", ["photographs/masks", "photographs"])
def test_masks_beside_the_photographs_are_no_photographs(tiepoint: Any, tmp_path: Path, place: str) -> None:
    folder, masks = save_views(tmp_path / "photographs", ["0.png", "1.png", "2.png"]), tmp_path / place
    masks.mkdir(exist_ok=True)
    half = np.full((240, 320), 255, np.uint8)
    half[:, :80] = 0
    for n in range(3):
        cv2.imwrite(str(masks / f"{n}.png.png"), half)
    ran = tiepoint("map", folder, "-o", tmp_path / "out", *CLASSIC, "--masks", masks, "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert (report["models"][0]["total"], report["left_out"], report["images"]["failed"]) == (3, {}, {})
    assert "masks: 3 of 3 photographs have one" in report["notes"]
    extract = ["extract", folder, "-o", tmp_path / "features.h5", "-f", "sift", "-k", "50", "--masks", masks, "--json"]
    ran = tiepoint(*extract)
    assert ran.code == 0, ran.err
    assert set(json.loads(ran.out)["keypoints"]) == {"0.png", "1.png", "2.png"}


def test_names_too_long_to_be_undistorted_are_refused_before_the_work(tiepoint: Any, tmp_path: Path) -> None:
    names = ["a" * 244 + ".png", "b" * 243 + ".png", "c.png"]
    folder = save_views(tmp_path / "photographs", names)
    command = ["map", folder, "-o", tmp_path / "out", *CLASSIC]
    ran = tiepoint(*command, "--undistort")
    assert ran.code == 2
    assert "the name is too long" in ran.err
    assert not (tmp_path / "out/database.db").exists()
    (folder / names[0]).rename(folder / "a.png")
    masks = tmp_path / "masks"
    masks.mkdir()
    cv2.imwrite(str(masks / f"{names[1]}.png"), np.full((240, 320), 255, np.uint8))
    assert tiepoint(*command, "--undistort", "--masks", masks).code == 0
    assert (tmp_path / "out/undistorted/images" / names[1]).exists()


def test_a_pair_list_with_scores_folders_and_both_directions(tiepoint: Any, photographs: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.txt"
    options = ["map", photographs, "-o", tmp_path / "out", *CLASSIC, "--pairs", pairs, "--json"]
    pairs.write_text("images/0.png images/1.png 0.9\nimages/2.png images/1.png 0.8\nimages/1.png images/0.png 0.7\n")
    result = json.loads(tiepoint(*options).out)
    assert f"{pairs}: used 3 of 3 lines" in result["notes"]
    assert result["pairs"][0]["pairs"] == 2 and result["models"][0]["registered"] == 3
    pairs.write_text("0.png other.png\nlost.png 1.png\n")
    ran = tiepoint(*options)
    assert ran.code == 3 and "names two of the 6 images; the first is line 1, which names other.png" in ran.err
    whole = [f"{photographs}/{a}.png {photographs}/{b}.png\n" for a, b in ((0, 1), (0, "lost"), (1, 2))]
    pairs.write_text("".join(whole))
    notes = json.loads(tiepoint(*options).out)["notes"]
    assert any("used 2 of 3 lines; the first that was not, line 2" in note for note in notes)


@pytest.mark.parametrize("without", [(), (1, 4)], ids=["all have GPS", "some have"])
def test_photographs_far_apart_are_paired(tiepoint: Any, tmp_path: Path, without: tuple[int, ...]) -> None:
    """0.002 degrees of latitude are 222 m, beyond what counts as near."""
    pytest.importorskip("faiss")
    exifs = [PIL.Image.Exif() if n in without else gps(48 + 0.002 * n, 11) for n in range(5)]
    folder = save_views(tmp_path / "photographs", [f"{n}.png" for n in range(5)], exifs)
    ran = tiepoint("map", folder, "-o", tmp_path / "out", *CLASSIC, "--pairs", "position", "--json")
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    assert result["models"][0]["registered"] == 5
    said = next(note for note in result["notes"] if note.startswith("GPS"))
    assert f"{5 - len(without)} of 5 photographs" in said and ("image retrieval" in said) == bool(without)


def test_case_gps_far_apart(tiepoint: Any, cases_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiepoint.mapping.run.reconstruct", _stop)  # the pairs alone matter here
    options = ["-f", "sift", "-m", "nearest", "-k", "300", "--workers", "0", "--pairs", "position"]
    assert "reached the mapper" in tiepoint("map", cases_dir / "gps_far_apart", "-o", tmp_path / "out", *options).err
    with Store.open(tmp_path / "out" / "database.db") as store:
        places = earth_centred([image.position for image in store.images()])
        pairs = {frozenset(pair) for pair in matched_pairs(store)}
        ids = [image.image_id for image in store.images()]
    apart = np.linalg.norm(places[:, None] - places[None], axis=2) + np.diag(np.full(9, np.inf))
    assert apart.min() > 100
    for i, image_id in enumerate(ids):
        assert frozenset((image_id, ids[int(apart[i].argmin())])) in pairs


def _stop(*_: Any, **__: Any) -> None:
    raise InputError("reached the mapper")


@pytest.mark.parametrize("by", ["numbers", "EXIF times", "time stamps"])
def test_a_sequence_is_in_order_of_time(
    tiepoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """What ``sequential`` gets, and the times of the trajectory."""
    exifs = [PIL.Image.Exif() for _ in range(5)]
    if by == "EXIF times":
        names = ["m.png", "c.png", "x.png", "a.png", "k.png"]
        for n, exif in enumerate(exifs):
            exif.get_ifd(0x8769)[0x9003] = f"2024:05:01 10:00:{9 + n:02d}"
    elif by == "numbers":
        names = [f"frame{n}.png" for n in range(8, 13)]
    else:
        names = [f"130503110{n}.{n}75304.png" for n in range(5)]
    folder = save_views(tmp_path / "photographs", names, exifs)
    given: list[list[int]] = []
    sequential = pairs.sequential
    monkeypatch.setattr(
        "tiepoint.mapping.pairs.choose.sequential", lambda ids: given.append(list(ids)) or sequential(ids)
    )
    ran = tiepoint("map", folder, "-o", tmp_path / "out", *CLASSIC, "--pairs", "sequential", "--json")
    assert ran.code == 0, ran.err
    with Store.open(tmp_path / "out" / "database.db") as store:
        named = {image.image_id: image.name for image in store.images()}
    assert [named[i] for i in given[-1]] == names
    said = any("taken by their EXIF times" in note for note in json.loads(ran.out)["notes"])
    assert said == (by == "EXIF times")
    table = np.loadtxt(tmp_path / "out" / "trajectory.txt")
    if by == "time stamps":
        assert table[:, 0].tolist() == [float(name.removesuffix(".png")) for name in names]
    elif by == "numbers":
        assert table[:, 0].tolist() == [0, 1, 2, 3, 4]
        along = table[:, 1:4] - table[0, 1:4]
        assert (np.diff(np.linalg.norm(along, axis=1)) > 0).all()


def test_a_map_of_named_bands(tiepoint: Any, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    folder = tmp_path / "photographs"
    folder.mkdir()
    for n in range(4):
        bgr = view(0.3 * n)
        five = np.dstack([bgr[..., 0] * 0, bgr, bgr[..., :1] * 0]).astype(np.uint16) * 257
        tifffile.imwrite(folder / f"{n}.tif", five, photometric="minisblack", planarconfig="contig")
    options = ["map", folder, "-o", tmp_path / "out", *CLASSIC, "--undistort", "--json"]
    ran = tiepoint(*options)
    assert ran.code == 3 and "has 5 bands" in ran.err and "holds 0 photographs that can be used" in ran.err
    assert not (tmp_path / "out/database.db").exists()  # before the work
    ran = tiepoint(*options[:3], tmp_path / "out2", *options[4:], "--bands", "4,3,2")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["models"][0]["registered"] == 4
    written = cv2.imread(str(tmp_path / "out2" / "undistorted" / "images" / "0.tif.png"))
    assert written.reshape(-1, 3).max(axis=0).min() > 200  # in colour, none of them an empty band
    assert tiepoint(*options[:3], tmp_path / "out2", *options[4:], "--bands", "2,2,2").code == 2
    assert tiepoint(*options, "--bands", "4,x").code == 2


def test_dense_matches_can_be_imported(tiepoint: Any, photographs: Path, mapped: Path, tmp_path: Path) -> None:
    """Keypoints without descriptors, and a pair in both directions, as hloc has them after LoFTR."""
    h5py = pytest.importorskip("h5py")
    files = [tmp_path / "f.h5", tmp_path / "m.h5"]
    assert tiepoint("db", "export", mapped / "database.db", "--features", files[0], "--matches", files[1]).code == 0
    with h5py.File(files[0], "a") as file:
        for group in file.values():
            del group["descriptors"], group["scores"], group["image_size"]
    with h5py.File(files[1], "a") as file:
        one = file["0.png"]["1.png"]["matches0"][()]
        back = np.full(one.max() + 1000, -1)
        back[one[one >= 0]] = np.flatnonzero(one >= 0)
        with h5py.File(files[0]) as features:
            file.create_group("1.png/0.png")["matches0"] = back[: len(features["1.png"]["keypoints"])]
    dense = ["--features", files[0], "--extractor", "loftr", "--matches", files[1]]
    ran = tiepoint("db", "import", tmp_path / "dense.db", "--images", photographs, *dense)
    assert ran.code == 0, ran.err
    with Store.open(tmp_path / "dense.db") as store, Store.open(mapped / "database.db") as theirs:
        assert matched_pairs(store) == matched_pairs(theirs)
        assert set(store.verified_pairs()) == set(theirs.verified_pairs())
        one, two = (store.features(image.image_id) for image in store.images()[:2])
    with pytest.raises(ArgumentError, match="loftr keypoints have no descriptors"):
        matchers.load("nearest", features="sift")(one, two)
