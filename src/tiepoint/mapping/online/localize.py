"""Photographs, folders of them and videos against a map that exists already: `localize`, and files of its results."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ... import pipeline
from ...effort import Effort
from ...errors import InputError
from ...geometry import Camera
from ...geometry.colmap import import_pycolmap, to_colmap
from ...io import arrays, files, video
from ...io.folders import find_images
from ...io.images import ImageSource, as_list, read_image, resize
from ..steps.reconstruct import Quality, Scene
from .localizer import Localization, Localizer

FILES = (".json", ".csv", ".html")
THUMBNAIL = 480  # pixels, the long side of a photograph on a page


def localize(
    photographs: ImageSource | Sequence[ImageSource],
    model: str | os.PathLike[str],
    output: Sequence[str | os.PathLike[str]] = (),
    *,
    focal: float | None = None,
    camera: Camera | str | os.PathLike[str] | None = None,
    matcher: str = "auto",
    candidates: int = 10,
    every: float = 1.0,
    effort: Effort = "fast",
    images: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> list[Localization]:
    """Find out where photographs were taken, in a map that exists already.

    A photograph that cannot be read is a result without a pose, whose ``problem`` says why.

    Parameters
    ----------
    photographs : photograph, or list of photographs, folders of them and videos
        See `tiepoint.read_image`. Frames of a video are called ``clip.mp4/frame_000012``.
    model : path
        The folder that `tiepoint.map` wrote.
    output : list of paths
        .json and .csv files to write, see `write_localizations`, and pages .html: the map with the cameras that were
        found in it.
    focal : float, optional
        Focal length of all of them in pixels; by default that of EXIF, or estimated.
    camera : Camera, text or path, optional
        The camera of all of them, see `Localizer`.
    matcher : str
        By default the one of the map.
    candidates : int
        Match each with this many photographs of the map, the most similar ones.
    every : float
        Of a video, take the sharpest frame of every so many seconds.
    effort : {"fast", "auto", "thorough"}
        One pass; further tries (`tiepoint.effort`) with the three photographs that have most matches while the query is
        not found; or all tries with these.
    images : path, optional
        The folder of the map's photographs, which further tries look at again.
    device : torch.device or str
        Where networks run; ``"auto"`` is `tiepoint.devices.best_device`.
    progress : callable, optional
        Called with (number done, number of all) after every photograph.

    Returns
    -------
    list of Localization
        Poses are in the frame of the map, world to camera.

    Raises
    ------
    ArgumentError
        An option out of range, a camera of another size, or an output that cannot be written.
    InputError
        The map cannot be read, or there are no photographs.
    WeightsError, MissingDependencyError
        What the features of the map need is not on this machine.

    Examples
    --------
    ::

        for result in tiepoint.localize(["query.jpg"], "scene"):
            print(result.name, result.problem or result.pose.centre)
    """
    video.check_choice(None, every)
    sources = as_list(photographs)
    if not sources:
        raise InputError("there are no photographs to find; give one at least")
    paths = [one for one in (*sources, camera) if isinstance(one, (str, os.PathLike))]
    paths += [photograph for one in sources for _, photograph in _in_folder(one)]
    for path in output:
        files.check_output(path, FILES, inputs=[*paths, *pipeline.weights_files(matcher)])
    known = sum(len(_in_folder(one)) or 1 for one in sources)
    pages = [path for path in output if Path(path).suffix.lower() == ".html"]
    localizer = Localizer.open(model, matcher, device, candidates=candidates, effort=effort, images=images)
    results: list[Localization] = []
    pictures: dict[str, NDArray[np.uint8]] = {}
    for name, query in _queries(sources, every):
        number = len(results) + 1
        try:
            if isinstance(query, InputError):
                raise query
            found = localizer(query, camera, focal)
            results.append(found if name is None else replace(found, name=name))
            if pages and found.pose is not None:
                pictures[results[-1].name] = resize(read_image(query).pixels, THUMBNAIL)
        except InputError as error:  # the others are found all the same
            results.append(Localization(name or f"photograph {number}", None, problem=str(error), readable=False))
        if progress is not None:
            progress(number, max(number, known))
    if not results:
        raise InputError("there are no photographs to find; give one at least")
    for path in output:
        if path in pages:
            write_localized_page(path, localizer, results, pictures, Path(model).resolve().name)
        else:
            write_localizations(path, results)
    return results


def _in_folder(source: ImageSource) -> list[tuple[str, Path]]:
    """Return the names and paths of the photographs in a folder; [] if the source is none."""
    if isinstance(source, (str, os.PathLike)) and Path(source).is_dir():
        return [(str(Path(source) / name), Path(source) / name) for name in find_images([source])]
    return []


def _queries(sources: Sequence[ImageSource], every: float) -> Iterator[tuple[str | None, ImageSource | InputError]]:
    """Yield the name of each photograph, if it has one, and the photograph, or why it cannot be read.

    Frames of a video are read when their turn comes: all of them would not fit into the memory.
    """
    for source in sources:
        if not isinstance(source, (str, os.PathLike)):
            yield None, source
        elif Path(source).is_dir():
            yield from _in_folder(source)
        elif Path(source).suffix.lower() not in video.VIDEO_SUFFIXES:
            yield str(source), source
        else:
            try:
                for frame in video.choose_frames(source, every=every):
                    yield f"{source}/{frame.name}", frame.pixels
            except InputError as error:
                yield str(source), error


def write_localizations(path: str | os.PathLike[str], results: Iterable[Localization]) -> None:
    """Write results to a .json file (everything), or a .csv file (a line for each photograph).

    The columns of the table: ``name, found, inliers, qw, qx, qy, qz, tx, ty, tz`` (world to camera) and ``focal`` in
    pixels; nan where the photograph was not found.

    Raises
    ------
    ArgumentError
        Another suffix, or no such folder.
    InputError
        The file cannot be written.
    """
    target = files.check_output(path, FILES)
    rows = [result.summary() for result in results]
    if target.suffix.lower() == ".json":
        files.write_json(target, {"localizations": rows})
        return
    numbers = np.full((len(rows), 8), np.nan)
    for i, row in enumerate(rows):
        if row["found"]:
            numbers[i] = *row["quaternion"], *row["t"], row["camera"]["params"][0]
    columns: dict[str, NDArray[Any]] = {
        key: np.array([row[key] for row in rows]) for key in ("name", "found", "inliers")
    }
    names = ("qw", "qx", "qy", "qz", "tx", "ty", "tz", "focal")
    arrays.write_csv(target, {**columns, **dict(zip(names, numbers.T, strict=True))})


def write_localized_page(
    path: str | os.PathLike[str],
    localizer: Localizer,
    results: Iterable[Localization],
    pictures: Mapping[str, NDArray[np.uint8]] = MappingProxyType({}),
    title: str = "",
) -> None:
    """Write the page of a map, with the cameras that were found in it, in a colour of their own.

    Parameters
    ----------
    path : path
        Ending in .html.
    localizer : Localizer
        That found them.
    results : iterable of Localization
        Those without a pose are left out.
    pictures : mapping
        Names of results -> their photographs, small, uint8 arrays (H, W, 3).
    title : str
        Name of the map.

    Raises
    ------
    ArgumentError
        The name does not end in .html.
    InputError
        The page cannot be written.
    """
    from ..exchange.web_page import check_page_name, matches_in, pairs_of, write_page

    target = check_page_name(path)
    pycolmap = import_pycolmap()
    model = pycolmap.Reconstruction(localizer.model)  # a copy
    stored, pairs = pairs_of(localizer.store)
    names: dict[str, str] = {}  # on the page -> of the result; a query may be called as a photograph of the map is
    for result in results:
        pose = result.pose
        if pose is None or pose.R is None or pose.t is None or result.keypoints is None or result.points is None:
            continue
        name = f"found: {result.name}"
        names[name] = result.name
        camera, camera_id, image_id = pose.camera.to_pycolmap(), max(model.cameras) + 1, max(model.images) + 1
        camera.camera_id = camera_id
        model.add_camera_with_trivial_rig(camera)
        image = pycolmap.Image(name=name, keypoints=to_colmap(result.keypoints), camera_id=camera_id, image_id=image_id)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(np.column_stack([pose.R, pose.t])))
        shared: Counter[str] = Counter()
        for row, point in enumerate(result.points.tolist()):
            shared.update({model.image(element.image_id).name for element in model.point3D(point).track.elements})
            model.add_observation(point, pycolmap.TrackElement(image_id, row))
        pairs |= {(seen, name): count for seen, count in shared.items() if seen not in names}
    write_page(
        target,
        Scene(target.parent, (model,), (Quality.of(model),), {}),
        [*stored, *names],
        pairs,
        lambda name, side: resize(pictures[names[name]], side) if names.get(name) in pictures else None,
        found=names.keys(),
        matches=matches_in(localizer.store),
        title=title,
        description=f"{len(names)} photographs found in this map",
    )
