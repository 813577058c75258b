"""What the world feeds to programs: each input gives one clear error that names it, or a right result.

Nothing here may end in another exception, hang, or leave a file behind.
"""

from __future__ import annotations

import io
import os
import signal
import socket
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import tiepoint as tp
from tiepoint.cli import main
from tiepoint.errors import InputError, MissingDependencyError, WeightsError

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    """Turn a hang into a failure."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise TimeoutError("hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def sift() -> tp.features.Extractor:
    return tp.features.load("sift", max_keypoints=50)


def photo(width: int = 96, height: int = 64) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.kron(rng.integers(0, 255, (height // 8, width // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)


def encode(file_format: str, array: np.ndarray | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(photo() if array is None else array).save(stream, file_format, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def jpeg_of_size(width: int, height: int) -> bytes:
    """A small JPEG whose header claims another size."""
    data = encode("JPEG")
    return patched(data, data.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))


def tiff(width: int, height: int, data: bytes = b"\0" * 64) -> bytes:
    """An 8-bit grey TIFF, written by hand."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1)]
    tags += [(273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, len(data))]
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + ifd + struct.pack("<I", 0)


def bmp_of_size(width: int, height: int) -> bytes:
    return patched(encode("BMP"), 18, struct.pack("<ii", width, height))


def nan_tiff() -> bytes:
    values = np.ones((20, 20), np.float32)
    values[3, 3] = np.nan
    return encode("TIFF", values)


def heavy_text_png() -> bytes:
    """A text chunk of a few kilobytes that unpacks to hundreds of megabytes."""
    text = b"Comment\0\0" + zlib.compress(bytes(20_000_000), 9)
    return png(4, 4, chunk(b"zTXt", text), chunk(b"IDAT", zlib.compress(bytes(20))))


def closed_picture() -> PIL.Image.Image:
    picture = PIL.Image.open(io.BytesIO(encode("PNG")))
    picture.close()
    return picture


# What the file holds, and what the error must say.
BAD_FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.jpg": (lambda: b"", "empty"),
    "one_byte.jpg": (lambda: b"\xff", "not an image"),
    "one_letter.ppm": (lambda: b"P", "not an image"),
    "text.jpg": (lambda: b"This is not a photograph at all.\n" * 50, "not an image"),
    "page.png": (lambda: b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "not an image"),
    "drawing.png": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="5"/>', "not an image"),
    "document.tif": (lambda: b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nendobj\n", "not an image"),
    "archive.jpg": (lambda: b"PK\x03\x04" + bytes(100), "not an image"),
    "array.png": (lambda: b"\x93NUMPY\x01\x00v\x00{'descr': '|u1'}" + bytes(200), "not an image"),
    "phone.heic": (lambda: bytes(3) + b"\x18ftypheic" + bytes(300), "HEI[CF]"),
    "script.jpg": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "zeros.jpg": (lambda: bytes(10_000), "not an image"),
    "p2p.jpg": (lambda: b"P2P networks are explained here, in words.\n" * 9, "damaged"),
    "magic_only.jpg": (lambda: b"\xff\xd8\xff", "damaged"),
    "magic_only.png": (lambda: b"\x89PNG\r\n\x1a\n", "damaged"),
    "magic_only.webp": (lambda: b"RIFF\x10\0\0\0WEBPVP8 ", "damaged"),
    "magic_only.tif": (lambda: b"II*\0", "damaged"),
    "header_only.jpg": (lambda: encode("JPEG")[:200], "damaged"),
    "half.jpg": (lambda: encode("JPEG", quality=95)[:-700], "truncated"),
    "half_progressive.jpg": (lambda: encode("JPEG", quality=95, progressive=True)[:-700], "truncated"),
    "half.png": (lambda: encode("PNG", noise())[:-5000], "damaged"),
    "half.webp": (lambda: encode("WEBP", noise())[:-900], "damaged"),
    "half.tif": (lambda: encode("TIFF", noise())[:9000], "damaged"),
    "zeroed.tif": (lambda: encode("TIFF", noise(), compression="tiff_lzw")[:99] + bytes(9000), "damaged"),
    "half.gif": (lambda: encode("GIF", noise()[..., 0])[:-3000], "damaged"),
    "half.bmp": (lambda: encode("BMP", noise())[:-3000], "damaged"),
    "half.ppm": (lambda: encode("PPM", noise())[:-3000], "damaged"),
    "bad_crc_in_header.png": (lambda: patched(encode("PNG"), 29, b"\0\0\0\0"), "damaged"),
    "bad_pixels.png": (lambda: patched(encode("PNG", noise()), 3000, b"\xaa" * 400), "damaged"),
    "no_pixels.png": (lambda: png(30, 20), "damaged"),
    "zero_width.png": (lambda: png(0, 20, chunk(b"IDAT", zlib.compress(b""))), "no pixels|damaged"),
    "zero_height.jpg": (lambda: jpeg_of_size(96, 0), "damaged|no pixels"),
    "zero_size.tif": (lambda: tiff(0, 0), "damaged|no pixels"),
    "bomb.png": (lambda: png(60_000, 60_000, chunk(b"IDAT", zlib.compress(bytes(9)))), "limit of 500 mega"),
    "bomb.jpg": (lambda: jpeg_of_size(65_500, 65_500), "limit of 500 megapixels"),
    "bomb.tif": (lambda: tiff(200_000, 200_000), "limit of 500 megapixels"),
    "bomb.bmp": (lambda: bmp_of_size(2_000_000, 2_000_000), "limit of 500 megapixels"),
    "bomb.ppm": (lambda: b"P6 999999 999999 255\n" + bytes(99), "limit of 500 megapixels"),
    "negative.bmp": (lambda: bmp_of_size(-96, 64), "damaged|no pixels|limit"),
    "negative.ppm": (lambda: b"P6 -3 -3 255\n" + bytes(99), "damaged|no pixels"),
    "loop.tif": (lambda: b"II*\0\x08\0\0\0\0\0\x08\0\0\0", "damaged"),
    "heavy_text.png": (heavy_text_png, "damaged"),
    "only_nan.tif": (lambda: encode("TIFF", np.full((20, 20), np.nan, np.float32)), "holds (no data|NaN)"),
}  # fmt: skip


