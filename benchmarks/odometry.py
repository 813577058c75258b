"""Visual odometry on the start of KITTI's sequence 00: `tiepoint track` beside a plain ORB odometry in OpenCV.

The evaluation set holds 51 frames, 1 to 4 numbers apart, and 30 true relative poses between frames 5 to 10 numbers
apart (``pairs.json``). Compared are

- RPE: the relative poses of those 30 pairs, as they are given. One factor of scale for the whole path brings the
  estimated translations to metres (least squares); per cent are of each pair's true length.
- ATE: camera centres after one similarity transform (Umeyama). The pairs overlap in time but form no single chain: the
  longest has four of them. So the true path is put together from all of them: of all paths of 98 poses, that one is
  taken which agrees with the 30 relative poses and whose velocity changes least from frame to frame (least squares; the
  weight of smoothness is 0.01 of the pairs'). How good this is, is measured by leaving out one pair at a time and
  comparing it with the path through the other 29 (the first and last aside): see "left out" in the result.

The ORB odometry is what tutorials build: ORB, brute-force matching with Lowe's ratio test between consecutive frames,
essential matrix by RANSAC, and the length of each step from the depths of points that three frames share; no map, no
key frames, no adjustment.

``python benchmarks/odometry.py`` writes ``results/odometry/``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from numpy.typing import NDArray

from tiepoint.geometry import Camera
from tiepoint.io.video import Frame, read_frames
from tiepoint.mapping.exchange.trajectories import Pose, write_tum
from tiepoint.mapping.online.track import Tracker

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data" / "eval" / "kitti"

LABELS = {"opencv-orb": "ORB odometry in OpenCV"}

Array = NDArray[np.float64]


def main(
    matchers: Annotated[list[str] | None, typer.Argument(help="Of the tracker; by default nearest.")] = None,
    data: Annotated[Path, typer.Option(help="The kitti folder of the evaluation sets.")] = DATA,
    output: Annotated[Path, typer.Option("-o", "--output")] = HERE / "results" / "odometry",
) -> None:
    """Run all, print and write a table."""
    cv2.setNumThreads(1)
    pairs = json.loads((data / "pairs.json").read_text())["pairs"]
    for pair in pairs:
        pair["i"], pair["j"] = (int(Path(pair[key]).stem) for key in ("image0", "image1"))
    frames = [
        Frame(int(Path(frame.name).stem), int(Path(frame.name).stem) / 10, frame.pixels, frame.name)  # 10 frames/s
        for frame in read_frames(data / "images")
    ]
    height, width = frames[0].pixels.shape[:2]
    camera = Camera.from_K(pairs[0]["K0"], (width, height))
    count = max(pair["j"] for pair in pairs) + 1
    true = smooth_path(pairs, count)
    left_out = [
        np.linalg.norm(relative(smooth_path(pairs[:k] + pairs[k + 1 :], count), pair)[1] - pair["t"])
        for k, pair in enumerate(pairs[1:-1], 1)  # beyond the ends nothing can be interpolated
    ]
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in ["opencv-orb", *(matchers or ["nearest"])]:
        begin = time.process_time()
        if name == "opencv-orb":
            path = {pose.index: pose for pose in orb_odometry(frames, camera)}
        else:
            tracker = Tracker(camera, "sift", name, long_side=max(width, height))
            for frame in frames:
                tracker(frame)
            path = {pose.index: pose for pose in tracker.trajectory()}
        seconds = time.process_time() - begin
        rows.append(
            {
                "method": LABELS.get(name, f"tiepoint track (sift + {name})"),
                **compare(path, true, pairs),
                "CPU s/frame": round(seconds / len(frames), 3),
            }
        )
        write_tum(output / f"{name}.txt", path.values())
    result = {
        "frames": len(frames),
        "pairs": len(pairs),
        "length_m": round(float(np.linalg.norm(np.diff(centres(true), axis=0), axis=1).sum()), 2),
        "left_out_m": {"median": round(float(np.median(left_out)), 3), "max": round(float(np.max(left_out)), 3)},
        "rows": rows,
    }
    (output / "odometry.json").write_text(json.dumps(result, indent=1) + "\n")
    text = markdown(result)
    (output / "odometry.md").write_text(text)
    sys.stdout.write(text)


def orb_odometry(frames: list[Frame], camera: Camera) -> list[Pose]:
    """Return a path by two-view poses of consecutive frames, chained; the first step has length 1."""
    orb = cv2.ORB.create(3000)
    matcher = cv2.BFMatcher(cv2.NORM_HAMMING)
    R, t = np.eye(3), np.zeros(3)
    poses = [Pose(frames[0].index, frames[0].time, R, t)]
    keypoints0, descriptors0 = orb.detectAndCompute(cv2.cvtColor(frames[0].pixels, cv2.COLOR_RGB2GRAY), None)
    depths0: dict[int, float] = {}  # keypoint of the older frame -> its depth there, in the unit of the path
    for frame in frames[1:]:
        keypoints1, descriptors1 = orb.detectAndCompute(cv2.cvtColor(frame.pixels, cv2.COLOR_RGB2GRAY), None)
        twos = matcher.knnMatch(descriptors0, descriptors1, k=2)
        good = [a for a, b in (two for two in twos if len(two) == 2) if a.distance < 0.8 * b.distance]
        x0 = np.array([keypoints0[m.queryIdx].pt for m in good])
        x1 = np.array([keypoints1[m.trainIdx].pt for m in good])
        E, mask = cv2.findEssentialMat(x0, x1, camera.K, cv2.RANSAC, 0.999, 1.0)
        _, step_R, step_t, mask, points = cv2.recoverPose(E, x0, x1, camera.K, distanceThresh=200, mask=mask)
        world = (points[:3] / points[3]).T  # in the older frame, for a step of length 1
        right = np.flatnonzero(mask.ravel())
        ratios = [depths0[good[k].queryIdx] / world[k, 2] for k in right if good[k].queryIdx in depths0]
        scale = float(np.median(ratios)) if len(ratios) >= 10 else scale_of_last_step(poses)
        local = scale * (world @ step_R.T + step_t.T)
        depths0 = {good[k].trainIdx: float(local[k, 2]) for k in right}
        R, t = step_R @ R, step_R @ t + scale * step_t.ravel()
        poses.append(Pose(frame.index, frame.time, R, t))
        keypoints0, descriptors0 = keypoints1, descriptors1
    return poses


def scale_of_last_step(poses: list[Pose]) -> float:
    """Return the length of the last step: without common points, assume the speed unchanged."""
    return 1.0 if len(poses) < 2 else float(np.linalg.norm(poses[-1].centre - poses[-2].centre))


def smooth_path(pairs: list[dict[str, Any]], count: int, smoothness: float = 0.01) -> list[tuple[Array, Array]]:
    """Return the world-to-camera poses, frame by frame, that agree with relative poses and are smooth between them."""
    second = np.zeros((count - 2, count))
    for k in range(count - 2):
        second[k, k : k + 3] = 1, -2, 1
    first = np.eye(1, count)  # frame 0 is the world
    ties = np.zeros((len(pairs), count))
    for row, pair in enumerate(pairs):
        ties[row, pair["i"]], ties[row, pair["j"]] = -1, 1
    A = np.vstack([first, ties, smoothness * second])
    # Rotations by Gauss-Newton: the turns are small, so that differences of rotation vectors are near enough to
    # correct with, and the residuals themselves are exact.
    vectors = np.zeros((count, 3))
    for _ in range(20):
        rotations = [cv2.Rodrigues(vector)[0] for vector in vectors]
        residuals = [cv2.Rodrigues(np.array(p["R"]) @ rotations[p["i"]] @ rotations[p["j"]].T)[0][:, 0] for p in pairs]
        b = np.vstack([-vectors[:1], residuals, -smoothness * second @ vectors])
        vectors = vectors + np.linalg.lstsq(A, b, rcond=None)[0]
    rotations = [cv2.Rodrigues(vector)[0] for vector in vectors]
    # Centres are linear: C_j - C_i = -R_j^T t.
    steps = [-rotations[pair["j"]].T @ np.array(pair["t"]) for pair in pairs]
    C = np.linalg.lstsq(A, np.vstack([np.zeros((1, 3)), steps, np.zeros((count - 2, 3))]), rcond=None)[0]
    return [(R, -R @ c) for R, c in zip(rotations, C, strict=True)]


def centres(path: list[tuple[Array, Array]]) -> Array:
    """Return where the cameras stood (N, 3)."""
    return np.array([-R.T @ t for R, t in path])


def relative(path: Any, pair: dict[str, Any]) -> tuple[Array, Array]:
    """Return the pose (R, t) of a pair's second frame relative to its first."""
    (R0, t0), (R1, t1) = path[pair["i"]], path[pair["j"]]
    R = R1 @ R0.T
    return R, t1 - R @ t0


