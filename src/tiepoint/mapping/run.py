"""From a folder of photographs, or a video, to cameras and points: `map_photographs`, all steps in one call.

Everything it knows between the steps is in one folder, which a run that was interrupted finds again::

    OUT/database.db      features, matches, two-view geometries: a COLMAP database
    OUT/settings.json    what the database was made with; what a rerun does with other options: see `inputs`
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from .. import pipeline
from ..devices import pick_device
from ..errors import ArgumentError, InputError
from ..features import ExtractorOptions
from ..geometry.colmap import import_pycolmap
from ..io import video
from ..io.exif import order_in_time
from ..io.files import make_folder, write_json
from ..io.folders import find_masks, times_in_names
from ..io.images import check_bands
from . import cluster as distributed
from . import pairs
from .exchange import colmap as exports
from .inputs import FileChanges, check_inputs_survive, follow_files, read_settings, start_over
from .pairs import retrieval
from .progress import Progress, Report, silent
from .steps.align import (
    LEAST_POSITIONS,
    Alignment,
    gps_positions,
    read_distances,
    read_positions,
    to_distances,
    to_positions,
)
from .steps.doppelgangers import SuspiciousPair, hide_doppelgangers
from .steps.extract import Extraction, extract_into
from .steps.images import Share, is_file, new_images
from .steps.match import Matching, match_into
from .steps.reconstruct import Mapper, Scene, reconstruct
from .store import Fingerprint, NewImage, Store, pair_ids

if TYPE_CHECKING:
    import pycolmap

PairChoice = Literal["auto", "exhaustive", "sequential", "retrieval", "position"]
PAIR_CHOICES: tuple[PairChoice, ...] = get_args(PairChoice)

FEW_IMAGES = 100  # of which "auto" matches all pairs
SIMILAR = 20  # partners that each image chooses by its look, or by its position
LOOP = 50  # frames of a film after which a place that is seen again closes a loop
# Of settings.json: what all else is made of.
EXTRACTION = ("features", "matcher", "max_keypoints", "long_side", "bands")
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
    alignments : tuple of Alignment
        How each model came to metres, if that was asked for.
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
    alignments: tuple[Alignment, ...] = ()

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
            "alignments": [asdict(one) for one in self.alignments],
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
    bands: Sequence[int] | None = None,
    share: Share = "auto",
    camera_model: str = "SIMPLE_RADIAL",
    focal: float | None = None,
    camera: str | None = None,
    fix_cameras: bool = False,
    undistort: bool = False,
    text: bool = False,
    align: str | os.PathLike[str] | None = None,
    scale: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    device: torch.device | str | None = None,
    workers: int | None = None,
    ray: str | None = None,
    seed: int = 0,
    report: Report = silent,
) -> MapResult:
    """Find out where photographs were taken, and what they show, in three dimensions.

    Run again after it was interrupted, or with other photographs in the folder or other options: what is done is not
    done again, and what depends on a change is (`tiepoint.mapping.inputs`).

    Parameters
    ----------
    photographs : path
        A folder, searched with its sub-folders; or a video, of which sharp key frames are taken.
    output : path
        A folder, made if need be; see the module for what it will hold. It must not lie in that of the photographs.
    pairs : {"auto", "exhaustive", "sequential", "retrieval", "position"} or path
        Which pairs to match: all; those near in the order of the names (of EXIF times, where the names tell none), and
        loops; those that look alike; those taken near each other, by GPS, and where a photograph has none, those that
        look alike; or a text file of two names a line. Auto is all for up to 100 photographs,
        sequential for a video, and retrieval, joined with position where EXIF knows it, for all others.
    features, matcher : str
        Names, or ``"auto"``, as in `tiepoint.match`.
    trust_lookalikes : bool
        Use pairs that look alike but seem to show different places. By default the mapper does not get to see them
        (`tiepoint.mapping.steps.doppelgangers`); the database keeps them.
    mapper : {"incremental", "global"}
        See `tiepoint.mapping.steps.reconstruct`.
    max_keypoints : int or None
        Keep the best this many of each photograph; None keeps all.
    long_side : int or None
        Shrink larger photographs to this long side, in pixels, to find keypoints; None works at full size.
    masks : path, optional
        Folder of masks, see `extract_into`; it must hold one at least.
    bands : one or three ints, optional
        Which bands of the photographs to use, see `tiepoint.read_image`.
    share, camera_model, focal, camera
        Which photographs share a camera, COLMAP's model for it, and its focal length in pixels or all its parameters,
        where these are known: see `tiepoint.mapping.steps.images.new_images`.
    fix_cameras : bool
        Take focal lengths and distortion as they are given, by ``focal``, ``camera`` or EXIF, and do not adjust them.
    undistort, text : bool
        Also write undistorted photographs, and COLMAP's text files.
    align : "gps", "gps:LATITUDE,LONGITUDE,ALTITUDE" or path, optional
        Bring the models to metres: by the GPS positions of the photographs, in a frame east-north-up of their median or
        of the place given; or to the positions in a text file of ``NAME X Y Z`` a line. See
        `tiepoint.mapping.steps.align`.
    scale : str or path, optional
        Bring the models to metres by distances between cameras: ``"A.jpg,B.jpg,METRES"``, or a file of such lines.
    fresh : bool
        Start over: delete what an earlier map left in the output folder.
    device : torch.device or str, optional
        Where networks run; by default the best there is.
    workers : int, optional
        Processes or threads, see `extract_into`; by default as many as there are cores.
    ray : str, optional
        Extract and match on a Ray cluster: ``"local"``, ``"auto"`` or an address, see
        `tiepoint.mapping.cluster.cluster`.
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
        An option that does not exist, or features, matcher, number or size other than the output folder was begun
        with (``fresh=True`` starts over).
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
    masks = None if masks is None else Path(masks)
    files = [Path(one) for one in (pairs, camera, align, scale) if one is not None and is_file(one)]
    files += [masks] if masks is not None else []
    _check(source, out, pairs, files, ray)
    seconds: dict[str, float] = {}
    notes: list[str] = []
    where, bands = pick_device(device), check_bands(bands)
    make_folder(out)

    begun = {} if fresh else _begun(out / "settings.json")
    chosen_cameras = (share, camera_model, focal, camera) != ("auto", "SIMPLE_RADIAL", None, None)
    if fresh:
        # Loaded once more below: what is wrong with them has to be said while there still is a map.
        pipeline.load(features, matcher, where, ExtractorOptions(max_keypoints=max_keypoints, long_side=long_side))
    times: dict[str, float] | None = None
    film: dict[str, Any] | None = None
    if source.is_file():
        if fresh:
            start_over(out, source)
        film = _same_film(out, source, begun)
        with _lap(seconds, "frames"):
            kept = video.write_key_frames(source, out / "frames", progress=_frames_to(report))
        times = {frame.name: frame.time for frame in kept}
        source, share = out / "frames", "all" if share == "auto" else share
    with _lap(seconds, "cameras"):
        found, left_out = new_images(source, share=share, model=camera_model, focal=focal, camera=camera)
    if len(found) < 2:
        reasons = "".join(f"\n  {name}: {why}" for name, why in left_out)
        raise InputError(f"{source}: holds {len(found)} photographs that can be used, and a map needs two{reasons}")
    if undistort:
        exports.check_can_be_undistorted(image.camera for image in found)
    aligner = _aligner(align, scale, found, seed, notes)
    guessed = sum(not image.camera.has_prior_focal_length for image in found)
    if guessed and fix_cameras:
        raise ArgumentError(
            f"no focal length is known for {guessed} of {len(found)} photographs, so it cannot be fixed; give --focal "
            "or --camera"
        )
    if guessed:
        notes.append(f"no focal length is known for {guessed} of {len(found)} photographs; the mapper estimates it")

    if masks is not None:
        count = len(find_masks(masks, [image.name for image in found]))
        notes.append(f"masks: {count} of {len(found)} photographs have one")

    if fresh and film is None:  # as late as can be: all that can be wrong with the options has been said
        start_over(out, source)
    with Store.open(out / "database.db") as store, _workplace(ray, workers) as (extract, match):
        wanted = {
            **{"features": features, "matcher": matcher, "max_keypoints": max_keypoints, "long_side": long_side},
            "bands": None if bands is None else list(bands),
        }
        settings, choice = _settings(out, begun, store, wanted)
        # A database that somebody brought along has cameras of its own, which only an option replaces.
        own_cameras = begun.get("own_cameras", True) if begun else not store.images()
        settings = {**begun, **settings, "own_cameras": own_cameras or chosen_cameras, "video": film}
        options = ExtractorOptions(
            max_keypoints=settings["max_keypoints"], long_side=settings["long_side"], bands=bands
        )
        extractor, pairer, _ = pipeline.load(settings["features"], settings["matcher"], where, options)
        write_json(out / "settings.json", settings)
        store.show_hidden_pairs()  # what an earlier run kept from the mapper
        with _lap(seconds, "files"):
            changes, recalibrated = follow_files(store, source, found, masks, settings["own_cameras"])
        if undistort:
            exports.check_can_be_undistorted(image.camera for image in store.images())
        if changes != FileChanges():
            notes.append(f"photographs that changed since the last run: {changes}")
        if recalibrated:
            notes.append(f"{len(recalibrated)} photographs have another camera than in the last run")
        with _lap(seconds, "features"):
            extraction = extract(store, source, extractor, masks=masks, report=report)
        with _lap(seconds, "matches"):
            match = partial(match, store, matcher=pairer, report=report)
            matching, chosen = _match(store, source, pairs, times is not None, match, report, notes)
            asked = {"choice": str(pairs), "digest": _digest(pairs)}
            if settings.get("pairs", asked) != asked:
                superfluous = np.setdiff1d(store.matched_pair_ids(), pair_ids(chosen))
                store.remove_pairs(superfluous)
                if len(superfluous):
                    notes.append(f"{len(superfluous)} pairs of the last run are not among those chosen now, and left")
            write_json(out / "settings.json", {**settings, "pairs": asked})

        with _lap(seconds, "lookalikes"):
            dropped = () if trust_lookalikes else tuple(hide_doppelgangers(store))

    count = len(found)
    placed = 0

    def on_image() -> None:
        nonlocal placed
        placed += 1
        report(Progress("mapping", min(placed, count), count))

    report(Progress("mapping", 0, count))
    with _lap(seconds, "model"):
        alignments: list[Alignment] = []
        scene = reconstruct(
            out / "database.db",
            source,
            out,
            mapper=mapper,
            refine_cameras=not fix_cameras,
            bands=bands,
            seed=seed,
            on_image=on_image,
            align=None if aligner is None else lambda model: alignments.append(aligner(model)),
        )
    report(Progress("mapping", count, count))
    notes += scene.notes
    notes += [f"model {number}: {alignment}" for number, alignment in enumerate(alignments)]
    if len(scene.models) > 1:
        notes.append("points.ply and all else are of model 0")
    with _lap(seconds, "files"):
        times = times or times_in_names(image.name for image in found)
        _export(scene, source, masks, out, times, undistort, text, choice, bands, notes)
    result = MapResult(
        out, scene, choice, extraction, matching, dict(left_out), dropped, tuple(notes), seconds, tuple(alignments)
    )
    write_json(out / "report.json", result.summary())
    return result


