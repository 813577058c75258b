"""Modules import downwards only: the order of layers, no circle, and files of a readable length."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import tiepoint

PACKAGE = Path(tiepoint.__file__).parent

# From the bottom to the top; a module imports its own layer and those before it, nothing after it.
LAYERS = (
    ("_version", "errors", "names"),
    ("types", "devices"),
    ("geometry",),
    ("io",),
    ("runtimes",),
    ("viz",),
    ("weights",),
    ("features",),
    ("matchers",),
    ("exporting",),
    ("pipeline",),
    ("effort", "extraction", "groups"),
    ("two_view",),
    ("training",),
    ("calibration",),
    ("evaluation",),
    ("mapping",),
    ("serve",),
    ("cli",),
    ("__main__",),
)
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}

# Files above 500 lines, and why they stay whole.
LONG: dict[str, str] = {}


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(module: str, everywhere: bool) -> Iterator[str]:
    """Yield the modules of tiepoint that a module imports: at its top, or everywhere in it; not for types alone."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for statement in statements(ast.parse(path.read_text("utf-8")), everywhere):
        if isinstance(statement, ast.Import):
            yield from (name.name for name in statement.names if name.name.split(".")[0] == "tiepoint")
        elif statement.level:
            base = package.rsplit(".", statement.level - 1)[0] if statement.level > 1 else package
            origin = f"{base}.{statement.module}" if statement.module else base
            for name in statement.names:
                inner = f"{origin}.{name.name}"
                yield inner if inner in MODULES else origin
        elif (statement.module or "").split(".")[0] == "tiepoint":
            yield str(statement.module)


def statements(tree: ast.AST, everywhere: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (one for part in node.orelse for one in statements(part, everywhere))
        elif everywhere or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from statements(node, everywhere)


def layer(module: str) -> int:
    return HEIGHT[module.split(".")[1]]


def test_every_module_has_its_layer() -> None:
    assert {name.split(".")[1] for name in MODULES if "." in name} <= HEIGHT.keys()


@pytest.mark.parametrize("module", [name for name in MODULES if "." in name])
def test_no_module_imports_upwards(module: str) -> None:
    """Neither at the top nor inside functions; the package itself, `tiepoint`, is above everything."""
    for imported in imports(module, everywhere=True):
        assert "." in imported, f"{module} imports tiepoint itself"
        assert layer(imported) <= layer(module), f"{module} imports {imported}, which is above it"


def test_no_circle_at_module_level() -> None:
    graph = {
        module: {one for one in imports(module, everywhere=False) if one != module and not module.startswith(f"{one}.")}
        for module in MODULES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("imports run in a circle: " + " -> ".join(error.args[1]))


def test_the_walk_sees_imports() -> None:
    """Else the tests above would pass on anything."""
    assert "tiepoint.types" in set(imports("tiepoint.matchers.base", everywhere=False))
    assert "tiepoint.viz" in set(imports("tiepoint.two_view", everywhere=True))
    assert "tiepoint.viz" not in set(imports("tiepoint.two_view", everywhere=False))
    assert "tiepoint.geometry.camera" in set(imports("tiepoint.mapping.online.trajectory", everywhere=False))


@pytest.mark.parametrize("module", MODULES)
def test_a_file_is_read_in_one_sitting(module: str) -> None:
    path = MODULES[module]
    lines = len(path.read_text("utf-8").splitlines())
    name = path.relative_to(PACKAGE).as_posix()
    assert lines <= 500 or name in LONG, f"{name} has {lines} lines: split it, or say in LONG why it stays whole"
