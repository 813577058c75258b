"""From a folder of photographs, or a video, to cameras and points: `map_photographs`, all steps in one call.

Everything it knows between the steps is in one folder, which a run that was interrupted finds again::

    OUT/database.db      features, matches, two-view geometries: a COLMAP database
    OUT/settings.json    what the database was made with
    OUT/frames/          of a video: its key frames
    OUT/sparse/0/        COLMAP's model, the largest first; sparse/1 … where nothing connects the photographs
    OUT/quality.json     how good the models are, image by image
    OUT/points.ply       of the largest model: its points, OUT/trajectory.txt: its cameras (TUM format),
    OUT/text/            the same as COLMAP's text files, and
    OUT/undistorted/     photographs and cameras for gsplat and nerfstudio; these two on request
    OUT/scene.html       something to look at
    OUT/report.json      what `MapResult.summary` says
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from .. import features as extractors
from .. import matchers, two_view
from ..devices import pick_device
from ..errors import ArgumentError, InputError
from ..features import ExtractorOptions
from ..geometry.colmap import import_pycolmap
from ..io import video
from ..io.files import check_output_folder, make_folder, read_json, write_json
from . import distributed, exports, pairs, retrieval
from .cameras import Share, new_images
from .extraction import Extraction, extract_into
from .lookalikes import SuspiciousPair, drop_lookalikes, restore_lookalikes
from .matching import Matching, match_into
from .progress import Progress, Report, silent
from .reconstruct import Mapper, Scene, reconstruct
from .store import Store

PairChoice = Literal["auto", "exhaustive", "sequential", "retrieval", "position"]
PAIR_CHOICES: tuple[PairChoice, ...] = get_args(PairChoice)

FEW_IMAGES = 100  # of which "auto" matches all pairs
SIMILAR = 20  # partners that each image chooses by its look, or by its position
LOOP = 50  # frames of a film after which a place that is seen again closes a loop
NEAR = 100.0  # metres between photographs that may show the same thing


@dataclass(frozen=True, eq=False)
class MapResult:
    """What `map_photographs` made of a folder of photographs.

    Attributes
    ----------
    folder : Path
        Where everything was written.
    scene : Scene
        The models, how good they are, and which images are in none of them.
    choice : str
        One line: which extractor and matcher, and why these.
    extraction : Extraction
        Counts of images, and the photographs without features.
    matching : tuple of Matching
        Counts of pairs, one for each list of pairs that was matched.
    skipped : dict of str to str
        Photographs that never got into the database, and why: unreadable, duplicates.
    lookalikes : tuple of SuspiciousPair
        Pairs that show two places that look alike, and were kept from the mapper.
    notes : tuple of str
        What else is worth knowing, a line each.
    seconds : dict
        Wall-clock time of each step of this run.
    """

    folder: Path
    scene: Scene
    choice: str
    extraction: Extraction
    matching: tuple[Matching, ...]
    skipped: dict[str, str]
    lookalikes: tuple[SuspiciousPair, ...]
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Return everything but the models themselves, ready for JSON."""
        return {
            "output": str(self.folder),
            "choice": self.choice,
            "images": {
                "extracted": self.extraction.extracted,
                "already": self.extraction.already,
                "failed": {**self.skipped, **self.extraction.failed},
            },
            "pairs": [asdict(one) for one in self.matching],
            "lookalikes": [asdict(pair) for pair in self.lookalikes],
            **self.scene.summary(),
            "notes": list(self.notes),
            "seconds": {step: round(value, 2) for step, value in self.seconds.items()},
        }


