"""A teacher's descriptors of Cairn's keypoints: made once, read in every step.

Cairn finds the keypoints of every photograph of the pool, the teacher describes them, each in the photograph reduced by
the octave that the keypoint was found on: Cairn measures scale, and a teacher that does not would describe a large
keypoint by the texture at its centre. The answers are memory-mapped NumPy arrays in one
folder, each photograph in its own rows, so that making them can be interrupted and resumed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ... import features as extractors
from ... import weights
from ...errors import ArgumentError, InputError
from ...features.base import Extractor, resized
from ...features.cairn import DIAMETER, CairnConfig
from ...io.files import explained
from ...io.images import resize
from ..stream import stream
from .claims import claim
from .photographs import PhotoCache
from .real_pairs import check_may_teach

_ARRAYS = ("counts", "keypoints", "levels", "descriptors")
_NOT_MADE = -1
_SMALLEST_SIDE = 96  # pixels, of a photograph that the teacher looks at


@dataclass(frozen=True)
class TeacherConfig:
    """Whose answers, about which keypoints.

    Attributes
    ----------
    teacher : str
        An extractor that can describe given keypoints, as `tiepoint.features.load` takes it.
    student : str
        The Cairn that finds them, likewise.
    keypoints : int
        Of each photograph, at most.
    """

    teacher: str = "aliked-n16"
    student: str = "cairn"
    keypoints: int = 768


class Answers:
    """A teacher's answers about the photographs of a cache.

    Parameters
    ----------
    photos : PhotoCache
        The photographs.
    config : TeacherConfig
        Whose answers.
    folder : path
        Where they are kept; made if need be.

    Raises
    ------
    InputError
        The folder holds answers about other photographs or of another teacher, or cannot be written.
    ArgumentError
        The teacher's weights may not be used commercially, or it cannot describe given keypoints.
    """

    def __init__(self, photos: PhotoCache, config: TeacherConfig, folder: Path) -> None:
        self.photos, self.config, self.folder = photos, config, Path(folder)
        self._arrays: dict[str, NDArray[Any]] = {}
        about = self.folder / "answers.json"
        if not about.exists():
            dim, rows = self._try_teacher(), (len(photos), config.keypoints)
            with explained(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                for name, kind, shape in (
                    ("keypoints", np.float32, (2,)),
                    ("levels", np.int8, ()),
                    ("descriptors", np.float16, (dim,)),
                ):
                    np.lib.format.open_memmap(self._path(name), "w+", kind, rows + shape)
                np.save(self._path("counts"), np.full(len(photos), _NOT_MADE, np.int32))
        claim(about, self.identity, "answers of another teacher")
        self.dim = int(self._open("descriptors").shape[2])

    def __reduce__(self) -> tuple[Any, ...]:
        return Answers, (self.photos, self.config, self.folder)

    def __getitem__(self, row: int) -> tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.float16]]:
        """Return keypoints (N, 2) in pixels, levels (N,) and the teacher's descriptors (N, D) of a photograph."""
        counts, keypoints, levels, descriptors = (self._open(name) for name in _ARRAYS)
        n = max(0, int(counts[row]))
        return keypoints[row, :n], levels[row, :n], descriptors[row, :n]

    @property
    def missing(self) -> list[int]:
        """Rows of the photographs that are still to be asked about."""
        return np.flatnonzero(self._open("counts") == _NOT_MADE).tolist()

    def make(self, workers: int, rows: Collection[int] | None = None) -> Iterator[tuple[int, int]]:
        """Ask about the photographs that are missing, and yield how many are done and how many there are to do.

        Parameters
        ----------
        workers : int
            Processes that ask; 0 asks in this one.
        rows : collection of int, optional
            Ask about these photographs only.
        """
        wanted = [row for row in self.missing if rows is None or row in rows]
        ask = _Questions(self.photos, self.config)
        counts, *arrays = (self._open(name, "r+") for name in _ARRAYS)
        for done, (row, *answer) in enumerate(stream(ask, wanted, min(workers, len(wanted))), start=1):
            n = len(answer[0])
            for array, values in zip(arrays, answer, strict=True):
                array[row, :n] = values
            counts[row] = n  # last: a row that is half written does not count
            yield done, len(wanted)
        for array in (counts, *arrays):
            array.flush()  # type: ignore[attr-defined]
        self._arrays.clear()

    def _open(self, name: str, mode: str = "r") -> NDArray[Any]:
        if mode != "r":
            return np.lib.format.open_memmap(self._path(name), mode)
        if name not in self._arrays:
            try:
                self._arrays[name] = np.lib.format.open_memmap(self._path(name), "r")
            except (OSError, ValueError) as error:
                raise InputError(f"{self._path(name)}: cannot be read ({error}); delete the folder") from error
        return self._arrays[name]

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for answers to be used again."""
        sizes = hashlib.sha256(self.photos.sizes.tobytes()).hexdigest()
        state, config = _weights_of(self.config.student)
        detector = {key: value for key, value in state.items() if key.startswith("detector.")}
        return {
            "photographs": self.photos.digest,
            "sizes": sizes,
            "keypoints": self.config.keypoints,
            "teacher": self.config.teacher.partition("@")[0],
            "the teacher's weights": fingerprint(_weights_of(self.config.teacher)[0]),
            # The descriptor head has no say in where keypoints are, nor on which level.
            "the student's detector": fingerprint(detector),
            "the student's levels": CairnConfig.from_dict(config, self.config.student).levels,
        }

    def _try_teacher(self) -> int:
        """Check that the teacher may teach, and return the length of its descriptors."""
        check_may_teach(self.config.teacher)
        described = extractors.load(self.config.teacher).describe(np.zeros((64, 64, 3), np.uint8), [[32, 32]])
        if described.is_binary:
            raise ArgumentError(f"{self.config.teacher} has binary descriptors; a teacher needs numbers")
        return described.descriptors.shape[1]


def fingerprint(state: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of tensors by name, as float32.

    A half-precision copy whose numbers were representable has the same; one that was rounded has another.

    Examples
    --------
    >>> exact, rounded = torch.tensor([0.5]), torch.tensor([0.1])
    >>> fingerprint({"a": exact}) == fingerprint({"a": exact.half()})
    True
    >>> fingerprint({"a": rounded}) == fingerprint({"a": rounded.half()})
    False
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].float().contiguous()
        digest.update(f"{name} {tuple(values.shape)}\n".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _weights_of(extractor: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the weights of ``NAME`` or ``NAME@FILE``, and their configuration; nothing for one without weights."""
    name, _, source = extractor.partition("@")
    return weights.load(source or name) if source or name in weights.entries() else ({}, {})


