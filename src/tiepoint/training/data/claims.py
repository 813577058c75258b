"""Notes that say what a folder holds, so that nothing made for something else is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...io.files import atomic, read_json


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
        if differing := [name for name in here if here[name] != there.get(name)]:
            names = "; ".join(f"{name} is {there.get(name)} there and {here[name]} here" for name in differing)
            raise InputError(f"{note.parent} holds {what}: {names}. Give another folder, or delete it")
        return there
    with atomic(note) as unfinished:
        note.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(here, indent=1))
    return here
