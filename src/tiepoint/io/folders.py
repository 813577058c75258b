"""Folders of photographs: which files in them are images, what they are called, and in which order they come."""

from __future__ import annotations

import os
import re
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import InputError
from .decoding import FOREIGN_SUFFIXES, SUFFIXES
from .files import printable


def list_images(folder: str | os.PathLike[str], recursive: bool = True) -> list[str]:
    """Return the names of all images in a folder, `in_order`.

    Images are recognised by their suffix; of cameras' raw files and the like, which cannot be read, the names come too,
    so that reading them says why. Hidden files and folders are passed over (among them macOS's ``._*``), and so are
    pipes and devices. Symbolic links are followed, each folder is searched once, and a link that leads nowhere counts
    as an image.

    Parameters
    ----------
    folder : path
    recursive : bool
        Whether to search the sub-folders too.

    Returns
    -------
    list of str
        Paths below the folder, with forward slashes.

    Raises
    ------
    InputError
        The folder cannot be searched.

    Warns
    -----
    UserWarning
        A sub-folder cannot be searched.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("frame10.jpg", "frame2.jpg", "._frame2.jpg", "notes.txt"):
    ...         Path(folder, name).touch()
    ...     list_images(folder)
    ['frame2.jpg', 'frame10.jpg']
    """
    names = []
    for _, prefix, entries in walk(folder):
        for entry in entries:
            if entry.name.lower().endswith(SUFFIXES + FOREIGN_SUFFIXES) and _is_regular(entry):
                names.append(prefix + entry.name)
        if not recursive:
            break
    return in_order(names)


def walk(folder: str | os.PathLike[str]) -> Iterator[tuple[Path, str, list[os.DirEntry[str]]]]:
    """Search a folder and its sub-folders as `list_images` says.

    Yields
    ------
    place : Path
        The folder itself first, then those below it.
    prefix : str
        What makes names in it relative to the folder: empty, or ending in a slash.
    entries : list of os.DirEntry
        What is in it and not hidden, sorted by name.
    """
    searched: set[tuple[int, int]] = set()
    # Links last, so that a file which can be reached both ways is called by its own name.
    folders, links = deque([(Path(folder), "")]), deque[tuple[Path, str]]()
    while folders or links:
        place, prefix = (folders or links).popleft()
        try:
            status = place.stat()
            if (status.st_dev, status.st_ino) in searched:
                continue
            searched.add((status.st_dev, status.st_ino))
            with os.scandir(place) as found:
                entries = sorted((one for one in found if not one.name.startswith(".")), key=lambda one: one.name)
        except OSError as error:
            message = f"{printable(str(place))}: cannot be searched for images: {error.strerror or error}"
            if not prefix:
                raise InputError(message) from error
            warnings.warn(message, stacklevel=2)
            continue
        yield place, prefix, entries
        for entry in entries:
            if os.path.isdir(entry):  # noqa: PTH112  Path's raises where links form a loop
                (links if entry.is_symlink() else folders).append((place / entry.name, f"{prefix}{entry.name}/"))