def noise() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 255, (64, 96, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file(name, tmp_path, sift, recwarn):
    make, says = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(make())
    for attempt in (
        lambda: tp.read_image(path),
        lambda: sift(str(path)),
        lambda: tp.read_image(photo(), mask=path),
    ):
        with pytest.raises(InputError, match=says) as caught:
            attempt()
        message = str(caught.value)
        assert message.startswith(str(path)) and "\n" not in message and len(message) < 500
    with pytest.raises(InputError, match=says):
        tp.read_image(io.BytesIO(path.read_bytes()))
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert not [str(w.message) for w in recwarn.list]


# ------------------------------------------------------------ paths that are no regular file


def missing(folder: Path) -> Path:
    return folder / "missing.jpg"


def missing_folder(folder: Path) -> Path:
    return folder / "no" / "such" / "folder.jpg"


def a_folder(folder: Path) -> Path:
    (folder / "photos.jpg").mkdir()
    return folder / "photos.jpg"


def inside_a_file(folder: Path) -> Path:
    (folder / "a.jpg").write_bytes(encode("JPEG"))
    return folder / "a.jpg" / "b.jpg"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.jpg")
    return folder / "pipe.jpg"


def unix_socket(folder: Path) -> Path:
    path = Path("/tmp") / f"tiepoint-{os.getpid()}.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    (folder / "socket.jpg").symlink_to(path)
    return folder / "socket.jpg"


def link_in_a_circle(folder: Path) -> Path:
    (folder / "circle.jpg").symlink_to(folder / "circle.jpg")
    return folder / "circle.jpg"


def link_to_nowhere(folder: Path) -> Path:
    (folder / "link.jpg").symlink_to(folder / "gone.jpg")
    return folder / "link.jpg"


def forbidden(folder: Path) -> Path:
    path = folder / "forbidden.jpg"
    path.write_bytes(encode("JPEG"))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    return path


@posix_only
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (missing, "no such file"),
        (missing_folder, "no such file"),
        (lambda folder: "", "''"),
        (a_folder, "is a folder"),
        (lambda folder: ".", "is a folder"),
        (inside_a_file, "cannot be opened"),
        (pipe, "device or a pipe"),
        (unix_socket, "device or a pipe"),
        (lambda folder: "/dev/zero", "device or a pipe"),
        (lambda folder: "/dev/null", "device or a pipe"),
        (link_in_a_circle, "cannot be opened"),
        (link_to_nowhere, "no such file"),
        (forbidden, "no permission"),
        (lambda folder: "a\0b.jpg", "cannot be opened"),
        (lambda folder: str(folder / ("x" * 300 + ".jpg")), "cannot be opened"),
        (lambda folder: str(folder) + "/long" * 2000 + ".jpg", "cannot be opened"),
        (lambda folder: os.fsdecode(b"not-\xff\xfe-utf8.jpg"), "no such file"),
        (lambda folder: "two\nlines\x1b[31m.jpg", "no such file"),
    ],
    ids=lambda value: getattr(value, "__name__", value) if callable(value) else value,
)
def test_bad_path(make, says, tmp_path):
    path = make(tmp_path)
    with pytest.raises(InputError, match=says) as caught:
        tp.read_image(path)
    message = str(caught.value)
    assert message.isprintable(), "an error must not break the terminal or its encoding"
    assert not str(path) or message.count(str(path)) <= 1, "named once, not an error within an error"
    assert Path(path).name[:5].isprintable() is False or Path(path).name[:5] in message


