"""Loops on made-up maps that have drifted by a known amount, without pictures; and the pose graph alone."""

from __future__ import annotations

import numpy as np
import pycolmap
import pytest
import torch
from numpy.typing import NDArray

from textured_room import Pose, align, look
from tiepoint import Features
from tiepoint.geometry import Camera
from tiepoint.io.video import Frame
from tiepoint.mapping.online.key_frames import GLOBAL_STEPS, KeyFrameMap, View
from tiepoint.mapping.online.loops import close_loop, find_loop
from tiepoint.mapping.online.pose_graph import Similarity, optimise
from tiepoint.matchers.nearest import NearestNeighbour

CAMERA = Camera.from_focal(400.0, (640, 480))
FORGET = 5  # key frames; a point that is seen again after more has become another one in the map
Array = NDArray[np.float64]


def drifting_map(poses: list[Pose], points: Array, looks: Array, drift: Array, reach: float = 6.0) -> KeyFrameMap:
    """Map points (N, 3) with descriptors ``looks`` from true poses, as a tracker would that drifts.

    Each step from one key frame to the next is wrong by ``drift``: a rotation vector and the log of a scale. Keypoints
    are where the true cameras see the points.
    """
    rng = np.random.default_rng(5)
    world = KeyFrameMap(CAMERA, NearestNeighbour(), 3.0)
    (R, t), s = poses[0], 1.0
    tracks: list[tuple[Array, list[tuple[int, int]]]] = []  # a place, and (key frame, keypoint) that see it
    latest: dict[int, tuple[int, int]] = {}  # point -> its newest track, the key frame that saw it last
    for k, (true_R, true_t) in enumerate(poses):
        if k:
            s *= np.exp(drift[3])
            before_R, before_t = poses[k - 1]
            step_R = true_R @ before_R.T
            wrong = Similarity.of(np.array([[*drift[:3], 0, 0, 0, 0]])).R[0]
            R, t = wrong @ step_R @ R, wrong @ (step_R @ t + s * (true_t - step_R @ before_t))
        local = points @ true_R.T + true_t
        pixels = CAMERA.project(local)
        inside = (local[:, 2] > 0.3) & (local[:, 2] < reach) & (pixels > 0).all(1) & (pixels < (639, 479)).all(1)
        seen = rng.permutation(np.flatnonzero(inside))[:250]
        features = Features(
            torch.from_numpy(pixels[seen].astype(np.float32)), torch.ones(len(seen)),
            torch.from_numpy(looks[seen].astype(np.float32)), (640, 480), "sift",
        )  # fmt: skip
        frame = Frame(10 * k, float(k), np.zeros((0, 0, 3), np.uint8), f"{k:03d}")
        view = View(frame, features, CAMERA.normalise(pixels[seen]), np.zeros((len(seen), 3), np.uint8), None)  # type: ignore[arg-type]
        world.add_key_frame(view, R, t)
        for row, number in enumerate(seen.tolist()):
            track, when = latest.get(number, (0, -99))
            if k - when > FORGET:
                track = len(tracks)
                tracks.append(((s * local[number] - t) @ R, []))
            tracks[track][1].append((view.image_id, row))
            latest[number] = track, k
    for place, seen_by in tracks:
        if len(seen_by) > 1:
            world.reconstruction.add_point3D(place, pycolmap.Track([pycolmap.TrackElement(*one) for one in seen_by]))
    return world


def ring(count: int, laps: float) -> list[Pose]:
    """Poses on a circle of radius 8 that look ahead and outwards."""
    angles = np.linspace(0, laps * 2 * np.pi, count)
    return [look((8 * np.sin(a), 0.0, -8 * np.cos(a)), np.pi / 2 - a + 0.6) for a in angles]


def wall(rng: np.random.Generator, count: int = 9000) -> Array:
    """Points on an uneven wall around the ring."""
    angle, radius = rng.uniform(0, 2 * np.pi, count), rng.uniform(9.5, 12, count)
    return np.column_stack([radius * np.sin(angle), rng.uniform(-2, 2, count), -radius * np.cos(angle)])


def descriptors(rng: np.random.Generator, count: int) -> Array:
    rows = rng.normal(size=(count, 64))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def error(world: KeyFrameMap, poses: list[Pose]) -> float:
    """Root mean square distance of key frames from where they are, after the best similarity."""
    found, true = (np.array([-R.T @ t for R, t in some]) for some in ([world.pose(i) for i in world.views], poses))
    return float(np.sqrt(((align(found, true) - true) ** 2).sum(axis=1).mean()))


