"""The files that the table from questions to files names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conftest import SLOW

ROOT = Path(__file__).resolve().parents[2]
ROWS = re.findall(
    r"^\| (\d+) \| (.+?) \| (.+?) \|$", (ROOT / "docs" / "where-is-what.md").read_text("utf-8"), re.MULTILINE
)


def test_thirty_questions_have_an_answer() -> None:
    assert len(ROWS) >= 30
    assert [int(number) for number, _, _ in ROWS] == list(range(1, len(ROWS) + 1))
    assert all(question.rstrip().endswith("?") for _, question, _ in ROWS)


@pytest.mark.parametrize(("question", "files"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_files_exist(question: str, files: str) -> None:
    names = re.findall(r"`([^`]+)`", files)
    assert names
    for name in names:
        assert (ROOT / "src" / "tiepoint" / name).is_file(), f"{question} {name}"


def test_slow_files_exist() -> None:
    assert {file.name for file in (ROOT / "tests").rglob("test_*.py")} >= SLOW
