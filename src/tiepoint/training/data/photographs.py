"""Decodes a folder of photographs once, into one memory-mapped file that all workers read.

The file holds a magic word, the photographs' RGB bytes one after the other, a JSON index, its length, and the magic
word again: as in Parquet the index comes last, so the file is written in one pass however large the folder is.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ...errors import ArgumentError, InputError
from ...io.files import atomic, open_file, parse_json
from ...io.folders import list_images
from ...io.images import read_reduced
from ._random import Draw

_MAGIC = b"TPPHOTO2"
_FOOTER = len(_MAGIC) + 8
_SMALLEST_SIDE = 64  # a photograph smaller than this has too little to match
_FEWEST_SOURCES = 8
_FEWEST_HELD_OUT = 4


@dataclass(frozen=True, eq=False)
class PhotoCache:
    """Photographs as uint8 RGB arrays in one memory-mapped file. Made by `build_cache`.

    Pickling it (for a worker process) sends only the path; the worker maps the same file.

    Attributes
    ----------
    path : Path
        The cache file.
    names : tuple of str
        Each photograph's file, relative to the folder it came from, with forward slashes.
    sizes : int64 array (N, 2)
        (height, width).
    sources : int64 array (N,)
        Number of the photograph that each was cut from: ``0008.webp`` and its crop ``0008_c4.webp`` share one.
    train, held_out : int64 array
        Row numbers of the two splits. No source is in both.
    skipped : tuple of (str, str)
        Files that could not be used, and why.
    digest : str
        SHA-256 of the photographs: names and contents of their files.
    """

    path: Path
    names: tuple[str, ...]
    sizes: NDArray[np.int64]
    sources: NDArray[np.int64]
    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    skipped: tuple[tuple[str, str], ...]
    digest: str
    _pixels: NDArray[np.uint8]
    _offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Photograph ``index`` as a read-only uint8 array (H, W, 3) that lies in the mapped file."""
        height, width = self.sizes[index]
        start = self._offsets[index]
        return self._pixels[start : start + height * width * 3].reshape(height, width, 3)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_cache, (self.path,)

    def draw(self, count: int, generator: torch.Generator, held_out: bool = False) -> torch.Tensor:
        """Choose photographs at random, each from another source as long as there are enough of them.

        So a photograph with thirty crops is not seen thirty times as often as one with none, and two photographs of a
        batch do not show the same thing, so one view of each makes an unrelated pair.

        Parameters
        ----------
        count : int
            How many.
        generator : torch.Generator
            On the CPU.
        held_out : bool
            Choose from the held-out split instead of the training split.

        Returns
        -------
        int64 tensor (count,)
            Row numbers.
        """
        rows = torch.from_numpy(self.held_out if held_out else self.train)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        sources = torch.from_numpy(self.sources)[rows]
        # The first row of each source in shuffled order is a random one of its crops.
        order = torch.argsort(sources, stable=True)
        first = torch.ones(len(rows), dtype=torch.bool)
        first[1:] = sources[order][1:] != sources[order][:-1]
        distinct = rows[order[first]]
        rounds = math.ceil(count / len(distinct))
        shuffled = [distinct[torch.randperm(len(distinct), generator=generator)] for _ in range(rounds)]
        return torch.cat(shuffled)[:count]

    def sample(
        self,
        indices: Iterable[int],
        size: tuple[int, int],
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        smallest_crop: float = 0.8,
    ) -> torch.Tensor:
        """Cut a random piece of the wanted shape from each photograph and resize it to ``size``.

        Parameters
        ----------
        indices : iterable of int, length B
            Row numbers.
        size : (int, int)
            (height, width) of every piece. The photograph's aspect is kept: what does not fit is cut away.
        generator : torch.Generator
            On the CPU.
        device : torch.device or str
            Where the result goes.
        smallest_crop : float
            The piece's side is uniform between this fraction of the largest piece that fits and the whole of it.

        Returns
        -------
        float32 tensor (B, 3, height, width) in [0, 1]
        """
        height, width = size
        draw = Draw(generator)
        pieces = []
        for index in indices:
            photo = self[int(index)]
            largest = min(photo.shape[0] / height, photo.shape[1] / width)
            zoom, y, x = draw.uniform(0, 1, 3).tolist()
            factor = largest * (smallest_crop + (1 - smallest_crop) * zoom)
            rows, columns = max(1, int(height * factor)), max(1, int(width * factor))
            top = int(y * (photo.shape[0] - rows + 1))
            left = int(x * (photo.shape[1] - columns + 1))
            piece = torch.from_numpy(photo[top : top + rows, left : left + columns].copy())
            piece = piece.permute(2, 0, 1)[None]  # channels last in memory, which the uint8 resize is fast on
            pieces.append(F.interpolate(piece, size=size, mode="bilinear", antialias=True))
        batch = torch.cat(pieces).contiguous()
        return batch.to(device).float() / 255


