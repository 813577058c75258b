"""The settings of a map: what `tiepoint.mapping.map_photographs` was asked for, in one object."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from .. import effort as ladder
from .. import features as extractors
from .. import names
from ..devices import pick_device
from ..effort import Effort
from ..errors import ArgumentError, InputError
from ..features import ExtractorOptions
from ..geometry.colmap import import_pycolmap
from ..io import video
from ..io.images import check_bands
from . import cluster
from .inputs import check_inputs_survive, check_outputs_are_ours
from .pairs.choose import PAIR_CHOICES, PairChoice
from .quality import Preset, Quality, preset_of
from .steps.images import Share, is_file
from .steps.reconstruct import Mapper


@dataclass(frozen=True)
class MapSettings:
    """What `map_photographs` was asked for: its arguments, those that were left open filled in by the quality.

    Attributes
    ----------
    preset : Preset
        What the quality stands for.
    chosen : dict
        The arguments that it filled in.
    """

    photographs: Path
    output: Path
    frames: int | None
    every: float | None
    quality: Quality
    pairs: PairChoice | str | os.PathLike[str]
    features: str
    matcher: str
    effort: Effort
    trust_doppelgangers: bool
    mapper: Mapper
    max_keypoints: int | None
    long_side: int | None
    masks: Path | None
    bands: tuple[int, ...] | None
    cameras: Share
    camera_model: str
    focal: float | None
    camera: str | None
    fix_cameras: bool
    refine: bool
    undistort: bool
    text: bool
    align: str | os.PathLike[str] | None
    scale: str | os.PathLike[str] | None
    fresh: bool
    device: torch.device | str | None
    workers: int | None
    ray: str | None
    seed: int
    preset: Preset
    chosen: dict[str, Any]

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> MapSettings:
        """Take the arguments of `map_photographs`, with paths, bands and "no limit" in one form."""
        preset = preset_of(arguments["quality"])
        options = preset.options()
        if len(names.split(arguments["features"], extractors.names())) > 1:  # an ensemble matches all in one pass
            options["max_keypoints"] = preset.first_pass or preset.max_keypoints
        chosen = {name: value for name, value in options.items() if arguments[name] is None}
        values = {one.name: arguments[one.name] for one in fields(cls) if one.name in arguments} | chosen
        values |= {name: values[name] or None for name in ("max_keypoints", "long_side")}
        values |= {"preset": preset, "chosen": chosen}
        values |= {"photographs": Path(values["photographs"]), "output": Path(values["output"])}
        values |= {"bands": check_bands(values["bands"])}
        return cls(**{**values, "masks": None if values["masks"] is None else Path(values["masks"])})

    @property
    def extractor_options(self) -> ExtractorOptions:
        """What the extractor is to be loaded with."""
        return ExtractorOptions(max_keypoints=self.max_keypoints, long_side=self.long_side, bands=self.bands)

    @property
    def chooses_cameras(self) -> bool:
        """Whether any option says what the cameras are."""
        return (self.cameras, self.camera_model, self.focal, self.camera) != ("auto", "SIMPLE_RADIAL", None, None)

    def check(self) -> None:
        """Refuse before the work begins what can be known to fail."""
        import_pycolmap()
        if self.ray is not None:
            cluster.import_ray()
        source, out = self.photographs, self.output
        if not source.exists():
            raise InputError(f"{source}: no such file or folder; give a folder of photographs, or a video")
        if source.is_file() and source.suffix.lower() not in video.VIDEO_SUFFIXES:
            raise InputError(f"{source}: is not a video by its name; give a folder of photographs, or a video")
        if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
            raise ArgumentError(
                f"{out}: lies in the folder of the photographs, and would be taken for some; choose another"
            )
        if not source.is_file() and (self.frames, self.every) != (None, None):
            raise ArgumentError(f"{source}: is no video, so frames of it cannot be chosen; all photographs are used")
        video.check_choice(self.frames, self.every)
        ladder.check(self.effort, None)
        pick_device(self.device)
        inputs = [Path(one) for one in (self.pairs, self.camera, self.align, self.scale) if one and is_file(one)]
        check_inputs_survive(out, source, [*inputs, *([self.masks] if self.masks is not None else [])])
        check_outputs_are_ours(out, self.fresh)
        if self.pairs not in PAIR_CHOICES and not Path(self.pairs).is_file():
            choices = ", ".join(PAIR_CHOICES)
            raise ArgumentError(f"pairs are a text file, or one of {choices}; {str(self.pairs)!r} is neither")
