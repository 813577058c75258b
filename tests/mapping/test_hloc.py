"""Exchange with hloc: its layout is read here with h5py alone, by the rules of its own reader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from stored import matched_pairs
from tiepoint.errors import ArgumentError, InputError
from tiepoint.mapping import pairs
from tiepoint.mapping.exchange import hloc
from tiepoint.mapping.store import NewImage, PairResult, Store
from tiepoint.types import Features

pycolmap = pytest.importorskip("pycolmap")
h5py = pytest.importorskip("h5py")

NAMES = ("a.jpg", "b.jpg", "sub/c.jpg")


def new_store(path: Path) -> Store:
    camera = pycolmap.Camera(model="SIMPLE_RADIAL", width=640, height=480, params=[600, 320, 240, 0])
    store = Store.open(path)
    store.add_images([NewImage(name, camera, "one") for name in NAMES])
    return store


def features(n: int, seed: int = 0) -> Features:
    rng = np.random.default_rng(seed)
    descriptors = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(n, 32)).astype(np.float32)))
    keypoints = torch.from_numpy(rng.uniform(-0.5, 479, (n, 2)).astype(np.float32))
    scores = torch.from_numpy(rng.random(n, np.float32))
    return Features(keypoints, scores, descriptors.half().float(), (640, 480), "mine")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with new_store(tmp_path / "a.db") as opened:
        opened.write_features([(1, features(30, 1)), (2, features(20, 2)), (3, features(0))])
        rng = np.random.default_rng(4)
        matches = np.stack([np.sort(rng.permutation(30)[:9]), rng.permutation(20)[:9]], axis=1)
        opened.write_matches(
            [
                PairResult(1, 2, matches, rng.random(9, np.float32)),
                PairResult(2, 3, np.zeros((0, 2), np.int64), np.zeros(0)),
            ]
        )
        yield opened


def test_features_are_in_hlocs_layout(store: Store, tmp_path: Path) -> None:
    assert hloc.export_features(store, tmp_path / "f.h5") == 3
    with h5py.File(tmp_path / "f.h5") as file:
        group = file["a.jpg"]
        assert group["keypoints"].shape == (30, 2) and group["descriptors"].shape == (32, 30)
        assert group["image_size"][()].tolist() == [640, 480]
        ours = features(30, 1)
        # Pixel centres are whole numbers there, as here: the half pixel of the database is gone again.
        np.testing.assert_allclose(group["keypoints"], ours.keypoints, atol=2**-15)
        np.testing.assert_array_equal(group["descriptors"][()].T, ours.descriptors)
        np.testing.assert_array_equal(group["scores"], ours.scores)
        assert file["sub/c.jpg/keypoints"].shape == (0, 2)


def test_matches_are_in_hlocs_layout(store: Store, tmp_path: Path) -> None:
    assert hloc.export_matches(store, tmp_path / "m.h5") == 2
    stored = store.matches(1, 2)
    assert stored is not None
    with h5py.File(tmp_path / "m.h5") as file:
        partner, scores = file["a.jpg/b.jpg/matches0"][()], file["a.jpg/b.jpg/matching_scores0"][()]
        assert len(partner) == len(scores) == 30
        # as hloc's get_matches does it
        at = np.where(partner != -1)[0]
        np.testing.assert_array_equal(np.stack([at, partner[at]], -1), stored.indices)
        np.testing.assert_array_equal(scores[at], stored.scores)
        assert (file["b.jpg/sub-c.jpg/matches0"][()] == -1).all()


def test_round_trip_is_exact(store: Store, tmp_path: Path) -> None:
    """Store -> files -> another store -> files: the same numbers, bit for bit."""
    hloc.export_features(store, tmp_path / "f.h5")
    hloc.export_matches(store, tmp_path / "m.h5")
    with new_store(tmp_path / "b.db") as other:
        assert hloc.import_features(other, tmp_path / "f.h5", "mine") == []
        assert hloc.import_matches(other, tmp_path / "m.h5") == []
        assert other.has_features() == {1, 2, 3} and matched_pairs(other) == matched_pairs(store)
        for i in (1, 2, 3):
            before, after = store.features(i), other.features(i)
            assert after.extractor == "mine"
            for part in ("keypoints", "scores", "descriptors"):
                assert torch.equal(getattr(before, part), getattr(after, part)), part
        for a, b in matched_pairs(store):
            one, two = store.matches(a, b), other.matches(a, b)
            assert one is not None and two is not None
            np.testing.assert_array_equal(one.indices, two.indices)
            np.testing.assert_array_equal(one.scores, two.scores)
        hloc.export_features(other, tmp_path / "f2.h5")
    with h5py.File(tmp_path / "f.h5") as first, h5py.File(tmp_path / "f2.h5") as second:
        for name in NAMES:
            for key in first[name]:
                np.testing.assert_array_equal(first[name][key], second[name][key])


def test_files_as_hloc_writes_them(store: Store, tmp_path: Path) -> None:
    """Half precision, no scores, the pair the other way round, several keypoints with one partner, strangers."""
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for name, n in (("a.jpg", 4), ("sub/c.jpg", 3), ("stranger.jpg", 2)):
            group = file.create_group(name)
            group["keypoints"] = np.arange(2 * n, dtype=np.float16).reshape(n, 2)
            group["descriptors"] = np.eye(8, n, dtype=np.float16)
            if name == "a.jpg":
                group["scores"] = np.array([30, 20, 10, 0], np.float16)
    assert hloc.import_features(store, tmp_path / "f.h5", "other") == ["stranger.jpg"]
    read = store.features(1)
    assert read.keypoints.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]] and read.extractor == "other"
    assert torch.equal(read.descriptors, torch.eye(4, 8))
    np.testing.assert_allclose(read.scores, [1, 2 / 3, 1 / 3, 0], rtol=1e-6)
    assert store.features(3).scores.tolist() == [1, 1, 1]

    with h5py.File(tmp_path / "m.h5", "w") as file:
        group = file.create_group("sub-c.jpg/a.jpg")
        group["matches0"] = np.array([2, -1, 2], np.int16)
        group["matching_scores0"] = np.array([0.25, 0, 0.5], np.float16)
        file.create_group("sub-c.jpg/lost.jpg")["matches0"] = np.array([0], np.int16)
    assert hloc.import_matches(store, tmp_path / "m.h5") == ["sub-c.jpg/lost.jpg"]
    found = store.matches(3, 1)
    assert found is not None and found.indices.tolist() == [[2, 2]] and found.scores.tolist() == [0.5]


def test_files_that_do_not_fit(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "x.h5"

    def features_file(**change: np.ndarray) -> None:
        arrays = {"keypoints": np.zeros((2, 2)), "descriptors": np.zeros((8, 2)), "image_size": np.array([640, 480])}
        with h5py.File(path, "w") as file:
            group = file.create_group("a.jpg")
            for key, value in {**arrays, **change}.items():
                group[key] = value

    for change, message in (
        ({"image_size": np.array([480, 640])}, "480x640 pixels, .* 640x480"),
        ({"descriptors": np.zeros((2, 8))}, "do not fit"),
        ({"scores": np.zeros(3)}, "do not fit"),
        ({"keypoints": np.zeros((2, 3))}, "do not fit"),
    ):
        features_file(**change)
        with pytest.raises(InputError, match=message):
            hloc.import_features(store, path, "mine")
    for partner in (np.full(29, -1), np.full(30, 20)):
        with h5py.File(path, "w") as file:
            file.create_group("a.jpg/b.jpg")["matches0"] = partner
        with pytest.raises(InputError, match=r"a\.jpg/b\.jpg: .* the store has 30 and 20; import the features"):
            hloc.import_matches(store, path)
    path.write_text("no HDF5")
    with pytest.raises(InputError, match=r"x\.h5: damaged"):
        hloc.import_features(store, path, "mine")
    with pytest.raises(InputError, match="no such file"):
        hloc.import_matches(store, tmp_path / "none.h5")
    with pytest.raises(ArgumentError, match=r"must end in one of \.h5"):
        hloc.export_features(store, tmp_path / "f.hdf")
    assert len(store.features(1)) == 30


def test_names_that_hloc_cannot_tell_apart(store: Store, tmp_path: Path) -> None:
    store.add_images([NewImage("sub-c.jpg", store.images()[0].camera, "one")])
    with pytest.raises(InputError, match=r"'sub/c\.jpg' and another image are both 'sub-c\.jpg'"):
        hloc.export_matches(store, tmp_path / "m.h5")
    assert not (tmp_path / "m.h5").exists()


def test_pairs_are_read_back(store: Store, tmp_path: Path) -> None:
    store.add_images([NewImage("with space.jpg", store.images()[0].camera, "one")])
    hloc.write_pairs(store, tmp_path / "pairs.txt", [(1, 2), (3, 1), (4, 2)])
    text = (tmp_path / "pairs.txt").read_text()
    assert text == "a.jpg b.jpg\nsub/c.jpg a.jpg\nwith space.jpg\tb.jpg\n"
    ids = {image.name: image.image_id for image in store.images()}
    found = pairs.from_list(tmp_path / "pairs.txt", ids)
    assert {tuple(pair) for pair in found.pairs.tolist()} == {(1, 2), (1, 3), (2, 4)} and found.unused == []