def _check(source: Path, out: Path, pairs: str | os.PathLike[str], files: list[Path], ray: str | None) -> None:
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
    check_inputs_survive(out, source, files)
    if pairs not in PAIR_CHOICES and not Path(pairs).is_file():
        raise ArgumentError(f"pairs are a text file, or one of {', '.join(PAIR_CHOICES)}; {str(pairs)!r} is neither")


def _aligner(
    align: str | os.PathLike[str] | None,
    scale: str | os.PathLike[str] | None,
    found: list[NewImage],
    seed: int,
    notes: list[str],
) -> Callable[[pycolmap.Reconstruction], Alignment] | None:
    """Return what brings a model into the frame that was asked for; complain before the work begins."""
    if align is not None and scale is not None:
        raise ArgumentError("--align and --scale exclude each other: positions give the scale too")
    names = [image.name for image in found]
    if scale is not None:
        return partial(to_distances, distances=read_distances(scale, names))
    places = {image.name: image.position for image in found}
    if align is None:
        known = sum(place is not None for place in places.values())
        if known >= LEAST_POSITIONS:
            notes.append(
                f"{known} photographs say where they were taken (GPS), which is not used: --align gps brings the map "
                "to metres, east-north-up"
            )
        return None
    kind, _, place = str(align).partition(":")
    if kind == "gps" and not is_file(align):
        try:
            origin = tuple(float(value) for value in place.split(",")) if place else None
            if origin is not None and (len(origin) != 3 or abs(origin[0]) > 90 or abs(origin[1]) > 360):
                raise ValueError
        except ValueError as error:
            raise ArgumentError(f"--align {align}: the origin is gps:LATITUDE,LONGITUDE,ALTITUDE") from error
        positions, origin = gps_positions(places, origin)
        return partial(to_positions, positions=positions, by="gps", origin=origin, seed=seed)
    if not is_file(align):
        raise ArgumentError(f"--align is gps, or a file of NAME X Y Z; {str(align)!r} is neither")
    return partial(to_positions, positions=read_positions(align, names), seed=seed)


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


