"""Reading images: every format and number type, orientation, masks, resizing."""

from __future__ import annotations

import io
import sys
import threading
import warnings
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import PIL.ImageFile
import PIL.ImageOps
import pytest
import torch

from tiepoint.errors import ArgumentError, InputError
from tiepoint.features import load
from tiepoint.features.base import resized
from tiepoint.io.exif import read_exif
from tiepoint.io.images import check_readable, read_image, resize, resize_mask
from tiepoint.types import Features, Image


def encoded(array: np.ndarray, file_format: str, **options: object) -> io.BytesIO:
    stream = io.BytesIO()
    PIL.Image.fromarray(array).save(stream, file_format, **options)
    stream.seek(0)
    return stream


# ------------------------------------------------------------------------------ file formats


@pytest.mark.parametrize(
    ("suffix", "options", "tolerance"),
    [
        ("png", {}, 0),
        ("tif", {}, 0),
        ("tif", {"compression": "tiff_lzw"}, 0),
        ("tif", {"compression": "tiff_adobe_deflate"}, 0),
        ("webp", {"lossless": True}, 0),
        ("ppm", {}, 0),
        ("bmp", {}, 0),
        ("jpg", {"quality": 98, "subsampling": 0}, 12),
        ("jpg", {"quality": 98, "subsampling": 0, "progressive": True}, 12),
        ("webp", {"quality": 98}, 100),
    ],
)
def test_colour_files(texture, tmp_path, suffix, options, tolerance):
    path = tmp_path / f"a.{suffix}"
    PIL.Image.fromarray(texture).save(path, **options)
    image = read_image(path)
    assert image.name == str(path) and image.mask is None and image.size == (320, 240)
    assert np.abs(image.pixels.astype(int) - texture).max() <= tolerance
    assert np.array_equal(read_image(str(path)).pixels, image.pixels)
    with path.open("rb") as file:
        assert np.array_equal(read_image(file).pixels, image.pixels)
        assert not file.closed


def test_the_ending_of_the_name_means_nothing(texture, tmp_path):
    path = tmp_path / "a.jpg"
    PIL.Image.fromarray(texture).save(path, "PNG")
    assert np.array_equal(read_image(path).pixels, texture)


def test_formats_against_opencv(texture, tmp_path):
    """An independent decoder sees the same pixels."""
    for name in ("a.png", "a.tif", "a.ppm"):
        cv2.imwrite(str(tmp_path / name), texture[..., ::-1])
        assert np.array_equal(read_image(tmp_path / name).pixels, texture)


def test_grey_palette_and_one_bit(texture):
    grey = texture[..., 0]
    assert np.array_equal(read_image(encoded(grey, "PNG")).pixels, np.dstack([grey] * 3))

    palette = PIL.Image.fromarray(texture).quantize(200)
    stream = io.BytesIO()
    palette.save(stream, "PNG")
    stream.seek(0)
    assert np.array_equal(read_image(stream).pixels, np.asarray(palette.convert("RGB")))

    bits = encoded(grey > 100, "PNG")
    assert np.array_equal(read_image(bits).pixels[..., 1], np.where(grey > 100, 255, 0))


def test_cmyk(texture):
    picture = PIL.Image.fromarray(texture).convert("CMYK")
    for file_format in ("TIFF", "JPEG"):
        stream = io.BytesIO()
        picture.save(stream, file_format, **({"quality": 98} if file_format == "JPEG" else {}))
        stream.seek(0)
        difference = np.abs(read_image(stream).pixels.astype(int) - texture)
        assert difference.mean() < 10, file_format


def test_first_frame_of_several(texture):
    frames = [PIL.Image.fromarray(texture), PIL.Image.fromarray(255 - texture)]
    for file_format, options in [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("MPO", {})]:
        stream = io.BytesIO()
        frames[0].save(stream, file_format, save_all=True, append_images=frames[1:], **options)
        stream.seek(0)
        assert np.abs(read_image(stream).pixels.astype(int) - texture).mean() < 10, file_format


def test_transparent_pixels_are_masked(texture):
    alpha = np.full((240, 320), 255, np.uint8)
    alpha[:100], alpha[100:120] = 0, 1
    rgba = np.dstack([texture, alpha])
    expected = np.where(alpha == 0, 0, 255)
    for source in (
        rgba,
        encoded(rgba, "PNG"),
        encoded(rgba, "WEBP", lossless=True, exact=True),
        encoded(rgba, "TIFF"),
    ):
        image = read_image(source)
        assert np.array_equal(image.mask, expected)
        assert np.array_equal(image.pixels[100:], texture[100:])
    opaque = np.dstack([texture, np.full((240, 320), 9, np.uint8)])
    assert read_image(opaque).mask is None

    hole = np.full((240, 320), 255, np.uint8)
    hole[:, :50] = 0
    both = read_image(rgba, mask=hole)
    assert np.array_equal(both.mask, np.minimum(expected, hole))


