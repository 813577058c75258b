"""Opening what is read, and replacing what is written: text and JSON, and where any output may go.

Every file is written beside its final place and moved there when it is whole, so that a full disk, a crash or
Ctrl-C never leaves half a file, nor harms the one that was there before.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from ..errors import ArgumentError, InputError, MissingDependencyError

LONGEST_NAME = 255  # bytes of a file name, on all usual file systems
_NEEDED_PACKAGES = {".h5": ("h5py", "hdf5")} | dict.fromkeys((".png", ".jpg", ".pdf", ".svg"), ("matplotlib", "viz"))


def open_file(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a regular file for reading in binary; a pipe or a device might block for ever, and is refused.

    Raises
    ------
    InputError
        There is no such file, it may not be read, or it is a folder, a pipe or a device.
    """
    text = os.fsdecode(path)
    name = printable(text)
    try:
        # Asked before opening, because opening a pipe waits until someone writes to it.
        mode = os.stat(text).st_mode  # noqa: PTH116 (Path would turn "" into the current folder)
        if stat.S_ISDIR(mode):
            raise InputError(f"{name}: is a folder; give one file")
        if not stat.S_ISREG(mode):
            raise InputError(f"{name}: is a device or a pipe; save it to a regular file first")
        return Path(text).open("rb")
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{name or repr(name)}: no such file; check the path") from error
    except PermissionError as error:
        raise InputError(f"{name}: no permission to read it; change its access rights") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: cannot be opened ({reason}); check the path") from error


def printable(path: str) -> str:
    """Return a path for messages: escaped where it holds line breaks, or bytes that are not UTF-8."""
    return path if path.isprintable() else repr(path)[1:-1]


@contextmanager
def explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn every refusal of the operating system in the block into an `InputError` that names ``path``.

    Examples
    --------
    >>> with explained("out.txt"):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    ...
    tiepoint.errors.InputError: out.txt: cannot be written: No space left on device
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder and its parents where they do not exist yet; raises `InputError` where that is refused."""
    with explained(path):
        Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in the same folder; it becomes ``path`` if the block ends without an error.

    Parameters
    ----------
    path : path
        The final place. A regular file there is replaced; where it is a symbolic link, the file that it points to.

    Yields
    ------
    Path
        Where to write; its suffix is that of ``path``.

    Raises
    ------
    InputError
        The operating system refuses (no such folder, no permission, disk full), or a device, a pipe or a folder
        is in the way.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic(Path(folder, "a.txt")) as temporary:
    ...         _ = temporary.write_text("whole")
    ...     sorted(p.name for p in Path(folder).iterdir())
    ['a.txt']
    """
    with explained(path):
        final = _regular(Path(path))
        _remove_leftovers(final.parent)
        temporary = _beside(final, Path(path).suffix)  # numpy and others add it where it lacks
        try:
            yield temporary
            temporary.replace(final)
        finally:
            with suppress(OSError):  # it was moved, or never made; a read-only disk refuses even then
                temporary.unlink()


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary folder beside ``path``; it takes its place if the block ends without an error.

    At every moment at least one of the two, the old folder and the new one, is whole. A process that is killed
    between the two renames leaves the old one under a temporary name; the next output to the same parent folder
    puts it back.

    Parameters
    ----------
    path : path
        The final place. A folder there is replaced; where it is a symbolic link, the link is, and the folder that it
        points to stays.

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
    with explained(path):
        final = Path(os.path.realpath(path))
        if Path(path).is_symlink():
            final = Path(os.path.realpath(Path(path).parent)) / Path(path).name
        if final.exists() and not final.is_dir():
            raise InputError(f"{path}: is a file; give the name of a folder")
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(final.parent)
        temporary = _beside(final)
        old = temporary.with_name(f"{temporary.name}{_OLD}")
        try:
            temporary.mkdir()
            yield temporary
            if os.path.lexists(final):
                final.rename(old)
            try:
                temporary.rename(final)
            except OSError:
                if os.path.lexists(old):
                    old.rename(final)
                raise
        finally:
            leftovers = (temporary, old) if os.path.lexists(final) else (temporary,)
            for leftover in leftovers:
                if leftover.is_symlink():
                    leftover.unlink()
                else:
                    shutil.rmtree(leftover, ignore_errors=True)


def _regular(path: Path) -> Path:
    """Return the file that an output goes to, behind symbolic links; nothing there or a regular file."""
    final = Path(os.path.realpath(path))
    try:
        mode = final.stat().st_mode
    except FileNotFoundError:
        return final
    if stat.S_ISDIR(mode):
        raise InputError(f"{path}: is a folder; give the name of a file")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: is a device or a pipe; give the name of a regular file")
    return final


