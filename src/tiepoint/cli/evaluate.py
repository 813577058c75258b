"""``tiepoint evaluate`` and ``tiepoint bench``: accuracy and speed, as tables."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from . import completion
from .console import EFFORT, DeviceOption, JsonOption, LongSideOption, MaxKeypointsOption, bar, options_of, print_json

CombinationsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="[FEATURES+MATCHER]...",
        autocompletion=completion.combinations,
        help="What to measure: sift+nearest, or sift+lightglue@FILE with your own weights; 'sift' alone uses the best "
        "matcher for these features.",
    ),
]

EffortsOption = Annotated[list[str], typer.Option(autocompletion=completion.efforts, help=f"{EFFORT} May be repeated.")]


def evaluate(
    data: Annotated[Path, typer.Option(help="Folder of evaluation sets, HPatches, or a file of calibrated pairs.")],
    combinations: CombinationsArgument = ["auto"],  # noqa: B006  typer reads the default and never changes it
    sets: Annotated[
        list[str] | None, typer.Option(autocompletion=completion.sets, help="Only this set; may be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only this many pairs of each set.")] = None,
    max_keypoints: MaxKeypointsOption = 2048,
    long_side: LongSideOption = None,
    effort: EffortsOption = ["fast"],  # noqa: B006
    device: DeviceOption = "auto",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for rows and tables; an interrupted run is resumed there."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what the folder holds.")] = False,
    json: JsonOption = False,
) -> None:
    """Measure accuracy on pairs of images with ground truth."""
    options = options_of(locals())
    from .. import evaluation

    options["sets"] = sets or None
    with bar("evaluating") as advance:
        runs = evaluation.evaluate(**options, progress=lambda label, row, done, total: advance(done, total))
    if json:
        print_json([{"label": run.label, "sets": evaluation.summarise(run)} for run in runs])
        return
    _print(*evaluation.rich_tables(runs))
    if output is not None:
        print(f"wrote rows and tables to {output}")


def bench(
    combinations: CombinationsArgument = ["auto"],  # noqa: B006
    images: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="A B", help="The pair to time.", show_default="a made-up pair")
    ] = None,
    max_keypoints: MaxKeypointsOption = 2048,
    long_side: LongSideOption = 1024,
    device: DeviceOption = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="as torch chooses")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each combination.")] = 10,
    json: JsonOption = False,
) -> None:
    """Measure speed: the combinations take turns, and the median of each is shown."""
    options = options_of(locals())
    from .. import evaluation

    with bar("timing") as advance:
        speed = evaluation.bench(**options, progress=advance)
    if json:
        print_json(asdict(speed))
        return
    _print(evaluation.speed_table(speed))


def _print(*tables: Any) -> None:
    # A pipe or file has no width, and a table must not lose columns there.
    console = Console() if Console().is_terminal else Console(width=200)
    for table in tables:
        console.print(table, markup=False)  # labels may hold paths with brackets