def compare(path: dict[int, Pose], true: list[tuple[Array, Array]], pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the errors of a path."""
    poses = {index: (pose.R, pose.t) for index, pose in path.items()}
    shared = [pair for pair in pairs if pair["i"] in poses and pair["j"] in poses]
    found = [relative(poses, pair) for pair in shared]
    t, truth = np.array([one[1] for one in found]), np.array([pair["t"] for pair in shared])
    scale = (t * truth).sum() / (t * t).sum()
    shift = np.linalg.norm(scale * t - truth, axis=1)
    turn = [
        np.linalg.norm(cv2.Rodrigues(one[0] @ np.array(pair["R"]).T)[0])
        for one, pair in zip(found, shared, strict=True)
    ]
    aligned, target = align(np.array([pose.centre for pose in path.values()]), centres([true[i] for i in path]))
    error = np.linalg.norm(aligned - target, axis=1)
    return {
        "frames": len(path),
        "ATE m": round(float(np.sqrt((error**2).mean())), 3),
        "ATE max m": round(float(error.max()), 3),
        "RPE m": round(float(np.sqrt((shift**2).mean())), 3),
        "RPE %": round(float(100 * (shift / np.linalg.norm(truth, axis=1)).mean()), 2),
        "RPE deg": round(float(np.rad2deg(np.mean(turn))), 3),
        "scale drift": round(drift(t * scale, truth), 3),
    }


def drift(t: Array, truth: Array) -> float:
    """Return the scale of the last ten pairs over that of the first ten; 1 is perfect."""
    factors = np.linalg.norm(t, axis=1) / np.linalg.norm(truth, axis=1)
    return float(np.median(factors[-10:]) / np.median(factors[:10]))


def align(estimated: Array, true: Array) -> tuple[Array, Array]:
    """Return (estimated points after the best similarity transform, true points); Umeyama, PAMI 13 (4), 1991."""
    a, b = estimated - estimated.mean(axis=0), true - true.mean(axis=0)
    U, S, Vt = np.linalg.svd(b.T @ a)
    D = np.diag([1, 1, np.sign(np.linalg.det(U @ Vt))])
    return np.trace(np.diag(S) @ D) / (a**2).sum() * a @ (U @ D @ Vt).T + true.mean(axis=0), true


def markdown(result: dict[str, Any]) -> str:
    """Return the table and what it was measured on."""
    names = list(result["rows"][0])
    lines = [
        "# Visual odometry, KITTI 00 start",
        "",
        f"{result['frames']} frames, {result['length_m']} m, {result['pairs']} true relative poses. The true path",
        f"between them is interpolated; a pair that is left out differs from it by {result['left_out_m']['median']} m",
        f"(median), {result['left_out_m']['max']} m at most. Scale is one number for the whole path.",
        "",
        "| " + " | ".join(names) + " |",
        "|" + "---|" * len(names),
        *("| " + " | ".join(str(row[name]) for name in names) + " |" for row in result["rows"]),
        "",
        "RPE: over the given pairs (root mean square in m, mean in % and degrees). ATE: camera centres after a",
        "similarity transform. Scale drift: of the last ten pairs against the first ten. See `benchmarks/odometry.py`.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
