"""What the header of a photograph says: its size, focal length, camera and place (EXIF 2.32)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..geometry.colmap import import_pycolmap
from .decoding import Header, quiet, read_header
from .files import open_file, printable
from .folders import in_order, numbered, times_in_names

FOCAL_RANGE = (0.1, 10.0)
"""Focal lengths / long side outside of this are mistakes; COLMAP's mappers reject such cameras altogether."""


@dataclass(frozen=True)
class Exif:
    """What a photograph's header says.

    Attributes
    ----------
    size : (int, int)
        (width, height) in pixels, upright.
    focal : float or None
        In pixels.
    camera : str or None
        Make, model, lens setting: the same for photographs that one camera took at one zoom.
    position : (float, float, float) or None
        WGS84 latitude and longitude in degrees, altitude in metres or nan.
    warning : str
        Which absurd value was ignored; usually empty.
    time : float or None
        When it was taken, in seconds of the camera's clock; only differences mean anything.
    orientation : int
        1 to 8; 1 is upright.
    """

    size: tuple[int, int]
    focal: float | None = None
    camera: str | None = None
    position: tuple[float, float, float] | None = None
    warning: str = ""
    time: float | None = None
    orientation: int = 1


def read_exif(path: str | os.PathLike[str]) -> Exif:
    """Read a photograph's header.

    The focal length comes from, in this order, the equivalent for 35 mm film (by the diagonal, as its standard
    CIPA DCG-001 has it), the focal length and the pixels per millimetre of the sensor, the focal length and COLMAP's
    list of the sensors of known cameras.

    Raises
    ------
    InputError
        The file cannot be read or is not an image. Damaged EXIF is no error, but like none.
    """
    name = printable(os.fsdecode(path))
    with open_file(path) as file:
        header = read_header(file, name)
        with quiet():
            tags, gps = _tags(header)
            orientation = header.orientation
    size = header.size[::-1] if orientation >= 5 else header.size  # turned by a quarter
    focal, warning = _focal_length(tags, size, os.fspath(path))
    return Exif(size, focal, _camera_name(tags), _position(gps), warning, _time(tags), orientation)


def order_in_time(folder: str | os.PathLike[str], names: Iterable[str]) -> tuple[list[str], str]:
    """Sort the photographs of a folder by time: by what their names say, or else by EXIF.

    Parameters
    ----------
    folder : path
    names : iterable of str
        Paths relative to the folder.

    Returns
    -------
    ordered : list of str
    note : str
        A sentence for the user where the order does not follow from the names; else empty.
    """
    ordered = in_order(names)
    if len(ordered) < 2 or numbered(ordered) or times_in_names(ordered) is not None:
        return ordered, ""

    def taken(name: str) -> float | None:
        try:
            return read_exif(Path(folder) / name).time
        except InputError:
            return None

    with ThreadPoolExecutor() as pool:
        times = dict(zip(ordered, pool.map(taken, ordered), strict=True))
    known = {name: time for name, time in times.items() if time is not None}
    if len(known) < len(ordered) or len(set(known.values())) == 1:
        return ordered, "neither names nor EXIF times tell which image follows which; they are taken by their names"
    return sorted(ordered, key=known.__getitem__), "the names tell no order; the images are taken by their EXIF times"


# ---- EXIF (version 2.32; JEITA CP-3451) ----

_MAKE, _MODEL, _LENS = 0x010F, 0x0110, 0xA434
_FOCAL_LENGTH, _FOCAL_LENGTH_35MM, _ZOOM = 0x920A, 0xA405, 0xA404
_PIXELS_X, _PIXELS_Y = 0xA002, 0xA003
_RESOLUTION, _RESOLUTION_UNIT = 0xA20E, 0xA210
_MILLIMETRES = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # unit of the resolution of the sensor; 4 and 5 are unofficial
_EXIF_IFD, _GPS_IFD = 0x8769, 0x8825
_TAKEN, _TAKEN_FRACTION = 0x9003, 0x9291
_DIAGONAL_35MM = math.hypot(36, 24)


def _tags(header: Header) -> tuple[dict[int, Any], dict[int, Any]]:
    """Return the tags of a photograph and of its GPS receiver; none where they are damaged."""
    try:
        exif = header.exif()
        return {**exif, **exif.get_ifd(_EXIF_IFD)}, dict(exif.get_ifd(_GPS_IFD))
    except Exception:  # the photograph is fine, only its EXIF is not
        return {}, {}


