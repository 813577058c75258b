"""A student's descriptors beside its teacher's, at the same keypoints, matched by mutual nearest neighbours.

The student finds the keypoints. Three descriptions of them are matched: the student's, turned to the direction of each
keypoint; the student's as the photograph stands, if they are steerable; and the teacher's. The last columns are what a
distilled descriptor is judged by: mean AUC of poses at 10 degrees and of homographies at 3 pixels.

``python benchmarks/distillation.py --student cairn@RUN/cairn.safetensors -o benchmarks/results/distillation``
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import tiepoint as tp
from tiepoint import evaluation
from tiepoint.evaluation.datasets import load_pairs
from tiepoint.evaluation.run import evaluate_pairs
from tiepoint.evaluation.speed import cpu_threads
from tiepoint.features.steerable import steer
from tiepoint.types import Features, Image

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data" / "eval"


def main(
    student: Annotated[str, typer.Option(help="Finds the keypoints: cairn, cairn@WEIGHTS.")] = "cairn",
    teacher: Annotated[str, typer.Option(help="An extractor that describes given keypoints.")] = "aliked-n16",
    data: Annotated[Path, typer.Option(help="Folder of evaluation sets.")] = DATA,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Only this set; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only this many pairs of each set.")] = None,
    max_keypoints: int = 2048,
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default torch's.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output")] = HERE / "results" / "distillation",
) -> None:
    """Evaluate the three descriptions on the same pairs."""
    extractor = tp.features.load(student, max_keypoints=max_keypoints)
    master = tp.features.load(teacher)
    harmonics = extractor.harmonics

    def standing(image: Image) -> Features:
        found = extractor(image)
        assert found.orientations is not None
        return replace(found, descriptors=steer(found.descriptors, found.orientations, harmonics))

    ways: dict[str, tuple[Callable[[Image], Features], str]] = {
        "turned": (extractor, extractor.name),
        "teacher": (lambda image: master.describe(image, extractor(image)), master.name),
    }
    if harmonics:
        ways["standing"] = (standing, extractor.name)
    pairs = load_pairs(data, set_, limit)
    runs = []
    with cpu_threads(threads):
        for name, (extract, features) in ways.items():
            matcher = tp.matchers.load("nearest", features=features)
            configuration = {"student": student, "teacher": teacher, "max_keypoints": max_keypoints, "limit": limit}
            path = output / f"{name}.jsonl"
            runs.append(evaluate_pairs(pairs, extract, matcher, name, configuration, path))
            evaluation.save(runs, output)
    Console(width=180).print(*evaluation.rich_tables(runs))


if __name__ == "__main__":
    typer.run(main)
