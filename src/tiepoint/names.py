"""Names of extractors and matchers as users write them: ``name``, ``name@WEIGHTS``, or several joined by ``+``."""

from __future__ import annotations

import re
from collections.abc import Iterable


def split(text: str, known: Iterable[str]) -> list[str]:
    """Split names that are joined by ``+``.

    Parameters
    ----------
    text : str
        Such as ``"cairn+sift"``. A ``+`` that no known name follows belongs to the name of a file.
    known : iterable of str
        All names there are.

    Examples
    --------
    >>> split("cairn@c++/mine.safetensors+aliked-n16", ["cairn", "aliked-n16"])
    ['cairn@c++/mine.safetensors', 'aliked-n16']
    """
    return re.split(rf"\+(?=(?:{'|'.join(map(re.escape, known))})(?:[@+]|$))", text)


def weights_file(name: str) -> str:
    """Return WEIGHTS of ``name@WEIGHTS``, an empty string if there are none."""
    return name.partition("@")[2]
