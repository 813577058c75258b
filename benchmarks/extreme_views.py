"""Extreme viewpoints: a photograph on a plane, seen from the front and from the side at a tilt of 3 to 8.

The plane shows a photograph of kodak, behind it stands another one, a different one in each view. A camera of known
position projects it, so that the homography is known in closed form. The view from the side has other light: gain and
tone curve, brightness that falls from one side to the other, and noise. A pair is solved if the estimated homography
puts the corners of the photograph within 5 pixels (mean) of the truth.

``python benchmarks/extreme_views.py fast auto thorough -o benchmarks/results/extreme_views``
"""

from __future__ import annotations

import json
import time
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
from tiepoint import effort as ladder
from tiepoint.devices import environment
from tiepoint.geometry import estimate_homography, reprojection_error, transform

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data" / "eval" / "kodak" / "images"
SIZE = (640, 480)
FOCAL = 700.0
SOLVED = 5.0  # pixels

Pixels = NDArray[np.uint8]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """Two views, the homography between them, and the corners of the photograph on the plane in the first."""

    name: str
    tilt: float
    first: Pixels
    second: Pixels
    H: Array
    corners: Array


@dataclass
class Row:
    """One pair at one effort; ``seconds`` are those of the CPU, ``error`` is inf without a homography."""

    effort: str
    pair: str
    tilt: float
    matches: int
    error: float
    seconds: float
    attempts: str

    @property
    def solved(self) -> bool:
        """Whether the corners are where they belong."""
        return self.error <= SOLVED


def main(
    efforts: Annotated[list[str] | None, typer.Argument(help="By default all.")] = None,
    data: Annotated[Path, typer.Option(help="Folder of photographs.")] = DATA,
    pairs: Annotated[int, typer.Option(help="How many pairs.")] = 60,
    features: str = "cairn",
    max_keypoints: int = 2048,
    pictures: Annotated[Path | None, typer.Option(help="Folder to write the pairs to, to look at them.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output")] = HERE / "results" / "extreme_views",
) -> None:
    """Match the pairs at each effort; print and write one table."""
    photos = [tp.read_image(path).pixels for path in sorted(data.iterdir()) if path.suffix in (".jpg", ".png")]
    made = [make_pair(photos, i) for i in range(pairs)]
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        for pair in made:
            cv2.imwrite(str(pictures / f"{pair.name}.jpg"), np.hstack([pair.first, pair.second])[..., ::-1])
    efforts = efforts or list(ladder.EFFORTS)
    extractor = tp.features.load(features, max_keypoints=max_keypoints)
    matcher = tp.matchers.load("lightglue", features=features)
    rows = [judge(pair, effort, extractor, matcher) for pair in made for effort in efforts]
    table = Table(title=f"{pairs} pairs at tilts of 3 to 8, {features}, {max_keypoints} keypoints")
    for column in ("effort", "solved", "tilt 3-4.5", "4.5-6", "6-8", "median matches", "mean CPU seconds"):
        table.add_column(column)
    for effort in efforts:
        mine = [row for row in rows if row.effort == effort]
        bins = [[row for row in mine if low <= row.tilt < high] for low, high in ((3, 4.5), (4.5, 6), (6, 8))]
        counts = [f"{sum(row.solved for row in part)} of {len(part)}" for part in (mine, *bins)]
        matches, seconds = np.median([row.matches for row in mine]), np.mean([row.seconds for row in mine])
        table.add_row(effort, *counts, f"{matches:.0f}", f"{seconds:.1f}")
    console = Console(width=110, record=True)
    console.print(table)
    output.mkdir(parents=True, exist_ok=True)
    (output / "summary.txt").write_text(console.export_text())
    finite = [{**asdict(row), "error": min(row.error, 1e9)} for row in rows]
    (output / "rows.json").write_text(json.dumps({"environment": environment(), "rows": finite}, indent=1))


