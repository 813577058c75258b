"""A model -> the files that other tools read: COLMAP, gsplat, nerfstudio, point clouds, trajectories.

All coordinates in these files are COLMAP's, as their readers expect: the centre of the top-left pixel is
(0.5, 0.5), half a pixel more than elsewhere in tiepoint.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ...errors import ArgumentError, InputError
from ...geometry.colmap import import_pycolmap
from ...io import model_files
from ...io.exif import read_exif
from ...io.files import (
    LONGEST_NAME,
    atomic,
    atomic_folder,
    check_image_name,
    check_output_folder,
    printable,
    write_json,
)
from ...io.folders import mask_of, natural_key
from ...io.images import read_image
from ..models import registered
from .trajectories import Pose, write_tum

if TYPE_CHECKING:
    import pycolmap

JPEG_QUALITY = 95  # of undistorted photographs: they are training data
NO_RAY = (-1.0, -1.0)  # where a keypoint without a ray lies in an undistorted photograph: outside, seen by no point


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
    """Write the camera's path in the format of the TUM RGB-D benchmark, see `write_tum`, in the model's unit of length.

    Parameters
    ----------
    model : pycolmap.Reconstruction
    path : path
        Replaced atomically. One line per registered image, in order of time.
    timestamps : mapping, optional
        Image name -> seconds; images that are not in it are left out. Without, the time is the image's place
        among the registered ones, sorted by name, numbers counting as such.

    Raises
    ------
    ArgumentError
        None of the images has a timestamp.
    InputError
        The file cannot be written.
    """
    images = sorted(registered(model), key=lambda image: natural_key(image.name))
    if timestamps is None:
        timed = [(float(i), image) for i, image in enumerate(images)]
    else:
        timed = [(float(timestamps[image.name]), image) for image in images if image.name in timestamps]
        timed.sort(key=lambda entry: entry[0])
    if images and not timed:
        raise ArgumentError(f"{path}: none of the timestamps is of a registered image, such as {images[0].name}")
    poses = []
    for index, (time, image) in enumerate(timed):
        matrix = image.cam_from_world().matrix()
        poses.append(Pose(index, time, matrix[:, :3], matrix[:, 3]))
    write_tum(path, poses)


def write_undistorted(
    model: pycolmap.Reconstruction,
    images: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    masks: str | os.PathLike[str] | None = None,
    bands: Sequence[int] | None = None,
) -> None:
    """Write photographs without lens distortion and their cameras, ready for Gaussian splatting and NeRFs.

    ::

        images/            every registered photograph as a pinhole camera sees it, upright
        sparse/0/          COLMAP's model of these: what gsplat reads, and 'ns-train ... colmap'
        transforms.json    the same poses: what nerfstudio and instant-ngp read
        points.ply         the points, to which transforms.json refers
        masks/             black where a photograph is transparent or masked, if any is; a.jpg has a.jpg.png

    Parameters
    ----------
    model : pycolmap.Reconstruction
        It is not changed.
    images : path
        The folder of the photographs that it was made of.
    folder : path
        Replaced as a whole.
    masks : path, optional
        Folder of masks, see `tiepoint.mapping.steps.extract.extract_into`. They are warped along.
    bands : one or three ints, optional
        Which bands of the photographs to use, see `tiepoint.read_image`.

    Raises
    ------
    ArgumentError
        The photographs or masks lie in the folder that is to be replaced, or a camera takes panorama pictures, which
        no pinhole camera can.
    InputError
        A photograph is missing, damaged, or has another size than when the model was made, or its name leads out of
        the folder; or the folder cannot be written.

    Notes
    -----
    Photographs without distortion are copied byte by byte, unless their file holds them turned (EXIF orientation).
    All others are warped with bilinear interpolation by COLMAP and lose a border, so that no pixel is empty, and that
    the principal point is in the middle, to half a pixel: some readers take it to be there.
    Files other than JPEG and PNG become PNG. What is under transparent pixels becomes black; a mask lets a pixel
    pass only if all pixels that it was made of do.
    """
    pycolmap = import_pycolmap()
    source, mask_folder = Path(images), None if masks is None else Path(masks)
    check_output_folder(folder, inputs=[source, mask_folder])
    check_can_be_undistorted(model.cameras.values(), [image.name for image in registered(model)])
    for image in registered(model):
        check_image_name(image.name, "the model")
    straight, options = copy.deepcopy(model), pycolmap.UndistortCameraOptions()
    crops = _undistort_cameras(straight, options)
    written: list[tuple[Path, tuple[int, ...], NDArray[np.uint8] | None]] = []  # name, height and width, mask
    with atomic_folder(folder) as temporary:
        for image in registered(straight):
            original, camera = source / image.name, model.cameras[image.camera_id]
            mask_path = mask_of(mask_folder, image.name)
            if Path(image.name).suffix.lower() not in (".jpg", ".jpeg", ".png"):
                image.name += ".png"  # appended, so that a.tif and a.bmp stay two files
            target = temporary / "images" / image.name
            target.parent.mkdir(parents=True, exist_ok=True)
            pixels, mask = _read_with_mask(original, mask_path, camera, bands)
            straight_already = _is_pinhole(camera)
            if not straight_already:
                pixels, mask = _undistort(pixels, mask, camera, options, crops[image.camera_id])
            same_file = bands is None and original.suffix == target.suffix
            if straight_already and same_file and read_exif(original).orientation == 1:
                shutil.copyfile(original, target)
            else:
                PIL.Image.fromarray(pixels).save(target, quality=JPEG_QUALITY)
            written.append((target.relative_to(temporary / "images"), pixels.shape[:2], mask))
        masked = any(mask is not None for *_, mask in written)
        for name, shape, mask in written if masked else ():  # nerfstudio wants one for every image, or none
            path = temporary / "masks" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(np.full(shape, 255, np.uint8) if mask is None else mask).save(path)
        sparse = temporary / "sparse" / "0"
        sparse.mkdir(parents=True)
        model_files.write_model(straight, sparse)
        model_files.write_points(straight, temporary / "points.ply")
        write_json(temporary / "transforms.json", _transforms(straight, masked))


def _read_with_mask(
    path: Path, mask_path: Path | None, camera: pycolmap.Camera, bands: Sequence[int] | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Return a photograph (H, W, 3), and where it is to be seen (H, W), by its transparency and its mask."""
    view = read_image(path, bands=bands)
    if view.size != (camera.width, camera.height):
        raise InputError(
            f"{path}: is {view.size[0]}x{view.size[1]} pixels, but {camera.width}x{camera.height} in the "
            "model; give the photographs that the model was made of"
        )
    pixels, mask = view.pixels, view.mask
    if mask is not None:  # transparent: what is there was not meant to be seen
        pixels = np.where(mask[..., None] > 0, pixels, 0).astype(np.uint8)
    if mask_path is not None:
        drawn = read_image(view, mask_path).mask
        mask = drawn if mask is None or drawn is None else np.minimum(mask, drawn)
    return pixels, mask


