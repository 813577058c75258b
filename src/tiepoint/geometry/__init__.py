"""Two-view geometry: homographies, epipolar geometry, cameras, and their robust estimation from matches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._arrays import homogeneous
from .camera import Camera
from .epipolar import (
    essential_from_pose,
    fundamental_from_pose,
    pose_error,
    relative_pose,
    sampson_error,
    symmetric_epipolar_error,
)
from .homography import corner_error, estimate_dlt, reprojection_error, symmetric_transfer_error, transform

if TYPE_CHECKING:
    from .robust import Estimate, estimate_fundamental, estimate_homography, estimate_relative_pose

_ROBUST = frozenset({"Estimate", "estimate_fundamental", "estimate_homography", "estimate_relative_pose"})

__all__ = [
    "Camera",
    "Estimate",
    "corner_error",
    "essential_from_pose",
    "estimate_dlt",
    "estimate_fundamental",
    "estimate_homography",
    "estimate_relative_pose",
    "fundamental_from_pose",
    "homogeneous",
    "pose_error",
    "relative_pose",
    "reprojection_error",
    "sampson_error",
    "symmetric_epipolar_error",
    "symmetric_transfer_error",
    "transform",
]


def __getattr__(name: str) -> Any:
    """Import robust estimation when it is asked for: it loads OpenCV and PoseLib, 20 MB that few need."""
    if name in _ROBUST:
        from . import robust

        return getattr(robust, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