# Temporary names say which process made them, so that those of processes that were killed can be told and removed.
_HERE = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
_OLD = "-old"
_LEFTOVER = re.compile(rf"\.(?P<name>.*)-{_HERE}-(?P<process>[0-9]+)-[0-9a-f]{{8}}(?P<rest>\..*|{_OLD})?")
_looked_through: set[Path] = set()


def _beside(final: Path, suffix: str = "") -> Path:
    """Return a new hidden name in the same folder."""
    stem = final.name.removesuffix(suffix) if suffix else final.name
    limit = 120  # bytes, of 255; the folder's name of `atomic_folder` is kept whole, as it is put back by it
    while suffix and len(os.fsencode(stem)) > limit:
        stem = stem[:-1]
    if len(os.fsencode(suffix)) > 60:  # a dot in the middle of a long name
        suffix = ""
    return final.with_name(f".{stem}-{_HERE}-{os.getpid()}-{secrets.token_hex(4)}{suffix}")


def _remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed left in a folder; once per folder, since folders may be large."""
    if os.name != "posix" or folder in _looked_through:  # elsewhere there is no harmless way to ask for a process
        return
    _looked_through.add(folder)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _LEFTOVER.fullmatch(entry.name)
            if found is None or _is_alive(int(found["process"])):
                continue
            place = folder / found["name"]
            if found["rest"] == _OLD and not place.exists():  # killed between the two renames of `atomic_folder`
                Path(entry.path).rename(place)
            elif entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it belongs to somebody else
        return True
    return True


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give a new folder for files that nobody else sees; it goes with the block, or, after a kill, with the next one.

    Raises
    ------
    InputError
        The system has no place for temporary files.

    Examples
    --------
    >>> with scratch_folder() as folder:
    ...     _ = Path(folder, "a.txt").write_text("for a while")
    >>> folder.exists()
    False
    """
    with explained("temporary files (TMPDIR names their folder)"):
        parent = Path(tempfile.gettempdir())
        folder = Path(tempfile.mkdtemp(prefix=f"tiepoint-{_HERE[:4]}-{os.getpid()}-"))
    try:
        if os.name == "posix":
            with suppress(OSError), os.scandir(parent) as entries:
                for entry in entries:
                    found = re.fullmatch(rf"tiepoint-{_HERE[:4]}-([0-9]+)-\w{{8}}", entry.name)
                    if (
                        found
                        and not _is_alive(int(found[1]))
                        and entry.stat(follow_symlinks=False).st_uid == os.getuid()
                    ):
                        shutil.rmtree(entry.path, ignore_errors=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_output(
    path: str | os.PathLike[str],
    suffixes: tuple[str, ...] | None,
    *,
    inputs: Iterable[str | os.PathLike[str] | None] = (),
    overwrite: bool = True,
) -> Path:
    """Return ``path`` as a `Path` if a file of a known kind can go there; call it before the work starts.

    Parameters
    ----------
    path : path
        The file to be written.
    suffixes : tuple of str, or None
        The kinds on offer, lower case, with their dots; None allows any name.
    inputs : iterable of paths
        Files that are read for this output, which is none of them, also not through links. What does not exist,
        and None, is passed over.
    overwrite : bool
        False refuses to replace a picture by its content, which may be somebody's photograph.

    Raises
    ------
    ArgumentError
        Unknown suffix, the folder does not exist, the output is one of the inputs, or a picture is there already.
    InputError
        The folder may not be written to, or a device or a pipe has that name.
    MissingDependencyError
        Files of this kind need a package that is not installed.

    Examples
    --------
    >>> check_output("matches.doc", (".npz", ".csv"))
    Traceback (most recent call last):
    ...
    tiepoint.errors.ArgumentError: matches.doc: the name must end in one of .npz, .csv
    """
    from .decoding import is_picture  # here, because decoding opens its files by this module

    target = Path(path)
    suffix = target.suffix.lower()
    if suffixes is not None and suffix not in suffixes:
        raise ArgumentError(f"{target}: the name must end in one of {', '.join(suffixes)}")
    if not target.parent.is_dir():
        raise ArgumentError(f"{target}: the folder {target.parent} does not exist; create it first")
    if target.is_dir():
        raise ArgumentError(f"{target} is a folder")
    with explained(target):
        final = _regular(target)
    for given in inputs:
        if given is not None and _is_same(final, given):
            raise ArgumentError(f"{target}: is one of the inputs ({given}) and would be lost; give another output")
    if not overwrite and is_picture(final):
        raise ArgumentError(
            f"{target}: this picture exists; give another name, or --overwrite (overwrite=True) to replace it"
        )
    if not os.access(final.parent, os.W_OK):
        raise InputError(f"{target}: no permission to write to the folder {final.parent}")
    if suffixes is not None and suffix in _NEEDED_PACKAGES:
        package, extra = _NEEDED_PACKAGES[suffix]
        if find_spec(package) is None:
            raise MissingDependencyError(package, extra, f"writing {suffix} files")
    return target


def check_output_folder(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str] | None] = ()) -> Path:
    """Return ``path`` as a `Path` if a folder there can be replaced as a whole without the loss of an input.

    Parameters
    ----------
    path : path
        The folder to be written.
    inputs : iterable of paths
        Files and folders that are read for it. None of them may lie in it, or be it. None is passed over.

    Raises
    ------
    ArgumentError
        An input lies in the folder.

    Examples
    --------
    >>> check_output_folder("scene/undistorted", ["scene/undistorted/images"])
    Traceback (most recent call last):
    ...
    tiepoint.errors.ArgumentError: scene/undistorted: is replaced as a whole, and the input \
scene/undistorted/images lies in it; move it, or choose another output
    """
    target = Path(path)
    for given in inputs:
        if given is not None and Path(os.path.realpath(given)).is_relative_to(os.path.realpath(target)):
            raise ArgumentError(
                f"{target}: is replaced as a whole, and the input {given} lies in it; move it, or choose another output"
            )
    return target


