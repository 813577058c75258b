"""What the verbs share: where words go, options with one meaning everywhere, tables, progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from . import completion


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
    float | None, typer.Option(help="Lowest score of a keypoint, in the extractor's unit.", show_default="its own")
]
NmsRadiusOption = Annotated[
    int | None,
    typer.Option(
        min=0, help="Pixels around a keypoint that hold no other keypoint.", show_default="the extractor's own"
    ),
]
BandsOption = Annotated[
    Any,
    typer.Option(
        parser=str,
        callback=parse_bands,
        metavar="R,G,B",
        help="Bands to use as red, green and blue, or as grey, counted from 1: 4,3,2. For multispectral TIFFs.",
    ),
]
MasksOption = Annotated[
    Path | None, typer.Option(help="Folder of masks, as COLMAP has them: black in MASKS/a.jpg.png keeps a.jpg free.")
]
FramesOption = Annotated[int | None, typer.Option(min=1, help="Of a video, take this many frames, evenly; sharp ones.")]
EveryOption = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="Of a video, take a sharp frame every so many seconds.")
]
FocalOption = Annotated[float | None, typer.Option(min=1.0, help="Focal length in pixels.")]
CameraOption = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL:PARAMS|FILE",
        help="The camera as COLMAP writes it: OPENCV:700,700,640,360,-0.1,0.01,0,0, or a cameras.txt.",
    ),
]
Effort = Literal["fast", "auto", "thorough"]  # those of `tiepoint.effort`, which imports torch; a test compares
EFFORT = "fast: one pass. auto: further attempts while the result is not convincing. thorough: all attempts."
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps …", show_default=True)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines, and nothing else, on stdout.")]


def options_of(local_names: dict[str, Any]) -> dict[str, Any]:
    """Return what a verb hands on to its function in Python: its ``locals()`` without how it prints.

    A verb calls this first. Its function has an argument of the same name for each option.

    Examples
    --------
    >>> options_of({"device": "cpu", "json": True})
    {'device': 'cpu'}
    """
    return {name: value for name, value in local_names.items() if name not in ("context", "json")}


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


@contextmanager
def spinner(text: str) -> Iterator[Callable[[str], None]]:
    """Show that something runs, on stderr, if a person watches; yields what changes the text."""
    if not is_terminal():
        yield lambda text: None
        return
    with Console(stderr=True).status(escape(text)) as status:
        yield lambda text: status.update(escape(text))


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
