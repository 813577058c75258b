"""Batches: the same pairs at every call and on any number of processes; labels that follow every cut."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tiepoint.errors import ArgumentError, InputError
from tiepoint.geometry.epipolar import fundamental_from_pose, symmetric_epipolar_error
from tiepoint.training.data import scenes
from tiepoint.training.data.ground_truth import IGNORED, UNMATCHABLE
from tiepoint.training.data.photographs import PhotoCache, build_cache
from tiepoint.training.data.posed import PosedPool, View
from tiepoint.training.data.scene_layouts import SceneConfig
from tiepoint.training.pairs.batch import Batch
from tiepoint.training.pairs.maker import CHUNK, ChunkMaker, PairConfig
from tiepoint.training.pairs.steps import Steps, make_ahead
from tiepoint.training.stream import stream

CONFIG = PairConfig(keypoints=64, size=(120, 160), difficulty=0.3, photometric="none", negatives=0.3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, texture: np.ndarray) -> PhotoCache:
    """Twelve photographs cut from one textured picture, each in colours of its own."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(3)
    for i in range(12):
        mixed = np.clip(np.roll(texture, rng.integers(0, 240, 2), (0, 1)) @ rng.dirichlet([1, 1, 1], 3).T, 0, 255)
        Image.fromarray(mixed.astype(np.uint8)).save(folder / f"{i}.png")
    return build_cache(folder, folder / "photos.cache", long_side=320)


@pytest.fixture(scope="module")
def chunk(photos: PhotoCache) -> Batch:
    return ChunkMaker(photos, CONFIG, seed=5)(3)


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Batch))


def test_a_chunk_depends_on_nothing_but_seed_and_number(photos: PhotoCache, chunk: Batch, tmp_path: Path) -> None:
    other = ChunkMaker(photos, CONFIG, seed=5)
    other(0)  # what was made before must not matter
    assert same(other(3), chunk)
    assert not same(ChunkMaker(photos, CONFIG, seed=6)(3), chunk)
    assert not same(ChunkMaker(photos, CONFIG, seed=5, held_out=True)(3), chunk)
    kept = ChunkMaker(photos, CONFIG, seed=5, folder=tmp_path)
    assert same(kept(3), chunk)
    assert [path.name for path in tmp_path.iterdir()] == ["train-0000003.safetensors"]
    kept._make = None  # type: ignore[assignment]  # now it can only read
    assert same(kept(3), chunk)


def test_labels_are_mutual_and_negatives_have_none(chunk: Batch) -> None:
    assert len(chunk) == CHUNK and 0 < int(chunk.related.sum()) < CHUNK
    for p in range(CHUNK):
        there0, there1 = chunk.present[2 * p], chunk.present[2 * p + 1]
        matches0, matches1 = chunk.matches0[p], chunk.matches1[p]
        assert (matches0[~there0] == IGNORED).all() and (matches1[~there1] == IGNORED).all()
        if not chunk.related[p]:
            assert (matches0[there0] == UNMATCHABLE).all() and (matches1[there1] == UNMATCHABLE).all()
            continue
        rows = torch.nonzero(matches0 >= 0).flatten()
        assert len(rows) > 5
        torch.testing.assert_close(matches1[matches0[rows]], rows)


@pytest.mark.parametrize("share_of_scenes", [0.0, 1.0])
def test_unrelated_pairs_show_no_common_photograph(tmp_path: Path, texture: np.ndarray, share_of_scenes: float) -> None:
    """Eight photographs of one hue each, four of them held out: fewer than the pairs of a chunk."""
    strong, weak = np.eye(3), 1 - np.eye(3)
    hues = [*(strong + weak / 2), *(strong / 2 + weak), np.ones(3), np.array([0.2, 0.6, 1.0])]
    for i, hue in enumerate(hues):
        grey = np.roll(texture, 40 * i, 1).mean(2, keepdims=True)
        Image.fromarray((grey * hue).astype(np.uint8)).save(tmp_path / f"{i}.png")
    cache = build_cache(tmp_path, tmp_path / "photos.cache", long_side=320)
    assert len(cache.held_out) == 4
    config = replace(CONFIG, negatives=1.0, scenes=share_of_scenes)
    for chunk in range(2):
        maker = ChunkMaker(cache, config, seed=1, held_out=True)
        # A scene has six textures, so all that can be made of four photographs have some in common.
        assert torch.equal(maker(chunk).related, torch.full((CHUNK,), bool(share_of_scenes)))
        if not share_of_scenes:
            shown = torch.stack(maker.pictures(chunk)).mean((2, 3))
            shown = shown / shown.norm(dim=1, keepdim=True)
            alike = (shown[0::2] * shown[1::2]).sum(1)
            assert (alike < 0.99).all()


