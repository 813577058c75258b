"""Trains Cairn: by itself, end to end with a LightGlue, or taught by another extractor.

The run's folder holds what that of any run does (`tiepoint.training.runs.task`). One that begins with weights also
holds ``before.json``, what these give on the held-out pairs; one that trains a matcher along holds
``cairn.safetensors`` and ``lightglue.safetensors`` in the end, one with a teacher the first of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ... import weights
from ...errors import ArgumentError
from ...features.cairn import CairnConfig, CairnNet
from ..data.photographs import PhotoCache
from ..data.teacher import Answers, TeacherConfig
from ..loop import Processes
from ..objectives.base import Objective
from ..objectives.cairn import CairnObjective
from ..objectives.distillation import DistillationObjective, Student
from ..objectives.joint import EndToEndNet, EndToEndObjective, open_matcher, split
from ..pairs.steps import chunks_of
from ..pairs.taught_views import TaughtViewMaker
from ..pairs.views import CHUNK, ViewMaker
from .presets import FEATURE_PRESETS, FeaturePreset, named
from .settings import FitSettings
from .task import Report, Stop, Task, Trial, as_json, evaluate, never, silent

END_TO_END_RATE = 4e-4  # learning rate; at that of an extractor a matcher forgets what it has learnt


@dataclass(frozen=True, kw_only=True)
class FeatureSettings(FitSettings):
    """What the training of an extractor is asked for.

    Attributes
    ----------
    preset : str or FeaturePreset
        Pairs and length of the training; the options below change it.
    matcher : path or str, optional
        Weights of a LightGlue on the features of ``start``: both are trained together, see
        `tiepoint.training.objectives.joint`.
    teacher : str, optional
        An extractor whose descriptors Cairn's learn to resemble, see `tiepoint.training.objectives.distillation`. The
        detector stays that of ``start``, by default the bundled one.
    answers : path, optional
        Folder of the teacher's answers, which several runs can use; by default in the run's folder.

    Attributes of every run are those of `RunSettings` and `FitSettings`. Cairn's size is that of ``start``.
    """

    preset: str | FeaturePreset = "tiny"
    matcher: str | os.PathLike[str] | None = None
    teacher: str | None = None
    answers: str | os.PathLike[str] | None = None

    def chosen(self) -> FeaturePreset:
        """Return the preset with what the options change.

        Raises
        ------
        ArgumentError
            No such preset, or options that make no sense together.
        WeightsError
            The weights to start from cannot be read.
        """
        if self.teacher is None and self.answers is not None:
            raise ArgumentError("answers are those of a teacher: name it")
        if self.teacher is not None and self.matcher is not None:
            raise ArgumentError(
                "a teacher's descriptors are learnt without a matcher; train with the matcher afterwards"
            )
        preset = named(FEATURE_PRESETS, self.preset)
        fit = self.schedule(preset.fit, self.first is not None)
        views = preset.views if self.light is None else replace(preset.views, photometric=self.light)
        preset = replace(preset, views=views, fit=fit, batch=self.batch or preset.batch)
        if self.first is not None:
            there = CairnConfig.from_dict(weights.load(self.first)[1])
            if there.harmonics or self.teacher is None:
                preset = replace(preset, model=there)
            elif (there.levels, there.width) != (preset.model.levels, preset.model.width):
                raise ArgumentError(f"the detector of {self.first} has another size than that of the preset")
        elif self.matcher is not None:
            raise ArgumentError("the matcher needs the features it was trained on: give their weights as the start")
        return preset if self.matcher is None else replace(preset, fit=replace(fit, learning_rate=END_TO_END_RATE))

    @property
    def first(self) -> str | os.PathLike[str] | None:
        """The weights that training starts from, if any."""
        return "cairn" if self.start is None and self.teacher is not None else self.start


def train(settings: FeatureSettings, report: Report = silent, stop: Stop = never) -> dict[str, Any]:
    """Train an extractor, or resume where this folder's training stopped.

    Parameters
    ----------
    settings : FeatureSettings
        What is asked for.
    report, stop : callable
        See `tiepoint.training.runs.task.Report` and `tiepoint.training.runs.task.Stop`.

    Returns
    -------
    dict
        The last row of metrics. ``held_out_repeated`` is the fraction of keypoints, of those that the other picture
        shows, that it has too (within 3 pixels and at a like size); ``held_out_matched`` how right their matches are,
        see `tiepoint.features.cairn.Cairn`: those of nearest neighbours, or of the matcher that is trained along.

    Raises
    ------
    InputError
        No folder, too few or unreadable photographs, or the run's folder holds a run with another configuration.
    ArgumentError
        An option that makes no sense.
    WeightsError
        Weights that cannot be used.
    TrainingError
        The loss is not a number.

    Examples
    --------
    >>> from tiepoint.training.runs import features
    >>> settings = features.FeatureSettings(images="photographs", output="runs/mine", teacher="aliked-n16")
    >>> features.train(settings)["held_out_matched"]  # doctest: +SKIP
    0.61
    """
    task = prepare(settings)
    row = task.train(report, stop)
    if (settings.matcher is not None or settings.teacher is not None) and task.processes.rank == 0:
        split(task.folder)
    return row


def dry_run(settings: FeatureSettings) -> dict[str, Any]:
    """Draw a few pairs, take a few steps, and say what `train` would need; see `Task.dry_run`."""
    return prepare(settings).dry_run()


def prepare(settings: FeatureSettings) -> Task:
    """Check everything that can be wrong with a training before its first step; errors are those of `train`."""
    preset, folder, seed = settings.chosen(), settings.folder, settings.seed
    # The closer of two views shows a quarter of the photograph or less.
    side = max(640, 2 * max(preset.views.size))
    photos, processes = settings.open_photographs(side, preset.batch, CHUNK)
    device, world = processes.device, processes.world
    if device.type == "cpu":  # there bfloat16 is slower, for layers as small as these
        preset = replace(preset, fit=replace(preset.fit, bfloat16=False))
    workers = settings.workers
    if workers is None:
        # Views that a teacher has answered about are always made on the CPU.
        here = device.type != "cpu" and settings.teacher is None
        workers = 0 if here else max(0, (os.cpu_count() or 2) // world - 1)
    answers = None if settings.teacher is None else _open_answers(settings, photos, processes)
    maker, held_out_maker = (
        ViewMaker(photos, preset.views, seed, held_out, device)
        if answers is None
        else TaughtViewMaker(answers, preset.views, preset.keypoints, preset.model.levels, seed, held_out)
        for held_out in (False, True)
    )

    def ahead() -> Iterator[tuple[int, int]]:
        """All cores ask the teacher, since nothing is trained meanwhile."""
        if answers is not None and processes.rank == 0:
            yield from answers.make(os.cpu_count() or 1)

    new_objective = partial(_new_objective, settings, preset, None if answers is None else answers.dim)
    new_objective()  # weights that do not fit are to be known now
    parts = ("repeated" if answers is None else "explained", "matched")

    def before(held_out: Sequence[Any]) -> dict[str, float]:
        objective = new_objective().to(device).eval()
        with torch.no_grad():
            return evaluate(objective, held_out, parts, device)

    config = {"kind": "cairn", "seed": seed, "photographs": photos.digest, **asdict(preset)}
    if settings.first is not None:
        config["start"] = weights.sha256(settings.first)
    if settings.matcher is not None:
        config |= {"kind": "end-to-end", "matcher": weights.load(settings.matcher)[1].get("training", {})}
    if answers is not None:
        config |= {"kind": "distillation", "teacher": answers.identity}
    chunks = range(max(1, preset.batch // CHUNK))
    return Task(
        name="cairn" if settings.matcher is None else "cairn and lightglue",
        folder=folder,
        config=as_json(config),
        paths={"cache": str(photos.path.resolve())},
        processes=processes,
        workers=workers,
        fit=preset.fit,
        new_objective=new_objective,
        make=partial(maker, chunks=chunks_of(preset.batch, CHUNK, processes.rank, world)),
        held_out=lambda: [held_out_maker(step, chunks) for step in range(preset.held_out)],
        parts=parts,
        ahead=ahead,
        making="the teacher's answers",
        reference=before if settings.start is not None and answers is None else None,
        trial=lambda: _trial(preset, maker, processes),
    )


def _open_answers(settings: FeatureSettings, photos: PhotoCache, processes: Processes) -> Answers:
    """Open the folder of the teacher's answers, which the first process makes."""
    assert settings.teacher is not None
    first = str(settings.first)
    student = "cairn" if first == "cairn" else f"cairn@{first if first in weights.entries() else Path(first).resolve()}"
    config = TeacherConfig(settings.teacher, student)
    place = Path(settings.answers) if settings.answers else settings.folder / "answers"
    if processes.rank == 0:
        Answers(photos, config, place)
    processes.barrier()
    return Answers(photos, config, place)


