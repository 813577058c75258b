"""LightGlue by ONNX Runtime or OpenVINO: what ``tiepoint export`` wrote, as a matcher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ...errors import ArgumentError
from ...runtimes import Keypoints, check_device, open_exported
from ...types import Features, Matches
from ..base import Matcher, Pair, make_matches
from .config import LightGlueConfig
from .matcher import LightGlue


class ExportedLightGlue(LightGlue):
    """LightGlue from an exported folder, see `tiepoint.export`; loaded by the name ``lightglue@FOLDER``.

    It runs on the CPU, on as many threads as torch, one pair after the other.

    Parameters
    ----------
    features : str, optional
        Extractor of the features to match.
    device : torch.device or str
        ``"cpu"``, or ``"auto"``, which is the CPU on every machine.
    weights : path
        The folder.
    match_threshold : float, optional
        Least assignment P of a match; the weights know a default.

    Raises
    ------
    ArgumentError
        The weights are for other features; or another device.
    WeightsError
        The folder is not whole, or of another version.
    MissingDependencyError
        The runtime that it was exported for is not installed.
    """

    def __init__(
        self,
        features: str | None = None,
        device: torch.device | str = "cpu",
        *,
        weights: str,
        match_threshold: float | None = None,
    ) -> None:
        Matcher.__init__(self, "cpu")
        check_device(device)
        self.exported = open_exported(weights, torch.get_num_threads())
        self.config = LightGlueConfig.from_dict(self.exported.matcher, weights)
        self.features = self.config.features
        self.match_threshold = self.config.match_threshold if match_threshold is None else match_threshold
        if features and features not in self.features:
            raise ArgumentError(f"the weights {weights} match {', '.join(self.features)}, not {features}")

    def _match_together(self, pairs: Sequence[Pair]) -> list[Matches]:
        results = []
        for pair in pairs:
            found = self.exported.match(_keypoints(pair[0]), _keypoints(pair[1]), self.match_threshold)
            results.append(
                replace(
                    make_matches(*pair, found.pairs, found.scores),
                    stop_layer=found.layers,
                    prune_layer0=found.depth0,
                    prune_layer1=found.depth1,
                    matchability0=found.matchability0,
                    matchability1=found.matchability1,
                )
            )
        return results


def _keypoints(features: Features) -> Keypoints:
    assert features.scales is not None and features.orientations is not None  # `LightGlue._check` has asked
    return Keypoints(
        features.keypoints.numpy(),
        features.scores.numpy(),
        features.descriptors.numpy(),
        features.scales.numpy(),
        features.orientations.numpy(),
        np.zeros((len(features), 2, 2), np.float32),  # no part of matching
        features.image_size,
    )
