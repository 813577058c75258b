"""A model -> the user's frame: metres, east-north-up by GPS, or the frame of positions that were measured.

A mapper chooses frame and scale arbitrarily. `to_positions` moves a model by the similarity that most of the known
positions of cameras agree with, `to_distances` only scales it. All files that are written later are in the new frame.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ArgumentError, InputError
from ...geometry.colmap import import_pycolmap
from ...io.contents import numbered_lines
from ...io.files import read_text
from ..models import registered
from ..store import NewImage
from .images import is_file

if TYPE_CHECKING:
    import pycolmap

Place = tuple[float, float, float]
Distance = tuple[str, str, float]

LEAST_POSITIONS = 3
MOST_METRES = 1e9  # from the origin, or between cameras: beyond, points do not fit into the float32 of a .ply
LINE = 0.02  # width of the positions over their length: of thinner ones nothing tells how the model lies around them
TOLERANCES = 12  # halvings, from the extent of the positions on, that are tried
MARGIN = 3.0  # times the error of the best half: beyond, a position is wrong


@dataclass(frozen=True)
class Alignment:
    """How a model came into another frame.

    Attributes
    ----------
    by : str
        ``"gps"``, ``"positions"`` or ``"distances"``.
    given, used : int
        Positions or distances of images in the model, and those that agree.
    scale : float
        Metres (or units of the file) for each unit that the model had before.
    residual_median, residual_max : float
        Of those used, in metres.
    origin : (float, float, float) or None
        With GPS: latitude, longitude, altitude of the point (0, 0, 0).
    problem : str
        Why the model stayed as it was; empty if it did not.
    """

    by: str
    given: int
    used: int = 0
    scale: float = 1.0
    residual_median: float = 0.0
    residual_max: float = 0.0
    origin: Place | None = None
    problem: str = ""

    def __str__(self) -> str:
        if self.problem:
            return f"not aligned: {self.problem}"
        what = {"gps": "GPS positions", "positions": "positions", "distances": "distances"}[self.by]
        where = ""
        if self.origin is not None:
            latitude, longitude, altitude = self.origin
            where = f"; east-north-up, (0, 0, 0) is at {latitude:.7f}, {longitude:.7f}, {altitude:.2f} m"
        return (
            f"aligned to {self.used} of {self.given} {what}: residuals {self.residual_median:.3g} m in the median, "
            f"{self.residual_max:.3g} m at most{where}"
        )


Aligner = Callable[["pycolmap.Reconstruction"], Alignment]


def aligner_for(
    align: str | os.PathLike[str] | None, scale: str | os.PathLike[str] | None, images: Sequence[NewImage], seed: int
) -> tuple[Aligner | None, str]:
    """Return what brings a model into the frame that ``--align`` or ``--scale`` asks for, and a note.

    Raises
    ------
    ArgumentError, InputError
        The two exclude each other; or one is neither a file nor a value, or too few images have a position.
    """
    if align is not None and scale is not None:
        raise ArgumentError("--align and --scale exclude each other: positions give the scale too")
    names = [image.name for image in images]
    if scale is not None:
        return partial(to_distances, distances=read_distances(scale, names)), ""
    places = {image.name: image.position for image in images}
    if align is None:
        known = sum(place is not None for place in places.values())
        if known < LEAST_POSITIONS:
            return None, ""
        return None, (
            f"{known} photographs say where they were taken (GPS), which is not used: --align gps brings the map "
            "to metres, east-north-up"
        )
    if is_file(align):
        return partial(to_positions, positions=read_positions(align, names), seed=seed), ""
    kind, _, place = str(align).partition(":")
    if kind != "gps":
        raise ArgumentError(f"--align is gps, or a file of NAME X Y Z; {str(align)!r} is neither")
    try:
        origin = tuple(float(value) for value in place.split(",")) if place else None
        if origin is not None and (len(origin) != 3 or abs(origin[0]) > 90 or abs(origin[1]) > 360):
            raise ValueError
    except ValueError as error:
        raise ArgumentError(f"--align {align}: the origin is gps:LATITUDE,LONGITUDE,ALTITUDE") from error
    positions, origin = gps_positions(places, origin)
    return partial(to_positions, positions=positions, by="gps", origin=origin, seed=seed), ""


def gps_positions(
    places: Mapping[str, Place | None], origin: Place | None = None
) -> tuple[dict[str, NDArray[np.float64]], Place]:
    """Return name -> metres east, north and up of an origin, and the origin.

    Parameters
    ----------
    places : mapping
        Name -> WGS84 latitude, longitude, altitude (may be nan); those without are None. If fewer than three say an
        altitude, all are taken to be at 0.
    origin : optional
        By default the median of the places.

    Raises
    ------
    InputError
        Fewer than three photographs say where they were taken.
    """
    known = {name: np.asarray(place, np.float64) for name, place in places.items() if place is not None}
    high = {name: place for name, place in known.items() if np.isfinite(place).all()}
    if len(high) < LEAST_POSITIONS:
        high = {name: np.array([*place[:2], 0.0]) for name, place in known.items()}
    if len(high) < LEAST_POSITIONS:
        raise InputError(
            f"only {len(high)} of {len(places)} photographs say where they were taken (GPS in EXIF), and an alignment "
            f"needs {LEAST_POSITIONS}; give a file of positions to --align, or leave it out"
        )
    table = np.array(list(high.values()))
    if origin is None:
        latitude, longitude, altitude = (float(value) for value in np.median(table, axis=0))
        origin = latitude, longitude, altitude
    metres = np.asarray(import_pycolmap().GPSTransform().ellipsoid_to_enu(table, *origin))
    return dict(zip(high, metres, strict=True)), origin


def read_positions(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Read a text file of ``NAME X Y Z`` a line, as COLMAP's model_aligner has it; commas may stand for blanks.

    Raises
    ------
    InputError
        The file cannot be read, a line is no position, or fewer than three names are those of photographs.
    """
    target, known = Path(path), set(names)
    found: dict[str, NDArray[np.float64]] = {}
    lines = numbered_lines(read_text(target))
    for number, line in lines:
        fields = line.replace(",", " ").rsplit(maxsplit=3)
        try:
            name, position = fields[0].strip(), np.array([float(value) for value in fields[1:]])
            if position.shape != (3,) or not (np.abs(position) < MOST_METRES).all():  # NaN too
                raise ValueError
        except (ValueError, IndexError) as error:
            raise InputError(f"{target}: line {number}: not NAME X Y Z in metres") from error
        if name in known:
            found[name] = position
    if len(found) < LEAST_POSITIONS:
        raise InputError(
            f"{target}: {len(found)} of its {len(lines)} names are photographs of this map, and an alignment needs "
            f"{LEAST_POSITIONS}; names are paths below the folder, such as {min(names)}"
        )
    return found


