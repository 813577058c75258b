"""Every sample of the documentation is run, every command has its options, every link of the README leads somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import PIL.Image
import pytest
import typer

from textured_room import Room, look
from tiepoint.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = {page.relative_to(ROOT).as_posix(): page.read_text("utf-8") for page in PAGES}
BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
# Their commands are run as well, not only their Python.
WHOLE = ("README.md", "docs/tutorials")
# Run elsewhere: `tests/mapping/test_cluster.py` makes the calls of the cluster's fragments, and
# `tests/training/test_cli_train.py` gives the commands of the training tutorial, in its order, at a size of seconds.
NOT_RUN = {"docs/guide/cluster.md", "docs/tutorials/train.md"}


def blocks(name: str) -> list[tuple[str, str]]:
    """Return (language, code) of every fenced block of a page."""
    found = []
    for indent, language, code in BLOCK.findall(TEXT[name]):
        found.append((language, "\n".join(line[len(indent) :] for line in code.splitlines())))
    return found


def commands(name: str) -> list[str]:
    """Return the lines of a page's blocks that call tiepoint."""
    lines = [line for language, code in blocks(name) if language in ("", "sh") for line in code.splitlines()]
    return [line.split("#")[0].strip() for line in lines if line.startswith("tiepoint ")]


def is_whole(name: str) -> bool:
    return name.startswith(WHOLE)


@pytest.fixture(scope="module")
def inputs(small_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the samples speak of: few and small, since it is the samples that are tested."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "photos").mkdir()
    images = small_pairs / "viewpoint" / "images"
    named = {"a": images / "ruins.webp", "b": images / "ruins-viewpoint.webp", "c": images / "paris.webp"}
    named |= {"product": images / "ruins.webp", "shelf": images / "ruins-viewpoint.webp"}
    views = sorted((small_pairs / "views").iterdir())[:5]
    named |= {f"photos/{view.stem}": view for view in views} | {"query": views[3]}
    for name, source in named.items():
        image = PIL.Image.open(source)
        image.thumbnail((400, 400) if name.startswith(("photos", "query")) else (256, 256))
        image.save(folder / f"{name}.jpg", quality=95)
    PIL.Image.new("L", PIL.Image.open(folder / "a.jpg").size, 255).save(folder / "mask.png")
    bundled = ROOT / "src" / "tiepoint" / "weights" / "bundled" / "sift-lightglue.safetensors"
    shutil.copy(bundled, folder / "mine.safetensors")  # as if it had been trained here
    room = Room()
    video = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (240, 180))
    for i in range(8):
        frame = room.photograph(look((-1.0 + 0.16 * i, 0.1 * np.sin(i / 2), 0.0), yaw=0.02 * i))
        video.write(np.ascontiguousarray(frame[30:210, 40:280, ::-1]))
    video.release()
    return folder


