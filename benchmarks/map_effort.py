"""Maps with ``--effort fast`` and ``auto``: images registered, points, errors, time.

    python benchmarks/map_effort.py

Nothing is known but the photographs. ``/3`` stands for every third photograph of a set, so that neighbours share less.
What was done is not done again; delete its file in ``results/map_effort/`` for that.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import tiepoint as tp
from mapping_quality import DATA, against_truth, read_truth
from tiepoint.devices import environment
from tiepoint.effort import Effort

RESULTS = Path(__file__).parent / "results" / "map_effort"
SETS = [
    "sceaux",
    "sceaux/3",
    "lund",
    "berlin",
    "entry",
    "entry/3",
    "fountain",
    "fountain/3",
    "lund_door",
    "lund_door/3",
]
EFFORTS: tuple[Effort, ...] = ("fast", "auto")


def measure(name: str, effort: Effort, data: Path) -> dict[str, Any]:
    """Map one set, and return its line of the table."""
    base, _, step = name.partition("/")
    folder = next(data / kind / base for kind in ("demo", "eval") if (data / kind / base).is_dir())
    with tempfile.TemporaryDirectory() as temporary:
        images = Path(temporary) / "images"
        images.mkdir()
        chosen = sorted((folder / "images").iterdir())[:: int(step or 1)]
        for path in chosen:
            shutil.copy(path, images)
        begin = time.process_time()
        result = tp.map(images, Path(temporary) / "map", effort=effort)
        seconds = time.process_time() - begin
        models = result.scene.models
    line: dict[str, Any] = {
        "set": name,
        "effort": effort,
        "total": len(chosen),
        "registered": [model.num_reg_images() for model in models],
        "points": sum(model.num_points3D() for model in models),
        "error_px": models[0].compute_mean_reprojection_error() if models else None,
        "notes": list(result.notes),
        "cpu_seconds": seconds,
        "date": time.strftime("%Y-%m-%d"),
    }
    truth = read_truth(folder / "pairs.json")[0] if (folder / "pairs.json").exists() else {}
    return line | (against_truth(models[0], truth) if truth and models else {})


def main(
    sets: Annotated[list[str], typer.Option(help="Repeatable.")] = SETS,
    data: Annotated[Path, typer.Option(help="Folder that holds demo/ and eval/.")] = DATA,
    results: Annotated[Path, typer.Option(help="Where the table goes.")] = RESULTS,
) -> None:
    """Compare efforts."""
    results.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    lines = []
    for name in sets:
        for effort in EFFORTS:
            path = results / f"{name.replace('/', '_')}-{effort}.json"
            if not path.exists():
                path.write_text(json.dumps(measure(name, effort, data), indent=1) + "\n", "utf-8")
            lines.append(json.loads(path.read_text("utf-8")))
    table = [
        "| set | effort | images | models | points | error px | rotation ° | position % | CPU s |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for line in lines:
        pose = [f"{line[k]['median']:.3f}" if k in line else "–" for k in ("rotation_deg", "position_percent")]
        error = "–" if line["error_px"] is None else f"{line['error_px']:.2f}"
        table.append(
            f"| {line['set']} | {line['effort']} | {sum(line['registered'])} / {line['total']} | "
            f"{len(line['registered'])} | {line['points']} | {error} | {' | '.join(pose)} | {line['cpu_seconds']:.0f} |"
        )
    where = ", ".join(f"{k} {v}" for k, v in environment().items())
    text = "\n".join(table) + f"\n\nDefault quality; CPU seconds of everything. {where}\n"
    (results / "summary.md").write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    typer.run(main)
