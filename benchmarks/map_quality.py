"""The qualities of ``tiepoint map`` beside COLMAP's own SIFT pipeline: points, error, time.

    python benchmarks/map_quality.py

Nothing is known but the photographs, for both. CPU seconds are those of the whole process, so that
they can be compared on a machine that does other work. What was done is not done again; delete its file in
``results/map_quality/`` for that.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pycolmap
import torch
import typer

import tiepoint as tp
from mapping_quality import COLMAP, DATA, against_truth, map_with_colmap, match_with_colmap, read_truth
from tiepoint.devices import environment
from tiepoint.mapping.quality import QUALITIES
from tiepoint.mapping.steps.reconstruct import Quality

RESULTS = Path(__file__).parent / "results" / "map_quality"
SIFT = "sift+nearest"
SYSTEMS = [COLMAP, SIFT, *QUALITIES]


def measure(name: str, system: str, data: Path) -> dict[str, Any]:
    """Map one set in one way, and return its line of the table."""
    folder = next(data / kind / name for kind in ("demo", "eval") if (data / kind / name).is_dir())
    images = folder / "images"
    begin = time.perf_counter(), cpu_seconds()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        if system == COLMAP:
            match_with_colmap(images, work / "database.db", None)
            (work / "model").mkdir()
            model = map_with_colmap(images, work / "database.db", work / "model", None)
        elif system == SIFT:
            model = tp.map(images, work / "map", features="sift", matcher="nearest").scene.models[0]
        else:
            model = tp.map(images, work / "map", quality=system).scene.models[0]  # type: ignore[arg-type]
        seconds = time.perf_counter() - begin[0], cpu_seconds() - begin[1]
    model.update_point_3d_errors()
    quality = Quality.of(model, len(list(images.iterdir())))
    line = {
        "set": name,
        "system": system,
        "registered": quality.registered,
        "total": quality.total,
        "points": quality.points,
        "track_length": quality.track_length,
        "error_px": model.compute_mean_reprojection_error(),
        "seconds": seconds[0],
        "cpu_seconds": seconds[1],
        "date": time.strftime("%Y-%m-%d"),
    }
    truth = read_truth(folder / "pairs.json")[0] if (folder / "pairs.json").exists() else {}
    return line | (against_truth(model, truth) if truth else {})


def cpu_seconds() -> float:
    """Return the CPU time of this process and of those that it waited for."""
    return sum(os.times()[:4])


def markdown(lines: Sequence[dict[str, Any]], where: dict[str, str]) -> str:
    """Return the table, and what it means."""
    table = [
        "| set | map | images | points | track length | error px | position % | CPU s |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for line in lines:
        position = "–" if "position_percent" not in line else f"{line['position_percent']['median']:.3f}"
        table.append(
            f"| {line['set']} | {line['system']} | {line['registered']} / {line['total']} | {line['points']} | "
            f"{line['track_length']:.2f} | {line['error_px']:.2f} | {position} | {line['cpu_seconds']:.0f} |"
        )
    legend = f"""
`colmap`: COLMAP's SIFT with its default options, all pairs, its incremental mapper. `sift+nearest`: ours with OpenCV's
SIFT and nearest neighbours, quality balanced. Error: mean reprojection error as
COLMAP computes it, the mean over points of their mean errors. Position: median error of the cameras, in percent of the
distance between the two furthest apart, after alignment with the ground truth. CPU seconds of everything, in one thread
for networks; {max((line["date"] for line in lines), default="")}."""
    return "\n".join(table) + "\n" + legend + "\n\n" + ", ".join(f"{k} {v}" for k, v in where.items()) + "\n"


def main(
    systems: Annotated[list[str], typer.Option(help="'colmap', 'sift+nearest' or a quality; repeatable.")] = SYSTEMS,
    sets: Annotated[list[str], typer.Option(help="Repeatable.")] = ["sceaux", "fountain", "entry"],  # noqa: B006
    data: Annotated[Path, typer.Option(help="Folder that holds demo/ and eval/.")] = DATA,
    results: Annotated[Path, typer.Option(help="Where the table goes.")] = RESULTS,
) -> None:
    """Compare qualities."""
    results.mkdir(parents=True, exist_ok=True)
    pycolmap.logging.minloglevel = pycolmap.logging.ERROR
    torch.set_num_threads(1)
    for name in sets:
        for system in systems:
            path = results / f"{name}-{system}.json"
            if not path.exists():
                path.write_text(json.dumps(measure(name, system, data), indent=1) + "\n", "utf-8")
    order = {system: place for place, system in enumerate(SYSTEMS)}
    lines = [json.loads(path.read_text("utf-8")) for path in results.glob("*-*.json")]
    lines.sort(key=lambda line: (line["set"] != "sceaux", line["set"], order[line["system"]]))
    text = markdown(lines, environment())
    (results / "summary.md").write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    typer.run(main)