def make_pair(photos: list[Pixels], i: int) -> Pair:
    """Return the pair of that number: always the same."""
    rng = np.random.default_rng(i)
    photo, *backgrounds = (photos[k] for k in rng.permutation(len(photos))[:3])
    tilt = rng.uniform(3, 8)
    front = view(photo, 1 / rng.uniform(0.9, 1), rng.uniform(0, 2 * np.pi), 1.7)
    side = view(photo, tilt, rng.uniform(0, 2 * np.pi), rng.uniform(1.3, 1.5))
    first, second = (render(photo, H, behind) for H, behind in zip((front, side), backgrounds, strict=True))
    height, width = photo.shape[:2]
    corners = transform(front, np.array([[0, 0], [width, 0], [width, height], [0, height]]) - 0.5)
    return Pair(f"{i:03d}-tilt{tilt:.1f}", tilt, first, relight(second, rng), side @ np.linalg.inv(front), corners)


def view(photo: Pixels, tilt: float, direction: float, distance: float) -> Array:
    """Return the homography from a photograph on the plane Z = 0, one unit wide, to a camera that looks at its centre.

    The camera stands at ``distance``, ``arccos(1 / tilt)`` away from the normal.
    """
    polar = np.arccos(1 / tilt)
    normal = np.array([np.sin(polar) * np.cos(direction), np.sin(polar) * np.sin(direction), -np.cos(polar)])
    forward = -normal
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    R = np.stack([right, np.cross(forward, right), forward])
    K = np.array([[FOCAL, 0, SIZE[0] / 2], [0, FOCAL, SIZE[1] / 2], [0, 0, 1]])
    height, width = photo.shape[:2]
    longest = max(width, height)
    plane = np.array([[1 / longest, 0, -width / 2 / longest], [0, 1 / longest, -height / 2 / longest], [0, 0, 1]])
    return K @ np.column_stack([R[:, 0], R[:, 1], -R @ (distance * normal)]) @ plane


def render(photo: Pixels, H: Array, behind: Pixels) -> Pixels:
    """Draw the photograph over the background, at four times the size and averaged."""
    fine = SIZE[0] * 4, SIZE[1] * 4
    enlarge = np.array([[4, 0, 1.5], [0, 4, 1.5], [0, 0, 1]])
    drawn = cv2.warpPerspective(photo, enlarge @ H, fine, flags=cv2.INTER_LINEAR)
    covers = cv2.warpPerspective(np.ones(photo.shape[:2], np.uint8), enlarge @ H, fine, flags=cv2.INTER_NEAREST)
    scene = np.where(covers[..., None] > 0, drawn, cv2.resize(behind, fine, interpolation=cv2.INTER_LINEAR))
    return np.asarray(cv2.resize(scene, SIZE, interpolation=cv2.INTER_AREA), np.uint8)


def relight(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """Change gain and tone curve, let the light fall off to one side, add noise."""
    y, x = np.mgrid[-1 : 1 : picture.shape[0] * 1j, -1 : 1 : picture.shape[1] * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    stops = rng.uniform(-1, 0.3) + rng.uniform(0, 0.8) * (x * np.cos(angle) + y * np.sin(angle))
    lit = (picture / 255.0) ** rng.uniform(0.7, 1.5) * 2 ** stops[..., None] * rng.uniform(0.8, 1.2, 3)
    return np.clip(np.round(255 * lit + rng.normal(0, 3, picture.shape)), 0, 255).astype(np.uint8)


def judge(pair: Pair, effort: str, extractor: tp.features.Extractor, matcher: tp.matchers.Matcher) -> Row:
    """Match one pair at one effort and compare with its homography."""
    begin = time.process_time()
    found = tp.match(pair.first, pair.second, extractor, matcher, effort=effort)  # type: ignore[arg-type]
    seconds = time.process_time() - begin
    model = estimate_homography(found.points0, found.points1, covariances=found.matches.covariances).model
    truth = transform(pair.H, pair.corners)
    error = np.inf if model is None else float(reprojection_error(model, pair.corners, truth).mean())
    tried = ", ".join(f"{a.name} {a.evidence:.0f}: {a.kept}/{a.matches}" for a in found.attempts)
    return Row(effort, pair.name, pair.tilt, len(found), error, seconds, tried)


if __name__ == "__main__":
    typer.run(main)
