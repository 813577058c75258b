"""What training on a folder of one's own is worth: matches of held-out pairs before and after.

The last photographs of a walk are held out. `tiepoint train matcher --teacher` learns from the others, which overlap
and have neither depth nor poses. Then neighbours among those held out (one to three steps apart) are matched by the
weights that training began with and by those it ended with, and MAGSAC counts the matches that agree with one epipolar
geometry. A match is also held against the teacher's geometry: it lies on the teacher's epipolar lines if it is right.

``python benchmarks/own_photographs.py ../shared/data/demo/lund/images --minutes 30 -o /tmp/lund``
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

import tiepoint as tp
from tiepoint.devices import environment
from tiepoint.geometry import sampson_error
from tiepoint.io.folders import list_images
from tiepoint.matchers.lightglue import LightGlue

HERE = Path(__file__).parent
RIGHT = 2.0  # pixels from the epipolar lines of the teacher's geometry
STEPS_APART = (1, 2, 3)


@dataclass
class Row:
    """One held-out pair: matches, those that agree with an epipolar geometry, and those right by the teacher's."""

    weights: str
    pair: str
    matches: int
    inliers: int
    right: int


def main(
    images: Annotated[Path, typer.Argument(help="Folder of photographs, in the order of the walk.")],
    run: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run; training resumes there.")],
    minutes: float = 30,
    held_out: Annotated[int, typer.Option(help="So many photographs at the end of the walk.")] = 9,
    start: str = "cairn-lightglue",
    teacher: str = "aliked-n16",
    preset: str = "small",
    match_threshold: Annotated[float, typer.Option(help="Of both weights.")] = 0.1,
    results: Path = HERE / "results" / "own_photographs",
) -> None:
    """Train, match the held-out pairs before and after, print and write one table."""
    files = [images / name for name in list_images(images)]
    mine = run / "photographs"
    mine.mkdir(parents=True, exist_ok=True)
    for path in files[:-held_out]:
        shutil.copyfile(path, mine / path.name)
    settings = tp.training.MatcherSettings(
        images=mine, output=run / "matcher", features="cairn", start=start, teacher=teacher, preset=preset,
        minutes=minutes,
    )  # fmt: skip
    began = time.monotonic()
    tp.train(settings, lambda stage, row: print(stage, row, flush=True) if row.get("done", 0) % 50 == 0 else None)
    took = (time.monotonic() - began) / 60
    rows = []
    after = str(run / "matcher" / "weights.safetensors")
    matchers = {
        name: LightGlue(weights=file, match_threshold=match_threshold)
        for name, file in (("before", start), ("after", after))
    }
    pairs = [(a, b) for step in STEPS_APART for a, b in zip(files[-held_out:], files[-held_out + step :], strict=False)]
    for first, second in pairs:
        reference = tp.match(first, second, teacher, geometry="fundamental").geometry
        for name, matcher in matchers.items():
            found = tp.match(first, second, "cairn", matcher, geometry="fundamental")
            x0, x1 = found.matches.points0, found.matches.points1
            right = 0
            if reference is not None and reference.model is not None and len(x0):
                right = int((sampson_error(reference.model, x0, x1) < RIGHT).sum())
            inliers = 0 if found.geometry is None else int(found.geometry.inliers.sum())
            rows.append(Row(name, f"{first.name} {second.name}", len(x0), inliers, right))
    table = Table(title=f"{len(pairs)} held-out pairs of {images}, {minutes:g} minutes of training")
    for column in ("weights", "matches", "inliers", "right", "right / matches"):
        table.add_column(column)
    for name in ("before", "after"):
        own = [row for row in rows if row.weights == name]
        matches, inliers, right = (
            np.mean([getattr(row, key) for row in own]) for key in ("matches", "inliers", "right")
        )
        fraction = 100 * right / max(1, matches)
        table.add_row(name, f"{matches:.0f}", f"{inliers:.0f}", f"{right:.0f}", f"{fraction:.1f} %")
    console = Console(width=110, record=True)
    console.print(table)
    results.mkdir(parents=True, exist_ok=True)
    (results / "summary.txt").write_text(console.export_text())
    summary = {"environment": environment(), "wall_minutes": round(took, 1), "rows": [asdict(row) for row in rows]}
    (results / "rows.json").write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
