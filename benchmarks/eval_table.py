"""Every extractor and matcher on every evaluation set: one table.

Continues where it was interrupted. Run ``python benchmarks/eval_table.py --limit 2`` for a rehearsal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tiepoint import evaluation
from tiepoint.errors import TiepointError
from tiepoint.evaluation.speed import cpu_threads

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data" / "eval"

COMBINATIONS = (
    "sift+nearest",
    "orb+nearest",
    "brief+nearest",
    "surf+nearest",
    "hog+nearest",
    "superpoint+nearest",
    "superpoint+superglue",
    "aliked-n16+lightglue",
    "disk+lightglue",
    "xfeat+lightglue",
)


def main(
    combinations: Annotated[list[str] | None, typer.Argument(help="By default all of the table.")] = None,
    data: Annotated[Path, typer.Option(help="Folder of evaluation sets.")] = DATA,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Only this set; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only this many pairs of each set.")] = None,
    max_keypoints: int = 2048,
    device: str = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default torch's.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output")] = HERE / "results" / "eval_table",
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what the folder holds.")] = False,
) -> None:
    """Evaluate all combinations; one that cannot be loaded is left out and named."""
    runs = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with cpu_threads(threads), Progress(*columns, transient=True) as progress:
        for combination in combinations or COMBINATIONS:
            task = progress.add_task(combination, total=None)
            try:
                runs += evaluation.evaluate(
                    data,
                    [combination],
                    sets=set_,
                    limit=limit,
                    max_keypoints=max_keypoints,
                    device=device,
                    output=output,
                    fresh=fresh,
                    progress=lambda label, row, done, total, task=task: progress.update(
                        task, completed=done, total=total
                    ),
                )
            except TiepointError as error:
                print(f"left out {combination}: {error}")
                continue
            evaluation.save(runs, output)  # after each, so that a table exists whatever happens
    console = Console() if Console().is_terminal else Console(width=200)  # a file has no width
    console.print(*evaluation.rich_tables(runs))
    for run in runs:
        for row in run.rows:
            if row.failure is not None:
                print(f"failed: {run.label} {row.set} {row.pair}: {row.failure}")
    print(f"wrote {output}/summary.md, .json, .csv")


if __name__ == "__main__":
    typer.run(main)
