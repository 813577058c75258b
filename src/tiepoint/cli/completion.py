"""What the shell offers after Tab: names of extractors, matchers and evaluation sets. Nothing here imports torch."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import typer

# Those of `tiepoint.features` and `tiepoint.matchers`, which import torch; a test compares.
EXTRACTORS = (
    "aliked-n16", "aliked-n16rot", "aliked-n32", "aliked-t16", "brief", "cairn", "dedode", "disk", "hog", "keynet",
    "orb", "sift", "superpoint", "superpoint-open", "surf", "xfeat",
)  # fmt: skip
MATCHERS = ("lightglue", "nearest", "superglue")


def extractors(incomplete: str) -> list[str]:
    """Return names of extractors; after ``sift+`` those that may join it.

    Examples
    --------
    >>> extractors("sup"), extractors("sift+b")
    (['superpoint', 'superpoint-open'], ['sift+brief'])
    """
    joined, plus, begun = incomplete.rpartition("+")
    known = ["auto", *EXTRACTORS, *(point.name for point in entry_points(group="tiepoint.extractors"))]
    return [joined + plus + name for name in known if name.startswith(begun)]


def matchers(incomplete: str) -> list[str]:
    """Return names of matchers.

    Examples
    --------
    >>> matchers("l")
    ['lightglue']
    """
    return [name for name in ("auto", *MATCHERS) if name.startswith(incomplete)]


def combinations(incomplete: str) -> list[str]:
    """Return names of extractors, and after them those of matchers.

    Examples
    --------
    >>> combinations("or"), combinations("orb+n")
    (['orb'], ['orb+nearest'])
    """
    joined, plus, begun = incomplete.rpartition("+")
    then = [joined + plus + name for name in MATCHERS if plus and name.startswith(begun)]
    return extractors(incomplete) if not plus else then


def sets(context: typer.Context, incomplete: str) -> list[str]:
    """Return the evaluation sets in the folder of ``--data``."""
    data = context.params.get("data")
    if data is None or not Path(data).is_dir():
        return []
    return sorted(
        path.parent.name for path in Path(data).glob("*/pairs.json") if path.parent.name.startswith(incomplete)
    )
