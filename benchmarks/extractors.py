"""Extractors side by side: what they find again, how precisely, what matches, and in which time.

On sets of homographies (`kodak`, `graf`), at several numbers of keypoints, with mutual nearest neighbours alone:

- **repeatability**: of the keypoints that the other picture shows, the share that has a keypoint there within 1 and
  3 pixels; **localisation**: mean distance of those pairs (mutual nearest neighbours only)
- **matching score**: right matches within 1 and 3 pixels, per keypoint that the other picture shows; **precision**
- **AUC**: of the corner error of the homography estimated from the matches, at 1 and 3 pixels
- **roll**: AUC at 3 pixels with the second picture turned, at the worst angle, as a share of that at 0
- **covariances**, of extractors that predict them: normalised squared error of right matches (2 if calibrated), by
  predicted size; AUC of the homography fitted to the inliers anew, each match weighted by its covariance or all alike
- **time**: of one photograph, in one alternating run

Run ``python benchmarks/extractors.py --limit 2 --repeats 2`` for a rehearsal.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import tiepoint as tp
from peers import DATA, HERE
from tiepoint import evaluation
from tiepoint.devices import environment
from tiepoint.errors import TiepointError
from tiepoint.evaluation.metrics import auc
from tiepoint.evaluation.speed import alternate, cpu_threads, made_up_pair
from tiepoint.geometry import corner_error, estimate_homography, symmetric_transfer_error, transform
from tiepoint.types import Features, Image, Matches

EXTRACTORS = ("cairn", "sift", "superpoint", "aliked-n16", "disk", "xfeat")
THRESHOLDS = (1.0, 3.0)  # pixels
ANGLES = tuple(range(0, 360, 30))
SIZES = ((640, 480), (1024, 768))
FIT_THRESHOLD = 2.0  # pixels: inliers of the homography

Array = NDArray[np.float64]


@dataclass
class Row:
    """Means over the pairs of one set; repeatability, localisation, score and AUC for each threshold."""

    extractor: str
    set: str
    keypoints: int
    repeatability: list[float]
    localisation: list[float]
    score: list[float]
    precision: list[float]
    auc: list[float]
    found: float


def main(
    extractors: Annotated[
        list[str] | None, typer.Argument(help="By default all that are installed; cairn@FILE for other weights.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Evaluation sets of homographies; repeatable.")
    ] = None,
    keypoints: Annotated[list[int] | None, typer.Option(help="Numbers of keypoints; repeatable.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only this many pairs of each set.")] = None,
    roll: Annotated[int, typer.Option(help="Pairs of each set that are turned; 0 for none.")] = 12,
    repeats: Annotated[int, typer.Option(help="Turns of timing; 0 for none.")] = 10,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    data: Annotated[Path, typer.Option(help="Folder of evaluation sets.")] = DATA,
    output: Annotated[Path, typer.Option("-o", "--output")] = HERE / "results" / "extractors",
) -> None:
    """Measure extractors on homographies, and time them."""
    numbers = sorted(keypoints or [512, 1024, 2048])
    loaded: dict[str, tp.features.Extractor] = {}
    for name in extractors or EXTRACTORS:
        try:
            # A threshold of 0 lets the detector fill up to the number asked for.
            loaded[name] = tp.features.load(name, max_keypoints=numbers[-1], detection_threshold=0.0)
        except TiepointError as error:
            print(f"left out {name}: {error}")
    rows, worst, covariances = [], [], []
    with cpu_threads(threads), Progress(transient=True) as progress:
        for set_name in set_ or ["kodak", "graf"]:
            pairs = evaluation.load_pairs(data, [set_name], limit)
            for name, extractor in loaded.items():
                task = progress.add_task(f"{name}, {set_name}", total=len(pairs))
                found = []
                for pair in pairs:
                    found.append((extractor(pair.image0.read()), extractor(pair.image1.read())))
                    progress.update(task, advance=1)
                homographies = [pair.truth.H for pair in pairs]
                for number in numbers:
                    cut = [tuple(f.select(torch.arange(min(number, len(f)))) for f in both) for both in found]
                    rows.append(measure(name, set_name, number, cut, homographies))
                if found and found[0][0].covariances is not None:
                    covariances.append(judge_covariances(name, set_name, found, homographies))
                if roll:
                    worst.append(measure_roll(name, extractor, set_name, pairs[:: max(1, len(pairs) // roll)][:roll]))
        seconds = time_them(loaded, repeats, numbers[-1]) if repeats else {}
    told = {
        "rows": [asdict(row) for row in rows], "roll": worst, "covariances": covariances, "milliseconds": seconds,
        "threads": threads, "environment": environment(),
    }  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    (output / "extractors.json").write_text(json.dumps(told, indent=1))
    console = Console(width=160, record=True)
    show(console, rows, worst, covariances, seconds, threads)
    (output / "summary.txt").write_text(console.export_text())
    print(f"wrote {output}/summary.txt, extractors.json")


def shown(H: Array, points: Array, size: tuple[int, int]) -> tuple[Array, NDArray[np.bool_]]:
    """Carry points by a homography; say which the other picture shows."""
    carried = transform(H, points)
    return carried, ((carried >= 0) & (carried <= np.array(size) - 1)).all(1)


def measure(name: str, set_name: str, number: int, found: list[Any], homographies: list[Array]) -> Row:
    """Average everything over the pairs of a set."""
    values: list[list[float]] = []
    corners = []
    for (f0, f1), H in zip(found, homographies, strict=True):
        p0, p1 = f0.keypoints.double().numpy(), f1.keypoints.double().numpy()
        c0, in1 = shown(H, p0, f1.image_size)
        c1, in0 = shown(np.linalg.inv(H), p1, f0.image_size)
        a, b = np.flatnonzero(in1), np.flatnonzero(in0)
        if len(a) == 0 or len(b) == 0:
            continue
        # both directions, as far as the worse of them goes: neither picture's pixels are the measure alone
        forth = np.linalg.norm(c0[a][:, None] - p1[b][None], axis=2)
        back = np.linalg.norm(p0[a][:, None] - c1[b][None], axis=2)
        distance = (forth + back) / 2
        near0, near1 = distance.min(1), distance.min(0)
        partner = distance.argmin(1)
        mutual = near0[distance.argmin(0)[partner] == np.arange(len(a))]
        matches = match(f0, f1)
        miss = symmetric_transfer_error(H, matches.points0, matches.points1)
        visible = (len(a) + len(b)) / 2
        row = []
        for limit in THRESHOLDS:
            row += [
                ((near0 < limit).mean() + (near1 < limit).mean()) / 2,
                float(mutual[mutual < limit].mean()) if (mutual < limit).any() else np.nan,
                (miss < limit).sum() / visible,
                (miss < limit).mean() if len(miss) else 0.0,
            ]
        values.append(row)
        corners.append(homography_error(matches, H, f0.image_size))
    mean = np.nanmean(np.array(values), axis=0).reshape(len(THRESHOLDS), 4).T.tolist() if values else [[np.nan] * 2] * 4
    count = float(np.mean([len(f) for both in found for f in both]))
    return Row(name, set_name, number, *mean, auc(corners, THRESHOLDS), count)


def match(f0: Features, f1: Features) -> Matches:
    """Match mutual nearest neighbours, without a ratio test."""
    return tp.matchers.load("nearest", features=f0.extractor, ratio=None)(f0, f1)


def homography_error(matches: Matches, H: Array, size: tuple[int, int], covariances: Any = None) -> float:
    """Return the corner error of the homography estimated from matches, pixels."""
    points = matches.points0, matches.points1
    model = estimate_homography(*points, threshold=FIT_THRESHOLD, covariances=covariances).model
    return np.inf if model is None else corner_error(model, H, size)


def turned(image: Image, degrees: int) -> tuple[Image, Array]:
    """Turn a picture about its centre on a canvas that holds all of it."""
    width, height = image.size
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    size = round(abs(c) * width + abs(s) * height), round(abs(s) * width + abs(c) * height)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    turn[:2, 2] = (np.array(size) - 1) / 2 - turn[:2, :2] @ ((np.array([width, height]) - 1) / 2)
    pixels = cv2.warpPerspective(image.pixels, turn, size, flags=cv2.INTER_CUBIC)
    return Image(np.asarray(pixels, np.uint8), name=f"{image.name}, turned"), turn


def measure_roll(name: str, extractor: tp.features.Extractor, set_name: str, pairs: list[Any]) -> dict[str, Any]:
    """Return the AUC at 3 pixels for each angle by which the second picture is turned."""
    by_angle = {}
    for degrees in ANGLES:
        errors = []
        for pair in pairs:
            image, turn = turned(pair.image1.read(), degrees)
            f0, f1 = extractor(pair.image0.read()), extractor(image)
            matches = match(f0, f1)
            # measured in the upright picture, where all angles have the same pixels
            model = estimate_homography(matches.points0, matches.points1, threshold=FIT_THRESHOLD).model
            upright = None if model is None else np.linalg.inv(turn) @ model
            errors.append(np.inf if upright is None else corner_error(upright, pair.truth.H, f0.image_size))
        by_angle[degrees] = auc(errors, [THRESHOLDS[-1]])[0]
    share = min(by_angle.values()) / by_angle[0] if by_angle[0] else np.nan
    return {"extractor": name, "set": set_name, "auc": by_angle, "worst": share}


def judge_covariances(name: str, set_name: str, found: list[Any], homographies: list[Array]) -> dict[str, Any]:
    """Compare predicted with measured errors, and homographies fitted with and without weights."""
    squared, sizes, plain, weighted = [], [], [], []
    for (f0, f1), H in zip(found, homographies, strict=True):
        matches = match(f0, f1)
        assert matches.covariances is not None
        p0, p1 = (points.astype(np.float64) for points in (matches.points0, matches.points1))
        covariance, offset = predicted(H, p0, *matches.covariances), transform(H, p0) - p1
        right = np.linalg.norm(offset, axis=1) < THRESHOLDS[-1]
        squared.append(np.einsum("ni,nij,nj->n", offset, np.linalg.inv(covariance), offset)[right])
        sizes.append(np.sqrt(np.linalg.det(covariance))[right])
        # The same fit with equal weights, so that only the weights differ.
        equal = np.broadcast_to(np.eye(2), (len(p0), 2, 2))
        plain.append(homography_error(matches, H, f0.image_size, (equal, equal)))
        weighted.append(homography_error(matches, H, f0.image_size, matches.covariances))
    all_squared, all_sizes = np.concatenate(squared), np.concatenate(sizes)
    edges = np.quantile(all_sizes, np.linspace(0, 1, 6))
    bins = np.clip(np.searchsorted(edges, all_sizes, "right") - 1, 0, 4)
    curve = [
        {
            "predicted_px": float(np.sqrt(all_sizes[bins == k].mean())),
            "normalised": float(all_squared[bins == k].mean()),
        }
        for k in range(5)
        if (bins == k).any()
    ]
    return {
        "extractor": name,
        "set": set_name,
        "normalised_squared_error": float(all_squared.mean()),
        "curve": curve,
        "auc_plain": auc(plain, THRESHOLDS),
        "auc_weighted": auc(weighted, THRESHOLDS),
    }


def slopes(H: Array, points: Array) -> Array:
    """Return the derivative (N, 2, 2) of a homography at points."""
    w = points @ H[2, :2] + H[2, 2]
    carried = transform(H, points)
    return (H[None, :2, :2] - carried[:, :, None] * H[None, 2:, :2]) / w[:, None, None]


def predicted(H: Array, points: Array, s0: Array, s1: Array) -> Array:
    """Return the covariance (N, 2, 2) of the error of matches, in the second picture."""
    J = slopes(H, points)
    return J @ s0 @ J.transpose(0, 2, 1) + s1


def time_them(loaded: dict[str, Any], repeats: int, number: int) -> dict[str, dict[str, float]]:
    """Return median milliseconds of one photograph of each size, all extractors taking turns."""
    told: dict[str, dict[str, float]] = {name: {} for name in loaded}
    for size in SIZES:
        image = made_up_pair(size)[0]
        seconds = alternate({name: partial(extractor, image) for name, extractor in loaded.items()}, repeats)
        for name, all_of_them in seconds.items():
            told[name][f"{size[0]}x{size[1]}"] = float(np.median(all_of_them) * 1000)
    return told


def show(
    console: Console, rows: list[Row], worst: list[Any], covariances: list[Any], seconds: dict[str, Any], threads: int
) -> None:
    """Print everything as tables."""
    heads = ("set", "keypoints", "extractor", "found", "repeat 1 / 3 px", "local. 1 / 3 px", "score 1 / 3 px",
             "precision 1 / 3 px", "AUC 1 / 3 px")  # fmt: skip
    table = Table(*heads, title="Mutual nearest neighbours")
    for row in sorted(rows, key=lambda row: (row.set, row.keypoints)):
        percent = (" / ".join(f"{100 * v:.1f}" for v in values) for values in (row.score, row.precision, row.auc))
        table.add_row(
            row.set, str(row.keypoints), row.extractor, f"{row.found:.0f}",
            " / ".join(f"{100 * v:.1f}" for v in row.repeatability),
            " / ".join(f"{v:.2f}" for v in row.localisation), *percent,
        )  # fmt: skip
    console.print(table)
    if worst:
        table = Table("set", "extractor", *map(str, ANGLES), "worst", title="AUC at 3 px, second picture turned")
        for one in worst:
            angles = [f"{100 * value:.0f}" for value in one["auc"].values()]
            table.add_row(one["set"], one["extractor"], *angles, f"{one['worst']:.0%}")
        console.print(table)
    for one in covariances:
        curve = ", ".join(f"{bin_['predicted_px']:.2f} px: {bin_['normalised']:.2f}" for bin_ in one["curve"])
        plain, weighted = (" / ".join(f"{100 * v:.1f}" for v in one[f"auc_{kind}"]) for kind in ("plain", "weighted"))
        console.print(
            f"{one['extractor']}, {one['set']}: normalised squared error "
            f"{one['normalised_squared_error']:.2f} ({curve})"
        )
        console.print(f"  AUC 1 / 3 px of the fit: plain {plain}, weighted {weighted}")
    if seconds:
        table = Table("extractor", *(f"{w}x{h}" for w, h in SIZES), title=f"milliseconds, {threads} threads")
        for name, by_size in seconds.items():
            table.add_row(name, *(f"{value:.0f}" for value in by_size.values()))
        console.print(table)


if __name__ == "__main__":
    typer.run(main)
