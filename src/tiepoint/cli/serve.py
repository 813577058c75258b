"""``tiepoint serve``: a web page to drop photographs on, and its REST API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import say


def serve(
    folder: Annotated[
        Path, typer.Option(help="Uploads, results and the list of jobs; nothing else is written.")
    ] = Path("tiepoint-serve"),
    host: Annotated[
        str, typer.Option(help="Address to listen at; one that other machines can reach needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes a free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="TIEPOINT_TOKEN",
            show_envvar=True,
            help="What browsers and programs have to bring along, 16 characters at least; better set in the "
            "environment, as other users of this machine can read command lines.",
        ),
    ] = None,
    name: Annotated[
        list[str], typer.Option(help="Another host name of this server, such as a proxy's; repeatable.")
    ] = [],  # noqa: B006  typer reads the default and never changes it
) -> None:
    """Serve a web page to drop photographs on, and its REST API, until Ctrl-C.

    Jobs survive a restart: the same command goes on with them.
    """
    from .. import serve as server

    server.serve(
        folder,
        host=host,
        port=port,
        token=token,
        names=name,
        say=lambda address: say(f"tiepoint: open {address} in a browser; Ctrl-C ends the server"),
    )
