"""The same map on a Ray cluster: equal row by row to one process, whoever dies or dawdles on the way."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stored import contents, every_pair, matched_pairs, registered, scene
from tiepoint import features, matchers
from tiepoint.errors import ArgumentError, InputError, TiepointError
from tiepoint.features.sift import SIFT
from tiepoint.mapping import cluster as distributed
from tiepoint.mapping import shards
from tiepoint.mapping.cluster import cluster, extract_on_ray, match_on_ray
from tiepoint.mapping.progress import Progress
from tiepoint.mapping.steps.extract import extract_into
from tiepoint.mapping.steps.match import match_into
from tiepoint.mapping.store import CONFIGS, PairResult, Store
from tiepoint.matchers.nearest import NearestNeighbour

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install 'tiepoint[ray]'")
NAMES = tuple(f"{n:02}.png" for n in range(12))


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    """A local cluster of two processes; ray is not imported before, as in ``tiepoint map --ray local``."""
    with cluster("local", workers=2):
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not find the tests
        yield
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def photographs(tmp_path: Path, texture: np.ndarray) -> Path:
    """Return a folder of views of one picture, cut from it at different places; one is no photograph at all."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for n, name in enumerate(NAMES):
        PIL.Image.fromarray(np.roll(texture, 9 * n, axis=1)).save(folder / name)
    (folder / NAMES[7]).write_bytes(b"not a picture")
    return folder


def database(path: Path) -> Store:
    return registered(path, NAMES)


class Watched:
    """Notes what it works on; whoever begins the work numbered ``dies_at`` dies of it, as if killed from outside."""

    notes: Path
    dies_at: int | None = None

    def begin(self, what: str) -> None:
        (self.notes / f"{time.monotonic_ns()} {os.getpid()}").write_text(what)
        if self.dies_at is not None and len(self.begun()) >= self.dies_at:
            try:
                with self.notes.with_suffix(".died").open("x") as file:
                    file.write(what)
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)

    def begun(self) -> list[tuple[int, str]]:
        """Return (process, what it began), in order; a note that is being written says nothing yet."""
        return [(int(path.name.split()[1]), path.read_text()) for path in sorted(self.notes.iterdir())]

    def begun_again(self) -> bool:
        """Return whether what somebody died of was begun once more."""
        return [what for _, what in self.begun()].count(self.notes.with_suffix(".died").read_text()) > 1


class WatchedSIFT(Watched, SIFT):
    def __call__(self, image: Any, mask: Any = None) -> Any:
        self.begin(Path(image).name)
        return super().__call__(image, mask)


class WatchedMatcher(Watched, NearestNeighbour):
    def match_many(self, pairs: Any) -> Any:
        self.begin(str([float(f.keypoints.sum()) for pair in pairs for f in pair]))
        return super().match_many(pairs)


@needs_ray
def test_a_worker_killed_half_way_changes_nothing(tmp_path: Path, photographs: Path, two_workers: None) -> None:
    with database(tmp_path / "one.db") as store:
        alone = extract_into(store, photographs, features.load("sift", max_keypoints=200), workers=0)
        matched_alone = match_into(store, every_pair(store), matchers.load("nearest", "sift"))
    sift, matcher = WatchedSIFT(features.ExtractorOptions(max_keypoints=200)), WatchedMatcher("sift")
    for watched in (sift, matcher):
        watched.notes, watched.dies_at = tmp_path / watched.name, 4
        watched.notes.mkdir()
    reports: list[Progress] = []
    with database(tmp_path / "many.db") as store:
        assert extract_on_ray(store, photographs, sift, shard=1) == alone
        assert sift.begun_again()

        matched = match_on_ray(store, every_pair(store), matcher, shard=8, report=reports.append)
        assert matcher.begun_again()
    assert alone.extracted == 11
    assert list(alone.failed) == [NAMES[7]]
    for name in ("pairs", "matched", "already", "without_features", "verified", "unrelated", "early_exits"):
        assert getattr(matched, name) == getattr(matched_alone, name)
    assert matched.verified > 10
    assert (reports[0].done, reports[-1].done, reports[-1].total) == (0, 55, 55)
    assert contents(tmp_path / "many.db") == contents(tmp_path / "one.db")
    assert not (tmp_path / "many.db-shards").exists()


@needs_ray
def test_shards_that_were_finished_are_not_made_again(tmp_path: Path, two_workers: None) -> None:
    path = scene(tmp_path / "database.db")
    with Store.open(scene(tmp_path / "one.db")) as store:
        match_into(store, every_pair(store), matchers.load("nearest", "synthetic"))
    matcher = WatchedMatcher("synthetic")
    matcher.notes = tmp_path / "notes"
    matcher.notes.mkdir()
    shards = tmp_path / "database.db-shards"

    def stop(progress: Progress) -> None:
        """Stop this process when the first shard is in the database, and the other two are made."""
        if progress.done == 0:
            return
        while len(list(shards.glob("matches-*.npz"))) < 2:
            time.sleep(0.05)
        raise KeyboardInterrupt

    with Store.open(path) as store:
        with pytest.raises(KeyboardInterrupt):
            match_on_ray(store, every_pair(store), matcher, shard=8, report=stop)
        assert len(matched_pairs(store)) == 8
        damaged, _ = sorted(shards.glob("matches-*.npz"))
        damaged.write_bytes(damaged.read_bytes()[:-100])
        before = matcher.begun()
        assert match_on_ray(store, every_pair(store), matcher, shard=8).matched == 13
        again = {what for _, what in matcher.begun()[len(before) :]}
        assert len({what for _, what in before}) == 3
        assert len(again) == 1
    assert contents(path) == contents(tmp_path / "one.db")


