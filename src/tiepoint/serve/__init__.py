"""The web page and its REST API: photographs in, matches and maps out, on this machine.

    app        routes, and the answers they give
    guard      who may ask: Host, Origin, token; headers of every answer
    uploads    photographs and videos arrive: counted, limited, under names of our own
    jobs       what was asked for, where it stands; kept in files, so that it survives a restart
    runner     one queue, one worker process; cancelling ends the worker and starts another
    work       what the worker does with a job

It needs FastAPI, uvicorn and python-multipart: ``pip install 'tiepoint[serve]'``.
"""

from __future__ import annotations

from .run import serve

__all__ = ["serve"]
