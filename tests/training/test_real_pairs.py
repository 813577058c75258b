"""Real pairs: what a teacher matches and a geometry confirms becomes labels; what it does not is left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tiepoint.errors import ArgumentError, InputError
from tiepoint.evaluation.datasets import load_pairs
from tiepoint.geometry.epipolar import fundamental_from_pose, symmetric_epipolar_error
from tiepoint.training.data.ground_truth import IGNORED, UNMATCHABLE
from tiepoint.training.data.photographs import PhotoCache, build_cache
from tiepoint.training.data.real_pairs import LEAST, RealPairConfig, RealPool
from tiepoint.training.pairs.maker import CHUNK, ChunkMaker, PairConfig

CONFIG = RealPairConfig(teacher="sift", features="cairn", keypoints=256)


@pytest.fixture(scope="module")
def photos(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> PhotoCache:
    """Photographs of two places, several of each."""
    folder = tmp_path_factory.mktemp("photos")
    for name, where in (("fountain", "eval/fountain"), ("sceaux", "demo/sceaux")):
        files = sorted(path for path in (data_dir / where).rglob("*") if path.suffix.lower() in (".jpg", ".png"))
        for path in files[:6]:
            (folder / f"{name}-{path.name}").write_bytes(path.read_bytes())
    return build_cache(folder, folder / "photos.cache", long_side=480)


@pytest.fixture(scope="module")
def pool(photos: PhotoCache, tmp_path_factory: pytest.TempPathFactory) -> RealPool:
    made = RealPool(photos, CONFIG, tmp_path_factory.mktemp("pool") / "real")
    list(made.make())
    return made


def place(photos: PhotoCache, row: int) -> str:
    return photos.names[row].partition("-")[0]


def test_pairs_are_of_one_place(photos: PhotoCache, pool: RealPool) -> None:
    found = pool.confirmed() + pool.confirmed(held_out=True)
    assert len(found) >= 6
    assert all(place(photos, a) == place(photos, b) for a, b in found)
    train, held_out = set(photos.train.tolist()), set(photos.held_out.tolist())
    assert all(train.issuperset(pair) for pair in pool.confirmed())
    assert all(held_out.issuperset(pair) for pair in pool.confirmed(held_out=True))


def test_labels_agree_with_measured_cameras(data_dir: Path, photos: PhotoCache, pool: RealPool) -> None:
    checked = 0
    for truth in load_pairs(data_dir / "eval", ["fountain"]):
        names = [f"fountain-{Path(picture.path).name}" for picture in (truth.image0, truth.image1)]
        rows = [photos.names.index(name) if name in photos.names else -1 for name in names]
        pair = (min(rows), max(rows))
        if pair not in pool.confirmed() + pool.confirmed(held_out=True):
            continue
        real = pool.read(pair)
        i = torch.nonzero(real.labels.matches0[0] >= 0).flatten()
        j = real.labels.matches0[0, i]
        assert len(i) >= LEAST and torch.equal(real.labels.matches1[0, j], i)
        points = [f.keypoints[rows].numpy() for f, rows in zip(real.features, (i, j), strict=True)]
        if rows[0] > rows[1]:
            points.reverse()
        # the ground truth is of the photographs at full size
        full = [np.array(picture.read().size) for picture in (truth.image0, truth.image1)]
        small = [photos.sizes[row][::-1] for row in rows]
        points = [(p + 0.5) * f / s - 0.5 for p, f, s in zip(points, full, small, strict=True)]
        F = fundamental_from_pose(truth.truth.K0, truth.truth.K1, truth.truth.R, truth.truth.t)
        errors = symmetric_epipolar_error(F, *points) * small[0].max() / full[0].max()
        assert np.mean(errors < 3) > 0.9
        checked += 1
    assert checked >= 3


def test_a_second_pool_makes_nothing_again_and_another_is_refused(photos: PhotoCache, pool: RealPool) -> None:
    again = RealPool(photos, CONFIG, pool.folder)
    assert list(again.make()) == [] and again.confirmed() == pool.confirmed()
    with pytest.raises(InputError, match="holds other real pairs"):
        RealPool(photos, replace(CONFIG, keypoints=100), pool.folder)


def test_chunks_show_real_pairs_with_their_labels_under_other_light(photos: PhotoCache, pool: RealPool) -> None:
    config = PairConfig(features="cairn", keypoints=256, size=(240, 320), photometric="mild", real=1.0)
    batch, pictures = (maker := ChunkMaker(photos, config, 3, real=pool))(0), maker.pictures(0)
    assert len(batch) == CHUNK and bool(batch.related.all()) and len(pictures) == 2 * CHUNK
    for pair in range(CHUNK):
        labels = batch.matches0[pair]
        matched = torch.nonzero(labels >= 0).flatten()
        assert len(matched) >= LEAST
        assert ((labels == IGNORED) | (labels == UNMATCHABLE) | (labels >= 0)).all()
        d0, d1 = batch.descriptors[2 * pair].float(), batch.descriptors[2 * pair + 1].float()
        right = (d0[matched] * d1[labels[matched]]).sum(1)
        assert right.mean() > (d0[matched] @ d1.T).mean() + 0.1


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no pairs"), ("a.jpg b.jpg\n", "line 1"), ("# comment\n\nfountain-x.jpg\n", "line 3")],
)
def test_a_list_that_fits_nothing_is_an_error(photos: PhotoCache, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        RealPool(photos, CONFIG, tmp_path / "real", tmp_path / "pairs.txt")


def test_listed_pairs_are_those_of_the_list_once_each(photos: PhotoCache, tmp_path: Path) -> None:
    a, b = photos.names[:2]
    (tmp_path / "pairs.txt").write_text(f"{a} {b} 0.7\n{b} {a}\n")
    assert RealPool(photos, CONFIG, tmp_path / "real", tmp_path / "pairs.txt").candidates() == [(0, 1)]


def test_a_teacher_without_leave_is_refused(photos: PhotoCache, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="may not teach"):
        RealPool(photos, replace(CONFIG, teacher="superpoint"), tmp_path / "real")
