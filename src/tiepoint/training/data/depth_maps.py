"""Reads depth maps: COLMAP's dense stereo, NumPy, HDF5, 16-bit PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...io.arrays import hdf5_array, import_h5py
from ...io.files import open_file
from ...io.images import read_numbers

Matrix = NDArray[np.float64]


def read_depth(path: Path, unit: float = 1.0) -> NDArray[np.float32]:
    """Read a depth map; 0 where nothing was measured.

    Parameters
    ----------
    path : Path
        ``.bin`` (COLMAP's dense stereo), ``.npy``, ``.h5`` (data set ``depth``) or 16-bit ``.png`` (65535
        also means "not measured").
    unit : float
        Length of one step of an integer map.

    Returns
    -------
    float32 array (H, W)

    Raises
    ------
    InputError
        The file is missing, damaged, or not a depth map.
    """
    readers = {".bin": _read_bin, ".npy": _read_npy, ".h5": _read_h5, ".png": _read_png}
    if path.suffix not in readers:
        raise InputError(f"{path}: depth maps end in {', '.join(readers)}")
    depth = readers[path.suffix](path)
    if depth.ndim != 2 or depth.size == 0:
        raise InputError(f"{path}: a depth map has shape (height, width), not {depth.shape}")
    if np.issubdtype(depth.dtype, np.integer):
        depth = depth * np.float32(unit)
    return np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)


def _read_bin(path: Path) -> NDArray[Any]:
    """Read "width&height&channels&" and rows of float32, as COLMAP's dense stereo writes them."""
    with open_file(path) as file:
        content = file.read()
    try:
        *sizes, values = content.split(b"&", 3)
        width, height, channels = map(int, sizes)
        if channels != 1:
            raise ValueError(f"{channels} channels")
        return np.frombuffer(values, "<f4").reshape(height, width)
    except ValueError as error:
        raise InputError(f"{path}: not a depth map as COLMAP's dense stereo writes them ({error})") from error


def _read_npy(path: Path) -> NDArray[Any]:
    try:
        with open_file(path) as file:
            return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot read this array: {error}") from error


def _read_h5(path: Path) -> NDArray[Any]:
    h5py = import_h5py()
    try:
        with open_file(path) as stream, h5py.File(stream) as file:
            depth = hdf5_array(file, "depth", str(path))
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: not an HDF5 file: {error}") from error
    # MegaDepth marks maps that only order near and far by negative numbers. They measure nothing.
    return np.zeros_like(depth) if (depth < 0).any() else depth


def _read_png(path: Path) -> NDArray[Any]:
    depth = read_numbers(path)
    if depth.ndim != 2 or depth.dtype.kind not in "ui" or depth.dtype.itemsize < 2:
        raise InputError(f"{path}: a depth map is a 16-bit grey PNG, not {depth.dtype} of shape {depth.shape}")
    return np.where(depth == 65535, 0, depth.astype(np.int32))


def scale_intrinsics(K: Matrix, x: float, y: float) -> Matrix:
    """Return the intrinsics of an image resized by the factors ``x`` and ``y``.

    Examples
    --------
    >>> scale_intrinsics(np.array([[100.0, 0, 49.5], [0, 100, 39.5], [0, 0, 1]]), 0.5, 0.5)[:2].tolist()
    [[50.0, 0.0, 24.5], [0.0, 50.0, 19.5]]
    """
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]]) @ K
