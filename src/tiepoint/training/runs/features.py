"""A run that trains an extractor: photographs in, a folder with Cairn's weights out.

Its folder holds what that of any run does (`tiepoint.training.runs.task`). One that begins with weights also holds
``before.json``, what these give on the held-out pairs; one that trains a matcher along holds ``cairn.safetensors`` and
``lightglue.safetensors`` in the end.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ... import weights
from ...errors import ArgumentError
from ...features.cairn import CairnConfig, CairnNet
from ...io.files import atomic
from ..data.teacher import Answers, TeacherConfig
from ..objectives.base import Objective
from ..objectives.cairn import CairnObjective
from ..objectives.distillation import DistillationObjective, Student, TaughtViewMaker
from ..objectives.joint import EndToEndNet, EndToEndObjective, open_matcher, split
from ..pairs.steps import chunks_of
from ..pairs.views import CHUNK, ViewMaker
from ..stream import stream
from .presets import FeaturePreset
from .task import carry_out, claim, judge, open_photographs, origin_of, save_pictures, time_steps

TOGETHER = 4e-4  # learning rate end to end: that of a matcher, which at an extractor's forgets what it has learnt


@dataclass(frozen=True, eq=False)
class FeatureTask:
    """A training of an extractor, checked and ready to start.

    Attributes
    ----------
    preset : FeaturePreset
    seed : int
    maker, held_out_maker : ViewMaker
        Of training pairs, and of evaluation pairs from other photographs.
    device : torch.device
    workers : int
        Worker processes that make pairs.
    rank, world : int
        Number of this process and of all processes.
    start : path or str, optional
        Cairn's weights to train on.
    matcher : path or str, optional
        Weights of a LightGlue on Cairn that is trained with it, see `tiepoint.training.objectives.joint`.
    answers : Answers, optional
        Of a teacher that the descriptor learns from, see `tiepoint.training.objectives.distillation`.
    """

    preset: FeaturePreset
    seed: int
    maker: ViewMaker | TaughtViewMaker
    held_out_maker: ViewMaker | TaughtViewMaker
    device: torch.device
    workers: int
    rank: int
    world: int
    start: str | os.PathLike[str] | None = None
    matcher: str | os.PathLike[str] | None = None
    answers: Answers | None = None

    @property
    def config(self) -> dict[str, Any]:
        """What must be equal for a run to be resumed, as JSON has it."""
        photographs = self.maker.photos.digest
        told: dict[str, Any] = {"kind": "cairn", "seed": self.seed, "photographs": photographs, **asdict(self.preset)}
        if self.start is not None:
            told["start"] = weights.sha256(self.start)
        if self.matcher is not None:
            told |= {"kind": "end-to-end", "matcher": weights.load(self.matcher)[1].get("training", {})}
        if self.answers is not None:
            told |= {"kind": "distillation", "teacher": self.answers.identity}
        return json.loads(json.dumps(told))

    def new_objective(self) -> CairnObjective | DistillationObjective:
        """Return the network as training begins with it, and what it minimises."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net = CairnNet(self.preset.model)
            student = None if self.answers is None else Student(net, self.answers.dim)
        if self.start is not None:
            state, told = weights.load(self.start)
            if not CairnConfig.from_dict(told).harmonics and self.preset.model.harmonics:
                # its detector is used, and a new describer begins
                state = {k: v for k, v in state.items() if k.startswith("detector.")}
                weights.load_into(net.detector, {k.removeprefix("detector."): v for k, v in state.items()}, self.start)
            else:
                weights.load_into(net, state, self.start)
            net.train().requires_grad_(True)
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if student is not None:
            return DistillationObjective(student)
        if self.matcher is None:
            return CairnObjective(net, self.preset.keypoints)
        matcher = open_matcher(self.matcher, self.preset.model.dim)
        return EndToEndObjective(EndToEndNet(net, matcher), self.preset.keypoints)

    def batches(self, start: int) -> Any:
        """Yield pairs from step ``start`` on."""
        preset = self.preset
        make = partial(self.maker, chunks=chunks_of(preset.batch, CHUNK, self.rank, self.world))
        return stream(make, range(start, preset.fit.steps), self.workers)

    def make_ahead(self) -> Iterator[tuple[int, int]]:
        """Ask the teacher about photographs that it has not answered about; yield how many are done, and of how many.

        All cores work on it, since nothing is trained meanwhile.
        """
        if self.answers is not None and self.rank == 0 and self.answers.missing:
            yield from self.answers.make(os.cpu_count() or 1)
        if self.world > 1:
            dist.barrier()

    def held_out(self) -> list[Any]:
        """Return the evaluation pairs."""
        chunks = range(max(1, self.preset.batch // CHUNK))
        return [self.held_out_maker(step, chunks) for step in range(self.preset.held_out)]


def prepare(
    images: str | os.PathLike[str] | None,
    folder: str | os.PathLike[str],
    preset: FeaturePreset,
    seed: int = 1,
    cache: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    device: torch.device | str | None = None,
    start: str | os.PathLike[str] | None = None,
    matcher: str | os.PathLike[str] | None = None,
    teacher: str | None = None,
    answers: str | os.PathLike[str] | None = None,
) -> FeatureTask:
    """Check everything that can be wrong with a training before its first step.

    Parameters
    ----------
    images : path or None
        Folder of photographs, searched with its sub-folders. None uses those in ``cache`` as they are.
    folder : path
        The run's folder.
    preset : FeaturePreset
        What is trained, on which pairs, how long.
    seed : int
        Of all random choices.
    cache : path, optional
        Where decoded photographs are kept, for several runs; by default in the run's folder.
    workers : int, optional
        Processes that make pairs. By default none where they are made on a GPU, else one for each core but one.
    device : torch.device or str, optional
        Where to train; by default the best there is.
    start : path or str, optional
        Cairn's weights to train on, a file or a name of ``tiepoint weights list``; its size is taken from them.
    matcher : path or str, optional
        Weights of a LightGlue on these features, to train both together.
    teacher : str, optional
        An extractor whose descriptors Cairn's descriptor learns to resemble, see
        `tiepoint.training.objectives.distillation`. Its detector stays that of ``start``, by default the bundled one.
    answers : path, optional
        Folder of the teacher's answers, for several runs; by default in the run's folder.

    Raises
    ------
    InputError
        No folder, or too few or unreadable photographs.
    ArgumentError
        An option that makes no sense.
    WeightsError
        Weights that cannot be used.
    """
    if teacher is None and answers is not None:
        raise ArgumentError("there is nobody to answer: name the teacher")
    if teacher is not None and matcher is not None:
        raise ArgumentError("a teacher's descriptors are learnt without a matcher; train with the matcher afterwards")
    if teacher is not None and start is None:
        start = "cairn"
    if start is not None:
        there = CairnConfig.from_dict(weights.load(start)[1])
        if there.harmonics or teacher is None:
            preset = replace(preset, model=there)
        elif (there.levels, there.width) != (preset.model.levels, preset.model.width):
            raise ArgumentError(f"the detector of {start} has another size than that of the preset")
    elif preset.fit.average:
        raise ArgumentError("there is nothing to average with: give the weights that training starts from")
    elif matcher is not None:
        raise ArgumentError("which features was this matcher trained on? Give their weights as the start")
    if matcher is not None:
        preset = replace(preset, fit=replace(preset.fit, learning_rate=TOGETHER))
    folder = Path(folder)
    # The closer of two views shows a quarter of the photograph or less.
    side = max(640, 2 * max(preset.views.size))
    photos, chosen, rank, world = open_photographs(images, folder, cache, side, preset.batch, CHUNK, device)
    if chosen.type == "cpu":  # there bfloat16 is slower, for layers as small as these
        preset = replace(preset, fit=replace(preset.fit, bfloat16=False))
    if workers is None:
        # Views that a teacher has answered about are always made on the CPU.
        here = chosen.type != "cpu" and teacher is None
        workers = 0 if here else max(0, (os.cpu_count() or 2) // world - 1)
    asked = None
    if teacher is None:
        makers: list[Any] = [ViewMaker(photos, preset.views, seed, held_out, chosen) for held_out in (False, True)]
    else:
        source = str(start) if start in weights.entries() else str(Path(str(start)).resolve())
        config = TeacherConfig(teacher, "cairn" if source == "cairn" else f"cairn@{source}")
        place = Path(answers) if answers else folder / "answers"
        if rank == 0:
            Answers(photos, config, place)  # makes the folder, which all processes then open
        if world > 1:
            dist.barrier()
        asked = Answers(photos, config, place)
        size = preset.keypoints, preset.model.levels
        makers = [TaughtViewMaker(asked, preset.views, *size, seed, held_out) for held_out in (False, True)]
    task = FeatureTask(preset, seed, makers[0], makers[1], chosen, workers, rank, world, start, matcher, asked)
    task.new_objective()  # weights that do not fit are to be known now
    return task


def train_features(
    task: FeatureTask,
    folder: str | os.PathLike[str],
    report: Callable[[dict[str, Any]], None] = lambda row: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train an extractor, or go on where this folder's training stopped.

    Parameters
    ----------
    task : FeatureTask
        From `prepare`.
    folder : path
        The run's folder.
    report : callable
        Called with every row of metrics.
    stop : callable
        Asked after every step; True saves a checkpoint and raises KeyboardInterrupt.

    Returns
    -------
    dict
        The last row of metrics. ``held_out_repeated`` is the share of keypoints, of those that the other picture shows,
        that it has too (within 3 pixels and at a like size); ``held_out_matched`` how right their matches are, see
        `tiepoint.features.cairn.Cairn`: those of nearest neighbours, or of the matcher that is trained along.

    Raises
    ------
    InputError
        The folder holds a run with another configuration; the message names what differs.
    TrainingError
        The loss is not a number.
    """
    folder = Path(folder)
    paths: dict[str, str | None] = {"cache": str(task.maker.photos.path.resolve())}
    claim(folder, task.config, paths, task.rank, task.world)
    for _ in task.make_ahead():
        pass
    held_out = task.held_out() if task.rank == 0 else []

    def evaluate(trained: Objective) -> dict[str, float]:
        parts = ("repeated", "matched") if task.answers is None else ("explained", "matched")
        return judge(trained, held_out, parts, task.device)

    objective = task.new_objective().to(task.device)
    before = folder / "before.json"
    if task.start is not None and task.answers is None and task.rank == 0 and not before.exists():
        objective.eval()
        with torch.no_grad(), atomic(before) as unfinished:
            unfinished.write_text(json.dumps(evaluate(objective), indent=1))
    origin = {"training": origin_of(task.config)}
    row = carry_out(objective, task.batches, task.preset.fit, folder, origin, task.device, evaluate, report, stop)
    if (task.matcher is not None or task.answers is not None) and task.rank == 0:
        split(folder)
    return row


def rehearse(task: FeatureTask, folder: str | os.PathLike[str], steps: int = 8) -> dict[str, Any]:
    """Write a few pairs as pictures, take a few steps, and say what the whole training would need. No run is begun.

    Parameters
    ----------
    task : FeatureTask
        From `prepare`.
    folder : path
        Pictures of one batch's pairs go to its sub-folder ``dry-run``.
    steps : int
        Steps to time; the first quarter is not counted.

    Returns
    -------
    dict
        As `tiepoint.training.runs.matcher.rehearse` returns it; with a teacher ``seconds_per_answer`` and ``answers``,
        the number of photographs that it is still to be asked about.
    """
    preset = task.preset
    chunks = range(max(1, preset.batch // CHUNK // task.world))
    told: dict[str, Any] = {}
    if task.answers is not None and isinstance(task.maker, TaughtViewMaker):
        began, before = time.monotonic(), len(task.answers.missing)
        asked = len(list(task.answers.make(0, task.maker.rows(0, chunks))))
        each = (time.monotonic() - began) / max(1, asked)
        told = {"seconds_per_answer": each, "answers": before - asked}
    began = time.monotonic()
    views = task.maker(0, chunks)
    making = (time.monotonic() - began) / len(views)
    drawn = views.images.unflatten(0, (-1, 2)).permute(0, 3, 1, 4, 2).flatten(2, 3).cpu().numpy()
    paths = save_pictures({f"pair-{i}.png": both for i, both in enumerate(drawn)}, folder) if task.rank == 0 else []
    made = preset.fit.steps * preset.batch
    needs = time_steps(task.new_objective(), views, preset.fit, steps, task.device, made * making, task.workers)
    if told:
        needs["minutes"] += told["answers"] * told["seconds_per_answer"] / 60 / (os.cpu_count() or 1)
    return {"pictures": paths, "seconds_per_pair_made": making, **told, **needs}
