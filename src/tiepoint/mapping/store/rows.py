"""Features, matches, geometries and cameras as rows of the database, and back."""

from __future__ import annotations

import math
import sqlite3
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import ArgumentError
from ...geometry.colmap import Matrix, from_colmap, import_pycolmap, quaternion_of, rotation_of, to_colmap
from ...types import Features
from .records import CONFIGS, PairMatches, PairResult, StoredGeometry, fault_of, pair_id_of
from .schema import SIFT

if TYPE_CHECKING:
    import pycolmap

Model = tuple[Matrix | None, Matrix | None, Matrix | None, Matrix | None, Matrix | None]  # F, E, H, R, t


def rows_of_features(image_id: int, features: Features) -> dict[str, tuple[Any, ...]]:
    """Return table -> row."""
    if fault := fault_of(features):
        raise ArgumentError(f"image {image_id}: features with {fault}")
    n, scales, orientations = len(features), features.scales, features.orientations
    columns: list[NDArray[Any]] = [to_colmap(_float32(features.keypoints))]
    shape = ("" if scales is None else "s") + ("" if orientations is None else "o")
    if shape:  # COLMAP wants both or neither
        columns.append(np.ones(n, np.float32) if scales is None else _float32(scales) / 2)
        columns.append(np.zeros(n, np.float32) if orientations is None else _float32(orientations))
    table = np.column_stack(columns)
    descriptors = features.descriptors.detach().cpu().numpy()
    rows: dict[str, tuple[Any, ...]] = {"keypoints": (image_id, n, table.shape[1], _blob(table))}
    blob = None
    if features.is_binary:
        kind, blob = "bits", _blob(descriptors)
    elif features.extractor == "sift" and descriptors.shape[1] == 128:
        kind, quantised = "colmap", np.rint(descriptors * 512).clip(0, 255).astype(np.uint8)
        rows["descriptors"] = (image_id, SIFT, n, 128, _blob(quantised))
    else:
        kind, blob = "float16", _blob(descriptors.astype(np.float16))
    if features.covariances is not None:
        rows["tiepoint_covariances"] = image_id, _float32(features.covariances).tobytes()
    scores = _float32(features.scores).tobytes()
    extra = (image_id, features.extractor, shape, scores, kind, descriptors.shape[1], blob)
    return {**rows, "tiepoint_features": extra}


def _float32(tensor: torch.Tensor) -> NDArray[np.float32]:
    return tensor.detach().cpu().numpy().astype(np.float32, copy=False)


def features_of_row(row: sqlite3.Row, with_descriptors: bool) -> Features:
    """Return features of the columns that `Store.features` selects; raises `ValueError` if they are damaged.

    Without an ``extractor`` they are COLMAP's own, by SIFT. Descriptors that are not wanted are (N, 0).
    """
    n, extractor, shape, kind = row["n"], row["extractor"], row["shape"], row["kind"]
    table = numbers(row["keypoints"], np.float32, n, row["columns"]) if n else np.zeros((0, 2), np.float32)
    if table.shape[1] not in (2, 4, 6):
        raise ValueError(f"keypoints of {row['columns']} numbers")
    if extractor is None:
        extractor, shape, kind = "sift", "so" if row["columns"] > 2 else "", "colmap"
    if not with_descriptors:
        descriptors: NDArray[Any] = np.zeros((n, 0), np.float32)
    elif kind == "colmap":
        descriptors = numbers(row["colmap_descriptors"], np.uint8, n, row["colmap_length"] or 128).astype(np.float32)
        descriptors /= np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), 1)
    elif kind == "float16":
        descriptors = numbers(row["descriptors"], np.float16, n, row["length"]).astype(np.float32)
    elif kind == "bits":
        descriptors = numbers(row["descriptors"], np.uint8, n, row["length"])
    else:
        raise ValueError(f"descriptors of the kind {kind!r}")
    scales, orientations = _scale_and_orientation(table)
    scores, covariances = row["scores"], row["covariances"]
    features = Features(
        keypoints=torch.from_numpy(from_colmap(table[:, :2])),
        scores=torch.from_numpy(np.ones(n, np.float32) if scores is None else numbers(scores, np.float32, n)),
        descriptors=torch.from_numpy(descriptors),
        image_size=(row["width"], row["height"]),
        extractor=str(extractor),
        scales=torch.from_numpy(scales) if "s" in (shape or "") else None,
        orientations=torch.from_numpy(orientations) if "o" in (shape or "") else None,
        covariances=None if covariances is None else torch.from_numpy(numbers(covariances, np.float32, n, 2, 2)),
    )
    if fault := fault_of(features):
        raise ValueError(fault)
    return features


