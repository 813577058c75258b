"""Curves and a table of one or more training runs: held-out loss, precision and recall, and time per step.

How the figures of docs/guide/training.md were made::

    tiepoint train matcher --features sift --preset tiny --images PHOTOS -o runs/lightglue
    tiepoint train matcher --features sift --preset tiny --images PHOTOS -o runs/superglue --kind superglue \
        --cache runs/lightglue/photos.cache
    python benchmarks/training_curves.py runs/lightglue runs/superglue -o docs/assets/superglue.svg
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import numpy as np
import typer

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CURVES = (("held_out_loss", "loss"), ("held_out_precision", "precision"), ("held_out_recall", "recall"))
INK = ("#1b6ca8", "#c8553d", "#4f772d", "#7b4fa3")


def read(run: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def main(
    runs: Annotated[list[Path], typer.Argument(help="Folders of training runs on the same pairs.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Picture: .svg, .png or .pdf.")],
    minutes: Annotated[bool, typer.Option("--minutes", help="Draw over training time instead of pairs seen.")] = False,
) -> None:
    """Draw the held-out curves of runs and print what they ended with."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    print(
        "| run | steps | pairs | ms / step | waiting | loss | precision | recall |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|"
    )
    for run, ink in zip(runs, INK, strict=False):
        rows = read(run)
        batch = json.loads((run / "config.json").read_text())["config"]["batch"]
        judged = [row for row in rows if "held_out_loss" in row]
        x = [row["seconds"] / 60 if minutes else row["step"] * batch / 1000 for row in judged]
        for axis, (key, _) in zip(axes, CURVES, strict=True):
            axis.plot(x, [row[key] for row in judged], color=ink, marker=".", label=run.name)
        # Time of the steps alone: what was not spent on waiting for pairs.
        step_ms = float(np.median([1000 * batch / row["pairs_per_s"] * (1 - row["waiting"]) for row in rows]))
        waiting = float(np.mean([row["waiting"] for row in rows]))
        last = judged[-1]
        print(
            f"| {run.name} | {last['step']} | {last['step'] * batch} | {step_ms:.0f} | {waiting:.0%} "
            f"| {last['held_out_loss']:.3f} | {last['held_out_precision']:.3f} | {last['held_out_recall']:.3f} |"
        )
    for ratio, numbers in json.loads((runs[0] / "baseline.json").read_text()).items():
        print(f"| nearest, ratio {ratio} | | | | | | {numbers['precision']:.3f} | {numbers['recall']:.3f} |")
        for axis, key in ((axes[1], "precision"), (axes[2], "recall")):
            axis.axhline(numbers[key], color="0.5", ls=":" if ratio != "0.8" else "--", lw=1)
            axis.annotate(
                f"nearest, ratio {ratio}",
                (1, numbers[key]),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize=7,
                color="0.4",
            )
    for axis, (_, name) in zip(axes, CURVES, strict=True):
        axis.set(title=f"held-out {name}", xlabel="minutes" if minutes else "thousand pairs")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(output, dpi=150)
    print(f"wrote {output}")


if __name__ == "__main__":
    typer.run(main)
