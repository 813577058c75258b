"""A run: photographs in, a folder with a trained matcher out.

Its folder holds what that of any run does (`tiepoint.training.runs.task`), ``baseline.json`` (nearest neighbours on
the same held-out pairs), and ``confidence/`` with the same files of the second stage.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ... import features as extractors
from ... import weights as weights_module
from ...errors import ArgumentError, InputError
from ...features.steerable import steer
from ...io.files import atomic, read_json
from ...matchers.lightglue import LightGlueConfig, LightGlueNet
from ...matchers.nearest import NearestNeighbour
from ...matchers.superglue import SuperGlueConfig, SuperGlueNet
from ..data.photographs import PhotoCache
from ..data.posed import PosedPool
from ..data.posed_datasets import find_scenes
from ..data.real_pairs import LEAST, RealPairConfig, RealPool
from ..initialise import start_as_nearest_neighbour
from ..loop import FitConfig
from ..objectives.base import Objective, Output
from ..objectives.lightglue import ConfidenceObjective, LightGlueObjective, lightglue_inputs
from ..objectives.losses import MatchStatistics, match_statistics, predicted_partners
from ..objectives.superglue import SuperGlueObjective
from ..pairs.batch import Batch
from ..pairs.maker import CHUNK, ChunkMaker, PairConfig
from ..pairs.steps import Steps, make_ahead
from ..stream import stream
from .pictures import draw_pair
from .presets import Preset
from .task import carry_out, claim, judge, open_photographs, origin_of, read_config, save_pictures, time_steps

KINDS = ("lightglue", "superglue")
RATIOS = (0.8, 0.9)  # of the ratio test that a matcher is compared with
_LEAST = 32  # keypoints of a typical photograph, below which the extractor is of no use here


@dataclass(frozen=True)
class Traits:
    """What an extractor's features are like, found by trying it."""

    input_dim: int
    scale_orientation: bool
    on_device: bool
    harmonics: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Task:
    """A training, checked and ready to start: data, matcher, and what identifies them.

    Attributes
    ----------
    preset : Preset
    kind : str
        ``"lightglue"`` or ``"superglue"``.
    seed : int
    maker : ChunkMaker
        Of training pairs.
    held_out_maker : ChunkMaker
        Of evaluation pairs, from other photographs.
    traits : Traits
        Of the extractor.
    device : torch.device
    workers : int
        Worker processes that make pairs.
    rank, world : int
        Number of this process and of all processes.
    posed : Path or None
        Folder of photographs with depth and pose.
    start : Path or None
        Weights that training starts from.
    chunks : Path or None
        Folder that runs share finished pairs in.
    real : RealPool or None
        Photographs that overlap, matched by a teacher.
    """

    preset: Preset
    kind: str
    seed: int
    maker: ChunkMaker
    held_out_maker: ChunkMaker
    traits: Traits
    device: torch.device
    workers: int
    rank: int
    world: int
    posed: Path | None = None
    start: Path | None = None
    chunks: Path | None = None
    real: RealPool | None = None

    @property
    def features(self) -> str:
        """Name of the extractor, without its weights."""
        return self.preset.pairs.extractor

    @property
    def config(self) -> dict[str, Any]:
        """What must be equal for a run to be resumed, as JSON has it."""
        names = self.maker.photos.digest
        told = {"kind": self.kind, "seed": self.seed, "photographs": names, **asdict(self.preset)}
        if self.start:
            told["start"] = weights_module.sha256(self.start)
        if self.real:
            told["real pairs"] = self.real.digest
        return json.loads(json.dumps(told))

    @property
    def paths(self) -> dict[str, str | None]:
        """Where the run's data lie."""
        return {
            "cache": str(self.maker.photos.path.resolve()),
            "chunks": str(self.chunks.resolve()) if self.chunks else None,
            "posed": str(self.posed.resolve()) if self.posed else None,
            "start": str(self.start.resolve()) if self.start else None,
            "teacher": self.real.config.teacher if self.real else None,
            "pairs": str(self.real.source.resolve()) if self.real and self.real.source else None,
        }

    def new_net(self) -> LightGlueNet | SuperGlueNet:
        """Return the untrained network."""
        model, traits = self.preset.model, self.traits
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if self.kind == "superglue":
                # One self- and one cross-attention layer for each layer of LightGlue. The paper's solver iterates 100
                # times; half of that is as good in training, and is what public training code uses.
                widths = tuple(width for width in (32, 64, 128, 256) if width <= traits.input_dim)
                return SuperGlueNet(
                    SuperGlueConfig(
                        features=(self.features,),
                        dim=traits.input_dim,
                        keypoint_encoder=widths,
                        heads=model.heads,
                        layers=2 * model.layers,
                        sinkhorn_iterations=50,
                    )
                )
            net = LightGlueNet(
                replace(
                    model,
                    features=(self.features,),
                    input_dim=traits.input_dim,
                    scale_orientation=traits.scale_orientation,
                    log_scale=traits.scale_orientation,
                    align=traits.scale_orientation,
                    harmonics=traits.harmonics,
                )
            )
            if self.start is None:
                first = self.maker(0)
                descriptors, positions, _ = lightglue_inputs(first, net.config)
                if traits.harmonics:
                    descriptors = steer(descriptors, positions[:, 3], traits.harmonics)
                start_as_nearest_neighbour(net, descriptors)
                return net
        state, told = weights_module.load(self.start)
        if not told.get("features") or "layers" not in told:
            raise ArgumentError(f"{self.start} holds no LightGlue weights of ours")
        there, here = LightGlueConfig.from_dict(told), net.config
        sizes = ("input_dim", "dim", "heads", "layers")
        inputs = ("features", "scale_orientation", "log_scale", "align", "harmonics")
        if differing := [name for name in inputs + sizes if getattr(there, name) != getattr(here, name)]:
            what = "; ".join(
                f"{name} is {getattr(there, name)} there, {getattr(here, name)} here" for name in differing
            )
            raise ArgumentError(
                f"{self.start} cannot start this training: {what}. Choose the preset it was trained with"
            )
        return weights_module.load_into(net, state, self.start).train().requires_grad_(True)

    def new_objective(self, save_memory: bool = False) -> LightGlueObjective | SuperGlueObjective:
        """Return the untrained network and what it minimises; ``save_memory`` is that of `LightGlueObjective`."""
        net = self.new_net()
        return SuperGlueObjective(net) if isinstance(net, SuperGlueNet) else LightGlueObjective(net, save_memory)

    @property
    def steps(self) -> Steps:
        """The batches of all steps."""
        preset = self.preset
        return Steps(
            self.maker,
            preset.batch,
            self.rank,
            self.world,
            preset.distinct,
            preset.fewest,
            preset.reframe,
        )

    def batches(self, start: int) -> Iterator[Batch]:
        """Yield batches from step ``start`` on."""
        workers = 0 if self.preset.distinct else self.workers  # made ahead, they are only read
        return stream(self.steps, range(start, self.preset.fit.steps), workers)

    def make_ahead(self) -> Iterator[tuple[int, int]]:
        """Make the pairs of a preset that uses them again and again; yield how many chunks are done, and of how many.

        Several processes share them out.

        Raises
        ------
        InputError
            The folder of chunks holds others.
        """
        if self.rank == 0:
            self.held_out_maker.claim_folder()
            if self.real is not None:
                yield from self.real.make()
                if not self.real.confirmed():
                    raise InputError(
                        f"no geometry confirms {LEAST} matches of any two of these photographs; give photographs that "
                        "overlap, or train without a teacher"
                    )
        if self.preset.distinct:
            needed = self.steps.needed(self.preset.fit.steps)
            yield from make_ahead(self.maker, needed[self.rank :: self.world], self.workers)
        if self.world > 1:
            dist.barrier()

    def held_out(self) -> list[Batch]:
        """Return the evaluation pairs; they are made once and kept in the run's folder."""
        return [self.held_out_maker(chunk) for chunk in range(self.preset.held_out)]


