"""LightGlue here against kornia's (equivalent to the original code): time, precision and recall.

Same features, same weights, one process, one alternating run: in every turn each matcher matches each pair once,
so that a machine that slows down slows all of them. Both at full depth; tiepoint's adaptive depth and width, and its
bfloat16, against kornia's full depth too, and, for completeness, kornia's own adaptivity. Precision and recall at
3 px under the exact homographies of `kodak`; on the other sets precision is the epipolar one.

Run ``python benchmarks/lightglue_speed.py --pairs 1 --repeats 1`` for a rehearsal.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.progress import Progress

import tiepoint as tp
from peers import DATA, HERE, KorniaLightGlue
from tiepoint import devices, evaluation
from tiepoint.evaluation.metrics import project
from tiepoint.evaluation.speed import alternate, cpu_threads

REFERENCE = "kornia, full depth"


@dataclass(frozen=True)
class Result:
    """One line of the table: means over the pairs of a set; seconds are medians of all calls."""

    features: str
    keypoints: float
    set: str
    matcher: str
    seconds: float
    speedup: float
    precision: float
    recall: float | None
    matches: float
    stop_layer: float


def main(
    features: Annotated[list[str] | None, typer.Option(help="aliked-n16, disk, xfeat; repeatable.")] = None,
    keypoints: Annotated[list[int] | None, typer.Option(help="Numbers of keypoints; repeatable.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Evaluation sets; repeatable.")] = None,
    pairs: Annotated[int, typer.Option(help="Pairs of each set.")] = 8,
    repeats: Annotated[int, typer.Option(help="Turns.")] = 5,
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default torch's.")] = None,
    device: str = "cpu",
    data: Annotated[Path, typer.Option(help="Folder of evaluation sets.")] = DATA,
    output: Annotated[Path, typer.Option("-o", "--output")] = HERE / "results",
) -> None:
    """Time tiepoint's LightGlue against kornia's."""
    results: list[Result] = []
    with cpu_threads(threads), Progress(transient=True) as progress:
        for name in features or ["aliked-n16", "disk"]:
            matchers = {
                REFERENCE: KorniaLightGlue(name, adaptive=False, device=device),
                "kornia, adaptive": KorniaLightGlue(name, adaptive=True, device=device),
                "tiepoint, full depth": tp.matchers.load("lightglue", features=name, device=device, adaptive=False),
                "tiepoint, adaptive": tp.matchers.load("lightglue", features=name, device=device),
                "tiepoint, full depth, bfloat16": tp.matchers.load(
                    "lightglue", features=name, device=device, adaptive=False, precision="bfloat16"
                ),
                "tiepoint, adaptive, bfloat16": tp.matchers.load(
                    "lightglue", features=name, device=device, precision="bfloat16"
                ),
            }
            for number in keypoints or [512, 1024, 2048]:
                # A threshold of 0 lets the detector fill up to the number asked for.
                extract = tp.features.load(name, device=device, max_keypoints=number, detection_threshold=0.0)
                for set_name in set_ or ["kodak", "fountain", "sacre_coeur"]:
                    chosen = evaluation.load_pairs(data, [set_name], pairs)
                    task = progress.add_task(f"{name}, {number} keypoints, {set_name}", total=repeats)
                    sides = [(extract(p.image0.read()), extract(p.image1.read())) for p in chosen]
                    calls = {
                        (label, i): partial(matcher, *side)
                        for i, side in enumerate(sides)
                        for label, matcher in matchers.items()
                    }
                    seconds = alternate(
                        calls, repeats, lambda done, total, task=task: progress.update(task, completed=done)
                    )
                    median = {
                        label: float(np.median([seconds[label, i] for i in range(len(sides))])) for label in matchers
                    }
                    mean_keypoints = float(np.mean([len(side) for both in sides for side in both]))
                    for label in matchers:
                        found = [calls[label, i]() for i in range(len(sides))]
                        results.append(
                            Result(
                                name,
                                mean_keypoints,
                                set_name,
                                label,
                                median[label],
                                median[REFERENCE] / median[label],
                                *quality(chosen, sides, found),
                            )
                        )
        used = torch.get_num_threads()
    where = ", ".join(f"{k} {v}" for k, v in devices.environment().items())
    text = markdown(results) + (
        f"\nMedians over {pairs} pairs x {repeats} turns, {used} CPU threads, device {device}; "
        f"speed-up: ratio of medians to {REFERENCE}. {where}.\n"
    )
    print(text)
    output.mkdir(parents=True, exist_ok=True)
    (output / "lightglue_speed.md").write_text(text, "utf-8")
    rows = [asdict(result) for result in results]
    (output / "lightglue_speed.json").write_text(
        json.dumps({"environment": devices.environment(), "threads": used, "rows": rows}, indent=1), "utf-8"
    )


def quality(
    pairs: list[evaluation.EvalPair],
    sides: list[tuple[tp.Features, tp.Features]],
    found: list[tp.Matches],
) -> tuple[float, float | None, float, float]:
    """Return precision and recall at 3 px, number of matches, and stop layer: means over the pairs."""
    precisions, recalls = [], []
    for pair, both, matches in zip(pairs, sides, found, strict=True):
        precisions.append(evaluation.precision(pair.truth, matches.points0, matches.points1))
        keypoints = [side.keypoints.cpu().numpy().astype(float) for side in both]
        projected = project(pair.truth, *keypoints)
        if projected is not None:
            recalls.append(evaluation.recall(matches.indices, *keypoints, *projected))
    known = [value for value in recalls if value is not None]
    return (
        float(np.mean(precisions)),
        float(np.mean(known)) if known else None,
        float(np.mean([len(matches) for matches in found])),
        float(np.mean([matches.stop_layer for matches in found])),
    )


def markdown(results: list[Result]) -> str:
    """Return the results as one table."""
    lines = [
        "| features | keypoints | set | matcher | ms | speed-up | P @3px | R @3px | matches | stop layer |",
        "|---|---:|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for r in results:
        recall = "–" if r.recall is None else f"{r.recall:.3f}"
        lines.append(
            f"| {r.features} | {r.keypoints:.0f} | {r.set} | {r.matcher} | {r.seconds * 1000:.0f} "
            f"| {r.speedup:.2f} | {r.precision:.3f} | {recall} | {r.matches:.0f} | {r.stop_layer:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
