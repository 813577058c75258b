"""What "auto" means on this machine, and one place that loads an extractor and its matcher."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

import tiepoint as tp
from tiepoint import pipeline, weights
from tiepoint.errors import ArgumentError, WeightsError
from tiepoint.features import ExtractorOptions
from tiepoint.matchers.lightglue import WEIGHTS_FOR


@pytest.fixture
def on_this_machine(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The weights that are available, to be filled by the test."""
    here: set[str] = set()
    monkeypatch.setattr(weights, "available", lambda name: name in here)
    return here


def test_auto_without_weights_is_classical(on_this_machine: set[str]) -> None:
    features, matcher, why = pipeline.choose()
    assert (features, matcher) == ("sift", "nearest") and "no trained weights" in why


def test_auto_takes_the_best_that_is_here(on_this_machine: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "find_spec", lambda package: object())  # as if kornia were installed
    on_this_machine.update(["xfeat", "xfeat-lighterglue"])
    assert pipeline.choose()[:2] == ("xfeat", "lightglue")
    on_this_machine.add("aliked-lightglue")
    assert pipeline.choose()[:2] == ("xfeat", "lightglue"), "half of a pair is no use"
    on_this_machine.add("aliked-n16")
    assert pipeline.choose()[:2] == ("aliked-n16", "lightglue")
    assert pipeline.choose(matcher="nearest")[:2] == ("sift", "nearest")
    assert pipeline.choose(features="aliked-n16rot")[:2] == ("aliked-n16rot", "lightglue")


def test_auto_skips_what_lacks_its_package(on_this_machine: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    on_this_machine.update(["xfeat", "xfeat-lighterglue"])
    monkeypatch.setattr(pipeline, "find_spec", lambda name: None)
    assert pipeline.choose()[:2] == ("sift", "nearest")


def test_auto_never_takes_non_commercial_weights(on_this_machine: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    on_this_machine.update(weights.entries())
    forbidden = {name: replace(entry, commercial=False) for name, entry in weights.entries().items()}
    monkeypatch.setattr(weights, "entries", lambda: forbidden)
    assert pipeline.choose()[:2] == ("sift", "nearest")
    assert pipeline.choose(features="aliked-n16")[:2] == ("aliked-n16", "nearest")
    with pytest.raises(ArgumentError, match="superpoint"):
        pipeline.choose(matcher="superglue")


def test_every_preference_names_registered_weights_that_may_be_used() -> None:
    known = weights.entries()
    assert not {"aliked-t16"} & set(WEIGHTS_FOR), "its descriptors have 64 numbers, the weights want 128"
    assert known.keys() >= set(WEIGHTS_FOR.values())
    for choice in pipeline.PREFERENCES:
        for name in choice.weights:
            assert known[name].commercial
    assert pipeline.PREFERENCES[-1].weights == (), "the last resort works everywhere"


def test_a_matcher_without_weights_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights.store, "_candidates", lambda wanted: [])
    with pytest.raises(WeightsError, match="tiepoint weights pull aliked-n16"):
        tp.match(np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8), "aliked-n16", "lightglue")


def test_the_default_is_bundled(on_this_machine: set[str]) -> None:
    on_this_machine.add("sift-lightglue")
    assert pipeline.choose()[:2] == ("sift", "lightglue")
    on_this_machine.update({"cairn", "cairn-lightglue"})
    assert pipeline.choose()[:2] == ("cairn", "lightglue")
    for name in ("cairn", "cairn-lightglue", "sift-lightglue"):
        entry = weights.entry(name)
        path = weights.store.BUNDLED / entry.file
        assert path.stat().st_size == entry.size and hashlib.sha256(path.read_bytes()).hexdigest() == entry.sha256
        config = weights.load(path)[1]
        if entry.kind == "lightglue":
            assert tuple(config["features"]) == entry.features and config["overlap_threshold"] > 0


@pytest.mark.parametrize("device", ["cpu", None])
def test_what_is_loaded_is_what_was_chosen(device: str | None) -> None:
    extractor, matcher, why = pipeline.load("sift", "nearest", device, ExtractorOptions(max_keypoints=9, long_side=64))
    assert (extractor.name, matcher.name, why) == ("sift", "nearest", "sift + nearest, as asked")
    assert (extractor.options.max_keypoints, extractor.options.long_side) == (9, 64)


def test_loaded_parts_are_kept_and_their_names_choose_the_rest() -> None:
    extractor, matcher = tp.features.load("orb", max_keypoints=5), tp.matchers.load("nearest", features="orb")
    assert pipeline.load(extractor, matcher)[:2] == (extractor, matcher)
    kept, chosen, _ = pipeline.load(extractor, options=ExtractorOptions(max_keypoints=99))
    assert kept is extractor and kept.options.max_keypoints == 5 and chosen.name == "nearest"


def test_wrong_names_and_devices() -> None:
    with pytest.raises(ArgumentError, match="no extractor is called 'sitf'"):
        pipeline.load("sitf")
    with pytest.raises(ArgumentError, match="no matcher is called 'lightgleu'"):
        pipeline.load("sift", "lightgleu")
    with pytest.raises(ArgumentError, match="device 'abacus'"):
        pipeline.load("sift", "nearest", "abacus")


def test_another_choice_is_another_extractor_with_the_same_size() -> None:
    sift = tp.features.load("sift", max_keypoints=77, long_side=200, detection_threshold=0.01, nms_radius=9)
    load = pipeline.another(sift)
    assert load is not None
    extractor, matcher = load()
    assert (extractor.name, matcher.name) == ("cairn", "lightglue")
    assert (extractor.options.max_keypoints, extractor.options.long_side) == (77, 200)
    assert extractor.options.nms_radius == type(extractor).default_nms_radius
    back = pipeline.another(extractor)
    assert back is not None and back()[0].name == "sift"
