"""The bundled weights, exported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import tiepoint as tp
from tiepoint.exporting import write


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The bundled weights for both runtimes and in less precision: traced once for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    if base.name.startswith("popen-"):
        base = base.parent
    traced: dict[str, Any] = {}

    def trace_once(graph: write.Graph) -> Any:
        name = type(graph.module).__name__
        if name not in traced:
            traced[name] = original(graph)
        return traced[name]

    original = write._trace
    kinds: dict[str, tuple[write.Runtime, write.Precision]] = {
        "onnx": ("onnx", "float32"),
        "openvino": ("openvino", "float32"),
        "bfloat16": ("openvino", "bfloat16"),
    }
    found = {name: base / f"exported-{name}" for name in kinds}
    with FileLock(base / "exported.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "_trace", trace_once)
        for name, (runtime, precision) in kinds.items():
            if not found[name].exists():
                tp.export("cairn+lightglue", found[name], runtime, precision=precision)
    yield found
