"""Two-view geometry: homographies, epipolar geometry, cameras, and their robust estimation from matches."""

from __future__ import annotations

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
from .robust import Estimate, estimate_fundamental, estimate_homography, estimate_relative_pose

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
