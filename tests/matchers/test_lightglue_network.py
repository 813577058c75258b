"""What runs (`packed`) against the paper in plain tensors (`network`), with the trained weights on real photographs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiepoint as tp
from tiepoint.errors import WeightsError
from tiepoint.matchers import lightglue
from tiepoint.matchers.lightglue import Adaptive, Layout, LightGlue
from tiepoint.types import Features

SCENES = {"sacre_coeur": 3, "fountain": 2, "graf": 3, "kodak": 2}  # photographs of each


@pytest.fixture(scope="module", params=["cairn", "sift", "aliked-n16"])
def trained(request: pytest.FixtureRequest, data_dir: Path) -> tuple[LightGlue, list[tuple[Features, Features]]]:
    """A matcher with its weights, and pairs of photographs: alike, unlike, and with few keypoints on one side."""
    try:
        matcher = LightGlue(request.param)
        extractors = [tp.features.load(request.param, max_keypoints=n, long_side=480) for n in (300, 220, 60)]
    except WeightsError as error:
        pytest.skip(str(error))
    pairs = []
    for scene, count in SCENES.items():
        photos = sorted((data_dir / "eval" / scene / "images").glob("*.*"))[:count]
        features = [extractor(photo) for extractor, photo in zip(extractors, photos, strict=False)]
        pairs += [(features[0], other) for other in features[1:]]
    return matcher, [*pairs, (pairs[0][0], pairs[-1][0])]


def inputs(matcher: LightGlue, pair: tuple[Features, Features]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    positions = lightglue.pair_positions(matcher.config, *pair)
    return [(image.descriptors, p) for image, p in zip(pair, positions, strict=True)]


@pytest.mark.parametrize("exit_share", [None, 0.5])
def test_packed_is_the_paper(
    trained: tuple[LightGlue, list[tuple[Features, Features]]], exit_share: float | None
) -> None:
    """Same matches, scores, layers run, layers of every point and matchabilities, all pairs side by side."""
    matcher, pairs = trained
    config = matcher.config
    if exit_share is not None:  # so that some pairs stop early, and points are dropped whichever weights these are
        config = replace(config, exit_share=exit_share, prune_matchability=(0.1,) * (config.layers - 1))
    tensors = [side for pair in pairs for side in inputs(matcher, pair)]
    run = Adaptive(
        matcher.net,
        config,
        torch.cat([descriptors for descriptors, _ in tensors]),
        torch.cat([positions for _, positions in tensors]),
        Layout([len(descriptors) for descriptors, _ in tensors]),
    )
    for i in range(config.layers):
        if not run.step(i):
            break
    found = 0
    depths = set()
    for p, packed in enumerate(run.finish()):
        plain = lightglue.match(matcher.net, config, *tensors[2 * p : 2 * p + 2])
        assert torch.equal(packed.pairs, plain.pairs)
        torch.testing.assert_close(packed.scores, plain.scores, atol=2e-4, rtol=0)
        assert packed.layers == plain.layers
        assert torch.equal(packed.depth0, plain.depth0) and torch.equal(packed.depth1, plain.depth1)
        torch.testing.assert_close(packed.matchability0, plain.matchability0, atol=2e-4, rtol=0)
        torch.testing.assert_close(packed.matchability1, plain.matchability1, atol=2e-4, rtol=0)
        found += len(plain.pairs)
        depths |= {plain.layers, *plain.depth0.tolist()}
    assert found > 200
    assert exit_share is None or len(depths) > 1, "pairs and points should need different depths"


def test_matcher_is_the_paper(trained: tuple[LightGlue, list[tuple[Features, Features]]]) -> None:
    """What users call gives the matches of the plain form."""
    matcher, pairs = trained
    for pair in pairs[:2]:
        pair = pair if len(pair[0]) < len(pair[1]) else pair[::-1]  # the matcher's canonical order
        plain = lightglue.match(matcher.net, matcher.config, *inputs(matcher, pair))
        matches = matcher(*pair)
        assert matches.indices.tolist() == plain.pairs.tolist()
        assert matches.stop_layer == plain.layers
