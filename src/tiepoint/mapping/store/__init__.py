"""The store: a COLMAP database, the only state between the steps of mapping.

Cameras, images, keypoints, matches and two-view geometries are in COLMAP's own tables, so any tool that reads a COLMAP
database reads this one. What COLMAP has no place for is in tables of the same file that it ignores:

======================== ============================================================================
``tiepoint_features``    extractor, detection scores, descriptors that are not SIFT's (float16, or bits)
``tiepoint_covariances`` of keypoints, where the extractor predicts them
``tiepoint_matches``     matching scores, whether the matcher believes that the two photographs overlap
``tiepoint_cameras``     which key (see `NewImage`) stands for which camera
``tiepoint_files``       size, times and hash of the files that an image was made of (see `Fingerprint`)
``tiepoint_hidden``      inliers of the pairs that mappers do not get to see (see `Store.hide_pairs`)
======================== ============================================================================

Two conventions differ from ours and are converted in `rows`. COLMAP counts pixels from the image's
corner, so keypoints and principal points are 0.5 larger there. Its SIFT scale is the standard deviation of the blob,
half of our diameter. A keypoint comes back bit for bit, except that x + 0.5 in float32 may round
(by less than 0.0003 pixels in photographs up to 8192 pixels wide); writing it again changes nothing more.
"""

from .records import (
    CONFIGS,
    MAX_IMAGES,
    Config,
    FileFingerprints,
    Fingerprint,
    NewImage,
    PairMatches,
    PairResult,
    StoredGeometry,
    StoredImage,
    fault_of,
    pair_ids,
    pairs_of,
)
from .store import Store

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
