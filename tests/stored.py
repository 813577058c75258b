"""Databases of made-up scenes, and what a test wants to know of a database."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tiepoint import Features
from tiepoint.mapping.store import NewImage, Store, pairs_of

pycolmap = pytest.importorskip("pycolmap")

SIZE = (640, 480)
FOCAL = 500.0


def pose(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the world-to-camera pose of image n: a few steps aside, turned back towards the scene."""
    angle = 0.03 * n
    R = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    return R, -R @ np.array([0.12 * n, 0.02 * n, 0])


def scene(path: Path, count: int = 7, points: int = 120) -> Path:
    """Make a database of pictures of one scene; its descriptors tell the points of the world apart."""
    rng = np.random.default_rng(3)
    world = rng.uniform([-1, -1, 3], [1.5, 1, 5], (points, 3))
    names = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(points, 32)).astype(np.float32)))
    camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=640, height=480, params=[FOCAL, 320, 240])
    camera.has_prior_focal_length = True
    with Store.open(path) as store:
        ids = store.add_images([NewImage(f"{n:03}.jpg", camera, "shared") for n in range(count)])
        store.write_features((ids[f"{n:03}.jpg"], picture(n, world, names, rng)) for n in range(count))
    return path


def picture(n: int, world: np.ndarray, names: torch.Tensor, rng: np.random.Generator) -> Features:
    R, t = pose(n)
    seen = world @ R.T + t
    pixels = seen[:, :2] / seen[:, 2:] * FOCAL + [319.5, 239.5] + rng.normal(0, 0.3, (len(world), 2))
    order = rng.permutation(len(world))
    pixels[order[:20]] = rng.uniform(0, 480, (20, 2))  # the same look at another place: matches that are wrong
    return Features(
        torch.from_numpy(pixels[order].astype(np.float32)), torch.ones(len(order)), names[order], SIZE, "synthetic"
    )


def every_pair(store: Store) -> np.ndarray:
    ids = np.array([image.image_id for image in store.images()])
    i, j = np.triu_indices(len(ids), 1)
    return np.stack([ids[i], ids[j]], axis=1)


def contents(path: Path) -> dict[str, list[Any]]:
    """Return all rows of all tables."""
    with closing(sqlite3.connect(path)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: sorted(db.execute(f"SELECT * FROM {table}"), key=repr) for table in tables}


def matched_pairs(store: Store) -> set[tuple[int, int]]:
    """Return all pairs (smaller id, larger id) that were matched."""
    return set(map(tuple, pairs_of(store.matched_pair_ids()).tolist()))


def registered(path: Path, names: tuple[str, ...]) -> Store:
    camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=320, height=240, params=[300, 160, 120])
    store = Store.open(path)
    store.add_images([NewImage(name, camera, "shared") for name in names])
    return store
