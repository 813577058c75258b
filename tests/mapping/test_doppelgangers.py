"""Look-alike pairs: a made-up street with twin fronts, the store, and photographs of a cup with two equal sides."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stored import matched_pairs
from tiepoint import features, matchers
from tiepoint.mapping.steps.doppelgangers import (
    HARMFUL,
    MatchGraph,
    SuspiciousPair,
    hide_doppelgangers,
    suspicious_pairs,
)
from tiepoint.types import Features

pycolmap = pytest.importorskip("pycolmap")

from tiepoint.mapping import NewImage, PairResult, Store  # noqa: E402
from tiepoint.mapping.steps.extract import extract_into  # noqa: E402
from tiepoint.mapping.steps.images import new_images  # noqa: E402
from tiepoint.mapping.steps.match import match_into  # noqa: E402

SIZE = (640, 480)
VIEW = 20.0  # metres of the street in a picture


def street(
    at: list[float], twins: tuple[float, float, float] | None, seed: int = 0
) -> tuple[MatchGraph, set[tuple[int, int]]]:
    """Look at a street from the places ``at``; return what matches, and the pairs that match by twins alone.

    ``twins`` is (start, length, how much further on the same comes again), in metres.
    """
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, 110, 3000), rng.uniform(0, 15, 3000)
    looks = np.arange(len(x))
    if twins:
        start, length, further = twins
        there = (x > start + further) & (x < start + length + further)
        x, y, looks = x[~there], y[~there], looks[~there]
        first = (x > start) & (x < start + length)
        x, y, looks = np.append(x, x[first] + further), np.append(y, y[first]), np.append(looks, looks[first])
    reach = rng.exponential(12, len(x))  # how far apart two views of a landmark may be, to be still alike
    seen = [np.flatnonzero((x > a) & (x < a + VIEW)) for a in at]
    points = {
        i: np.stack([(x[s] - at[i]) * SIZE[0] / VIEW, y[s] * SIZE[1] / 15], axis=1).astype(np.float32)
        for i, s in enumerate(seen)
    }
    matches, wrong = {}, set()
    for a, b in combinations(range(len(at)), 2):
        right = same(seen[a], seen[b])
        right = right[reach[seen[a][right[:, 0]]] > abs(at[a] - at[b])]
        alike = same(looks[seen[a]], looks[seen[b]])
        alike = alike[seen[a][alike[:, 0]] != seen[b][alike[:, 1]]]
        if max(len(right), len(alike)) >= HARMFUL:
            matches[a, b] = max(right, alike, key=len).astype(np.int32)
            if len(alike) > len(right):
                wrong.add((a, b))
    return MatchGraph(points, dict.fromkeys(points, SIZE), matches), wrong


def same(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where equal numbers stand, (K, 2)."""
    return np.stack(np.intersect1d(a, b, return_indices=True)[1:], axis=1)


def test_twins_on_a_street_are_found_and_nothing_else() -> None:
    graph, wrong = street(list(np.arange(0, 90, 4.0)), twins=(22, 10, 50))
    assert len(wrong) > 20
    assert max(len(graph.matches[pair]) for pair in wrong) > 150
    assert set(graph.unexplained()) == wrong


def test_nothing_is_found_where_nothing_repeats() -> None:
    graph, wrong = street(list(np.arange(0, 90, 4.0)), twins=None)
    assert not wrong
    assert graph.unexplained() == {}


def test_views_of_either_side_of_a_twin_have_all_they_share_in_common_and_are_found_nevertheless() -> None:
    graph, wrong = street(list(np.arange(0, 90, 4.0)), twins=(22, 10, 50))
    one_sided = {pair for pair in wrong if graph.covered(*pair)[1] > 0.9}
    assert one_sided
    assert one_sided <= set(graph.unexplained())


def test_a_small_twin_does_not_join_two_places_that_no_photograph_connects() -> None:
    near, far = np.arange(0, 24, 4.0), np.arange(50, 74, 4.0)
    graph, wrong = street([*near, *far], twins=(20, 3, 50))
    assert {a < 6 <= b for a, b in wrong} == {True}
    assert set(graph.unexplained()) == wrong