def prepare(
    images: str | os.PathLike[str] | None,
    folder: str | os.PathLike[str],
    preset: Preset,
    kind: str = "lightglue",
    seed: int = 1,
    cache: str | os.PathLike[str] | None = None,
    chunks: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    device: torch.device | str | None = None,
    posed: str | os.PathLike[str] | None = None,
    start: str | os.PathLike[str] | None = None,
    teacher: str | None = None,
    pairs: str | os.PathLike[str] | None = None,
) -> Task:
    """Check everything that can be wrong with a training before its first step.

    Parameters
    ----------
    images : path or None
        Folder of photographs, searched with its sub-folders. None uses those in ``cache`` as they are.
    folder : path
        The run's folder.
    preset : Preset
        What is trained, on which pairs, how long.
    kind : str
        ``"lightglue"``, or ``"superglue"`` for comparison.
    seed : int
        Of all random choices.
    cache : path, optional
        Where decoded photographs are kept, for several runs; by default in the run's folder.
    chunks : path, optional
        Where finished pairs are kept, for several runs; by default in the run's folder.
    workers : int, optional
        Processes that make pairs. By default none for an extractor that runs on the GPU, else one for each core but
        one.
    device : torch.device or str, optional
        Where to train; by default the best there is.
    posed : path, optional
        Folder of photographs with depth and pose, see `tiepoint.training.data.posed.find_scenes`, for the share
        ``preset.pairs.posed``.
    start : path, optional
        LightGlue weights of ours, of the same shape, to train on instead of starting anew.
    teacher : str, optional
        An extractor with a LightGlue of its own (``aliked-n16``), which matches photographs that overlap for the share
        ``preset.pairs.real``, see `tiepoint.training.data.real_pairs`.
    pairs : path, optional
        List of the photographs that overlap, two names a line; by default they are found.

    Raises
    ------
    InputError
        No folder, too few or unreadable photographs, or an extractor that finds next to nothing in them.
    ArgumentError
        An option that makes no sense, or an extractor with binary descriptors.
    """
    if preset.fit.average and start is None:
        raise ArgumentError("there is nothing to average with: give the weights that training starts from")
    if start is not None and kind != "lightglue":
        raise ArgumentError(f"only a LightGlue can start from weights, not {kind}")
    if kind not in KINDS:
        raise ArgumentError(f"there is no kind of matcher {kind!r} to train; choose one of {', '.join(KINDS)}")
    folder = Path(folder)
    extractors.load(preset.pairs.features, device="cpu")  # an unknown name is to be known before photographs are read
    # A third larger than the pictures that are cut from them.
    side = 4 * max(preset.pairs.size) // 3
    photos, chosen, rank, world = open_photographs(images, folder, cache, side, preset.batch, CHUNK, device)
    traits = try_extractor(photos, preset.pairs, chosen)
    on_gpu = traits.on_device and chosen.type != "cpu"
    if workers is None:
        # Pairs that are used again are made before training begins, by all cores; others beside it.
        workers = 0 if on_gpu else max(1, (os.cpu_count() or 2) // max(1, world) - (0 if preset.distinct else 1))
    keep = Path(chunks) if chunks else folder / "chunks"
    making = chosen if on_gpu else torch.device("cpu")
    keep_training = keep if chunks or preset.distinct else None
    pool = None if posed is None else PosedPool(find_scenes(posed), folder)
    real = None
    if teacher is not None:
        wanted = RealPairConfig(
            teacher, preset.pairs.features, preset.pairs.keypoints, preset.pairs.detection_threshold
        )
        real = RealPool(photos, wanted, folder / "real", pairs)
    maker = ChunkMaker(photos, preset.pairs, seed, False, making, keep_training, pool, real)
    held_out = ChunkMaker(photos, preset.pairs, seed, True, making, keep, pool, real)
    task = Task(
        preset,
        kind,
        seed,
        maker,
        held_out,
        traits,
        chosen,
        workers,
        rank,
        world,
        None if posed is None else Path(posed),
        None if start is None else weights_module.locate(start),
        None if chunks is None else Path(chunks),
        real,
    )
    if start is not None:
        task.new_net()  # weights that do not fit are to be known now
    return task


def try_extractor(photos: PhotoCache, pairs: PairConfig, device: torch.device) -> Traits:
    """Run the extractor on a handful of photographs and say what its features are like.

    Raises
    ------
    InputError
        It finds next to nothing.
    ArgumentError
        Its descriptors are binary; or what `tiepoint.features.load` raises.
    """
    extractor = extractors.load(
        pairs.features,
        device=device,
        max_keypoints=pairs.keypoints,
        detection_threshold=pairs.detection_threshold,
    )
    generator = torch.Generator().manual_seed(0)
    views = photos.sample(photos.draw(5, generator), pairs.size, generator)
    found = [extractor(view) for view in (views * 255).round().byte().permute(0, 2, 3, 1).numpy()]
    counts = sorted(len(features) for features in found)
    if counts[len(counts) // 2] < _LEAST:
        raise InputError(
            f"the extractor {pairs.features!r} finds {', '.join(map(str, counts))} keypoints in five of the "
            f"photographs; a matcher cannot learn from fewer than {_LEAST}. Lower its detection threshold, take "
            "another extractor, or give photographs with more texture"
        )
    best = max(found, key=len)
    if best.is_binary:
        raise ArgumentError(
            f"the descriptors of {pairs.features!r} are bit strings; only float descriptors can be trained on"
        )
    return Traits(
        best.descriptors.shape[1],
        best.scales is not None and best.orientations is not None,
        best.device.type != "cpu",
        extractor.harmonics,
    )


def train_matcher(
    task: Task,
    folder: str | os.PathLike[str],
    save_memory: bool = False,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train a matcher, or go on where this folder's training stopped.

    Parameters
    ----------
    task : Task
        From `prepare`.
    folder : path
        The run's folder.
    save_memory : bool
        Compute states again in the backward pass instead of keeping them.
    report : callable
        Called with every row of metrics.
    stop : callable
        Asked after every step; True saves a checkpoint and raises KeyboardInterrupt.

    Returns
    -------
    dict
        The last row of metrics and, as ``baseline``, precision and recall of mutual nearest neighbours with ratio
        test on the same held-out pairs.

    Raises
    ------
    InputError
        The folder holds a run with another configuration; the message names what differs.
    TrainingError
        The loss is not a number.

    Examples
    --------
    >>> from tiepoint.training import presets, run_matcher
    >>> task = run_matcher.prepare("photographs", "runs/mine", presets.preset("tiny"))  # doctest: +SKIP
    >>> run_matcher.train_matcher(task, "runs/mine")["held_out_precision"]  # doctest: +SKIP
    0.87
    """
    folder = Path(folder)
    claim(folder, task.config, task.paths, task.rank, task.world)
    origin = {"training": origin_of(task.config)}
    return _train(task, task.new_objective(save_memory), task.preset.fit, folder, origin, report, stop)


def train_confidence(
    task: Task,
    run: str | os.PathLike[str],
    steps: int = 500,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train the confidence classifiers of a finished run, in its folder ``confidence``; the matcher stays as it is.

    Parameters
    ----------
    task : Task
        From `reopen`.
    run : path
        Folder of the matcher's run.
    steps : int
        Optimiser steps; linear classifiers learn quickly.
    report, stop : callable
        See `train_matcher`.

    Raises
    ------
    ArgumentError
        The run trained SuperGlue, which has no such classifiers.
    """
    if task.kind != "lightglue":
        raise ArgumentError(f"{run} trained {task.kind}, which has no confidence classifiers")
    run = Path(run)
    path = run / "weights.safetensors"
    state, told = weights_module.load(path)
    net = weights_module.load_into(LightGlueNet(LightGlueConfig.from_dict(told)), state, path)
    settings = replace(
        task.preset.fit, steps=steps, minutes=None, learning_rate=3e-3, warmup=20, decay=0.5, ema=0.98, average=False
    )
    task = replace(task, preset=replace(task.preset, fit=settings))
    folder, matcher = run / "confidence", weights_module.sha256(path)
    claim(folder, {**task.config, "matcher": matcher}, task.paths, task.rank, task.world)
    here = {"matcher": matcher, "batch": task.preset.batch, "fit": asdict(settings)}
    origin = {"training": told["training"], "confidence": origin_of(here)}
    return _train(task, ConfidenceObjective(net), settings, folder, origin, report, stop)


def reopen(run: str | os.PathLike[str], workers: int | None = None, device: torch.device | str | None = None) -> Task:
    """Prepare the task of an existing run again, from its ``config.json``.

    Raises
    ------
    InputError
        The folder holds no run, or its cache of photographs is gone.
    """
    told = read_config(run)
    config, paths = told["config"], told["paths"]
    if config["kind"] not in KINDS:
        raise InputError(f"{run} is a run that trained {config['kind']}, not a matcher")
    if not (Path(run) / "weights.safetensors").is_file():
        raise InputError(f"{run} holds no weights yet; 'tiepoint train matcher -o {run}' writes them")
    return prepare(
        None,
        run,
        preset_from(config),
        config["kind"],
        config["seed"],
        paths["cache"],
        paths["chunks"],
        workers,
        device,
        paths["posed"],
        paths["start"],
        paths.get("teacher"),
        paths.get("pairs"),
    )


def preset_from(config: dict[str, Any]) -> Preset:
    """Read a preset from a run's configuration (JSON has lists where we have tuples)."""
    try:
        rest = {name: config[name] for name in ("batch", "distinct", "fewest", "reframe", "held_out")}
        model, pairs, fit = LightGlueConfig.from_dict(config["model"]), config["pairs"], FitConfig(**config["fit"])
        return Preset(model, pairs_from_dict(pairs), fit, **rest)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the configuration of a run makes no sense ({error}); train anew") from error


def pairs_from_dict(values: Any) -> PairConfig:
    """Read a `PairConfig` from JSON, which has lists where we have tuples."""
    try:
        return PairConfig(**{**values, "size": tuple(values["size"])})
    except (KeyError, TypeError) as error:
        raise InputError(f"what weights or a run say of their pairs makes no sense ({error}); train anew") from error


def newest_weights(run: str | os.PathLike[str], calibrated: bool = True) -> Path:
    """Return the weights file of a run's last finished stage: calibrated (if wanted), confidence, or matcher.

    Raises
    ------
    InputError
        There is none yet, or an earlier stage was trained on after a later one.
    """
    run = Path(run)
    matcher, confidence, last = (
        run / name for name in ("weights.safetensors", "confidence/weights.safetensors", "calibrated.safetensors")
    )
    there = [file for file in (confidence, matcher) if file.is_file()]
    if not there:
        raise InputError(f"{run} holds no weights; 'tiepoint train matcher -o {run}' writes them")
    stage = run / "confidence"
    seen = read_config(stage)["config"]["matcher"] if (stage / "config.json").is_file() else None
    if seen and matcher.is_file() and seen != weights_module.sha256(matcher):
        raise InputError(
            f"{run}: the matcher was trained on after its confidence stage; delete {stage} and run "
            f"'tiepoint train confidence {run}' again"
        )
    if not calibrated or not last.is_file():
        return there[0]
    if weights_module.load(last)[1].get("calibration", {}).get("weights") != weights_module.sha256(there[0]):
        raise InputError(f"{last} is of weights that were trained on since; run 'tiepoint calibrate {run}' again")
    return last


def _train(
    task: Task,
    objective: Objective,
    settings: FitConfig,
    folder: Path,
    origin: dict[str, Any],
    report: Callable[[dict[str, Any]], None],
    stop: Callable[[], bool],
) -> dict[str, Any]:
    """Train with evaluation on held-out pairs, pictures and a baseline."""
    for _ in task.make_ahead():
        pass
    held_out: list[Batch] = []
    baseline: dict[str, dict[str, float]] = {}
    board: _Board | None = None
    if task.rank == 0:
        held_out = task.held_out()
        baseline = _baseline(held_out, task.features, folder)
        board = _Board.open(folder, task)

    def look(i: int, output: Output) -> None:
        if i == 0 and board:
            board.predictions = predicted_partners(output.log_p, output.threshold).cpu()

    def evaluate(trained: Objective) -> dict[str, float]:
        return judge(trained, held_out, (), task.device, look)

    def note(row: dict[str, Any]) -> None:
        if board:
            board.add(row)
        report(row)

    row = carry_out(objective, task.batches, settings, folder, origin, task.device, evaluate, note, stop)
    return {**row, "baseline": baseline}


def nearest_statistics(batches: list[Batch], features: str, ratio: float) -> MatchStatistics:
    """Judge mutual nearest neighbours with ratio test as `match_statistics` judges a matcher."""
    matcher = NearestNeighbour(features, ratio=ratio)
    total = MatchStatistics(0, 0, 0)
    for batch in batches:
        certain = torch.full((len(batch), batch.keypoints.shape[1], batch.keypoints.shape[1]), -math.inf)
        for pair, found in enumerate(matcher.match_many(batch.features(features))):
            certain[pair, found.indices[:, 0], found.indices[:, 1]] = 0.0
        total = total + match_statistics(certain, batch.labels)
    return total


def _baseline(batches: list[Batch], features: str, folder: Path) -> dict[str, dict[str, float]]:
    """Return precision and recall of nearest neighbours at each of `RATIOS`; computed once for a run."""
    path = folder / "baseline.json"
    if not path.exists():
        found = {str(ratio): nearest_statistics(batches, features, ratio) for ratio in RATIOS}
        told = {ratio: {"precision": s.precision, "recall": s.recall} for ratio, s in found.items()}
        with atomic(path) as unfinished:
            unfinished.write_text(json.dumps(told, indent=1))
    return read_json(path)


class _Board:
    """Scalars and pictures of matches for TensorBoard."""

    def __init__(self, writer: Any, task: Task) -> None:
        self.writer, self.task = writer, task
        self.predictions: torch.Tensor | None = None
        self._images: list[torch.Tensor] = []

    @classmethod
    def open(cls, folder: Path, task: Task) -> _Board | None:
        """Return a board, or None where TensorBoard is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        return cls(SummaryWriter(str(folder / "tensorboard")), task)

    def add(self, row: dict[str, Any]) -> None:
        """Write one row of metrics and, after an evaluation, how three held-out pairs are matched."""
        step = row["step"]
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, step)
        if self.predictions is not None:
            if not self._images:
                self._images = self.task.held_out_maker.pictures(0)
            batch = self.task.held_out_maker(0)
            for pair in range(3):
                drawn = draw_pair(self._images, batch, pair, self.predictions[pair])
                self.writer.add_image(f"held-out/{pair}", drawn, step, dataformats="HWC")
            self.predictions = None
        self.writer.flush()


def rehearse(task: Task, folder: str | os.PathLike[str], steps: int = 8, save_memory: bool = False) -> dict[str, Any]:
    """Draw a few pairs, take a few steps, and say what the whole training would need. No run is begun.

    Parameters
    ----------
    task : Task
        From `prepare`.
    folder : path
        Pictures of one chunk's pairs go to its sub-folder ``dry-run``.
    steps : int
        Steps to time; the first quarter is not counted.
    save_memory : bool
        See `train_matcher`.

    Returns
    -------
    dict
        ``pictures`` (paths), ``seconds_per_step``, ``seconds_per_pair_made`` (by one process), ``workers``,
        ``memory_mb`` (peak, of the GPU or of this process), ``minutes`` (expected), ``parameters``.
    """
    preset, maker = task.preset, copy.copy(task.maker)
    maker.folder = None  # nothing is kept but what a teacher says
    for _ in task.real.make() if task.real else ():
        pass
    task = replace(task, maker=maker)
    began = time.monotonic()
    chunks = [maker(chunk) for chunk in range(max(1, preset.batch // task.world // CHUNK))]
    making = (time.monotonic() - began) / (CHUNK * len(chunks))
    batch, images = chunks[0], maker.pictures(0)
    names = [f"pair-{pair}{'' if batch.related[pair] else '-unrelated'}.png" for pair in range(CHUNK)]
    drawn = [draw_pair(images, batch, pair) for pair in range(CHUNK)]
    paths = save_pictures(dict(zip(names, drawn, strict=True)), folder) if task.rank == 0 else []
    made = CHUNK * len(task.steps.needed(preset.fit.steps)) if preset.distinct else preset.fit.steps * preset.batch
    needs = time_steps(
        task.new_objective(save_memory),
        Batch.cat(chunks),
        preset.fit,
        steps,
        task.device,
        made * making,
        task.workers,
        ahead=preset.distinct is not None,
    )
    return {"pictures": paths, "seconds_per_pair_made": making, **needs}
