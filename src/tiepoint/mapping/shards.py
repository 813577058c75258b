"""Files of shards: what a worker of a `cluster` found, until it is in the database."""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..io.arrays import write_npz
from ..types import Features
from .steps.extract import as_features
from .store import PairResult, fault_of

Arrays = dict[str, NDArray[Any]]


def make(path: Path, made_of: str, arrays: Callable[[], Arrays]) -> None:
    """Write a shard's file, unless it is there, whole, and was made of the same."""
    import cv2

    torch.set_num_threads(1)  # there is a worker for each core
    cv2.setNumThreads(1)
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["made_of"]) == made_of:
                return
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        pass  # not there, or damaged when the power failed
    write_npz(path, {"made_of": np.array(made_of), **arrays()})


def outcome_arrays(outcomes: list[dict[str, Any] | str]) -> Arrays:
    """Return what `extract_one` said of each photograph of a shard as arrays."""
    arrays: Arrays = {}
    for n, outcome in enumerate(outcomes):
        fields = {"failed": outcome} if isinstance(outcome, str) else outcome
        arrays |= {f"{n}/{name}": np.asarray(value) for name, value in fields.items() if value is not None}
    return arrays


def read_outcomes(path: Path) -> list[Features | str]:
    """Read what `outcome_arrays` made."""
    fields: dict[int, dict[str, Any]] = {}
    outcomes: list[Features | str] = []
    with _reading(path) as arrays:
        for key, value in arrays.items():
            n, _, name = key.partition("/")
            if name:
                fields.setdefault(int(n), {})[name] = value
        for _, one in sorted(fields.items()):
            if "failed" in one:
                outcomes.append(str(one["failed"]))
            else:
                width, height = one.pop("image_size").tolist()
                features = as_features({**one, "image_size": (width, height), "extractor": str(one["extractor"])})
                if fault := fault_of(features):
                    raise ValueError(fault)
                outcomes.append(features)
    return outcomes


_MODELS = ("F", "E", "H", "R", "t")


def result_arrays(found: list[tuple[PairResult, int | None]]) -> Arrays:
    """Return the results of the pairs of a shard, and the layer after which the matcher stopped, as arrays."""
    results = [result for result, _ in found]
    inliers = [np.zeros(len(r.matches), bool) if r.inliers is None else r.inliers for r in results]
    arrays: Arrays = {
        "pairs": np.array([(r.id0, r.id1) for r in results], np.int64),
        "counts": np.array([len(r.matches) for r in results], np.int64),
        "matches": np.concatenate([r.matches for r in results]).astype(np.uint32),
        "scores": np.concatenate([r.scores for r in results]),
        "overlaps": np.array([-1 if r.overlaps is None else r.overlaps for r in results], np.int8),
        "stop_layers": np.array([-1 if layer is None else layer for _, layer in found], np.int64),
        "verified": np.array([r.inliers is not None for r in results]),
        "inliers": np.concatenate(inliers),
        "configs": np.array([r.config for r in results]),
    }
    for name in _MODELS:
        models = [getattr(r, name) for r in results]
        arrays[f"has_{name}"] = np.array([model is not None for model in models])
        arrays[name] = np.array([model for model in models if model is not None], np.float64)
    return arrays


def read_results(path: Path) -> list[tuple[PairResult, int | None]]:
    """Read what `result_arrays` made."""
    results: list[tuple[PairResult, int | None]] = []
    with _reading(path) as a:
        at, models = 0, {name: iter(a[name]) for name in _MODELS}
        for n, ((id0, id1), count) in enumerate(zip(a["pairs"].tolist(), a["counts"].tolist(), strict=True)):
            rows = slice(at, at + count)
            at += count
            result = PairResult(
                id0,
                id1,
                a["matches"][rows],
                a["scores"][rows],
                overlaps=None if a["overlaps"][n] < 0 else bool(a["overlaps"][n]),
                inliers=a["inliers"][rows] if a["verified"][n] else None,
                config=str(a["configs"][n]),  # type: ignore[arg-type]
                **{name: next(models[name]) if a[f"has_{name}"][n] else None for name in _MODELS},
            )
            results.append((result, None if a["stop_layers"][n] < 0 else int(a["stop_layers"][n])))
    return results


@contextmanager
def _reading(path: Path) -> Iterator[Arrays]:
    """Give the arrays of a shard that a worker has made; errors in them name the file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (
        *(OSError, EOFError, MemoryError, ValueError, TypeError, LookupError, RuntimeError),
        *(zipfile.BadZipFile, zlib.error, struct.error),  # which of them depends on where the file is damaged
    ) as error:
        raise InputError(
            f"{path}: a worker wrote this file, but it cannot be read here: {error}; the folder must be on a file "
            "system that all machines of the cluster share, at the same path"
        ) from error
    try:
        yield arrays
    except (ValueError, TypeError, LookupError, RuntimeError, OverflowError) as error:
        raise InputError(f"{path}: is not what a worker wrote ({error}); delete it, and run the same again") from error


def digest_of(*parts: Any) -> str:
    """Return 32 letters that stand for arrays, and for whatever else its repr tells apart."""
    digest = hashlib.sha256()
    for part in parts:
        array = isinstance(part, np.ndarray)
        digest.update(repr((part.dtype, part.shape)).encode() + part.tobytes() if array else repr(part).encode())
    return digest.hexdigest()[:32]
