"""The command ``tiepoint``: one verb per module here.

Rules that all verbs keep: results go to stdout, everything else to stderr; ``--json`` prints one JSON value
and nothing else; progress is shown on a terminal only; errors are one message, and the exit code says which
kind (0 fine, 2 usage, 3 input, 4 weights, 5 missing package, 130 interrupted by Ctrl-C, 143 by SIGTERM, 129 by
SIGHUP, 1 anything else). Modules of tiepoint that import torch are imported inside the verbs, so that ``--help``
and completion are quick.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Annotated, Any

import typer

from .._version import __version__
from ..errors import InputError, TiepointError
from . import calibrate, db, evaluate, export, extract, info, localize, map, match, serve, track, train, weights
from .console import say, show_warning

INTERRUPTED = 130  # as shells number SIGINT

app = typer.Typer(
    name="tiepoint",
    help="Find the points that photographs share.",
    epilog="Options: 'tiepoint COMMAND --help'. Exit codes: 2 usage, 3 input, 4 weights, 5 missing package.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # joins the lines of a paragraph
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("match")(match.match)
app.command("extract")(extract.extract)
app.command("map")(map.map_photographs)
app.command("track")(track.track)
app.command("localize")(localize.localize)
app.command("serve")(serve.serve)
app.add_typer(db.app, name="db")
app.command("evaluate")(evaluate.evaluate)
app.command("bench")(evaluate.bench)
app.command("info")(info.info)
app.add_typer(weights.app, name="weights")
app.add_typer(train.app, name="train")
app.command("calibrate")(calibrate.calibrate)
app.command("export")(export.export)
app.command("export-weights")(train.export_weights)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tiepoint {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find the points that photographs share."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    argv : list of str, optional
        The arguments after the program's name; by default those of this process.

    Examples
    --------
    >>> main(["--version"])
    tiepoint ...
    0
    """
    _share_cores()
    received: list[int] = []
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold what the terminal, or UTF-8, does not
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings(), _stopped_by_signals(received):
            warnings.showwarning = show_warning
            _command()(args=None if argv is None else list(argv), prog_name="tiepoint")
    except SystemExit as stop:  # how typer ends, also when all went well
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return _interrupted(received) if code == INTERRUPTED else code
    except KeyboardInterrupt:
        return _interrupted(received)
    except TiepointError as error:
        say(f"tiepoint: {error}")
        return error.exit_code
    except BrokenPipeError:  # who read our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would complain when it ends
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        say(f"tiepoint: {where}{error.strerror or error}; check the path, the permissions and the space on the disk")
        return InputError.exit_code
    except Exception as error:
        if os.environ.get("TIEPOINT_DEBUG"):
            raise
        say(f"tiepoint: this is a bug in tiepoint: {type(error).__name__}: {error}")
        say("Please report it with the traceback that you see if you set TIEPOINT_DEBUG=1 and run it again.")
        return 1
    return 0


def _interrupted(received: list[int]) -> int:
    """Say so, and return the exit code: as shells number the signal that was received, by default SIGINT."""
    say("tiepoint: interrupted")
    return 128 + received[0] if received else INTERRUPTED


@cache
def _command() -> Any:
    """Return the tree of commands; typer takes 0.1 s to build it from the signatures of all verbs."""
    return typer.main.get_command(app)


def _share_cores() -> None:
    """Let torch's threads sleep while they wait for each other, instead of spinning; before torch is loaded.

    A thread that spins keeps its core from whoever has the rest of the work: beside other programs two threads then
    take 20 times as long as one. A user who sets the variable, or loads torch first, decides otherwise.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@contextmanager
def _stopped_by_signals(received: list[int]) -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, where nobody has decided otherwise; note which it was."""

    def stop(number: int, frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    changed = []
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, stop)
                changed.append(number)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
