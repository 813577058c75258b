"""``tiepoint eval`` and ``tiepoint bench``: accuracy and speed, as tables."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .console import (
    DeviceOption,
    JsonOption,
    LongSideOption,
    MaxKeypointsOption,
    is_terminal,
    none_if_auto,
    none_if_zero,
    print_json,
)

CombinationsArgument = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(
        metavar="[FEATURES+MATCHER]...",
        help="What to measure, e.g. sift+nearest, or sift+lightglue@FILE with weights of your own; 'sift' "
        "alone takes its best matcher. By default: auto.",
    ),
]


def evaluate(
    data: Annotated[
        Path,
        typer.Option("--data", help="Folder of evaluation sets, HPatches, or a file of calibrated pairs."),
    ],
    combinations: CombinationsArgument = None,
    sets: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", help="Only this set; may be repeated."),
    ] = None,
    limit: Annotated[Optional[int], typer.Option(min=1, help="Only this many pairs of each set.")] = None,  # noqa: UP045
    max_keypoints: MaxKeypointsOption = 2048,
    long_side: LongSideOption = 0,
    device: DeviceOption = "auto",
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", help="Folder for rows and tables; a run that was interrupted continues there."),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Measure again what the folder holds.")] = False,
    json: JsonOption = False,
) -> None:
    """Measure accuracy on pairs of images with ground truth."""
    from .. import evaluation

    with _bar() as bar:
        tasks: dict[str, Any] = {}

        def show(label: str, row: evaluation.Row, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bar.add_task(label, total=total)
            bar.update(tasks[label], completed=done)

        runs = evaluation.compare(
            data,
            combinations or ["auto"],
            sets=sets,
            limit=limit,
            max_keypoints=none_if_zero(max_keypoints),
            long_side=none_if_zero(long_side),
            device=_device(device),
            output=output,
            resume=not restart,
            progress=show,
        )
    saved = [] if output is None else evaluation.save(runs, output)
    if json:
        print_json([{"label": run.label, "sets": evaluation.summarise(run)} for run in runs])
        return
    # A pipe or file has no width, and a table must not lose columns there.
    console = Console() if Console().is_terminal else Console(width=200)
    for table in evaluation.rich_tables(runs):
        console.print(table, markup=False)  # labels may hold paths with brackets
    for path in saved:
        print(f"wrote {path}")


def bench(
    combinations: CombinationsArgument = None,
    images: Annotated[
        Optional[tuple[Path, Path]],  # noqa: UP045
        typer.Option("--images", metavar="A B", help="The pair to time; by default one is made up."),
    ] = None,
    max_keypoints: MaxKeypointsOption = 2048,
    long_side: LongSideOption = 1024,
    device: DeviceOption = "auto",
    threads: Annotated[Optional[int], typer.Option(min=1, help="CPU threads; by default torch's.")] = None,  # noqa: UP045
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each combination.")] = 10,
    json: JsonOption = False,
) -> None:
    """Measure speed: every combination in turns, medians."""
    from .. import evaluation

    image0, image1 = images or (None, None)
    with _bar() as bar:
        task = bar.add_task("timing", total=repeats)
        speed = evaluation.bench(
            combinations or ["auto"],
            image0,
            image1,
            max_keypoints=none_if_zero(max_keypoints),
            long_side=none_if_zero(long_side),
            device=_device(device),
            threads=threads,
            repeats=repeats,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if json:
        print_json(asdict(speed))
        return
    console = Console() if Console().is_terminal else Console(width=200)
    console.print(evaluation.speed_table(speed), markup=False)


def _device(name: str) -> str:
    from ..devices import pick_device

    return str(pick_device(none_if_auto(name)))


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not is_terminal(),
    )
