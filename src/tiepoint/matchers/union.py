"""Which matches stay when two sets of matches of one pair are put together.

Two matches are *rivals* if they are the same correspondence, measured twice: their points are near each other in both
photographs. Of rivals the better score stays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..types import Matches


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


def near_points(points0: ArrayLike, points1: ArrayLike, radius: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which points (N, 2) and (M, 2) lie at most ``radius`` apart in x and in y: their rows in both.

    Examples
    --------
    >>> near_points([[0, 0], [9, 9]], [[1, 1], [8, 7], [0, 2]], 2)
    (array([0, 0, 1]), array([2, 0, 1]))
    """
    first, second = np.asarray(points0, np.float64).reshape(-1, 2), np.asarray(points1, np.float64).reshape(-1, 2)
    order = np.argsort(second[:, 0], kind="stable")  # so that those near in x follow each other
    begin = np.searchsorted(second[order, 0], first[:, 0] - radius, "left")
    count = np.searchsorted(second[order, 0], first[:, 0] + radius, "right") - begin
    i = np.repeat(np.arange(len(first)), count)
    j = order[np.arange(len(i)) + np.repeat(begin - np.cumsum(count) + count, count)]
    near = np.abs(first[i, 1] - second[j, 1]) <= radius
    return i[near], j[near]


def _rivals(
    first: Matches, second: Matches, radii: tuple[float, float], same_keypoints: tuple[bool, bool]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of all rivals, in the first set and in the second."""
    i, j = near_points(first.points0, second.points0, radii[0])
    near = (np.abs(first.points1[i].astype(np.float64) - second.points1[j]) <= radii[1]).all(axis=1)
    rows, columns = [i[near]], [j[near]]
    for side in np.flatnonzero(same_keypoints):
        _, i, j = np.intersect1d(first.indices[:, side], second.indices[:, side], True, return_indices=True)
        rows.append(i)
        columns.append(j)
    return np.concatenate(rows), np.concatenate(columns)


__all__ = ["near_points", "one_to_one", "undisputed"]
