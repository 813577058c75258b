"""`Extractor.describe`: given keypoints get the descriptors that detection would have given them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import tiepoint as tp
from tiepoint import weights
from tiepoint.errors import ArgumentError

NAMES = ["sift", "cairn", "aliked-n16", "superpoint"]


@pytest.mark.filterwarnings("ignore::tiepoint.weights.NonCommercialWeightsWarning")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("long_side", [None, 240])
def test_what_was_detected_is_described_as_it_was(name: str, long_side: int | None, texture: NDArray[np.uint8]) -> None:
    if name in weights.entries() and not weights.available(name):
        pytest.skip(f"the weights of {name} are not on this machine")
    extractor = tp.features.load(name, max_keypoints=100, long_side=long_side)
    found = extractor(texture)
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    again = extractor.describe(texture, found.select(order))
    assert torch.equal(again.keypoints, found.keypoints[order]) and torch.equal(again.scores, found.scores[order])
    assert again.extractor == name and again.image_size == found.image_size
    alike = (again.descriptors * found.descriptors[order]).sum(1)
    assert alike.min() > 0.999
    for part in ("scales", "orientations", "covariances"):
        here, there = getattr(again, part), getattr(found, part)
        if there is not None:
            torch.testing.assert_close(here, there[order], atol=1e-2, rtol=1e-3)


def test_points_of_ones_own(texture: NDArray[np.uint8]) -> None:
    height, width = texture.shape[:2]
    points = [[30.5, 40.0], [0.0, 0.0], [width - 1, height - 1]]
    for name in ("sift", "cairn"):
        described = tp.features.load(name).describe(texture, points)
        assert described.keypoints.tolist() == points
        assert torch.allclose(described.descriptors.norm(dim=1), torch.ones(3), atol=1e-3)
        assert len(tp.features.load(name).describe(texture, np.zeros((0, 2)))) == 0


def test_features_of_another_extractor(texture: NDArray[np.uint8]) -> None:
    found = tp.features.load("sift", max_keypoints=20)(texture)
    described = tp.features.load("cairn").describe(texture, found)
    assert described.extractor == "cairn" and torch.equal(described.keypoints, found.keypoints)
    # Cairn's own direction, and the scales as they were given
    assert described.orientations is not None and torch.equal(described.scales, found.scales)


@pytest.mark.parametrize("bad", [[[-3.0, 5.0]], [[5.0, 1e4]], [[float("nan"), 1.0]], [[float("inf"), 1.0]]])
def test_points_beyond_the_image_are_refused(bad: list[list[float]], texture: NDArray[np.uint8]) -> None:
    with pytest.raises(ArgumentError, match="inside"):
        tp.features.load("sift").describe(texture, bad)


def test_who_cannot_says_so(texture: NDArray[np.uint8]) -> None:
    found = tp.features.load("sift", max_keypoints=5)(texture)
    with pytest.raises(ArgumentError, match="orb cannot describe given keypoints"):
        tp.features.load("orb").describe(texture, replace(found, scores=found.scores))
