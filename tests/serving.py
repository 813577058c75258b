"""A tiepoint server in a process of its own, for tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import requests


class Server:
    """``tiepoint serve`` on a free port; `stop` it, `kill` it, or start it again in the same folder."""

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "tiepoint", "serve", "--folder", str(folder), "--port", "0", *options]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}
        )
        assert self.process.stderr is not None
        lines = []
        for line in self.process.stderr:
            lines.append(line)
            found = re.search(r"open (http://\S+) in a browser", line)
            if found:
                self.address = found[1]
                break
        else:
            raise AssertionError("".join(lines))

    def get(self, path: str, **more: Any) -> requests.Response:
        return requests.get(self.address + path, timeout=120, **more)

    def delete(self, path: str, **more: Any) -> requests.Response:
        return requests.delete(self.address + path, timeout=120, **more)

    def post(self, path: str, photographs: list[tuple[str, bytes]], **fields: str) -> requests.Response:
        files = [("photographs", photograph) for photograph in photographs]
        return requests.post(self.address + path, files=files, data=fields, timeout=300)

    def wait(self, path: str, seconds: float = 240) -> dict[str, Any]:
        """Return a job once it is finished."""
        return self.wait_until(path, lambda job: job["state"] not in ("waiting", "running"), seconds)

    def wait_until(self, path: str, reached: Any, seconds: float = 240) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            job = self.get(path).json()
            if reached(job):
                return job
            time.sleep(0.1)
        raise AssertionError(f"not reached in {seconds} s: {job}")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=60)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)
