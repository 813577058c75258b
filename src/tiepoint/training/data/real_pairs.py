"""Real pairs without ground truth: photographs that overlap, matched by a teacher whose matches a geometry confirms.

No homography of one photograph shows what a camera sees from two places, hours or years apart. A teacher describes the
student's keypoints and matches them. Matches that agree with one epipolar geometry or one homography are taken as true,
and keypoints without a partner, by a confident teacher, as unmatchable. The others are ignored. Pairs that no geometry
confirms are left out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ... import features as extractors
from ... import matchers, weights
from ...errors import ArgumentError, InputError
from ...io.files import atomic, read_json, read_text
from ...matchers.mutual import mutual_nearest
from ...types import Features
from .claims import claim
from .ground_truth import IGNORED, UNMATCHABLE, Labels
from .photographs import PhotoCache, source_of

LEAST = 30  # matches that a geometry has to confirm
_CONFIRMED = 0.5  # least fraction of the teacher's matches that it confirms
_THRESHOLD = 2.0  # pixels of the reduced photographs, of that geometry
_ALONE = 0.1  # matchability up to which a keypoint without a match has no partner
_LOOKED_AT = 128  # best keypoints of each photograph by which `auto` finds pairs
_RATIO = 0.85  # of the distances to the nearest and to the second nearest of them
_VOTES = 6  # mutual nearest neighbours that make two photographs a candidate
_PARTNERS = 8  # candidates of each photograph, at most
_MOST_PHOTOGRAPHS = 4000  # that are compared with each other


@dataclass(frozen=True)
class RealPairConfig:
    """Which pairs are looked for, and which extractor's LightGlue matches them.

    Attributes
    ----------
    teacher : str
        An extractor that describes given keypoints, and for which there is a LightGlue, as `tiepoint.features.load`
        takes it.
    features : str
        The student, likewise: it finds the keypoints.
    keypoints : int
        Of each photograph, at most.
    detection_threshold : float or None
        Of the student.
    """

    teacher: str
    features: str
    keypoints: int = 512
    detection_threshold: float | None = None


@dataclass(frozen=True, eq=False)
class RealPair:
    """Two photographs that overlap.

    Attributes
    ----------
    rows : (int, int)
        Of the cache of photographs.
    features : (Features, Features)
        Of the student.
    labels : Labels
        Of one pair, (1, N) and (1, M).
    """

    rows: tuple[int, int]
    features: tuple[Features, Features]
    labels: Labels


def check_may_teach(teacher: str) -> None:
    """Raise `ArgumentError` if the licence of an extractor's weights forbids commercial use of what learns from it."""
    name, _, source = teacher.partition("@")
    known = weights.entries().get(source or name)
    if known is not None and not known.commercial:
        raise ArgumentError(
            f"{teacher} may not teach: its licence ({known.licence}) forbids commercial use, and what learns from it "
            "could not be used commercially either"
        )


