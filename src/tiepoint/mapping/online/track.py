"""Visual odometry: follow a moving camera, frame by frame, and map what it sees on the way.

`Tracker` takes one `Frame` after the other and returns the pose of each at once. It works as monocular SLAM systems do
since PTAM (Klein and Murray, ISMAR 2007):

1. Start: two frames far enough apart give a relative pose, and their matches the first 3D points.
2. Track: each frame is matched with the reference key frame; its pose follows from the 3D points seen there.
3. Key frames: a frame that sees too little of the reference becomes one; matches with its neighbours give new points.
4. The map: the new key frame, those that share most points with it, and these points are adjusted (pycolmap).
5. Lost: the most similar key frames are found, and tracking continues from there.

One camera does not measure scale: the unit is the median depth of the first points, and it drifts on a long way.
Loops are not closed; for that, `tiepoint map` the key frames of the video.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ... import geometry, pipeline
from ...errors import ArgumentError, InputError
from ...features import Extractor, ExtractorOptions
from ...geometry import Camera, homogeneous
from ...geometry.absolute import AbsolutePose, estimate_absolute_pose
from ...geometry.colmap import import_pycolmap, to_colmap
from ...io.video import Frame
from ...matchers import Matcher
from ...matchers.overlay import without_overlay
from ...types import Features, Matches
from ..exchange.tum import Pose
from ..pairs.retrieval import unit_descriptors

if TYPE_CHECKING:
    import pycolmap

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Status = Literal["starting", "tracked", "relocalised", "lost"]

LEAST_MATCHES = 50  # of two frames that start a map
LEAST_POINTS = 50  # 3D points of a new map
LEAST_INLIERS = 20  # matches with 3D points that a pose needs; by chance a handful agree
LEAST_TO_RELOCALISE = 30  # the same where nothing says that the camera is near
LEAST_TRACKED = 10  # frames; a map that was lost after fewer was a false start, and is deleted
START_ANGLE = np.deg2rad(1.5)  # median angle between the rays of a point from the two first key frames
LEAST_ANGLE = np.deg2rad(0.5)  # of a triangulated point
KEEP_SHARE = 0.5  # of the reference's points in view; with fewer a new key frame is due
MOST_WAITING = 500  # frames
PARTNERS = 3  # key frames that a new one is matched with
SIMILAR = 4  # key frames that a lost frame is matched with
VOTERS = 200  # keypoints of a frame that vote for similar key frames


@dataclass(frozen=True, eq=False)
class State:
    """What the tracker knows after a frame.

    Attributes
    ----------
    status : {"starting", "tracked", "relocalised", "lost"}
        ``starting`` while there is no map yet; ``relocalised`` for the first frame after a loss.
    pose : Pose or None
        None unless tracked or relocalised.
    inliers : int
        Matches with 3D points that agree with the pose.
    is_key_frame : bool
        Whether it became one.
    points, key_frames : int
        Size of the map.
    """

    status: Status
    pose: Pose | None
    inliers: int
    is_key_frame: bool
    points: int
    key_frames: int


@dataclass(frozen=True, eq=False)
class _View:
    """A frame and its features; ``rays`` (N, 2) is where their rays meet the plane z = 1."""

    frame: Frame
    features: Features
    rays: Array

    @property
    def image_id(self) -> int:
        return self.frame.index + 1


@dataclass(frozen=True, eq=False)
class _Seen:
    """A frame's pose relative to a key frame, so that it moves along when that one is adjusted."""

    index: int
    time: float
    key: int | None = None
    R: Array = field(default_factory=lambda: np.eye(3))
    t: Array = field(default_factory=lambda: np.zeros(3))


