"""Trajectories as the tools of two benchmarks read them: TUM RGB-D, and KITTI odometry."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...geometry.colmap import quaternion_of
from ...io.files import atomic

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pose:
    """Where the camera was at one time: ``x_camera = R x_world + t``, world unit as in `Tracker`.

    Attributes
    ----------
    index, time
        Of the `Frame`.
    R, t : float64 arrays (3, 3) and (3,)
        World to camera.
    """

    index: int
    time: float
    R: Array
    t: Array

    @property
    def centre(self) -> Array:
        """Where the camera stood, float64 (3,), in the world's frame."""
        return -self.R.T @ self.t


def write_tum(path: str | os.PathLike[str], poses: Iterable[Pose]) -> None:
    """Write a trajectory as TUM's tools read it: ``time tx ty tz qx qy qz qw`` a line, camera to world.

    t is where the camera is, q turns its axes (x right, y down, z forward) into the world's.

    Raises
    ------
    InputError
        The file cannot be written.

    References
    ----------
    Sturm et al., A Benchmark for the Evaluation of RGB-D SLAM Systems, IROS 2012.
    """
    lines = ["# time tx ty tz qx qy qz qw (camera to world)"]
    for pose in poses:
        w, x, y, z = quaternion_of(pose.R.T)
        numbers = " ".join(f"{value:.9g}" for value in (*pose.centre, x, y, z, w))
        lines.append(f"{pose.time:.6f} {numbers}")
    with atomic(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_kitti(path: str | os.PathLike[str], poses: Iterable[Pose]) -> None:
    """Write a trajectory as KITTI's odometry tools read it: a line holds the rows of [R | t], camera to world.

    KITTI's format has no times; they go to a second file beside the first, ``path_times.txt`` for ``path.kitti``, with
    as many lines.

    Raises
    ------
    InputError
        A file cannot be written.

    References
    ----------
    Geiger, Lenz and Urtasun, Are we ready for Autonomous Driving? The KITTI Vision Benchmark Suite, CVPR 2012.
    """
    rows, times = [], []
    for pose in poses:
        matrix = np.column_stack([pose.R.T, pose.centre])
        rows.append(" ".join(f"{value:.9e}" for value in matrix.ravel()))
        times.append(f"{pose.time:.6f}")
    for target, lines in ((Path(path), rows), (kitti_times(path), times)):
        with atomic(target) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def kitti_times(path: str | os.PathLike[str]) -> Path:
    """Return the file of times that belongs to a trajectory of `write_kitti`.

    Examples
    --------
    >>> kitti_times("drive.kitti").name
    'drive_times.txt'
    """
    target = Path(path)
    return target.with_name(f"{target.stem}_times.txt")