def test_true_matches_look_alike(chunk: Batch) -> None:
    """Descriptors, made from pixels, confirm the labels, made from geometry."""
    d = chunk.descriptors.float()
    for p in torch.nonzero(chunk.related).flatten().tolist():
        rows = torch.nonzero(chunk.matches0[p] >= 0).flatten()
        true = (d[2 * p, rows] * d[2 * p + 1, chunk.matches0[p, rows]]).sum(1)
        assert true.mean() > (d[2 * p, rows] @ d[2 * p + 1].T).mean() + 0.15


def test_head_keeps_the_best_and_forgets_cut_partners(chunk: Batch) -> None:
    n = 20
    cut = chunk.head(n)
    assert cut.keypoints.shape[1] == n and (cut.counts == chunk.counts.clamp(max=n)).all()
    assert torch.equal(cut.descriptors, chunk.descriptors[:, :n])
    before, after = chunk.matches0[:, :n], cut.matches0
    assert (after[before >= n] == IGNORED).all() and (before >= n).any()
    assert torch.equal(after[before < n], before[before < n])
    assert same(chunk.head(chunk.keypoints.shape[1]), chunk)


def test_features_are_the_rows_without_padding(chunk: Batch) -> None:
    short = replace(chunk, counts=chunk.counts.clone())
    short.counts[1] = 40
    f0, f1 = short.features("sift")[0]
    assert len(f0) == int(chunk.counts[0]) and len(f1) == 40
    assert f1.image_size == (160, 120) and f1.extractor == "sift" and f1.descriptors.dtype == torch.float32
    assert torch.equal(f1.keypoints, chunk.keypoints[1, :40]) and torch.equal(f1.scales, chunk.scales[1, :40])


def test_pictures_belong_to_the_chunk(photos: PhotoCache, chunk: Batch) -> None:
    maker = ChunkMaker(photos, CONFIG, seed=5)
    images = maker.pictures(3)
    found = maker._extract(images)
    for i, features in enumerate(found):
        assert torch.equal(features.keypoints, chunk.keypoints[i, : chunk.counts[i]])


def test_steps_do_not_depend_on_the_number_of_processes(photos: PhotoCache, tmp_path: Path) -> None:
    maker = ChunkMaker(photos, CONFIG, seed=5, folder=tmp_path)
    whole_steps = Steps(maker, 2 * CHUNK, distinct=3, fewest=0.5)
    alone = list(stream(whole_steps, range(5), workers=0))
    shared = [list(stream(replace(whole_steps, rank=rank, world=2), range(5), workers=0)) for rank in (0, 1)]
    for whole, *parts in zip(alone, *shared, strict=True):
        assert same(whole, Batch.cat(parts))
    assert same(next(stream(whole_steps, range(3, 5), workers=0)), alone[3]), "resuming begins where it stopped"
    numbers = {batch.keypoints.shape[1] for batch in alone}
    assert len(numbers) > 1 and min(numbers) >= 32 and max(numbers) <= 64