def test_a_wide_step_between_two_photographs_is_not_taken_for_twins() -> None:
    graph, _ = street([0.0, 4.0, 8.0, 20.0, 24.0, 28.0], twins=None)
    assert (2, 3) in graph.matches
    assert (2, 3) not in graph.unexplained()


def test_pairs_too_weak_to_place_a_photograph_are_left_alone() -> None:
    graph, wrong = street(list(np.arange(0, 90, 4.0)), twins=(22, 10, 50))
    weak = min(wrong)
    graph.matches[weak] = graph.matches[weak][: HARMFUL - 1]
    assert set(graph.unexplained()) == wrong - {weak}


def test_two_photographs_alone_are_never_suspicious() -> None:
    graph, _ = street([0.0, 15.0], twins=None)
    assert list(graph.matches) == [(0, 1)]
    assert graph.unexplained() == {}


def test_coincident_points_do_no_harm() -> None:
    points = {0: np.full((20, 2), 5, np.float32), 1: np.full((20, 2), 9, np.float32)}
    both = np.arange(20, dtype=np.int32).repeat(2).reshape(-1, 2)
    graph = MatchGraph(points, {0: SIZE, 1: SIZE}, {(0, 1): both})
    assert graph.covered(0, 1) == (1, 1)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_the_order_of_keypoints_and_of_pairs_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph, _ = street(list(np.arange(16, 90, 5.0)), twins=(22, 10, 50), seed=3)
    order = {i: rng.permutation(len(p)) for i, p in graph.points.items()}
    rank = {i: np.argsort(o) for i, o in order.items()}
    moved = {
        (a, b): np.stack([rank[a][m[:, 0]], rank[b][m[:, 1]]], axis=1).astype(np.int32)
        for (a, b), m in reversed(graph.matches.items())
    }
    shuffled = MatchGraph({i: p[order[i]] for i, p in graph.points.items()}, graph.sizes, moved)
    assert shuffled.unexplained() == graph.unexplained()


def test_a_reason_in_words() -> None:
    pair = SuspiciousPair(1, 2, ("a.jpg", "b.jpg"), 427, 1, 0.424)
    assert str(pair) == (
        "a.jpg, b.jpg: 427 matches, in 42 % of the view that both should share, "
        "but only 1 of them come out by way of other images"
    )


# ---- the store ----


@pytest.fixture
def twin_store(tmp_path: Path) -> tuple[Path, set[tuple[int, int]]]:
    """A database of the street with twins, and the pairs that are wrong."""
    graph, wrong = street(list(np.arange(0, 90, 4.0)), twins=(22, 10, 50))
    camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=SIZE[0], height=SIZE[1], params=[500, 320, 240])
    path = tmp_path / "database.db"
    with Store.open(path) as store:
        ids = list(store.add_images([NewImage(f"{i:02d}.jpg", camera, "one") for i in graph.points]).values())
        store.write_features(
            (ids[i], Features(torch.from_numpy(p), torch.ones(len(p)), torch.ones(len(p), 1), SIZE, "made-up"))
            for i, p in graph.points.items()
        )
        store.write_matches(
            PairResult(
                ids[a], ids[b], m, np.ones(len(m)), inliers=np.ones(len(m), bool), config="UNCALIBRATED", F=np.eye(3)
            )
            for (a, b), m in graph.matches.items()
        )
    return path, {(ids[a], ids[b]) for a, b in wrong}


def geometries(path: Path) -> dict[int, tuple[int, int, int]]:
    """Read what COLMAP's mappers would: pair id -> number and checksum of inliers, configuration."""
    with pycolmap.Database.open(path) as database:
        found = zip(*database.read_two_view_geometries(), strict=True)
        return {
            pair_id: (len(g.inlier_matches), int(g.inlier_matches.astype(np.int64).sum()), int(g.config))
            for pair_id, g in found
        }


