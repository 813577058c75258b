"""The training loop: one function, `fit`, that hides nothing.

It runs as one process, or as many under ``torchrun`` (each sees its own part of every batch). Everything a run knows
lies in its folder: ``config.json``, ``metrics.jsonl``, ``checkpoint.pt`` (to resume), ``weights.safetensors``
(exponential moving average, with the model's configuration as metadata).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import TiepointError
from ..export import atomic
from .batches import Batch
from .losses import MatchStatistics, match_statistics


class TrainingError(TiepointError):
    """Training cannot go on: the loss is not a number, or a checkpoint does not fit the run."""


@dataclass(frozen=True)
class FitConfig:
    """How the optimiser walks.

    Attributes
    ----------
    steps : int
        Optimiser steps.
    learning_rate : float
        Peak, after the warm-up.
    warmup : int
        Steps of linear rise from zero.
    decay : float in [0, 1]
        Share of the steps, at the end, in which the rate falls to zero along a half cosine.
    weight_decay, clip : float
        AdamW's decay; largest norm of the gradient.
    ema : float
        Decay of the moving average of the parameters, which is what is evaluated and kept.
    bfloat16 : bool
        Run the network under autocast.
    compile : bool
        Compile it with `torch.compile`.
    evaluate_every, save_every : int
        Steps between evaluations on held-out photographs, and between checkpoints.
    """

    steps: int = 10_000
    learning_rate: float = 3e-4
    warmup: int = 200
    decay: float = 0.5
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    bfloat16: bool = True
    compile: bool = False
    evaluate_every: int = 500
    save_every: int = 250

    def rate(self, step: int) -> float:
        """Learning rate of a step.

        >>> c = FitConfig(steps=100, learning_rate=1.0, warmup=10, decay=0.5)
        >>> [round(c.rate(s), 2) for s in (0, 9, 40, 75, 99)]
        [0.1, 1.0, 1.0, 0.5, 0.0]
        """
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        left = (self.steps - step) / max(1, round(self.decay * self.steps))
        return self.learning_rate * warm * 0.5 * (1 - math.cos(math.pi * min(1.0, left)))


def fit(
    objective: nn.Module,
    batches: Callable[[int], Iterator[Batch]],
    config: FitConfig,
    folder: Path,
    metadata: dict[str, Any],
    device: torch.device | str = "cpu",
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> dict[str, Any]:
    """Train ``objective`` and return the last row of metrics.

    Parameters
    ----------
    objective : Module
        ``objective(batch)`` gives an output with ``loss`` and ``log_p``; ``objective.net`` is what is kept. Parameters
        that need no gradient stay as they are.
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
        Called with the averaged network; its numbers join the metrics.
    report : callable
        Called with every row of metrics, on the first process only.

    Raises
    ------
    TrainingError
        The loss became NaN or infinite (the batch is saved beside the metrics), or the checkpoint is of another model.
    """
    device = torch.device(device)
    world = dist.get_world_size() if dist.is_initialized() else 1
    first = not dist.is_initialized() or dist.get_rank() == 0
    objective.to(device).train()
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters, lr=0.0, weight_decay=config.weight_decay, fused=device.type == "cuda"
    )
    average = {name: tensor.detach().clone() for name, tensor in objective.net.state_dict().items()}
    step, elapsed = 0, 0.0
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        step, elapsed = _resume(checkpoint, objective.net, optimiser, average, device)
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        _forget_after(folder / "metrics.jsonl", step)
    model: nn.Module = DistributedDataParallel(objective) if world > 1 else objective
    if config.compile:
        model = torch.compile(model)  # type: ignore[assignment]
    autocast = torch.autocast(device.type, torch.bfloat16) if config.bfloat16 else nullcontext()

    row: dict[str, Any] = {}
    statistics, losses, waited, pairs = MatchStatistics(0, 0, 0, 0, 0), [], 0.0, 0
    started = since = time.monotonic() - 1e-9
    source = batches(step)
    while step < config.steps:
        before = time.monotonic()
        batch = next(source).to(device)
        waited += time.monotonic() - before

        for group in optimiser.param_groups:
            group["lr"] = config.rate(step)
        with autocast:
            output = model(batch)
        output.loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, config.clip)
        if not torch.isfinite(norm):
            _save_culprit(folder, batch, step, float(output.loss))
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        with torch.no_grad():
            decay = min(config.ema, step / (step + 10))
            for name, tensor in objective.net.state_dict().items():
                average[name].lerp_(tensor, 1 - decay) if tensor.is_floating_point() else average[name].copy_(
                    tensor
                )

        losses.append(output.loss.detach())
        pairs += len(batch) * world
        if step % 10 == 0:
            statistics = statistics + match_statistics(output.log_p.detach(), batch.labels)
        evaluating = evaluate is not None and (step % config.evaluate_every == 0 or step == config.steps)
        if step % 50 == 0 or evaluating or step == config.steps:
            now = time.monotonic()
            row = {
                "step": step,
                "loss": _mean_over_processes(torch.stack(losses).mean(), world),
                "precision": statistics.precision,
                "recall": statistics.recall,
                "learning_rate": config.rate(step - 1),
                "gradient_norm": float(norm),
                "pairs_per_s": pairs / (now - since),
                "waiting": waited / (now - since),
                "seconds": elapsed + now - started,
                "seconds_left": (config.steps - step) * (now - since) / len(losses),
            }
            statistics, losses, waited, pairs = MatchStatistics(0, 0, 0, 0, 0), [], 0.0, 0
            if evaluating and first:
                row |= _evaluate(objective, average, evaluate)
            if first:
                with (folder / "metrics.jsonl").open("a") as file:
                    file.write(json.dumps(row) + "\n")
                report(row)
            since = time.monotonic()
        if first and (step % config.save_every == 0 or step == config.steps):
            save_run(
                folder,
                step,
                elapsed + time.monotonic() - started,
                objective.net,
                optimiser,
                average,
                metadata,
            )
    return row


def _evaluate(
    objective: nn.Module,
    average: dict[str, torch.Tensor],
    evaluate: Callable[[nn.Module], dict[str, float]] | None,
) -> dict[str, float]:
    """Evaluate the averaged parameters, then put the training ones back."""
    assert evaluate is not None
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

    with atomic(folder / "checkpoint.pt") as unfinished:
        torch.save(
            {
                "step": step,
                "seconds": seconds,
                "net": net.state_dict(),
                "optimiser": optimiser.state_dict(),
                "average": average,
            },
            unfinished,
        )
    weights.save(folder / "weights.safetensors", average, metadata)


def _resume(
    path: Path,
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    average: dict[str, torch.Tensor],
    device: torch.device,
) -> tuple[int, float]:
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        net.load_state_dict(saved["net"])
        optimiser.load_state_dict(saved["optimiser"])
    except (RuntimeError, KeyError, ValueError, OSError, EOFError) as error:
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


def _save_culprit(folder: Path, batch: Batch, step: int, loss: float) -> None:
    import safetensors.torch

    path = folder / f"culprit-{step:07d}.safetensors"
    safetensors.torch.save_file(
        {name: tensor.contiguous().cpu() for name, tensor in batch.tensors().items()}, path
    )
    raise TrainingError(
        f"the gradient of step {step} is not finite (loss {loss:g}); its batch is saved as {path}. Resume with a lower "
        "learning rate, or without bfloat16"
    )


def _mean_over_processes(value: torch.Tensor, world: int) -> float:
    if world > 1:
        dist.all_reduce(value)
    return float(value) / world


def join_processes() -> tuple[int, int, torch.device | None]:
    """Join the processes that ``torchrun`` started: (rank, number of processes, GPU of this process or None)."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return 0, 1, None
    local = int(os.environ["LOCAL_RANK"])
    gpu = torch.device("cuda", local) if torch.cuda.is_available() else None
    if gpu:
        torch.cuda.set_device(gpu)
    dist.init_process_group("nccl" if gpu else "gloo")
    return dist.get_rank(), world, gpu
