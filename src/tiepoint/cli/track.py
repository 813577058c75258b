"""``tiepoint track``: a video, a folder of frames or a live camera -> the camera's path."""

from __future__ import annotations

import time
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from .console import (
    DeviceOption,
    JsonOption,
    LongSideOption,
    MatcherOption,
    is_terminal,
    none_if_auto,
    none_if_zero,
    print_json,
    say,
    weights_files,
)

if TYPE_CHECKING:
    from ..geometry import Camera
    from ..mapping.online.track import State, Tracker

FocalOption = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(min=1.0, help="Focal length in pixels."),
]
CameraOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="MODEL:PARAMS|FILE",
        help="The camera as COLMAP writes it: OPENCV:700,700,640,360,-0.1,0.01,0,0, or a cameras.txt.",
    ),
]

REFRESH_SECONDS = 0.25  # of the picture of the path


def track(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Video file, folder of frames (by name), or number of a camera.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The path, a .txt file in TUM's format.")],
    focal: FocalOption = None,
    camera: CameraOption = None,
    features: Annotated[str, typer.Option("--features", "-f", help="Extractor; 'tiepoint info' lists all.")] = "sift",
    matcher: MatcherOption = "auto",
    max_keypoints: Annotated[
        int, typer.Option("--max-keypoints", "-k", min=0, help="Keep the best this many of each frame; 0 keeps all.")
    ] = 1500,
    long_side: LongSideOption = 1024,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Follow a moving camera, and show its path while it runs.

    Ctrl-C ends it, as a live camera never does by itself; the path so far is written, also when the source fails on
    the way. The unit of length is the median
    depth of the first points: one camera does not measure scale. For a map of the whole clip, with closed loops, use
    'tiepoint map'.
    """
    from ..errors import InputError
    from ..geometry import Camera
    from ..geometry.camera import FOCAL_FACTOR
    from ..io import files
    from ..io.video import read_frames
    from ..mapping.online.track import Tracker, write_tum

    files.check_output(output, (".txt",), inputs=[source, camera, *weights_files(features, matcher)])
    live = source.isdigit() and not Path(source).exists()
    frames = read_frames(int(source) if live else source)
    first = next(frames)
    size = first.pixels.shape[1], first.pixels.shape[0]
    if focal is None and camera is None:
        say(
            f"tiepoint: assumed a focal length of {FOCAL_FACTOR} times the long side; --focal or --camera say it better"
        )
    tracker = Tracker(
        parse_camera(camera, focal, size) or Camera.from_focal(FOCAL_FACTOR * max(size), size),
        features,
        matcher,
        max_keypoints=none_if_zero(max_keypoints),
        long_side=none_if_zero(long_side),
        device=none_if_auto(device),
    )
    begin = time.perf_counter()
    count = lost = 0
    problem = ""
    with _Screen() as screen:
        try:
            for frame in chain([first], frames):
                state = tracker(frame)
                count += 1
                lost += state.status == "lost"
                screen.show(state, f"{frame.name}  {count / (time.perf_counter() - begin):.1f} frames/s")
        except KeyboardInterrupt:
            say("tiepoint: stopped; writing the path so far")
        except InputError as error:
            problem = str(error)
            say(f"tiepoint: {problem}; writing the path so far")
    seconds = time.perf_counter() - begin
    poses = tracker.trajectory()
    write_tum(output, poses)
    if json:
        print_json(
            {
                "choice": tracker.choice,
                "frames": count,
                "with_pose": len(poses),
                "lost": lost,
                "key_frames": tracker.reconstruction.num_reg_images(),
                "points": tracker.reconstruction.num_points3D(),
                "seconds": round(seconds, 2),
                "output": str(output),
            }
        )
    else:
        _print(tracker, count, lost, len(poses), seconds, output)
    if problem:
        raise typer.Exit(InputError.exit_code)


def _print(tracker: Tracker, count: int, lost: int, poses: int, seconds: float, output: Path) -> None:
    print(tracker.choice)
    print(
        f"{poses} of {count} frames have a pose, {lost} were lost; {tracker.reconstruction.num_reg_images()} key "
        f"frames, {tracker.reconstruction.num_points3D()} points, {seconds:.1f} s"
    )
    if not poses:
        print("No start was found: the camera has to move sideways or forward, not only turn.")
    print(f"wrote {output}")


def parse_camera(text: str | None, focal: float | None, size: tuple[int, int]) -> Camera | None:
    """Return the camera that ``--camera`` or ``--focal`` describe, None if neither is given.

    Raises
    ------
    ArgumentError
        Both are given, or the text is not a camera.

    Examples
    --------
    >>> parse_camera("SIMPLE_PINHOLE:500,320,240", None, (640, 480)).principal_point
    (319.5, 239.5)
    """
    from ..errors import ArgumentError
    from ..geometry import Camera
    from ..mapping.steps.images import given_cameras, known_camera

    if text is None:
        return None if focal is None else Camera.from_focal(focal, size)
    if focal is not None:
        raise ArgumentError("--camera and --focal exclude each other: the camera's parameters begin with its focal")
    camera = known_camera(given_cameras(text), size)
    return Camera.from_colmap(camera.model_name, *size, list(camera.params))


class _Screen:
    """The path seen from above, on stderr, if a person watches."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True)
        self._live: Any = Live(console=self._console, auto_refresh=False, transient=True) if is_terminal() else None
        self._path: list[tuple[float, float]] = []
        self._last = 0.0
        self._key_frames = 0

    def __enter__(self) -> _Screen:
        (self._live or nullcontext()).__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        (self._live or nullcontext()).__exit__(*error)

    def show(self, state: State, text: str) -> None:
        """Take in the state after a frame; draw now and then."""
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
        line = (
            f"{state.status:<11} {state.inliers} inliers, {state.key_frames} key frames, {state.points} points  {text}"
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