def test_palette_and_grey_transparency(texture):
    index = np.arange(240 * 320, dtype=np.uint8).reshape(240, 320) % 7
    picture = PIL.Image.fromarray(index).convert("P")
    picture.putpalette([c for i in range(7) for c in (i * 30, 255 - i, i)])
    stream = io.BytesIO()
    picture.save(stream, "PNG", transparency=3)
    image = read_image(io.BytesIO(stream.getvalue()))
    assert np.array_equal(image.mask == 0, index == 3)
    assert image.pixels[0, 2].tolist() == [60, 253, 2]

    la = np.dstack([texture[..., 0], np.where(index == 1, 0, 255).astype(np.uint8)])
    stream = io.BytesIO()
    PIL.Image.fromarray(la, "LA").save(stream, "PNG")
    image = read_image(io.BytesIO(stream.getvalue()))
    assert np.array_equal(image.mask == 0, index == 1)
    assert np.array_equal(image.pixels[..., 2], texture[..., 0])


# ------------------------------------------------------------------------ 16 bits and floats


def test_sixteen_bits_of_full_range(texture, tmp_path):
    """A picture that uses its 16 bits is divided by 257, whichever way it comes."""
    deep = texture[..., 0].astype(np.uint16) * 257
    expected = np.dstack([texture[..., 0]] * 3)
    cv2.imwrite(str(tmp_path / "a.png"), deep)
    cv2.imwrite(str(tmp_path / "a.tif"), deep)
    (tmp_path / "a.pgm").write_bytes(b"P5 320 240 65535\n" + deep.astype(">u2").tobytes())
    big_endian = PIL.Image.frombytes("I;16B", (320, 240), deep.astype(">u2").tobytes())
    big_endian.save(tmp_path / "big.tif")
    for source in (deep, deep.astype(">u2"), deep[..., None], *sorted(tmp_path.iterdir())):
        assert np.array_equal(read_image(source).pixels, expected), source
    assert np.array_equal(read_image(texture.astype(np.uint16) * 257).pixels, texture)


def test_sixteen_bit_colour_file_keeps_its_upper_bits(texture, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), texture[..., ::-1].astype(np.uint16) * 257)
    assert np.array_equal(read_image(tmp_path / "a.png").pixels, texture)


@pytest.mark.parametrize(("low", "high"), [(0, 4095), (0, 16383), (28000, 31000), (7000, 7600)])
def test_narrow_sixteen_bits_are_stretched(rng, low, high):
    """12 bits in 16, and thermal images, keep their contrast."""
    truth = rng.uniform(0, 1, (100, 120))
    deep = (low + truth * (high - low)).astype(np.uint16)
    deep[0, 0] = 65535  # one hot pixel must not decide
    pixels = read_image(deep).pixels[..., 0].astype(float)
    assert np.abs(pixels - truth * 255)[1:].max() < 3
    assert pixels[0, 0] == 255


def test_no_count_becomes_more_than_one_grey_level():
    deep = np.full((50, 60), 1000, np.uint16)
    deep[:, 30:] = 1001
    pixels = read_image(deep).pixels
    assert int(pixels.max()) - int(pixels.min()) == 1
    eight_in_sixteen = np.arange(256, dtype=np.uint16).repeat(16).reshape(64, 64)
    assert np.abs(read_image(eight_in_sixteen).pixels[..., 0].astype(int) - eight_in_sixteen).max() <= 1


@pytest.mark.parametrize("value", [0, 300, 65535])
def test_flat_sixteen_bits(value):
    assert (read_image(np.full((9, 9), value, np.uint16)).pixels == round(value / 257)).all()


def test_floats_and_bools(texture, tmp_path):
    grey = texture[..., 0]
    for kind in (np.float32, np.float64):
        assert np.array_equal(read_image((texture / 255).astype(kind)).pixels, texture)
    assert np.abs(read_image((texture / 255).astype(np.float16)).pixels.astype(int) - texture).max() <= 1
    assert np.array_equal(read_image(grey > 100).pixels[..., 0], np.where(grey > 100, 255, 0))

    PIL.Image.fromarray((grey / 255).astype(np.float32)).save(tmp_path / "unit.tif")
    assert np.array_equal(read_image(tmp_path / "unit.tif").pixels[..., 0], grey)
    PIL.Image.fromarray(grey.astype(np.float32) * -3.5 + 900).save(tmp_path / "heights.tif")
    stretched = read_image(tmp_path / "heights.tif").pixels[..., 0].astype(float)
    assert np.corrcoef(stretched.ravel(), grey.ravel())[0, 1] < -0.99 and np.ptp(stretched) == 255
    PIL.Image.fromarray(grey.astype(np.int32) * 257).save(tmp_path / "int.tif")
    assert np.array_equal(read_image(tmp_path / "int.tif").pixels[..., 0], grey)


