"""Extraction, matching and verification into the store: right, bounded, and the same whatever happened on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stored import contents, every_pair, matched_pairs, pose, registered, scene
from tiepoint import Features, features, matchers
from tiepoint.errors import ArgumentError, InputError, TiepointError
from tiepoint.features.base import Extractor
from tiepoint.mapping.blocks import FeatureCache, in_blocks
from tiepoint.mapping.progress import Progress
from tiepoint.mapping.steps.extract import extract_into
from tiepoint.mapping.steps.match import SMALL_BATCH, match_into
from tiepoint.mapping.store import NewImage, Store
from tiepoint.matchers.base import Matcher

pycolmap = pytest.importorskip("pycolmap")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Return what a run leaves that nobody disturbs."""
    path = scene(tmp_path_factory.mktemp("undisturbed") / "database.db")
    with Store.open(path) as store:
        match_into(store, every_pair(store), matchers.load("nearest", "synthetic"))
    return contents(path)


# ---- the order of the pairs ----

id_pairs = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)).filter(lambda p: p[0] != p[1]), max_size=80)


@given(id_pairs, st.sampled_from([2, 4, 16, 64]))
@settings(max_examples=60, deadline=None)
def test_each_pair_once_and_square_by_square(pairs: list[tuple[int, int]], side: int) -> None:
    ordered = in_blocks(pairs)
    assert sorted(map(tuple, ordered.tolist())) == sorted({(min(p), max(p)) for p in pairs})
    squares = [(a // side, b // side) for a, b in ordered.tolist()]
    finished = [s for n, s in enumerate(squares) if n == 0 or s != squares[n - 1]]
    assert len(finished) == len(set(finished))  # nobody comes back to a square


def test_pairs_may_come_as_a_generator_or_an_array() -> None:
    pairs = [(9, 2), (2, 9), (70000, 4)]
    assert in_blocks(pair for pair in pairs).tolist() == in_blocks(np.array(pairs)).tolist() == [[2, 9], [4, 70000]]
    assert in_blocks([]).shape == (0, 2)


@pytest.mark.parametrize("pairs", [[(1, 1)], [(-1, 2)], [(1, 2**31)]])
def test_pairs_that_cannot_be(pairs: list[tuple[int, int]]) -> None:
    with pytest.raises(ArgumentError):
        in_blocks(pairs)


def test_a_cache_of_two_rows_of_blocks_reads_each_image_once_per_block(tmp_path: Path) -> None:
    count, side = 32, 4
    path = scene(tmp_path / "database.db", count, points=30)
    with Store.open(path) as store:
        one = FeatureCache(store)
        first = one[1]
        size = sum(t.numel() * t.element_size() for t in (first.keypoints, first.scores, first.descriptors))
        cache = FeatureCache(store, capacity=2 * side * size)
        pairs = in_blocks(every_pair(store))
        for a, b in pairs.tolist():
            assert cache[a].image_size == cache[b].image_size
        blocks = len({(a // side, b // side) for a, b in pairs.tolist()})
        assert cache.reads <= 2 * side * blocks
        assert len(cache._held) <= 2 * side
        everything = FeatureCache(store)
        for a, b in pairs.tolist():
            everything[a], everything[b]
        assert everything.reads == count


# ---- matching ----


def test_matches_and_geometry_are_those_of_the_scene(tmp_path: Path) -> None:
    matcher = matchers.load("nearest", "synthetic")
    with Store.open(scene(tmp_path / "database.db")) as store:
        done = match_into(store, every_pair(store), matcher)
        assert (done.pairs, done.matched, done.already, done.verified) == (21, 21, 0, 21)
        assert matched_pairs(store) == set(map(tuple, every_pair(store).tolist()))
        for a, b in ((1, 2), (2, 7)):
            direct = matcher(store.features(a), store.features(b))
            stored = store.matches(a, b)
            assert stored is not None
            assert np.array_equal(stored.indices, direct.indices)
            assert np.array_equal(stored.scores, direct.scores)
            found = store.geometry(a, b)
            assert found is not None
            assert found.config == "CALIBRATED"
            (Ra, ta), (Rb, tb) = pose(a - 1), pose(b - 1)
            R, t = Rb @ Ra.T, tb - Rb @ Ra.T @ ta
            assert found.R is not None
            assert found.t is not None
            assert np.degrees(np.arccos((np.trace(found.R @ R.T) - 1) / 2)) < 0.5
            assert found.t @ t / np.linalg.norm(t) > np.cos(np.radians(5))
            # 20 of 120 points lie at a random place in each of the two pictures
            assert 75 <= len(found.matches) <= 95


@pytest.mark.parametrize("options", [{"cache_bytes": 0}, {"workers": 1}, {"workers": 5}])
def test_memory_and_threads_change_nothing(
    tmp_path: Path, undisturbed: dict[str, list[Any]], options: dict[str, int]
) -> None:
    path = scene(tmp_path / "database.db")
    with Store.open(path) as store:
        backwards = ((b, a) for a, b in every_pair(store)[::-1].tolist())
        match_into(store, backwards, matchers.load("nearest", "synthetic"), **options)
    assert contents(path) == undisturbed


@pytest.mark.parametrize("batches", [0, 1, 2])
def test_an_interrupted_run_goes_on_where_it_was(
    tmp_path: Path, undisturbed: dict[str, list[Any]], batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiepoint.mapping.workers.COMMIT_SECONDS", 0.0)

    def stop(progress: Progress) -> None:
        if progress.done >= batches * SMALL_BATCH:
            raise KeyboardInterrupt

    path = scene(tmp_path / "database.db")
    matcher = matchers.load("nearest", "synthetic")
    with Store.open(path) as store:
        with pytest.raises(KeyboardInterrupt):
            match_into(store, every_pair(store), matcher, report=stop)
        assert len(matched_pairs(store)) == batches * SMALL_BATCH
        done = match_into(store, every_pair(store), matcher)
        assert (done.matched, done.already) == (21 - batches * SMALL_BATCH, batches * SMALL_BATCH)
        again = match_into(store, every_pair(store), matcher)
        assert (again.matched, again.reads) == (0, 0)
    assert contents(path) == undisturbed


KILLED = """
import os, signal, sys
from tiepoint import matchers
from tiepoint.mapping import workers
from tiepoint.mapping.steps.match import match_into
from tiepoint.mapping.store import Store
workers.COMMIT_SECONDS = 0
def report(progress):
    if progress.done >= 8:
        os.kill(os.getpid(), signal.SIGKILL)
with Store.open(sys.argv[1]) as store:
    ids = [image.image_id for image in store.images()]
    pairs = ((a, b) for a in ids for b in ids if a < b)
    match_into(store, pairs, matchers.load("nearest", "synthetic"), report=report)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_a_killed_process_loses_nothing_that_was_committed(tmp_path: Path, undisturbed: dict[str, list[Any]]) -> None:
    path = scene(tmp_path / "database.db")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL
    with Store.open(path) as store:
        assert len(matched_pairs(store)) == 8
        match_into(store, every_pair(store), matchers.load("nearest", "synthetic"))
    assert contents(path) == undisturbed


def test_verification_can_come_later(tmp_path: Path, undisturbed: dict[str, list[Any]]) -> None:
    path = scene(tmp_path / "database.db")
    matcher = matchers.load("nearest", "synthetic")
    with Store.open(path) as store:
        plain = match_into(store, every_pair(store)[:10], matcher, verify=False)
        assert (plain.matched, plain.verified) == (10, 0)
        assert store.verified_pairs() == {}
        match_into(store, every_pair(store), matcher)
    assert contents(path) == undisturbed


def test_images_without_features_are_left_out_and_unknown_ones_refused(tmp_path: Path) -> None:
    matcher = matchers.load("nearest", "synthetic")
    with Store.open(scene(tmp_path / "database.db", count=3)) as store:
        camera = store.images()[0].camera
        new = store.add_images([NewImage("unreadable.jpg", camera, "shared")])["unreadable.jpg"]
        done = match_into(store, every_pair(store), matcher)
        assert (done.pairs, done.matched, done.without_features) == (6, 3, 3)
        assert not any(new in pair for pair in matched_pairs(store))
        with pytest.raises(InputError, match="no image 77"):
            match_into(store, [(1, 77)], matcher)
        fourth = store.add_images([NewImage("fourth.jpg", camera, "shared")])["fourth.jpg"]
        store.write_features([(fourth, store.features(1))])
        with pytest.raises(ArgumentError, match="not 'synthetic'"):
            match_into(store, [(1, fourth)], matchers.load("nearest", "sift"))


class Adaptive(Matcher):
    """Says of pairs with image 1 that they have nothing in common, and stops early for all but one."""

    name = "adaptive"

    class config:
        layers = 9

    def _match_many(self, pairs: Any) -> Any:
        raise NotImplementedError

    def match_many(self, pairs: Any) -> Any:
        found = matchers.load("nearest", "synthetic").match_many(pairs)
        return [replace(m, stop_layer=9 if n == 0 else 5, overlaps=bool(n)) for n, m in enumerate(found)]


def test_pairs_that_the_matcher_denies_are_not_verified(tmp_path: Path) -> None:
    notes: list[Progress] = []
    with Store.open(scene(tmp_path / "database.db", count=3)) as store:
        done = match_into(store, every_pair(store), Adaptive(), report=notes.append)
        assert (done.matched, done.verified, done.unrelated) == (3, 2, 1)
        assert done.early_exits == pytest.approx(2 / 3)
        denied = store.geometry(1, 2)
        assert denied is not None  # so that nobody tries again
        assert (denied.config, len(denied.matches)) == ("DEGENERATE", 0)
        matches = store.matches(1, 2)
        assert matches is not None
        assert matches.overlaps is False
        assert match_into(store, every_pair(store), Adaptive()).matched == 0
    assert [(n.done, n.total) for n in notes] == [(0, 3), (3, 3)]


# ---- extraction ----


@pytest.fixture
def photographs(tmp_path: Path, texture: np.ndarray) -> Path:
    """Return a folder with four photographs, one of them in a subfolder, one without texture."""
    folder = tmp_path / "photographs"
    (folder / "sub").mkdir(parents=True)
    for n, name in enumerate(("a.png", "b.png", "sub/c.png")):
        PIL.Image.fromarray(np.roll(texture, 10 * n, axis=1)).save(folder / name)
    PIL.Image.new("RGB", (320, 240), (90, 90, 90)).save(folder / "blank.png")
    return folder


NAMES = ("a.png", "b.png", "blank.png", "sub/c.png")


def test_every_image_gets_the_features_of_its_photograph(tmp_path: Path, photographs: Path) -> None:
    sift = features.load("sift", max_keypoints=200)
    notes: list[Progress] = []
    with registered(tmp_path / "database.db", NAMES) as store:
        done = extract_into(store, photographs, sift, report=notes.append)
        assert (done.extracted, done.already, done.failed) == (4, 0, {})
        for image in store.images():
            direct, stored = sift(photographs / image.name), store.features(image.image_id)
            assert len(stored) == len(direct) == (0 if "blank" in image.name else len(direct))
            assert torch.allclose(stored.keypoints, direct.keypoints, atol=1e-4)
        again = extract_into(store, photographs, sift)
        assert (again.extracted, again.already) == (0, 4)
    assert [n.done for n in notes] == [0, 1, 2, 3, 4]


def test_processes_find_the_same_features(tmp_path: Path, photographs: Path) -> None:
    sift = features.load("sift", max_keypoints=200)
    for workers in (0, 2):
        with registered(tmp_path / f"{workers}.db", NAMES) as store:
            extract_into(store, photographs, sift, workers=workers)
    assert contents(tmp_path / "0.db") == contents(tmp_path / "2.db")


def test_what_cannot_be_read_is_reported_and_the_rest_done(tmp_path: Path, photographs: Path, texture: Any) -> None:
    (photographs / "b.png").write_bytes(b"not a picture")
    (photographs / "sub/c.png").unlink()
    PIL.Image.fromarray(texture[:100]).save(photographs / "a.png")  # was cut after it was registered
    sift = features.load("sift", max_keypoints=200)
    with registered(tmp_path / "database.db", NAMES) as store:
        done = extract_into(store, photographs, sift)
        assert done.extracted == 1
        assert sorted(done.failed) == ["a.png", "b.png", "sub/c.png"]
        assert "320x100" in done.failed["a.png"]
        assert "no such file" in done.failed["sub/c.png"]
        PIL.Image.fromarray(texture).save(photographs / "a.png")
        assert extract_into(store, photographs, sift).extracted == 1  # a file that is back is taken up


def test_features_of_two_extractors_are_not_mixed(tmp_path: Path, photographs: Path) -> None:
    with registered(tmp_path / "database.db", NAMES[:1]) as store:
        extract_into(store, photographs, features.load("orb"))
        store.add_images([NewImage("b.png", store.images()[0].camera, "shared")])
        with pytest.raises(ArgumentError, match="orb"):
            extract_into(store, photographs, features.load("sift"))


class Network(Extractor):
    """One keypoint, at the brightest pixel, found by a torch module."""

    name = "network"
    default_threshold = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Identity()

    def _extract(self, pixels: Any, mask: Any) -> Features:
        brightness = self.net(torch.from_numpy(pixels.astype(np.float32))).sum(2)
        if mask is not None:
            brightness = brightness * torch.from_numpy(mask > 0)
        y, x = divmod(int(brightness.argmax()), brightness.shape[1])
        return Features(
            torch.tensor([[x, y]], dtype=torch.float32), torch.ones(1), torch.eye(8)[:1], pixels.shape[1::-1], "network"
        )


def test_networks_run_here_and_masks_hold(tmp_path: Path) -> None:
    folder, masks = tmp_path / "p", tmp_path / "m"
    folder.mkdir()
    masks.mkdir()
    for n in range(5):
        pixels = np.zeros((240, 320, 3), np.uint8)
        pixels[50, 60 + n] = 255
        pixels[200, 100 + n] = 128
        PIL.Image.fromarray(pixels).save(folder / f"{n}.png")
    mask = np.full((240, 320), 255, np.uint8)
    mask[:100] = 0
    PIL.Image.fromarray(mask).save(masks / "3.png.png")
    with registered(tmp_path / "database.db", tuple(f"{n}.png" for n in range(5))) as store:
        assert extract_into(store, folder, Network(), masks=masks).extracted == 5
        found = {image.name: store.features(image.image_id).keypoints.tolist() for image in store.images()}
    assert found == {f"{n}.png": [[60 + n, 50]] if n != 3 else [[103, 200]] for n in range(5)}


class Deadly(Network):
    """Ends its process at the sight of a white picture, as a kernel that is out of memory does."""

    name = "deadly"

    def __init__(self) -> None:
        super().__init__()
        self.net = None  # hand-made: runs in processes

    def _extract(self, pixels: Any, mask: Any) -> Features:
        if pixels.min() == 255:
            os.kill(os.getpid(), signal.SIGKILL)
        return Features(torch.zeros(1, 2), torch.ones(1), torch.eye(8)[:1], pixels.shape[1::-1], self.name)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_a_process_that_dies_is_an_error_and_the_rest_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiepoint.mapping.workers.COMMIT_SECONDS", 0.0)
    for name, grey in (("a.png", 0), ("b.png", 255)):
        PIL.Image.new("RGB", (320, 240), (grey,) * 3).save(tmp_path / name)
    with registered(tmp_path / "database.db", ("a.png", "b.png")) as store:
        with pytest.raises(TiepointError, match="memory"):
            extract_into(store, tmp_path, Deadly(), workers=1)
        assert len(store.has_features()) == 1
        PIL.Image.new("RGB", (320, 240)).save(tmp_path / "b.png")
        assert extract_into(store, tmp_path, Deadly(), workers=0).extracted == 1
