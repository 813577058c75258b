"""Repeated objects: candidates against brute force, copies of made-up and of real objects, and what is left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import tiepoint as tp
from tiepoint import Features, Matches
from tiepoint.errors import ArgumentError
from tiepoint.geometry import Camera, reprojection_error, transform
from tiepoint.groups import find_groups
from tiepoint.matchers.base import make_matches
from tiepoint.matchers.nearest import candidates

SIZE = (800, 600)
CORNERS = np.array([[0, 0], [200, 0], [200, 200], [0, 200]], float)


def features(points: NDArray[Any], names: NDArray[np.int64], rng: np.random.Generator, noise: float = 0.02) -> Features:
    """Return keypoints whose descriptors are those of the points of these names, and some noise."""
    known = np.random.default_rng(5).normal(size=(2000, 64))
    rows = known[names] + noise * rng.normal(size=(len(names), 64))
    descriptors = torch.nn.functional.normalize(torch.from_numpy(rows.astype(np.float32)))
    return Features(
        torch.from_numpy(np.asarray(points, np.float32)), torch.ones(len(points)), descriptors, SIZE, "mine"
    )


def similarity(x: float, y: float, scale: float, angle: float) -> NDArray[np.float64]:
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[c, -s, x], [s, c, y], [1e-5, 0, 1]])


@pytest.fixture
def shelf(rng: np.random.Generator) -> tuple[Features, Features, list[NDArray[np.float64]]]:
    """A template of 60 points, and three copies of it of 50, 40 and 30 points among others."""
    template = rng.uniform(0, 200, (60, 2))
    places = [similarity(50, 60, 0.9, 0.2), similarity(400, 50, 1.1, -0.3), similarity(300, 350, 0.7, 0.0)]
    points, names = [rng.uniform(0, 600, (150, 2))], [np.arange(500, 650)]
    for H, count in zip(places, (50, 40, 30), strict=True):
        chosen = rng.permutation(60)[:count]
        points.append(transform(H, template[chosen]) + rng.normal(0, 0.3, (count, 2)))
        names.append(chosen)
    return features(template, np.arange(60), rng), features(np.concatenate(points), np.concatenate(names), rng), places


def nearest(a: Features, b: Features) -> Matches:
    return tp.matchers.load("nearest", features="mine", ratio=None)(a, b)


def test_candidates_are_mutual_among_the_nearest(rng: np.random.Generator) -> None:
    a, b = (features(rng.uniform(0, 9, (n, 2)), rng.integers(0, 12, n), rng, noise=0.5) for n in (30, 40))
    cosines = (a.descriptors @ b.descriptors.T).numpy()
    near = np.argsort(np.argsort(-cosines, axis=1), axis=1) < 3
    near &= np.argsort(np.argsort(-cosines, axis=0), axis=0) < 3
    pairs, scores = candidates(a, b, 3)
    np.testing.assert_array_equal(pairs, np.argwhere(near))
    np.testing.assert_allclose(scores, np.clip(cosines[near], 0, 1), atol=1e-6)
    swapped, _ = candidates(b, a, 3)
    assert set(map(tuple, swapped[:, ::-1].tolist())) == set(map(tuple, pairs.tolist()))
    assert len(candidates(a, b.select(torch.arange(0)), 3)[0]) == 0


def test_all_copies_of_an_object(shelf: tuple[Features, Features, list[NDArray[np.float64]]]) -> None:
    template, clutter, places = shelf
    groups, keep = find_groups(template, clutter, nearest(template, clutter), instances=6)
    assert [len(group.matches) for group in groups] == pytest.approx([50, 40, 30], abs=3)
    for group, H in zip(groups, places, strict=True):
        assert reprojection_error(group.homography, CORNERS, transform(H, CORNERS)).max() < 3
        i, j = group.matches.indices.T
        assert len(set(i)) == len(set(j)) == len(i)
        np.testing.assert_array_equal(group.matches.points1, clutter.keypoints.numpy()[j])
    assert [group.rival for group in groups] == [False, True, True]
    mixed = nearest(template, clutter)
    first = reprojection_error(places[0], mixed.points0, mixed.points1) < 3
    assert 0 < first.sum() < len(mixed)
    assert keep[first].all() and not keep[~first].any()
    two, _ = find_groups(template, clutter, mixed, instances=2)
    assert len(two) == 2


def test_swapped(shelf: tuple[Features, Features, list[NDArray[np.float64]]]) -> None:
    template, clutter, _ = shelf
    mixed = nearest(template, clutter)
    forth, keep = find_groups(template, clutter, mixed, 6)
    back, keep_back = find_groups(clutter, template, mixed.swapped(), 6)
    assert len(forth) == len(back) == 3
    for a, b in zip(forth, back, strict=True):
        np.testing.assert_array_equal(a.matches.indices, b.swapped().matches.indices)
        np.testing.assert_allclose(a.homography, b.swapped().homography, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(mixed[keep].indices, mixed.swapped()[keep_back].swapped().indices)


def test_margin(shelf: tuple[Features, Features, list[NDArray[np.float64]]]) -> None:
    template, clutter, _ = shelf
    groups, _ = find_groups(template, clutter, nearest(template, clutter), 6)
    found = Matches(*vars_of(nearest(template, clutter)), groups=groups)
    assert found.margin == pytest.approx(1 - 40 / 50, abs=0.1) and found.ambiguous
    alone = Matches(*vars_of(found), groups=groups[:1])
    assert alone.margin == 1 and not alone.ambiguous
    assert Matches(*vars_of(found)).margin is None


def vars_of(matches: Matches) -> tuple[Any, ...]:
    return matches.indices, matches.scores, matches.points0, matches.points1


@pytest.mark.parametrize("original", [True, False])
def test_a_displaced_object_is_left_out(rng: np.random.Generator, original: bool) -> None:
    """A plane, on which 30 points of one corner stand elsewhere; with ``original`` also where they belong."""
    H, moved = similarity(20, 10, 0.95, 0.05), similarity(320, 200, 0.95, 0.05)
    plane, thing = rng.uniform(0, [800, 600], (400, 2)), rng.uniform(50, 150, (30, 2))
    a = features(np.concatenate([plane, thing]), np.arange(430), rng)
    places = [transform(H, plane), transform(moved, thing)] + ([transform(H, thing)] if original else [])
    names = [np.arange(400), np.arange(400, 430)] + ([np.arange(400, 430)] if original else [])
    b = features(np.concatenate(places), np.concatenate(names), rng)
    wrong = np.arange(430)[:, None].repeat(2, axis=1)  # all 30 on the copy
    groups, keep = find_groups(a, b, make_matches(a, b, wrong, np.ones(430, np.float32)))
    assert keep[:400].all() and not keep[400:].any()
    assert len(groups[0].matches) >= 400 and [g.rival for g in groups[1:]] == ([True] if original else [])


def test_wrong_matches_on_an_object_do_not_vouch_for_it(rng: np.random.Generator) -> None:
    """The copy hides a part of the plane, whose points are matched with it: they are not its surroundings."""
    H, moved = similarity(20, 10, 0.95, 0.05), similarity(320, 200, 0.95, 0.05)
    thing = rng.uniform(50, 150, (30, 2))
    copy = transform(moved, thing)
    plane = rng.uniform(0, [800, 600], (400, 2))
    hidden = transform(np.linalg.inv(H), rng.uniform(copy.min(0) + 15, copy.max(0) - 15, (40, 2)))
    a = features(np.concatenate([plane, thing, hidden]), np.arange(470), rng)
    on_the_copy = rng.uniform(copy.min(0) + 15, copy.max(0) - 15, (40, 2))
    b = features(np.concatenate([transform(H, plane), copy, on_the_copy]), np.arange(470), rng)
    _, keep = find_groups(a, b, make_matches(a, b, np.arange(470)[:, None].repeat(2, 1), np.ones(470, np.float32)))
    assert keep[:400].all() and not keep[400:430].any()


def test_parallax_is_left_alone(rng: np.random.Generator) -> None:
    """A wall and things in front of it, all of them right."""
    wall = np.column_stack([rng.uniform([-3, -2], [3, 2], (300, 2)), np.full(300, 6.0)])
    near = np.column_stack([rng.uniform([-0.4, -0.3], [0.1, 0.2], (40, 2)), np.full(40, 2.0)])
    side = np.column_stack([rng.uniform([1, -1], [1.5, 1], (60, 2)), rng.uniform(3, 5, 60)])
    world, camera = np.concatenate([wall, near, side]), Camera.from_focal(600, SIZE)
    x0, x1 = camera.project(world), camera.project(world + np.array([0.5, 0.05, 0.1]))
    assert np.linalg.norm((x1 - x0)[300:340] - np.median((x1 - x0)[:300], axis=0), axis=1).min() > 90
    names = np.arange(len(world))
    a, b = features(x0, names, rng), features(x1, names, rng)
    _, keep = find_groups(a, b, make_matches(a, b, names[:, None].repeat(2, axis=1), np.ones(400, np.float32)))
    assert keep.all()


def test_nothing_in_common(rng: np.random.Generator) -> None:
    a, b = (features(rng.uniform(0, 600, (200, 2)), np.arange(k, k + 200), rng) for k in (0, 300))
    groups, keep = find_groups(a, b, nearest(a, b), 5)
    assert groups == () and keep.all()


def test_real_copies(data_dir: Path, tmp_path: Path, tiepoint: Any) -> None:
    """A part of a photograph three times in front of another one: in Python and on the command line."""
    photographs = sorted((data_dir / "eval" / "kodak" / "images").glob("*.jpg"))
    photograph, clutter = (np.array(tp.read_image(photographs[i]).pixels) for i in (6, 10))
    template = photograph[100:300, 200:400]
    places = [similarity(20, 30, 0.9, 0.1), similarity(400, 60, 1.1, -0.1), similarity(250, 280, 0.8, 0.05)]
    for H in places:
        drawn = cv2.warpPerspective(template, H, clutter.shape[1::-1])
        there = cv2.warpPerspective(np.full(template.shape[:2], 255, np.uint8), H, clutter.shape[1::-1]) == 255
        clutter[there] = drawn[there]
    for name, pixels in (("a", template), ("b", clutter)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels[..., ::-1])
    ran = tiepoint("match", tmp_path / "a.png", tmp_path / "b.png", "--instances", 5, "--max-keypoints", 1024, "--json")
    assert ran.code == 0
    content = json.loads(ran.out)
    assert len(content["groups"]) == 3 and content["margin"] < 1
    found = [np.array(group["homography"]) for group in content["groups"]]
    for H in places:
        errors = [reprojection_error(G, CORNERS, transform(H, CORNERS)).mean() for G in found]
        assert min(errors) < 5


def test_wrong_number() -> None:
    noise = np.zeros((60, 80), np.uint8)
    with pytest.raises(ArgumentError, match="instances must be at least 1"):
        tp.match(noise, noise, "sift", "nearest", instances=0)
    assert tp.match(noise, noise, "sift", "nearest", instances=3).matches.groups == ()
