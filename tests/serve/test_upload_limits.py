"""What an upload may be: number and size of its files, size of the whole, kinds. Nothing of a refused one stays.

The server runs in this process, with small limits and without a worker, so jobs that it takes only wait.
"""

from __future__ import annotations

import gzip
import io
import socket
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import uvicorn

from tiepoint.serve import uploads
from tiepoint.serve.app import create_app
from tiepoint.serve.jobs import Jobs
from tiepoint.serve.uploads import MB, Limits

LIMITS = Limits(photograph=MB, video=2 * MB, upload=4 * MB, storage=9 * MB, files=5, waiting=4)
KIND = {"Content-Type": "multipart/form-data; boundary=x"}
Files = list[tuple[str, bytes]]


class Small:
    """The server's address, and the folder of its jobs."""

    def __init__(self, folder: Path) -> None:
        self.jobs = Jobs(folder)
        listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        app = create_app(self.jobs, LIMITS, host="127.0.0.1", token=None)
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listening]})
        self.thread.start()

    def post(self, files: Files, path: str = "/maps") -> requests.Response:
        return requests.post(self.address + path, files=[("photographs", file) for file in files], timeout=60)

    def send(self, body: bytes | Iterator[bytes], headers: dict[str, str] | None = None) -> requests.Response:
        return requests.post(
            f"{self.address}/maps", data=body, headers=KIND if headers is None else headers, timeout=60
        )

    def held(self) -> list[str]:
        """Return the files in the folder."""
        return sorted(path.name for path in self.jobs.folder.rglob("*") if path.is_file() and path.name != "lock")

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.jobs.close()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Small]:
    server = Small(tmp_path / "folder")
    yield server
    server.close()


def refused(answer: requests.Response, status: int, words: str) -> None:
    assert answer.status_code == status, answer.text
    assert words in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]


def form(files: Files) -> bytes:
    """Return the body of a form, without its end."""
    head = b'--x\r\nContent-Disposition: form-data; name="photographs"; filename="%s"\r\n\r\n%s\r\n'
    return b"".join(head % (name.encode(), content) for name, content in files)


def test_number_of_files(small: Small) -> None:
    assert small.post([(f"{i}.png", b"x") for i in range(5)]).status_code == 202
    refused(small.post([(f"{i}.png", b"x") for i in range(6)]), 413, "5 files at most")
    assert len(small.held()) == 6  # five files and the job
    fields = [("note", (None, "x"))] * 21
    refused(requests.post(f"{small.address}/maps", files=fields, timeout=60), 413, "20 fields")
    assert len(small.held()) == 6


def test_names_of_files(small: Small) -> None:
    """Those that any system takes stay as they are; no two become one, and none of ours can be asked for."""
    for labels, names in (
        (["a/IMG_1.JPG", "A/img_1.jpg", "my a/1.png"], ["A/0002-img_1.jpg", "a/IMG_1.JPG", "my_a/0003-1.png"]),
        (["0002-x.png", "x?.png", "nul/com1.png"], ["0001-0002-x.png", "0002-x.png", "nul/0003-com1.png"]),
        (["/etc/a.png", "../b.png", "-rf.png"], ["-rf.png", "0002-b.png", "etc/0001-a.png"]),
    ):
        answer = small.post([(label, b"x") for label in labels])
        assert answer.status_code == 202, answer.text
        assert list(answer.json()["files"].values()) == labels
        photos = small.jobs.folder / answer.json()["id"] / "photos"
        stored = [path.relative_to(photos).as_posix() for path in photos.rglob("*") if path.is_file()]
        assert sorted(stored) == sorted(answer.json()["files"]) == names


@pytest.mark.parametrize("announced", [True, False])
def test_size_of_an_upload(small: Small, announced: bool) -> None:
    """By what the request says of its length; and by what comes, where it says nothing."""
    body = form([(f"{i}.png", bytes(MB)) for i in range(4)]) + b"--x--\r\n"
    pieces = (body[i : i + 100_000] for i in range(0, len(body), 100_000))
    refused(small.send(body if announced else pieces), 413, "4 MB at most")
    assert small.held() == []
    assert small.jobs.stored() == 0


