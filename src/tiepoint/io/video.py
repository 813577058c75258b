"""Videos: their frames one by one, and the few of them that a map needs.

A video shows everything thirty times a second, a third of it blurred. `write_key_frames` keeps a frame each time the
picture has moved far enough since the last one kept, and of the frames at hand then, the sharpest. `choose_frames`
takes them at even distances instead: so many in all, or one every so many seconds.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, InputError
from .decoding import SUFFIXES
from .exif import order_in_time
from .files import atomic, check_image_name, make_folder, open_file, read_json, write_json
from .folders import list_images, times_in_names
from .images import read_image, resize

VIDEO_SUFFIXES = (
    *(".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv"),
    *(".3gp", ".ogv", ".mxf", ".vob"),
)
LIST_NAME = "key_frames.json"

_FLOW_SIDE = 640  # long side in pixels at which motion is measured
_CORNERS = 400
_LEAST_TRACKED = 0.3  # share of the corners that must be found again; below, the picture is another one
_LEAST_CONTRAST = 4.0  # grey levels; a lens cap, a fade to black or a white wall has less


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a video.

    Attributes
    ----------
    index : int
        Its number in the video, from 0.
    time : float
        Seconds since the video's first frame; of a folder of pictures, the times that their names are made of
        (`tiepoint.io.folders.times_in_names`) or that ``key_frames.json`` holds, else the index.
    pixels : uint8 array (H, W, 3)
        RGB, upright.
    name : str
        ``frame_000012``, or the picture's file name.
    mask : uint8 array (H, W) or None
        0 where a picture of a folder holds no data, or is transparent; see `tiepoint.read_image`.
    """

    index: int
    time: float
    pixels: NDArray[np.uint8]
    name: str
    mask: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class KeyFrame:
    """A frame that was kept.

    Attributes
    ----------
    name : str
        Its file in the folder.
    index : int
        Its number in the video, from 0.
    time : float
        Seconds since the video's first frame.
    sharpness : float
        Variance of the Laplacian, in grey levels squared; comparable only among frames of one place.
    """

    name: str
    index: int
    time: float
    sharpness: float


def read_frames(
    source: int | str | os.PathLike[str], start: int = 0, bands: Sequence[int] | None = None
) -> Iterator[Frame]:
    """Read a video file, a folder of pictures or a camera, frame by frame.

    Parameters
    ----------
    source : path or int
        A video file; a folder, whose pictures come in the order of their names, or of their EXIF times where the
        names tell none (`tiepoint.io.exif.order_in_time`); or the number of a camera.
    start : int
        Leave out the frames before this one.
    bands : one or three ints, optional
        Which bands of the pictures in a folder to use, see `tiepoint.read_image`.

    Yields
    ------
    Frame
        A picture in a folder that cannot be read is left out with a warning. A file that ends long before its
        header says so is used as far as it goes, with a warning; so is a camera that is taken away.

    Raises
    ------
    InputError
        There is no such file, it is no video, the folder holds no pictures, or the camera gives none.
    ArgumentError
        ``bands`` of a video or a camera.
    """
    if bands is not None and (isinstance(source, int) or not Path(source).is_dir()):
        raise ArgumentError(f"{source}: bands are of pictures in a folder; a video and a camera have none to choose")
    if isinstance(source, int):
        return _from_camera(source)
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, start, bands)
    open_file(path).close()  # a pipe would block OpenCV for ever
    return _from_video(path, start)


def _from_folder(folder: Path, start: int, bands: Sequence[int] | None = None) -> Iterator[Frame]:
    names, note = order_in_time(folder, list_images(folder, recursive=False))
    if not names:
        raise InputError(f"{folder}: holds no pictures ({', '.join(SUFFIXES)})")
    if note:
        warnings.warn(f"{folder}: {note}", stacklevel=2)
    times = times_in_names(names) or {}
    if not times and (folder / LIST_NAME).is_file():
        listed = {frame.name: frame.time for frame in read_key_frames(folder)}
        times = listed if listed.keys() >= set(names) else {}
    for index, name in enumerate(names[start:], start):
        try:
            image = read_image(folder / name, bands=bands)
            yield Frame(index, times.get(name, float(index)), image.pixels, name, image.mask)
        except InputError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)