class RealPool:
    """The confirmed pairs of a collection, made once and kept in a folder.

    Parameters
    ----------
    photos : PhotoCache
        The collection.
    config : RealPairConfig
        The teacher and the student.
    folder : path
        One file for each candidate; made if need be.
    pairs : path or None
        Text file of candidates, two names a line, relative to the folder of photographs. None finds them.

    Raises
    ------
    ArgumentError
        The teacher's weights may not be used commercially, there are too many photographs to compare, or an extractor
        cannot describe given keypoints.
    InputError
        The file of pairs cannot be read or names a photograph that is not there, or the folder holds other pairs.
    """

    def __init__(
        self, photos: PhotoCache, config: RealPairConfig, folder: Path, pairs: str | os.PathLike[str] | None = None
    ) -> None:
        self.photos, self.config, self.folder = photos, config, Path(folder)
        check_may_teach(config.teacher)
        self.source = None if pairs is None else Path(pairs)
        self.listed = None if pairs is None else _read_list(Path(pairs), photos)
        claim(self.folder / "pool.json", {"digest": self.digest, **asdict(config)}, "other real pairs")

    @property
    def digest(self) -> str:
        """Identifies collection, teacher and list."""
        summary = {"photographs": self.photos.digest, "listed": self.listed, **asdict(self.config)}
        return hashlib.sha256(json.dumps(summary).encode()).hexdigest()

    def candidates(self) -> list[tuple[int, int]]:
        """Return the pairs of rows that may overlap: those listed, or those that `auto` finds, once."""
        if self.listed is not None:
            return self.listed
        path = self.folder / "candidates.json"
        if not path.exists():
            found = self._find()
            with atomic(path) as unfinished:
                unfinished.write_text(json.dumps(found))
        last = len(self.photos.names) - 1
        pairs = [tuple(pair) if isinstance(pair, list) else () for pair in read_json(path, list)]
        if not all(len(pair) == 2 and all(type(i) is int and 0 <= i <= last for i in pair) for pair in pairs):
            raise InputError(f"{path}: holds what is no pair of the {last + 1} photographs; delete the folder")
        return [(a, b) for a, b in pairs]

    def make(self) -> Iterator[tuple[int, int]]:
        """Let the teacher match the candidates that are left, and yield how many are done, and of how many."""
        candidates = self.candidates()
        left = [pair for pair in candidates if not self._path(pair).exists()]
        student, teacher, match = self._load()

        @lru_cache(maxsize=64)
        def described(row: int) -> tuple[Features, Features]:
            pixels = self.photos[row].copy()
            found = student(pixels)
            return found, teacher.describe(pixels, found)

        for done, pair in enumerate(left, start=1):
            (f0, t0), (f1, t1) = (described(row) for row in pair)
            self._save(pair, f0, f1, match(t0, t1) if min(len(f0), len(f1)) >= LEAST else None)
            yield done, len(left)

    def confirmed(self, held_out: bool = False) -> list[tuple[int, int]]:
        """Return the pairs that a geometry confirms, of photographs to train on or of those held out."""
        mine = set((self.photos.held_out if held_out else self.photos.train).tolist())
        return [pair for pair in self.candidates() if mine.issuperset(pair) and self._count(pair) >= LEAST]

    def read(self, pair: tuple[int, int]) -> RealPair:
        """Return a confirmed pair."""
        with np.load(self._path(pair)) as arrays:
            both = []
            for side in "01":
                parts = {
                    name: torch.from_numpy(arrays[name + side])
                    for name in ("keypoints", "scores", "descriptors", "scales", "orientations")
                    if name + side in arrays
                }
                height, width = self.photos.sizes[pair[int(side)]].tolist()
                parts["descriptors"] = parts["descriptors"].float()
                name = self.config.features.partition("@")[0]
                both.append(Features(image_size=(width, height), extractor=name, **parts))
            labels = Labels(*(torch.from_numpy(arrays[f"matches{side}"])[None] for side in "01"))
        return RealPair(pair, (both[0], both[1]), labels)

    def _load(self) -> tuple[Any, Any, Any]:
        student = extractors.load(
            self.config.features,
            max_keypoints=self.config.keypoints,
            detection_threshold=self.config.detection_threshold,
        )
        teacher = extractors.load(self.config.teacher)
        return student, teacher, matchers.load("lightglue", features=teacher.name, adaptive=False)

    def _find(self) -> list[tuple[int, int]]:
        """Return pairs of photographs of which some keypoints are each other's nearest by the teacher's descriptors."""
        count = len(self.photos)
        if count > _MOST_PHOTOGRAPHS:
            raise ArgumentError(f"{count} photographs are too many to compare all; list the pairs in a file")
        student, teacher, _ = self._load()
        looks = []
        for row in range(count):
            pixels = self.photos[row].copy()
            best = student(pixels).select(torch.arange(self.config.keypoints) < _LOOKED_AT)
            looks.append(teacher.describe(pixels, best).descriptors)
        sources = np.array([source_of(name) for name in self.photos.names])
        votes = np.zeros((count, count), np.int64)
        for i in range(count):
            for j in range(i + 1, count):
                if sources[i] != sources[j]:  # crops of one photograph show different parts of it
                    votes[i, j] = votes[j, i] = _mutual(looks[i], looks[j])
        chosen = set()
        for i in range(count):
            for j in votes[i].argsort(kind="stable")[::-1][:_PARTNERS].tolist():
                if votes[i, j] >= _VOTES:
                    chosen.add((min(i, j), max(i, j)))
        return sorted(chosen)

    def _save(self, pair: tuple[int, int], f0: Features, f1: Features, found: Any) -> None:
        """Write what was found of a candidate; one that is not confirmed is a file without matches."""
        arrays: dict[str, Any] = {"count": 0}
        kept = None if found is None else _confirmed(found)
        if kept is not None and kept.sum() >= max(LEAST, _CONFIRMED * len(kept)):
            arrays["count"] = int(kept.sum())
            right = found.indices[kept]
            for side, (features, matchability) in enumerate(((f0, found.matchability0), (f1, found.matchability1))):
                labels = np.full(len(features), IGNORED, np.int64)
                unmatched = np.ones(len(features), bool)
                unmatched[found.indices[:, side]] = False
                labels[unmatched & (matchability <= _ALONE)] = UNMATCHABLE
                labels[right[:, side]] = right[:, 1 - side]
                arrays[f"matches{side}"] = labels
                for name in ("keypoints", "scores", "descriptors", "scales", "orientations"):
                    value = getattr(features, name)
                    if value is not None:
                        arrays[f"{name}{side}"] = value.numpy().astype("f2" if name == "descriptors" else "f4")
        with atomic(self._path(pair)) as unfinished:
            np.savez(unfinished, **arrays)

    def _count(self, pair: tuple[int, int]) -> int:
        with np.load(self._path(pair)) as arrays:
            return int(arrays["count"])

    def _path(self, pair: tuple[int, int]) -> Path:
        return self.folder / f"{pair[0]}-{pair[1]}.npz"


