"""Matchers: two `Features` -> `Matches`. `load` finds them by name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from ..errors import ArgumentError
from .base import Matcher

_BUILTIN = {
    "lightglue": ("lightglue", "LightGlue"),
    "superglue": ("superglue", "SuperGlue"),
    "nearest": ("nearest", "NearestNeighbour"),
}


def names() -> list[str]:
    """Return the names of all matchers."""
    return sorted(_BUILTIN)


def load(name: str, features: str = "sift", device: torch.device | str = "cpu", **options: Any) -> Matcher:
    """Return the matcher of that name for one kind of features.

    Parameters
    ----------
    name : str
        One of `names`: ``lightglue``, ``superglue`` or ``nearest``; or ``name@FILE`` for weights of one's own.
    features : str
        Name of the extractor whose features will be matched, as `tiepoint.features.load` takes it; chooses the weights.
    device : torch.device or str
        Where it runs.
    **options
        The matcher's own, see its class.

    Raises
    ------
    ArgumentError
        Unknown name or option, or no weights exist for these features.
    WeightsError
        The weights file is not on this machine; nothing is downloaded here.
    """
    name, at, file = name.partition("@")
    if at and not file:
        raise ArgumentError(f"{name}@ names no file of weights")
    if file:
        options["weights"] = file
    if name not in _BUILTIN:
        raise ArgumentError(f"no matcher is called {name!r}; there are: {', '.join(names())}")
    module, attribute = _BUILTIN[name]
    factory = getattr(import_module(f".{module}", __name__), attribute)
    try:
        return factory(features=features.partition("@")[0], device=device, **options)
    except TypeError as error:
        if options and "unexpected keyword" in str(error):
            wanted = ", ".join(map(repr, options))
            raise ArgumentError(f"matcher {name!r} does not take one of these options: {wanted}") from error
        raise


__all__ = ["Matcher", "load", "names"]
