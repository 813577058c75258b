"""What all runs share, of a matcher or of an extractor: photographs opened, a folder claimed, a loop carried out.

A run's folder holds ``config.json`` (what was asked for, and by which code on which machine), ``metrics.jsonl``,
``checkpoint.pt`` and ``weights.safetensors``. Starting a run again in its folder resumes it.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
import torch.distributed as dist
from PIL import Image

from ... import devices
from ..._version import __version__
from ...errors import ArgumentError, InputError
from ...io.files import atomic, read_json
from ..data.photographs import PhotoCache, build_cache, open_cache
from ..loop import FitConfig, fit, join_processes
from ..objectives.base import Objective, Output
from ..objectives.losses import MatchStatistics, match_statistics
from ..pairs.steps import chunks_of

_FEW = 100  # photographs below which we warn


def open_photographs(
    images: str | os.PathLike[str] | None,
    folder: Path,
    cache: str | os.PathLike[str] | None,
    long_side: int,
    batch: int,
    chunk: int,
    device: torch.device | str | None,
) -> tuple[PhotoCache, torch.device, int, int]:
    """Begin any training: join the other processes, make the run's folder, decode the photographs once.

    Parameters
    ----------
    images, folder, cache, device
        See `prepare`.
    long_side : int
        At which photographs are kept, pixels.
    batch, chunk : int
        Pairs of one step, and pairs made together.

    Returns
    -------
    photos, device, rank, world
        The device is the process's own GPU where there are several.

    Raises
    ------
    InputError, ArgumentError
        See `prepare`.
    """
    rank, world, gpu = join_processes()
    if images is not None and Path(images).resolve() in (folder.resolve(), *folder.resolve().parents):
        raise ArgumentError(f"the run's folder {folder} lies among the photographs of {images}; give another one")
    chunks_of(batch, chunk, rank, world)
    chosen = gpu or devices.pick_device(device)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made a run's folder: {error.strerror or error}") from error
    path = Path(cache) if cache else folder / "photos.cache"
    if rank == 0 and images is not None:
        _warn_about(build_cache(images, path, long_side=long_side), images)
    if world > 1:
        dist.barrier()
    return open_cache(path), chosen, rank, world


def _warn_about(photos: PhotoCache, images: str | os.PathLike[str]) -> None:
    """Warn of files that cannot be used, and of too few photographs."""
    if photos.skipped:
        told = "; ".join(f"{name}: {why}" for name, why in photos.skipped[:3])
        warnings.warn(
            f"{len(photos.skipped)} of {len(photos) + len(photos.skipped)} files of {images} cannot be used ({told})",
            stacklevel=4,
        )
    different = len(set(photos.sources.tolist()))
    if different < _FEW:
        warnings.warn(
            f"{images} holds {different} different photographs; a network learns more from a few hundred", stacklevel=4
        )


def claim(folder: Path, config: dict[str, Any], paths: dict[str, str | None], rank: int = 0, world: int = 1) -> None:
    """Write ``config.json``, or check that the run in this folder is the same.

    Parameters
    ----------
    folder : Path
        The run's folder; made if need be.
    config : dict
        What must be equal for a run to be resumed, as JSON has it.
    paths : dict
        Where the run's data lie, for those who open it again.
    rank, world : int
        Number of this process, of which only the first writes, and of all processes.

    Raises
    ------
    InputError
        The folder holds a run with another configuration; the message names what differs.
    """
    if rank > 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "config.json").exists():
        there, here = _flat(read_config(folder)["config"]), _flat(config)
        names = [name for name in sorted({*there, *here}) if there.get(name) != here.get(name)]
        if names:
            differing = "; ".join(f"{name} is {there.get(name)} there and {here.get(name)} here" for name in names[:8])
            raise InputError(
                f"{folder} holds a run with another configuration: {differing}. Give the options it was started with, "
                "to resume it, or another folder, or delete this one"
            )
        return
    told: dict[str, Any] = {
        "config": config,
        "paths": paths,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "tiepoint": __version__,
        "git": devices.revision(),
        "processes": world,
        "machine": devices.describe(),
    }
    with atomic(folder / "config.json") as unfinished:
        unfinished.write_text(json.dumps(told, indent=1))


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


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``{"fit.steps": 1000, …}`` of nested dictionaries."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def origin_of(told: dict[str, Any]) -> dict[str, Any]:
    """Return what was asked of a stage of training, and by which code it was done."""
    return {"tiepoint": __version__, "git": devices.revision(), **told}


def carry_out(
    objective: Objective,
    batches: Callable[[int], Iterator[Any]],
    settings: FitConfig,
    folder: Path,
    origin: dict[str, Any],
    device: torch.device,
    evaluate: Callable[[Objective], dict[str, float]],
    report: Callable[[dict[str, Any]], None],
    stop: Callable[[], bool],
) -> dict[str, Any]:
    """Call `fit` with bfloat16 where the machine is fast at it; the last row of metrics, also of a finished run.

    ``origin``, see `origin_of`, is stored with the weights beside their configuration.
    """
    fast = device.type == "cuda" or {"avx512_bf16", "amx_bf16"} & set(devices.describe()["cpu"]["features"])
    metadata = {**asdict(cast(Any, objective.net).config), **origin}
    settings = replace(settings, bfloat16=settings.bfloat16 and bool(fast))
    row = fit(objective, batches, settings, folder, metadata, device, evaluate, report, stop)
    if not row:  # it was finished before
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        row = {k: math.nan if v is None else v for k, v in json.loads(lines[-1]).items()} if lines else {}
    return row


def judge(
    trained: Objective,
    batches: Sequence[Any],
    parts: Sequence[str],
    device: torch.device,
    look: Callable[[int, Output], None] = lambda i, output: None,
) -> dict[str, float]:
    """Return held-out loss, precision and recall, and means of these parts of the loss's output.

    ``look`` is shown what came of each batch.
    """
    total, sums = MatchStatistics(0, 0, 0), dict.fromkeys(("loss", *parts), 0.0)
    for i, batch in enumerate(batches):
        output = trained(batch.to(device))
        look(i, output)
        total = total + match_statistics(output.log_p, output.labels, output.threshold)
        for name in sums:
            sums[name] += float(output.loss if name == "loss" else output.parts[name]) / len(batches)
    means = {f"held_out_{name}": value for name, value in sums.items()}
    return {**means, "held_out_precision": total.precision, "held_out_recall": total.recall}


def save_pictures(pictures: dict[str, Any], folder: str | os.PathLike[str]) -> list[str]:
    """Write uint8 arrays (H, W, 3) by their names into the folder's sub-folder ``dry-run``, and return their paths."""
    paths = [Path(folder) / "dry-run" / name for name in pictures]
    for path, pixels in zip(paths, pictures.values(), strict=True):
        with atomic(path) as unfinished:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(unfinished)
    return [str(path) for path in paths]


