"""COLMAP's conventions, in one place: its quaternions, and the import of pycolmap, which is optional."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import MissingDependencyError

Matrix = NDArray[np.float64]


def import_pycolmap() -> Any:
    """Return the package pycolmap, or raise `MissingDependencyError` with the line that installs it."""
    before = None if "pycolmap" in sys.modules else signal.getsignal(signal.SIGTERM)
    try:
        import pycolmap
    except ImportError as error:
        raise MissingDependencyError("pycolmap", "map", "mapping") from error
    if before is not None:
        with suppress(ValueError):  # not in the main thread, where alone it can be done
            signal.signal(signal.SIGTERM, before)  # pycolmap's own handler prints a trace of its C++ functions
    return pycolmap


def quaternion_of(R: ArrayLike) -> Matrix:
    """Return the unit quaternion (w, x, y, z), w >= 0, of a rotation matrix (Bar-Itzhack, JGCD 23 (6), 2000).

    It is the eigenvector of the largest eigenvalue of a symmetric matrix made of R: no case distinctions, and a
    matrix that is a rotation only nearly gives the nearest one.
    """
    (a, b, c), (d, e, f), (g, h, i) = np.asarray(R, np.float64)
    K = np.array(
        [
            [a + e + i, h - f, c - g, d - b],
            [h - f, a - e - i, b + d, c + g],
            [c - g, b + d, e - a - i, f + h],
            [d - b, c + g, f + h, i - a - e],
        ]
    )
    q = np.linalg.eigh(K)[1][:, -1]
    return q if q[0] >= 0 else -q


def rotation_of(q: Matrix) -> Matrix:
    """Return the rotation matrix of a quaternion (w, x, y, z)."""
    w, x, y, z = q / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