def _confirmed(found: Any) -> NDArray[np.bool_]:
    """Return which matches agree with one epipolar geometry or, where that says little, with one homography."""
    from ...geometry import estimate_fundamental, estimate_homography

    if len(found) < LEAST:
        return np.zeros(len(found), bool)
    estimates = (estimate_homography, estimate_fundamental)
    inliers = [estimate(found.points0, found.points1, threshold=_THRESHOLD).inliers for estimate in estimates]
    return max(inliers, key=lambda mask: int(mask.sum()))


def _mutual(d0: torch.Tensor, d1: torch.Tensor) -> int:
    """Count mutual nearest neighbours that are much nearer than the second nearest."""
    if min(len(d0), len(d1)) < 2:
        return 0
    similarity = d0 @ d1.T
    _, _, mutual = mutual_nearest(similarity)
    best, second = (2 - 2 * similarity.topk(2, dim=1).values).clamp(min=0).sqrt().unbind(1)
    return int((mutual & (best < _RATIO * second)).sum())


def _read_list(path: Path, photos: PhotoCache) -> list[tuple[int, int]]:
    """Read pairs of names; what follows them on a line is ignored."""
    rows = {name: row for row, name in enumerate(photos.names)}
    found = set()
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        names = line.split()
        if not names or names[0].startswith("#"):
            continue
        if len(names) < 2 or not {names[0], names[1]} <= rows.keys() or names[0] == names[1]:
            raise InputError(f"{path}, line {number}: these are not the names of two photographs: {line[:80]!r}")
        found.add((min(rows[names[0]], rows[names[1]]), max(rows[names[0]], rows[names[1]])))
    if not found:
        raise InputError(f"{path}: there are no pairs in it")
    return sorted(found)
