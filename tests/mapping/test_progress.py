"""How far a map is: bars on a terminal and in a notebook, a line a minute elsewhere."""

from __future__ import annotations

import re
import time

import nbclient
import nbformat
import pytest

import tiepoint as tp
from tiepoint.mapping import progress
from tiepoint.mapping.progress import Progress


def test_a_silent_step_is_named_again_each_minute(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The clock is turned by hand; the thread that looks at it does so each second."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Minutely() as lines:
        lines.say("mapping: 3 of 9", begins=True)
        for now[0], line in ((59.0, ""), (61.0, "mapping: 3 of 9, 1 min so far\n"), (120.0, "")):
            time.sleep(1.2)
            assert capfd.readouterr().err == line
        now[0] = 200.0
        lines.say("mapping: 7 of 9")  # news, at once as a minute is over
        assert capfd.readouterr().err == "mapping: 7 of 9\n"
    now[0] = 1000.0
    time.sleep(1.2)
    assert capfd.readouterr().err == ""


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # for rich
    with tp.progress_bars() as report:
        report(Progress("matching", 1, 40, early_exits=0.25))
        report(Progress("matching", 40, 40, early_exits=0.5, note="[b]a.jpg: left out"))
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capfd.readouterr().err)
    assert "tiepoint: [b]a.jpg: left out" in shown
    assert re.search(r"matching .*40/40 .*50% stopped early", shown)


def test_bars_in_a_notebook() -> None:
    """One picture of all bars, which changes while the cell runs; notes below it."""
    cell = """
import time
import tiepoint as tp
from tiepoint.mapping.progress import Progress
with tp.progress_bars() as report:
    for done in range(31):
        report(Progress("matching", done, 30))
        time.sleep(0.02)
    report(Progress("mapping", 2, 9, note="a.jpg: left out"))
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    nbclient.NotebookClient(notebook, timeout=120).execute()
    bars, note = notebook.cells[0].outputs
    text = bars["data"]["text/plain"]
    assert [line.split()[0] for line in text.splitlines()] == ["matching", "mapping"]
    assert "30/30" in text and "2/9" in text
    assert "30/30" in bars["data"]["text/html"]
    assert "tiepoint: a.jpg: left out" in note["data"]["text/plain"]
