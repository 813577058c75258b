"""Turning what callers pass into float64 arrays of the expected shape, or into an `ArgumentError`."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError

Array = NDArray[np.float64]


def as_array(value: ArrayLike, shape: tuple[int | None, ...], name: str) -> Array:
    """Return ``value`` as float64, checked against ``shape`` (None matches any length)."""
    wanted = f"({', '.join('N' if n is None else str(n) for n in shape)}{',' if len(shape) == 1 else ''})"
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{name} must be an array of numbers of shape {wanted}: {error}") from error
    if array.ndim != len(shape) or any(n is not None and n != m for n, m in zip(shape, array.shape, strict=True)):
        raise ArgumentError(f"{name} must have shape {wanted}, not {array.shape}")
    return array


def as_point_pairs(points0: ArrayLike, points1: ArrayLike) -> tuple[Array, Array]:
    """Return two float64 arrays (N, 2) of equal length."""
    p0, p1 = as_array(points0, (None, 2), "points0"), as_array(points1, (None, 2), "points1")
    if len(p0) != len(p1):
        raise ArgumentError(f"points0 and points1 must correspond row by row, but have {len(p0)} and {len(p1)} rows")
    return p0, p1


def homogeneous(points: Array) -> Array:
    """Append a 1 to every row: (N, 2) -> (N, 3)."""
    return np.column_stack([points, np.ones(len(points))])
