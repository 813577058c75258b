"""What all extractors share: masks, non-maximum suppression, tiles, the way back to original pixels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiepoint.errors import ArgumentError, InputError, TiepointError
from tiepoint.features.base import Extractor, ExtractorOptions, allowed, best, nms
from tiepoint.features.tiling import tiles
from tiepoint.io.images import read_image
from tiepoint.types import Features


class Corners(Extractor):
    """FAST corners: depends on a 7x7 window only, so that it must not matter where a tile begins."""

    name = "corners"
    default_threshold = 20
    default_nms_radius = 4

    def _extract(self, pixels, mask):
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        found = cv2.FastFeatureDetector_create(int(self.options.detection_threshold)).detect(grey)
        xy = np.array([p.pt for p in found], np.float32).reshape(-1, 2)
        score = np.array([p.response for p in found], np.float32) / 255
        padded = np.pad(grey, 1, mode="edge").astype(np.float32)
        x, y = xy.astype(int).T
        patch = np.stack([padded[y + i, x + j] + 1 for i in range(3) for j in range(3)], axis=1)
        patch /= np.linalg.norm(patch, axis=1, keepdims=True)
        return Features(
            torch.from_numpy(xy),
            torch.from_numpy(score),
            torch.from_numpy(patch),
            pixels.shape[1::-1],
            self.name,
            scales=torch.full((len(xy),), 7.0),
        )


class SmallTiles(Corners):
    max_untiled_pixels = 1
    tile_side = 160
    tile_overlap = 32


def rows(features: Features) -> list[tuple[float, ...]]:
    return [tuple(row) for row in torch.column_stack([features.keypoints, features.scores]).tolist()]


def closest(keypoints: torch.Tensor) -> float:
    """Smallest Chebyshev distance between two keypoints."""
    distance = torch.cdist(keypoints, keypoints, p=torch.inf)
    return float(distance.fill_diagonal_(torch.inf).min())


# --------------------------------------------------------------------------------------- NMS


def nms_by_definition(xy: np.ndarray, scores: np.ndarray, radius: float) -> list[int]:
    chosen: list[int] = []
    for i in sorted(range(len(xy)), key=lambda i: (-scores[i], i)):
        if all(np.abs(xy[i] - xy[j]).max() > radius for j in chosen):
            chosen.append(i)
    return chosen


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(0, 120),
    radius=st.sampled_from([0.5, 1, 3, 4, 10, 1000]),
    whole=st.booleans(),
)
def test_nms_is_greedy_and_exact(seed, n, radius, whole):
    rng = np.random.default_rng(seed)
    xy = rng.uniform(-5, 40, (n, 2)).astype(np.float32)
    if whole:  # distances of exactly the radius, coincident points
        xy = np.rint(xy)
    scores = rng.integers(0, 8, n).astype(np.float32) / 8  # many ties
    found = nms(torch.from_numpy(xy), torch.from_numpy(scores), radius)
    assert found.dtype == torch.int64
    expected = nms_by_definition(xy, scores, radius)
    assert found.tolist() == expected
    assert nms(torch.from_numpy(xy), torch.from_numpy(scores), radius, most=3).tolist() == expected[:3]


def test_nms_radius_zero_only_sorts():
    xy = torch.zeros(4, 2)
    assert nms(xy, torch.tensor([0.1, 0.9, 0.9, 0.5]), 0).tolist() == [1, 2, 3, 0]


def test_nms_equals_max_pooling_on_a_score_map(rng):
    """On local maxima that stand apart, greedy choice and SuperPoint's window agree."""
    heat = torch.from_numpy(rng.permutation(60 * 70).reshape(60, 70).astype(np.float32))
    peaks = heat == torch.nn.functional.max_pool2d(heat[None, None], 9, 1, 4)[0, 0]
    y, x = torch.nonzero(torch.ones_like(heat), as_tuple=True)
    keep = nms(torch.stack([x, y], 1).float(), heat[y, x], 4)
    chosen = torch.zeros_like(peaks)
    chosen[y[keep], x[keep]] = True
    assert chosen[peaks].all()


def test_best_and_its_options():
    xy = torch.tensor([[0.0, 0.0], [1.0, 0.0], [9.0, 0.0], [20.0, 5.0]])
    scores = torch.tensor([0.2, 0.9, 0.5, 0.9])
    mask = np.ones((10, 30), np.uint8)
    mask[5, 20] = 0
    assert best(xy, scores, None, ExtractorOptions(nms_radius=2)).tolist() == [1, 3, 2]
    assert best(xy, scores, mask, ExtractorOptions(nms_radius=2)).tolist() == [1, 2]
    assert best(xy, scores, mask, ExtractorOptions(nms_radius=2, max_keypoints=1)).tolist() == [1]
    assert best(xy, scores, None, ExtractorOptions(max_keypoints=None)).tolist() == [1, 3, 2, 0]
    assert best(xy[:0], scores[:0], mask, ExtractorOptions(nms_radius=3)).tolist() == []
    assert best(xy, scores, np.zeros_like(mask), ExtractorOptions(nms_radius=3)).tolist() == []


