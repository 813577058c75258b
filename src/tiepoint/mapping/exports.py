"""A model -> the files that other tools read: COLMAP, gsplat, nerfstudio, point clouds, trajectories.

All coordinates in these files are COLMAP's, as their readers expect: the centre of the top-left pixel is
(0.5, 0.5), half a pixel more than elsewhere in tiepoint.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import PIL.Image

from ..errors import ArgumentError, InputError
from ..geometry.colmap import import_pycolmap
from ..io.files import atomic, atomic_folder, check_image_name, check_output_folder, write_json
from ..io.images import _orientation, read_image
from . import model_files

if TYPE_CHECKING:
    import pycolmap

JPEG_QUALITY = 95  # of undistorted photographs: they are training data


def write_model(
    model: pycolmap.Reconstruction,
    folder: str | os.PathLike[str],
    kind: Literal["binary", "text"] = "binary",
) -> None:
    """Write cameras, images and points as COLMAP does.

    Parameters
    ----------
    model : pycolmap.Reconstruction
    folder : path
        Replaced as a whole. It gets ``cameras``, ``images``, ``points3D``, ``rigs`` and ``frames``.
    kind : {"binary", "text"}
        ``.bin`` files, or ``.txt`` files, which are some three times larger.

    Raises
    ------
    ArgumentError
        Unknown kind.
    InputError
        The folder cannot be written.
    """
    if kind not in ("binary", "text"):
        raise ArgumentError(f"a model is written as 'binary' or 'text', not {kind!r}")
    with atomic_folder(folder) as temporary:
        model_files.write_model(model, temporary, text=kind == "text")


def write_ply(model: pycolmap.Reconstruction, path: str | os.PathLike[str]) -> None:
    """Write the points, with their colours, as a binary PLY file.

    Parameters
    ----------
    model : pycolmap.Reconstruction
    path : path
        Replaced atomically.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    with atomic(path) as temporary:
        if not temporary.parent.is_dir():  # COLMAP's own message would be about its source code
            raise InputError(f"{path}: the folder {temporary.parent} does not exist; create it first")
        model_files.write_points(model, temporary)


