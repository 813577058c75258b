"""The command line: results, exit codes, pure JSON, and no traceback or half a file, ever."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import tiepoint as tp
from tiepoint import weights
from tiepoint.cli import console, main
from tiepoint.io.folders import find_images

CLASSIC = ["--features", "sift", "--matcher", "nearest"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, texture: NDArray[np.uint8]) -> Path:
    """A folder with two views, a picture of something else, and a file that only claims to be a picture."""
    folder = tmp_path_factory.mktemp("photos")
    H = np.array([[0.9, -0.1, 30], [0.12, 0.95, -12], [2e-4, 1e-4, 1]])
    cv2.imwrite(str(folder / "a.png"), texture)
    cv2.imwrite(str(folder / "b.png"), cv2.warpPerspective(texture, H, (320, 240)))
    cv2.imwrite(str(folder / "blank.png"), np.full((50, 60), 90, np.uint8))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 this is not a photograph")
    return folder


class Ran:
    """Exit code, stdout and stderr of one run."""

    def __init__(self, code: int, captured: pytest.CaptureResult[str]) -> None:
        self.code, self.out, self.err = code, captured.out, captured.err


@pytest.fixture
def tiepoint(capsys: pytest.CaptureFixture[str]):
    """Run the command line in this process."""

    def run(*argv: object) -> Ran:
        capsys.readouterr()
        code = main([str(arg) for arg in argv])
        return Ran(code, capsys.readouterr())

    return run


def test_match_writes_everything_asked_for(tiepoint, photos: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / f"m{suffix}" for suffix in (".npz", ".json", ".csv", ".png", ".html", ".h5")]
    options = [word for path in outputs for word in ("-o", path)]
    ran = tiepoint("match", photos / "a.png", photos / "b.png", *CLASSIC, "--geometry", "homography", *options)
    assert ran.code == 0 and ran.err == ""
    assert "sift + nearest" in ran.out and "inliers (homography)" in ran.out
    assert sorted(tmp_path.iterdir()) == sorted(outputs)
    expected = tp.match(photos / "a.png", photos / "b.png", "sift", "nearest")
    with np.load(outputs[0]) as file:
        np.testing.assert_array_equal(file["points1"], expected.points1)


def test_match_json_is_pure(tiepoint, photos: Path) -> None:
    ran = tiepoint("match", photos / "a.png", photos / "b.png", *CLASSIC, "--json", "--geometry", "essential")
    told = json.loads(ran.out)
    assert ran.code == 0 and ran.err == ""
    assert told["matches"] > 50 and np.shape(told["R"]) == (3, 3) and told["outputs"] == []


def test_match_options_reach_the_library(tiepoint, photos: Path, tmp_path: Path) -> None:
    def told(*options: object) -> dict:
        ran = tiepoint("match", photos / "a.png", photos / "b.png", "-f", "orb", "--effort", "fast", "--json", *options)
        assert ran.code == 0, ran.err
        return json.loads(ran.out)

    assert told("--max-keypoints", 40)["keypoints0"] == 40
    every = told()["keypoints0"]
    assert told("--detection-threshold", 60)["keypoints0"] < every > told("--nms-radius", 9)["keypoints0"]
    assert told("--long-side", 80)["keypoints0"] < told("--long-side", 0)["keypoints0"]
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((240, 320), np.uint8))
    masked = told("--mask1", tmp_path / "black.png")
    assert masked["keypoints1"] == 0 and masked["matches"] == 0 and masked["keypoints0"] > 0
    near, far = (told("--geometry", "essential", "--focal", focal)["R"] for focal in (200, 2000))
    assert not np.allclose(near, far)


def test_no_matches_is_a_result(tiepoint, photos: Path, tmp_path: Path) -> None:
    ran = tiepoint("match", photos / "a.png", photos / "blank.png", *CLASSIC, "-o", tmp_path / "m.npz")
    assert ran.code == 0 and "No matches found" in ran.out
    with np.load(tmp_path / "m.npz") as file:
        assert file["points0"].shape == (0, 2)


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["match", "{photos}/a.png", "gone.jpg"], 3, "gone.jpg"),
        (["match", "{photos}/a.png", "{photos}/broken.jpg"], 3, "broken.jpg"),
        (["match", "{photos}/a.png", "{photos}"], 3, "folder|directory"),
        (["match", "{photos}/a.png", "{photos}/b.png", "--mask0", "{photos}/blank.png"], 3, "blank.png"),
        (["match", "{photos}/a.png", "{photos}/b.png", "-o", "m.doc"], 2, r"m\.doc"),
        (["match", "{photos}/a.png", "{photos}/b.png", "-o", "no/m.npz"], 2, "does not exist"),
        (["match", "{photos}/a.png", "{photos}/b.png", "-f", "sitf"], 2, "no extractor .* sift"),
        (["match", "{photos}/a.png", "{photos}/b.png", "-f", "orb", "-m", "lightglue"], 2, "orb"),
        (["match", "{photos}/a.png", "{photos}/b.png", "-m", "lightgule"], 2, "no matcher .* lightglue"),
        (["match", "{photos}/a.png", "{photos}/b.png", "-m", "lightglue@mine.safetensors"], 2, "name the features"),
        (
            ["match", "{photos}/a.png", "{photos}/b.png", "-f", "sift", "-m", "lightglue@mine.pth"],
            2,
            "mine.pth is neither",
        ),
        (["match", "{photos}/a.png", "{photos}/b.png", "-f", "sift@mine.pth"], 2, "'sift' does not take 'weights'"),
        (["match", "{photos}/a.png", "{photos}/b.png", "--device", "abacus"], 2, "abacus"),
        (["match", "{photos}/a.png", "{photos}/b.png", "--focal", "500"], 2, "essential"),
        (["match", "{photos}/a.png", "{photos}/b.png", "--geometri", "homography"], 2, "--geometry"),
        (["match", "{photos}/a.png", "{photos}/b.png", "--geometry", "affine"], 2, "fundamental"),
        (["match", "{photos}/a.png"], 2, "give two photographs"),
        (["mach"], 2, "match"),
        (["extract", "{photos}/a.png", "-o", "feats.hdf"], 2, "feats.hdf"),
        (["extract", "{empty}", "-o", "feats"], 3, "no images"),
        (["extract", "gone.jpg", "-o", "feats"], 3, "gone.jpg"),
        (["weights", "path", "nonsense"], 2, "nonsense"),
        (["weights", "path", "superpoint-lightglue"], 4, "weights pull superpoint-lightglue"),
        (["evaluate", "--data", "nowhere"], 3, "nowhere"),
    ],
    ids=lambda value: " ".join(value).replace("{photos}/", "") if isinstance(value, list) else "",
)
def test_errors_are_one_message_and_a_code(
    tiepoint, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIEPOINT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    ran = tiepoint(*[arg.format(photos=photos, empty=tmp_path / "empty") for arg in argv])
    assert ran.code == code, ran.err
    assert re.search(words, ran.err) and "Traceback" not in ran.err
    assert ran.out == ""
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_missing_package_is_code_5(tiepoint, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    ran = tiepoint("extract", photos / "a.png", "-f", "orb", "-o", tmp_path / "f.h5")
    assert ran.code == 5 and "pip install 'tiepoint[hdf5]'" in ran.err


def test_bugs_are_one_line_unless_debugging(tiepoint, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("secret cause")

    monkeypatch.setattr("tiepoint.two_view.match", broken)
    monkeypatch.delenv("TIEPOINT_DEBUG", raising=False)
    ran = tiepoint("match", photos / "a.png", photos / "b.png")
    assert ran.code == 1 and "bug" in ran.err and "secret cause" in ran.err and "Traceback" not in ran.err
    monkeypatch.setenv("TIEPOINT_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        tiepoint("match", photos / "a.png", photos / "b.png")


@pytest.mark.parametrize("output", ["folder", "all.npz", "all.h5"])
def test_extract_leaves_out_bad_images_and_says_so(tiepoint, photos: Path, tmp_path: Path, output: str) -> None:
    ran = tiepoint("extract", photos, "-f", "sift", "-k", 100, "-o", tmp_path / output, "--json")
    assert ran.code == 3
    assert "broken.jpg" in ran.err and "1 of 4 images" in ran.err
    told = json.loads(ran.out)
    assert set(told["keypoints"]) == {"a.png", "b.png", "blank.png"} and set(told["failed"]) == {"broken.jpg"}
    expected = tp.features.load("sift", max_keypoints=100)(photos / "b.png")

    if output == "folder":
        with np.load(tmp_path / output / "b.png.npz") as file:
            found = {key: file[key] for key in file}
        assert len(list((tmp_path / output).iterdir())) == 3
    elif output == "all.npz":
        with np.load(tmp_path / output) as file:
            found = {key.removeprefix("b.png/"): file[key] for key in file if key.startswith("b.png/")}
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(tmp_path / output) as file:
            found = {key: file["b.png"][key][()] for key in file["b.png"]}
        found["descriptors"] = found["descriptors"].T
    for key in ("keypoints", "scores", "descriptors", "scales", "orientations"):
        np.testing.assert_array_equal(found[key], getattr(expected, key).numpy())
    assert found["image_size"].tolist() == [320, 240]
    assert [path.name for path in tmp_path.iterdir()] == [output]


def test_extract_with_a_folder_of_masks(tiepoint, photos: Path, tmp_path: Path) -> None:
    masks, output = tmp_path / "masks", tmp_path / "f.npz"
    masks.mkdir()
    half = np.zeros((240, 320), np.uint8)
    half[:, :160] = 255
    cv2.imwrite(str(masks / "a.png.png"), half)
    argv = ["extract", photos / "a.png", photos / "b.png", "-f", "orb", "-o", output, "--masks", masks]
    ran = tiepoint(*argv)
    assert ran.code == 3 and f"has no mask {masks / 'b.png.png'}" in ran.err
    with np.load(output) as file:
        assert 0 < file["a.png/keypoints"][:, 0].max() <= 159.5 and "b.png/keypoints" not in file


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a place where not even root can write")
def test_where_nothing_can_be_written(tiepoint, photos: Path) -> None:
    for argv in (["match", photos / "a.png", photos / "b.png", *CLASSIC], ["extract", photos / "a.png", "-f", "orb"]):
        for output in ("/proc/m.npz", "/proc/m.h5"):
            ran = tiepoint(*argv, "-o", output)
            assert ran.code == 3 and output in ran.err and "bug" not in ran.err and len(ran.err.splitlines()) == 1
    assert tiepoint("extract", photos / "a.png", "-f", "orb", "-o", "/proc/folder").code == 3


def test_images_are_named_below_their_common_folder(tmp_path: Path) -> None:
    for name in ("x/1.jpg", "x/deep/1.PNG", "y/1.jpg", "x/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list(find_images([tmp_path / "x"])) == ["1.jpg", "deep/1.PNG"]
    assert list(find_images([tmp_path / "x", tmp_path / "y"])) == ["x/1.jpg", "x/deep/1.PNG", "y/1.jpg"]
    assert list(find_images([tmp_path / "y" / "1.jpg"])) == ["1.jpg"]
    assert list(find_images([tmp_path / "x/1.jpg", tmp_path / "y/1.jpg"])) == ["x/1.jpg", "y/1.jpg"]
    assert list(find_images([tmp_path / "x/notes.txt"])) == ["notes.txt"], "what is named outright is tried"


def test_info(tiepoint) -> None:
    told = json.loads(tiepoint("info", "--json").out)
    assert told["tiepoint"] == tp.__version__ and told["cpu"]["threads"] >= 1
    assert "sift" in told["extractors"] and told["packages"]["torch"]
    text = tiepoint("info").out
    assert "extractors" in text and told["cpu"]["model"] in text


def test_weights(tiepoint) -> None:
    rows = {row["name"]: row for row in json.loads(tiepoint("weights", "list", "--json").out)}
    assert set(rows) == set(weights.entries()) and rows["superpoint"]["commercial"] is False
    text = tiepoint("weights", "list").out.splitlines()
    assert len(text) == len(rows) + 1
    here = [name for name, row in rows.items() if row["path"] and row["commercial"]]
    if not here:
        pytest.skip("no weights on this machine")
    assert tiepoint("weights", "path", here[0]).out.strip() == rows[here[0]]["path"]
    ran = tiepoint("weights", "verify", here[0], "--json")
    assert ran.code == 0 and json.loads(ran.out) == {here[0]: rows[here[0]]["path"]}


def test_eval(tiepoint, data_dir: Path, tmp_path: Path) -> None:
    options = ["--data", data_dir / "eval", "--sets", "graf", "--limit", 1, "-k", 300, "-o", tmp_path]
    ran = tiepoint("evaluate", "orb+nearest", *options, "--json")
    assert ran.code == 0 and ran.err == ""
    told = json.loads(ran.out)
    assert told[0]["label"] == "orb+nearest" and told[0]["sets"][0]["set"] == "graf"
    assert (tmp_path / "summary.md").is_file()
    assert "orb+nearest" in tiepoint("evaluate", "orb+nearest", *options).out


def test_bench(tiepoint, photos: Path) -> None:
    argv = ["bench", "orb+nearest", "--images", photos / "a.png", photos / "b.png", "-k", 100, "--repeats", 1]
    told = json.loads(tiepoint(*argv, "--json").out)
    assert told["timings"][0]["label"] == "orb+nearest" and told["timings"][0]["keypoints0"] == 100
    assert "orb+nearest" in tiepoint(*argv).out


def test_help_and_version_do_not_wait_for_torch() -> None:
    code = (
        "import sys; from tiepoint.cli import main; rc = main(['--help']) or main(['match', '--help']) or "
        "main(['--version']); assert 'torch' not in sys.modules; sys.exit(rc)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert f"tiepoint {tp.__version__}" in ran.stdout and "--max-keypoints" in ran.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="OpenMP of other systems prints other things")
@pytest.mark.parametrize("chosen", [None, "active"])
def test_threads_wait_asleep_unless_told_otherwise(chosen: str | None) -> None:
    """What the OpenMP that torch brings says it does, in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "true"} | ({} if chosen is None else {"OMP_WAIT_POLICY": chosen})
    code = "import sys, tiepoint.cli; tiepoint.cli.main(['--version']); import torch"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert ran.returncode == 0
    assert f"OMP_WAIT_POLICY = '{(chosen or 'passive').upper()}'" in ran.stderr


