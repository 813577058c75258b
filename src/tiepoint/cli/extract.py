"""``tiepoint extract``: many photographs -> keypoints and descriptors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .console import (
    BandsOption,
    DeviceOption,
    FeaturesOption,
    JsonOption,
    LongSideOption,
    MaxKeypointsOption,
    NmsRadiusOption,
    ThresholdOption,
    none_if_auto,
    none_if_zero,
    parse_bands,
    print_json,
    progress,
    say,
    weights_files,
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
    masks: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of masks, as COLMAP has them: black in MASKS/a.jpg.png keeps a.jpg free."),
    ] = None,
    bands: BandsOption = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Find keypoints and descriptors in many photographs.

    Images are called by their paths below the folder that they have in common. One that cannot be read is
    reported and left out, as is one without its mask where masks are given; the exit code is then 3.
    """
    from .. import features as extractors
    from .. import pipeline
    from ..devices import pick_device
    from ..errors import InputError
    from ..io.arrays import FeatureWriter
    from ..io.files import check_image_name, printable
    from ..io.folders import find_images, find_masks

    paths = find_images(images)
    masked = None if masks is None else find_masks(masks, list(paths))
    inputs: list[str | Path] = [*paths.values(), *(masked or {}).values(), *weights_files(features)]
    writer = FeatureWriter(output, inputs=inputs)
    name, _, _ = pipeline.choose(features)
    extractor = extractors.load(
        name,
        device=pick_device(none_if_auto(device)),
        max_keypoints=none_if_zero(max_keypoints),
        long_side=none_if_zero(long_side),
        detection_threshold=detection_threshold,
        nms_radius=nms_radius,
        bands=parse_bands(bands),
    )

    counts: dict[str, int] = {}
    failed: dict[str, str] = {}
    with writer:
        for key, path in progress(list(paths.items()), f"extracting {name}"):
            try:
                writer.check_name(check_image_name(key, path.parent))
                if masked is not None and key not in masked:
                    lacking = printable(f"{masks}/{key}.png")
                    raise InputError(f"{printable(str(path))}: has no mask {lacking}; make one, all white if need be")
                found = extractor(path, None if masked is None else masked[key])
            except InputError as error:
                failed[printable(key)] = str(error)
                say(f"tiepoint: {error}")
                continue
            writer.write(key, found)
            counts[printable(key)] = len(found)
        if not counts:  # raised in here, so that no file appears
            raise InputError(f"none of the {len(paths)} images could be used; {output} was not written")

    if json:
        print_json({"features": name, "output": str(output), "keypoints": counts, "failed": failed})
    else:
        print(f"{name}: {sum(counts.values())} keypoints in {len(counts)} images, wrote {output}")
    if failed:
        say(f"tiepoint: {len(failed)} of {len(paths)} images could not be used")
        raise typer.Exit(InputError.exit_code)
