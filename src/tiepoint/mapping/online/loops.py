"""Close loops: a key frame sees again what was mapped long before, and the map is bent until both parts agree.

`find_loop` finds a new key frame in the older part of the map, as a lost frame is found: the key frames that look most
like it, matches with their points, a pose. The depths of points that both parts know give the scale. A loop that is not
there ruins a map, one that is missed does not; so it is refused unless

- both parts know enough points in common, and agree on where they are, up to one scale;
- the points agree that lie where both key frames look, not only those of a poster that hangs in two rooms;
- the tracker can have drifted that far on its way. Two corridors that look the same are a whole way apart.

`close_loop` spreads the error over the key frames between (`pose_graph`), moves the points with them, and makes one of
the points that are there twice. This is how ORB-SLAM closes loops (Mur-Artal, Montiel and Tardós, T-RO 2015).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...geometry.colmap import import_pycolmap
from ...types import Matches
from .key_frames import KeyFrameMap, View, none_twice
from .pose_graph import Similarity, optimise

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

LEAST_APART = 10  # key frames between the two ends of a loop
SIMILAR = 4  # key frames of the older part that a new one is matched with
NEIGHBOURS = 2  # of the new one; they are matched with the older end, too
LEAST_INLIERS = 40  # matches with points of the older part
LEAST_TWINS = 10  # points that are there twice
SAME_PLACE = 0.15  # of their depth; so far apart twins may lie, the scale aside
LEAST_AGREEING = 0.6  # share of the twins that do not lie farther apart
LEAST_SEEN = 0.2  # share of the older points that should be in view, and were found there
MOST_DRIFT = 0.25  # of the length of the loop
MOST_TURN = np.deg2rad(40)  # drift of the direction
MOST_SCALE = np.log(2.5)  # drift of the scale
ALREADY_RIGHT = 0.7  # share of the matches that agree with where the key frame is anyway: there is nothing to close
LEAST_SHARED = 30  # points of two key frames that an edge of the graph connects
LOOP_WEIGHT = 10.0  # of the edge that closes the loop; an edge between neighbours has 1


@dataclass(frozen=True, eq=False)
class Loop:
    """A key frame that was found in an older part of the map.

    Attributes
    ----------
    index, old_index : int
        The two frames.
    inliers : int
        Matches with points of the older part that agree with one pose.
    scale : float
        Of the newer part over the older: how far the unit of length has drifted.
    drift : float
        Of the position, as a share of the way between the two.
    refused : str
        Why it was not closed; empty if it was.
    """

    index: int
    old_index: int
    inliers: int
    scale: float
    drift: float
    refused: str = ""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a loop is closed with.

    Attributes
    ----------
    view, old : View
        The new key frame, and the older one that has most points in common with it.
    matched : list of (View, View, Matches)
        Older key frames, newer ones, and their matches.
    keypoints, points : int64 arrays (K,)
        Keypoints of the new one, and the ids of the older points they see.
    twins : int64 array (L, 2)
        Ids of an older and a newer point that are one.
    R, t : float64 arrays
        Pose of the new one as the older points have it, world to camera.
    scale : float
        See `Loop`.
    is_right : bool
        Whether it is there anyway.
    """

    view: View
    old: View
    matched: list[tuple[View, View, Matches]]
    keypoints: Indices
    points: Indices
    twins: Indices
    R: Array
    t: Array
    scale: float
    is_right: bool


def find_loop(world: KeyFrameMap, view: View) -> tuple[Loop, Evidence] | None:
    """Look for a key frame in the older part of a map.

    Parameters
    ----------
    world : KeyFrameMap
    view : View
        A key frame, the newest as a rule.

    Returns
    -------
    (Loop, Evidence) or None
        None if no pose agrees with enough older points.
    """
    ids = list(world.views)
    near = world.neighbours(view)
    older = [world.views[i] for i in ids[: max(0, ids.index(view.image_id) - LEAST_APART)] if i not in near]
    similar = world.match_similar(view, older, SIMILAR)
    pose, keypoints, points = world.find_pose(view, similar)
    if pose.R is None or pose.t is None or len(points) < LEAST_INLIERS:
        return None
    old = world.seeing_most((key for key, _ in similar), points)
    newer = [world.views[i] for i in [i for i in near if i > old.image_id][:NEIGHBOURS]]
    matched = [(key, view, matches) for key, matches in similar]
    matched += [(old, key, world.match(old, key)) for key in newer]
    now_R, now_t = world.pose(view.image_id)

    # Points that are there twice, as the new key frame sees them: by its pose among the old ones, and by its own.
    twins = _twins(world, matched)
    before, now = world.places(twins[:, 0]) @ pose.R.T + pose.t, world.places(twins[:, 1]) @ now_R.T + now_t
    ratios = np.log(np.maximum(now[:, 2], 1e-9) / np.maximum(before[:, 2], 1e-9))
    scale = float(np.exp(np.median(ratios))) if len(ratios) else 1.0
    agree = np.linalg.norm(now - scale * before, axis=1) <= SAME_PLACE * np.abs(now[:, 2])
    agreeing = float(agree.mean()) if len(agree) else 0.0

    in_view = _in_view(world, world.point_ids(old), pose.R, pose.t)
    seen = float(np.isin(in_view, points).mean()) if len(in_view) else 0.0
    centres = np.array(
        [-R.T @ t for R, t in map(world.pose, ids[ids.index(old.image_id) : ids.index(view.image_id) + 1])]
    )
    way = float(np.linalg.norm(np.diff(centres, axis=0), axis=1).sum())
    drift = float(np.linalg.norm(-pose.R.T @ pose.t - centres[-1])) / max(way, 1e-9)
    turn = float(np.arccos(np.clip((np.trace(pose.R @ now_R.T) - 1) / 2, -1, 1)))
    errors = world.errors((now_R, now_t), world.places(points), view.rays[keypoints])
    is_right = bool((errors <= world.threshold).mean() >= ALREADY_RIGHT)
    checks = (
        (len(twins) >= LEAST_TWINS, f"only {len(twins)} points are there twice"),
        (agreeing >= LEAST_AGREEING, f"only {agreeing:.0%} of the points that are there twice agree"),
        (seen >= LEAST_SEEN, f"only {seen:.0%} of the older points in view were found"),
        (drift <= MOST_DRIFT, f"drift would be {drift:.0%} of the way"),
        (turn <= MOST_TURN, f"drift would be {np.rad2deg(turn):.0f} degrees"),
        (abs(np.log(scale)) <= MOST_SCALE, f"drift of the scale would be {scale:.2g}"),
    )
    refused = "" if is_right else next((why for passed, why in checks if not passed), "")
    loop = Loop(view.frame.index, old.frame.index, len(points), scale, drift, refused)
    evidence = Evidence(view, old, matched, keypoints, points, twins[agree], pose.R, pose.t, scale, is_right)
    return loop, evidence


