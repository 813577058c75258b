"""Nearest neighbours: against brute force and OpenCV, exactly symmetric, one match per keypoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import tiepoint as tp
from tiepoint import Features, Matches
from tiepoint.errors import ArgumentError
from tiepoint.matchers import nearest
from tiepoint.matchers.base import Matcher, comes_before, make_matches
from tiepoint.matchers.mutual import mutual_nearest
from tiepoint.matchers.nearest import NearestNeighbour


def features(descriptors: NDArray[np.float32] | NDArray[np.uint8], seed: int = 0) -> Features:
    """Features with these descriptors (floats are normalised) and random keypoints."""
    rng, rows = np.random.default_rng(seed), torch.from_numpy(np.array(descriptors))
    if rows.dtype != torch.uint8:
        rows = torch.nn.functional.normalize(rows.float(), dim=1)
    keypoints = torch.from_numpy(rng.uniform(0, 100, (len(rows), 2)).astype(np.float32))
    return Features(keypoints, torch.ones(len(rows)), rows, (100, 100), "mine")


def related(kind: str, sizes: tuple[int, int], seed: int = 0, spread: float = 0.5) -> tuple[Features, Features]:
    """Two sets in which about half of the descriptors of one have a noisy copy in the other."""
    rng = np.random.default_rng(seed)
    n, m = sizes
    if kind == "float":
        a, b = rng.normal(size=(n, 32)), rng.normal(size=(m, 32))
        common = min(n, m) // 2
        b[:common] = a[:common] + spread * rng.normal(size=(common, 32))
    else:
        a, b = (rng.integers(0, 256, (k, 32), dtype=np.uint8) for k in sizes)
        common = min(n, m) // 2
        noise = np.packbits(rng.random((common, 256)) < spread / 2, axis=1)
        b[:common] = a[:common] ^ noise
    return features(a, 1), features(rng.permutation(b), 2)


def distance_matrix(a: Features, b: Features) -> NDArray[np.float64]:
    """All distances, by definition."""
    x, y = a.descriptors.numpy(), b.descriptors.numpy()
    if a.is_binary:
        return np.unpackbits(x[:, None] ^ y[None], axis=2).sum(axis=2).astype(np.float64)
    return np.linalg.norm(x[:, None].astype(np.float64) - y[None], axis=2)


def brute_force(
    a: Features, b: Features, ratio: float | None, max_distance: float | None
) -> list[tuple[int, int, float]]:
    """Matches and scores, point by point."""
    d = distance_matrix(a, b)
    found = []
    for i in range(len(a)):
        j = int(d[i].argmin())
        if int(d[:, j].argmin()) != i:
            continue
        others = np.concatenate([np.delete(d[i], j), np.delete(d[:, j], i)])
        second = others.min() if len(others) else np.inf
        if ratio is not None and not d[i, j] < ratio * second:
            continue
        if max_distance is not None and d[i, j] > max_distance:
            continue
        found.append((i, j, 1 - d[i, j] / second if second > 0 else 0.0))
    return found


def assert_identical(a: Matches, b: Matches) -> None:
    for part in ("indices", "scores", "points0", "points1"):
        x, y = getattr(a, part), getattr(b, part)
        assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


KINDS = pytest.mark.parametrize("kind", ["float", "bits"])
SIZES = pytest.mark.parametrize("sizes", [(1, 1), (1, 2), (2, 1), (1, 40), (40, 1), (2, 2), (7, 9), (120, 90)])


@KINDS
@SIZES
@pytest.mark.parametrize("ratio", [None, 0.8, 1.0])
@pytest.mark.parametrize("limit", [None, 0.3])
def test_equals_brute_force(kind: str, sizes: tuple[int, int], ratio: float | None, limit: float | None) -> None:
    a, b = related(kind, sizes, spread=0.3)
    max_distance = None if limit is None else limit * (256 if kind == "bits" else 2)
    found = NearestNeighbour("mine", ratio=ratio, max_distance=max_distance)(a, b)
    expected = brute_force(a, b, ratio, max_distance)
    assert found.indices.tolist() == [[i, j] for i, j, _ in expected]
    np.testing.assert_allclose(found.scores, [s for _, _, s in expected], atol=2e-6)
    assert found.indices.dtype == np.int64 and found.scores.dtype == np.float32
    if sizes == (120, 90):
        assert len(found) > 20


@KINDS
@pytest.mark.parametrize("seed", range(3))
def test_equals_opencvs_cross_check(kind: str, seed: int) -> None:
    a, b = related(kind, (150, 200), seed, spread=0.8)
    matcher = cv2.BFMatcher(cv2.NORM_HAMMING if kind == "bits" else cv2.NORM_L2, crossCheck=True)
    theirs = matcher.match(a.descriptors.numpy(), b.descriptors.numpy())
    found = NearestNeighbour("mine", ratio=None)(a, b)
    assert found.indices.tolist() == sorted([m.queryIdx, m.trainIdx] for m in theirs)
    assert len(found) > 50


@KINDS
def test_blocks_do_not_show(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = related(kind, (101, 60), spread=0.8)
    b = b.select(torch.arange(90) % 60)  # thirty of them twice: equally near in different blocks
    matcher = NearestNeighbour("mine", ratio=None)
    whole = matcher(a, b)
    for elements in (1, 90 * 7, 90 * 50):
        monkeypatch.setattr(nearest, "_BLOCK_ELEMENTS", elements)
        assert_identical(matcher(a, b), whole)


@st.composite
def tied_sets(draw: st.DrawFn) -> tuple[Features, Features]:
    """Small sets with few different descriptors and keypoints: full of duplicates and ties."""
    binary = draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    different = draw(st.integers(1, 6))
    palette = rng.integers(0, 256, (different, 2), dtype=np.uint8) if binary else rng.normal(size=(different, 5))
    places = rng.uniform(0, 9, (3, 2)).astype(np.float32)

    def one() -> Features:
        n = draw(st.integers(0, 12))
        found = features(palette[rng.integers(0, different, n)])
        return replace(found, keypoints=torch.from_numpy(places[rng.integers(0, 3, n)]))

    a = one()
    b = draw(st.sampled_from(["other", "same", "equal"]))
    if b == "other":
        return a, one()
    copy = replace(a, keypoints=a.keypoints.clone(), descriptors=a.descriptors.clone())
    return a, a if b == "same" else copy


@settings(max_examples=150, deadline=None)
@given(tied_sets(), st.sampled_from([None, 0.8, 1.0]), st.sampled_from([None, 0.5]))
def test_swapping_the_images_swaps_the_matches(
    pair: tuple[Features, Features], ratio: float | None, max_distance: float | None
) -> None:
    a, b = pair
    matcher = NearestNeighbour("mine", ratio=ratio, max_distance=max_distance)
    forward = matcher(a, b)
    assert_identical(matcher(b, a).swapped(), forward)
    for side in (0, 1):
        assert len(np.unique(forward.indices[:, side])) == len(forward)
    assert (np.diff(forward.indices[:, 0]) > 0).all()
    assert ((forward.scores >= 0) & (forward.scores <= 1)).all()
    np.testing.assert_array_equal(forward.points0, a.keypoints.numpy()[forward.indices[:, 0]])
    np.testing.assert_array_equal(forward.points1, b.keypoints.numpy()[forward.indices[:, 1]])


@pytest.mark.parametrize("n", [2, 3, 5, 7, 10, 21])
def test_an_image_against_itself_is_its_own_swap(n: int) -> None:
    # A float32 product of so few descriptors with themselves is not symmetric in its last bits.
    rows = np.random.default_rng(n).normal(size=(n, 128))
    a = features(np.concatenate([rows, rows[: n // 2], rows + 1e-4]))
    found = NearestNeighbour("mine", ratio=None)(a, a)
    assert_identical(found.swapped(), found)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(60, 150), st.integers(60, 150)),
    st.sampled_from([0.0, 1e-8, 1e-7, 1e-6, 1e-3]),
    st.sampled_from([2, 32, 128]),
    st.sampled_from([None, 0.8, 1.0]),
)
def test_near_ties_are_settled_as_in_float64(
    seed: int, sizes: tuple[int, int], apart: float, dim: int, ratio: float | None
) -> None:
    """Sets full of descriptors that float32 products cannot tell apart, against all products in float64."""
    rng = np.random.default_rng(seed)
    palette = rng.normal(size=(20, dim))
    a, b = (features(palette[rng.integers(0, 20, n)] + apart * rng.normal(size=(n, dim)), n) for n in sizes)
    similarity = torch.from_numpy(a.descriptors.double().numpy() @ b.descriptors.double().numpy().T).float().numpy()
    expected = []
    for i in range(len(a)):
        j = int(similarity[i].argmax())  # the lowest index among equals
        second = max(np.delete(similarity[i], j).max(), np.delete(similarity[:, j], i).max())
        d, d2 = (np.sqrt(np.maximum(2 - 2 * s, np.float32(0))) for s in (similarity[i, j], second))
        if int(similarity[:, j].argmax()) == i and (ratio is None or d < np.float32(ratio) * d2):
            expected.append([i, j])
    assert NearestNeighbour("mine", ratio=ratio)(a, b).indices.tolist() == expected


@pytest.mark.parametrize("ratio", [None, 0.8])
def test_sift_of_photographs_is_matched_as_in_float64(data_dir: Path, ratio: float | None) -> None:
    extractor = tp.features.load("sift", max_keypoints=1500)
    a, b = (extractor(data_dir / "eval" / "fountain" / "images" / f"000{n}.jpg") for n in range(2))
    similarity = (a.descriptors.double() @ b.descriptors.double().T).float()
    two0, two1 = similarity.topk(2, dim=1), similarity.topk(2, dim=0)
    i = torch.arange(len(a))
    j = two0.indices[:, 0]
    i = i[two1.indices[0][j] == i]
    j = j[i]
    d, d2 = (
        (2 - 2 * s).clamp(min=0).sqrt()
        for s in (two0.values[i, 0], torch.maximum(two0.values[i, 1], two1.values[1, j]))
    )
    keep = d < (ratio or torch.inf) * d2
    found = NearestNeighbour("sift", ratio=ratio)(a, b)
    np.testing.assert_array_equal(found.indices, torch.stack([i, j], 1)[keep])
    np.testing.assert_array_equal(found.scores, (1 - d / d2)[keep])
    assert len(found) > 200


@KINDS
def test_permuting_keypoints_permutes_matches(kind: str) -> None:
    a, b = related(kind, (80, 120))
    matcher = NearestNeighbour("mine", ratio=0.9)
    order = torch.from_numpy(np.random.default_rng(5).permutation(len(a)))
    plain, mixed = matcher(a, b), matcher(a.select(order), b)
    renamed = np.stack([order.numpy()[mixed.indices[:, 0]], mixed.indices[:, 1]], axis=1)
    assert len(plain) > 20
    assert sorted(renamed.tolist()) == plain.indices.tolist()


def test_match_many_equals_one_by_one() -> None:
    pairs = [related("float", sizes, seed) for seed, sizes in enumerate([(30, 50), (50, 30), (1, 9), (40, 40)])]
    pairs += [(pairs[0][0].select(torch.arange(0)), pairs[0][1]), (pairs[3][1], pairs[3][0])]
    matcher = NearestNeighbour("mine", ratio=0.9)
    many = matcher.match_many(pairs)
    assert [len(m) for m in many[:4]] != [0, 0, 0, 0] and len(many[4]) == 0
    for pair, result in zip(pairs, many, strict=True):
        assert_identical(result, matcher(*pair))
    assert_identical(many[5].swapped(), many[3])
    assert matcher.match_many([]) == []


def test_the_base_class_hands_over_one_order() -> None:
    class First(Matcher):
        """Matches the first points of both; the score tells which image came first."""

        name = "first"

        def _match_many(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
            score = [np.array([f.keypoints[0, 0] / 100], np.float32) for f, _ in pairs]
            return [make_matches(*p, np.zeros((1, 2), np.int64), s) for p, s in zip(pairs, score, strict=True)]

    for sizes in ((4, 4), (3, 5), (5, 3)):
        a, b = related("float", sizes)
        assert_identical(First()(b, a).swapped(), First()(a, b))


def test_order_falls_back_to_descriptors_scores_and_size() -> None:
    base = related("float", (5, 5))[0]
    later = [
        replace(base, keypoints=base.keypoints + torch.eye(5, 2)),
        replace(base, descriptors=base.descriptors + torch.eye(5, 32)),
        replace(base, scores=base.scores + 1),
        replace(base, scales=torch.ones(5)),
        replace(base, image_size=(200, 100)),
    ]
    for other in later:
        assert comes_before(base, other) and not comes_before(other, base)
    assert not comes_before(base, base)
    # Fewer keypoints come first, wherever they are.
    assert comes_before(later[0].select(torch.arange(3)), base)


def test_scores_rank_by_the_ratio_of_distances() -> None:
    angle = torch.tensor([0.0, 0.1, 0.2, 0.3])
    query = torch.stack([angle.cos(), angle.sin()], dim=1)[:1]
    rival = torch.tensor([[0.0, 1.0]])
    scores = []
    for shift in angle:
        partner = torch.stack([shift.cos(), shift.sin()])[None]
        found = NearestNeighbour("mine")(features(query.numpy()), features(torch.cat([partner, rival]).numpy()))
        expected = 1 - 2 * np.sin(float(shift) / 2) / np.sqrt(2)
        assert found.scores[0] == pytest.approx(expected, abs=1e-3)
        scores.append(found.scores[0])
    assert (np.diff(scores) < 0).all()


def test_default_ratio_follows_the_features() -> None:
    assert NearestNeighbour("sift").ratio == 0.8
    assert NearestNeighbour("orb").ratio == 0.8
    assert NearestNeighbour("superpoint").ratio is None
    assert NearestNeighbour("sift", ratio=None).ratio is None


@pytest.mark.parametrize("options", [{"ratio": 0}, {"ratio": 1.5}, {"ratio": "lowe"}, {"max_distance": -1}, {"x": 1}])
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(ArgumentError):
        tp.matchers.load("nearest", features="sift", **options)


def test_features_of_another_extractor_are_refused() -> None:
    a, b = related("float", (5, 6))
    with pytest.raises(ArgumentError, match="mine"):
        NearestNeighbour("sift")(a, b)
    for other in (replace(b, extractor="theirs"), related("bits", (5, 6))[1]):
        with pytest.raises(ArgumentError, match="same extractor"):
            NearestNeighbour("mine")(a, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@KINDS
def test_the_gpu_agrees(kind: str) -> None:
    a, b = related(kind, (500, 400))
    on_cpu = NearestNeighbour("mine", ratio=0.9)(a, b)
    on_gpu = NearestNeighbour("mine", device="cuda", ratio=0.9)(a.to("cuda"), b.to("cuda"))
    np.testing.assert_array_equal(on_gpu.indices, on_cpu.indices)
    np.testing.assert_allclose(on_gpu.scores, on_cpu.scores, atol=1e-6)


@given(st.integers(0, 1000), st.integers(1, 8), st.integers(1, 8), st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_of_equal_similarities_the_first_row_and_column_are_mutual(
    seed: int, rows: int, columns: int, kinds: int
) -> None:
    values = np.random.default_rng(seed).integers(0, kinds + 1, (2, rows, columns)).astype(np.float32)
    values[0, 0] = -np.inf
    best, nearest_column, mutual = (part.numpy() for part in mutual_nearest(torch.from_numpy(values)))
    for k, one in enumerate(values):
        for i in range(rows):
            j = int(np.argmax(one[i]))
            assert nearest_column[k, i] == j and best[k, i] == one[i, j]
            assert mutual[k, i] == (int(np.argmax(one[:, j])) == i)
