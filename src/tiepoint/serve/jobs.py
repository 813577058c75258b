"""Jobs and their folders: ``FOLDER/<id>/job.json`` is the state, beside it lie uploads and results.

Only files that this module or the worker names are ever written. A folder without ``job.json`` is an upload that was
interrupted; it is removed at the next start.
"""

from __future__ import annotations

import re
import secrets
import shutil
import threading
import time
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, Field, ValidationError

from ..errors import InputError
from ..io.files import make_folder, write_json

Kind = Literal["match", "map"]
State = Literal["waiting", "running", "done", "failed", "cancelled"]
UNFINISHED = ("waiting", "running")
MOST_NOTES = 200
MOST_STARTS = 3  # a job that was running whenever the server ended is taken for the reason


class Step(BaseModel):
    """Where a running job is: the step, how much of it is done, and an estimate of the time left in it."""

    name: str
    done: int = 0
    total: int = 0
    seconds_left: float | None = None


class Job(BaseModel):
    """One request for a match or a map."""

    id: str
    kind: Kind
    state: State = "waiting"
    title: str = ""
    options: dict[str, str] = {}
    files: dict[str, str] = Field(default={}, description="Name on the server -> name that the user gave.")
    created: float = 0.0
    begun: float | None = None
    ended: float | None = None
    starts: int = 0
    waiting_before: int = Field(default=0, description="Jobs that run before this one.")
    step: Step | None = None
    notes: list[str] = Field(default=[], description="What was left out, and what else is worth knowing.")
    error: str = ""
    result: dict[str, Any] | None = Field(default=None, description="What the command line prints with --json.")
    outputs: list[str] = Field(
        default=[], description="Files to fetch below /maps/{id}/files/ or /matches/{id}/files/."
    )

    @property
    def finished(self) -> bool:
        """Whether nothing will change any more."""
        return self.state not in UNFINISHED

    def end(self, state: State, error: str = "") -> None:
        """Note how it ended, and when."""
        self.state, self.step, self.error, self.ended = state, None, error, time.time()


class Jobs:
    """All jobs of one folder, in the order they came. Thread-safe; one server at a time holds the folder.

    Parameters
    ----------
    folder : path
        Made if need be, readable by its owner alone.

    Raises
    ------
    InputError
        The folder cannot be written, or another server uses it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = make_folder(folder).resolve()
        self.folder.chmod(0o700)
        self._lock_file = FileLock(self.folder / "lock")
        try:
            self._lock_file.acquire(timeout=0)
        except Timeout as error:
            raise InputError(f"{folder}: another tiepoint server uses this folder; give another --folder") from error
        self.changed = threading.Condition(threading.RLock())
        self._jobs: dict[str, Job] = {}
        self._bytes: dict[str, int] = {}
        for path in sorted(self.folder.iterdir()):
            if path.is_dir() and re.fullmatch("[0-9a-f]{32}", path.name):
                self._load(path)

    def _load(self, path: Path) -> None:
        try:
            job = Job.model_validate_json((path / "job.json").read_bytes())
        except (OSError, ValidationError):
            shutil.rmtree(path, ignore_errors=True)
            return
        if job.state == "running":
            job.state = "waiting"  # a map resumes where it was
            if job.starts >= MOST_STARTS:
                job.end(
                    "failed", f"The server ended {job.starts} times while it worked on this; it is not tried again."
                )
        self._jobs[job.id] = job
        self.measure(job.id)
        self.save(job)

    def close(self) -> None:
        """Give the folder back."""
        self._lock_file.release()

    def folder_of(self, job_id: str) -> Path:
        """Return the folder of a job."""
        return self.folder / job_id

    def begin_upload(self) -> str:
        """Return the id of a new job, whose empty folder exists."""
        job_id = secrets.token_hex(16)
        self.folder_of(job_id).mkdir()
        self._bytes[job_id] = 0
        return job_id

    def discard(self, job_id: str) -> None:
        """Remove the folder of a job or of an upload."""
        folder = self.folder_of(job_id)
        (folder / "job.json").unlink(missing_ok=True)  # first, so that a removal which is interrupted is completed
        shutil.rmtree(folder, ignore_errors=True)
        self._bytes.pop(job_id, None)

    def add(self, job: Job) -> None:
        """Put an uploaded job at the end of the queue."""
        with self.changed:
            job.created = time.time()
            self._jobs[job.id] = job
            self.save(job)
            self.changed.notify_all()

    def save(self, job: Job) -> None:
        """Write the state of a job."""
        with self.changed:
            del job.notes[MOST_NOTES:]
            write_json(self.folder_of(job.id) / "job.json", job.model_dump())

    def get(self, job_id: str) -> Job | None:
        """Return a job, or None if there is none of this id."""
        return self._jobs.get(job_id)

    def all(self) -> list[Job]:
        """Return all jobs, the latest first; each then knows how many run before it."""
        with self.changed:
            jobs, before = sorted(self._jobs.values(), key=lambda job: -job.created), 0
            for job in reversed(jobs):
                job.waiting_before = before if job.state == "waiting" else 0
                before += not job.finished
            return jobs

    def waiting(self) -> list[Job]:
        """Return the jobs that nobody works on yet, the first to be done first."""
        return [job for job in reversed(self.all()) if job.state == "waiting"]

    def remove(self, job_id: str) -> Job | None:
        """Take a job out of the list; whoever still holds it sees that it was cancelled. Its folder stays."""
        with self.changed:
            job = self._jobs.pop(job_id, None)
            if job is not None and not job.finished:
                job.end("cancelled")
            self.changed.notify_all()
            return job

    def count_bytes(self, job_id: str, count: int) -> None:
        """Note that ``count`` bytes arrived."""
        self._bytes[job_id] += count

    def measure(self, job_id: str) -> None:
        """Count the bytes of a job anew."""
        files = self.folder_of(job_id).rglob("*")
        self._bytes[job_id] = sum(path.stat().st_size for path in files if path.is_file() and not path.is_symlink())

    def stored(self) -> int:
        """Return the bytes of all jobs and unfinished uploads."""
        return sum(list(self._bytes.values()))
