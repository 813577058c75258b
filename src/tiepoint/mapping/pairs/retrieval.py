"""Image retrieval: one vector for each photograph, made of its local features, and a search over these vectors.

The vector is a VLAD. A vocabulary of K visual words is learned from local descriptors. Every local descriptor of a
photograph goes to its nearest word, and for each word the differences to it are summed up. The sums are normalised
one by one ("intra"), so that a repeated texture does not outvote the rest, and joined to one vector of unit length.
The similarity of two photographs is the dot product.

The vocabulary is learned from the collection itself. That works for every extractor without a file to go with it, and
finds as many true pairs among 265 mixed photographs as one learned from other photographs, and more within two of
three single scenes. Power-law scaling and Fisher vectors of the same length bring nothing, and whitening loses pairs
(``benchmarks/retrieval.py``).

    ids, descriptors = describe_images(store)
    rows, similarities = most_similar(descriptors, descriptors, 11)

References
----------
H. Jégou, M. Douze, C. Schmid, P. Pérez, Aggregating local descriptors into a compact image representation, CVPR 2010.
R. Arandjelović, A. Zisserman, All about VLAD, CVPR 2013 (intra-normalisation).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ArgumentError, import_optional
from ...types import Features

if TYPE_CHECKING:
    from ..store import Store

# Of vectors of 2048 numbers none finds more (``benchmarks/retrieval.py``); twice as many words bring another 1 %.
WORDS, DIMENSIONS = 128, 16
DESCRIBED = 2048  # keypoints of each photograph, the best

_TRAINING_IMAGES = 1000
_TRAINING_DESCRIPTORS = 300  # of each of these images

Vectors = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The visual words of one extractor, and how to describe a photograph by them.

    Attributes
    ----------
    extractor : str
        Whose features it describes.
    mean : float32 array (D,)
        Of the local descriptors it was trained on.
    axes : float32 array (d, D)
        Their first principal axes; local descriptors are projected onto them.
    words : float32 array (K, d)
        The visual words.

    Examples
    --------
    >>> import torch
    >>> def photo(seed):
    ...     rows = torch.rand(200, 32, generator=torch.Generator().manual_seed(seed))
    ...     return Features(torch.zeros(200, 2), torch.ones(200), rows / rows.norm(dim=1)[:, None], (640, 480), "mine")
    >>> vocabulary = Vocabulary.train([photo(0), photo(1)], words=8)
    >>> vector = vocabulary.describe(photo(0))
    >>> vector.shape, float(vector @ vector) > 0.999
    ((128,), True)
    """

    extractor: str
    mean: Vectors
    axes: Vectors
    words: Vectors

    @classmethod
    def train(
        cls, photographs: Iterable[Features], words: int = WORDS, dimensions: int = DIMENSIONS, seed: int = 0
    ) -> Vocabulary:
        """Learn a vocabulary: principal axes, then k-means in their coordinates.

        Parameters
        ----------
        photographs : iterable of Features
            Of one extractor; each is read once. A few hundred are enough.
        words : int
            K; fewer if there are not eight local descriptors for each.
        dimensions : int
            d; at most D.
        seed : int
            Of the choice of descriptors and of k-means.

        Raises
        ------
        ArgumentError
            The features come from different extractors, or there are none at all.
        MissingDependencyError
            faiss is not installed.
        """
        parts: list[Vectors] = []
        extractor = None
        rng = np.random.default_rng(seed)
        for features in photographs:
            if extractor not in (None, features.extractor):
                raise ArgumentError(
                    f"a vocabulary is of one extractor, not of {extractor!r} and {features.extractor!r}"
                )
            extractor = features.extractor
            vectors = unit_descriptors(features)
            parts.append(vectors[rng.permutation(len(vectors))[:_TRAINING_DESCRIPTORS]])
        sample = np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)
        if extractor is None or sample.size == 0:
            raise ArgumentError("a vocabulary cannot be learned without local features")
        mean = sample.mean(axis=0)
        sample -= mean
        # Ascending eigenvalues: the principal axes come last.
        axes = np.linalg.eigh(sample.T @ sample)[1].T[::-1][:dimensions]
        sample = np.ascontiguousarray(sample @ axes.T)
        words = max(1, min(words, len(sample) // 8))
        clusters = _faiss().Kmeans(sample.shape[1], words, niter=20, seed=seed, min_points_per_centroid=1)
        clusters.train(sample)
        return cls(extractor, mean, np.ascontiguousarray(axes), clusters.centroids)

    @property
    def size(self) -> int:
        """M, the length of the vectors it makes."""
        return self.words.size

    def describe(self, features: Features) -> Vectors:
        """Describe a photograph.

        Returns
        -------
        float32 array (M,)
            Of unit length; all zeros for a photograph without keypoints.

        Raises
        ------
        ArgumentError
            The features come from another extractor than the vocabulary.
        """
        if features.extractor != self.extractor:
            raise ArgumentError(
                f"this vocabulary is of {self.extractor!r} features, not of {features.extractor!r}; train one of them"
            )
        vectors = (unit_descriptors(features) - self.mean) @ self.axes.T
        # |x - w|² = |x|² - 2 (x·w - |w|²/2), and |x|² is the same for all words.
        nearest = (vectors @ self.words.T - (self.words**2).sum(axis=1) / 2).argmax(axis=1)
        member = (nearest == np.arange(len(self.words))[:, None]).astype(np.float32)
        sums = member @ vectors - member.sum(axis=1, keepdims=True) * self.words
        return _unit(_unit(sums).ravel())


def vocabulary_for(store: Store) -> Vocabulary:
    """Learn the visual words of the features in a store.

    From at most 1000 photographs, spread evenly over it; the same store always gives the same vocabulary.

    Raises
    ------
    ArgumentError
        The store holds no features, or no photograph in it has any keypoint.
    MissingDependencyError
        faiss is not installed.
    """
    ids = sorted(store.has_features())
    if not ids:
        raise ArgumentError(f"there are no features in {store.path}; extract them first")
    spread = np.unique(np.linspace(0, len(ids) - 1, _TRAINING_IMAGES).astype(int))
    return Vocabulary.train(store.features(ids[i]).first(DESCRIBED) for i in spread)


def describe_images(store: Store, vocabulary: Vocabulary | None = None) -> tuple[NDArray[np.int32], Vectors]:
    """Describe all photographs whose features are in a store.

    Features are read one image at a time. Only the result grows with their number: 8 kB each, 8 GB for a million.

    Parameters
    ----------
    store : Store
    vocabulary : Vocabulary, optional
        By default `vocabulary_for` the store.

    Returns
    -------
    ids : int32 array (N,)
        Image ids, in the order of `Store.images`.
    descriptors : float32 array (N, M)
        A row for each; zeros for a photograph without keypoints.

    Raises
    ------
    ArgumentError
        The store holds no features, or some that are not the vocabulary's.
    MissingDependencyError
        faiss is not installed.
    """
    vocabulary = vocabulary or vocabulary_for(store)
    done = store.has_features()
    ids = [image.image_id for image in store.images() if image.image_id in done]
    descriptors = np.empty((len(ids), vocabulary.size), np.float32)
    for row, image_id in enumerate(ids):
        descriptors[row] = vocabulary.describe(store.features(image_id).first(DESCRIBED))
    return np.array(ids, np.int32), descriptors


def most_similar(queries: Vectors, database: Vectors, k: int) -> tuple[NDArray[np.int64], Vectors]:
    """Find the images most similar to each query, by exhaustive search.

    It needs no memory besides its arguments and its result. The time is that of one matrix product: a million against a
    million with M = 2048 are 4e15 operations, or 6 hours at 200 GFLOP/s.

    Parameters
    ----------
    queries : float32 array (Q, M)
        From `Vocabulary.describe` or `describe_images`.
    database : float32 array (N, M)
        Those to choose from, made with the same vocabulary.
    k : int
        How many to find for each query.

    Returns
    -------
    rows : int64 array (Q, min(k, N))
        Of ``database``, the most similar first; -1 where there are no more that have keypoints.
    similarities : float32 array (Q, min(k, N))
        Their dot products with the query, in [-1, 1].

    Raises
    ------
    ArgumentError
        The descriptors are of different lengths.
    MissingDependencyError
        faiss is not installed.

    Examples
    --------
    >>> looks = np.array([[1, 0], [0.8, 0.6], [0, 0], [0, 1]], np.float32)
    >>> most_similar(looks, looks, 3)[0]
    array([[ 0,  1,  3],
           [ 1,  0,  3],
           [-1, -1, -1],
           [ 3,  1,  0]])
    """
    if queries.shape[1] != database.shape[1]:
        raise ArgumentError(
            f"the descriptors have {queries.shape[1]} and {database.shape[1]} numbers; make both with one vocabulary"
        )
    faiss = _faiss()
    # Images without keypoints are similar to none; their dot products, 0, are not the lowest.
    described = np.flatnonzero(database.any(axis=1))
    rows = np.full((len(queries), min(k, len(database))), -1, np.int64)
    similarities = np.zeros(rows.shape, np.float32)
    found = min(k, len(described))
    if found and len(queries):
        candidates = database if len(described) == len(database) else database[described]
        similarity, nearest = faiss.knn(queries, candidates, found, metric=faiss.METRIC_INNER_PRODUCT)
        rows[:, :found], similarities[:, :found] = described[nearest], similarity
        blank = ~queries.any(axis=1)
        rows[blank], similarities[blank] = -1, 0
    return rows, similarities


def unit_descriptors(features: Features, most: int | None = None) -> Vectors:
    """Return the local descriptors of the best ``most`` keypoints as unit vectors, float32 (N, D); bits become ±1."""
    descriptors = features.descriptors[:most].cpu().numpy()
    if features.is_binary:
        bits = np.unpackbits(descriptors, axis=1).astype(np.float32)
        return (2 * bits - 1) / np.sqrt(np.float32(bits.shape[1]))
    return descriptors


def _unit(vectors: Vectors) -> Vectors:
    """Scale the last axis to unit length; zeros stay zeros."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32(1e-12))


def _faiss() -> Any:
    return import_optional("faiss", "faiss-cpu", "map", "choosing pairs by image retrieval")
