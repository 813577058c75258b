"""Image descriptors and the search for similar ones: against plain loops, brute force, and real photographs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tiepoint import features as extractors
from tiepoint.errors import ArgumentError, MissingDependencyError
from tiepoint.mapping import NewImage, Store
from tiepoint.mapping.pairs import by_retrieval
from tiepoint.mapping.pairs.retrieval import Vocabulary, describe_images, most_similar, vocabulary_for
from tiepoint.types import Features

pytest.importorskip("faiss")


def local(n: int, seed: int, extractor: str = "mine", dimensions: int = 12) -> Features:
    """Return made-up features: unit vectors, or strings of 32 bits where ``dimensions`` is 0."""
    generator = torch.Generator().manual_seed(seed)
    if dimensions:
        values = torch.nn.functional.normalize(torch.rand(n, dimensions, generator=generator) + 0.01)
    else:
        values = torch.randint(0, 256, (n, 4), generator=generator, dtype=torch.uint8)
    return Features(torch.rand(n, 2, generator=generator) * 99, torch.ones(n), values, (100, 100), extractor)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train((local(200, seed) for seed in range(5)), words=7)


def test_description_equals_the_definition(vocabulary: Vocabulary) -> None:
    """Word by word and feature by feature, as the papers write it."""
    photo = local(50, 99)
    sums = np.zeros(vocabulary.words.shape)
    for descriptor in photo.descriptors.double().numpy():
        x = vocabulary.axes.astype(float) @ (descriptor - vocabulary.mean)
        word = min(range(7), key=lambda k: np.linalg.norm(x - vocabulary.words[k]))
        sums[word] += x - vocabulary.words[word]
    blocks = [block / np.linalg.norm(block) if block.any() else block for block in sums]
    expected = np.concatenate(blocks) / np.linalg.norm(blocks)
    np.testing.assert_allclose(vocabulary.describe(photo), expected, atol=1e-5)


def test_description_does_not_depend_on_the_order_of_keypoints(vocabulary: Vocabulary) -> None:
    photo = local(50, 99)
    shuffled = photo.select(torch.randperm(50, generator=torch.Generator().manual_seed(0)))
    np.testing.assert_allclose(vocabulary.describe(shuffled), vocabulary.describe(photo), atol=1e-5)


def test_photograph_without_keypoints_is_described_by_zeros(vocabulary: Vocabulary) -> None:
    vector = vocabulary.describe(local(0, 0))
    assert vector.shape == (vocabulary.size,) and vector.dtype == np.float32
    assert not vector.any()


def test_vocabulary_is_of_one_extractor(vocabulary: Vocabulary) -> None:
    with pytest.raises(ArgumentError, match="of 'mine' features, not of 'other'"):
        vocabulary.describe(local(9, 0, "other"))
    with pytest.raises(ArgumentError, match="'mine' and 'other'"):
        Vocabulary.train([local(9, 0), local(9, 0, "other")])
    for nothing in ([], [local(0, 0)]):
        with pytest.raises(ArgumentError, match="without local features"):
            Vocabulary.train(nothing)


def test_training_finds_the_principal_axes_and_the_clusters(rng: np.random.Generator) -> None:
    """Five tight clusters in a plane of 40 dimensions: the words are their centres."""
    plane = np.linalg.qr(rng.normal(size=(40, 2)))[0]
    centres = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [-4.0, 1.0], [1.0, -5.0]])
    members = np.repeat(centres, 50, axis=0) @ plane.T + rng.normal(size=(250, 40)) * 0.01
    cloud = Features(torch.zeros(250, 2), torch.ones(250), torch.tensor(members).float(), (9, 9), "mine")
    learned = Vocabulary.train([cloud], words=5)
    np.testing.assert_allclose(learned.axes @ learned.axes.T, np.eye(len(learned.axes)), atol=1e-5)
    # The first two axes span the plane.
    np.testing.assert_allclose(learned.axes[:2].T @ learned.axes[:2], plane @ plane.T, atol=1e-2)
    found = learned.words @ learned.axes + learned.mean
    distance = np.linalg.norm(found[:, None] - (centres @ plane.T)[None], axis=2)
    assert sorted(distance.argmin(axis=1)) == [0, 1, 2, 3, 4]
    assert distance.min(axis=1).max() < 0.02


def test_training_is_reproducible_and_takes_few_descriptors() -> None:
    once, again = (Vocabulary.train([local(80, 1), local(3, 2)], words=9) for _ in range(2))
    other = Vocabulary.train([local(80, 1), local(3, 2)], words=9, seed=1)
    np.testing.assert_array_equal(once.words, again.words)
    assert not np.array_equal(once.words, other.words)
    assert len(Vocabulary.train([local(43, 1)], words=9).words) == 5
    assert len(Vocabulary.train([local(3, 1)], words=9).words) == 1


def test_bits_are_compared_by_hamming_distance() -> None:
    """With one word and all axes, what is left is the sum of the ±1 that the bits stand for, turned and centred."""
    learned = Vocabulary.train([local(300, 0, dimensions=0)], words=1, dimensions=32)
    photo = local(20, 5, dimensions=0)
    signs = np.unpackbits(photo.descriptors.numpy(), axis=1) * 2.0 - 1
    expected = (signs / np.sqrt(32) - learned.mean).sum(axis=0) @ learned.axes.T - 20 * learned.words[0]
    np.testing.assert_allclose(learned.describe(photo), expected / np.linalg.norm(expected), atol=1e-5)


def test_search_equals_brute_force(rng: np.random.Generator) -> None:
    database, queries = (rng.normal(size=(n, 16)).astype(np.float32) for n in (70, 30))
    similarity = queries @ database.T
    rows, values = most_similar(queries, database, 9)
    np.testing.assert_array_equal(rows, np.argsort(-similarity, axis=1)[:, :9])
    np.testing.assert_allclose(values, -np.sort(-similarity, axis=1)[:, :9], atol=1e-5)


def test_search_leaves_out_images_without_keypoints(rng: np.random.Generator) -> None:
    database = -np.abs(rng.normal(size=(6, 4))).astype(np.float32)
    database[[1, 4]] = 0  # a dot product of 0, larger than all others
    queries = np.stack([-database[0], np.zeros(4, np.float32)])
    rows, values = most_similar(queries, database, 10)
    assert rows.shape == values.shape == (2, 6)
    assert sorted(rows[0]) == [-1, -1, 0, 2, 3, 5]
    assert rows[0, 4:].tolist() == [-1, -1]
    assert rows[1].tolist() == [-1] * 6
    assert most_similar(queries, np.zeros((3, 4), np.float32), 2)[0].tolist() == [[-1, -1]] * 2
    assert most_similar(queries[:0], database, 2)[0].shape == (0, 2)
    assert most_similar(queries, database[:0], 2)[0].shape == (2, 0)
    with pytest.raises(ArgumentError, match="4 and 3 numbers"):
        most_similar(queries, database[:, :3], 2)


def test_without_faiss_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingDependencyError, match=r"'tiepoint\[map\]'"):
        by_retrieval([1, 2], np.eye(2, dtype=np.float32))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Nine photographs, of which b00 … b03 and a00 … a03 are alike, and one shows nothing; a10 was not extracted."""
    pycolmap = pytest.importorskip("pycolmap")
    names = [f"b{i:02}" for i in range(4)] + [f"a{i:02}" for i in range(4)] + ["blank", "a10"]
    camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_PINHOLE", 100.0, 100, 100)
    with Store.open(tmp_path / "database.db") as opened:
        ids = opened.add_images([NewImage(name, camera) for name in names])
        generator = torch.Generator().manual_seed(0)
        for name in names[:-1]:
            place = local(0 if name == "blank" else 150, "ab".find(name[0]) % 2)
            noise = torch.randn(place.descriptors.shape, generator=generator) * 0.02
            place = Features(
                place.keypoints,
                place.scores,
                torch.nn.functional.normalize(place.descriptors + noise),
                place.image_size,
                "mine",
            )
            opened.write_features([(ids[name], place)])
        yield opened


