"""Exported networks against PyTorch: do they find the same matches, and how fast.

    tiepoint export cairn+lightglue --to onnx -o /tmp/onnx
    tiepoint export cairn+lightglue --to openvino -o /tmp/openvino
    OMP_NUM_THREADS=1 python benchmarks/exported.py /tmp/onnx /tmp/openvino --data ../shared/data/eval --rows rows.jsonl

``same`` is about the matcher: both get PyTorch's keypoints, and their matches, pairs of indices, are compared.
``whole`` is about extractor and matcher: matches are the same if both ends lie within a hundredth of a pixel. Keypoints
whose scores are nearly equal may change places, which also decides which image comes first in the matcher. A run that
was interrupted goes on where it stopped.
Times are of the processor, on one thread, the runtimes alternating; the last two columns are ratios of medians to
PyTorch's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

import tiepoint as tp
from tiepoint.evaluation import PoseTruth, auc, load_pairs
from tiepoint.geometry import Camera, estimate_relative_pose
from tiepoint.geometry.epipolar import pose_error

SETS = ("7scenes", "entry", "fountain", "kitti", "lund_door", "sacre_coeur")


def main(
    folders: Annotated[list[Path], typer.Argument(help="What tiepoint export wrote from these weights.")],
    data: Annotated[Path, typer.Option(help="The evaluation sets.")],
    rows: Annotated[Path, typer.Option(help="What was measured, a pair a line.")],
    features: Annotated[str, typer.Option(help="The extractor that was exported.")] = "cairn",
    matcher: Annotated[str, typer.Option(help="The matcher that was exported.")] = "lightglue",
    limit: Annotated[int, typer.Option(help="Pairs of each set.")] = 5,
    max_keypoints: Annotated[int, typer.Option("-k", "--max-keypoints")] = 2048,
) -> None:
    """Compare and time."""
    torch.set_num_threads(1)
    names = ["torch", *(folder.name for folder in folders)]
    extractors = [
        tp.features.load(name, max_keypoints=max_keypoints, long_side=1024)
        for name in (features, *(f"cairn@{folder}" for folder in folders))
    ]
    matchers = [
        tp.matchers.load(name, features="cairn") for name in (matcher, *(f"lightglue@{folder}" for folder in folders))
    ]
    pairs = load_pairs(data, SETS, limit)
    done: dict[str, Any] = {}
    if rows.exists():
        done = {row["pair"]: row for row in map(json.loads, rows.read_text().splitlines())}
    loaded = False
    for pair in pairs:
        if f"{pair.set} {pair.name}" in done:
            continue
        views = pair.image0.read(), pair.image1.read()
        row: dict[str, Any] = {"pair": f"{pair.set} {pair.name}"}
        found, whole, given = {}, {}, None
        for name, extract, match in zip(names, extractors, matchers, strict=True):
            keypoints, seconds = timed(lambda e=extract, v=views: list(map(e, v)))  # type: ignore[misc]
            given = given or keypoints
            if not loaded:
                match(*given)  # loads the graphs
            matches, spent = timed(lambda m=match, g=given: m(*g))  # type: ignore[misc]
            row[name] = {"extract": seconds, "match": spent}
            found[name] = matches
            whole[name] = matches if keypoints is given else match(*keypoints)
            row[name]["error"] = error(pair.truth, whole[name])
        loaded = True
        torch_pairs = indices(found["torch"])
        for name in names:
            row[name]["same"] = len(torch_pairs & indices(found[name])), len(torch_pairs | indices(found[name]))
            row[name]["whole"] = share(ends(whole["torch"]), ends(whole[name]))
        with rows.open("a") as file:
            print(json.dumps(row), file=file)
        done[row["pair"]] = row
        shared = ", ".join("{} {}/{} {}/{}".format(name, *row[name]["same"], *row[name]["whole"]) for name in names[1:])
        print(f"{row['pair']}: {len(torch_pairs)} matches, {shared}", flush=True)
    table(names, [done[f"{pair.set} {pair.name}"] for pair in pairs])


def table(names: list[str], rows: list[dict[str, Any]]) -> None:
    """Print what was measured."""
    print("| runtime | pairs with equal matches | shared matches | whole: shared | pose AUC @10° | extract | match |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in names:
        same = np.array([row[name]["same"] for row in rows])
        whole = np.array([row[name]["whole"] for row in rows])
        area = 100 * auc([row[name]["error"] for row in rows], [10])[0]
        times = [
            np.median([row[name][part] for row in rows]) / np.median([row["torch"][part] for row in rows])
            for part in ("extract", "match")
        ]
        print(
            f"| {name} | {(same[:, 0] == same[:, 1]).sum()} of {len(rows)} | "
            f"{same[:, 0].sum() / same[:, 1].sum():.2%} | "
            f"{whole[:, 0].sum() / whole[:, 1].sum():.2%} | {area:.1f} | {times[0]:.2f} | {times[1]:.2f} |"
        )
    for part in ("extract", "match"):
        print(f"torch, {part}: {1000 * np.median([row['torch'][part] for row in rows]):.0f} ms a pair")


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what the work returns, and the processor's seconds."""
    begin = time.process_time()
    result = work()
    return result, time.process_time() - begin


def indices(matches: tp.Matches) -> set[tuple[int, int]]:
    """Return the matches as pairs of numbers."""
    return {(i, j) for i, j in matches.indices.tolist()}


def ends(matches: tp.Matches) -> np.ndarray[Any, Any]:
    """Return both ends of each match (K, 4)."""
    return np.concatenate([matches.points0, matches.points1], axis=1)


def share(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> tuple[int, int]:
    """Return how many of two lists of matches are the same, and how many there are in both together."""
    if min(len(a), len(b)) == 0:
        return 0, len(a) + len(b)
    same = sum(bool((np.abs(b - one).max(1) < 0.01).any()) for one in a)
    return same, len(a) + len(b) - same


def error(truth: Any, matches: tp.Matches) -> float:
    """Return the error of the pose in degrees, 180 where there is none."""
    assert isinstance(truth, PoseTruth)
    cameras = [Camera.from_K(K, (1, 1)) for K in (truth.K0, truth.K1)]
    estimate = estimate_relative_pose(matches.points0, matches.points1, *cameras, covariances=matches.covariances)
    if estimate.R is None or estimate.t is None:
        return 180.0
    return float(np.rad2deg(max(pose_error(estimate.R, estimate.t, truth.R, truth.t))))


if __name__ == "__main__":
    typer.run(main)
