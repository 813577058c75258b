"""A whole video, folder of frames or live camera -> the camera's path: `track`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ... import pipeline
from ...errors import ArgumentError, InputError
from ...features import Extractor
from ...geometry import Camera
from ...geometry.camera import FOCAL_FACTOR
from ...io import files, video
from ...io.images import ImageSource, read_image, resize
from ...io.video import Frame
from ...matchers import Matcher
from ...viz.sheet import contact_sheet
from ..exchange.colmap import write_ply
from ..exchange.trajectories import Pose, kitti_times, write_kitti, write_tum
from ..steps.images import parse_camera
from ..steps.reconstruct import Quality, Scene
from .live import import_rerun, shown_live
from .loops import Loop
from .track import State, Tracker

if TYPE_CHECKING:
    import pycolmap

FILES = (".txt", ".kitti", ".ply", ".html", ".jpg", ".png", ".rrd")


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory:
    """What `track` found out about a moving camera.

    Attributes
    ----------
    poses : list of Pose
        Of all frames that have one, in order.
    frames, lost : int
        Number of frames seen, and of those where the camera was lost.
    reconstruction : pycolmap.Reconstruction
        The key frames and the points, see `Tracker`.
    loops : tuple of Loop
        Those that were found, closed or refused.
    choice : str
        One line: which extractor and matcher, and why these.
    seconds : float
        Time it took.
    interrupted : bool
        Whether Ctrl-C ended it.
    problem : str
        Why the source ended early; empty if it did not.
    """

    poses: list[Pose]
    frames: int
    lost: int
    reconstruction: pycolmap.Reconstruction
    loops: tuple[Loop, ...]
    choice: str
    seconds: float
    interrupted: bool = False
    problem: str = ""

    def __repr__(self) -> str:
        return f"<Trajectory: {len(self.poses)} of {self.frames} frames have a pose, {self.lost} were lost>"

    def summary(self) -> dict[str, Any]:
        """Return counts and times as plain values that JSON can hold."""
        return {
            "choice": self.choice,
            "frames": self.frames,
            "with_pose": len(self.poses),
            "lost": self.lost,
            "key_frames": self.reconstruction.num_reg_images(),
            "points": self.reconstruction.num_points3D(),
            "loops_found": len(self.loops),
            "loops_closed": sum(not loop.refused for loop in self.loops),
            "seconds": round(self.seconds, 2),
        }


def track(
    source: int | str | os.PathLike[str] | Iterable[ImageSource],
    output: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    features: str | Extractor = "sift",
    matcher: str | Matcher = "auto",
    *,
    frames: int | None = None,
    every: float | None = None,
    focal: float | None = None,
    camera: Camera | str | os.PathLike[str] | None = None,
    max_keypoints: int | None = 1500,
    long_side: int | None = 1024,
    bands: Sequence[int] | None = None,
    loops: bool = True,
    view: bool = False,
    device: torch.device | str | None = "auto",
    progress: Callable[[State, Frame], None] | None = None,
) -> Trajectory:
    """Follow a moving camera.

    Ctrl-C ends it, and the result is the path so far; so it is where the source fails on the way. For more control, use
    `Tracker`, which this calls.

    Parameters
    ----------
    source : path, int or photographs
        A video file, a folder of frames, the number of a camera (`tiepoint.io.video.read_frames`), or photographs of
        one size, in order (`tiepoint.read_image`).
    output : path, or list of paths
        Files to write: the path as .txt (TUM's format) or .kitti (KITTI's, with its times in a second file, see
        `write_kitti`), the points as .ply, a page to look at as .html, the key frames on one sheet as .jpg or .png,
        and all that `view` shows as .rrd.
    features, matcher, max_keypoints, long_side, device
        As in `tiepoint.match`; SIFT is fast enough for video on a CPU.
    frames, every : int or float, optional
        Follow only so many frames, or one every so many seconds: the sharpest of each part of the video. A camera is
        lost where too little is seen again from one to the next.
    focal : float, optional
        Focal length in pixels. Without it, or the camera, 1.2 times the long side is assumed.
    camera : Camera, text or path, optional
        The camera's intrinsics, as a `Camera` or as COLMAP writes them: ``"MODEL:PARAMETERS"`` or a ``cameras.txt``.
    bands : one or three ints, optional
        Which bands of the frames to use, see `tiepoint.read_image`; a video and a camera have none to choose.
    loops : bool
        Close loops: where the camera sees again what it has seen long before, the whole path is corrected.
    view : bool
        Show path, points and frames in rerun's viewer while it runs (`tiepoint.mapping.online.live`).
    progress : callable, optional
        Called with (`State`, `Frame`) after every frame.

    Returns
    -------
    Trajectory
        Poses are world to camera. The unit of length is the median depth of the first points: one camera does not
        measure scale.

    Raises
    ------
    ArgumentError
        An unknown name, an option out of range, a camera of another size, or an output that cannot be written.
    InputError
        The source holds no frames.
    WeightsError, MissingDependencyError
        What the features need, or rerun, is not on this machine.

    Examples
    --------
    ::

        path = tiepoint.track("clip.mp4", focal=1100)
        print(path.poses[-1].centre)
    """
    outputs = [Path(path) for path in ([output] if isinstance(output, (str, os.PathLike)) else output)]
    paths = [one for one in (source, camera) if isinstance(one, (str, os.PathLike))]
    if isinstance(source, (str, os.PathLike)) and not Path(source).is_dir():
        files.open_file(source).close()  # what is missing is named before a package that an output needs
    for path in outputs:
        files.check_output(path, FILES, inputs=[*paths, *pipeline.weights_files(features, matcher)])
        if path.suffix.lower() == ".kitti":
            files.check_output(kitti_times(path), None, inputs=paths)
    recordings = [path for path in outputs if path.suffix.lower() == ".rrd"]
    if view or recordings:
        import_rerun()
    if isinstance(source, (int, str, os.PathLike)):
        film = video.choose_frames(source, frames, every, bands=bands)
    elif frames is not None or every is not None:
        raise ArgumentError("photographs in memory are no video: choose frames of them before, not by frames or every")
    else:
        film = _numbered(source, bands)
    first = next(film, None)
    if first is None:
        raise InputError("the source holds no frames; give one at least")
    size = first.pixels.shape[1], first.pixels.shape[0]
    if not isinstance(camera, Camera):
        camera = parse_camera(camera, focal, size) or Camera.from_focal(FOCAL_FACTOR * max(size), size)
    tracker = Tracker(
        camera, features, matcher, max_keypoints=max_keypoints, long_side=long_side, loops=loops, device=device
    )
    begin = time.perf_counter()
    count = lost = 0
    interrupted, problem = False, ""
    with shown_live(recordings, view) if view or recordings else nullcontext() as live:
        try:
            for frame in chain([first], film):
                state = tracker(frame)
                count += 1
                lost += state.status == "lost"
                if live is not None:
                    live.show(tracker, state, frame)
                if progress is not None:
                    progress(state, frame)
        except KeyboardInterrupt:
            interrupted = True
        except InputError as error:
            problem = str(error)
        if any(not loop.refused for loop in tracker.loops):
            tracker.adjust()
        if live is not None:
            live.show_map(tracker)
        poses = tracker.trajectory()
        for path in outputs:
            if path not in recordings:
                _write(path, tracker, poses, count)
    return Trajectory(
        poses, count, lost, tracker.reconstruction, tuple(tracker.loops), tracker.choice,
        time.perf_counter() - begin, interrupted, problem,
    )  # fmt: skip


def _write(path: Path, tracker: Tracker, poses: list[Pose], frames: int) -> None:
    """Write what a file's suffix asks for."""
    suffix = path.suffix.lower()
    if suffix == ".txt":
        write_tum(path, poses)
    elif suffix == ".kitti":
        write_kitti(path, poses)
    elif suffix == ".ply":
        write_ply(tracker.reconstruction, path)
    elif suffix in (".jpg", ".png"):
        contact_sheet([(view.frame.name, view.thumbnail) for view in tracker.map.views.values()], path)
    else:
        _write_page(path, tracker, f"{tracker.choice}; {len(poses)} of {frames} frames have a pose")


def _write_page(path: Path, tracker: Tracker, description: str) -> None:
    """Write a page of the key frames and the points, and of the pairs of key frames that share points."""
    from ..exchange.web_page import write_page

    names = {image_id: view.frame.name for image_id, view in tracker.map.views.items()}
    thumbnails = {view.frame.name: view.thumbnail for view in tracker.map.views.values()}
    pairs = {(names[old], names[new]): count for (old, new), count in tracker.map.shared().items()}
    write_page(
        path,
        Scene(path.parent, (tracker.reconstruction,), (Quality.of(tracker.reconstruction),), {}),
        list(names.values()),
        pairs,
        lambda name, side: resize(thumbnails[name], side),
        tracker.camera.to_pycolmap(),
        title=path.stem,
        description=description,
    )


def _numbered(photographs: Iterable[ImageSource], bands: Sequence[int] | None) -> Iterator[Frame]:
    for index, photograph in enumerate(photographs):
        image = read_image(photograph, bands=bands)
        yield Frame(index, float(index), image.pixels, f"frame_{index:06d}", image.mask)