# ---------------------------------------------------------------- arrays, streams, and worse


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.array([[{}, None]], object), "object"),
        (np.array([["a", "b"]]), "not real numbers"),
        (np.zeros((3, 3), complex), "complex"),
        (np.zeros((3, 3), "datetime64[s]"), "datetime"),
        (np.zeros((3, 3), [("r", "u1"), ("g", "u1")]), "not real numbers"),
        (np.zeros((2, 4, 5, 3), np.uint8), "shape"),
        (np.zeros((4, 5, 5), np.uint8), "shape"),
        (np.zeros((4, 5, 2), np.uint8), "shape"),
        (np.zeros((3, 40, 50), np.uint8), "shape"),
        (np.zeros(7, np.uint8), "shape"),
        (np.array(5, np.uint8), "shape"),
        (np.zeros((0, 5), np.uint8), "no pixels"),
        (np.zeros((5, 0, 3), np.float32), "no pixels"),
        (np.full((3, 3), np.nan), "NaN"),
        (np.full((3, 3, 3), np.inf, np.float32), "infinity"),
        (np.full((3, 3), 255.0), "divide"),
        (np.full((3, 3), -0.5), r"\[0, 1\]"),
        (np.zeros((3, 3), np.int64), "int64"),
        (np.zeros((3, 3), np.int8), "int8"),
        (np.zeros((3, 3), np.uint32), "uint32"),
    ],
    ids=lambda value: f"{value.dtype}-{value.shape}" if isinstance(value, np.ndarray) else "",
)
def test_bad_array(array, says):
    with pytest.raises(InputError, match=says) as caught:
        tp.read_image(array)
    assert "<array>" in str(caught.value)


class Endless(io.RawIOBase):
    """Gives zeros for ever."""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        assert size > 0, "reads all of an endless stream"
        return bytes(size)


class Failing(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        raise OSError(5, "Input/output error")


class FailingLate(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        if self.tell():
            raise OSError(5, "Input/output error")
        return super().read(size)


class Nothing(io.RawIOBase):
    def read(self, size: int = -1) -> None:  # a non-blocking stream without data
        return None


def closed() -> io.BytesIO:
    stream = io.BytesIO(encode("PNG"))
    stream.close()
    return stream


def at_end() -> io.BytesIO:
    stream = io.BytesIO(encode("PNG"))
    stream.read()
    return stream


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (io.BytesIO, "empty"),
        (at_end, "seek"),
        (closed, "closed"),
        (lambda: io.StringIO("text"), "binary"),
        (lambda: io.BytesIO(b"text, not an image"), "not an image"),
        (Endless, "not an image"),
        (Failing, "Input/output error"),
        (lambda: FailingLate(encode("PNG")), "Input/output error"),
        (Nothing, "binary"),
    ],
)
def test_bad_stream(make, says):
    with pytest.raises(InputError, match=says) as caught:
        tp.read_image(make())
    assert "<stream>" in str(caught.value)


