"""A run that trains an extractor: photographs in, a folder with Cairn's weights out.

Its folder holds ``config.json``, ``metrics.jsonl``, ``checkpoint.pt`` and ``weights.safetensors``, as that of a matcher
does (`tiepoint.training.run`). Starting a run again in its folder resumes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..export import atomic
from ..features.cairn import CairnNet
from .features import CairnObjective
from .losses import MatchStatistics, match_statistics
from .objectives import Objective
from .presets import FeaturePreset
from .run import carry_out, claim, open_photographs, time_steps
from .views import CHUNK, ViewMaker, Views, stream


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
    """

    preset: FeaturePreset
    seed: int
    maker: ViewMaker
    held_out_maker: ViewMaker
    device: torch.device
    workers: int
    rank: int
    world: int

    @property
    def config(self) -> dict[str, Any]:
        """What must be equal for a run to be resumed, as JSON has it."""
        names = hashlib.sha256("\n".join(self.maker.photos.names).encode()).hexdigest()
        return json.loads(json.dumps({"kind": "cairn", "seed": self.seed, "photographs": names, **asdict(self.preset)}))

    def new_net(self) -> CairnNet:
        """Return the untrained network."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net = CairnNet(self.preset.model)
        return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def batches(self, start: int) -> Any:
        """Yield pairs from step ``start`` on."""
        preset = self.preset
        return stream(self.maker, preset.batch, start, preset.fit.steps, self.workers, self.rank, self.world)

    def held_out(self) -> list[Views]:
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

    Raises
    ------
    InputError
        No folder, or too few or unreadable photographs.
    ArgumentError
        An option that makes no sense.
    """
    folder = Path(folder)
    # The closer of two views shows a quarter of the photograph or less.
    side = max(640, 2 * max(preset.views.size))
    photos, chosen, rank, world = open_photographs(images, folder, cache, side, preset.batch, CHUNK, device)
    if workers is None:
        workers = 0 if chosen.type != "cpu" else max(0, (os.cpu_count() or 2) // world - 1)
    maker = ViewMaker(photos, preset.views, seed, False, chosen)
    held_out = ViewMaker(photos, preset.views, seed, True, chosen)
    return FeatureTask(preset, seed, maker, held_out, chosen, workers, rank, world)


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
        `tiepoint.features.cairn.Cairn`.

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
    net = task.new_net()
    held_out = task.held_out() if task.rank == 0 else []

    def evaluate(trained: Objective) -> dict[str, float]:
        total, sums = MatchStatistics(0, 0, 0, 0, 0), {"loss": 0.0, "repeated": 0.0, "matched": 0.0}
        for views in held_out:
            output = trained(views.to(task.device))
            total = total + match_statistics(output.log_p, output.labels)
            for name in sums:
                sums[name] += float(output.loss if name == "loss" else output.parts[name]) / len(held_out)
        means = {f"held_out_{name}": value for name, value in sums.items()}
        return {**means, "held_out_precision": total.precision, "held_out_recall": total.recall}

    objective = CairnObjective(net, task.preset.keypoints)
    return carry_out(objective, task.batches, task.preset.fit, folder, task.config, task.device, evaluate, report, stop)


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
        As `tiepoint.training.run.rehearse` returns it.
    """
    from PIL import Image

    preset = task.preset
    pictures = Path(folder) / "dry-run"
    pictures.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    views = task.maker(0, range(max(1, preset.batch // CHUNK // task.world)))
    making = (time.monotonic() - began) / len(views)
    paths = []
    for pair, both in enumerate(views.images.unflatten(0, (-1, 2)).permute(0, 3, 1, 4, 2).flatten(2, 3).cpu().numpy()):
        paths.append(pictures / f"pair-{pair}.png")
        with atomic(paths[-1]) as unfinished:
            Image.fromarray(both).save(unfinished)
    objective, made = CairnObjective(task.new_net(), preset.keypoints), preset.fit.steps * preset.batch
    needs = time_steps(objective, views, preset.fit, steps, task.device, made * making, task.workers)
    return {"pictures": [str(path) for path in paths], "seconds_per_pair_made": making, **needs}
