"""Which matches stay when two sets of matches of one pair are put together.

Two matches are *rivals* if they are the same correspondence, measured twice: their points are near each other in both
photographs. Of rivals the better score stays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..types import Matches

_ROWS = 1024  # matches compared with all others at one time, which bounds memory


def undisputed(
    first: Matches,
    second: Matches,
    radii: tuple[float, float],
    same_keypoints: tuple[bool, bool] = (False, False),
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which matches of two sets belong in their union.

    Parameters
    ----------
    first, second : Matches
        K and L matches of the same pair, each without rivals of their own.
    radii : (float, float)
        Rivals lie at most this far apart in x and in y, in pixels of photograph 0 and of photograph 1.
    same_keypoints : (bool, bool)
        Whether the two sets index the same keypoints of photograph 0, of photograph 1: matches that share one are
        rivals too.

    Returns
    -------
    stay0, stay1 : bool arrays (K,), (L,)
        ``second`` stays where its score is above those of all its rivals; ``first`` where no rival of it stays.

    Examples
    --------
    >>> def matches(points, scores):
    ...     points = np.array(points, np.float32)
    ...     return Matches(np.zeros((len(points), 2), np.int64), np.array(scores, np.float32), points, points)
    >>> undisputed(matches([[5, 5], [9, 9]], [0.5, 0.9]), matches([[6, 5], [9, 8], [1, 1]], [0.8, 0.8, 0.1]), (2, 2))
    (array([False,  True]), array([ True, False,  True]))
    """
    i, j = _rivals(first, second, radii, same_keypoints)
    stay1 = np.ones(len(second), bool)
    stay1[j[first.scores[i] >= second.scores[j]]] = False
    stay0 = np.ones(len(first), bool)
    stay0[i[stay1[j]]] = False
    return stay0, stay1


def one_to_one(pairs: NDArray[np.int64], costs: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Return rows of ``pairs`` (K, 2) such that no number appears twice in a column; the smaller cost goes first.

    Examples
    --------
    >>> one_to_one(np.array([[0, 0], [0, 1], [2, 1]]), np.array([0.2, 0.1, 0.3]))
    array([1])
    """
    rows: list[int] = []
    used0: set[int] = set()
    used1: set[int] = set()
    for k in np.argsort(costs, kind="stable").tolist():
        i, j = pairs[k].tolist()
        if i not in used0 and j not in used1:
            used0.add(i)
            used1.add(j)
            rows.append(k)
    return np.array(rows, np.int64)


def _rivals(
    first: Matches, second: Matches, radii: tuple[float, float], same_keypoints: tuple[bool, bool]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of all rivals, in the first set and in the second."""
    sides = [
        (first.points0, second.points0, radii[0], same_keypoints[0]),
        (first.points1, second.points1, radii[1], same_keypoints[1]),
    ]
    pairs = []
    for begin in range(0, max(1, len(first)), _ROWS):
        rows = slice(begin, begin + _ROWS)
        near, shared = np.array(True), np.array(False)
        for side, (points0, points1, radius, same) in enumerate(sides):
            near = near & (np.abs(points0[rows, None] - points1).max(axis=2, initial=0) <= radius)
            if same:
                shared = shared | (first.indices[rows, side, None] == second.indices[:, side])
        i, j = np.nonzero(near | shared)
        pairs.append((i + begin, j))
    return np.concatenate([i for i, _ in pairs]), np.concatenate([j for _, j in pairs])


__all__ = ["one_to_one", "undisputed"]