# ------------------------------------------------------------------------------------- masks


def test_a_keypoint_half_way_needs_both_pixels():
    mask = np.array([[1, 0, 1, 1]], np.uint8)
    xy = torch.tensor([[0.0, 0], [0.4, 0], [0.5, 0], [1.5, 0], [2.5, 0], [3.49, 0], [-0.4, 0.4]])
    assert allowed(xy, mask).tolist() == [True, True, False, False, True, True, True]


@pytest.mark.parametrize("long_side", [None, 160, 133, 500])
def test_mask_holds_in_original_pixels(texture, rng, long_side):
    mask = cv2.resize(rng.integers(0, 2, (24, 32)).astype(np.uint8), (320, 240), interpolation=0) * 255
    mask[rng.random((240, 320)) < 0.2] = 0
    options = ExtractorOptions(long_side=long_side, enlarge=True, max_keypoints=None)
    everywhere, here = Corners(options)(texture), Corners(options)(texture, mask=mask)
    assert 10 < len(here) < len(everywhere)
    x, y = np.rint(here.keypoints.numpy()).astype(int).T
    assert (mask[np.clip(y, 0, 239), np.clip(x, 0, 319)] != 0).all()
    assert rows(Corners(options)(read_image(texture, mask))) == rows(here)


def test_mask_of_zeros_gives_no_keypoints(texture):
    for kind in (Corners, SmallTiles):
        features = kind()(texture, mask=np.zeros((240, 320), np.uint8))
        assert len(features) == 0 and features.descriptors.shape == (0, 9)


# --------------------------------------------------------------------------- common controls


def test_sorted_cut_and_repeatable(texture):
    everything = Corners(ExtractorOptions(max_keypoints=None))(texture)
    assert (everything.scores.diff() <= 0).all() and closest(everything.keypoints) > 4
    few = Corners(ExtractorOptions(max_keypoints=20))(texture)
    assert rows(few) == rows(everything)[:20]
    again = Corners(ExtractorOptions(max_keypoints=20))(texture)
    assert torch.equal(again.descriptors, few.descriptors) and rows(again) == rows(few)
    strict = Corners(ExtractorOptions(detection_threshold=60))(texture)
    assert 0 < len(strict) < len(everything)


def test_keypoints_come_back_in_original_pixels(texture):
    enlarged = cv2.resize(texture, (1280, 960), interpolation=cv2.INTER_NEAREST)
    small = Corners(ExtractorOptions(max_keypoints=None))(texture)
    large = Corners(ExtractorOptions(max_keypoints=None, long_side=320))(enlarged)
    assert large.image_size == (1280, 960)
    assert torch.allclose(large.keypoints, (small.keypoints + 0.5) * 4 - 0.5)
    assert torch.equal(large.scales, small.scales * 4)
    assert len(Corners(ExtractorOptions(long_side=5000))(texture)) == len(Corners()(texture))


@pytest.mark.parametrize("options", [{"max_keypoints": 0}, {"max_keypoints": -3}, {"long_side": 0}, {"nms_radius": -1}])
def test_senseless_options(options):
    with pytest.raises(ArgumentError, match=next(iter(options))):
        ExtractorOptions(**options)


def test_too_small_is_said_before_the_extractor_runs(texture):
    class Choosy(Corners):
        min_side = 32

    with pytest.raises(InputError, match=r"<array>.*320x31.*at least 32"):
        Choosy()(texture[:31])
    with pytest.raises(InputError, match="at working size"):
        Choosy(ExtractorOptions(long_side=40))(texture)


def test_not_a_number_is_a_fault_of_the_extractor(texture):
    class Broken(Corners):
        def _extract(self, pixels, mask):
            features = super()._extract(pixels, mask)
            features.descriptors[0] = torch.nan
            return features

    with pytest.raises(TiepointError, match=r"<array>.*corners made descriptors"):
        Broken(ExtractorOptions(max_keypoints=None, nms_radius=0))(texture)


def test_extract_many_equals_one_by_one(texture):
    images = [texture, texture[:100], read_image(texture, mask=np.eye(240, 320))]
    extractor = Corners()
    assert [rows(f) for f in extractor.extract_many(images)] == [rows(extractor(image)) for image in images]
    with pytest.raises(InputError, match=r"missing\.jpg"):
        extractor.extract_many([texture, "missing.jpg"])


