"""Trains SuperPoint by its published recipe: weights under a free licence.

The run's folder holds a run of its own for the first stage, ``shapes``; then ``corners.safetensors``, the corners of
all photographs; then what the last stage writes, as any run does (`tiepoint.training.runs.task`). Run the same command
to resume. See `tiepoint.training.objectives.superpoint`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from ... import weights
from ...features.superpoint import SuperPointNet
from ..objectives.superpoint import SuperPointObjective
from ..pairs.corners import CornerPairsMaker, ShapesMaker, find_corners
from ..pairs.steps import chunks_of
from ..pairs.views import CHUNK
from .presets import SUPERPOINT_PRESETS, SuperPointPreset, named
from .settings import RunSettings
from .task import Report, Stop, Task, as_json, claim, never, silent


@dataclass(frozen=True, kw_only=True)
class SuperPointSettings(RunSettings):
    """What the training of a SuperPoint is asked for.

    Attributes
    ----------
    preset : str or SuperPointPreset
        Length of the training.

    Attributes of every run are those of `RunSettings`.
    """

    preset: str | SuperPointPreset = "tiny"


def train(settings: SuperPointSettings, report: Report = silent, stop: Stop = never) -> dict[str, Any]:
    """Train SuperPoint, or resume where this folder's training stopped.

    Parameters
    ----------
    settings : SuperPointSettings
        What is asked for.
    report, stop : callable
        See `tiepoint.training.runs.task.Report` and `tiepoint.training.runs.task.Stop`. What is done is ``"shapes"``,
        ``"corners"`` or ``"superpoint"``.

    Returns
    -------
    dict
        The last row of metrics. ``held_out_found`` is the fraction of corners whose cell names their very pixel.

    Raises
    ------
    InputError
        No folder, too few or unreadable photographs, or the run's folder holds a run with another configuration.
    TrainingError
        The loss is not a number.
    """
    preset, folder, seed = named(SUPERPOINT_PRESETS, settings.preset), settings.folder, settings.seed
    size, batch = preset.size, preset.batch
    photos, processes = settings.open_photographs(max(640, 2 * max(size)), batch, CHUNK)
    workers = settings.workers
    if workers is None:
        workers = max(0, (os.cpu_count() or 2) // processes.world - 1)
    config = as_json({"kind": "superpoint-open", "seed": seed, "photographs": photos.digest, **asdict(preset)})
    paths: dict[str, str | None] = {"cache": str(photos.path.resolve())}
    claim(folder, config, paths, processes)  # before the first stage, whose folder is another
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = SuperPointNet(batch_norm=True)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def stage(name: str, made: Callable[[bool], Any]) -> Task:
        maker, held_out_maker = made(False), made(True)
        return Task(
            name=name,
            folder=folder / "shapes" if name == "shapes" else folder,
            config=config,
            paths=paths,
            processes=processes,
            workers=workers,
            fit=preset.shapes if name == "shapes" else preset.fit,
            new_objective=lambda: SuperPointObjective(net),
            make=partial(maker, chunks=chunks_of(batch, CHUNK, processes.rank, processes.world)),
            held_out=lambda: [held_out_maker(step, range(batch // CHUNK)) for step in range(preset.held_out)],
            parts=("found",),
        )

    first = stage("shapes", lambda held_out: ShapesMaker(size, seed, held_out))
    first.train(report, stop)
    net = weights.load_into(net, weights.load(first.folder / "weights.safetensors")[0], first.folder)

    def note(done: int, total: int) -> None:
        report("corners", {"done": done, "total": total})
        if stop():
            raise KeyboardInterrupt

    if processes.rank > 0:
        processes.barrier()  # the first process finds them, the others read them
    corners = find_corners(net, photos, size, preset.corners, folder / "corners.safetensors", processes.device, note)
    if processes.rank == 0:
        processes.barrier()
    net.train().requires_grad_(True)
    light = preset.photometric
    last = stage("superpoint", lambda held_out: CornerPairsMaker(photos, corners, size, light, seed, held_out))
    return last.train(report, stop)
