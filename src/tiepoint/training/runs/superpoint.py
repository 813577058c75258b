"""A run that trains SuperPoint by its published recipe: photographs in, weights under a free licence out.

Its folder holds a run of its own for the first stage, ``shapes``; then ``corners.safetensors``, the corners of all
photographs; then what the last stage writes, as any run does (`tiepoint.training.runs.task`). Starting it again in its
folder goes on where it stopped. See `tiepoint.training.objectives.superpoint`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ... import weights
from ...features.superpoint import SuperPointNet
from ..data.photographs import PhotoCache
from ..loop import FitConfig
from ..objectives.base import Objective
from ..objectives.superpoint import SuperPointObjective
from ..pairs.corners import CornerPairsMaker, Corners, ShapesMaker, find_corners
from ..pairs.steps import chunks_of
from ..pairs.views import CHUNK
from ..stream import stream
from .presets import SuperPointPreset
from .task import carry_out, claim, judge, open_photographs, origin_of


@dataclass(frozen=True, eq=False)
class SuperPointTask:
    """A training of SuperPoint, checked and ready to start.

    Attributes
    ----------
    preset : SuperPointPreset
    seed : int
        Of all random choices.
    photos : PhotoCache
    device : torch.device
    workers : int
        Processes that make pictures.
    rank, world : int
        Number of this process and of all processes.
    """

    preset: SuperPointPreset
    seed: int
    photos: PhotoCache
    device: torch.device
    workers: int
    rank: int
    world: int

    @property
    def config(self) -> dict[str, Any]:
        """What must be equal for a run to be resumed, as JSON has it."""
        told = {"kind": "superpoint-open", "seed": self.seed, "photographs": self.photos.digest, **asdict(self.preset)}
        return json.loads(json.dumps(told))


def prepare(
    images: str | os.PathLike[str] | None,
    folder: str | os.PathLike[str],
    preset: SuperPointPreset,
    seed: int = 1,
    cache: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    device: torch.device | str | None = None,
) -> SuperPointTask:
    """Check everything that can be wrong with a training before its first step.

    Parameters and errors are those of `tiepoint.training.runs.features.prepare`.
    """
    side = max(640, 2 * max(preset.size))
    photos, chosen, rank, world = open_photographs(images, Path(folder), cache, side, preset.batch, CHUNK, device)
    if workers is None:
        workers = max(0, (os.cpu_count() or 2) // world - 1)
    return SuperPointTask(preset, seed, photos, chosen, workers, rank, world)


def train_superpoint(
    task: SuperPointTask,
    folder: str | os.PathLike[str],
    report: Callable[[str, dict[str, Any]], None] = lambda stage, row: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train SuperPoint, or go on where this folder's training stopped.

    Parameters
    ----------
    task : SuperPointTask
        From `prepare`.
    folder : path
        The run's folder.
    report : callable
        Called with the stage (``"shapes"``, ``"corners"`` or ``"pairs"``) and a row of metrics; of corners these are
        ``done`` and ``total``, photographs.
    stop : callable
        Asked after every step; True saves a checkpoint and raises KeyboardInterrupt.

    Returns
    -------
    dict
        The last row of metrics. ``held_out_found`` is the share of corners whose cell names their very pixel.

    Raises
    ------
    InputError
        The folder holds a run with another configuration; the message names what differs.
    TrainingError
        The loss is not a number.
    """
    folder, preset = Path(folder), task.preset
    claim(folder, task.config, {"cache": str(task.photos.path.resolve())}, task.rank, task.world)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        net = SuperPointNet(batch_norm=True)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    first = folder / "shapes"
    makers = [ShapesMaker(preset.size, task.seed, held_out) for held_out in (False, True)]
    _stage(task, net, preset.shapes, first, makers, lambda row: report("shapes", row), stop)
    net = weights.load_into(net, weights.load(first / "weights.safetensors")[0], first)

    def note(done: int, total: int) -> None:
        report("corners", {"done": done, "total": total})
        if stop():
            raise KeyboardInterrupt

    path = folder / "corners.safetensors"
    if task.rank > 0:
        dist.barrier()  # the first process finds them, the others read them
    corners = find_corners(net, task.photos, preset.size, preset.corners, path, task.device, note)
    if task.rank == 0 and task.world > 1:
        dist.barrier()
    net.train().requires_grad_(True)
    pairs = [
        CornerPairsMaker(task.photos, corners, preset.size, preset.photometric, task.seed, held_out)
        for held_out in (False, True)
    ]
    return _stage(task, net, preset.fit, folder, pairs, lambda row: report("pairs", row), stop)


def _stage(
    task: SuperPointTask,
    net: SuperPointNet,
    settings: FitConfig,
    folder: Path,
    makers: list[Any],
    report: Callable[[dict[str, Any]], None],
    stop: Callable[[], bool],
) -> dict[str, Any]:
    """Train on what one maker makes, and evaluate on what the other does."""
    batch, held_out = task.preset.batch, makers[1]

    def batches(start: int) -> Iterator[Corners]:
        make = partial(makers[0], chunks=chunks_of(batch, CHUNK, task.rank, task.world))
        return stream(make, range(start, settings.steps), task.workers)

    def evaluate(trained: Objective) -> dict[str, float]:
        batches = [held_out(step, range(batch // CHUNK)) for step in range(task.preset.held_out)]
        return judge(trained, batches, ("found",), task.device)

    origin = {"training": origin_of(task.config)}
    return carry_out(SuperPointObjective(net), batches, settings, folder, origin, task.device, evaluate, report, stop)
