"""A folder of photographs -> what a `Store` is to know of them: cameras from EXIF, and who shares one."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from ..errors import ArgumentError, InputError
from ..geometry.camera import FOCAL_FACTOR
from ..geometry.colmap import import_pycolmap
from ..io.exif import Exif, read_exif
from ..io.files import check_image_name
from ..types import Image
from .store import NewImage

if TYPE_CHECKING:
    import pycolmap

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".mpo", ".png", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".bmp", ".gif")
# Photographs that tiepoint cannot read. They are looked for so that people learn why they are missing.
FOREIGN_SUFFIXES = (".heic", ".heif", ".avif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2")

Share = Literal["auto", "folder", "image", "all"]
SHARES: tuple[Share, ...] = ("auto", "folder", "image", "all")


def camera_of(
    source: str | os.PathLike[str] | Image, model: str = "SIMPLE_RADIAL", focal: float | None = None
) -> pycolmap.Camera:
    """Return the camera that took a photograph, as far as its EXIF tells.

    Parameters
    ----------
    source : path or Image
        An `Image` carries no EXIF.
    model : str
        One of COLMAP's camera models.
    focal : float, optional
        Focal length in pixels of the upright photograph, where it is known better.

    Returns
    -------
    pycolmap.Camera
        In COLMAP's convention, principal point in the middle, no distortion. ``has_prior_focal_length`` is False where
        nobody knows the focal length and it is assumed to be 1.2 times the long side.

    Raises
    ------
    ArgumentError
        Unknown model, or a focal length that is not positive.
    InputError
        The file cannot be read.
    MissingDependencyError
        pycolmap is not installed.

    Warns
    -----
    UserWarning
        EXIF holds an absurd focal length, which is ignored.

    Examples
    --------
    >>> import numpy as np
    >>> camera = camera_of(Image(np.zeros((480, 640, 3), np.uint8)))
    >>> camera.model_name, camera.params.tolist(), camera.has_prior_focal_length
    ('SIMPLE_RADIAL', [768.0, 320.0, 240.0, 0.0], False)
    """
    exif = Exif(source.size) if isinstance(source, Image) else read_exif(source)
    if exif.warning:
        warnings.warn(exif.warning, stacklevel=2)
    return _camera(exif, model, focal)


def new_images(
    folder: str | os.PathLike[str],
    names: Iterable[str] | None = None,
    share: Share = "auto",
    model: str = "SIMPLE_RADIAL",
    focal: float | None = None,
) -> tuple[list[NewImage], list[tuple[str, str]]]:
    """Look at all photographs of a folder and its sub-folders, by their headers only.

    Parameters
    ----------
    folder : path
        Hidden files and folders, and files that are no photographs by their suffix, are passed over.
    names : iterable of str, optional
        Only these: paths relative to the folder, with forward slashes.
    share : {"auto", "folder", "image", "all"}
        Which photographs of one size share a camera: those of each sub-folder, none, or all. ``"auto"``: those in
        whose EXIF camera and zoom are the same; of those without EXIF all of a sub-folder, if they are of one size
        or that on its side, as one camera makes them, and none if not, as in collections from the internet.
    model, focal
        See `camera_of`.

    Returns
    -------
    found : list of NewImage
        By name. Of the photographs that share a camera, the first with a known focal length decides.
    skipped : list of (name, reason)
        Photographs that cannot be read, and all but the first of files that are the same byte for byte.

    Raises
    ------
    ArgumentError
        Unknown way of sharing or model, or a focal length that is not positive.
    InputError
        The folder does not exist.
    MissingDependencyError
        pycolmap is not installed.

    Warns
    -----
    UserWarning
        EXIF of a photograph holds an absurd focal length, which is ignored.

    Examples
    --------
    >>> import tempfile
    >>> import PIL.Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     PIL.Image.new("RGB", (640, 480), "red").save(Path(folder, "a.png"))
    ...     _ = Path(folder, "b.png").write_bytes(Path(folder, "a.png").read_bytes())
    ...     found, skipped = new_images(folder)
    >>> [(image.name, image.camera_key) for image in found]
    [('a.png', 'folder . 640x480')]
    >>> skipped
    [('b.png', 'the same as a.png, byte for byte')]
    """
    root = Path(folder)
    if share not in SHARES:
        raise ArgumentError(f"cameras cannot be shared by {share!r}; there are: {', '.join(SHARES)}")
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder of the photographs")
    _camera(Exif((1, 1)), model, focal)  # complain about these before reading a million files
    candidates = _walk(root) if names is None else sorted(set(names))

    skipped = {name: f"the same as {first}, byte for byte" for name, first in _duplicates(root, candidates).items()}
    exifs: dict[str, Exif] = {}
    with ThreadPoolExecutor() as pool:
        todo = [name for name in candidates if name not in skipped]
        for name, outcome in zip(todo, pool.map(lambda name: _try_exif(root, name), todo), strict=True):
            if isinstance(outcome, str):
                skipped[name] = outcome
            else:
                exifs[name] = outcome
                if outcome.warning:  # not in the threads, some of which silence warnings for all
                    warnings.warn(outcome.warning, stacklevel=2)

    keys = _keys(exifs, share)
    cameras: dict[str, pycolmap.Camera] = {}
    for known in (True, False):  # those with a focal length first
        for name, exif in exifs.items():
            key = keys[name]
            if key is not None and key not in cameras and (exif.focal is not None) is known:
                cameras[key] = _camera(exif, model, focal)
    found = []
    for name, exif in exifs.items():
        key = keys[name]
        camera = _camera(exif, model, focal) if key is None else cameras[key]
        found.append(NewImage(name, camera, key, exif.position))
    return found, sorted(skipped.items())


def _walk(root: Path) -> list[str]:
    """Return the names of all files that are photographs by their suffix, sorted."""
    names = []
    for parent, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in files:
            if not file.startswith(".") and file.lower().endswith(SUFFIXES + FOREIGN_SUFFIXES):
                names.append(Path(parent, file).relative_to(root).as_posix())
    return sorted(names)


def _duplicates(root: Path, names: Sequence[str]) -> dict[str, str]:
    """Return name -> the first name of a file with the same bytes. Only files of the same size are read."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for name in names:
        path = root / name
        if path.is_file():
            by_size[path.stat().st_size].append(name)
    first: dict[bytes, str] = {}
    same = {}
    for alike in by_size.values():
        for name in alike if len(alike) > 1 else ():
            try:
                digest = hashlib.blake2b((root / name).read_bytes()).digest()
            except OSError:  # reading its header will say why
                continue
            if first.setdefault(digest, name) != name:
                same[name] = first[digest]
    return same