def test_dropped_pairs_are_hidden_from_mappers_and_their_matches_stay(
    twin_store: tuple[Path, set[tuple[int, int]]],
) -> None:
    path, wrong = twin_store
    with Store.open(path) as store:
        before = store.verified_pairs()
        matched = matched_pairs(store)
        found = hide_doppelgangers(store)
        assert {(pair.id0, pair.id1) for pair in found} == wrong
        assert store.verified_pairs() == {pair: n for pair, n in before.items() if pair not in wrong}
        assert matched_pairs(store) == matched
        pair = found[0]
        assert len(store.matches(pair.id0, pair.id1).indices) == pair.inliers
        assert pair.names == (f"{pair.id0 - 1:02d}.jpg", f"{pair.id1 - 1:02d}.jpg")
        assert [p.context for p in found] == sorted(p.context for p in found)
        assert len(store.verified_pair_ids()) == len(before)  # nobody verifies them again
    assert sum(count > 0 for count, _, _ in geometries(path).values()) == len(before) - len(wrong)


def test_restoring_gives_back_every_byte(twin_store: tuple[Path, set[tuple[int, int]]]) -> None:
    path, wrong = twin_store
    before = geometries(path)
    with Store.open(path) as store:
        hide_doppelgangers(store)
    with Store.open(path) as store:  # in another run
        assert store.show_hidden_pairs() == len(wrong)
        assert store.show_hidden_pairs() == 0
    assert geometries(path) == before


def test_dropping_twice_is_dropping_once(twin_store: tuple[Path, set[tuple[int, int]]]) -> None:
    path, _ = twin_store
    with Store.open(path) as store:
        once = hide_doppelgangers(store)
        state = geometries(path)
        assert hide_doppelgangers(store) == once
    assert geometries(path) == state


def test_looking_changes_nothing(twin_store: tuple[Path, set[tuple[int, int]]]) -> None:
    path, wrong = twin_store
    before = geometries(path)
    with Store.open(path) as store:
        assert len(suspicious_pairs(store)) == len(wrong)
    assert geometries(path) == before


def test_a_pair_that_was_matched_anew_is_not_overwritten_by_its_past(
    twin_store: tuple[Path, set[tuple[int, int]]],
) -> None:
    path, wrong = twin_store
    with Store.open(path) as store:
        a, b = hide_doppelgangers(store)[0].id0, hide_doppelgangers(store)[0].id1
        new = np.arange(16).repeat(2).reshape(-1, 2)
        store.write_matches(
            [PairResult(a, b, new, np.ones(16), inliers=np.ones(16, bool), config="PLANAR", H=np.eye(3))]
        )
        assert store.show_hidden_pairs() == len(wrong) - 1
        geometry = store.geometry(a, b)
    assert geometry.config == "PLANAR"
    assert len(geometry.matches) == 16


def test_a_store_without_pairs(tmp_path: Path) -> None:
    with Store.open(tmp_path / "database.db") as store:
        assert hide_doppelgangers(store) == []
        assert store.show_hidden_pairs() == 0


# ---- photographs ----


def test_the_two_sides_of_a_cup(data_dir: Path, tmp_path: Path) -> None:
    """Photographs around two thirds of a ring, 5.6 degrees on average from name to name."""
    folder = data_dir / "demo" / "cup" / "images"
    names = [f"{n:04d}.jpg" for n in range(40)]
    with Store.open(tmp_path / "database.db") as store:
        images, _ = new_images(folder, names, share="all", focal=711.3)
        ids = [store.add_images(images)[name] for name in names]
        extract_into(store, folder, features.load("sift", max_keypoints=600, long_side=640), workers=0)
        neighbours = {(ids[a], ids[b]) for a, b in combinations(range(40), 2) if b - a <= 3}
        opposite = {(ids[a], ids[b]) for a in range(0, 9, 2) for b in range(28, 40)}
        match_into(store, [*neighbours, *opposite], matchers.load("nearest", features="sift"), workers=1)
        before = store.verified_pairs()
        assert sum(before.get(pair, 0) > 50 for pair in opposite) > 20
        hide_doppelgangers(store)
        after = store.verified_pairs()
    assert all(after.get(pair, 0) < HARMFUL for pair in opposite)
    assert neighbours & set(before) <= set(after)
    assert all(pair in after for pair in pairwise(ids))
