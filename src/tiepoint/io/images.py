"""Reading photographs: a file, an array or a stream -> `Image`.

Everything that can be wrong with an input is found here and raised as one `InputError` naming the file.
"""

from __future__ import annotations

import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ..errors import ArgumentError, InputError
from ..types import Image

ImageSource = str | os.PathLike[str] | IO[bytes] | NDArray[Any] | Image

# What photographs and public data sets come in. Pillow reads far more, some of it by starting other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "PPM", "BMP", "GIF")


def read_image(source: ImageSource, mask: ImageSource | None = None, max_pixels: int = 500_000_000) -> Image:
    """Read one image as 8-bit RGB with its EXIF orientation applied.

    Parameters
    ----------
    source : path, binary file object, array or Image
        A file: JPEG (also a phone's MPO), PNG, WebP, TIFF, PPM, BMP or GIF; of several frames the first. Only
        regular files are opened, so that no pipe or device can block. A file object is read from where it
        stands to its end and left open.

        An array: (H, W), (H, W, 1), RGB (H, W, 3) or RGBA (H, W, 4) of bool, uint8, uint16, or floats in
        [0, 1]. It is never written to; uint8 RGB is not copied either, so do not change it while the `Image`
        is in use.

        An `Image` is returned as it is, or with the new mask.
    mask : same kinds, or None
        0 (black) means "no keypoints here", everything else is allowed; any number type. Must have the size
        of the image after EXIF orientation. Prefer a lossless format: JPEG turns some zeros into ones.
    max_pixels : int
        Files with more pixels are refused by their header, before anything is decoded. (Pillow's own limit,
        179 megapixels, stays in force for WebP and uncompressed TIFF.)

    Returns
    -------
    Image
        Its arrays are read-only.

    Raises
    ------
    InputError
        The source or the mask cannot be used. The message names it and says what to do.

    Notes
    -----
    *16 bits.* A picture that uses a quarter of the range or more (between its 0.1 and 99.9 percentiles, over
    all channels) is divided by 257. Anything narrower, such as 12 bits in a 16-bit file or a thermal image,
    would come out almost flat, so those percentiles become 0 and 255, though one count never becomes more
    than one grey level. Files of 32-bit integers are treated alike; of 32-bit floats, those in [0, 1] are
    multiplied by 255 and all others stretched. Colour files of 16 bits per channel lose their lower 8 bits
    (Pillow's doing).

    *Transparency.* Pixels of alpha 0 get mask 0. Otherwise alpha is ignored.

    *Colour.* CMYK and YCbCr become RGB by the plain formulas; embedded colour profiles are ignored.

    Examples
    --------
    >>> import numpy as np
    >>> image = read_image(np.full((480, 640), 200, np.uint8))
    >>> image.size, image.pixels.shape
    ((640, 480), (480, 640, 3))
    """
    if isinstance(source, Image):
        if mask is None:
            return source
        pixels, opaque, name = source.pixels, None, source.name
    else:
        raw, name = _load(source, max_pixels)
        _check(raw, name)
        if isinstance(source, np.ndarray):
            _check_type(raw, name)
        pixels, opaque = _to_rgb(raw)
    if mask is not None:
        allowed, mask_name = _read_mask(mask, max_pixels)
        if allowed.shape != pixels.shape[:2]:
            turned = allowed.shape == pixels.shape[1::-1]
            hint = " (it looks as if drawn before EXIF turned the photograph upright)" if turned else ""
            raise InputError(
                f"{mask_name}: the mask is {allowed.shape[1]}x{allowed.shape[0]} pixels, but {name} is "
                f"{pixels.shape[1]}x{pixels.shape[0]}; make it the same size{hint}"
            )
        opaque = allowed if opaque is None else allowed & opaque
    return Image(_read_only(pixels), None if opaque is None else _read_only(opaque.astype(np.uint8) * 255), name)


def resize(pixels: NDArray[np.uint8], long_side: int, enlarge: bool = False) -> NDArray[np.uint8]:
    """Resize so that the longer side is ``long_side`` pixels; smaller images stay unless ``enlarge``.

    The picture's outer edges stay where they are: x becomes ``factor * (x + 0.5) - 0.5``. The factors of the
    two axes, (new width / width) and (new height / height), differ a little by rounding.

    Parameters
    ----------
    pixels : uint8 array (H, W, 3) or (H, W)
    long_side : int
        In pixels; the shorter side follows and is at least 1.
    enlarge : bool
        Whether to enlarge smaller images too.

    Examples
    --------
    >>> import numpy as np
    >>> resize(np.zeros((300, 400, 3), np.uint8), 100).shape
    (75, 100, 3)
    """
    if long_side < 1:
        raise ArgumentError(f"long_side must be at least 1 pixel, not {long_side}")
    height, width = pixels.shape[:2]
    factor = long_side / max(height, width)
    if factor == 1 or (factor > 1 and not enlarge):
        return pixels
    import cv2  # here, because training needs this module but not OpenCV

    size = max(1, round(width * factor)), max(1, round(height * factor))
    resized = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    return np.asarray(resized, np.uint8)


