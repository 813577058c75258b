"""A folder of photographs -> what a `Store` is to know of them: cameras from EXIF, and who shares one."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from ...errors import ArgumentError, InputError
from ...geometry.camera import FOCAL_FACTOR, Camera
from ...geometry.colmap import import_pycolmap
from ...io.contents import file_digest, numbered_lines
from ...io.exif import Exif, read_exif
from ...io.files import check_image_name, read_text
from ...io.folders import in_order, list_images
from ...io.images import check_readable
from ...types import Image
from ..store import NewImage

if TYPE_CHECKING:
    import pycolmap

DEFAULT_MODEL = "SIMPLE_RADIAL"
PANORAMA = "EQUIRECTANGULAR"

Size = tuple[int, int]  # width, height
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
    _check_model(model, focal)
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
    camera: str | os.PathLike[str] | None = None,
    bands: Sequence[int] | None = None,
) -> tuple[list[NewImage], list[tuple[str, str]]]:
    """Look at all photographs of a folder and its sub-folders, by their headers only.

    Parameters
    ----------
    folder : path
        Searched by `tiepoint.io.folders.list_images`.
    names : iterable of str, optional
        Only these: paths relative to the folder, with forward slashes.
    share : {"auto", "folder", "image", "all"}
        Which photographs of one size share a camera: those of each sub-folder, none, or all. ``"auto"``: those in
        whose EXIF camera and zoom are the same; of those without EXIF all of a sub-folder, if they are of one size
        or that on its side, as one camera makes them, and none if not, as in collections from the internet.
    model, focal
        See `camera_of`.
    camera : str or path, optional
        The cameras, where they are known: ``"MODEL:PARAMS"`` with COLMAP's parameters for photographs of one size, or
        a file as COLMAP's ``cameras.txt`` with one camera for each size. It excludes ``focal``, and another ``model``.
    bands : one or three ints, optional
        Which bands of the photographs will be used, see `tiepoint.read_image`.

    Returns
    -------
    found : list of NewImage
        In the order of their names, numbers counting as such. Of the photographs that share a camera, the first with a
        known focal length decides.
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
    _check_model(model, focal)  # before reading a million files
    given = None if camera is None else given_cameras(camera, model, focal)
    candidates = list_images(root) if names is None else in_order(set(names))

    skipped = {name: f"the same as {first}, byte for byte" for name, first in _duplicates(root, candidates).items()}
    exifs: dict[str, Exif] = {}
    with ThreadPoolExecutor() as pool:
        todo = [name for name in candidates if name not in skipped]
        for name, outcome in zip(todo, pool.map(lambda name: _try_exif(root, name, bands), todo), strict=True):
            if isinstance(outcome, str):
                skipped[name] = outcome
            else:
                exifs[name] = outcome
                if outcome.warning:  # not in the threads, some of which silence warnings for all
                    warnings.warn(outcome.warning, stacklevel=2)

    keys = _keys(exifs, share)
    named = {
        name: _camera(exif, model, focal) if given is None else known_camera(given, exif.size)
        for name, exif in exifs.items()
    }
    _check_cameras(named, given is not None or focal is not None)
    sizes = {exif.size for exif in exifs.values()}
    if given is not None and None in given and len(sizes) > 1:
        some = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:3])
        raise ArgumentError(
            f"--camera {camera}: cannot be right for photographs of {len(sizes)} sizes ({some}); give a cameras.txt "
            "with one camera for each"
        )
    shared: dict[str | None, pycolmap.Camera] = {}
    for name in sorted(exifs, key=lambda name: exifs[name].focal is None):  # those with a focal length first
        shared.setdefault(keys[name], named[name])
    found = [
        NewImage(name, named[name] if keys[name] is None else shared[keys[name]], keys[name], exif.position)
        for name, exif in exifs.items()
    ]
    return found, sorted(skipped.items())


