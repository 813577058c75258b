"""Exchange with hloc (Hierarchical-Localization): features and matches as HDF5 files, pairs as text.

hloc's keypoints have whole numbers at pixel centres, as ours have: it adds COLMAP's half pixel itself when it fills a
database. So does the `Store`, and x + 0.5 may round; what comes out of a store and goes back into one is the same bit
for bit.

hloc's files do not say which extractor made them, nor whether a pair was verified. Of a file of features, what is read
is ``keypoints`` (N, 2), ``scores`` (N,), ``descriptors`` (D, N) and ``image_size`` (2,). Dense matchers (LoFTR, RoMa)
leave files of keypoints without descriptors: with their matches they make a map, but cannot be matched again.
`tiepoint.mapping.pairs.from_list` reads lists of pairs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import InputError, TiepointError
from ...io.arrays import FeatureWriter, hdf5_array, import_h5py, write_hloc_matches, writing_hdf5
from ...io.files import atomic, check_output, open_file
from ...types import Features
from ..store import PairResult, Store, fault_of, pairs_of
from ..workers import Commits

DEEPEST = 32  # folders in the name of a photograph


def export_features(store: Store, path: str | os.PathLike[str]) -> int:
    """Write all features of a store to one HDF5 file.

    Parameters
    ----------
    store : Store
    path : path
        Ends in ``.h5``; it appears whole or not at all.

    Returns
    -------
    int
        Number of images.

    Raises
    ------
    ArgumentError
        Another suffix, or the folder does not exist.
    InputError
        The file cannot be written.
    MissingDependencyError
        h5py is not installed.
    """
    check_output(path, (".h5",))
    have = store.has_features()
    images = [image for image in store.images() if image.image_id in have]
    with FeatureWriter(path) as writer:
        for image in images:
            writer.write(image.name, store.features(image.image_id))
    return len(images)


def import_features(store: Store, path: str | os.PathLike[str], extractor: str) -> list[str]:
    """Read features into a store; its images must have been entered before, since hloc's files hold no cameras.

    Parameters
    ----------
    store : Store
        Images of it that the file lacks stay as they are; all others get the file's features.
    path : path
        HDF5 file in hloc's layout. Where there are no ``scores`` they become 1; where one is above 1, those of its
        image are divided by the largest.
    extractor : str
        What made them, by tiepoint's names: matchers ask for it.

    Returns
    -------
    list of str
        Images of the file that the store does not know.

    Raises
    ------
    InputError
        Missing or damaged file, or features of a photograph of another size.
    MissingDependencyError
        h5py is not installed.
    """
    images = {image.name: image for image in store.images()}
    unknown = []
    with _opened(path) as file, Commits(store.write_features) as commits:
        for name in _groups_with(file, "keypoints"):
            if name not in images:
                unknown.append(name)
                continue
            image = images[name]
            features = _features(file[name], image.size, extractor, f"{path}: {name}")
            commits.add((image.image_id, features))
    return unknown


def export_matches(store: Store, path: str | os.PathLike[str]) -> int:
    """Write all matches of a store to one HDF5 file: ``<name0>/<name1>/matches0`` and ``matching_scores0``.

    Parameters
    ----------
    store : Store
    path : path
        Ends in ``.h5``; it appears whole or not at all.

    Returns
    -------
    int
        Number of pairs.

    Raises
    ------
    ArgumentError
        Another suffix, or the folder does not exist.
    InputError
        The file cannot be written, or two images have one name there, where "/" becomes "-".
    MissingDependencyError
        h5py is not installed.
    """
    check_output(path, (".h5",))
    names = {image_id: key for key, image_id in _keys(store).items()}
    pairs = pairs_of(store.matched_pair_ids()).tolist()
    with writing_hdf5(path) as file:
        counts = store.keypoint_counts()
        for id0, id1 in pairs:
            found = store.matches(id0, id1)
            assert found is not None
            write_hloc_matches(file, (names[id0], names[id1]), counts[id0], found.indices, found.scores)
    return len(pairs)


def import_matches(store: Store, path: str | os.PathLike[str]) -> list[str]:
    """Read matches into a store that has the features they belong to.

    hloc allows several keypoints of the first image to have one partner; the best of them is kept. Of a pair that the
    file holds in both directions the first is kept.

    Parameters
    ----------
    store : Store
    path : path
        HDF5 file in hloc's layout.

    Returns
    -------
    list of str
        Pairs of the file, of which the store does not know an image or its features.

    Raises
    ------
    InputError
        Missing or damaged file, matches that belong to other features, or two images of the store that cannot be told
        apart because "/" became "-".
    MissingDependencyError
        h5py is not installed.
    """
    keys = _keys(store)
    counts = store.keypoint_counts()
    unknown = []
    seen: set[frozenset[int]] = set()
    with _opened(path) as file, Commits(store.write_matches) as commits:
        for pair in _groups_with(file, "matches0"):
            ids = [keys.get(key, -1) for key in pair.split("/")]
            if len(ids) != 2 or not set(ids) <= counts.keys():
                unknown.append(pair)
                continue
            id0, id1 = ids
            if frozenset(ids) in seen:
                continue
            seen.add(frozenset(ids))
            matches, scores = _matches(file[pair], (counts[id0], counts[id1]), f"{path}: {pair}")
            commits.add(PairResult(id0, id1, matches, scores))
    return unknown


def write_pairs(store: Store, path: str | os.PathLike[str], pairs: Iterable[tuple[int, int]]) -> None:
    """Write pairs as hloc and COLMAP's ``matches_importer`` read them: two names a line.

    Parameters
    ----------
    store : Store
    path : path
        Text file; it appears whole or not at all.
    pairs : iterable of (image id, image id)
        For example ``pairs_of(store.matched_pair_ids()).tolist()``.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    names = {image.image_id: image.name for image in store.images()}
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        # Most readers cut at any space; a tab lets those that care tell names with spaces apart.
        for id0, id1 in pairs:
            space = "\t" if " " in names[id0] + names[id1] else " "
            stream.write(f"{names[id0]}{space}{names[id1]}\n")


