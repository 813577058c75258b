"""One training, whatever is trained: photographs opened, the run's folder locked to its configuration, the loop run.

A run's folder holds ``config.json`` (what was asked for, and by which code on which machine), ``metrics.jsonl``,
``checkpoint.pt`` and ``weights.safetensors``. Starting a run again in its folder resumes it.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from numpy.typing import NDArray
from PIL import Image

from ... import devices
from ..._version import __version__
from ...errors import ArgumentError, InputError
from ...io.files import atomic, read_json, write_json
from ..data.claims import differences
from ..loop import FitConfig, Processes, fit
from ..objectives.base import Objective, Output
from ..objectives.losses import MatchStatistics, match_statistics
from ..stream import stream
from .pictures import Board

Report = Callable[[str, dict[str, Any]], None]
"""Called with what is being done, and a row of metrics or, while something is made ahead, ``done`` and ``total``."""
Stop = Callable[[], bool]
"""Asked after every step; True saves a checkpoint and raises KeyboardInterrupt."""


def silent(stage: str, row: dict[str, Any]) -> None:
    """Report nothing."""


def never() -> bool:
    """Do not stop."""
    return False


@dataclass(frozen=True)
class Trial:
    """The pairs of one step, made to be looked at and timed.

    Attributes
    ----------
    batch
        As the objective takes it.
    pictures : dict of uint8 arrays (H, W, 3)
        Its pairs, by file name.
    seconds : float
        In which one process makes a pair.
    pairs : int
        That the whole training makes.
    extra : dict
        More numbers to report.
    extra_seconds : float
        Added to the expected time.
    """

    batch: Any
    pictures: dict[str, NDArray[Any]]
    seconds: float
    pairs: int
    extra: dict[str, Any] = field(default_factory=dict)
    extra_seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Task:
    """A training, checked and ready to start.

    Attributes
    ----------
    name : str
        What is trained, as progress is reported.
    folder : Path
        The run's.
    config : dict
        What must be equal for a run to be resumed, as JSON has it.
    paths : dict
        Where the run's data lie, for those who open it again.
    processes : Processes
        That train together.
    workers : int
        Worker processes that make pairs.
    fit : FitConfig
        Optimiser and schedule.
    new_objective : callable
        Returns the network as training begins with it, and what it minimises.
    make : callable
        Returns this process's pairs of a step.
    held_out : callable
        Returns the batches of evaluations.
    parts : tuple of str
        Of the loss's output, whose means evaluations report too.
    ahead : callable
        Makes what must be there before the first step; yields how much is done, and of how much.
    making : str
        What that is, as progress is reported.
    made_ahead : bool
        All pairs are made before the first step, steps only read them; making them does not count for the time limit.
    reference : callable, optional
        Computes from the held-out batches what the training is compared with; kept in ``reference_file``.
    trial : callable, optional
        Makes what a dry run looks at.
    drawing : callable, optional
        Returns the pictures of the first held-out batch, for TensorBoard.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    paths: dict[str, str | None]
    processes: Processes
    workers: int
    fit: FitConfig
    new_objective: Callable[[], Objective]
    make: Callable[[int], Any]
    held_out: Callable[[], Sequence[Any]]
    parts: tuple[str, ...] = ()
    ahead: Callable[[], Iterator[tuple[int, int]]] = lambda: iter(())
    making: str = "pairs"
    made_ahead: bool = False
    reference: Callable[[Sequence[Any]], dict[str, Any]] | None = None
    reference_file: str = "before.json"
    trial: Callable[[], Trial] | None = None
    drawing: Callable[[], list[torch.Tensor]] | None = None

    def train(
        self, report: Report = silent, stop: Stop = never, origin: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Train, or resume where this folder's training stopped.

        Parameters
        ----------
        report, stop : callable
            See `Report` and `Stop`.
        origin : dict, optional
            Stored with the weights beside their configuration; by default `origin_of` this task.

        Returns
        -------
        dict
            The last row of metrics, also of a run that was finished before.

        Raises
        ------
        InputError
            The folder holds a run with another configuration; the message names what differs.
        TrainingError
            The loss is not a number.
        """
        claim(self.folder, self.config, self.paths, self.processes)
        for done, total in self.ahead():
            report(self.making, {"done": done, "total": total})
            if stop():
                raise KeyboardInterrupt
        self.processes.barrier()
        held_out = self.held_out() if self.processes.rank == 0 else []
        reference = self.folder / self.reference_file
        if self.reference is not None and self.processes.rank == 0 and not reference.exists():
            with atomic(reference) as unfinished:
                unfinished.write_text(json.dumps(self.reference(held_out), indent=1))
        board = Board.open(self.folder, held_out[0], self.drawing) if held_out and self.drawing else None

        def note(row: dict[str, Any]) -> None:
            if board:
                board.add(row)
            report(self.name, row)

        device = self.processes.device
        fast = device.type == "cuda" or {"avx512_bf16", "amx_bf16"} & set(devices.describe()["cpu"]["features"])
        objective = self.new_objective()
        origin = origin or {"training": origin_of(self.config)}
        row = fit(
            objective,
            lambda start: stream(self.make, range(start, self.fit.steps), 0 if self.made_ahead else self.workers),
            replace(self.fit, bfloat16=self.fit.bfloat16 and bool(fast)),
            self.folder,
            {**asdict(cast(Any, objective.net).config), **origin},
            device,
            lambda trained: evaluate(trained, held_out, self.parts, device, board.look if board else None),
            note,
            stop,
        )
        if not row:  # it was finished before
            lines = (self.folder / "metrics.jsonl").read_text().splitlines()
            row = {k: math.nan if v is None else v for k, v in json.loads(lines[-1]).items()} if lines else {}
        return row

    def dry_run(self, steps: int = 8) -> dict[str, Any]:
        """Draw a few pairs, take a few steps, and say what the whole training would need. No run is begun.

        Parameters
        ----------
        steps : int
            Steps to time; the first quarter is not counted.

        Returns
        -------
        dict
            ``pictures`` (paths, in the sub-folder ``dry-run``), ``seconds_per_step``, ``seconds_per_pair_made`` (by one
            process), ``workers``, ``memory_mb`` (peak, of the GPU or of this process), ``minutes`` (expected),
            ``parameters``; with a teacher ``seconds_per_answer`` and ``answers``, the number of photographs that it is
            still to be asked about.
        """
        if self.trial is None:
            raise ArgumentError(f"there is no dry run of {self.name}")
        trial = self.trial()
        paths = [self.folder / "dry-run" / name for name in trial.pictures] if self.processes.rank == 0 else []
        for path, pixels in zip(paths, trial.pictures.values(), strict=False):
            with atomic(path) as unfinished:
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(unfinished)
        return {
            "pictures": [str(path) for path in paths],
            "seconds_per_pair_made": trial.seconds,
            **trial.extra,
            **self._time_steps(trial, steps),
        }

    def _time_steps(self, trial: Trial, steps: int) -> dict[str, Any]:
        """Take a few steps on one batch and say what all steps would need."""
        objective, device, rows = self.new_objective(), self.processes.device, list[dict[str, Any]]()
        timed = replace(self.fit, steps=steps, minutes=None, log_every=1)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with TemporaryDirectory() as temporary:
            batches = lambda start: iter([trial.batch] * (steps - start))  # noqa: E731
            last = fit(objective, batches, timed, Path(temporary), {}, device, report=rows.append)
        skip = steps // 4
        # Rows are the first process's; the others know only their last.
        step = (last["seconds"] - rows[skip]["seconds"]) / (steps - 1 - skip) if rows else last["seconds"] / steps
        working, data = self.fit.steps * step, trial.pairs * trial.seconds / max(1, self.workers)
        limit = 60 * self.fit.minutes if self.fit.minutes else math.inf
        beside = max(working, data) if self.workers else working + data
        seconds = data + min(working, limit) if self.made_ahead else min(beside, limit)
        return {
            "parameters": sum(p.numel() for p in objective.net.parameters()),
            "seconds_per_step": step,
            "workers": self.workers,
            "memory_mb": _peak_memory(device) / 2**20,
            "minutes": (seconds + trial.extra_seconds) / 60,
        }


def evaluate(
    trained: Objective,
    batches: Sequence[Any],
    parts: Sequence[str],
    device: torch.device,
    look: Callable[[Output], None] | None = None,
) -> dict[str, float]:
    """Return held-out loss, precision and recall, and means of these parts of the loss's output.

    ``look`` is called with what came of the first batch.
    """
    total, sums = MatchStatistics(0, 0, 0), dict.fromkeys(("loss", *parts), 0.0)
    for i, batch in enumerate(batches):
        output = trained(batch.to(device))
        if i == 0 and look:
            look(output)
        total = total + match_statistics(output.log_p, output.labels, output.threshold)
        for name in sums:
            sums[name] += float(output.loss if name == "loss" else output.parts[name]) / len(batches)
    means = {f"held_out_{name}": value for name, value in sums.items()}
    return {**means, "held_out_precision": total.precision, "held_out_recall": total.recall}


def claim(folder: Path, config: dict[str, Any], paths: dict[str, str | None], processes: Processes) -> None:
    """Write ``config.json``, or check that the run in this folder is the same.

    Parameters
    ----------
    folder : Path
        The run's folder; made if need be.
    config, paths : dict
        See `Task`.
    processes : Processes
        Only the first one writes.

    Raises
    ------
    InputError
        The folder holds a run with another configuration; the message names what differs.
    """
    if processes.rank > 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "config.json").exists():
        if differing := differences(read_config(folder)["config"], config):
            raise InputError(
                f"{folder} holds a run with another configuration: {differing}. Give the options it was started with, "
                "to resume it, or another folder, or delete this one"
            )
        return
    summary: dict[str, Any] = {
        "config": config,
        "paths": paths,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "tiepoint": __version__,
        "git": devices.revision(),
        "processes": processes.world,
        "machine": devices.describe(),
    }
    write_json(folder / "config.json", summary)


def read_config(run: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what ``config.json`` of a run says.

    Raises
    ------
    InputError
        The folder holds no run.
    """
    path = Path(run) / "config.json"
    try:
        return read_json(path)
    except InputError as error:
        raise InputError(f"{run} is not the folder of a training run ({path.name} cannot be read: {error})") from error


def as_json(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration as JSON has it: lists where we have tuples."""
    return json.loads(json.dumps(config))


def origin_of(config: dict[str, Any]) -> dict[str, Any]:
    """Return what was asked of a stage of training, and by which code it was done."""
    return {"tiepoint": __version__, "git": devices.revision(), **config}


def _peak_memory(device: torch.device) -> float:
    """Return the most bytes in use so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
