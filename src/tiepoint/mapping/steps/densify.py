"""Second match pass: photographs whose poses are known are matched along epipolar lines, for many more points.

The first pass has to find out which photographs show the same place; a network matches the best keypoints of each. Once
the poses are known, a keypoint's partner lies on a line, so that few candidates of thousands remain, and descriptors
alone tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ...geometry.colmap import Matrix, import_pycolmap, to_colmap
from ...matchers.base import make_matches
from ...matchers.nearest import as_vectors, distances
from ...types import Features
from ..blocks import FeatureCache, in_blocks
from ..models import PosedCamera, registered, shared_points
from ..overlays import Overlays
from ..store import Store

if TYPE_CHECKING:
    import pycolmap

BAND = 2.0  # pixels from a keypoint to the epipolar line of its partner, in either photograph
# Lowe's: a match is nearer than this share of the distance of the next candidate. Two views cannot tell what is wrong
# along the line. In a rendered room 99 % of Cairn's matches are right to 3 pixels at 0.85, and 97 to 99 % at 0.9.
RATIO = 0.85
PARTNERS = 20  # photographs that each is matched with, those it shares most points with
LEAST_SHARED = 5  # points that such a pair has in the model
LEAST_SINE = 0.02  # of the angle between a ray and the baseline; on the baseline nothing can be triangulated
VIEWS = 64  # that are in memory, beside the cache of features
BLOCK = 128  # keypoints looked at together, neighbours around the baseline


@dataclass(frozen=True, eq=False)
class View:
    """Keypoints of a photograph whose pose is known.

    Attributes
    ----------
    centre : array (3,)
        Of the camera, in the world.
    rays : array (N, 3)
        Directions of the keypoints in the world, of unit length; nan where the lens model has none.
    focal : float
        Pixels per radian near the middle of the photograph.
    features : Features
    """

    centre: Matrix
    rays: Matrix
    focal: float
    features: Features

    @classmethod
    def of(cls, model: pycolmap.Reconstruction, image_id: int, features: Features) -> View:
        """Look along the keypoints of an image of a model."""
        posed = PosedCamera.of(model, model.images[image_id])
        rays = posed.rays(to_colmap(features.keypoints.numpy().astype(np.float64)))
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        return cls(posed.centre, rays, posed.camera.mean_focal_length(), features)


def densify(
    model: pycolmap.Reconstruction, store: Store, on_pair: Callable[[int, int], None] = lambda done, total: None
) -> int:
    """Match the images of a model along epipolar lines, and triangulate what is found; poses stay as they are.

    Points and observations are added to those that the model has. A bundle adjustment should follow, which also drops
    outliers. The database is only read.

    Parameters
    ----------
    model : pycolmap.Reconstruction
        Made of the features in ``store``.
    store : Store
        Holds all keypoints and descriptors of the images; its matches are not used.
    on_pair : callable
        Gets the number of pairs done and of all pairs.

    Returns
    -------
    int
        How many matches were found.

    Raises
    ------
    InputError
        Features are damaged.

    Notes
    -----
    Both rays to a point lie in one half-plane that ends at the baseline. Its angle around the baseline is a number for
    each keypoint, for any lens, and candidates are those of nearly the same number: no fundamental matrix is needed.
    """
    pycolmap = import_pycolmap()
    graph = pycolmap.CorrespondenceGraph()
    for image in registered(model):
        graph.add_image(image.image_id, image.num_points2D())
    pairs = pairs_that_share_points(model)
    cache, overlays, found = FeatureCache(store), Overlays(store), 0

    @lru_cache(maxsize=VIEWS)
    def view(image_id: int) -> View:
        return View.of(model, image_id, cache[image_id])

    for done, (a, b) in enumerate(pairs.tolist(), start=1):
        matches = match_along_lines(view(a), view(b))
        table = make_matches(cache[a], cache[b], matches, np.ones(len(matches), np.float32))
        matches = overlays.without(table, cache[a], cache[b]).indices
        if len(matches):
            geometry = pycolmap.TwoViewGeometry()
            geometry.config = pycolmap.TwoViewGeometryConfiguration.CALIBRATED
            geometry.inlier_matches = matches.astype(np.uint32)
            graph.add_two_view_geometry(a, b, geometry)
        found += len(matches)
        on_pair(done, len(pairs))
    graph.finalize()
    triangulator = pycolmap.IncrementalTriangulator(graph, model, pycolmap.ObservationManager(model, graph))
    options = pycolmap.IncrementalTriangulatorOptions(random_seed=0)
    for image in registered(model):
        triangulator.triangulate_image(options, image.image_id)
    triangulator.complete_all_tracks(options)
    triangulator.merge_all_tracks(options)
    return found


def pairs_that_share_points(model: pycolmap.Reconstruction) -> NDArray[np.int32]:
    """Return the pairs of images (P, 2) that see at least `LEAST_SHARED` common points, of each image the best."""
    partners: dict[int, list[tuple[int, int]]] = {}
    for pair, count in sorted(shared_points(model).items(), key=lambda item: (-item[1], item[0])):
        if count >= LEAST_SHARED:
            for image_id in pair:
                partners.setdefault(image_id, []).append(pair)
    return in_blocks(sorted({pair for best in partners.values() for pair in best[:PARTNERS]}))


def match_along_lines(view0: View, view1: View) -> NDArray[np.int64]:
    """Match keypoints near each other's epipolar line, by mutual nearest descriptors and a ratio test.

    Parameters
    ----------
    view0, view1 : View
        With features of the same extractor.

    Returns
    -------
    int64 array (K, 2)
        Sorted, rows of the keypoints; the same, with columns swapped, where the views are.
    """
    axis = view1.centre - view0.centre
    length = np.linalg.norm(axis)
    if length == 0 or not len(view0.rays) or not len(view1.rays):
        return np.zeros((0, 2), np.int64)
    sides = _Side.of(view0, axis / length), _Side.of(view1, axis / length)
    best0, best1 = _search(*sides)
    rows = torch.nonzero(best0.similarity[0].isfinite())[:, 0]
    rows = rows[best1.candidate[best0.candidate[rows]] == rows]
    columns = best0.candidate[rows]
    rivals = torch.maximum(best0.similarity[1, rows], best1.similarity[1, columns])
    nearest, rival = (distances(similarity, view0.features) for similarity in (best0.similarity[0, rows], rivals))
    kept = (nearest < RATIO * rival).numpy()
    found = np.stack([sides[0].rows[rows.numpy()[kept]], sides[1].rows[columns.numpy()[kept]]], axis=1)
    return found[np.argsort(found[:, 0])]


@dataclass(frozen=True, eq=False)
class _Side:
    """Where the rays of a view lie around and along a baseline: of each usable keypoint, sorted by ``azimuth``.

    Attributes
    ----------
    rows : int array (U,)
        Which keypoint.
    azimuth, slack : array (U,)
        Angle around the baseline, and by how much it may differ from a partner's.
    polar : array (U,)
        Angle between the ray and the baseline.
    vectors : tensor (U, D)
    """

    rows: NDArray[np.int64]
    azimuth: Matrix
    slack: Matrix
    polar: Matrix
    vectors: torch.Tensor

    @classmethod
    def of(cls, view: View, axis: Matrix) -> _Side:
        # Any two directions at right angles to the baseline, the same for both views, and for the reversed baseline
        # but for the sign of the azimuth.
        across = np.eye(3)[np.abs(axis).argmin()]
        across = across - (across @ axis) * axis
        across /= np.linalg.norm(across)
        along, x, y = view.rays @ axis, view.rays @ across, view.rays @ np.cross(axis, across)
        sine = np.hypot(x, y)
        azimuth = np.arctan2(y, x)
        rows = np.flatnonzero(sine > LEAST_SINE)
        rows = rows[np.argsort(azimuth[rows], kind="stable")]
        vectors = as_vectors(view.features)[torch.from_numpy(rows)]
        slack = BAND / (view.focal * sine[rows])
        return cls(rows, azimuth[rows], slack, np.arctan2(sine, along)[rows], vectors)


@dataclass(frozen=True, eq=False)
class _Best:
    """The most similar candidates of each keypoint of a side.

    Attributes
    ----------
    candidate : int64 tensor (U,)
        The most similar keypoint of the other side, by its place there.
    similarity : tensor (2, U)
        Of the best two, see `as_vectors`; -inf where there is none.
    """

    candidate: torch.Tensor
    similarity: torch.Tensor

    @classmethod
    def none(cls, count: int) -> _Best:
        return cls(torch.zeros(count, dtype=torch.int64), torch.full((2, count), -torch.inf))

    def add(self, keypoints: torch.Tensor, candidates: torch.Tensor, similarity: torch.Tensor) -> None:
        """Compare K keypoints with C more candidates; ``similarity`` is (K, C), -inf for a pair that is none."""
        values, columns = similarity.topk(min(2, len(candidates)), dim=1)
        known = self.similarity[:, keypoints]
        self.candidate[keypoints] = torch.where(
            values[:, 0] > known[0], candidates[columns[:, 0]], self.candidate[keypoints]
        )
        self.similarity[:, keypoints] = torch.cat([known, values.T]).topk(2, dim=0).values


def _search(side: _Side, other: _Side) -> tuple[_Best, _Best]:
    """Find for each keypoint of two views its two most similar candidates of the other.

    The baseline leads from ``side`` to ``other``: rays that meet in front of both cameras enclose a larger angle with
    it at the other end.
    """
    best, others = _Best.none(len(side.rows)), _Best.none(len(other.rows))
    # A full turn is no distance: beyond the half-turn the other side goes on with its other end.
    turns = np.arange(-1, 2)[:, None] * 2 * np.pi
    around, place = (other.azimuth + turns).ravel(), np.tile(np.arange(len(other.rows)), 3)
    slack, polar = other.slack[place], other.polar[place]
    begins = np.arange(0, len(side.rows), BLOCK)
    low = np.searchsorted(around, np.minimum.reduceat(side.azimuth - side.slack, begins))
    high = np.searchsorted(around, np.maximum.reduceat(side.azimuth + side.slack, begins))
    for begin, first, last in zip(begins, low, high, strict=True):
        if first == last:
            continue
        some, those = slice(begin, begin + BLOCK), slice(first, last)
        near = np.abs(side.azimuth[some, None] - around[those]) < np.minimum(side.slack[some, None], slack[those])
        near &= polar[those] > side.polar[some, None]
        keypoints, candidates = torch.arange(len(side.rows))[some], torch.from_numpy(place[those])
        similarity = side.vectors[some] @ other.vectors[candidates].T
        similarity.masked_fill_(torch.from_numpy(~near), -torch.inf)
        best.add(keypoints, candidates, similarity)
        others.add(candidates, keypoints, similarity.T)
    return best, others
