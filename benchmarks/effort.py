"""The ladder of tries, rung by rung: what each finds, what it costs, and where ``auto`` should stop.

Pairs with ground truth from the evaluation sets, and unrelated pairs: photographs of two different sets. Each is
climbed to the top once. From the states after every rung follow `fast`, `thorough`, and `auto` at any threshold.

``python benchmarks/effort.py graf sacre_coeur --limit 5 --unrelated 40``
"""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

import tiepoint as tp
from tiepoint import effort as ladder
from tiepoint import pipeline
from tiepoint.devices import environment
from tiepoint.effort.ladder import SOLVED
from tiepoint.evaluation import load_pairs
from tiepoint.evaluation.metrics import auc
from tiepoint.geometry import Camera, corner_error, estimate_homography, estimate_relative_pose, pose_error

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data" / "eval"
Limits = tuple[float, ...]  # the evidence that is enough before each rung
EASY = (150.0, 250.0, 400.0)  # other values for planes, before a second pass


def main(
    sets: Annotated[list[str] | None, typer.Argument(help="Names of evaluation sets.")] = None,
    data: Annotated[Path, typer.Option(help="Folder of evaluation sets.")] = DATA,
    limit: Annotated[int, typer.Option(help="Pairs of each set.")] = 5,
    unrelated: Annotated[int, typer.Option(help="Pairs of photographs of two sets.")] = 0,
    features: str = "cairn",
    max_keypoints: int = 2048,
    long_side: int = 1024,
    output: Annotated[Path, typer.Option("-o", "--output", help="One line of JSON a pair; continued.")] = HERE
    / "results"
    / "effort"
    / "rows.jsonl",
) -> None:
    """Climb the ladder with every pair; print one table."""
    extractor = tp.features.load(features, max_keypoints=max_keypoints, long_side=long_side)
    matcher = tp.matchers.load("lightglue", features=features)
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    done = {row["pair"] for row in rows}
    jobs: list[tuple[str, Any, Any, Any]] = []
    for name in sets or []:
        pairs = load_pairs(data, [name], 10_000)
        chosen = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(limit, len(pairs))).astype(int)]
        jobs += [(name, pair.image0.read, pair.image1.read, pair.truth) for pair in chosen]
    jobs += [("unrelated", *pair, None) for pair in _unrelated(data, unrelated)]
    for k, (name, read0, read1, truth) in enumerate(jobs):
        images = read0(), read1()
        pair = f"{name} {k} {images[0].name} {images[1].name}"
        if pair in done:
            continue
        row = {"set": name, "pair": pair, "rungs": _climb(images, extractor, matcher, truth)}
        rows.append(row)
        with output.open("a") as file:
            file.write(json.dumps(row) + "\n")
    console = Console(width=110, record=True)
    console.print(_table(rows))
    output.with_suffix(".txt").write_text(console.export_text())
    output.with_suffix(".json").write_text(json.dumps(environment(), indent=1))


def _unrelated(data: Path, count: int) -> list[tuple[Any, Any]]:
    """Return readers of photographs of two different sets, always the same ones."""
    rng = np.random.default_rng(0)
    names = sorted(folder.name for folder in data.iterdir() if (folder / "images").is_dir())
    files = {name: sorted((data / name / "images").iterdir()) for name in names}
    pairs: list[tuple[Any, Any]] = []
    while len(pairs) < count:
        two = [names[i] for i in rng.permutation(len(names))[:2]]
        first, second = (partial(tp.read_image, files[n][rng.integers(len(files[n]))]) for n in two)
        if set(two) != {"entry", "fountain"}:  # two sides of one courtyard
            pairs.append((first, second))
    return pairs