@pytest.mark.parametrize("thing", [None, 5, [[1, 2], [3, 4]], b"\xff\xd8\xff", {}])
def test_bad_type(thing):
    with pytest.raises(InputError, match=type(thing).__name__):
        tp.read_image(thing)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: torch.empty(3, 8, 8, device="meta"), "dense tensor"),
        (lambda: torch.eye(8).to_sparse(), "dense tensor"),
        (lambda: torch.quantize_per_tensor(torch.rand(8, 8), 0.1, 0, torch.quint8), "dense tensor"),
        (lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "dense tensor"),
        (lambda: torch.zeros(3, 8, 8, dtype=torch.complex64), "complex64"),
        (lambda: torch.zeros(2, 3, 8, 8), r"\(2, 3, 8, 8\)"),
        (lambda: torch.zeros(7, 8, 8), "shape"),
        (lambda: torch.full((3, 8, 8), torch.nan), "NaN"),
        (lambda: torch.zeros(3, 0, 8), "no pixels"),
        (lambda: PIL.Image.new("RGB", (0, 5)), "no pixels"),
        (lambda: PIL.Image.open(io.BytesIO(encode("PNG", noise())[:3000])), "truncated"),
        (closed_picture, "closed"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(prototype|deprecated)")
def test_bad_tensors_and_pictures(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        tp.read_image(make())


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (np.ones((64, 95)), "95x64.*96x64"),
        (np.ones((96, 64)), "64x96.*96x64.*EXIF"),
        (np.ones((1, 1)), "1x1"),
        (np.full((64, 96), np.nan), "NaN"),
        (np.ones((64, 96, 5)), "shape"),
        (np.ones((0, 0)), "no pixels"),
        (np.full((64, 96), "x"), "not real numbers"),
        ("missing_mask.png", "missing_mask.png: no such file"),
        (7, "int"),
    ],
)
def test_bad_mask(mask, says, sift):
    for attempt in (tp.read_image, sift):
        with pytest.raises(InputError, match=says):
            attempt(photo(), mask)


# ------------------------------------------------------- odd inputs that have a right result


