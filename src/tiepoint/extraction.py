"""Features of many photographs, kept or written to files: `extract`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import features as extractors
from . import pipeline
from .errors import ArgumentError, InputError
from .features import Extractor
from .io.arrays import FeatureWriter
from .io.files import check_image_name, printable
from .io.folders import find_images, find_masks, without_masks
from .io.images import ImageSource, as_list
from .types import Features


@dataclass(frozen=True, eq=False, repr=False)
class ExtractedFeatures:
    """What `extract` found in a list of photographs.

    Attributes
    ----------
    extractor : str
        The extractor that was used.
    keypoints : dict of str to int
        Number of keypoints of each photograph, by its name.
    features : dict of str to Features
        Their features; empty if they were written to ``output``, so that memory stays bounded.
    failed : dict of str to str
        Photographs that could not be used, and why.
    output : Path or None
        The file or folder that was written.
    """

    extractor: str
    keypoints: dict[str, int] = field(default_factory=dict)
    features: dict[str, Features] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    output: Path | None = None

    def __repr__(self) -> str:
        failed = f", {len(self.failed)} failed" if self.failed else ""
        total = sum(self.keypoints.values())
        return f"<ExtractedFeatures: {total} {self.extractor} keypoints in {len(self.keypoints)} images{failed}>"

    def summary(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            "features": self.extractor,
            "output": None if self.output is None else str(self.output),
            "keypoints": self.keypoints,
            "failed": self.failed,
        }


def extract(
    images: ImageSource | Sequence[ImageSource],
    output: str | os.PathLike[str] | None = None,
    features: str | Extractor = "auto",
    *,
    max_keypoints: int | None = 2048,
    long_side: int | None = 1024,
    detection_threshold: float | None = None,
    nms_radius: int | None = None,
    masks: str | os.PathLike[str] | None = None,
    bands: Sequence[int] | None = None,
    device: torch.device | str | None = "auto",
    progress: Callable[[str, int, int], None] | None = None,
) -> ExtractedFeatures:
    """Find keypoints and descriptors in many photographs.

    A photograph that cannot be used is named in the result and left out.

    Parameters
    ----------
    images : photographs, or paths of photographs and folders
        Paths are searched for images (`tiepoint.io.folders.find_images`), which are called by their paths below the
        folder that all have in common. Other photographs, see `tiepoint.read_image`, are called ``"0"``, ``"1"`` and
        so on. A list holds either paths or other photographs.
    output : path, optional
        Folder for one .npz per image, or one .npz or .h5 file (hloc's layout) for all. By default the features are
        returned.
    features : str or Extractor
        As in `tiepoint.match`.
    max_keypoints, long_side, detection_threshold, nms_radius
        As in `tiepoint.match`; a loaded extractor has its own.
    masks : path, optional
        Folder of masks, as COLMAP has them: black in ``MASKS/a.jpg.png`` keeps ``a.jpg`` free of keypoints. Only with
        paths. A photograph without a mask is left out.
    bands : one or three ints, optional
        Which bands to use, see `tiepoint.read_image`; a loaded extractor has its own.
    device : torch.device or str
        Where networks run; ``"auto"`` is `tiepoint.devices.best_device`.
    progress : callable, optional
        Called with (name, number done, number of all) after every photograph.

    Returns
    -------
    ExtractedFeatures

    Raises
    ------
    ArgumentError
        An unknown name, an option out of range, or an output that cannot be written.
    InputError
        There are no images, or none that can be used; no output is written then.
    WeightsError, MissingDependencyError
        What the extractor needs is not on this machine.

    Examples
    --------
    >>> import numpy as np
    >>> noise = np.random.default_rng(0).integers(0, 255, (60, 80), dtype=np.uint8)
    >>> found = extract(np.kron(noise, np.ones((4, 4), np.uint8)), features="orb", max_keypoints=50)
    >>> found, found.features["0"]
    (<ExtractedFeatures: 50 orb keypoints in 1 images>, <Features: 50 orb keypoints in 320x240 pixels>)
    """
    sources, are_paths = _sources(images)
    if masks is not None and not are_paths:
        raise ArgumentError("masks is a folder, for photographs that are given by their paths")
    if not sources:
        raise InputError("there are no images to extract features from; give one at least")
    if masks is not None and sources:
        name, path = next(iter(sources.items()))
        folder = path.parents[name.count("/")]  # to which the names are relative
        sources = {name: sources[name] for name in without_masks(sources, folder, Path(masks))}
    masked = None if masks is None else find_masks(masks, list(sources))
    name = features if isinstance(features, str) else features.name
    read = [*(sources.values() if are_paths else ()), *(masked or {}).values(), *pipeline.weights_files(features)]
    writer = None if output is None else FeatureWriter(output, inputs=read)
    if isinstance(features, str):
        name = pipeline.choose(features)[0]
        features = extractors.load(
            name,
            device=device,
            max_keypoints=max_keypoints,
            long_side=long_side,
            detection_threshold=detection_threshold,
            nms_radius=nms_radius,
            bands=bands,
        )

    counts: dict[str, int] = {}
    kept: dict[str, Features] = {}
    failed: dict[str, str] = {}
    with writer or nullcontext():
        for number, (key, source) in enumerate(sources.items(), start=1):
            try:
                if writer is not None:
                    writer.check_name(check_image_name(key, source.parent if are_paths else "images"))
                if masked is not None and key not in masked:
                    lacking = printable(f"{masks}/{key}.png")
                    raise InputError(f"{printable(str(source))}: has no mask {lacking}; make one, all white if need be")
                found = features(source, None if masked is None else masked[key])
            except InputError as error:
                failed[printable(key)] = str(error)
            else:
                counts[printable(key)] = len(found)
                if writer is None:
                    kept[printable(key)] = found
                else:
                    writer.write(key, found)
            if progress is not None:
                progress(printable(key), number, len(sources))
        if not counts:  # raised in here, so that no file appears
            reasons = "".join(f"\n  {reason}" for reason in failed.values())
            unwritten = "" if output is None else f"; {output} was not written"
            raise InputError(f"none of the {len(sources)} images could be used{unwritten}:{reasons}")
    return ExtractedFeatures(name, counts, kept, failed, None if output is None else Path(output))


def _sources(images: ImageSource | Sequence[ImageSource]) -> tuple[dict[str, Any], bool]:
    """Return the photographs by name, and whether they are paths."""
    given = as_list(images)
    paths = [one for one in given if isinstance(one, (str, os.PathLike))]
    if paths and len(paths) == len(given):
        return dict(find_images(paths)), True
    if paths:
        raise ArgumentError("give either paths or other photographs; tiepoint.read_image reads a path")
    return {str(number): image for number, image in enumerate(given)}, False
