"""Zoom and guided matching, on made-up scenes whose geometry is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import tiepoint as tp
from tiepoint import effort
from tiepoint.effort import along_lines, ladder
from tiepoint.effort.state import NEAR, State
from tiepoint.effort.views import cropped
from tiepoint.geometry import homogeneous, reprojection_error, transform
from two_walls import FOCAL, view

K = np.array([[FOCAL, 0, 159.5], [0, FOCAL, 119.5], [0, 0, 1]])
WARP = np.array([[0.9, 0.1, 10], [-0.05, 0.95, 12], [1e-4, 5e-5, 1]])
SMALL = np.array([[0.3, 0.0, 380], [0.0, 0.3, 250], [0, 0, 1]])


def wall_homography(depth: float, x: float) -> NDArray[np.float64]:
    """Where a wall of `two_walls` in view(0) lies in view(x)."""
    angle = 0.08 * x
    R = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    return K @ (R - np.outer(R @ [x, 0, 0], [0, 0, 1]) / depth) @ np.linalg.inv(K)


def begin(first: NDArray[np.uint8], second: NDArray[np.uint8], **masks: Any) -> State:
    sift, nearest = tp.features.load("sift", max_keypoints=600), tp.matchers.load("nearest", features="sift")
    images = tp.read_image(first), tp.read_image(second, **masks)
    return effort.all_keypoints(State.begin(images, sift, nearest))


def thinned(state: State, count: int) -> State:
    rows = np.random.default_rng(0).permutation(len(state.matches))[:count]
    return replace(state, matches=state.matches[np.sort(rows)], sources=np.zeros(count, np.int64))


def test_guided_finds_the_partners_of_a_thin_result() -> None:
    """Two walls at different depths: no homography holds, so the lines have to lead."""
    full = begin(view(0.0), view(0.7))
    thin = thinned(full, 40)
    found = effort.guided(thin)
    new = found.matches[found.sources == 1]
    walls = [reprojection_error(wall_homography(z, 0.7), new.points0, new.points1) for z in (4.0, 2.6)]
    assert len(new) > 60
    assert (np.minimum(*walls) < 3).mean() > 0.95
    for points in np.column_stack([thin.matches.points0, thin.matches.points1]):
        away = np.abs(np.column_stack([found.matches.points0, found.matches.points1]) - points).max(axis=1)
        assert away.min() <= NEAR, "a known match stays, or one next to it with a better score"
    assert found.attempts[-1].name == "guided" and found.attempts[-1].kept == len(new)


def test_guided_on_a_plane_uses_its_homography(texture: NDArray[np.uint8]) -> None:
    """Matches of one plane leave the epipolar lines open; the homography does not."""
    thin = thinned(begin(texture, np.asarray(cv2.warpPerspective(texture, WARP, (320, 240)), np.uint8)), 20)
    found = effort.guided(thin)
    new = found.matches[found.sources == 1]
    assert len(new) > 40 and (reprojection_error(WARP, new.points0, new.points1) < 3).mean() > 0.97


def test_guided_needs_an_overlap_and_a_geometry(texture: NDArray[np.uint8]) -> None:
    state = begin(texture, texture)
    unrelated = replace(state, matches=replace(state.matches, overlaps=False))
    assert effort.guided(unrelated) is unrelated
    few = thinned(state, along_lines.LEAST - 1)
    assert effort.guided(few) is few


def test_swapped_photographs_give_swapped_guided_matches() -> None:
    thin = thinned(begin(view(0.0), view(0.7)), 40)
    features, matches = (thin.own(0), thin.own(1)), thin.matches
    shift = np.array([[1, 0, 20.0], [0, 1, -10], [0, 0, 1]])
    geometry = along_lines.estimate(matches.points0, matches.points1)
    assert geometry is not None and not geometry.planar
    other = along_lines.Geometry(geometry.model.T, False, geometry.inliers)
    points = [f.keypoints.double().numpy() for f in features]

    def swapped_candidates(geometry: along_lines.Geometry) -> set[tuple[int, ...]]:
        return {(i, j) for j, i in zip(*geometry.candidates(*points[::-1]), strict=True)}

    assert set(zip(*geometry.candidates(*points), strict=True)) == swapped_candidates(other)
    plane = along_lines.Geometry(shift, True, geometry.inliers)
    back = along_lines.Geometry(np.linalg.inv(shift), True, geometry.inliers)
    found = set(zip(*plane.candidates(*points), strict=True))
    assert found == swapped_candidates(back)
    near = np.linalg.norm(points[0][:, None] + [20, -10] - points[1], axis=2) <= along_lines.NEAR
    assert found == set(zip(*np.nonzero(near), strict=True)) and len(found) > 20


def test_candidates_lie_near_their_epipolar_lines() -> None:
    """Against the distances of all pairs in float64, for the geometry of real matches."""
    state = begin(view(0.0), view(0.7))
    geometry = along_lines.estimate(state.matches.points0, state.matches.points1)
    assert geometry is not None and not geometry.planar
    points = [state.own(i).keypoints.double().numpy() for i in (0, 1)]
    x0, x1 = homogeneous(points[0]), homogeneous(points[1])
    product = np.abs(x0 @ geometry.model.T @ x1.T)
    offsets = [product / np.linalg.norm((x0 @ geometry.model.T)[:, :2], axis=1)[:, None]]
    offsets.append(product / np.linalg.norm((x1 @ geometry.model)[:, :2], axis=1))
    found = np.zeros(product.shape, bool)
    found[geometry.candidates(*points)] = True
    worst = np.maximum(*offsets)
    sure = np.abs(worst - along_lines.NEAR) > 1e-2
    np.testing.assert_array_equal(found[sure], (worst <= along_lines.NEAR)[sure])


def test_nearest_of_the_candidates() -> None:
    """Against a plain loop."""
    rng = np.random.default_rng(3)
    a = torch.from_numpy(rng.normal(size=(40, 6)))
    b = torch.cat(
        [a[:30] + 0.4 * torch.from_numpy(rng.normal(size=(30, 6))), torch.from_numpy(rng.normal(size=(9, 6)))]
    )
    a, b = (torch.nn.functional.normalize(x, dim=1) for x in (a, b))
    allowed = (rng.random((40, 39)) < 0.4) | (np.eye(40, 39) > 0)
    pairs, scores = along_lines.nearest_of(*np.nonzero(allowed), a, b, 0.9)
    d = np.where(allowed, np.sqrt(np.maximum(2 - 2 * (a @ b.T).numpy(), 0)), np.inf)
    expected = {}
    for i in range(40):
        j = int(d[i].argmin())
        rest = min(np.delete(d[i], j).min(), np.delete(d[:, j], i).min(), 2.0)
        if d[:, j].argmin() == i and d[i, j] <= 0.9 and d[i, j] < along_lines.RATIO * rest:
            expected[(i, j)] = 1 - d[i, j] / rest
    assert len(expected) > 10
    assert {
        (i, j): pytest.approx(s, abs=1e-5) for (i, j), s in zip(map(tuple, pairs.tolist()), scores, strict=True)
    } == expected


@pytest.fixture(scope="module")
def far(texture: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A picture, and the same small in front of its mirror image, which matches nothing."""
    large = np.asarray(cv2.resize(texture, (640, 480), interpolation=cv2.INTER_CUBIC), np.uint8)
    second = cv2.resize(texture[:, ::-1], (640, 480), interpolation=cv2.INTER_CUBIC)
    seen = cv2.warpPerspective(np.full((480, 640), 255, np.uint8), SMALL, (640, 480)) > 127
    fine = cv2.warpPerspective(large, np.diag([4, 4, 1]) @ SMALL, (2560, 1920))
    second[seen] = cv2.resize(fine, (640, 480), interpolation=cv2.INTER_AREA)[seen]
    return large, np.asarray(second, np.uint8)


