"""One self-contained HTML page to look at a reconstruction; it opens offline, from the disk."""

from __future__ import annotations

import base64
import io
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ...errors import ArgumentError, InputError
from ...geometry.colmap import to_colmap
from ...io.files import atomic
from ...io.html import fill_template
from ...io.images import read_reduced, resize
from ..models import registered
from ..steps.assess import Assessment
from ..steps.reconstruct import Quality, Scene
from ..store import Store

if TYPE_CHECKING:
    import pycolmap

MatchesOf = Callable[[str, str, int], tuple[NDArray[np.float64], NDArray[np.float64]] | None]

MAX_POINTS = 200_000  # of a model: 5 MB of page, and fluent with WebGL
MAX_OBSERVATIONS = 1_000_000  # of a model, where its points' tracks lie in the photographs: 8 MB of page
MAX_EDGES = 20_000  # of the match graph: more lines are one grey disc
MATCHES_OF_A_PAIR = 120  # as many lines as can be told apart
MAX_MATCHES = 250_000  # of all pairs together, of the strongest of each image first: 3 MB of page
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
    the 20,000 pairs with most inliers, 120 verified matches of a pair, evenly chosen, of the strongest pairs of each
    image up to 250,000 together, and 12 MB of photographs; the page says so where it leaves something out.
    """
    target = check_page_name(path)

    def picture(name: str, side: int) -> NDArray[np.uint8] | None:
        assert photographs is not None
        try:
            return resize(read_reduced((Path(photographs) / name).read_bytes(), name, side), side)
        except (OSError, InputError):  # the map has said what is wrong with it
            return None

    with Store.open(database, create=False) as store:
        images, pairs = pairs_of(store)
        write_page(
            target,
            scene,
            images,
            pairs,
            None if photographs is None else picture,
            matches=matches_in(store),
            title=title,
            description=description,
            unit=unit,
            up=up,
        )


def pairs_of(store: Store) -> tuple[list[str], dict[tuple[str, str], int]]:
    """Return the names of the images of a database, and of its verified pairs -> how many matches."""
    names = {image.image_id: image.name for image in store.images()}
    pairs = {(names[id0], names[id1]): inliers for (id0, id1), inliers in store.verified_pairs().items()}
    return list(names.values()), pairs


def matches_in(store: Store) -> MatchesOf:
    """Return the ``matches`` of `write_page` for the pairs of a database."""
    ids = {image.name: image.image_id for image in store.images()}

    @lru_cache(maxsize=256)
    def keypoints(name: str) -> NDArray[np.float64]:
        return to_colmap(store.features(ids[name], descriptors=False).keypoints.numpy())

    def matches(name0: str, name1: str, most: int) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        if name0 not in ids or name1 not in ids:
            return None
        geometry = store.geometry(ids[name0], ids[name1]) if most else None
        found = np.zeros((0, 2), np.int64) if geometry is None else geometry.matches
        found = found[np.linspace(0, len(found) - 1, min(len(found), most)).astype(int)]
        return keypoints(name0)[found[:, 0]], keypoints(name1)[found[:, 1]]

    return matches


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
    matches: MatchesOf | None = None,
    title: str = "",
    description: str = "",
    unit: str = "",
    up: tuple[float, float, float] | None = None,
) -> None:
    """Write a page of a scene that may have no database.

    Parameters
    ----------
    target : Path
    scene : Scene
    images : sequence of str
        Names of all images, those of the models and others.
    pairs : mapping
        Names of two images -> how many matches, or points of both, connect them.
    picture : function, optional
        Name of an image, long side in pixels -> uint8 array (H, W, 3), as its camera took it; None if there is none.
    lens : pycolmap.Camera, optional
        The camera that took the pictures, where the models know only one without distortion.
    found : collection of str
        Images that were found in the map later; they have a colour of their own.
    matches : function, optional
        Names of two images, a number -> at most so many of their verified matches, evenly chosen, as arrays (K, 2) of
        pixels of each in COLMAP's convention; None for pairs whose number in ``pairs`` is of points.
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
    edges, matches_at = _edges(strongest, names, taken_by, matches)
    data = {
        "images": list(images),
        "thumbnails": {} if picture is None else _thumbnails(picture, taken_by, names),
        "edges": edges,
        "matchesAt": _encoded(matches_at),
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


def _edges(
    strongest: Sequence[tuple[tuple[str, str], int]],
    names: Mapping[str, int],
    taken_by: Mapping[str, pycolmap.Camera],
    matches: MatchesOf | None,
) -> tuple[list[list[int]], NDArray[np.uint16]]:
    """Return the edges of the match graph, the strongest first, and where the matches lie in both photographs.

    An edge is [image, image, number of matches, how many of the next matches are its]; without the last the number is
    one of points. Matches (M, 4) are fractions of the photographs' sizes, times 65535.
    """
    edges = [[names[name0], names[name1], number] for (name0, name1), number in strongest]
    if matches is None:
        return edges, np.zeros((0, 4), "<u2")
    place: Counter[int] = Counter()  # of an edge among those of its image
    ranks = []
    for first, second, _ in edges:
        ranks.append(min(place[first], place[second]))
        place.update((first, second))
    held: dict[int, NDArray[np.float64]] = {}
    left = MAX_MATCHES
    for row in sorted(range(len(edges)), key=ranks.__getitem__):
        name0, name1 = strongest[row][0]
        shown = name0 in taken_by and name1 in taken_by
        found = matches(name0, name1, min(left, MATCHES_OF_A_PAIR) if shown else 0)
        if found is None:
            continue
        edges[row].append(len(found[0]))
        left -= len(found[0])
        if len(found[0]):
            held[row] = np.hstack([_on_thumbnail(found[0], taken_by[name0]), _on_thumbnail(found[1], taken_by[name1])])
    places = np.concatenate([np.zeros((0, 4)), *(held[row] for row in sorted(held))])
    return edges, np.rint(places.clip(0, 1) * 65535).astype("<u2")


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
