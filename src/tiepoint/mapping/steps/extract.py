"""Photographs -> features in the store: `extract_into`.

Handcrafted extractors (OpenCV's and the like) run in several processes, one core each. Networks run in this process, on
their GPU or on all cores, while threads decode the next photographs. Only this process writes, in transactions of about
a second, so a killed run loses no more than that. Run the same command to resume.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import ArgumentError, InputError, TiepointError
from ...features import Extractor
from ...io.folders import mask_of
from ...io.images import ImageSource, read_image
from ...types import Features, Image
from ..progress import Progress, Report, silent
from ..store import Store, StoredImage
from ..workers import Commits, begin_worker, context_for, cores, stopping, windowed

IMAGES_PER_PROCESS = 8  # fewer than this are done sooner than another process has imported torch


@dataclass(frozen=True)
class Extraction:
    """What `extract_into` did.

    Attributes
    ----------
    extracted, already : int
        Images whose features were written now, and those that had some before.
    failed : dict of str to str
        Photographs without features, by name, and why: unreadable, missing, or changed since they were registered.
    """

    extracted: int
    already: int
    failed: dict[str, str] = field(default_factory=dict)


def extract_into(
    store: Store,
    folder: str | os.PathLike[str],
    extractor: Extractor,
    *,
    masks: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    report: Report = silent,
) -> Extraction:
    """Extract the features of every image in the store that has none yet.

    Parameters
    ----------
    store : Store
        Its images are those to be done; see `tiepoint.mapping.steps.images` for how they get there.
    folder : path
        The photographs: image ``a/b.jpg`` of the store is ``folder/a/b.jpg``.
    extractor : Extractor
        See `tiepoint.features.load`.
    masks : path, optional
        Folder of masks, as COLMAP has them: black in ``masks/a/b.jpg.png`` means "no keypoints here". An image without
        a mask file is used whole.
    workers : int, optional
        Processes for handcrafted extractors, 0 for none; by default one for each core, fewer for a few images.
        Networks use their device, and this many threads to decode photographs. The features do not depend on it.
    report : callable
        Gets a `Progress` after each image.

    Returns
    -------
    Extraction
        A photograph that cannot be used is reported there, and the rest goes on. One without any keypoint is fine.

    Raises
    ------
    ArgumentError
        The store already holds features of another extractor.
    InputError
        The store cannot be written to (disk full, read-only).
    TiepointError
        A worker process died, most often for want of memory. What was done until a second before is in the store.

    Examples
    --------
    ::

        with Store.open("map/database.db") as store:
            extract_into(store, "photos", tiepoint.features.load("sift"))
    """
    run = ExtractionRun(store, folder, extractor, report)
    if workers is None:
        workers = cores() if extractor.is_network else min(cores(), len(run.todo) // IMAGES_PER_PROCESS)
    masks = None if masks is None else Path(masks)
    with Commits(store.write_features) as commits:
        for image, outcome in _outcomes(extractor, run.todo, run.folder, masks, workers):
            outcome = run.checked(image, outcome)
            if isinstance(outcome, Features):
                commits.add((image.image_id, outcome))
            run.count(image, outcome)
    return run.summary()


class ExtractionRun:
    """The images of one call of `extract_into`: which of them to do, and what came of those that were.

    Parameters
    ----------
    store : Store
    folder : path
        Of the photographs.
    extractor : Extractor
    report : callable
        Gets a `Progress` at the beginning, and with each image that is counted.

    Raises
    ------
    ArgumentError
        The store's features come from another extractor: they could not be matched.
    """

    def __init__(self, store: Store, folder: str | os.PathLike[str], extractor: Extractor, report: Report) -> None:
        self.images = store.images()
        have = store.has_features()
        stored = store.features(min(have), descriptors=False).extractor if have else extractor.name
        if stored != extractor.name:
            raise ArgumentError(
                f"{store.path}: holds {stored} features already, not {extractor.name}; go on with --features {stored}, "
                "or start a new map"
            )
        self.folder = Path(folder)
        self.todo = [image for image in self.images if image.image_id not in have]
        self._step, self._report = f"extracting {extractor.name}", report
        self._already, self._extracted, self._failed = len(self.images) - len(self.todo), 0, dict[str, str]()
        self._tell("")

    def checked(self, image: StoredImage, outcome: Features | str) -> Features | str:
        """Return what was extracted, or why it is of no use: the photograph has changed its size."""
        if isinstance(outcome, str) or outcome.image_size == image.size:
            return outcome
        return (
            f"{self.folder / image.name}: is {_text(outcome.image_size)} pixels, but was {_text(image.size)} when it "
            "was registered; put the old file back, or start a new map"
        )

    def count(self, image: StoredImage, outcome: Features | str) -> None:
        """Count an image, and report it."""
        if isinstance(outcome, str):
            self._failed[image.name] = outcome
        else:
            self._extracted += 1
        self._tell(self._failed.get(image.name, ""))

    def _tell(self, note: str) -> None:
        done = self._already + self._extracted + len(self._failed)
        self._report(Progress(self._step, done, len(self.images), note=note))

    def summary(self) -> Extraction:
        """Return what was done."""
        return Extraction(self._extracted, self._already, self._failed)


def extract_one(extractor: Extractor, image: ImageSource, mask: Path | None = None) -> dict[str, Any] | str:
    """Return the fields of one photograph's `Features` with NumPy arrays for tensors, or why there are none.

    Arrays, because torch would hand tensors to another process as open files, of which a process has few.
    """
    try:
        features = extractor(image, mask)
    except TiepointError as error:
        return _reason(error)
    values = {f.name: getattr(features, f.name) for f in fields(Features)}
    return {name: value.cpu().numpy() if isinstance(value, torch.Tensor) else value for name, value in values.items()}


def as_features(values: dict[str, Any]) -> Features:
    """Undo what `extract_one` does for the journey between processes."""
    tensors = {name: torch.from_numpy(v) for name, v in values.items() if isinstance(v, np.ndarray)}
    return Features(**{**values, **tensors})


def _outcomes(
    extractor: Extractor, images: list[StoredImage], folder: Path, masks: Path | None, workers: int
) -> Iterator[tuple[StoredImage, Features | str]]:
    """Yield (image, its features or why there are none) in order."""
    if extractor.is_network or workers == 0:

        def read(image: StoredImage) -> Image | str:
            try:
                return read_image(folder / image.name, mask_of(masks, image.name), bands=extractor.options.bands)
            except TiepointError as error:
                return _reason(error)

        with stopping(ThreadPoolExecutor(max(1, workers))) as threads:
            for image, picture in windowed(threads, read, images, 2 * max(1, workers)):
                done = picture if isinstance(picture, str) else extract_one(extractor, picture)
                yield image, done if isinstance(done, str) else as_features(done)
        return

    # A fresh interpreter for each process: copies of this one (fork) would inherit torch's threads in odd states.
    context = context_for(extractor)
    with stopping(ProcessPoolExecutor(workers, mp_context=context, initializer=begin_worker)) as processes:
        work = partial(_extract_in_worker, extractor)
        jobs = ((folder / image.name, mask_of(masks, image.name)) for image in images)
        try:
            for image, (_, done) in zip(images, windowed(processes, work, jobs, 4 * workers), strict=True):
                yield image, done if isinstance(done, str) else as_features(done)
        except BrokenProcessPool as error:
            raise TiepointError(
                "a process that extracted features died, most often because memory ran out; what was done is kept: "
                "run the same again, with fewer workers or a smaller --long-side. (In a script with an extractor of "
                "its own, the call belongs under: if __name__ == '__main__':)"
            ) from error


def _extract_in_worker(extractor: Extractor, job: tuple[Path, Path | None]) -> dict[str, Any] | str:
    return extract_one(extractor, *job)


def _reason(error: TiepointError) -> str:
    """Return why a photograph is left out; errors that concern all photographs go on their way."""
    if type(error) in (InputError, TiepointError):
        return str(error)
    raise error


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