def _try_exif(root: Path, name: str) -> Exif | str:
    """Return what the header says, or why the photograph cannot be used."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not valid UTF-8, and a database cannot hold it; rename the file"
    try:
        check_image_name(name, root)
        return read_exif(root / name)
    except InputError as error:
        return str(error)


def _keys(exifs: Mapping[str, Exif], share: Share) -> dict[str, str | None]:
    """Return name -> key of the camera, which tells sizes apart: a camera has only one."""
    parents = {name: str(PurePosixPath(name).parent) for name in exifs}
    shapes: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    for name, exif in exifs.items():
        if exif.camera is None:
            shapes[parents[name]].add(tuple(sorted(exif.size)))

    def key(name: str, exif: Exif) -> str | None:
        if share == "all":
            return "all"
        if share == "auto" and exif.camera is not None:
            return f"exif {exif.camera}"
        if share == "folder" or (share == "auto" and len(shapes[parents[name]]) == 1):
            return f"folder {parents[name]}"
        return None

    found = {name: key(name, exif) for name, exif in exifs.items()}
    return {
        name: None if key is None else f"{key} {exifs[name].size[0]}x{exifs[name].size[1]}"
        for name, key in found.items()
    }


def _camera(exif: Exif, model: str, focal: float | None) -> pycolmap.Camera:
    pycolmap = import_pycolmap()
    known = [name for name in pycolmap.CameraModelId.__members__ if name != "INVALID"]
    if model not in known:
        raise ArgumentError(f"no camera model is called {model!r}; there are: {', '.join(known)}")
    if focal is not None and not (math.isfinite(focal) and focal > 0):
        raise ArgumentError(f"a focal length is a positive number of pixels, not {focal}")
    width, height = exif.size
    given = focal or exif.focal
    length = given or FOCAL_FACTOR * max(exif.size)
    camera = pycolmap.Camera.create_from_model_name(0, model, length, width, height)
    camera.has_prior_focal_length = given is not None
    return camera
