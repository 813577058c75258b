"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real photographs with ground truth, which lies beside the repository on our machines."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the evaluation photographs are not on this machine (looked in {folder})")
    return folder


@pytest.fixture(scope="session")
def cases_dir() -> Path:
    """Folder of small inputs that went wrong once; its README says what is right. It lies beside the photographs."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "cases"
    if not folder.is_dir():
        pytest.skip(f"the cases are not on this machine (looked in {folder})")
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Same thread count everywhere: floating-point sums then come out the same in every run."""
    torch.set_num_threads(1)


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded random numbers."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def texture() -> NDArray[np.uint8]:
    """A made-up RGB picture (240, 320, 3) with corners and blobs at many scales, the same in every run."""
    rng = np.random.default_rng(7)
    picture = np.full((240, 320, 3), 110.0)
    y, x = np.mgrid[:240, :320]
    for _ in range(160):
        cx, cy, size = rng.uniform(0, 320), rng.uniform(0, 240), rng.uniform(3, 26)
        shape = (
            np.hypot(x - cx, y - cy) < size
            if rng.random() < 0.5
            else (abs(x - cx) < size) & (abs(y - cy) < size * rng.uniform(0.4, 1))
        )
        picture[shape] = picture[shape] * 0.4 + rng.uniform(0, 255, 3) * 0.6
    return np.clip(picture + rng.normal(0, 2, picture.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, texture: NDArray[np.uint8]) -> Path:
    """A folder of ten photographs to train on: the texture, shifted, in other colours."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(3)
    for i in range(10):
        mixed = np.clip(np.roll(texture, rng.integers(0, 240, 2), (0, 1)) @ rng.dirichlet([1, 1, 1], 3).T, 0, 255)
        PIL.Image.fromarray(mixed.astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, driven by playwright, without access to any network but this machine."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    flags = ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    flags += ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    flags += ["--disable-sync", "--disable-gpu", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"]
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=flags)  # with a new profile
        yield chromium
        chromium.close()


class Ran:
    """Exit code, stdout and stderr of one run."""

    def __init__(self, code: int, captured: pytest.CaptureResult[str]) -> None:
        self.code, self.out, self.err = code, captured.out, captured.err


@pytest.fixture
def tiepoint(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command line in this process."""

    from tiepoint.cli import main

    def run(*argv: object) -> Ran:
        capsys.readouterr()
        code = main([str(arg) for arg in argv])
        return Ran(code, capsys.readouterr())

    return run