def test_extract_many_with_masks(texture):
    mask = np.zeros((240, 320), np.uint8)
    mask[:100] = 1
    extractor = Corners()
    masked, whole = extractor.extract_many([texture, texture], [mask, None])
    assert rows(masked) == rows(extractor(texture, mask)) != rows(whole) == rows(extractor(texture))
    with pytest.raises(ArgumentError, match="1 masks for 2 images"):
        extractor.extract_many([texture, texture], [mask])


# ------------------------------------------------------------------------------------- tiles


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 3000),
    height=st.integers(1, 700),
    side=st.sampled_from([128, 300, 1024]),
    overlap=st.sampled_from([0, 17, 32]),
)
def test_every_pixel_has_one_owner_with_context(width, height, side, overlap):
    owners = np.zeros((height, width), int)
    x = torch.arange(width, dtype=torch.float32)
    y = torch.arange(height, dtype=torch.float32)
    for tile in tiles((width, height), side, overlap):
        rows_, columns = tile.window
        assert rows_.stop - rows_.start <= side and columns.stop - columns.start <= side
        assert 0 <= rows_.start < rows_.stop <= height and 0 <= columns.start < columns.stop <= width
        assert rows_.start % 32 == 0 and columns.start % 32 == 0
        middle_x, middle_y = (
            (max(low, -0.5) + min(high, length - 0.5)) / 2
            for (low, high), length in ((tile.x, width), (tile.y, height))
        )
        inside_x = tile.owns(torch.stack([x, torch.full_like(x, middle_y)], 1)).numpy()
        inside_y = tile.owns(torch.stack([torch.full_like(y, middle_x), y], 1)).numpy()
        owners += inside_y[:, None] & inside_x[None]
        for inside, window, length in ((inside_x, columns, width), (inside_y, rows_, height)):
            first, last = np.flatnonzero(inside)[[0, -1]]
            assert window.start <= max(0, first - overlap) and window.stop >= min(length, last + 1 + overlap)
    assert (owners == 1).all()


def test_tiled_equals_untiled(texture):
    picture = np.tile(texture, (2, 3, 1))
    picture[:, 1:] = np.where(np.random.default_rng(3).random((480, 959, 1)) < 0.01, 255, picture[:, 1:])
    options = ExtractorOptions(max_keypoints=None)
    whole, tiled = Corners(options)(picture), SmallTiles(options)(picture)
    assert len(whole) > 1000
    assert torch.equal(whole.scores, tiled.scores) and set(rows(whole)) == set(rows(tiled))
    order_whole, order_tiled = (np.lexsort(f.keypoints.numpy().T) for f in (whole, tiled))
    assert torch.equal(whole.descriptors[order_whole], tiled.descriptors[order_tiled])
    for k in (50, 300):  # of equal scores at the cut, either may stay
        assert torch.equal(SmallTiles(ExtractorOptions(max_keypoints=k))(picture).scores, whole.scores[:k])


def test_tiled_mask(texture):
    picture = np.tile(texture, (2, 2, 1))
    mask = np.zeros((480, 640), np.uint8)
    mask[300:, 200:500] = 1
    options = ExtractorOptions(max_keypoints=None)
    assert set(rows(SmallTiles(options)(picture, mask))) == set(rows(Corners(options)(picture, mask)))


def test_24_megapixels(rng):
    """Above 20 megapixels tiles are used, and nobody can tell."""
    seen = []

    class Watched(Corners):
        def _extract(self, pixels, mask):
            seen.append(pixels.shape[:2])
            return super()._extract(pixels, mask)

    class Whole(Corners):
        max_untiled_pixels = 10**9

    picture = np.full((4000, 6000), 90, np.uint8)
    for x, y in rng.integers(20, (5980, 3980), (6000, 2)):
        picture[y : y + 6, x : x + 6] = rng.integers(0, 255)
    for seam in range(992, 6000, 32):  # corners on every line where a seam could lie
        picture[200:3800:90, seam - 3 : seam + 3] = rng.integers(150, 255, (40, 6))
    picture = np.dstack([picture] * 3)
    options = ExtractorOptions(max_keypoints=None)
    tiled, whole = Watched(options)(picture), Whole(options)(picture)
    assert len(seen) > 1 and max(map(max, seen)) <= Corners.tile_side
    assert len(whole) > 5000
    assert set(rows(tiled)) == set(rows(whole))
    assert nms(tiled.keypoints, tiled.scores, 4).tolist() == list(range(len(tiled)))
    best_k = Watched(ExtractorOptions(max_keypoints=500))(picture)
    assert torch.equal(best_k.scores, whole.scores[:500])
