"""``tiepoint match``: two photographs -> matches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .console import (
    EFFORT,
    BandsOption,
    DeviceOption,
    Effort,
    FeaturesOption,
    JsonOption,
    LongSideOption,
    MatcherOption,
    MaxKeypointsOption,
    NmsRadiusOption,
    ThresholdOption,
    options_of,
    print_json,
    print_table,
)

# Those of `tiepoint.two_view`, which imports torch; a test compares.
Geometry = Literal["homography", "fundamental", "essential"]
Picture = Literal["matches", "attempts", "pruning", "scores"]


# What --pairs does not go together with.
ONLY_FOR_TWO = (
    *("image1", "mask0", "mask1", "picture", "overwrite"),
    *("effort", "budget", "instances", "geometry", "focal"),
)

# Options that tiepoint.match does not have.
NOT_OF_MATCH = ("pairs", "output", "picture", "overwrite")


def match(
    context: typer.Context,
    image0: Annotated[
        Path | None, typer.Argument(metavar="A", help="First photograph; with --pairs, the folder of the photographs.")
    ] = None,
    image1: Annotated[Path | None, typer.Argument(metavar="B", help="Second photograph.")] = None,
    output: Annotated[
        list[Path],
        typer.Option(
            "--output",
            "-o",
            help=".npz, .h5, .csv, .json, .html (interactive), .png, .jpg, .pdf or .svg file; repeatable.",
        ),
    ] = [],  # noqa: B006  typer reads the default and never changes it
    pairs: Annotated[
        Path | None,
        typer.Option(help="Match many pairs into one .h5 file: a file of two names a line, or a folder for all pairs."),
    ] = None,
    features: FeaturesOption = "auto",
    matcher: MatcherOption = "auto",
    max_keypoints: MaxKeypointsOption = 2048,
    long_side: LongSideOption = 1024,
    detection_threshold: ThresholdOption = None,
    nms_radius: NmsRadiusOption = None,
    mask0: Annotated[Path | None, typer.Option(help="Mask: black where A must have no keypoints.")] = None,
    mask1: Annotated[Path | None, typer.Option(help="Mask: black where B must have no keypoints.")] = None,
    bands: BandsOption = None,
    effort: Annotated[Effort, typer.Option(help=EFFORT)] = "auto",
    budget: Annotated[float | None, typer.Option(help="No further attempt starts after this many seconds.")] = None,
    instances: Annotated[
        int | None,
        typer.Option(min=1, help="Tell copies of the same thing apart; find up to so many of what A shows, in B."),
    ] = None,
    geometry: Annotated[
        Geometry | None, typer.Option(help="Estimate this model as well, and separate inliers from outliers.")
    ] = None,
    focal: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            help="Focal length in pixels for --geometry essential.",
            show_default="1.2 times the long side",
        ),
    ] = None,
    picture: Annotated[Picture, typer.Option(help="What .png, .jpg, .pdf and .svg files show.")] = "matches",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a .png or .jpg file that exists.")] = False,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Find the points that two photographs share.

    Points are (x, y) pixels of the photographs as stored after EXIF rotation; (0, 0) is the centre of the
    top-left pixel.

    With --pairs many pairs go into one HDF5 file in hloc's layout; run the same command to resume. Pairs that cannot be
    matched are listed, and the exit code is then 3.
    """
    options = options_of(locals())
    if pairs is not None:
        sources = {name: context.get_parameter_source(name) for name in ONLY_FOR_TWO}
        only_for_two = [name for name, source in sources.items() if source is not None and source.name != "DEFAULT"]
        shared = {name: value for name, value in options.items() if name not in (*ONLY_FOR_TWO, *NOT_OF_MATCH)}
        _match_pairs(only_for_two, pairs, output, photographs=shared.pop("image0"), json=json, **shared)
        return
    if image0 is None or image1 is None:
        raise typer.BadParameter("give two photographs, or --pairs")
    from ..io import files
    from ..pipeline import weights_files
    from ..two_view import FILES, match

    inputs: list[Path | str] = [path for path in (image0, image1, mask0, mask1) if path is not None]
    for path in inputs:
        files.open_file(path).close()  # what is missing is named before a package that an output needs
    for path in output:
        named: list[str | Path] = [*inputs, *weights_files(features, matcher)]
        files.check_output(path, FILES, inputs=named, overwrite=overwrite)
    result = match(**{name: value for name, value in options.items() if name not in NOT_OF_MATCH})
    for path in output:
        result.save(path, picture, overwrite)

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
    if geometry == "essential" and focal is None:
        print("Assumed a focal length of 1.2 times the long side. Set --focal if you know it.")
    if result.note:
        print(result.note)
    for path in output:
        print(f"wrote {path}")


def _match_pairs(only_for_two: list[str], pairs: Path, output: list[Path], *, json: bool, **options: Any) -> None:
    """Match many pairs, and end with the exit code of an input that cannot be used if some failed."""
    from ..errors import ArgumentError, InputError
    from ..mapping import match_pairs
    from ..mapping.progress import progress_bars

    if only_for_two:
        raise ArgumentError(
            f"--pairs does not go together with {', '.join(only_for_two)}, which is for two photographs"
        )
    if len(output) != 1:
        raise ArgumentError("--pairs needs one output: -o FILE.h5")
    with progress_bars() as report:
        done = match_pairs(pairs, output[0], **options, report=report)
    if json:
        print_json(done.summary())
    else:
        print(done.choice)
        already = f", {done.already} of them before" if done.already else ""
        print(f"{done.pairs} pairs of {done.photographs} photographs{already}, {done.matches} matches")
        if done.failed:
            print_table(("not matched", "why"), done.failed)
        print(f"wrote {done.output}")
    if done.failed:
        raise typer.Exit(InputError.exit_code)
