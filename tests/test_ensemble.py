"""Several extractors as one: blocks of keypoints, the union of matches, and everywhere that a name is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import tiepoint as tp
from tiepoint import pipeline
from tiepoint.errors import ArgumentError
from tiepoint.features.ensemble import part
from tiepoint.mapping.steps.extract import extract_into
from tiepoint.mapping.steps.images import new_images
from tiepoint.mapping.steps.match import match_into
from tiepoint.mapping.store import Store
from tiepoint.matchers.ensemble import RADIUS

MEMBERS = ("cairn", "sift")


@pytest.fixture(scope="module")
def both() -> pipeline.Pipeline:
    return pipeline.load("cairn+sift", options=tp.features.ExtractorOptions(max_keypoints=300))


@pytest.fixture(scope="module")
def alone() -> list[pipeline.Pipeline]:
    return [pipeline.load(name, options=tp.features.ExtractorOptions(max_keypoints=300)) for name in MEMBERS]


@pytest.fixture(scope="module")
def pictures(texture: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return texture, texture[12:, 20:]


def test_choice_and_name(both: pipeline.Pipeline) -> None:
    assert both.extractor.name == "cairn+sift" and both.matcher.name == "lightglue"
    assert pipeline.choose("sift+keynet")[:2] == ("sift+keynet", "lightglue+nearest")
    assert pipeline.choose("cairn+sift", "nearest")[:2] == ("cairn+sift", "nearest")
    other = pipeline.another(both.extractor)
    assert other is None or other()[0].name not in MEMBERS


def test_each_member_finds_what_it_finds_alone(
    both: pipeline.Pipeline, alone: list[pipeline.Pipeline], texture: NDArray[np.uint8]
) -> None:
    mask = np.full(texture.shape[:2], 255, np.uint8)
    mask[:100] = 0
    features = both.extractor(texture, mask)
    first = 0
    for k, one in enumerate(alone):
        expected = one.extractor(texture, mask)
        found, rows = part(features, MEMBERS, k, expected.descriptors.shape[1])
        assert rows.tolist() == list(range(first, first + len(expected)))
        first += len(expected)
        for name in ("keypoints", "scores", "descriptors", "scales", "orientations"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=0)
        assert found.extractor == expected.extractor
    assert first == len(features) > 300
    torch.testing.assert_close(features.descriptors.norm(dim=1), torch.ones(first))


def test_every_keypoint_says_how_precise_it_is(
    both: pipeline.Pipeline, alone: list[pipeline.Pipeline], pictures: tuple[NDArray[np.uint8], NDArray[np.uint8]]
) -> None:
    """Cairn's covariances stay; SIFT predicts none and gets its own size; and so the fit weights the matches."""
    features = both.extractor(pictures[0])
    expected = alone[0].extractor(pictures[0]).covariances
    assert features.covariances is not None and expected is not None
    torch.testing.assert_close(part(features, MEMBERS, 0)[0].covariances, expected, rtol=0, atol=0)
    stated = part(features, MEMBERS, 1)[0].covariances
    assert stated is not None
    torch.testing.assert_close(stated, (alone[1].extractor.deviation ** 2 * torch.eye(2)).expand_as(stated))
    matches = both.matcher(features, both.extractor(pictures[1]))
    assert matches.covariances is not None and len(matches.covariances[0]) == len(matches)


