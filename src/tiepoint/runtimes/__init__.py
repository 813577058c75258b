"""Running what ``tiepoint export`` wrote, without PyTorch: `open_exported`; `run` is the program itself.

Nothing here imports torch: ``from tiepoint.runtimes import open_exported`` works where it is not installed.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ArgumentError, MissingDependencyError, WeightsError
from .run import MANIFEST, Exported, Found, Keypoints


def is_exported(weights: str) -> bool:
    """Whether the WEIGHTS of ``name@WEIGHTS`` are a folder, which they are only if they were exported."""
    return bool(weights) and Path(weights).is_dir()


def check_device(device: object) -> None:
    """Refuse any device but the CPU, which is where exported folders run; ``"auto"`` and None mean it.

    Raises
    ------
    ArgumentError
        It is another one.

    Examples
    --------
    >>> check_device("cuda:1")
    Traceback (most recent call last):
    tiepoint.errors.ArgumentError: ...runs on the CPU only, not on 'cuda:1'; leave the device out, or give 'cpu'
    """
    if device is not None and str(device).partition(":")[0] not in ("auto", "cpu"):
        raise ArgumentError(
            f"what tiepoint export wrote runs on the CPU only, not on {str(device)!r}; "
            "leave the device out, or give 'cpu'"
        )


def open_exported(folder: str | os.PathLike[str], threads: int | None = None) -> Exported:
    """Open an exported folder.

    Parameters
    ----------
    folder : path
        What ``tiepoint export`` wrote.
    threads : int, optional
        Threads of one operator; by default the runtime chooses.

    Returns
    -------
    Exported
        Its ``extract`` takes RGB pixels, its ``match`` the keypoints of two pictures.

    Raises
    ------
    WeightsError
        There is no manifest, it is of another format, or a file is missing or has changed.
    MissingDependencyError
        ONNX Runtime or OpenVINO is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> pixels = np.zeros((480, 640, 3), np.uint8)
    >>> exported = open_exported("exported")  # doctest: +SKIP
    >>> exported.match(exported.extract(pixels), exported.extract(pixels)).pairs  # doctest: +SKIP
    """
    try:
        return Exported(folder, threads)
    except ModuleNotFoundError as error:
        extra = "openvino" if error.name == "openvino" else "onnx"
        raise MissingDependencyError(str(error.name), extra, f"running {folder}") from error
    except ValueError as error:
        raise WeightsError(str(error)) from error


__all__ = ["MANIFEST", "Exported", "Found", "Keypoints", "check_device", "is_exported", "open_exported"]
