"""Does closing loops help? `tiepoint track` with and without, where the true path is known.

- ``ring``: a made-up corridor around a block, of our own rendering, walked round a little more than once in 300 frames.
  The walls are covered with noise of all scales, 320 x 240 pixels, no noise of a sensor.
- ``noisy``: the same with noise of a sensor (sigma 12 of 255) and 250 keypoints instead of 600: more drift.
- ``lap``: the same room without the block, the camera close to the walls and turned outwards. It begins in a corner: in
  front of a single plane a start may come out wrong, which has nothing to do with loops.
- ``kitti``: the first 51 frames of KITTI's sequence 00 (see ``odometry.py``), which hold no loop: none may be found.

ATE is the root mean square distance of camera centres from the true ones after one similarity transform (Umeyama, PAMI
13 (4), 1991), over all frames with a pose.

``python benchmarks/loop_closure.py`` writes ``results/loop_closure/``.
"""

from __future__ import annotations

import datetime
import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from numpy.typing import NDArray

from odometry import DATA, align, centres, smooth_path
from tiepoint.geometry import Camera
from tiepoint.io.video import Frame, read_frames
from tiepoint.mapping.online.track import Tracker

HERE = Path(__file__).parent
WAYS = ("ring", "noisy", "lap", "kitti")
FRAMES = 300
CAMERA = Camera.from_focal(260.0, (320, 240))
OUTER, INNER, HEIGHT = (5.0, 7.0), (2.6, 4.6), 1.6  # half extents of room and block, in metres: a corridor of 2.4 m
PIXELS = 80  # of the pattern, a metre

Array = NDArray[np.float64]
Pose = tuple[Array, Array]


def main(
    ways: Annotated[list[str] | None, typer.Argument(help="ring, noisy, lap, kitti; by default all.")] = None,
    frames: Annotated[int, typer.Option(help="Of each made-up way.")] = FRAMES,
    output: Annotated[Path, typer.Option("-o", "--output")] = HERE / "results" / "loop_closure",
) -> None:
    """Run some ways, print and write a table; rows of other ways that are there already stay."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    output.mkdir(parents=True, exist_ok=True)
    table = output / "loop_closure.json"
    result = json.loads(table.read_text()) if table.exists() else {"rows": []}
    for way in ways or WAYS:
        rows = []
        for loops in (False, True):
            film, camera, true, options = kitti() if way == "kitti" else made_up(way, frames)
            rows.append(
                {"way": way, "date": datetime.date.today().isoformat(), **run(film, camera, true, loops, **options)}
            )
            print(rows[-1], file=sys.stderr, flush=True)
        others = [row for row in result["rows"] if row["way"] != way]
        result = {"machine": machine(), "rows": sorted(others + rows, key=lambda row: WAYS.index(row["way"]))}
        table.write_text(json.dumps(result, indent=1) + "\n")
    text = markdown(result)
    (output / "loop_closure.md").write_text(text)
    sys.stdout.write(text)


def made_up(way: str, frames: int) -> tuple[Iterator[Frame], Camera, Array, dict[str, Any]]:
    """Return frames of our own rendering, their camera, where it truly was, and the tracker's options."""
    poses = lap(frames) if way == "lap" else ring(frames)
    scene = Scene(seed=1, block=way != "lap")
    rng = np.random.default_rng(2)

    def picture(pose: Pose) -> NDArray[np.uint8]:
        pixels = scene.photograph(pose)
        if way != "noisy":
            return pixels
        return np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)

    film = (Frame(n, n / 10, picture(pose), f"{n:06d}") for n, pose in enumerate(poses))
    keypoints = 250 if way == "noisy" else 600
    return film, CAMERA, np.array([-R.T @ t for R, t in poses]), {"max_keypoints": keypoints}


def kitti() -> tuple[Iterator[Frame], Camera, Array, dict[str, Any]]:
    """Return the same of KITTI's frames; true places as ``odometry.py`` puts them together."""
    pairs = json.loads((DATA / "pairs.json").read_text())["pairs"]
    for pair in pairs:
        pair["i"], pair["j"] = (int(Path(pair[key]).stem) for key in ("image0", "image1"))
    true = centres(smooth_path(pairs, max(pair["j"] for pair in pairs) + 1))
    frames = [
        Frame(int(Path(frame.name).stem), frame.time, frame.pixels, frame.name)
        for frame in read_frames(DATA / "images")
    ]
    height, width = frames[0].pixels.shape[:2]
    return iter(frames), Camera.from_K(pairs[0]["K0"], (width, height)), true, {"long_side": max(height, width)}


def run(film: Iterator[Frame], camera: Camera, true: Array, loops: bool, **options: Any) -> dict[str, Any]:
    """Follow a camera; return what became of it."""
    tracker = Tracker(camera, "sift", "nearest", loops=loops, **options)
    seconds, count, lost = 0.0, 0, 0
    for frame in film:
        begin = time.process_time()
        lost += tracker(frame).status == "lost"
        seconds += time.process_time() - begin
        count += 1
    closed = sum(not loop.refused for loop in tracker.loops)
    begin = time.process_time()
    if closed:  # as `tiepoint.track` does
        tracker.adjust()
    seconds += time.process_time() - begin
    path = tracker.trajectory()
    moved, target = align(np.array([pose.centre for pose in path]), true[[pose.index for pose in path]])
    error = np.linalg.norm(moved - target, axis=1)
    length = float(np.linalg.norm(np.diff(target, axis=0), axis=1).sum())
    return {
        "loops": "closed" if loops else "off",
        "frames": count,
        "with a pose": len(path),
        "lost": lost,
        "key frames": tracker.reconstruction.num_reg_images(),
        "found": len(tracker.loops),
        "closed": closed,
        "length m": round(length, 1),
        "ATE m": round(float(np.sqrt((error**2).mean())), 4),
        "ATE %": round(100 * float(np.sqrt((error**2).mean())) / length, 3),
        "max m": round(float(error.max()), 4),
        "CPU s/frame": round(seconds / count, 3),
    }


