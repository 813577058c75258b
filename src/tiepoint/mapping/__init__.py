"""From photographs to cameras and points. Each step is one function; a COLMAP database is the state between them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .store import NewImage, PairMatches, PairResult, Store, StoredGeometry, StoredImage, pair_ids, pairs_of

# Where each name lives; imported on first use, because the steps need different optional packages.
_HOMES = {
    "NewImage": "store",
    "PairMatches": "store",
    "PairResult": "store",
    "Store": "store",
    "StoredGeometry": "store",
    "StoredImage": "store",
    "pair_ids": "store",
    "pairs_of": "store",
}
__all__ = [
    "NewImage",
    "PairMatches",
    "PairResult",
    "Store",
    "StoredGeometry",
    "StoredImage",
    "pair_ids",
    "pairs_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