def resize_mask(mask: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize a mask (H, W) to ``size`` (width, height): each pixel takes the value under its centre."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64) for old, new in zip(mask.shape, size[::-1], strict=True)
    )
    return mask[rows[:, None], columns]


def _load(source: ImageSource, max_pixels: int) -> tuple[NDArray[Any], str]:
    """Return (array as stored, name): (H, W) or (H, W, C) of any bool, integer or float type."""
    if isinstance(source, Image):
        return source.pixels, source.name
    if isinstance(source, np.ndarray):
        return source, "<array>"
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        name = path if path.isprintable() else repr(path)[1:-1]
        with _open_file(path, name) as file:
            return _decode(file, name, max_pixels), name
    if hasattr(source, "read"):
        own = getattr(source, "name", None)
        name = own if isinstance(own, str) and own.isprintable() else "<stream>"
        return _decode(_buffer(source, name), name, max_pixels), name
    raise InputError(
        f"an image cannot be read from {type(source).__name__}; give a path, a binary file object, or a NumPy array"
    )


def _open_file(path: str, name: str) -> IO[bytes]:
    """Open a regular file for reading."""
    try:
        # Asked before opening, because opening a pipe waits until someone writes to it.
        mode = os.stat(path).st_mode  # noqa: PTH116 (Path would turn "" into the current folder)
        if stat.S_ISDIR(mode):
            raise InputError(f"{name}: is a folder; give one image file")
        if not stat.S_ISREG(mode):
            raise InputError(f"{name}: is a device or a pipe; save the image to a regular file first")
        return Path(path).open("rb")
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{name or repr(name)}: no such file; check the path") from error
    except PermissionError as error:
        raise InputError(f"{name}: no permission to read it; change its access rights") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or _reason(error)
        raise InputError(f"{name}: cannot be opened ({reason}); check the path") from error


def _buffer(stream: IO[bytes], name: str) -> IO[bytes]:
    """Read the rest of a stream into memory, once its first bytes look like an image."""
    try:
        start = stream.read(16)
        if not isinstance(start, bytes):
            raise InputError(f"{name}: the stream gives {type(start).__name__}; open it in binary mode")
        if not start:
            raise InputError(f"{name}: the stream is empty or at its end; seek(0) goes back to the start")
        _format_of(start, name)
        return BytesIO(start + stream.read())
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name}: cannot be read ({_reason(error)}); check the stream") from error


def _format_of(start: bytes, name: str) -> str:
    """Return which of `_FORMATS` a file is in by its first 16 bytes; its name's ending means nothing."""
    # Pillow registers its formats on import.
    import PIL.TiffImagePlugin
    import PIL.WebPImagePlugin

    PIL.Image.preinit()
    start = start.ljust(16, b"\0")
    for format_name in _FORMATS:
        accept = PIL.Image.OPEN[format_name][1]
        if accept is not None and accept(start) is True:
            return format_name
    raise InputError(
        f"{name}: not an image in a format that can be read ({', '.join(_FORMATS)}); "
        "convert HEIC, raw and other formats to one of these"
    )


def is_picture(path: str | os.PathLike[str]) -> bool:
    """Return whether a file exists that begins as an image that can be read, whatever its name."""
    name = os.fspath(path)
    try:
        with _open_file(name, name) as file:
            _format_of(file.read(16), name)
    except (InputError, OSError):
        return False
    return True