def build_cache(
    folder: str | os.PathLike[str], path: str | os.PathLike[str], long_side: int = 640, held_out: float = 0.05
) -> PhotoCache:
    """Decode every photograph under a folder into one cache file, or open that file if it is up to date.

    The cache is rebuilt when a photograph was added, removed or changed, or when the arguments differ. It is written
    beside its place and moved there when complete, so a reader never sees half of one.

    Parameters
    ----------
    folder : path
        Searched with all its sub-folders, see `tiepoint.io.folders.list_images`.
    path : path
        The cache file.
    long_side : int
        Larger photographs are reduced to this many pixels on the longer side. None is enlarged.
    held_out : float
        Fraction of the sources kept for evaluation, at least four, chosen by a hash of their names: adding photographs
        hardly moves any from one split to the other, and no random seed is involved.

    Returns
    -------
    PhotoCache
        Its ``skipped`` lists the files that could not be used.

    Raises
    ------
    InputError
        The folder does not exist, or holds fewer than 8 different readable photographs; or ``path`` is a file of
        another kind, which is left alone.
    ArgumentError
        A number is out of range.

    Examples
    --------
    >>> import tempfile, pathlib, numpy as np, PIL.Image, torch
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for i in range(8):
    ...     PIL.Image.fromarray(np.full((80, 120, 3), 30 * i, np.uint8)).save(folder / f"{i}.png")
    >>> cache = build_cache(folder, folder / "photos.cache")
    >>> len(cache), cache[3].shape, len(cache.train), len(cache.held_out)
    (8, (80, 120, 3), 4, 4)
    >>> cache.sample([0, 1], (32, 48), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 32, 48])
    """
    folder, path = Path(folder), Path(path)
    if long_side < _SMALLEST_SIDE:
        raise ArgumentError(f"long_side is {long_side}; it must be at least {_SMALLEST_SIDE} pixels")
    if not 0 < held_out < 1:
        raise ArgumentError(f"held_out is {held_out}; it must be a fraction between 0 and 1")
    files = _find_photos(folder)
    stats = [(file.relative_to(folder).as_posix(), file.stat()) for file in files]
    listing = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    fingerprint = hashlib.sha256(json.dumps([long_side, held_out, listing]).encode()).hexdigest()
    if path.exists():
        try:
            if _read_index(path)["fingerprint"] == fingerprint:
                return open_cache(path)
        except InputError:
            if not _begins_as_cache(path):
                raise
            # damaged: build it anew
    with atomic(path) as unfinished:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(unfinished, folder, files, long_side, held_out, fingerprint)
    return open_cache(path)


def open_cache(path: str | os.PathLike[str]) -> PhotoCache:
    """Open a cache file that `build_cache` made, without looking at the photographs' folder.

    Raises
    ------
    InputError
        The file is missing, damaged or something else.
    """
    path = Path(path)
    index = _read_index(path)
    sizes = np.array(index["sizes"], np.int64).reshape(-1, 2)
    lengths = sizes.prod(axis=1) * 3
    split = np.array(index["held_out"], bool)
    return PhotoCache(
        path=path,
        names=tuple(index["names"]),
        sizes=sizes,
        sources=np.array(index["sources"], np.int64),
        train=np.flatnonzero(~split),
        held_out=np.flatnonzero(split),
        skipped=tuple((name, reason) for name, reason in index["skipped"]),
        digest=index["digest"],
        _pixels=np.memmap(path, np.uint8, "r", offset=len(_MAGIC), shape=(int(lengths.sum()),)),
        _offsets=np.cumsum(lengths) - lengths,
    )


def source_of(name: str) -> str:
    """Name of the photograph that a file was cut from: crops end in ``_c`` and a number.

    >>> source_of("rooms/0008_c4.webp"), source_of("rooms/0008.webp")
    ('rooms/0008', 'rooms/0008')
    """
    path = PurePosixPath(name)
    return (path.parent / re.sub(r"_c\d+$", "", path.stem)).as_posix()


def _find_photos(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder of photographs")
    files = sorted(folder / name for name in list_images(folder))
    if len(files) < _FEWEST_SOURCES:
        raise InputError(
            f"{folder}: found {len(files)} photographs; training needs at least {_FEWEST_SOURCES}, "
            "and a few hundred to be of use"
        )
    return files


def _decode(file: Path, long_side: int) -> tuple[NDArray[np.uint8] | str, str]:
    """Return the photograph, or why it cannot be used, and the file's SHA-256."""
    content = ""
    try:
        with open_file(file) as stream:
            data = stream.read()
        content = hashlib.sha256(data).hexdigest()
        picture = PIL.Image.fromarray(read_reduced(data, file.name, long_side))
    except (InputError, OSError) as error:
        return str(error).removeprefix(f"{file.name}: "), content
    if max(picture.size) > long_side:
        factor = long_side / max(picture.size)
        size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
        picture = picture.resize(size, PIL.Image.Resampling.LANCZOS)
    if min(picture.size) < _SMALLEST_SIDE:
        return f"too small: {picture.width}x{picture.height} pixels, the shorter side must be {_SMALLEST_SIDE}", content
    return np.asarray(picture), content


def _decode_all(files: list[Path], long_side: int) -> Iterator[tuple[Path, tuple[NDArray[np.uint8] | str, str]]]:
    """Decode in threads (Pillow lets go of the interpreter lock), a bounded number ahead of the writer."""
    waiting = iter(files)
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(waiting, 64)):
            yield from zip(batch, pool.map(lambda file: _decode(file, long_side), batch), strict=True)


