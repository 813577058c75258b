"""The one interface of all extractors: `Image` and mask -> `Features`.

`Extractor` does what is common: reading, resizing, tiling of large photographs, masks, non-maximum
suppression, the cut to the best K, and the way back to original coordinates. A subclass supplies
`Extractor._extract`, which sees one array at working size.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..devices import plain_torch
from ..errors import ArgumentError, InputError, TiepointError
from ..io.images import ImageSource, check_bands, read_image, resize, resize_mask
from ..runtimes.run import suppress
from ..types import Features, Image
from .tiling import concatenate, tiles

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class ExtractorOptions:
    """The controls that every extractor understands.

    Attributes
    ----------
    max_keypoints : int or None
        Keep the best this many; None keeps all.
    detection_threshold : float or None
        In the unit of the detector's own score; None is the extractor's published default.
    nms_radius : int or None
        Of two keypoints at most this many working-size pixels apart in x and in y only the better one stays;
        0 switches it off; None is the extractor's default.
    long_side : int or None
        Resize so that the longer side has this many pixels. None works at full size.
    enlarge : bool
        Whether ``long_side`` may also enlarge smaller images.
    bands : one or three ints, or None
        Which bands of a file or array to use, see `tiepoint.read_image`.
    """

    max_keypoints: int | None = 2048
    detection_threshold: float | None = None
    nms_radius: int | None = None
    long_side: int | None = None
    enlarge: bool = False
    bands: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "bands", check_bands(self.bands))
        for name in ("max_keypoints", "long_side"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArgumentError(f"{name} must be at least 1, not {value}")
        if self.nms_radius is not None and self.nms_radius < 0:
            raise ArgumentError(f"nms_radius must be 0 or more, not {self.nms_radius}")


class Extractor(ABC):
    """Base class of all extractors.

    A subclass sets the class attributes and implements `_extract`. It takes the common options as one
    `ExtractorOptions` and its own as keyword arguments.

    Attributes
    ----------
    name : str
        What users call it; stored in `Features.extractor`.
    default_threshold, default_nms_radius
        Used where the options say None.
    min_side : int
        The smallest working width and height, in pixels, that `_extract` can handle.
    max_untiled_pixels : int
        Working images with more pixels are extracted in tiles, so that memory stays bounded.
    tile_side, tile_overlap : int
        Side of a tile, overlap included, and how far beyond its seam a tile sees, in pixels.
    harmonics : tuple of int
        How its descriptors turn with the image, see `tiepoint.features.steerable`; empty if they do not.
    deviation : float
        Standard deviation of its keypoints along x and y, in working pixels, for `with_covariances`. Only its ratio to
        that of other extractors matters, so its unit is that of Cairn's covariances: the median error of right matches
        of training photographs under random homographies, divided by 0.68, as it is for Cairn. 1 where not measured.
    """

    name: ClassVar[str]
    default_threshold: ClassVar[float]
    default_nms_radius: ClassVar[int] = 0
    min_side: ClassVar[int] = 1
    max_untiled_pixels: ClassVar[int] = 20_000_000
    tile_side: ClassVar[int] = 2560
    tile_overlap: ClassVar[int] = 128
    harmonics: tuple[int, ...] = ()
    deviation: ClassVar[float] = 1.0

    options: ExtractorOptions
    """As given, with the extractor's own defaults in place of None for threshold and NMS radius."""

    def __init__(self, options: ExtractorOptions | None = None, device: torch.device | str = "cpu") -> None:
        options = options or ExtractorOptions()
        self.options = replace(
            options,
            detection_threshold=self.default_threshold
            if options.detection_threshold is None
            else options.detection_threshold,
            nms_radius=self.default_nms_radius if options.nms_radius is None else options.nms_radius,
        )
        self.device = torch.device(device)

    @abstractmethod
    def _extract(self, pixels: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> Features:
        """Extract from RGB ``pixels`` (H, W, 3) at working size; coordinates are those of ``pixels``.

        Must honour ``self.options.detection_threshold``. The base class applies `finish` to what comes back,
        so the mask (H, W; 0 = no keypoints), NMS, sorting and the cut to the best K need no code here. Where
        descriptors are costly, use `best` to choose the keypoints before describing them.

        A keypoint's score must not depend on the other keypoints of the image: the tiles of a large
        photograph are extracted one by one, and their keypoints compared by score. Both arrays are read-only.
        """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):  # where networks are made
            cls.__init__ = plain_torch(keep_seed=True)(cls.__init__)  # type: ignore[method-assign]

    @plain_torch()
    def __call__(self, image: ImageSource, mask: ImageSource | None = None) -> Features:
        """Extract the features of one image.

        Parameters
        ----------
        image : Image, path, array or file object
            See `tiepoint.read_image`.
        mask : same kinds, or None
            0 means "no keypoints here"; replaces the image's own mask. It holds exactly, in original pixels:
            where rounding a keypoint's position could end on a pixel that is 0, the keypoint is dropped.

        Returns
        -------
        Features
            In pixels of the original image, sorted by falling score.

        Raises
        ------
        InputError
            The image or the mask cannot be used.
        """
        picture = read_image(image, mask, bands=self.options.bands)
        pixels, working_mask = picture.pixels, picture.mask
        if self.options.long_side is not None:
            pixels = resize(pixels, self.options.long_side, self.options.enlarge)
        height, width = pixels.shape[:2]
        if min(width, height) < self.min_side:
            raise InputError(
                f"{picture.name}: too small: {width}x{height} pixels at working size, {self.name} needs at "
                f"least {self.min_side} on each side"
            )
        if working_mask is not None:
            working_mask = resize_mask(working_mask, (width, height))
        if width * height > self.max_untiled_pixels:
            features = self._extract_tiled(pixels, working_mask)
        else:
            features = finish(self._extract(pixels, working_mask), working_mask, self.options)
        for part in ("keypoints", "scores", "descriptors", "scales", "orientations", "covariances"):
            value = getattr(features, part)
            if value is not None and value.is_floating_point() and not torch.isfinite(value).all():
                raise TiepointError(
                    f"{picture.name}: extractor {self.name} made {part} that are not finite numbers; this is "
                    "a fault of the extractor or of its weights: please report it"
                )
        features = resized(features, (width, height), picture.size)
        return features if picture.mask is None else features.select(allowed(features.keypoints, picture.mask))

    def _extract_tiled(self, pixels: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> Features:
        """Extract tile by tile; each keypoint comes from the one tile whose core it lies in.

        Cutting every tile to its best K loses none of the best K of the whole: whatever beats a keypoint in
        its own tile beats it in the whole image too.
        """
        found: list[Features] = []
        for tile in tiles(pixels.shape[1::-1], self.tile_side, self.tile_overlap):
            window_mask = None if mask is None else mask[tile.window]
            if found and window_mask is not None and not window_mask.any():
                continue
            window = np.ascontiguousarray(pixels[tile.window])
            part = finish(self._extract(window, window_mask), window_mask, self.options)
            origin = torch.tensor(tile.origin, dtype=torch.float32, device=part.device)
            part = replace(part, keypoints=part.keypoints + origin)
            found.append(part.select(tile.owns(part.keypoints)))
        return finish(concatenate(found), mask, self.options)

    @plain_torch()
    def describe(self, image: ImageSource, keypoints: Features | ArrayLike) -> Features:
        """Describe given keypoints instead of detecting some.

        Parameters
        ----------
        image : Image, path, array or file object
            See `tiepoint.read_image`.
        keypoints : Features, or array (N, 2)
            Features of any extractor, or (x, y) in pixels of the original image. `Features.scales` and
            `Features.orientations` are used by extractors that describe a patch of that size and direction; without
            them the patch is the smallest that the extractor detects, and upright.

        Returns
        -------
        Features
            The same keypoints in the same order, with the descriptors of this extractor.

        Raises
        ------
        ArgumentError
            This extractor cannot describe given keypoints, or they are not N finite points inside the image.
        InputError
            The image cannot be used.

        Examples
        --------
        >>> import numpy as np, tiepoint as tp
        >>> image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
        >>> tp.features.load("sift").describe(image, [[20, 30.5], [40, 10]])
        <Features: 2 sift keypoints in 80x60 pixels>
        """
        picture = read_image(image, bands=self.options.bands)
        pixels = picture.pixels
        if self.options.long_side is not None:
            pixels = resize(pixels, self.options.long_side, self.options.enlarge)
        if isinstance(keypoints, Features):
            given = keypoints
        else:
            points = torch.as_tensor(np.asarray(keypoints, np.float32)).reshape(-1, 2)
            given = Features(points, torch.ones(len(points)), torch.zeros(len(points), 0), picture.size, self.name)
        limit = given.keypoints.new_tensor(picture.size) - 0.5
        if not ((given.keypoints >= -0.5) & (given.keypoints <= limit)).all():  # NaN is no such number either
            raise ArgumentError(f"{picture.name}: keypoints to describe must lie inside its {picture.size} pixels")
        described = self._describe(pixels, resized(given, picture.size, pixels.shape[1::-1]))
        described = resized(described, pixels.shape[1::-1], picture.size)
        return replace(described, keypoints=given.keypoints, scales=given.scales)

    def _describe(self, pixels: NDArray[np.uint8], given: Features) -> Features:
        """Return ``given``, in pixels of ``pixels`` (H, W, 3), with descriptors of this extractor."""
        raise ArgumentError(f"{self.name} cannot describe given keypoints; sift, cairn, superpoint and aliked can")

    @property
    def is_network(self) -> bool:
        """Whether it runs on its device, or on all cores, by itself."""
        return any(isinstance(value, torch.nn.Module) for value in vars(self).values())

    def with_options(self, **changes: Any) -> Self:
        """Return the same extractor, with the same network, with some other options.

        Parameters
        ----------
        **changes
            Fields of `ExtractorOptions`.

        Examples
        --------
        >>> import tiepoint as tp
        >>> tp.features.load("sift").with_options(max_keypoints=100).options.max_keypoints
        100
        """
        other = copy.copy(self)
        other.options = replace(self.options, **changes)
        return other

    def with_covariances(self, features: Features) -> Features:
        """Return features of this extractor with covariances: those it predicts, else the same `deviation` for all.

        Only where keypoints of several extractors are fitted together, each has to say how precise it is.

        Examples
        --------
        >>> import numpy as np, tiepoint as tp
        >>> noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
        >>> orb = tp.features.load("orb", max_keypoints=1, long_side=160)
        >>> bool((orb.with_covariances(orb(noise)).covariances[0].diag() == (2 * orb.deviation) ** 2).all())
        True
        """
        if features.covariances is not None:
            return features
        pixel = max(features.image_size) / max(working_size(features.image_size, self.options))
        variance = (self.deviation * pixel) ** 2
        covariances = variance * torch.eye(2, device=features.device).expand(len(features), 2, 2)
        return replace(features, covariances=covariances.contiguous())

    def extract_many(
        self, images: Sequence[ImageSource], masks: Sequence[ImageSource | None] | None = None
    ) -> list[Features]:
        """Extract the features of many images; the result equals calling one by one.

        Parameters
        ----------
        images : sequence of Image, path, array or file object
            The photographs.
        masks : sequence as long as that, or None
            A mask for each, or None where there is none.

        Raises
        ------
        ArgumentError
            There are not as many masks as images.
        InputError
            The first image or mask that cannot be used. To go on without it, call one by one:

        Examples
        --------
        ::

            for path in paths:
                try:
                    features[path] = extractor(path)
                except tiepoint.errors.InputError as error:
                    print(f"skipped: {error}")
        """
        if masks is None:
            masks = [None] * len(images)
        if len(masks) != len(images):
            raise ArgumentError(f"there are {len(masks)} masks for {len(images)} images; give None where there is none")
        return [self(image, mask) for image, mask in zip(images, masks, strict=True)]


def working_size(size: tuple[int, int], options: ExtractorOptions) -> tuple[int, int]:
    """Return the width and height at which an extractor works on an image of ``size``.

    Examples
    --------
    >>> working_size((2000, 1000), ExtractorOptions(long_side=1024))
    (1024, 512)
    """
    factor = 1.0 if options.long_side is None else options.long_side / max(size)
    if not options.enlarge:
        factor = min(factor, 1.0)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def nms(keypoints: torch.Tensor, scores: torch.Tensor, radius: float, most: int | None = None) -> torch.Tensor:
    """Choose keypoints greedily by falling score so that no two are closer than ``radius``.

    Parameters
    ----------
    keypoints : tensor (N, 2)
        (x, y) in pixels.
    scores : tensor (N,)
        Of equal scores the lower index goes first.
    radius : float
        A keypoint goes when a chosen one lies at most this far away in x *and* in y (Chebyshev distance, the
        square window of SuperPoint's suppression). 0 keeps all.
    most : int, optional
        Stop when so many are chosen.

    Returns
    -------
    int64 tensor (K,)
        Indices of the survivors, sorted by falling score, on the device of ``keypoints``.

    Examples
    --------
    >>> import torch
    >>> nms(torch.tensor([[0.0, 0.0], [3.0, 3.0], [9.0, 0.0]]), torch.tensor([0.5, 0.9, 0.1]), radius=3)
    tensor([1, 2])
    """
    order = torch.argsort(scores, descending=True, stable=True)
    if radius <= 0 or len(order) == 0:
        return order[:most]
    return order[torch.from_numpy(suppress(keypoints[order].cpu().numpy(), radius, most)).to(order.device)]


def allowed(keypoints: torch.Tensor, mask: NDArray[np.uint8]) -> torch.Tensor:
    """Return which keypoints (N, 2) the mask (H, W) allows, as a bool tensor (N,).

    A keypoint half-way between pixels needs all those it touches: no rule of rounding then finds it on a 0.
    """
    xy = keypoints.cpu().double().numpy()
    limit = np.array(mask.shape[::-1]) - 1
    x0, y0 = np.clip(np.ceil(xy - 0.5), 0, limit).astype(np.int64).T
    x1, y1 = np.clip(np.floor(xy + 0.5), 0, limit).astype(np.int64).T
    inside = (mask[y0, x0] != 0) & (mask[y0, x1] != 0) & (mask[y1, x0] != 0) & (mask[y1, x1] != 0)
    return torch.from_numpy(inside).to(keypoints.device)


def best(
    keypoints: torch.Tensor, scores: torch.Tensor, mask: NDArray[np.uint8] | None, options: ExtractorOptions
) -> torch.Tensor:
    """Choose the keypoints to keep: allowed by the mask, after NMS, by falling score, the best K of them.

    Parameters
    ----------
    keypoints : tensor (N, 2)
        (x, y) in pixels of the mask.
    scores : tensor (N,)
        Of equal scores the lower index goes first.
    mask : uint8 array (H, W) or None
        0 means "no keypoints here".
    options : ExtractorOptions
        Gives nms_radius (None is 0) and max_keypoints.

    Returns
    -------
    int64 tensor (K,)
        Row numbers of what is kept.

    Examples
    --------
    >>> import torch
    >>> xy = torch.tensor([[0.0, 0.0], [1.0, 0.0], [9.0, 0.0]])
    >>> best(xy, torch.tensor([0.2, 0.9, 0.5]), None, ExtractorOptions(max_keypoints=5, nms_radius=2))
    tensor([1, 2])
    """
    if mask is None:
        return nms(keypoints, scores, options.nms_radius or 0, options.max_keypoints)
    rows = torch.nonzero(allowed(keypoints, mask)).flatten()
    return rows[nms(keypoints[rows], scores[rows], options.nms_radius or 0, options.max_keypoints)]


def finish(features: Features, mask: NDArray[np.uint8] | None, options: ExtractorOptions) -> Features:
    """Return the rows of ``features`` that `best` chooses."""
    return features.select(best(features.keypoints, features.scores, mask, options))


def resized(features: Features, before: tuple[int, ...], after: tuple[int, ...]) -> Features:
    """Map features of an image to those of the image resized (sizes are (width, height) in pixels)."""
    factor = torch.tensor([after[0] / before[0], after[1] / before[1]], device=features.device)
    return replace(
        features,
        keypoints=(features.keypoints + 0.5) * factor - 0.5,
        scales=None if features.scales is None else features.scales * factor.mean(),
        covariances=None if features.covariances is None else factor[:, None] * features.covariances * factor,
        image_size=(after[0], after[1]),
    )


__all__ = [
    "Extractor",
    "ExtractorOptions",
    "Image",
    "allowed",
    "best",
    "finish",
    "nms",
    "resized",
    "working_size",
]
