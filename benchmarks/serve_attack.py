"""Attack a tiepoint server: many requests at once, huge files, bombs, path tricks, wrong types; print what it cost.

    python benchmarks/serve_attack.py

Starts a server of its own in a temporary folder, and measures whether every request is answered, whether anything lies
outside of its folder, and how much memory and disk it took at most. Writes ``results/serve_attack.json``; fails if an
answer is lost or a file is outside.
"""

from __future__ import annotations

import io
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import requests

from tiepoint import devices

MB = 1_000_000
HERE = Path(__file__).resolve().parent
FIELDS = {"features": "orb", "matcher": "nearest", "effort": "fast"}


def picture(seed: int, shift: int = 0) -> bytes:
    """Return a PNG of noise at two scales, 320x240; ``shift`` moves what it shows."""
    rng = np.random.default_rng(seed)
    noise = np.kron(rng.integers(0, 255, (80, 100)), np.ones((4, 4))).astype(np.uint8)
    stream = io.BytesIO()
    PIL.Image.fromarray(noise[shift : shift + 240, shift : shift + 320]).save(stream, "PNG")
    return stream.getvalue()


def bomb(width: int, height: int, rows: int) -> bytes:
    """Return an RGB PNG that says it has ``height`` rows, and holds ``rows`` of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes((width * 3 + 1) * rows), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def zip_bomb() -> bytes:
    """Return a ZIP of 200 MB of zeros."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.jpg", bytes(200 * MB))
    return stream.getvalue()


def large(megabytes: int, name: str) -> Iterator[bytes]:
    """Yield a form of one file of ``megabytes`` MB of noise and a small photograph, in pieces."""
    head = '--x\r\nContent-Disposition: form-data; name="photographs"; filename="{}"\r\n\r\n'
    yield head.format(name).encode()
    piece = os.urandom(MB)
    for _ in range(megabytes):
        yield piece
    yield b"\r\n" + head.format("small.png").encode() + picture(0) + b"\r\n--x--\r\n"


class Watch(threading.Thread):
    """Notes the largest resident memory of the server process and of its worker."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self.process, self.most, self.stopped = process, Counter(), False

    def run(self) -> None:
        """Look twenty times a second."""
        while not self.stopped:
            # A child belongs to the thread that started it.
            tasks = Path(f"/proc/{self.process}/task").glob("*/children")
            children = [child for task in tasks for child in task.read_text().split()]
            for kind, pids in (("server", [self.process]), ("worker", children)):
                for pid in pids:
                    try:
                        resident = int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0])
                    except (OSError, IndexError):
                        continue
                    self.most[kind] = max(self.most[kind], resident * 1024)
            time.sleep(0.05)


def main() -> None:
    """Run all attacks, print and write one JSON object."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "inside", "folder")
        folder.parent.mkdir()
        command = [sys.executable, "-m", "tiepoint", "serve", "--folder", str(folder), "--port", "0"]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=parent)
        assert server.stderr is not None
        address = next(found[1] for line in server.stderr if (found := re.search(r"open (http://\S+) in", line)))
        threading.Thread(target=server.stderr.read, daemon=True).start()
        watch = Watch(server.pid)
        watch.start()
        try:
            report = attack(address, watch)
        finally:
            watch.stopped = True
            server.terminate()
            server.wait()
        report["MB in its folder then"] = round(sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / MB)
        outside = [str(path) for path in Path(parent).rglob("*") if folder not in (path, *path.parents)]
        report["files outside its folder"] = [path for path in outside if path != str(folder.parent)]
    cpu = devices.describe()["cpu"]
    report = {"date": str(date.today()), "machine": f"{cpu['model']}, {cpu['cores']} cores", **report}
    text = json.dumps(report, indent=1)
    print(text)
    (HERE / "results" / "serve_attack.json").write_text(text + "\n")
    if report["50 matches at once"]["right pair, over 50 matches"] != 50 or report["files outside its folder"]:
        sys.exit("an answer is lost, or a file is outside of the folder")


