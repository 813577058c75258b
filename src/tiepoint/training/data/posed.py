"""Readers of photographs with known depth and pose: COLMAP models, MegaDepth, 7-Scenes, TUM RGB-D.

Each reader lists the `View` of one scene without decoding anything; `overlap_matrix` says which of them see
the same surfaces, `PosedPool` draws training pairs from it, and `View.read` decodes. An image whose depth,
pose or file is missing is left out of the list.

Calibrations refer to pixels as the file stores them, so EXIF orientation is **not** applied here.
"""

from __future__ import annotations

import bisect
import hashlib
import math
import os
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ...errors import InputError, MissingDependencyError
from ...io.decoding import read_header
from ...io.files import atomic, open_file
from ...io.folders import walk
from ...io.images import read_numbers, read_stored

Matrix = NDArray[np.float64]

# Grids for `overlap_matrix`: surfaces are compared at 64 x 64 places of each view, and asked for at every
# fourth.
_GRID = 64
_STEP = 4
_SAME_SURFACE = 0.1  # relative difference of depth; generous, since a cell of the grid covers a slope


@dataclass(frozen=True, eq=False)
class View:
    """A photograph with its camera and a depth map. World-to-camera: ``x_cam = R x_world + t``.

    Attributes
    ----------
    image, depth : Path
        Files; for depth see `read_depth`.
    K : float64 array (3, 3)
        Intrinsics of the image as stored; (0, 0) is the centre of the top-left pixel.
    R, t : float64 arrays (3, 3), (3,)
    K_depth : float64 array (3, 3) or None
        Intrinsics of the depth map where it has another field of view than the image, from the same centre.
        None: it shows what the image shows, at any resolution.
    depth_unit : float
        Length, in the unit of ``t``, of one step of an integer depth map.
    """

    image: Path
    depth: Path
    K: Matrix
    R: Matrix
    t: Matrix
    K_depth: Matrix | None = None
    depth_unit: float = 1.0

    def read(self, long_side: int | None = None) -> PosedImage:
        """Decode the photograph and its depth, both at one size, with the intrinsics of that size.

        Depth is sampled, never interpolated: between two surfaces there is none.

        Parameters
        ----------
        long_side : int, optional
            Shrink so that the longer side has at most this many pixels.

        Raises
        ------
        InputError
            A file is missing or damaged.
        """
        picture = PIL.Image.fromarray(read_stored(self.image))
        stored = picture.size
        if long_side is not None and max(stored) > long_side:
            factor = long_side / max(stored)
            small = (max(1, round(stored[0] * factor)), max(1, round(stored[1] * factor)))
            picture = picture.resize(small, PIL.Image.Resampling.LANCZOS)
        width, height = picture.size
        K = scale_intrinsics(self.K, width / stored[0], height / stored[1])
        source, K_source = self._read_depth(stored)
        columns, in_x = _nearest(np.arange(width), K[0], K_source[0], 0, source.shape[1])
        rows, in_y = _nearest(np.arange(height), K[1], K_source[1], 1, source.shape[0])
        depth = source[rows[:, None], columns] * (in_y[:, None] & in_x)
        return PosedImage(np.asarray(picture), depth, K)

    def _read_depth(self, stored: tuple[int, int]) -> tuple[NDArray[np.float32], Matrix]:
        """Return the depth map at its own size and its intrinsics; ``stored`` is the image's size."""
        depth = read_depth(self.depth, self.depth_unit)
        if self.K_depth is not None:
            return depth, self.K_depth
        height, width = depth.shape
        if abs(width * stored[1] - height * stored[0]) > 2 * max(stored):  # more than rounding
            raise InputError(
                f"{self.depth}: a depth map of {width}x{height} cannot belong to the image {self.image} of "
                f"{stored[0]}x{stored[1]}, which has other proportions"
            )
        return depth, scale_intrinsics(self.K, width / stored[0], height / stored[1])


@dataclass(frozen=True, eq=False)
class PosedImage:
    """A decoded `View`.

    Attributes
    ----------
    pixels : uint8 array (H, W, 3)
        RGB.
    depth : float32 array (H, W)
        z in the camera's frame, in the unit of the view's ``t``; 0 where nothing was measured.
    K : float64 array (3, 3)
    """

    pixels: NDArray[np.uint8]
    depth: NDArray[np.float32]
    K: Matrix


