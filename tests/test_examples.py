"""Each example is run as a user would, on a few small photographs."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from textured_room import CAMERA, Room, look
from two_walls import view

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
HERE_ALREADY = {"demo", "own_extractor"}  # `make demo`; test_own_extractor.py

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run an example in an empty folder and return what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with four views, taken side by side."""
    folder = tmp_path_factory.mktemp("photographs")
    for n in range(4):
        cv2.imwrite(str(folder / f"{n}.png"), view(0.3 * n))
    return folder


def test_every_verb_has_an_example() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    tested = {"extract", "match", "map", "localize", "track", "evaluate"}
    assert names == tested | HERE_ALREADY


def test_match(run: Run, photographs: Path, tmp_path: Path) -> None:
    out = run("match", photographs / "0.png", photographs / "1.png")
    assert "inliers (fundamental)" in out and out.count("->") == 3
    with np.load(tmp_path / "matches.npz") as file:
        assert len(file["points0"]) > 50
    assert (tmp_path / "matches.png").stat().st_size > 10_000


def test_extract(run: Run, photographs: Path, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    (tmp_path / "photographs").symlink_to(photographs)
    out = run("extract", "photographs")
    assert "sift keypoints in 4 images" in out and "128" in out
    with h5py.File(tmp_path / "features.h5") as file:
        assert len(file) == 4


def test_map_and_localize(run: Run, photographs: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    out = run("map", photographs)
    assert all(f"{n}.png [" in out for n in range(4))
    query = tmp_path / "query.png"
    cv2.imwrite(str(query), view(0.45))
    found = run("localize", "scene", query)
    assert str(query) in found and "not found" not in found
    (result,) = json.loads((tmp_path / "poses.json").read_text())["localizations"]
    assert result["found"]


def test_track(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    room = Room()
    frames = tmp_path / "frames"
    frames.mkdir()
    for n in range(8):
        picture = room.photograph(look((0.12 * n - 0.5, 0.0, 0.0)), CAMERA)
        cv2.imwrite(str(frames / f"{n}.png"), picture[..., ::-1])
    out = run("track", frames)
    assert out.count("tracked") > 3 and "8 frames have a pose" in out
    assert len(np.loadtxt(tmp_path / "path.txt")) > 3


def test_evaluate(run: Run, data_dir: Path) -> None:
    out = run("evaluate", data_dir / "eval" / "graf")
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines] == ["orb+nearest", "sift+nearest"]
    assert all(float(line[-1]) > 0.3 for line in lines)
