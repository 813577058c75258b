"""Folders of photographs: which files in them are images, and what they are called."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError

# What a folder is searched for; a file that is named outright is read whatever its suffix.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".bmp", ".gif")


def find_images(given: list[Path]) -> dict[str, Path]:
    """Return all images by name: the path below the folder that everything given has in common.

    Parameters
    ----------
    given : list of Path
        Images, and folders to search with all their subfolders.

    Returns
    -------
    dict of str to Path
        In sorted order; names have forward slashes on every system.

    Raises
    ------
    InputError
        A folder without images.
    """
    paths: set[Path] = set()
    roots = []
    for entry in (Path(os.path.abspath(path)) for path in given):  # noqa: PTH100  resolve() would follow links
        if entry.is_dir():
            inside = [path for path in entry.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
            if not inside:
                raise InputError(f"{entry}: there are no images in this folder")
            paths.update(inside)
            roots.append(entry)
        else:
            paths.add(entry)
            roots.append(entry.parent)
    root = Path(os.path.commonpath(roots))
    return {path.relative_to(root).as_posix(): path for path in sorted(paths)}