@dataclass(frozen=True, eq=False)
class PosedPair:
    """Two views of one scene.

    Attributes
    ----------
    view0, view1 : View
    overlap : float
        Share of the measured surface of one view that the other sees, the smaller of both directions.
    """

    view0: View
    view1: View
    overlap: float

    @property
    def R(self) -> Matrix:
        """Rotation of the relative pose, ``X1 = R X0 + t``."""
        return self.view1.R @ self.view0.R.T

    @property
    def t(self) -> Matrix:
        """Translation of the relative pose, ``X1 = R X0 + t``."""
        return self.view1.t - self.R @ self.view0.t


# --- pairs


def overlap_matrix(views: Sequence[View]) -> NDArray[np.float32]:
    """Return for all pairs of views which share of its measured surface one sees of the other.

    Points of view i are carried into view j and count as seen where the depth there agrees within 10 %; what
    is occluded or outside is not seen. Exact to a few hundredths, since 256 points a view are asked for.
    Reads every depth map once.

    Parameters
    ----------
    views : sequence of V views in one world frame

    Returns
    -------
    float32 array (V, V)
        Symmetric: the smaller of both directions. 0 for views without any depth.
    """
    count = len(views)
    if count == 0:
        return np.zeros((0, 0), np.float32)
    coarse = np.zeros((count, _GRID, _GRID), np.float32)
    # Intrinsics in cells of the grid, so that all views are alike; cell (0, 0) is centred at (0, 0).
    intrinsics = np.empty((count, 3, 3))
    for i, view in enumerate(views):
        depth, K = view._read_depth(_stored_size(view.image))
        height, width = depth.shape
        centres = (np.arange(_GRID) + 0.5) / _GRID
        rows, columns = (centres * height).astype(int), (centres * width).astype(int)
        coarse[i] = depth[rows[:, None], columns]
        intrinsics[i] = scale_intrinsics(K, _GRID / width, _GRID / height)
    R, t = np.array([v.R for v in views]), np.array([v.t for v in views])

    asked = np.arange(_STEP // 2, _GRID, _STEP)
    x, y = (a.ravel() for a in np.meshgrid(asked, asked))
    seen = np.zeros((count, count), np.float32)
    for i in range(count):
        z = coarse[i, y, x]
        measured = z > 0
        if not measured.any():
            continue
        rays = np.stack([x, y, np.ones_like(x)], -1)[measured] @ np.linalg.inv(intrinsics[i]).T
        world = (rays * z[measured, None] - t[i]) @ R[i]
        camera = world @ R.transpose(0, 2, 1) + t[:, None]  # (V, points, 3)
        front = camera[..., 2] > 0
        safe = np.where(front[..., None], camera, 1.0)
        pixels = np.round((safe @ intrinsics.transpose(0, 2, 1))[..., :2] / safe[..., 2:])
        inside = front & ((pixels >= 0) & (pixels < _GRID)).all(-1)
        column, row = np.moveaxis(np.where(inside[..., None], pixels, 0).astype(int), -1, 0)
        there = coarse[np.arange(count)[:, None], row, column]
        agrees = (there > 0) & (np.abs(safe[..., 2] - there) <= _SAME_SURFACE * there)
        seen[i] = (inside & agrees).mean(1)
    return np.minimum(seen, seen.T)


class PosedPool:
    """All scenes below a folder, and which pairs of their views overlap as training wants it.

    Every fifth view, chosen by its name, is held out: training pairs have none of these, evaluation pairs no others.

    Parameters
    ----------
    scenes : sequence of sequences of View
        Each in one world frame.
    folder : path, optional
        Where the overlaps of each scene, which take a while to find, are kept.
    min_overlap, max_overlap : float
        Of the pairs' `overlap_matrix`; LightGlue was trained with 0.1 to 0.7 of MegaDepth.

    Raises
    ------
    InputError
        No two views overlap like that.
    """

    def __init__(
        self,
        scenes: Sequence[Sequence[View]],
        folder: Path | None = None,
        min_overlap: float = 0.1,
        max_overlap: float = 0.7,
    ) -> None:
        self.views: list[View] = [view for scene in scenes for view in scene]
        told = "\n".join(f"{view.image} {view.R.tolist()} {view.t.tolist()}" for view in self.views)
        self.digest = hashlib.sha256(told.encode()).hexdigest()
        kept = folder and folder / f"overlaps-{self.digest[:16]}.npz"
        if kept and kept.is_file():
            with np.load(kept) as arrays:
                overlaps = [arrays[f"arr_{i}"] for i in range(len(scenes))]
        else:
            overlaps = [overlap_matrix(scene) for scene in scenes]
            if kept:
                kept.parent.mkdir(parents=True, exist_ok=True)
                with atomic(kept) as unfinished:
                    np.savez(unfinished, *overlaps)
        held_out = np.array([zlib.crc32(view.image.name.encode()) % 5 == 0 for view in self.views], bool)
        rows, values, first = [], [], 0
        for overlap in overlaps:
            wanted = np.triu((overlap >= min_overlap) & (overlap <= max_overlap), 1)
            pair = np.argwhere(wanted)
            rows.append(pair + first)
            values.append(overlap[wanted])
            first += len(overlap)
        pairs, self.overlaps = np.concatenate(rows), np.concatenate(values)
        sides = held_out[pairs].sum(1)
        self.pairs = pairs
        self.chosen = {False: np.flatnonzero(sides == 0), True: np.flatnonzero(sides == 2)}
        if not len(self.chosen[False]):
            raise InputError(
                f"of {len(self.views)} photographs with depth and pose, no two overlap between {min_overlap:g} and "
                f"{max_overlap:g}"
            )

    def draw(self, count: int, random: np.random.Generator, held_out: bool = False) -> list[PosedPair]:
        """Draw pairs at random, in either order; training pairs where nothing could be held out."""
        numbers = self.chosen[held_out] if len(self.chosen[held_out]) else self.chosen[False]
        drawn = []
        for number, swap in zip(random.choice(numbers, count), random.random(count) < 0.5, strict=True):
            i, j = self.pairs[number][:: -1 if swap else 1]
            drawn.append(PosedPair(self.views[i], self.views[j], float(self.overlaps[number])))
        return drawn


def find_scenes(folder: str | os.PathLike[str]) -> list[list[View]]:
    """List the views of every scene below a folder, whatever its layout.

    Recognised are MegaDepth as unpacked; COLMAP's dense workspace (``sparse``, ``images`` and ``stereo/depth_maps`` or
    ``depths``); sequences of 7-Scenes (``frame-*.pose.txt``) and of TUM RGB-D (``groundtruth.txt``).

    Raises
    ------
    InputError
        There is nothing of these, or what there is cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    if (folder / "MegaDepth_v1_SfM").is_dir():
        scenes = sorted((folder / "phoenix/S6/zl548/MegaDepth_v1").glob("[0-9]*"))
        return [views for scene in scenes for views in megadepth_views(folder, scene.name)]
    found: list[list[View]] = []
    for place in sorted(place for place, _, _ in walk(folder)):
        depths = next((place / name for name in ("stereo/depth_maps", "depths") if (place / name).is_dir()), None)
        if depths is not None and (place / "sparse").is_dir() and (place / "images").is_dir():
            model = place / "sparse/0" if (place / "sparse/0").is_dir() else place / "sparse"
            found.append(colmap_views(model, place / "images", depths))
        elif any(place.glob("frame-*.pose.txt")):
            found.append(seven_scenes_views(place))
        elif (place / "groundtruth.txt").is_file() and (place / "rgb.txt").is_file():
            found.append(tum_views(place))
    if not found:
        raise InputError(
            f"{folder}: no scenes with depth and pose here: neither MegaDepth, nor a dense workspace of COLMAP "
            "(sparse, images, stereo/depth_maps), nor sequences of 7-Scenes or TUM RGB-D"
        )
    return found


# --- COLMAP and MegaDepth


def colmap_views(model: Path | str, images: Path | str, depths: Path | str) -> list[View]:
    """List the views of a COLMAP model with depth maps, such as the output of COLMAP's dense stereo.

    Parameters
    ----------
    model : path
        Folder of the sparse model, binary or text. Its cameras must be free of distortion
        (``colmap image_undistorter`` makes them so).
    images : path
        Folder of the images that the model names.
    depths : path
        Folder of depth maps. For an image ``a/b.jpg`` these are tried: ``a/b.jpg.geometric.bin``,
        ``a/b.jpg.photometric.bin``, and ``a/b`` with ``.h5``, ``.npy`` or ``.png`` instead of or after
        ``.jpg``.

    Raises
    ------
    InputError
        No model there, a camera with distortion, or no image that has a depth map.
    MissingDependencyError
        pycolmap is not installed.

    Examples
    --------
    ::

        dense = Path("dense")
        views = colmap_views(dense / "sparse", dense / "images", dense / "stereo/depth_maps")
    """

    def intrinsics(camera: Any, _: Path) -> Matrix:
        if not camera.is_undistorted():
            raise InputError(
                f"{model}: camera {camera.camera_id} has lens distortion ({camera.model_name}); run "
                "'colmap image_undistorter' and give the model, images and depth maps it makes"
            )
        return _from_colmap(camera)

    return _colmap_views(Path(model), Path(images), Path(depths), intrinsics)


def megadepth_views(root: Path | str, scene: str) -> list[list[View]]:
    """List the views of one scene of MegaDepth (Li and Snavely 2018), as its authors distribute it.

    Needs both of their archives unpacked into ``root``: the models in
    ``MegaDepth_v1_SfM/SCENE/sparse/manhattan/N``, undistorted photographs and depth maps in
    ``phoenix/S6/zl548/MegaDepth_v1/SCENE/denseN/{imgs,depths}``. The intrinsics of the undistorted
    photographs, which neither archive holds, are those that COLMAP gives them.

    The ``scene_info`` archives that other projects derived from it are not read: their arrays are Python
    pickles, and opening one runs whatever code it holds. Depth maps that only order near and far
    count as unmeasured.

    Parameters
    ----------
    root : path
    scene : str
        Four digits, as in ``"0015"``.

    Returns
    -------
    list of lists of View
        One list per reconstruction (``dense0``, ``dense1``, ...); each has its own world frame.

    Raises
    ------
    InputError
        Nothing of the scene is there.
    MissingDependencyError
        pycolmap or h5py is not installed.
    """
    root = Path(root)

    def intrinsics(camera: Any, image: Path) -> Matrix | None:
        import pycolmap

        straight = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), camera)
        width, height = _stored_size(image)
        # The photographs may have been shrunk; a change of proportions would mean another calibration.
        if abs(width * straight.height - height * straight.width) > 2 * max(straight.width, straight.height):
            return None
        return scale_intrinsics(_from_colmap(straight), width / straight.width, height / straight.height)

    found = []
    folder = root / "phoenix/S6/zl548/MegaDepth_v1" / scene
    for dense in sorted(folder.glob("dense*")):
        model = root / "MegaDepth_v1_SfM" / scene / "sparse/manhattan" / dense.name.removeprefix("dense")
        views = _colmap_views(model, dense / "imgs", dense / "depths", intrinsics)
        found.append(views)
    if not found:
        raise InputError(f"{folder}: no folder dense0 here; is {root} where MegaDepth was unpacked?")
    return found


def _colmap_views(
    model: Path, images: Path, depths: Path, intrinsics: Callable[[Any, Path], Matrix | None]
) -> list[View]:
    """List the images of a model that have a file, a depth map and ``intrinsics(camera, file)``."""
    if not any((model / name).is_file() for name in ("cameras.bin", "cameras.txt")):
        raise InputError(f"{model}: no COLMAP model here (neither cameras.bin nor cameras.txt)")
    from ...mapping.exchange.model_files import read_model  # here, because mapping needs more than training does

    reconstruction = read_model(model)
    views, unlike = [], []
    for image in sorted(reconstruction.images.values(), key=lambda image: image.name):
        file, depth = images / image.name, _find_depth(depths, image.name)
        if depth is None or not image.has_pose or not file.is_file():
            continue
        K = intrinsics(image.camera, file)
        if K is None:
            unlike.append(file)
            continue
        pose = np.asarray(image.cam_from_world().matrix())
        views.append(View(file, depth, K, pose[:, :3], pose[:, 3]))
    if unlike:
        warnings.warn(
            f"{len(unlike)} images left out: their proportions are not their camera's ({unlike[0]} ...)",
            stacklevel=3,
        )
    if not views:
        raise InputError(f"{model}: none of its images has a file in {images} and a depth map in {depths}")
    return views


def _from_colmap(camera: Any) -> Matrix:
    """Return K with the centre of the top-left pixel at (0, 0); COLMAP has its corner there."""
    K = np.array(camera.calibration_matrix(), np.float64)
    K[:2, 2] -= 0.5
    return K


def _find_depth(folder: Path, name: str) -> Path | None:
    beside = [folder / (name + end) for end in (".geometric.bin", ".photometric.bin", ".h5", ".npy", ".png")]
    instead = [(folder / name).with_suffix(end) for end in (".h5", ".npy", ".png")]
    return next((path for path in beside + instead if path.is_file()), None)


# --- RGB-D


def seven_scenes_views(folder: Path | str) -> list[View]:
    """List the views of one sequence of 7-Scenes (Shotton et al. 2013), such as ``chess/seq-01``.

    Colour (f = 525) and depth (f = 585) come unregistered; the 2.5 cm between the two cameras of the Kinect
    are not known exactly and are neglected, which costs some pixels close by.

    Raises
    ------
    InputError
        No frame with colour, depth and pose.
    """
    folder = Path(folder)
    K, K_depth = _pinhole(525.0, 525.0, 320.0, 240.0), _pinhole(585.0, 585.0, 320.0, 240.0)
    views = []
    for pose_file in sorted(folder.glob("frame-*.pose.txt")):
        stem = pose_file.name.removesuffix(".pose.txt")
        image, depth = folder / f"{stem}.color.png", folder / f"{stem}.depth.png"
        numbers = _read_numbers(pose_file)
        if len(numbers) != 16:
            raise InputError(f"{pose_file}: need the 16 numbers of a 4x4 matrix, found {len(numbers)}")
        if image.is_file() and depth.is_file() and np.isfinite(numbers).all():  # lost tracking: not finite
            pose = numbers.reshape(4, 4)
            views.append(_from_camera_to_world(image, depth, K, pose[:3, :3], pose[:3, 3], 1e-3, K_depth))
    if not views:
        raise InputError(f"{folder}: no frame-XXXXXX with .color.png, .depth.png and .pose.txt")
    return views


def tum_views(
    folder: Path | str,
    focal_length: tuple[float, float] = (525.0, 525.0),
    principal_point: tuple[float, float] = (319.5, 239.5),
    max_time_difference: float = 0.02,
) -> list[View]:
    """List the views of one sequence of the TUM RGB-D benchmark (Sturm et al. 2012).

    Each colour image takes the depth map and the ground-truth pose nearest in time.

    Parameters
    ----------
    folder : path
        Holds ``rgb.txt``, ``depth.txt`` and ``groundtruth.txt``.
    focal_length, principal_point : (float, float)
        In pixels; the defaults are the benchmark's own for all sequences. It also lists calibrations per
        camera. Lens distortion is not corrected here: sequences of ``freiburg3`` have none.
    max_time_difference : float
        In seconds; colour images without depth and pose this near are left out.

    Raises
    ------
    InputError
        A list is missing or unreadable, or nothing fits together in time.
    """
    folder = Path(folder)
    colours, depths, poses = (_read_list(folder / f"{name}.txt") for name in ("rgb", "depth", "groundtruth"))
    K = _pinhole(*focal_length, *principal_point)
    views = []
    for time, (name,) in colours:
        depth, pose = (_nearest_in_time(rows, time, max_time_difference) for rows in (depths, poses))
        if depth is None or pose is None or not (folder / name).is_file():
            continue
        numbers = np.array(pose, np.float64)
        views.append(
            _from_camera_to_world(
                folder / name, folder / depth[0], K, _rotation(numbers[3:7]), numbers[:3], 1 / 5000, None
            )
        )
    if not views:
        raise InputError(f"{folder}: no colour image has depth and pose within {max_time_difference} s")
    return views


def _from_camera_to_world(
    image: Path, depth: Path, K: Matrix, R: Matrix, centre: Matrix, unit: float, K_depth: Matrix | None
) -> View:
    return View(image, depth, K, R.T.copy(), -R.T @ centre, K_depth, unit)


def _rotation(q: Matrix) -> Matrix:
    """Return the rotation of a quaternion (x, y, z, w)."""
    x, y, z, w = q / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _read_list(path: Path) -> list[tuple[float, list[str]]]:
    """Read the lines "time value ..." of a TUM list, sorted by time."""
    fields = 7 if path.name == "groundtruth.txt" else 1
    rows = []
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        time, *values = line.split()
        try:
            rows.append((float(time), values))
            if len(values) != fields or (fields == 7 and not np.isfinite([float(v) for v in values]).all()):
                raise ValueError
        except ValueError as error:
            raise InputError(f"{path}, line {number}: need a time and {fields} values, not {line!r}") from error
    return sorted(rows)


def _nearest_in_time(rows: list[tuple[float, list[str]]], time: float, max_difference: float) -> list[str] | None:
    at = bisect.bisect_left(rows, (time, []))
    difference, values = min(
        ((abs(row[0] - time), row[1]) for row in rows[max(at - 1, 0) : at + 1]), default=(math.inf, [])
    )
    return values if difference <= max_difference else None


# --- files and intrinsics


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
    content = _read_bytes(path)
    try:
        *sizes, values = content.split(b"&", 3)
        width, height, channels = map(int, sizes)
        if channels != 1:
            raise ValueError
        return np.frombuffer(values, "<f4").reshape(height, width)
    except ValueError as error:
        raise InputError(f"{path}: not a depth map as COLMAP's dense stereo writes them") from error


def _read_npy(path: Path) -> NDArray[Any]:
    try:
        with open_file(path) as file:
            return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot read this array: {error}") from error


def _read_h5(path: Path) -> NDArray[Any]:
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError("h5py", "hdf5", "Reading .h5 depth maps") from error
    open_file(path).close()  # a pipe would block for ever
    try:
        with h5py.File(path) as file:
            depth = np.asarray(file["depth"])
    except (OSError, KeyError) as error:
        raise InputError(f"{path}: not an HDF5 file with a data set 'depth': {error}") from error
    # MegaDepth marks maps that only order near and far by negative numbers. They measure nothing.
    return np.zeros_like(depth) if (depth < 0).any() else depth


def _read_png(path: Path) -> NDArray[Any]:
    depth = read_numbers(path)
    if depth.ndim != 2 or depth.dtype.kind not in "ui" or depth.dtype.itemsize < 2:
        raise InputError(f"{path}: a depth map is a 16-bit grey PNG, not {depth.dtype} of shape {depth.shape}")
    return np.where(depth == 65535, 0, depth.astype(np.int32))


def _stored_size(path: Path) -> tuple[int, int]:
    with open_file(path) as file:
        return read_header(file, str(path)).size


def _read_numbers(path: Path) -> Matrix:
    try:
        return np.array(_read_text(path).split(), np.float64)
    except ValueError as error:
        raise InputError(f"{path}: not a list of numbers: {error}") from error


def _read_text(path: Path) -> str:
    return _read_bytes(path).decode("utf-8", "replace")


def _read_bytes(path: Path) -> bytes:
    try:
        with open_file(path) as file:
            return file.read()
    except OSError as error:
        raise InputError(f"{path}: cannot read this file: {error.strerror}") from error


def scale_intrinsics(K: Matrix, x: float, y: float) -> Matrix:
    """Return the intrinsics of an image resized by the factors ``x`` and ``y``.

    Examples
    --------
    >>> scale_intrinsics(np.array([[100.0, 0, 49.5], [0, 100, 39.5], [0, 0, 1]]), 0.5, 0.5)[:2].tolist()
    [[50.0, 0.0, 24.5], [0.0, 50.0, 19.5]]
    """
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]]) @ K


def _pinhole(fx: float, fy: float, cx: float, cy: float) -> Matrix:
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def _nearest(
    pixels: NDArray[np.int64], K: Matrix, K_source: Matrix, axis: int, size: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the nearest pixels of another camera at the same place, along one axis, and whether they exist.

    ``K`` and ``K_source`` are the rows of the intrinsics for that axis; without skew the axes are
    independent.
    """
    place = (pixels - K[2]) / K[axis] * K_source[axis] + K_source[2]
    index = np.floor(place + 0.5).astype(np.int64)
    return index.clip(0, size - 1), (index >= 0) & (index < size)
