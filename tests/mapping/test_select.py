"""Lists of pairs, against brute force and COLMAP's geodesy."""

from __future__ import annotations

import os
import tracemalloc
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiepoint.errors import ArgumentError, InputError
from tiepoint.mapping import pairs
from tiepoint.mapping.pairs import (
    by_position,
    by_retrieval,
    earth_centred,
    exhaustive,
    expand_covisibility,
    from_list,
    sequential,
    union,
)

some_ids = st.lists(st.integers(1, 2**31 - 2), unique=True, max_size=30)


def as_set(found: pairs.Pairs) -> set[tuple[int, int]]:
    """Return pairs as a set, after checking what all functions promise of their array."""
    assert found.dtype == np.int32
    assert found.ndim == 2 and found.shape[1] == 2
    rows = [tuple(row) for row in found.tolist()]
    assert all(a < b for a, b in rows)
    assert rows == sorted(set(rows))
    return set(rows)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1)), max_size=40))
def test_union_is_the_union_of_sets(rows: list[tuple[int, int]]) -> None:
    expected = {(min(row), max(row)) for row in rows if row[0] != row[1]}
    assert as_set(union(rows[::2], rows[1::2])) == expected
    assert as_set(union(union(rows), union(rows))) == expected


def test_union_of_nothing_is_empty() -> None:
    assert as_set(union()) == as_set(union([], [])) == set()


@settings(deadline=None)
@given(some_ids)
def test_exhaustive_is_every_combination(ids: list[int]) -> None:
    assert as_set(exhaustive(ids)) == set(combinations(sorted(ids), 2))


def test_exhaustive_refuses_what_no_machine_can_match() -> None:
    with pytest.raises(ArgumentError, match=r"1,250,025,000|retrieval"):
        exhaustive(np.arange(50_001))


@settings(deadline=None)
@given(some_ids, st.integers(1, 12), st.booleans())
def test_sequential_pairs_by_gap(ids: list[int], overlap: int, powers_of_two: bool) -> None:
    gaps = set(range(1, overlap + 1)) | ({2**k for k in range(overlap)} if powers_of_two else set())
    expected = {
        (min(ids[i], ids[j]), max(ids[i], ids[j])) for i, j in combinations(range(len(ids)), 2) if j - i in gaps
    }
    assert as_set(sequential(ids, overlap, powers_of_two)) == expected


def test_sequential_needs_an_overlap() -> None:
    with pytest.raises(ArgumentError, match="overlap must be 1 or more, not 0"):
        sequential([1, 2], overlap=0)


IDS = {"a.jpg": 1, "b.jpg": 2, "left eye/c.jpg": 3, "left eye/d.jpg": 4}


def read(folder: Path, text: str) -> tuple[set[tuple[int, int]], list[tuple[int, str]]]:
    path = folder / "pairs.txt"
    path.write_bytes(text.encode())
    found = from_list(path, IDS)
    assert found.lines >= len(found.unused)
    return as_set(found.pairs), found.unused


def test_list_of_pairs(tmp_path: Path) -> None:
    """A byte order mark, Windows's line ends, and a pair in both directions, which is one."""
    assert read(tmp_path, "\ufeffb.jpg a.jpg\r\n\r\n# by hand\r\na.jpg b.jpg") == ({(1, 2)}, [])