def _from_camera(number: int) -> Iterator[Frame]:
    capture = cv2.VideoCapture(number)
    try:
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest picture, not one that waited its turn
        index, begin = 0, time.monotonic()
        while True:
            read, bgr = capture.read()
            if not read and index:
                warnings.warn(f"camera {number}: gives no more pictures after {index}", stacklevel=2)
                return
            if not read:
                raise InputError(f"camera {number}: gives no pictures; is it connected, and free?")
            yield Frame(index, time.monotonic() - begin, _rgb(bgr), f"frame_{index:06d}")
            index += 1
    finally:
        capture.release()


def _from_video(path: Path, start: int) -> Iterator[Frame]:
    capture = cv2.VideoCapture(str(path))
    try:
        promised = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        rate = capture.get(cv2.CAP_PROP_FPS) or 30.0
        index, last = 0, -1.0
        while capture.grab():
            # Files without time stamps say 0 for ever.
            stamp = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            last = stamp if index == 0 or stamp > last else last + 1 / rate
            if index >= start:
                read, bgr = capture.retrieve()
                if not read:
                    break
                yield Frame(index, last, _rgb(bgr), f"frame_{index:06d}")
            index += 1
    finally:
        capture.release()
    if index == 0:
        raise InputError(f"{path}: no video that can be read; convert it to .mp4 (H.264)")
    if index < 0.9 * promised:
        warnings.warn(f"{path}: only {index} of {promised} frames can be read; was it copied whole?", stacklevel=2)


def _rgb(bgr: Any) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def choose_frames(
    source: int | str | os.PathLike[str],
    frames: int | None = None,
    every: float | None = None,
    window: int = 8,
    bands: Sequence[int] | None = None,
) -> Iterator[Frame]:
    """Read a video as `read_frames` does, but only some of its frames, at even distances.

    Parameters
    ----------
    source : path or int
        A video file, a folder of pictures, or the number of a camera.
    frames : int, optional
        So many in all; fewer where the video is shorter. It is read twice, to count its frames.
    every : float, optional
        One for so many seconds instead.
    window : int
        The sharpest of the first frames, so many, of each part of the video is taken.
    bands : one or three ints, optional
        See `read_frames`.

    Yields
    ------
    Frame
        All frames if neither ``frames`` nor ``every`` is given. A part of empty frames (black, or of one colour) gives
        none.

    Raises
    ------
    ArgumentError
        An option out of range, both, or a number of ``frames`` of a camera, which has no end.
    InputError
        See `read_frames`.
    """
    check_choice(frames, every)
    if frames is None and every is None:
        return read_frames(source, bands=bands)
    if every is not None:
        return _choose_evenly(read_frames(source, bands=bands), None, every, window)
    if isinstance(source, int):
        raise ArgumentError(f"a camera has no end, and cannot give {frames} frames evenly; say every how many seconds")
    count = sum(1 for _ in read_frames(source, bands=bands))
    step = count / min(frames or 1, count) if count else 1.0
    return _choose_evenly(read_frames(source, bands=bands), step, None, window)


def check_choice(frames: int | None, every: float | None) -> None:
    """Raise `ArgumentError` if no frames can be chosen so."""
    if frames is not None and every is not None:
        raise ArgumentError("give a number of frames, or every how many seconds one is taken, not both")
    if frames is not None and frames < 1:
        raise ArgumentError(f"frames must be at least 1, not {frames}")
    if every is not None and not 0 < every < float("inf"):
        raise ArgumentError(f"every must be a positive number of seconds, not {every}")


def _choose_evenly(frames: Iterable[Frame], step: float | None, seconds: float | None, window: int) -> Iterator[Frame]:
    """Yield the sharpest of the first frames of each part of a video; a part is ``step`` frames or ``seconds`` long."""
    part, place, sharpest = -1, 0, 0.0
    best: Frame | None = None
    for number, frame in enumerate(frames):
        at = int(number / step) if step else int((frame.time + 1e-6) / (seconds or 1.0))
        if at != part:
            if best is not None:
                yield best
            part, place, sharpest, best = at, 0, 0.0, None
        if place < window and (sharpness := _sharpness(frame.pixels)) > sharpest:
            sharpest, best = sharpness, frame
        place += 1
    if best is not None:
        yield best