class Scene:
    """A room of x in ±5, z in ±7, y in ±1.6 m with a block in its middle; all is covered with a pattern."""

    def __init__(self, seed: int, block: bool) -> None:
        rng = np.random.default_rng(seed)
        self.block = block
        self.patterns = [pattern(rng) for _ in range(10)]

    def photograph(self, pose: Pose) -> NDArray[np.uint8]:
        """Return the RGB picture (H, W, 3) of a camera at a pose (R, t), world to camera."""
        R, t = pose
        x, y = np.meshgrid(np.arange(CAMERA.width), np.arange(CAMERA.height))
        rays = CAMERA.normalise(np.column_stack([x.ravel(), y.ravel()]))
        direction, origin = np.column_stack([rays, np.ones(len(rays))]) @ R, -R.T @ t
        with np.errstate(divide="ignore", invalid="ignore"):
            planes = np.array([OUTER[0], HEIGHT, OUTER[1]])
            ways = (np.sign(direction) * planes - origin) / direction
            side, distance = ways.argmin(axis=1), ways.min(axis=1)
            wall = 2 * side + (direction[np.arange(len(side)), side] > 0)
            if self.block:
                half = np.array(INNER)
                d, o = direction[:, ::2], origin[::2]
                enter, leave = (-np.sign(d) * half - o) / d, (np.sign(d) * half - o) / d
                near, far = enter.max(axis=1), leave.min(axis=1)
                hit = (near < far) & (near > 0) & (near < distance)
                axis = enter.argmax(axis=1)
                distance = np.where(hit, near, distance)
                side = np.where(hit, 2 * axis, side)
                wall = np.where(hit, 6 + 2 * axis + (d[np.arange(len(axis)), axis] > 0), wall)
        point = origin + distance[:, None] * direction
        across = np.array([[2, 1], [0, 2], [0, 1]])[side]
        u, v = ((np.take_along_axis(point, across, axis=1) + 8) * PIXELS).astype(np.float32).T
        colour = np.zeros((len(point), 3), np.uint8)
        for number, texture in enumerate(self.patterns):
            for rows in np.array_split(np.flatnonzero(wall == number), 4):  # cv2.remap takes at most 32767 columns
                if len(rows):
                    colour[rows] = cv2.remap(texture, u[None, rows], v[None, rows], cv2.INTER_LINEAR)[0]
        return colour.reshape(CAMERA.height, CAMERA.width, 3)


def pattern(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return noise of all scales, uint8 (1280, 1280, 3)."""
    side = 16 * PIXELS
    total = np.zeros((side, side, 3))
    for cells in (10, 30, 90, 270):
        total += cv2.resize(rng.normal(0, 1, (cells, cells, 3)), (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip(127 + 35 * total, 0, 255).astype(np.uint8)


def ring(count: int) -> list[Pose]:
    """Walk through the corridor around the block, 1.1 times, looking ahead and a little outwards."""
    return [walk(a, (3.8, 5.8), 0.25) for a in np.linspace(0, 2.2 * np.pi, count)]


def lap(count: int) -> list[Pose]:
    """Walk round the room 1.1 times, near its walls, looking more at the wall than ahead."""
    return [walk(a, (3.4, 5.4), 0.9) for a in np.linspace(0.2 * np.pi, 2.4 * np.pi, count)]


def walk(angle: float, half: tuple[float, float], outwards: float) -> Pose:
    """Return a pose on a rectangle with round corners; the angle is of the way around, ``outwards`` in radians."""

    def place(a: float) -> Array:
        ca, sa = np.cos(a), np.sin(a)
        round_off = (abs(ca) ** 4 + abs(sa) ** 4) ** 0.25  # a superellipse
        return np.array([half[0] * sa / round_off, 0.1 * np.sin(5 * a), -half[1] * ca / round_off])

    forward = place(angle + 1e-4) - place(angle - 1e-4)
    yaw = np.arctan2(forward[0], forward[2]) + outwards
    pitch = 0.04 * np.sin(7 * angle)
    right = np.array([np.cos(yaw), 0, -np.sin(yaw)])
    ahead = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    R = np.stack([right, np.cross(ahead, right), ahead])
    return R, -R @ place(angle)


def machine() -> str:
    """Return the processor and what runs on it."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return f"{cpu}, one thread, Python {platform.python_version()}, torch {torch.__version__}"


def markdown(result: dict[str, Any]) -> str:
    """Return the table and what it was measured on."""
    names = list(result["rows"][0])
    lines = [
        "# Loop closure",
        "",
        f"{result['machine']}. SIFT and nearest neighbours. See `benchmarks/loop_closure.py`.",
        "",
        "| " + " | ".join(names) + " |",
        "|" + "---|" * len(names),
        *("| " + " | ".join(str(row[name]) for name in names) + " |" for row in result["rows"]),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