def map_photographs(
    photographs: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    pairs: PairChoice | str | os.PathLike[str] = "auto",
    features: str = "auto",
    matcher: str = "auto",
    trust_lookalikes: bool = False,
    mapper: Mapper = "incremental",
    max_keypoints: int | None = 2048,
    long_side: int | None = 1600,
    masks: str | os.PathLike[str] | None = None,
    share: Share = "auto",
    camera_model: str = "SIMPLE_RADIAL",
    focal: float | None = None,
    undistort: bool = False,
    text: bool = False,
    device: torch.device | str | None = None,
    workers: int | None = None,
    ray: str | None = None,
    seed: int = 0,
    report: Report = silent,
) -> MapResult:
    """Find out where photographs were taken, and what they show, in three dimensions.

    Run again with the same arguments after it was interrupted, or with more photographs in the folder: what is done
    is not done again.

    Parameters
    ----------
    photographs : path
        A folder, searched with its sub-folders; or a video, of which sharp key frames are taken.
    output : path
        A folder, made if need be; see the module for what it will hold. It must not lie in that of the photographs.
    pairs : {"auto", "exhaustive", "sequential", "retrieval", "position"} or path
        Which pairs to match: all; those near in the order of the names, and loops; those that look alike; those
        taken near each other, by GPS; or a text file of two names a line. Auto is all for up to 100 photographs,
        sequential for a video, and retrieval, joined with position where EXIF knows it, for all others.
    features, matcher : str
        Names, or ``"auto"``, as in `tiepoint.match`.
    trust_lookalikes : bool
        Use pairs that look alike but seem to show different places. By default the mapper does not get to see them
        (`tiepoint.mapping.lookalikes`); the database keeps them.
    mapper : {"incremental", "global"}
        See `tiepoint.mapping.reconstruct`.
    max_keypoints : int or None
        Keep the best this many of each photograph; None keeps all.
    long_side : int or None
        Shrink larger photographs to this long side, in pixels, to find keypoints; None works at full size.
    masks : path, optional
        Folder of masks, see `extract_into`.
    share, camera_model, focal
        Which photographs share a camera, COLMAP's model for it, and its focal length in pixels, where that is known:
        see `tiepoint.mapping.cameras.new_images`.
    undistort, text : bool
        Also write undistorted photographs, and COLMAP's text files.
    device : torch.device or str, optional
        Where networks run; by default the best there is.
    workers : int, optional
        Processes or threads, see `extract_into`; by default as many as there are cores.
    ray : str, optional
        Extract and match on a Ray cluster: ``"local"``, ``"auto"`` or an address, see
        `tiepoint.mapping.distributed.cluster`.
    seed : int
        Of the mapper's random choices.
    report : callable
        Gets a `Progress` after every bit of work.

    Returns
    -------
    MapResult

    Raises
    ------
    ArgumentError
        An option that does not exist, or other features than the output folder was begun with.
    InputError
        Fewer than two photographs can be used, no model can be made of them, or the folder cannot be written to.
    WeightsError, MissingDependencyError
        What was asked for is not on this machine.

    Examples
    --------
    ::

        result = map_photographs("photos", "scene")
        print(result.scene.qualities[0])
    """
    source, out = Path(photographs), Path(output)
    _check(source, out, pairs, masks, ray)
    seconds: dict[str, float] = {}
    notes: list[str] = []
    where = pick_device(device)
    make_folder(out)

    times: dict[str, float] | None = None
    if source.is_file():
        with _lap(seconds, "frames"):
            kept = video.write_key_frames(source, out / "frames", progress=_frames_to(report))
        times = {frame.name: frame.time for frame in kept}
        source, share = out / "frames", "all" if share == "auto" else share
    with _lap(seconds, "cameras"):
        found, left_out = new_images(source, share=share, model=camera_model, focal=focal)
    if len(found) < 2:
        reasons = "".join(f"\n  {name}: {why}" for name, why in left_out)
        raise InputError(f"{source}: holds {len(found)} photographs that can be used, and a map needs two{reasons}")
    guessed = sum(not image.camera.has_prior_focal_length for image in found)
    if guessed:
        notes.append(f"no focal length is known for {guessed} of {len(found)} photographs; the mapper estimates it")

    with Store.open(out / "database.db") as store, _workplace(ray, workers) as (extract, match):
        wanted = {"features": features, "matcher": matcher, "max_keypoints": max_keypoints, "long_side": long_side}
        settings, choice = _settings(out / "settings.json", store, wanted)
        options = ExtractorOptions(max_keypoints=settings["max_keypoints"], long_side=settings["long_side"])
        extractor = extractors.load(settings["features"], device=where, **vars(options))
        pairer = matchers.load(settings["matcher"], features=settings["features"], device=where)
        write_json(out / "settings.json", settings)
        store.add_images(found)
        with _lap(seconds, "features"):
            extraction = extract(store, source, extractor, masks=masks, report=report)
        restore_lookalikes(store)  # what an earlier run kept from the mapper
        with _lap(seconds, "matches"):
            match = partial(match, store, matcher=pairer, report=report)
            matching = tuple(_match(store, pairs, times is not None, match, report, notes))

        with _lap(seconds, "lookalikes"):
            dropped = () if trust_lookalikes else tuple(drop_lookalikes(store))

    count = len(found)
    placed = 0

    def on_image() -> None:
        nonlocal placed
        placed += 1
        report(Progress("mapping", min(placed, count), count))

    report(Progress("mapping", 0, count))
    with _lap(seconds, "model"):
        scene = reconstruct(out / "database.db", source, out, mapper=mapper, seed=seed, on_image=on_image)
    report(Progress("mapping", count, count))
    if len(scene.models) > 1:
        notes.append(
            f"{len(scene.models)} models: no photograph connects them; points.ply and all else are of the first"
        )
    with _lap(seconds, "files"):
        _export(scene, source, out, times, undistort, text, choice)
    result = MapResult(out, scene, choice, extraction, matching, dict(left_out), dropped, tuple(notes), seconds)
    write_json(out / "report.json", result.summary())
    return result


def _check(
    source: Path, out: Path, pairs: str | os.PathLike[str], masks: str | os.PathLike[str] | None, ray: str | None
) -> None:
    """Complain before the work begins."""
    import_pycolmap()
    if ray is not None:
        distributed.import_ray()
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; give a folder of photographs, or a video")
    if source.is_file() and source.suffix.lower() not in video.VIDEO_SUFFIXES:
        raise InputError(f"{source}: is not a video by its name; give a folder of photographs, or a video")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise ArgumentError(
            f"{out}: lies in the folder of the photographs, and would be taken for some; choose another"
        )
    for part in ("frames", "sparse", "text", "undistorted"):
        check_output_folder(out / part, inputs=[source, *([] if pairs in PAIR_CHOICES else [pairs]), masks])
    if pairs not in PAIR_CHOICES and not Path(pairs).is_file():
        raise ArgumentError(f"pairs are a text file, or one of {', '.join(PAIR_CHOICES)}; {str(pairs)!r} is neither")


