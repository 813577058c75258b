"""What a store takes and gives: photographs, pairs, their geometry; and the numbers COLMAP knows pairs by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ...errors import ArgumentError
from ...geometry.colmap import Matrix
from ...io.contents import file_digest
from ...types import Features

if TYPE_CHECKING:
    import pycolmap

MAX_IMAGES = 2**31 - 1
"""COLMAP's: image ids are smaller, and a pair's id is ``MAX_IMAGES * smaller + larger``."""

Config = Literal[
    "UNDEFINED",
    "DEGENERATE",
    "CALIBRATED",
    "UNCALIBRATED",
    "PLANAR",
    "PANORAMIC",
    "PLANAR_OR_PANORAMIC",
    "WATERMARK",
    "MULTIPLE",
    "CALIBRATED_RIG",
]
CONFIGS: tuple[Config, ...] = Config.__args__  # type: ignore[attr-defined]
"""COLMAP's kinds of two-view geometry; the place in this list is the number in the database."""


def pair_ids(pairs: ArrayLike) -> NDArray[np.int64]:
    """Return COLMAP's ids of image pairs.

    Parameters
    ----------
    pairs : int array (P, 2)
        Image ids, in either order.

    Returns
    -------
    int64 array (P,)
        Ids sort as pairs (smaller, larger) do.

    Examples
    --------
    >>> pair_ids([(1, 2), (2, 1)])
    array([2147483649, 2147483649])
    """
    table = np.asarray(pairs, np.int64).reshape(-1, 2)
    return table.min(axis=1) * MAX_IMAGES + table.max(axis=1)


def pair_id_of(id0: int, id1: int) -> int:
    """Return COLMAP's id of one image pair."""
    return int(pair_ids((id0, id1))[0])


def pairs_of(ids: ArrayLike) -> NDArray[np.int64]:
    """Return the pairs (smaller id, larger id), int64 (P, 2), of COLMAP's pair ids (P,).

    Examples
    --------
    >>> pairs_of(pair_ids([(7, 3)]))
    array([[3, 7]])
    """
    return np.stack(np.divmod(np.asarray(ids, np.int64), MAX_IMAGES), axis=1)


@dataclass(frozen=True)
class NewImage:
    """A photograph to be entered into a `Store`.

    Attributes
    ----------
    name : str
        Path relative to the folder of the photographs, with forward slashes.
    camera : pycolmap.Camera
        In COLMAP's convention; its id does not matter.
    camera_key : str or None
        Images with the same key share the camera that the first of them brought, also across calls. None is a
        camera of its own.
    position : (float, float, float) or None
        WGS84 latitude and longitude in degrees and altitude in metres; the altitude may be nan.
    """

    name: str
    camera: pycolmap.Camera
    camera_key: str | None = None
    position: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Fingerprint:
    """What tells a file from another one: its size in bytes, times (mtime, ctime) in ns, and BLAKE2b in hex.

    A file of the same size and times is taken to be the same; only if these differ, its bytes are read.
    """

    bytes: int
    modified: int
    changed: int
    digest: str

    @classmethod
    def of(cls, path: Path, known: Fingerprint | None = None) -> Fingerprint:
        """Look at a file; ``known`` saves reading it if neither size nor times are others.

        Raises
        ------
        OSError, InputError
            It cannot be read.
        """
        now = path.stat()
        times = now.st_size, now.st_mtime_ns, now.st_ctime_ns
        if known is not None and times == (known.bytes, known.modified, known.changed):
            return known
        return cls(*times, file_digest(path))


FileFingerprints = dict[str, Fingerprint]
"""Of an image: ``"photograph"``, and ``"mask"`` if it has one."""


@dataclass(frozen=True)
class StoredImage:
    """A photograph as a `Store` knows it; ``camera`` is in COLMAP's convention."""

    image_id: int
    name: str
    camera_id: int
    camera: pycolmap.Camera
    position: tuple[float, float, float] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.camera.width, self.camera.height


