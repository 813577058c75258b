"""Multipart uploads, written to disk while they arrive.

A name that any system takes as it is, ``day_1/IMG_12.JPG``, is kept, so that a map's names are those of the user's
files. Any other becomes one of our own, ``day_1/0002-IMG_13.jpg``: a number, and of the user's name and folders what is
made of letters, digits, dashes and underscores. The user's whole name is kept as a label.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import IO, Any

import anyio
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from ..io.decoding import SUFFIXES
from ..io.files import printable as without_controls
from ..io.video import VIDEO_SUFFIXES

MB = 1_000_000
LONGEST_FIELD = 10_000  # bytes
MOST_FIELDS = 20
LONGEST_LABEL, LONGEST_PART = 300, 40  # characters of a name to show, and of each part of a path
DEEPEST = 8  # folders above a file, the last
RESERVED = re.compile(r"|con|prn|aux|nul|com\d|lpt\d", re.IGNORECASE)  # no names of files, or devices on Windows
IDLE = 60.0  # seconds after which an upload that stands still is given up


@dataclass(frozen=True)
class Limits:
    """What is accepted: bytes of a photograph, of a video, of an upload and of all jobs; numbers of files and jobs."""

    photograph: int = 100 * MB
    video: int = 2000 * MB
    upload: int = 10_000 * MB
    storage: int = 50_000 * MB
    files: int = 1000
    waiting: int = 100
    pixels: int = 150_000_000


class Refused(Exception):
    """A request that cannot be granted: a status of HTTP, and one message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass
