"""Seconds of a pair, extraction of both photographs and matching, of pipelines that take turns on the same pairs.

Every tenth pair of all evaluation sets, so that easy and hard ones have their true shares. In each turn every pipeline
matches the pair once, in another order each time; of several turns the fastest counts. Reading files is left out.

``python benchmarks/pair_time.py --threads 2``; ``--busy`` measures beside a process that keeps one core busy.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

import tiepoint as tp
from profiling import neighbour
from tiepoint.devices import environment
from tiepoint.evaluation import load_pairs
from tiepoint.evaluation.speed import cpu_threads

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data" / "eval"
PIPELINES = {  # name: features, effort, keypoints
    "cairn, auto": ("cairn", "auto", 2048),
    "cairn, one pass": ("cairn", "fast", 2048),
    "xfeat + lighterglue": ("xfeat", "fast", 2048),
    "aliked-n16 + lightglue": ("aliked-n16", "fast", 2048),
}


def main(
    data: Annotated[Path, typer.Option(help="Folder of evaluation sets.")] = DATA,
    every: Annotated[int, typer.Option(help="Take every so many pairs of all sets.")] = 10,
    turns: int = 2,
    threads: int = 2,
    busy: Annotated[bool, typer.Option("--busy", help="Beside a process that keeps one core busy.")] = False,
    pipeline: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PIPELINES)}; repeatable.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output")] = HERE / "results" / "pair_time",
) -> None:
    """Print and write one table: median and mean seconds, and their ratios to one pass."""
    run: dict[str, Any] = {}
    for name in pipeline or PIPELINES:
        features, effort, keypoints = PIPELINES[name]
        extractor = tp.features.load(features, max_keypoints=keypoints, device="cpu")
        matcher = tp.matchers.load("lightglue", features=features, device="cpu")
        run[name] = partial(tp.match, features=extractor, matcher=matcher, effort=effort)
    sets = sorted(folder.name for folder in data.iterdir() if (folder / "pairs.json").exists())
    pairs = [pair for name in sets for pair in load_pairs(data, [name], 10_000)][::every]
    seconds = {name: np.full((turns, len(pairs)), np.inf) for name in run}
    with cpu_threads(threads), neighbour(busy):
        for k, pair in enumerate(pairs):
            images = pair.image0.read(), pair.image1.read()
            for turn in range(turns):
                for name in np.roll(list(run), turn):
                    spent = run[name](*images).seconds
                    seconds[name][turn, k] = spent["extract"] + spent["match"]
    best = {name: values.min(axis=0) for name, values in seconds.items()}
    reference = best.get("cairn, one pass", next(iter(best.values())))
    table = Table("pipeline", "median ms", "mean ms", "median to one pass", "mean to one pass")
    for name, values in best.items():
        median, mean = np.median(values), values.mean()
        ratios = f"{median / np.median(reference):.2f}", f"{mean / reference.mean():.2f}"
        table.add_row(name, f"{1000 * median:.0f}", f"{1000 * mean:.0f}", *ratios)
    console = Console(width=110, record=True)
    console.print(f"{len(pairs)} pairs, {threads} threads{', beside a busy core' if busy else ''}", table)
    output.mkdir(parents=True, exist_ok=True)
    label = f"{threads}-threads{'-busy' if busy else ''}"
    (output / f"{label}.txt").write_text(console.export_text())
    rows = {name: values.round(4).tolist() for name, values in best.items()}
    (output / f"{label}.json").write_text(json.dumps({"environment": environment(), "seconds": rows}, indent=1))


if __name__ == "__main__":
    typer.run(main)