@pytest.mark.skipif(os.name == "nt", reason="SIGINT is sent differently on Windows")
@pytest.mark.parametrize("output", ["folder", "all.npz", "all.h5"])
def test_ctrl_c_is_clean(photos: Path, tmp_path: Path, output: str) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(300):
        (images / f"{i:03}.png").symlink_to(photos / "a.png")
    target = tmp_path / "out" / output
    target.parent.mkdir()
    command = [sys.executable, "-m", "tiepoint", "extract", images, "-f", "sift", "-o", target]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background ignores SIGINT, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not any(target.parent.rglob("*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == "" and err.strip() == "tiepoint: interrupted"
    left = [path for path in target.parent.rglob("*") if path.is_file()]
    if output == "folder":
        assert 0 < len(left) < 300
        for path in left:
            with np.load(path) as file:
                assert len(file["keypoints"]) == len(file["descriptors"])
    else:
        assert left == []


def test_names_that_an_output_cannot_hold(tiepoint, photos: Path, tmp_path: Path) -> None:
    """They are named and left out; the other images are written."""
    folder = tmp_path / "in"
    folder.mkdir()
    good = (photos / "a.png").read_bytes()
    long = "x" * 250 + ".png"
    names = ["fine.png", "[red]x[bold].png", os.fsdecode(b"caf\xe9.png"), long]
    try:
        for name in names:
            (folder / name).write_bytes(good)
    except OSError:
        pytest.skip("this file system has other limits")
    h5py = pytest.importorskip("h5py")
    ran = tiepoint("extract", folder, "-f", "orb", "-o", tmp_path / "f.h5")
    assert ran.code == 3 and "caf" in ran.err and "not valid UTF-8" in ran.err
    with h5py.File(tmp_path / "f.h5") as file:
        assert set(file) == {"fine.png", "[red]x[bold].png", long}
    ran = tiepoint("extract", folder, "-f", "orb", "-o", tmp_path / "out", "--json")
    assert ran.code == 3 and "too long" in ran.err and "bug" not in ran.err
    assert set(json.loads(ran.out)["keypoints"]) == {"fine.png", "[red]x[bold].png", "caf\\udce9.png"}
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_brackets_are_no_markup(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "is_terminal", lambda: True)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # for rich
    monkeypatch.setenv("FORCE_COLOR", "1")
    with console.bar("extracting cairn@[/x]/[red]w") as advance:
        advance(1, 2)
    assert "cairn@[/x]/[red]w" in re.sub(r"\x1b\[[0-9;]*m", "", capfd.readouterr().err)


def test_bands_on_the_command_line(tiepoint, texture, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    five = np.dstack([texture, texture[..., :2]])
    tifffile.imwrite(tmp_path / "a.tif", five, photometric="minisblack", planarconfig="contig")
    argv = ["match", tmp_path / "a.tif", tmp_path / "a.tif", *CLASSIC, "--json"]
    ran = tiepoint(*argv)
    assert ran.code == 3 and "has 5 bands" in ran.err
    assert json.loads(tiepoint(*argv, "--bands", "1,2,3").out)["matches"] > 50
    assert tiepoint(*argv, "--bands", "1,2").code == tiepoint(*argv, "--bands", "0").code == 2
    output = tmp_path / "f.npz"
    assert tiepoint("extract", tmp_path / "a.tif", "-f", "orb", "-o", output).code == 3
    assert tiepoint("extract", tmp_path / "a.tif", "-f", "orb", "-o", output, "--bands", "3,2,1").code == 0


def test_an_output_whose_name_is_no_text(photos: Path, tmp_path: Path) -> None:
    output = os.fsencode(tmp_path) + b"/caf\xe9.npz"
    argv = [sys.executable, "-m", "tiepoint", "match", photos / "a.png", photos / "b.png", *CLASSIC, "-o", output]
    ran = subprocess.run(argv, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert ran.returncode == 0 and b"caf\\udce9.npz" in ran.stdout, ran.stderr
