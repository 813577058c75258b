"""Folders of photographs: one lister, one order, one table of suffixes, masks."""

from __future__ import annotations

import os
from pathlib import Path

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiepoint.errors import InputError
from tiepoint.io import decoding
from tiepoint.io.folders import find_images, find_masks, in_order, list_images, natural_key, numbered, times_in_names
from tiepoint.mapping.steps.images import new_images
from tiepoint.training.data.photographs import build_cache


def test_suffixes_are_the_decoders_own() -> None:
    PIL.Image.init()
    for kind, suffixes in decoding.FORMATS.items():
        if kind != "HEIF":  # of a package of its own
            kinds = (kind, "MPO") if kind == "JPEG" else (kind,)
            assert set(suffixes) == {suffix for suffix, one in PIL.Image.EXTENSION.items() if one in kinds}
    assert not set(decoding.SUFFIXES) & set(decoding.FOREIGN_SUFFIXES)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with everything in it that may lie among photographs."""
    root = tmp_path / "photos"
    for name in (
        "a/2.jpg",
        "a/10.JPG",
        "b.jfif",
        "c.mpo",
        "d.jpe",
        ".hidden.jpg",
        "._b.jpg",
        ".git/e.jpg",
        "notes.txt",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (20, 10), (len(name), 0, 0)).save(path, "JPEG")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    PIL.Image.new("RGB", (20, 10), "blue").save(elsewhere / "far.png")
    (root / "linked").symlink_to(elsewhere)
    (root / "single.png").symlink_to(elsewhere / "far.png")
    (root / "loop").symlink_to(root)
    (root / "0 also a").symlink_to(root / "a")
    (root / "to itself.jpg").symlink_to(root / "to itself.jpg")
    (root / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    if hasattr(os, "mkfifo"):
        os.mkfifo(root / "pipe.jpg")
    (root / "folder.jpg").mkdir()
    return root


FOUND = ["a/2.jpg", "a/10.JPG", "b.jfif", "c.mpo", "d.jpe", "linked/far.png", "single.png"]
BROKEN = ["gone.jpg", "to itself.jpg"]  # named, so that people learn that they are missing


def test_lister(tree: Path) -> None:
    assert sorted(list_images(tree)) == sorted(FOUND + BROKEN)
    assert list_images(tree, recursive=False) == ["b.jfif", "c.mpo", "d.jpe", "gone.jpg", "single.png", "to itself.jpg"]
    assert [name for name in list_images(tree) if name.startswith("a/")] == ["a/2.jpg", "a/10.JPG"]
    with pytest.raises(InputError, match="cannot be searched"):
        list_images(tree / "nowhere")


def test_all_verbs_see_the_same_photographs(tree: Path, tmp_path: Path) -> None:
    assert sorted(find_images([tree])) == sorted(FOUND + BROKEN)
    pytest.importorskip("pycolmap")
    found, skipped = new_images(tree)
    reasons = dict(skipped)
    assert {image.name for image in found} | set(reasons) == {*FOUND, *BROKEN}
    assert set(BROKEN) <= set(reasons)
    with pytest.raises(InputError, match=f"found {len(FOUND + BROKEN) - 2} photographs"):
        for name in FOUND[:2]:
            (tree / name).unlink()
        build_cache(tree, tmp_path / "cache")


def test_one_name_for_a_file_that_can_be_reached_both_ways(tree: Path) -> None:
    (tree / "a" / "up").symlink_to(tree)
    assert sorted(list_images(tree)) == sorted(FOUND + BROKEN)


@given(st.lists(st.integers(0, 10**6), unique=True))
def test_numbers_count_as_numbers(numbers: list[int]) -> None:
    names = [f"clip 3/frame{number}.jpg" for number in numbers]
    assert in_order(names) == [f"clip 3/frame{number}.jpg" for number in sorted(numbers)]


@given(st.lists(st.text("ab19/.-_é²", min_size=1), unique=True))
def test_any_names_have_an_order(names: list[str]) -> None:
    assert sorted(names, key=natural_key) == sorted(reversed(names), key=natural_key)


def test_time_stamps_are_times() -> None:
    """As text, or with the decimals as a number, .5 would come before .25."""
    assert in_order(["9.5.png", "10.25.png", "9.25.png"]) == ["9.25.png", "9.5.png", "10.25.png"]
    names = ["rgb/1305031102.211214.png", "rgb/1305031102.175304.png"]
    assert times_in_names(names) == {names[0]: 1305031102.211214, names[1]: 1305031102.175304}
    assert times_in_names(["1403636579763555584.png"]) == {
        "1403636579763555584.png": pytest.approx(1403636579.763555584)
    }
    assert times_in_names([*names, "cover.png"]) is None and times_in_names([]) is None


def test_which_names_tell_an_order() -> None:
    assert numbered([f"DSC_{i}.JPG" for i in (1, 5, 9)]) and numbered(
        ["left1.png", "left2.png", "right1.png", "right2.png"]
    )
    assert not numbered(["d41d8cd9.jpg", "8f00b204.jpg", "e9800998.jpg"])


def test_masks(tmp_path: Path) -> None:
    names = ["a/1.jpg", "b.jpg"]
    with pytest.raises(InputError, match="no such folder; give the folder of the masks"):
        find_masks(tmp_path / "nowhere", names)
    masks = tmp_path / "masks"
    masks.mkdir()
    with pytest.raises(InputError, match=r"has no mask of any of the 2 photographs.*masks/a/1\.jpg\.png"):
        find_masks(masks, names)
    PIL.Image.new("L", (4, 4)).save(masks / "b.png")
    with pytest.raises(InputError, match=r"has 1 images, such as b\.png, but no mask"):
        find_masks(masks, names)
    (masks / "b.png").rename(masks / "b.jpg.png")
    assert find_masks(masks, names) == {"b.jpg": masks / "b.jpg.png"}
    assert find_masks(masks, ["x" * 300 + ".jpg", "b.jpg"]) == {"b.jpg": masks / "b.jpg.png"}
