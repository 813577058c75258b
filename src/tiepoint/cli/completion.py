"""What the shell offers after Tab: names of extractors, matchers, weights, sets. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import typer

# Those of `tiepoint.features`, `tiepoint.matchers` and `tiepoint.weights`, which import torch; a test compares.
EXTRACTORS = (
    "aliked-n16", "aliked-n16rot", "aliked-n32", "aliked-t16", "brief", "cairn", "dedode", "disk", "hog", "keynet",
    "orb", "sift", "superpoint", "superpoint-open", "surf", "xfeat",
)  # fmt: skip
MATCHERS = ("lightglue", "nearest", "superglue")
LIGHTGLUE = (
    "aliked-lightglue", "cairn-lightglue", "disk-lightglue", "doghardnet-lightglue", "sift-lightglue",
    "sift-lightglue-cvg", "superpoint-lightglue", "xfeat-lighterglue",
)  # fmt: skip
WEIGHTS = (
    "affnet", "aliked-n16", "aliked-n16rot", "aliked-n32", "aliked-t16", "cairn", "dedode-descriptor",
    "dedode-detector", "disk", "hardnet", "keynet", "orinet", "superglue-indoor", "superglue-outdoor", "superpoint",
    "superpoint-open", "xfeat", *LIGHTGLUE,
)  # fmt: skip


def one_of(*names: str) -> Callable[[str], list[str]]:
    """Return the completion of an option that takes one of these names.

    Examples
    --------
    >>> one_of("superglue-indoor", "superpoint")("superg")
    ['superglue-indoor']
    """

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


matchers = one_of("auto", *MATCHERS)
weights = one_of(*WEIGHTS)
lightglue_weights = one_of(*LIGHTGLUE)
cairn_weights = one_of("cairn")
efforts = one_of("auto", "fast", "thorough")  # where an option takes several and so cannot be a choice


def extractors(incomplete: str) -> list[str]:
    """Return names of extractors; after ``sift+`` those that may join it.

    Examples
    --------
    >>> extractors("sup"), extractors("sift+b"), extractors("au")
    (['superpoint', 'superpoint-open'], ['sift+brief'], [])
    """
    joined, plus, begun = incomplete.rpartition("+")
    known = (*EXTRACTORS, *(point.name for point in entry_points(group="tiepoint.extractors")))
    return [joined + plus + name for name in known if name.startswith(begun)]


def extractors_or_auto(incomplete: str) -> list[str]:
    """Return ``auto`` and the names of `extractors`.

    Examples
    --------
    >>> extractors_or_auto("a")[:2]
    ['auto', 'aliked-n16']
    """
    return [*one_of("auto")(incomplete), *extractors(incomplete)]


def combinations(incomplete: str) -> list[str]:
    """Return names of extractors, and after them those of matchers.

    Examples
    --------
    >>> combinations("or"), combinations("orb+n")
    (['orb'], ['orb+nearest'])
    """
    joined, plus, begun = incomplete.rpartition("+")
    then = [joined + plus + name for name in MATCHERS if plus and name.startswith(begun)]
    return extractors_or_auto(incomplete) if not plus else then


def sets(context: typer.Context, incomplete: str) -> list[str]:
    """Return the evaluation sets in the folder of ``--data``."""
    data = context.params.get("data")
    if data is None or not Path(data).is_dir():
        return []
    return sorted(
        path.parent.name for path in Path(data).glob("*/pairs.json") if path.parent.name.startswith(incomplete)
    )