def write_key_frames(
    video: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    motion: float = 0.06,
    window: int = 8,
    suffix: str = ".jpg",
    frames: int | None = None,
    every: float | None = None,
    progress: Callable[[int, list[KeyFrame]], None] | None = None,
) -> list[KeyFrame]:
    """Write the sharp frames of a video between which it moves, as pictures into a folder.

    A run that was interrupted goes on behind the last picture it wrote, and ends with the same pictures as one that
    was not.

    Parameters
    ----------
    video : path
        A video file, or a folder of pictures in the order of their names.
    folder : path
        Gets the pictures, ``frame_000012.jpg`` and so on by their number in the video, and ``key_frames.json``
        (see `read_key_frames`). Made if need be.
    motion : float
        How far the picture moves from one key frame to the next: the median of the optical flow, as a share of the
        longer side.
    window : int
        How many frames, from that one on, to choose the sharpest from; fewer if the picture soon moves on to twice
        the ``motion``.
    suffix : {".jpg", ".png"}
        Kind of picture; JPEGs are of quality 95.
    frames, every : int or float, optional
        Take so many frames, or one every so many seconds, however the picture moves; see `choose_frames`.
    progress : function, optional
        Called with (frames looked at, key frames so far) after each key frame.

    Returns
    -------
    list of KeyFrame
        In the order of time.

    Raises
    ------
    ArgumentError
        An option out of range, or the folder holds the key frames of another video or of other options, or other
        pictures.
    InputError
        The video cannot be read, or the folder not written.
    """
    if not 0 < motion < 1:
        raise ArgumentError(f"motion must be a share of the longer side between 0 and 1, not {motion}")
    if window < 1:
        raise ArgumentError(f"window must be at least 1 frame, not {window}")
    if suffix not in (".jpg", ".png"):
        raise ArgumentError(f"suffix must be .jpg or .png, not {suffix!r}")
    check_choice(frames, every)
    video, folder = Path(video), Path(folder)
    if not video.exists():
        raise InputError(f"{video}: no such file or folder; check the path")
    made_from = {"video": video.name, "bytes": _size(video), "motion": motion, "window": window, "suffix": suffix}
    made_from |= {name: value for name, value in (("frames", frames), ("every", every)) if value is not None}
    kept, done = _resume(folder, made_from)
    if done:
        return kept
    if frames is None and every is None:
        # The last key frame comes again, as what the next ones are compared with.
        begin = kept[-1].index if kept else 0
        chosen = _choose(read_frames(video, start=begin), motion, window, resumed=bool(kept))
    else:
        evenly = choose_frames(video, frames, every, window)
        behind = kept[-1].index if kept else -1
        chosen = ((frame, _sharpness(frame.pixels)) for frame in evenly if frame.index > behind)
    for frame, sharpness in chosen:
        name = f"frame_{frame.index:06d}{suffix}"
        with atomic(folder / name) as temporary:
            _write_picture(temporary, frame.pixels)
        kept.append(KeyFrame(name, frame.index, round(frame.time, 6), round(sharpness, 2)))
        _write_list(folder, made_from, kept, done=False)
        if progress is not None:
            progress(frame.index + 1, kept)
    if not kept:
        raise InputError(f"{video}: all its frames are empty: black, white, or of one colour")
    _write_list(folder, made_from, kept, done=True)
    return kept


def read_key_frames(folder: str | os.PathLike[str]) -> list[KeyFrame]:
    """Return which frames `write_key_frames` wrote into a folder, and when in the video they were.

    Raises
    ------
    InputError
        The folder has no ``key_frames.json``, or not one of ours.
    """
    return _read_list(Path(folder) / LIST_NAME)[0]


def _choose(
    frames: Iterable[Frame], motion: float, window: int, resumed: bool = False
) -> Iterator[tuple[Frame, float]]:
    """Yield (key frame, sharpness); if ``resumed``, the first frame is the last key frame of an earlier run."""
    frames = iter(frames)
    flow: _Flow | None = None
    if resumed:
        flow = _Flow(next(frames).pixels)
    while True:
        candidates: list[tuple[Frame, float]] = []  # one after the other, from the first that has moved enough
        for frame in frames:
            moved = motion if flow is None else flow.moved(_small_grey(frame.pixels))
            if moved < motion and not candidates:
                continue
            if (sharpness := _sharpness(frame.pixels)) > 0 or candidates:
                candidates.append((frame, sharpness))
            if len(candidates) == window or (candidates and moved > 2 * motion):
                break
        if not candidates:
            return
        best = max(range(len(candidates)), key=lambda i: candidates[i][1])
        yield candidates[best]
        flow = _Flow(candidates[best][0].pixels)
        frames = chain([frame for frame, _ in candidates[best + 1 :]], frames)