class Tracker:
    """Visual odometry with key frames for one moving camera.

    Parameters
    ----------
    camera : Camera
        Its intrinsics, the same for all frames.
    features : str or Extractor
        One of `tiepoint.features.names`, or an extractor that is already loaded.
    matcher : str or Matcher
        One of `tiepoint.matchers.names`, a loaded matcher, or ``"auto"``: the best for these features.
    max_keypoints, long_side : int or None
        As in `tiepoint.match`; a loaded extractor has its own.
    window : int
        Key frames that are adjusted at a time.
    threshold : float
        Largest reprojection error of a right match, in pixels at the working size that ``long_side`` gives.
    device : torch.device or str
        Where networks run; ``"auto"`` is `tiepoint.devices.best_device`.

    Attributes
    ----------
    reconstruction : pycolmap.Reconstruction
        The map: key frames and points, seen by a camera without distortion. ``write`` it for other programs.
    choice : str
        Which extractor and matcher are used, and why.

    Raises
    ------
    ArgumentError
        An unknown name, or an option out of range.
    WeightsError, MissingDependencyError
        Weights of the extractor or matcher, or pycolmap, are not on this machine.

    Examples
    --------
    ::

        tracker = Tracker(Camera.from_focal(700, (1280, 720)))
        for frame in read_frames("clip.mp4"):
            state = tracker(frame)
            print(state.status, state.pose and state.pose.centre)
        write_tum("trajectory.txt", tracker.trajectory())
    """

    reconstruction: pycolmap.Reconstruction

    def __init__(
        self,
        camera: Camera,
        features: str | Extractor = "sift",
        matcher: str | Matcher = "auto",
        *,
        max_keypoints: int | None = 1500,
        long_side: int | None = 1024,
        window: int = 8,
        threshold: float = 2.0,
        device: torch.device | str | None = "auto",
    ) -> None:
        if window < 3:
            raise ArgumentError(f"window must be at least 3 key frames, not {window}")
        if not threshold > 0:
            raise ArgumentError(f"threshold must be a positive number of pixels, not {threshold}")
        import_pycolmap()
        options = ExtractorOptions(max_keypoints=max_keypoints, long_side=long_side)
        self.extractor, self.matcher, self.choice = pipeline.load(features, matcher, device, options)
        self.camera = camera
        self.window = window
        working = self.extractor.options.long_side or max(camera.width, camera.height)
        self.threshold = threshold * max(1.0, max(camera.width, camera.height) / working)
        self._seen: list[_Seen] = []
        self._start_over()

    def __call__(self, frame: Frame) -> State:
        """Take the next frame, and return where the camera is.

        Raises
        ------
        InputError
            The frame is not of the camera's size.
        ArgumentError
            Its index is not larger than that of the frame before.
        """
        if self._seen and frame.index <= self._seen[-1].index:
            raise ArgumentError(f"{frame.name}: frame {frame.index} cannot follow frame {self._seen[-1].index}")
        height, width = frame.pixels.shape[:2]
        if (width, height) != (self.camera.width, self.camera.height):
            raise InputError(
                f"{frame.name}: is {width}x{height} pixels, but the camera has {self.camera.width}x{self.camera.height}"
            )
        features = self.extractor(frame.pixels, frame.mask)
        rays = self.camera.normalise(features.keypoints.cpu().numpy())
        real = np.isfinite(rays).all(axis=1)
        # Of a frame the features are kept, not the picture (of which even an empty slice would hold all in memory).
        kept = replace(frame, pixels=np.zeros((0, 0, 3), np.uint8))
        view = _View(kept, features.select(torch.from_numpy(real)), rays[real])
        self._seen.append(_Seen(frame.index, frame.time))
        if not self._views:
            return self._start(view)
        if self._reference is not None:
            return self._track(view)
        return self._relocalise(view)

    def trajectory(self) -> list[Pose]:
        """Return the poses of all frames so far that have one, as they are known by now.

        They differ a little from those given at the time: key frames have been adjusted since, and frames from before
        the start of the map have been found in it.
        """
        return [pose for pose in map(self._pose_of, self._seen) if pose is not None]

    # ---- 1. start ----

    def _start_over(self) -> None:
        """Forget the map."""
        pycolmap = import_pycolmap()
        self.reconstruction = pycolmap.Reconstruction()
        self._views: dict[int, _View] = {}  # key frames by image id
        self._reference: _View | None = None  # the key frame that frames are matched with; None while lost
        self._tracked = 0  # frames
        self._waiting: list[tuple[_View, Matches | None]] = []  # frames before the map, with their matches to the first
        # Key frames are stored as an ideal camera would have seen them, for which COLMAP need not know the lens.
        self._ideal = Camera.from_K(self.camera.K, (self.camera.width, self.camera.height))
        model, width, height, params = self._ideal.to_colmap()
        self.reconstruction.add_camera_with_trivial_rig(
            pycolmap.Camera(model=model, width=width, height=height, params=params, camera_id=1)
        )
        self._seen = [replace(one, key=None) for one in self._seen]

    def _start(self, view: _View) -> State:
        """Try to make a map from the first waiting frame and this one."""
        first = self._waiting[0][0] if self._waiting else None
        matches = None if first is None else self._match(first, view)
        if first is None or matches is None or len(matches) < LEAST_MATCHES:  # the first is out of sight, or blurred
            self._waiting = [(view, None)]
            return self._state("starting")
        self._wait(view, matches)
        found = geometry.estimate_relative_pose(
            matches.points0, matches.points1, self.camera, self.camera, threshold=self.threshold / 2,
            covariances=matches.covariances,
        )  # fmt: skip
        if found.R is None or found.t is None:
            return self._state("starting")
        rows = matches.indices[found.inliers]
        x0, x1 = first.rays[rows[:, 0]], view.rays[rows[:, 1]]
        if np.median(_angles(homogeneous(x0) @ found.R.T, homogeneous(x1))) < START_ANGLE:
            return self._state("starting")
        world, good = self._triangulate((np.eye(3), np.zeros(3)), (found.R, found.t), x0, x1)
        if good.sum() < LEAST_POINTS:
            return self._state("starting")
        scale = 1 / np.median(world[good, 2])
        self._add_key_frame(first, np.eye(3), np.zeros(3))
        self._add_key_frame(view, found.R, scale * found.t)
        self._add_points(first, view, rows[good], scale * world[good])
        self._adjust([first.image_id, view.image_id])
        if self.reconstruction.num_points3D() < LEAST_POINTS:  # too few survived
            self._start_over()
            return self._start(view)
        for between, its_matches in self._waiting[1:-1]:
            if its_matches is not None:
                pose, _, _ = self._find_pose(between, [(first, its_matches)])
                self._place(between, first, pose)
        self._waiting = []
        self._reference = view
        return self._state("tracked", self.reconstruction.num_points3D(), is_key_frame=True)

    def _wait(self, view: _View, matches: Matches) -> None:
        """Keep of a frame what it takes to place it once there is a map; of a camera at rest not all of them."""
        small = replace(view.features, descriptors=view.features.descriptors[:, :0])
        self._waiting.append((replace(view, features=small), matches))
        if len(self._waiting) > MOST_WAITING:
            del self._waiting[1]

    # ---- 2. track ----

    def _track(self, view: _View) -> State:
        reference = self._reference
        assert reference is not None
        matches = self._match(reference, view)
        pose, keypoints, points = self._find_pose(view, [(reference, matches)])
        inliers = len(points)
        if inliers < LEAST_INLIERS:
            return self._relocalise(view)
        self._tracked += 1
        self._place(view, reference, pose)
        due = inliers < KEEP_SHARE * self.reconstruction.image(reference.image_id).num_points3D
        if due:
            self._insert(view, pose, keypoints, points, {reference.image_id: matches})
        return self._state("tracked", inliers, is_key_frame=due)

    def _match(self, key: _View, view: _View) -> Matches:
        """Match a frame with a key frame; what is burnt into both does not count."""
        return without_overlay(self.matcher(key.features, view.features), key.features, view.features, least_moving=0)

    def _find_pose(
        self, view: _View, matched: Sequence[tuple[_View, Matches]]
    ) -> tuple[AbsolutePose, Indices, Indices]:
        """Return (pose, keypoints, points): the rows of the frame's keypoints and ids of 3D points that agree."""
        rows = []
        for key, matches in matched:
            ids = self._point_ids(key)[matches.indices[:, 0]]
            rows.append(np.column_stack([matches.indices[:, 1], ids])[ids >= 0])
        pairs = np.unique(np.concatenate(rows), axis=0)
        world = np.array([self.reconstruction.point3D(i).xyz for i in pairs[:, 1]]).reshape(-1, 3)
        pixels = view.features.keypoints.cpu().numpy()[pairs[:, 0]]
        pose = estimate_absolute_pose(pixels, world, self.camera, self.threshold)
        kept = pairs[pose.inliers]
        # Two key frames may offer one keypoint two points, or one point two keypoints: the first of them stays.
        for column in (0, 1):
            kept = kept[np.sort(np.unique(kept[:, column], return_index=True)[1])]
        return pose, kept[:, 0], kept[:, 1]

    def _place(self, view: _View, key: _View, pose: AbsolutePose) -> None:
        """Remember a frame's pose relative to a key frame."""
        if pose.R is None or pose.t is None:
            return
        R, t = self._key_pose(key.image_id)
        relative = pose.R @ R.T
        at = next(i for i in reversed(range(len(self._seen))) if self._seen[i].index == view.frame.index)
        self._seen[at] = replace(self._seen[at], key=key.image_id, R=relative, t=pose.t - relative @ t)

    # ---- 3. key frames ----

    def _insert(
        self, view: _View, pose: AbsolutePose, keypoints: Indices, points: Indices, matched: dict[int, Matches]
    ) -> None:
        """Make a frame a key frame: tie it to the map, add points, adjust. ``matched`` holds matches made before."""
        assert pose.R is not None and pose.t is not None
        self._add_key_frame(view, pose.R, pose.t)
        for keypoint, point in zip(keypoints.tolist(), points.tolist(), strict=True):
            self._observe(point, view, keypoint)
        neighbours = self._neighbours(view)
        partners = [self._views[i] for i in neighbours[:PARTNERS]]
        new = [partner for partner in partners if partner.image_id not in matched]
        matched = {**matched, **{partner.image_id: self._match(partner, view) for partner in new}}
        for partner in partners:
            self._tie(partner, view, matched[partner.image_id].indices)
        self._adjust([view.image_id, *neighbours[: self.window - 1]])
        self._reference = view

    def _tie(self, old: _View, new: _View, rows: Indices) -> None:
        """Turn the matches of two key frames into observations of points and into new points."""
        old_ids, new_ids = self._point_ids(old)[rows[:, 0]], self._point_ids(new)[rows[:, 1]]
        fresh = rows[(old_ids < 0) & (new_ids < 0)]
        pose0, pose1 = self._key_pose(old.image_id), self._key_pose(new.image_id)
        world, good = self._triangulate(pose0, pose1, old.rays[fresh[:, 0]], new.rays[fresh[:, 1]])
        self._add_points(old, new, fresh[good], world[good])
        # A point that one of them knows already: does it project to where the other one has the match?
        for view, pose, here, ids in ((new, pose1, new_ids, old_ids), (old, pose0, old_ids, new_ids)):
            candidates = np.flatnonzero((here < 0) & (ids >= 0) & ~np.isin(ids, self._point_ids(view)))
            keypoints = rows[candidates, 1 if view is new else 0]
            xyz = np.array([self.reconstruction.point3D(i).xyz for i in ids[candidates]]).reshape(-1, 3)
            agrees = self._errors(pose, xyz, view.rays[keypoints]) <= self.threshold
            for point, keypoint in zip(ids[candidates][agrees].tolist(), keypoints[agrees].tolist(), strict=True):
                self._observe(point, view, keypoint)

    def _triangulate(
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
            angle = _angles(world - centres[0], world - centres[1])
            error = np.maximum(self._errors(pose0, world, x0), self._errors(pose1, world, x1))
        return world, (error <= self.threshold) & (angle >= LEAST_ANGLE)

    def _errors(self, pose: tuple[Array, Array], world: Array, rays: Array) -> Array:
        """Return reprojection errors (N,) in pixels without distortion; infinite behind the camera."""
        local = world @ pose[0].T + pose[1]
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.linalg.norm((local[:, :2] / local[:, 2:] - rays) * self.camera.focal_lengths, axis=1)
        return np.where(local[:, 2] > 0, error, np.inf)

    # ---- 4. the map: a pycolmap.Reconstruction whose image ids are frame numbers + 1 ----

    def _add_key_frame(self, view: _View, R: Array, t: Array) -> None:
        pycolmap = import_pycolmap()
        image = pycolmap.Image(
            name=view.frame.name,
            keypoints=to_colmap(self._ideal.project(homogeneous(view.rays))),
            camera_id=1,
            image_id=view.image_id,
        )
        self.reconstruction.add_image_with_trivial_frame(image, pycolmap.Rigid3d(np.column_stack([R, t])))
        self._views[view.image_id] = view
        self._place(view, view, AbsolutePose(R, t, np.zeros(0, bool), self.camera))

    def _add_points(self, view0: _View, view1: _View, rows: Indices, world: Array) -> None:
        pycolmap = import_pycolmap()
        for (i, j), xyz in zip(rows.tolist(), world, strict=True):
            elements = [pycolmap.TrackElement(view0.image_id, i), pycolmap.TrackElement(view1.image_id, j)]
            self.reconstruction.add_point3D(xyz, pycolmap.Track(elements))

    def _observe(self, point: int, view: _View, keypoint: int) -> None:
        self.reconstruction.add_observation(point, import_pycolmap().TrackElement(view.image_id, keypoint))

    def _point_ids(self, view: _View) -> Indices:
        """Return the 3D point that each keypoint of a key frame observes, int64 (N,); -1 for none."""
        points = self.reconstruction.image(view.image_id).points2D
        return np.array([p.point3D_id if p.has_point3D() else -1 for p in points], np.int64)

    def _key_pose(self, image_id: int) -> tuple[Array, Array]:
        matrix = self.reconstruction.image(image_id).cam_from_world().matrix()
        return matrix[:, :3], matrix[:, 3]

    def _pose_of(self, seen: _Seen) -> Pose | None:
        if seen.key is None:
            return None
        R, t = self._key_pose(seen.key)
        return Pose(seen.index, seen.time, seen.R @ R, seen.R @ t + seen.t)

    def _neighbours(self, view: _View) -> list[int]:
        """Return the ids of the key frames that share points with this one, those that share most first."""
        shared: Counter[int] = Counter()
        ids = self._point_ids(view)
        for point in ids[ids >= 0].tolist():
            shared.update({element.image_id for element in self.reconstruction.point3D(point).track.elements})
        shared.pop(view.image_id, None)
        return [image_id for image_id, _ in sorted(shared.items(), key=lambda item: (-item[1], -item[0]))]

    def _adjust(self, image_ids: Sequence[int]) -> None:
        """Adjust these key frames and the points they see; others that see those points stay and hold them."""
        pycolmap = import_pycolmap()
        config = pycolmap.BundleAdjustmentConfig()
        points: set[int] = set()
        for image_id in image_ids:
            config.add_image(image_id)
            points.update(self._point_ids(self._views[image_id]).tolist())
        points.discard(-1)
        if len(image_ids) == len(self._views):
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
        options.ceres.solver_options.max_num_iterations = 15
        options.ceres.solver_options.num_threads = 1  # so that the same video gives the same path
        pycolmap.create_default_bundle_adjuster(options, config, self.reconstruction).solve()
        observations = pycolmap.ObservationManager(self.reconstruction)
        observations.filter_points3D(self.threshold, np.rad2deg(LEAST_ANGLE) / 2, points)

    # ---- 5. lost ----

    def _relocalise(self, view: _View) -> State:
        """Find the frame in the map, wherever it is."""
        self._reference = None
        if self._tracked < LEAST_TRACKED:
            self._start_over()
            return self._start(view)
        similar = self._most_similar(view)
        results = self.matcher.match_many([(key.features, view.features) for key in similar])
        matched = list(zip(similar, results, strict=True))
        pose, _, points = self._find_pose(view, matched)
        if len(points) < LEAST_TO_RELOCALISE:
            return self._state("lost")
        self._reference = max(similar, key=lambda key: int(np.isin(points, self._point_ids(key)).sum()))
        self._place(view, self._reference, pose)
        return self._state("relocalised", len(points))

    def _most_similar(self, view: _View) -> list[_View]:
        """Return the key frames that look most like a frame: its best keypoints vote for where their nearest is."""
        keys = list(self._views.values())
        descriptors = [unit_descriptors(key.features, VOTERS) for key in keys]
        owner = np.repeat(np.arange(len(keys)), [len(part) for part in descriptors])
        nearest = (unit_descriptors(view.features, VOTERS) @ np.concatenate(descriptors).T).argmax(axis=1)
        votes = np.bincount(owner[nearest], minlength=len(keys))
        # Of equals the newest.
        return [keys[i] for i in np.lexsort([np.arange(len(keys)), votes])[::-1][:SIMILAR]]

    def _state(self, status: Status, inliers: int = 0, is_key_frame: bool = False) -> State:
        pose = self._pose_of(self._seen[-1])
        return State(status, pose, inliers, is_key_frame, self.reconstruction.num_points3D(), len(self._views))


def _angles(a: Array, b: Array) -> Array:
    """Return the angles (N,) between vectors (N, 3), in radians."""
    return np.arctan2(np.linalg.norm(np.cross(a, b), axis=1), (a * b).sum(axis=1))
