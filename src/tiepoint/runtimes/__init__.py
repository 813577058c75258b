"""Running what ``tiepoint export`` wrote, without PyTorch: `open_exported`; `run` is the program itself.

Nothing here imports torch: ``from tiepoint.runtimes import open_exported`` works where it is not installed.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import MissingDependencyError, WeightsError
from .run import MANIFEST, Exported, Found, Keypoints


def is_exported(weights: str) -> bool:
    """Whether the WEIGHTS of ``name@WEIGHTS`` are a folder, which they are only if they were exported."""
    return bool(weights) and Path(weights).is_dir()


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


__all__ = ["MANIFEST", "Exported", "Found", "Keypoints", "is_exported", "open_exported"]
