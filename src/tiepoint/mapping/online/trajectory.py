"""A whole video, folder of frames or live camera -> the camera's path: `track`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ... import pipeline
from ...errors import InputError
from ...features import Extractor
from ...geometry import Camera
from ...geometry.camera import FOCAL_FACTOR
from ...io import files, video
from ...io.images import ImageSource, read_image
from ...io.video import Frame
from ...matchers import Matcher
from ..exchange.tum import Pose, write_tum
from ..steps.images import parse_camera
from .track import State, Tracker

if TYPE_CHECKING:
    import pycolmap


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
            "seconds": round(self.seconds, 2),
        }


def track(
    source: int | str | os.PathLike[str] | Iterable[ImageSource],
    output: str | os.PathLike[str] | None = None,
    features: str | Extractor = "sift",
    matcher: str | Matcher = "auto",
    *,
    focal: float | None = None,
    camera: Camera | str | os.PathLike[str] | None = None,
    max_keypoints: int | None = 1500,
    long_side: int | None = 1024,
    bands: Sequence[int] | None = None,
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
    output : path, optional
        Write the path to this .txt file in TUM's format.
    features, matcher, max_keypoints, long_side, device
        As in `tiepoint.match`; SIFT is fast enough for video on a CPU.
    focal : float, optional
        Focal length in pixels. Without it, or the camera, 1.2 times the long side is assumed.
    camera : Camera, text or path, optional
        The camera's intrinsics, as a `Camera` or as COLMAP writes them: ``"MODEL:PARAMETERS"`` or a ``cameras.txt``.
    bands : one or three ints, optional
        Which bands of the frames to use, see `tiepoint.read_image`; a video and a camera have none to choose.
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
        What the features need is not on this machine.

    Examples
    --------
    ::

        path = tiepoint.track("clip.mp4", focal=1100)
        print(path.poses[-1].centre)
    """
    if output is not None:
        paths = [one for one in (source, camera) if isinstance(one, (str, os.PathLike))]
        files.check_output(output, (".txt",), inputs=[*paths, *pipeline.weights_files(features, matcher)])
    if isinstance(source, (int, str, os.PathLike)):
        frames = video.read_frames(source, bands=bands)
    else:
        frames = _numbered(source, bands)
    first = next(frames, None)
    if first is None:
        raise InputError("the source holds no frames; give one at least")
    size = first.pixels.shape[1], first.pixels.shape[0]
    if not isinstance(camera, Camera):
        camera = parse_camera(camera, focal, size) or Camera.from_focal(FOCAL_FACTOR * max(size), size)
    tracker = Tracker(camera, features, matcher, max_keypoints=max_keypoints, long_side=long_side, device=device)
    begin = time.perf_counter()
    count = lost = 0
    interrupted, problem = False, ""
    try:
        for frame in chain([first], frames):
            state = tracker(frame)
            count += 1
            lost += state.status == "lost"
            if progress is not None:
                progress(state, frame)
    except KeyboardInterrupt:
        interrupted = True
    except InputError as error:
        problem = str(error)
    seconds = time.perf_counter() - begin
    poses = tracker.trajectory()
    if output is not None:
        write_tum(Path(output), poses)
    return Trajectory(poses, count, lost, tracker.reconstruction, tracker.choice, seconds, interrupted, problem)


def _numbered(photographs: Iterable[ImageSource], bands: Sequence[int] | None) -> Iterator[Frame]:
    for index, photograph in enumerate(photographs):
        image = read_image(photograph, bands=bands)
        yield Frame(index, float(index), image.pixels, f"frame_{index:06d}", image.mask)


__all__ = ["Trajectory", "track"]
