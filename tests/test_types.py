"""`Matches`: rows chosen, other people's formats; `Estimate`: what it prints."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiepoint as tp
from tiepoint.errors import ArgumentError, MissingDependencyError

COUNT = 12


def matches(overlaps: bool | None = True) -> tp.Matches:
    rng = np.random.default_rng(3)
    index = np.stack([np.sort(rng.permutation(40)[:COUNT]), rng.permutation(40)[:COUNT]], axis=1)
    points = rng.uniform(0, 100, (2, COUNT, 2)).astype(np.float32)
    covariances = rng.uniform(0, 1, (2, COUNT, 2, 2)).astype(np.float32)
    return tp.Matches(
        index,
        rng.uniform(0, 1, COUNT).astype(np.float32),
        points[0],
        points[1],
        stop_layer=5,
        prune_layer0=np.arange(40),
        overlaps=overlaps,
        covariances=(covariances[0], covariances[1]),
    )


ROWS = ("indices", "scores", "points0", "points1")


@given(st.lists(st.booleans(), min_size=COUNT, max_size=COUNT))
def test_a_mask_keeps_whole_rows(mask: list[bool]) -> None:
    whole = matches()
    part = whole[np.array(mask)]
    kept = [k for k in range(COUNT) if mask[k]]
    assert len(part) == len(kept)
    for name in ROWS:
        assert getattr(part, name).tolist() == [getattr(whole, name)[k].tolist() for k in kept]
    assert part.covariances is not None and whole.covariances is not None
    for mine, all_ in zip(part.covariances, whole.covariances, strict=True):
        np.testing.assert_array_equal(mine, all_[kept])
    assert part.prune_layer0 is whole.prune_layer0, "it is about keypoints, not about matches"


@given(st.slices(COUNT))
def test_a_slice_is_in_the_order_of_the_matches(index: slice) -> None:
    rows = sorted(range(COUNT)[index])
    np.testing.assert_array_equal(matches()[index].indices, matches().indices[rows])


def test_numbers_choose_rows_whatever_their_order() -> None:
    np.testing.assert_array_equal(matches()[[7, 2, -1]].indices, matches().indices[[2, 7, 11]])
    assert [one.scores.item() for one in matches()] == matches().scores.tolist()
    assert matches()[-1].scores.item() == matches().scores[-1]


def test_wrong_rows() -> None:
    with pytest.raises(ArgumentError, match="does not fit 12 matches"):
        matches()[np.ones(11, bool)]
    with pytest.raises(ArgumentError, match="does not fit 12 matches"):
        matches()[[12]]
    with pytest.raises(ArgumentError, match="twice"):
        matches()[[1, 1]]
    with pytest.raises(ArgumentError, match="twice"):
        matches()[[11, -1]]


@pytest.mark.parametrize(("before", "after"), [(True, None), (None, None), (False, False)])
def test_some_matches_do_not_prove_an_overlap(before: bool | None, after: bool | None) -> None:
    assert matches(before)[:3].overlaps is after


def test_they_print_shortly() -> None:
    assert repr(matches()) == "<Matches: 12, stopped after layer 5>"


def test_opencv_understands_them(texture: np.ndarray) -> None:
    """Its own homography from its own types is ours, within its pixels."""
    moved = np.ascontiguousarray(texture[8:, 12:])
    found = tp.match(texture, moved, "sift", "nearest").matches
    keypoints0, keypoints1, links = found.to_opencv()
    x0 = np.array([keypoints0[link.queryIdx].pt for link in links])
    x1 = np.array([keypoints1[link.trainIdx].pt for link in links])
    np.testing.assert_allclose(np.median(x0 - x1, axis=0), [12, 8], atol=0.05)
    best = min(links, key=lambda link: link.distance)
    assert best.distance == pytest.approx(1 - found.scores.max())
    drawn = cv2.drawMatches(texture, keypoints0, moved, keypoints1, links, None)
    assert drawn.shape[1] == texture.shape[1] + moved.shape[1]


def test_a_table_for_pandas() -> None:
    pytest.importorskip("pandas")
    table = matches().to_pandas()
    assert list(table) == ["index0", "index1", "x0", "y0", "x1", "y1", "score"]
    np.testing.assert_array_equal(table[["index0", "index1"]], matches().indices)
    np.testing.assert_array_equal(table[["x1", "y1"]], matches().points1)
    np.testing.assert_array_equal(table.score, matches().scores)


def test_without_pandas_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependencyError, match=r"tiepoint\[pandas\]"):
        matches().to_pandas()


def test_an_estimate_prints_its_model() -> None:
    x = np.random.default_rng(0).uniform(0, 100, (50, 2))
    text = repr(tp.geometry.estimate_homography(x, x + np.array([3, 0])))
    assert text.startswith("<Estimate: 50 inliers of 50 matches, model [[1, ") and "True" not in text
    assert repr(tp.geometry.estimate_homography(x[:2], x[:2])) == "<Estimate: no model agrees with the 2 matches>"
