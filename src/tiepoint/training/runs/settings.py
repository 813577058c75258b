"""What a training is asked for: `RunSettings` of any, `FitSettings` of Cairn's and of matchers'."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...errors import ArgumentError, InputError
from ..data.photographs import PhotoCache, build_cache, open_cache
from ..loop import FitConfig, Processes, join_processes
from ..pairs.steps import chunks_of

_FEW = 100  # photographs below which we warn


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What every training is asked for.

    Attributes
    ----------
    images : path or None
        Folder of photographs, searched with its sub-folders. None uses those in ``cache`` as they are.
    output : path
        The run's folder; a run there is resumed.
    seed : int
        Of all random choices.
    cache : path, optional
        File of decoded photographs, which several runs can use; by default in the run's folder.
    workers : int, optional
        Processes that make pairs. By default none where they are made on a GPU, else one for each core but one.
    device : torch.device or str
        Where to train; ``"auto"`` is `tiepoint.devices.best_device`.
    """

    images: str | os.PathLike[str] | None
    output: str | os.PathLike[str]
    seed: int = 1
    cache: str | os.PathLike[str] | None = None
    workers: int | None = None
    device: torch.device | str | None = "auto"

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.output)

    def open_photographs(self, long_side: int, batch: int, chunk: int) -> tuple[PhotoCache, Processes]:
        """Begin any training: join the other processes, make the run's folder, decode the photographs once.

        Parameters
        ----------
        long_side : int
            At which photographs are kept, pixels.
        batch, chunk : int
            Pairs of one step, and pairs made together.

        Raises
        ------
        InputError
            No folder, or too few or unreadable photographs.
        ArgumentError
            An option that makes no sense.
        """
        folder = self.folder.resolve()
        if self.images is not None and Path(self.images).resolve() in (folder, *folder.parents):
            raise ArgumentError(
                f"the run's folder {self.output} lies among the photographs of {self.images}; give another one"
            )
        processes = join_processes(self.device)
        chunks_of(batch, chunk, processes.rank, processes.world)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.output}: cannot be made a run's folder: {error.strerror or error}") from error
        path = Path(self.cache) if self.cache else self.folder / "photos.cache"
        if processes.rank == 0 and self.images is not None:
            _warn_about(build_cache(self.images, path, long_side=long_side), self.images)
        processes.barrier()
        return open_cache(path), processes


@dataclass(frozen=True, kw_only=True)
class FitSettings(RunSettings):
    """What the training of Cairn or of a matcher is asked for besides.

    Attributes
    ----------
    start : path or str, optional
        Weights to train on, a file or a name of ``tiepoint weights list``.
    light : str, optional
        How much light, lens and camera of the two views may differ, see
        `tiepoint.training.data.photometric.PhotometricConfig.preset`.
    steps : int, optional
        Optimiser steps; without a limit of time unless ``minutes`` sets one.
    minutes : float, optional
        Train no longer than this; 0 for no limit.
    batch : int, optional
        Pairs of one step.
    average : bool
        End with the mean of the weights of ``start`` and those come to from there.
    compile : bool
        Compile the network with `torch.compile`.
    """

    start: str | os.PathLike[str] | None = None
    light: str | None = None
    steps: int | None = None
    minutes: float | None = None
    batch: int | None = None
    average: bool = False
    compile: bool = False

    def schedule(self, fit: FitConfig, starts: bool) -> FitConfig:
        """Return a preset's schedule with what these options change.

        Raises
        ------
        ArgumentError
            An average is asked for, but training does not start from weights (``starts``).
        """
        if self.average and not starts:
            raise ArgumentError("there is nothing to average with: give the weights that training starts from")
        if self.steps is not None:  # an explicit number of steps is not cut short by the preset's time limit
            fit = replace(fit, steps=self.steps, minutes=None, warmup=min(fit.warmup, self.steps // 5))
        if self.minutes is not None:
            fit = replace(fit, minutes=self.minutes or None)
        return replace(fit, average=self.average, compile=self.compile)


def _warn_about(photos: PhotoCache, images: str | os.PathLike[str]) -> None:
    """Warn of files that cannot be used, and of too few photographs."""
    if photos.skipped:
        reasons = "; ".join(f"{name}: {why}" for name, why in photos.skipped[:3])
        count = len(photos) + len(photos.skipped)
        warnings.warn(f"{len(photos.skipped)} of {count} files of {images} cannot be used ({reasons})", stacklevel=4)
    different = len(set(photos.sources.tolist()))
    if different < _FEW:
        warnings.warn(
            f"{images} holds {different} different photographs; a network learns more from a few hundred", stacklevel=4
        )