def _write(path: Path, folder: Path, files: list[Path], long_side: int, held_out: float, fingerprint: str) -> None:
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    skipped: list[tuple[str, str]] = []
    digest = hashlib.sha256()
    seen: dict[str, str] = {}
    with path.open("wb") as stream:
        stream.write(_MAGIC)
        for file, (pixels, content) in _decode_all(files, long_side):
            name = file.relative_to(folder).as_posix()
            if isinstance(pixels, str):
                skipped.append((name, pixels))
                continue
            if content in seen:
                skipped.append((name, f"the same file as {seen[content]}"))
                continue
            seen[content] = name
            names.append(name)
            sizes.append(pixels.shape[:2])
            digest.update(f"{name}\n{content}\n".encode("utf-8", "surrogateescape"))
            stream.write(np.ascontiguousarray(pixels).data)
        sources, split = _split([source_of(name) for name in names], held_out)
        if len(set(sources)) < _FEWEST_SOURCES:
            why = f"; the first of {len(skipped)} skipped: {': '.join(skipped[0])}" if skipped else ""
            raise InputError(
                f"{folder}: {len(set(sources))} different readable photographs; training needs at least "
                f"{_FEWEST_SOURCES}, and a few hundred to be of use{why}"
            )
        index = {
            "fingerprint": fingerprint,
            "digest": digest.hexdigest(),
            "names": names,
            "sizes": sizes,
            "sources": sources,
            "held_out": split,
            "skipped": skipped,
        }
        data = json.dumps(index).encode()
        stream.write(data + len(data).to_bytes(8, "little") + _MAGIC)


def _split(sources: list[str], held_out: float) -> tuple[list[int], list[bool]]:
    """Return a number for each source, and whether it is held out.

    Held out are those whose names have the smallest hashes; of few photographs more than that fraction, because pairs
    of unrelated ones are made of them.
    """
    by_hash = sorted(set(sources), key=lambda source: hashlib.sha256(source.encode()).digest())
    kept = set(by_hash[: max(_FEWEST_HELD_OUT, math.ceil(held_out * len(by_hash)))])
    number = {source: i for i, source in enumerate(sorted(kept.union(by_hash)))}
    return [number[source] for source in sources], [source in kept for source in sources]


def _begins_as_cache(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _read_index(path: Path) -> dict[str, Any]:
    try:
        with open_file(path) as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, end - _FOOTER))
            footer = stream.read()
            if len(footer) != _FOOTER or footer[8:] != _MAGIC:
                raise InputError(f"{path}: not a cache of photographs, or cut off; delete it, or give another name")
            begin = end - _FOOTER - int.from_bytes(footer[:8], "little")
            if begin < len(_MAGIC):
                raise ValueError("its index would be longer than the file")
            stream.seek(begin)
            index = parse_json(stream.read()[:-_FOOTER].decode("utf-8"))
        _check_index(index, begin - len(_MAGIC))
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot read the cache of photographs: {error}; delete it") from error
    return index


def _check_index(index: dict[str, Any], size: int) -> None:
    """Raise `ValueError` unless an index is as `_write` makes it, of this many bytes of pixels."""

    def has(key: str, is_right: Callable[[Any], bool]) -> bool:
        return isinstance(index.get(key), list) and all(map(is_right, index[key]))

    def is_count(value: object) -> bool:
        return type(value) is int and 0 <= value < 1 << 31

    def is_size(value: object) -> bool:
        return isinstance(value, list) and len(value) == 2 and all(is_count(side) and side > 0 for side in value)

    def is_skipped(value: object) -> bool:
        return isinstance(value, list) and len(value) == 2 and all(isinstance(text, str) for text in value)

    right = (
        all(isinstance(index.get(key), str) for key in ("fingerprint", "digest"))
        and has("names", lambda value: isinstance(value, str))
        and has("sizes", is_size)
        and has("sources", is_count)
        and has("held_out", lambda value: isinstance(value, bool))
        and has("skipped", is_skipped)
    )
    if not right or len({len(index[key]) for key in ("names", "sizes", "sources", "held_out")}) != 1:
        raise ValueError("its index is not what tiepoint writes")
    if sum(3 * height * width for height, width in index["sizes"]) != size:
        raise ValueError("its index does not fit its pixels")
