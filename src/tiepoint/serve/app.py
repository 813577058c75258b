"""Routes of the web page and the REST API."""

from __future__ import annotations

import asyncio
import html
from collections.abc import AsyncIterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal
from urllib.parse import parse_qs

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from .._version import __version__
from ..errors import InputError
from ..io.html import content_policy, fill_template
from ..io.video import VIDEO_SUFFIXES
from .choices import MapOptions, MatchOptions, choices
from .guard import COOKIE, Guard, is_token
from .jobs import Job, Jobs, Kind
from .uploads import MB, Limits, Refused, Upload, common_folder, receive

LOOK = 0.2  # seconds between two looks at a job
BEAT = 15.0  # seconds of silence after which an event stream says that it lives, for proxies
SHOWN = 100  # jobs in the list

Plural = Literal["matches", "maps"]
KINDS: dict[Plural, Kind] = {"matches": "match", "maps": "map"}
# A result is a page of its own, shown in a sandbox: its script is not one of this server's pages. The page itself
# says which script may run (`tiepoint.io.html`).
RESULT_POLICY = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data: blob:; frame-ancestors 'none'"
)


def create_app(jobs: Jobs, limits: Limits, *, host: str, token: str | None, names: Sequence[str] = ()) -> FastAPI:
    """Return the ASGI application.

    Parameters
    ----------
    jobs : Jobs
        A `tiepoint.serve.runner.Runner` works on them.
    limits : Limits
        What is accepted.
    host, token, names
        See `tiepoint.serve.guard.Guard`.
    """
    app = FastAPI(
        title="tiepoint",
        version=__version__,
        summary="Photographs in, matches and maps out.",
        docs_url=None,  # FastAPI's pages fetch scripts from another site
        redoc_url=None,
    )
    page = _page("page.html")
    offered = choices(limits)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        # The rest of an upload is not read, so the connection is of no further use.
        return JSONResponse({"detail": error.message}, error.status, {"Connection": "close"})

    @app.exception_handler(OSError)
    @app.exception_handler(InputError)
    async def unwritable(request: Request, error: Exception) -> Response:
        reason = getattr(error, "strerror", None) or error.__cause__ or error
        return JSONResponse({"detail": f"The server cannot store this: {reason}"}, 507, {"Connection": "close"})

    @app.get("/", include_in_schema=False)
    async def home() -> Response:
        return page()

    @app.get("/login", include_in_schema=False)
    async def login_page() -> Response:
        return _page("login.html")(message="")

    @app.post("/login", include_in_schema=False)
    async def login(request: Request) -> Response:
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > 2000:
                raise Refused(413, "A token is shorter.")
        given = parse_qs(body.decode("latin-1")).get("token", [""])[0]
        if not is_token(given, token):
            await asyncio.sleep(1)
            return _page("login.html")(message="That is not the token.", status=401)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, given, httponly=True, samesite="strict", secure=request.url.scheme == "https")
        return answer

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return _docs(app)

    @app.get("/choices", summary="What can be chosen, and what it means.")
    async def get_choices() -> dict[str, Any]:
        return offered

    @app.get("/jobs", summary="All jobs, the latest first; without their results.")
    async def get_jobs() -> list[Job]:
        return [job.model_copy(update={"result": None}) for job in jobs.all()[:SHOWN]]

    async def upload(request: Request, kind: Kind) -> Job:
        """Take an upload in and put its job into the queue; on any fault nothing of it stays."""
        if len(jobs.waiting()) >= limits.waiting:
            raise Refused(503, f"{limits.waiting} jobs wait already; try again later.")

        def count(size: int) -> None:
            jobs.count_bytes(job_id, size)
            if jobs.stored() > limits.storage:
                raise Refused(507, f"The server's {limits.storage // MB} MB are used up; delete jobs of the list.")

        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > limits.upload:
            raise Refused(413, f"An upload may have {limits.upload // MB} MB at most.")
        job_id = jobs.begin_upload()
        try:
            photos = jobs.folder_of(job_id) / "photos"
            photos.mkdir()
            arrived = await receive(request, photos, limits, count)
            job = _job(job_id, kind, arrived)
            jobs.add(job)
        except BaseException as error:
            jobs.discard(job_id)
            if isinstance(error, ClientDisconnect):
                raise Refused(400, "The upload was broken off.") from error
            raise
        return job

    @app.post("/match", summary="Match two photographs and wait for the result.", openapi_extra=_form(MatchOptions))
    async def post_match(request: Request) -> dict[str, Any]:
        job = await upload(request, "match")
        while not job.finished:
            await asyncio.sleep(LOOK)
        if job.state != "done":
            raise HTTPException(422, job.error or "The match was cancelled.")
        return job.result or {}

    @app.post(
        "/matches",
        status_code=202,
        summary="Match two photographs; answers at once.",
        openapi_extra=_form(MatchOptions),
    )
    async def post_matches(request: Request) -> Job:
        return await upload(request, "match")

    @app.post(
        "/maps",
        status_code=202,
        summary="Map photographs or a video; answers at once.",
        openapi_extra=_form(MapOptions),
    )
    async def post_maps(request: Request) -> Job:
        return await upload(request, "map")

    def find(kind: Plural, job_id: str) -> Job:
        job = jobs.get(job_id)
        if job is None or job.kind != KINDS[kind]:
            raise HTTPException(404, "There is no such job; it may have been deleted.")
        return job

    @app.get("/{kind}/{job_id}", summary="Where a job stands, and its result.")
    async def get_job(kind: Plural, job_id: str) -> Job:
        job = find(kind, job_id)
        jobs.all()  # counts who waits before whom
        return job

    @app.get(
        "/{kind}/{job_id}/events",
        summary="The same as server-sent events, whenever it changes, until the job ends.",
        response_class=StreamingResponse,
    )
    async def get_events(kind: Plural, job_id: str) -> Response:
        return StreamingResponse(_events(find(kind, job_id), jobs), media_type="text/event-stream")

    @app.delete("/{kind}/{job_id}", status_code=204, summary="Cancel a job if it is not finished, and delete it.")
    async def delete(kind: Plural, job_id: str) -> Response:
        running = find(kind, job_id).state == "running"
        jobs.remove(job_id)
        if running:  # the runner ends the worker, then removes the folder
            for _ in range(100):
                if not jobs.folder_of(job_id).exists():
                    break
                await asyncio.sleep(0.1)
        else:
            await asyncio.to_thread(jobs.discard, job_id)
        return Response(status_code=204)

    @app.get("/{kind}/{job_id}/files/{name}", summary="One of the job's outputs.", response_class=FileResponse)
    async def get_file(kind: Plural, job_id: str, name: str) -> Response:
        job = find(kind, job_id)
        path = jobs.folder_of(job.id) / "result" / name
        # The outputs are a list that the worker made; no path of a client's is ever opened.
        if name not in job.outputs or not path.is_file():
            raise HTTPException(404, "There is no such file.")
        headers = {"Content-Security-Policy": RESULT_POLICY} if path.suffix == ".html" else {}
        shown = path.suffix in (".html", ".png", ".jpg")
        return FileResponse(
            path,
            headers=headers,
            filename=f"{job.id[:8]}-{name}",
            content_disposition_type="inline" if shown else "attachment",
        )

    app.add_middleware(Guard, host=host, token=token, names=names)
    return app


