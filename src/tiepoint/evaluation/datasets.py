"""Readers of evaluation sets: a folder -> image pairs with ground truth.

`load_pairs` recognises the layout from the files it finds:

- **tiepoint's own**, ``<set>/pairs.json`` beside ``<set>/images`` (homographies, relative poses with or
  without depth maps, and homographies that still have to be applied to a single image);
- **HPatches**, folders ``v_*`` and ``i_*`` with ``1.ppm`` ... ``6.ppm`` and ``H_1_2`` ... ``H_1_6`` (Balntas
  et al., CVPR 2017); as in all published tables the eight sequences of very large images are left out and the
  shorter side is resized to 480 pixels;
- **calibrated pairs**, one line per pair, as published for ScanNet-1500 (``scannet_test_pairs_with_gt.txt``
  of SuperGlue) and MegaDepth-1500 (``pairs_calibrated.txt`` of glue-factory)::

      image0 image1 [turns0 turns1] K0 (9 numbers) K1 (9) pose (4x4: 16, or R then t: 12)

All matrices are for pixel coordinates with (0, 0) at the centre of the top-left pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, InputError
from ..io.exif import read_exif
from ..io.files import parse_json
from ..io.images import read_image
from ..types import Image

Matrix = NDArray[np.float64]

HPATCHES_SHORT_SIDE = 480
HPATCHES_TOO_LARGE = frozenset(
    (
        "i_contruction",
        "i_crownnight",
        "i_dc",
        "i_pencils",
        "i_whitebuilding",
        "v_artisans",
        "v_astronautis",
        "v_talent",
    )
)
CALIBRATED_LISTS = ("pairs_calibrated.txt", "scannet_test_pairs_with_gt.txt", "pairs_with_gt.txt")


@dataclass(frozen=True)
class Picture:
    """One image of a pair: a file as it is, resized, or warped. Hashable, to be a key of caches.

    Attributes
    ----------
    path : Path
        The file.
    size : (int, int) or None
        (width, height) after resizing or warping; None leaves the file as it is.
    warp : nine floats or None
        Homography, row by row, from pixels of the file to pixels of the picture. With ``size`` but without
        ``warp`` the file is resized.
    """

    path: Path
    size: tuple[int, int] | None = None
    warp: tuple[float, ...] | None = None

    def read(self) -> Image:
        """Return the pixels. What a warp uncovers is black."""
        image = read_image(self.path)
        if self.size is None:
            return image
        if self.warp is None:
            smaller = self.size[0] < image.size[0]
            pixels = cv2.resize(image.pixels, self.size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
            return Image(np.asarray(pixels, np.uint8), name=image.name)
        warp = np.reshape(self.warp, (3, 3))
        pixels = cv2.warpPerspective(image.pixels, warp, self.size, flags=cv2.INTER_LINEAR)
        return Image(np.asarray(pixels, np.uint8), name=f"{image.name} (warped)")


@dataclass(frozen=True, eq=False)
class HomographyTruth:
    """``x1 ~ H x0`` for every pixel of a plane or of a turning camera; H is (3, 3)."""

    H: Matrix


@dataclass(frozen=True, eq=False)
class PoseTruth:
    """Cameras of a pair: ``X1 = R X0 + t`` and ``x ~ K X``, without lens distortion.

    Attributes
    ----------
    K0, K1 : (3, 3)
        Intrinsics in pixels.
    R, t : (3, 3), (3,)
        Relative pose; the unit of ``t`` matters only beside a depth map.
    depth0, depth1 : Path or None
        16-bit depth maps in millimetres, 0 = unknown.
    K_depth : (3, 3) or None
        Intrinsics of the depth maps. The depth camera is taken to stand where the colour camera does.
    """

    K0: Matrix
    K1: Matrix
    R: Matrix
    t: Matrix
    depth0: Path | None = None
    depth1: Path | None = None
    K_depth: Matrix | None = None


@dataclass(frozen=True, eq=False)
class EvalPair:
    """Two pictures and what is known about them.

    Attributes
    ----------
    set, name : str
        Which set the pair belongs to, and its name there; both together are unique.
    image0, image1 : Picture
        What to match.
    truth : HomographyTruth or PoseTruth
        The ground truth, for pixels of the two pictures.
    """

    set: str
    name: str
    image0: Picture
    image1: Picture
    truth: HomographyTruth | PoseTruth


def load_pairs(data: str | Path, sets: Sequence[str] | None = None, limit: int | None = None) -> list[EvalPair]:
    """Read the pairs of all evaluation sets in a folder.

    Parameters
    ----------
    data : path
        A folder of sets, the folder of one set, or a list of calibrated pairs (see the module's text).
    sets : names or None
        Only these sets; None takes all.
    limit : int or None
        At most this many pairs of each set, spread evenly over it.

    Raises
    ------
    InputError
        Nothing readable lies there, or a file is damaged; the message names it.
    ArgumentError
        A set of ``sets`` does not exist.
    """
    data = Path(data).resolve()  # "." has no name
    if limit is not None and limit < 1:
        raise ArgumentError(f"limit must be at least 1, not {limit}")
    readers = _find_sets(data)
    if not readers:
        raise InputError(
            f"{data}: no evaluation set here; expected <set>/pairs.json, HPatches folders (v_*, i_*), "
            f"or a list of calibrated pairs ({', '.join(CALIBRATED_LISTS)})"
        )
    unknown = sorted(set(sets or ()) - readers.keys())
    if unknown:
        raise ArgumentError(f"{data}: no set is called {', '.join(unknown)}; there are: {', '.join(readers)}")
    pairs: list[EvalPair] = []
    for name, read in readers.items():
        if sets and name not in sets:
            continue
        found = read()
        if limit is not None and limit < len(found):
            found = [found[i * len(found) // limit] for i in range(limit)]
        pairs += found
    return pairs


def _find_sets(data: Path) -> dict[str, Callable[[], list[EvalPair]]]:
    """Return name -> reader of every set that lies in ``data``."""
    if data.is_file():
        return {data.parent.name: partial(read_calibrated_pairs, data)}
    if not data.is_dir():
        raise InputError(f"{data}: no such file or folder")
    if (data / "pairs.json").is_file():
        return {data.name: partial(read_set, data)}
    for name in CALIBRATED_LISTS:
        if (data / name).is_file():
            return {data.name: partial(read_calibrated_pairs, data / name)}
    if any(data.glob("[iv]_*/H_1_2")):
        return {"hpatches": partial(read_hpatches, data)}
    return {file.parent.name: partial(read_set, file.parent) for file in sorted(data.glob("*/pairs.json"))}


def read_set(folder: str | Path) -> list[EvalPair]:
    """Read one set in tiepoint's own layout (``pairs.json``)."""
    folder = Path(folder)
    file = folder / "pairs.json"
    try:
        listing = parse_json(file.read_text("utf-8"))
        pairs = [_pair_of_set(folder, listing, entry) for entry in listing["pairs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not a list of evaluation pairs ({type(error).__name__}: {error})") from error
    return pairs


def _pair_of_set(folder: Path, listing: dict[str, Any], entry: dict[str, Any]) -> EvalPair:
    """Make the pair of one entry of ``pairs.json``."""
    kind, image0 = listing["type"], Picture(folder / entry["image0"])
    stem0 = image0.path.stem
    if kind == "synthetic_homography":
        H = np.array(entry["H"], float).reshape(3, 3)
        image1 = Picture(image0.path, (entry["size1"][0], entry["size1"][1]), tuple(H.ravel().tolist()))
        return EvalPair(folder.name, f"{stem0}-{entry['level']}", image0, image1, HomographyTruth(H))
    image1 = Picture(folder / entry["image1"])
    truth: HomographyTruth | PoseTruth
    if kind == "homography":
        truth = HomographyTruth(np.array(entry["H"], float).reshape(3, 3))
    elif kind == "pose":
        K0, K1, R = (np.array(entry[key], float).reshape(3, 3) for key in ("K0", "K1", "R"))
        truth = PoseTruth(
            K0,
            K1,
            R,
            np.array(entry["t"], float).reshape(3),
            folder / entry["depth0"] if "depth0" in entry else None,
            folder / entry["depth1"] if "depth1" in entry else None,
            np.array(listing["K_depth"], float) if "K_depth" in listing else None,
        )
    else:
        raise ValueError(f"unknown type {kind!r}")
    return EvalPair(folder.name, f"{stem0}-{image1.path.stem}", image0, image1, truth)


def read_hpatches(folder: str | Path) -> list[EvalPair]:
    """Read HPatches' full sequences (``hpatches-sequences-release``), resized as published tables are."""
    pairs = []
    for sequence in sorted(Path(folder).glob("[iv]_*")):
        if sequence.name in HPATCHES_TOO_LARGE:
            continue
        image0, to_picture0 = _short_side(sequence / "1.ppm", HPATCHES_SHORT_SIDE)
        for k in range(2, 7):
            image1, to_picture1 = _short_side(sequence / f"{k}.ppm", HPATCHES_SHORT_SIDE)
            file = sequence / f"H_1_{k}"
            try:
                H = np.array(file.read_text().split(), float).reshape(3, 3)
            except (OSError, ValueError) as error:
                raise InputError(f"{file}: not a 3x3 matrix ({error})") from error
            H = to_picture1 @ H @ np.linalg.inv(to_picture0)
            pairs.append(EvalPair("hpatches", f"{sequence.name}-1-{k}", image0, image1, HomographyTruth(H / H[2, 2])))
    return pairs


def _short_side(path: Path, short_side: int) -> tuple[Picture, Matrix]:
    """Return the picture resized to that shorter side, and the matrix from the file's pixels to its own."""
    width, height = read_exif(path).size
    factor = short_side / min(width, height)
    size = round(width * factor), round(height * factor)
    return Picture(path, size), _resizing((width, height), size)


def _resizing(before: tuple[int, int], after: tuple[int, int]) -> Matrix:
    """Return the matrix from pixels of a picture to those of the same picture resized."""
    sx, sy = after[0] / before[0], after[1] / before[1]
    return np.array([[sx, 0, sx / 2 - 0.5], [0, sy, sy / 2 - 0.5], [0, 0, 1]])


def read_calibrated_pairs(file: str | Path) -> list[EvalPair]:
    """Read a list of calibrated pairs (ScanNet-1500, MegaDepth-1500; see the module's text).

    Image names are looked for beside the list and in ``images/`` beside it. ``turns`` are quarter turns
    counter-clockwise that set a picture upright; the intrinsics and poses of the list are those before the
    turn.
    """
    file = Path(file)
    pairs = []
    for number, line in enumerate(file.read_text("utf-8").splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            if len(words) not in (32, 34, 36, 38):
                raise ValueError(f"{len(words)} words, expected 32, 34, 36 or 38")
            turns = [int(word) for word in words[2:4]] if len(words) in (34, 38) else [0, 0]
            values = np.array(words[-30:] if len(words) in (32, 34) else words[-34:], float)
        except ValueError as error:
            raise InputError(f"{file}, line {number}: not a calibrated pair ({error})") from error
        K0, K1 = values[:9].reshape(3, 3), values[9:18].reshape(3, 3)
        if len(values) == 30:
            R, t = values[18:27].reshape(3, 3), values[27:]
        else:
            R, t = values[18:].reshape(4, 4)[:3, :3], values[18:].reshape(4, 4)[:3, 3]
        image0, K0, spin0 = _upright(_beside(file, words[0]), K0, turns[0])
        image1, K1, spin1 = _upright(_beside(file, words[1]), K1, turns[1])
        truth = PoseTruth(K0, K1, spin1 @ R @ spin0.T, spin1 @ t)
        pairs.append(EvalPair(file.parent.name, f"{words[0]} {words[1]}", image0, image1, truth))
    return pairs


def _beside(file: Path, name: str) -> Path:
    """Return where image ``name`` of a list lies."""
    below = file.parent / "images" / name
    return below if below.exists() else file.parent / name


def _upright(path: Path, K: Matrix, turns: int) -> tuple[Picture, Matrix, Matrix]:
    """Turn a picture by quarter turns counter-clockwise; return it, its intrinsics, its camera's rotation."""
    if turns % 4 == 0:
        return Picture(path), K, np.eye(3)
    picture, warp, spin = _turn(Picture(path), -math.pi / 2 * (turns % 4))
    return picture, warp @ K @ spin.T, spin


def roll(pair: EvalPair, angle: float) -> EvalPair:
    """Return a pair with its second picture turned, as if that camera had been rolled; its depth is forgotten.

    Pixels that are not quite square would give the camera a skew, which is left out.

    Parameters
    ----------
    pair : EvalPair
    angle : float
        Radians, clockwise as seen.

    Examples
    --------
    >>> a, b = (Picture(Path(name), (4, 3), tuple(np.eye(3).ravel())) for name in "ab")
    >>> pair = EvalPair("mine", "a-b", a, b, HomographyTruth(np.eye(3)))
    >>> rolled = roll(pair, math.pi / 2)
    >>> rolled.image1.size, (rolled.truth.H @ [0, 0, 1]).round().tolist()
    ((3, 4), [2.0, 0.0, 1.0])
    """
    picture, warp, spin = _turn(pair.image1, angle)
    truth = pair.truth
    if isinstance(truth, HomographyTruth):
        truth = HomographyTruth(warp @ truth.H)
    else:
        K1 = warp @ truth.K1 @ spin.T
        K1[0, 1] = K1[1, 0] = 0.0
        truth = PoseTruth(truth.K0, K1, spin @ truth.R, spin @ truth.t)
    return EvalPair(pair.set, f"{pair.name}@{round(math.degrees(angle))}", pair.image0, picture, truth)


def _turn(picture: Picture, angle: float) -> tuple[Picture, Matrix, Matrix]:
    """Turn a picture clockwise; return it, the map of pixels that does it, and the rotation of its camera."""
    width, height = picture.size or read_image(picture.path).size
    before = np.eye(3)
    if picture.warp is not None:
        before = np.reshape(picture.warp, (3, 3))
    elif picture.size is not None:
        before = _resizing(read_image(picture.path).size, picture.size)
    cos, sin = math.cos(angle), math.sin(angle)
    if angle % (math.pi / 2) == 0:
        cos, sin = round(cos), round(sin)  # no pixel is to lie between others
    spin = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    corners = spin[:2, :2] @ np.array([[0, width - 1, 0, width - 1], [0, 0, height - 1, height - 1]])
    warp = spin.copy()
    warp[:2, 2] = -corners.min(axis=1)
    size = np.ceil(np.ptp(corners, axis=1) - 1e-9).astype(int) + 1
    return Picture(picture.path, (int(size[0]), int(size[1])), tuple((warp @ before).ravel().tolist())), warp, spin
