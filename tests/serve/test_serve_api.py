"""The REST API, asked over HTTP from a server process of its own."""

from __future__ import annotations

import io
import json
import re
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import requests
from numpy.typing import NDArray

import tiepoint as tp
from serving import Server
from textured_room import Room, look
from tiepoint.errors import ArgumentError
from tiepoint.serve import serve

FIELDS = {"features": "sift", "matcher": "nearest"}
Files = list[tuple[str, bytes]]


def png(pixels: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def pair(texture: NDArray[np.uint8]) -> Files:
    """Two photographs; the second begins 12 pixels further right and 8 further down."""
    return [("left.png", png(texture[:-8, :-12])), ("right.png", png(texture[8:, 12:]))]


@pytest.fixture(scope="module")
def room() -> Files:
    """Six photographs of one room, from a path along its length."""
    world = Room()
    return [(f"holiday/{i}.png", png(world.photograph(look((0.35 * i - 1, 0.1 * i, 0.2 * i))))) for i in range(6)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server") / "folder")
    yield server
    server.stop()


def test_match_answers_what_the_command_line_prints(server: Server, pair: Files) -> None:
    answer = server.post("/match", pair, **FIELDS, geometry="homography")
    assert answer.status_code == 200, answer.text
    result = answer.json()
    assert (result["image0"], result["image1"]) == ("left.png", "right.png")
    assert result["choice"] == "sift + nearest, as asked"
    images = [np.asarray(PIL.Image.open(io.BytesIO(content))) for _, content in pair]
    expected = tp.match(images[0], images[1], **FIELDS, effort="auto", geometry="homography").summary()
    same = ("keypoints0", "keypoints1", "matches", "overlaps", "geometry", "inliers", "note", "size0", "size1")
    assert {name: result[name] for name in same} == {name: expected[name] for name in same}
    np.testing.assert_allclose(result["model"], expected["model"], rtol=1e-6, atol=1e-9)
    assert result.keys() - {"outputs"} == expected.keys()
    table = server.get(next(name for name in result["outputs"] if name.endswith(".csv"))).text.splitlines()
    assert len(table) == result["matches"] + 1
    page = server.get(next(name for name in result["outputs"] if name.endswith("match.html")))
    assert page.headers["content-security-policy"].startswith("sandbox allow-scripts")


def test_map_of_a_room_with_bad_photographs_among_good_ones(server: Server, room: Files) -> None:
    bad = [
        ("notes.txt", b"no photograph"),
        ("holiday/cut.jpg", b"\xff\xd8\xff\xe0" + bytes(300)),
        ("empty.jpg", b""),
        ("a zip.jpg", b"PK\x03\x04" + bytes(100)),
        ("bomb.png", bomb(60_000, 60_000)),
    ]
    answer = server.post("/maps", [*room[:2], *bad, *room[2:]], **FIELDS, quality="fast")
    assert answer.status_code == 202, answer.text
    path = f"/maps/{answer.json()['id']}"
    events = server.get(f"{path}/events", stream=True)
    states = [json.loads(line[6:]) for line in events.iter_lines() if line.startswith(b"data: ")]
    assert states[-1]["state"] == "done", states[-1]["error"]
    steps = " ".join(state["step"]["name"] for state in states if state["step"])
    for step in ("extracting", "matching", "mapping", "adjusting"):
        assert step in steps
    # Sub-folders and names are kept, in the model too, which is to be used with the user's own files.
    assert set(states[-1]["files"]) >= {name for name, _ in room}
    final = server.get(path).json()
    assert final["result"]["models"][0]["registered"] == len(room)
    assert {image["name"] for image in final["result"]["models"][0]["images"]} == {name for name, _ in room}
    assert final["result"]["plan"]["quality"] == "fast"
    for name, _ in bad:  # one message each, under the user's name
        assert len([note for note in final["notes"] if name in note]) == 1, final["notes"]
    assert str(server.folder) not in json.dumps(final)
    for name in final["outputs"]:
        assert server.get(f"{path}/files/{name}").content
    assert server.get(f"{path}/files/points.ply").content.startswith(b"ply")
    preview = np.asarray(PIL.Image.open(io.BytesIO(server.get(f"{path}/files/best-matches.jpg").content)), int)
    assert (np.abs(preview - (0xA8, 0xEF, 0x2E)).max(axis=2) < 60).sum() > 100  # lines between inliers
    assert max(preview.shape) < 1200
    assert server.get(f"{path}/files/report.json").json()["output"] == "map"
    assert "<h1>holiday</h1>" in server.get(f"{path}/files/scene.html").text


def test_a_video_is_mapped_and_one_that_is_none_is_one_message(server: Server, tmp_path: Path) -> None:
    world, path = Room(), tmp_path / "walk.avi"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (320, 240))
    for i in range(60):
        video.write(world.photograph(look((0.04 * i - 1, 0.01 * i, 0.02 * i)))[:, :, ::-1])
    video.release()
    mapped = server.post("/maps", [("walk.avi", path.read_bytes())], **FIELDS, quality="fast").json()["id"]
    broken = server.post("/maps", [("broken.avi", bytes(5000))], **FIELDS).json()["id"]
    job = server.wait(f"/maps/{mapped}")
    assert job["state"] == "done", job["error"]
    assert job["result"]["models"][0]["registered"] >= 3
    assert job["title"] == "walk.avi"
    job = server.wait(f"/maps/{broken}")
    assert job["state"] == "failed"
    assert "broken.avi" in job["error"]
    assert str(server.folder) not in job["error"]
    both = server.post("/maps", [("walk.avi", b"x"), ("a.png", b"x")], **FIELDS)
    assert both.status_code == 422
    assert "not of both" in both.json()["detail"]


def bomb(width: int, height: int) -> bytes:
    """A small PNG of very many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("files", "fields", "status", "words"),
    [
        ([("a.png", b"x")], {}, 422, "two photographs; 1 usable"),
        ([("a.png", b"x"), ("b.exe", b"MZ")], {}, 422, "b.exe: left out: not a photograph"),
        ([("a.png", b"x"), ("b.zip", b"PK")], {}, 422, "b.zip: left out"),
        ([("a.png", b""), ("b.png", b"")], {}, 422, "a.png: the file is empty"),
        ([("a.png", bomb(60_000, 60_000)), ("b.png", b"x")], {}, 422, "a.png: 60000x60000 pixels"),
        ([("a.png", b"x"), ("b.png", b"x")], {"features": "cairn@/etc/passwd"}, 422, "no features of that name"),
        ([("a.png", b"x"), ("b.png", b"x")], {"matcher": "../x"}, 422, "no matcher of that name"),
        ([("a.png", b"x"), ("b.png", b"x")], {"effort": "most"}, 422, "effort"),
        ([("a.png", b"x"), ("b.png", b"x")], {"quality": "dense"}, 422, "quality: Extra inputs"),
        ([("a.png", b"x"), ("b.png", b"x")], {"output": "/etc"}, 422, "output: Extra inputs"),
        ([("a.png", b"x"), ("b.png", b"x")], {"features": "s" * 20_000}, 413, "too long"),
    ],
)
def test_bad_requests_are_one_message(
    server: Server, files: Files, fields: dict[str, str], status: int, words: str
) -> None:
    answer = server.post("/match", files, **{**FIELDS, **fields})
    assert answer.status_code == status, answer.text
    assert re.search(words, answer.json()["detail"])
    assert "\n" not in answer.json()["detail"]


def test_names_lead_nowhere(server: Server, pair: Files) -> None:
    before = {path for path in server.folder.parent.rglob("*") if server.folder not in path.parents}
    pairs = [
        ("../../../evil.png", "/etc/passwd.png"),
        ("..\\..\\con.png", "\x1b[31m.png"),
        ("<script>.png", "a" * 2000 + ".png"),
        ("a/" * 200 + "../" * 20 + "..png", "b.png"),
    ]
    for names in pairs:
        answer = server.post(
            "/matches", [(name, content) for name, (_, content) in zip(names, pair, strict=True)], **FIELDS
        )
        assert answer.status_code == 202, answer.text
        job = server.wait(f"/matches/{answer.json()['id']}")
        assert job["state"] == "done", job["error"]
        photos = server.folder / job["id"] / "photos"
        stored = [path.relative_to(photos).as_posix() for path in photos.rglob("*") if path.is_file()]
        assert sorted(stored) == sorted(job["files"]) and len(stored) == 2
        plain = r"([A-Za-z0-9_-]{1,40}/){0,8}[A-Za-z0-9_-]{1,45}\.png"
        assert all(re.fullmatch(plain, one) for one in stored), stored
        assert all(label.isprintable() and len(label) <= 300 for label in job["files"].values())
    after = {path for path in server.folder.parent.rglob("*") if server.folder not in path.parents}
    assert before == after
    path = f"/matches/{job['id']}"
    for trick in ("../job.json", "..%2fjob.json", "%2e%2e%2fjob.json", "job.json", "/etc/passwd", "match.html%00"):
        assert server.get(f"{path}/files/{trick}").status_code == 404
    assert server.get("/maps/" + job["id"]).status_code == 404  # it is no map


def test_only_pages_of_this_server_may_ask(server: Server) -> None:
    port = server.address.rsplit(":")[-1]
    for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", "10.0.0.1"):
        assert server.get("/jobs", headers={"Host": host}).status_code == 421
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert server.get("/jobs", headers={"Host": host}).status_code == 200
    nothing = "/maps/" + 32 * "0"
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert server.delete(nothing, headers=headers).status_code == 403
    assert server.delete(nothing, headers={"Origin": server.address}).status_code == 404
    answer = server.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"https?://", answer.text)  # nothing comes from another site


def test_cancel_ends_the_worker_and_the_queue_goes_on(server: Server, pair: Files, room: Files) -> None:
    first = server.post("/maps", room, **FIELDS).json()["id"]
    second = server.post("/maps", room, **FIELDS).json()["id"]
    third = server.post("/matches", pair, **FIELDS).json()["id"]
    assert server.get(f"/matches/{third}").json()["waiting_before"] >= 1
    server.wait_until(f"/maps/{first}", lambda job: job["step"] and job["step"]["total"])
    assert server.delete(f"/maps/{first}").status_code == 204
    assert server.delete(f"/maps/{second}").status_code == 204
    for gone in (first, second):
        assert server.get(f"/maps/{gone}").status_code == 404
        assert not (server.folder / gone).exists()
    assert server.wait(f"/matches/{third}")["state"] == "done"


def test_jobs_survive_the_death_of_the_server(tmp_path: Path, pair: Files, room: Files) -> None:
    folder = tmp_path / "folder"
    server = Server(folder)
    map_id = server.post("/maps", room[:4], **FIELDS, quality="fast").json()["id"]
    match_id = server.post("/matches", pair, **FIELDS).json()["id"]
    server.wait_until(f"/maps/{map_id}", lambda job: job["step"] and job["step"]["total"])
    server.kill()
    (folder / ("0" * 32)).mkdir()  # an upload that was cut off
    server = Server(folder)
    try:
        assert server.wait(f"/maps/{map_id}")["state"] == "done"
        assert server.wait(f"/matches/{match_id}")["state"] == "done"
        assert not (folder / ("0" * 32)).exists()
    finally:
        server.stop()


def test_token(tmp_path: Path) -> None:
    token = "correct horse battery staple"
    server = Server(tmp_path / "folder", TIEPOINT_TOKEN=token)
    try:
        assert server.get("/jobs").status_code == 401
        assert server.get("/jobs", headers={"Authorization": f"Bearer {token[:-1]}"}).status_code == 401
        assert server.get("/jobs", headers={"Authorization": f"Bearer {token}"}).json() == []
        session = requests.Session()
        page = session.get(server.address, headers={"Accept": "text/html"}, timeout=10)
        assert page.url.endswith("/login")
        assert session.post(f"{server.address}/login", data={"token": "wrong"}, timeout=10).status_code == 401
        assert session.get(f"{server.address}/jobs", timeout=10).status_code == 401
        assert session.post(f"{server.address}/login", data={"token": token}, timeout=10).status_code == 200
        assert session.get(f"{server.address}/jobs", timeout=10).json() == []
    finally:
        server.stop()


@pytest.mark.parametrize(("host", "token"), [("0.0.0.0", None), ("192.168.1.7", None), ("127.0.0.1", "short")])
def test_others_need_a_token_that_cannot_be_guessed(tmp_path: Path, host: str, token: str | None) -> None:
    with pytest.raises(ArgumentError, match="token"):
        serve(tmp_path / "folder", host=host, token=token)
    assert not (tmp_path / "folder").exists()


def test_docs_come_from_this_server_alone(server: Server) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    assert {"/match", "/matches", "/maps", "/{kind}/{job_id}", "/{kind}/{job_id}/events"} <= paths.keys()
    page = server.get("/docs").text
    assert all(path in page for path in paths)
    assert not re.search(r"<script|src=|https?://(?!127)", page)


def test_an_upload_that_is_broken_off_leaves_nothing(server: Server) -> None:
    def cut() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="photographs"; filename="a.png"\r\n\r\n' + bytes(100_000)
        raise ConnectionResetError("reset here")

    before = set(server.folder.iterdir())
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    with pytest.raises((ConnectionResetError, requests.ConnectionError)):
        requests.post(f"{server.address}/maps", data=cut(), headers=kind, timeout=9)
    end = time.monotonic() + 5
    while set(server.folder.iterdir()) != before and time.monotonic() < end:
        time.sleep(0.1)
    assert set(server.folder.iterdir()) == before