def _number(value: Any) -> float | None:
    """Return a finite number, or None for whatever else stands in a tag."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) else None


def _positive(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and number > 0 else None  # 0 is "unknown"


def _focal_length(tags: Mapping[int, Any], size: tuple[int, int], path: str) -> tuple[float | None, str]:
    """Return the focal length in pixels or None, and a warning if something absurd was ignored."""
    warning = ""
    for what, focal in _focal_candidates(tags, size, path):
        ratio = focal / max(size)
        if FOCAL_RANGE[0] <= ratio <= FOCAL_RANGE[1]:
            return focal, warning
        warning = f"{path}: its EXIF gives {what} that amounts to {ratio:.3g} times the long side: ignored"
    return None, warning


def _focal_candidates(tags: Mapping[int, Any], size: tuple[int, int], path: str) -> Iterable[tuple[str, float]]:
    film, mm = _positive(tags.get(_FOCAL_LENGTH_35MM)), _positive(tags.get(_FOCAL_LENGTH))
    if film:
        yield f"a 35 mm equivalent of {film:g} mm", film / _DIAGONAL_35MM * math.hypot(*size)
    if not mm:
        return
    density, unit = _positive(tags.get(_RESOLUTION)), _MILLIMETRES.get(tags.get(_RESOLUTION_UNIT, 2))
    if density and unit:
        # The resolution counts pixels of the sensor; the photograph may have been shrunk since.
        taken = max(_positive(tags.get(tag)) or 0 for tag in (_PIXELS_X, _PIXELS_Y)) or max(size)
        yield f"a focal length of {mm:g} mm", mm * density / unit * max(size) / taken
    elif _MODEL in tags:
        try:
            camera = import_pycolmap().infer_camera_from_image(path)
        except (RuntimeError, ValueError):  # it reads fewer formats
            return
        if camera.has_prior_focal_length:
            yield f"a focal length of {mm:g} mm", float(camera.mean_focal_length())


def _camera_name(tags: Mapping[int, Any]) -> str | None:
    if _MAKE not in tags and _MODEL not in tags:
        return None
    settings = (_MAKE, _MODEL, _LENS, _FOCAL_LENGTH, _FOCAL_LENGTH_35MM, _ZOOM)
    return " ".join(str(tags[tag]).strip(" \0") for tag in settings if tag in tags)


def _time(tags: Mapping[int, Any]) -> float | None:
    """Return the seconds since 1970 of DateTimeOriginal, as if the camera's clock showed UTC."""
    try:
        taken = datetime.strptime(str(tags[_TAKEN]).strip(" \0"), "%Y:%m:%d %H:%M:%S").replace(tzinfo=timezone.utc)
    except (KeyError, ValueError):
        return None
    digits = str(tags.get(_TAKEN_FRACTION, "")).strip(" \0")
    return taken.timestamp() + (float(f"0.{digits}") if digits.isascii() and digits.isdigit() else 0.0)


def _position(gps: Mapping[int, Any]) -> tuple[float, float, float] | None:
    """Return latitude, longitude and altitude from tags 1 to 6; None if the place is missing or absurd."""
    latitude = _degrees(gps.get(2), {"N": 1, "S": -1}.get(str(gps.get(1)).strip(" \0")))
    longitude = _degrees(gps.get(4), {"E": 1, "W": -1}.get(str(gps.get(3)).strip(" \0")))
    if latitude is None or longitude is None or abs(latitude) > 90 or abs(longitude) > 180:
        return None
    if latitude == longitude == 0:  # what receivers write that have no fix
        return None
    altitude = _number(gps.get(6))
    if altitude is None:
        altitude = math.nan
    return latitude, longitude, -altitude if gps.get(5) in (1, b"\1") else altitude


def _degrees(value: Any, sign: int | None) -> float | None:
    """Return (degrees, minutes, seconds) as degrees; None without a hemisphere."""
    try:
        parts = [_number(part) for part in value]
    except TypeError:
        return None
    if sign is None or len(parts) != 3 or None in parts:
        return None
    degrees, minutes, seconds = (part or 0.0 for part in parts)
    return sign * (degrees + minutes / 60 + seconds / 3600)