def _features(group: Any, size: tuple[int, int], extractor: str, name: str) -> Features:
    """Return the features of one image of a file."""
    keypoints = hdf5_array(group, "keypoints", name)
    n = len(keypoints) if keypoints.ndim else 0
    # dense matchers have no descriptors
    descriptors = hdf5_array(group, "descriptors", name) if "descriptors" in group else np.zeros((0, n), np.float32)
    scores = hdf5_array(group, "scores", name).astype(np.float32) if "scores" in group else np.ones(n, np.float32)
    sides = hdf5_array(group, "image_size", name) if "image_size" in group else np.array(size)
    if (keypoints.shape, descriptors.shape[1:], scores.shape, sides.shape) != ((n, 2), (n,), (n,), (2,)):
        raise InputError(
            f"{name}: keypoints (N, 2), descriptors (D, N), scores (N,) and image_size (2,) do not fit; is the file "
            "damaged?"
        )
    if tuple(sides.tolist()) != size:
        raise InputError(
            f"{name}: features of {sides[0]:g}x{sides[1]:g} pixels, but the image in the store has "
            f"{size[0]}x{size[1]}; they belong to another version of the photograph"
        )
    binary = descriptors.dtype == np.uint8
    features = Features(
        keypoints=torch.from_numpy(keypoints.astype(np.float32)),
        scores=torch.from_numpy(scores / max(1.0, float(scores.max(initial=0)))),
        descriptors=torch.from_numpy(np.ascontiguousarray(descriptors.T, np.uint8 if binary else np.float32)),
        image_size=size,
        extractor=extractor,
    )
    if fault := fault_of(features):
        raise InputError(f"{name}: {fault}; is the file damaged, or of other photographs?")
    return features


def _matches(group: Any, counts: tuple[int, int], name: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the matches (K, 2) and scores (K,) of one pair of a file."""
    partner = hdf5_array(group, "matches0", name)
    if partner.dtype.kind not in "iu" or partner.shape != (counts[0],) or (partner >= counts[1]).any():
        raise InputError(
            f"{name}: matches of {partner.shape} keypoints, up to number {partner.max(initial=-1)} of the other image, "
            f"but the store has {counts[0]} and {counts[1]}; import the features that they were made with"
        )
    partner = partner.astype(np.int64)
    scores = np.ones(len(partner), np.float32)
    if "matching_scores0" in group:
        scores = hdf5_array(group, "matching_scores0", name).astype(np.float32)
    matched = np.flatnonzero(partner >= 0)
    if scores.shape != partner.shape or not np.isfinite(scores[matched]).all():
        raise InputError(f"{name}: scores that are not one finite number for each match; is the file damaged?")
    best_first = matched[np.argsort(-scores[matched], kind="stable")]
    _, first = np.unique(partner[best_first], return_index=True)
    kept = np.sort(best_first[first])
    return np.stack([kept, partner[kept]], axis=1), scores[kept]


def _keys(store: Store) -> dict[str, int]:
    """Return name, as the groups of match files have it -> image id."""
    keys: dict[str, int] = {}
    for image in store.images():
        key = image.name.replace("/", "-")
        if key in keys:
            raise InputError(
                f"{store.path}: hloc's match files write '/' as '-', so that {image.name!r} and another image are both "
                f"{key!r}; rename one of the photographs"
            )
        keys[key] = image.image_id
    return keys


def _groups_with(file: Any, dataset: str, depth: int = 0) -> Iterator[str]:
    """Yield the names of all groups that hold the dataset, in order.

    Links to other places are not followed: they may lead into other files, or round in a circle.
    """
    h5py = import_h5py()
    if depth > DEEPEST:
        raise InputError(f"{file.file.filename}: groups more than {DEEPEST} deep; is the file damaged?")
    for name in file:
        if (
            not isinstance(file.get(name, getlink=True), h5py.HardLink)
            or file.get(name, getclass=True) is not h5py.Group
        ):
            continue
        item = file[name]
        if dataset in item:
            yield name
        else:
            yield from (f"{name}/{inner}" for inner in _groups_with(item, dataset, depth + 1))


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    h5py = import_h5py()
    try:
        open_file(path).close()  # a pipe would block for ever
        with h5py.File(path, "r") as file:
            yield file
    except TiepointError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # HDF5's own, whatever is damaged
        raise InputError(f"{path}: damaged, or not an HDF5 file in hloc's layout ({error})") from error
