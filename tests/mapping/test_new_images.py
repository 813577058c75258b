"""Cameras from EXIF, with pycolmap's own reading of EXIF as the reference, and which photographs share one."""

from __future__ import annotations

import math
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from PIL.TiffImagePlugin import IFDRational

from tiepoint.errors import ArgumentError, InputError
from tiepoint.io.exif import order_in_time, read_exif
from tiepoint.io.images import read_image
from tiepoint.mapping.steps.images import camera_of, new_images
from tiepoint.types import Image

pycolmap = pytest.importorskip("pycolmap")

MAKE, MODEL, ORIENTATION = 0x010F, 0x0110, 0x0112
MM, FILM, RESOLUTION, UNIT, PIXELS_X, PIXELS_Y = 0x920A, 0xA405, 0xA20E, 0xA210, 0xA002, 0xA003


def photograph(
    path: Path,
    size: tuple[int, int] = (600, 400),
    main: dict[int, Any] | None = None,
    exif: dict[int, Any] | None = None,
    gps: dict[int, Any] | None = None,
    colour: str = "red",
) -> Path:
    tags = PIL.Image.Exif()
    tags.update(main or {})
    tags.get_ifd(0x8769).update(exif or {})
    tags.get_ifd(0x8825).update(gps or {})
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, colour).save(path, exif=tags)
    return path


@pytest.mark.parametrize(
    ("exif", "focal"),
    [
        ({FILM: 24}, 400.0),  # 3:2 as the film: 24 mm of 36 mm, of 600 pixels
        ({MM: IFDRational(50), RESOLUTION: IFDRational(400), UNIT: 4, PIXELS_X: 6000, PIXELS_Y: 4000}, 2000.0),
        ({MM: IFDRational(254, 10), RESOLUTION: IFDRational(20), PIXELS_X: 600}, 20.0 * 25.4 / 25.4),  # inches
        ({MM: IFDRational(10), RESOLUTION: IFDRational(500), UNIT: 3}, 500.0),  # centimetres; nobody shrank it
    ],
)
def test_focal_length_by_hand(tmp_path: Path, exif: dict[int, Any], focal: float) -> None:
    path = photograph(tmp_path / "a.jpg", exif=exif)
    if focal < 60:  # a tenth of the long side: absurd
        with pytest.warns(UserWarning, match=r"a\.jpg: .* 25\.4 mm .* 0\.0333 times the long side: ignored"):
            camera = camera_of(path)
        assert not camera.has_prior_focal_length
        return
    camera = camera_of(path)
    assert camera.has_prior_focal_length
    assert camera.params.tolist() == pytest.approx([focal, 300, 200, 0])


@pytest.mark.parametrize("size", [(600, 400), (400, 600), (640, 480), (800, 450)])
@pytest.mark.parametrize(
    ("main", "exif"),
    [
        ({}, {FILM: 28}),
        ({MAKE: "Canon", MODEL: "Canon EOS 5D"}, {MM: IFDRational(35)}),  # by the list of known sensors
        ({MAKE: "Apple", MODEL: "iPhone 4"}, {MM: IFDRational(385, 100), FILM: 35}),
        ({MAKE: "No", MODEL: "Such Camera"}, {MM: IFDRational(35)}),
        ({}, {}),
    ],
)
def test_focal_length_as_colmap_reads_it(
    tmp_path: Path, size: tuple[int, int], main: dict[int, Any], exif: dict[int, Any]
) -> None:
    path = photograph(tmp_path / "a.jpg", size, main, exif)
    ours, theirs = camera_of(path), pycolmap.infer_camera_from_image(path)
    assert (ours.model_name, ours.width, ours.height) == (theirs.model_name, theirs.width, theirs.height)
    assert ours.has_prior_focal_length == theirs.has_prior_focal_length
    # COLMAP takes 35 mm for the long side of film, whatever the shape of the picture; ours is the standard's diagonal.
    assert ours.focal_length == pytest.approx(theirs.focal_length, rel=0.06)
    assert ours.params[1:].tolist() == theirs.params[1:].tolist()