def _duplicates(root: Path, names: Sequence[str]) -> dict[str, str]:
    """Return name -> the first name of a file with the same bytes. Only files of the same size are read."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for name in names:
        path = root / name
        if path.is_file():
            by_size[path.stat().st_size].append(name)
    first: dict[str, str] = {}
    same = {}
    for alike in by_size.values():
        for name in alike if len(alike) > 1 else ():
            try:
                digest = file_digest(root / name)
            except InputError:  # reading its header will say why
                continue
            if first.setdefault(digest, name) != name:
                same[name] = first[digest]
    return same


def _try_exif(root: Path, name: str, bands: Sequence[int] | None) -> Exif | str:
    """Return what the header says, or why the photograph cannot be used."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not valid UTF-8, and a database cannot hold it; rename the file"
    try:
        check_image_name(name, root)
        check_readable(root / name, bands)
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
        size = f"{exif.size[0]}x{exif.size[1]}"
        if share == "all":
            return f"all {size}"
        if share == "auto" and exif.camera is not None:
            return f"exif {exif.camera} {size}"
        if share == "folder" or (share == "auto" and len(shapes[parents[name]]) == 1):
            return f"folder {parents[name]} {size}"
        return None

    return {name: key(name, exif) for name, exif in exifs.items()}


def _check_model(model: str, focal: float | None) -> None:
    """Raise `ArgumentError` for what no photograph can make right."""
    known = [name for name in import_pycolmap().CameraModelId.__members__ if name != "INVALID"]
    if model not in known:
        raise ArgumentError(f"no camera model is called {model!r}; there are: {', '.join(known)}")
    if focal is not None and not (math.isfinite(focal) and focal > 0):
        raise ArgumentError(f"a focal length is a positive number of pixels, not {focal}")
    if focal is not None and model == PANORAMA:
        raise ArgumentError(f"{PANORAMA} has no focal length: its width is 360 degrees; leave --focal away")


