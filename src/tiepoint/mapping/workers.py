"""Threads, processes and transactions that the steps of mapping share."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

COMMIT_SECONDS = 1.0  # work that a kill may cost; shorter would wait for the disk more than for the extractor


class Commits(Generic[T]):
    """Results on their way into the store, in transactions of about a second; leave the context to write the last.

    Parameters
    ----------
    write : callable
        Writes a list of results in one transaction.

    Examples
    --------
    >>> written = []
    >>> with Commits(written.append) as commits:
    ...     commits.add("a", "b")
    >>> written
    [['a', 'b']]
    """

    def __init__(self, write: Callable[[list[T]], None]) -> None:
        self.write, self.waiting, self.last = write, list[T](), time.monotonic()

    def add(self, *results: T) -> None:
        """Take results, and write all that wait if a second has passed since the last transaction."""
        self.waiting += results
        if time.monotonic() - self.last >= COMMIT_SECONDS:
            self._commit()

    def _commit(self) -> None:
        self.write(self.waiting)
        self.waiting, self.last = [], time.monotonic()

    def __enter__(self) -> Commits[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._commit()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def windowed(executor: Executor, function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[tuple[T, R]]:
    """Yield (item, result) in order; at most ``ahead`` items are begun or waiting, so that memory stays bounded."""
    begun: deque[tuple[T, Future[R]]] = deque()
    for item in items:
        begun.append((item, executor.submit(function, item)))
        if len(begun) >= ahead:
            first, future = begun.popleft()
            yield first, future.result()
    for first, future in begun:
        yield first, future.result()


@contextmanager
def stopping(executor: Executor) -> Iterator[Executor]:
    """Shut an executor down at the end; after an error or Ctrl-C cancel what has not begun."""
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def context_for(work: Any) -> multiprocessing.context.BaseContext:
    """Return how to start workers for work with an object.

    By default a worker first runs the user's script again, except for what is under ``if __name__ == "__main__"``.
    Workers need that only for classes that the script defines. Leaving it out keeps a script without that line from
    starting itself over and over.
    """
    return multiprocessing.get_context("spawn") if b"__main__" in pickle.dumps(work) else _Context()


class _Process(multiprocessing.context.SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            return multiprocessing.context.SpawnProcess._Popen(process_obj)
        finally:
            sys.modules["__main__"] = main


class _Context(multiprocessing.context.SpawnContext):
    Process = _Process


def end_with_parent() -> None:
    """End this process when its parent ends, however that happens.

    A worker waits for its next job on a pipe that the other workers keep open, so it would wait for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, name="end with parent", daemon=True).start()


def begin_worker() -> None:
    """Prepare a worker process: one thread, Ctrl-C left to its parent, and no life beyond it."""
    import cv2

    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the first process decides
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