@pytest.fixture(scope="module")
def drifted() -> tuple[KeyFrameMap, list[Pose]]:
    rng = np.random.default_rng(1)
    poses, points = ring(64, 1.03), wall(rng)
    drift = np.array([0.0004, 0.002, 0.0, np.log(1.3) / 63])
    return drifting_map(poses, points, descriptors(rng, len(points)), drift), poses


def test_a_loop_takes_away_the_drift(drifted: tuple[KeyFrameMap, list[Pose]]) -> None:
    world, poses = drifted
    before = error(world, poses)
    newest = list(world.views.values())[-1]
    found = find_loop(world, newest)
    assert found is not None
    loop, evidence = found
    assert loop.refused == "" and loop.old_index <= 50 and loop.index == 630
    assert loop.scale == pytest.approx(1.3, rel=0.06) and loop.inliers >= 40
    points = world.reconstruction.num_points3D()
    scales = close_loop(world, evidence)
    assert world.reconstruction.num_points3D() <= points - 10  # those that were there twice
    assert scales[1] == pytest.approx(1.0) and scales[newest.image_id] == pytest.approx(1.3, rel=0.06)
    np.testing.assert_allclose(list(scales.values()), np.exp(np.linspace(0, np.log(1.3), 64)), rtol=0.06)
    after = error(world, poses)
    assert after < before / 4
    world.adjust(list(world.views), GLOBAL_STEPS)
    assert error(world, poses) < before / 10


def test_no_loop_in_a_straight_corridor() -> None:
    rng = np.random.default_rng(2)
    poses = [look((0.0, 0.0, 0.8 * k)) for k in range(30)]
    points = rng.uniform([-2, -1.5, 0], [2, 1.5, 32], (4000, 3))
    points[:, 0] = np.sign(points[:, 0]) * rng.uniform(1.2, 2, len(points))
    world = drifting_map(poses, points, descriptors(rng, len(points)), np.array([0.0, 0.0005, 0.0, 0.002]))
    for view in list(world.views.values())[12:]:
        assert find_loop(world, view) is None


def test_a_corridor_that_repeats_itself_is_no_loop() -> None:
    rng = np.random.default_rng(3)
    poses = [look((0.0, 0.0, 0.8 * k)) for k in range(30)]
    part = rng.uniform([-2, -1.5, 0], [2, 1.5, 12.8], (1600, 3))
    part[:, 0] = np.sign(part[:, 0]) * rng.uniform(1.2, 2, len(part))
    looks = descriptors(rng, len(part))
    points, looks = np.concatenate([part + np.array([0, 0, z]) for z in (0, 12.8, 25.6)]), np.tile(looks, (3, 1))
    world = drifting_map(poses, points, looks, np.zeros(4), reach=5.0)
    refused = [found[0].refused for view in list(world.views.values())[20:] if (found := find_loop(world, view))]
    assert refused and all("of the way" in why for why in refused)  # all else agrees


@pytest.mark.parametrize(("half", "why"), [(200, "of the way"), (110, "older points in view")])
def test_a_poster_that_hangs_twice_is_no_loop(half: int, why: str) -> None:
    rng = np.random.default_rng(4)
    poses, points = ring(40, 0.6), wall(rng, 3000)
    looks = descriptors(rng, len(points))
    # What the newest key frame sees in the middle of its picture is there a second time, before the first ones.
    (R, t), (first_R, first_t) = poses[-1], poses[1]
    local = points @ R.T + t
    middle = (np.abs(CAMERA.project(local) - (320, 240)) < half).all(axis=1)
    poster = np.flatnonzero(middle & (local[:, 2] > 0) & (local[:, 2] < 6))
    twin = (local[poster] - first_t) @ first_R
    points, looks = np.concatenate([points, twin]), np.concatenate([looks, looks[poster]])
    world = drifting_map(poses, points, looks, np.zeros(4))
    found = find_loop(world, list(world.views.values())[-1])
    assert found is not None and why in found[0].refused


def test_a_pose_graph_of_known_similarities() -> None:
    rng = np.random.default_rng(6)
    true = Similarity.of(np.column_stack([rng.normal(0, 0.5, (30, 6)), rng.normal(0, 0.3, 30)]))
    edges = np.array([*((i, i + 1) for i in range(29)), *((i, i + 3) for i in range(27)), (0, 29)])
    measured = true[edges[:, 1]] @ true[edges[:, 0]].inverse()
    noise = rng.normal(0, 0.1, (30, 7))
    noise[0] = 0
    found = optimise(Similarity.of(noise) @ true, edges, measured, np.ones(30), np.ones(len(edges)))
    np.testing.assert_allclose(found.vectors(), true.vectors(), atol=1e-6)
