"""Repeated objects: one thing that stands in two places, or a product on a shelf of copies.

Three kinds of pairs, made of photographs of kodak, each with its truth in closed form:

- *kept*: an object, cut out along a blob, stands a second time in the second view, away from where it belongs;
- *moved*: the same, and where it belongs something else stands;
- *shelf*: the first picture is a template, the second shows two to six copies of it in front of another photograph.

A match is on the wrong instance if it goes from the object to its copy, and on a shelf if it goes to another copy than
most of the others. The share of such matches is told for `tiepoint.match` as it is and with ``instances``; for shelves
also how many copies are found (corners within 5 pixels), and how many groups are no copy. Ordinary pairs, a homography
of the same photographs without any copy, tell how many right matches the search costs.

``python benchmarks/repeated_objects.py -o benchmarks/results/repeated_objects``
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import tiepoint as tp
from tiepoint.devices import environment
from tiepoint.geometry import reprojection_error, transform

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data" / "eval" / "kodak" / "images"
KINDS = ("kept", "moved", "shelf", "ordinary")
RIGHT = 5.0  # pixels: of a match, and of the corners of a copy

Pixels = NDArray[np.uint8]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """Two pictures; where the scene goes, and where copies of the object go; the object's mask in the first."""

    kind: str
    first: Pixels
    second: Pixels
    scene: Array | None
    copies: list[Array]
    mask: Pixels


@dataclass
class Row:
    """What was found on one pair; ``seconds`` are those of the CPU, with instances and without."""

    kind: str
    pair: int
    matches: list[int] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    copies: int = 0
    found: int = 0
    false: int = 0
    margin: float | None = None


def main(
    data: Annotated[Path, typer.Option(help="Folder of photographs.")] = DATA,
    pairs: Annotated[int, typer.Option(help="How many pairs of each kind.")] = 20,
    features: str = "cairn",
    max_keypoints: int = 2048,
    pictures: Annotated[Path | None, typer.Option(help="Folder to write the pairs to, to look at them.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output")] = HERE / "results" / "repeated_objects",
) -> None:
    """Match all pairs with and without instances; print and write one table."""
    photos = [tp.read_image(path).pixels for path in sorted(data.iterdir()) if path.suffix in (".jpg", ".png")]
    extractor = tp.features.load(features, max_keypoints=max_keypoints)
    matcher = tp.matchers.load("lightglue", features=features)
    rows = []
    for kind in KINDS:
        for i in range(pairs):
            pair = make_pair(photos, kind, i)
            if pictures is not None:
                pictures.mkdir(parents=True, exist_ok=True)
                for part, pixels in enumerate((pair.first, pair.second)):
                    cv2.imwrite(str(pictures / f"{kind}-{i:03d}-{part}.jpg"), pixels[..., ::-1])
            rows.append(judge(pair, i, extractor, matcher))
    console = Console(width=110, record=True)
    console.print(table(rows, f"{pairs} pairs of each kind, {features}, {max_keypoints} keypoints"))
    output.mkdir(parents=True, exist_ok=True)
    (output / "summary.txt").write_text(console.export_text())
    (output / "rows.json").write_text(
        json.dumps({"environment": environment(), "rows": [asdict(row) for row in rows]}, indent=1)
    )


def make_pair(photos: list[Pixels], kind: str, i: int) -> Pair:
    """Return the pair of that kind and number: always the same."""
    rng = np.random.default_rng([KINDS.index(kind), i])
    photo, other = (photos[k] for k in rng.permutation(len(photos))[:2])
    height, width = photo.shape[:2]
    if kind == "shelf":
        side = int(rng.integers(200, 300))
        x, y = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
        template = photo[y : y + side, x : x + side]
        shelf = cv2.resize(other, (960, 640))
        cells = rng.permutation(6)[: rng.integers(2, 7)]
        copies = []
        for cell in cells.tolist():
            centre = np.array([160 + 320 * (cell % 3), 160 + 320 * (cell // 3)]) + rng.uniform(-15, 15, 2)
            H = around(centre, (side - 1) / 2, rng.uniform(200, 250) / side, rng.uniform(-0.2, 0.2), rng)
            draw(shelf, template, H, np.full((side, side), 255, np.uint8))
            copies.append(H)
        return Pair(kind, template, relight(shelf, rng), None, copies, np.full((side, side), 255, np.uint8))
    # An object with texture: of some, the one with most.
    detail = np.abs(cv2.Laplacian(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), cv2.CV_32F))
    mask, centre = max((blob((width, height), rng) for _ in range(12)), key=lambda made: detail[made[0] > 0].mean())
    second = photo.copy()
    copies = []
    if kind != "ordinary":
        away = np.array([width / 2, height / 2]) - centre
        target = centre + away / np.linalg.norm(away) * rng.uniform(190, 230)
        H = around(target, centre, rng.uniform(0.9, 1.1), rng.uniform(-0.15, 0.15), rng)
        if kind == "moved":
            there = cv2.dilate(mask, np.ones((9, 9), np.uint8)) > 0
            second[there] = cv2.resize(other, (width, height))[there]
        draw(second, photo, H, mask)
        copies = [H]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32) - 0.5
    moved = (corners + rng.uniform(-0.05, 0.05, (4, 2)) * width).astype(np.float32)
    scene = cv2.getPerspectiveTransform(corners, moved)
    warped = np.asarray(cv2.warpPerspective(second, scene, (width, height)), np.uint8)
    return Pair(kind, photo, relight(warped, rng), scene, [scene @ H for H in copies], mask)


def blob(size: tuple[int, int], rng: np.random.Generator) -> tuple[Pixels, Array]:
    """Return the mask of an object of 120 to 170 pixels with a wavy outline, and its centre, away from the middle."""
    width, height = size
    radius = rng.uniform(60, 85)
    centre = np.array([rng.choice([0.2, 0.8]) * width, rng.uniform(0.3, 0.7) * height])
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    waves = 1 + sum(rng.uniform(-0.1, 0.1) * np.cos(k * angles + rng.uniform(0, 6)) for k in (2, 3, 4))
    outline = centre + radius * waves[:, None] * np.column_stack([np.cos(angles), np.sin(angles)])
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [outline.astype(np.int32)], 255)
    return mask, centre


