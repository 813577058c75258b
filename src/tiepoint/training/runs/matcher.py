"""Trains a matcher on the features of an extractor: LightGlue and its confidence classifiers, or SuperGlue.

The run's folder holds what that of any run does (`tiepoint.training.runs.task`), ``baseline.json`` (nearest neighbours
on the same held-out pairs), and ``confidence/`` with the same files of the second stage.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ... import features as extractors
from ... import weights
from ...errors import ArgumentError, InputError
from ...io.files import read_json
from ...matchers.lightglue import LightGlueConfig, LightGlueNet
from ...matchers.nearest import NearestNeighbour
from ..data.posed import PosedPool
from ..data.posed_datasets import find_scenes
from ..data.real_pairs import LEAST, RealPairConfig, RealPool
from ..initialise import new_lightglue, new_superglue
from ..loop import FitConfig
from ..objectives.base import Objective
from ..objectives.lightglue import ConfidenceObjective, LightGlueObjective
from ..objectives.losses import MatchStatistics, match_statistics
from ..objectives.superglue import SuperGlueObjective
from ..pairs.batch import Batch
from ..pairs.maker import CHUNK, ChunkMaker, PairConfig
from ..pairs.steps import Steps, make_ahead
from ..pairs.traits import try_extractor
from .pictures import draw_pair
from .presets import MATCHER_PRESETS, MatcherPreset, named
from .settings import FitSettings
from .task import Report, Stop, Task, Trial, as_json, never, origin_of, read_config, silent

KINDS = ("lightglue", "superglue")
LEAST_CHUNKS = 16  # of training pairs that are used again and again
RATIOS = (0.8, 0.9)  # of the ratio test that a matcher is compared with


@dataclass(frozen=True, kw_only=True)
class MatcherSettings(FitSettings):
    """What the training of a matcher is asked for.

    Attributes
    ----------
    features : str
        The extractor, as `tiepoint.features.load` takes it.
    preset : str or MatcherPreset
        Size, pairs and length of the training; the options below change it.
    kind : str
        ``"lightglue"``, or ``"superglue"`` for comparison.
    posed : path, optional
        Folder of photographs with depth and pose, see `tiepoint.training.data.posed_datasets.find_scenes`.
    posed_share : float in [0, 1]
        Fraction of the pairs that come from them.
    teacher : str, optional
        An extractor with a LightGlue of its own (``aliked-n16``), which matches photographs that overlap, see
        `tiepoint.training.data.real_pairs`.
    pairs : path, optional
        List of the photographs that overlap, two names a line; by default they are found.
    pairs_share : float in [0, 1]
        Fraction of the pairs that come from them.
    detection_threshold : float, optional
        Of the extractor.
    save_memory : bool
        Compute states again in the backward pass instead of keeping them.

    Attributes of every run are those of `RunSettings` and `FitSettings`. A LightGlue can ``start`` from weights of the
    same shape.
    """

    features: str = "sift"
    preset: str | MatcherPreset = "tiny"
    kind: str = "lightglue"
    posed: str | os.PathLike[str] | None = None
    posed_share: float = 0.5
    teacher: str | None = None
    pairs: str | os.PathLike[str] | None = None
    pairs_share: float = 0.5
    detection_threshold: float | None = None
    save_memory: bool = False

    def chosen(self) -> MatcherPreset:
        """Return the preset with what the options change.

        Raises
        ------
        ArgumentError
            No such preset, or options that make no sense together.
        """
        preset = named(MATCHER_PRESETS, self.preset)
        pairs = replace(preset.pairs, features=self.features, detection_threshold=self.detection_threshold)
        if self.light is not None:
            pairs = replace(pairs, photometric=self.light)
        if self.posed is not None:
            pairs = replace(pairs, posed=self.posed_share, scenes=pairs.scenes * (1 - self.posed_share))
        if self.teacher is not None:
            left = 1 - self.pairs_share
            pairs = replace(pairs, real=self.pairs_share, posed=pairs.posed * left, scenes=pairs.scenes * left)
        elif self.pairs is not None:
            raise ArgumentError("--pairs lists photographs for a teacher to match: give --teacher, too")
        fit, distinct = self.schedule(preset.fit, self.start is not None), preset.distinct
        if distinct and self.minutes and preset.fit.minutes:  # a short training needs fewer pairs, and waits less
            distinct = min(distinct, max(LEAST_CHUNKS, round(distinct * self.minutes / preset.fit.minutes)))
        return replace(preset, pairs=pairs, fit=fit, batch=self.batch or preset.batch, distinct=distinct)


def train(settings: MatcherSettings, report: Report = silent, stop: Stop = never) -> dict[str, Any]:
    """Train a matcher, or resume where this folder's training stopped.

    Parameters
    ----------
    settings : MatcherSettings
        What is asked for.
    report, stop : callable
        See `tiepoint.training.runs.task.Report` and `tiepoint.training.runs.task.Stop`.

    Returns
    -------
    dict
        The last row of metrics and, as ``baseline``, precision and recall of mutual nearest neighbours with ratio
        test on the same held-out pairs.

    Raises
    ------
    InputError
        No folder, too few or unreadable photographs, an extractor that finds next to nothing in them, or the run's
        folder holds a run with another configuration.
    ArgumentError
        An option that makes no sense, or an extractor with binary descriptors.
    TrainingError
        The loss is not a number.

    Examples
    --------
    >>> from tiepoint.training.runs import matcher
    >>> settings = matcher.MatcherSettings(images="photographs", output="runs/mine", features="sift")
    >>> matcher.train(settings)["held_out_precision"]  # doctest: +SKIP
    0.87
    """
    return _train(prepare(settings), report, stop)


def dry_run(settings: MatcherSettings) -> dict[str, Any]:
    """Draw a few pairs, take a few steps, and say what `train` would need; see `Task.dry_run`."""
    return prepare(settings, keep=False).dry_run()


def train_confidence(
    run: str | os.PathLike[str],
    steps: int = 500,
    workers: int | None = None,
    device: torch.device | str | None = None,
    report: Report = silent,
    stop: Stop = never,
) -> dict[str, Any]:
    """Train the confidence classifiers of a finished run, in its folder ``confidence``; the matcher stays as it is.

    Parameters
    ----------
    run : path
        Folder of the matcher's run.
    steps : int
        Optimiser steps; linear classifiers learn quickly.
    workers, device
        See `RunSettings`.
    report, stop : callable
        See `train`.

    Raises
    ------
    InputError
        The folder holds no run, or its cache of photographs is gone.
    ArgumentError
        The run trained SuperGlue, which has no such classifiers.
    """
    run = Path(run)
    summary = read_config(run)
    config, paths = summary["config"], summary["paths"]
    if config["kind"] not in KINDS:
        raise InputError(f"{run} is a run that trained {config['kind']}, not a matcher")
    path = run / "weights.safetensors"
    if not path.is_file():
        raise InputError(f"{run} holds no weights yet; 'tiepoint train matcher -o {run}' writes them")
    if config["kind"] != "lightglue":
        raise ArgumentError(f"{run} trained {config['kind']}, which has no confidence classifiers")
    options = {name: paths.get(name) for name in ("cache", "posed", "start", "teacher", "pairs")}
    settings = MatcherSettings(images=None, output=run, seed=config["seed"], workers=workers, device=device, **options)
    preset = _preset_from(config)
    task = prepare(settings, preset)
    fit = replace(
        preset.fit, steps=steps, minutes=None, learning_rate=3e-3, warmup=20, decay=0.5, ema=0.98, average=False
    )
    state, metadata = weights.load(path)
    net = weights.load_into(LightGlueNet(LightGlueConfig.from_dict(metadata)), state, path)
    matcher = weights.sha256(path)
    asked = as_json({"matcher": matcher, "batch": preset.batch, "fit": asdict(fit)})
    task = replace(
        task,
        name="confidence",
        folder=run / "confidence",
        config={**task.config, **asked},
        fit=fit,
        new_objective=lambda: ConfidenceObjective(net),
    )
    return _train(task, report, stop, {"training": metadata["training"], "confidence": origin_of(asked)})


def prepare(settings: MatcherSettings, preset: MatcherPreset | None = None, keep: bool = True) -> Task:
    """Check everything that can be wrong with a training before its first step.

    ``preset`` is used as it is, without what the options of ``settings`` change. Without ``keep`` no training pairs are
    written into the run's folder. Errors are those of `train`.
    """
    kind, start, folder = settings.kind, settings.start, settings.folder
    preset = preset or settings.chosen()
    if kind not in KINDS:
        raise ArgumentError(f"there is no kind of matcher {kind!r} to train; choose one of {', '.join(KINDS)}")
    if start is not None and kind != "lightglue":
        raise ArgumentError(f"only a LightGlue can start from weights, not {kind}")
    extractors.load(preset.pairs.features, device="cpu")  # an unknown name is to be known before photographs are read
    # A third larger than the pictures that are cut from them.
    side = 4 * max(preset.pairs.size) // 3
    photos, processes = settings.open_photographs(side, preset.batch, CHUNK)
    traits = try_extractor(photos, preset.pairs, processes.device)
    on_gpu = traits.on_device and processes.device.type != "cpu"
    workers = settings.workers
    if workers is None:
        # Pairs that are used again are made before training begins, by all cores; others beside it.
        cores = (os.cpu_count() or 2) // processes.world
        workers = 0 if on_gpu else max(1, cores - (0 if preset.distinct else 1))
    pool = None if settings.posed is None else PosedPool(find_scenes(settings.posed), folder)
    real = None
    if settings.teacher is not None:
        pairs = preset.pairs
        wanted = RealPairConfig(settings.teacher, pairs.features, pairs.keypoints, pairs.detection_threshold)
        real = RealPool(photos, wanted, folder / "real", settings.pairs)
    making = processes.device if on_gpu else torch.device("cpu")
    chunks = folder / "chunks"
    maker, held_out_maker = (
        ChunkMaker(photos, preset.pairs, settings.seed, held_out, making, kept, pool, real)
        for held_out, kept in ((False, chunks if preset.distinct and keep else None), (True, chunks))
    )
    steps = Steps(maker, preset.batch, processes.rank, processes.world, preset.distinct, preset.fewest, preset.reframe)
    source = None if start is None else weights.locate(start)

    def new_objective() -> Objective:
        if kind == "superglue":
            return SuperGlueObjective(new_superglue(preset.model, preset.pairs.extractor, traits, settings.seed))
        first = maker(0) if source is None else None
        net = new_lightglue(preset.model, preset.pairs.extractor, traits, settings.seed, first, source)
        return LightGlueObjective(net, settings.save_memory)

    def ahead() -> Iterator[tuple[int, int]]:
        if processes.rank == 0:
            held_out_maker.claim_folder()
            if real is not None:
                yield from real.make()
                if not real.confirmed():
                    raise InputError(
                        f"no geometry confirms {LEAST} matches of any two of these photographs; give photographs that "
                        "overlap, or train without a teacher"
                    )
        if preset.distinct:  # several processes divide the chunks among them
            yield from make_ahead(maker, steps.needed(preset.fit.steps)[processes.rank :: processes.world], workers)

    config = {"kind": kind, "seed": settings.seed, "photographs": photos.digest, **asdict(preset)}
    if source:
        config["start"] = weights.sha256(source)
    if real:
        config["real pairs"] = real.digest
    if source is not None:
        new_objective()  # weights that do not fit are to be known now
    return Task(
        name=kind,
        folder=folder,
        config=as_json(config),
        paths={
            "cache": str(photos.path.resolve()),
            "posed": None if settings.posed is None else str(Path(settings.posed).resolve()),
            "start": None if source is None else str(source.resolve()),
            "teacher": settings.teacher,
            "pairs": None if settings.pairs is None else str(Path(settings.pairs).resolve()),
        },
        processes=processes,
        workers=workers,
        fit=preset.fit,
        new_objective=new_objective,
        make=steps,
        held_out=lambda: [held_out_maker(chunk) for chunk in range(preset.held_out)],
        ahead=ahead,
        made_ahead=bool(preset.distinct),
        reference=partial(_baseline, features=preset.pairs.extractor),
        reference_file="baseline.json",
        trial=lambda: _trial(preset, steps, real),
        drawing=lambda: held_out_maker.pictures(0),
    )


def _trial(preset: MatcherPreset, steps: Steps, real: RealPool | None) -> Trial:
    maker = steps.maker
    for _ in real.make() if real else ():
        pass
    began = time.monotonic()
    chunks = [maker(chunk) for chunk in range(max(1, preset.batch // steps.world // CHUNK))]
    seconds = (time.monotonic() - began) / (CHUNK * len(chunks))
    batch, images = chunks[0], maker.pictures(0)
    pictures = {
        f"pair-{pair}{'' if batch.related[pair] else '-unrelated'}.png": draw_pair(images, batch, pair)
        for pair in range(CHUNK)
    }
    total = preset.fit.steps
    pairs = CHUNK * len(steps.needed(total)) if preset.distinct else total * preset.batch
    return Trial(Batch.cat(chunks), pictures, seconds, pairs)


def _train(task: Task, report: Report, stop: Stop, origin: dict[str, Any] | None = None) -> dict[str, Any]:
    row = task.train(report, stop, origin)
    baseline = read_json(task.folder / task.reference_file) if task.processes.rank == 0 else {}
    return {**row, "baseline": baseline}


def _preset_from(config: dict[str, Any]) -> MatcherPreset:
    """Read a preset from a run's configuration (JSON has lists where we have tuples)."""
    try:
        rest = {name: config[name] for name in ("batch", "distinct", "fewest", "reframe", "held_out")}
        model, pairs = LightGlueConfig.from_dict(config["model"]), PairConfig.from_dict(config["pairs"])
        return MatcherPreset(model, pairs, FitConfig(**config["fit"]), **rest)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the configuration of a run makes no sense ({error}); train anew") from error


def nearest_statistics(batches: Sequence[Batch], features: str, ratio: float) -> MatchStatistics:
    """Evaluate mutual nearest neighbours with ratio test as `match_statistics` evaluates a matcher."""
    matcher = NearestNeighbour(features, ratio=ratio)
    total = MatchStatistics(0, 0, 0)
    for batch in batches:
        certain = torch.full((len(batch), batch.keypoints.shape[1], batch.keypoints.shape[1]), -math.inf)
        for pair, found in enumerate(matcher.match_many(batch.features(features))):
            certain[pair, found.indices[:, 0], found.indices[:, 1]] = 0.0
        total = total + match_statistics(certain, batch.labels)
    return total


def _baseline(batches: Sequence[Batch], features: str) -> dict[str, dict[str, float]]:
    """Return precision and recall of nearest neighbours at each of `RATIOS`."""
    found = {str(ratio): nearest_statistics(batches, features, ratio) for ratio in RATIOS}
    return {ratio: {"precision": s.precision, "recall": s.recall} for ratio, s in found.items()}
