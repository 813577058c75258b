"""AUC, precision, recall: against hand-worked values and independent arithmetic."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiepoint.errors import ArgumentError, InputError
from tiepoint.evaluation import HomographyTruth, PoseTruth, auc, match_errors, precision, recall
from tiepoint.evaluation.metrics import project


def integrated_auc(errors: np.ndarray, threshold: float) -> float:
    """The same area by brute force: the curve of the errors below the threshold, level after the last."""
    below = np.sort(errors[errors < threshold])
    x = np.linspace(0, threshold, 400_001)
    x = (x[1:] + x[:-1]) / 2
    if len(below) == 0:
        return 0.0
    y = np.interp(x, np.r_[0.0, below], np.arange(len(below) + 1) / len(errors))
    return float(y.mean())


def test_auc_by_hand() -> None:
    # One pair of two with error 2.5: the curve rises to 1/2 at 2.5 and stays there.
    assert auc([2.5, np.inf], [5]) == pytest.approx([(0.5 * 2.5 * 0.5 + 2.5 * 0.5) / 5])
    # Both below: up to 1/2 at 1, up to 1 at 3, level to 5.
    assert auc([3.0, 1.0], [5]) == pytest.approx([(0.25 * 1 + 0.75 * 2 + 1 * 2) / 5])
    assert auc([0.0, 0.0], [1, 3]) == [1.0, 1.0]
    assert auc([np.inf], [1]) == [0.0]
    # An error that equals the threshold is not below it.
    assert auc([5.0], [5]) == [0.0]
    assert np.isnan(auc([], [5])).all()


@given(
    st.lists(st.floats(0.01, 30) | st.just(float("inf")), min_size=1, max_size=12),
    st.floats(0.5, 20),
)
def test_auc_is_the_integral_of_the_curve(errors: list[float], threshold: float) -> None:
    assert auc(errors, [threshold])[0] == pytest.approx(integrated_auc(np.array(errors), threshold), abs=1e-3)


@given(st.lists(st.floats(0, 50), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_auc_ignores_order_and_falls_with_errors(errors: list[float], random: object) -> None:
    shuffled = list(errors)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert auc(errors, [5, 10, 20]) == auc(shuffled, [5, 10, 20])
    worse = [error + 1 for error in errors]
    assert all(a >= b - 1e-12 for a, b in zip(auc(errors, [5, 10]), auc(worse, [5, 10]), strict=True))


def test_auc_refuses_nan_and_bad_thresholds() -> None:
    with pytest.raises(ArgumentError):
        auc([1.0, float("nan")], [5])
    with pytest.raises(ArgumentError):
        auc([1.0], [0])


def test_precision_by_hand() -> None:
    # Twice as large and shifted by 10: exact; 4 px off in image 1 is 2 px in image 0, mean 3; 10 px: wrong.
    truth = HomographyTruth(np.array([[2.0, 0, 10], [0, 2, 0], [0, 0, 1]]))
    points0 = [[0.0, 0.0], [5.0, 5.0], [7.0, 1.0]]
    points1 = [[10.0, 0.0], [20.0, 14.0], [24.0, 12.0]]
    np.testing.assert_allclose(match_errors(truth, points0, points1), [0, 3, 7.5], atol=1e-12)
    assert precision(truth, points0, points1, threshold=3.1) == pytest.approx(2 / 3)
    assert precision(truth, points0, points1) == pytest.approx(1 / 3)  # "less than", as published
    assert precision(truth, np.zeros((0, 2)), np.zeros((0, 2))) == 0.0


def test_precision_of_a_pose_is_the_distance_to_the_row() -> None:
    K = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    sideways = PoseTruth(K, K, np.eye(3), np.array([1.0, 0, 0]))
    errors = match_errors(sideways, [[10, 20], [10, 20]], [[300, 20], [300, 24]])
    np.testing.assert_allclose(errors, [0, 4], atol=1e-9)


def test_recall_by_hand() -> None:
    keypoints0 = np.array([[0.0, 0], [50, 0], [100, 0], [150, 0]])
    keypoints1 = np.array([[1.0, 0], [50, 2], [110, 0]])  # the third is 10 px off; the fourth has no partner
    nothing = np.zeros((0, 2), np.int64)
    exact = np.array([[0, 0], [1, 1]])
    assert recall(exact, keypoints0, keypoints1, keypoints0, keypoints1) == 1.0
    assert recall(exact[:1], keypoints0, keypoints1, keypoints0, keypoints1) == 0.5
    assert recall(np.array([[0, 1], [2, 2]]), keypoints0, keypoints1, keypoints0, keypoints1) == 0.0
    assert recall(nothing, keypoints0, keypoints1, keypoints0, keypoints1) == 0.0
    assert recall(nothing, keypoints0, keypoints1[2:], keypoints0, keypoints1[2:]) is None
    assert recall(nothing, keypoints0[:0], keypoints1, keypoints0[:0], keypoints1) is None


def test_recall_accepts_either_copy_of_a_keypoint() -> None:
    keypoints0 = np.array([[0.0, 0], [90, 0]])
    keypoints1 = np.array([[0.0, 0], [0, 0], [90, 0]])  # two orientations on one spot
    for copy in (0, 1):
        assert recall(np.array([[0, copy]]), keypoints0, keypoints1, keypoints0, keypoints1) == 0.5


@given(st.integers(0, 2**32 - 1))
def test_recall_does_not_depend_on_the_order_of_the_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    keypoints0, keypoints1 = rng.uniform(0, 40, (20, 2)), rng.uniform(0, 40, (15, 2))
    shift = rng.uniform(-5, 5, 2)  # under a mere shift, nearest neighbours are the same from either side
    matches = np.stack([rng.permutation(20)[:12], rng.permutation(15)[:12]], axis=1)
    forth = recall(matches, keypoints0, keypoints1, keypoints0 + shift, keypoints1 - shift)
    back = recall(matches[:, ::-1], keypoints1, keypoints0, keypoints1 - shift, keypoints0 + shift)
    assert forth == back


def test_projection_by_depth_is_the_pinhole_formula(tmp_path, rng) -> None:
    # A slanted plane, whose depth is known at every pixel of both cameras in closed form.
    K = np.array([[400.0, 0, 159.5], [0, 410, 119.5], [0, 0, 1]])
    R = cv2.Rodrigues(np.array([0.02, -0.05, 0.01]))[0]
    t = np.array([0.2, -0.05, 0.03])
    normal, distance = np.array([0.1, -0.05, 1.0]), 2.5  # normal . X = distance, camera 0
    normal1 = R @ normal
    distance1 = distance + normal1 @ t

    def depth_map(n: np.ndarray, d: float) -> np.ndarray:
        y, x = np.mgrid[:240, :320]
        rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(K).T
        return np.rint(1000 * d / (rays @ n)).astype(np.uint16)

    maps = depth_map(normal, distance), depth_map(normal1, distance1)
    maps[0][:, 300:] = 0  # no measurement
    for name, depth in zip(("0.png", "1.png"), maps, strict=True):
        cv2.imwrite(str(tmp_path / name), depth)
    truth = PoseTruth(K, K, R, t, tmp_path / "0.png", tmp_path / "1.png")
    H = K @ (R + np.outer(t, normal) / distance) @ np.linalg.inv(K)
    keypoints = rng.integers([0, 0], [300, 240], (50, 2)).astype(float)
    there, back = project(truth, keypoints, keypoints)
    exact = cv2.perspectiveTransform(keypoints[None], H)[0]
    np.testing.assert_allclose(there, exact, atol=0.05)  # depth is rounded to millimetres
    np.testing.assert_allclose(back, cv2.perspectiveTransform(keypoints[None], np.linalg.inv(H))[0], atol=0.05)
    unknown = np.array([[310.0, 100.0], [-5.0, 3.0]])
    assert np.isnan(project(truth, unknown, keypoints)[0]).all()
    assert project(PoseTruth(K, K, R, t), keypoints, keypoints) is None
    broken = PoseTruth(K, K, R, t, tmp_path / "none.png", tmp_path / "1.png")
    with pytest.raises(InputError, match=r"none\.png"):
        project(broken, keypoints, keypoints)
