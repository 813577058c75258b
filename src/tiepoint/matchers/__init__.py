"""Matchers: two `Features` -> `Matches`. `load` finds them by name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from ..devices import pick_device
from ..errors import ArgumentError
from ..features import names as feature_names
from ..names import split, weights_file
from ..runtimes import is_exported
from .base import Matcher
from .ensemble import Ensemble

_BUILTIN = {
    "lightglue": ("lightglue", "LightGlue"),
    "superglue": ("superglue", "SuperGlue"),
    "nearest": ("nearest", "NearestNeighbour"),
}
# What runs a folder of `tiepoint.export`.
_EXPORTED = {"lightglue": ("lightglue.exported", "ExportedLightGlue")}


def names() -> list[str]:
    """Return the names of all matchers."""
    return sorted(_BUILTIN)


def load(name: str, features: str = "sift", device: torch.device | str | None = "cpu", **options: Any) -> Matcher:
    """Return the matcher of that name for one kind of features.

    Parameters
    ----------
    name : str
        One of `names`: ``lightglue``, ``superglue`` or ``nearest``; or ``name@FILE`` for weights of one's own, or
        ``lightglue@FOLDER`` for what `tiepoint.export` wrote. For an
        ensemble of extractors one that all use, or one for each, joined by ``+``.
    features : str
        Name of the extractor whose features will be matched, as `tiepoint.features.load` takes it; chooses the weights.
    device : torch.device or str
        Where it runs. ``"auto"`` and None are `tiepoint.devices.best_device`, and the CPU for what `tiepoint.export`
        wrote, which runs nowhere else.
    **options
        The matcher's own, see its class.

    Raises
    ------
    ArgumentError
        Unknown name or option, a device that cannot be used, or no weights exist for these features.
    WeightsError
        The weights file is not on this machine; nothing is downloaded here.
    """
    extractors = split(features, feature_names())
    if len(extractors) > 1:
        chosen = split(name, names())
        if len(chosen) == 1 and not weights_file(name):
            chosen *= len(extractors)
        if len(chosen) != len(extractors):
            raise ArgumentError(f"{features} needs {len(extractors)} matchers joined by +, not {name!r}")
        loaded = [load(m, f, device, **options) for m, f in zip(chosen, extractors, strict=True)]
        return Ensemble(loaded, [f.partition("@")[0] for f in extractors])
    name, at, file = name.partition("@")
    if at and not file:
        raise ArgumentError(f"{name}@ names no file of weights")
    if file:
        options["weights"] = file
    if name not in _BUILTIN:
        raise ArgumentError(f"no matcher is called {name!r}; there are: {', '.join(names())}")
    if is_exported(file) and name not in _EXPORTED:
        raise ArgumentError(f"{name}@{file}: is a folder, and only lightglue is run from an exported one; name a file")
    module, attribute = _EXPORTED[name] if is_exported(file) else _BUILTIN[name]
    factory = getattr(import_module(f".{module}", __name__), attribute)
    where = device if is_exported(file) else pick_device(device)
    try:
        return factory(features=features.partition("@")[0], device=where, **options)
    except TypeError as error:
        if options and "unexpected keyword" in str(error):
            wanted = ", ".join(map(repr, options))
            raise ArgumentError(f"matcher {name!r} does not take one of these options: {wanted}") from error
        raise


__all__ = ["Ensemble", "Matcher", "load", "names"]
