"""The best keypoints first: what comes of a pair that they solve, of one that they do not, and of an unrelated one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tiepoint as tp
from tiepoint.features import Extractor
from tiepoint.matchers import Matcher, best_first
from tiepoint.matchers.base import Pair
from tiepoint.matchers.best_first import BEST, BestFirst


@pytest.fixture(scope="module")
def cairn() -> Extractor:
    return tp.features.load("cairn", max_keypoints=900)


@pytest.fixture(scope="module")
def lightglue() -> Matcher:
    return tp.matchers.load("lightglue", features="cairn")


@pytest.fixture(scope="module")
def pairs(small_pairs: Path, cairn: Extractor) -> dict[str, Pair]:
    """An easy pair, and one of two places, with more than 512 keypoints each."""
    images = small_pairs / "viewpoint" / "images"
    files = {"easy": ("otters.webp", "otters-viewpoint.webp"), "unrelated": ("bakery.webp", "street.webp")}
    found = {name: (cairn(images / a), cairn(images / b)) for name, (a, b) in files.items()}
    assert min(len(f) for pair in found.values() for f in pair) > BEST
    return found


def same(a: tp.Matches, b: tp.Matches) -> bool:
    return np.array_equal(a.indices, b.indices) and np.array_equal(a.scores, b.scores) and a.overlaps == b.overlaps


def test_a_solved_pair_is_matched_by_its_best_keypoints(pairs: dict[str, Pair], lightglue: Matcher) -> None:
    a, b = pairs["easy"]
    found, few = BestFirst(lightglue)(a, b), lightglue(a.first(BEST), b.first(BEST))
    assert few.evidence > best_first.ENOUGH and same(found, few) and found.overlaps
    np.testing.assert_array_equal(found.points0, a.keypoints.numpy()[found.indices[:, 0]])
    assert found.prune_layer0 is None, "it would be of 512 of the 900 keypoints"


def test_a_doubt_is_settled_by_all_keypoints(
    pairs: dict[str, Pair], lightglue: Matcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = lightglue(*(f.first(BEST) for f in pairs["easy"]))
    monkeypatch.setattr(best_first, "ENOUGH", few.evidence + 1)
    assert same(BestFirst(lightglue)(*pairs["easy"]), lightglue(*pairs["easy"]))


def test_an_unrelated_pair_ends_there(pairs: dict[str, Pair], lightglue: Matcher) -> None:
    found = BestFirst(lightglue)(*pairs["unrelated"])
    few = lightglue(*(f.first(BEST) for f in pairs["unrelated"]))
    assert same(found, few) and found.overlaps is False
    assert not same(found, lightglue(*pairs["unrelated"])), "all keypoints would have said something else"


def test_many_are_as_one_by_one_and_swapped(
    pairs: dict[str, Pair], lightglue: Matcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some solved, some not."""
    a, b = pairs["easy"]
    harder = a, b.select(torch.arange(len(b)).flip(0))  # whose first are the worst
    easy, hard = (lightglue(f.first(BEST), g.first(BEST)).evidence for f, g in (pairs["easy"], harder))
    assert hard < easy
    monkeypatch.setattr(best_first, "ENOUGH", (easy + hard) / 2)
    matcher, all_pairs = BestFirst(lightglue), [*pairs.values(), harder]
    together = matcher.match_many(all_pairs)
    for found, (f, g) in zip(together, all_pairs, strict=True):
        assert same(found, matcher(f, g)) and same(found, matcher(g, f).swapped())
    assert same(together[2], lightglue(*harder))
