"""Cairn by ONNX Runtime or OpenVINO: what ``tiepoint export`` wrote, as an extractor."""

from __future__ import annotations

import os

import numpy as np
import torch
from numpy.typing import NDArray

from ...runtimes import check_device, open_exported
from ...types import Features
from ..base import Extractor, ExtractorOptions, best
from .config import DIAMETER
from .extractor import Cairn


class ExportedCairn(Cairn):
    """Cairn from an exported folder, see `tiepoint.export`; loaded by the name ``cairn@FOLDER``.

    It runs on the CPU, on as many threads as torch.

    Parameters
    ----------
    options : ExtractorOptions, optional
        The common controls.
    device : torch.device or str
        ``"cpu"``, or ``"auto"``, which is the CPU on every machine.
    weights : path
        The folder.

    Raises
    ------
    ArgumentError
        Another device.
    WeightsError
        It is not whole, or of another version.
    MissingDependencyError
        The runtime that it was exported for is not installed.
    """

    def __init__(
        self,
        options: ExtractorOptions | None = None,
        device: torch.device | str = "cpu",
        *,
        weights: str | os.PathLike[str],
    ) -> None:
        Extractor.__init__(self, options, "cpu")
        check_device(device)
        self.exported = open_exported(weights, torch.get_num_threads())
        self.harmonics = tuple(self.exported.extractor["harmonics"])

    @property
    def is_network(self) -> bool:
        """See `Extractor.is_network`."""
        return True

    def _extract(self, pixels: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> Features:
        levels = self.exported.pyramid(pixels)
        most = self.options.max_keypoints if mask is None else None
        positions, level_of, scores = self.exported.detect(levels, None if most is None else 4 * most)
        good = np.flatnonzero(scores > (self.options.detection_threshold or 0))
        chosen = best(torch.from_numpy(positions[good]), torch.from_numpy(scores[good]), mask, self.options)
        kept = good[chosen.numpy()]
        described = self.exported.describe(levels, positions[kept], level_of[kept])
        return self._features(positions[kept], scores[kept], described, pixels)

    def _describe(self, pixels: NDArray[np.uint8], given: Features) -> Features:
        level_of = np.zeros(len(given), np.int64)
        if given.scales is not None:
            nearest = np.round(2 * np.log2(given.scales.cpu().numpy() / DIAMETER)).astype(np.int64)
            level_of = nearest.clip(0, self.exported.extractor["detection_levels"] - 1)
        positions = given.keypoints.cpu().numpy()
        described = self.exported.describe(self.exported.pyramid(pixels), positions, level_of)
        return self._features(positions, given.scores.cpu().numpy(), described, pixels)

    def _features(
        self,
        positions: NDArray[np.float32],
        scores: NDArray[np.float32],
        described: tuple[NDArray[np.float32], ...],
        pixels: NDArray[np.uint8],
    ) -> Features:
        found, values, descriptors, scales, orientations, covariances = (
            torch.from_numpy(np.ascontiguousarray(part)) for part in (positions, scores, *described)
        )
        size = pixels.shape[1], pixels.shape[0]
        return Features(found, values, descriptors, size, self.name, scales, orientations, covariances)
