"""Lists the views of photographs with depth and pose: COLMAP models, MegaDepth, 7-Scenes, TUM RGB-D.

Nothing is decoded here. An image whose depth, pose or file is missing is left out of the list.
"""

from __future__ import annotations

import bisect
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...io.files import read_text
from ...io.folders import walk
from .depth_maps import Matrix, scale_intrinsics
from .posed import View, stored_size


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
        width, height = stored_size(image)
        # The photographs may have been shrunk; a change of proportions would mean another calibration.
        if abs(width * straight.height - height * straight.width) > 2 * max(straight.width, straight.height):
            return None
        return scale_intrinsics(_from_colmap(straight), width / straight.width, height / straight.height)

    folder, models = root / "phoenix/S6/zl548/MegaDepth_v1" / scene, root / "MegaDepth_v1_SfM" / scene
    found = []
    for dense in sorted(folder.glob("dense*")):
        model = models / "sparse/manhattan" / dense.name.removeprefix("dense")
        found.append(_colmap_views(model, dense / "imgs", dense / "depths", intrinsics))
    if not found:
        raise InputError(f"{folder}: no folder dense0 here; is {root} where MegaDepth was unpacked?")
    return found


def _colmap_views(
    model: Path, images: Path, depths: Path, intrinsics: Callable[[Any, Path], Matrix | None]
) -> list[View]:
    """List the images of a model that have a file, a depth map and ``intrinsics(camera, file)``."""
    if not any((model / name).is_file() for name in ("cameras.bin", "cameras.txt")):
        raise InputError(f"{model}: no COLMAP model here (neither cameras.bin nor cameras.txt)")
    from ...io.model_files import read_model  # here, because training needs no pycolmap otherwise

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
            f"{len(unlike)} images left out: their proportions are not their camera's ({unlike[0]} ...)", stacklevel=3
        )
    if not views:
        raise InputError(f"{model}: none of its images has a file in {images} and a depth map in {depths}")
    return views


def _from_colmap(camera: Any) -> Matrix:
    """Return K with the centre of the top-left pixel at (0, 0)."""
    from ...geometry.colmap import from_colmap  # here, because geometry needs OpenCV

    K = np.array(camera.calibration_matrix(), np.float64)
    K[:2, 2] = from_colmap(K[:2, 2])
    return K


def _find_depth(folder: Path, name: str) -> Path | None:
    beside = [folder / (name + end) for end in (".geometric.bin", ".photometric.bin", ".h5", ".npy", ".png")]
    instead = [(folder / name).with_suffix(end) for end in (".h5", ".npy", ".png")]
    return next((path for path in beside + instead if path.is_file()), None)


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
        R = _rotation(numbers[3:7])
        views.append(_from_camera_to_world(folder / name, folder / depth[0], K, R, numbers[:3], 1 / 5000))
    if not views:
        raise InputError(f"{folder}: no colour image has depth and pose within {max_time_difference} s")
    return views


def _from_camera_to_world(
    image: Path, depth: Path, K: Matrix, R: Matrix, centre: Matrix, unit: float, K_depth: Matrix | None = None
) -> View:
    """Return a view whose pose is given as the camera's axes and place in the world."""
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
    for number, line in enumerate(read_text(path).splitlines(), 1):
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


def _read_numbers(path: Path) -> Matrix:
    try:
        return np.array(read_text(path).split(), np.float64)
    except ValueError as error:
        raise InputError(f"{path}: not a list of numbers: {error}") from error


def _pinhole(fx: float, fy: float, cx: float, cy: float) -> Matrix:
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
