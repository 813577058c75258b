"""Whether calibrated thresholds keep their promises on photographs that nobody calibrated on.

*Adaptivity*: every pair of the evaluation sets is matched at full depth and with each weights file's thresholds, in
turns; the table says which share of the full model's right matches was lost, and the ratio of median times.

*Overlap*: random pairs of different scenes must be said not to overlap, and evaluation pairs that full depth solves
(15 right matches) must be said to overlap.

Each weights file is what ``tiepoint calibrate RUN --keep X -o FILE`` wrote; all must hold the same network::

    python benchmarks/calibrated.py keep95.safetensors keep99.safetensors
"""

from __future__ import annotations

import json
import time
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import track

from tiepoint import evaluation, features
from tiepoint.devices import environment
from tiepoint.evaluation import metrics
from tiepoint.matchers.lightglue import LightGlue
from tiepoint.types import Features, Matches

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data"
SOLVED = 15  # right matches
RIGHT_PX = 3.0


def main(
    weights: Annotated[list[Path], typer.Argument(help="Calibrated files of one network.")],
    data: Annotated[Path, typer.Option(help="Folder with the folders eval and demo.")] = DATA,
    limit: Annotated[int | None, typer.Option(help="Only this many pairs of each set.")] = None,
    unrelated: Annotated[int, typer.Option(help="Random pairs of different scenes.")] = 100,
    max_keypoints: int = 2048,
    output: Annotated[Path, typer.Option("-o", "--output")] = HERE / "results" / "calibrated",
) -> None:
    """Measure what calibrated thresholds lose, save and promise."""
    adaptive = {path.name: LightGlue(weights=str(path)) for path in weights}
    first = next(iter(adaptive.values()))
    full = LightGlue(weights=str(weights[0]), adaptive=False)
    extract = features.load(first.features[0], max_keypoints=max_keypoints)

    @lru_cache(maxsize=64)
    def extracted(picture: Any) -> Features:
        return extract(picture.read())

    rows: list[dict[str, Any]] = []
    pairs = evaluation.load_pairs(data / "eval", None, limit)
    for pair in track(pairs, "related pairs", transient=True):
        f0, f1 = extracted(pair.image0), extracted(pair.image1)
        seconds, found = _timed(full, f0, f1)
        right = _right(pair.truth, found)
        row: dict[str, Any] = {"set": pair.set, "pair": pair.name, "right": len(right), "full": seconds}
        for name, matcher in adaptive.items():
            seconds, found = _timed(matcher, f0, f1)
            kept = len(right & _right(pair.truth, found))
            row[name] = {"seconds": seconds, "kept": kept, "layer": found.stop_layer, "overlaps": found.overlaps}
        rows.append(row)

    scenes = {
        folder: sorted(folder.glob("images/*")) for part in ("eval", "demo") for folder in (data / part).iterdir()
    }
    # Every photograph of kodak is a scene of its own.
    flat = [(file if folder.name == "kodak" else folder, file) for folder, files in scenes.items() for file in files]
    random = np.random.default_rng(0)
    said = {name: 0 for name in adaptive}
    drawn = 0
    while drawn < unrelated:
        (scene0, file0), (scene1, file1) = (flat[i] for i in random.integers(len(flat), size=2))
        if scene0 == scene1:
            continue
        drawn += 1
        f0, f1 = extract(file0), extract(file1)
        for name, matcher in adaptive.items():
            said[name] += bool(matcher(f0, f1).overlaps)

    lines = ["| weights | set | pairs | right matches lost | median time, full / adaptive | mean stop layer |"]
    lines.append("|---|---|---:|---:|---:|---:|")
    for name in adaptive:
        for set_ in [*dict.fromkeys(row["set"] for row in rows), "all"]:
            some = [row for row in rows if set_ in (row["set"], "all") and row["right"]]
            lost = np.mean([1 - row[name]["kept"] / row["right"] for row in some])
            faster = np.median([row["full"] for row in some]) / np.median([row[name]["seconds"] for row in some])
            layer = np.mean([row[name]["layer"] for row in some])
            lines.append(f"| {name} | {set_} | {len(some)} | {lost:.2%} | {faster:.2f} | {layer:.1f} |")
    lines += ["", "| weights | unrelated pairs said to overlap | solved pairs said to overlap |", "|---|---:|---:|"]
    for name in adaptive:
        solved = [row for row in rows if row["right"] >= SOLVED]
        kept_pairs = sum(bool(row[name]["overlaps"]) for row in solved)
        lines.append(f"| {name} | {said[name]} of {unrelated} | {kept_pairs} of {len(solved)} |")
    about = environment()
    lines += ["", ", ".join(f"{key}: {value}" for key, value in about.items())]
    output.mkdir(parents=True, exist_ok=True)
    (output / "summary.md").write_text("\n".join(lines) + "\n")
    (output / "rows.json").write_text(json.dumps({"environment": about, "rows": rows, "unrelated": said}) + "\n")
    print("\n".join(lines))


def _timed(matcher: Any, f0: Features, f1: Features) -> tuple[float, Matches]:
    began = time.perf_counter()
    found = matcher(f0, f1)
    return time.perf_counter() - began, found


def _right(truth: Any, matches: Matches) -> set[tuple[int, int]]:
    """Return the matches within `RIGHT_PX` of the ground truth."""
    if not len(matches):
        return set()
    errors = metrics.match_errors(truth, matches.points0, matches.points1)
    return {(int(i), int(j)) for (i, j), error in zip(matches.indices, errors, strict=True) if error <= RIGHT_PX}


if __name__ == "__main__":
    typer.run(main)
