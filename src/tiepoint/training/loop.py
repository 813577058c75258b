"""The training loop: one function, `fit`.

It runs as one process, or as many under ``torchrun`` (each sees its own part of every batch). Everything a run knows
lies in its folder: ``config.json``, ``metrics.jsonl``, ``checkpoint.pt`` (to resume), ``weights.safetensors``
(exponential moving average, with the model's configuration as metadata).
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .. import devices
from ..errors import ArgumentError, TiepointError
from ..io.files import atomic, explained
from .objectives.base import Objective, Output
from .objectives.losses import MatchStatistics, match_statistics
from .tensors import Tensors


class TrainingError(TiepointError):
    """Training cannot go on: the loss is not a number, or a checkpoint does not fit the run."""


@dataclass(frozen=True)
class FitConfig:
    """Optimiser and schedule.

    Attributes
    ----------
    steps : int
        Optimiser steps.
    minutes : float or None
        Stop after this much training time if that comes first. The learning rate then falls as if the steps had run
        out, so that a run cut short is a finished one; but how many steps it takes depends on the machine's speed, and
        no two such runs are bit-equal.
    learning_rate : float
        Peak, after the warm-up.
    warmup : int
        Steps of linear rise from zero.
    decay : float in [0, 1]
        Fraction of the steps, at the end, in which the rate falls to zero along a half cosine.
    weight_decay, clip : float
        AdamW's decay; largest norm of the gradient.
    ema : float
        Decay of the moving average of the parameters, which is what is evaluated and kept.
    average : bool
        End with the mean of that and of the weights training began with (WiSE-FT, Wortsman et al., CVPR 2022): for
        training that begins with good weights and has pairs of another kind.
    bfloat16 : bool
        Run the network under autocast.
    compile : bool
        Compile it with `torch.compile`.
    log_every, evaluate_every, save_every : int
        Steps between rows of metrics, between evaluations on held-out photographs, and between checkpoints.
    """

    steps: int = 10_000
    minutes: float | None = None
    learning_rate: float = 3e-4
    warmup: int = 200
    decay: float = 0.5
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    average: bool = False
    bfloat16: bool = True
    compile: bool = False
    log_every: int = 50
    evaluate_every: int = 500
    save_every: int = 250

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.minutes is not None and not self.minutes > 0:
            raise ArgumentError(f"minutes must be more than 0, not {self.minutes}")

    def done(self, step: int, seconds: float = 0.0) -> float:
        """Return the finished fraction of the training after ``step`` steps and so many seconds."""
        return max(step / self.steps, seconds / (60 * self.minutes) if self.minutes else 0.0)

    def rate(self, step: int, seconds: float = 0.0) -> float:
        """Learning rate of a step that begins after so many seconds of training.

        Examples
        --------
        >>> c = FitConfig(steps=100, learning_rate=1.0, warmup=10, decay=0.5)
        >>> [round(c.rate(s), 2) for s in (0, 9, 40, 75, 99)]
        [0.1, 1.0, 1.0, 0.5, 0.0]
        """
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        left = (1 - self.done(step, seconds)) / max(self.decay, 1e-9)
        return self.learning_rate * warm * 0.5 * (1 - math.cos(math.pi * min(1.0, max(0.0, left))))


def fit(
    objective: Objective,
    batches: Callable[[int], Iterator[Tensors]],
    config: FitConfig,
    folder: Path,
    metadata: dict[str, Any],
    device: torch.device | str = "cpu",
    evaluate: Callable[[Objective], dict[str, float]] | None = None,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train ``objective`` and return the last row of metrics.

    Parameters
    ----------
    objective : Objective
        What is minimised. Parameters that need no gradient stay as they are.
    batches : callable
        ``batches(first_step)`` yields one batch a step, the same for the same step however often it is called.
    config : FitConfig
        How.
    folder : Path
        The run's folder. If it holds a checkpoint, training resumes there: bit for bit as if it had never stopped
        (same device and thread count).
    metadata : dict
        Stored as JSON with the weights (the model's configuration and where it comes from).
    device : torch.device or str
        Where to train.
    evaluate : callable, optional
        Called with the objective, whose network holds the averaged parameters; its numbers join the metrics.
    report : callable
        Called with every row of metrics, on the first process only.
    stop : callable
        Asked after every step; if any process says True, all save and stop.

    Raises
    ------
    TrainingError
        The loss became NaN or infinite (the batch is saved beside the metrics), or the checkpoint is of another model.
    KeyboardInterrupt
        ``stop`` said so; the checkpoint is saved.
    """
    device = torch.device(device)
    world = dist.get_world_size() if dist.is_initialized() else 1
    first = not dist.is_initialized() or dist.get_rank() == 0
    objective.to(device).train()
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=0.0, weight_decay=config.weight_decay, fused=device.type == "cuda")
    average = {name: tensor.detach().clone() for name, tensor in objective.net.state_dict().items()}
    begun_with = {name: tensor.clone() for name, tensor in average.items()} if config.average else {}
    step, before = 0, 0.0  # steps and seconds of training so far
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        step, before = _resume(checkpoint, objective.net, optimiser, average, device)
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        _forget_after(folder / "metrics.jsonl", step)
    if config.compile:
        objective.compile_parts()
    model: nn.Module = DistributedDataParallel(objective) if world > 1 else objective

    row: dict[str, Any] = {}
    window = _Window()
    started = time.monotonic()
    seconds, stopping = before, False
    source = batches(step)
    while config.done(step, seconds) < 1 and not stopping:
        asked = time.monotonic()
        batch = next(source).to(device)
        window.waited += time.monotonic() - asked

        rate = config.rate(step, seconds)
        for group in optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, torch.bfloat16) if config.bfloat16 else nullcontext():
            output = model(batch)
        output.loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, config.clip)
        if not torch.isfinite(norm + output.loss):
            _save_culprit(folder, batch, step, float(output.loss.detach()))
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        _follow(average, objective.net, min(config.ema, step / (step + 10)))
        window.add(output, batch, count_matches=step % 10 == 0)

        seconds, stopping = _agree(before + time.monotonic() - started, stop(), world, device)
        ended = config.done(step, seconds) >= 1
        if ended:
            for name, tensor in begun_with.items():
                if tensor.is_floating_point():
                    average[name].lerp_(tensor, 0.5)
        evaluating = evaluate is not None and (ended or step % config.evaluate_every == 0)
        if ended or evaluating or step % config.log_every == 0:
            row = {"step": step, **window.numbers(world), "learning_rate": rate, "gradient_norm": float(norm)}
            done = config.done(step, seconds)
            row |= {"seconds": seconds, "seconds_left": seconds * (1 / done - 1)}
            if evaluate is not None and evaluating and first:
                row |= _evaluate(objective, average, evaluate)
            if first:
                _note(folder / "metrics.jsonl", row)
                report(row)
            window = _Window()
        if first and (ended or stopping or step % config.save_every == 0):
            save_run(folder, step, before + time.monotonic() - started, objective.net, optimiser, average, metadata)
    if stopping:
        raise KeyboardInterrupt
    return row


