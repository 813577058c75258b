"""Pairs of images: text files of two names a line, and lists of pairs joined."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from .files import open_file

Pairs = NDArray[np.int32]

_LONGEST_LINE = 1 << 20  # bytes of a list of pairs
_LONGEST_FOLDER = 4096  # letters, before a name in it


def union(*several: ArrayLike) -> Pairs:
    """Join lists of pairs (P, 2), in any order and direction, to one: smaller id first, sorted, each pair once.

    A pair of an image with itself is dropped.

    Examples
    --------
    >>> union([[2, 1], [5, 5]], [[1, 2], [0, 9]])
    array([[0, 9], [1, 2]], dtype=int32)
    """
    none = np.zeros((0, 2), np.int64)
    pairs = np.concatenate([none, *(np.asarray(part, np.int64).reshape(-1, 2) for part in several)])
    pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    keys = np.unique(pairs[:, 0] << 32 | pairs[:, 1])
    return np.stack([keys >> 32, keys & 0xFFFFFFFF], axis=1).astype(np.int32)


class PairList(NamedTuple):
    """What `from_list` read.

    Attributes
    ----------
    pairs : int32 array (P, 2)
        Each once, whatever its direction.
    lines : int
        How many lines name a pair, those that are not used included.
    unused : list of (int, str)
        The number of each line that was not used, and the names in it that are unknown (or the whole line, where no
        two names can be told apart), or its one name, if that is there twice.
    """

    pairs: Pairs
    lines: int
    unused: list[tuple[int, str]]


def from_list(path: str | os.PathLike[str], ids: Mapping[str, int]) -> PairList:
    r"""Read pairs from a text file: two image names a line, as hloc and COLMAP write them.

    Empty lines and those that start with # are skipped, and columns behind the two names (scores) are ignored. Names
    may contain spaces if columns are separated by tabs, or if only one way to cut the line gives two known names.
    Names may also begin with a folder that ``ids`` lack, such as ``images/``, or be absolute paths, if the folder is
    the same in the whole list.

    Parameters
    ----------
    path : path
        UTF-8 text.
    ids : mapping of str to int
        The id of each image by its name, see `Store.images`.

    Returns
    -------
    PairList

    Raises
    ------
    InputError
        The file cannot be read, a line has only one name, or no line names two known images.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "pairs.txt")
    ...     _ = file.write_text("b.jpg a.jpg 0.83\na.jpg lost.jpg\n")
    ...     from_list(file, {"a.jpg": 1, "b.jpg": 2})
    PairList(pairs=array([[1, 2]], dtype=int32), lines=2, unused=[(2, 'lost.jpg')])
    """
    known = _Names(ids)
    pairs, lines = [], 0
    unused: list[tuple[int, str]] = []
    with open_file(path) as stream:
        for number, data in enumerate(iter(partial(stream.readline, _LONGEST_LINE), b""), start=1):
            try:
                line = data.decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                raise InputError(f"{path}: is not UTF-8 text; a list of pairs has two image names a line") from error
            if len(data) == _LONGEST_LINE:
                raise InputError(f"{path}: line {number} has more than {_LONGEST_LINE} bytes; is this a list of pairs?")
            if not line or line.startswith("#"):
                continue
            names = _two_names(line, known)
            if len(names) == 1 and len(line.split(maxsplit=1)) == 1:
                raise InputError(f"{path}: line {number} holds one name, {_short(line)!r}; a pair needs two")
            lines += 1
            found = known.ids_of(names) if len(names) == 2 else [-1]
            missing = [name for name, one in zip(names, found, strict=True) if one < 0]
            if missing:
                unused.append((number, _short(" and ".join(missing))))
            elif found[0] == found[1]:
                unused.append((number, f"{_short(names[0])} and nothing else"))
            else:
                pairs.append(found)
    if not pairs:
        why = f"; the first is line {unused[0][0]}, which names {unused[0][1]}" if unused else ""
        known_name = next(iter(ids), "")
        raise InputError(
            f"{path}: none of its {lines} lines names two of the {len(ids)} images{why}"
            + (f"; names look like {known_name}" if known_name else "")
        )
    return PairList(union(pairs), lines, unused)


class _Names:
    """The ids of known names, and the one folder that a list may put before them."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = ids
        self.longest = max(map(len, ids), default=0)
        self._folder: str | None = None

    def find(self, name: str) -> str | None:
        """Return the known name that a name of the list stands for."""
        if name in self.ids:
            return name
        path = name.replace("\\", "/")
        if self._folder is not None:
            known = path.removeprefix(self._folder)
            return known if known in self.ids and known != path else None
        parts = path[-self.longest - 1 :].split("/")  # what is before that is too long to be known
        tails = ("/".join(parts[i:]) for i in range(1, len(parts)))
        return next((tail for tail in tails if tail in self.ids), None)

    def ids_of(self, names: list[str]) -> list[int]:
        """Return the ids of the names of a line, -1 for none; if all have one, remember the folder before them."""
        before, found = self._folder, []
        for name in names:
            known = self.find(name)
            found.append(-1 if known is None else self.ids[known])
            if known is not None and known != name:
                self._folder = name.replace("\\", "/").removesuffix(known)
        if -1 in found:
            self._folder = before
        return found


def _two_names(line: str, known: _Names) -> list[str]:
    """Cut a line into two names and leave out what follows; the line comes back whole if no cut is the right one."""
    columns = [column.strip() for column in line.split("\t", maxsplit=2)]
    if len(columns) > 1 and (known.find(columns[1]) or not _is_number(columns[1])):
        return columns[:2]
    words = line.split(maxsplit=2)
    if len(words) == 2 or all(map(known.find, words[:2])):
        return words[:2]
    names = line  # with spaces in them
    while _is_number(names.rsplit(maxsplit=1)[-1]) and len(names.split(maxsplit=2)) == 3:
        names = names.rsplit(maxsplit=1)[0]
    reach = known.longest + _LONGEST_FOLDER
    starts = (i for i, letter in enumerate(names[:reach]) if letter == " " and len(names) - i <= reach)
    cuts = [(names[:i], names[i + 1 :].strip()) for i in starts]
    right = [list(cut) for cut in cuts if all(map(known.find, cut))]
    if len(right) == 1:
        return right[0]
    return names.split() if len(names.split(maxsplit=2)) == 2 else [line]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _short(text: str) -> str:
    """Return the start of a text that may be very long, for a message."""
    return text if len(text) <= 200 else f"{text[:200]}..."
