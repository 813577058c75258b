"""``tiepoint weights``: what there is, where it lies, and how to get it."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from . import completion
from .console import JsonOption, is_terminal, print_json, print_table, say

app = typer.Typer(help="Trained weights: list, pull, path, verify.", no_args_is_help=True)

NamesArgument = Annotated[
    list[str],
    typer.Argument(metavar="NAMES...", autocompletion=completion.weights, help="See 'tiepoint weights list'."),
]


def found(name: str) -> str | None:
    """Return the path of a weights file on this machine, or None."""
    from .. import weights

    return str(weights.resolve(name)) if weights.available(name) else None


@app.command("list")
def list_weights(json: JsonOption = False) -> None:
    """List all known weights, their licences, and which are on this machine."""
    from .. import weights

    rows: list[dict[str, Any]] = [
        {
            "name": entry.name,
            "kind": entry.kind,
            "licence": entry.licence,
            "commercial": entry.commercial,
            "trained_on": entry.trained_on,
            "bytes": entry.size,
            "path": found(entry.name),
        }
        for entry in weights.entries().values()
    ]
    if json:
        print_json(rows)
        return
    print_table(
        ("name", "here", "MB", "licence", "trained on"),
        [
            (
                row["name"],
                "yes" if row["path"] else "no",
                f"{row['bytes'] / 1e6:.1f}" if row["bytes"] else "?",
                row["licence"],
                row["trained_on"],
            )
            for row in rows
        ],
    )


@app.command()
def pull(names: NamesArgument, json: JsonOption = False) -> None:
    """Download weights into the cache; an interrupted download is resumed."""
    from .. import weights

    paths = {}
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not is_terminal(),
    )
    with bar:
        for name in names:
            entry = weights.entry(name)
            if not entry.commercial:
                say(f"warning: the weights {name!r} may not be used commercially ({entry.licence})")
            task = bar.add_task(name, total=entry.size)

            def show(done: int, total: int | None, task: Any = task) -> None:
                bar.update(task, completed=done, total=total)

            paths[name] = str(weights.pull(name, show))
    _report(paths, json)


@app.command()
def path(names: NamesArgument, json: JsonOption = False) -> None:
    """Print the paths of weights on this machine."""
    from .. import weights

    _report({name: str(weights.resolve(name)) for name in names}, json)


@app.command()
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAMES]...",
            autocompletion=completion.weights,
            help="By default all that are on this machine.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Check the SHA-256 of weights on this machine."""
    from .. import weights

    if not names:
        names = [e.name for e in weights.entries().values() if e.sha256 is not None and found(e.name)]
    _report({name: str(weights.verify(name)) for name in names}, json)


def _report(paths: dict[str, str], json: bool) -> None:
    if json:
        print_json(paths)
    else:
        for where in paths.values():
            print(where)
