"""The tables of the database, and the statements that have to keep several of them consistent."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from types import MappingProxyType
from typing import Any

import numpy as np

from ...errors import ArgumentError
from .records import NewImage, pairs_of

SIFT = 0  # of COLMAP's FeatureExtractorType
WGS84 = 0  # of COLMAP's PosePriorCoordinateSystem

COLUMNS = {
    "cameras": "camera_id, model, width, height, params, prior_focal_length",
    "rigs": "rig_id, ref_sensor_id, ref_sensor_type",
    "images": "image_id, name, camera_id",
    "frames": "frame_id, rig_id",
    "frame_data": "frame_id, data_id, sensor_id, sensor_type",
    "pose_priors": "pose_prior_id, corr_data_id, corr_sensor_id, corr_sensor_type, position, position_covariance, "
    "gravity, coordinate_system",
    "keypoints": "image_id, rows, cols, data",
    "descriptors": "image_id, type, rows, cols, data",
    "matches": "pair_id, rows, cols, data",
    "two_view_geometries": "pair_id, rows, cols, data, config, F, E, H, qvec, tvec",
}
"""COLMAP's tables and their columns, as far as they are read or written here."""

PAIR_TABLES = ("matches", "tiepoint_matches", "two_view_geometries")
FEATURE_TABLES = ("keypoints", "descriptors", "tiepoint_features", "tiepoint_covariances")

OWN_COLUMNS = {
    "tiepoint_cameras": "key, camera_id",
    "tiepoint_features": "image_id, extractor, shape, scores, kind, cols, descriptors",
    "tiepoint_covariances": "image_id, data",
    "tiepoint_matches": "pair_id, scores, overlaps",
    "tiepoint_files": "image_id, kind, bytes, modified, changed, digest",
}

OWN_INDICES = ("tiepoint_matched", "tiepoint_verified")

INSERT = {
    table: f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * len(columns.split(',')))})"
    for table, columns in {**COLUMNS, **OWN_COLUMNS}.items()
}

OWN_TABLES = (
    "CREATE TABLE IF NOT EXISTS tiepoint_cameras (key TEXT PRIMARY KEY NOT NULL, camera_id INTEGER NOT NULL)",
    # shape: which of scales (s) and orientations (o) there are. kind: float16, bits, or colmap (see write_features).
    "CREATE TABLE IF NOT EXISTS tiepoint_features (image_id INTEGER PRIMARY KEY NOT NULL, extractor TEXT NOT NULL, "
    "shape TEXT NOT NULL, scores BLOB NOT NULL, kind TEXT NOT NULL, cols INTEGER NOT NULL, descriptors BLOB, "
    "FOREIGN KEY(image_id) REFERENCES images(image_id) ON DELETE CASCADE)",
    "CREATE TABLE IF NOT EXISTS tiepoint_covariances (image_id INTEGER PRIMARY KEY NOT NULL, data BLOB NOT NULL, "
    "FOREIGN KEY(image_id) REFERENCES images(image_id) ON DELETE CASCADE)",
    "CREATE TABLE IF NOT EXISTS tiepoint_matches (pair_id INTEGER PRIMARY KEY NOT NULL, scores BLOB NOT NULL, "
    "overlaps INTEGER)",
    "CREATE TABLE IF NOT EXISTS tiepoint_files (image_id INTEGER NOT NULL, kind TEXT NOT NULL, bytes INTEGER NOT NULL, "
    "modified INTEGER NOT NULL, changed INTEGER NOT NULL, digest TEXT NOT NULL, PRIMARY KEY(image_id, kind), "
    "FOREIGN KEY(image_id) REFERENCES images(image_id) ON DELETE CASCADE)",
    # Inliers of pairs that are hidden from mappers, until the pair is matched anew.
    "CREATE TABLE IF NOT EXISTS tiepoint_hidden (pair_id INTEGER PRIMARY KEY NOT NULL, rows INTEGER NOT NULL, "
    "data BLOB, config INTEGER NOT NULL, "
    "FOREIGN KEY(pair_id) REFERENCES two_view_geometries(pair_id) ON DELETE CASCADE)",
    # With these, listing all pairs does not read all matches. COLMAP's own counts use them too.
    "CREATE INDEX IF NOT EXISTS tiepoint_matched ON matches(rows)",
    "CREATE INDEX IF NOT EXISTS tiepoint_verified ON two_view_geometries(rows)",
)


FORMER_TABLES = {"tiepoint_lookalikes": "tiepoint_hidden"}
"""Names that tables had in earlier databases."""


