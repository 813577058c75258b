"""Seams of a model: how well its parts hold together.

The scale and place of one part of a model relative to another come from the points that both parts see. If the mapper
placed a part wrong, rays of the same point miss each other, and it makes two points of one, one for each part. Then
reprojection errors are as small as anywhere, but most verified matches between the parts join two different points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..models import point_ids, registered
from ..store import Store

if TYPE_CHECKING:
    import pycolmap


@dataclass(frozen=True)
class Seam:
    """Two parts of a model, and the verified matches between them whose keypoints both observe a point.

    Attributes
    ----------
    image, other : int
        Ids of two images where the parts meet, the first in the smaller part.
    size : int
        Images of the smaller part.
    one, two : int
        Matches whose keypoints observe one point, as they should, and two different points.
    """

    image: int
    other: int
    size: int
    one: int
    two: int

    @property
    def torn(self) -> float:
        """Share of the matches that join two different points, in [0, 1]."""
        return self.two / max(1, self.one + self.two)


def seams(model: pycolmap.Reconstruction, store: Store, pairs: Sequence[tuple[int, int]]) -> list[Seam]:
    """Cut a model in two parts at each of its weak places.

    Parameters
    ----------
    model : pycolmap.Reconstruction
        Its image ids, and the order of each image's keypoints, are those of the store.
    store : Store
        The matches that it was made of.
    pairs : sequence of (int, int)
        Ids of verified pairs of images of the model.

    Returns
    -------
    list of Seam
        One for each edge of the spanning tree of pairs with most matches of one point, the most torn first. Images
        without a pair are in none.
    """
    images = registered(model)
    place = {image.image_id: row for row, image in enumerate(images)}
    point_of = [point_ids(image) for image in images]
    ends = np.array([(place[a], place[b]) for a, b in pairs]).reshape(-1, 2)
    counts = np.zeros((len(pairs), 2), np.int64)
    for row, (a, b) in enumerate(pairs):
        geometry = store.geometry(a, b)
        assert geometry is not None  # it is verified
        seen = np.column_stack([point_of[place[i]][geometry.matches[:, side]] for side, i in enumerate((a, b))])
        seen = seen[(seen >= 0).all(axis=1)]
        one = int((seen[:, 0] == seen[:, 1]).sum())
        counts[row] = one, len(seen) - one
    order, parent = _spanning_tree(ends, counts[:, 0], len(images))
    across, sizes = _across(ends, counts, order, parent), np.ones(len(images), np.int64)
    found = []
    for row in order[::-1][parent[order[::-1]] >= 0]:  # children first
        sizes[parent[row]] += sizes[row]
        below, above, size = row, parent[row], int(sizes[row])
        if 2 * size > len(images):
            below, above, size = above, below, len(images) - size
        one, two = map(int, across[row])
        found.append(Seam(images[below].image_id, images[above].image_id, size, one, two))
    return sorted(found, key=lambda seam: (-seam.torn, seam.one, seam.image))


def _spanning_tree(
    ends: NDArray[np.int64], weights: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return all nodes, parents before children, and the parent of each (-1 for roots), of the heaviest tree."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

    graph = coo_array((-1.0 - weights, (ends[:, 0], ends[:, 1])), shape=(count, count))
    tree = minimum_spanning_tree(graph.tocsr())
    orders, parent, reached = [], np.full(count, -1), np.zeros(count, bool)
    for root in range(count):
        if not reached[root]:
            nodes, before = breadth_first_order(tree, root, directed=False)
            parent[nodes[1:]] = before[nodes[1:]]
            reached[nodes] = True
            orders.append(nodes)
    return np.concatenate(orders), parent


def _across(
    ends: NDArray[np.int64], counts: NDArray[np.int64], order: NDArray[np.int64], parent: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the sum of the counts (pairs, 2) of all pairs that the edge above each node separates: (nodes, 2).

    These are the edges on the way from one end of a pair to the other: both ends climb until they meet.
    """
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    total = np.zeros((len(order), 2), np.int64)
    a, b = ends.T
    while len(a):
        lower, upper = np.where(rank[a] > rank[b], a, b), np.where(rank[a] > rank[b], b, a)
        np.add.at(total, lower, counts)
        a, b = parent[lower], upper
        apart = a != b
        a, b, counts = a[apart], b[apart], counts[apart]
    return total
