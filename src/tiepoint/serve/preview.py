"""What a map has found so far, as a picture: the pairs of photographs with the most matches."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ..io.files import atomic
from ..io.images import read_reduced, resize
from ..mapping.store import Store

SIDE = 360  # longest side of a photograph, in pixels
PAIRS, LINES = 3, 60  # shown, and of each
SECONDS = 3.0  # between two pictures
COLOUR, GAP = (0xA8, 0xEF, 0x2E), 4  # of inliers, as elsewhere; pixels between photographs


class Preview:
    """Draws the best pairs of a database now and then; call it whenever there may be new ones.

    Parameters
    ----------
    database, photographs : Path
        Of a map that is being made, and the folder of its photographs.
    picture : Path
        A .jpg file, replaced each time.
    """

    def __init__(self, database: Path, photographs: Path, picture: Path) -> None:
        self.database, self.photographs, self.picture = database, photographs, picture
        self._last = 0.0
        self._shown: list[tuple[tuple[int, int], int]] = []

    def __call__(self) -> bool:
        """Draw, if it is time and there are better pairs than before; return whether a picture was drawn."""
        if time.monotonic() - self._last < SECONDS:
            return False
        with Store.open(self.database, create=False, read_only=True) as store:
            best = sorted(store.verified_pairs().items(), key=lambda item: -item[1])[:PAIRS]
            if not best or best == self._shown:
                return False
            rows = [self._draw(store, *pair) for pair, _ in best]
        width = max(row.shape[1] for row in rows)
        rows = [np.pad(row, ((0, GAP), (0, width - row.shape[1]), (0, 0))) for row in rows]
        with atomic(self.picture) as temporary:
            cv2.imwrite(str(temporary), np.concatenate(rows)[:-GAP, :, ::-1])
        self._shown, self._last = best, time.monotonic()
        return True

    def _draw(self, store: Store, id0: int, id1: int) -> NDArray[np.uint8]:
        """Return two photographs side by side, with lines between inliers that are spread evenly over their list."""
        names = {image.image_id: image.name for image in store.images()}
        shown, points = [], []
        found = store.geometry(id0, id1)
        rows = np.zeros((0, 2), np.int64) if found is None else found.matches
        rows = rows[np.linspace(0, len(rows) - 1, min(LINES, len(rows))).astype(int)]
        for side, image_id in enumerate((id0, id1)):
            features = store.features(image_id, descriptors=False)
            path = self.photographs / names[image_id]
            small = resize(read_reduced(path.read_bytes(), path.name, SIDE), SIDE)
            factor = small.shape[1] / features.image_size[0]
            shown.append(small)
            points.append((features.keypoints.numpy()[rows[:, side]] + 0.5) * factor - 0.5)
        height = max(small.shape[0] for small in shown)
        shown = [np.pad(small, ((0, height - small.shape[0]), (0, GAP), (0, 0))) for small in shown]
        picture = np.ascontiguousarray(np.concatenate(shown, axis=1)[:, :-GAP])
        points[1] = points[1] + (shown[0].shape[1], 0)
        for start, end in zip(*(np.rint(one).astype(int).tolist() for one in points), strict=True):
            cv2.line(picture, start, end, COLOUR, 1, cv2.LINE_AA)
        return picture
