"""The example extractor, found through an entry point as an installed package declares it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import tiepoint as tp

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_extractor.py"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay the example out as pip would, with the entry point that its own docstring shows."""
    source = EXAMPLE.read_text(encoding="utf-8")
    group, line = re.search(r'entry-points\."(.+?)"\]\n\s+(patches = ".+?")', source).groups()
    (tmp_path / "own_extractor.py").write_text(source, encoding="utf-8")
    info = tmp_path / "own_extractor-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-extractor\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{line.replace(chr(34), '')}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_extractor", raising=False)
    yield
    sys.modules.pop("own_extractor", None)


@pytest.mark.usefixtures("installed")
def test_the_example_is_found_by_name_and_matches(texture: NDArray[np.uint8]) -> None:
    assert "patches" in tp.features.names()
    extractor = tp.features.load("patches", max_keypoints=400)
    h = np.array([[1.02, 0.03, 4.0], [-0.03, 1.01, -6.0], [0.0, 2e-5, 1.0]])
    view = cv2.warpPerspective(texture, h, texture.shape[1::-1])
    found = tp.matchers.load("nearest", features="patches", ratio=0.9)(extractor(texture), extractor(view))
    error = np.linalg.norm(cv2.perspectiveTransform(found.points0[None].astype(float), h)[0] - found.points1, axis=1)
    assert len(found) > 50
    assert (error < 3).mean() > 0.9


@pytest.mark.usefixtures("installed")
def test_the_example_obeys_the_common_controls(texture: NDArray[np.uint8]) -> None:
    mask = np.zeros(texture.shape[:2], np.uint8)
    mask[:, :160] = 255
    found = tp.features.load("patches", max_keypoints=20, nms_radius=5)(texture, mask)
    assert len(found) == 20 and (found.keypoints[:, 0] < 160).all()
    assert len(tp.features.load("patches")(np.zeros((40, 40), np.uint8))) == 0
    assert len(tp.features.load("patches")(np.zeros((1, 1), np.uint8))) == 0


def test_without_the_package_the_name_is_unknown() -> None:
    with pytest.raises(tp.errors.ArgumentError, match="patches"):
        tp.features.load("patches")
