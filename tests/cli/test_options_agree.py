"""Every option of a verb is an argument of its function in Python, with the same name and default; and nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_args

import click
import pytest
import typer.main

import tiepoint as tp
from tiepoint import cli, effort, exporting, two_view
from tiepoint.cli import export as export_verb
from tiepoint.cli import map as map_verb
from tiepoint.cli import match as match_verb
from tiepoint.mapping import quality
from tiepoint.mapping.steps import images, reconstruct

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "extract": tp.extract,
    "match": tp.match,
    "map": tp.map,
    "localize": tp.localize,
    "track": tp.track,
    "calibrate": tp.calibrate,
    "evaluate": tp.evaluate,
    "bench": tp.evaluation.bench,
    "export": tp.export,
    "train matcher": tp.training.MatcherSettings,  # what tiepoint.train takes
    "train features": tp.training.FeatureSettings,
    "train superpoint": tp.training.SuperPointSettings,
}

# Options without an argument, and why.
EVERYWHERE = {"json": "how the verb prints", "help": "typer's own"}
EXCEPTIONS = {
    ("match", "output"): "TwoView.save writes files",
    ("match", "pairs"): "a function of its own, tiepoint.match_pairs",
    ("match", "picture"): "an argument of TwoView.save",
    ("match", "overwrite"): "an argument of TwoView.save",
    ("train matcher", "dry_run"): "a function of its own, tiepoint.training.runs.matcher.dry_run",
    ("train features", "dry_run"): "a function of its own, tiepoint.training.runs.features.dry_run",
}
# Options whose default is another, or which are required only on the command line, and why.
DEFAULTS = {
    ("match", "image0"): "left out with --pairs",
    ("match", "image1"): "left out with --pairs",
    ("extract", "output"): "Python returns the features; a process has to write them somewhere",
    ("track", "output"): "Python returns the path; a process has to write it somewhere",
    ("train matcher", "pairs"): "auto, a word, is None",
}


def verbs() -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in typer.main.get_command(cli.app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found.update({name: command} if inner is None else {f"{name} {verb}": one for verb, one in inner.items()})
    return found


def plain(default: Any) -> Any:
    """Treat the empty lists of the command line, its paths and Python's empty tuples as equal."""
    if callable(default):
        default = default()
    if isinstance(default, (list, tuple)):
        return list(default)
    return default


CASES = [(verb, option) for verb in FUNCTIONS for option in verbs()[verb].params if option.name not in EVERYWHERE]


@pytest.mark.parametrize(("verb", "option"), CASES, ids=[f"{verb}-{option.name}" for verb, option in CASES])
def test_an_option_is_an_argument_of_the_same_name_and_default(verb: str, option: click.Parameter) -> None:
    if (verb, option.name) in EXCEPTIONS:
        assert option.name not in inspect.signature(FUNCTIONS[verb]).parameters, "it needs no exception any more"
        return
    longest = max(option.opts, key=len)
    if isinstance(option, click.Option):
        assert longest == f"--{option.name}".replace("_", "-"), "a name on the command line, another in Python"
    arguments = inspect.signature(FUNCTIONS[verb]).parameters
    assert option.name in arguments, f"tiepoint {verb} has {longest}, its function has no {option.name}"
    argument = arguments[option.name]
    if (verb, option.name) in DEFAULTS:
        open_in_python = argument.default in (None, inspect.Parameter.empty)
        assert (open_in_python and option.default != argument.default) or option.required
    elif option.required:
        assert argument.default is inspect.Parameter.empty
    else:
        none = [] if option.multiple or option.nargs == -1 else None
        given = none if option.default is None else plain(option.default)
        wanted = none if argument.default is None else plain(argument.default)
        assert given == wanted


def test_the_verbs_hand_their_options_on() -> None:
    """A default that the verb's own signature repeats is the one that typer shows."""
    for verb, command in verbs().items():
        if verb in FUNCTIONS:
            assert command.callback is not None
            own = set(inspect.signature(command.callback).parameters) - {"context"}  # typer's
            assert own == {one.name for one in command.params} - {"help"}


def test_choices_are_those_of_the_library() -> None:
    assert get_args(match_verb.Effort) == get_args(effort.Effort)
    assert get_args(match_verb.Geometry) == get_args(two_view.Geometry)
    assert get_args(match_verb.Picture) == get_args(two_view.Picture)
    assert get_args(map_verb.Quality) == quality.QUALITIES == tuple(quality.PRESETS)
    assert get_args(map_verb.Mapper) == get_args(reconstruct.Mapper)
    assert get_args(map_verb.Share) == get_args(images.Share)
    assert get_args(export_verb.Runtime) == get_args(exporting.Runtime)
    assert get_args(export_verb.Precision) == get_args(exporting.Precision)


def test_the_face_shows_what_is_public_and_all_of_it_is_there() -> None:
    shown = dir(tp)
    assert not {"Any", "annotations", "import_module", "TYPE_CHECKING"} & set(shown)
    assert all(getattr(tp, name) is not None for name in shown)
    for name in ("extract", "match", "map", "localize", "track", "train", "calibrate", "evaluate", "export"):
        assert name in shown and inspect.getdoc(getattr(tp, name))


@pytest.mark.parametrize("verb", FUNCTIONS)
def test_arguments_are_documented(verb: str) -> None:
    function = FUNCTIONS[verb]
    text = inspect.getdoc(function) or ""
    if inspect.isclass(function):
        text = "\n".join(inspect.getdoc(one) or "" for one in function.__mro__)
    else:
        text = text[text.index("Parameters\n---") : text.index("Returns\n---")]
    for name in inspect.signature(function).parameters:
        assert name in text.replace(",", " ").replace(":", " ").split(), f"{verb}: {name} is not documented"


def test_devices_have_one_default() -> None:
    for verb, function in FUNCTIONS.items():
        if verb == "export":  # needs no device
            continue
        assert inspect.signature(function).parameters["device"].default == "auto", verb
