"""A running `Tracker` in the viewer of rerun, or recorded for it: path, points and frames, as they come."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, import_optional
from ...geometry.colmap import to_colmap
from ...io.files import atomic
from ...io.images import resize
from ...io.video import Frame
from .track import State, Tracker

PORT, START_SECONDS = 9876, 15  # rerun's own port; until its viewer listens
SIDE = 640  # longest side of the pictures, in pixels
PATH_COLOUR, CAMERA_DISTANCE = (255, 170, 0), 0.3  # of the picture in front of the camera


def import_rerun() -> Any:
    """Return the package rerun, or raise `MissingDependencyError` with the line that installs it."""
    return import_optional("rerun", "rerun-sdk", "rerun", "showing or recording a path for rerun")


@contextmanager
def shown_live(files: Sequence[Path], view: bool) -> Iterator[Live]:
    """Show what a tracker does, while it does it.

    Parameters
    ----------
    files : sequence of Path
        ``.rrd`` files to write; they appear when the block ends without an error.
    view : bool
        Open rerun's viewer, a program of its own, which stays open.

    Yields
    ------
    Live

    Raises
    ------
    MissingDependencyError
        rerun is not installed.
    InputError
        The viewer does not start, or a file cannot be written.

    Notes
    -----
    Entities: ``world/camera`` (pose; below it the picture), ``world/path``, ``world/points`` (of the key frames), and
    ``status``. Timelines: ``frame``, and ``time`` in seconds. World and camera: x right, y down, z forward.
    """
    rr = import_rerun()
    with ExitStack() as stack:
        stream = rr.RecordingStream("tiepoint track")
        sinks = [rr.FileSink(stack.enter_context(atomic(path))) for path in files]
        if view:
            _start_viewer(rr, stream)
            sinks.append(rr.GrpcSink())
        stream.set_sinks(*sinks)
        stream.log("world", rr.ViewCoordinates.RDF, static=True)
        try:
            yield Live(rr, stream)
        finally:
            try:
                stream.flush()
            except RuntimeError as error:  # such as a viewer that was closed
                warnings.warn(f"rerun did not get all of the path: {error}", stacklevel=3)
            stream.disconnect()


def _start_viewer(rr: Any, stream: Any) -> None:
    """Open the viewer, or take one that is open, and wait until it listens."""
    elsewhere = "without a screen, record to a file (-o path.rrd) and open that elsewhere"
    screens = ("DISPLAY", "WAYLAND_DISPLAY", "WAYLAND_SOCKET")
    if sys.platform == "linux" and not any(map(os.environ.get, screens)) and not _viewer_listens():
        raise InputError(f"there is no screen for rerun's viewer ({' and '.join(screens)} are not set); {elsewhere}")
    beside = shutil.which("rerun", path=str(Path(sys.executable).parent))  # of an environment that is not on the PATH
    try:
        rr.spawn(port=PORT, connect=False, executable_path=beside, recording=stream)
    except RuntimeError as error:
        raise InputError(f"rerun's viewer does not start: {str(error).splitlines()[0]}") from error
    for _ in range(10 * START_SECONDS):
        if _viewer_listens():
            return
        time.sleep(0.1)
    raise InputError(f"rerun's viewer did not open within {START_SECONDS} seconds; {elsewhere}")


def _viewer_listens() -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", PORT), timeout=1):
        return True
    return False


class Live:
    """Logs what a tracker does to a stream of rerun's."""

    def __init__(self, rr: Any, stream: Any) -> None:
        self.rr, self.stream = rr, stream
        self.key_frames = 0

    def show(self, tracker: Tracker, state: State, frame: Frame) -> None:
        """Log a frame and where the camera is after it; with a key frame, what it changed."""
        rr, log = self.rr, self.stream.log
        self.stream.set_time("frame", sequence=frame.index)
        self.stream.set_time("time", duration=frame.time)
        log("status", rr.TextLog(f"{frame.name}: {state.status}, {state.inliers} inliers"))
        picture = resize(frame.pixels, SIDE)
        height, width = picture.shape[:2]
        scale = width / frame.pixels.shape[1]
        focal, centre = np.array(tracker.camera.focal_lengths), to_colmap(np.array(tracker.camera.principal_point))
        log(
            "world/camera/picture",
            rr.Pinhole(
                focal_length=focal * scale,
                principal_point=centre * scale,
                resolution=(width, height),
                camera_xyz=rr.ViewCoordinates.RDF,
                image_plane_distance=CAMERA_DISTANCE,
            ),
            rr.Image(picture).compress(jpeg_quality=80),
        )
        if state.pose is not None:
            log("world/camera", rr.Transform3D(translation=state.pose.centre, mat3x3=state.pose.R.T))
        if state.key_frames != self.key_frames:  # the map grew, or was begun anew
            self.key_frames = state.key_frames
            self.show_map(tracker)

    def show_map(self, tracker: Tracker) -> None:
        """Log the path so far, as it is known by now, and the points."""
        points = tracker.reconstruction.points3D.values()
        where, colours = np.array([point.xyz for point in points]), np.array([point.color for point in points])
        path = np.array([pose.centre for pose in tracker.trajectory()])
        self.stream.log("world/points", self.rr.Points3D(where.reshape(-1, 3), colors=colours.reshape(-1, 3)))
        self.stream.log("world/path", self.rr.LineStrips3D([path.reshape(-1, 3)], colors=[PATH_COLOUR]))
