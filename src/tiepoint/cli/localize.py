"""``tiepoint localize``: photographs and a map -> where they were taken."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import (
    EFFORT,
    CameraOption,
    DeviceOption,
    Effort,
    FocalOption,
    JsonOption,
    MatcherOption,
    bar,
    options_of,
    print_json,
    print_table,
    say,
)


def localize(
    photographs: Annotated[
        list[Path], typer.Argument(metavar="PHOTOS...", help="The photographs to find, folders of them, videos.")
    ],
    model: Annotated[Path, typer.Option(help="The folder that 'tiepoint map' wrote.")],
    output: Annotated[
        list[Path],
        typer.Option("--output", "-o", help=".json, .csv, or .html: the map with the cameras found in it; repeatable."),
    ] = [],  # noqa: B006  typer reads the default and never changes it
    focal: FocalOption = None,
    camera: CameraOption = None,
    matcher: MatcherOption = "auto",
    candidates: Annotated[int, typer.Option(min=1, help="Match each with this many photographs of the map.")] = 10,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", help="Of a video, take a sharp frame every so many seconds.")
    ] = 1.0,
    effort: Annotated[Effort, typer.Option(help=EFFORT)] = "fast",
    images: Annotated[Path | None, typer.Option(help="Folder of the map's photographs, for further attempts.")] = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Find out where photographs were taken, in a map that exists already.

    Poses are in the map's frame, world to camera as COLMAP has them. Without --focal or --camera the focal length comes
    from EXIF, or is estimated. The exit code is 1 if some of the photographs could not be read, 3 if none could.
    """
    options = options_of(locals())
    from ..errors import InputError, TiepointError
    from ..mapping.online.localize import localize

    with bar("localizing") as advance:
        results = localize(**options, progress=advance)
    if json:
        print_json([result.summary() for result in results])
    else:
        rows = []
        for result in results:
            place = result.problem
            if result.pose is not None and result.pose.centre is not None:
                place = " ".join(f"{value:.4f}" for value in result.pose.centre)
            rows.append((result.name, str(result.inliers), place))
        print_table(("photograph", "inliers", "position"), rows)
        print(f"{sum(not result.problem for result in results)} of {len(results)} found")
        for path in output:
            print(f"wrote {path}")
    unread = [result.name for result in results if not result.readable]
    if len(unread) == len(results):
        say("tiepoint: none of the photographs could be read")
        raise typer.Exit(InputError.exit_code)
    if unread:
        say(f"tiepoint: {len(unread)} of {len(results)} could not be read: {', '.join(unread)}")
        raise typer.Exit(TiepointError.exit_code)