def enter_images(
    db: sqlite3.Connection, images: Sequence[NewImage], there: Mapping[str, int] = MappingProxyType({})
) -> dict[str, int]:
    """Enter images with their cameras, rigs, frames and positions; return name -> image id.

    Those that are ``there`` already, by name, keep their id and get the rest anew.
    """
    known = dict(there)
    keys = dict(db.execute("SELECT key, camera_id FROM tiepoint_cameras"))
    sizes = {i: (w, h) for i, w, h in db.execute("SELECT camera_id, width, height FROM cameras")}
    rigs = dict(db.execute("SELECT ref_sensor_id, rig_id FROM rigs WHERE ref_sensor_type = 0"))
    new_image, new_camera, new_rig, new_frame, new_prior = (
        count(1 + (db.execute(f"SELECT max({column}) FROM {table}").fetchone()[0] or 0))
        for table, column in (
            ("images", "image_id"),
            ("cameras", "camera_id"),
            ("rigs", "rig_id"),
            ("frames", "frame_id"),
            ("pose_priors", "pose_prior_id"),
        )
    )
    rows: dict[str, list[tuple[Any, ...]]] = {table: [] for table in INSERT}
    for new in images:
        camera, camera_id = new.camera, keys.get(new.camera_key)
        size = (camera.width, camera.height)
        if camera_id is None:
            camera_id = next(new_camera)
            params = np.asarray(camera.params, np.float64).tobytes()
            prior = int(camera.has_prior_focal_length)
            rows["cameras"].append((camera_id, int(camera.model), *size, params, prior))
            sizes[camera_id] = size
            if new.camera_key is not None:
                keys[new.camera_key] = camera_id
                rows["tiepoint_cameras"].append((new.camera_key, camera_id))
        elif sizes[camera_id] != size:
            raise ArgumentError(
                f"{new.name}: is {size[0]}x{size[1]} pixels, but the camera {new.camera_key!r} that it is to "
                f"share is {sizes[camera_id][0]}x{sizes[camera_id][1]}; give it another key"
            )
        if camera_id not in rigs:  # since COLMAP 4 every camera sits on a rig, if only on its own
            rigs[camera_id] = next(new_rig)
            rows["rigs"].append((rigs[camera_id], camera_id, 0))
        if new.name in there:
            db.execute("UPDATE images SET camera_id = ? WHERE image_id = ?", (camera_id, there[new.name]))
        else:
            known[new.name] = next(new_image)
            rows["images"].append((known[new.name], new.name, camera_id))
        frame_id = next(new_frame)
        rows["frames"].append((frame_id, rigs[camera_id]))
        rows["frame_data"].append((frame_id, known[new.name], camera_id, 0))
        if new.position is not None:
            position, unknown = np.asarray(new.position, np.float64), np.full(12, np.nan)
            blobs = position.tobytes(), unknown[:9].tobytes(), unknown[:3].tobytes()
            rows["pose_priors"].append((next(new_prior), known[new.name], camera_id, 0, *blobs, WGS84))
    for table, values in rows.items():
        db.executemany(INSERT[table], values)
    return known


def replace(
    db: sqlite3.Connection,
    tables: Iterable[str],
    key: str,
    ids: Sequence[tuple[int]],
    rows: Sequence[dict[str, tuple[Any, ...]]] = (),
) -> None:
    """Delete what the tables hold of some ids, the values of the column ``key``; insert rows, each table -> values."""
    for table in tables:
        db.executemany(f"DELETE FROM {table} WHERE {key} = ?", ids)
        db.executemany(INSERT[table], [row[table] for row in rows if table in row])


def delete_pairs_of(db: sqlite3.Connection, image_ids: set[int], tables: Iterable[str] = PAIR_TABLES) -> None:
    """Delete what the tables hold of all pairs of some images."""
    for table in tables if image_ids else ():
        ids = np.fromiter((pair_id for (pair_id,) in db.execute(f"SELECT pair_id FROM {table}")), np.int64)
        stale = ids[np.isin(pairs_of(ids), list(image_ids)).any(axis=1)]
        db.executemany(f"DELETE FROM {table} WHERE pair_id = ?", [(pair_id,) for pair_id in stale.tolist()])


def delete_features_of(db: sqlite3.Connection, image_ids: set[int]) -> None:
    """Delete the features of some images, and their pairs."""
    delete_pairs_of(db, image_ids)
    replace(db, FEATURE_TABLES, "image_id", [(image_id,) for image_id in image_ids])


def delete_frames_of(db: sqlite3.Connection, image_ids: Iterable[int]) -> None:
    """Delete the frames of some images, and where they were taken."""
    ids = [(image_id,) for image_id in image_ids]
    frames = "SELECT frame_id FROM frame_data WHERE data_id = ? AND sensor_type = 0"
    db.executemany(f"DELETE FROM frames WHERE frame_id IN ({frames})", ids)  # frame_data goes along
    db.executemany("DELETE FROM pose_priors WHERE corr_data_id = ? AND corr_sensor_type = 0", ids)


def delete_unused_cameras(db: sqlite3.Connection) -> None:
    """Delete cameras that took no image, unless they are part of a larger rig, and their own rigs."""
    db.execute(
        "DELETE FROM cameras WHERE camera_id NOT IN (SELECT camera_id FROM images) AND camera_id NOT IN "
        "(SELECT sensor_id FROM rig_sensors WHERE sensor_type = 0)"
    )
    deleted = "NOT IN (SELECT camera_id FROM cameras)"
    db.execute(f"DELETE FROM rigs WHERE ref_sensor_type = 0 AND ref_sensor_id {deleted}")
    db.execute(f"DELETE FROM tiepoint_cameras WHERE camera_id {deleted}")