def test_list_with_spaces_in_names(tmp_path: Path) -> None:
    text = "left eye/c.jpg left eye/d.jpg\na.jpg left eye/c.jpg\nleft eye/d.jpg\ta.jpg\n"
    assert read(tmp_path, text) == ({(3, 4), (1, 3), (1, 4)}, [])


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg b.jpg 0.83\nleft eye/c.jpg left eye/d.jpg 17 0.5\n",
        "a.jpg\tb.jpg\t0.83\tgood\nleft eye/c.jpg\tleft eye/d.jpg\t17\n",
        "a.jpg b.jpg\t0.83\nleft eye/c.jpg left eye/d.jpg\t1e-3\n",
        "a.jpg b.jpg some words\nleft eye/c.jpg left eye/d.jpg\n",
        "images/a.jpg images/b.jpg\nimages/left eye/c.jpg images/left eye/d.jpg 3\n",
        "/data/my set/a.jpg /data/my set/b.jpg\n/data/my set/left eye/c.jpg /data/my set/left eye/d.jpg 3\n",
        "C:\\set\\a.jpg C:\\set\\b.jpg\nC:\\set\\left eye\\c.jpg\tC:\\set\\left eye\\d.jpg\n",
    ],
)
def test_list_with_scores_and_folders(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == ({(1, 2), (3, 4)}, [])


def test_only_one_folder_is_taken_off(tmp_path: Path) -> None:
    """Two files called a.jpg in two folders are two photographs."""
    assert read(tmp_path, "x/a.jpg x/b.jpg\ny/a.jpg y/b.jpg\n") == ({(1, 2)}, [(2, "y/a.jpg and y/b.jpg")])


def test_two_folders_in_one_line_and_an_image_with_itself(tmp_path: Path) -> None:
    text = "x/a.jpg y/b.jpg\na.jpg a.jpg\nz/a.jpg z/b.jpg 0.1\n"
    assert read(tmp_path, text) == ({(1, 2)}, [(1, "y/b.jpg"), (2, "a.jpg and nothing else")])


_WORDS = ["a.jpg", "b.jpg", "left eye/c.jpg", " ", "\t", "\n", "/", "\\", "0.5", "#", "\r", "images/", "é", "\0"]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(_WORDS), max_size=40))
def test_any_text_is_a_list_or_an_error(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_text("".join(words), encoding="utf-8")
    try:
        found = from_list(path, IDS)
    except InputError:
        return
    assert len(as_set(found.pairs)) <= found.lines - len(found.unused)


def test_list_reports_unknown_names_and_goes_on(tmp_path: Path) -> None:
    text = "a.jpg x.jpg 0.5\nx.jpg y.jpg\na.jpg b.jpg\nright eye/c.jpg left eye/d.jpg\nleft eye/c.jpg\tz z.jpg\n"
    assert read(tmp_path, text) == (
        {(1, 2)},
        [(1, "x.jpg"), (2, "x.jpg and y.jpg"), (4, "right eye/c.jpg left eye/d.jpg"), (5, "z z.jpg")],
    )


def test_list_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 2 holds one name, 'b\.jpg'"):
        read(tmp_path, "a.jpg b.jpg\nb.jpg\n")
    with pytest.raises(InputError, match=r"none of its 2 lines names two of.*line 1, which names p\.jpg and q\.jpg"):
        read(tmp_path, "p.jpg q.jpg\nq.jpg a.jpg\n")
    with pytest.raises(InputError, match="none of its 0 lines"):
        read(tmp_path, "# nothing\n")
    with pytest.raises(InputError, match=r"nowhere\.txt: no such file"):
        from_list(tmp_path / "nowhere.txt", IDS)
    (tmp_path / "image.txt").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        from_list(tmp_path / "image.txt", IDS)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.txt")
    else:
        (tmp_path / "pipe.txt").mkdir()
    with pytest.raises(InputError, match=r"a pipe|a folder"):
        from_list(tmp_path / "pipe.txt", IDS)


@pytest.mark.parametrize("length", [120_000, 3_000_000])
def test_a_long_line_takes_little_memory(tmp_path: Path, length: int) -> None:
    tracemalloc.start()
    with pytest.raises(InputError, match="line 2 has more than" if length > 1 << 20 else "none of its 1 lines"):
        read(tmp_path, "#\n" + "a b " * (length // 4) + "\n")
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_earth_is_colmaps(rng: np.random.Generator) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    places = np.stack([rng.uniform(-90, 90, 100), rng.uniform(-180, 180, 100), np.zeros(100)], axis=1)
    expected = pycolmap.GPSTransform().ellipsoid_to_ecef(places)
    np.testing.assert_allclose(earth_centred(places), expected, rtol=0, atol=1e-3)
    places[:, 2] = rng.uniform(0, 5000, 100)
    np.testing.assert_array_equal(earth_centred(places), earth_centred(places[:, :2]))


def test_metres_hold_everywhere_on_earth() -> None:
    """1000 m west and east of the date line, around the pole, and at 60° north, where a degree of longitude is half."""
    step = np.degrees(500 / 6_378_137.0)  # 500 m along the equator
    across = earth_centred([[0, 180 - step], [0, -180 + step]])
    assert np.linalg.norm(across[0] - across[1]) == pytest.approx(1000, abs=0.01)
    pole = earth_centred([[90 - step, 0], [90 - step, 180]])
    assert np.linalg.norm(pole[0] - pole[1]) == pytest.approx(1000, rel=0.004)
    north = earth_centred([[60, 10], [60, 10 + 2 * step]])
    assert np.linalg.norm(north[0] - north[1]) == pytest.approx(500, rel=0.003)


@pytest.mark.parametrize("wrong", [[[91.0, 0.0]], [[0.0, 361.0]], [[1.0]], [1.0, 2.0]])
def test_positions_that_are_none(wrong: list[list[float]]) -> None:
    with pytest.raises(ArgumentError):
        earth_centred(wrong)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(*[st.integers(-9, 9)] * 3), max_size=40),
    st.integers(1, 5),
    st.sampled_from([0.0, 1.0, 4.5, np.inf]),
    st.integers(0, 6),
)
def test_neighbours_equal_brute_force(
    places: list[tuple[int, int, int]], nearest: int, max_distance: float, at_least: int
) -> None:
    """On a grid of whole numbers, so that ties abound."""
    ids = np.arange(len(places)) * 3 + 1
    table = np.array(places, float).reshape(-1, 3)
    expected = set()
    for i in range(len(table)):
        distance = np.linalg.norm(table - table[i], axis=1)
        order = [j for j in np.argsort(distance, kind="stable") if j != i][:nearest]
        near = [j for k, j in enumerate(order) if k < at_least or distance[j] <= max_distance]
        expected |= {(min(ids[i], ids[j]), max(ids[i], ids[j])) for j in near}
    assert as_set(by_position(ids, table, nearest, max_distance, at_least)) == expected


def test_photographs_far_apart_have_neighbours() -> None:
    """In a row, 150 m from each other, beyond any limit for a street; the last one is nearest to its neighbour."""
    row = np.array([[150.0 * i, 0, 0] for i in range(9)])
    assert as_set(by_position(range(1, 10), row, at_least=1)) >= {(8, 9), (1, 2)}
    assert {i for pair in as_set(by_position(range(1, 10), row, at_least=1)) for i in pair} == set(range(1, 10))
    assert as_set(by_position(range(1, 10), row, at_least=0)) == set()


def test_images_without_a_position_are_in_no_pair() -> None:
    gps = earth_centred([[48, 11, 500], [np.nan, np.nan, np.nan], [48, 11.0001, np.nan], [48, 11.1, 0]])
    assert as_set(by_position([1, 2, 3, 4], gps, at_least=0)) == {(1, 3)}
    assert as_set(by_position([1, 2, 3, 4], gps)) == {(1, 3), (1, 4), (3, 4)}
    assert as_set(by_position([1, 2], gps[:2])) == as_set(by_position([], np.zeros((0, 3)))) == set()


def test_by_position_arguments() -> None:
    with pytest.raises(ArgumentError, match=r"positions must be \(2, 3\)"):
        by_position([1, 2], [[48, 11], [48, 11]])
    with pytest.raises(ArgumentError, match="nearest must be 1 or more"):
        by_position([1], [[0, 0, 0]], nearest=0)
    with pytest.raises(ArgumentError, match="max_distance and at_least must be 0 or more, not nan"):
        by_position([1], [[0, 0, 0]], max_distance=np.nan)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 40), st.integers(1, 6), st.integers(1, 12), st.integers(0, 9))
