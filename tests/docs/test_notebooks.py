"""The notebooks of examples/ run from the first cell to the last; their own asserts check the results."""

from __future__ import annotations

from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize("notebook", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    if notebook.stem == "map":
        pytest.importorskip("pycolmap")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    read = nbformat.read(notebook, as_version=4)
    assert not any(cell.get("outputs") for cell in read.cells), "outputs are not committed"
    nbclient.NotebookClient(read, timeout=300, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