@contextmanager
def _workplace(
    ray: str | None, workers: int | None
) -> Iterator[tuple[Callable[..., Extraction], Callable[..., Matching]]]:
    """Give the functions that extract and match: here, or on a cluster."""
    if ray is None:
        yield partial(extract_into, workers=workers), partial(match_into, workers=workers)
    else:
        with distributed.cluster(ray, workers):
            yield distributed.extract_on_ray, distributed.match_on_ray


def _settings(path: Path, store: Store, wanted: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return (what the features and matches of this folder are made with, one line that says why)."""
    if path.exists():
        try:
            begun = read_json(path)
            other = [key for key, value in wanted.items() if value not in ("auto", begun[key])]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: cannot be read; delete the folder {path.parent}, or choose another") from error
        if other:
            had = ", ".join(f"{key} {begun[key]}" for key in other)
            raise ArgumentError(f"{path.parent}: was begun with {had}; go on with that, or choose another folder")
        return begun, f"{begun['features']} + {begun['matcher']}, as {path.parent} was begun"
    have = store.has_features()
    if have and wanted["features"] == "auto":  # a database that somebody brought along
        wanted = {**wanted, "features": store.features(min(have), descriptors=False).extractor}
    features, matcher, choice = two_view.choose(wanted["features"], wanted["matcher"])
    return {**wanted, "features": features, "matcher": matcher}, choice


def _match(
    store: Store,
    choice: str | os.PathLike[str],
    film: bool,
    match: Callable[..., Matching],
    report: Report,
    notes: list[str],
) -> Iterator[Matching]:
    """Choose pairs and match them, in one or two rounds."""
    have = store.has_features()
    images = [image for image in store.images() if image.image_id in have]
    ids = [image.image_id for image in images]
    if choice == "auto":
        choice = "sequential" if film else "exhaustive" if len(ids) <= FEW_IMAGES else "retrieval"
        positions = choice == "retrieval"
    else:
        positions = choice == "position"

    if choice not in PAIR_CHOICES:
        chosen, unknown = pairs.from_list(choice, {image.name: image.image_id for image in store.images()})
        if unknown:
            notes.append(
                f"{choice}: names {len(unknown)} photographs that are not here, the first of them {unknown[0]}"
            )
        yield match(chosen)
        return
    if choice == "exhaustive":
        yield match(pairs.exhaustive(ids))
        return
    lists = []
    if choice == "sequential":
        lists.append(pairs.sequential(ids))
    if choice == "retrieval" or (choice == "sequential" and len(ids) > LOOP):
        report(Progress("describing", 0, len(ids)))
        described, looks = retrieval.describe_images(store)
        gap = LOOP if choice == "sequential" else 1
        lists.append(pairs.by_retrieval(described, looks, SIMILAR, min_gap=gap))
    if choice == "position" and not any(image.position for image in images):
        raise InputError("no photograph says where it was taken (GPS in EXIF); choose its pairs in another way")
    if positions:
        places = pairs.earth_centred([image.position or (np.nan, np.nan, np.nan) for image in images])
        lists.append(pairs.by_position(ids, places, SIMILAR, NEAR))
    chosen = pairs.union(*lists)
    yield match(chosen)
    # Until nothing is new: ten pairs an image, and what follows from them, then hold what all pairs would. Each round
    # follows from this run's own pairs, whatever else is in the store, so that an interrupted run chooses the same.
    while True:
        tried = set(map(tuple, chosen.tolist()))
        verified = {pair: inliers for pair, inliers in store.verified_pairs().items() if pair in tried}
        more = pairs.expand_covisibility(verified, tried)
        if not len(more):
            return
        yield match(more)
        chosen = pairs.union(chosen, more)


def _export(
    scene: Scene, source: Path, out: Path, times: dict[str, float] | None, undistort: bool, text: bool, choice: str
) -> None:
    """Write a page with all models, and what else can be made of the largest."""
    from ..viz.scene import write_scene_page  # here, because viz builds on mapping

    write_scene_page(scene, out / "database.db", out / "scene.html", description=choice)
    model = scene.models[0]
    exports.write_ply(model, out / "points.ply")
    exports.write_trajectory(model, out / "trajectory.txt", times)
    if text:
        exports.write_model(model, out / "text", "text")
    if undistort:
        exports.write_undistorted(model, source, out / "undistorted")


def _frames_to(report: Report) -> Callable[[int, list[video.KeyFrame]], None]:
    def progress(looked_at: int, kept: list[video.KeyFrame]) -> None:
        report(Progress("choosing key frames", looked_at, 0))

    return progress


@contextmanager
def _lap(seconds: dict[str, float], step: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - begin