def test_retrieval_equals_brute_force(n: int, top_k: int, min_gap: int, seed: int) -> None:
    pytest.importorskip("faiss")
    rng = np.random.default_rng(seed)
    looks = rng.normal(size=(n, 8)).astype(np.float32)
    looks[rng.random(n) < 0.1] = 0  # images without keypoints
    ids = rng.permutation(n) + 1
    expected = set()
    for i in range(n):
        order = np.argsort(-(looks @ looks[i]))
        order = [j for j in order if abs(i - j) >= min_gap and looks[i].any() and looks[j].any()]
        expected |= {(min(ids[i], ids[j]), max(ids[i], ids[j])) for j in order[:top_k]}
    assert as_set(by_retrieval(ids, looks, top_k, min_gap)) == expected


def test_retrieval_arguments() -> None:
    with pytest.raises(ArgumentError, match="2 descriptors for 1 ids"):
        by_retrieval([1], np.eye(2, dtype=np.float32))
    with pytest.raises(ArgumentError, match="top_k must be 1 or more"):
        by_retrieval([1, 2], np.eye(2, dtype=np.float32), top_k=0)
    with pytest.raises(ArgumentError, match="min_gap must be 1 or more"):
        by_retrieval([1, 2], np.eye(2, dtype=np.float32), min_gap=0)


def test_covisibility_closes_a_chain_step_by_step() -> None:
    """In a chain 1-2-3-…-9 in which all would verify, each round doubles the reach."""
    tried = {(i, i + 1) for i in range(1, 9)}
    reach = [1]
    while len(new := expand_covisibility(dict.fromkeys(tried, 40), tried, top_k=100)):
        assert as_set(new).isdisjoint(tried)
        tried |= as_set(new)
        reach.append(max(b - a for a, b in tried))
    assert reach == [1, 2, 4, 8]
    assert len(tried) == 36


def test_covisibility_does_not_try_again_what_failed() -> None:
    assert as_set(expand_covisibility({(1, 2): 40, (2, 3): 40}, {(1, 2), (2, 3), (1, 3)})) == set()


def test_covisibility_prefers_the_best_evidence() -> None:
    """Image 1 reaches 5 by two links of 30, 6 by one of 70 and 7 by one of 20: its one choice is 6.

    2 and 3 have 110 for each other; 4 has 30 for 2 and for 3, and takes the first; 5 and 7 have nobody but 1.
    """
    verified = {(1, 2): 30, (1, 3): 30, (1, 4): 90, (2, 5): 80, (3, 5): 80, (4, 6): 70, (4, 7): 20}
    new = expand_covisibility(verified, verified.keys(), top_k=1)
    assert as_set(new) == {(1, 6), (2, 3), (2, 4), (1, 5), (1, 7)}
    new = expand_covisibility(verified, [*verified, (1, 6), (2, 3)], top_k=1)
    assert as_set(new) == {(1, 5), (2, 4), (3, 4), (6, 7), (1, 7)}