def _new_objective(settings: FeatureSettings, preset: FeaturePreset, answer_dim: int | None) -> Objective:
    """Return the network as training begins with it, and what it minimises."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = CairnNet(preset.model)
        student = None if answer_dim is None else Student(net, answer_dim)
    if settings.first is not None:
        state, metadata = weights.load(settings.first)
        if not CairnConfig.from_dict(metadata).harmonics and preset.model.harmonics:
            # its detector is used, and a new descriptor head begins
            own = {k.removeprefix("detector."): v for k, v in state.items() if k.startswith("detector.")}
            weights.load_into(net.detector, own, settings.first)
        else:
            weights.load_into(net, state, settings.first)
        net.train().requires_grad_(True)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if student is not None:
        return DistillationObjective(student)
    if settings.matcher is None:
        return CairnObjective(net, preset.keypoints)
    matcher = open_matcher(settings.matcher, preset.model.dim)
    return EndToEndObjective(EndToEndNet(net, matcher), preset.keypoints)


def _trial(preset: FeaturePreset, maker: ViewMaker | TaughtViewMaker, processes: Processes) -> Trial:
    chunks = range(max(1, preset.batch // CHUNK // processes.world))
    extra: dict[str, Any] = {}
    extra_seconds = 0.0
    if isinstance(maker, TaughtViewMaker):
        began, before = time.monotonic(), len(maker.answers.missing)
        asked = len(list(maker.answers.make(0, maker.rows(0, chunks))))
        each = (time.monotonic() - began) / max(1, asked)
        extra = {"seconds_per_answer": each, "answers": before - asked}
        extra_seconds = (before - asked) * each / (os.cpu_count() or 1)
    began = time.monotonic()
    views = maker(0, chunks)
    seconds = (time.monotonic() - began) / len(views)
    drawn = views.images.unflatten(0, (-1, 2)).permute(0, 3, 1, 4, 2).flatten(2, 3).cpu().numpy()
    pictures = {f"pair-{i}.png": both for i, both in enumerate(drawn)}
    return Trial(views, pictures, seconds, preset.fit.steps * preset.batch, extra, extra_seconds)
