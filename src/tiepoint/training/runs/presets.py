"""Presets: size of the network, training pairs, schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeVar

from ...errors import ArgumentError
from ...features.cairn import CairnConfig
from ...matchers.lightglue import LightGlueConfig
from ..loop import FitConfig
from ..pairs.corners import CornersConfig
from ..pairs.maker import PairConfig
from ..pairs.views import ViewConfig

T = TypeVar("T")


@dataclass(frozen=True)
class MatcherPreset:
    """Everything that decides what the training of a matcher gives, except photographs and seed.

    Attributes
    ----------
    model : LightGlueConfig
        Size of the matcher; what depends on the extractor is filled in from its first features.
    pairs : PairConfig
        Which pairs are made, of which features.
    fit : FitConfig
        Optimiser and schedule.
    batch : int
        Pairs of one step, over all processes.
    distinct : int or None
        Make only this many chunks of `tiepoint.training.pairs.maker.CHUNK` pairs, and use them again and again: where a
        handcrafted extractor is slower than the matcher learns. None generates new pairs throughout.
    fewest : float in (0, 1]
        Each step keeps between this fraction of the keypoints and all, see `tiepoint.training.pairs.steps.Steps`.
    reframe : bool
        Put the pictures of each step into random frames, see `tiepoint.training.pairs.batch.Batch.reframed`.
    held_out : int
        Chunks of held-out photographs that evaluations use.
    """

    model: LightGlueConfig
    pairs: PairConfig
    fit: FitConfig
    batch: int
    distinct: int | None = None
    fewest: float = 0.5
    reframe: bool = False
    held_out: int = 16


# Of a match. With the paper's 0.1 our matchers find more, but are less precise than nearest neighbours with ratio test.
_LEAST_SCORE = 0.4

_MATCHER_ON_CPU = FitConfig(learning_rate=4e-4, warmup=100, decay=0.7, ema=0.998, log_every=20, save_every=100)

MATCHER_PRESETS = {
    # A quarter of an hour on two CPU cores, with a few hundred photographs; the first minutes make the pairs.
    "tiny": MatcherPreset(
        model=LightGlueConfig(dim=128, heads=2, layers=4, match_threshold=_LEAST_SCORE),
        pairs=PairConfig(keypoints=256, size=(360, 480), photometric="mild"),
        fit=replace(_MATCHER_ON_CPU, steps=10_000, minutes=11, evaluate_every=200),
        batch=8,
        distinct=256,
        reframe=True,
    ),
    # Hours on a CPU; the matcher to use on CPUs.
    "small": MatcherPreset(
        model=LightGlueConfig(dim=128, heads=2, layers=6, match_threshold=_LEAST_SCORE),
        pairs=PairConfig(
            keypoints=512, size=(360, 480), photometric="mild", max_roll=math.pi, max_scale=2.5, scenes=0.4
        ),
        fit=replace(_MATCHER_ON_CPU, steps=20_000, minutes=110, evaluate_every=250),
        batch=8,
        distinct=1600,
        fewest=0.35,
        reframe=True,
        held_out=24,
    ),
    # A million pairs on a data-centre GPU; the size of the paper.
    "standard": MatcherPreset(
        model=LightGlueConfig(dim=256, heads=4, layers=9, match_threshold=_LEAST_SCORE),
        pairs=PairConfig(
            keypoints=512, size=(480, 640), photometric="strong", max_roll=math.pi, max_scale=4.0, scenes=0.3
        ),
        fit=FitConfig(steps=16_000, learning_rate=3e-4, warmup=500, evaluate_every=1000, save_every=500),
        batch=64,
        held_out=32,
    ),
}


@dataclass(frozen=True)
class FeaturePreset:
    """Everything that decides what the training of an extractor gives, except photographs and seed.

    Attributes
    ----------
    model : CairnConfig
        Size of the network.
    views : ViewConfig
        Which pairs are made.
    fit : FitConfig
        Optimiser and schedule.
    batch : int
        Pairs of one step, over all processes.
    keypoints : int
        Looked at in each picture.
    held_out : int
        Batches of held-out photographs that evaluations use.
    """

    model: CairnConfig
    views: ViewConfig
    fit: FitConfig
    batch: int = 8
    keypoints: int = 384
    held_out: int = 6


_FEATURES_ON_CPU = FitConfig(learning_rate=2e-3, log_every=20)
_CAIRN = CairnConfig(rings=19, channels=96, depth=3, dim=256, harmonics=(64, 32, 32, 16, 16))

FEATURE_PRESETS = {
    # Half an hour on two CPU cores: enough to see that it learns.
    "tiny": FeaturePreset(
        model=_CAIRN,
        views=ViewConfig((240, 320), photometric="mild", max_scale=2.0, scenes=0.0),
        fit=replace(_FEATURES_ON_CPU, steps=1500, minutes=30, warmup=50, ema=0.99, evaluate_every=200, save_every=50),
        keypoints=256,
        held_out=4,
    ),
    # Hours on a CPU.
    "small": FeaturePreset(
        model=_CAIRN,
        views=ViewConfig((240, 320), photometric="mild", max_scale=3.0, scenes=0.1),
        fit=replace(_FEATURES_ON_CPU, steps=6_000, warmup=100, ema=0.998, evaluate_every=250, save_every=25),
        keypoints=256,
    ),
    # Two million pairs on a data-centre GPU.
    "standard": FeaturePreset(
        model=_CAIRN,
        views=ViewConfig((480, 640), photometric="strong", scenes=0.3),
        fit=FitConfig(steps=60_000, learning_rate=1e-3, warmup=500, ema=0.9995, evaluate_every=1000, save_every=500),
        batch=32,
        keypoints=1024,
    ),
}


@dataclass(frozen=True)
class SuperPointPreset:
    """Everything that decides what the training of a SuperPoint gives, except photographs and seed.

    Attributes
    ----------
    size : (int, int)
        (height, width) of the pictures.
    shapes, fit : FitConfig
        Optimiser and schedule of the first stage and of the last.
    corners : CornersConfig
        How corners of photographs are found in between.
    photometric : str
        Preset of `tiepoint.training.data.photometric.PhotometricConfig`.
    batch : int
        Pictures of one step in the first stage, pairs in the last; over all processes.
    held_out : int
        Batches that evaluations use.
    """

    size: tuple[int, int]
    shapes: FitConfig
    corners: CornersConfig
    fit: FitConfig
    photometric: str = "mild"
    batch: int = 8
    held_out: int = 6


SUPERPOINT_PRESETS = {
    # An hour or two on two CPU cores: enough to see that it learns.
    "tiny": SuperPointPreset(
        size=(120, 160),
        shapes=FitConfig(steps=1_500, learning_rate=1e-3, warmup=100, ema=0.99, evaluate_every=250, save_every=100),
        corners=CornersConfig(views=20, most=150),
        fit=FitConfig(steps=1_500, learning_rate=1e-3, warmup=100, ema=0.99, evaluate_every=250, save_every=100),
    ),
    # The published one: 200,000 batches of each kind, on a data-centre GPU.
    "standard": SuperPointPreset(
        size=(240, 320),
        shapes=FitConfig(steps=200_000, learning_rate=1e-3, warmup=500, evaluate_every=5000, save_every=1000),
        corners=CornersConfig(),
        fit=FitConfig(steps=200_000, learning_rate=1e-3, warmup=500, evaluate_every=5000, save_every=1000),
        photometric="strong",
        batch=32,
    ),
}


def named(presets: dict[str, T], preset: str | T) -> T:
    """Return the preset of that name, or the given one as it is.

    Raises
    ------
    ArgumentError
        There is no such preset.

    Examples
    --------
    >>> named(MATCHER_PRESETS, "standard").model.layers
    9
    """
    if not isinstance(preset, str):
        return preset
    if preset not in presets:
        raise ArgumentError(f"there is no preset {preset!r}; choose one of {', '.join(presets)}")
    return presets[preset]