@needs_ray
def test_a_shard_of_other_features_is_made_again(
    tmp_path: Path, two_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    matcher = matchers.load("nearest", "synthetic")
    with Store.open(scene(tmp_path / "database.db", count=3)) as store:
        with monkeypatch.context() as patch, pytest.raises(InputError, match="full"):
            patch.setattr(Store, "write_matches", raises(InputError("disk full")))
            match_on_ray(store, every_pair(store), matcher)
        (left,) = (tmp_path / "database.db-shards").iterdir()
        one = store.features(1)
        store.write_features([(1, one.select(torch.arange(len(one) - 1, -1, -1)))])
        match_on_ray(store, every_pair(store), matcher)
        found = store.matches(1, 2)
        assert found is not None
        assert np.array_equal(found.indices, matcher(store.features(1), store.features(2)).indices)
    assert not left.exists()


def raises(error: Exception) -> Any:
    def function(*_: Any) -> None:
        raise error

    return function


class Hangs(Watched, NearestNeighbour):
    """The first who is asked does not answer for a long time."""

    def match_many(self, pairs: Any) -> Any:
        first = self.notes / "first"
        try:
            first.touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            time.sleep(300)
            (self.notes / "awake").touch()
        return super().match_many(pairs)


@needs_ray
def test_a_straggler_does_not_hold_the_run(tmp_path: Path, two_workers: None) -> None:
    matcher = Hangs("synthetic")
    matcher.notes = tmp_path / "notes"
    matcher.notes.mkdir()
    with Store.open(scene(tmp_path / "database.db")) as store:
        assert match_on_ray(store, every_pair(store), matcher, shard=8).matched == 21
    assert (matcher.notes / "first").exists()
    assert not (matcher.notes / "awake").exists()


class Deadly(NearestNeighbour):
    def match_many(self, pairs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


@needs_ray
def test_errors_are_those_of_one_process(tmp_path: Path, two_workers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(scene(tmp_path / "database.db", count=3)) as store:
        with pytest.raises(ArgumentError, match="not 'synthetic'"):
            match_on_ray(store, every_pair(store), matchers.load("nearest", "sift"))
        with pytest.raises(InputError, match="no image 77"):
            match_on_ray(store, [(1, 77)], matchers.load("nearest", "synthetic"))
        monkeypatch.setattr(distributed, "RETRIES", 0)
        with pytest.raises(TiepointError, match="1 workers died"):
            match_on_ray(store, every_pair(store), Deadly("synthetic"))
        assert matched_pairs(store) == set()
    with pytest.raises(InputError, match="no GPU"):
        distributed._Workers(torch.device("cuda"))
    with pytest.raises(ArgumentError, match="already"), cluster("local"):
        pass
    with pytest.raises(ArgumentError, match="workers"), cluster("auto", workers=3):
        pass


@needs_ray
def test_a_local_cluster_listens_to_this_machine_alone(two_workers: None) -> None:
    import ray

    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]
    assert os.environ["RAY_AUTH_TOKEN"]
    # Ray lets everybody into its folder of a session, so that lies in one that is ours alone.
    session = Path(ray.worker._global_node.get_session_dir_path())
    closed = [place for place in session.parents if place.name.startswith("tiepoint-")]
    assert [place.stat().st_mode & 0o777 for place in closed] == [0o700]


@needs_ray
def test_no_cluster_at_an_address(tmp_path: Path) -> None:
    free = socket.create_server(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()
    script = f"from tiepoint.mapping.cluster import cluster\nwith cluster('127.0.0.1:{port}'): pass"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "InputError: no Ray cluster at" in ran.stderr


def test_without_ray_the_line_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"tiepoint\[ray\]"), cluster("local"):
        pass


# ---- the files ----


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans(), st.booleans(), st.sampled_from(CONFIGS)), min_size=1))
@settings(max_examples=30, deadline=None)
def test_results_survive_the_file(tmp_path_factory: pytest.TempPathFactory, shapes: list[Any]) -> None:
    rng = np.random.default_rng(0)
    found = []
    for n, (count, verified, posed, config) in enumerate(shapes):
        matches = np.sort(rng.integers(0, 2**32 - 1, (count, 2)), axis=0)
        models = {name: rng.normal(size=(3, 3)) for name in ("F", "E", "H", "R")} if posed else {}
        result = PairResult(
            n + 1,
            n + 2,
            matches,
            rng.random(count).astype(np.float32),
            overlaps=None if n % 3 == 0 else n % 3 == 1,
            inliers=rng.random(count) < 0.5 if verified else None,
            config=config,
            t=rng.normal(size=3) if posed else None,
            **models,
        )
        found.append((result, None if n % 2 else n))
    path = tmp_path_factory.mktemp("shard") / "a.npz"
    shards.make(path, "x", lambda: shards.result_arrays(found))
    again = list(shards.read_results(path))
    assert len(again) == len(found)
    for (a, layer_a), (b, layer_b) in zip(found, again, strict=True):
        assert layer_a == layer_b
        for name, value in vars(a).items():
            other = getattr(b, name)
            assert (other is None) == (value is None), name
            assert np.array_equal(value, other) if isinstance(value, np.ndarray) else value == other, name


def test_a_shard_whose_file_is_whole_is_left_alone(tmp_path: Path) -> None:
    calls: Counter[str] = Counter()

    def made(what: str) -> Any:
        return lambda: (calls.update([what]), {"a": np.arange(3)})[1]

    path = tmp_path / "a.npz"
    for made_of in ("x", "x", "y"):
        shards.make(path, made_of, made(made_of))
    assert calls == {"x": 1, "y": 1}
    with pytest.raises(InputError, match="share"):
        shards.read_results(tmp_path / "elsewhere.npz")
