"""tiepoint: local feature matching, from two photographs to cameras and points.

What the command line does, Python does by the same name, options and defaults:

>>> import tiepoint as tp
>>> verbs = tp.extract, tp.match, tp.map, tp.localize, tp.track, tp.train, tp.calibrate, tp.evaluate, tp.export
>>> tp.match("a.jpg", "b.jpg")  # doctest: +SKIP
<TwoView: 812 matches; cairn + lightglue: the first choice of what is on this machine and allows commercial use>

Photographs are paths, NumPy arrays, Pillow images, torch tensors, file objects or `Image`: see `read_image`.
"""

from __future__ import annotations

# First of all: pycolmap's wheel has a zlib of its own, and if it is imported before the system's is loaded, Pillow gets
# parts of both and writes no PNG file, but hangs or crashes.
import zlib as _zlib  # noqa: F401
from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import errors
from ._version import __version__
from .errors import TiepointError

if TYPE_CHECKING:
    from . import calibration, evaluation, features, geometry, io, mapping, matchers, runtimes, training, viz, weights
    from .calibration.calibrate import calibrate_file as calibrate
    from .devices import best_device
    from .evaluation import evaluate
    from .exporting import export
    from .extraction import extract
    from .geometry import Camera
    from .io.images import read_image
    from .mapping import map_photographs as map
    from .mapping import match_pairs
    from .mapping.online.localize import localize
    from .mapping.online.trajectory import track
    from .mapping.progress import progress_bars
    from .training.train import train
    from .two_view import TwoView, match
    from .types import Features, Image, Matches

__all__ = [
    "Camera",
    "Features",
    "Image",
    "Matches",
    "TiepointError",
    "TwoView",
    "__version__",
    "best_device",
    "calibrate",
    "calibration",
    "errors",
    "evaluate",
    "evaluation",
    "export",
    "extract",
    "features",
    "geometry",
    "io",
    "localize",
    "map",
    "mapping",
    "match",
    "match_pairs",
    "matchers",
    "progress_bars",
    "read_image",
    "runtimes",
    "track",
    "train",
    "training",
    "viz",
    "weights",
]

# Where each name lives; the others are modules. They are imported on first use, because torch alone takes more than a
# second, which `tiepoint --help` and shell completion should not pay.
_HOMES = {
    "Camera": ("geometry", "Camera"),
    "Features": ("types", "Features"),
    "Image": ("types", "Image"),
    "Matches": ("types", "Matches"),
    "TwoView": ("two_view", "TwoView"),
    "best_device": ("devices", "best_device"),
    "calibrate": ("calibration.calibrate", "calibrate_file"),
    "evaluate": ("evaluation", "evaluate"),
    "export": ("exporting", "export"),
    "extract": ("extraction", "extract"),
    "localize": ("mapping.online.localize", "localize"),
    "map": ("mapping", "map_photographs"),
    "match": ("two_view", "match"),
    "match_pairs": ("mapping.many_pairs", "match_pairs"),
    "progress_bars": ("mapping.progress", "progress_bars"),
    "read_image": ("io.images", "read_image"),
    "track": ("mapping.online.trajectory", "track"),
    "train": ("training.train", "train"),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        module, attribute = _HOMES[name]
        value = getattr(import_module(f".{module}", __name__), attribute)
    elif name in __all__:
        value = import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
