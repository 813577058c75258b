"""Reading photographs: a file, a stream, an array, a Pillow image or a tensor -> `Image`.

Everything that can be wrong with an input is found here and raised as one `InputError` naming the file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from io import BytesIO
from typing import IO, Any, cast

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from ..errors import ArgumentError, InputError
from ..types import Image
from .decoding import (
    MAX_PIXELS,
    Raw,
    check_header,
    choose_bands,
    decode,
    decode_pillow,
    format_of,
    read_header,
    reason_of,
)
from .files import open_file, printable

ImageSource = str | os.PathLike[str] | IO[bytes] | NDArray[Any] | PIL.Image.Image | torch.Tensor | Image

_BORDER_SHARE = 1 / 8  # least share of the image's outline that a border without data takes up


def read_image(
    source: ImageSource,
    mask: ImageSource | None = None,
    max_pixels: int = MAX_PIXELS,
    bands: Sequence[int] | None = None,
) -> Image:
    """Read one image as 8-bit RGB with its EXIF orientation applied.

    Parameters
    ----------
    source : path, binary file object, array, Pillow image, tensor or Image
        A file: JPEG (also a phone's MPO), PNG, WebP, TIFF, PPM, BMP, GIF, or, with the package pillow-heif, HEIC;
        of several frames the first. Only regular files are opened, so that no pipe or device can block. A file
        object is read from where it stands to its end and left open.

        An array: (H, W), (H, W, 1), RGB (H, W, 3) or RGBA (H, W, 4) of bool, uint8, uint16, or floats in
        [0, 1]. It is never written to; uint8 RGB is not copied either, so do not change it while the `Image`
        is in use.

        A Pillow image: treated as the file that it was read from, its EXIF orientation included.

        A tensor of torch, on any device: channels first, as torch has them, (C, H, W), or a batch of one, (1, C, H, W);
        or (H, W). Types and ranges are those of arrays.

        An `Image` is returned as it is, or with the new mask.
    mask : same kinds, or None
        0 (black) means "no keypoints here", everything else is allowed; any number type. Must have the size
        of the image after EXIF orientation. Prefer a lossless format: JPEG turns some zeros into ones.
    max_pixels : int
        Files with more pixels are refused by their header, before anything is decoded. (Pillow's own limit,
        179 megapixels, stays in force for WebP and uncompressed TIFF.)
    bands : one or three ints, optional
        Which bands of the source to use, counted from 1: (4, 3, 2) makes band 4 red, 3 green and 2 blue; one band
        becomes grey. Files with more than four bands need it, unless they say that the first three are red, green
        and blue. An `Image` has had its bands chosen already.

    Returns
    -------
    Image
        Its arrays are read-only.

    Raises
    ------
    InputError
        The source or the mask cannot be used, or lacks one of the bands. The message names it and says what to do.
    ArgumentError
        ``bands`` are not one or three numbers from 1 on.

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
        raw = _load(source, max_pixels, check_bands(bands))
        made = isinstance(source, (np.ndarray, torch.Tensor))
        _check(raw.array, raw.name, finite=made)
        if made:
            _check_type(raw.array, raw.name)
        pixels, opaque = _to_rgb(raw)
        name = raw.name
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


def as_list(images: ImageSource | Sequence[ImageSource]) -> list[ImageSource]:
    """Return one photograph, or a list or tuple of them, as a list."""
    return list(images) if isinstance(images, (list, tuple)) else [cast(ImageSource, images)]


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


def read_stored(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read a file as 8-bit RGB (H, W, 3) as it is stored: not turned by EXIF, which poses of data sets ignore.

    Raises
    ------
    InputError
        As `read_image`.
    """
    raw = _load(path, MAX_PIXELS, upright=False)
    _check(raw.array, raw.name, finite=False)
    return _to_rgb(raw)[0]


def read_numbers(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read a file as the array it holds, in its own number type and not turned: a depth map, for example.

    Raises
    ------
    InputError
        As `read_image`.
    """
    return _load(path, MAX_PIXELS, upright=False).array


def check_readable(path: str | os.PathLike[str], bands: Sequence[int] | None = None) -> None:
    """Raise `InputError` if the header of a file says that `read_image` would: that bands have to be named, say."""
    name = printable(os.fsdecode(path))
    with open_file(path) as file:
        check_header(read_header(file, name), name, bands=check_bands(bands))


def read_reduced(data: bytes, name: str, long_side: int) -> NDArray[np.uint8]:
    """Decode a file's bytes to upright 8-bit RGB (H, W, 3); a JPEG with a longer side only to half, a quarter ....

    Parameters
    ----------
    data : bytes
        The whole file.
    name : str
        For messages.
    long_side : int
        In pixels; the result's is not less, if the file's is not.

    Raises
    ------
    InputError
        As `read_image`.
    """
    raw = decode(BytesIO(data), name, MAX_PIXELS, draft=long_side)
    _check(raw.array, name, finite=False)
    return _to_rgb(raw)[0]


def check_bands(bands: Sequence[int] | None) -> tuple[int, ...] | None:
    """Return bands as a tuple, or raise `ArgumentError` if they are not one or three numbers from 1 on.

    Examples
    --------
    >>> check_bands([4, 3, 2])
    (4, 3, 2)
    """
    if bands is None:
        return None
    chosen = tuple(bands)
    if len(chosen) not in (1, 3) or any(not isinstance(band, (int, np.integer)) or band < 1 for band in chosen):
        raise ArgumentError(f"bands are one or three numbers from 1 on, for red, green and blue, not {bands!r}")
    return tuple(int(band) for band in chosen)


def _load(source: ImageSource, max_pixels: int, bands: tuple[int, ...] | None = None, upright: bool = True) -> Raw:
    if isinstance(source, Image):
        return Raw(source.pixels, source.name)
    if isinstance(source, np.ndarray):
        return Raw(source if bands is None else choose_bands(source, bands, "<array>"), "<array>")
    if isinstance(source, torch.Tensor):
        array = _channels_last(source)
        return Raw(array if bands is None else choose_bands(array, bands, "<tensor>"), "<tensor>")
    if isinstance(source, PIL.Image.Image):
        name = printable(os.fsdecode(getattr(source, "filename", "") or "<image>"))
        return decode_pillow(source, name, max_pixels, bands)
    if isinstance(source, (str, os.PathLike)):
        with open_file(source) as file:
            return decode(file, printable(os.fsdecode(source)), max_pixels, bands, upright)
    if hasattr(source, "read"):
        own = getattr(source, "name", None)
        name = own if isinstance(own, str) and own.isprintable() else "<stream>"
        return decode(_buffer(source, name), name, max_pixels, bands, upright)
    raise InputError(
        f"an image cannot be read from {type(source).__name__}; give a path, a binary file object, a NumPy array, a "
        "Pillow image or a tensor"
    )


def _channels_last(tensor: torch.Tensor) -> NDArray[Any]:
    """Return a tensor (H, W), (C, H, W) or (1, C, H, W) as an array (H, W) or (H, W, C)."""
    if tensor.is_nested or tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided:
        raise InputError(
            "<tensor>: is nested, sparse, quantised, or on the device meta; give a dense tensor that holds its values"
        )
    one = tensor[0] if tensor.ndim == 4 and len(tensor) == 1 else tensor
    if one.ndim not in (2, 3):
        raise InputError(
            f"<tensor>: shape {tuple(tensor.shape)} is not that of one image; give (H, W), (C, H, W) or (1, C, H, W)"
        )
    one = one.detach().cpu()
    array = (one.float() if one.dtype in (torch.bfloat16, torch.float16) else one).numpy()
    return np.moveaxis(array, 0, -1) if array.ndim == 3 else array


def _buffer(stream: IO[bytes], name: str) -> IO[bytes]:
    """Read the rest of a stream into memory, once its first bytes look like an image."""
    try:
        start = stream.read(16)
        if not isinstance(start, bytes):
            raise InputError(f"{name}: the stream gives {type(start).__name__}; open it in binary mode")
        if not start:
            raise InputError(f"{name}: the stream is empty or at its end; seek(0) goes back to the start")
        format_of(start, name)
        return BytesIO(start + stream.read())
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name}: cannot be read ({reason_of(error)}); check the stream") from error


def _to_rgb(raw: Raw) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Return (RGB pixels, which pixels hold data and are not fully transparent or None for all)."""
    array = raw.array
    colour = array[..., :3] if array.ndim == 3 else array[..., None]
    opaque = None
    if array.ndim == 3 and array.shape[2] == 4 and not array[..., 3].all():
        opaque = array[..., 3] != 0
    known = _with_data(colour, raw.nodata)
    if known is not None and not known.any():
        raise InputError(f"{raw.name}: holds no data: all its pixels are NaN, infinite or what its nodata tag says")
    pixels = _to_8_bit(colour, known)
    if known is not None:
        pixels = _fill(pixels, known)
        opaque = known if opaque is None else known & opaque
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels), opaque


def _with_data(values: NDArray[Any], nodata: float | None) -> NDArray[np.bool_] | None:
    """Return which pixels (H, W) hold data, None for all; the notes of `read_image` say which do not."""
    if values.dtype.itemsize == 1 and nodata is None:
        return None
    known = np.ones(values.shape[:2], bool)
    if values.dtype.kind == "f":
        known &= np.isfinite(values).all(axis=2)
    if nodata is not None and math.isfinite(nodata) and (values.dtype.kind == "f" or nodata == int(nodata)):
        with np.errstate(over="ignore"):
            value = values.dtype.type(nodata) if values.dtype.kind == "f" else int(nodata)
        known &= ~(values == value).all(axis=2)
    if values.dtype.itemsize > 1 and known.any():
        for value in (values[known].min(), values[known].max()):
            flat = (values == value).all(axis=2)
            if _is_border(values, known, flat, value):
                known &= ~flat
    return None if known.all() else known


def _is_border(values: NDArray[Any], known: NDArray[np.bool_], flat: NDArray[np.bool_], value: Any) -> bool:
    """Whether the pixels of one extreme value are a border without data."""
    share = float(np.concatenate([flat[0], flat[-1], flat[1:-1, 0], flat[1:-1, -1]]).mean())
    rest = values[known & ~flat]
    if share < _BORDER_SHARE or not len(rest):
        return False
    gap = abs(float(rest.min() if value < rest.min() else rest.max()) - float(value))
    low, high = np.percentile(rest[:: max(1, len(rest) // 1_000_000)], (0.1, 99.9))
    return high > low and (share == 1 or gap > high - low)


def _fill(pixels: NDArray[np.uint8], known: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Give each pixel (H, W, C) without data the colour of the nearest one that has some."""
    import cv2  # here, because training needs this module but not OpenCV

    labels = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )[1]
    nearest = np.zeros(labels.max() + 1, np.int64)
    nearest[labels[known]] = np.flatnonzero(known)
    return pixels.reshape(-1, pixels.shape[2])[nearest[labels]]