@pytest.fixture(scope="module")
def scene(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map of the photographs, for the pages that go on from one."""
    from tiepoint.cli import main

    output = tmp_path_factory.mktemp("map") / "scene"
    options = ["--features", "sift", "--matcher", "nearest", "--focal", "300", "--workers", "0"]
    assert main(["map", str(inputs / "photos"), "-o", str(output), *options]) == 0
    return output


@pytest.fixture(scope="module")
def mapped() -> dict[str, Path]:
    """Commands that made a map, and a copy of the map: a command that stands on two pages is run once."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in TEXT if n not in NOT_RUN and (is_whole(n) or "```python" in TEXT[n])])
def test_samples_run(
    name: str,
    inputs: Path,
    mapped: dict[str, Path],
    tiepoint: Any,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    pytest.importorskip("pycolmap")
    folder = tmp_path / "work"
    shutil.copytree(inputs, folder)
    monkeypatch.chdir(folder)
    text = TEXT[name]
    makes_a_map = (is_whole(name) and "-o scene" in text) or "mkdir(exist_ok=True)" in text
    if "scene" in text and not makes_a_map:
        shutil.copytree(request.getfixturevalue("scene"), folder / "scene")
    names: dict[str, Any] = {"__name__": "__main__"}
    for language, code in blocks(name):
        if language == "python":
            exec(compile(code, name, "exec"), names)  # noqa: S102  the documentation's own code
        elif language in ("", "sh") and is_whole(name):
            for line in code.splitlines():
                line = line.split("#")[0].strip()
                if line in mapped:
                    shutil.copytree(mapped[line], folder / "scene")
                elif line.startswith("tiepoint "):
                    small = line.replace("--data tests/data", f"--data {shlex.quote(str(ROOT / 'tests' / 'data'))}")
                    small = small.replace("--limit 4", "--limit 1")
                    ran = tiepoint(*shlex.split(small)[1:])
                    assert ran.code == 0, f"{line}: {ran.err}"
                    if line.startswith("tiepoint map ") and line.endswith(" -o scene"):
                        mapped[line] = shutil.copytree(folder / "scene", tmp_path_factory.mktemp("mapped") / "scene")


def find_command(words: list[str]) -> tuple[click.Command, list[str]]:
    """Follow the names of commands and sub-commands; return the last one and the words behind it."""
    command: Any = typer.main.get_command(app)
    words = words[1:]
    while words and hasattr(command, "commands") and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("name", [n for n in TEXT if commands(n)])
def test_commands_have_their_options(name: str) -> None:
    for line in commands(name):
        command, words = find_command(shlex.split(line.replace("[", "").replace("]", "")))
        assert not hasattr(command, "commands"), f"{line}: no such command"
        known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
        for word in words:
            if re.match(r"--?[a-z]", word):
                assert word.split("=")[0] in known, f"{line}: {word}"


@pytest.mark.parametrize("name", TEXT)
def test_inline_options_exist(name: str) -> None:
    """An option in running text is one of some command; or of the programs beside it."""
    pip, torchrun, ray = {"--index-url", "--no-deps"}, {"--nproc-per-node"}, {"--head", "--port", "--address"}
    shell, podman = {"--parents", "--random-source"}, {"--network", "--rm", "--target", "--user", "--userns"}
    podman |= {"--build-arg", "--isolation", "--variant"}  # the last is debootstrap's
    known = pip | torchrun | ray | shell | podman | {"--build"} | benchmark_options()  # cmake's
    todo: list[Any] = [typer.main.get_command(app)]
    while todo:
        command = todo.pop()
        todo += getattr(command, "commands", {}).values()
        known |= {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
    text = re.sub(r"\]\([^)]*\)", "]", TEXT[name])  # not in addresses
    unknown = {option for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)} - known
    assert not unknown


def benchmark_options() -> set[str]:
    """Options of the commands in benchmarks/, by their source."""
    found: set[str] = set()
    for file in (ROOT / "benchmarks").glob("*.py"):
        text = file.read_text("utf-8")
        found |= set(re.findall(r"--[a-z][a-z0-9-]+", text))
        found |= {"--" + name.replace("_", "-") for name in re.findall(r"^ +(\w+): Annotated", text, re.MULTILINE)}
    return found


def test_scripts_and_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for name, text in TEXT.items():
        for script in re.findall(r"python (benchmarks/\w+\.py|tests/\S+\.py)", text):
            assert (ROOT / script).is_file(), f"{name}: {script}"
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{name}: make {target}"


def test_readme_is_short_and_its_links_lead_somewhere() -> None:
    readme = TEXT["README.md"]
    assert len(readme.splitlines()) <= 120
    links = re.findall(r"\]\(([^)]+)\)", readme)
    assert len(links) > 10
    for link in links:
        assert link.startswith("https://") or (ROOT / link.partition("#")[0]).exists(), link


def test_pictures_name_their_source() -> None:
    listed = (ROOT / "docs" / "assets" / "README.md").read_text("utf-8")
    for picture in (ROOT / "docs" / "assets").iterdir():
        assert picture.name == "README.md" or f"`{picture.name}`" in listed, picture.name
