"""Random features and a camera, for tests of what becomes of them."""

from __future__ import annotations

import numpy as np
import pycolmap
import torch

from tiepoint.types import Features

SIZE = (640, 480)


def camera(size: tuple[int, int] = SIZE) -> pycolmap.Camera:
    width, height = size
    return pycolmap.Camera(
        model="SIMPLE_RADIAL", width=width, height=height, params=[600.5, width / 2, height / 2, 0.01]
    )


def features(n: int, extractor: str = "sift", dim: int = 128, seed: int = 0, shaped: bool = True) -> Features:
    """Random features: n rows of unit length without negative numbers, as RootSIFT has them."""
    rng = np.random.default_rng(seed)
    descriptors = rng.random((n, dim), np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    return Features(
        keypoints=torch.from_numpy(rng.uniform(0, 479, (n, 2)).astype(np.float32)),
        scores=torch.from_numpy(np.sort(rng.random(n, np.float32))[::-1].copy()),
        descriptors=torch.from_numpy(descriptors),
        image_size=SIZE,
        extractor=extractor,
        scales=torch.from_numpy(rng.uniform(2, 40, n).astype(np.float32)) if shaped else None,
        orientations=torch.from_numpy(rng.uniform(0, 6.28, n).astype(np.float32)) if shaped else None,
    )
