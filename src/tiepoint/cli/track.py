"""``tiepoint track``: a video, a folder of frames or a live camera -> the camera's path."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import (
    BandsOption,
    CameraOption,
    DeviceOption,
    EveryOption,
    FeaturesOption,
    FocalOption,
    FramesOption,
    JsonOption,
    LongSideOption,
    MatcherOption,
    MaxKeypointsOption,
    is_terminal,
    options_of,
    print_json,
    say,
)

if TYPE_CHECKING:
    from ..io.video import Frame
    from ..mapping.online.track import State

REFRESH_SECONDS = 0.25  # of the picture of the path


def track(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Video file, folder of frames (by name), or number of a camera.")
    ],
    output: Annotated[
        list[Path],
        typer.Option(
            "--output",
            "-o",
            help="The path as .txt (TUM) or .kitti, points as .ply, a page as .html, a sheet of the key "
            "frames as .jpg or .png, a recording for rerun as .rrd; repeatable.",
        ),
    ],
    frames: FramesOption = None,
    every: EveryOption = None,
    focal: FocalOption = None,
    camera: CameraOption = None,
    features: FeaturesOption = "sift",
    matcher: MatcherOption = "auto",
    max_keypoints: MaxKeypointsOption = 1500,
    long_side: LongSideOption = 1024,
    bands: BandsOption = None,
    loops: Annotated[
        bool,
        typer.Option("--loops/--no-loops", help="Correct the path where it comes back to what was seen long before."),
    ] = True,
    view: Annotated[
        bool, typer.Option("--view", help="Show path, points and frames in rerun's viewer while it runs.")
    ] = False,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Follow a moving camera, and show its path while it runs.

    Ctrl-C ends it, as a live camera never does by itself; the path so far is written, also when the source fails on
    the way. The unit of length is the median depth of the first points: one camera does not measure scale. The KITTI
    format has no times; they go to a second file, NAME_times.txt. For a denser and more exact map of the clip, use
    'tiepoint map'.
    """
    options = options_of(locals())
    from ..errors import InputError
    from ..geometry.camera import FOCAL_FACTOR
    from ..mapping.online.trajectory import track

    if focal is None and camera is None:
        say(
            f"tiepoint: assumed a focal length of {FOCAL_FACTOR} times the long side. Set --focal or --camera if you "
            "know it."
        )
    if source.isdigit() and not Path(source).exists():  # the number of a live camera
        options["source"] = int(source)
    with _Screen() as screen:
        found = track(**options, progress=screen.show)
    if found.interrupted:
        say("tiepoint: stopped; wrote the path so far")
    if found.problem:
        say(f"tiepoint: {found.problem}; wrote the path so far")
    if json:
        print_json({**found.summary(), "outputs": [str(path) for path in output]})
    else:
        counts = found.summary()
        print(found.choice)
        print(
            f"{len(found.poses)} of {found.frames} frames have a pose, {found.lost} were lost; {counts['key_frames']} "
            f"key frames, {counts['points']} points, {found.seconds:.1f} s"
        )
        print(f"{counts['loops_found']} loops found, {counts['loops_closed']} closed")
        for loop in found.loops:
            if loop.refused:
                print(f"  frame {loop.index} at frame {loop.old_index}: refused, {loop.refused}")
        if not found.poses:
            print("No start was found: the camera has to move sideways or forward, not only turn.")
        for path in output:
            print(f"wrote {path}")
    if found.problem:
        raise typer.Exit(InputError.exit_code)


class _Screen:
    """The path seen from above, on stderr, if a person watches."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True)
        self._live: Any = Live(console=self._console, auto_refresh=False, transient=True) if is_terminal() else None
        self._path: list[tuple[float, float]] = []
        self._last = 0.0
        self._begin = time.perf_counter()
        self._count = 0
        self._key_frames = 0

    def __enter__(self) -> _Screen:
        (self._live or nullcontext()).__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        (self._live or nullcontext()).__exit__(*error)

    def show(self, state: State, frame: Frame) -> None:
        """Take in the state after a frame; draw now and then."""
        self._count += 1
        if self._live is None:
            return
        if state.key_frames < self._key_frames:  # a new map: the old path has nothing to do with it
            self._path.clear()
        self._key_frames = state.key_frames
        if state.pose is not None:
            x, _, z = state.pose.centre
            self._path.append((float(x), float(z)))
        if time.perf_counter() - self._last < REFRESH_SECONDS:
            return
        from rich.text import Text

        self._last = time.perf_counter()
        width, height = max(20, self._console.width - 2), max(8, self._console.height - 4)
        rate = self._count / (self._last - self._begin)
        line = (
            f"{state.status:<11} {state.inliers} inliers, {state.key_frames} key frames, {state.points} points  "
            f"{frame.name}  {rate:.1f} frames/s"
        )
        picture = "\n".join([*draw_path(self._path, width, height), line])
        self._live.update(Text(picture, no_wrap=True), refresh=True)


def draw_path(path: list[tuple[float, float]], columns: int, rows: int) -> list[str]:
    """Draw points (x right, z up) with characters, which are taken to be twice as high as wide; @ is the last.

    Examples
    --------
    >>> for line in draw_path([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)], 9, 3):
    ...     print(line.replace(" ", "_"))
    ______@__
    _________
    __·___·__
    """
    import numpy as np

    canvas = np.full((rows, columns), " ")
    if path:
        points = np.array(path)
        low, high = points.min(axis=0), points.max(axis=0)
        # Length that one row stands for; a column stands for half of it.
        step = max((high[0] - low[0]) / max(1, columns - 1) * 2, (high[1] - low[1]) / max(1, rows - 1), 1e-12)
        offset = ((points - (low + high) / 2) / step) * (2, -1) + ((columns - 1) / 2, (rows - 1) / 2)
        x, y = np.floor(offset + 0.5).astype(int).clip(0, (columns - 1, rows - 1)).T
        canvas[y, x] = "·"
        canvas[y[-1], x[-1]] = "@"
    return ["".join(row) for row in canvas]
