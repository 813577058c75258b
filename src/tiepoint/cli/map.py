"""``tiepoint map``: a folder of photographs, or a video -> cameras and points."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .console import (
    BandsOption,
    CameraOption,
    DeviceOption,
    Effort,
    EveryOption,
    FeaturesOption,
    FramesOption,
    JsonOption,
    MasksOption,
    MatcherOption,
    options_of,
    print_json,
    print_table,
    say,
)

BY_QUALITY = "by --quality"
# Those of `tiepoint.mapping`, which imports torch; a test compares.
Quality = Literal["fast", "balanced", "dense"]
Mapper = Literal["incremental", "global"]
Share = Literal["auto", "folder", "image", "all"]


def map_photographs(
    photographs: Annotated[Path, typer.Argument(metavar="PHOTOS", help="Folder of photographs, or a video file.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the map; an interrupted map is resumed there.")
    ],
    frames: FramesOption = None,
    every: EveryOption = None,
    quality: Annotated[
        Quality,
        typer.Option(
            help="How many points, in how much time; chooses --max-keypoints, --long-side, --effort and --refine."
        ),
    ] = "balanced",
    pairs: Annotated[
        str,
        typer.Option(
            help="auto, exhaustive, sequential, retrieval (similar images), position (GPS), or a file of name pairs."
        ),
    ] = "auto",
    features: FeaturesOption = "auto",
    matcher: MatcherOption = "auto",
    effort: Annotated[
        Effort | None,
        typer.Option(
            help="Try harder on pairs of images with few partners, and between models, as match --effort does.",
            show_default=BY_QUALITY,
        ),
    ] = None,
    trust_doppelgangers: Annotated[
        bool,
        typer.Option("--trust-doppelgangers", help="Use pairs that match but seem to show two different places."),
    ] = False,
    mapper: Annotated[
        Mapper, typer.Option(help="global is faster for many photographs, and needs good matches.")
    ] = "incremental",
    max_keypoints: Annotated[
        int | None,
        typer.Option(
            "--max-keypoints",
            "-k",
            min=0,
            help="Keep this many keypoints of each image, the best; 0 keeps all.",
            show_default=BY_QUALITY,
        ),
    ] = None,
    long_side: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Shrink larger images to this many pixels along the long side; 0 works at full size.",
            show_default=BY_QUALITY,
        ),
    ] = None,
    masks: MasksOption = None,
    bands: BandsOption = None,
    cameras: Annotated[
        Share, typer.Option(help="Which photographs share a camera: those of each folder, none (image), or all.")
    ] = "auto",
    camera_model: Annotated[str, typer.Option(help="COLMAP's model of the lens.")] = "SIMPLE_RADIAL",
    focal: Annotated[
        float | None,
        typer.Option(min=1.0, help="Focal length in pixels, if it is known better than by EXIF."),
    ] = None,
    camera: CameraOption = None,
    fix_cameras: Annotated[
        bool, typer.Option("--fix-cameras", help="Take focal lengths and distortion as given; do not adjust them.")
    ] = False,
    refine: Annotated[
        bool | None,
        typer.Option("--refine/--no-refine", help="Align keypoints to a fraction of a pixel.", show_default=BY_QUALITY),
    ] = None,
    undistort: Annotated[
        bool, typer.Option("--undistort", help="Also write undistorted photographs, for gsplat and nerfstudio.")
    ] = False,
    text: Annotated[bool, typer.Option("--text", help="Also write COLMAP's text files.")] = False,
    align: Annotated[
        str | None,
        typer.Option(
            metavar="gps|FILE",
            help="Bring the map to metres: east-north-up by the photographs' GPS, or to the positions in a file "
            "(NAME X Y Z a line). gps:LAT,LON,ALT chooses the origin.",
        ),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,METRES|FILE", help="Bring the map to metres by distances between cameras: a.jpg,b.jpg,1.25."
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete an earlier map in the output folder, and start over.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes for extraction, threads for verification; by default one for each core."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Extract and match on a Ray cluster: local starts one here, auto joins the one of this machine.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Find out where photographs were taken and what they show, in three dimensions.

    The output folder gets a COLMAP model, its points as PLY, the cameras' path, a report and a page to look at. Ctrl-C
    loses nothing: run the same command to resume. Photographs that cannot be used are named and left out.
    """
    options = options_of(locals())
    from ..mapping import run
    from ..mapping.progress import progress_bars

    with progress_bars() as report:
        result = run.map_photographs(**options, report=report)
    for name, why in result.skipped.items():
        say(f"tiepoint: {name}: left out: {why}")
    if json:
        print_json(result.summary())
        return
    print(result.choice)
    scene = result.scene
    for number, (measured, assessment) in enumerate(zip(scene.qualities, scene.assessments, strict=True)):
        print(f"model {number}: {measured}")
        print(f"verdict: {assessment}")
    if result.scene.left_out:
        print_table(("not in any model", "why"), list(result.scene.left_out.items()))
    if result.doppelgangers:
        print(f"{len(result.doppelgangers)} pairs match but seem to show different places, and were not used:")
        for pair in result.doppelgangers[:10]:
            print(f"  {pair}")
    for note in result.notes:
        print(note)
    print(f"{sum(result.seconds.values()):.0f} s, wrote {output}")
    print(f"next: {result.next_step}")