def test_zoom_finds_more_of_what_is_far_away(far: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    mask = np.full((480, 640), 255, np.uint8)
    mask[:, 520:] = 0
    state = begin(*far, mask=mask)
    closer = effort.zoom(state)

    def right(state: State) -> NDArray[np.bool_]:
        return reprojection_error(SMALL, state.matches.points0, state.matches.points1) < 1.5

    assert closer.attempts[-1].name == "zoom"
    assert right(closer).sum() > 1.5 * right(state).sum() > 30
    assert right(closer)[closer.sources == 1].mean() > max(0.9, right(state).mean())
    x, _ = np.rint(closer.features[1].keypoints.numpy()).astype(int).T
    assert x.max() < 520, "masks hold"
    assert torch.equal(closer.own(0).keypoints, state.own(0).keypoints)


def test_zoom_does_not_apply_where_all_is_common(texture: NDArray[np.uint8]) -> None:
    state = begin(texture, texture)
    assert effort.zoom(state) is state
    nothing = state.without_matches()
    assert effort.zoom(nothing) is nothing


def test_one_plane_does_not_replace_a_scene() -> None:
    """A second pass, which follows one wall, finds more matches there and none on the other."""
    full = begin(view(0.0), view(0.7))
    errors = [
        reprojection_error(wall_homography(z, 0.7), full.matches.points0, full.matches.points1) for z in (4.0, 2.6)
    ]
    far, near = errors[0] < errors[1], errors[1] < errors[0]
    more, far_more = (
        [ladder.Found(full.matches[near], evidence=times * full.evidence)] for times in (2, 2 * ladder.FLATTER)
    )
    rung, strong = (
        ladder._rung("one wall", stronger="replace", weaker="drop")(lambda _, found=found: found)
        for found in (more, far_more)
    )
    scene, plane = thinned(full, 80), replace(full, matches=full.matches[far], sources=np.zeros(far.sum(), np.int64))
    assert ladder.is_scene(scene) and not ladder.is_scene(plane)
    joined = rung(scene)
    assert joined.attempts[0].kept > 10 and len(joined.matches) >= near.sum() and ladder.is_scene(joined)
    for replaced in (rung(plane), strong(scene)):
        assert replaced.attempts[0].kept == 0 and len(replaced.matches) == near.sum()


def test_a_crop_shows_the_points_and_some_more() -> None:
    points = np.random.default_rng(0).uniform([100, 50], [200, 80], (200, 2))
    warp, size = cropped((640, 480), points, 640)
    assert size[0] == pytest.approx(2 * 1.3 * 100, rel=0.05)  # at most two pixels for one
    seen = transform(warp, points)
    inside = ((seen > 0) & (seen < np.array(size) - 1)).all(axis=1)
    assert inside.all()
    large, shape = cropped((6400, 4800), 10 * points, 640)
    assert max(shape) == 640
    corners = transform(np.linalg.inv(large), np.array([[-0.5, -0.5], np.array(shape) - 0.5]))
    assert (corners[0] < 10 * points.min(axis=0)).all() and (corners[1] > 10 * points.max(axis=0)).all()


def test_a_plane_is_tried_longer_than_a_scene(texture: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    """More matches make a homography more precise; the pose of a scene is settled before."""
    plane = begin(texture, np.asarray(cv2.warpPerspective(texture, WARP, (320, 240)), np.uint8))
    scene = begin(view(0.0), view(0.7))
    assert effort.is_scene(scene) and not effort.is_scene(plane) and not effort.is_scene(plane.without_matches())
    for state, tries in ((scene, 1), (plane, 2)):
        rungs = (effort.all_keypoints, np.inf), (effort.second_pass, state.evidence + 1)
        monkeypatch.setattr(ladder, "LADDER", rungs)
        monkeypatch.setattr(ladder, "SOLVED", state.evidence - 1)
        assert len(effort.climb(replace(state.without_matches(), attempts=()), "auto").attempts) == tries
