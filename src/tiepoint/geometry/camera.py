"""Cameras: COLMAP's common models, in tiepoint's pixel convention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ArgumentError
from ._arrays import Array, as_array
from .colmap import import_pycolmap

FOCAL_FACTOR = 1.2
"""Focal length over long side where nobody knows better: a field of view of 45 degrees."""

# model -> names of its parameters, in COLMAP's order. "f" alone means fx = fy.
MODELS: dict[str, tuple[str, ...]] = {
    "SIMPLE_PINHOLE": ("f", "cx", "cy"),
    "PINHOLE": ("fx", "fy", "cx", "cy"),
    "SIMPLE_RADIAL": ("f", "cx", "cy", "k1"),
    "RADIAL": ("f", "cx", "cy", "k1", "k2"),
    "OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2"),
    "FULL_OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"),
    "SIMPLE_RADIAL_FISHEYE": ("f", "cx", "cy", "k1"),
    "RADIAL_FISHEYE": ("f", "cx", "cy", "k1", "k2"),
    "OPENCV_FISHEYE": ("fx", "fy", "cx", "cy", "k1", "k2", "k3", "k4"),
    "SIMPLE_FISHEYE": ("f", "cx", "cy"),
    "FISHEYE": ("fx", "fy", "cx", "cy"),
    "FOV": ("fx", "fy", "cx", "cy", "omega"),
    "THIN_PRISM_FISHEYE": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "k4", "sx1", "sy1"),
    "RAD_TAN_THIN_PRISM_FISHEYE": (
        "fx", "fy", "cx", "cy", "k0", "k1", "k2", "k3", "k4", "k5", "p0", "p1", "s0", "s1", "s2", "s3"
    ),
    "SIMPLE_DIVISION": ("f", "cx", "cy", "k"),
    "DIVISION": ("fx", "fy", "cx", "cy", "k"),
    "EUCM": ("fx", "fy", "cx", "cy", "alpha", "beta"),
}  # fmt: skip

BY_COLMAP = ("FOV", "THIN_PRISM_FISHEYE", "RAD_TAN_THIN_PRISM_FISHEYE", "SIMPLE_DIVISION", "DIVISION", "EUCM")
"""Rare models, whose formulas are left to pycolmap; it has to be installed to use them."""


@dataclass(frozen=True)
class Camera:
    """Intrinsics of a camera.

    Attributes
    ----------
    model : str
        One of COLMAP's models for lenses, see `MODELS`: all but the one for panoramas, ``EQUIRECTANGULAR``.
    width, height : int
        Size of the image in pixels.
    params : tuple of float
        The model's parameters in COLMAP's order (see `MODELS`), but with the principal point counted from the
        centre of the top-left pixel, half a pixel less than in COLMAP; `from_colmap` and `to_colmap` convert.

    Raises
    ------
    ArgumentError
        Unknown model, wrong number of parameters, or a focal length or size that is not positive.

    References
    ----------
    The models are those of COLMAP's ``sensor/models.h``; the distortions are OpenCV's (calib3d and fisheye).

    Examples
    --------
    >>> camera = Camera("SIMPLE_RADIAL", 640, 480, (500.0, 319.5, 239.5, -0.1))
    >>> camera.project([[0.5, 0.0, 1.0]])
    array([[563.25, 239.5 ]])
    >>> camera.normalise([[563.25, 239.5]])
    array([[0.5, 0. ]])
    """

    model: str
    width: int
    height: int
    params: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ArgumentError(f"no camera model is called {self.model!r}; there are: {', '.join(MODELS)}")
        names = MODELS[self.model]
        params = tuple(float(value) for value in self.params)
        if len(params) != len(names):
            raise ArgumentError(f"{self.model} takes {len(names)} parameters ({', '.join(names)}), not {len(params)}")
        object.__setattr__(self, "params", params)
        if not np.isfinite(params).all() or min(self.focal_lengths) <= 0:
            raise ArgumentError(f"camera parameters must be finite and focal lengths positive, not {params}")
        if self.width < 1 or self.height < 1:
            raise ArgumentError(f"camera size must be at least 1x1 pixels, not {self.width}x{self.height}")

    @classmethod
    def from_K(cls, K: ArrayLike, size: tuple[int, int]) -> Camera:
        """Return the PINHOLE camera of a calibration matrix (3, 3) without skew; ``size`` is (width, height).

        Examples
        --------
        >>> Camera.from_K([[500, 0, 319.5], [0, 510, 239.5], [0, 0, 1]], (640, 480)).params
        (500.0, 510.0, 319.5, 239.5)
        """
        K = as_array(K, (3, 3), "K")
        if K[0, 1] or K[1, 0] or (K[2] != (0, 0, 1)).any():
            raise ArgumentError(f"K must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], not {K.tolist()}")
        return cls("PINHOLE", *size, (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))

    @classmethod
    def from_focal(cls, focal: float, size: tuple[int, int]) -> Camera:
        """Return the SIMPLE_PINHOLE camera of a focal length in pixels, centred on the image.

        Examples
        --------
        >>> Camera.from_focal(500, (640, 480)).params
        (500.0, 319.5, 239.5)
        """
        width, height = size
        return cls("SIMPLE_PINHOLE", width, height, (focal, (width - 1) / 2, (height - 1) / 2))

    @classmethod
    def from_colmap(cls, model: str, width: int, height: int, params: Sequence[float]) -> Camera:
        """Return the camera that COLMAP describes so; COLMAP counts pixels from the image's corner.

        Examples
        --------
        >>> Camera.from_colmap("SIMPLE_PINHOLE", 640, 480, (500, 320, 240)).params
        (500.0, 319.5, 239.5)
        """
        return cls(model, width, height, _shift_principal_point(model, params, -0.5))

    def to_colmap(self) -> tuple[str, int, int, tuple[float, ...]]:
        """Return (model, width, height, params) as COLMAP counts: principal point from the image's corner.

        Examples
        --------
        >>> Camera.from_focal(500, (640, 480)).to_colmap()
        ('SIMPLE_PINHOLE', 640, 480, (500.0, 320.0, 240.0))
        """
        return self.model, self.width, self.height, _shift_principal_point(self.model, self.params, 0.5)

    def to_pycolmap(self) -> Any:
        """Return the `pycolmap.Camera` that is this one, without an id."""
        model, width, height, params = self.to_colmap()
        return import_pycolmap().Camera(model=model, width=width, height=height, params=params)

    @property
    def focal_lengths(self) -> tuple[float, float]:
        """(fx, fy) in pixels."""
        return self.params[0], self.params[MODELS[self.model].index("cx") - 1]

    @property
    def principal_point(self) -> tuple[float, float]:
        """(cx, cy) in pixels."""
        at = MODELS[self.model].index("cx")
        return self.params[at], self.params[at + 1]

    @property
    def K(self) -> Array:
        """Calibration matrix (3, 3), which leaves the distortion out."""
        (fx, fy), (cx, cy) = self.focal_lengths, self.principal_point
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])

    def project(self, points: ArrayLike) -> Array:
        """Project points of the camera's frame into the image.

        Parameters
        ----------
        points : array (N, 3)
            x right, y down, z forward, in any unit.

        Returns
        -------
        float64 array (N, 2)
            Pixels, also outside the image; nan for points that are not in front of the camera (z <= 0).

        Raises
        ------
        ArgumentError
            Wrong shape.
        """
        points = as_array(points, (None, 3), "points")
        if self.model in BY_COLMAP:
            return self._project_by_colmap(points)
        z = np.where(points[:, 2:] > 0, points[:, 2:], np.nan)
        return self._distort(points[:, :2] / z) * self.focal_lengths + self.principal_point

    def normalise(self, pixels: ArrayLike) -> Array:
        """Return where the rays of pixels meet the plane z = 1: the inverse of `project`.

        Parameters
        ----------
        pixels : array (N, 2)
            (x, y) in pixels.

        Returns
        -------
        float64 array (N, 2)
            (x / z, y / z) without distortion; nan for a pixel that no ray in front of the camera reaches.

        Raises
        ------
        ArgumentError
            Wrong shape.
        """
        pixels = as_array(pixels, (None, 2), "pixels")
        if self.model in BY_COLMAP:
            rays = np.asarray(self.to_pycolmap().cam_from_img(pixels + 0.5), np.float64).reshape(-1, 2)
            back = self._project_by_colmap(np.column_stack([rays, np.ones(len(rays))]))
            with np.errstate(invalid="ignore"):  # its iterations may end where no ray comes from
                return np.where((np.abs(back - pixels) < 1e-3).all(axis=1, keepdims=True), rays, np.nan)
        distorted = (pixels - self.principal_point) / self.focal_lengths
        if self.model in ("SIMPLE_PINHOLE", "PINHOLE"):
            return distorted
        with np.errstate(all="ignore"):  # iterations that run away are caught below, as nan
            return self._undistort_fisheye(distorted) if self._is_fisheye else self._undistort(distorted)

    def _project_by_colmap(self, points: Array) -> Array:
        front = np.where(points[:, 2:] > 0, points, (0.0, 0.0, 1.0))
        pixels = np.asarray(self.to_pycolmap().img_from_cam(front), np.float64).reshape(-1, 2) - 0.5
        return np.where(points[:, 2:] > 0, pixels, np.nan)

    @property
    def _is_fisheye(self) -> bool:
        return self.model.endswith("FISHEYE")

    @property
    def _coefficients(self) -> tuple[Array, tuple[float, float]]:
        """Radial (k1 ... k6) and tangential (p1, p2) coefficients; those the model lacks are zero."""
        given = dict(zip(MODELS[self.model], self.params, strict=True))
        radial = np.array([given.get(f"k{i}", 0.0) for i in range(1, 7)])
        return radial, (given.get("p1", 0.0), given.get("p2", 0.0))

    def _distort(self, points: Array) -> Array:
        """Distort points (N, 2) of the plane z = 1."""
        (k1, k2, k3, k4, k5, k6), (p1, p2) = self._coefficients
        if self._is_fisheye:
            radius = np.linalg.norm(points, axis=1, keepdims=True)
            angle = np.arctan(radius)
            distorted = angle * np.polyval([k4, k3, k2, k1, 1], angle**2)
            return points * np.divide(distorted, radius, out=np.ones_like(radius), where=radius > 0)
        x, y = points.T
        r2 = x * x + y * y
        radial = np.polyval([k3, k2, k1, 1], r2) / np.polyval([k6, k5, k4, 1], r2)
        return np.column_stack(
            [
                x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
                y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y * y),
            ]
        )

    def _undistort(self, distorted: Array) -> Array:
        """Invert `_distort` by Newton's method, with central differences for the derivatives."""
        points, step = distorted.copy(), 1e-6
        dx, dy = step * np.eye(2)
        for _ in range(50):
            residual = self._distort(points) - distorted
            # Columns of the Jacobian: how the distorted x and y change along x, and along y.
            xx, yx = ((self._distort(points + dx) - self._distort(points - dx)) / (2 * step)).T
            xy, yy = ((self._distort(points + dy) - self._distort(points - dy)) / (2 * step)).T
            determinant = xx * yy - xy * yx
            if np.nanmax(np.abs(residual), initial=0) < 1e-12:
                break
            u, v = residual.T
            points -= np.column_stack([yy * u - xy * v, xx * v - yx * u]) / determinant[:, None]
        # Beyond the radius where the image folds back there are roots that no ray through the real lens
        # takes.
        valid = (np.abs(residual).max(axis=1) < 1e-9) & (determinant > 0)
        return np.where(valid[:, None], points, np.nan)

    def _undistort_fisheye(self, distorted: Array) -> Array:
        """Invert `_distort` for fisheye models: Newton's method for the angle from the axis alone."""
        k1, k2, k3, k4 = self._coefficients[0][:4]
        radius = np.linalg.norm(distorted, axis=1, keepdims=True)
        angle = radius.copy()
        for _ in range(50):
            residual = angle * np.polyval([k4, k3, k2, k1, 1], angle**2) - radius
            slope = np.polyval([9 * k4, 7 * k3, 5 * k2, 3 * k1, 1], angle**2)
            if np.nanmax(np.abs(residual), initial=0) < 1e-14:
                break
            angle = angle - residual / slope
        valid = (np.abs(residual) < 1e-9) & (slope > 0) & (angle >= 0) & (angle < np.pi / 2)
        factor = np.divide(np.tan(angle), radius, out=np.ones_like(radius), where=radius > 0)
        return np.where(valid, distorted * factor, np.nan)


def _shift_principal_point(model: str, params: Sequence[float], shift: float) -> tuple[float, ...]:
    names = MODELS.get(model, ())
    return tuple(
        float(value) + (shift if i < len(names) and names[i] in ("cx", "cy") else 0) for i, value in enumerate(params)
    )