def read_distances(text: str | os.PathLike[str], names: Sequence[str]) -> list[Distance]:
    """Read distances between cameras: ``"A.jpg,B.jpg,METRES"``, or a text file of such lines.

    Raises
    ------
    ArgumentError, InputError
        A line is no distance, or names what is no photograph.
    """
    path, known = Path(text), set(names)
    from_file = is_file(path)
    found = []
    for number, line in numbered_lines(read_text(path) if from_file else str(text)):
        where = f"{path}: line {number}" if from_file else f"--scale {text}"
        fields = [part.strip() for part in (line.split(",") if "," in line else line.split())]
        try:
            first, second, length = fields[0], fields[1], float(fields[2])
            if len(fields) != 3 or not 1 / MOST_METRES < length < MOST_METRES or first == second:
                raise ValueError
        except (ValueError, IndexError) as error:
            raise ArgumentError(f"{where}: give A.jpg,B.jpg,METRES, or a file with such lines") from error
        for name in (first, second):
            if name not in known:
                raise InputError(f"{where}: there is no photograph {name}; names are such as {min(names)}")
        found.append((first, second, length))
    if not found:
        raise InputError(f"{path}: holds no distance; a line is A.jpg,B.jpg,METRES")
    return found


def to_positions(
    model: pycolmap.Reconstruction,
    positions: Mapping[str, NDArray[np.float64]],
    by: str = "positions",
    origin: Place | None = None,
    seed: int = 0,
) -> Alignment:
    """Move, turn and scale a model so that its cameras lie where most positions say.

    A position counts as wrong if it is off by more than three times what the better half needs.
    """
    pycolmap = import_pycolmap()
    here = [image for image in registered(model) if image.name in positions]
    if len(here) < LEAST_POSITIONS:
        return Alignment(by, len(here), problem=f"the model has {len(here)} images with a known position, not 3")
    source = np.array([image.projection_center() for image in here])
    target = np.array([positions[image.name] for image in here])
    extent = float(np.linalg.norm(target - np.median(target, axis=0), axis=1).max())
    unaligned = partial(Alignment, by, len(here))
    on_a_line = unaligned(
        problem="the positions lie on a line, or closer together than they are accurate, and do not tell how the model "
        "lies around it; give positions of cameras beside the line, or use --scale"
    )
    if extent == 0:
        return unaligned(problem="all positions are the same")
    if _widths(target)[1] < LINE * _widths(target)[0]:
        return on_a_line

    def errors_of(similarity: Any) -> NDArray[np.float64]:
        moved = similarity.scale * source @ similarity.rotation.matrix().T + similarity.translation
        return np.linalg.norm(moved - target, axis=1)

    best = None
    for halving in range(TOLERANCES):  # the smallest tolerance with which more than half agree
        tolerance = extent / 2**halving
        options = pycolmap.RANSACOptions(max_error=tolerance, random_seed=seed, max_num_trials=2000)
        found = pycolmap.estimate_sim3d_robust(source, target, options)
        if found is None:
            break
        if (errors_of(found["tgt_from_src"]) <= tolerance).sum() <= max(len(here) / 2, LEAST_POSITIONS - 1):
            break
        best = found["tgt_from_src"]
    if best is None:
        return unaligned(problem="no similarity brings half of the cameras to their positions")
    errors = errors_of(best)
    good = errors <= max(MARGIN * float(np.median(errors)), 1e-9 * extent)
    if good.sum() < LEAST_POSITIONS:
        return unaligned(problem="no three cameras lie where their positions are")
    widths = _widths(target[good])
    if widths[1] < max(LINE * widths[0], 2 * float(np.median(errors[good]))):
        return on_a_line
    final = pycolmap.estimate_sim3d(source[good], target[good]) or best
    errors = errors_of(final)[good]
    model.transform(final)
    return Alignment(
        by, len(here), int(good.sum()), float(final.scale), float(np.median(errors)), float(errors.max()), origin
    )


def _widths(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far points (N, 3) spread along their three main axes, the widest first: root mean squares."""
    centred = points - points.mean(axis=0)
    return np.asarray(np.linalg.svd(centred, compute_uv=False) / np.sqrt(len(points)))


def to_distances(model: pycolmap.Reconstruction, distances: Sequence[Distance]) -> Alignment:
    """Scale a model so that distances between its cameras are, on the median, the given ones."""
    pycolmap = import_pycolmap()
    centres = {image.name: np.asarray(image.projection_center()) for image in registered(model)}
    here = [(a, b, length) for a, b, length in distances if a in centres and b in centres]
    apart = np.array([np.linalg.norm(centres[a] - centres[b]) for a, b, _ in here])
    if not len(apart) or apart.min() == 0:
        return Alignment("distances", len(here), problem="the model has none of the pairs whose distance was given")
    given = np.array([length for *_, length in here])
    scale = float(np.median(given / apart))
    errors = np.abs(scale * apart - given)
    model.transform(pycolmap.Sim3d(scale, pycolmap.Rotation3d(), np.zeros(3)))
    return Alignment("distances", len(here), len(here), scale, float(np.median(errors)), float(errors.max()))
