"""`tiepoint.extract`: photographs of every kind, kept or written; what cannot be used is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray

import tiepoint as tp
from tiepoint.errors import ArgumentError, InputError, TiepointError


@pytest.fixture
def folder(texture: NDArray[np.uint8], tmp_path: Path) -> Path:
    """Two photographs, and one that is none."""
    place = tmp_path / "photographs"
    (place / "day 2").mkdir(parents=True)
    PIL.Image.fromarray(texture).save(place / "a.png")
    PIL.Image.fromarray(texture[::-1]).save(place / "day 2" / "b.png")
    (place / "broken.jpg").write_bytes(b"\xff\xd8 no photograph")
    return place


def same(a: tp.Features, b: tp.Features) -> bool:
    return torch.equal(a.keypoints, b.keypoints) and torch.equal(a.descriptors, b.descriptors)


def test_photographs_of_every_kind_give_the_same_features(texture: NDArray[np.uint8], tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    PIL.Image.fromarray(texture).save(path)
    expected = tp.features.load("sift", max_keypoints=200)(texture)
    tensor = torch.from_numpy(texture).permute(2, 0, 1)
    kinds = [texture, PIL.Image.fromarray(texture), tensor, tensor[None] / 255, tp.read_image(texture)]
    found = tp.extract(kinds, features="sift", max_keypoints=200)
    assert list(found.features) == ["0", "1", "2", "3", "4"]
    assert all(same(one, expected) for one in found.features.values())
    (by_path,) = tp.extract(path, features="sift", max_keypoints=200).features.values()
    assert same(by_path, expected)


def test_match_takes_them_too(texture: NDArray[np.uint8]) -> None:
    other = np.ascontiguousarray(texture[8:, 12:])
    expected = tp.match(texture, other, "sift", "nearest").points1
    tensor = torch.from_numpy(texture).permute(2, 0, 1)
    np.testing.assert_array_equal(tp.match(tensor, PIL.Image.fromarray(other), "sift", "nearest").points1, expected)


def test_a_folder_with_one_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    seen = []
    found = tp.extract(folder, features="orb", progress=lambda *args: seen.append(args))
    assert list(found.keypoints) == ["a.png", "day 2/b.png"] and list(found.failed) == ["broken.jpg"]
    assert found.keypoints == {name: len(features) for name, features in found.features.items()}
    assert [done for _, done, _ in seen] == [1, 2, 3] and {total for *_, total in seen} == {3}
    assert repr(found).endswith("in 2 images, 1 failed>")
    written = tp.extract(folder, tmp_path / "features.npz", features="orb")
    assert written.keypoints == found.keypoints and not written.features
    with np.load(tmp_path / "features.npz") as file:
        np.testing.assert_array_equal(file["day 2/b.png/keypoints"], found.features["day 2/b.png"].keypoints.numpy())


def test_options_reach_the_extractor_and_a_loaded_one_keeps_its_own(texture: NDArray[np.uint8]) -> None:
    small = tp.extract(texture, features="orb", max_keypoints=20, long_side=100).features["0"]
    expected = tp.features.load("orb", max_keypoints=20, long_side=100)(texture)
    assert same(small, expected)
    loaded = tp.features.load("orb", max_keypoints=7)
    assert tp.extract(texture, features=loaded, max_keypoints=99).keypoints == {"0": 7}


def test_masks_belong_to_paths(folder: Path, texture: NDArray[np.uint8], tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    mask = np.zeros((240, 320), np.uint8)
    mask[:, 160:] = 255
    PIL.Image.fromarray(mask).save(tmp_path / "masks" / "a.png.png")
    found = tp.extract(folder, features="orb", masks=tmp_path / "masks")
    assert list(found.features) == ["a.png"] and found.features["a.png"].keypoints[:, 0].min() >= 159.5
    assert "has no mask" in found.failed["day 2/b.png"]
    with pytest.raises(ArgumentError, match="masks"):
        tp.extract(texture, features="orb", masks=tmp_path / "masks")


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        ([], InputError, "no images"),
        (["gone.jpg"], InputError, r"gone\.jpg"),
        (["gone.jpg", np.zeros((9, 9), np.uint8)], ArgumentError, "either paths or other"),
        ([np.zeros((9, 9, 2), np.uint8), np.zeros(3)], InputError, "none of the 2 images"),
    ],
)
def test_what_cannot_be_used(images: list, error: type[TiepointError], words: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        tp.extract(images, tmp_path / "features.npz", features="orb")
    assert not list(tmp_path.iterdir())


def test_weights_are_not_written_over(texture: NDArray[np.uint8], tmp_path: Path) -> None:
    weights = tmp_path / "mine.npz"
    weights.write_bytes(b"weights")
    with pytest.raises(ArgumentError, match="would be lost"):
        tp.extract(texture, weights, features=f"cairn@{weights}")
    assert weights.read_bytes() == b"weights"
