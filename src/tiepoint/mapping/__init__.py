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
    from .many_pairs import PairsMatched, match_pairs
    from .run import map_photographs
    from .steps.extract import extract_into
    from .steps.images import camera_of, new_images
    from .steps.match import match_into
    from .steps.verify import verify_into
    from .store import NewImage, PairMatches, PairResult, Store, StoredGeometry, StoredImage, pair_ids, pairs_of

__all__ = [
    "NewImage",
    "PairMatches",
    "PairResult",
    "PairsMatched",
    "Store",
    "StoredGeometry",
    "StoredImage",
    "camera_of",
    "extract_into",
    "map_photographs",
    "match_into",
    "match_pairs",
    "new_images",
    "pair_ids",
    "pairs_of",
    "verify_into",
]

# Where each name lives that is not in `store`. Imported on first use, because the steps need different packages.
_HOMES = {
    "PairsMatched": "many_pairs",
    "camera_of": "steps.images",
    "extract_into": "steps.extract",
    "map_photographs": "run",
    "match_into": "steps.match",
    "match_pairs": "many_pairs",
    "new_images": "steps.images",
    "verify_into": "steps.verify",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES.get(name, 'store')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