def odd_but_fine() -> dict[str, tuple[str, bytes, tuple[int, int]]]:
    """Return name -> (file name, contents, size)."""
    jpeg, size = encode("JPEG"), (96, 64)
    frames = [PIL.Image.fromarray(photo()), PIL.Image.fromarray(255 - photo())]
    animation = io.BytesIO()
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
    pair = io.BytesIO()
    frames[0].save(pair, "MPO", save_all=True, append_images=frames[1:])
    transparent = np.zeros((64, 96, 4), np.uint8)
    return {
        "one pixel": ("a.png", encode("PNG", np.full((1, 1), 9, np.uint8)), (1, 1)),
        "one row": ("a.png", encode("PNG", np.zeros((1, 500), np.uint8)), (500, 1)),
        "one column": ("a.png", encode("PNG", np.zeros((500, 1), np.uint8)), (1, 500)),
        "smaller than a patch": ("a.png", encode("PNG", noise()[:15, :15]), (15, 15)),
        "black": ("a.png", encode("PNG", np.zeros((64, 96), np.uint8)), size),
        "white in 16 bits": ("a.png", encode("PNG", np.full((64, 96), 65535, np.uint16)), size),
        "fully transparent": ("a.png", encode("PNG", transparent), size),
        "wrong ending": ("a.tif", jpeg, size),
        "no ending": ("a", jpeg, size),
        "letters of the world": ("фото 📷 'a' $HOME;*.jpg", jpeg, size),
        "leading dash": ("-o.jpg", jpeg, size),
        "garbage behind the end": ("a.jpg", jpeg + b"garbage" * 99, size),
        "no end marker": ("a.png", encode("PNG")[:-12], size),
        "wrong checksum of sound pixels": (
            "a.png",
            patched(encode("PNG"), len(encode("PNG")) - 16, bytes(4)),
            size,
        ),
        "animation": ("a.gif", animation.getvalue(), size),
        "stereo pair": ("a.jpg", pair.getvalue(), size),
        "damaged EXIF": ("a.jpg", encode("JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), size),
        "damaged colour profile": ("a.jpg", encode("JPEG", icc_profile=b"nonsense" * 20), size),
        "one pixel without data": ("a.tif", nan_tiff(), (20, 20)),
        "giant comment": ("a.jpg", encode("JPEG", comment=b"x" * 65000), size),
    }


@pytest.mark.parametrize("name", odd_but_fine())
def test_odd_but_fine(name, tmp_path, sift):
    file_name, data, size = odd_but_fine()[name]
    path = tmp_path / file_name
    path.write_bytes(data)
    image = tp.read_image(path)
    assert image.size == size
    for extractor in (sift, tp.features.load("orb")):
        features = extractor(image)
        assert features.image_size == size and torch.isfinite(features.keypoints).all()
        x, y = features.keypoints.T
        assert ((x >= -0.5) & (x <= size[0] - 0.5) & (y >= -0.5) & (y <= size[1] - 0.5)).all()
        if name in ("black", "white in 16 bits", "fully transparent", "one pixel"):
            assert len(features) == 0


def strip(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 255, (height, width, 3), dtype=np.uint8)


EXTREME = {
    "one pixel": strip(1, 1),
    "one row": strip(1, 60),
    "one column": strip(60, 1),
    "3x500": strip(3, 500),
    "500x3": strip(500, 3),
    "as small as the least patch": strip(8, 8),
    "no multiple of any grid": strip(33, 71),
    "black": np.zeros((40, 56), np.uint8),
    "white": np.full((40, 56), 255, np.uint8),
    "a step": np.repeat(np.uint8([[0, 255]]), 28, axis=1).repeat(40, axis=0),
}


@pytest.mark.filterwarnings("ignore::tiepoint.weights.NonCommercialWeightsWarning")
@pytest.mark.parametrize("name", tp.features.names())
def test_every_extractor_on_extreme_images(name):
    """Features that make sense, or an error that names the least size; under a mask of zeros none at all."""
    try:
        extractor = tp.features.load(name, max_keypoints=50, nms_radius=3)
    except (WeightsError, MissingDependencyError) as error:
        pytest.skip(str(error).splitlines()[0])
    widths = set()
    for kind, pixels in EXTREME.items():
        height, width = pixels.shape[:2]
        for mask in (None, np.zeros((height, width), np.uint8), np.ones((height, width), np.uint8)):
            if min(height, width) < extractor.min_side:
                with pytest.raises(InputError, match=f"too small: {width}x{height} .* at least {extractor.min_side}"):
                    extractor(pixels, mask)
                continue
            found = extractor(pixels, mask)
            assert found.image_size == (width, height) and len(found) <= 50, kind
            x, y = found.keypoints.T
            assert ((x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)).all(), kind
            assert ((found.scores >= 0) & (found.scores <= 1)).all(), kind
            if not found.is_binary:
                assert torch.allclose(found.descriptors.norm(dim=1), torch.ones(len(found)), atol=1e-4), kind
            if mask is not None and not mask.any():
                assert len(found) == 0, kind
            widths.add((found.descriptors.shape[1], found.descriptors.dtype))
    assert len(widths) == 1


def test_stream_that_cannot_seek(sift):
    class Pipe(io.RawIOBase):
        source = io.BytesIO(encode("PNG"))

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            return self.source.read(size)

    assert np.array_equal(tp.read_image(Pipe()).pixels, photo())


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "PPM", "BMP", "GIF"])
def test_random_damage(file_format):
    """Whatever is flipped, cut or overwritten: an image of sane size, or an InputError."""
    rng = np.random.default_rng(3)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if file_format in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    sound = encode(file_format, photo()[:32, :40], **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(300):
            data = bytearray(sound)
            for _ in range(rng.integers(1, 6)):
                data[int(rng.integers(len(data) if rng.random() < 0.5 else 100))] = rng.integers(256)
            if rng.random() < 0.2:
                data = data[: rng.integers(len(data))]
            try:
                image = tp.read_image(io.BytesIO(bytes(data)), max_pixels=1_000_000)
            except InputError as error:
                assert str(error).isprintable()
            else:
                assert image.pixels.dtype == np.uint8 and image.pixels.shape[2] == 3


def test_one_bad_file_does_not_spoil_a_folder(tmp_path, sift):
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(encode("PNG"))
    (tmp_path / "b.png").write_bytes(b"")
    done, skipped = [], []
    for path in sorted(tmp_path.iterdir()):
        try:
            done.append(sift(path))
        except InputError as error:
            skipped.append(str(error))
    assert len(done) == 2 and len(skipped) == 1 and "b.png" in skipped[0]


# -------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    "name",
    [
        *("empty.jpg", "text.jpg", "half.jpg", "half.png", "bad_crc_in_header.png"),
        *("bomb.png", "bomb.jpg", "only_nan.tif", "phone.heic", "loop.tif"),
    ],
)
@pytest.mark.parametrize("side", [0, 1])
def test_command_line_with_bad_file(name, side, tmp_path, capfd):
    good, bad, out = tmp_path / "good.png", tmp_path / name, tmp_path / "out.npz"
    good.write_bytes(encode("PNG"))
    bad.write_bytes(BAD_FILES[name][0]())
    pair = [str(bad), str(good)] if side == 0 else [str(good), str(bad)]
    code = main(["match", *pair, "--features", "sift", "--matcher", "nearest", "-o", str(out)])
    printed = capfd.readouterr()
    assert code == 3
    assert name in printed.err and "Traceback" not in printed.err + printed.out and "bug" not in printed.err
    assert len(printed.err.splitlines()) == 1 and not printed.out
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([good.name, name])


