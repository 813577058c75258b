"""How far a model can be trusted. That all images are in it says little: a camera that only turned is placed as well.

`assess` measures what depth depends on: the angles between the rays of a point, pairs that a rotation alone explains,
how much of the images has points, and how far the focal length moved from the one that was given. It also looks for
parts that stand wrong to each other (`tiepoint.mapping.steps.seams`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ...geometry.colmap import to_colmap
from ..models import registered
from ..store import Store
from .seams import Seam, seams

if TYPE_CHECKING:
    import pycolmap

Verdict = Literal["good", "doubtful", "no 3D"]
Pair = tuple[int, int]

LEAST_ANGLE = 2.0  # degrees between the rays of most points; below, depth is mostly noise
LEAST_POINTS = 30  # an image
LEAST_COVERAGE = 0.15  # of the cells of an image that hold a point
LEAST_REGISTERED = 0.5
MOST_FLAT = 0.8  # of the pairs on one plane
MOST_SHIFT = 0.1  # of the focal length from the one that was given
# Of the matches across a seam that join two points. The worst seam of right models has 0.02 to 0.11, on a walk
# straight ahead (lund) 0.40; in two models of that walk with a step 5 and 28 times too long it had 0.78 and 0.70.
MOST_TORN = 0.5
LEAST_SHARED = 15  # matches of one point across a seam; a camera placed 27 times too far off had 2
TURNED = 0.9  # of a pair's matches that a rotation explains, and of the pairs for which that holds
TURNED_PIXELS = 0.004  # of the long side: the error up to which a rotation explains a match
FOCAL_FACTORS = np.geomspace(0.5, 2, 9)  # the focal length may be wrong: without depth nothing determines it
MOST_PAIRS, MOST_MATCHES, MOST_RAYS = 200, 300, 20_000  # looked at
CELLS = 8  # along the longer side of an image


@dataclass(frozen=True)
class Assessment:
    """The verdict on a model, its reasons, and the measurements behind it.

    Attributes
    ----------
    verdict : {"good", "doubtful", "no 3D"}
    reasons : tuple of str
        Why it is not good; empty if it is.
    angle : float
        Median over the points of the largest angle between two rays, in degrees.
    coverage : float
        Mean share of an image's cells that hold a point, in [0, 1].
    turned, flat : float
        Share of the verified pairs that a rotation alone explains, and of those in which all lies on one plane.
    focal_shift : float or None
        Largest change of a focal length that was given or in EXIF, as a share of it; None if none was.
    torn : float
        Of the matches between two parts of the model, the largest share that joins two points instead of one.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    angle: float
    coverage: float
    turned: float
    flat: float
    focal_shift: float | None
    torn: float

    def __str__(self) -> str:
        return ": ".join(part for part in (self.verdict, "; ".join(self.reasons)) if part)


ONLY_TURNED = (
    "the camera stood still, only turned, or moved too little for how far away things are (no parallax), so that "
    "nothing tells their depth; take photographs from places further apart"
)