def _begun(path: Path) -> dict[str, Any]:
    """Return what an earlier run recorded of itself, {} if there was none."""
    try:
        return read_settings(path) if path.exists() else {}
    except InputError as error:
        raise InputError(f"{error}; start over with --fresh, or choose another folder") from error


def _settings(out: Path, begun: dict[str, Any], store: Store, wanted: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return (what the features and matches of this folder are made with, one line that says why)."""
    if begun:
        other = [key for key in EXTRACTION if wanted[key] not in ("auto", begun.get(key))]
        if other:
            had = ", ".join(f"{key} {begun.get(key)}" for key in other)
            line = " ".join(_option(key, begun[key]) for key in other)
            raise ArgumentError(
                f"{out}: was begun with {had}; go on with {line}, or start over with --fresh, which deletes that map"
            )
        return {key: begun[key] for key in EXTRACTION}, f"{begun['features']} + {begun['matcher']}, as {out} was begun"
    have = store.has_features()
    if have and wanted["features"] == "auto":  # a database that somebody brought along
        wanted = {**wanted, "features": store.features(min(have), descriptors=False).extractor}
    features, matcher, choice = pipeline.choose(wanted["features"], wanted["matcher"])
    return {**wanted, "features": features, "matcher": matcher}, choice


def _option(key: str, value: Any) -> str:
    """Return what asks for a setting on the command line."""
    if key == "bands":
        return f"--bands {','.join(map(str, value))}" if value else "no --bands"
    return f"--{key.replace('_', '-')} {value or 0}"


def _same_film(out: Path, film: Path, begun: dict[str, Any]) -> dict[str, Any]:
    """Return what tells a video from others; complain if the key frames in the output folder are of another."""
    known = begun.get("video")
    now = Fingerprint.of(film, None if known is None else Fingerprint(**known))
    if known is not None and now.digest != known["digest"]:
        raise ArgumentError(f"{out}: was made of another video than {film} is now; start over with --fresh")
    return asdict(now)


def _digest(pairs: str | os.PathLike[str]) -> str | None:
    return None if pairs in PAIR_CHOICES else Fingerprint.of(Path(pairs)).digest


def _match(
    store: Store,
    folder: Path,
    choice: str | os.PathLike[str],
    film: bool,
    match: Callable[..., Matching],
    report: Report,
    notes: list[str],
) -> tuple[tuple[Matching, ...], pairs.Pairs]:
    """Choose pairs and match them, in rounds; return what was done in each, and all pairs that were chosen."""
    have = store.has_features()
    images = [image for image in store.images() if image.image_id in have]
    if len(images) < 2:
        raise InputError(f"only {len(images)} photographs have features, and a pair needs two; see what is left out")
    if choice == "auto":
        choice = "sequential" if film else "exhaustive" if len(images) <= FEW_IMAGES else "retrieval"
        positions = choice == "retrieval"
    else:
        positions = choice == "position"

    if choice not in PAIR_CHOICES:
        listed = pairs.from_list(choice, {image.name: image.image_id for image in store.images()})
        first = "; the first that was not, line {}, names {}".format(*listed.unused[0]) if listed.unused else ""
        notes.append(f"{choice}: used {listed.lines - len(listed.unused)} of {listed.lines} lines{first}")
        return (match(listed.pairs),), listed.pairs
    if choice == "exhaustive":
        chosen = pairs.exhaustive([image.image_id for image in images])
        return (match(chosen),), chosen
    if choice == "sequential":
        ordered, note = order_in_time(folder, [image.name for image in images])
        by_name = {image.name: image for image in images}
        images = [by_name[name] for name in ordered]
        if note:
            notes.append(f"pairs in sequence: {note}")
    ids = [image.image_id for image in images]
    lists = []
    if choice == "sequential":
        lists.append(pairs.sequential(ids))
    located = [image.image_id for image in images if image.position is not None]
    if choice == "position" and not located:
        raise InputError("no photograph says where it was taken (GPS in EXIF); choose its pairs in another way")
    by_look = choice == "position" and len(located) < len(ids)
    if positions and located:
        others = "; the others are paired with those that look like them" if by_look else ""
        notes.append(f"GPS: {len(located)} of {len(ids)} photographs say where they were taken{others}")
    if choice == "retrieval" or by_look or (choice == "sequential" and len(ids) > LOOP):
        report(Progress("describing", 0, len(ids)))
        described, looks = retrieval.describe_images(store)
        row = {image_id: i for i, image_id in enumerate(described.tolist())}
        looks = looks[[row[image_id] for image_id in ids]]
        alike = pairs.by_retrieval(ids, looks, SIMILAR, min_gap=LOOP if choice == "sequential" else 1)
        if by_look:
            alike = alike[~np.isin(alike, located).all(axis=1)]
        lists.append(alike)
    if positions:
        places = pairs.earth_centred([image.position or (np.nan, np.nan, np.nan) for image in images])
        lists.append(pairs.by_position(ids, places, SIMILAR, NEAR))
    chosen = pairs.union(*lists)
    if not len(chosen):
        raise InputError(
            f"no pairs of the {len(ids)} photographs were chosen ({choice}); choose them in another way, such as "
            "exhaustive"
        )
    done = [match(chosen)]
    # Until nothing is new: ten pairs an image, and what follows from them, then hold what all pairs would. Each round
    # follows from this run's own pairs, whatever else is in the store, so that an interrupted run chooses the same.
    while True:
        tried = set(map(tuple, chosen.tolist()))
        verified = {pair: inliers for pair, inliers in store.verified_pairs().items() if pair in tried}
        more = pairs.expand_covisibility(verified, tried)
        if not len(more):
            return tuple(done), chosen
        done.append(match(more))
        chosen = pairs.union(chosen, more)


def _export(
    scene: Scene,
    source: Path,
    masks: Path | None,
    out: Path,
    times: dict[str, float] | None,
    undistort: bool,
    text: bool,
    choice: str,
    bands: tuple[int, ...] | None,
    notes: list[str],
) -> None:
    """Write a page with all models, and what else can be made of the largest."""
    from .exchange.web_page import write_scene_page  # here, because viz builds on mapping

    for name, given in (("text", text), ("undistorted", undistort)):
        if not given and (out / name).exists():
            notes.append(
                f"{out / name} is of an earlier run, and does not follow this one; delete it, or ask for it again"
            )
    write_scene_page(scene, out / "database.db", out / "scene.html", description=choice)
    model = scene.models[0]
    exports.write_ply(model, out / "points.ply")
    exports.write_trajectory(model, out / "trajectory.txt", times)
    if text:
        exports.write_model(model, out / "text", "text")
    if undistort:
        exports.write_undistorted(model, source, out / "undistorted", masks, bands)


def _frames_to(report: Report) -> Callable[[int, list[video.KeyFrame]], None]:
    def progress(looked_at: int, kept: list[video.KeyFrame]) -> None:
        report(Progress("choosing key frames", looked_at, 0))

    return progress


@contextmanager
def _lap(seconds: dict[str, float], step: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - begin
