"""What tiepoint promises, on the photographs of ``tests/data``, so that it is tested on every machine.

The bundled weights were trained on these photographs among others: the tests show that the whole path works, not how
accurate it is on photographs that it has not seen (see ``benchmarks/README.md``).
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

import tiepoint as tp
from tiepoint.evaluation import EvalPair, HomographyTruth, load_pairs

KEYPOINTS = 512
PAIRS_PER_SET = 8


@dataclass
class Pipeline:
    """Features of each photograph and matches of each pair once, with early exit and without."""

    name: str
    data: Path

    def __post_init__(self) -> None:
        self.features = cache(tp.features.load(self.name, max_keypoints=KEYPOINTS))
        self.matcher, self.full_depth = (
            tp.matchers.load("lightglue", features=self.name, adaptive=adaptive) for adaptive in (True, False)
        )
        self.match = cache(self._match)

    def _match(self, image0: Path, image1: Path, full_depth: bool = False) -> tp.Matches:
        matcher = self.full_depth if full_depth else self.matcher
        return matcher(self.features(image0), self.features(image1))


@pytest.fixture(scope="module", params=["cairn", "sift"])
def pipeline(request: pytest.FixtureRequest, small_pairs: Path) -> Pipeline:
    return Pipeline(request.param, small_pairs)


def pairs_of(data: Path, name: str) -> list[EvalPair]:
    return load_pairs(data, [name], limit=PAIRS_PER_SET)


def right(pair: EvalPair, matches: tp.Matches) -> NDArray[np.bool_]:
    assert isinstance(pair.truth, HomographyTruth)
    return np.asarray(tp.geometry.reprojection_error(pair.truth.H, matches.points0, matches.points1) < 3)


@pytest.mark.parametrize("kind", ["viewpoint", "roll"])
def test_matches_are_right(pipeline: Pipeline, kind: str) -> None:
    shares = []
    for pair in pairs_of(pipeline.data, kind):
        found = pipeline.match(pair.image0.path, pair.image1.path)
        correct = right(pair, found)
        assert found.overlaps and correct.sum() >= 50, pair.name
        shares.append(correct.mean())
    assert min(shares) > 0.7 and np.mean(shares) > 0.9


def test_unrelated_photographs_do_not_overlap(pipeline: Pipeline) -> None:
    """At most 5 % of unrelated pairs may pass the calibrated threshold; more than 4 of these 21 would refute that."""
    lines = (pipeline.data / "unrelated.txt").read_text().splitlines()
    unrelated = [pipeline.match(*(pipeline.data / name for name in line.split())) for line in lines]
    allowed = int(stats.binom.ppf(0.99, len(unrelated), 0.05))
    assert len(unrelated) == 21 and sum(bool(found.overlaps) for found in unrelated) <= allowed
    related = [pipeline.match(p.image0.path, p.image1.path) for p in pairs_of(pipeline.data, "viewpoint")]
    assert min(found.evidence for found in related) > 5 * max(found.evidence for found in unrelated)


@pytest.mark.parametrize("pipeline", ["cairn"], indirect=True)  # SIFT's matcher needs all its layers on these pairs
def test_early_exit_keeps_its_promise(pipeline: Pipeline) -> None:
    """The bundled weights promise 95 % of the right matches of the full model, in the mean over pairs."""
    kept, saved = [], []
    for pair in pairs_of(pipeline.data, "viewpoint") + pairs_of(pipeline.data, "roll"):
        images = pair.image0.path, pair.image1.path
        full, early = pipeline.match(*images, full_depth=True), pipeline.match(*images)
        truth = {tuple(row) for row in full.indices[right(pair, full)].tolist()}
        found = {tuple(row) for row in early.indices[right(pair, early)].tolist()}
        kept.append(len(truth & found) / len(truth))
        saved.append(early.stop_layer < full.stop_layer or bool((early.prune_layer0 < early.stop_layer).any()))
    assert np.mean(kept) >= 0.95
    assert any(saved), "no pair stopped early and no point was dropped, so nothing was tested"


def test_default_call_finds_the_homography(small_pairs: Path) -> None:
    for pair in pairs_of(small_pairs, "viewpoint")[:3]:
        result = tp.match(pair.image0.path, pair.image1.path, max_keypoints=KEYPOINTS, geometry="homography")
        assert result.choice.startswith("cairn + lightglue")
        width, height = pair.image0.read().size
        corners = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], float)
        assert isinstance(pair.truth, HomographyTruth) and result.geometry is not None
        expected, got = (transform(H, corners) for H in (pair.truth.H, result.geometry.model))
        assert np.abs(expected - got).max() < 3


def transform(H: NDArray[Any], points: NDArray[Any]) -> NDArray[Any]:
    x = np.column_stack([points, np.ones(len(points))]) @ np.asarray(H).T
    return np.asarray(x[:, :2] / x[:, 2:])


@pytest.mark.slow
def test_eight_drone_photographs_make_a_map(small_pairs: Path, tiepoint: Any, tmp_path: Path) -> None:
    """All eight are placed, and the cameras fly: one height, looking down, as the pilot flew."""
    pytest.importorskip("pycolmap")
    options = ("--features", "sift", "--matcher", "nearest", "-k", "4096", "--focal", "361", "--pairs", "exhaustive")
    ran = tiepoint("map", small_pairs / "views", "-o", tmp_path / "scene", *options, "--workers", "0")
    assert ran.code == 0, ran.err
    quality = json.loads((tmp_path / "scene" / "quality.json").read_text())
    (model,) = quality["models"]
    assert model["registered"] == 8 and model["error"] < 1
    points = np.loadtxt(tmp_path / "scene" / "trajectory.txt", usecols=range(1, 4))
    heights = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    assert len(points) == 8 and heights[2] < 0.1 * heights[0]


def test_every_photograph_has_its_licence(small_pairs: Path) -> None:
    with (small_pairs / "LICENCES.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["licence"] for row in rows} == {"CC0-1.0"}
    for image in small_pairs.rglob("*.webp"):
        name = image.relative_to(small_pairs).as_posix()
        listed = [row for row in rows if Path(name).match(row["files"])]
        assert len(listed) == 1, name
    assert sum(file.stat().st_size for file in small_pairs.rglob("*")) < 5e6
