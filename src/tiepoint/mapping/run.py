"""From a folder of photographs, or a video, to cameras and points: `map_photographs`, all steps in one call.

All state between the steps is in one folder, from which an interrupted run resumes::

    OUT/database.db      features, matches, two-view geometries: a COLMAP database
    OUT/settings.json    settings of the database; for reruns with other options see `inputs`
    OUT/frames/          of a video: its key frames, and OUT/frames.jpg: all of them on one sheet
    OUT/sparse/0/        COLMAP's model, the largest first; sparse/1 … where nothing connects the photographs
    OUT/quality.json     how good the models are, image by image
    OUT/points.ply       of the largest model: its points, OUT/trajectory.txt: its cameras (TUM format),
    OUT/text/            the same as COLMAP's text files, and
    OUT/undistorted/     photographs and cameras for gsplat and nerfstudio; these two on request
    OUT/scene.html       a page that shows the models in a browser
    OUT/report.json      what `MapResult.summary` says
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import pipeline
from ..effort import Effort
from ..errors import ArgumentError, InputError
from ..io import video
from ..io.files import make_folder, write_json
from ..io.folders import find_masks, list_images, times_in_names, without_masks
from ..io.images import read_reduced
from ..matchers.best_first import BestFirst
from ..viz import sheet
from . import cluster, outputs
from .exchange import colmap as exports
from .inputs import (
    FileChanges,
    follow_files,
    read_begun,
    same_video,
    settle,
    start_over,
)
from .pairs.choose import PAIR_CHOICES, ChosenPairs, PairChoice, choose_pairs, match_chosen
from .plan import Plan, make_plan
from .progress import Progress, Report, silent
from .quality import Quality
from .settings import MapSettings
from .steps.align import Aligner, Alignment, aligner_for
from .steps.doppelgangers import SuspiciousPair, hide_doppelgangers
from .steps.effort import try_harder
from .steps.extract import Extraction, extract_into
from .steps.images import Share, new_images
from .steps.match import Matching, match_into
from .steps.reconstruct import Mapper, Scene, reconstruct
from .store import Fingerprint, NewImage, Store, pair_ids


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
    doppelgangers : tuple of SuspiciousPair
        Pairs that show two places that look alike, and were hidden from the mapper.
    notes : tuple of str
        What else is worth knowing, a line each.
    seconds : dict
        Wall-clock time of each step of this run.
    alignments : tuple of Alignment
        How each model came to metres, if that was asked for.
    plan : Plan or None
        What was said before the work.
    next_step : str
        The next tool and its exact command.
    """

    folder: Path
    scene: Scene
    choice: str
    extraction: Extraction
    matching: tuple[Matching, ...]
    skipped: dict[str, str]
    doppelgangers: tuple[SuspiciousPair, ...]
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    alignments: tuple[Alignment, ...] = ()
    plan: Plan | None = None
    next_step: str = ""

    def _repr_html_(self) -> str:
        """Return what a notebook shows: a row for each model, what else is worth knowing, and the next command."""
        rows = "".join(
            f"<tr><td>{q.registered} of {q.total}</td><td>{q.points}</td><td>{q.track_length:.1f}</td>"
            f"<td>{q.error:.2f}</td><td>{escape(str(assessment))}</td></tr>"
            for q, assessment in zip(self.scene.qualities, self.scene.assessments, strict=True)
        )
        head = "".join(f"<th>{name}</th>" for name in ("images", "points", "track length", "error, px", "verdict"))
        lines = *self.notes, f"page: {self.folder / 'scene.html'}", f"next: {self.next_step}"
        words = "<br>".join(escape(line) for line in lines)
        return f"<p>{escape(self.choice)}</p><table><tr>{head}</tr>{rows}</table><p>{words}</p>"

    def summary(self) -> dict[str, Any]:
        """Return everything but the models themselves, ready for JSON."""
        return {
            "output": str(self.folder),
            "choice": self.choice,
            "plan": None if self.plan is None else asdict(self.plan),
            "images": {
                "extracted": self.extraction.extracted,
                "already": self.extraction.already,
                "failed": {**self.skipped, **self.extraction.failed},
            },
            "pairs": [asdict(one) for one in self.matching],
            "doppelgangers": [asdict(pair) for pair in self.doppelgangers],
            **self.scene.summary(),
            "alignments": [asdict(one) for one in self.alignments],
            "notes": list(self.notes),
            "next": self.next_step,
            "seconds": {step: round(value, 2) for step, value in self.seconds.items()},
        }