def _decode(file: IO[bytes], name: str, max_pixels: int) -> NDArray[Any]:
    """Decode an image file, upright by its EXIF orientation, to an array in its own number type."""
    kind = "image"
    try:
        start = file.read(16)
        if not start:
            raise InputError(f"{name}: the file is empty; copy or export it again")
        kind = _format_of(start, name)
        file.seek(0)
        with _quiet():
            # The format's own class, not PIL.Image.open, which would refuse what is above Pillow's limit.
            picture = PIL.Image.OPEN[kind][0](file, "")
        width, height = picture.size
        if width < 1 or height < 1:
            raise InputError(f"{name}: has no pixels ({width}x{height}); export it again")
        if width * height > max_pixels:
            raise InputError(
                f"{name}: {width}x{height} pixels, more than the limit of {max_pixels / 1e6:g} megapixels; "
                "if it is to be trusted, shrink it, or raise max_pixels of tiepoint.read_image"
            )
        # Pillow warns from 89 megapixels on.
        with _quiet() if width * height > 80_000_000 else nullcontext():
            picture.load()
        with _quiet():
            orientation = _orientation(picture)
        if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
            array = np.asarray(picture)
        elif picture.has_transparency_data:
            array = np.asarray(picture.convert("RGBA"))
        elif picture.mode in ("1", "L", "RGB"):
            array = np.asarray(picture)
        else:
            array = np.asarray(picture.convert("RGB"))
    except InputError:
        raise
    except PIL.Image.DecompressionBombError as error:
        raise InputError(
            f"{name}: more pixels than Pillow decodes of a {kind} file; shrink it, convert it to JPEG or "
            "PNG, or raise PIL.Image.MAX_IMAGE_PIXELS if it is to be trusted"
        ) from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, zlib.error ...
        raise InputError(
            f"{name}: damaged, incomplete or unusual {kind} file ({_reason(error)}); copy or export it again"
        ) from error
    return _upright(array, orientation)


def _orientation(picture: PIL.Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) where the tag is missing or damaged.

    Asked after loading: PNG may store EXIF behind the pixels, and in TIFF Pillow turns the pixels itself and
    then forgets the tag.
    """
    try:
        value = picture.getexif().get(0x0112, 1)
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


def _to_rgb(raw: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Return (RGB pixels, which pixels are not fully transparent or None for all) of an array."""
    colour = raw[..., :3] if raw.ndim == 3 else raw[..., None]
    opaque = None
    if raw.ndim == 3 and raw.shape[2] == 4 and not raw[..., 3].all():
        opaque = raw[..., 3] != 0
    pixels = _to_8_bit(colour)
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels), opaque


def _to_8_bit(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale to uint8 as the notes of `read_image` say."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind == "f" and values.min() >= -1e-6 and values.max() <= 1 + 1e-6:
        return np.rint(np.clip(values, 0, 1) * np.float32(255)).astype(np.uint8)
    step = max(1, round((values.size / 1e6) ** 0.5))  # a million samples are enough
    low, high = np.percentile(values[::step, ::step], (0.1, 99.9))
    if values.dtype.kind == "f":
        high = high if high > low else low + 1
    elif values.min() >= 0 and values.max() <= 65535 and (high - low >= 65535 / 4 or high == low):
        low, high = 0.0, 65535.0
    else:
        high = max(high, low + 255)
    scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def _read_mask(source: ImageSource, max_pixels: int) -> tuple[NDArray[np.bool_], str]:
    """Return (where keypoints are allowed (H, W), name)."""
    raw, name = _load(source, max_pixels)
    name = "<mask array>" if name == "<array>" else name
    _check(raw, name)
    if raw.ndim == 2:
        return raw != 0, name
    allowed = (raw[..., :3] != 0).any(axis=2)
    return (allowed & (raw[..., 3] != 0) if raw.shape[2] == 4 else allowed), name


def _check(array: NDArray[Any], name: str) -> None:
    """Raise `InputError` unless the array holds numbers, in the shape of an image."""
    if array.dtype.kind not in "buif":
        raise InputError(f"{name}: holds {array.dtype}, not real numbers; convert it with astype(np.uint8)")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InputError(
            f"{name}: shape {array.shape} is not that of one image; give (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
        )
    if array.size == 0:
        raise InputError(f"{name}: has no pixels (shape {array.shape}); give at least one")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"{name}: holds NaN or infinity; replace them, and hide those pixels with a mask")


def _check_type(array: NDArray[Any], name: str) -> None:
    """Raise `InputError` unless a caller's array says by its type, or range, what white is."""
    if array.dtype.kind == "f":
        low, high = array.min(), array.max()
        if low < -1e-6 or high > 1 + 1e-6:
            raise InputError(
                f"{name}: float images must lie in [0, 1], not [{low:g}, {high:g}]; "
                "divide by the largest possible value, or give uint8 or uint16"
            )
    elif array.dtype.kind != "b" and array.dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise InputError(
            f"{name}: images must be bool, uint8, uint16 or float, not {array.dtype}; convert it with astype"
        )


def _read_only(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a view that cannot be written to."""
    view = array.view()
    view.flags.writeable = False
    return view


def _reason(error: Exception) -> str:
    """Return an error's own words on one line."""
    return " ".join(str(error).split()) or type(error).__name__


_warnings_lock = threading.Lock()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Pillow's warnings (about odd EXIF, large images).

    Python keeps one list of warning filters for all threads, and two threads that change it at the same time
    may leave it changed for ever: hence the lock, held while headers are read, not while pixels are decoded.
    """
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
