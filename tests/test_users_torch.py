"""torch's global settings are the user's: results do not depend on them, and they are left as they were."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import tiepoint as tp
from tiepoint.devices import plain_torch
from tiepoint.mapping import Store
from tiepoint.mapping.steps.images import camera_of
from tiepoint.mapping.store import NewImage

SETTINGS = ("bfloat16", "float64", "float16", "meta", "autocast", "inference", "no grad")


@contextmanager
def changed(setting: str) -> Iterator[None]:
    """Do to torch what users do."""
    dtype = torch.get_default_dtype()
    try:
        if setting in ("bfloat16", "float64", "float16"):
            torch.set_default_dtype(getattr(torch, setting))
            yield
        elif setting == "meta":
            torch.set_default_device("meta")
            yield
        elif setting == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                yield
        elif setting == "inference":
            with torch.inference_mode():
                yield
        else:
            with torch.no_grad():
                yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_default_device(None)


def settings_now() -> tuple[object, ...]:
    return torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu")


def pair(texture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return texture, np.ascontiguousarray(texture[10:, 20:])


def everything(result: tp.TwoView) -> list[np.ndarray]:
    arrays = [result.points0, result.points1, result.scores, result.matches.indices]
    for features in (result.features0, result.features1):
        for name in ("keypoints", "scores", "descriptors", "scales", "orientations", "covariances"):
            value = getattr(features, name)
            if value is not None:
                assert value.device.type == "cpu"
                arrays.append(value.numpy())
    return arrays


COMBINATIONS = [("auto", "auto"), ("sift", "nearest"), ("sift", "lightglue"), ("orb", "nearest"), ("hog", "nearest")]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(("features", "matcher"), COMBINATIONS)
def test_the_result_is_the_same_whatever_the_user_has_set(
    texture: np.ndarray, features: str, matcher: str, setting: str
) -> None:
    expected = everything(tp.match(*pair(texture), features, matcher, max_keypoints=200, geometry="homography"))
    with changed(setting):
        before = settings_now()
        found = everything(tp.match(*pair(texture), features, matcher, max_keypoints=200, geometry="homography"))
        assert settings_now() == before
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("features", "matcher"), COMBINATIONS)
def test_the_users_random_numbers_stay_where_they_are(texture: np.ndarray, features: str, matcher: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    tp.match(*pair(texture), features, matcher, max_keypoints=50)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_store_gives_back_the_same_features(texture: np.ndarray, tmp_path: Path, setting: str) -> None:
    features = tp.features.load("cairn", max_keypoints=100)(texture)
    with Store.open(tmp_path / "database.db") as store:
        ids = store.add_images([NewImage("a.png", camera_of(tp.read_image(texture)))])
        store.write_features([(ids["a.png"], features)])
        expected = store.features(ids["a.png"])
        with changed(setting):
            store.write_features([(ids["a.png"], features)])
            found = store.features(ids["a.png"])
    for name in ("keypoints", "scores", "descriptors", "covariances"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_threads_share_the_default_dtype() -> None:
    """The last to leave sets it back, and nobody computes with the user's before that."""
    torch.set_default_dtype(torch.float64)
    try:

        def work(_: int) -> bool:
            good = True
            for _ in range(200):
                with plain_torch():
                    good &= torch.ones(1).dtype == torch.float32
            return good

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(4)))
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


SCRIPT = """
import sys, torch
torch.set_default_dtype(torch.bfloat16)
torch.set_default_device("meta")
import numpy as np, tiepoint as tp
texture = np.load(sys.argv[1])
np.save(sys.argv[2], tp.match(texture, texture[10:, 20:], max_keypoints=200).points1)
"""


def test_settings_made_before_the_import_change_nothing(texture: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "texture.npy", texture)
    words = [sys.executable, "-c", SCRIPT, str(tmp_path / "texture.npy"), str(tmp_path / "points.npy")]
    subprocess.run(words, check=True, timeout=60)
    expected = tp.match(texture, texture[10:, 20:], max_keypoints=200).points1
    np.testing.assert_allclose(np.load(tmp_path / "points.npy"), expected, atol=1e-3)