def test_size_of_a_file(small: Small) -> None:
    files = [("a.png", bytes(MB)), ("b.png", bytes(MB + 1)), ("c.png", b"x")]
    answer = small.post(files)
    assert answer.status_code == 202
    assert answer.json()["notes"] == ["b.png: left out: larger than 1 MB"]
    assert small.held() == ["a.png", "c.png", "job.json"]
    refused(small.post([("walk.mp4", bytes(2 * MB + 1))]), 422, "walk.mp4: left out: larger than 2 MB")
    assert len(small.held()) == 3


def test_size_and_number_of_all_jobs(small: Small) -> None:
    full = [(f"{i}.png", bytes(900_000)) for i in range(4)]
    assert [small.post(full).status_code for _ in range(2)] == [202, 202]
    refused(small.post(full), 507, "9 MB are used up")
    assert len(small.jobs.all()) == 2 and 7 * MB < small.jobs.stored() < 8 * MB
    little = [("a.png", b"x"), ("b.png", b"x")]
    assert [small.post(little).status_code for _ in range(2)] == [202, 202]
    refused(small.post(little), 503, "4 jobs wait already")
    assert len(list(small.jobs.folder.iterdir())) == 5  # four jobs and the lock


def test_what_is_packed_stays_packed(small: Small) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.jpg", bytes(100 * MB))
        archive.writestr("../../evil.png", b"x")
    bomb = stream.getvalue()
    assert len(bomb) < MB
    refused(small.post([("a.zip", bomb), ("b.png", b"x")]), 422, "a.zip: left out: not a photograph")
    assert small.post([("a.jpg", bomb), ("b.png", b"x")]).status_code == 202  # an image that the worker cannot read
    assert small.held() == ["a.jpg", "b.png", "job.json"]
    assert small.jobs.stored() < MB
    packed = gzip.compress(form([("a.png", bytes(100 * MB))]) + b"--x--\r\n")
    refused(small.send(packed, {**KIND, "Content-Encoding": "gzip"}), 400, "damaged")
    assert len(small.held()) == 3


@pytest.mark.parametrize(
    ("headers", "body", "status", "words"),
    [
        ({"Content-Type": "application/json"}, b"{}", 415, "multipart/form-data"),
        ({"Content-Type": "image/png"}, b"\x89PNG", 415, "multipart/form-data"),
        ({"Content-Type": "multipart/form-data"}, b"", 415, "multipart/form-data"),
        ({}, b"", 415, "multipart/form-data"),
        (KIND, b"", 400, "cut off"),
        (KIND, b"no form at all", 400, "damaged"),
        (KIND, form([("a.png", b"x"), ("b.png", b"x")]), 400, "cut off"),
        (KIND, b"--x\r\nContent-Disposition: form-data\r\n\r\n\r\n--x--\r\n", 422, "two photographs or more"),
        (KIND, b"--x\r\n" + b"a" * 100_000 + b": b\r\n\r\n\r\n--x--\r\n", 400, "damaged"),
    ],
)
def test_what_is_no_form(small: Small, headers: dict[str, str], body: bytes, status: int, words: str) -> None:
    refused(small.send(body, headers), status, words)
    assert small.held() == []


def test_an_upload_that_stands_still(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "IDLE", 0.5)
    place = small.address.removeprefix("http://")
    head = (
        f"POST /maps HTTP/1.1\r\nHost: {place}\r\nContent-Type: {KIND['Content-Type']}\r\nContent-Length: 9999\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", int(place.partition(":")[2])), timeout=20) as connection:
        connection.sendall(head.encode() + form([("a.png", b"x")]))
        answer = b"".join(iter(lambda: connection.recv(4096), b""))  # until the server closes
    assert answer.startswith(b"HTTP/1.1 408") and b"Nothing arrived" in answer
    assert small.held() == []