class Upload:
    """What arrived: fields of the form, files (our name -> the user's), and a message for each file left out."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


async def receive(request: Request, folder: Path, limits: Limits, count: Callable[[int], None]) -> Upload:
    """Write the files of a multipart request into an empty folder.

    Parameters
    ----------
    request : Request
        Its body is read in pieces, never held as a whole.
    folder : Path
        Where the files go.
    limits : Limits
        A file that is too large or of another kind is left out with a message; too many or too large together are
        refused.
    count : callable
        Gets the number of bytes of each piece; may raise `Refused`.

    Raises
    ------
    Refused
        The request is no multipart form, is damaged, stands still, or is larger than is allowed.
    """
    kind, parameters = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not parameters.get(b"boundary"):
        raise Refused(415, "Send the photographs as multipart/form-data, as a form or curl -F does.")
    parts = _Parts(folder, limits)
    received = 0
    try:
        parser = MultipartParser(parameters[b"boundary"], parts.callbacks())
        stream = request.stream()
        while True:
            with anyio.fail_after(IDLE):
                piece = await anext(stream, b"")
            if not piece:
                break
            received += len(piece)
            if received > limits.upload:
                raise Refused(413, f"An upload may have {limits.upload // MB} MB at most.")
            count(len(piece))
            parser.write(piece)  # to the disk's cache: no slower than handing it to a thread
        parser.finalize()
    except FormParserError as error:
        raise Refused(400, "The form is damaged or was cut off; send it again.") from error
    except TimeoutError as error:
        raise Refused(408, f"Nothing arrived for {IDLE:.0f} seconds; send it again.") from error
    finally:
        parts.close()
    if not parts.ended:
        raise Refused(400, "The form was cut off; send it again.")
    return parts.upload


class _Parts:
    """Takes the parts of a form from the parser's callbacks."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder, self.limits = folder, limits
        self.upload = Upload()
        self.ended = False
        self._files = self._fields = 0  # so far
        self._header = [b"", b""]
        self._headers: dict[bytes, bytes] = {}
        self._file: IO[bytes] | None = None
        self._name = self._label = ""
        self._size = self._most = 0
        self._field: bytearray | None = None

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._headers.clear,
            "on_header_field": lambda data, start, end: self._add_header(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._add_header(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin,
            "on_part_data": lambda data, start, end: self._data(data[start:end]),
            "on_part_end": self.close,
            "on_end": self._end,
        }

    def _add_header(self, which: int, data: bytes) -> None:
        self._header[which] += data  # the parser limits its length

    def _end_header(self) -> None:
        self._headers[self._header[0].lower()] = self._header[1]
        self._header = [b"", b""]

    def _end(self) -> None:
        self.ended = True

    def _begin(self) -> None:
        _, parameters = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = parameters.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" not in parameters:
            self._fields += 1
            if self._fields > MOST_FIELDS:
                raise Refused(413, f"A form may have {MOST_FIELDS} fields besides its files.")
            self._name, self._field = name[:100], bytearray()
            return
        self._files += 1
        if self._files > self.limits.files:
            raise Refused(413, f"An upload may have {self.limits.files} files at most.")
        self._label = shown_label(parameters[b"filename"].decode("utf-8", "replace")) or "a file without a name"
        suffix = Path(self._label).suffix.lower()
        if suffix not in SUFFIXES + VIDEO_SUFFIXES:
            self.upload.left_out.append(
                f"{self._label}: left out: not a photograph or video by its name; photographs end in "
                f"{', '.join(SUFFIXES)}, videos in {', '.join(VIDEO_SUFFIXES)}"
            )
            return
        self._most = self.limits.video if suffix in VIDEO_SUFFIXES else self.limits.photograph
        self._size = 0
        taken = {name.lower() for name in self.upload.files}
        self._name = (
            self._label
            if is_plain(self._label) and self._label.lower() not in taken
            else server_name(len(self.upload.files) + 1, self._label)
        )
        (self.folder / self._name).parent.mkdir(parents=True, exist_ok=True)
        self._file = (self.folder / self._name).open("xb")

    def _data(self, data: bytes) -> None:
        if self._field is not None:
            self._field += data
            if len(self._field) > LONGEST_FIELD:
                raise Refused(413, f"The field {self._name} is too long.")
        elif self._file is not None:
            self._size += len(data)
            if self._size <= self._most:
                self._file.write(data)
                return
            self._file.close()
            self._file = None  # the rest of it is read and forgotten
            (self.folder / self._name).unlink()
            self.upload.left_out.append(f"{self._label}: left out: larger than {self._most // MB} MB")

    def close(self) -> None:
        """End the current part; one that was cut off belongs to an upload that is refused, and removed, as a whole."""
        if self._field is not None:
            self.upload.fields[self._name] = self._field.decode("utf-8", "replace")
        elif self._file is not None:
            self._file.close()
            self.upload.files[self._name] = self._label
        self._field = self._file = None


def shown_label(label: str) -> str:
    """Return a user's name for a file, to show: without control characters, not longer than 300 characters."""
    return without_controls(label)[-LONGEST_LABEL:]


def common_folder(labels: Sequence[str]) -> str:
    """Return the folder that all files are in, at whatever depth; empty if there is none.

    Examples
    --------
    >>> common_folder(["trip/day 1/1.jpg", "trip/day 2/1.jpg"]), common_folder(["1.jpg", "2.jpg"])
    ('trip', '')
    """
    levels = zip(*(label.split("/")[:-1] for label in labels), strict=False)
    return "/".join(names[0] for names in takewhile(lambda names: len(set(names)) == 1, levels))


def is_plain(label: str) -> bool:
    """Whether a user's name for a file can be its name here: safe on every system, and none of `server_name`.

    Examples
    --------
    >>> [is_plain(label) for label in ("day_1/IMG_12.JPG", "IMG 12.jpg", "../a.jpg", "/a.jpg", "con.png", "0001-a.jpg")]
    [True, False, False, False, False, False]
    """
    parts = re.sub(r"\.[A-Za-z0-9]+\Z", "", label).split("/")
    return (
        len(parts) <= DEEPEST + 1
        and all(part == _plain(part) and not RESERVED.fullmatch(part) for part in parts)
        and not re.match(r"\d{4}-", parts[-1])
    )


def server_name(number: int, label: str) -> str:
    r"""Return the name under which a file is stored, a path below a folder.

    Examples
    --------
    >>> server_name(3, "../../etc/IMG 12.JPG"), server_name(4, "..\\..\\con.png"), server_name(5, "my room/day 1/a.png")
    ('etc/0003-IMG_12.jpg', '0004-con.png', 'my_room/day_1/0005-a.png')
    """
    *folders, last = re.split(r"[/\\]", label)
    path = Path(last)
    parts = [part for part in map(_plain, folders) if part][-DEEPEST:]
    return "/".join([*parts, f"{number:04}-{_plain(path.stem) or 'image'}{path.suffix.lower()}"])


def _plain(part: str) -> str:
    """Return part of a path in letters that any system takes, without dots; it may be empty."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", part).strip("_")[:LONGEST_PART]
