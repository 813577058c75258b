"""Writing results to files that other tools read: .npz, .h5, .csv, .json.

Every file is written beside its final place and moved there when it is whole, so that a full disk, a crash or
Ctrl-C never leaves half a file, nor harms the one that was there before.
"""

from __future__ import annotations

import csv
import json
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, InputError, MissingDependencyError
from ..types import Features


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in the same folder; it becomes ``path`` if the block ends without an error.

    Parameters
    ----------
    path : path
        The final place. A file there is replaced.

    Yields
    ------
    Path
        Where to write; its suffix is that of ``path``.

    Raises
    ------
    InputError
        The operating system refuses (no such folder, no permission, disk full).

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic(Path(folder, "a.txt")) as temporary:
    ...         _ = temporary.write_text("whole")
    ...     sorted(p.name for p in Path(folder).iterdir())
    ['a.txt']
    """
    final = Path(path)
    temporary = final.with_name(f".{final.stem[:80]}-{secrets.token_hex(6)}{final.suffix}")
    try:
        yield temporary
        temporary.replace(final)
    except OSError as error:
        raise _cannot_write(final, error) from error
    finally:
        with suppress(OSError):  # it was moved, or never made; a read-only disk refuses even then
            temporary.unlink()


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary folder beside ``path``; it takes its place if the block ends without an error.

    Parameters
    ----------
    path : path
        The final place. A folder there is replaced.

    Yields
    ------
    Path
        Where to write; it exists and is empty.

    Raises
    ------
    InputError
        The operating system refuses (no permission, disk full), or a file is in the way.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     with atomic_folder(Path(parent, "out")) as folder:
    ...         _ = Path(folder, "a.txt").write_text("whole")
    ...     sorted(p.as_posix()[len(parent):] for p in Path(parent).rglob("*"))
    ['/out', '/out/a.txt']
    """
    final = Path(path)
    if final.exists() and not final.is_dir():
        raise InputError(f"{final}: is a file; give the name of a folder")
    temporary = final.with_name(f".{final.name}-{secrets.token_hex(6)}")
    old = temporary.with_name(f"{temporary.name}-old")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if final.exists():
            final.rename(old)
        temporary.rename(final)
    except OSError as error:
        raise InputError(f"{final}: cannot be written: {error.strerror or error}") from error
    finally:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be written: {error.strerror or error}")


def check_output(path: str | os.PathLike[str], suffixes: tuple[str, ...]) -> Path:
    """Return ``path`` as a `Path` if a file of a known kind can go there; call it before the work starts.

    Parameters
    ----------
    path : path
        The file to be written.
    suffixes : tuple of str
        The kinds on offer, lower case, with their dots.

    Raises
    ------
    ArgumentError
        Unknown suffix, or the folder does not exist.
    InputError
        The folder may not be written to.

    Examples
    --------
    >>> check_output("matches.doc", (".npz", ".csv"))
    Traceback (most recent call last):
    ...
    tiepoint.errors.ArgumentError: matches.doc: the name must end in one of .npz, .csv
    """
    target = Path(path)
    if target.suffix.lower() not in suffixes:
        raise ArgumentError(f"{target}: the name must end in one of {', '.join(suffixes)}")
    if not target.parent.is_dir():
        raise ArgumentError(f"{target}: the folder {target.parent} does not exist; create it first")
    if target.is_dir():
        raise ArgumentError(f"{target} is a folder")
    if not os.access(target.parent, os.W_OK):
        raise InputError(f"{target}: no permission to write to the folder {target.parent}")
    return target


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write one JSON object."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


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


_LONGEST_NAME = 255  # bytes, on all usual file systems

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

    Notes
    -----
    A folder keeps the files that were whole when something went wrong; a single file appears only when all
    went well.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.kind = self.path.suffix.lower()
        if self.kind in (".h5", ".npz"):
            check_output(self.path, (".h5", ".npz"))
            if self.kind == ".h5":
                import_h5py()
        elif self.kind and not self.path.is_dir():
            raise ArgumentError(f"{self.path}: the output is a folder, or a file ending in .npz or .h5")
        elif self.path.exists() and not self.path.is_dir():
            raise ArgumentError(f"{self.path} is a file; the output is a folder, or a file ending in .npz or .h5")
        self._stack = ExitStack()
        self._file: Any = None

    def __enter__(self) -> FeatureWriter:
        with ExitStack() as stack:
            if self.kind in (".h5", ".npz"):
                temporary = stack.enter_context(atomic(self.path))
                opener = import_h5py().File if self.kind == ".h5" else zipfile.ZipFile
                self._file = stack.enter_context(opener(temporary, "w"))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

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
        elif len(os.fsencode(Path(name).name)) + len(".npz") > _LONGEST_NAME:
            raise InputError(f"{name}: the name is too long for a file {Path(name).name[:20]}….npz; rename the image")

    def write(self, name: str, features: Features) -> None:
        """Write the features of the image called ``name`` (a relative path with forward slashes)."""
        if self.kind == ".h5":
            write_hloc_features(self._file, name, features)
        elif self.kind == ".npz":
            for key, array in feature_arrays(features).items():
                with self._file.open(f"{name}/{key}.npy", "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, array)
        else:
            target = self.path / f"{name}.npz"
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise _cannot_write(target.parent, error) from error
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
    with atomic(path) as temporary, import_h5py().File(temporary, "w") as file:
        for name, one in zip(names, features, strict=True):
            write_hloc_features(file, name, one)
        partner = np.full(len(features[0]), -1, np.int32)
        partner[matches[:, 0]] = matches[:, 1]
        score = np.zeros(len(features[0]), np.float32)
        score[matches[:, 0]] = scores
        pair = file.create_group("/".join(name.replace("/", "-") for name in names))
        pair.create_dataset("matches0", data=partner)
        pair.create_dataset("matching_scores0", data=score)


def import_h5py() -> Any:
    """Return the package h5py, or raise `MissingDependencyError` with the line that installs it."""
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError("h5py", "hdf5", "reading and writing .h5 files") from error
    return h5py