# --------------------------------------------------------------- pixels that are no data, bands


def thermal(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    """A smooth field with structure, (120, 160), between two values."""
    field = cv2.resize(rng.uniform(0, 1, (30, 40)), (160, 120), interpolation=cv2.INTER_CUBIC)
    return low + (high - low) * (field - field.min()) / np.ptp(field)


def with_border(values: np.ndarray, value: float, width: int = 5) -> np.ndarray:
    return np.pad(values[width:-width, width:-width], width, constant_values=value)


BORDER = with_border(np.ones((120, 160)), 0) == 0


@pytest.mark.parametrize(
    ("low", "high", "value", "kind"),
    [
        (18.0, 35.0, -9999, np.float32),
        (18.0, 35.0, np.nan, np.float32),
        (18.0, 35.0, np.inf, np.float32),
        (18.0, 35.0, -3.4028234663852886e38, np.float32),
        (0.2, 0.9, 0.0, np.float32),
        (28_000, 28_400, 0, np.uint16),
        (28_000, 28_400, 65535, np.uint16),
        (10, 60_000, 0, np.uint16),
    ],
)
def test_border_without_data_is_masked(rng, tmp_path, low, high, value, kind):
    """Pixels with data come out as if there were no border."""
    import tifffile

    values = thermal(rng, low, high).astype(kind)
    tifffile.imwrite(tmp_path / "a.tif", with_border(values, value))
    image = read_image(tmp_path / "a.tif")
    assert image.mask is not None and np.array_equal(image.mask == 0, BORDER)
    expected = read_image(tmp_path / "a.tif").pixels
    tifffile.imwrite(tmp_path / "b.tif", np.ascontiguousarray(values[5:-5, 5:-5]))
    inside = read_image(tmp_path / "b.tif")
    assert inside.mask is None
    assert np.abs(image.pixels[5:-5, 5:-5].astype(int) - inside.pixels).max() <= 1
    assert np.array_equal(expected[:5, 5:-5], np.repeat(expected[5:6, 5:-5], 5, axis=0))  # no edge where data ends


def test_dark_corners_and_hot_pixels_are_data(rng, tmp_path):
    import tifffile

    values = thermal(rng, 100, 60_000).astype(np.uint16)
    values[:50, :50] = 0  # black, and as far from the rest as that spreads: a shadow
    values[60, 60] = 65535
    tifffile.imwrite(tmp_path / "a.tif", values)
    assert read_image(tmp_path / "a.tif").mask is None
    levels = np.full((40, 50), 1000, np.uint16)
    levels[:, 25:] = 1001
    tifffile.imwrite(tmp_path / "b.tif", levels)
    assert read_image(tmp_path / "b.tif").mask is None


def test_gdal_nodata_tag(texture, tmp_path):
    """Eight bits too, where only the tag tells black from missing; in colour all bands must have the value."""
    import tifffile

    hole = texture.copy()
    hole[40:60, 40:60] = 0
    hole[100, 100] = (0, 9, 9)
    for name, array, tag in (("colour.tif", hole, "0"), ("grey.tif", hole[..., 0] | (hole[..., 1] > 0), "0 ")):
        tifffile.imwrite(tmp_path / name, array, extratags=[(42113, "s", 0, tag, True)])
        image = read_image(tmp_path / name)
        nothing = (array == 0).reshape(240, 320, -1).all(axis=2)
        assert image.mask is not None and np.array_equal(image.mask == 0, nothing)
    tifffile.imwrite(tmp_path / "odd.tif", texture, extratags=[(42113, "s", 0, "none", True)])
    assert read_image(tmp_path / "odd.tif").mask is None
    tifffile.imwrite(tmp_path / "nothing.tif", np.full((9, 9), 7, np.int16), extratags=[(42113, "s", 0, "7", True)])
    with pytest.raises(InputError, match="holds no data"):
        read_image(tmp_path / "nothing.tif")


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32, np.float64])
def test_bands_are_named(texture, tmp_path, planar, kind):
    import tifffile

    unit = 1 if np.dtype(kind).kind == "f" else np.iinfo(kind).max
    red, green, blue = (texture[..., i] / 255 * unit for i in range(3))
    bands = np.stack([blue * 0, blue, green, red, blue * 0 + unit / 2], axis=-1).astype(kind)
    stored = bands if planar == "contig" else np.ascontiguousarray(np.moveaxis(bands, -1, 0))
    path = tmp_path / "five.tif"
    tifffile.imwrite(path, stored, planarconfig=planar, photometric="minisblack")
    with pytest.raises(InputError, match=r"five\.tif: has 5 bands.*--bands 3,2,1"):
        read_image(path)
    assert np.array_equal(read_image(path, bands=(4, 3, 2)).pixels, texture)
    assert np.array_equal(read_image(path, bands=[2]).pixels, np.dstack([texture[..., 2]] * 3))
    with pytest.raises(InputError, match="has 5 bands, and so no band 6"):
        read_image(path, bands=(6, 1, 2))
    with pytest.raises(ArgumentError, match="one or three numbers"):
        read_image(path, bands=(1, 2))