def assess(
    model: pycolmap.Reconstruction,
    store: Store,
    verified: Mapping[Pair, int],
    total: int,
) -> Assessment:
    """Assess one model.

    Parameters
    ----------
    model : pycolmap.Reconstruction
        Its image ids are those of the store.
    store : Store
        The matches that it was made of, and the cameras that it began with.
    verified : mapping
        Pair of image ids -> inliers, see `Store.verified_pairs`.
    total : int
        Number of images that were to be placed.
    """
    images = registered(model)
    inside = {image.image_id for image in images}
    pairs = [pair for pair in verified if inside.issuperset(pair)]
    # Without depth a mapper bends focal length and distortion at will; the cameras that it began with may do better.
    begun = {image.image_id: image.camera for image in store.images()}
    ended = {image.image_id: model.cameras[image.camera_id] for image in images}
    turned, flat = max(turned_and_flat(store, pairs, cameras) for cameras in (begun, ended))
    angle, coverage = _median_angle(model), float(np.mean([_coverage(model, image) for image in images]))
    shift, shift_text = _focal_shift(model, store, inside)
    found = seams(model, store, pairs)
    torn = max((seam.torn for seam in found), default=0.0)
    points = model.num_points3D()
    reasons = []
    lenses = [camera for image_id, camera in begun.items() if image_id in inside]
    if all(one.width == 2 * one.height and not one.has_prior_focal_length for one in lenses):  # panoramas have one
        reasons.append(
            "the photographs are twice as wide as high and say no focal length, as panoramas do: if they are, give "
            "--camera-model EQUIRECTANGULAR"
        )
    if len(images) < LEAST_REGISTERED * total:
        reasons.append(f"it holds only {len(images)} of {total} photographs")
    if points < LEAST_POINTS * len(images):
        reasons.append(f"it has only {points} points for {len(images)} photographs")
    if angle < LEAST_ANGLE:
        reasons.append(f"half of the points are seen under less than {angle:.1f} degrees: their depth is uncertain")
    if coverage < LEAST_COVERAGE:
        reasons.append(f"points lie in only {coverage:.0%} of the photographs' area")
    if flat > MOST_FLAT:
        reasons.append(f"{flat:.0%} of the pairs show one plane, which hardly determines focal length and depth")
    if shift is not None and abs(shift) > MOST_SHIFT:
        reasons.append(shift_text)
    reasons.extend(_loose_parts(found, {image.image_id: image.name for image in images}))
    verdict: Verdict = "doubtful" if reasons else "good"
    if turned > TURNED or not points:
        verdict, reasons = "no 3D", [ONLY_TURNED if turned > TURNED else "it has no points"]
    return Assessment(verdict, tuple(reasons), angle, coverage, turned, flat, shift, torn)


def _loose_parts(found: Sequence[Seam], names: Mapping[int, str]) -> list[str]:
    """Return in words where a part of a model may be wrong, the worst of each kind."""
    reasons = []
    for seam in found[:1]:
        if seam.torn > MOST_TORN and seam.two >= LEAST_SHARED:
            reasons.append(
                f"{seam.size} of its photographs, those that {names[seam.image]} connects with {names[seam.other]}, "
                f"may have a wrong scale or place: {seam.torn:.0%} of the matches there join two points of the model, "
                "not one; take photographs in between"
            )
    for seam in sorted(found, key=lambda seam: seam.one)[:1]:
        if seam.one < LEAST_SHARED:
            reasons.append(
                f"only {seam.one} matches, between {names[seam.image]} and {names[seam.other]}, hold {seam.size} of "
                "its photographs to the others; take photographs in between"
            )
    return reasons


