"""SIFT: extrema of differences of Gaussians, described by histograms of gradients (Lowe, IJCV 2004)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ..types import Features
from .base import Extractor

SIGMA, LAYERS = 1.6, 3  # OpenCV's defaults: blur of the first image of an octave, and layers of an octave
SMALLEST = SIGMA * 2 ** (1 / LAYERS)  # pixels: diameter of the smallest keypoint that OpenCV detects


class SIFT(Extractor):
    """OpenCV's SIFT with RootSIFT descriptors.

    RootSIFT divides a descriptor by its sum and takes the square root: the L2 distance of the results is then
    the Hellinger distance of the histograms, which matches better at no cost.

    A point with several dominant gradient directions comes once for each, at the same place and with the same
    score. OpenCV does not tell which direction is the strongest, and one chosen arbitrarily would often differ in
    the other view. So the default NMS radius is 0, which keeps all; any larger one keeps the first.

    The score of a keypoint is its contrast: the difference of Gaussians, for grey values in [0, 1].
    ``detection_threshold`` is three times the least contrast, as OpenCV counts it. The default is COLMAP's; OpenCV's
    own 0.04 finds a third fewer correct matches on ordinary photographs, at the same precision.

    References
    ----------
    D. G. Lowe, Distinctive image features from scale-invariant keypoints, IJCV 60 (2), 2004.
    R. Arandjelović and A. Zisserman, Three things everyone should know to improve object retrieval, 2012.

    Examples
    --------
    >>> import numpy as np
    >>> y, x = np.mgrid[:80, :80]
    >>> blob = 255 * np.exp(-((x - 40.25) ** 2 + (y - 35.5) ** 2) / 50)
    >>> found = SIFT()(blob.astype(np.uint8))
    >>> found.keypoints[0].numpy().round(1), found.descriptors.shape[1]
    (array([40.2, 35.5], dtype=float32), 128)
    """

    name: ClassVar[str] = "sift"
    default_threshold: ClassVar[float] = 0.02
    deviation: ClassVar[float] = 0.19

    def _extract(self, pixels: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> Features:
        # Describing costs more than detecting: where nothing but the score decides, describe only the best.
        score_decides = mask is None and not self.options.nms_radius
        sift = cv2.SIFT.create(
            nfeatures=(self.options.max_keypoints or 0) if score_decides else 0,
            contrastThreshold=self.options.detection_threshold or 0,
            # Without it OpenCV's keypoints lie a quarter of a pixel too far to the right and down.
            enable_precise_upscale=True,
        )
        found, descriptors = sift.detectAndCompute(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), None)
        table = np.array([(*k.pt, k.response, k.size, k.angle) for k in found], np.float32).reshape(-1, 5)
        if descriptors is None:
            descriptors = np.zeros((0, 128), np.float32)
        # Of equal scores the first row wins, so the order must not depend on OpenCV's own cut.
        order = np.lexsort(table.T)
        table, descriptors = table[order], descriptors[order]
        return Features(
            keypoints=torch.from_numpy(table[:, :2].copy()),
            scores=torch.from_numpy(table[:, 2].clip(0, 1)),
            descriptors=_root(np.asarray(descriptors, np.float32)),
            image_size=pixels.shape[1::-1],
            extractor=self.name,
            scales=torch.from_numpy(table[:, 3].copy()),
            orientations=torch.from_numpy(np.deg2rad(table[:, 4])),
        )

    def _describe(self, pixels: NDArray[np.uint8], given: Features) -> Features:
        n = len(given)
        sizes = np.full(n, SMALLEST) if given.scales is None else given.scales.cpu().numpy()
        angles = np.zeros(n) if given.orientations is None else np.rad2deg(given.orientations.cpu().numpy()) % 360
        # OpenCV takes the image of its pyramid from `KeyPoint.octave`; a detected keypoint's follows from its size.
        layer = np.rint(LAYERS * np.log2(np.maximum(sizes, SMALLEST) / SIGMA)).astype(int)
        octave = (layer - 1) // LAYERS
        codes = (octave - 1) & 255 | (layer - LAYERS * octave) << 8
        table = zip(given.keypoints.tolist(), sizes.tolist(), angles.tolist(), codes.tolist(), strict=True)
        points = [cv2.KeyPoint(x, y, size, angle, 0, code) for (x, y), size, angle, code in table]
        sift = cv2.SIFT.create(enable_precise_upscale=True)
        kept, histograms = sift.compute(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), points)
        assert len(kept) == n  # SIFT drops none, other than OpenCV's binary descriptors
        descriptors = _root(np.asarray(histograms, np.float32) if n else np.zeros((0, 128), np.float32))
        return replace(given, descriptors=descriptors.to(given.device), extractor=self.name)


def _root(histograms: NDArray[np.float32]) -> torch.Tensor:
    """Return RootSIFT descriptors (N, 128) of SIFT's histograms."""
    return torch.from_numpy(np.sqrt(histograms / np.maximum(histograms.sum(axis=1, keepdims=True), 1)))