def _climb(images: tuple[tp.Image, tp.Image], extractor: Any, matcher: Any, truth: Any) -> list[dict[str, Any]]:
    """Return what is known of ``effort="fast"`` and then after every rung."""
    begin = time.process_time()
    start = ladder.State.begin(images, extractor, matcher, pipeline.another(extractor))
    extracting = spent = time.process_time() - begin
    rows: list[dict[str, Any]] = []
    state = start
    for rung, _ in ladder.LADDER:
        begin = time.process_time()
        after = rung(state)
        cost = time.process_time() - begin
        if after is state:
            continue
        state, spent = after, spent + cost
        rows.append(_row(state, spent, truth))
        if rung is ladder.all_keypoints:
            fast = state if state.attempts[-1].kept else ladder.all_keypoints(start)
            rows.insert(0, _row(fast, extracting + cost, truth))
    return rows


def _row(state: ladder.State, seconds: float, truth: Any) -> dict[str, Any]:
    """Return a state in numbers; ``seconds`` are those of the CPU since the photographs were read."""
    return {
        "name": state.attempts[-1].name,
        "evidence": state.attempts[-1].evidence,
        "best": state.evidence,
        "kept": [attempt.kept for attempt in state.attempts],
        "scene": ladder.is_scene(state),
        "overlaps": state.matches.overlaps,
        "matches": len(state.matches),
        "seconds": seconds,
        "error": min(_error(state, truth), 1e9),
    }


def _error(state: ladder.State, truth: Any) -> float:
    """Return the error of the corners in pixels, or the larger error of the pose in degrees; inf without a model."""
    matches = state.matches
    if truth is None:
        return np.inf
    if hasattr(truth, "H"):
        model = estimate_homography(matches.points0, matches.points1, covariances=matches.covariances).model
        return np.inf if model is None else corner_error(model, truth.H, state.images[0].size)
    camera0 = Camera.from_K(truth.K0, state.images[0].size)
    camera1 = Camera.from_K(truth.K1, state.images[1].size)
    points = matches.points0, matches.points1
    pose = estimate_relative_pose(*points, camera0, camera1, covariances=matches.covariances)
    if pose.R is None or pose.t is None:
        return np.inf
    return float(np.degrees(max(pose_error(pose.R, pose.t, truth.R, truth.t))))


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="AUC of homographies @1/3/5 px, of poses @5/10/20 degrees; CPU seconds a pair")
    names = list(dict.fromkeys(row["set"] for row in rows))
    for column in ("effort", *names):
        table.add_column(column)
    auto = tuple(limit for _, limit in ladder.LADDER)
    top = tuple(np.inf for _ in ladder.LADDER)
    settings: dict[str, Limits | None] = {"fast": None, "auto": auto, "thorough": top}
    settings |= {f"auto, easy {easy:g}": (auto[0], easy, *auto[2:]) for easy in EASY}
    for label, enough in settings.items():
        cells = []
        for name in names:
            mine = [_stop(row["rungs"], enough) for row in rows if row["set"] == name]
            seconds = np.mean([rung["seconds"] for rung in mine])
            if name == "unrelated":
                cells.append(f"{sum(bool(rung['overlaps']) for rung in mine)} of {len(mine)} overlap, {seconds:.1f} s")
                continue
            limits = [1, 3, 5] if name in ("graf", "kodak") else [5, 10, 20]
            curve = "/".join(f"{100 * value:.1f}" for value in auc([rung["error"] for rung in mine], limits))
            cells.append(f"{curve}, {seconds:.1f} s")
        table.add_row(label, *cells)
    return table


def _stop(rungs: list[dict[str, Any]], enough: Limits | None) -> dict[str, Any]:
    """Return the rung at which the ladder ends, given the evidence that is enough before each; None is "fast"."""
    if enough is None:
        return rungs[0]
    names = [rung.__name__.replace("_", " ") for rung, _ in ladder.LADDER]
    last, place = rungs[1], 0
    for row in rungs[1:]:
        while names[place] != row["name"]:  # rungs that did not apply
            place += 1
        limit = enough[place]
        settled = last["scene"] and last["best"] >= SOLVED and np.isfinite(limit)
        if row is not last and (last["best"] >= limit or settled):
            break
        last, place = row, place + 1
    return last


if __name__ == "__main__":
    typer.run(main)