class _Questions:
    """Gives the teacher's answer about a photograph."""

    def __init__(self, photos: PhotoCache, config: TeacherConfig) -> None:
        self.photos, self.config = photos, config

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave out the extractors: a worker process loads its own."""
        return _Questions, (self.photos, self.config)

    @cached_property
    def _extractors(self) -> tuple[Extractor, Extractor]:
        student = extractors.load(self.config.student, max_keypoints=self.config.keypoints)
        return student, extractors.load(self.config.teacher)

    def __call__(self, row: int) -> tuple[int, Any, Any, Any]:
        student, teacher = self._extractors
        pixels = self.photos[row].copy()
        found = student(pixels)
        assert found.scales is not None  # Cairn measures them
        levels = (2 * torch.log2(found.scales / DIAMETER)).round()
        descriptors = torch.zeros(len(found), 1)
        octaves = (levels / 2).floor().clamp(0, max(0, math.floor(math.log2(min(found.image_size) / _SMALLEST_SIDE))))
        # As the photograph stands: the direction of a keypoint is the descriptor head's, which is what learns.
        upright = replace(found, orientations=torch.zeros_like(found.scales))
        for octave in octaves.unique().tolist():
            small = resize(pixels, round(max(found.image_size) / 2**octave))
            mine = octaves == octave
            answer = teacher.describe(small, resized(upright.select(mine), found.image_size, small.shape[1::-1]))
            if descriptors.shape[1] == 1:
                descriptors = torch.zeros(len(found), answer.descriptors.shape[1])
            descriptors[mine] = answer.descriptors
        return (row, found.keypoints.numpy(), levels.to(torch.int8).numpy(), descriptors.half().numpy())
