"""The nouns of tiepoint: `Image`, `Features`, `Matches`.

Conventions, stated once and used everywhere:

- Pixel coordinates are (x, y) float32 and (0, 0) is the **centre** of the top-left pixel (as in OpenCV;
  COLMAP counts from the corner and is 0.5 larger). Resizing by a factor s maps x to ``s * (x + 0.5) - 0.5``.
- Keypoints are in the coordinates of the image after EXIF orientation, whatever was resized inside.
- Angles are radians from +x towards +y, which is clockwise as seen, as OpenCV measures them; scales are
  diameters in pixels.
- Scores lie in [0, 1].

`Features` hold tensors, because they feed networks and may stay on a GPU. `Matches` are results and hold
NumPy arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from .errors import ArgumentError, InputError, import_optional

if TYPE_CHECKING:
    import cv2
    import pandas


@dataclass(frozen=True, eq=False, repr=False)
class Image:
    """A decoded photograph.

    Attributes
    ----------
    pixels : uint8 array (H, W, 3)
        RGB, EXIF orientation applied.
    mask : uint8 array (H, W) or None
        0 means "no keypoints here".
    name : str
        Where it came from, for error messages and reports: a path, or ``"<array>"``.
    """

    pixels: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None = None
    name: str = "<array>"

    def __post_init__(self) -> None:
        pixels, mask = self.pixels, self.mask
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
            raise InputError(
                f"{self.name}: pixels must be uint8 (H, W, 3), not {pixels.dtype} {pixels.shape}; "
                "tiepoint.read_image converts other arrays"
            )
        if mask is not None and (mask.dtype != np.uint8 or mask.shape != pixels.shape[:2]):
            raise InputError(f"{self.name}: the mask must be uint8 {pixels.shape[:2]}, not {mask.dtype} {mask.shape}")

    def __repr__(self) -> str:
        masked = "" if self.mask is None else ", masked"
        return f"<Image {self.name}: {self.size[0]}x{self.size[1]}{masked}>"

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


@dataclass(frozen=True, eq=False, repr=False)
class Features:
    """Keypoints of one image and what describes them, sorted by falling score.

    Attributes
    ----------
    keypoints : float32 tensor (N, 2)
        (x, y) in pixels of the original image.
    scores : float32 tensor (N,)
        Detection confidence in [0, 1].
    descriptors : float32 tensor (N, D) with rows of unit length, or uint8 tensor (N, bytes)
        uint8 descriptors are strings of bits, to be compared by Hamming distance.
    image_size : (int, int)
        (width, height) of the original image.
    extractor : str
        Name of the extractor that made them; matchers check it against what they were trained on.
    scales, orientations : float32 tensor (N,) or None
        Diameter in pixels and angle in radians, where the detector measures them.
    covariances : float32 tensor (N, 2, 2) or None
        Of the keypoint's position, pixels squared, where the extractor predicts it.

    Examples
    --------
    >>> import torch
    >>> f = Features(torch.tensor([[3.0, 4.0]]), torch.ones(1), torch.eye(128)[:1], (640, 480), "sift")
    >>> f, f.is_binary
    (<Features: 1 sift keypoints in 640x480 pixels>, False)
    """

    keypoints: torch.Tensor
    scores: torch.Tensor
    descriptors: torch.Tensor
    image_size: tuple[int, int]
    extractor: str
    scales: torch.Tensor | None = None
    orientations: torch.Tensor | None = None
    covariances: torch.Tensor | None = None

    def __post_init__(self) -> None:
        n = len(self.keypoints)
        if self.keypoints.shape != (n, 2) or self.keypoints.dtype != torch.float32:
            raise ArgumentError(
                f"keypoints must be float32 of shape (N, 2), not {self.keypoints.dtype} "
                f"of shape {tuple(self.keypoints.shape)}"
            )
        if self.descriptors.ndim != 2 or self.descriptors.dtype not in (torch.float32, torch.uint8):
            raise ArgumentError(
                f"descriptors must be float32 or uint8 of shape (N, D), not {self.descriptors.dtype} "
                f"of shape {tuple(self.descriptors.shape)}"
            )
        for name in ("scores", "descriptors", "scales", "orientations", "covariances"):
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise ArgumentError(f"{name} has {len(value)} rows for {n} keypoints")
        if self.covariances is not None and self.covariances.shape != (n, 2, 2):
            raise ArgumentError(f"covariances must be of shape (N, 2, 2), not {tuple(self.covariances.shape)}")

    def __len__(self) -> int:
        return len(self.keypoints)

    def __repr__(self) -> str:
        return f"<Features: {len(self)} {self.extractor} keypoints in {self.image_size[0]}x{self.image_size[1]} pixels>"

    @property
    def is_binary(self) -> bool:
        """Whether descriptors are bit strings (Hamming distance) rather than unit vectors."""
        return self.descriptors.dtype == torch.uint8

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.keypoints.device

    def select(self, index: torch.Tensor) -> Features:
        """Return the rows chosen by ``index``: a bool mask (N,) or an int64 tensor of row numbers."""
        index = index.to(self.device)
        return replace(
            self,
            keypoints=self.keypoints[index],
            scores=self.scores[index],
            descriptors=self.descriptors[index],
            scales=None if self.scales is None else self.scales[index],
            orientations=None if self.orientations is None else self.orientations[index],
            covariances=None if self.covariances is None else self.covariances[index],
        )

    def first(self, most: int | None) -> Features:
        """Return the first ``most`` rows, the best of what an extractor found; None keeps all.

        Examples
        --------
        >>> Features(torch.zeros(3, 2), torch.tensor([0.9, 0.5, 0.1]), torch.eye(3), (640, 480), "mine").first(2)
        <Features: 2 mine keypoints in 640x480 pixels>
        """
        return self if most is None or most >= len(self) else self.select(torch.arange(most))

    def to(self, device: torch.device | str) -> Features:
        """Return the same features on another device."""
        return replace(
            self,
            keypoints=self.keypoints.to(device),
            scores=self.scores.to(device),
            descriptors=self.descriptors.to(device),
            scales=None if self.scales is None else self.scales.to(device),
            orientations=None if self.orientations is None else self.orientations.to(device),
            covariances=None if self.covariances is None else self.covariances.to(device),
        )


@dataclass(frozen=True, eq=False)
class Group:
    """Matches that agree with one homography, see `tiepoint.groups`.

    Attributes
    ----------
    homography : float64 array (3, 3)
        From image 0 to image 1.
    matches : Matches
        One-to-one within the group; other groups may hold the same keypoints.
    rival : bool
        Whether it wants the same keypoints as the first group: another copy of the same thing.
    """

    homography: NDArray[np.float64]
    matches: Matches
    rival: bool = False

    def swapped(self) -> Group:
        """Return the same group with the two images exchanged."""
        back = np.linalg.inv(self.homography)
        return Group(back / back[2, 2], self.matches.swapped(), self.rival)


@dataclass(frozen=True, eq=False, repr=False)
class Matches:
    """Correspondences between two sets of features.

    Attributes
    ----------
    indices : int64 array (K, 2)
        Each row is (index in image 0, index in image 1), sorted by the first; no index appears twice on one
        side.
    scores : float32 array (K,)
        How sure the matcher is of each match, in [0, 1].
    points0, points1 : float32 array (K, 2)
        The matched keypoints, pixels of the original images.
    covariances : two float32 arrays (K, 2, 2), or None
        Of ``points0`` and of ``points1``, pixels squared, where the extractor predicts them: for the robust
        estimators of `tiepoint.geometry`.
    stop_layer : int or None
        The layer after which an adaptive matcher stopped, counted from 1. None for matchers without layers.
    prune_layer0, prune_layer1 : int64 array (N,), (M,) or None
        The number of layers each keypoint took part in: less than ``stop_layer`` if it was pruned on the way.
    matchability0, matchability1 : float32 array (N,), (M,) or None
        How likely each keypoint is to have a partner at all, in [0, 1], as the last layer it reached saw it.
    overlaps : bool or None
        Whether the two photographs show something in common: `evidence` exceeds what `tiepoint calibrate` found that
        unrelated photographs reach. None if the matcher was not calibrated.
    groups : tuple of Group
        The consistent geometries, the strongest first, where they were asked for: copies of an object.

    Examples
    --------
    >>> index, scores = np.array([[0, 2], [1, 0], [4, 1]]), np.array([0.9, 0.3, 0.8], np.float32)
    >>> points = np.zeros((3, 2), np.float32)
    >>> matches = Matches(index, scores, points, points)
    >>> matches[matches.scores > 0.5]
    <Matches: 2>
    >>> matches[:2].indices.tolist()
    [[0, 2], [1, 0]]
    """

    indices: NDArray[np.int64]
    scores: NDArray[np.float32]
    points0: NDArray[np.float32]
    points1: NDArray[np.float32]
    stop_layer: int | None = None
    prune_layer0: NDArray[np.int64] | None = None
    prune_layer1: NDArray[np.int64] | None = None
    matchability0: NDArray[np.float32] | None = None
    matchability1: NDArray[np.float32] | None = None
    overlaps: bool | None = None
    covariances: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    groups: tuple[Group, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        stopped = "" if self.stop_layer is None else f", stopped after layer {self.stop_layer}"
        return f"<Matches: {len(self)}{stopped}>"

    def __getitem__(self, index: slice | int | NDArray[Any] | list[int]) -> Matches:
        """Return some of the matches: ``matches[:10]``, ``matches[matches.scores > 0.5]``.

        Parameters
        ----------
        index : slice, bool array (K,), or different row numbers
            The matches come in their own order, whatever that of the numbers.

        Returns
        -------
        Matches
            What is known of all keypoints stays as it is. The verdict that the photographs overlap rests on all
            matches, and becomes None.

        Raises
        ------
        ArgumentError
            The index does not fit K matches, or names one twice.
        """
        if isinstance(index, (int, np.integer)):
            rows = np.arange(len(self))[index : index + 1 or None]
            if len(rows) != 1:
                raise IndexError(f"match {index} of {len(self)}")  # how Python ends a loop over the matches
        else:
            try:
                rows = np.arange(len(self))[index]
            except IndexError as error:
                raise ArgumentError(f"the index does not fit {len(self)} matches: {error}") from error
            rows = np.unique(rows)
            if not isinstance(index, slice) and np.asarray(index).dtype != bool and len(rows) < np.size(index):
                raise ArgumentError("the index names a match twice")
        covariances = self.covariances
        return replace(
            self,
            indices=self.indices[rows],
            scores=self.scores[rows],
            points0=self.points0[rows],
            points1=self.points1[rows],
            covariances=None if covariances is None else (covariances[0][rows], covariances[1][rows]),
            overlaps=None if self.overlaps else self.overlaps,
        )

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table of one row a match: index0, index1, x0, y0, x1, y1 (pixels), score.

        Raises
        ------
        MissingDependencyError
            pandas is not installed.
        """
        pandas = import_optional("pandas", "pandas", "pandas", "a table of matches")
        columns = np.concatenate([self.points0, self.points1], axis=1).T
        return pandas.DataFrame(
            {
                "index0": self.indices[:, 0],
                "index1": self.indices[:, 1],
                **dict(zip(("x0", "y0", "x1", "y1"), columns, strict=True)),
                "score": self.scores,
            }
        )

    def to_opencv(self) -> tuple[list[cv2.KeyPoint], list[cv2.KeyPoint], list[cv2.DMatch]]:
        """Return the matched keypoints of both images and the matches, as OpenCV's functions take them.

        Returns
        -------
        keypoints0, keypoints1 : list of cv2.KeyPoint
            The k-th of each belong to match k. OpenCV counts pixels from the centre of the first, as tiepoint does.
        matches : list of cv2.DMatch
            ``distance`` is 1 - score, so that the best match comes first when they are sorted by it.

        Examples
        --------
        >>> points = np.array([[3.0, 4.0]], np.float32)
        >>> matches = Matches(np.array([[7, 9]]), np.array([0.75], np.float32), points, points + 1)
        >>> keypoints0, keypoints1, [match] = matches.to_opencv()
        >>> keypoints1[match.trainIdx].pt, match.distance
        ((4.0, 5.0), 0.25)
        """
        import cv2  # here, because training needs this module but not OpenCV

        def keypoints(points: NDArray[np.float32]) -> list[cv2.KeyPoint]:
            return [cv2.KeyPoint(x, y, 1.0) for x, y in points.tolist()]

        matches = [cv2.DMatch(k, k, 1 - score) for k, score in enumerate(self.scores.tolist())]
        return keypoints(self.points0), keypoints(self.points1), matches

    @property
    def evidence(self) -> float:
        """Sum of the scores: how many right matches the matcher expects, and so how sure it is of an overlap."""
        return float(self.scores.sum(dtype=np.float64))

    @property
    def margin(self) -> float | None:
        """How far the first group is ahead of its strongest rival: 1 without a rival, 0 if both have as many matches.

        None if no group was found.
        """
        if not self.groups:
            return None
        rivals = [len(group.matches) for group in self.groups if group.rival]
        return max(0.0, 1 - max(rivals, default=0) / len(self.groups[0].matches))

    @property
    def ambiguous(self) -> bool:
        """Whether a rival has at least half as many matches as the first group."""
        return self.margin is not None and self.margin <= 0.5

    def swapped(self) -> Matches:
        """Return the same correspondences with the two images exchanged."""
        order = np.argsort(self.indices[:, 1], kind="stable")
        return Matches(
            indices=np.ascontiguousarray(self.indices[order, ::-1]),
            scores=self.scores[order],
            points0=self.points1[order],
            points1=self.points0[order],
            stop_layer=self.stop_layer,
            prune_layer0=self.prune_layer1,
            prune_layer1=self.prune_layer0,
            matchability0=self.matchability1,
            matchability1=self.matchability0,
            overlaps=self.overlaps,
            covariances=None if self.covariances is None else (self.covariances[1][order], self.covariances[0][order]),
            groups=tuple(group.swapped() for group in self.groups),
        )