@dataclass(frozen=True, eq=False)
class PairResult:
    """What matching, and verification if it took place, found out about two images.

    Attributes
    ----------
    id0, id1 : int
        Image ids, in either order.
    matches : int array (K, 2)
        Each row is (keypoint of image ``id0``, keypoint of image ``id1``).
    scores : float array (K,)
        In [0, 1].
    overlaps : bool or None
        See `Matches.overlaps`.
    inliers : bool array (K,) or None
        Which matches agree with the two-view geometry; None if the pair has not been verified.
    config : str
        Kind of the geometry, one of `CONFIGS`. COLMAP's mappers use CALIBRATED (by E), UNCALIBRATED (by F) and
        the planar and panoramic ones (by H).
    F, E, H : float array (3, 3) or None
        Fundamental, essential matrix and homography from image ``id0`` to image ``id1``, as far as they were
        estimated, **in COLMAP's pixels**: centre of the top-left pixel at (0.5, 0.5).
    R, t : float array (3, 3) and (3,), or None
        Relative pose, ``x_1 = R x_0 + t``.
    """

    id0: int
    id1: int
    matches: NDArray[np.integer[Any]]
    scores: NDArray[np.floating[Any]]
    overlaps: bool | None = None
    inliers: NDArray[np.bool_] | None = None
    config: Config = "UNDEFINED"
    F: Matrix | None = None
    E: Matrix | None = None
    H: Matrix | None = None
    R: Matrix | None = None
    t: Matrix | None = None

    def __post_init__(self) -> None:
        pair, count = f"pair ({self.id0}, {self.id1})", len(self.matches)
        if self.id0 == self.id1 or min(self.id0, self.id1) < 0:
            raise ArgumentError(f"{pair}: a pair is two different image ids, 0 or larger")
        if np.shape(self.matches) != (count, 2) or np.shape(self.scores) != (count,):
            raise ArgumentError(
                f"{pair}: matches must be (K, 2) and scores (K,), not {np.shape(self.matches)} and "
                f"{np.shape(self.scores)}"
            )
        if self.inliers is not None and (self.inliers.shape != (count,) or self.inliers.dtype != np.bool_):
            raise ArgumentError(
                f"{pair}: inliers must be bool ({count},), not {self.inliers.dtype} {self.inliers.shape}"
            )
        if not np.isfinite(self.scores).all():
            raise ArgumentError(f"{pair}: scores must be finite numbers")
        if self.config not in CONFIGS:
            raise ArgumentError(f"{pair}: no geometry is called {self.config!r}; there are: {', '.join(CONFIGS)}")
        if (self.R is None) != (self.t is None):
            raise ArgumentError(f"{pair}: R and t go together")


@dataclass(frozen=True, eq=False)
class PairMatches:
    """Matches of two images: ``indices`` int64 (K, 2), sorted by the first, and ``scores`` float32 (K,).

    ``overlaps`` is as in `Matches`. Scores of matches that COLMAP made are 1.
    """

    indices: NDArray[np.int64]
    scores: NDArray[np.float32]
    overlaps: bool | None = None


@dataclass(frozen=True, eq=False)
class StoredGeometry:
    """Two-view geometry of two images: ``matches`` int64 (K, 2) that agree with it, and the fields of `PairResult`."""

    matches: NDArray[np.int64]
    config: Config
    F: Matrix | None = None
    E: Matrix | None = None
    H: Matrix | None = None
    R: Matrix | None = None
    t: Matrix | None = None


def fault_of(features: Features) -> str:
    """Return what no extractor would say of a photograph, or an empty string.

    Examples
    --------
    >>> f = Features(torch.tensor([[9.0, 0.0]]), torch.ones(1), torch.eye(4)[:1], (8, 8), "mine")
    >>> fault_of(f)
    'a keypoint at (9, 0), outside of the picture of 8x8 pixels'
    """
    for name in ("keypoints", "scores", "descriptors", "scales", "orientations", "covariances"):
        value = getattr(features, name)
        if value is not None and value.is_floating_point() and not torch.isfinite(value).all():
            return f"{name} that are not finite numbers"
    size = torch.tensor(features.image_size, dtype=torch.float32, device=features.keypoints.device)
    # Pixels end half a pixel beyond their centres; another half for what is placed between pixels.
    outside = ((features.keypoints < -1) | (features.keypoints > size)).any(dim=1)
    if outside.any():
        x, y = features.keypoints[outside][0].tolist()
        return f"a keypoint at ({x:g}, {y:g}), outside of the picture of {size[0]:g}x{size[1]:g} pixels"
    return ""