def test_bands_of_ordinary_files_and_arrays(texture, tmp_path):
    PIL.Image.fromarray(texture).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", bands=(3, 2, 1)).pixels, texture[..., ::-1])
    with pytest.raises(InputError, match="has 3 bands, and so no band 4"):
        read_image(tmp_path / "a.png", bands=(4, 3, 2))
    PIL.Image.fromarray(texture[..., 0]).save(tmp_path / "grey.png")
    with pytest.raises(InputError, match="has 1 band, and so no band 3"):
        read_image(tmp_path / "grey.png", bands=(3, 2, 1))
    assert np.array_equal(read_image(np.dstack([texture, texture]), bands=(4, 5, 6)).pixels, texture)


def test_pages_are_no_bands(texture, tmp_path):
    """A second page may be a mask, a thumbnail or another photograph: the first is used, and bands are said to lack."""
    import tifffile

    pages = np.stack([texture[..., 0], texture[..., 1], texture[..., 2]])
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack")
    assert np.array_equal(read_image(tmp_path / "a.tif").pixels, np.dstack([texture[..., 0]] * 3))
    with pytest.raises(InputError, match=r"has 1 band, and so no band 3.*pages"):
        read_image(tmp_path / "a.tif", bands=(3, 2, 1))


def test_the_header_tells_what_decoding_would(texture, tmp_path, monkeypatch):
    import tifffile

    five = np.dstack([texture, texture[..., :2]])
    tifffile.imwrite(tmp_path / "five.tif", five, photometric="minisblack", planarconfig="contig")
    PIL.Image.fromarray(texture).save(tmp_path / "a.png")
    monkeypatch.setattr(tifffile.TiffFile, "__init__", lambda *_: pytest.fail("decoded"))
    for name, bands, words in (
        ("five.tif", None, "has 5 bands"),
        ("five.tif", (6,), "no band 6"),
        ("a.png", (4,), "4"),
    ):
        with pytest.raises(InputError, match=words):
            check_readable(tmp_path / name, bands)
    check_readable(tmp_path / "five.tif", (5, 1, 2))
    check_readable(tmp_path / "a.png", (3, 2, 1))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(InputError, match=r"tiepoint\[tiff\]"):
        check_readable(tmp_path / "five.tif", (1,))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_float_tiffs(texture, tmp_path, kind, channels):
    import tifffile

    picture, kinds = texture if channels == 3 else texture[..., 0], {1: "minisblack", 3: "rgb"}
    tifffile.imwrite(tmp_path / "unit.tif", (picture / 255).astype(kind), photometric=kinds[channels])
    expected = picture.reshape(240, 320, -1) + np.zeros((1, 1, 3), np.uint8)
    assert np.abs(read_image(tmp_path / "unit.tif").pixels.astype(int) - expected).max() <= (kind == np.float16)
    tifffile.imwrite(tmp_path / "wide.tif", picture.astype(kind) * 7 - 300, photometric=kinds[channels])
    wide = read_image(tmp_path / "wide.tif").pixels.astype(float)
    assert np.corrcoef(wide.ravel(), expected.ravel())[0, 1] > 0.999 and np.ptp(wide) == 255


def test_a_tiff_of_bands_is_turned_upright(texture, tmp_path):
    import tifffile

    turned = np.ascontiguousarray(np.rot90(np.dstack([texture, texture[..., :2]])))
    tifffile.imwrite(
        tmp_path / "a.tif", turned, photometric="minisblack", planarconfig="contig", extratags=[(274, "H", 1, 6, True)]
    )
    assert np.array_equal(read_image(tmp_path / "a.tif", bands=(1, 2, 3)).pixels, texture)
    assert np.array_equal(read_exif(tmp_path / "a.tif").size, (320, 240))