@posix_only
@pytest.mark.parametrize("make", [missing, a_folder, pipe, link_in_a_circle], ids=lambda f: f.__name__)
def test_command_line_with_bad_path(make, tmp_path, capfd):
    good, out = tmp_path / "good.png", tmp_path / "out.npz"
    good.write_bytes(encode("PNG"))
    bad = make(tmp_path)
    assert main(["match", str(bad), str(good), "-f", "sift", "-m", "nearest", "-o", str(out)]) == 3
    printed = capfd.readouterr()
    assert bad.name in printed.err and "Traceback" not in printed.err and not out.exists()


def test_command_line_with_bad_mask(tmp_path, capfd):
    good, mask, out = tmp_path / "good.png", tmp_path / "mask.png", tmp_path / "out.npz"
    good.write_bytes(encode("PNG"))
    mask.write_bytes(encode("PNG", np.ones((3, 4), np.uint8)))
    arguments = ["-f", "sift", "-m", "nearest", "-o", str(out), "--mask1", str(mask)]
    assert main(["match", str(good), str(good), *arguments]) == 3
    assert "mask.png" in capfd.readouterr().err and not out.exists()


@posix_only
def test_a_page_called_a_photograph_starts_no_other_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow opens PostScript by running Ghostscript, which tiepoint never lets it do."""
    from PIL import EpsImagePlugin

    from tiepoint.io.decoding import is_picture
    from tiepoint.mapping.steps.images import camera_of

    started, programs = tmp_path / "started", tmp_path / "bin"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\necho x >> '{started}'\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # to be looked for again
    page, whole = tmp_path / "page.jpg", tmp_path / "whole.png"
    page.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\n%%EndComments\nshowpage\n%%EOF\n")
    whole.write_bytes(encode("PNG"))
    with pytest.raises(Exception, match=r".*"), PIL.Image.open(page) as picture:
        picture.load()
    assert started.exists()  # this is how it would look
    started.unlink()
    for read in (
        lambda: tp.read_image(page),
        lambda: tp.read_image(whole, page),  # as a mask
        lambda: tp.match(page, whole, features="sift", matcher="nearest"),
        lambda: camera_of(page),
    ):
        with pytest.raises(InputError, match="not an image"):
            read()
    assert not is_picture(page)
    assert main(["extract", str(page), "-f", "sift", "-o", str(tmp_path / "out.npz")]) == 3
    assert not started.exists()


@pytest.mark.parametrize("name", ["one pixel", "black", "fully transparent", "letters of the world", "stereo pair"])
def test_command_line_with_odd_file(name, tmp_path, capfd):
    file_name, data, _ = odd_but_fine()[name]
    odd, good, out = tmp_path / file_name, tmp_path / "good.png", tmp_path / "out.npz"
    odd.write_bytes(data)
    good.write_bytes(encode("PNG"))
    assert main(["match", str(odd), str(good), "-f", "sift", "-m", "nearest", "-o", str(out)]) == 0
    with np.load(out) as result:
        count = len(result["points0"])
        assert result["points0"].shape == result["points1"].shape == (count, 2)
        assert result["scores"].shape == (count,)
    assert "Traceback" not in capfd.readouterr().err
