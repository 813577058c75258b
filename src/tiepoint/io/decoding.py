"""An image file -> the array that it holds, in the file's own number type.

All formats are recognised by their first bytes, measured by their headers, and decoded here and nowhere else.
"""

from __future__ import annotations

import os
import struct
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import IO, Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ..errors import InputError
from .files import open_file

# What photographs and public data sets come in, and how their names end. Pillow reads far more, some of it by starting
# other programs.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "HEIF": (".heic", ".heif", ".hif"),
}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
"""Endings, in lower case, of the files that a folder of photographs is searched for."""

RAW_SUFFIXES = (
    *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".raf", ".orf", ".rw2", ".pef", ".srw", ".x3f"),
    *(".3fr", ".fff", ".iiq", ".gpr", ".erf", ".mrw", ".mos", ".kdc"),
)
FOREIGN_SUFFIXES = (*RAW_SUFFIXES, ".avif", ".jxl")
"""Photographs that cannot be read. A folder is searched for them too, so that people learn why they are missing."""

MAX_PIXELS = 500_000_000


@dataclass(frozen=True, eq=False)
class Raw:
    """An image as stored: (H, W) or (H, W, C) of any bool, integer or float type."""

    array: NDArray[Any]
    name: str
    nodata: float | None = None


def format_of(start: bytes, name: str) -> str:
    """Return which of `FORMATS` a file is in by its first 16 bytes; its name's ending means nothing."""
    # Pillow registers its formats on import.
    import PIL.TiffImagePlugin
    import PIL.WebPImagePlugin

    PIL.Image.preinit()
    start = start.ljust(16, b"\0")
    if start[4:8] == b"ftyp" and start[8:11] in (b"hei", b"hev", b"mif", b"msf"):
        return "HEIF"
    for format_name in FORMATS:
        accept = PIL.Image.OPEN[format_name][1] if format_name in PIL.Image.OPEN else None
        if accept is not None and accept(start) is True:
            if format_name == "TIFF" and _has_raw_suffix(name):
                break
            return format_name
    if _has_raw_suffix(name):
        raise _is_raw(name)
    raise InputError(
        f"{name}: not an image in a format that can be read ({', '.join(FORMATS)}); convert it to one of these"
    )


def is_picture(path: str | os.PathLike[str]) -> bool:
    """Return whether a file exists that begins as an image that can be read, whatever its name."""
    try:
        with open_file(path) as file:
            format_of(file.read(16), os.fsdecode(path))
    except (InputError, OSError):
        return False
    return True


def _has_raw_suffix(name: str) -> bool:
    return name.lower().endswith(RAW_SUFFIXES)


def _is_raw(name: str) -> InputError:
    return InputError(
        f"{name}: is a camera's raw file; develop it to a JPEG, or a TIFF of 16 bits (darktable, RawTherapee, the "
        "camera maker's program), and give that"
    )


@dataclass(frozen=True, eq=False)
class Header:
    """What can be known of an image file before it is decoded.

    Attributes
    ----------
    kind : str
        The format.
    size : (int, int)
        Width and height as stored, in pixels.
    picture : PIL.Image.Image or None
        Not decoded yet; None for a TIFF of a layout that Pillow does not know.
    tags : mapping
        Those of a TIFF, by number.
    """

    kind: str
    size: tuple[int, int]
    picture: PIL.Image.Image | None
    tags: Mapping[int, Any]

    @property
    def orientation(self) -> int:
        """The EXIF orientation, 1 to 8; 1 (upright) where the tag is missing or damaged."""
        return _orientation(lambda: self.tags if self.kind == "TIFF" else self.exif())

    def exif(self) -> PIL.Image.Exif:
        """Return the EXIF; raises whatever Pillow does where it is damaged."""
        if self.picture is None:
            return PIL.Image.Exif()
        if self.kind == "PNG":  # the class's own method would decode the pixels, as EXIF may stand behind them
            return PIL.Image.Image.getexif(self.picture)
        return self.picture.getexif()


_ORIENTATION, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES, _EXTRA = 274, 256, 257, 258, 262, 277, 338
_DNG_VERSION, _GDAL_NODATA = 50706, 42113
_RGB = 2  # photometric interpretation


def read_header(file: IO[bytes], name: str, max_pixels: int = MAX_PIXELS) -> Header:
    """Look at an image file without decoding it.

    Raises
    ------
    InputError
        It is empty, damaged, of no known format, or too large.
    """
    start = file.read(16)
    if not start:
        raise InputError(f"{name}: the file is empty; copy or export it again")
    kind = format_of(start, name)
    try:
        header = _open_header(file, kind, name)
    except InputError:
        raise
    except Exception as error:
        raise _damaged(name, kind, error) from error
    width, height = header.size
    if width < 1 or height < 1:
        raise InputError(f"{name}: has no pixels ({width}x{height}); export it again")
    if width * height > max_pixels:
        raise InputError(
            f"{name}: {width}x{height} pixels, more than the limit of {max_pixels / 1e6:g} megapixels; "
            "if it is to be trusted, shrink it, or raise max_pixels of tiepoint.read_image"
        )
    return header