def attack(address: str, watch: Watch) -> dict[str, Any]:
    """Return what was asked and what came of it."""
    report: dict[str, Any] = {"server MB at rest": round(watch.most["server"] / MB)}

    def post(path: str, files: list[tuple[str, bytes]], **fields: str) -> requests.Response:
        parts = [("photographs", file) for file in files]
        return requests.post(address + path, files=parts, data={**FIELDS, **fields}, timeout=1200)

    def stream(path: str, megabytes: int, name: str) -> requests.Response | None:
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        try:
            return requests.post(address + path, data=large(megabytes, name), headers=kind, timeout=1200)
        except requests.ConnectionError:  # refused before all was sent
            return None

    def said(answers: list[requests.Response | None]) -> dict[str, int]:
        return dict(Counter("cut off" if a is None else f"{a.status_code}" for a in answers))

    with ThreadPoolExecutor(50) as pool:
        begin = time.monotonic()
        pairs = [[(f"{i}a.png", picture(i)), (f"{i}b.png", picture(i, 5))] for i in range(50)]
        answers = list(pool.map(lambda pair: post("/match", pair), pairs))
        right = sum(
            a.status_code == 200 and a.json()["image0"] == f"{i}a.png" and a.json()["matches"] > 50
            for i, a in enumerate(answers)
        )
        report["50 matches at once"] = {
            "answers": said(answers),
            "right pair, over 50 matches": right,
            "seconds": round(time.monotonic() - begin, 1),
        }
        report["server MB then"] = round(watch.most["server"] / MB)

        begin = time.monotonic()
        answers = list(pool.map(lambda i: stream("/match", 200, f"{i}.jpg"), range(10)))
        report["10 photographs of 200 MB at once"] = {
            "answers": said(answers),
            "said": next((a.json()["detail"] for a in answers if a is not None), None),
            "seconds": round(time.monotonic() - begin, 1),
        }
        report["server MB after those"] = round(watch.most["server"] / MB)

        begin = time.monotonic()
        good = ("good.png", picture(1))
        bombs = {
            "PNG of 60,000 x 60,000": ("a.png", bomb(60_000, 60_000, 100)),
            "PNG of 12,000 x 12,000": ("a.png", bomb(12_000, 12_000, 12_000)),
            "ZIP of 200 MB of zeros": ("a.zip", zip_bomb()),
            "the same, called .jpg": ("a.jpg", zip_bomb()),
            "program": ("a.exe", b"MZ" + bytes(1000)),
            "program, called .png": ("a.png", b"\x7fELF" + bytes(1000)),
            "SVG, called .png": ("a.png", b"<svg onload=alert(1)>"),
            "empty": ("a.png", b""),
            "name with ..": ("../../../../tmp/evil.png", b""),
            "name of a device": ("/dev/null.png", b""),
            "name of 100,000 letters": ("a" * 100_000 + ".png", b""),
        }
        told = {}
        for name, file in bombs.items():
            answer = post("/match", [file, good])
            told[name] = f"{answer.status_code}: {str(answer.json().get('detail', 'matched'))[:110]}"
        report["bombs, wrong types, path tricks"] = told

        tricks = ["../job.json", "..%2f..%2f..%2fetc/passwd", "%2e%2e/%2e%2e/lock", "/etc/passwd", "....//job.json"]
        job = requests.get(f"{address}/jobs", timeout=60).json()[-1]["id"]
        places = [f"{address}/matches/{job}/files/{trick}" for trick in tricks] + [
            f"{address}/{trick}" for trick in tricks
        ]
        report["paths of files"] = said([requests.get(place, timeout=60) for place in places])

        answers = list(pool.map(lambda _: post("/maps", [("x.png", b"x")] * 1100), range(3)))
        report["3 forms of 1,100 files"] = said(answers)
        alive = requests.get(f"{address}/jobs", timeout=60)
    jobs = alive.json()
    report["jobs kept, by state"] = dict(Counter(job["state"] for job in jobs))
    report["most MB of the server"] = round(watch.most["server"] / MB)
    report["most MB of the worker"] = round(watch.most["worker"] / MB)
    return report


if __name__ == "__main__":
    main()
