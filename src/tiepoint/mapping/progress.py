"""Progress reports of the steps of a map."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich import progress as rich
from rich.console import Console

MINUTE = 60.0  # seconds between two lines
REDRAWN = 0.2  # seconds between two pictures of the bars in a notebook


@dataclass(frozen=True)
class Progress:
    """How far a step is; its ``report`` callback gets one after each image, pair or batch.

    Attributes
    ----------
    step : str
        Name of the step, for display: ``"extracting sift"``, ``"matching"`` …
    done, total : int
        Images or pairs that are finished, those of earlier runs included, and their total number.
    early_exits : float or None
        Of the pairs matched in this run, the share that an adaptive matcher stopped before its last layer.
    note : str
        A message to show, such as why a photograph was left out; usually empty.
    """

    step: str
    done: int
    total: int
    early_exits: float | None = None
    note: str = ""


Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Ignore progress reports."""


class Minutely:
    """Says at most one line a minute, where no person watches a bar.

    In a ``with`` block it also repeats the last line in each minute that passes without a new one, as some steps
    report nothing for long.
    """

    def __init__(self) -> None:
        self.begun = self.last = time.monotonic()
        self._text = ""
        self._over = threading.Event()
        self._lock = threading.Lock()

    def say(self, text: str, begins: bool = False) -> None:
        """Say something if a minute is over; what ``begins``, and may be silent for long, in every longer run."""
        with self._lock:
            self._text = text
            self._say(text, self.begun if begins else self.last)

    def _say(self, text: str, since: float) -> None:
        now = time.monotonic()
        if not sys.stderr.isatty() and now - since > MINUTE:
            self.last = now
            print(text, file=sys.stderr, flush=True)

    def _repeat(self) -> None:
        while not self._over.wait(1.0):
            with self._lock:
                if self._text:
                    self._say(f"{self._text}, {(time.monotonic() - self.begun) / 60:.0f} min so far", self.last)

    def __enter__(self) -> Minutely:
        threading.Thread(target=self._repeat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()


@contextmanager
def progress_bars() -> Iterator[Report]:
    """Give a callback that shows progress: as bars on a terminal or in a notebook, elsewhere as a line a minute.

    Notes are printed in any case. All of it goes to stderr, or into the output of the notebook's cell.

    Examples
    --------
    ::

        with tp.progress_bars() as report:
            result = tp.map("photos", "scene", report=report)
    """
    console = Console(stderr=True)
    bars = rich.Progress(
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[rate]}", markup=False),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
        console=console,
        disable=not sys.stderr.isatty(),
    )
    lines, cell = Minutely(), _Cell(bars) if console.is_jupyter else None
    tasks: dict[str, rich.TaskID] = {}

    def report(progress: Progress) -> None:
        step = progress.step
        begins = step not in tasks
        if begins:
            tasks[step] = bars.add_task(step, total=progress.total or None, completed=progress.done, rate="")
        bars.update(tasks[step], total=progress.total or None, completed=progress.done)
        task = next(task for task in bars.tasks if task.id == tasks[step])
        rate = f"{task.speed:.1f}/s" if task.speed else ""
        if progress.early_exits is not None:
            rate += f", {progress.early_exits:.0%} stopped early"
        bars.update(tasks[step], rate=rate)
        if cell is not None:
            cell.draw()
        else:
            lines.say(" ".join(f"tiepoint: {step}: {progress.done} of {progress.total or '?'} {rate}".split()), begins)
        if progress.note:
            for line in progress.note.splitlines():
                console.print(f"tiepoint: {line}", highlight=False, markup=False, soft_wrap=True)

    with bars, lines:
        try:
            yield report
        finally:
            if cell is not None:
                cell.draw(last=True)


class _Cell:
    """Bars in the output of a notebook's cell, where rich draws them by itself only with ipywidgets."""

    def __init__(self, bars: rich.Progress) -> None:
        self.bars = bars
        self._drawn = float("-inf")
        self._handle: Any = None

    def draw(self, last: bool = False) -> None:
        """Draw the bars anew, if it is time or they do not change any more."""
        now = time.monotonic()
        if not last and now - self._drawn < REDRAWN:
            return
        self._drawn = now
        picture = self.bars.make_tasks_table(self.bars.tasks)
        if self._handle is not None:
            self._handle.update(picture)
        elif self.bars.tasks:
            from IPython.display import display

            self._handle = display(picture, display_id=True)
