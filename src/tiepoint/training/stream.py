"""The one stream of training data: results of a function, in order, made ahead by worker processes."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import TiepointError

T = TypeVar("T")


def stream(make: Callable[[int], T], items: Sequence[int], workers: int) -> Iterator[T]:
    """Yield ``make(item)`` for each item, in order.

    Parameters
    ----------
    make : callable
        Gives the same result at every call, in whatever process; worker processes get a pickled copy.
    items : sequence of int
        Numbers of steps, chunks or photographs.
    workers : int
        Worker processes; 0 makes everything in this one, which is right where it is made on a GPU.

    Raises
    ------
    TiepointError
        ``make`` raised it.
    """
    loader: DataLoader[T | TiepointError] = DataLoader(
        _Items(make),
        batch_size=None,
        sampler=items,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_start_worker if workers else None,
    )
    for item in loader:
        if isinstance(item, TiepointError):
            raise item
        yield item


class _Items(Dataset["T | TiepointError"]):
    """A function as a data set. It returns our errors: raised, they would arrive as a text of many lines."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self.make = make

    def __getitem__(self, item: int) -> T | TiepointError:
        try:
            return self.make(item)
        except TiepointError as error:
            return error


def _start_worker(_: int) -> None:
    """Use one core for each worker, and leave Ctrl-C and a cluster's SIGTERM to the process that trains."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    with contextlib.suppress(ImportError):  # training does not need OpenCV, but SIFT does
        import cv2

        cv2.setNumThreads(1)