@pytest.mark.parametrize("compression", ["zlib", "lzw"])
def test_compressed_bands(texture, tmp_path, compression):
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    layout = {"photometric": "minisblack", "planarconfig": "contig", "compression": compression, "predictor": True}
    tifffile.imwrite(tmp_path / "a.tif", np.dstack([texture, texture]), **layout)
    assert np.array_equal(read_image(tmp_path / "a.tif", bands=(4, 2, 6)).pixels, texture)


def test_bands_without_their_package(texture, tmp_path, monkeypatch):
    import tifffile

    layout = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "a.tif", np.dstack([texture, texture]), **layout)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(InputError, match=r"a TIFF of 6 bands of 8 bits needs.*pip install 'tiepoint\[tiff\]'"):
        read_image(tmp_path / "a.tif", bands=(1, 2, 3))


def test_too_many_bands_are_refused_by_the_header(tmp_path):
    import tifffile

    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((50, 50, 9), np.uint8), photometric="minisblack", planarconfig="contig"
    )
    with pytest.raises(InputError, match="of 9 bands are too many"):
        read_image(tmp_path / "a.tif", bands=(1, 2, 3), max_pixels=2600)


def test_thermal_cases(cases_dir):
    """What is right is in the cases' README: no data is masked, keypoints are as without the border."""
    sift = load("sift")
    for name in ("nodata9999_01", "nodata9999_02", "u16zero_01", "u16zero_02"):
        image = read_image(cases_dir / "thermal" / f"{name}.tif")
        assert image.mask is not None
        rows, columns = np.nonzero(image.mask)
        inside = image.pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (image.mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] == 255).all()
        with_it, without = sift(image), sift(inside)
        assert len(without) > 500 and abs(len(with_it) - len(without)) < 0.02 * len(without)
        offset = np.array([columns.min(), rows.min()])
        known = {tuple(np.round(xy, 0)) for xy in without.keypoints.numpy() + offset}
        shared = sum(tuple(np.round(xy, 0)) in known for xy in with_it.keypoints.numpy())
        assert shared > 0.9 * len(with_it), name
    five = cases_dir / "thermal" / "five_01.tif"
    with pytest.raises(InputError, match="has 5 bands"):
        read_image(five)
    assert len(sift(read_image(five, bands=(3, 2, 1)))) > 500


# ----------------------------------------------------------------------------- HEIC and raw files


def test_heic(texture, tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    exif = PIL.Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0110] = 6, "Acme", "One"
    stored = np.ascontiguousarray(np.rot90(texture))
    heif = pillow_heif.from_pillow(PIL.Image.fromarray(stored))
    heif.save(tmp_path / "a.heic", quality=95, exif=exif.tobytes())
    before = dict(PIL.Image.OPEN)
    image = read_image(tmp_path / "a.heic")
    assert image.size == (320, 240) and np.abs(image.pixels.astype(int) - texture).mean() < 8
    told = read_exif(tmp_path / "a.heic")
    assert told.size == (320, 240) and told.camera == "Acme One"
    assert before == PIL.Image.OPEN  # nothing registered for the whole process


def test_heic_without_its_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    with pytest.raises(InputError, match=r"pip install 'tiepoint\[heic\]'; or convert it to JPEG"):
        read_image(tmp_path / "a.heic")


def test_raw_files_say_what_to_do(texture, tmp_path):
    """Pillow takes many for TIFFs, and reads the thumbnail in them."""
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", texture[:20, :30], extratags=[(50706, "B", 4, (1, 4, 0, 0), True)])
    (tmp_path / "b.NEF").write_bytes((tmp_path / "a.tif").read_bytes())
    (tmp_path / "c.raf").write_bytes(b"FUJIFILMCCD-RAW " + bytes(100))
    for name in ("a.tif", "b.NEF", "c.raf"):
        with pytest.raises(InputError, match=f"{name}: is a camera's raw file; develop it to a JPEG"):
            read_image(tmp_path / name)
    PIL.Image.fromarray(texture).save(tmp_path / "d.dng", "JPEG")
    assert read_image(tmp_path / "d.dng").size == (320, 240)


# ------------------------------------------------------------------------------------ headers


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_headers_are_read_without_decoding(tmp_path, monkeypatch, kind):
    """A file of a few kilobytes may hold gigabytes of pixels; EXIF may stand behind them."""
    exif = PIL.Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Acme"
    path = tmp_path / "a"
    PIL.Image.new("L", (9000, 5000)).save(
        path, kind, exif=exif.tobytes(), **({"compression": "tiff_adobe_deflate"} if kind == "TIFF" else {})
    )
    data = path.read_bytes()
    if kind == "PNG":  # the EXIF chunk moves behind the pixels
        at = data.index(b"eXIf") - 4
        length = int.from_bytes(data[at : at + 4], "big") + 12
        end = data.index(b"IEND") - 4
        path.write_bytes(data[:at] + data[at + length : end] + data[at : at + length] + data[end:])
    loaded = []
    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", lambda picture: loaded.append(picture))
    told = read_exif(path)
    assert not loaded
    assert told.size == (5000, 9000) and told.orientation == 6 and told.camera == "Acme"