def turned_and_flat(store: Store, pairs: Sequence[Pair], cameras: Mapping[int, pycolmap.Camera]) -> tuple[float, float]:
    """Return the shares of pairs that a rotation alone explains, and that lie on one plane without being such."""
    if not pairs:
        return 0.0, 0.0
    chosen = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(len(pairs), MOST_PAIRS)).astype(int)]
    needed = sorted({image_id for pair in chosen for image_id in pair})
    # COLMAP counts pixels from the corner of the image.
    points = {i: to_colmap(store.features(i, descriptors=False).keypoints.double().numpy()) for i in needed}
    turned = flat = 0
    for a, b in chosen:
        geometry = store.geometry(a, b)
        assert geometry is not None  # it is verified
        step = max(1, len(geometry.matches) // MOST_MATCHES)
        rows = geometry.matches[::step]
        x0, x1 = points[a][rows[:, 0]], points[b][rows[:, 1]]
        if _explained_by_rotation(x0, x1, cameras[a], cameras[b]) >= TURNED:
            turned += 1
        else:
            flat += geometry.config in ("PLANAR", "PANORAMIC", "PLANAR_OR_PANORAMIC")
    return turned / len(chosen), flat / len(chosen)


def _explained_by_rotation(
    x0: NDArray[np.float64], x1: NDArray[np.float64], camera0: pycolmap.Camera, camera1: pycolmap.Camera
) -> float:
    """Return the largest share of matches that one rotation, with some focal length, explains."""
    factors = FOCAL_FACTORS if not (camera0.is_spherical() or camera1.is_spherical()) else (1.0,)
    rays0, rays1 = (  # (factors, N, 3)
        np.stack([_rays(camera, pixels, factor) for factor in factors])
        for camera, pixels in ((camera0, x0), (camera1, x1))
    )
    angles = [[_pixel_angle(camera, factor) for camera in (camera0, camera1)] for factor in factors]
    limits = np.mean(angles, axis=1, keepdims=True) * TURNED_PIXELS
    good = np.isfinite(rays0).all(axis=2) & np.isfinite(rays1).all(axis=2)
    rays0[~good] = rays1[~good] = 0
    weights = good.astype(float)
    for _ in range(5):  # Wahba's problem by Kabsch's solution, with the weights of Cauchy's loss
        U, _, Vt = np.linalg.svd((rays1 * weights[..., None]).swapaxes(1, 2) @ rays0)
        U[..., 2] *= np.sign(np.linalg.det(U @ Vt))[:, None]
        errors = np.linalg.norm(rays0 @ (U @ Vt).swapaxes(1, 2) - rays1, axis=2)
        weights = good / (1 + (errors / limits) ** 2)
    explained = (good & (errors < limits)).sum(axis=1)
    return float(explained[good.sum(axis=1) >= 3].max(initial=0) / len(x0))


def _rays(camera: pycolmap.Camera, pixels: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    """Return unit rays (N, 3), as if the focal length were ``factor`` times as long."""
    if factor != 1:
        centre = np.array([camera.principal_point_x, camera.principal_point_y])
        pixels = centre + (pixels - centre) / factor
    rays = np.asarray(camera.cam_ray_from_img(pixels), np.float64).reshape(-1, 3)
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


def _pixel_angle(camera: pycolmap.Camera, factor: float) -> float:
    """Return about how many radians the long side of an image spans."""
    long_side = max(camera.width, camera.height)
    return 2 * np.pi if camera.is_spherical() else long_side / (camera.mean_focal_length() * factor)


def _median_angle(model: pycolmap.Reconstruction) -> float:
    """Return the median, over points, of the largest angle between two of its rays, in degrees."""
    centres = {image.image_id: np.asarray(image.projection_center()) for image in registered(model)}
    ids = sorted(model.point3D_ids())
    angles = []
    for i in np.linspace(0, len(ids) - 1, min(len(ids), MOST_RAYS // 4)).astype(int) if ids else ():
        point = model.points3D[ids[i]]
        rays = np.array([centres[element.image_id] for element in point.track.elements]) - point.xyz
        rays /= np.maximum(np.linalg.norm(rays, axis=1, keepdims=True), 1e-12)
        angles.append(np.degrees(np.arccos(np.clip((rays @ rays.T).min(), -1, 1))))
    return float(np.median(angles)) if angles else 0.0


def _coverage(model: pycolmap.Reconstruction, image: pycolmap.Image) -> float:
    camera = model.cameras[image.camera_id]
    cell = max(camera.width, camera.height) / CELLS
    seen = np.array([point.xy for point in image.get_observation_points2D()]).reshape(-1, 2)
    cells = int(np.ceil(camera.width / cell)) * int(np.ceil(camera.height / cell))
    return len(np.unique((seen // cell).astype(int), axis=0)) / cells


def _focal_shift(model: pycolmap.Reconstruction, store: Store, inside: set[int]) -> tuple[float | None, str]:
    """Return the largest change of a focal length that was known, as a share of it, and words for it."""
    worst, text = None, ""
    for image in store.images():
        before = image.camera
        if image.image_id not in inside or not before.has_prior_focal_length or before.is_spherical():
            continue
        now = model.cameras[model.images[image.image_id].camera_id].mean_focal_length()
        shift = now / before.mean_focal_length() - 1
        if worst is None or abs(shift) > abs(worst):
            worst = shift
            text = (
                f"the focal length of {image.name} was given as {before.mean_focal_length():.0f} px and came out as "
                f"{now:.0f} ({shift:+.0%}): check it, or keep it with --fix-cameras"
            )
    return worst, text