def map_photographs(
    photographs: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    frames: int | None = None,
    every: float | None = None,
    quality: Quality = "balanced",
    pairs: PairChoice | str | os.PathLike[str] = "auto",
    features: str = "auto",
    matcher: str = "auto",
    effort: Effort | None = None,
    trust_doppelgangers: bool = False,
    mapper: Mapper = "incremental",
    max_keypoints: int | None = None,
    long_side: int | None = None,
    masks: str | os.PathLike[str] | None = None,
    bands: Sequence[int] | None = None,
    cameras: Share = "auto",
    camera_model: str = "SIMPLE_RADIAL",
    focal: float | None = None,
    camera: str | None = None,
    fix_cameras: bool = False,
    refine: bool | None = None,
    undistort: bool = False,
    text: bool = False,
    align: str | os.PathLike[str] | None = None,
    scale: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    device: torch.device | str | None = "auto",
    workers: int | None = None,
    ray: str | None = None,
    seed: int = 0,
    report: Report = silent,
) -> MapResult:
    """Find out where photographs were taken, and what they show, in three dimensions.

    Call it again to resume an interrupted run, or after photographs or options changed: finished work is not repeated,
    except what depends on a change (`tiepoint.mapping.inputs`).

    Parameters
    ----------
    photographs : path
        A folder, searched with its sub-folders; or a video, of which sharp key frames are taken, between which the
        picture moves.
    output : path
        A folder, made if need be; see the module for what it will hold. It must not lie in that of the photographs.
    frames, every : int or float, optional
        Of a video, take so many frames, or one every so many seconds: the sharpest of each part.
    quality : {"fast", "balanced", "dense"}
        How many points, in how much time; it chooses the options below that are None
        (`tiepoint.mapping.quality.PRESETS`). Beyond ``"fast"``, all keypoints are matched along epipolar lines once the
        poses are known (`tiepoint.mapping.steps.densify`).
    pairs : {"auto", "exhaustive", "sequential", "retrieval", "position"} or path
        Which pairs to match: all; neighbours in the order of the names (of EXIF times, where the names have no order)
        and loops; by image retrieval; those taken near each other by GPS, and by image retrieval for photographs
        without; or a text file of two names a line. Auto is all for up to 100 photographs, sequential for a video, and
        retrieval, joined with position where EXIF has it, for all others.
    features, matcher : str
        Names, or ``"auto"``, as in `tiepoint.match`.
    effort : {"fast", "auto", "thorough"}, optional
        Try harder, as in `tiepoint.match`, on pairs that one pass did not solve: of images with few partners, and
        between models (`tiepoint.mapping.steps.effort`). Run again, they are tried again.
    trust_doppelgangers : bool
        Use pairs that match but seem to show two different places that look alike. By default they are hidden from the
        mapper (`tiepoint.mapping.steps.doppelgangers`); the database keeps them.
    mapper : {"incremental", "global"}
        See `tiepoint.mapping.steps.reconstruct`.
    max_keypoints : int, optional
        Keep the best this many of each photograph; 0 keeps all.
    long_side : int, optional
        Shrink larger photographs to this long side, in pixels, to find keypoints; 0 works at full size.
    masks : path, optional
        Folder of masks, see `extract_into`; it must hold one at least.
    bands : one or three ints, optional
        Which bands of the photographs to use, see `tiepoint.read_image`.
    cameras, camera_model, focal, camera
        Which photographs share a camera, COLMAP's model for it, and its focal length in pixels or all its parameters,
        where these are known: see `tiepoint.mapping.steps.images.new_images`.
    fix_cameras : bool
        Take focal lengths and distortion as they are given, by ``focal``, ``camera`` or EXIF, and do not adjust them.
    refine : bool, optional
        Also align the keypoints of each point to a fraction of a pixel, by the photographs at full size
        (`tiepoint.mapping.steps.refine`).
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
    device : torch.device or str
        Where networks run; ``"auto"`` is `tiepoint.devices.best_device`.
    workers : int, optional
        Processes or threads, see `extract_into`; by default as many as there are cores.
    ray : str, optional
        Extract and match on a Ray cluster: ``"local"``, ``"auto"`` or an address, see
        `tiepoint.mapping.cluster.cluster`.
    seed : int
        Of the mapper's random choices.
    report : callable
        Gets a `Progress` after every bit of work; `tiepoint.progress_bars` shows it.

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
    asked = MapSettings.of(locals())
    log = _Log(report)
    asked.check()
    out = make_folder(asked.output)
    begun = {} if fresh else read_begun(out)
    # Loaded once more below: what they lack has to be said before the work, and while there still is a map.
    wanted = begun.get("features", features), begun.get("matcher", matcher)
    pipeline.load(*wanted, asked.device, asked.extractor_options)
    photos = _look_at_photographs(asked, begun, log)
    if fresh and photos.video is None:  # as late as can be: all that can be wrong with the options has been said
        start_over(out, asked.photographs)
    with Store.open(out / "database.db") as store, _workplace(asked) as (extract, match):
        settings, choice = settle(asked, begun, store, photos.video)
        extractor, pairer, _ = pipeline.load(
            settings["features"], settings["matcher"], asked.device, asked.extractor_options
        )
        write_json(out / "settings.json", settings)
        store.show_hidden_pairs()  # of an earlier run
        with log.lap("files"):
            _follow_photographs(store, asked, photos, settings["own_cameras"], log)
        with log.lap("plan"):
            names = [image.name for image in photos.images]
            most, had = settings["first_pass"], len(store.has_features())
            first = pairer if most is None or settings["matcher"] == "nearest" else BestFirst(pairer)
            plan = make_plan(store, asked, photos.folder, names, photos.video is not None, extractor, first, most)
            report(Progress("planning", 1, 1, note="\n".join(plan.lines())))
        with log.lap("features"):
            extraction = extract(store, photos.folder, extractor, masks=asked.masks, report=report)
            # The plan extracted two of them.
            extracted = extraction.extracted + extraction.already - had
            extraction = replace(extraction, extracted=extracted, already=had)
        with log.lap("matches"):
            chosen = choose_pairs(store, photos.folder, pairs, photos.video is not None, report)
            match_pairs = partial(match, store, matcher=first, most=most, report=report)
            matching = _match(store, asked, chosen, match_pairs, settings, log)
        if asked.effort != "fast":
            with log.lap("effort"):
                best = extractor.with_options(max_keypoints=most or asked.max_keypoints)
                second = pipeline.another(best)
                spent = try_harder(
                    store, photos.folder, best, pairer, asked.effort, second=second, masks=asked.masks, report=report
                )
            log.notes.append(
                f"effort {asked.effort}: {spent.solved} of {spent.tried} pairs that one pass left were solved"
            )
        with log.lap("doppelgangers"):
            hidden = () if trust_doppelgangers else tuple(hide_doppelgangers(store))
    with log.lap("model"):
        scene, alignments = _reconstruct(asked, photos, log)
    with log.lap("exports"):
        times = photos.times or times_in_names(image.name for image in photos.images)
        outputs.export(scene, alignments, asked, photos.folder, times, choice, log.notes)
    skipped, notes, next_step = dict(photos.skipped), tuple(log.notes), outputs.next_step(scene, asked)
    result = MapResult(
        out, scene, choice, extraction, matching, skipped, hidden, notes, log.seconds, alignments, plan, next_step
    )
    write_json(out / "report.json", result.summary())
    return result


@dataclass(frozen=True)
class _Photographs:
    """The photographs of a map: their folder, those that can be used, and those that cannot, with the reason.

    ``video`` is the fingerprint of the video whose frames they are, and ``times`` their times in it, in seconds.
    """

    folder: Path
    images: list[NewImage]
    skipped: list[tuple[str, str]]
    aligner: Aligner | None
    video: dict[str, Any] | None = None
    times: dict[str, float] | None = None


class _Log:
    """What a run has to tell: progress, notes, and the wall-clock time of its steps."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}

    @contextmanager
    def lap(self, step: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[step] = time.perf_counter() - begin


def _look_at_photographs(asked: MapSettings, begun: dict[str, Any], log: _Log) -> _Photographs:
    """Find the photographs and their cameras; a video is first cut into key frames."""
    source, share, film, times = asked.photographs, asked.cameras, None, None
    if source.is_file():
        if asked.fresh:
            start_over(asked.output, source)
        film = same_video(asked.output, source, begun)
        with log.lap("frames"):
            kept = video.write_key_frames(
                source,
                asked.output / "frames",
                frames=asked.frames,
                every=asked.every,
                progress=lambda looked_at, _: log.report(Progress("choosing key frames", looked_at, 0)),
            )
        times = {frame.name: frame.time for frame in kept}
        _write_sheet(asked.output, times)
        source, share = asked.output / "frames", "all" if share == "auto" else share
    with log.lap("cameras"):
        names = None if asked.masks is None else without_masks(list_images(source), source, asked.masks)
        found, skipped = new_images(source, names, share, asked.camera_model, asked.focal, asked.camera, asked.bands)
    if len(found) < 2:
        reasons = "".join(f"\n  {name}: {why}" for name, why in skipped)
        raise InputError(f"{source}: holds {len(found)} photographs that can be used, and a map needs two{reasons}")
    if asked.undistort:
        exports.check_can_be_undistorted((image.camera for image in found), [image.name for image in found])
    aligner, note = aligner_for(asked.align, asked.scale, found, asked.seed)
    log.notes += [note] if note else []
    guessed = sum(not image.camera.has_prior_focal_length for image in found)
    unknown = f"no focal length is known for {guessed} of {len(found)} photographs"
    if guessed and asked.fix_cameras:
        raise ArgumentError(f"{unknown}, so it cannot be fixed; give --focal or --camera")
    if guessed:
        log.notes.append(f"{unknown}; the mapper estimates it")
    if asked.masks is not None:
        count = len(find_masks(asked.masks, [image.name for image in found]))
        log.notes.append(f"masks: {count} of {len(found)} photographs have one")
    return _Photographs(source, found, skipped, aligner, film, times)


def _write_sheet(output: Path, times: dict[str, float]) -> None:
    """Show the frames that were taken of a video on one sheet."""
    shown = []
    for name, seconds in times.items():
        pixels = read_reduced((output / "frames" / name).read_bytes(), name, sheet.SIDE)
        shown.append((f"{Path(name).stem}  {seconds:.1f} s", pixels))
    sheet.contact_sheet(shown, output / "frames.jpg")


@contextmanager
def _workplace(asked: MapSettings) -> Iterator[tuple[Callable[..., Extraction], Callable[..., Matching]]]:
    """Give the functions that extract and match: here, or on a cluster."""
    if asked.ray is None:
        yield partial(extract_into, workers=asked.workers), partial(match_into, workers=asked.workers)
    else:
        with cluster.cluster(asked.ray, asked.workers):
            yield cluster.extract_on_ray, cluster.match_on_ray


def _follow_photographs(store: Store, asked: MapSettings, photos: _Photographs, own_cameras: bool, log: _Log) -> None:
    """Make the store hold the photographs and cameras as they are now."""
    changes, recalibrated = follow_files(store, photos.folder, photos.images, asked.masks, own_cameras)
    if asked.undistort:
        images = store.images()
        exports.check_can_be_undistorted((image.camera for image in images), [image.name for image in images])
    if changes != FileChanges():
        log.notes.append(f"photographs that changed since the last run: {changes}")
    if recalibrated:
        log.notes.append(f"{len(recalibrated)} photographs have another camera than in the last run")


def _match(
    store: Store,
    asked: MapSettings,
    chosen: ChosenPairs,
    match: Callable[..., Matching],
    settings: dict[str, Any],
    log: _Log,
) -> tuple[Matching, ...]:
    """Match the chosen pairs; where an earlier run chose in another way, remove those that only it chose."""
    log.notes += chosen.notes
    done, pairs = match_chosen(store, chosen, match)
    digest = None if asked.pairs in PAIR_CHOICES else Fingerprint.of(Path(asked.pairs)).digest
    choice = {"choice": str(asked.pairs), "digest": digest}
    if settings.get("pairs", choice) != choice:
        superfluous = np.setdiff1d(store.matched_pair_ids(), pair_ids(pairs))
        store.remove_pairs(superfluous)
        if len(superfluous):
            log.notes.append(f"{len(superfluous)} pairs of the last run are not among those chosen now; removed")
    write_json(asked.output / "settings.json", {**settings, "pairs": choice})
    return done


def _reconstruct(asked: MapSettings, photos: _Photographs, log: _Log) -> tuple[Scene, tuple[Alignment, ...]]:
    """Make the models, and move each into the frame that was asked for."""
    alignments: list[Alignment] = []

    def align(model: Any) -> None:
        if photos.aligner is not None:
            alignments.append(photos.aligner(model))

    scene = reconstruct(
        asked.output / "database.db",
        photos.folder,
        asked.output,
        mapper=asked.mapper,
        refine_cameras=not asked.fix_cameras,
        second_pass=asked.preset.second_pass,
        refine_keypoints=bool(asked.refine),
        bands=asked.bands,
        seed=asked.seed,
        report=log.report,
        align=align,
    )
    log.notes += scene.notes
    log.notes += [f"model {number}: {alignment}" for number, alignment in enumerate(alignments)]
    if len(scene.models) > 1:
        log.notes.append("points.ply and all else are of model 0")
    return scene, tuple(alignments)
