"""Accuracy against time of whole pipelines: one point for each, and the line beyond which none lies.

Reads what ``eval_table.py`` measured (times are those of one photograph pair, extraction and matching together)::

    python benchmarks/eval_table.py sift+nearest cairn+lightglue aliked-n16+lightglue --threads 2 -o RESULTS
    python benchmarks/frontier.py RESULTS -o docs/assets/frontier.svg
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import typer

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PANELS = (("pose_auc_10deg", "relative pose: mean AUC at 10°"), ("ransac_auc_3px", "homography: mean AUC at 3 px"))
OURS, OTHERS = "#1b6ca8", "#8a8a8a"


def main(
    results: Annotated[list[Path], typer.Argument(help="Folders that eval_table.py wrote, of one machine.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Picture: .svg, .png or .pdf.")],
    ours: Annotated[str, typer.Option(help="Pipelines that begin with this are drawn in colour.")] = "cairn",
) -> None:
    """Draw accuracy against time."""
    runs = [run for folder in results for run in json.loads((folder / "summary.json").read_text())]
    where = {(run["environment"]["cpu"], run["configuration"]["threads"]) for run in runs}
    if len(where) > 1:
        raise typer.BadParameter(f"times of different machines cannot be compared: {sorted(where)}")
    # of a pipeline that several folders hold, the last counts
    points = list({run["label"]: {**run["sets"][-1], "label": run["label"]} for run in runs}.values())
    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 4.2), layout="constrained")
    for axis, (key, title) in zip(axes, PANELS, strict=True):
        here = sorted(((seconds(point), 100 * point[key], point["label"]) for point in points), key=lambda p: p[:2])
        top = max(y for _, y, _ in here)
        for x, y, label in here:
            # of two names that would cross, the one of the lower point stands below it
            crossed = any(y < v < y + 0.06 * top and 0.3 < u / x < 3 for u, v, _ in here)
            ink = OURS if label.startswith(ours) else OTHERS
            axis.plot(x, y, "o", color=ink)
            axis.annotate(
                label, (x, y), textcoords="offset points", xytext=(5, -11 if crossed else 4), fontsize=8, color=ink
            )
        best = [point for i, point in enumerate(here) if all(point[1] > before[1] for before in here[:i])]
        axis.step(*zip(*(point[:2] for point in best), strict=True), where="post", color="black", linewidth=0.8)
        axis.set(xscale="log", xlabel="seconds for a pair", title=title)
        axis.grid(alpha=0.3)
        axis.margins(x=0.25, y=0.15)
    figure.savefig(output)
    print("| pipeline | seconds a pair | pose AUC @10° | homography AUC @3 px |\n|---|---:|---:|---:|")
    for point in sorted(points, key=seconds):
        print(
            f"| {point['label']} | {seconds(point):.2f} | " + " | ".join(f"{100 * point[k]:.1f}" for k, _ in PANELS),
            "|",
        )
    print(f"wrote {output}")


def seconds(point: dict[str, Any]) -> float:
    """Return the time of a pair: both extractions and the matching."""
    return point["extract_seconds"] + point["match_seconds"]


if __name__ == "__main__":
    typer.run(main)
