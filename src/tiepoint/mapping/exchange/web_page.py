"""One self-contained HTML page to look at a reconstruction; it opens offline, from the disk."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ...errors import ArgumentError, InputError
from ...io.files import atomic
from ...io.html import fill_template
from ...io.images import read_reduced, resize
from ..steps.assess import Assessment
from ..steps.reconstruct import Quality, Scene
from ..store import Store, registered

if TYPE_CHECKING:
    import pycolmap

MAX_POINTS = 200_000  # of a model: 5 MB of page, and fluent with WebGL
MAX_OBSERVATIONS = 1_000_000  # of a model, where its points' tracks lie in the photographs: 8 MB of page
MAX_EDGES = 20_000  # of the match graph: more lines are one grey disc
THUMBNAIL_SIDES = (1024, 640, 320, 160, 96)  # pixels
THUMBNAIL_BYTES = 12_000_000  # of all thumbnails together
BYTES_A_PIXEL = 0.2  # of a JPEG at most, as a rule
PANORAMA_CORNER = (0.5, 0.25)  # a panorama looks everywhere; it is drawn as a picture of its shape, ahead


def write_scene_page(
    scene: Scene,
    database: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    photographs: str | os.PathLike[str] | None = None,
    title: str = "",
    description: str = "",
    unit: str = "",
    up: tuple[float, float, float] | None = None,
) -> None:
    """Write an interactive page: points and cameras to turn around, the match graph, the weakest images.

    Parameters
    ----------
    scene : Scene
        What to show; see `tiepoint.mapping.steps.reconstruct.reconstruct`.
    database : path
        The database it was made of, for the match graph: images as nodes, verified pairs as edges.
    path : path
        Ending in .html; written atomically.
    photographs : path, optional
        Their folder; the page then shows them, small, in the cameras, and in pairs and tracks. One that cannot be read
        is left out.
    title : str
        Name of the scene.
    description : str
        One line under the title, e.g. how the matches were made.
    unit : str
        Of the world, such as ``"m"``; empty where the scale is unknown.
    up : three floats, optional
        Upwards in the world, if that is known; else the page takes the mean of what is up in the photographs.

    Raises
    ------
    ArgumentError
        The name does not end in .html.
    InputError
        The database cannot be read, or the page not written.

    Notes
    -----
    At most 200,000 points of each model are on the page, evenly chosen, tracks of points up to 1,000,000 observations,
    the 20,000 pairs with most inliers, and 12 MB of photographs; the page says so where it leaves something out.
    """
    target = check_page_name(path)
    with Store.open(database, create=False) as store:
        named = {image.image_id: image.name for image in store.images()}
        verified = store.verified_pairs()

    def picture(name: str, side: int) -> NDArray[np.uint8] | None:
        assert photographs is not None
        try:
            return resize(read_reduced((Path(photographs) / name).read_bytes(), name, side), side)
        except (OSError, InputError):  # the map has said what is wrong with it
            return None

    write_page(
        target,
        scene,
        list(named.values()),
        {(named[id0], named[id1]): inliers for (id0, id1), inliers in verified.items()},
        None if photographs is None else picture,
        title=title,
        description=description,
        unit=unit,
        up=up,
    )


def check_page_name(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` as a `Path`, or raise `ArgumentError` if it does not end in .html."""
    target = Path(path)
    if target.suffix.lower() != ".html":
        raise ArgumentError(f"{target}: the page's name must end in .html")
    return target


