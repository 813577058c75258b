"""COLMAP's conventions, in one place: its half pixel, its quaternions, and the import of pycolmap."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import import_optional

Matrix = NDArray[np.float64]
Numbers = TypeVar("Numbers", bound=NDArray[np.floating[Any]])


def import_pycolmap() -> Any:
    """Return the package pycolmap, or raise `MissingDependencyError` with the line that installs it."""
    before = None if "pycolmap" in sys.modules else signal.getsignal(signal.SIGTERM)
    pycolmap = import_optional("pycolmap", "pycolmap", "map", "mapping")
    if before is not None:
        with suppress(ValueError):  # not in the main thread, where alone it can be done
            signal.signal(signal.SIGTERM, before)  # pycolmap's own handler prints a trace of its C++ functions
    return pycolmap


def to_colmap(pixels: Numbers) -> Numbers:
    """Return pixels as COLMAP counts them: (0.5, 0.5) is the centre of the top-left pixel, which is (0, 0) here."""
    return np.add(pixels, 0.5)


def from_colmap(pixels: Numbers) -> Numbers:
    """Return pixels of COLMAP's as they are counted here; the inverse of `to_colmap`."""
    return np.subtract(pixels, 0.5)


def quaternion_of(R: ArrayLike) -> Matrix:
    """Return the unit quaternion (w, x, y, z), w >= 0, of a rotation matrix (3, 3)."""
    x, y, z, w = import_pycolmap().Rotation3d(np.asarray(R, np.float64)).quat
    q = np.array([w, x, y, z])
    return q if w >= 0 else -q


def rotation_of(q: ArrayLike) -> Matrix:
    """Return the rotation matrix (3, 3) of a quaternion (w, x, y, z) of any length above 0."""
    w, x, y, z = np.asarray(q, np.float64) / np.linalg.norm(q)
    return np.asarray(import_pycolmap().Rotation3d([x, y, z, w]).matrix())