class _Flow:
    """How far the picture has moved since one frame: its corners, followed from frame to frame."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._grey = _small_grey(pixels)
        corners = cv2.goodFeaturesToTrack(self._grey, _CORNERS, 0.01, 8)
        self._start = np.zeros((0, 2), np.float32) if corners is None else corners.reshape(-1, 2)
        self._count = len(self._start)
        self._now = self._start

    def moved(self, grey: NDArray[np.uint8]) -> float:
        """Return the median way of the corners as a share of the longer side; infinite if most are gone."""
        if grey.shape != self._grey.shape:
            self._now = self._now[:0]
        if len(self._now):
            new = np.empty_like(self._now[:, None])
            now, found, _ = cv2.calcOpticalFlowPyrLK(
                self._grey, grey, self._now[:, None], new, winSize=(21, 21), maxLevel=4
            )
            keep = found.ravel() == 1
            self._start, self._now = self._start[keep], now.reshape(-1, 2)[keep]
            self._grey = grey
        if len(self._now) < max(1, _LEAST_TRACKED * self._count):
            return float("inf")
        way = np.linalg.norm(self._now - self._start, axis=1)
        return float(np.median(way)) / max(grey.shape)


def _small_grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(resize(pixels, _FLOW_SIDE), cv2.COLOR_RGB2GRAY), np.uint8)


def _sharpness(pixels: NDArray[np.uint8]) -> float:
    """Return the variance of the Laplacian, at full size because blur does not survive shrinking; 0 of an empty frame.

    Contrast is measured on the small picture, where a dark frame's noise does not count.
    """
    if _small_grey(pixels).std() < _LEAST_CONTRAST:
        return 0.0
    return float(cv2.Laplacian(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.CV_32F).var())


def _write_picture(path: Path, pixels: NDArray[np.uint8]) -> None:
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(path.suffix, bgr, [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix == ".jpg" else [])
    if not done:
        raise InputError(f"{path}: a frame of {pixels.shape[1]}x{pixels.shape[0]} pixels cannot be encoded")
    path.write_bytes(data.tobytes())


def _size(video: Path) -> int:
    """Return what tells one video from another of the same name."""
    if video.is_dir():
        paths = [video / name for name in list_images(video, recursive=False)]
        return sum(path.stat().st_size for path in paths if path.exists())
    return video.stat().st_size


def _resume(folder: Path, made_from: dict[str, Any]) -> tuple[list[KeyFrame], bool]:
    """Return (the key frames that an earlier run wrote, whether it came to its end)."""
    make_folder(folder)
    if not (folder / LIST_NAME).exists():
        # Written before the first picture, so that pictures without it are somebody's own.
        if pictures := list_images(folder, recursive=False):
            raise ArgumentError(
                f"{folder}: holds pictures that are no key frames ({pictures[0]}); choose another folder"
            )
        _write_list(folder, made_from, [], done=False)
        return [], False
    kept, content = _read_list(folder / LIST_NAME)
    keys = [*made_from, *(key for key in ("frames", "every") if key in content and key not in made_from)]
    other = [key for key in keys if content.get(key) != made_from.get(key)]
    if other:
        raise ArgumentError(
            f"{folder}: holds key frames made with another {', '.join(other)}; choose another folder, or delete it"
        )
    return kept, bool(content["done"])


def _read_list(path: Path) -> tuple[list[KeyFrame], dict[str, Any]]:
    """Return (the key frames, all that the file says)."""
    content = read_json(path)
    try:
        kept = [
            KeyFrame(str(row["name"]), int(row["index"]), float(row["time"]), float(row["sharpness"]))
            for row in content["key_frames"]
        ]
        for frame in kept:
            check_image_name(frame.name, path)
        content["done"] = bool(content["done"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"{path}: is not a list of key frames that tiepoint wrote") from error
    return kept, content


def _write_list(folder: Path, made_from: dict[str, Any], kept: list[KeyFrame], done: bool) -> None:
    write_json(folder / LIST_NAME, {**made_from, "done": done, "key_frames": [asdict(one) for one in kept]})
