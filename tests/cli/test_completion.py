"""What the shell offers after Tab."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest

from tiepoint import cli, effort, features, matchers, weights
from tiepoint.cli import completion

# Arguments that are words, and of which nobody knows a list.
FREE = {
    "align": "gps, or a file",
    "camera": "a model of COLMAP with its numbers, or a file",
    "camera_model": "COLMAP's",
    "device": "what torch has on this machine",
    "host": "an address",
    "name": "of a host",
    "pairs": "auto, a number, or a file",
    "ray": "an address",
    "scale": "names and numbers",
    "source": "a file, a folder, or the number of a camera",
    "token": "a secret",
}


def words() -> Iterator[tuple[str, str, Callable[[str], list[str]] | None]]:
    """Yield verb, argument and completion of every argument that takes words."""
    groups = [("", cli.app), *((f"{group.name} ", group.typer_instance) for group in cli.app.registered_groups)]
    for group, app in groups:
        for command in app.registered_commands:
            assert command.callback is not None
            for name, hint in get_type_hints(command.callback, include_extras=True).items():
                if get_origin(hint) is not Annotated:
                    continue
                plain, info = get_args(hint)[:2]
                if get_origin(plain) in (Union, types.UnionType, list):
                    plain = next(one for one in get_args(plain) if one is not type(None))
                if get_origin(plain) is list:
                    (plain,) = get_args(plain)
                if plain is str or info.autocompletion is not None:
                    yield f"{group}{command.name}", name, info.autocompletion


def test_every_word_is_completed_or_free() -> None:
    missing = {(verb, name) for verb, name, complete in words() if complete is None and name not in FREE}
    assert missing == set()
    assert {name for _, name, complete in words() if complete is None} == set(FREE), "no longer free"


def test_what_is_offered_is_known() -> None:
    """Each option, asked with nothing typed, offers names that the library takes, by what the option is called."""
    kinds: dict[str, set[str]] = {
        "features": set(features.names()),
        "extractor": set(features.names()),
        "teacher": set(features.names()),
        "matcher": set(matchers.names()),
        "names": set(weights.entries()),
        "start": {name for name, one in weights.entries().items() if one.kind == "lightglue"},
        "effort": set(get_args(effort.Effort)),
        "combinations": set(features.names()) | {"auto"},
    }
    kinds |= {"target": kinds["start"], "model": kinds["combinations"]}
    other = {("train features", "matcher"): kinds["start"], ("train features", "start"): {"cairn"}}
    for verb, name, complete in words():
        if complete is None or complete is completion.sets:
            continue
        wanted = other.get((verb, name)) or kinds[name]
        auto = {"auto"} if not verb.startswith(("train", "calibrate", "db", "weights")) else set()
        assert set(complete("")) - auto == wanted - auto, (verb, name)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("evaluate --data {} --sets ", {"castle"}),
        ("evaluate orb+ne", {"orb+nearest"}),
        ("bench --device cpu orb+s", {"orb+superglue"}),
        ("match -f superp", {"superpoint", "superpoint-open"}),
        ("map photos -f cairn+s", {"cairn+sift", "cairn+superpoint", "cairn+superpoint-open", "cairn+surf"}),
        ("match a b -m l", {"lightglue"}),
        ("localize a.jpg --model out -m ", {"auto", "lightglue", "nearest", "superglue"}),
        ("train matcher -f c", {"cairn"}),
        ("weights pull superg", {"superglue-indoor", "superglue-outdoor"}),
        ("map photos --quality ", {"fast", "balanced", "dense"}),
    ],
)
def test_the_shell_completes_names_without_loading_torch(line: str, expected: set[str], tmp_path: Path) -> None:
    """As the scripts of ``tiepoint --install-completion`` ask: the words so far, and which is being typed."""
    (tmp_path / "castle").mkdir()
    (tmp_path / "castle/pairs.json").write_text("{}")
    line = line.format(tmp_path)
    asked: dict[str, Any] = {
        "COMP_WORDS": f"tiepoint {line}",
        "COMP_CWORD": str(len(line.split(" "))),
        "_TIEPOINT_COMPLETE": "complete_bash",
    }
    code = "import sys; from tiepoint.cli import main; main([]); print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **asked})
    *offered, torch_is_loaded = ran.stdout.split()
    assert (set(offered), torch_is_loaded) == (expected, "False"), ran.stderr