def test_headers_of_too_large_files_are_refused(tmp_path):
    PIL.Image.new("1", (30_000, 20_000)).save(tmp_path / "big.png")
    with pytest.raises(InputError, match=r"big\.png: 30000x20000 pixels, more than the limit of 500 megapixels"):
        read_exif(tmp_path / "big.png")


# ------------------------------------------------------------------------------------ arrays


def test_arrays_are_neither_changed_nor_writable(texture):
    for source in (texture, texture[..., 0], texture[::-1, :, ::-1], texture.astype(np.uint16)):
        before = source.copy()
        image = read_image(source, mask=np.ones((240, 320), bool))
        assert np.array_equal(source, before) and source.flags.writeable == before.flags.writeable
        assert image.pixels.flags.c_contiguous and not image.pixels.flags.writeable
        assert image.mask is not None and not image.mask.flags.writeable
    assert np.shares_memory(read_image(texture).pixels, texture)
    assert np.array_equal(read_image(texture[..., ::-1]).pixels, texture[..., ::-1])


def test_image_passes_through(texture):
    image = Image(texture, name="mine")
    assert read_image(image) is image
    masked = read_image(image, mask=np.zeros((240, 320), np.uint8))
    assert masked.name == "mine" and masked.mask is not None and not masked.mask.any() and image.mask is None


@pytest.mark.parametrize(
    ("pixels", "mask"),
    [
        (np.zeros((4, 5), np.uint8), None),
        (np.zeros((4, 5, 3), np.float32), None),
        (np.zeros((0, 5, 3), np.uint8), None),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), np.uint8)),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), bool)),
    ],
)
def test_image_made_by_hand_is_checked(pixels, mask):
    with pytest.raises(InputError, match="mine"):
        Image(pixels, mask, "mine")


# ------------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF-LZW", "MPO"])
def test_orientation(texture, orientation, file_format):
    """Stored pixels are made from the upright picture by what EXIF's definition says in words."""
    # Where the first row and the first column of the stored array lie in the upright picture.
    rows, columns = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[orientation]
    stored = texture
    if "bottom" in (rows, columns):
        stored = stored[::-1]
    if "right" in (rows, columns):
        stored = stored[:, ::-1]
    if rows in ("left", "right"):
        stored = stored.transpose(1, 0, 2)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = {
        "JPEG": {"quality": 95},
        "MPO": {"quality": 95},
        "WEBP": {"lossless": True},
        "TIFF-LZW": {"compression": "tiff_lzw"},
    }.get(file_format, {})
    stored = np.ascontiguousarray(stored)
    stream = encoded(stored, file_format.split("-")[0], exif=exif.tobytes(), **options)
    pixels = read_image(stream).pixels
    assert pixels.shape == texture.shape
    assert np.abs(pixels.astype(int) - texture).mean() < 6
    stream.seek(0)
    assert np.array_equal(pixels, PIL.ImageOps.exif_transpose(PIL.Image.open(stream)).convert("RGB"))


def test_orientation_of_sixteen_bits(tmp_path):
    deep = (np.arange(20 * 30, dtype=np.uint16) * 100).reshape(20, 30)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(deep).save(tmp_path / "a.png", exif=exif.tobytes())
    assert np.array_equal(read_image(tmp_path / "a.png").pixels, read_image(np.rot90(deep, -1)).pixels)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_senseless_orientation_is_ignored(texture, value):
    exif = PIL.Image.Exif()
    exif[0x0112] = value
    assert np.array_equal(read_image(encoded(texture, "PNG", exif=exif.tobytes())).pixels, texture)


def test_damaged_exif_does_not_spoil_the_photograph(texture, recwarn):
    for junk in (
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0" + bytes(40),
        b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12",
    ):
        assert read_image(encoded(texture, "JPEG", exif=junk)).size == (320, 240)
    assert not recwarn.list


# ------------------------------------------------------------------------------------- masks


