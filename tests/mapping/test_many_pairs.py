"""Many pairs matched into one file, by a list or all of a folder; interrupted, incomplete, and read by others."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import PIL.Image
import pytest

import tiepoint as tp
from textured_room import Room, look
from tiepoint.errors import ArgumentError, InputError
from tiepoint.mapping.progress import Progress

pytest.importorskip("pycolmap")

NAMES = ["a.png", "b.png", "sub/c.png", "d.png"]
SIFT: dict[str, Any] = {"features": "sift", "matcher": "nearest", "max_keypoints": 500}
OPTIONS = ["-f", "sift", "-m", "nearest", "-k", "500"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, room = tmp_path_factory.mktemp("photographs"), Room()
    (folder / "sub").mkdir()
    for number, name in enumerate(NAMES):
        pose = look((0.3 * number - 0.5, 0.0, -1.0), -0.05 * number)
        PIL.Image.fromarray(room.photograph(pose)).save(folder / name)
    return folder


def matches_in(path: Path) -> dict[tuple[str, str], np.ndarray]:
    """Return what a reader of hloc's files finds: names, with "/" as "-" -> rows (K, 2)."""
    found = {}
    with h5py.File(path) as file:
        for a, group in file.items():
            for b in [key for key in group if isinstance(group[key], h5py.Group) and "matches0" in group[key]]:
                partner = group[b]["matches0"][()]
                rows = np.flatnonzero(partner >= 0)
                found[a, b] = np.column_stack([rows, partner[rows]])
                scores = group[b]["matching_scores0"][()]
                assert (scores[rows] > 0).all() and (np.delete(scores, rows) == 0).all()
    return found


def test_all_pairs_of_a_folder_as_one_by_one(photographs: Path, tmp_path: Path) -> None:
    steps: list[Progress] = []
    done = tp.match_pairs(photographs, tmp_path / "matches.h5", **SIFT, report=steps.append)
    assert (done.photographs, done.pairs, done.already, done.failed) == (4, 6, 0, ())
    found = matches_in(done.output)
    pairs = {frozenset(name.replace("/", "-") for name in pair) for pair in combinations(NAMES, 2)}
    assert {frozenset(pair) for pair in found} == pairs
    assert done.matches == sum(map(len, found.values()))
    for (a, b), rows in found.items():
        names = [next(name for name in NAMES if name.replace("/", "-") == key) for key in (a, b)]
        alone = tp.match(*(photographs / name for name in names), **SIFT, effort="fast")
        assert len(rows) > 50
        with h5py.File(done.output) as file:
            points = [file[name]["keypoints"][()][rows[:, side]] for side, name in enumerate(names)]
        np.testing.assert_allclose(points[0], alone.matches.points0, atol=1e-3)
        np.testing.assert_allclose(points[1], alone.matches.points1, atol=1e-3)
    assert [step.done for step in steps if step.step == "matching"][-1] == 6
    assert [path.name for path in tmp_path.iterdir()] == ["matches.h5"]


def test_a_list_with_what_cannot_be_matched(photographs: Path, tmp_path: Path, tiepoint: Any) -> None:
    """A row for each, exit code 3, and all others are in the file."""
    listed, broken = tmp_path / "pairs.txt", photographs / "broken.png"
    listed.write_text("a.png b.png 0.9\nb.png a.png\n\na.png gone.png\nd.png broken.png\nsub/c.png d.png\n")
    broken.write_bytes(b"\x89PNG no picture")
    try:
        arguments = ["match", photographs, "--pairs", listed, "-o", tmp_path / "matches.h5", *OPTIONS]
        ran = tiepoint(*arguments)
        told = tiepoint(*arguments, "--json")
    finally:
        broken.unlink()
    assert ran.code == told.code == 3
    rows = [line.split("\t") for line in ran.out.splitlines()]
    assert ["not matched", "why"] in rows
    assert any(row[0] == "line 4" and "gone.png" in row[1] for row in rows)
    assert any(set(row[0].split()) == {"d.png", "broken.png"} and "broken.png" in row[1] for row in rows)
    summary = json.loads(told.out)
    assert (summary["pairs"], summary["photographs"], len(summary["failed"])) == (2, 4, 2)
    found = {frozenset(pair) for pair in matches_in(tmp_path / "matches.h5")}
    assert found == {frozenset(("a.png", "b.png")), frozenset(("sub-c.png", "d.png"))}


def test_an_interrupted_run_resumes(photographs: Path, tmp_path: Path) -> None:
    """What is done is not done again, unless it was with other options."""
    whole = matches_in(tp.match_pairs(photographs, tmp_path / "whole.h5", **SIFT).output)
    output = tmp_path / "matches.h5"
    (tmp_path / "few.txt").write_text("a.png b.png\na.png sub/c.png\n")

    def stop(progress: Progress) -> None:
        if progress.step == "matching" and progress.done:
            raise KeyboardInterrupt

    for other, extracted_before in (({"max_keypoints": 400}, 0), ({}, 3)):
        with pytest.raises(KeyboardInterrupt):
            tp.match_pairs(tmp_path / "few.txt", output, photographs, **SIFT, report=stop)
        assert (tmp_path / ".matches.h5.unfinished").is_dir()
        steps: list[Progress] = []
        tp.match_pairs(photographs, output, **{**SIFT, **other}, report=steps.append)
        assert (steps[0].step, steps[0].done) == ("extracting sift", extracted_before)
    found = matches_in(output)
    assert found.keys() == whole.keys() and all((found[pair] == whole[pair]).all() for pair in whole)
    assert not list(tmp_path.glob(".*"))


def test_the_file_goes_into_a_store(photographs: Path, tmp_path: Path, tiepoint: Any) -> None:
    output = tp.match_pairs(photographs, tmp_path / "matches.h5", **SIFT).output
    files = ["--features", output, "--matches", output, "--extractor", "sift"]
    ran = tiepoint("db", "import", tmp_path / "database.db", "--images", photographs, *files)
    assert ran.code == 0, ran.err
    with tp.mapping.Store.open(tmp_path / "database.db") as store:
        assert len(store.matched_pair_ids()) == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--effort", "auto"], "effort"), (["--geometry", "homography"], "geometry"), (["-o", "more.h5"], "one output")],
)
def test_what_has_no_meaning_for_many_is_refused(
    photographs: Path, tmp_path: Path, tiepoint: Any, options: list[str], words: str
) -> None:
    ran = tiepoint("match", "--pairs", photographs, "-o", tmp_path / "matches.h5", *OPTIONS, *options)
    assert ran.code == 2 and words in ran.err
    assert not list(tmp_path.iterdir())


def test_inputs_that_cannot_work(photographs: Path, tmp_path: Path, tiepoint: Any) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "pairs.txt").write_text("x.png y.png\n")
    with pytest.raises(InputError, match="a pair needs two"):
        tp.match_pairs(tmp_path / "one", tmp_path / "m.h5", **SIFT)
    with pytest.raises(InputError, match="none of its 1 lines"):
        tp.match_pairs(tmp_path / "pairs.txt", tmp_path / "m.h5", photographs, **SIFT)
    with pytest.raises(ArgumentError, match=r"\.h5"):
        tp.match_pairs(photographs, tmp_path / "m.npz", **SIFT)
    with pytest.raises(ArgumentError, match="has no meaning"):
        tp.match_pairs(photographs, tmp_path / "m.h5", photographs, **SIFT)
    assert tiepoint("match", photographs / "a.png").code == 2
