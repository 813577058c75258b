"""What the verbs share: where words go, options with one meaning everywhere, tables, progress."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from . import completion

if TYPE_CHECKING:
    from ..mapping import progress as mapping_progress

MINUTE = 60.0  # seconds between two lines


def none_if_zero(value: int | None) -> int | None:
    """Return None, the library's word for "no limit", for 0, the command line's."""
    return value or None


def parse_bands(text: str | None) -> tuple[int, ...] | None:
    """Return the bands that ``--bands`` names.

    Raises
    ------
    ArgumentError
        It is not one or three numbers from 1 on.

    Examples
    --------
    >>> parse_bands("4,3,2")
    (4, 3, 2)
    """
    if text is None:  # also while the shell completes a word, which should not wait for torch
        return None
    from ..errors import ArgumentError
    from ..io.images import check_bands

    try:
        return check_bands([int(number) for number in text.split(",")])
    except ValueError as error:  # ArgumentError too
        raise ArgumentError(f"--bands {text!r}: give one or three numbers from 1 on, such as 4,3,2") from error


# The callbacks turn what is typed into what the functions of `tiepoint` take, so that a verb hands its options on.
FeaturesOption = Annotated[
    str,
    typer.Option(
        "--features",
        "-f",
        autocompletion=completion.extractors_or_auto,
        help="Extractor: auto, sift, cairn@WEIGHTS, cairn+sift …; 'tiepoint info' lists all.",
    ),
]
MatcherOption = Annotated[
    str,
    typer.Option(
        "--matcher",
        "-m",
        autocompletion=completion.matchers,
        help="Matcher: auto, lightglue, lightglue@WEIGHTS, superglue or nearest.",
    ),
]
MaxKeypointsOption = Annotated[
    int | None,
    typer.Option(
        "--max-keypoints",
        "-k",
        min=0,
        callback=none_if_zero,
        help="Keep this many keypoints of each image, the best; 0 keeps all.",
    ),
]
LongSideOption = Annotated[
    int | None,
    typer.Option(
        "--long-side",
        min=0,
        callback=none_if_zero,
        help="Shrink larger images to this many pixels along the long side; 0 works at full size.",
    ),
]
ThresholdOption = Annotated[
    float | None,
    typer.Option(
        "--detection-threshold", help="Lowest score of a keypoint, in the extractor's unit.", show_default="its own"
    ),
]
NmsRadiusOption = Annotated[
    int | None,
    typer.Option(
        "--nms-radius",
        min=0,
        help="Pixels around a keypoint that hold no other keypoint.",
        show_default="the extractor's own",
    ),
]
BandsOption = Annotated[
    Any,
    typer.Option(
        "--bands",
        parser=str,
        callback=parse_bands,
        metavar="R,G,B",
        help="Bands to use as red, green and blue, or as grey, counted from 1: 4,3,2. For multispectral TIFFs.",
    ),
]
FramesOption = Annotated[
    int | None, typer.Option("--frames", min=1, help="Of a video, take this many frames, evenly; sharp ones.")
]
EveryOption = Annotated[
    float | None,
    typer.Option("--every", metavar="SECONDS", help="Of a video, take a sharp frame every so many seconds."),
]
FocalOption = Annotated[float | None, typer.Option("--focal", min=1.0, help="Focal length in pixels.")]
CameraOption = Annotated[
    str | None,
    typer.Option(
        "--camera",
        metavar="MODEL:PARAMS|FILE",
        help="The camera as COLMAP writes it: OPENCV:700,700,640,360,-0.1,0.01,0,0, or a cameras.txt.",
    ),
]
Effort = Literal["fast", "auto", "thorough"]  # those of `tiepoint.effort`, which imports torch; a test compares
EFFORT = "fast: one pass. auto: further attempts while the result is not convincing. thorough: all attempts."
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps …", show_default=True)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines, and nothing else, on stdout.")]


def say(text: str) -> None:
    """Print one message to stderr."""
    print(text, file=sys.stderr, flush=True)


def is_terminal() -> bool:
    """Whether a person watches stderr."""
    return sys.stderr.isatty()


def print_json(value: Any) -> None:
    """Print one JSON value to stdout."""
    print(json.dumps(value, indent=1, allow_nan=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: drawn on a terminal, tab-separated with no header lines lost or cut when piped."""
    if not sys.stdout.isatty():
        for row in (header, *rows):
            print("\t".join(row))
        return
    table = Table(*header, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console().print(table, highlight=False, markup=False)


@contextmanager
def bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr, if a person watches; yields what to call with (number done, number of all)."""
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not is_terminal()) as shown:
        task = shown.add_task(description, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


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
        if not is_terminal() and now - since > MINUTE:
            self.last = now
            say(text)

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


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line; those of other people's code do not concern the user."""
    if Path(__file__).parents[1] in Path(filename).parents:
        say(f"warning: {message}")


@contextmanager
def watched() -> Iterator[mapping_progress.Report]:
    """Give a callback that shows progress on stderr, as bars, or as a line a minute where no person watches.

    Notes are printed in any case.
    """
    console = Console(stderr=True)
    lines = Minutely()
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not is_terminal(),
    )
    tasks = {}

    def report(progress: mapping_progress.Progress) -> None:
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
        lines.say(" ".join(f"tiepoint: {step}: {progress.done} of {progress.total or '?'} {rate}".split()), begins)
        if progress.note:
            for line in progress.note.splitlines():
                console.print(f"tiepoint: {line}", highlight=False, markup=False, soft_wrap=True)

    with bars, lines:
        yield report
