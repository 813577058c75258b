"""`serve`: the server process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import ArgumentError, InputError, MissingDependencyError


def serve(
    folder: str | os.PathLike[str] = "tiepoint-serve",
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    names: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> None:
    """Serve the web page and its REST API until the process is interrupted.

    Parameters
    ----------
    folder : path
        Uploads, results and the states of all jobs; made if need be. Nothing else is written.
    host : str
        The address to listen at. One that other machines can reach needs a token.
    port : int
        0 takes a free one.
    token : str, optional
        What every request has to bring along; 16 characters at least.
    names : list of str
        Further host names under which browsers reach the server, such as that of a proxy.
    say : callable
        Gets the address as soon as the server listens.

    Raises
    ------
    ArgumentError
        An address that others can reach and no token, or a token that is too short.
    InputError
        The folder cannot be written or is in use, or the address cannot be listened at.
    MissingDependencyError
        FastAPI, uvicorn or python-multipart is not installed.
    """
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise MissingDependencyError(error.name or "fastapi", "serve", "the web page") from error
    from .app import create_app
    from .guard import check_token
    from .jobs import Jobs
    from .runner import Runner
    from .uploads import Limits

    check_token(host, token)
    if not 0 <= port < 65536:
        raise ArgumentError(f"--port is a number from 0 to 65535, not {port}")
    limits = Limits()
    config = uvicorn.Config(
        "",
        host=host.strip("[]"),
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=500,
        timeout_graceful_shutdown=3,
    )
    try:
        listening = config.bind_socket()
    except (OSError, SystemExit) as error:  # uvicorn ends the process instead of raising
        raise InputError(f"{host}:{port}: cannot be listened at; another --port may be free") from error
    jobs = None
    try:
        jobs = Jobs(Path(folder))
        runner = Runner(jobs, limits.pixels)
        config.app = create_app(jobs, limits, host=host, token=token, names=names)
        runner.start()
        listening.listen(config.backlog)  # from now on who connects is served, be it a moment later
        shown = f"[{host.strip('[]')}]" if ":" in host else host
        say(f"http://{shown}:{listening.getsockname()[1]}")
        try:
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            runner.close()
    finally:
        listening.close()
        if jobs is not None:
            jobs.close()