def _damaged(name: str, kind: str, error: Exception) -> InputError:
    """Return what to say of any error of Pillow: OSError, SyntaxError, ValueError, struct.error, zlib.error ...."""
    return InputError(
        f"{name}: damaged, incomplete or unusual {kind} file ({reason_of(error)}); copy or export it again"
    )


def _open_header(file: IO[bytes], kind: str, name: str) -> Header:
    tags: Mapping[int, Any] = {}
    picture: PIL.Image.Image | None = None
    file.seek(0)
    with quiet():
        if kind == "HEIF":
            picture = _heif_class(name)(file)
        elif kind == "TIFF":
            tags = _tiff_tags(file)
            if _DNG_VERSION in tags:
                raise _is_raw(name)
            file.seek(0)
            with suppress(SyntaxError):  # "unknown pixel mode"
                picture = PIL.Image.OPEN[kind][0](file, "")
            return Header(kind, (int(tags[_WIDTH]), int(tags[_HEIGHT])), picture, tags)  # Pillow's may be turned
        else:
            # The format's own class, not PIL.Image.open, which would refuse what is above Pillow's limit.
            picture = PIL.Image.OPEN[kind][0](file, "")
        if kind == "PNG" and "exif" not in picture.info:
            here = file.tell()
            if (exif := _png_exif(file)) is not None:
                picture.info["exif"] = exif
            file.seek(here)
    return Header(kind, picture.size, picture, tags)


def _heif_class(name: str) -> Any:
    try:
        from pillow_heif.as_plugin import HeifImageFile
    except ImportError as error:  # one file among others: no reason to end a whole folder with MissingDependencyError
        raise InputError(
            f"{name}: HEIC needs the package 'pillow-heif': pip install 'tiepoint[heic]'; or convert it to JPEG"
        ) from error
    return HeifImageFile


def _tiff_tags(file: IO[bytes]) -> Mapping[int, Any]:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    start = file.read(8)
    directory = ImageFileDirectory_v2(start + (file.read(8) if start[2] == 43 or start[3] == 43 else b""))
    file.seek(directory.next)
    directory.load(file)
    return directory