def around(target: Array, centre: Array | float, scale: float, angle: float, rng: np.random.Generator) -> Array:
    """Return a homography that turns and scales around ``centre``, brings it to ``target``, and tilts a little."""
    origin = np.broadcast_to(centre, 2)
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [*rng.uniform(-2e-4, 2e-4, 2), 1]])
    there, back = np.eye(3), np.eye(3)
    there[:2, 2], back[:2, 2] = target, -origin
    return np.asarray(there @ turn @ back, np.float64)


def draw(picture: Pixels, source: Pixels, H: Array, mask: Pixels) -> None:
    """Paste the masked part of ``source`` into ``picture``, with a soft edge."""
    size = picture.shape[1::-1]
    alpha = cv2.GaussianBlur(cv2.warpPerspective(mask, H, size).astype(np.float32) / 255, (0, 0), 1)[..., None]
    drawn = cv2.warpPerspective(source, H, size, flags=cv2.INTER_AREA)
    picture[:] = np.round(alpha * drawn + (1 - alpha) * picture).astype(np.uint8)


def relight(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """Change gain and tone curve, add noise."""
    lit = (picture / 255.0) ** rng.uniform(0.8, 1.25) * rng.uniform(0.8, 1.1, 3)
    return np.clip(np.round(255 * lit + rng.normal(0, 3, picture.shape)), 0, 255).astype(np.uint8)


def judge(pair: Pair, number: int, extractor: tp.features.Extractor, matcher: tp.matchers.Matcher) -> Row:
    """Match one pair as it is, and with instances, and compare with the truth."""
    row = Row(pair.kind, number, copies=len(pair.copies))
    for instances in (None, 6 if pair.kind == "shelf" else 1):
        begin = time.process_time()
        found = tp.match(pair.first, pair.second, extractor, matcher, instances=instances)
        row.seconds.append(time.process_time() - begin)
        wrong, right = count(pair, found.points0, found.points1)
        row.matches.append(len(found))
        row.wrong.append(wrong)
        row.right.append(right)
        row.margin = found.matches.margin
        groups = [group.homography for group in found.matches.groups]
    if pair.kind == "shelf":
        side = pair.first.shape[0]
        corners = np.array([[0, 0], [side, 0], [side, side], [0, side]]) - 0.5
        hits = [
            {
                k
                for k, H in enumerate(pair.copies)
                if reprojection_error(G, corners, transform(H, corners)).mean() <= RIGHT
            }
            for G in groups
        ]
        row.found = len(set().union(*hits))
        row.false = sum(not hit for hit in hits)
    return row


def count(pair: Pair, points0: Array, points1: Array) -> tuple[int, int]:
    """Return how many matches are on the wrong instance, and how many on the right one."""
    near = [reprojection_error(H, points0, points1) <= RIGHT for H in pair.copies]
    if pair.scene is None:
        counts = [int(part.sum()) for part in near]
        return sum(counts) - max(counts), max(counts)
    x, y = np.rint(points0).astype(int).T
    copied = (pair.mask[y, x] > 0) & near[0] if near else np.zeros(len(points0), bool)
    return int(copied.sum()), int((reprojection_error(pair.scene, points0, points1) <= RIGHT).sum())


def table(rows: list[Row], title: str) -> Table:
    """Return one line for each kind of pair."""
    result = Table(title=title)
    for column in (
        "pairs",
        "wrong instance",
        "with instances",
        "right",
        "with",
        "CPU s",
        "with",
        "copies found",
        "false",
    ):
        result.add_column(column)
    for kind in dict.fromkeys(row.kind for row in rows):
        mine = [row for row in rows if row.kind == kind]
        total = {name: np.sum([getattr(row, name) for row in mine], axis=0) for name in ("matches", "wrong", "right")}
        shares = [f"{w} of {m} ({w / max(m, 1):.1%})" for w, m in zip(total["wrong"], total["matches"], strict=True)]
        seconds = [f"{value:.1f}" for value in np.mean([row.seconds for row in mine], axis=0)]
        found = f"{sum(row.found for row in mine)} of {sum(row.copies for row in mine)}" if kind == "shelf" else ""
        false = str(sum(row.false for row in mine)) if kind == "shelf" else ""
        result.add_row(f"{len(mine)} {kind}", *shares, *map(str, total["right"]), *seconds, found, false)
    return result


if __name__ == "__main__":
    typer.run(main)