def _job(job_id: str, kind: Kind, arrived: Upload) -> Job:
    """Return the job that an upload asks for; raise `Refused` if it makes no sense."""
    reasons = "".join(f" {line}." for line in arrived.left_out)
    labels = list(arrived.files.values())
    videos = [name for name in arrived.files if name.lower().endswith(VIDEO_SUFFIXES)]
    if kind == "match" and (len(labels) != 2 or videos):
        raise Refused(422, f"A match takes two photographs; {len(labels)} usable files came.{reasons}")
    if kind == "map" and videos and len(labels) > 1:
        raise Refused(422, f"A map is made of photographs or of one video, not of both.{reasons}")
    if kind == "map" and not videos and len(labels) < 2:
        raise Refused(422, f"A map takes two photographs or more, or a video; {len(labels)} usable came.{reasons}")
    try:
        options = (MatchOptions if kind == "match" else MapOptions).model_validate(arrived.fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Refused(422, f"{where}: {first['msg'].removeprefix('Value error, ')}.") from error
    title = (
        " – ".join(labels)
        if kind == "match" or videos
        else f"{len(labels)} photographs, {common_folder(labels) or f'{labels[0]} … {labels[-1]}'}"
    )
    return Job(
        id=job_id, kind=kind, title=title, options=options.model_dump(), files=arrived.files, notes=arrived.left_out
    )


async def _events(job: Job, jobs: Jobs) -> AsyncIterator[str]:
    """Yield the whole state of a job whenever it changes: a client that reconnects has missed nothing."""
    last, silent = "", 0.0
    while True:
        jobs.all()  # counts who waits before whom
        finished, now = job.finished, job.model_dump_json()
        if now != last:
            last, silent = now, 0.0
            yield f"data: {now}\n\n"
        elif silent >= BEAT:
            silent = 0.0
            yield ": still here\n\n"
        if finished:
            return
        await asyncio.sleep(LOOK)
        silent += LOOK


def _form(options: type[MatchOptions] | type[MapOptions]) -> dict[str, Any]:
    """Return OpenAPI's description of a multipart form of photographs and options."""
    schema = options.model_json_schema()
    photographs = {"type": "array", "items": {"type": "string", "format": "binary"}}
    properties = {"photographs": photographs, **schema["properties"]}
    content = {"multipart/form-data": {"schema": {"type": "object", "properties": properties}}}
    return {"requestBody": {"required": True, "content": content}}


class _page:
    """A page of this package, with the policy that allows its own script and style, and requests to this server."""

    def __init__(self, name: str) -> None:
        self.template = files(__package__).joinpath(name).read_text(encoding="utf-8")
        self.policy = f"{content_policy(self.template, connect=True)}; frame-ancestors 'none'"

    def __call__(self, status: int = 200, **texts: str) -> Response:
        page = fill_template(self.template, **texts)
        return HTMLResponse(page, status, {"Content-Security-Policy": self.policy})


@cache
def _docs(app: FastAPI) -> Response:
    """Return a plain page that says what the API does; FastAPI's own needs scripts of another site."""
    lines = []
    for path, methods in app.openapi()["paths"].items():
        for method, what in methods.items():
            lines.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{html.escape(what['summary'])}")
            form = what.get("requestBody", {}).get("content", {}).get("multipart/form-data")
            if form is None:
                continue
            rows = "".join(
                f"<tr><td><code>{name}</code><td>{html.escape(about.get('description', 'files, repeatable'))}"
                f"<td>{html.escape(', '.join(about.get('enum', [])))}<td>{html.escape(str(about.get('default', '')))}"
                for name, about in form["schema"]["properties"].items()
            )
            lines.append(f"<table><tr><th>field<th>meaning<th>values<th>default{rows}</table>")
    shell = _page("docs.html")
    body = fill_template(shell.template, title="tiepoint: REST API").replace("<!--paths-->", "".join(lines))
    return HTMLResponse(body, 200, {"Content-Security-Policy": shell.policy})
