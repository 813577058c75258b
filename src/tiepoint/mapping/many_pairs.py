"""Many pairs of photographs -> matches in one HDF5 file, in hloc's layout: `match_pairs`.

Until all is done, features and matches are in a database beside the file, from which an interrupted run resumes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import pipeline
from ..errors import ArgumentError, InputError
from ..features import ExtractorOptions
from ..geometry.colmap import import_pycolmap
from ..io.arrays import write_hloc_features, write_hloc_matches, writing_hdf5
from ..io.files import check_image_name, check_output, make_folder, read_json, write_json
from ..io.folders import list_images
from ..io.images import check_bands
from ..io.pair_lists import PairList, from_list
from .pairs.select import exhaustive
from .progress import Report, silent
from .steps.extract import extract_into
from .steps.images import camera_of
from .steps.match import match_into
from .store import NewImage, Store


@dataclass(frozen=True)
class PairsMatched:
    """What `match_pairs` did.

    Attributes
    ----------
    output : Path
        The file.
    choice : str
        Which extractor and matcher, and why these.
    photographs, pairs : int
        In the file.
    already : int
        Pairs of these that an interrupted run had matched.
    matches : int
        Of all pairs together.
    failed : tuple of (str, str)
        Of each pair that is not in the file: its two names, or its line in the list, and the reason.
    """

    output: Path
    choice: str
    photographs: int
    pairs: int
    already: int
    matches: int
    failed: tuple[tuple[str, str], ...]

    def summary(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        failed = [{"pair": pair, "reason": reason} for pair, reason in self.failed]
        return {**vars(self), "output": str(self.output), "failed": failed}


def match_pairs(
    pairs: str | os.PathLike[str],
    output: str | os.PathLike[str],
    photographs: str | os.PathLike[str] | None = None,
    features: str = "auto",
    matcher: str = "auto",
    *,
    max_keypoints: int | None = 2048,
    long_side: int | None = 1024,
    detection_threshold: float | None = None,
    nms_radius: int | None = None,
    bands: Sequence[int] | None = None,
    device: torch.device | str | None = "auto",
    report: Report = silent,
) -> PairsMatched:
    """Match many pairs of photographs: features once for each, pairs in batches.

    To resume an interrupted call, make it again.

    Parameters
    ----------
    pairs : path
        A text file of two names a line, as hloc writes it; or a folder of photographs, all pairs of which are matched.
    output : path
        Ends in ``.h5``. For each photograph a group ``NAME`` holds ``keypoints`` (N, 2), ``scores``, ``descriptors``
        (D, N) and ``image_size``; for each pair ``NAME0/NAME1``, where "/" in names becomes "-", holds ``matches0``
        (N0,), the partner of each keypoint of the first or -1, and ``matching_scores0``. It is both hloc's file of
        features and its file of matches, and appears when all is done.
    photographs : path, optional
        The folder that names in the list begin in; by default that of the list.
    features, matcher, max_keypoints, long_side, detection_threshold, nms_radius, bands, device
        As in `tiepoint.match`.
    report : callable
        Gets a `Progress` after every bit of work; `tiepoint.progress_bars` shows it.

    Returns
    -------
    PairsMatched
        A pair that cannot be matched, as a photograph is missing or damaged, is named there and the rest goes on.

    Raises
    ------
    ArgumentError
        The output does not end in ``.h5``, or an unknown name or option.
    InputError
        The list or the folder cannot be read, or none of its pairs can be matched.
    WeightsError, MissingDependencyError
        What was asked for is not on this machine.

    Examples
    --------
    ::

        done = match_pairs("photos", "matches.h5")
        for pair, reason in done.failed:
            print(pair, reason)
    """
    source = Path(pairs)
    if source.is_dir() and photographs is not None:
        raise ArgumentError(f"{source} is a folder of photographs; a second one, {photographs}, has no meaning")
    folder = source if source.is_dir() else source.parent if photographs is None else Path(photographs)
    names = list_images(folder)
    numbers = {name: number for number, name in enumerate(names)}
    listed = PairList(exhaustive(range(len(names))), 0, []) if source.is_dir() else from_list(source, numbers)
    target = check_output(output, (".h5",), inputs=[source, *(folder / name for name in names)])
    import_pycolmap()  # said before the work
    if not len(listed.pairs):
        raise InputError(f"{folder}: holds {len(names)} photographs, and a pair needs two")
    failed = [(f"line {line}", f"names {what}, which is not in {folder}") for line, what in listed.unused]
    wanted = [(names[i], names[j]) for i, j in listed.pairs.tolist()]

    options = ExtractorOptions(max_keypoints, detection_threshold, nms_radius, long_side, bands=check_bands(bands))
    extractor, pairer, choice = pipeline.load(features, matcher, device, options)
    work = _work_folder(target, {"choice": choice, "options": repr(options), "folder": str(folder.resolve())})
    with Store.open(work / "database.db") as store:
        ids, reasons = _enter(store, folder, sorted({name for pair in wanted for name in pair}))
        reasons |= extract_into(store, folder, extractor, report=report).failed
        bad = [pair for pair in wanted if reasons.keys() & set(pair)]
        failed += [(f"{a} {b}", reasons.get(a) or reasons[b]) for a, b in bad]
        usable = [pair for pair in wanted if not reasons.keys() & set(pair)]
        if not usable:
            raise InputError(f"{source}: none of its pairs can be matched; of the first: {failed[0][1]}")
        done = match_into(store, [(ids[a], ids[b]) for a, b in usable], pairer, verify=False, report=report)
        count = _write(store, target, ids, usable)
    shutil.rmtree(work)
    used = {name for pair in usable for name in pair}
    return PairsMatched(target, choice, len(used), len(usable), done.already, count, tuple(failed))


def _work_folder(target: Path, asked: dict[str, str]) -> Path:
    """Return the folder of unfinished work on a file, empty unless it was done for the same features and matcher."""
    work = target.with_name(f".{target.name}.unfinished")
    if work.exists() and not ((work / "asked.json").exists() and read_json(work / "asked.json") == asked):
        shutil.rmtree(work)
    make_folder(work)
    write_json(work / "asked.json", asked)
    return work


def _enter(store: Store, folder: Path, names: Sequence[str]) -> tuple[dict[str, int], dict[str, str]]:
    """Enter photographs into the store; return their ids, and name -> reason of those that cannot be read."""
    found, reasons = [], {}
    known = {image.name: image.image_id for image in store.images()}
    for name in names:
        try:
            if name not in known:
                found.append(NewImage(check_image_name(name, folder), camera_of(folder / name)))
        except InputError as error:
            reasons[name] = str(error)
    return {**known, **store.add_images(found)}, reasons


def _write(store: Store, target: Path, ids: dict[str, int], pairs: Sequence[tuple[str, str]]) -> int:
    """Write features and matches of pairs, and return how many matches they have."""
    counts, total = store.keypoint_counts(), 0
    with writing_hdf5(target) as file:
        for name in dict.fromkeys(name for pair in pairs for name in pair):
            write_hloc_features(file, name, store.features(ids[name]))
        for a, b in pairs:
            found = store.matches(ids[a], ids[b])
            assert found is not None  # it was matched
            write_hloc_matches(file, (a, b), counts[ids[a]], found.indices, found.scores)
            total += len(found.indices)
    return total