def _undistort(
    pixels: NDArray[np.uint8],
    mask: NDArray[np.uint8] | None,
    camera: pycolmap.Camera,
    options: Any,
    crop: tuple[slice, slice],
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Warp a photograph and its mask as `_undistort_cameras` says; a pixel whose sources are not all seen is not."""
    pycolmap = import_pycolmap()

    def warp(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        bitmap = pycolmap.Bitmap.from_array(np.ascontiguousarray(array))
        warped = pycolmap.undistort_image(options, bitmap, camera)[0].to_array()
        return np.asarray(warped.reshape(*warped.shape[:2], *array.shape[2:])[crop], np.uint8)

    return warp(pixels), None if mask is None else np.where(warp(mask) == 255, 255, 0).astype(np.uint8)


def check_can_be_undistorted(cameras: Iterable[pycolmap.Camera], names: Iterable[str]) -> None:
    """Raise `ArgumentError` if a camera sees more than any pinhole camera can, or a name is too long for a mask's."""
    if any(camera.is_spherical() for camera in cameras):
        raise ArgumentError(
            "panoramas (EQUIRECTANGULAR) cannot be undistorted to one picture each; leave out --undistort"
        )
    for name in names:
        part = PurePosixPath(name).name
        if len(os.fsencode(part)) > LONGEST_NAME - 2 * len(".png"):  # a.tif becomes a.tif.png, its mask a.tif.png.png
            raise ArgumentError(
                f"{printable(part[:40])}…: the name is too long for that of an undistorted photograph with its mask; "
                "rename it, or leave out --undistort"
            )


def _is_pinhole(camera: pycolmap.Camera) -> bool:
    """Whether a photograph is a pinhole camera's already.

    COLMAP calls a fisheye "undistorted", too, if its coefficients are zero: it means the polynomial, not the picture.
    """
    return bool(camera.is_undistorted()) and not camera.is_perspective_fisheye()


def _undistort_cameras(model: pycolmap.Reconstruction, options: Any) -> dict[int, tuple[slice, slice]]:
    """Turn every camera into the pinhole camera of `write_undistorted`, and move the keypoints along.

    Return which rows and columns are left of what COLMAP undistorts, by camera.
    """
    pycolmap = import_pycolmap()
    rays, crops = {}, {}
    for image in registered(model):
        points = np.array([point.xy for point in image.points2D]).reshape(-1, 2)
        rays[image.image_id] = np.asarray(model.cameras[image.camera_id].cam_from_img(points))
    for camera in model.cameras.values():
        if _is_pinhole(camera):  # it stays as it is, and loses no border
            K = camera.calibration_matrix()
            params, size = [K[0, 0], K[1, 1], K[0, 2], K[1, 2]], (camera.width, camera.height)
        else:
            new = pycolmap.undistort_camera(options, camera)
            fx, fy, *centre = new.params
            (left, right), (top, bottom) = map(_around, centre, (new.width, new.height))
            crops[camera.camera_id] = slice(top, bottom), slice(left, right)
            params, size = [fx, fy, centre[0] - left, centre[1] - top], (right - left, bottom - top)
        camera.model = pycolmap.CameraModelId.PINHOLE
        camera.width, camera.height = size
        camera.params = params
    for image in registered(model):
        on_plane = np.column_stack([rays[image.image_id], np.ones(len(rays[image.image_id]))])
        pixels = np.asarray(model.cameras[image.camera_id].img_from_cam(on_plane))
        for index, (point, xy) in enumerate(zip(image.points2D, pixels, strict=True)):
            if np.isfinite(xy).all():
                point.xy = xy
                continue
            # COLMAP finds no ray there: near the corners, a strong polynomial may turn back on itself.
            if point.has_point3D():
                model.delete_observation(image.image_id, index)
            point.xy = NO_RAY
    return crops


def _around(centre: float, size: int) -> tuple[int, int]:
    """Return the largest range of pixels that has a coordinate in its middle, to half a pixel.

    Examples
    --------
    >>> _around(50.2, 100), _around(47.0, 100), _around(54.3, 100)
    ((0, 100), (0, 94), (9, 100))
    """
    off = round(2 * centre - size)
    return max(0, off), min(size, size + off)


def _transforms(model: pycolmap.Reconstruction, masked: bool) -> dict[str, Any]:
    """Return the content of transforms.json for a model of pinhole cameras.

    Its poses are camera-to-world in OpenGL's frame: x right, y **up**, z **backward**. The world stays as it is.
    """
    images = registered(model)
    lenses = []
    for image in images:
        camera = model.cameras[image.camera_id]
        fx, fy, cx, cy = camera.params
        lenses.append({"fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "w": camera.width, "h": camera.height})
    # The common place for one camera: readers of the original NeRF format look nowhere else.
    shared = lenses[0] if lenses and all(lens == lenses[0] for lens in lenses) else {}
    frames = []
    for image, lens in zip(images, lenses, strict=True):
        pose = np.eye(4)
        pose[:3] = image.cam_from_world().inverse().matrix()
        pose[:, 1:3] *= -1
        own = {} if shared else lens
        frames.append({"file_path": f"images/{image.name}", **own, "transform_matrix": pose.tolist()})
        if masked:
            frames[-1]["mask_path"] = f"masks/{image.name}.png"
    return {"camera_model": "PINHOLE", **shared, "ply_file_path": "points.ply", "frames": frames}