def _is_regular(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a regular file, or a link to nowhere, as reading says best what is wrong with that."""
    return os.path.isfile(entry) or not os.path.exists(entry)  # noqa: PTH110, PTH113  as in `walk`


def find_images(given: Iterable[str | os.PathLike[str]]) -> dict[str, Path]:
    """Return all images by name: the path below the folder that everything given has in common.

    Parameters
    ----------
    given : paths
        Images, and folders to search with all their subfolders, see `list_images`. A file that is named outright
        counts whatever its suffix.

    Returns
    -------
    dict of str to Path
        `in_order`; names have forward slashes on every system.

    Raises
    ------
    InputError
        A folder without images.
    """
    paths: set[Path] = set()
    roots = []
    for entry in (Path(os.path.abspath(path)) for path in given):  # noqa: PTH100  resolve() would follow links
        if entry.is_dir():
            inside = list_images(entry)
            if not inside:
                raise InputError(f"{entry}: there are no images in this folder")
            paths.update(entry / name for name in inside)
            roots.append(entry)
        else:
            paths.add(entry)
            roots.append(entry.parent)
    root = Path(os.path.commonpath(roots))
    named = {path.relative_to(root).as_posix(): path for path in paths}
    return {name: named[name] for name in in_order(named)}


def find_masks(folder: str | os.PathLike[str], names: Sequence[str]) -> dict[str, Path]:
    """Return the masks of images by the images' names: ``folder/a/b.jpg.png`` is that of ``a/b.jpg``, as in COLMAP.

    Raises
    ------
    InputError
        The folder does not exist, or holds no mask for any of the images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder of the masks")
    found = {name: path for name in names if (path := mask_of(folder, name)) is not None}
    if names and not found:
        there = list_images(folder)
        what = f"{len(there)} images, such as {printable(there[0])}, but " if there else ""
        raise InputError(
            f"{folder}: has {what}no mask of any of the {len(names)} photographs; the mask of "
            f"{printable(names[0])} must be called {printable(str(folder / names[0]))}.png"
        )
    return found


def mask_of(folder: Path | None, name: str) -> Path | None:
    """Return the mask of one image if there is a folder of masks that holds one, see `find_masks`."""
    if folder is None:
        return None
    path = folder / f"{name}.png"
    return path if os.path.lexists(path) else None  # a link that leads nowhere is an error when it is read


def without_masks(names: Iterable[str], folder: Path, masks: Path | None) -> list[str]:
    """Leave out the names of images in a folder that are masks, where the folder of masks is the same or lies in it.

    Examples
    --------
    >>> without_masks(["a.jpg", "masks/a.jpg.png"], Path("photos"), Path("photos/masks"))
    ['a.jpg']
    >>> without_masks(["a.jpg", "a.jpg.png"], Path("photos"), Path("photos"))
    ['a.jpg']
    """
    names = list(names)
    if masks is None:
        return names
    root, place = Path(os.path.realpath(folder)), Path(os.path.realpath(masks))
    if place == root:
        known = set(names)
        return [name for name in names if not (name.endswith(".png") and name.removesuffix(".png") in known)]
    if not place.is_relative_to(root):
        return names
    prefix = f"{place.relative_to(root).as_posix()}/"
    return [name for name in names if not name.startswith(prefix)]


def natural_key(name: str) -> Any:
    """Return a key to sort names by in which numbers count as numbers: frame2 comes before frame10.

    Examples
    --------
    >>> sorted(["b/1.jpg", "a10.jpg", "a9.jpg"], key=natural_key)
    ['a9.jpg', 'a10.jpg', 'b/1.jpg']
    """
    parts = [re.split(r"([0-9]+)", part) for part in name.split("/")]
    return [[int(piece) if i % 2 else piece for i, piece in enumerate(part)] for part in parts], name


def in_order(names: Iterable[str]) -> list[str]:
    """Sort names of images by the times that they are made of, see `times_in_names`, or else by `natural_key`."""
    ordered = sorted(names, key=natural_key)
    times = times_in_names(ordered)
    return ordered if times is None else sorted(ordered, key=times.__getitem__)


def times_in_names(names: Iterable[str]) -> dict[str, float] | None:
    """Return the times that names of images are made of, in seconds, or None if not all of them are times.

    Times are seconds with a decimal point (``1305031102.175304.png``, as in TUM RGB-D), or nanoseconds of 19 digits
    (as in EuRoC).

    Examples
    --------
    >>> times_in_names(["rgb/1305031102.175304.png"])
    {'rgb/1305031102.175304.png': 1305031102.175304}
    >>> times_in_names(["1.5.png", "cover.png"])
    """
    times = {}
    for name in names:
        stem = PurePosixPath(name).stem
        if re.fullmatch(r"[0-9]+\.[0-9]+", stem):
            times[name] = float(stem)
        elif re.fullmatch(r"[0-9]{19}", stem):
            times[name] = int(stem) / 1e9
        else:
            return None
    return times or None


def numbered(names: Sequence[str]) -> bool:
    """Whether names tell their order: most of them differ from another one only by numbers.

    Examples
    --------
    >>> numbered(["IMG_1.jpg", "IMG_2.jpg"]), numbered(["5d41402a.jpg", "7d793037.jpg"])
    (True, False)
    """
    return 2 * len({re.sub(r"[0-9]+", "#", name) for name in names}) <= len(names)
