"""Guided matching of thin pairs, in a room whose true points are known: a model that fell apart comes together."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest

import tiepoint as tp
from textured_room import Room, look, true_errors
from tiepoint.mapping import NewImage, Store
from tiepoint.mapping.steps.reconstruct import reconstruct
from tiepoint.mapping.steps.thicken import thicken, torn_apart
from tiepoint.mapping.steps.verify import LEAST_INLIERS, verify

pycolmap = pytest.importorskip("pycolmap")

POSES = [look((x, 0.1 * x, -1.5 + 0.3 * abs(x)), -0.12 * x, 0.02) for x in np.linspace(-1.2, 1.2, 6)]
THIN = 25  # matches of the only pair between two halves: fewer than COLMAP's mapper takes for a new image


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """A folder: photographs and the database of two times three of them, with one thin pair between."""
    room, sift, nearest = Room(), tp.features.load("sift", max_keypoints=1500), tp.matchers.load("nearest")
    camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=320, height=240, params=[260, 160, 120])
    camera.has_prior_focal_length = True
    with Store.open(tmp_path / "database.db") as store:
        features = []
        for number, pose in enumerate(POSES, start=1):
            cv2.imwrite(str(tmp_path / f"{number}.png"), room.photograph(pose)[..., ::-1])
            features.append(sift(tmp_path / f"{number}.png"))
        store.add_images([NewImage(f"{number}.png", camera, "one") for number in range(1, 7)])
        store.write_features(enumerate(features, start=1))
        for i, j in combinations(range(6), 2):
            matches = nearest(features[i], features[j])
            if (i < 3) != (j < 3):
                right = true_errors(POSES[i], POSES[j], matches.points0, matches.points1) < 1
                matches = matches[np.flatnonzero(right)[:: right.sum() // THIN][:THIN]] if j == i + 1 else matches[:0]
            store.write_matches([verify(i + 1, j + 1, camera, camera, matches)])
    return tmp_path


def test_a_thin_pair_gets_many_right_matches(halves: Path) -> None:
    with Store.open(halves / "database.db") as store:
        before = store.verified_pairs()
        assert LEAST_INLIERS <= before[3, 4] <= THIN
        gained = thicken(store, [3, 4])
        after = store.verified_pairs()
        assert {pair: n for pair, n in after.items() if pair != (3, 4)} == {
            p: n for p, n in before.items() if p != (3, 4)
        }
        assert gained == after[3, 4] - before[3, 4] > 4 * THIN
        geometry = store.geometry(3, 4)
        assert geometry is not None
        points = [store.features(i).keypoints.numpy()[geometry.matches[:, side]] for side, i in enumerate((3, 4))]
        assert (true_errors(POSES[2], POSES[3], *points) < 2).mean() > 0.95
        assert all(len(np.unique(column)) == len(column) for column in geometry.matches.T)


def test_a_model_that_fell_apart_comes_together(halves: Path, tmp_path: Path) -> None:
    """With a second pass all six photographs are in one model, where they were taken; without, three are left out."""
    torn = reconstruct(halves / "database.db", halves, tmp_path / "torn", threads=1)
    assert torn.models[0].num_reg_images() == 3
    with Store.open(halves / "database.db") as store:
        assert torn_apart(torn.models[0].reg_image_ids(), store.verified_pairs()) == set(range(1, 7))
    whole = reconstruct(halves / "database.db", halves, tmp_path / "whole", second_pass=True, threads=1)
    assert [model.num_reg_images() for model in whole.models] == [6]
    assert str(whole.assessments[0]) == "good"
    true = [-pose[0].T @ pose[1] for pose in POSES]
    found = {image.image_id: image.projection_center() for image in whole.models[0].images.values()}
    steps, truth = (
        np.linalg.norm(np.diff(centres, axis=0), axis=1) for centres in ([found[i] for i in range(1, 7)], true)
    )
    assert steps / steps.sum() == pytest.approx(truth / truth.sum(), rel=0.03)
