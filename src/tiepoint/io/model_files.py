"""COLMAP's model files: read and written with checks that they are whole, which COLMAP leaves out."""

from __future__ import annotations

import errno
import math
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..geometry.colmap import import_pycolmap
from .files import check_image_name, open_file


def read_model(folder: str | os.PathLike[str]) -> Any:
    """Read a COLMAP model from a folder of its files.

    COLMAP trusts the counts in its binary files, and reads for ever where they are wrong. So they are checked first.

    Returns
    -------
    pycolmap.Reconstruction

    Raises
    ------
    InputError
        A file is missing or damaged, holds numbers that are not finite, or a name that is no path below the folder of
        the photographs.
    MissingDependencyError
        pycolmap is not installed.
    """
    pycolmap, folder = import_pycolmap(), Path(folder)
    if all((folder / name).exists() for name in ("cameras.bin", "images.bin", "points3D.bin")):
        check_binary_model(folder)
    try:
        model = pycolmap.Reconstruction(folder)
        for camera in model.cameras.values():
            if not (camera.verify_params() and np.isfinite(camera.params).all() and min(camera.width, camera.height)):
                raise ValueError(f"camera {camera.camera_id} makes no sense: {camera.params.tolist()}")
        for image in model.images.values():
            check_image_name(image.name, folder)
    except InputError:
        raise
    except (RuntimeError, ValueError, LookupError, TypeError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder}: cannot be read as a COLMAP model ({reason}); make it anew") from error
    return model


def write_model(model: Any, folder: str | os.PathLike[str], text: bool = False) -> None:
    """Write a COLMAP model into a folder that exists.

    COLMAP does not notice when the disk is full. So what it wrote is looked through.

    Parameters
    ----------
    model : pycolmap.Reconstruction
    folder : path
    text : bool
        ``.txt`` files instead of ``.bin`` ones.

    Raises
    ------
    OSError
        What was written cannot be read back: the disk is full, or the model has numbers that are not finite.
    """
    folder = Path(folder)
    try:
        (model.write_text if text else model.write_binary)(folder)
        if text:
            _check_text_model(model, folder)
        else:
            check_binary_model(folder)
    except (RuntimeError, ValueError) as error:
        raise _incomplete(str(error)) from error


def write_points(model: Any, path: Path) -> None:
    """Write the points of a model, with their colours, as a binary PLY file; raises `OSError` if not all fit."""
    model.export_PLY(path)
    if path.stat().st_size < 15 * model.num_points3D():  # three float32 and three bytes each
        raise _incomplete("some points are missing")


def _incomplete(reason: str) -> OSError:
    return OSError(errno.EIO, f"what COLMAP wrote cannot be read back ({reason}); is the disk full?")


def check_binary_model(folder: Path) -> None:
    """Raise `InputError` unless the binary files of a model are as long as they say, and all their numbers finite."""
    for name, check in _RECORDS.items():
        path = folder / name
        if name in ("rigs.bin", "frames.bin") and not path.exists():  # older models have none
            continue
        try:
            with open_file(path) as stream:
                data = memoryview(stream.read())
            (count,) = struct.unpack_from("<Q", data)
            at = 8
            for _ in range(count):
                at = check(data, at)
            if at != len(data):
                raise ValueError(f"{len(data) - at} bytes too long")
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
        except InputError:
            raise
        except (struct.error, ValueError, OverflowError) as error:
            raise InputError(f"{path}: damaged or cut off ({error}); make the model anew") from error


def _camera_record(data: memoryview, at: int) -> int:
    _, model, _, _ = struct.unpack_from("<IiQQ", data, at)
    pycolmap = import_pycolmap()
    kind = pycolmap.CameraModelId(model)
    return at + 24 + 8 * len(pycolmap.Camera.create_from_model_id(0, kind, 1.0, 1, 1).params)


def _rig_record(data: memoryview, at: int) -> int:
    _, sensors = struct.unpack_from("<II", data, at)
    at += 8
    for number in range(sensors):
        at += 8
        if number:  # the first is the reference, and has no pose of its own
            (has_pose,) = struct.unpack_from("<B", data, at)
            at += 1 + (56 if has_pose else 0)
        if at > len(data):
            raise ValueError(f"it says that a rig has {sensors} sensors")
    return at


def _frame_record(data: memoryview, at: int) -> int:
    *_, count = _finite("<II7dI", data, at)
    return at + 68 + 16 * count


def _image_record(data: memoryview, at: int) -> int:
    _finite("<I7dI", data, at)
    at += 64
    end = bytes(data[at : at + 4096]).find(b"\0")
    if end < 0:
        raise ValueError("a name without an end")
    at += end + 1
    (count,) = struct.unpack_from("<Q", data, at)
    if 24 * count > len(data) - at - 8:
        raise ValueError(f"it says that an image has {count} keypoints")
    keypoints = np.frombuffer(data, [("xy", "<f8", 2), ("point", "<u8")], count, at + 8)["xy"]
    if not np.isfinite(keypoints).all():
        raise ValueError("keypoints that are not finite")
    return at + 8 + 24 * count


def _point_record(data: memoryview, at: int) -> int:
    *_, count = _finite("<Q3d3BdQ", data, at)
    return at + 51 + 8 * count


def _finite(form: str, data: memoryview, at: int) -> tuple[Any, ...]:
    values = struct.unpack_from(form, data, at)
    if not math.isfinite(sum(values)):
        raise ValueError("numbers that are not finite")
    return values


_RECORDS = {
    "cameras.bin": _camera_record,
    "rigs.bin": _rig_record,
    "frames.bin": _frame_record,
    "images.bin": _image_record,
    "points3D.bin": _point_record,
}
"""Functions that skip one record of a file, and return where the next one begins."""


def _check_text_model(model: Any, folder: Path) -> None:
    counts = {
        "cameras.txt": model.num_cameras(),
        "images.txt": 2 * model.num_reg_images(),
        "points3D.txt": model.num_points3D(),
    }
    for name, count in counts.items():
        with (folder / name).open("rb") as stream:
            lines, last = 0, b"\n"
            for last in stream:
                lines += not last.startswith(b"#")
        if lines < count or not last.endswith(b"\n"):
            raise ValueError(f"{name} has {lines} of {count} lines")