def write_page(
    target: Path,
    scene: Scene,
    images: Sequence[str],
    pairs: Mapping[tuple[str, str], int],
    picture: Callable[[str, int], NDArray[np.uint8] | None] | None = None,
    lens: pycolmap.Camera | None = None,
    found: Collection[str] = (),
    *,
    title: str = "",
    description: str = "",
    unit: str = "",
    up: tuple[float, float, float] | None = None,
) -> None:
    """Write a page of a scene that has no database.

    Parameters
    ----------
    target : Path
    scene : Scene
    images : sequence of str
        Names of all images, those of the models and others.
    pairs : mapping
        Names of two images -> how many matches connect them.
    picture : function, optional
        Name of an image, long side in pixels -> uint8 array (H, W, 3), as its camera took it; None if there is none.
    lens : pycolmap.Camera, optional
        The camera that took the pictures, where the models know only one without distortion.
    found : collection of str
        Images that were found in the map later; they have a colour of their own.
    title, description, unit, up
        See `write_scene_page`.
    """
    names = {name: number for number, name in enumerate(images)}
    strongest = sorted(pairs.items(), key=lambda item: -item[1])[:MAX_EDGES]
    taken_by = {
        image.name: lens or model.cameras[image.camera_id]
        for model in scene.models[::-1]
        for image in registered(model)
    }
    data = {
        "images": list(images),
        "thumbnails": {} if picture is None else _thumbnails(picture, taken_by, names),
        "edges": [[names[name0], names[name1], inliers] for (name0, name1), inliers in strongest],
        "pairs": len(pairs),
        "unit": unit,
        "up": up,
        "models": [
            _describe(model, quality, names, assessment, found)
            for model, quality, assessment in zip_longest(scene.models, scene.qualities, scene.assessments)
        ],
        "leftOut": {names[name]: reason for name, reason in scene.left_out.items()},
    }
    template = files(__package__).joinpath("web_page.html").read_text(encoding="utf-8")
    page = fill_template(template, data, title=title or "Scene", description=description)
    with atomic(target) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _describe(
    model: pycolmap.Reconstruction,
    quality: Quality,
    names: dict[str, int],
    assessment: Assessment | None,
    found: Collection[str],
) -> dict[str, Any]:
    """Return one model as the page's script wants it; numbers that are many are little-endian blocks in base64."""
    held = {image.name: image for image in quality.images}
    cameras: list[dict[str, Any]] = []
    row: dict[int, int] = {}
    pixels: dict[int, NDArray[np.float64]] = {}
    for image in registered(model):
        camera, pose = model.cameras[image.camera_id], image.cam_from_world()
        corner = _corner(camera)
        row[image.image_id] = len(cameras)
        keypoints = np.array([point.xy for point in image.points2D], np.float64).reshape(-1, 2)
        pixels[image.image_id] = _on_thumbnail(keypoints, camera)
        cameras.append(
            {
                "image": names[image.name],
                "centre": _rounded(image.projection_center()),
                "axes": _rounded(pose.rotation.matrix().ravel()),  # right, down, forward in the world
                "corner": _rounded(corner),  # of the picture at distance 1
                "observations": held[image.name].observations,
                "error": round(held[image.name].error, 3),
                "found": image.name in found,
            }
        )
    ids = sorted(model.point3D_ids())
    chosen = [model.points3D[ids[i]] for i in np.linspace(0, len(ids) - 1, min(len(ids), MAX_POINTS)).astype(int)]
    tracks = [[(e.image_id, e.point2D_idx) for e in point.track.elements if e.image_id in row] for point in chosen]
    lengths = np.array([len(track) for track in tracks], int)
    if lengths.sum() > MAX_OBSERVATIONS:  # of every so manieth point only
        step = int(np.ceil(lengths.sum() / MAX_OBSERVATIONS))
        tracks = [track if i % step == 0 else [] for i, track in enumerate(tracks)]
    seen = [(row[image], *pixels[image][place]) for track in tracks for image, place in track]
    observations = np.array(seen, np.float64).reshape(-1, 3)
    return {
        "summary": str(quality) if assessment is None else f"{quality}. Verdict: {assessment}",
        "total": len(ids),
        "points": _encoded(np.array([point.xyz for point in chosen], "<f4").reshape(-1, 3)),
        "colours": _encoded(np.array([point.color for point in chosen], np.uint8).reshape(-1, 3)),
        "errors": _encoded(np.nan_to_num(np.array([point.error for point in chosen], "<f4"), nan=0.0).clip(0)),
        "lengths": _encoded(lengths.astype("<u4")),
        "tracks": _encoded(
            np.array([len(track) for track in tracks], "<u4")
        ),  # how many of the next two are the point's
        "seenBy": _encoded(observations[:, 0].astype("<u4")),  # rows of cameras
        "seenAt": _encoded(np.rint(observations[:, 1:].clip(0, 1) * 65535).astype("<u2")),
        "cameras": cameras,
    }


# Thumbnails are as a camera without distortion sees, its axis in the middle: so they fit on the drawn pyramids, and the
# points of the scene lie on them where they should.


def _corner(camera: pycolmap.Camera) -> tuple[float, float]:
    """Return half the width and height of a thumbnail, at distance 1."""
    if camera.is_spherical():  # it has no focal length, and pycolmap crashes when asked for one
        return PANORAMA_CORNER
    return camera.width / 2 / camera.focal_length_x, camera.height / 2 / camera.focal_length_y


def _on_thumbnail(keypoints: NDArray[np.float64], camera: pycolmap.Camera) -> NDArray[np.float64]:
    """Return where keypoints (N, 2), in COLMAP's pixels, lie on the thumbnail, as fractions of its size."""
    if camera.is_spherical() or not len(keypoints):
        return keypoints / (camera.width, camera.height)
    rays = np.asarray(camera.cam_from_img(keypoints), np.float64)
    return np.nan_to_num((rays[:, :2] / _corner(camera) + 1) / 2)


def _undistorted(pixels: NDArray[np.uint8], camera: pycolmap.Camera) -> NDArray[np.uint8]:
    """Return a shrunken photograph (H, W, 3) as its thumbnail, of the same size."""
    if camera.is_spherical():
        return pixels
    height, width = pixels.shape[:2]
    u, v = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    rays = np.column_stack([(2 * np.column_stack([u.ravel(), v.ravel()]) - 1) * _corner(camera), np.ones(u.size)])
    at = np.asarray(camera.img_from_cam(rays), np.float64) * (width / camera.width, height / camera.height) - 0.5
    x, y = at.astype(np.float32).T.reshape(2, height, width)
    return np.asarray(cv2.remap(pixels, x, y, cv2.INTER_LINEAR), np.uint8)


def _thumbnails(
    picture: Callable[[str, int], NDArray[np.uint8] | None],
    taken_by: dict[str, pycolmap.Camera],
    names: dict[str, int],
) -> dict[int, str]:
    """Return photographs as JPEG in base64, by their place in the list of images; as large as the budget allows."""
    wanted = sorted(taken_by)
    area = THUMBNAIL_BYTES / BYTES_A_PIXEL / max(1, len(wanted))
    side = next((side for side in THUMBNAIL_SIDES if side * side * 0.75 <= area), THUMBNAIL_SIDES[-1])
    thumbnails, spent = {}, 0
    for name in wanted:
        pixels = picture(name, side)
        if pixels is None:
            continue
        buffer = io.BytesIO()
        PIL.Image.fromarray(_undistorted(pixels, taken_by[name])).save(buffer, "JPEG", quality=75)
        spent += buffer.tell()
        if spent > THUMBNAIL_BYTES:
            break
        thumbnails[names[name]] = base64.b64encode(buffer.getvalue()).decode("ascii")
    return thumbnails


def _rounded(values: Any) -> list[float]:
    """Return numbers for JSON, to the precision of float32."""
    return [float(f"{value:.7g}") for value in values]


def _encoded(array: NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
