"""One self-contained HTML page to look at a reconstruction; it opens offline, from the disk."""

from __future__ import annotations

import base64
import html
import json
import os
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ArgumentError
from ...io.files import atomic
from ..steps.assess import Judgement
from ..steps.reconstruct import Quality, Scene
from ..store import Store, registered

if TYPE_CHECKING:
    import pycolmap

MAX_POINTS = 100_000  # of a model: 2 MB of page, and fluent on a phone
PANORAMA_CORNER = (0.5, 0.25)  # a panorama looks everywhere; it is drawn as a picture of its shape, ahead
MAX_EDGES = 20_000  # of the match graph: more lines are one grey disc


def write_scene_page(
    scene: Scene,
    database: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    description: str = "",
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
    description : str
        One line under the title, e.g. how the matches were made.

    Raises
    ------
    ArgumentError
        The name does not end in .html.
    InputError
        The database cannot be read, or the page not written.

    Notes
    -----
    At most 100,000 points of each model are on the page, evenly chosen, and the 20,000 pairs with most inliers;
    the page says so where it leaves something out.
    """
    target = Path(path)
    if target.suffix.lower() != ".html":
        raise ArgumentError(f"{target}: the page's name must end in .html")
    with Store.open(database, create=False) as store:
        images = store.images()
        verified = store.verified_pairs()
    place = {image.image_id: number for number, image in enumerate(images)}
    names = {image.name: number for number, image in enumerate(images)}
    strongest = sorted(verified.items(), key=lambda item: -item[1])[:MAX_EDGES]
    data = {
        "images": [image.name for image in images],
        "edges": [[place[id0], place[id1], inliers] for (id0, id1), inliers in strongest],
        "pairs": len(verified),
        "models": [
            _describe(model, quality, names, judgement)
            for model, quality, judgement in zip_longest(scene.models, scene.qualities, scene.judgements)
        ],
        "leftOut": {names[name]: reason for name, reason in scene.left_out.items()},
    }
    template = files(__package__).joinpath("web_page.html").read_text(encoding="utf-8")
    # In a script, only "</script" and "<!--" could end the data early.
    script = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    page = template.replace("@DESCRIPTION@", html.escape(description)).replace("@DATA@", script)
    with atomic(target) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _describe(
    model: pycolmap.Reconstruction, quality: Quality, names: dict[str, int], judgement: Judgement | None
) -> dict[str, Any]:
    """Return one model as the page's script wants it."""
    held = {image.name: image for image in quality.images}
    cameras = []
    for image in registered(model):
        camera, pose = model.cameras[image.camera_id], image.cam_from_world()
        corner = PANORAMA_CORNER  # it has no focal length, and pycolmap crashes when asked for one
        if not camera.is_spherical():
            corner = (camera.width / 2 / camera.focal_length_x, camera.height / 2 / camera.focal_length_y)
        cameras.append(
            {
                "image": names[image.name],
                "centre": _rounded(image.projection_center()),
                "axes": _rounded(pose.rotation.matrix().ravel()),  # right, down, forward in the world
                "corner": _rounded(corner),  # of the picture at distance 1
                "observations": held[image.name].observations,
                "error": round(held[image.name].error, 3),
            }
        )
    ids = sorted(model.point3D_ids())
    chosen = [ids[i] for i in np.linspace(0, len(ids) - 1, min(len(ids), MAX_POINTS)).astype(int)]
    points = np.array([model.points3D[point_id].xyz for point_id in chosen], "<f4").reshape(-1, 3)
    colours = np.array([model.points3D[point_id].color for point_id in chosen], np.uint8).reshape(-1, 3)
    return {
        "summary": str(quality) if judgement is None else f"{quality}. Verdict: {judgement}",
        "total": len(ids),
        "points": _encoded(points),
        "colours": _encoded(colours),
        "cameras": cameras,
    }


def _rounded(values: Any) -> list[float]:
    """Return numbers for JSON, to the precision of float32."""
    return [float(f"{value:.7g}") for value in values]


def _encoded(array: NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
