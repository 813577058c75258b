"""Sheets of many small pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tiepoint.errors import ArgumentError
from tiepoint.viz.sheet import MOST, contact_sheet


def test_every_picture_is_on_the_sheet(tmp_path: Path) -> None:
    colours = [(40 * n, 255 - 40 * n, 128) for n in range(6)]
    pictures = [(f"frame {n}", np.full((240, 320, 3), colour, np.uint8)) for n, colour in enumerate(colours)]
    contact_sheet(pictures, tmp_path / "sheet.png")
    pixels = np.asarray(PIL.Image.open(tmp_path / "sheet.png")).astype(int)
    for colour in colours:
        rows, columns = np.nonzero((pixels == colour).all(axis=2))
        assert len(rows) == 160 * 120 and np.ptp(rows) == 119 and np.ptp(columns) == 159
        below = pixels[rows.max() + 1 : rows.max() + 14, columns.min() : columns.max()]
        assert below.max() > 180  # its name


def test_more_than_fit_are_told(tmp_path: Path) -> None:
    picture = np.full((4, 4, 3), 200, np.uint8)
    few, many = (contact_sheet([("", picture)] * count) for count in (MOST, 3 * MOST))
    assert many.height == few.height + 14 and np.asarray(many)[-14:].max() > 180
    with pytest.raises(ArgumentError, match="must end in"):
        contact_sheet([], tmp_path / "sheet.pdf")
