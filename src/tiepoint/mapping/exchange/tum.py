"""Trajectories in the format of the TUM RGB-D benchmark."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

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
