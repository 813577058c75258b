"""Effort in maps: which pairs are tried, where their matches go, and that nothing is joined that is not the same."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import tiepoint as tp
from sift_once import SIFTOnce
from tiepoint import effort
from tiepoint.errors import ArgumentError
from tiepoint.features import ExtractorOptions
from tiepoint.mapping.progress import Progress
from tiepoint.mapping.steps.effort import SNAP, hopeful_pairs, snapped, try_harder
from tiepoint.mapping.steps.extract import extract_into
from tiepoint.mapping.steps.images import new_images
from tiepoint.mapping.steps.match import match_into
from tiepoint.mapping.store import PairResult, Store
from tiepoint.types import Matches

TILT = np.array([[0.3, 0.05, 10], [-0.02, 0.95, 8], [0, 0, 1.0]])  # more than one pass with SIFT bears


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, texture: NDArray[np.uint8]) -> Path:
    """A picture, the same tilted, and something else."""
    folder = tmp_path_factory.mktemp("photographs")
    large = np.asarray(cv2.resize(texture, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC), np.uint8)
    fine = cv2.warpPerspective(large, np.diag([4, 1, 1]) @ TILT, (4 * 220, 480), borderMode=cv2.BORDER_REFLECT)
    tilted = cv2.resize(fine, (220, 480), interpolation=cv2.INTER_AREA)
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    other = cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC)
    for name, pixels in (("a", large), ("b", tilted), ("c", other)):
        cv2.imwrite(str(folder / f"{name}.png"), pixels[..., ::-1])
    return folder


@pytest.fixture
def pipeline() -> tuple[Any, Any]:
    return SIFTOnce(ExtractorOptions(max_keypoints=1500)), tp.matchers.load("lightglue", features="sift")


def test_a_hard_pair_is_solved_on_the_keypoints_that_are_there(
    folder: Path, tmp_path: Path, pipeline: tuple[Any, Any]
) -> None:
    seen: list[Progress] = []
    with Store.open(tmp_path / "a.db") as store:
        ids = store.add_images(new_images(folder)[0])
        a, b, c = (ids[f"{name}.png"] for name in "abc")
        extract_into(store, folder, pipeline[0])
        keypoints = store.features(b).keypoints
        match_into(store, [(a, b), (a, c), (b, c)], pipeline[1])
        before = store.verified_pairs().get((a, b), 0)
        nothing = try_harder(store, folder, *pipeline, "fast")
        assert (nothing.tried, nothing.solved) == (0, 0)
        if before:  # the pair is to be hard, whatever the weights
            matches = store.matches(a, b)
            assert matches is not None
            none = np.zeros(len(matches.indices), bool)
            store.write_matches([PairResult(a, b, matches.indices, matches.scores, True, none, "DEGENERATE")])
        tried = try_harder(store, folder, *pipeline, "thorough", report=seen.append)
        assert (tried.tried, tried.solved) == (3, 1)
        assert list(store.verified_pairs()) == [(a, b)]
        assert (store.features(b).keypoints == keypoints).all()
        geometry = store.geometry(a, b)
        assert geometry is not None
        points = [store.features(i).keypoints.numpy()[geometry.matches[:, k]] for k, i in enumerate((a, b))]
    errors = tp.geometry.reprojection_error(TILT, *points)
    assert len(errors) >= 30 and np.mean(errors < 4) > 0.9
    assert seen[-1].step == "trying harder" and seen[-1].done == seen[-1].total == 3


def test_which_pairs_are_tried(tmp_path: Path, folder: Path) -> None:
    """Two groups of four and a single image; pairs with more evidence first."""
    with Store.open(tmp_path / "a.db") as store:
        new = new_images(folder)[0][0]
        ids = list(store.add_images([type(new)(f"{n}.png", new.camera, "one") for n in range(9)]).values())
        sift = tp.features.load("sift", max_keypoints=40)
        features = sift(folder / "a.png")
        store.write_features((i, features) for i in ids)
        groups = [ids[:4], ids[4:8]]
        rows = np.arange(40)[:, None].repeat(2, axis=1)

        def result(a: int, b: int, score: float, verified: bool) -> PairResult:
            inliers = np.full(40, verified)
            return PairResult(a, b, rows, np.full(40, score), True, inliers, "CALIBRATED" if verified else "DEGENERATE")

        inside = [(g[i], g[j]) for g in groups for i in range(4) for j in range(i)]
        across = [(a, b) for a in groups[0] for b in groups[1]]
        alone = [(a, ids[8]) for a in ids[:8]]
        store.write_matches([result(a, b, 0.5, True) for a, b in inside])
        store.write_matches([result(a, b, 0.01 * (k + 1), False) for k, (a, b) in enumerate(across)])
        store.write_matches([result(a, b, 0.3 + 0.01 * k, False) for k, (a, b) in enumerate(alone)])
        expected = [tuple(sorted(pair)) for pair in (*alone[:-4:-1], *across[:-4:-1])]
        assert hopeful_pairs(store) == expected


def test_matches_are_snapped(folder: Path, pipeline: tuple[Any, Any]) -> None:
    images = tp.read_image(folder / "a.png"), tp.read_image(folder / "b.png")
    state = effort.climb(effort.State.begin(images, *pipeline), "thorough")
    found = snapped(state)
    assert 10 < len(found) <= len(state.matches)
    for side, points in enumerate((found.points0, found.points1)):
        index = found.indices[:, side]
        assert len(set(index)) == len(index) and index.max() < state.detected[side]
        np.testing.assert_array_equal(state.own(side).keypoints.numpy()[index], points)
    both = np.hstack([found.points0, found.points1])
    before = np.hstack([state.matches.points0, state.matches.points1])
    away = np.abs(both[:, None] - before).max(axis=2).min(axis=1)
    assert away.max() <= SNAP
    plain = effort.all_keypoints(effort.State.begin(images, *pipeline))
    np.testing.assert_array_equal(snapped(plain).indices, plain.matches.indices)
    assert isinstance(found, Matches) and found.overlaps == state.matches.overlaps


def test_no_image_is_lost(data_dir: Path, tmp_path: Path) -> None:
    """Every third photograph of a castle, small, with few keypoints: first in one pass, then with effort."""
    photographs = sorted((data_dir / "demo" / "sceaux" / "images").iterdir())[::3]
    (tmp_path / "photographs").mkdir()
    for path in photographs:
        (tmp_path / "photographs" / path.name).symlink_to(path)
    registered, notes = [], []
    for level in ("fast", "auto"):
        made = tp.map(
            tmp_path / "photographs", tmp_path / "map", features="sift", max_keypoints=600, long_side=640, effort=level
        )
        registered.append(sum(quality.registered for quality in made.scene.qualities))
        notes.append(" ".join(made.notes))
        shown = made._repr_html_()  # in a notebook
        for quality, assessment in zip(made.scene.qualities, made.scene.assessments, strict=True):
            row = f"<tr><td>{quality.registered} of {quality.total}</td><td>{quality.points}</td>"
            assert row in shown and html.escape(str(assessment)) in shown
        assert shown.count("<tr>") == 1 + len(made.scene.qualities) and html.escape(made.next_step) in shown
    assert registered[1] >= registered[0] >= 2
    assert "effort auto: " in notes[1] and "effort" not in notes[0]
    with pytest.raises(ArgumentError, match="no effort is called 'heroic'"):
        tp.map(tmp_path / "photographs", tmp_path / "map", effort="heroic")
