"""Extractors: `Image` -> `Features`. `load` finds them by name, ours and anyone's.

Another package adds its own extractor by declaring, in its ``pyproject.toml``::

    [project.entry-points."tiepoint.extractors"]
    mine = "my_package.module:MyExtractor"

where ``MyExtractor`` subclasses `Extractor`; see ``examples/own_extractor.py``.
"""

from __future__ import annotations

import sys
from dataclasses import fields
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import torch

from ..devices import pick_device
from ..errors import ArgumentError
from ..names import split
from ..runtimes import is_exported
from .base import Extractor, ExtractorOptions
from .ensemble import Ensemble

# name -> (module of this package, class, keyword arguments that make the variant)
_BUILTIN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "cairn": ("cairn", "Cairn", {}),
    "sift": ("sift", "SIFT", {}),
    "orb": ("orb", "ORB", {}),
    "brief": ("brief", "BRIEF", {}),
    "surf": ("surf", "SURF", {}),
    "hog": ("hog", "HOG", {}),
    "superpoint": ("superpoint", "SuperPoint", {}),
    "superpoint-open": ("superpoint", "SuperPointOpen", {}),
    "aliked-t16": ("aliked", "ALIKEDT16", {}),
    "aliked-n16": ("aliked", "ALIKED", {}),
    "aliked-n16rot": ("aliked", "ALIKEDN16Rot", {}),
    "aliked-n32": ("aliked", "ALIKEDN32", {}),
    "disk": ("kornia_zoo", "DISK", {}),
    "xfeat": ("kornia_zoo", "XFeat", {}),
    "dedode": ("kornia_zoo", "DeDoDe", {}),
    "keynet": ("kornia_zoo", "KeyNetAffNetHardNet", {}),
}
# What runs a folder of `tiepoint.export`.
_EXPORTED: dict[str, tuple[str, str, dict[str, Any]]] = {"cairn": ("cairn.exported", "ExportedCairn", {})}


def names() -> list[str]:
    """Return the names of all extractors, built in and registered by other packages."""
    return sorted({*_BUILTIN, *_registered(tuple(sys.path))})


@cache
def _registered(path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """Return the extractors of other packages; to look through all installed ones takes 5 ms."""
    return {point.name: point for point in entry_points(group="tiepoint.extractors")}


def load(name: str, device: torch.device | str | None = "cpu", **options: Any) -> Extractor:
    """Return the extractor of that name.

    Parameters
    ----------
    name : str
        One of `names`, or ``name@FILE`` for weights of one's own, or ``cairn@FOLDER`` for what `tiepoint.export`
        wrote; several joined by ``+`` are an `Ensemble`.
    device : torch.device or str
        Where networks run; handcrafted extractors stay on the CPU. ``"auto"`` and None are
        `tiepoint.devices.best_device`, and the CPU for what `tiepoint.export` wrote, which runs nowhere else.
    **options
        The fields of `ExtractorOptions` (max_keypoints, detection_threshold, nms_radius, long_side, enlarge,
        bands) and the extractor's own.

    Raises
    ------
    ArgumentError
        Unknown name or option, or a device that cannot be used.
    WeightsError
        The extractor needs a weights file that is not on this machine; nothing is downloaded here.
    MissingDependencyError
        The extractor needs an optional package.

    Examples
    --------
    >>> import numpy as np, tiepoint as tp
    >>> sift = tp.features.load("sift", max_keypoints=100)
    >>> sift(np.zeros((64, 64, 3), np.uint8)).keypoints.shape
    torch.Size([0, 2])
    """
    members = split(name, names())
    if len(members) > 1:
        if options.get("detection_threshold") is not None:
            raise ArgumentError(f"the extractors of {name} have no common unit of detection_threshold")
        return Ensemble([load(member, device, **options) for member in members])
    name, at, file = name.partition("@")
    if at and not file:
        raise ArgumentError(f"{name}@ names no file of weights")
    if file:
        options["weights"] = file
    builtin = _EXPORTED if is_exported(file) else _BUILTIN
    where = device if is_exported(file) else pick_device(device)
    if is_exported(file) and name not in builtin:
        raise ArgumentError(f"{name}@{file}: is a folder, and only cairn is run from an exported one; name a file")
    if name in builtin:
        module, attribute, variant = builtin[name]
        factory = getattr(import_module(f".{module}", __name__), attribute)
    else:
        found = _registered(tuple(sys.path)).get(name)
        if found is None:
            raise ArgumentError(
                f"no extractor is called {name!r}; there are: {', '.join(names())}, or several joined by +"
            )
        factory, variant = found.load(), {}
    common = {f.name for f in fields(ExtractorOptions)}
    shared = ExtractorOptions(**{k: v for k, v in options.items() if k in common})
    own = {k: v for k, v in options.items() if k not in common}
    try:
        return factory(options=shared, device=where, **variant, **own)
    except TypeError as error:
        if own and "unexpected keyword" in str(error):
            raise ArgumentError(
                f"extractor {name!r} does not take {', '.join(map(repr, own))}; all extractors take "
                f"{', '.join(f.name for f in fields(ExtractorOptions))}"
            ) from error
        raise


__all__ = ["Ensemble", "Extractor", "ExtractorOptions", "load", "names"]
