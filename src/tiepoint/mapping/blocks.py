"""In which order to visit many pairs so that few images are read, and few are in memory.

The pairs (i, j) of a collection are points of a plane. Along Morton's Z-shaped curve, which takes the bits of i and j
in turn, every square of side B, for every power of two B, is finished before the next one begins; the pairs within it
concern 2 B images. So a cache of 2 B images reads each of them once per square, whatever B is: the order of the pairs
does not depend on how much memory there is, only the number of reads does.

All N (N - 1) / 2 pairs of N images lie in (N / B)² / 2 squares, and cause at most 2 B reads in each: 4 / B reads a
pair. With B = 256, half a gigabyte of 2048 SIFT features, that is at most one image read for 64 pairs. Of an arbitrary
list of pairs, each square that holds any costs at most 2 B reads, and no pair more than two; a band along the diagonal
(a video) is followed from end to end.

References
----------
G. M. Morton, A computer oriented geodetic data base, IBM, 1966; M. Frigo et al., Cache-oblivious algorithms, FOCS 1999.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import chain

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError
from ..types import Features
from .store import MAX_IMAGES, Store

CACHE_BYTES = 1 << 29  # half a gigabyte


def in_blocks(pairs: ArrayLike | Iterable[tuple[int, int]]) -> NDArray[np.int32]:
    """Sort pairs along Morton's curve: smaller id first, each pair once.

    Parameters
    ----------
    pairs : ints (P, 2), or any iterable of two ids
        In any order and direction. A generator is read once, into 8 bytes a pair.

    Returns
    -------
    int32 array (P, 2)

    Raises
    ------
    ArgumentError
        A pair of an image with itself, or an id that no image of a COLMAP database can have.

    Examples
    --------
    >>> in_blocks((i, j) for j in range(1, 5) for i in range(1, j)).tolist()
    [[1, 2], [1, 3], [2, 3], [1, 4], [2, 4], [3, 4]]
    """
    if isinstance(pairs, np.ndarray):
        array = pairs.reshape(-1, 2)
    else:
        array = np.fromiter(chain.from_iterable(pairs), np.int64).reshape(-1, 2)  # type: ignore[arg-type]
    if len(array) and not 0 <= array.min() <= array.max() < MAX_IMAGES:
        raise ArgumentError(f"image ids lie between 0 and {MAX_IMAGES - 1}, not {array.min()} and {array.max()}")
    same = array[:, 0] == array[:, 1]
    if same.any():
        raise ArgumentError(f"image {array[same][0, 0]} is paired with itself")
    array = np.sort(array, axis=1).astype(np.int32)
    curve = _spread(array[:, 1]) << np.uint64(1) | _spread(array[:, 0])
    _, first = np.unique(curve, return_index=True)
    return array[first]


class FeatureCache:
    """The features of the images used last, up to a number of bytes.

    Parameters
    ----------
    store : Store
        Where they are read.
    capacity : int
        In bytes. References held by the caller stay valid.
    descriptors : bool
        Whether to read descriptors too.
    most : int, optional
        Keypoints of each image, see `Features.first`.

    Attributes
    ----------
    reads : int
        How many images have been read from the store.
    """

    def __init__(
        self, store: Store, capacity: int = CACHE_BYTES, descriptors: bool = True, most: int | None = None
    ) -> None:
        self.store = store
        self.capacity = capacity
        self.descriptors = descriptors
        self.most = most
        self.reads = 0
        self._held: OrderedDict[int, Features] = OrderedDict()
        self._bytes = 0

    def __getitem__(self, image_id: int) -> Features:
        """Return the features of an image."""
        features = self._held.get(image_id)
        if features is None:
            features = self.store.features(image_id, descriptors=self.descriptors).first(self.most)
            self.reads += 1
            self._held[image_id] = features
            self._bytes += _size(features)
            while self._bytes > self.capacity:
                self._bytes -= _size(self._held.popitem(last=False)[1])
        else:
            self._held.move_to_end(image_id)
        return features


def _size(features: Features) -> int:
    parts = features.keypoints, features.scores, features.descriptors, features.scales, features.orientations
    return sum(part.numel() * part.element_size() for part in parts if part is not None)


def _spread(values: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Put a zero before each of the 32 bits of every value."""
    x = values.astype(np.uint64)
    for shift, mask in (
        (16, 0x0000FFFF0000FFFF),
        (8, 0x00FF00FF00FF00FF),
        (4, 0x0F0F0F0F0F0F0F0F),
        (2, 0x3333333333333333),
        (1, 0x5555555555555555),
    ):
        x = (x | x << np.uint64(shift)) & np.uint64(mask)
    return x
