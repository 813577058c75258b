"""From photographs to cameras and points. Each step is one function; a COLMAP database is the state between them.

``map_photographs`` takes all steps. One by one they are::

    with Store.open("map/database.db") as store:
        found, skipped = new_images("photos")  # names, cameras from EXIF
        store.add_images(found)
        extract_into(store, "photos", extractor)  # photographs -> features
        chosen = pairs.exhaustive(sorted(store.has_features()))
        match_into(store, chosen, matcher)  # features -> matches, two-view geometries
    scene = reconstruct.reconstruct("map/database.db", "photos", "map")  # -> cameras and points
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import exports, hloc, localize, lookalikes, pairs, reconstruct, retrieval, tracking
    from .cameras import camera_of, new_images
    from .extraction import extract_into
    from .matching import match_into
    from .run import map_photographs
    from .store import NewImage, PairMatches, PairResult, Store, StoredGeometry, StoredImage, pair_ids, pairs_of
    from .verification import verify_into

__all__ = [
    "NewImage",
    "PairMatches",
    "PairResult",
    "Store",
    "StoredGeometry",
    "StoredImage",
    "camera_of",
    "exports",
    "extract_into",
    "hloc",
    "localize",
    "lookalikes",
    "map_photographs",
    "match_into",
    "new_images",
    "pair_ids",
    "pairs",
    "pairs_of",
    "reconstruct",
    "retrieval",
    "tracking",
    "verify_into",
]

# Where each name lives; the others are modules. Imported on first use, because the steps need different packages.
_HOMES = {
    "NewImage": "store",
    "PairMatches": "store",
    "PairResult": "store",
    "Store": "store",
    "StoredGeometry": "store",
    "StoredImage": "store",
    "camera_of": "cameras",
    "extract_into": "extraction",
    "map_photographs": "run",
    "match_into": "matching",
    "new_images": "cameras",
    "pair_ids": "store",
    "pairs_of": "store",
    "verify_into": "verification",
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
