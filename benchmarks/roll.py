"""Accuracy at any roll: the second picture of each evaluation pair turned by 0, 30 ... 330 degrees.

Run ``python benchmarks/roll.py --limit 1`` for a rehearsal. Continues where it was interrupted.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from peers import DATA, HERE
from tiepoint import evaluation, pipeline
from tiepoint.devices import environment
from tiepoint.evaluation.metrics import auc
from tiepoint.evaluation.speed import cpu_threads
from tiepoint.features import ExtractorOptions

ANGLES = tuple(range(0, 360, 30))
LIMITS = {"homography": 3.0, "pose": 10.0}  # pixels, degrees: of the AUC


def main(
    combinations: Annotated[list[str] | None, typer.Argument(help="By default auto.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Only this set; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(help="Pairs of each set.")] = 5,
    max_keypoints: int = 2048,
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default torch's.")] = None,
    data: Annotated[Path, typer.Option(help="Folder of evaluation sets.")] = DATA,
    output: Annotated[Path, typer.Option("-o", "--output")] = HERE / "results" / "roll",
) -> None:
    """Evaluate combinations of extractor and matcher on turned pictures."""
    pairs = evaluation.load_pairs(data, set_, limit)
    rolled = [evaluation.roll(pair, math.radians(angle)) for pair in pairs for angle in ANGLES]
    told: list[dict[str, Any]] = []
    table = Table("set", "combination", *map(str, ANGLES), "worst / upright", title="AUC, percent, by degrees of roll")
    with cpu_threads(threads), Progress(transient=True) as progress:
        for combination in map(evaluation.parse_combination, combinations or ["auto"]):
            options = ExtractorOptions(max_keypoints=max_keypoints)
            extract, match, _ = pipeline.load(*combination, device="cpu", options=options)
            task = progress.add_task(combination.label, total=len(rolled))
            file = output / f"{combination.label.replace('/', '_')}.jsonl"
            run = evaluation.evaluate_pairs(
                rolled, extract, match, combination.label, {"max_keypoints": max_keypoints, "limit": limit}, file,
                progress=lambda row, done, total, task=task: progress.update(task, completed=done),
            )  # fmt: skip
            told += by_set(combination.label, run.rows)
    for one in told:
        angles = [f"{100 * value:.0f}" for value in one["auc"]]
        table.add_row(one["set"], one["combination"], *angles, f"{one['worst']:.0%}")
    (Console() if Console().is_terminal else Console(width=160)).print(table)
    (output / "roll.json").write_text(json.dumps({"rows": told, "environment": environment()}, indent=1))
    print(f"wrote {output / 'roll.json'}")


def by_set(label: str, rows: list[evaluation.Row]) -> list[dict[str, Any]]:
    """Return the AUC at each angle for each set and on average, and the worst one's share of that at 0."""
    found = {}
    for name in dict.fromkeys(row.set for row in rows):
        of_set = [row for row in rows if row.set == name]
        found[name] = [
            auc([error(row) for row in of_set if row.pair.endswith(f"@{angle}")], [LIMITS[of_set[0].kind]])[0]
            for angle in ANGLES
        ]
    found["mean"] = np.mean(list(found.values()), axis=0).tolist()
    return [
        {"combination": label, "set": name, "auc": values, "worst": min(values) / values[0] if values[0] else math.nan}
        for name, values in found.items()
    ]


def error(row: evaluation.Row) -> float:
    """Return the error of the model that was estimated robustly: pixels or degrees."""
    value = row.ransac_error if row.kind == "homography" else row.pose_error
    return math.inf if value is None else value


if __name__ == "__main__":
    typer.run(main)
