"""One queue and one worker process. Cancelling a job ends the worker; the next job gets a new one."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .jobs import Job, Jobs, Step

LOOK = 0.2  # seconds between two looks at whether a job was cancelled


class Runner(threading.Thread):
    """Takes one job after the other from the queue and hands it to the worker, until `close`.

    Parameters
    ----------
    jobs : Jobs
        Whose states follow what the worker tells.
    pixels : int
        Of a photograph at most.
    """

    def __init__(self, jobs: Jobs, pixels: int) -> None:
        super().__init__(name="runner", daemon=True)
        self.jobs, self.pixels = jobs, pixels
        self._worker: _Worker | None = None
        self._closing = False

    def run(self) -> None:
        """Work until `close`; what is running then stays so on the disk, and is taken up at the next start."""
        while True:
            with self.jobs.changed:
                while not self._closing and not self.jobs.waiting():
                    self.jobs.changed.wait()
                if self._closing:
                    break
                job = self.jobs.waiting()[0]
                job.state, job.begun, job.starts = "running", time.time(), job.starts + 1
                job.step = Step(name="starting")
                self.jobs.save(job)
            try:
                self._do(job)
            except Exception as error:  # such as a full disk: the queue goes on
                self._end_worker()
                with self.jobs.changed:
                    job.end("failed", f"The server could not work on this: {error}")
        self._end_worker()

    def close(self) -> None:
        """End the worker and the thread."""
        with self.jobs.changed:
            self._closing = True
            self.jobs.changed.notify_all()
        self.join()

    def _end_worker(self) -> None:
        if self._worker is not None:
            self._worker.end()
            self._worker = None

    def _do(self, job: Job) -> None:
        """Have the worker do a job, and follow it until it ends, in whatever way."""
        if self._worker is None:
            self._worker = _Worker()
        folder = self.jobs.folder_of(job.id)
        told = _Told(job, folder)
        try:
            self._worker.send({"job": job.model_dump(), "folder": str(folder), "pixels": self.pixels})
            while job.state == "running" and not self._closing:
                if self._worker.pipe.poll(LOOK):
                    kind, value = json.loads(self._worker.pipe.recv_bytes())
                    with self.jobs.changed:
                        if job.state == "running":
                            told.hear(kind, value)
        except (EOFError, OSError):
            with self.jobs.changed:
                if job.state == "running":
                    code = self._worker.end()
                    self._worker = None
                    job.end("failed", _died(code))
        if self._closing and job.state == "running":
            return
        if job.state == "cancelled":
            self._end_worker()
            self.jobs.discard(job.id)
            return
        with self.jobs.changed:
            if self.jobs.get(job.id) is job:
                self.jobs.save(job)
                self.jobs.measure(job.id)


class _Told:
    """Applies to a job what the worker tells of it."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder = job, folder
        self._began = (0.0, 0)  # when the current step began, and what was done then

    def hear(self, kind: str, value: Any) -> None:
        job = self.job
        if kind == "step":
            now = time.monotonic()
            if job.step is None or job.step.name != value["name"]:
                self._began = now, value.get("done", 0)
            job.step = Step(**value)
            begin, before = self._began
            if job.step.done > before and job.step.total and now - begin > 1:
                job.step.seconds_left = (job.step.total - job.step.done) * (now - begin) / (job.step.done - before)
        elif kind == "note":
            job.notes.append(self._public(value))
        elif kind == "output":
            if value not in job.outputs:
                job.outputs.append(value)
        elif kind == "failed":
            job.end("failed", self._public(value))
        else:
            job.result = {**value, "outputs": [f"/{_PLURALS[job.kind]}/{job.id}/files/{o}" for o in job.outputs]}
            job.end("done")  # last, as a request may wait for it

    def _public(self, text: str) -> str:
        """Return a message without paths of this machine, and with the names that the user gave."""
        text = text.replace(f"{self.folder}{os.sep}", "")
        for name, label in self.job.files.items():
            text = text.replace(f"photos{os.sep}{name}", label).replace(name, label)
        return text


_PLURALS = {"match": "matches", "map": "maps"}


def _died(code: int | None) -> str:
    if code in (-getattr(signal, "SIGKILL", 9), 137):
        return "The worker was killed, most likely because the memory ran out; try fewer or smaller photographs."
    return f"The worker ended unexpectedly (exit code {code}); this is a bug, please report it with the photographs."


class _Worker:
    """The worker process, from this side."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,), name="tiepoint worker")
        self.process.start()
        theirs.close()

    def send(self, order: dict[str, Any]) -> None:
        self.pipe.send_bytes(json.dumps(order).encode())

    def end(self) -> int | None:
        """Kill the process and all that it started; return its exit code.

        The folder of a map is safe against this at any moment.
        """
        self.pipe.close()
        self.process.join(0.5)  # one that has ended by itself tells why
        if self.process.is_alive():
            self._kill()
        self.process.join()
        return self.process.exitcode

    def _kill(self) -> None:
        if hasattr(os, "killpg") and self.process.pid is not None:
            with suppress(ProcessLookupError):  # it has not made its group yet
                os.killpg(self.process.pid, signal.SIGKILL)
                return
        self.process.kill()


def _work(pipe: Connection) -> None:
    """Be the worker: do orders from the pipe until it closes."""
    if hasattr(os, "setsid"):
        os.setsid()  # a group of its own, which can be killed as a whole, and which Ctrl-C does not reach
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    from ..errors import TiepointError
    from ..mapping.workers import end_with_parent
    from .work import run

    end_with_parent()

    def tell(kind: str, value: Any) -> None:
        pipe.send_bytes(json.dumps([kind, value]).encode())

    while True:
        try:
            order = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            done = run(order["job"], Path(order["folder"]), order["pixels"], tell)
        except TiepointError as error:
            tell("failed", str(error))
        except MemoryError:
            tell("failed", "The memory ran out; try fewer or smaller photographs.")
        except Exception as error:
            tell("failed", f"This is a bug in tiepoint: {type(error).__name__}: {error}")
        else:
            tell("done", done)