class _Window:
    """What happened since the last row of metrics."""

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.waited, self.pairs = 0.0, 0
        self.losses: list[torch.Tensor] = []
        self.parts: dict[str, list[torch.Tensor]] = {}
        self.statistics = MatchStatistics(0, 0, 0)

    def add(self, output: Output, batch: Tensors, count_matches: bool) -> None:
        self.losses.append(output.loss.detach())
        for name, value in output.parts.items():
            self.parts.setdefault(name, []).append(value.detach())
        self.pairs += len(batch)
        if count_matches or len(self.losses) == 1:
            self.statistics = self.statistics + match_statistics(output.log_p.detach(), output.labels, output.threshold)

    def numbers(self, world: int) -> dict[str, float]:
        loss = torch.stack(self.losses).mean()
        if world > 1:
            dist.all_reduce(loss)
        seconds = max(time.monotonic() - self.since, 1e-9)
        return {
            "loss": float(loss) / world,
            **{name: float(torch.stack(values).mean()) for name, values in self.parts.items()},
            "precision": self.statistics.precision,
            "recall": self.statistics.recall,
            "pairs_per_s": self.pairs * world / seconds,
            "waiting": self.waited / seconds,
        }


@torch.no_grad()
def _follow(average: dict[str, torch.Tensor], net: nn.Module, decay: float) -> None:
    """Move the average towards the network's parameters."""
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            average[name].lerp_(tensor, 1 - decay)
        else:
            average[name].copy_(tensor)