def _to_8_bit(values: NDArray[Any], known: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
    """Scale (H, W, C) to uint8 as the notes of `read_image` say, by the pixels that are known."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    data = values if known is None else values[known]
    least, greatest = data.min(), data.max()
    if known is not None:
        values = np.where(known[..., None], values, least)
    if values.dtype.kind == "f" and least >= -1e-6 and greatest <= 1 + 1e-6:
        return np.rint(np.clip(values, 0, 1) * np.float32(255)).astype(np.uint8)
    if known is None:
        step = max(1, round((values.size / 1e6) ** 0.5))  # a million samples are enough
        low, high = np.percentile(values[::step, ::step], (0.1, 99.9))
    else:
        low, high = np.percentile(data[:: max(1, data.size // 1_000_000)], (0.1, 99.9))
    if values.dtype.kind == "f":
        high = high if high > low else low + 1
    elif least >= 0 and greatest <= 65535 and (high - low >= 65535 / 4 or high == low):
        low, high = 0.0, 65535.0
    else:
        high = max(high, low + 255)
    kind = np.dtype(np.float64 if values.dtype.itemsize == 8 else np.float32)
    scaled = (values.astype(kind) - np.asarray(low, kind)) * np.asarray(255 / (high - low), kind)
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def _read_mask(source: ImageSource, max_pixels: int) -> tuple[NDArray[np.bool_], str]:
    """Return (where keypoints are allowed (H, W), name)."""
    loaded = _load(source, max_pixels)
    raw, name = loaded.array, loaded.name
    if name in ("<array>", "<tensor>", "<image>"):
        name = name.replace("<", "<mask ")
    _check(raw, name)
    if raw.ndim == 2:
        return raw != 0, name
    allowed = (raw[..., :3] != 0).any(axis=2)
    return (allowed & (raw[..., 3] != 0) if raw.shape[2] == 4 else allowed), name


def _check(array: NDArray[Any], name: str, finite: bool = True) -> None:
    """Raise `InputError` unless the array holds numbers, in the shape of an image."""
    if array.dtype.kind not in "buif":
        raise InputError(f"{name}: holds {array.dtype}, not real numbers; convert it with astype(np.uint8)")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InputError(
            f"{name}: shape {array.shape} is not that of one image; give (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
        )
    if array.size == 0:
        raise InputError(f"{name}: has no pixels (shape {array.shape}); give at least one")
    if finite and array.dtype.kind == "f" and not np.isfinite(array).all():
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
