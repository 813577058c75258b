"""Visual odometry: follow a moving camera, frame by frame, and map what it sees on the way.

`Tracker` takes one `Frame` after the other and returns the pose of each at once. It works as monocular SLAM systems do
since PTAM (Klein and Murray, ISMAR 2007):

1. Start: two frames far enough apart give a relative pose, and their matches the first 3D points.
2. Track: each frame is matched with the reference key frame; its pose follows from the 3D points seen there.
3. Key frames: a frame that sees too little of the reference becomes one; matches with its neighbours give new points.
4. The map: the new key frame, those that share most points with it, and these points are adjusted (pycolmap).
5. Loops: a key frame that sees again what was mapped long before bends the map until both parts agree (`loops`).
6. Lost: the most similar key frames are found, and tracking continues from there.

One camera does not measure scale: the unit is the median depth of the first points, and it drifts until a loop closes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ... import geometry, pipeline
from ...errors import ArgumentError, InputError
from ...features import Extractor, ExtractorOptions
from ...geometry import Camera, homogeneous
from ...geometry.absolute import AbsolutePose
from ...io.images import resize
from ...io.video import Frame
from ...matchers import Matcher
from ...types import Matches
from ..exchange.trajectories import Pose
from .key_frames import KeyFrameMap, View, angles
from .loops import Loop, close_loop, find_loop

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
KEEP_SHARE = 0.5  # of the reference's points in view; with fewer a new key frame is due
MOST_WAITING = 500  # frames
PARTNERS = 3  # key frames that a new one is matched with
SIMILAR = 4  # key frames that a lost frame is matched with
THUMBNAIL = 160  # pixels, the long side of a picture that is kept


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
    loops : bool
        Whether to close loops.
    device : torch.device or str
        Where networks run; ``"auto"`` is `tiepoint.devices.best_device`.

    Attributes
    ----------
    map : KeyFrameMap
        The key frames and points.
    loops : list of Loop
        Those that were found so far, closed or refused.
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
        loops: bool = True,
        device: torch.device | str | None = "auto",
    ) -> None:
        if window < 3:
            raise ArgumentError(f"window must be at least 3 key frames, not {window}")
        if not threshold > 0:
            raise ArgumentError(f"threshold must be a positive number of pixels, not {threshold}")
        options = ExtractorOptions(max_keypoints=max_keypoints, long_side=long_side)
        self.extractor, self.matcher, self.choice = pipeline.load(features, matcher, device, options)
        self.camera = camera
        self.window = window
        working = self.extractor.options.long_side or max(camera.width, camera.height)
        self.threshold = threshold * max(1.0, max(camera.width, camera.height) / working)
        self._close_loops = loops
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
        features = features.select(torch.from_numpy(real))
        x, y = features.keypoints.cpu().numpy().round().astype(int).clip(0, (width - 1, height - 1)).T
        # Of a frame the features are kept, not the picture (of which even an empty slice would hold all in memory).
        kept = replace(frame, pixels=np.zeros((0, 0, 3), np.uint8))
        view = View(kept, features, rays[real], frame.pixels[y, x], resize(frame.pixels, THUMBNAIL))
        self._seen.append(_Seen(frame.index, frame.time))
        if not self.map.views:
            return self._start(view)
        if self._reference is not None:
            return self._track(view)
        return self._relocalise(view)

    @property
    def reconstruction(self) -> pycolmap.Reconstruction:
        """The map: key frames and points, seen by a camera without distortion; ``write`` it for other programs."""
        return self.map.reconstruction

    def trajectory(self) -> list[Pose]:
        """Return the poses of all frames so far that have one, as they are known by now.

        They differ a little from those given at the time: key frames have been adjusted since, and frames from before
        the start of the map have been found in it.
        """
        return [pose for pose in map(self._pose_of, self._seen) if pose is not None]

    # ---- 1. start ----

    def _start_over(self) -> None:
        """Forget the map."""
        self.map = KeyFrameMap(self.camera, self.matcher, self.threshold)
        self.loops: list[Loop] = []
        self._reference: View | None = None  # the key frame that frames are matched with; None while lost
        self._tracked = 0  # frames
        self._waiting: list[tuple[View, Matches | None]] = []  # frames before the map, with their matches to the first
        self._seen = [replace(one, key=None) for one in self._seen]

    def _start(self, view: View) -> State:
        """Try to make a map from the first waiting frame and this one."""
        first = self._waiting[0][0] if self._waiting else None
        matches = None if first is None else self.map.match(first, view)
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
        if np.median(angles(homogeneous(x0) @ found.R.T, homogeneous(x1))) < START_ANGLE:
            return self._state("starting")
        world, good = self.map.triangulate((np.eye(3), np.zeros(3)), (found.R, found.t), x0, x1)
        if good.sum() < LEAST_POINTS:
            return self._state("starting")
        scale = 1 / np.median(world[good, 2])
        self._add_key_frame(first, np.eye(3), np.zeros(3))
        self._add_key_frame(view, found.R, scale * found.t)
        self.map.add_points(first, view, rows[good], scale * world[good])
        self.map.adjust([first.image_id, view.image_id])
        if self.reconstruction.num_points3D() < LEAST_POINTS:  # too few survived
            self._start_over()
            return self._start(view)
        for between, its_matches in self._waiting[1:-1]:
            if its_matches is not None:
                pose, _, _ = self.map.find_pose(between, [(first, its_matches)])
                self._place(between, first, pose)
        self._waiting = []
        self._reference = view
        return self._state("tracked", self.reconstruction.num_points3D(), is_key_frame=True)

    def _wait(self, view: View, matches: Matches) -> None:
        """Keep of a frame what it takes to place it once there is a map; of a camera at rest not all of them."""
        small = replace(view.features, descriptors=view.features.descriptors[:, :0])
        self._waiting.append((replace(view, features=small), matches))
        if len(self._waiting) > MOST_WAITING:
            del self._waiting[1]

    # ---- 2. track ----

    def _track(self, view: View) -> State:
        reference = self._reference
        assert reference is not None
        matches = self.map.match(reference, view)
        pose, keypoints, points = self.map.find_pose(view, [(reference, matches)])
        inliers = len(points)
        if inliers < LEAST_INLIERS:
            return self._relocalise(view)
        self._tracked += 1
        self._place(view, reference, pose)
        due = inliers < KEEP_SHARE * self.reconstruction.image(reference.image_id).num_points3D
        if due:
            self._insert(view, pose, keypoints, points, {reference.image_id: matches})
        return self._state("tracked", inliers, is_key_frame=due)

    def _place(self, view: View, key: View, pose: AbsolutePose) -> None:
        """Remember a frame's pose relative to a key frame."""
        if pose.R is None or pose.t is None:
            return
        R, t = self.map.pose(key.image_id)
        relative = pose.R @ R.T
        at = next(i for i in reversed(range(len(self._seen))) if self._seen[i].index == view.frame.index)
        self._seen[at] = replace(self._seen[at], key=key.image_id, R=relative, t=pose.t - relative @ t)

    # ---- 3. key frames ----

    def _add_key_frame(self, view: View, R: Array, t: Array) -> None:
        self.map.add_key_frame(view, R, t)
        self._place(view, view, AbsolutePose(R, t, np.zeros(0, bool), self.camera))

    def _insert(
        self, view: View, pose: AbsolutePose, keypoints: Indices, points: Indices, matched: dict[int, Matches]
    ) -> None:
        """Make a frame a key frame: tie it to the map, add points, adjust. ``matched`` holds matches made before."""
        assert pose.R is not None and pose.t is not None
        self._add_key_frame(view, pose.R, pose.t)
        self.map.observe(points, view, keypoints)
        neighbours = list(self.map.neighbours(view))
        partners = [self.map.views[i] for i in neighbours[:PARTNERS]]
        new = [partner for partner in partners if partner.image_id not in matched]
        matched = {**matched, **{partner.image_id: self.map.match(partner, view) for partner in new}}
        for partner in partners:
            self.map.tie(partner, view, matched[partner.image_id].indices)
        self.map.adjust([view.image_id, *neighbours[: self.window - 1]])
        self._reference = view
        if self._close_loops:
            self._close_loop(view)

    # ---- 5. loops ----

    def _close_loop(self, view: View) -> None:
        """Look for a loop that ends at a new key frame; close it."""
        found = find_loop(self.map, view)
        if found is None:
            return
        loop, evidence = found
        self.loops.append(loop)
        if loop.refused:
            return
        self._rescale(close_loop(self.map, evidence))
        self.map.adjust([view.image_id, *list(self.map.neighbours(view))[: self.window - 1]])

    def adjust(self) -> None:
        """Adjust all key frames and points at once: the last step of a video in which loops were closed."""
        if len(self.map.views) >= 2:
            self._rescale(self.map.adjust_all())

    def _rescale(self, scales: dict[int, float]) -> None:
        """Make the ways from key frames to other frames shorter, as the units of the key frames have become longer."""
        self._seen = [one if one.key is None else replace(one, t=one.t / scales[one.key]) for one in self._seen]

    # ---- 6. lost ----

    def _relocalise(self, view: View) -> State:
        """Find the frame in the map, wherever it is."""
        self._reference = None
        if self._tracked < LEAST_TRACKED:
            self._start_over()
            return self._start(view)
        matched = self.map.match_similar(view, list(self.map.views.values()), SIMILAR)
        pose, _, points = self.map.find_pose(view, matched)
        if len(points) < LEAST_TO_RELOCALISE:
            return self._state("lost")
        self._reference = self.map.seeing_most((key for key, _ in matched), points)
        self._place(view, self._reference, pose)
        return self._state("relocalised", len(points))

    def _pose_of(self, seen: _Seen) -> Pose | None:
        if seen.key is None:
            return None
        R, t = self.map.pose(seen.key)
        return Pose(seen.index, seen.time, seen.R @ R, seen.R @ t + seen.t)

    def _state(self, status: Status, inliers: int = 0, is_key_frame: bool = False) -> State:
        pose = self._pose_of(self._seen[-1])
        return State(status, pose, inliers, is_key_frame, self.reconstruction.num_points3D(), len(self.map.views))