def _agree(seconds: float, stopping: bool, world: int, device: torch.device) -> tuple[float, bool]:
    """Return the time and whether to stop, the same on all processes: otherwise one would wait for ever."""
    if world == 1:
        return seconds, stopping
    both = torch.tensor([seconds, float(stopping)], dtype=torch.float64, device=device)
    dist.all_reduce(both, dist.ReduceOp.MAX)
    return float(both[0]), bool(both[1])


def _evaluate(
    objective: Objective, average: dict[str, torch.Tensor], evaluate: Callable[[Objective], dict[str, float]]
) -> dict[str, float]:
    """Evaluate the averaged parameters, then put the training ones back."""
    current = {name: tensor.clone() for name, tensor in objective.net.state_dict().items()}
    objective.net.load_state_dict(average)
    objective.eval()
    with torch.no_grad():
        numbers = evaluate(objective)
    objective.train()
    objective.net.load_state_dict(current)
    return numbers


def save_run(
    folder: Path,
    step: int,
    seconds: float,
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    average: dict[str, torch.Tensor],
    metadata: dict[str, Any],
) -> None:
    """Write checkpoint and weights, each whole or not at all."""
    from .. import weights

    state = {
        "step": step,
        "seconds": seconds,
        "net": net.state_dict(),
        "optimiser": optimiser.state_dict(),
        "average": average,
    }
    save_state(folder / "checkpoint.pt", state)
    weights.save(folder / "weights.safetensors", average, metadata)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a file of PyTorch's own, whole or not at all."""
    data = io.BytesIO()  # PyTorch hides the system's error when a disk is full
    torch.save(state, data)
    with atomic(path) as unfinished:
        unfinished.write_bytes(data.getbuffer())


def _resume(
    path: Path, net: nn.Module, optimiser: torch.optim.Optimizer, average: dict[str, torch.Tensor], device: torch.device
) -> tuple[int, float]:
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        net.load_state_dict(saved["net"])
        optimiser.load_state_dict(saved["optimiser"])
    except (pickle.UnpicklingError, EOFError, OSError) as error:
        raise TrainingError(f"{path} is damaged; delete it, and the run begins anew") from error
    except (RuntimeError, KeyError, ValueError) as error:
        raise TrainingError(
            f"{path} does not fit this run ({error}); give the options it was started with, or another folder"
        ) from error
    for name, tensor in saved["average"].items():
        average[name].copy_(tensor)
    return saved["step"], saved["seconds"]


def _forget_after(metrics: Path, step: int) -> None:
    """Drop rows written after the checkpoint that is resumed; their steps are run again."""
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            break  # the run was killed while it wrote this line
    with atomic(metrics) as unfinished:
        unfinished.write_text("".join(kept))


def _note(metrics: Path, row: dict[str, Any]) -> None:
    with explained(metrics), metrics.open("a") as file:
        file.write(json.dumps({k: v if math.isfinite(v) else None for k, v in row.items()}) + "\n")


def _save_culprit(folder: Path, batch: Tensors, step: int, loss: float) -> None:
    rank = dist.get_rank() if dist.is_initialized() else 0
    path = folder / f"culprit-{step:07d}-{rank}.safetensors"
    tensors = {name: tensor.contiguous().cpu() for name, tensor in batch.tensors().items()}
    with atomic(path) as unfinished:
        unfinished.write_bytes(safetensors.torch.save(tensors))
    raise TrainingError(
        f"the gradient of step {step} is not finite (loss {loss:g}); its batch is saved as {path}. Resume with a lower "
        "learning rate, or without bfloat16"
    )


@dataclass(frozen=True)
class Processes:
    """The processes that train together.

    Attributes
    ----------
    device : torch.device
        Where this one trains.
    rank, world : int
        Number of this process and of all processes.
    """

    device: torch.device
    rank: int = 0
    world: int = 1

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.world > 1:
            dist.barrier()


def join_processes(device: torch.device | str | None = None) -> Processes:
    """Join the processes that ``torchrun`` started, if it did; each then has a GPU of its own, where there are any."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Processes(devices.pick_device(device))
    local = int(os.environ["LOCAL_RANK"])
    gpu = torch.device("cuda", local) if torch.cuda.is_available() else None
    if gpu:
        torch.cuda.set_device(gpu)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if gpu else "gloo")
    return Processes(gpu or devices.pick_device(device), dist.get_rank(), world)


def is_first_process() -> bool:
    """Whether this process is the one that reports, of those that ``torchrun`` started."""
    return int(os.environ.get("RANK", "0")) == 0
