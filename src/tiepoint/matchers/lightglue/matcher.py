"""The matcher LightGlue: features in, matches out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch

from ... import weights as weights_module
from ...errors import ArgumentError, WeightsError
from ...types import Features, Matches
from ...weights import registry
from ..base import Matcher, Pair, make_matches
from .alignment import pair_positions
from .config import LightGlueConfig
from .network import LightGlueNet
from .packed import Adaptive, Layout
from .upstream import from_upstream, shape_of_upstream

WEIGHTS_FOR = registry.WEIGHTS_FOR["lightglue"]


class LightGlue(Matcher):
    """Match with LightGlue, adapting depth and width to each pair.

    Parameters
    ----------
    features : str, optional
        Extractor of the features to match; chooses the weights (see `WEIGHTS_FOR`). By default the one that the weights
        were trained on, without weights SIFT.
    device : torch.device or str
        Where it runs.
    weights : str or path, optional
        Another name from the registry, or a file: safetensors of ours or a ``.pth`` of the original authors.
    adaptive : bool
        False runs all layers on all points, whatever the weights' thresholds say.
    match_threshold : float, optional
        Least assignment P of a match; the weights know a default.
    precision : "float32" or "bfloat16"
        Of the layers; states and read-out stay in float32. bfloat16 is faster on GPUs and on CPUs that have it
        (AVX-512-BF16, AMX) and moves matches near the threshold.

    Raises
    ------
    ArgumentError
        No weights are known for these features, or those given are for others; or an unknown precision.
    WeightsError
        The file is not on this machine, is damaged, or holds another architecture.

    Examples
    --------
    >>> import tiepoint as tp
    >>> matcher = tp.matchers.load("lightglue", features="aliked-n16")  # doctest: +SKIP
    >>> matches = matcher(features0, features1)  # doctest: +SKIP
    """

    name = "lightglue"
    # Tokens processed together: enough to fill the machine, few enough to stay in its caches or memory.
    tokens_at_once: ClassVar[dict[str, int]] = {"cpu": 4096, "cuda": 1 << 17}

    def __init__(
        self,
        features: str | None = None,
        device: torch.device | str = "cpu",
        weights: str | None = None,
        adaptive: bool = True,
        match_threshold: float | None = None,
        precision: str = "float32",
    ) -> None:
        super().__init__(device)
        if precision not in ("float32", "bfloat16"):
            raise ArgumentError(f"precision must be float32 or bfloat16, not {precision!r}")
        if weights is None:
            features = features or "sift"
            if features not in WEIGHTS_FOR:
                raise ArgumentError(
                    f"there are no LightGlue weights for {features!r} features, only for "
                    f"{', '.join(WEIGHTS_FOR)}; train some, give weights=FILE, or use the matcher 'nearest'"
                )
            weights = WEIGHTS_FOR[features]
        state, config = weights_module.load(weights)
        try:
            self.config = LightGlueConfig.from_dict(config or shape_of_upstream(state), weights)
            if any(name.endswith("Wqkv.weight") for name in state):
                state = from_upstream(state, self.config.heads)
        except (KeyError, IndexError, ValueError, RuntimeError, ZeroDivisionError) as error:
            raise WeightsError(f"{weights}: these are not weights of a LightGlue: {error}") from error
        self.features = self.config.features or tuple(f for f, name in WEIGHTS_FOR.items() if name == weights)
        self.adaptive = adaptive
        self.precision = precision
        self.match_threshold = self.config.match_threshold if match_threshold is None else match_threshold
        if features and self.config.features and features not in self.config.features:
            raise ArgumentError(f"the weights {weights} match {', '.join(self.config.features)}, not {features}")
        with weights_module.unfilled():
            net = LightGlueNet(self.config)
        self.net = weights_module.load_into(net, state, weights)
        self.net.to(self.device)

    def _check(self, features: Features) -> None:
        if self.features and features.extractor not in self.features:
            raise ArgumentError(
                f"these LightGlue weights match features of {', '.join(self.features)}, not of {features.extractor!r}"
            )
        if features.descriptors.shape[1] != self.config.input_dim or features.is_binary:
            raise ArgumentError(
                f"these LightGlue weights need float descriptors of {self.config.input_dim} numbers, not "
                f"{features.descriptors.shape[1]} ({features.descriptors.dtype}) of {features.extractor!r}"
            )
        if self.config.scale_orientation and (features.scales is None or features.orientations is None):
            raise ArgumentError("these LightGlue weights need the scale and orientation of each keypoint")

    @property
    def descriptor_size(self) -> int:
        """See `Matcher.descriptor_size`."""
        return self.config.input_dim

    @property
    def overlap_threshold(self) -> float | None:
        """See `Matcher.overlap_threshold`; the weights know it."""
        return self.config.overlap_threshold

    def match_many(self, pairs: Sequence[Pair]) -> list[Matches]:
        """Match many pairs, see `Matcher.match_many`; calibrated weights also tell which pairs overlap."""
        results = super().match_many(pairs)
        threshold = self.overlap_threshold
        return results if threshold is None else [replace(m, overlaps=m.evidence > threshold) for m in results]

    def _match_many(self, pairs: Sequence[Pair]) -> list[Matches]:
        # Pairs of similar size share a call; the order of the results is the caller's.
        order = sorted(range(len(pairs)), key=lambda p: len(pairs[p][0]) + len(pairs[p][1]))
        limit = self.tokens_at_once.get(self.device.type, 1 << 14)
        results: dict[int, Matches] = {}
        chunk: list[int] = []
        tokens = 0
        for p in order:
            size = len(pairs[p][0]) + len(pairs[p][1])
            if chunk and tokens + size > limit:
                results.update(zip(chunk, self._match_together([pairs[q] for q in chunk]), strict=True))
                chunk, tokens = [], 0
            chunk.append(p)
            tokens += size
        results.update(zip(chunk, self._match_together([pairs[q] for q in chunk]), strict=True))
        return [results[p] for p in range(len(pairs))]

    @torch.inference_mode()
    def _match_together(self, pairs: Sequence[Pair]) -> list[Matches]:
        """Run pairs through the layers side by side."""
        config = replace(self.config, match_threshold=self.match_threshold)
        if not self.adaptive:
            config = replace(config, exit_confidence=None, prune_matchability=None)
        images = [image for pair in pairs for image in pair]
        run = Adaptive(
            self.net,
            config,
            torch.cat([image.descriptors for image in images]),
            torch.cat([positions for pair in pairs for positions in pair_positions(config, *pair)]),
            Layout([len(image) for image in images]),
            autocast=self.precision == "bfloat16",
        )
        for i in range(config.layers):
            if not run.step(i):
                break
        return [
            replace(
                make_matches(*pair, result.pairs.numpy(), result.scores.numpy()),
                stop_layer=result.layers,
                prune_layer0=result.depth0.numpy(),
                prune_layer1=result.depth1.numpy(),
                matchability0=result.matchability0.numpy(),
                matchability1=result.matchability1.numpy(),
            )
            for pair, result in zip(pairs, run.finish(), strict=True)
        ]
