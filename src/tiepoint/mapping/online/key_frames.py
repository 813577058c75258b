"""The map of a moving camera: key frames, the 3D points that they see, and how both are adjusted.

It is a `pycolmap.Reconstruction` whose image ids are frame numbers + 1. Key frames are stored as an ideal camera would
have seen them, for which COLMAP need not know the lens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...geometry import Camera, homogeneous
from ...geometry.absolute import AbsolutePose, estimate_absolute_pose
from ...geometry.colmap import import_pycolmap, to_colmap
from ...io.video import Frame
from ...matchers import Matcher
from ...matchers.overlay import without_overlay
from ...types import Features, Matches
from ..models import point_ids, shared_points
from ..pairs.retrieval import unit_descriptors

if TYPE_CHECKING:
    import pycolmap

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

LEAST_ANGLE = np.deg2rad(0.5)  # of a triangulated point
LOCAL_STEPS, GLOBAL_STEPS = 15, 50  # of the bundle adjustment
VOTERS = 200  # keypoints of a frame that vote for similar key frames


@dataclass(frozen=True, eq=False)
class View:
    """A frame and its features.

    Attributes
    ----------
    frame : Frame
        Without its pixels.
    features : Features
        N keypoints.
    rays : float64 array (N, 2)
        Where their rays meet the plane z = 1.
    colours : uint8 array (N, 3)
        RGB at the keypoints.
    thumbnail : uint8 array (h, w, 3)
        The picture, small.
    """

    frame: Frame
    features: Features
    rays: Array
    colours: NDArray[np.uint8]
    thumbnail: NDArray[np.uint8]

    @property
    def image_id(self) -> int:
        """Its number in the reconstruction."""
        return self.frame.index + 1


class KeyFrameMap:
    """Key frames and points.

    Parameters
    ----------
    camera : Camera
        Intrinsics of all frames.
    matcher : Matcher
    threshold : float
        Largest reprojection error of a right match, in pixels.
    """

    reconstruction: pycolmap.Reconstruction

    def __init__(self, camera: Camera, matcher: Matcher, threshold: float) -> None:
        pycolmap = import_pycolmap()
        self.camera, self.matcher, self.threshold = camera, matcher, threshold
        self.views: dict[int, View] = {}  # key frames by image id, in order of time
        self.reconstruction = pycolmap.Reconstruction()
        self._ideal = Camera.from_K(camera.K, (camera.width, camera.height))
        ideal = self._ideal.to_pycolmap()
        ideal.camera_id = 1
        self.reconstruction.add_camera_with_trivial_rig(ideal)

    # ---- what it holds ----

    def add_key_frame(self, view: View, R: Array, t: Array) -> None:
        """Add a frame at a pose."""
        pycolmap = import_pycolmap()
        image = pycolmap.Image(
            name=view.frame.name,
            keypoints=to_colmap(self._ideal.project(homogeneous(view.rays))),
            camera_id=1,
            image_id=view.image_id,
        )
        self.reconstruction.add_image_with_trivial_frame(image, pycolmap.Rigid3d(np.column_stack([R, t])))
        self.views[view.image_id] = view

    def add_points(self, view0: View, view1: View, rows: Indices, world: Array) -> None:
        """Add points (N, 3) that two key frames see by their keypoints ``rows`` (N, 2)."""
        pycolmap = import_pycolmap()
        for (i, j), xyz in zip(rows.tolist(), world, strict=True):
            elements = [pycolmap.TrackElement(view0.image_id, i), pycolmap.TrackElement(view1.image_id, j)]
            self.reconstruction.add_point3D(xyz, pycolmap.Track(elements), view0.colours[i])

    def observe(self, points: Indices, view: View, keypoints: Indices) -> None:
        """Record that a key frame sees points (N,) by its keypoints (N,)."""
        element = import_pycolmap().TrackElement
        for point, keypoint in zip(points.tolist(), keypoints.tolist(), strict=True):
            self.reconstruction.add_observation(point, element(view.image_id, keypoint))

    def point_ids(self, view: View) -> Indices:
        """Return the 3D point that each keypoint of a key frame observes, int64 (N,); -1 for none."""
        return point_ids(self.reconstruction.image(view.image_id))

    def places(self, ids: Indices) -> Array:
        """Return where points are, float64 (N, 3)."""
        return np.array([self.reconstruction.point3D(i).xyz for i in ids]).reshape(-1, 3)

    def pose(self, image_id: int) -> tuple[Array, Array]:
        """Return a key frame's (R, t), world to camera."""
        matrix = self.reconstruction.image(image_id).cam_from_world().matrix()
        return matrix[:, :3], matrix[:, 3]

    def neighbours(self, view: View) -> dict[int, int]:
        """Return how many points each key frame shares with this one, those that share most first."""
        shared: Counter[int] = Counter()
        ids = self.point_ids(view)
        for point in ids[ids >= 0].tolist():
            shared.update({element.image_id for element in self.reconstruction.point3D(point).track.elements})
        shared.pop(view.image_id, None)
        return dict(sorted(shared.items(), key=lambda item: (-item[1], -item[0])))

    def shared(self) -> dict[tuple[int, int], int]:
        """Return how many points two key frames share, by their image ids, the older first; only if they share any."""
        return dict(shared_points(self.reconstruction))

    # ---- frames against it ----

    def match(self, key: View, view: View) -> Matches:
        """Match a frame with a key frame; what is burnt into both does not count."""
        return without_overlay(self.matcher(key.features, view.features), key.features, view.features, least_moving=0)

    def most_similar(self, view: View, among: Sequence[View], count: int) -> list[View]:
        """Return the key frames that look most like a frame: its best keypoints vote for where their nearest is."""
        descriptors = [unit_descriptors(key.features, VOTERS) for key in among]
        owner = np.repeat(np.arange(len(among)), [len(part) for part in descriptors])
        if not len(owner):
            return []
        nearest = (unit_descriptors(view.features, VOTERS) @ np.concatenate(descriptors).T).argmax(axis=1)
        votes = np.bincount(owner[nearest], minlength=len(among))
        # Of equals the newest.
        return [among[i] for i in np.lexsort([np.arange(len(among)), votes])[::-1][:count]]

    def match_similar(self, view: View, among: Sequence[View], count: int) -> list[tuple[View, Matches]]:
        """Match a frame with the ``count`` key frames that look most like it."""
        similar = self.most_similar(view, among, count)
        results = self.matcher.match_many([(key.features, view.features) for key in similar])
        return list(zip(similar, results, strict=True))

    def find_pose(self, view: View, matched: Sequence[tuple[View, Matches]]) -> tuple[AbsolutePose, Indices, Indices]:
        """Return (pose, keypoints, points): the rows of the frame's keypoints and ids of 3D points that agree."""
        rows = [np.zeros((0, 2), np.int64)]
        for key, matches in matched:
            ids = self.point_ids(key)[matches.indices[:, 0]]
            rows.append(np.column_stack([matches.indices[:, 1], ids])[ids >= 0])
        pairs = np.unique(np.concatenate(rows), axis=0)
        pixels = view.features.keypoints.cpu().numpy()[pairs[:, 0]]
        pose = estimate_absolute_pose(pixels, self.places(pairs[:, 1]), self.camera, self.threshold)
        # Two key frames may offer one keypoint two points, or one point two keypoints: the first of them stays.
        kept = none_twice(pairs[pose.inliers])
        return pose, kept[:, 0], kept[:, 1]

    def seeing_most(self, keys: Iterable[View], points: Indices) -> View:
        """Return the key frame that sees most of the points."""
        return max(keys, key=lambda key: int(np.isin(points, self.point_ids(key)).sum()))

    # ---- more points ----

    def tie(self, old: View, new: View, rows: Indices) -> None:
        """Turn the matches of two key frames into observations of points and into new points."""
        old_ids, new_ids = self.point_ids(old)[rows[:, 0]], self.point_ids(new)[rows[:, 1]]
        fresh = rows[(old_ids < 0) & (new_ids < 0)]
        pose0, pose1 = self.pose(old.image_id), self.pose(new.image_id)
        world, good = self.triangulate(pose0, pose1, old.rays[fresh[:, 0]], new.rays[fresh[:, 1]])
        self.add_points(old, new, fresh[good], world[good])
        # A point that one of them knows already: does it project to where the other one has the match?
        for view, pose, here, ids in ((new, pose1, new_ids, old_ids), (old, pose0, old_ids, new_ids)):
            candidates = np.flatnonzero((here < 0) & (ids >= 0) & ~np.isin(ids, self.point_ids(view)))
            keypoints = rows[candidates, 1 if view is new else 0]
            agrees = self.errors(pose, self.places(ids[candidates]), view.rays[keypoints]) <= self.threshold
            self.observe(ids[candidates][agrees], view, keypoints[agrees])

    def triangulate(
        self, pose0: tuple[Array, Array], pose1: tuple[Array, Array], x0: Array, x1: Array
    ) -> tuple[Array, NDArray[np.bool_]]:
        """Return 3D points (N, 3) of matched rays (N, 2), and which are in front, in agreement and not too far."""
        if len(x0) == 0:
            return np.zeros((0, 3)), np.zeros(0, bool)
        P0, P1 = (np.column_stack(pose) for pose in (pose0, pose1))
        # x (P[2] X) = P[0] X and y (P[2] X) = P[1] X for both views: X is the null vector of these four rows.
        A = np.stack([x[:, [i]] * P[2] - P[i] for x, P in ((x0, P0), (x1, P1)) for i in (0, 1)], axis=1)
        X = np.linalg.svd(A)[2][:, -1]
        with np.errstate(divide="ignore", invalid="ignore"):
            world = X[:, :3] / X[:, 3:]
            centres = [-R.T @ t for R, t in (pose0, pose1)]
            angle = angles(world - centres[0], world - centres[1])
            error = np.maximum(self.errors(pose0, world, x0), self.errors(pose1, world, x1))
        return world, (error <= self.threshold) & (angle >= LEAST_ANGLE)

    def errors(self, pose: tuple[Array, Array], world: Array, rays: Array) -> Array:
        """Return reprojection errors (N,) in pixels without distortion; infinite behind the camera."""
        local = world @ pose[0].T + pose[1]
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.linalg.norm((local[:, :2] / local[:, 2:] - rays) * self.camera.focal_lengths, axis=1)
        return np.where(local[:, 2] > 0, error, np.inf)

    # ---- bundle adjustment ----

    def adjust(self, image_ids: Sequence[int], steps: int = LOCAL_STEPS) -> None:
        """Adjust these key frames and the points they see; others that see those points stay and hold them."""
        pycolmap = import_pycolmap()
        config = pycolmap.BundleAdjustmentConfig()
        points: set[int] = set()
        for image_id in image_ids:
            config.add_image(image_id)
            points.update(self.point_ids(self.views[image_id]).tolist())
        points.discard(-1)
        if len(image_ids) == len(self.views):
            config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
        else:  # the two oldest keep place, direction and scale
            for image_id in sorted(image_ids)[:2]:
                config.set_constant_rig_from_world_pose(self.reconstruction.image(image_id).frame_id)
        config.set_constant_cam_intrinsics(1)
        for point in points:
            config.add_variable_point(point)
        options = pycolmap.BundleAdjustmentOptions(print_summary=False)
        options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
        options.ceres.loss_function_scale = self.threshold / 2
        options.ceres.solver_options.max_num_iterations = steps
        options.ceres.solver_options.num_threads = 1  # so that the same video gives the same path
        pycolmap.create_default_bundle_adjuster(options, config, self.reconstruction).solve()
        observations = pycolmap.ObservationManager(self.reconstruction)
        observations.filter_points3D(self.threshold, np.rad2deg(LEAST_ANGLE) / 2, points)

    def adjust_all(self) -> dict[int, float]:
        """Adjust all key frames and points, the first key frame aside.

        Returns
        -------
        dict
            Image id of each key frame -> how much longer its unit of length was than it is now: its points have come
            nearer by this factor.
        """
        before = {image_id: self.depths(view) for image_id, view in self.views.items()}
        self.adjust(list(self.views), GLOBAL_STEPS)
        scales = {}
        for image_id, view in self.views.items():
            was, now = before[image_id], self.depths(view)
            ratios = [was[point] / now[point] for point in was.keys() & now.keys() if was[point] > 0 < now[point]]
            scales[image_id] = float(np.median(ratios)) if ratios else 1.0
        return scales

    def depths(self, view: View) -> dict[int, float]:
        """Return the depth of each point that a key frame sees."""
        ids = self.point_ids(view)
        ids = ids[ids >= 0]
        R, t = self.pose(view.image_id)
        return dict(zip(ids.tolist(), (self.places(ids) @ R.T + t)[:, 2].tolist(), strict=True))


def none_twice(pairs: Indices) -> Indices:
    """Leave out pairs (N, 2) of which a number stands in the same column of one before.

    Examples
    --------
    >>> none_twice(np.array([[1, 5], [1, 6], [2, 5], [3, 7]])).tolist()
    [[1, 5], [3, 7]]
    """
    for column in (0, 1):
        pairs = pairs[np.sort(np.unique(pairs[:, column], return_index=True)[1])]
    return pairs


def angles(a: Array, b: Array) -> Array:
    """Return the angles (N,) between vectors (N, 3), in radians."""
    return np.arctan2(np.linalg.norm(np.cross(a, b), axis=1), (a * b).sum(axis=1))
