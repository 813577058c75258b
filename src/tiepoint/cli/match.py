"""``tiepoint match``: two photographs -> matches."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

from .console import (
    BandsOption,
    DeviceOption,
    FeaturesOption,
    JsonOption,
    LongSideOption,
    MatcherOption,
    MaxKeypointsOption,
    NmsRadiusOption,
    ThresholdOption,
    none_if_auto,
    none_if_zero,
    parse_bands,
    print_json,
    weights_files,
)


class Geometry(str, Enum):
    """What ``--geometry`` accepts."""

    homography = "homography"
    fundamental = "fundamental"
    essential = "essential"


class Picture(str, Enum):
    """What ``--picture`` accepts."""

    matches = "matches"
    attempts = "attempts"
    pruning = "pruning"
    scores = "scores"


class Effort(str, Enum):
    """What ``--effort`` accepts."""

    fast = "fast"
    auto = "auto"
    thorough = "thorough"


def match(
    image0: Annotated[Path, typer.Argument(metavar="A", help="First photograph.")],
    image1: Annotated[Path, typer.Argument(metavar="B", help="Second photograph.")],
    output: Annotated[
        list[Path],
        typer.Option(
            "--output",
            "-o",
            help=".npz, .h5, .csv, .json, .html (interactive), .png, .jpg, .pdf or .svg file; repeatable.",
        ),
    ] = [],  # noqa: B006  typer reads the default and never changes it
    features: FeaturesOption = "auto",
    matcher: MatcherOption = "auto",
    max_keypoints: MaxKeypointsOption = 2048,
    long_side: LongSideOption = 1024,
    detection_threshold: ThresholdOption = None,
    nms_radius: NmsRadiusOption = None,
    mask0: Annotated[Optional[Path], typer.Option(help="Black where A must have no keypoints.")] = None,  # noqa: UP045
    mask1: Annotated[Optional[Path], typer.Option(help="Black where B must have no keypoints.")] = None,  # noqa: UP045
    bands: BandsOption = None,
    effort: Annotated[
        Effort, typer.Option(help="One pass; further tries while what was found does not convince; or all tries.")
    ] = Effort.fast,
    budget: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="No further try begins after this many seconds."),
    ] = None,
    geometry: Annotated[
        Optional[Geometry],  # noqa: UP045
        typer.Option(help="Estimate this model as well, and tell inliers from outliers."),
    ] = None,
    focal: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            min=1.0,
            help="Focal length in pixels for --geometry essential; by default 1.2 times the long side.",
        ),
    ] = None,
    picture: Annotated[Picture, typer.Option(help="What .png, .jpg, .pdf and .svg files show.")] = Picture.matches,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a .png or .jpg file that is there already.")
    ] = False,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Find the points that two photographs share.

    Points are (x, y) pixels of the photographs as stored after EXIF rotation; (0, 0) is the centre of the
    top-left pixel.
    """
    from .. import two_view
    from ..devices import pick_device
    from ..errors import ArgumentError
    from ..geometry import Camera
    from ..io import files
    from ..io.images import read_image

    for path in output:
        files.check_output(
            path,
            two_view.FILES,
            inputs=(image0, image1, mask0, mask1, *weights_files(features, matcher)),
            overwrite=overwrite,
        )
    if focal is not None and geometry is not Geometry.essential:
        raise ArgumentError("--focal is for --geometry essential only")
    chosen = parse_bands(bands)
    where = pick_device(none_if_auto(device))
    begin = time.perf_counter()
    views = [read_image(image, mask, bands=chosen) for image, mask in ((image0, mask0), (image1, mask1))]
    read = time.perf_counter() - begin
    cameras = [None if focal is None else Camera.from_focal(focal, view.size) for view in views]
    result = two_view.match(
        views[0],
        views[1],
        features=features,
        matcher=matcher,
        max_keypoints=none_if_zero(max_keypoints),
        long_side=none_if_zero(long_side),
        detection_threshold=detection_threshold,
        nms_radius=nms_radius,
        effort=effort.value,
        budget=budget,
        geometry=None if geometry is None else geometry.value,
        camera0=cameras[0],
        camera1=cameras[1],
        device=where,
    )
    result.seconds["read"] = read
    for path in output:
        if path.suffix.lower() in (".png", ".jpg", ".pdf", ".svg"):
            result.plot(path, picture.value, overwrite=overwrite)
        else:
            result.save(path, overwrite=overwrite)

    if json:
        print_json({**result.summary(), "outputs": [str(path) for path in output]})
        return
    print(result.choice)
    line = f"{len(result.features0)} and {len(result.features1)} keypoints, {len(result)} matches"
    if result.inliers is not None:
        line += f", {int(result.inliers.sum())} inliers ({result.kind})"
    print(f"{line}, {sum(result.seconds.values()):.1f} s")
    for line in result.tried:
        print(line)
    if geometry is Geometry.essential and focal is None:
        print("Assumed a focal length of 1.2 times the long side; --focal says it better.")
    if result.note:
        print(result.note)
    for path in output:
        print(f"wrote {path}")
