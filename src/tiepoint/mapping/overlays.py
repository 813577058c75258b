"""Clocks and logos that are burnt into the photographs of a collection: one look before pairs are matched."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..matchers.overlay import NONE_KNOWN, overlay_of, without_overlay
from ..types import Features, Matches
from .store import Store

SAMPLE = 5  # images of each size that are compared with each other, spread over the collection


class Overlays:
    """Where the images of a store have overlays, for each size that at least three images have.

    Parameters
    ----------
    store : Store, optional
        Holds the features; a few images' are read. Without one, nothing is known of the collection.

    Attributes
    ----------
    places : dict
        Image size -> float32 array (N, 2), see `overlay_of`; only sizes with an overlay.

    Raises
    ------
    InputError
        Features are damaged.
    """

    def __init__(self, store: Store | None = None) -> None:
        self.places: dict[tuple[int, int], NDArray[np.float32]] = {}
        if store is None:
            return
        ids: dict[tuple[int, int], list[int]] = {}
        usable = store.has_features()
        for image in store.images():
            if image.image_id in usable:
                ids.setdefault(image.size, []).append(image.image_id)
        for size, same_size in ids.items():
            sample = np.unique(np.linspace(0, len(same_size) - 1, SAMPLE, dtype=int))
            places = overlay_of([store.features(same_size[n]) for n in sample])
            if len(places):
                self.places[size] = places

    def without(self, matches: Matches, features0: Features, features1: Features) -> Matches:
        """Return the matches of a pair without those of an overlay, be it one of the collection or of this pair."""
        known = self.places.get(features0.image_size, NONE_KNOWN)
        return without_overlay(matches, features0, features1, least_moving=0, known=known)