def write_trajectory(
    model: pycolmap.Reconstruction,
    path: str | os.PathLike[str],
    timestamps: Mapping[str, float] | None = None,
) -> None:
    """Write the camera's path in the format of the TUM RGB-D benchmark: ``time tx ty tz qx qy qz qw``.

    Poses are camera-to-world: t is where the camera is, q turns its axes (x right, y down, z forward) into the world's.
    The unit of length is the model's.

    Parameters
    ----------
    model : pycolmap.Reconstruction
    path : path
        Replaced atomically. One line per registered image, in order of time.
    timestamps : mapping, optional
        Image name -> seconds; images that are not in it are left out. Without, the time is the image's place
        among the registered ones, sorted by name.

    Raises
    ------
    ArgumentError
        None of the images has a timestamp.
    InputError
        The file cannot be written.

    References
    ----------
    Sturm et al., A Benchmark for the Evaluation of RGB-D SLAM Systems, IROS 2012.
    """
    images = registered(model)
    if timestamps is None:
        timed = [(float(i), image) for i, image in enumerate(images)]
    else:
        timed = [(float(timestamps[image.name]), image) for image in images if image.name in timestamps]
        timed.sort(key=lambda entry: entry[0])
    if images and not timed:
        raise ArgumentError(f"{path}: none of the timestamps is of a registered image, such as {images[0].name}")
    lines = ["# timestamp tx ty tz qx qy qz qw"]
    for time, image in timed:
        pose = image.cam_from_world().inverse()
        numbers = " ".join(f"{value:.9g}" for value in (*pose.translation, *pose.rotation.quat))
        lines.append(f"{time:.6f} {numbers}")
    with atomic(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_undistorted(
    model: pycolmap.Reconstruction,
    images: str | os.PathLike[str],
    folder: str | os.PathLike[str],
) -> None:
    """Write photographs without lens distortion and their cameras, ready for Gaussian splatting and NeRFs.

    ::

        images/            every registered photograph as a pinhole camera sees it, upright
        sparse/0/          COLMAP's model of these: what gsplat reads, and 'ns-train ... colmap'
        transforms.json    the same poses: what nerfstudio and instant-ngp read
        points.ply         the points, to which transforms.json refers

    Parameters
    ----------
    model : pycolmap.Reconstruction
        It is not changed.
    images : path
        The folder of the photographs that it was made of.
    folder : path
        Replaced as a whole.

    Raises
    ------
    ArgumentError
        The photographs lie in the folder that is to be replaced.
    InputError
        A photograph is missing, damaged, or has another size than when the model was made, or its name leads out of
        the folder; or the folder cannot be written.

    Notes
    -----
    Photographs without distortion are copied byte by byte, unless their file holds them turned (EXIF orientation).
    All others are warped with bilinear interpolation by COLMAP and lose a border, so that no pixel is empty.
    Files other than JPEG and PNG become PNG.
    """
    pycolmap = import_pycolmap()
    source = Path(images)
    check_output_folder(folder, inputs=[source])
    for image in registered(model):
        check_image_name(image.name, "the model")
    straight, options = copy.deepcopy(model), pycolmap.UndistortCameraOptions()
    _undistort_cameras(straight, options)
    with atomic_folder(folder) as temporary:
        for image in registered(straight):
            original, camera = source / image.name, model.cameras[image.camera_id]
            if Path(image.name).suffix.lower() not in (".jpg", ".jpeg", ".png"):
                image.name += ".png"  # appended, so that a.tif and a.bmp stay two files
            target = temporary / "images" / image.name
            target.parent.mkdir(parents=True, exist_ok=True)
            view = read_image(original)
            if view.size != (camera.width, camera.height):
                raise InputError(
                    f"{original}: is {view.size[0]}x{view.size[1]} pixels, but {camera.width}x{camera.height} in the "
                    "model; give the photographs that the model was made of"
                )
            if camera.is_undistorted() and original.suffix == target.suffix and _is_upright(original):
                shutil.copyfile(original, target)
                continue
            pixels = pycolmap.undistort_image(options, pycolmap.Bitmap.from_array(view.pixels), camera)[0].to_array()
            PIL.Image.fromarray(pixels).save(target, quality=JPEG_QUALITY)
        sparse = temporary / "sparse" / "0"
        sparse.mkdir(parents=True)
        model_files.write_model(straight, sparse)
        model_files.write_points(straight, temporary / "points.ply")
        write_json(temporary / "transforms.json", _transforms(straight))


def _undistort_cameras(model: pycolmap.Reconstruction, options: Any) -> None:
    """Turn every camera into the pinhole camera of `pycolmap.undistort_image`, and move the keypoints along."""
    pycolmap = import_pycolmap()
    rays = {}
    for image in registered(model):
        points = np.array([point.xy for point in image.points2D]).reshape(-1, 2)
        rays[image.image_id] = np.asarray(model.cameras[image.camera_id].cam_from_img(points))
    for camera in model.cameras.values():
        new = pycolmap.undistort_camera(options, camera)
        camera.model, camera.width, camera.height, camera.params = new.model, new.width, new.height, new.params
    for image in registered(model):
        on_plane = np.column_stack([rays[image.image_id], np.ones(len(rays[image.image_id]))])
        pixels = np.asarray(model.cameras[image.camera_id].img_from_cam(on_plane))
        for point, xy in zip(image.points2D, pixels, strict=True):
            point.xy = xy


def _transforms(model: pycolmap.Reconstruction) -> dict[str, Any]:
    """Return the content of transforms.json for a model of pinhole cameras.

    Its poses are camera-to-world in OpenGL's frame: x right, y **up**, z **backward**. The world stays as it is.
    """
    frames = []
    for image in registered(model):
        camera, pose = model.cameras[image.camera_id], np.eye(4)
        pose[:3] = image.cam_from_world().inverse().matrix()
        pose[:, 1:3] *= -1
        K = camera.calibration_matrix().tolist()
        frames.append(
            {
                "file_path": f"images/{image.name}",
                "fl_x": K[0][0],
                "fl_y": K[1][1],
                "cx": K[0][2],
                "cy": K[1][2],
                "w": camera.width,
                "h": camera.height,
                "transform_matrix": pose.tolist(),
            }
        )
    intrinsics = ("fl_x", "fl_y", "cx", "cy", "w", "h")
    shared: dict[str, Any] = {}
    if len({tuple(frame[key] for key in intrinsics) for frame in frames}) == 1:
        # The common place for one camera: readers of the original NeRF format look nowhere else.
        shared = {key: frames[0][key] for key in intrinsics}
        for frame in frames:
            for key in intrinsics:
                del frame[key]
    return {"camera_model": "PINHOLE", **shared, "ply_file_path": "points.ply", "frames": frames}


def registered(model: pycolmap.Reconstruction) -> list[pycolmap.Image]:
    """Return the images of a model that have a pose, sorted by name."""
    return sorted((model.images[image_id] for image_id in model.reg_image_ids()), key=lambda image: image.name)


def _is_upright(path: Path) -> bool:
    """Whether a file that can be read holds its pixels as they are to be seen."""
    with PIL.Image.open(path) as picture:
        picture.load()  # PNG may hold its EXIF behind the pixels
        return _orientation(picture) == 1
