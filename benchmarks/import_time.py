"""What importing tiepoint adds to the time that torch and numpy take.

Each figure comes from fresh processes, which import torch and numpy first. ``python -X importtime -c "import
tiepoint.two_view"`` shows where the time goes.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import Annotated

import typer

STATEMENTS = ("import tiepoint", "import tiepoint; tiepoint.read_image", "import tiepoint; tiepoint.match")

CHILD = """
import time
before = time.perf_counter()
import torch, numpy
between = time.perf_counter()
{statement}
print(between - before, time.perf_counter() - between)
"""


def main(repeats: Annotated[int, typer.Option(help="Processes for each figure.")] = 7) -> None:
    """Print the median and the best of several processes."""
    print("| statement | added, median | added, best | torch and numpy, median |")
    print("|---|---:|---:|---:|")
    for statement in STATEMENTS:
        command = [sys.executable, "-c", CHILD.format(statement=statement)]
        runs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(repeats)]
        base, added = zip(*(map(float, run.split()) for run in runs), strict=True)
        figures = statistics.median(added), min(added), statistics.median(base)
        print(f"| `{statement}` | " + " | ".join(f"{seconds:.3f} s" for seconds in figures) + " |")


if __name__ == "__main__":
    typer.run(main)