def _scale_and_orientation(table: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return diameters (N,) and angles (N,) of COLMAP's keypoints (N, 2), (N, 4) or (N, 6)."""
    if table.shape[1] == 4:
        return table[:, 2] * 2, table[:, 3].copy()
    if table.shape[1] == 6:  # x, y, and the affine shape [[a, b], [c, d]], for SIFT a scaled rotation
        a, b, c, d = table[:, 2:].T
        return np.hypot(a, c) + np.hypot(b, d), np.arctan2(c, a)
    return np.ones(len(table), np.float32), np.zeros(len(table), np.float32)


def rows_of_pair(item: PairResult) -> dict[str, tuple[Any, ...]]:
    """Return table -> row."""
    pair_id, swap = pair_id_of(item.id0, item.id1), item.id0 > item.id1
    matches = np.asarray(item.matches, np.uint32)[:, :: -1 if swap else 1]
    scores = np.asarray(item.scores, np.float32).tobytes()
    rows: dict[str, tuple[Any, ...]] = {
        "matches": (pair_id, len(matches), 2, _blob(matches)),
        "tiepoint_matches": (pair_id, scores, None if item.overlaps is None else int(item.overlaps)),
    }
    if item.inliers is not None:
        model = item.F, item.E, item.H, item.R, item.t
        F, E, H, R, t = _inverse(model) if swap else model
        blobs = [
            None if part is None else np.asarray(part, np.float64).tobytes()
            for part in (F, E, H, None if R is None else quaternion_of(R), t)
        ]
        kept = matches[item.inliers]
        rows["two_view_geometries"] = (pair_id, len(kept), 2, _blob(kept), CONFIGS.index(item.config), *blobs)
    return rows


def _inverse(model: Model) -> Model:
    """Return the same geometry seen from the other image."""
    F, E, H, R, t = model
    return (
        None if F is None else np.ascontiguousarray(np.transpose(F)),
        None if E is None else np.ascontiguousarray(np.transpose(E)),
        None if H is None else np.asarray(np.linalg.inv(H), np.float64),
        None if R is None else np.ascontiguousarray(np.transpose(R)),
        None if R is None or t is None else -np.transpose(R) @ t,
    )


def matches_of_row(row: sqlite3.Row, swap: bool) -> PairMatches:
    """Return the matches of a pair of the columns that `Store.matches` selects; `ValueError` if they are damaged."""
    indices, order = _indices(row, swap)
    count, scores, overlaps = row["rows"], row["scores"], row["overlaps"]
    if scores is not None and len(scores) != 4 * count:
        scores = None  # of matches that COLMAP has replaced
    values = np.ones(count, np.float32) if scores is None else numbers(scores, np.float32, count)
    if not np.isfinite(values).all():
        raise ValueError("scores that are not finite")
    return PairMatches(indices[order], values[order], None if overlaps is None else bool(overlaps))


def geometry_of_row(row: sqlite3.Row, swap: bool) -> StoredGeometry:
    """Return the geometry of a pair, as `matches_of_row` does its matches."""
    indices, order = _indices(row, swap)
    config, q, t = row["config"], row["qvec"], row["tvec"]
    if config not in range(len(CONFIGS)):
        raise ValueError(f"its kind is {config!r}")
    F, E, H = (None if row[name] is None else numbers(row[name], np.float64, 3, 3) for name in ("F", "E", "H"))
    R = None if q is None else rotation_of(numbers(q, np.float64, 4))
    model = F, E, H, R, None if t is None else numbers(t, np.float64, 3)
    return StoredGeometry(indices[order], CONFIGS[config], *(_inverse(model) if swap else model))


def _indices(row: sqlite3.Row, swap: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return matches (K, 2), and the order that sorts them."""
    indices = numbers(row["data"], np.uint32, row["rows"], 2).astype(np.int64)
    for column, most in zip(indices.T, (row["keypoints0"], row["keypoints1"]), strict=True):
        if most is not None and column.max(initial=-1) >= most:
            raise ValueError(f"a match of keypoint {column.max()}, of {most}")
    indices = indices[:, :: -1 if swap else 1]
    return indices, np.lexsort(indices.T[::-1])


def camera_of_row(camera_id: int, model: int, width: int, height: int, params: bytes, prior: int) -> pycolmap.Camera:
    """Return a camera as a row of the database describes it; raises `ValueError` if that makes no sense."""
    pycolmap = import_pycolmap()
    values = np.frombuffer(params, np.float64)
    camera = pycolmap.Camera(
        camera_id=camera_id,
        model=pycolmap.CameraModelId(model),
        width=width,
        height=height,
        params=values,
        has_prior_focal_length=bool(prior),
    )
    if not camera.verify_params() or not np.isfinite(values).all() or min(width, height) < 1:
        raise ValueError(f"camera {camera_id}: {width}x{height} pixels, parameters {values.tolist()}")
    return camera


def camera_values(camera: pycolmap.Camera) -> tuple[Any, ...]:
    """Return what makes two cameras equal."""
    model, prior = int(camera.model), bool(camera.has_prior_focal_length)
    return model, camera.width, camera.height, tuple(camera.params), prior


def _blob(array: NDArray[Any]) -> bytes | None:
    """Return the bytes row by row; as in COLMAP, NULL stands for no rows."""
    return array.tobytes() if array.size else None


def numbers(blob: bytes | None, dtype: type, *shape: Any) -> NDArray[Any]:
    """Return the array of this shape that was stored as its bytes, as a copy; NULL stands for no rows.

    Raises
    ------
    ValueError
        The bytes are not those of an array of this shape, or there are none.
    """
    values: NDArray[Any] = np.frombuffer(blob or b"", dtype)
    if min(shape) < 0 or values.size != math.prod(shape):
        raise ValueError(f"{values.size} numbers instead of {' x '.join(map(str, shape))}")
    return values.reshape(shape).copy()
