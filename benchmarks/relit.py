"""The same place under another light: photographs of kodak, warped mildly and relit strongly.

The relit pictures are made by a generator that training does not use (it does not import
`tiepoint.training.data.photometric`):

- the histogram of each channel of another photograph of the set, of its negative, or of one channel alone (a sensor of
  another band): tone curves as they occur, and reversed ones
- light that falls off from one side, by up to a factor of twelve, so that half of the picture lies in the dark
- shot noise of a short exposure, and a blur

A match is right if it is within 3 pixels of the known homography. The score is the share of keypoints that have a right
match, of those of the first picture that the second one shows.

``python benchmarks/relit.py cairn+lightglue aliked-n16+lightglue -o benchmarks/results/relit``
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import tiepoint as tp
from tiepoint import pipeline
from tiepoint.devices import environment
from tiepoint.evaluation.metrics import auc
from tiepoint.evaluation.run import parse_combination
from tiepoint.evaluation.speed import cpu_threads
from tiepoint.features import ExtractorOptions
from tiepoint.geometry import corner_error, estimate_homography, transform

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data" / "eval" / "kodak" / "images"
COMBINATIONS = ["cairn+lightglue", "aliked-n16+lightglue", "xfeat+lightglue", "sift+nearest"]
RIGHT = 3.0  # pixels

Pixels = NDArray[np.uint8]


@dataclass
class Row:
    """One pair of one combination: score and precision in [0, 1], corner error in pixels (inf: no homography)."""

    combination: str
    pair: str
    matches: int
    score: float
    precision: float
    corner_error: float


def main(
    combinations: Annotated[list[str] | None, typer.Argument(help="FEATURES+MATCHER, by default four.")] = None,
    data: Annotated[Path, typer.Option(help="Folder of photographs.")] = DATA,
    versions: Annotated[int, typer.Option(help="Relit versions of each photograph.")] = 3,
    max_keypoints: int = 1024,
    limit: Annotated[int | None, typer.Option(help="Only this many photographs.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default torch's.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder to write the pairs to, to look at them.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output")] = HERE / "results" / "relit",
) -> None:
    """Match the relit pairs by each combination; print and write one table."""
    files = sorted(path for path in data.iterdir() if path.suffix in (".jpg", ".png"))
    photos = [tp.read_image(path).pixels for path in files]
    pairs = [
        (f"{files[i].stem}-{version}", *make_pair(photos, i, version))
        for i in range(len(photos))[:limit]
        for version in range(versions)
    ]
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        for name, first, second, _ in pairs:
            cv2.imwrite(str(pictures / f"{name}.jpg"), np.hstack([first, second])[..., ::-1])
    rows = []
    with cpu_threads(threads):
        for text in combinations or COMBINATIONS:
            options = ExtractorOptions(max_keypoints=max_keypoints)
            extractor, matcher, _ = pipeline.load(*parse_combination(text), device="cpu", options=options)
            rows += [judge(text, name, extractor, matcher, *pair) for name, *pair in pairs]
    table = Table(title=f"{len(pairs)} relit pairs, {max_keypoints} keypoints")
    for column in ("combination", "matches", "score", "precision", "AUC @3/5/10 px"):
        table.add_column(column)
    for text in dict.fromkeys(row.combination for row in rows):
        mine = [row for row in rows if row.combination == text]
        means = [np.mean([getattr(row, name) for row in mine]) for name in ("matches", "score", "precision")]
        curve = "/".join(f"{100 * value:.1f}" for value in auc([row.corner_error for row in mine], [3, 5, 10]))
        table.add_row(text, f"{means[0]:.0f}", f"{100 * means[1]:.1f}", f"{100 * means[2]:.1f}", curve)
    console = Console(width=110, record=True)
    console.print(table)
    output.mkdir(parents=True, exist_ok=True)
    (output / "summary.txt").write_text(console.export_text())
    finite = [{**asdict(row), "corner_error": min(row.corner_error, 1e9)} for row in rows]
    (output / "rows.json").write_text(json.dumps({"environment": environment(), "rows": finite}, indent=1))


def make_pair(photos: list[Pixels], i: int, version: int) -> tuple[Pixels, Pixels, NDArray[np.float64]]:
    """Return a photograph, a relit view of it, and the homography between the two."""
    rng = np.random.default_rng([i, version])
    first = photos[i]
    height, width = first.shape[:2]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    moved = corners + rng.uniform(-0.12, 0.12, (4, 2)).astype(np.float32) * [width, height]
    H = cv2.getPerspectiveTransform(corners, moved.astype(np.float32))
    other = photos[(i + 1 + int(rng.integers(len(photos) - 1))) % len(photos)]
    warped = cv2.warpPerspective(first, H, (width, height), borderMode=cv2.BORDER_REFLECT)
    return first, relight(warped, other, version, rng), H


def relight(picture: Pixels, other: Pixels, kind: int, rng: np.random.Generator) -> Pixels:
    """Give a picture the tones of another one, light from one side, noise and blur."""
    source = picture.astype(np.float64)
    if kind % 3 == 2:  # one channel alone
        source = np.repeat(source[..., [int(rng.integers(3))]], 3, axis=2)
    target = other if kind % 3 != 1 else 255 - other
    toned = np.stack([_match_histogram(source[..., c], target[..., c], kind % 3 == 1) for c in range(3)], axis=2)
    y, x = np.mgrid[-1 : 1 : picture.shape[0] * 1j, -1 : 1 : picture.shape[1] * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    fall = rng.uniform(1.5, 3.5)  # stops from one side to the other
    lit = toned * 2 ** (fall / 2 * (x * np.cos(angle) + y * np.sin(angle) - 0.5))[..., None]
    electrons = rng.uniform(40, 300)  # of white
    noisy = rng.poisson(np.clip(lit / 255, 0, 1) * electrons) / electrons * 255
    blurred = cv2.GaussianBlur(noisy, (0, 0), rng.uniform(0.5, 1.5))
    return np.clip(np.round(blurred), 0, 255).astype(np.uint8)


def _match_histogram(channel: NDArray[np.float64], target: Pixels, reversed_: bool) -> NDArray[np.float64]:
    """Map tones so that their distribution is that of the target, in the same order or in the reverse one."""
    _, index, counts = np.unique(channel, return_inverse=True, return_counts=True)
    quantiles = (np.cumsum(counts) - counts / 2) / channel.size
    there = np.sort(target.ravel())
    mapped = np.interp(1 - quantiles if reversed_ else quantiles, np.linspace(0, 1, len(there)), there)
    return mapped[index].reshape(channel.shape)


def judge(
    text: str,
    name: str,
    extractor: tp.features.Extractor,
    matcher: tp.matchers.Matcher,
    first: Pixels,
    second: Pixels,
    H: NDArray[np.float64],
) -> Row:
    """Match one pair and compare with its homography."""
    f0, f1 = extractor(first), extractor(second)
    found = matcher(f0, f1)
    size = np.array(second.shape[1::-1])
    there = transform(H, f0.keypoints.numpy().astype(float))
    shown = ((there >= 0) & (there <= size - 1)).all(axis=1)
    errors = np.linalg.norm(transform(H, found.points0.astype(float)) - found.points1, axis=1)
    right = errors < RIGHT
    estimate = estimate_homography(found.points0, found.points1, covariances=found.covariances)
    error = np.inf if estimate.model is None else corner_error(estimate.model, H, first.shape[1::-1])
    precision = float(right.mean()) if len(right) else 0.0
    return Row(text, name, len(found), float(right.sum() / max(1, shown.sum())), precision, float(error))


if __name__ == "__main__":
    typer.run(main)