def test_mask_of_any_number_type(texture, tmp_path):
    allowed = np.zeros((240, 320), bool)
    allowed[20:200, 30:90] = True
    values = [allowed, allowed.astype(np.uint8), allowed * 255.0, allowed.astype(np.int64) * 7]
    values += [allowed[..., None], np.dstack([allowed, allowed * 0, allowed * 0]), allowed.astype(np.uint16)]
    for value in values:
        mask = read_image(texture, mask=value).mask
        assert mask is not None and mask.dtype == np.uint8
        assert np.array_equal(mask != 0, allowed)
    files = {
        "grey.png": allowed.astype(np.uint8),
        "bits.png": allowed,
        "deep.png": allowed.astype(np.uint16),
        "colour.png": np.dstack([allowed * 0, allowed * 0, allowed * 255]).astype(np.uint8),
        "float.tif": allowed.astype(np.float32) * 1e-3,
    }
    for name, array in files.items():
        PIL.Image.fromarray(array).save(tmp_path / name)
        mask = read_image(texture, mask=tmp_path / name).mask
        assert mask is not None and np.array_equal(mask != 0, allowed), name


def test_mask_has_the_size_after_orientation(texture, tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(texture).save(tmp_path / "a.jpg", exif=exif.tobytes())
    image = read_image(tmp_path / "a.jpg", mask=np.ones((320, 240)))
    assert image.size == (240, 320) and image.mask is not None and image.mask.shape == (320, 240)
    with pytest.raises(InputError, match="EXIF"):
        read_image(tmp_path / "a.jpg", mask=np.ones((240, 320)))


def test_mask_of_other_size_names_both(texture, tmp_path):
    for name, size in (("a.png", (320, 240)), ("m.png", (320, 239))):
        PIL.Image.new("L", size).save(tmp_path / name)
    with pytest.raises(InputError, match=r"m\.png.*320x239.*a\.png.*320x240"):
        read_image(tmp_path / "a.png", mask=tmp_path / "m.png")


# ------------------------------------------------------------------------------------ limits


def test_limit_is_checked_before_decoding(tmp_path):
    path = tmp_path / "big.png"
    PIL.Image.new("L", (3000, 1000)).save(path)
    damaged = path.read_bytes()[:60]  # nothing but the header is there to be read
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"big\.png: 3000x1000 pixels, more than the limit of 2 megapixels"):
        read_image(path, max_pixels=2_000_000)


def test_pillows_limit_neither_applies_nor_changes(tmp_path, monkeypatch, recwarn):
    """A 200-megapixel phone is above Pillow's default limit; here the limit is small instead."""
    path = tmp_path / "a.jpg"
    PIL.Image.new("L", (400, 300)).save(path)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    assert read_image(path).size == (400, 300)
    assert PIL.Image.MAX_IMAGE_PIXELS == 1000 and not recwarn.list


def test_threads_leave_the_warning_filters_alone(texture):
    data = encoded(texture[:32, :32], "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff").getvalue()
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [read_image(io.BytesIO(data)) for _ in range(20)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


def test_stream_is_read_from_where_it_stands(texture):
    stream = io.BytesIO(b"header" + encoded(texture, "PNG").getvalue())
    stream.seek(6)
    image = read_image(stream)
    assert image.name == "<stream>" and np.array_equal(image.pixels, texture)
    assert not stream.closed


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF"])
def test_a_pillow_image_is_the_file_it_came_from(texture, tmp_path, orientation, file_format):
    path = tmp_path / "a.picture"
    exif = PIL.Image.Exif()
    exif[274] = orientation
    PIL.Image.fromarray(texture).save(path, file_format, exif=exif)
    with PIL.Image.open(path) as opened:
        image = read_image(opened)
    assert np.array_equal(image.pixels, read_image(path).pixels) and image.name == str(path)


def test_pillow_images_of_all_modes(texture, tmp_path):
    rgb = PIL.Image.fromarray(texture)
    assert read_image(rgb).name == "<image>"
    for mode in ("L", "P", "1", "CMYK", "I;16", "F"):
        picture = rgb.convert("L" if mode in ("I;16", "F") else mode)
        if mode == "I;16":
            picture = PIL.Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
        elif mode == "F":
            picture = PIL.Image.fromarray(np.asarray(picture).astype(np.float32) / 255)
        picture.save(tmp_path / "a.tif")
        assert np.array_equal(read_image(picture).pixels, read_image(tmp_path / "a.tif").pixels), mode
    clear = np.dstack([texture, np.full(texture.shape[:2], 255, np.uint8)])
    clear[:50, :, 3] = 0
    assert np.array_equal(read_image(PIL.Image.fromarray(clear)).mask, clear[..., 3])


def test_a_pillow_image_that_cannot_be_used(texture, tmp_path):
    PIL.Image.fromarray(texture).save(tmp_path / "a.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:3000])
    with PIL.Image.open(tmp_path / "half.jpg") as opened, pytest.raises(InputError, match=r"half\.jpg"):
        read_image(opened)
    with pytest.raises(InputError, match="320x240 pixels are too many"):
        read_image(PIL.Image.fromarray(texture), max_pixels=1000)


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.float64, torch.bool])
def test_a_tensor_is_the_array_with_channels_first(texture, kind):
    first = torch.from_numpy(texture).permute(2, 0, 1)
    tensor = first / 255 if kind.is_floating_point else first > 128 if kind == torch.bool else first
    tensor = tensor.to(kind)
    expected = read_image(np.ascontiguousarray(tensor.permute(1, 2, 0).numpy())).pixels
    for given in (tensor, tensor[None], tensor.requires_grad_() if kind.is_floating_point else tensor):
        assert np.array_equal(read_image(given).pixels, expected)
    grey = read_image(tensor[1])
    assert np.array_equal(grey.pixels, read_image(tensor.detach()[1].numpy()).pixels) and grey.name == "<tensor>"
    narrow = tensor[:, :, :3]  # 3 columns, not 3 channels
    assert np.array_equal(read_image(narrow).pixels, expected[:, :3])


