"""The cache of photographs: what goes in comes out, splits do not leak, and damage is noticed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from tiepoint.errors import ArgumentError, InputError
from tiepoint.io.images import read_image
from tiepoint.training.data.photographs import build_cache, open_cache, source_of


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Twelve photographs with three crops each, in two sub-folders and three formats."""
    root = tmp_path / "photos"
    for number in range(12):
        group = root / ("town" if number % 2 else "country/deep")
        group.mkdir(parents=True, exist_ok=True)
        suffix = (".png", ".jpg", ".webp")[number % 3]
        for crop in ("", "_c0", "_c1", "_c12"):
            pixels = rng.integers(0, 256, (90, 140, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(group / f"{number:04d}{crop}{suffix}")
    (root / "README.md").write_text("no photograph")
    return root


def test_holds_what_pillow_decodes(folder: Path, tmp_path: Path) -> None:
    cache = build_cache(folder, tmp_path / "cache")
    assert len(cache) == 48 and cache.skipped == ()
    assert list(cache.names) == sorted(cache.names)
    for row in (0, 7, 30, 47):
        with PIL.Image.open(folder / cache.names[row]) as picture:
            np.testing.assert_array_equal(cache[row], np.asarray(picture.convert("RGB")))


def test_reduces_and_turns_but_never_enlarges(folder: Path, tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    PIL.Image.new("RGB", (600, 300), (200, 10, 10)).save(folder / "0000_big.jpg", exif=exif)
    cache = build_cache(folder, tmp_path / "cache", long_side=200)
    sizes = dict(zip(cache.names, cache.sizes.tolist(), strict=True))
    assert sizes["0000_big.jpg"] == [200, 100]
    assert sizes["town/0001.jpg"] == [90, 140]


def test_split_keeps_crops_with_their_photograph(folder: Path, tmp_path: Path) -> None:
    cache = build_cache(folder, tmp_path / "cache", held_out=0.25)
    assert len({source_of(cache.names[row]) for row in cache.held_out}) == 4, "at least four, to make unrelated pairs"
    cache = build_cache(folder, tmp_path / "cache", held_out=0.4)
    names = np.array(cache.names)
    train, held_out = ({source_of(name) for name in names[rows]} for rows in (cache.train, cache.held_out))
    assert len(train) == 7 and len(held_out) == 5 and not train & held_out
    assert len(cache.train) + len(cache.held_out) == len(cache)
    # More photographs: those held out before are held out still, or their number no longer allows it.
    PIL.Image.new("RGB", (90, 90)).save(folder / "new.png")
    grown = build_cache(folder, tmp_path / "cache", held_out=0.4)
    assert held_out <= {source_of(np.array(grown.names)[row]) for row in grown.held_out} | {"new"}


def test_is_rebuilt_only_when_the_folder_or_the_arguments_change(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    build_cache(folder, path)
    first = path.stat().st_ino
    build_cache(folder, path)
    assert path.stat().st_ino == first
    build_cache(folder, path, long_side=100)
    assert path.stat().st_ino != first
    assert len(build_cache(folder, path)) == 48
    (folder / "town" / "0001.jpg").unlink()
    assert len(build_cache(folder, path)) == 47
    PIL.Image.new("RGB", (90, 90)).save(folder / "at_the_top.png")
    assert len(build_cache(folder, path)) == 48


@pytest.mark.parametrize(
    "change",
    [
        {"sizes": [[90, 140]]},
        {"sizes": "90"},
        {"sizes": [[2**40, 2**40]] * 48},
        {"sizes": [[-90, -140]] * 48},
        {"sizes": [[89, 140]] * 48},
        {"names": [1] * 48},
        {"names": None},
        {"sources": [0.5] * 48},
        {"held_out": [2] * 48},
        {"skipped": [["a"]]},
        {"digest": 7},
        {"fingerprint": []},
        [],
        "[" * 100_000,
    ],
)
def test_an_index_is_not_believed(folder: Path, tmp_path: Path, change: Any) -> None:
    path = tmp_path / "cache"
    build_cache(folder, path)
    content, footer = path.read_bytes(), 16  # the length of the index, and the magic word
    length = int.from_bytes(content[-footer:-8], "little")
    index = content[-footer - length : -footer]
    new = {**json.loads(index), **change} if isinstance(change, dict) else change
    data = new.encode() if isinstance(new, str) else json.dumps(new).encode()
    path.write_bytes(content[: -footer - length] + data + len(data).to_bytes(8, "little") + content[-8:])
    with pytest.raises(InputError, match="cannot read the cache of photographs"):
        open_cache(path)
    path.write_bytes(content[:-footer] + (2**40).to_bytes(8, "little") + content[-8:])
    with pytest.raises(InputError, match="cannot read the cache of photographs"):
        open_cache(path)
    assert len(build_cache(folder, path)) == 48  # made anew


def test_damage_is_noticed_and_repaired(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    build_cache(folder, path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="cut off"):
        open_cache(path)
    assert len(build_cache(folder, path)) == 48
    with pytest.raises(InputError, match="no such file"):
        open_cache(tmp_path / "none")
    assert [p.name for p in tmp_path.iterdir() if "part" in p.name] == []
    photograph = folder / "town" / "0001.jpg"
    before = photograph.read_bytes()
    with pytest.raises(InputError, match="not a cache of photographs"):
        build_cache(folder, photograph)
    assert photograph.read_bytes() == before


def test_unusable_photographs_are_reported(folder: Path, tmp_path: Path) -> None:
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not much of a photograph")
    (folder / "empty.png").touch()
    whole = (folder / "town" / "0001.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    PIL.Image.new("RGB", (20, 300)).save(folder / "narrow.png")
    (folder / "twin.jpg").write_bytes(whole)
    cache = build_cache(folder, tmp_path / "cache")
    assert [name for name, _ in cache.skipped] == ["broken.jpg", "empty.png", "half.jpg", "narrow.png", "twin.jpg"]
    assert "too small" in cache.skipped[-2][1] and cache.skipped[-1][1] == "the same file as town/0001.jpg"
    assert len(cache) == 48


def test_bad_folders(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    with pytest.raises(InputError, match="no such folder"):
        build_cache(tmp_path / "nowhere", path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="found 0 photographs; training needs at least 8"):
        build_cache(tmp_path / "empty", path)
    crops = tmp_path / "crops"
    crops.mkdir()
    for number in range(20):
        PIL.Image.new("RGB", (90, 90), (number, 0, 0)).save(crops / f"0001_c{number}.png")
    with pytest.raises(InputError, match="1 different readable photographs"):
        build_cache(crops, path)
    for number in range(20):
        (crops / f"{number}.png").write_bytes(b"junk")
    with pytest.raises(InputError, match=r"the first of 20 skipped: 0\.png: not an image in a format that can be read"):
        build_cache(crops, path)
    with pytest.raises(ArgumentError, match="long_side"):
        build_cache(folder, path, long_side=3)
    assert not path.exists()


def test_workers_map_the_same_file(folder: Path, tmp_path: Path) -> None:
    cache = build_cache(folder, tmp_path / "cache")
    data = pickle.dumps(cache)
    assert len(data) < 1000
    np.testing.assert_array_equal(pickle.loads(data)[5], cache[5])  # noqa: S301


def test_draw_takes_different_sources_and_all_crops(folder: Path, tmp_path: Path) -> None:
    cache = build_cache(folder, tmp_path / "cache", held_out=0.25)
    generator, seen = _generator(), set()
    for _ in range(60):
        rows = cache.draw(8, generator)
        assert len(set(cache.sources[rows])) == 8
        seen.update(rows.tolist())
    assert seen == set(cache.train.tolist())
    assert set(cache.draw(50, generator, held_out=True).tolist()) <= set(cache.held_out.tolist())
    assert torch.equal(cache.draw(20, _generator(3)), cache.draw(20, _generator(3)))


def test_sample_keeps_aspect_and_stays_inside(tmp_path: Path) -> None:
    """Photographs whose colours are their coordinates: the samples say from where they were cut."""
    folder = tmp_path / "ramps"
    folder.mkdir()
    y, x = np.mgrid[:120, :200]
    for number in range(8):
        PIL.Image.fromarray(np.stack([x, y, x * 0 + number], -1).astype(np.uint8)).save(folder / f"{number}.png")
    cache = build_cache(folder, tmp_path / "cache")
    samples = cache.sample([0] * 40, (40, 50), _generator(), smallest_crop=0.5) * 255
    assert samples.shape == (40, 3, 40, 50) and samples.dtype == torch.float32
    step_x = (samples[:, 0, :, 30] - samples[:, 0, :, 10]) / 20
    step_y = (samples[:, 1, 30] - samples[:, 1, 10]) / 20
    assert (step_x.mean(1) - step_y.mean(1)).abs().max() < 0.06  # the same scale in both directions
    assert 1.4 < step_x.mean(1).min() < 1.9 and 2.7 < step_x.mean(1).max() < 3.05
    assert samples[:, 0].amin() < 10 and samples[:, 0].amax() > 190
    assert torch.equal(cache.sample([1, 2], (30, 30), _generator(5)), cache.sample([1, 2], (30, 30), _generator(5)))


def test_training_data_needs_neither_opencv_nor_kornia() -> None:
    code = (
        "import sys; sys.modules.update(cv2=None, kornia=None, poselib=None, skimage=None)\n"
        "from tiepoint.training.data import homographies, photographs, photometric, raycast, scenes"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_digest_tells_photographs_apart_by_their_content(folder: Path, tmp_path: Path) -> None:
    digest = build_cache(folder, tmp_path / "cache").digest
    assert build_cache(folder, tmp_path / "smaller", long_side=100).digest == digest
    shutil.copytree(folder, tmp_path / "copy")
    assert build_cache(tmp_path / "copy", tmp_path / "of_the_copy").digest == digest
    name = tmp_path / "copy" / "town" / "0001.jpg"
    with PIL.Image.open(name) as opened:
        turned = opened.rotate(180)
    turned.save(name)
    assert build_cache(tmp_path / "copy", tmp_path / "of_the_copy").digest != digest


def test_a_cache_that_cannot_be_written_is_an_error_of_ours(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        build_cache(folder, tmp_path / "file" / "photos.cache")


def test_photographs_are_decoded_as_everywhere(folder: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    """Sixteen bits keep their contrast, a PostScript file called .jpg starts no Ghostscript, links are followed."""
    deep = np.linspace(28_000, 29_000, 90 * 140).reshape(90, 140).astype(np.uint16)
    PIL.Image.fromarray(deep).save(folder / "deep.png")
    (folder / "page.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\n%%EndComments\nshowpage\n")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.jpg")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    PIL.Image.fromarray(rng.integers(0, 256, (90, 140, 3), dtype=np.uint8)).save(elsewhere / "far.jfif")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "linked" / "loop").symlink_to(folder)
    cache = build_cache(folder, tmp_path / "cache")
    rows = {name: row for row, name in enumerate(cache.names)}
    np.testing.assert_array_equal(cache[rows["deep.png"]], read_image(folder / "deep.png").pixels)
    assert np.ptp(cache[rows["deep.png"]]) > 240
    assert "linked/far.jfif" in rows and len(cache) == 50
    assert [name for name, _ in cache.skipped] == ["page.jpg"]
    assert "not an image in a format that can be read" in cache.skipped[0][1]


def test_a_large_jpeg_is_decoded_at_the_size_it_needs(folder: Path, tmp_path: Path) -> None:
    """As before, when Pillow alone did it: the same pixels."""
    y, x = np.mgrid[:1200, :1600]
    picture = np.stack([x * 255 / 1600, y * 255 / 1200, (x // 64 + y // 64) % 2 * 255], axis=-1).astype(np.uint8)
    PIL.Image.fromarray(picture).save(folder / "large.jpg")
    cache = build_cache(folder, tmp_path / "cache", long_side=200)
    with PIL.Image.open(folder / "large.jpg") as opened:
        opened.draft("RGB", (200, 200))
        expected = opened.convert("RGB").resize((200, 150), PIL.Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(cache[cache.names.index("large.jpg")], np.asarray(expected))