def _twins(world: KeyFrameMap, matched: list[tuple[View, View, Matches]]) -> Indices:
    """Return ids (L, 2) of an older and a newer point that matched keypoints see, none twice."""
    rows = [np.zeros((0, 2), np.int64)]
    for old, new, matches in matched:
        ids = np.column_stack(
            [world.point_ids(old)[matches.indices[:, 0]], world.point_ids(new)[matches.indices[:, 1]]]
        )
        rows.append(ids[(ids >= 0).all(axis=1) & (ids[:, 0] != ids[:, 1])])
    return none_twice(np.unique(np.concatenate(rows), axis=0))


def _in_view(world: KeyFrameMap, ids: Indices, R: Array, t: Array) -> Indices:
    """Return those of a key frame's points that a camera at a pose sees, if nothing hides them."""
    ids = ids[ids >= 0]
    local = world.places(ids) @ R.T + t
    size = np.array([world.camera.width, world.camera.height])
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels = world.camera.project(local)
        inside = (local[:, 2] > 0) & (pixels >= 0).all(axis=1) & (pixels < size).all(axis=1)
    return np.asarray(ids[inside], np.int64)


def close_loop(world: KeyFrameMap, evidence: Evidence) -> dict[int, float]:
    """Bend a map so that a loop closes, and join the points that are there twice.

    Returns
    -------
    dict
        Image id of each key frame -> how much longer its unit of length was than it is now.
    """
    scales = dict.fromkeys(world.views, 1.0) if evidence.is_right else _bend(world, evidence)
    view = evidence.view
    free = world.point_ids(view)[evidence.keypoints] < 0
    world.observe(evidence.points[free], view, evidence.keypoints[free])
    for old, new in evidence.twins.tolist():
        world.reconstruction.merge_points3D(old, new)
    for old_view, new_view, matches in evidence.matched:
        world.tie(old_view, new_view, matches.indices)
    return scales


def _bend(world: KeyFrameMap, evidence: Evidence) -> dict[int, float]:
    """Move key frames, and the points with them; return their scales, see `close_loop`."""
    pycolmap = import_pycolmap()
    model = world.reconstruction
    ids = list(world.views)
    row = {image_id: number for number, image_id in enumerate(ids)}
    pairs = {(row[old], row[new]) for (old, new), count in world.shared().items() if count >= LEAST_SHARED}
    pairs |= {(number, number + 1) for number in range(len(ids) - 1)}
    edges = np.array([*sorted(pairs), (row[evidence.old.image_id], row[evidence.view.image_id])])

    poses = [world.pose(image_id) for image_id in ids]
    before = Similarity(np.array([R for R, _ in poses]), np.array([t for _, t in poses]), np.ones(len(ids)))
    loop = Similarity(evidence.R[None], evidence.scale * evidence.t[None], np.array([evidence.scale]))
    ends = Similarity.stack([before[edges[:-1, 1]], loop])
    depths = np.array([np.median([*world.depths(view).values()] or [1.0]) for view in world.views.values()])
    weights = np.ones(len(edges))
    weights[-1] = LOOP_WEIGHT
    after = optimise(before, edges, ends @ before[edges[:, 0]].inverse(), depths, weights)

    for number, image_id in enumerate(ids):
        pose = pycolmap.Rigid3d(np.column_stack([after.R[number], after.t[number] / after.s[number]]))
        model.frame(model.image(image_id).frame_id).set_cam_from_world(1, pose)
    points = list(model.points3D)
    # A point moves with the key frame that saw it first.
    by = [row[min(element.image_id for element in model.point3D(point).track.elements)] for point in points]
    moved = (after.inverse() @ before)[np.array(by)](world.places(np.array(points)))
    for point, xyz in zip(points, moved, strict=True):
        model.point3D(point).xyz = xyz
    return dict(zip(ids, after.s.tolist(), strict=True))
