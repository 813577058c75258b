"""Notes that say what a folder holds, so that nothing made for something else is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...io.files import make_folder, read_json, write_json


def claim(note: Path, mine: dict[str, Any], what: str) -> dict[str, Any]:
    """Write what a folder will hold into ``note``, or check that it holds this.

    Parameters
    ----------
    note : Path
        A JSON file in the folder, which is made if need be.
    mine : dict
        What has to be equal.
    what : str
        What the folder holds, for the message: ``"answers of another teacher"``.

    Returns
    -------
    dict
        What the note says.

    Raises
    ------
    InputError
        The folder holds something else; the message names what differs.

    Examples
    --------
    >>> import tempfile
    >>> note = Path(tempfile.mkdtemp(), "pairs.json")
    >>> claim(note, {"seed": 1, "size": (2, 3)}, "other pairs")
    {'seed': 1, 'size': [2, 3]}
    >>> claim(note, {"seed": 2, "size": (2, 3)}, "other pairs")
    Traceback (most recent call last):
    tiepoint.errors.InputError: ... holds other pairs: seed is 1 there and 2 here. Give another folder, or delete it
    """
    here = json.loads(json.dumps(mine))
    if note.exists():
        there = read_json(note)
        if differing := differences({name: there.get(name) for name in here}, here):
            raise InputError(f"{note.parent} holds {what}: {differing}. Give another folder, or delete it")
        return there
    make_folder(note.parent)
    write_json(note, here)
    return here


def differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Say how two configurations differ, at most eight names; an empty text if they are equal.

    Examples
    --------
    >>> differences({"seed": 1, "fit": {"steps": 5}}, {"seed": 1, "fit": {"steps": 7}})
    'fit.steps is 5 there and 7 here'
    """
    there, here = _flat(there), _flat(here)
    names = [name for name in sorted({*there, *here}) if there.get(name) != here.get(name)]
    return "; ".join(f"{name} is {there.get(name)} there and {here.get(name)} here" for name in names[:8])


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``{"fit.steps": 1000, …}`` of nested dictionaries."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
