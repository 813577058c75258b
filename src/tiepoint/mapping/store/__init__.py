"""The COLMAP database of a scene: images, features, matches, two-view geometries."""

from .store import (
    CONFIGS,
    MAX_IMAGES,
    Config,
    FileFingerprints,
    Fingerprint,
    NewImage,
    PairMatches,
    PairResult,
    Store,
    StoredGeometry,
    StoredImage,
    fault_of,
    pair_ids,
    pairs_of,
)

__all__ = [
    "CONFIGS",
    "MAX_IMAGES",
    "Config",
    "FileFingerprints",
    "Fingerprint",
    "NewImage",
    "PairMatches",
    "PairResult",
    "Store",
    "StoredGeometry",
    "StoredImage",
    "fault_of",
    "pair_ids",
    "pairs_of",
]