def test_photographs_of_a_store(store: Store) -> None:
    names = {image.image_id: image.name for image in store.images()}
    ids, descriptors = describe_images(store)
    assert [names[i] for i in ids] == ["a00", "a01", "a02", "a03", "b00", "b01", "b02", "b03", "blank"]
    vocabulary = vocabulary_for(store)
    np.testing.assert_array_equal(descriptors[2], vocabulary.describe(store.features(int(ids[2]))))
    pairs = [(names[i][0], names[j][0]) for i, j in by_retrieval(ids, descriptors, top_k=3).tolist()]
    assert sorted(pairs) == [("a", "a")] * 6 + [("b", "b")] * 6


def test_store_without_features(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    with Store.open(tmp_path / "empty.db") as empty, pytest.raises(ArgumentError, match="extract them first"):
        describe_images(empty)


@pytest.mark.parametrize("extractor", ["sift", "orb"])
def test_real_photographs_find_their_own_scene(data_dir: Path, extractor: str) -> None:
    """Berlin, Sceaux, the entry and the fountain, four photographs of each at most, among eight single ones."""
    scenes = ["demo/berlin", "demo/sceaux", "eval/entry", "eval/fountain"]
    paths = [path for scene in scenes for path in sorted((data_dir / scene / "images").iterdir())[:4]]
    owner = [path.parent.parent.name for path in paths]
    paths += sorted((data_dir / "eval/kodak/images").iterdir())[:8]
    extract = extractors.load(extractor, max_keypoints=512, long_side=640)
    photos = [extract(cv2.imread(str(path))[..., ::-1]) for path in paths]
    vocabulary = Vocabulary.train(photos)
    looks = np.stack([vocabulary.describe(photo) for photo in photos])
    nearest, _ = most_similar(looks[: len(owner)], looks, 2)
    right = [n < len(owner) and owner[n] == owner[i] for i, n in enumerate(nearest[:, 1])]
    assert nearest[:, 0].tolist() == list(range(len(owner)))
    assert np.mean(right) >= (0.95 if extractor == "sift" else 0.8)
