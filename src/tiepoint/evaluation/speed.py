"""How long extraction and matching take on this machine, on the user's own pair or on a made-up one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from .. import pipeline
from ..devices import environment
from ..errors import ArgumentError
from ..features import ExtractorOptions
from ..io.images import ImageSource, read_image
from ..types import Image
from .run import parse_combination, timed


@dataclass(frozen=True)
class Timing:
    """Medians over the repeats, in seconds, for one combination.

    Attributes
    ----------
    label : str
        E.g. ``"sift+nearest"``.
    keypoints0, keypoints1, matches : int
        What was found.
    stop_layer : int or None
        The layer at which an adaptive matcher stopped.
    extract, match : float
        Both images together; and the pair.
    """

    label: str
    keypoints0: int
    keypoints1: int
    matches: int
    stop_layer: int | None
    extract: float
    match: float


@dataclass(frozen=True)
class Speed:
    """Timings of all combinations, measured in one alternating run."""

    timings: list[Timing]
    configuration: dict[str, Any]
    environment: dict[str, str] = field(default_factory=environment)


def bench(
    combinations: Sequence[str] = ("auto",),
    images: tuple[ImageSource, ImageSource] | None = None,
    *,
    max_keypoints: int | None = 2048,
    long_side: int | None = 1024,
    device: torch.device | str | None = "auto",
    threads: int | None = None,
    repeats: int = 10,
    progress: Callable[[int, int], None] | None = None,
) -> Speed:
    """Time combinations of extractor and matcher on one pair of images.

    Every combination warms up once; then they take turns, so that a machine that slows down slows all of
    them.

    Parameters
    ----------
    combinations : sequence of str
        ``"features+matcher"`` or ``"features"``, see `parse_combination`.
    images : two photographs, optional
        The pair to time, see `tiepoint.read_image`; None makes one up (`made_up_pair`).
    max_keypoints, long_side, device
        As in `tiepoint.match`.
    threads : int or None
        CPU threads of torch and OpenCV while measuring; None leaves them.
    repeats : int
        Turns of each combination.
    progress : callable or None
        Called with (turns done, turns in all).

    Returns
    -------
    Speed

    Raises
    ------
    ArgumentError
        Not two images, or a number below 1.
    WeightsError, MissingDependencyError
        An extractor or a matcher cannot be loaded.

    Examples
    --------
    >>> speed = bench(["orb+nearest"], max_keypoints=50, long_side=160, repeats=1)
    >>> speed.timings[0].label, speed.timings[0].match > 0
    ('orb+nearest', True)
    """
    if images is not None and len(images) != 2:
        raise ArgumentError(f"give the two images of a pair, not {len(images)}")
    if repeats < 1:
        raise ArgumentError(f"repeats must be at least 1, not {repeats}")
    pair = made_up_pair() if images is None else (read_image(images[0]), read_image(images[1]))
    alternatives: dict[tuple[str, str], Callable[[], Any]] = {}
    timings, places = [], set()
    options = ExtractorOptions(max_keypoints=max_keypoints, long_side=long_side)
    with cpu_threads(threads):
        for combination in dict.fromkeys(map(parse_combination, combinations)):
            label = combination.label
            extract, match, _ = pipeline.load(*combination, device, options)
            places.add(str(extract.device))
            both = extract(pair[0]), extract(pair[1])
            alternatives[label, "extract"] = partial(extract.extract_many, pair)
            alternatives[label, "match"] = partial(match, *both)
            found = match(*both)
            timings.append((label, len(both[0]), len(both[1]), len(found), found.stop_layer))
        seconds = alternate(alternatives, repeats, progress)
        configuration = {
            "images": "made up" if images is None else f"{pair[0].name}, {pair[1].name}",
            "sizes": [list(image.size) for image in pair],
            "max_keypoints": max_keypoints,
            "long_side": long_side,
            "device": ", ".join(sorted(places)),
            "threads": torch.get_num_threads(),
            "repeats": repeats,
        }
    medians = {key: float(np.median(values)) for key, values in seconds.items()}
    return Speed(
        [Timing(*found, medians[found[0], "extract"], medians[found[0], "match"]) for found in timings],
        configuration,
    )


def alternate(
    alternatives: Mapping[Any, Callable[[], Any]],
    repeats: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[Any, list[float]]:
    """Time functions in turns: a, b, c, a, b, c, ..., after one call of each that is not counted.

    Examples
    --------
    >>> times = alternate({"list": lambda: list(range(9)), "tuple": lambda: tuple(range(9))}, repeats=3)
    >>> {name: len(seconds) for name, seconds in times.items()}
    {'list': 3, 'tuple': 3}
    """
    for function in alternatives.values():
        function()
    seconds: dict[Any, list[float]] = {key: [] for key in alternatives}
    for turn in range(repeats):
        for key, function in alternatives.items():
            seconds[key].append(timed(function)[1])
        if progress is not None:
            progress(turn + 1, repeats)
    return seconds


@contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Use that many CPU threads in torch and OpenCV, and restore both afterwards; None changes nothing.

    Raises
    ------
    ArgumentError
        Fewer than one thread.
    """
    if number is None:
        yield
        return
    if number < 1:
        raise ArgumentError(f"threads must be at least 1, not {number}")
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(number)
    cv2.setNumThreads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def made_up_pair(size: tuple[int, int] = (1024, 768), seed: int = 0) -> tuple[Image, Image]:
    """Return a picture of random discs and boxes, and the same seen from a little aside.

    Examples
    --------
    >>> first, second = made_up_pair((160, 120))
    >>> first.size, second.size
    ((160, 120), (160, 120))
    """
    rng = np.random.default_rng(seed)
    width, height = size
    pixels: NDArray[np.uint8] = np.full((height, width, 3), 110, np.uint8)
    for _ in range(width * height // 500):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        radius = int(rng.integers(2, max(3, width // 25)))
        colour = rng.integers(0, 256, 3).tolist()
        if rng.random() < 0.5:
            cv2.circle(pixels, (x, y), radius, colour, -1, cv2.LINE_AA)
        else:
            box = cv2.boxPoints(((x, y), (radius * 2, radius), float(rng.uniform(0, 180))))
            cv2.fillConvexPoly(pixels, box.astype(np.int32), colour, cv2.LINE_AA)
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32) - 0.5
    moved = corners + rng.uniform(-0.06, 0.06, (4, 2)).astype(np.float32) * width
    warped = cv2.warpPerspective(pixels, cv2.getPerspectiveTransform(corners, moved), size)
    return Image(pixels, name="made up 0"), Image(np.asarray(warped, np.uint8), name="made up 1")


def speed_table(speed: Speed) -> Table:
    """Return the timings for `rich.print`."""
    c = speed.configuration
    table = Table(
        title=f"{c['images']}, {c['threads']} CPU threads, device {c['device']}, median of {c['repeats']}",
        title_justify="left",
    )
    for heading in ("", "keypoints", "matches", "stop layer", "extract ms", "match ms"):
        table.add_column(heading, justify="left" if not heading else "right")
    for t in speed.timings:
        keypoints = f"{t.keypoints0} + {t.keypoints1}"
        layer = "–" if t.stop_layer is None else str(t.stop_layer)
        times = f"{t.extract * 1000:.1f}", f"{t.match * 1000:.1f}"
        table.add_row(t.label, keypoints, str(t.matches), layer, *times)
    return table