def _png_exif(file: IO[bytes]) -> bytes | None:
    """Return the EXIF of a PNG file, which may stand behind the pixels, without decoding these."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            return file.read(min(length, 1 << 20))
        file.seek(length + 4, os.SEEK_CUR)
    return None


def decode(
    file: IO[bytes],
    name: str,
    max_pixels: int,
    bands: tuple[int, ...] | None = None,
    upright: bool = True,
    draft: int | None = None,
) -> Raw:
    """Decode an image file to an array in its own number type, by default upright by its EXIF orientation."""
    header = read_header(file, name, max_pixels)
    kind, picture, nodata = header.kind, header.picture, None
    try:
        check_header(header, name, max_pixels, bands)
        if kind == "TIFF":
            nodata = _number(header.tags.get(_GDAL_NODATA))
            if _beyond_pillow(header, bands):
                array = _read_tiff(file, header, name, bands)
                return Raw(_upright(array, header.orientation) if upright else array, name, nodata)
        assert picture is not None
        if draft is not None:
            picture.draft("RGB", (draft, draft))  # JPEG: decode at a half, a quarter ... where that is enough
        array, orientation = _pixels(picture)
    except InputError:
        raise
    except PIL.Image.DecompressionBombError as error:
        raise InputError(
            f"{name}: more pixels than Pillow decodes of a {kind} file; shrink it, convert it to JPEG or "
            "PNG, or raise PIL.Image.MAX_IMAGE_PIXELS if it is to be trusted"
        ) from error
    except Exception as error:
        raise _damaged(name, kind, error) from error
    if bands is not None:
        array = choose_bands(array, bands, name)
    if not upright and kind == "TIFF":  # turned by Pillow; to be turned back
        orientation, upright = {6: 8, 8: 6}.get(header.orientation, header.orientation), True
    return Raw(_upright(array, orientation) if upright else array, name, nodata)


def decode_pillow(picture: PIL.Image.Image, name: str, max_pixels: int, bands: tuple[int, ...] | None = None) -> Raw:
    """Return a Pillow image, decoded or not, as `decode` returns the file that it came from, upright."""
    if picture.width * picture.height > max_pixels:
        raise InputError(f"{name}: {picture.width}x{picture.height} pixels are too many; the limit is {max_pixels}")
    try:
        array, orientation = _pixels(picture)
    except Exception as error:  # its file is damaged, or closed
        raise InputError(f"{name}: the Pillow image cannot be decoded ({reason_of(error)})") from error
    return Raw(_upright(array if bands is None else choose_bands(array, bands, name), orientation), name)


def _pixels(picture: PIL.Image.Image) -> tuple[NDArray[Any], int]:
    """Decode a picture; return its pixels in their own number type, as stored, and its EXIF orientation."""
    # Pillow warns from 89 megapixels on.
    with quiet() if picture.width * picture.height > 80_000_000 else nullcontext():
        picture.load()
    with quiet():  # after decoding, because in TIFF Pillow turns the pixels itself and then forgets the tag
        orientation = _orientation(picture.getexif)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return np.asarray(picture), orientation
    if picture.has_transparency_data:
        return np.asarray(picture.convert("RGBA")), orientation
    return np.asarray(picture if picture.mode in ("1", "L", "RGB") else picture.convert("RGB")), orientation


def check_header(header: Header, name: str, max_pixels: int = MAX_PIXELS, bands: tuple[int, ...] | None = None) -> None:
    """Raise `InputError` where the header shows that decoding would: bands are missing, or have to be named."""
    count, (width, height) = _count_bands(header), header.size
    if bands is not None and max(bands) > count:
        raise _lacks_band(name, count, bands, header)
    if not _beyond_pillow(header, bands):
        return
    if bands is None and count > 1 and not _is_coloured(header):
        raise InputError(
            f"{name}: has {count} bands, and none of them is said to be red, green or blue; name one or three of "
            "them: --bands 3,2,1, or bands=(3, 2, 1) of tiepoint.read_image"
        )
    if width * height * count > 4 * max_pixels:
        raise InputError(f"{name}: {width}x{height} pixels of {count} bands are too many; keep the bands you need")
    if find_spec("tifffile") is None:  # one file among others: no reason to end a whole folder
        kind = f"{count} bands of {'x'.join(map(str, sorted(set(header.tags.get(_BITS, (1,))))))} bits"
        raise InputError(f"{name}: a TIFF of {kind} needs the package 'tifffile': pip install 'tiepoint[tiff]'")


def _count_bands(header: Header) -> int:
    if header.kind == "TIFF":
        count = header.tags.get(_SAMPLES, 1)
        return count if isinstance(count, int) and count > 0 else 1
    picture = header.picture
    assert picture is not None
    if picture.mode in ("1", "L", "I", "F") or picture.mode.startswith("I;16"):
        return 4 if picture.has_transparency_data else 1
    return 4 if picture.has_transparency_data else 3


def _beyond_pillow(header: Header, bands: tuple[int, ...] | None) -> bool:
    """Whether Pillow cannot read a TIFF, or would show only one of its bands."""
    if header.kind != "TIFF" or header.picture is None:
        return header.kind == "TIFF"
    wanted = bands is not None or header.tags.get(_PHOTOMETRIC) != _RGB
    return wanted and _count_bands(header) > len(header.picture.getbands())


def _is_coloured(header: Header) -> bool:
    return header.tags.get(_PHOTOMETRIC) == _RGB and _count_bands(header) >= 3


def _lacks_band(name: str, count: int, bands: tuple[int, ...], header: Header | None = None) -> InputError:
    what = "1 band" if count == 1 else f"{count} bands"
    pages = header is not None and header.kind == "TIFF" and bool(getattr(header.tags, "next", 0))
    hint = "; of several pages the first is used, as pages may be anything: save them as bands" if pages else ""
    return InputError(f"{name}: has {what}, and so no band {max(bands)}; name others{hint}")


def _read_tiff(file: IO[bytes], header: Header, name: str, bands: tuple[int, ...] | None) -> NDArray[Any]:
    """Decode a TIFF of several bands or of floats, which Pillow does not know, not turned."""
    import tifffile

    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages[0]
        array = np.asarray(page.asarray())
        if page.axes.startswith("S"):  # a plane for each band
            array = np.moveaxis(array, 0, -1)
    if bands is not None:
        return choose_bands(array, bands, name)
    alpha = _count_bands(header) == 4 and tuple(header.tags.get(_EXTRA, ())) in ((1,), (2,))
    return array[..., : 4 if alpha else 3] if _is_coloured(header) else array


def choose_bands(array: NDArray[Any], bands: tuple[int, ...], name: str) -> NDArray[Any]:
    """Return some bands, counted from 1, of an array (H, W) or (H, W, C)."""
    count = array.shape[2] if array.ndim == 3 else 1
    if max(bands) > count:
        raise _lacks_band(name, count, bands)
    return array.reshape(*array.shape[:2], count)[..., [band - 1 for band in bands]]


def _number(text: Any) -> float | None:
    """Return the number in GDAL's nodata tag."""
    try:
        return None if text is None else float(str(text).strip(" \0"))
    except ValueError:
        return None


def _orientation(tags: Callable[[], Mapping[int, Any]]) -> int:
    """Return the EXIF orientation, 1 to 8, among the tags that a function reads; 1 if it is missing or damaged."""
    try:
        value = tags().get(_ORIENTATION, 1)
    except Exception:  # the photograph is fine, only its EXIF is not
        return 1
    return value if value in range(1, 9) else 1


def _upright(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn or mirror (H, W, ...) pixels as stored into the picture as it was seen (EXIF 2.3, tag 0x0112)."""
    if orientation >= 5:  # stored with rows and columns exchanged
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def reason_of(error: Exception) -> str:
    """Return an error's own words on one line."""
    return " ".join(str(error).split()) or type(error).__name__


_warnings_lock = threading.Lock()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's warnings (about odd EXIF, large images).

    Python keeps one list of warning filters for all threads, and two threads that change it at the same time
    may leave it changed for ever: hence the lock, held while headers are read, not while pixels are decoded.
    """
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