def test_half_precision_tensors(texture):
    exact = torch.from_numpy(texture).permute(2, 0, 1) / 255
    for kind, error in ((torch.float16, 1), (torch.bfloat16, 1)):
        assert np.abs(read_image(exact.to(kind)).pixels.astype(int) - texture).max() <= error


def test_tensors_that_are_no_image(texture):
    for shape in ((2, 3, 8, 8), (8,), (1, 1, 3, 8, 8)):
        with pytest.raises(InputError, match="not that of one image"):
            read_image(torch.zeros(shape))
    with pytest.raises(InputError, match="not that of one image"):
        read_image(torch.zeros(8, 8, 3))  # channels last
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        read_image(torch.full((3, 8, 8), 200.0))


def test_masks_of_all_kinds(texture):
    mask = np.zeros((240, 320), np.uint8)
    mask[:, 100:] = 255
    for given in (PIL.Image.fromarray(mask), torch.from_numpy(mask), torch.from_numpy(mask)[None]):
        assert np.array_equal(read_image(texture, given).mask != 0, mask != 0)
    with pytest.raises(InputError, match="<mask tensor>"):
        read_image(texture, torch.zeros(5, 5))


def test_real_photograph(data_dir: Path):
    path = data_dir / "demo" / "berlin" / "images" / "01.jpg"
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert np.abs(read_image(path).pixels.astype(int) - bgr[..., ::-1]).mean() < 1


# ---------------------------------------------------------------------------------- resizing


def test_resize_contract(texture):
    assert resize(texture, 320) is texture and resize(texture, 1000) is texture
    assert resize(texture, 100).shape == (75, 100, 3)
    assert resize(texture, 640, enlarge=True).shape == (480, 640, 3)
    assert resize(texture.transpose(1, 0, 2), 99).shape == (99, 74, 3)
    assert resize(np.zeros((3, 1000, 3), np.uint8), 10).shape == (1, 10, 3)
    with pytest.raises(ArgumentError):
        resize(texture, 0)


@pytest.mark.parametrize("size", [(640, 480), (641, 479), (1000, 333), (333, 1000), (500, 37)])
@pytest.mark.parametrize("long_side", [200, 251, 160])
def test_blobs_come_back_to_where_they_were(size, long_side):
    """The centre of a blob, measured in the resized picture, maps back to within a tenth of a pixel."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    for cx, cy in [(width * 0.3, height * 0.5), (width - 17.25, height - 17.5), (17.5, 17.25)]:
        blob = 250 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * 4.0**2))
        small = resize(np.dstack([np.rint(blob).astype(np.uint8)] * 3), long_side)
        weight = small[..., 0].astype(float)
        v, u = np.mgrid[: small.shape[0], : small.shape[1]]
        found = [(weight * u).sum() / weight.sum(), (weight * v).sum() / weight.sum()]
        features = Features(torch.tensor([found]).float(), torch.ones(1), torch.ones(1, 2), (1, 1), "test")
        back = resized(features, (small.shape[1], small.shape[0]), size)
        assert np.abs(back.keypoints[0].numpy() - (cx, cy)).max() < 0.1
        assert back.image_size == size


def test_resize_mask_takes_the_pixel_under_the_centre(rng):
    mask = rng.integers(0, 2, (37, 53)).astype(np.uint8) * 255
    for width, height in [(53, 37), (20, 14), (106, 74), (7, 37)]:
        small = resize_mask(mask, (width, height))
        assert small.shape == (height, width)
        for j in range(height):
            for i in range(width):
                assert small[j, i] == mask[int((j + 0.5) * 37 / height), int((i + 0.5) * 53 / width)]
