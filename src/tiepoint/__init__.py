"""tiepoint: local feature matching, from two photographs to cameras and points.

>>> import tiepoint as tp
>>> "sift" in tp.features.names()
True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import errors
from ._version import __version__ as __version__
from .errors import TiepointError

if TYPE_CHECKING:
    from . import evaluation, features, geometry, io, mapping, matchers, training, viz, weights
    from .devices import best_device
    from .geometry import Camera
    from .io.images import read_image
    from .two_view import TwoView, match
    from .types import Features, Image, Matches

__all__ = [
    "Camera",
    "Features",
    "Image",
    "Matches",
    "TiepointError",
    "TwoView",
    "best_device",
    "errors",
    "evaluation",
    "features",
    "geometry",
    "io",
    "mapping",
    "match",
    "matchers",
    "read_image",
    "training",
    "viz",
    "weights",
]

# Where each name lives. They are imported on first use, because torch alone takes more than a second, which
# `tiepoint --help` and shell completion should not pay.
_HOMES = {
    "Camera": "geometry",
    "Features": "types",
    "Image": "types",
    "Matches": "types",
    "TwoView": "two_view",
    "best_device": "devices",
    "match": "two_view",
    "read_image": "io.images",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    elif name in __all__:
        value = import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