def _camera(exif: Exif, model: str, focal: float | None) -> pycolmap.Camera:
    pycolmap = import_pycolmap()
    width, height = exif.size
    given = focal or exif.focal
    length = given or FOCAL_FACTOR * max(exif.size)
    camera = pycolmap.Camera.create_from_model_name(0, model, length, width, height)
    if model == "EUCM":  # COLMAP starts at a pinhole (alpha 0), from where beta cannot be found
        camera.params = [*camera.params[:4], 0.5, 1.0]
    camera.has_prior_focal_length = given is not None or model == PANORAMA
    return camera


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a file, or a pipe, which its reader refuses.

    A text that is no path at all, such as one of 300 letters, names none.
    """
    return os.path.exists(path) and not os.path.isdir(path)  # noqa: PTH110, PTH112 - pathlib raises


def given_cameras(
    text: str | os.PathLike[str], model: str = DEFAULT_MODEL, focal: float | None = None
) -> dict[Size | None, pycolmap.Camera]:
    """Return size -> camera of what ``--camera`` says; the size is None where only model and parameters are given.

    Raises
    ------
    ArgumentError, InputError
        Not ``MODEL:PARAMS``, nor a file as COLMAP's ``cameras.txt`` with one camera for each size.
    """
    if focal is not None:
        raise ArgumentError("--camera and --focal exclude each other: the camera's parameters begin with its focal")
    path = Path(text)
    cameras: dict[Size | None, pycolmap.Camera] = {}
    if is_file(text):
        for number, line in numbered_lines(read_text(path)):
            try:
                _, name, width, height, *params = line.split()
                one = _colmap_camera(name, (int(width), int(height)), [float(value) for value in params])
            except ValueError as error:
                raise InputError(f"{path}: line {number}: not ID MODEL WIDTH HEIGHT PARAMETERS ({error})") from error
            if (one.width, one.height) in cameras:
                raise InputError(f"{path}: line {number}: a second camera of {width}x{height}; leave one")
            cameras[one.width, one.height] = one
        if not cameras:
            raise InputError(f"{path}: holds no camera; a line is ID MODEL WIDTH HEIGHT PARAMETERS")
    else:
        if path.suffix.lower() == ".txt":
            raise ArgumentError(f"--camera {text}: no such file; give a cameras.txt, or MODEL:PARAMETERS")
        name, *values = str(text).replace(":", " ").replace(",", " ").split() or [""]
        try:
            numbers = [float(value) for value in values]
        except ValueError as error:
            raise ArgumentError(
                f"--camera {text!r}: give a file cameras.txt, or a model and numbers, e.g. PINHOLE:700,700,640,360"
            ) from error
        cameras = {None: _colmap_camera(name.upper(), (1, 1), numbers)}
    other = {one.model_name for one in cameras.values()} - {model}
    if other and model != DEFAULT_MODEL:
        raise ArgumentError(f"--camera is a {min(other)}, --camera-model says {model}; leave the latter away")
    return cameras


def _colmap_camera(model: str, size: Size, params: list[float]) -> pycolmap.Camera:
    _check_model(model, None)
    pycolmap = import_pycolmap()
    camera = pycolmap.Camera.create_from_model_name(0, model, 1.0, *size)
    if len(params) != len(camera.params) or not all(map(math.isfinite, params)):
        given = ",".join(f"{value:g}" for value in params) or "none"
        raise ArgumentError(f"{model} takes {len(camera.params)} finite numbers ({camera.params_info}), not {given}")
    camera.params = params
    camera.has_prior_focal_length = True
    return camera


def known_camera(given: Mapping[Size | None, pycolmap.Camera], size: Size) -> pycolmap.Camera:
    """Return which of the `given_cameras` took photographs of this size (width, height)."""
    width, height = size
    camera = given.get(None) or given.get(size)
    if camera is None:
        sizes = ", ".join(f"{one.width}x{one.height}" for one in given.values())
        raise ArgumentError(f"--camera: has no camera for photographs of {width}x{height}, only for {sizes}")
    camera = copy.deepcopy(camera)
    camera.width, camera.height = size
    return camera


def parse_camera(text: str | os.PathLike[str] | None, focal: float | None, size: Size) -> Camera | None:
    """Return the camera that ``--camera`` or ``--focal`` describe, for images of one size; None if neither is given.

    Raises
    ------
    ArgumentError
        Both are given, or the text is not a camera, or not one of this size.
    InputError
        The file of cameras cannot be read.

    Examples
    --------
    >>> parse_camera("SIMPLE_PINHOLE:500,320,240", None, (640, 480)).principal_point
    (319.5, 239.5)
    """
    if text is None:
        return None if focal is None else Camera.from_focal(focal, size)
    camera = known_camera(given_cameras(text, focal=focal), size)
    return Camera.from_colmap(camera.model_name, *size, list(camera.params))


def _check_cameras(cameras: Mapping[str, pycolmap.Camera], given: bool) -> None:
    """Raise `ArgumentError` where a model cannot be that of a photograph, or has nothing to begin with."""
    for name, camera in cameras.items():
        size = f"{camera.width}x{camera.height}"
        if camera.model_name == PANORAMA and abs(camera.width - 2 * camera.height) > 2:
            raise ArgumentError(
                f"{name}: is {size} pixels, but a panorama ({PANORAMA}) is twice as wide as high; choose another "
                "--camera-model, or leave it out"
            )
        if camera.is_perspective_fisheye() and not camera.has_prior_focal_length:
            raise ArgumentError(
                f"{name}: no focal length is known, and that of a fisheye cannot be guessed; give --focal: for a lens "
                f"that sees D degrees across the {max(camera.width, camera.height)} pixels of the long side, "
                f"about {57.3 * max(camera.width, camera.height):.0f} / D"
            )
        if not given:
            continue
        principal = camera.principal_point_x, camera.principal_point_y
        if camera.model_name != PANORAMA and not (
            0 <= principal[0] <= camera.width and 0 <= principal[1] <= camera.height
        ):
            raise ArgumentError(f"{name}: is {size} pixels, and the principal point {principal} is not in it")
