"""Arrays and features in files that other tools read: .npz, .csv, and .h5 in hloc's layout."""

from __future__ import annotations

import csv
import io
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, InputError, import_optional
from ..types import Features
from .files import LONGEST_NAME, atomic, check_image_name, check_output, make_folder


def write_csv(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write equally long columns with one line of names."""
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        # item() turns float32 into the shortest text that reads back as the same float32.
        writer.writerows([_text(value) for value in row] for row in zip(*columns.values(), strict=True))


def _text(value: np.generic) -> str:
    return str(int(value)) if isinstance(value, np.bool_) else str(value)


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write named arrays, to be read with `numpy.load`."""
    with atomic(path) as temporary:
        np.savez(temporary, **arrays)


def feature_arrays(features: Features) -> dict[str, NDArray[Any]]:
    """Return the arrays of `Features` by name, without those that it does not have.

    Examples
    --------
    >>> import torch
    >>> f = Features(torch.zeros(2, 2), torch.ones(2), torch.eye(4)[:2], (640, 480), "sift")
    >>> {name: array.shape for name, array in feature_arrays(f).items()}
    {'keypoints': (2, 2), 'scores': (2,), 'descriptors': (2, 4), 'image_size': (2,)}
    """
    arrays = {"image_size": np.array(features.image_size, np.int64)}
    for name in FEATURE_ARRAYS[:-1]:
        value = getattr(features, name)
        if value is not None:
            arrays[name] = value.detach().cpu().numpy()
    return {name: arrays[name] for name in FEATURE_ARRAYS if name in arrays}


FEATURE_ARRAYS = ("keypoints", "scores", "descriptors", "scales", "orientations", "covariances", "image_size")


class FeatureWriter:
    """Writes the features of many images, one at a time, in constant memory; use it in a ``with`` block.

    Parameters
    ----------
    path : path
        ``name.h5``: hloc's layout, one group per image holding ``keypoints`` (N, 2), ``scores`` (N,),
        ``descriptors`` (D, N), ``image_size`` (2,). ``name.npz``: the arrays of image ``a.jpg`` are
        ``a.jpg/keypoints`` and so on. Anything else is a folder, made if need be, that gets one
        ``a.jpg.npz`` per image.
    inputs : iterable of paths
        See `check_output`.

    Notes
    -----
    A folder keeps the files that were whole when something went wrong; a single file appears only when all
    went well.
    """

    def __init__(self, path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]] = ()) -> None:
        self.path, self._inputs = Path(path), tuple(inputs)
        self.kind = self.path.suffix.lower()
        if self.kind in (".h5", ".npz"):
            check_output(self.path, (".h5", ".npz"), inputs=self._inputs)
        elif self.kind and not self.path.is_dir():
            raise ArgumentError(f"{self.path}: the output is a folder, or a file ending in .npz or .h5")
        elif self.path.exists() and not self.path.is_dir():
            raise ArgumentError(f"{self.path} is a file; the output is a folder, or a file ending in .npz or .h5")
        writing: Callable[[Path], AbstractContextManager[Any]]
        writing = {".h5": writing_hdf5, ".npz": _writing_zip}.get(self.kind, nullcontext)
        self._context = writing(self.path)
        self._file: Any = None

    def __enter__(self) -> FeatureWriter:
        self._file = self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def check_name(self, name: str) -> None:
        """Raise `InputError` if no features can be written under this name; call it before they are made."""
        if self.kind in (".h5", ".npz"):
            try:
                name.encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"{name!r}: the name is not valid UTF-8, and a {self.kind} file cannot hold it; rename the file, "
                    "or write to a folder"
                ) from error
        elif len(os.fsencode(Path(name).name)) + len(".npz") > LONGEST_NAME:
            raise InputError(f"{name}: the name is too long for a file {Path(name).name[:20]}….npz; rename the image")
        elif (target := self.path / f"{name}.npz").is_symlink():  # followed, so that it may lead to a photograph
            try:
                check_output(target, (".npz",), inputs=self._inputs)
            except ArgumentError as error:
                raise InputError(str(error)) from error

    def write(self, name: str, features: Features) -> None:
        """Write the features of the image called ``name`` (a relative path with forward slashes)."""
        if self.kind == ".h5":
            write_hloc_features(self._file, name, features)
        elif self.kind == ".npz":
            for key, array in feature_arrays(features).items():
                with self._file.open(f"{name}/{key}.npy", "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, array)
        else:
            check_image_name(name, self.path)
            target = self.path / f"{name}.npz"
            make_folder(target.parent)
            write_npz(target, feature_arrays(features))


def write_hloc_features(file: Any, name: str, features: Features) -> None:
    """Add one image to an open HDF5 file in hloc's layout; pixel centres are whole numbers there, as here."""
    group = file.create_group(name)
    for key, array in feature_arrays(features).items():
        group.create_dataset(key, data=array.T if key == "descriptors" else array)


def write_hloc_pair(
    path: Path,
    names: tuple[str, str],
    features: tuple[Features, Features],
    matches: NDArray[np.int64],
    scores: NDArray[np.float32],
) -> None:
    """Write two images and their matches to one HDF5 file in hloc's layout.

    ``<name0>/keypoints`` and so on are as in hloc's feature files, ``<name0>/<name1>/matches0`` (N,) and
    ``matching_scores0`` (N,) as in its match files: the row of the partner in image 1, or -1.
    """
    with writing_hdf5(path) as file:
        for name, one in zip(names, features, strict=True):
            write_hloc_features(file, name, one)
        write_hloc_matches(file, names, len(features[0]), matches, scores)


def write_hloc_matches(
    file: Any, names: tuple[str, str], count: int, matches: NDArray[np.int64], scores: NDArray[np.float32]
) -> None:
    """Add the matches of two images, the first with ``count`` keypoints, to an open HDF5 file in hloc's layout."""
    partner, score = np.full(count, -1, np.int32), np.zeros(count, np.float32)
    partner[matches[:, 0]], score[matches[:, 0]] = matches[:, 1], scores
    pair = file.create_group("/".join(name.replace("/", "-") for name in names))
    pair.create_dataset("matches0", data=partner)
    pair.create_dataset("matching_scores0", data=score)


@contextmanager
def _writing_zip(path: str | os.PathLike[str]) -> Iterator[zipfile.ZipFile]:
    with atomic(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
        yield file


@contextmanager
def writing_hdf5(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Give a new HDF5 file to fill; it appears at ``path`` when it is whole, as in `atomic`.

    Raises
    ------
    InputError
        The file cannot be written.
    MissingDependencyError
        h5py is not installed.
    """
    h5py = import_h5py()
    with atomic(path) as temporary, _Unfailing(temporary) as stream:
        with h5py.File(stream, "w") as file:
            yield file
        if stream.error is not None:
            raise stream.error


class _Unfailing(io.FileIO):
    """A file that keeps the first error of writing for later.

    The HDF5 library crashes the process when it cannot write what it still holds while it closes a file. So it does
    not learn of errors: from the first one on, what it writes is dropped, and the caller raises the error at the end.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while self.error is None and len(rest):
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0


def import_h5py() -> Any:
    """Return the package h5py, or raise `MissingDependencyError` with the line that installs it."""
    return import_optional("h5py", "h5py", "hdf5", "reading and writing .h5 files")


_MOST_BYTES = 1 << 28  # of one array: a file of a kilobyte may claim to hold terabytes


def hdf5_array(group: Any, key: str, name: str) -> NDArray[Any]:
    """Return an array of an open HDF5 file.

    Parameters
    ----------
    group : h5py.Group
    key : str
        The name of the array in the group.
    name : str
        What the file or group is called in messages.

    Raises
    ------
    InputError
        There is no such array, it holds no real numbers, claims to be larger than 256 MiB, lies in another file, or is
        damaged.
    """
    h5py = import_h5py()
    if key not in group:
        raise InputError(f"{name}: holds no array {key!r}")
    data = group[key] if isinstance(group.get(key, getlink=True), h5py.HardLink) else None
    if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
        raise InputError(f"{name}: {key} is no array of this file; copy what it refers to into one file")
    if data.dtype.kind not in "buif" or data.shape is None:
        raise InputError(f"{name}: {key} holds no real numbers, but {data.dtype}")
    if max(data.nbytes, math.prod(data.chunks or (0,)) * data.dtype.itemsize) > _MOST_BYTES:
        raise InputError(f"{name}: {key} of {data.shape} numbers is more than any photograph has; is the file damaged?")
    try:
        return np.asarray(data[()])
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}: {key} cannot be read ({error}); is the file damaged?") from error