def test_a_limited_set_comes_whole_and_in_another_order_each_time(photos: PhotoCache) -> None:
    steps = Steps(ChunkMaker(photos, CONFIG, seed=1), CHUNK, distinct=10)
    epochs = [[steps.chunk_at(10 * epoch + i) for i in range(10)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert steps.needed(100) == list(range(10))
    few = replace(steps, pairs=2 * CHUNK)
    assert few.needed(3) == sorted(epochs[0][:6]), "no more are made than a short training looks at"


def test_worker_processes_give_the_same(photos: PhotoCache) -> None:
    maker = ChunkMaker(photos, CONFIG, seed=5)
    here, there = (list(stream(Steps(maker, CHUNK), range(2), workers)) for workers in (0, 1))
    assert all(same(a, b) for a, b in zip(here, there, strict=True))


def test_chunks_of_other_pairs_are_refused(photos: PhotoCache, tmp_path: Path) -> None:
    ChunkMaker(photos, CONFIG, 1, folder=tmp_path).claim_folder()
    ChunkMaker(photos, CONFIG, 1, folder=tmp_path, held_out=True).claim_folder()
    with pytest.raises(InputError, match="keypoints is 64 there and 32 here"):
        ChunkMaker(photos, replace(CONFIG, keypoints=32), 1, folder=tmp_path).claim_folder()
    with pytest.raises(InputError, match="seed is 1 there and 2 here"):
        ChunkMaker(photos, CONFIG, 2, folder=tmp_path).claim_folder()


def test_damaged_chunk_is_named(photos: PhotoCache, tmp_path: Path) -> None:
    (tmp_path / "train-0000000.safetensors").write_bytes(b"half a file")
    with pytest.raises(InputError, match=r"train-0000000\.safetensors: damaged"):
        ChunkMaker(photos, CONFIG, 1, folder=tmp_path)(0)


def test_errors(photos: PhotoCache, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="negatives"):
        PairConfig(negatives=1.5)
    with pytest.raises(ArgumentError, match="multiple of 8 times 2"):
        Steps(ChunkMaker(photos, CONFIG, 1), CHUNK, world=2)
    for i in range(8):
        Image.fromarray(np.full((130, 170, 3), 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
    blank = build_cache(tmp_path, tmp_path / "photos.cache")
    for workers in (0, 1):  # an error comes out of a worker process as it went in
        with pytest.raises(InputError, match="detection threshold") as caught:
            next(stream(Steps(ChunkMaker(blank, CONFIG, 1), CHUNK), range(1), workers))
        assert "\n" not in str(caught.value)


def test_training_needs_no_opencv(photos: PhotoCache) -> None:
    """Everything up to a batch, with a stand-in for a torch extractor."""
    script = f"""
import sys
for name in ("cv2", "poselib", "typer", "rich", "tensorboard"):
    sys.modules[name] = None
import torch
from tiepoint import features, types
from tiepoint.features.base import Extractor
from tiepoint.calibration import calibrate
from tiepoint.training.runs import features as _f, matcher, presets, share, superpoint
from tiepoint.training.pairs import traits
from tiepoint.training.pairs.maker import ChunkMaker, PairConfig
from tiepoint.training.data.photographs import open_cache

class Grid(Extractor):
    name, default_threshold = "grid", 0.0
    def _extract(self, pixels, mask):
        grey = torch.tensor(pixels).float().mean(2)
        y, x = torch.meshgrid(torch.arange(8, 112, 12), torch.arange(8, 152, 12), indexing="ij")
        points = torch.stack([x, y], -1).flatten(0, 1)
        patches = torch.stack([grey[v - 4 : v + 4, u - 4 : u + 4].flatten() for u, v in points.tolist()])
        patches = torch.nn.functional.normalize(patches - patches.mean(1, keepdim=True) + 0.1)
        return types.Features(points.float(), torch.ones(len(points)), patches, pixels.shape[1::-1], "grid")

stand_in = type(sys)("grid")
stand_in.Grid = Grid
sys.modules["tiepoint.features.grid"] = stand_in
features._BUILTIN["grid"] = ("grid", "Grid", {{}})
config = PairConfig(features="grid", keypoints=64, size=(120, 160))
photos = open_cache({str(photos.path)!r})
assert traits.try_extractor(photos, config, torch.device("cpu")).input_dim == 64
batch = ChunkMaker(photos, config, 1)(0)
assert batch.scales.shape == (16, 0) and (batch.matches0 >= 0).any()
print("made", len(batch))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "made 8", done.stderr


def test_reframed_pictures_keep_what_labels_and_descriptors_rest_on(photos: PhotoCache) -> None:
    """Shapes, and orientations against them, stay; the frame contains all points."""
    batch = Batch.cat([ChunkMaker(photos, CONFIG, seed=1)(chunk) for chunk in range(2)])
    framed = batch.reframed(np.random.default_rng(0))
    assert torch.equal(framed.matches0, batch.matches0) and torch.equal(framed.scales, batch.scales)
    turned = 0
    for i, count in enumerate(batch.counts.tolist()):
        before, after = batch.keypoints[i, :count].double(), framed.keypoints[i, :count].double()
        assert (after >= -0.5 - 1e-3).all() and (after <= framed.sizes[i] - 0.5 + 1e-3).all()
        step0, step1 = before[1:] - before[:-1], after[1:] - after[:-1]
        torch.testing.assert_close(step1.norm(dim=1), step0.norm(dim=1), atol=1e-3, rtol=0)
        bearing0, bearing1 = (torch.atan2(step[:, 1], step[:, 0]) for step in (step0, step1))
        far = step0.norm(dim=1) > 5  # of near points the bearing is rounded
        change = bearing1 - bearing0 - (framed.orientations[i, : count - 1] - batch.orientations[i, : count - 1])
        torch.testing.assert_close(change[far].cos(), torch.ones_like(change[far]), atol=1e-5, rtol=0)
        turned += bool((bearing1 - bearing0).cos()[far].mean() < 0.9)
    assert turned > len(batch) / 2


@pytest.fixture(scope="module")
def posed(photos: PhotoCache, tmp_path_factory: pytest.TempPathFactory) -> PosedPool:
    """Twelve rendered scenes as files: depth as arrays, photographs as pictures, every world turned its own way."""
    folder = tmp_path_factory.mktemp("posed")
    generator = torch.Generator().manual_seed(4)
    textures = photos.sample(photos.draw(48, generator), (128, 128), generator)
    config = replace(SceneConfig((120, 160)), moved=0.0)
    pairs = scenes.make_pairs(textures, 12, config, generator)
    found = []
    for b in range(12):
        turn = np.linalg.qr(np.random.default_rng(b).normal(size=(3, 3)))[0]
        turn *= np.linalg.det(turn)
        views = []
        for side in ("0", "1"):
            pixels = getattr(pairs, f"images{side}")[b].permute(1, 2, 0).numpy()
            image, depth = folder / f"{b}-{side}.png", folder / f"{b}-{side}.npy"
            Image.fromarray((pixels * 255).round().astype(np.uint8)).save(image)
            np.save(depth, getattr(pairs, f"depth{side}")[b].numpy())
            R = (pairs.R[b].numpy().astype(float) if side == "1" else np.eye(3)) @ turn
            t = pairs.t[b].numpy().astype(float) if side == "1" else np.zeros(3)
            views.append(View(image, depth, getattr(pairs, f"K{side}")[b].numpy().astype(float), R, t))
        found.append(views)
    return PosedPool(found, folder, max_overlap=1.0)


def test_posed_photographs_are_labelled_by_their_depth_and_pose(photos: PhotoCache, posed: PosedPool) -> None:
    config = replace(CONFIG, posed=1.0)
    batch = ChunkMaker(photos, config, seed=2, posed=posed)(0)
    assert same(ChunkMaker(photos, config, seed=2, posed=posed)(0), batch)
    drawn = posed.draw(100, np.random.default_rng(0)), posed.draw(100, np.random.default_rng(0), held_out=True)
    names = [{view.image for pair in pairs for view in (pair.view0, pair.view1)} for pairs in drawn]
    assert not posed.chosen[True].size or not names[0] & names[1]
    assert batch.related.all() and (batch.matches0 >= 0).sum() > 50
    with pytest.raises(ArgumentError, match="none are given"):
        ChunkMaker(photos, config, seed=2)
    with pytest.raises(ArgumentError, match="more than 1"):
        replace(CONFIG, posed=0.7, scenes=0.7)

    # The labelled partners of a pair of views satisfy its epipolar constraint; those of other views would not.
    seed = torch.Generator().manual_seed(7)
    maker = ChunkMaker(photos, replace(config, keypoints=256), seed=2, posed=posed)
    state = seed.get_state()
    made = [batch for batch, _ in maker._posed(seed)]
    seed.set_state(state)
    pairs = posed.draw(CHUNK, np.random.default_rng(int(torch.randint(2**62, (), generator=seed))))
    assert len(made) == len(pairs)
    errors = []
    for one, pair in zip(made, pairs, strict=True):
        i = (one.matches0[0] >= 0).nonzero()[:, 0]
        F = fundamental_from_pose(pair.view0.K, pair.view1.K, pair.R, pair.t)
        errors.append(
            symmetric_epipolar_error(F, one.keypoints[0, i].numpy(), one.keypoints[1, one.matches0[0, i]].numpy())
        )
    assert len(np.concatenate(errors)) > 100 and (np.concatenate(errors) < 5).all()


def test_chunks_made_ahead_are_those_made_in_passing(photos: PhotoCache, chunk: Batch, tmp_path: Path) -> None:
    maker = ChunkMaker(photos, CONFIG, seed=5, folder=tmp_path)
    maker(2)
    assert list(make_ahead(maker, range(2, 5), workers=2)) == [(1, 2), (2, 2)]
    assert list(make_ahead(maker, range(2, 5), workers=2)) == []
    maker._make = None  # type: ignore[assignment]  # now it can only read
    assert same(maker(3), chunk)