def _is_same(final: Path, given: str | os.PathLike[str]) -> bool:
    """Whether two paths lead to one file; names of inputs that are no files are none."""
    try:
        return os.path.realpath(given) == str(final) or final.samefile(given)
    except (OSError, ValueError):
        return False


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a UTF-8 file, without the byte order mark that some programs put before it.

    Raises
    ------
    InputError
        It cannot be read, is no regular file, or is not UTF-8.
    """
    try:
        with open_file(path) as stream:
            return stream.read().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text") from error


def read_json(path: str | os.PathLike[str], kind: type | tuple[type, ...] = dict) -> Any:
    """Read a JSON file.

    Parameters
    ----------
    path : path
        UTF-8 text.
    kind : type, or tuple of types
        What its value has to be.

    Raises
    ------
    InputError
        It cannot be read, is no JSON, is nested too deep, or holds another kind of value.
    """
    text = read_text(path)
    try:
        return parse_json(text, kind)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def parse_json(text: str, kind: type | tuple[type, ...] = dict) -> Any:
    """Read JSON text; raises `ValueError`, whatever is wrong with it.

    Examples
    --------
    >>> parse_json('[1, 2]')
    Traceback (most recent call last):
    ...
    ValueError: holds a list, not a dict
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from error
    if not isinstance(value, kind):
        wanted = kind if isinstance(kind, tuple) else (kind,)
        raise ValueError(f"holds a {type(value).__name__}, not a {' or '.join(one.__name__ for one in wanted)}")
    return value


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write one JSON object."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def check_image_name(name: object, source: str | os.PathLike[str]) -> str:
    """Return the name of an image as it stands in a file of others, if it names a place below a folder.

    Parameters
    ----------
    name : object
        Relative path with forward slashes.
    source : path
        The file that it was read from, for the message.

    Raises
    ------
    InputError
        No text, empty, absolute, with ``..``, or with control characters, which would forge lines of text files.

    Examples
    --------
    >>> check_image_name("day 1/a.jpg", "database.db")
    'day 1/a.jpg'
    >>> check_image_name("../../x.jpg", "database.db")
    Traceback (most recent call last):
    ...
    tiepoint.errors.InputError: database.db: an image is called '../../x.jpg', which is no path below the folder of \
the photographs; rename it there
    """
    if isinstance(name, str) and name and not any(_forges_lines(letter) for letter in name):
        parts = re.split(r"[/\\]" if os.sep == "\\" else "/", name)
        if ".." not in parts and not Path(name).anchor:
            return name
    raise InputError(
        f"{source}: an image is called {name!r}, which is no path below the folder of the photographs; rename it there"
    )


def _forges_lines(letter: str) -> bool:
    return letter < " " or "\x7f" <= letter <= "\x9f" or letter in "\u2028\u2029"
