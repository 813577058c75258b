"""``tiepoint extract``: many photographs -> keypoints and descriptors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import (
    BandsOption,
    DeviceOption,
    FeaturesOption,
    JsonOption,
    LongSideOption,
    MasksOption,
    MaxKeypointsOption,
    NmsRadiusOption,
    ThresholdOption,
    bar,
    options_of,
    print_json,
    say,
)


def extract(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Photographs, or folders of them.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder for one .npz per image, or one .npz or .h5 file (hloc) for all."),
    ],
    features: FeaturesOption = "auto",
    max_keypoints: MaxKeypointsOption = 2048,
    long_side: LongSideOption = 1024,
    detection_threshold: ThresholdOption = None,
    nms_radius: NmsRadiusOption = None,
    masks: MasksOption = None,
    bands: BandsOption = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Find keypoints and descriptors in many photographs.

    Images are called by their paths below the folder that they have in common. One that cannot be read is
    reported and left out, as is one without its mask where masks are given; the exit code is then 3.
    """
    options = options_of(locals())
    from ..errors import InputError
    from ..extraction import extract

    with bar("extracting") as advance:
        found = extract(**options, progress=lambda name, done, total: advance(done, total))
    for problem in found.failed.values():
        say(f"tiepoint: {problem}")
    if json:
        print_json(found.summary())
    else:
        keypoints = sum(found.keypoints.values())
        print(f"{found.extractor}: {keypoints} keypoints in {len(found.keypoints)} images, wrote {output}")
    if found.failed:
        say(f"tiepoint: {len(found.failed)} of {len(found.failed) + len(found.keypoints)} images could not be used")
        raise typer.Exit(InputError.exit_code)