def time_steps(
    objective: Objective,
    batch: Any,
    settings: FitConfig,
    steps: int,
    device: torch.device,
    making: float,
    workers: int,
    ahead: bool = False,
) -> dict[str, Any]:
    """Take a few steps on one batch and say what all steps would need.

    Parameters
    ----------
    objective : Objective
        A new one; it is trained a little.
    batch
        Of one step.
    settings : FitConfig
        Of the whole training.
    steps : int
        Steps to time; the first quarter is not counted.
    device : torch.device
        Where to train.
    making : float
        Seconds that one process needs to make all pairs of the training.
    workers : int
        Processes that make them.
    ahead : bool
        They are made before the first step, and do not count for the time limit; otherwise beside the training.
    """
    rows: list[dict[str, Any]] = []
    timed = replace(settings, steps=steps, minutes=None, log_every=1)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with TemporaryDirectory() as temporary:
        last = fit(
            objective,
            lambda start: iter([batch] * (steps - start)),
            timed,
            Path(temporary),
            {},
            device,
            report=rows.append,
        )
    skip = steps // 4
    # Rows are the first process's; the others know only their last.
    step_seconds = (last["seconds"] - rows[skip]["seconds"]) / (steps - 1 - skip) if rows else last["seconds"] / steps
    working, data = settings.steps * step_seconds, making / max(1, workers)
    limit = 60 * settings.minutes if settings.minutes else math.inf
    beside = max(working, data) if workers else working + data
    seconds = data + min(working, limit) if ahead else min(beside, limit)
    return {
        "parameters": sum(p.numel() for p in objective.net.parameters()),
        "seconds_per_step": step_seconds,
        "workers": workers,
        "memory_mb": _peak_memory(device) / 2**20,
        "minutes": seconds / 60,
    }


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
