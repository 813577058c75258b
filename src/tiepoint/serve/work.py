"""What the worker process does with a job: `run_match` and `run_map`."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from ..errors import InputError
from ..io.decoding import SUFFIXES, read_header
from ..io.files import write_json
from ..io.images import read_image, read_reduced
from ..mapping.progress import Progress
from ..mapping.run import map_photographs
from ..two_view import match
from ..viz.sheet import SIDE, contact_sheet
from .preview import Preview
from .uploads import common_folder

PREVIEW = "best-matches.jpg"
SHEET_IMAGES = 60  # on the contact sheet, at most

Tell = Callable[[str, Any], None]
"""Gets what is new about a job: ("step", Step's fields), ("note", text), ("output", file name)."""


def run(job: Mapping[str, Any], folder: Path, pixels: int, tell: Tell) -> dict[str, Any]:
    """Do a job; return its result.

    Parameters
    ----------
    job : mapping
        ``kind``, ``options`` and ``files`` of a `tiepoint.serve.jobs.Job`.
    folder : Path
        Of the job. Uploads lie in ``photos``; everything to be fetched goes into ``result``.
    pixels : int
        Photographs with more are left out.
    tell : callable
        See `Tell`.

    Raises
    ------
    TiepointError
        It cannot be done; the message names files as the user does.
    """
    (folder / "result").mkdir(exist_ok=True)
    return {"match": run_match, "map": run_map}[job["kind"]](job, folder, pixels, tell)


def run_match(job: Mapping[str, Any], folder: Path, pixels: int, tell: Tell) -> dict[str, Any]:
    """Match two photographs; see `run`."""
    tell("step", {"name": "reading the photographs"})
    images = []
    for name, label in job["files"].items():
        check_size(folder / "photos" / name, label, pixels)
        images.append(replace(read_image(folder / "photos" / name), name=label))
    geometry = job["options"]["geometry"]
    tell("step", {"name": "finding and matching points"})
    options = {**job["options"], "geometry": None if geometry == "none" else geometry}
    result = match(images[0], images[1], **options)
    tell("step", {"name": "drawing"})
    for name in ("matches.png", "match.html", "matches.csv", "matches.npz", "matches.json"):
        result.save(folder / "result" / name, overwrite=True)
        tell("output", name)
    return result.summary()


def run_map(job: Mapping[str, Any], folder: Path, pixels: int, tell: Tell) -> dict[str, Any]:
    """Map photographs or a video; see `run`."""
    photos, labels = folder / "photos", job["files"]
    out = folder / "map" / scene_name(list(labels.values()))
    videos = [name for name in labels if not name.lower().endswith(SUFFIXES)]
    if not videos:
        tell("step", {"name": "reading the photographs"})
        for name, label in labels.items():
            path = photos / name
            if not path.exists():  # left out before a restart
                continue
            try:
                check_size(path, label, pixels)
            except InputError as error:
                path.unlink()
                tell("note", f"left out: {error}")
        shown = []
        for name in [name for name in labels if (photos / name).exists()][:SHEET_IMAGES]:
            with suppress(InputError):  # the map says why
                shown.append((labels[name], read_reduced((photos / name).read_bytes(), name, SIDE)))
        if shown:
            contact_sheet(shown, folder / "result" / "photographs.jpg")
            tell("output", "photographs.jpg")
    preview = Preview(out / "database.db", out / "frames" if videos else photos, folder / "result" / PREVIEW)

    def report(progress: Progress) -> None:
        tell("step", {"name": progress.step, "done": progress.done, "total": progress.total})
        for line in progress.note.splitlines():
            tell("note", line)
        if progress.step in ("matching", "mapping"):
            with suppress(InputError, OSError):  # a picture to look at meanwhile; the map says what is wrong
                if preview():
                    tell("output", PREVIEW)

    result = map_photographs(photos / videos[0] if videos else photos, out, **job["options"], report=report)
    for line in (*(f"{name}: left out: {why}" for name, why in result.skipped.items()), *result.notes):
        tell("note", line)
    summary = {**result.summary(), "output": "map"}
    # Paths of this machine are nobody's business.
    summary = json.loads(json.dumps(summary).replace(json.dumps(f"{folder}/")[1:-1], ""))
    write_json(folder / "result" / "report.json", summary)
    for name in ("scene.html", "points.ply", "trajectory.txt"):
        shutil.copyfile(out / name, folder / "result" / name)
    shutil.make_archive(str(folder / "result" / "sparse"), "zip", out, "sparse")
    for name in ("scene.html", "points.ply", "trajectory.txt", "sparse.zip", "report.json"):
        tell("output", name)
    return summary


def scene_name(labels: Sequence[str]) -> str:
    """Return what to call a map: the folder or the video that was given, in letters that any system takes.

    Examples
    --------
    >>> scene_name(["my castle/1.jpg", "my castle/2.jpg"]), scene_name(["walk.mp4"]), scene_name(["1.jpg", "2.jpg"])
    ('my_castle', 'walk', 'photographs')
    >>> scene_name(["trip/day 1/1.jpg", "trip/day 2/1.jpg", "one more.jpg"])
    'trip'
    """
    folder = common_folder([label for label in labels if "/" in label])
    name = PurePath(labels[0]).stem if len(labels) == 1 else PurePath(folder).name
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_")[:40] or "photographs"


def check_size(path: Path, label: str, pixels: int) -> None:
    """Look at an image's header; raise `InputError` where it is damaged, or too large to be decoded here."""
    with path.open("rb") as file:
        read_header(file, label, pixels)