def test_covariances_are_in_pixels_of_the_photograph(pictures: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    """Extracted at half the size, a keypoint is twice as imprecise in the photograph."""
    sift = tp.features.load("sift", long_side=160)
    covariances = sift.with_covariances(sift(pictures[0])).covariances
    assert covariances is not None
    torch.testing.assert_close(covariances[0], (2 * sift.deviation) ** 2 * torch.eye(2))


def test_union_of_matches(
    both: pipeline.Pipeline, alone: list[pipeline.Pipeline], pictures: tuple[NDArray[np.uint8], NDArray[np.uint8]]
) -> None:
    """Against a plain loop over what each finds alone."""
    found = both.matcher(*map(both.extractor, pictures))
    first, second = (one.matcher(*map(one.extractor, pictures)) for one in alone)
    radii = [RADIUS * max(p.shape[:2]) for p in pictures]

    def same(i: int, j: int) -> bool:
        away = [
            np.abs(p[i] - q[j]).max() for p, q in ((first.points0, second.points0), (first.points1, second.points1))
        ]
        return away[0] <= radii[0] and away[1] <= radii[1]

    stay1 = {
        j
        for j in range(len(second))
        if all(second.scores[j] > first.scores[i] for i in range(len(first)) if same(i, j))
    }
    stay0 = {i for i in range(len(first)) if not any(same(i, j) for j in stay1)}
    expected = {(*first.points0[i], *first.points1[i], first.scores[i]) for i in stay0}
    expected |= {(*second.points0[j], *second.points1[j], second.scores[j]) for j in stay1}
    assert {(*found.points0[i], *found.points1[i], found.scores[i]) for i in range(len(found))} == expected
    assert max(len(first), len(second)) < len(found) < len(first) + len(second), "some were found by both"
    assert (np.diff(found.indices[:, 0]) > 0).all() and len(np.unique(found.indices[:, 1])) == len(found)


def test_order_and_number_of_pairs_change_nothing(
    both: pipeline.Pipeline, pictures: tuple[NDArray[np.uint8], NDArray[np.uint8]]
) -> None:
    a, b = map(both.extractor, pictures)
    forth, back = both.matcher(a, b), both.matcher(b, a).swapped()
    many = both.matcher.match_many([(b, b), (a, b), (a.select(torch.arange(0)), b)])
    assert len(forth) > 100 and len(many[2]) == 0
    for other in (back, many[1]):
        np.testing.assert_array_equal(other.indices, forth.indices)
        np.testing.assert_allclose(other.scores, forth.scores, atol=1e-5)
    np.testing.assert_array_equal(back.scores, forth.scores)


def test_verdict(both: pipeline.Pipeline, pictures: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    thresholds = [pipeline.load(name).matcher.overlap_threshold for name in MEMBERS]
    assert None not in thresholds
    assert both.matcher.overlap_threshold == pytest.approx(sum(thresholds))  # type: ignore[arg-type]
    noise = np.random.default_rng(0).integers(0, 256, (240, 320), dtype=np.uint8)
    related, unrelated = map(both.extractor, pictures), (both.extractor(pictures[0]), both.extractor(noise))
    assert both.matcher(*related).overlaps is True
    assert both.matcher(*unrelated).overlaps is False


@pytest.mark.parametrize(("scene", "second"), [("lund", 2), ("sceaux", 1)])
def test_at_least_the_inliers_of_each_alone(data_dir: Path, scene: str, second: int) -> None:
    photographs = sorted(
        path for path in (data_dir / "demo" / scene).rglob("*") if path.suffix.lower() in (".jpg", ".png")
    )
    pair = photographs[0], photographs[second]
    inliers = {}
    for name in (*MEMBERS, "cairn+sift"):
        found = tp.match(*pair, name, max_keypoints=400, long_side=640, effort="fast", geometry="fundamental")
        assert found.inliers is not None
        inliers[name] = int(found.inliers.sum())
    assert inliers["cairn+sift"] >= max(inliers["cairn"], inliers["sift"]) > 30, inliers


def test_auto_matches_all_keypoints_of_an_ensemble(data_dir: Path) -> None:
    """The first 512 would be those of the first extractor, and a few of the second."""
    photographs = sorted((data_dir / "demo" / "lund" / "images").glob("*.jpg"))[:3:2]
    options: Any = {"max_keypoints": 400, "long_side": 640, "geometry": "fundamental"}
    auto, fast = (tp.match(*photographs, "cairn+sift", effort=effort, **options) for effort in ("auto", "fast"))
    assert "best keypoints" not in [attempt.name for attempt in auto.attempts]
    assert auto.inliers is not None and fast.inliers is not None
    assert auto.inliers.sum() >= fast.inliers.sum() > 30


def test_blocks_survive_the_store(both: pipeline.Pipeline, images: Path, tmp_path: Path) -> None:
    """One set of keypoints an image, whatever found them, and matches that index it."""
    with Store.open(tmp_path / "a.db") as store:
        store.add_images(new_images(images)[0])
        extract_into(store, images, both.extractor)
        ids = sorted(image.image_id for image in store.images())[:2]
        match_into(store, [ids], both.matcher, verify=False)
        stored = [store.features(i) for i in ids]
        expected = both.matcher(*stored)
        matches = store.matches(*ids)
        paths = [images / image.name for i in ids for image in store.images() if image.image_id == i]
    assert matches is not None and len(matches.indices) > 50
    np.testing.assert_array_equal(matches.indices, expected.indices)
    for features, path in zip(stored, paths, strict=True):
        fresh = both.extractor(path)
        assert features.extractor == "cairn+sift"
        torch.testing.assert_close(features.keypoints, fresh.keypoints)
        for k in range(2):
            assert torch.equal(part(features, MEMBERS, k)[1], part(fresh, MEMBERS, k)[1])


def test_effort(pictures: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    """Warped views are extracted by all members, and another extractor is one that is not among them."""
    found = tp.match(*pictures, "cairn+sift", max_keypoints=300, effort="thorough")
    shift = found.points0 - found.points1
    assert np.mean(np.abs(shift - [20, 12]).max(axis=1) < 2) > 0.95
    assert {"all keypoints", "second pass", "synthetic views"} <= {attempt.name for attempt in found.attempts}


def test_what_does_not_go_together(texture: NDArray[np.uint8]) -> None:
    with pytest.raises(ArgumentError, match=r"different extractors, not of sift\+sift"):
        tp.features.load("sift+sift")
    with pytest.raises(ArgumentError, match="binary"):
        tp.features.load("sift+orb")(texture)
    with pytest.raises(ArgumentError, match="no common unit"):
        tp.features.load("cairn+sift", detection_threshold=0.1)
    with pytest.raises(ArgumentError, match=r"no extractor is called 'sift[+]shift'"):
        tp.features.load("sift+shift")
    with pytest.raises(ArgumentError, match="needs 2 matchers"):
        tp.matchers.load("lightglue@a.safetensors", features="cairn+sift")
    with pytest.raises(ArgumentError, match=r"set up for 'cairn[+]sift' features, not 'sift'"):
        sift = tp.features.load("sift", max_keypoints=10)(texture)
        tp.matchers.load("nearest", features="cairn+sift")(sift, sift)