@pytest.mark.parametrize("model", ["SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "OPENCV", "OPENCV_FISHEYE", "FOV"])
def test_models(model: str) -> None:
    camera = camera_of(Image(np.zeros((40, 60, 3), np.uint8)), model)
    assert camera.model_name == model and camera.verify_params()
    assert camera.mean_focal_length() == 72 and not camera.has_prior_focal_length
    given = camera_of(Image(np.zeros((40, 60, 3), np.uint8)), model, focal=55.5)
    assert given.mean_focal_length() == 55.5 and given.has_prior_focal_length


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_that_of_the_upright_picture(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = photograph(tmp_path / f"a.{suffix}", main={ORIENTATION: orientation}, exif={FILM: 24})
    camera = camera_of(path)
    assert (camera.width, camera.height) == read_image(path).size
    assert camera.focal_length == pytest.approx(400 if camera.has_prior_focal_length else 720)
    if suffix != "tif":  # Pillow drops the sub-directory when it writes TIFF so
        assert camera.has_prior_focal_length


@pytest.mark.parametrize("film", [1, 2000, 65535])
def test_absurd_focal_lengths_are_ignored_with_a_warning(tmp_path: Path, film: int) -> None:
    exif = {FILM: film, MM: IFDRational(50), RESOLUTION: IFDRational(400), UNIT: 4, PIXELS_X: 6000}
    path = photograph(tmp_path / "odd.jpg", exif={FILM: film})
    with pytest.warns(UserWarning, match=rf"odd\.jpg: .* {film} mm that amounts to .*: ignored"):
        camera = camera_of(path)
    assert camera.focal_length == 720 and not camera.has_prior_focal_length
    path = photograph(tmp_path / "half.jpg", exif=exif)
    with pytest.warns(UserWarning, match=r"half\.jpg"):  # the other tags still help
        assert camera_of(path).focal_length == pytest.approx(2000)


@pytest.mark.parametrize(
    "exif",
    [
        {FILM: 0},
        {MM: IFDRational(0, 0), RESOLUTION: IFDRational(1, 0)},
        {MM: IFDRational(50), RESOLUTION: IFDRational(0), UNIT: 9},
        {MM: "fifty"},
    ],
)
def test_unknown_values_are_like_none(tmp_path: Path, exif: dict[int, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert camera_of(photograph(tmp_path / "a.jpg", exif=exif)).focal_length == 720


def test_damaged_exif_is_like_none(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.jpg", exif={FILM: 24})
    data = path.read_bytes()
    start = data.index(b"Exif\0\0") + 6
    path.write_bytes(data[:start] + b"\xff" * 30 + data[start + 30 :])
    assert camera_of(path).focal_length == 720


def test_position(tmp_path: Path) -> None:
    def at(**changes: Any) -> tuple[float, float, float] | None:
        gps = {1: "S", 2: (33.0, 51.0, 24.12), 3: "E", 4: (151.0, 12.0, 54.0), 5: b"\1", 6: 12.5}
        gps.update({int(tag[1:]): value for tag, value in changes.items()})
        return read_exif(photograph(tmp_path / "a.jpg", gps={k: v for k, v in gps.items() if v is not None})).position

    assert at() == pytest.approx((-33.8567, 151.215, -12.5), abs=1e-6)
    assert at(t1="N", t3="W", t5=b"\0") == pytest.approx((33.8567, -151.215, 12.5), abs=1e-6)
    without_altitude = at(t5=None, t6=None)
    assert without_altitude is not None and math.isnan(without_altitude[2])
    assert at(t1=None) is None and at(t4=None) is None
    assert at(t2=(133.0, 0.0, 0.0)) is None
    assert at(t2=(0.0, 0.0, 0.0), t4=(0.0, 0.0, 0.0)) is None
    assert at(t2=(IFDRational(0, 0), 0.0, 0.0)) is None


def test_unreadable_files_and_wrong_options(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        camera_of(tmp_path / "none.jpg")
    (tmp_path / "text.jpg").write_text("not a photograph")
    with pytest.raises(InputError, match=r"text\.jpg: not an image"):
        camera_of(tmp_path / "text.jpg")
    picture = Image(np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(ArgumentError, match=r"'RADIALISH'; there are: .*SIMPLE_RADIAL"):
        camera_of(picture, "RADIALISH")
    for focal in (0.0, -5.0, math.nan, math.inf):
        with pytest.raises(ArgumentError, match="positive number"):
            camera_of(picture, focal=focal)
    with pytest.raises(ArgumentError, match="auto, folder, image, all"):
        new_images(tmp_path, share="some")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no such folder"):
        new_images(tmp_path / "none")


def keys(folder: Path, share: str = "auto") -> dict[str, str | None]:
    found, skipped = new_images(folder, share=share)  # type: ignore[arg-type]
    assert skipped == []
    return {image.name: image.camera_key for image in found}


def test_who_shares_a_camera(tmp_path: Path) -> None:
    phone = {MAKE: "Acme", MODEL: "One"}
    names = ["p/0.jpg", "p/1.jpg", "q/2.jpg", "p/zoomed.jpg", "p/upright.jpg"]
    for k, name in enumerate(names):
        zoom = 50 if "zoomed" in name else 24
        size = (400, 600) if "upright" in name else (600, 400)
        photograph(tmp_path / name, size, {**phone, ORIENTATION: 1}, {FILM: zoom}, colour=f"rgb({40 * k}, 0, 0)")
    auto = keys(tmp_path)
    assert auto["p/0.jpg"] == auto["p/1.jpg"] == auto["q/2.jpg"] is not None
    assert len({auto["p/0.jpg"], auto["p/zoomed.jpg"], auto["p/upright.jpg"]}) == 3
    assert set(keys(tmp_path, "image").values()) == {None}
    by_folder = keys(tmp_path, "folder")
    assert by_folder["p/0.jpg"] == by_folder["p/zoomed.jpg"] != by_folder["q/2.jpg"]
    assert by_folder["p/upright.jpg"] != by_folder["p/0.jpg"]
    assert len(set(keys(tmp_path, "all").values())) == 2


def test_who_shares_a_camera_without_exif(tmp_path: Path) -> None:
    for k in range(3):
        photograph(tmp_path / f"one/{k}.png", (60, 40) if k else (40, 60), colour=f"rgb({40 * k}, 0, 0)")
        photograph(tmp_path / f"internet/{k}.png", (60, 40 + k), colour=f"rgb(0, {40 * k}, 0)")
    auto = keys(tmp_path)
    assert auto["one/1.png"] == auto["one/2.png"] is not None and auto["one/0.png"] not in (None, auto["one/1.png"])
    assert [auto[f"internet/{k}.png"] for k in range(3)] == [None] * 3


def test_shared_camera_takes_the_focal_length_that_is_known(tmp_path: Path) -> None:
    photograph(tmp_path / "a.jpg")
    photograph(tmp_path / "b.jpg", exif={FILM: 24})
    found, _ = new_images(tmp_path, share="all")
    assert [image.camera.focal_length for image in found] == pytest.approx([400, 400])
    assert all(image.camera.has_prior_focal_length for image in found)
    found, _ = new_images(tmp_path, share="all", model="PINHOLE", focal=500)
    assert [image.camera.params.tolist() for image in found] == [[500, 500, 300, 200]] * 2


def test_folder_with_everything_in_it(tmp_path: Path) -> None:
    good = photograph(tmp_path / "z/sub folder/ä.JPG", colour="blue")
    photograph(tmp_path / "b.png")
    (tmp_path / "a.jpg").write_bytes(good.read_bytes())  # the first by name stays
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "phone.avif").write_bytes(b"\0\0\0\x18ftypavif" + bytes(20))
    (tmp_path / "raw.NEF").write_bytes(b"II*\0\x08\0\0\0" + bytes(20))
    (tmp_path / "notes.txt").write_text("no photograph")
    photograph(tmp_path / ".hidden" / "c.jpg")
    (tmp_path / "._b.png").write_bytes(b"what macOS leaves behind")
    found, skipped = new_images(tmp_path)
    assert [image.name for image in found] == ["a.jpg", "b.png"]
    reasons = dict(skipped)
    assert list(reasons) == ["broken.jpg", "empty.png", "phone.avif", "raw.NEF", "z/sub folder/ä.JPG"]
    assert reasons["z/sub folder/ä.JPG"] == "the same as a.jpg, byte for byte"
    assert "convert it" in reasons["phone.avif"] and "develop it" in reasons["raw.NEF"]
    assert "broken.jpg: damaged" in reasons["broken.jpg"]

    found, skipped = new_images(tmp_path, ["b.png", "gone.jpg", "b.png"])
    assert [image.name for image in found] == ["b.png"]
    assert [name for name, _ in skipped] == ["gone.jpg"] and "no such file" in skipped[0][1]
    assert new_images(tmp_path / ".hidden", []) == ([], [])


def test_names_that_a_database_cannot_hold(tmp_path: Path) -> None:
    odd = b"caf\xe9.png"
    photograph(tmp_path / "a.png")
    try:
        Path(str(tmp_path), odd.decode("utf-8", "surrogateescape")).write_bytes(
            (tmp_path / "a.png").read_bytes() + b" "
        )
    except OSError:
        pytest.skip("this file system has only UTF-8 names")
    found, skipped = new_images(tmp_path)
    assert [image.name for image in found] == ["a.png"]
    assert "not valid UTF-8" in skipped[0][1]


def test_warnings_name_the_file(tmp_path: Path) -> None:
    photograph(tmp_path / "odd.jpg", exif={FILM: 5000})
    with pytest.warns(UserWarning, match=r"odd\.jpg"):
        found, skipped = new_images(tmp_path)
    assert len(found) == 1 and skipped == []


def test_files_of_one_size_are_compared_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = photograph(tmp_path / "a.jpg").read_bytes()
    for name, end in (("a.jpg", b"1"), ("b.jpg", b"2"), ("c.jpg", b"1")):
        (tmp_path / name).write_bytes(first + bytes(5 << 20) + end)
    monkeypatch.setattr(Path, "read_bytes", None)
    tracemalloc.start()
    found, skipped = new_images(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [image.name for image in found] == ["a.jpg", "b.jpg"] and [name for name, _ in skipped] == ["c.jpg"]
    assert peak < 5e6


def test_order_in_time(tmp_path: Path) -> None:
    names = ["m.jpg", "a.jpg", "x.jpg"]
    times = {0x9003: "2024:05:01 10:00:00"}
    for n, name in enumerate(names):
        photograph(tmp_path / name, exif={**times, 0x9291: str(3 * n)})
    assert order_in_time(tmp_path, names) == (
        names,
        "the names tell no order; the images are taken by their EXIF times",
    )
    photograph(tmp_path / "b.jpg", exif={0x9003: "yesterday"})
    ordered, note = order_in_time(tmp_path, [*names, "b.jpg"])
    assert ordered == ["a.jpg", "b.jpg", "m.jpg", "x.jpg"] and "neither names nor EXIF times" in note
    assert order_in_time(tmp_path, ["f10.jpg", "f9.jpg"]) == (["f9.jpg", "f10.jpg"], "")  # which are not even there
