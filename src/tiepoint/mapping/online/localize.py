"""Where was this photograph taken? Its camera's pose in a model that exists already.

A query has features as the photographs of the model have; its matches with theirs are matches with the 3D points that
those observed, and a pose follows from these. Only the photographs that look most like the query are matched.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import poselib
import torch
from numpy.typing import ArrayLike, NDArray

from ... import pipeline
from ...errors import ArgumentError, InputError
from ...features import Extractor, ExtractorOptions
from ...geometry import Camera
from ...geometry.camera import FOCAL_FACTOR
from ...geometry.colmap import import_pycolmap
from ...io import arrays, files
from ...io.images import read_image
from ...matchers import Matcher
from ...two_view import FEW
from ...types import Features
from ..exchange.model_files import read_model
from ..inputs import read_settings
from ..pairs import retrieval
from ..steps.images import camera_of
from ..store import Store

if TYPE_CHECKING:
    import pycolmap

FILES = (".json", ".csv")

LEAST_INLIERS = FEW  # fewer agree by chance with a pose in a scene that is not theirs

OWN_CAMERA = 0.9  # share of the best inliers with which a camera of the map is believed to have taken the query

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class AbsolutePose:
    """The pose of one camera in the world, as far as its matches with 3D points determine it.

    Attributes
    ----------
    R, t : float64 arrays (3, 3) and (3,), or None
        ``x_camera = R x_world + t``; None if there is no pose that enough matches agree with.
    inliers : bool array (K,)
        Which matches agree with it.
    camera : Camera
        As given, or as estimated together with the pose.
    """

    R: Array | None
    t: Array | None
    inliers: NDArray[np.bool_]
    camera: Camera

    @property
    def centre(self) -> Array | None:
        """Where the camera stood, float64 (3,), in the world's frame."""
        return None if self.R is None or self.t is None else -self.R.T @ self.t


def estimate_absolute_pose(
    points: ArrayLike,
    points3D: ArrayLike,
    camera: Camera,
    threshold: float = 4.0,
    seed: int = 0,
) -> AbsolutePose:
    """Estimate a calibrated camera's pose from matches of pixels with 3D points, some of them wrong.

    Parameters
    ----------
    points : array (K, 2)
        Pixels, as photographed: lens distortion is taken into account.
    points3D : array (K, 3)
        In the world's frame, row by row.
    camera : Camera
        Intrinsics.
    threshold : float
        Largest reprojection error of an inlier, in pixels.
    seed : int
        Of the sampling; equal inputs and seeds give equal results.

    Returns
    -------
    AbsolutePose
        Without ``R`` and ``t`` if fewer than four matches agree with any pose, or those that do lie on a line.

    Raises
    ------
    ArgumentError
        ``points`` and ``points3D`` do not correspond.

    References
    ----------
    P3P in LO-RANSAC and a final refinement: PoseLib, https://github.com/PoseLib/PoseLib.

    Examples
    --------
    >>> world = np.random.default_rng(0).uniform([-1, -1, 4], [1, 1, 6], (50, 3))
    >>> camera = Camera.from_focal(500, (640, 480))
    >>> pixels = camera.project(world + [0.5, 0, 1])
    >>> pixels[:10] = pixels[10:20]  # wrong matches
    >>> found = estimate_absolute_pose(pixels, world, camera)
    >>> found.t.round(6), int(found.inliers.sum())
    (array([0.5, 0. , 1. ]), 40)
    """
    pixels, world = _corresponding(points, points3D)
    rays = camera.normalise(pixels)
    usable = np.isfinite(rays).all(axis=1) & np.isfinite(world).all(axis=1)
    if usable.sum() < 4:
        return _no_pose(len(pixels), camera)
    # The rays are free of distortion: to PoseLib they come from a camera of focal length 1.
    unit = {"model": "PINHOLE", "width": 1, "height": 1, "params": [1.0, 1.0, 0.0, 0.0]}
    tolerance = threshold / float(np.mean(camera.focal_lengths))
    ransac = {"max_reproj_error": tolerance, "seed": seed, "max_iterations": 10_000}
    pose, _ = poselib.estimate_absolute_pose(rays[usable], world[usable], unit, ransac, {"loss_scale": tolerance / 2})
    return _checked(np.asarray(pose.R), np.asarray(pose.t), pixels, world, camera, threshold)


def estimate_camera_and_pose(
    points: ArrayLike,
    points3D: ArrayLike,
    size: tuple[int, int],
    focal: float | None = None,
    threshold: float = 4.0,
    seed: int = 0,
) -> AbsolutePose:
    """Estimate a pose, and the focal length and distortion of the lens with it.

    Parameters
    ----------
    points, points3D, threshold, seed
        As in `estimate_absolute_pose`.
    size : (int, int)
        (width, height) of the photograph, in whose middle the principal point is taken to be.
    focal : float, optional
        Focal length in pixels, where it is known; only the distortion is then estimated. A flat scene that is seen
        from the front does not tell a long focal length from a far camera, so it is worth knowing.

    Returns
    -------
    AbsolutePose
        Its ``camera`` is a SIMPLE_RADIAL one.

    Raises
    ------
    ArgumentError
        ``points`` and ``points3D`` do not correspond.
    MissingDependencyError
        pycolmap is not installed.

    References
    ----------
    P4Pf in LO-RANSAC, and the refinement, are COLMAP's.

    Examples
    --------
    >>> world = np.random.default_rng(0).uniform([-2, -2, 4], [2, 2, 9], (80, 3))
    >>> pixels = Camera("SIMPLE_RADIAL", 640, 480, (500, 319.5, 239.5, -0.1)).project(world)
    >>> found = estimate_camera_and_pose(pixels, world, (640, 480))
    >>> round(found.camera.params[0]), round(found.camera.params[3], 3), found.centre.round(3) + 0.0
    (500, -0.1, array([0., 0., 0.]))
    """
    pycolmap = import_pycolmap()
    pixels, world = _corresponding(points, points3D)
    guess = Camera.from_focal(focal or FOCAL_FACTOR * max(size), size)
    usable = np.isfinite(pixels).all(axis=1) & np.isfinite(world).all(axis=1)
    if focal is not None:
        start = estimate_absolute_pose(pixels, world, guess, threshold, seed)
        if start.R is None or start.t is None:
            return start
        pose = pycolmap.Rigid3d(np.column_stack([start.R, start.t]))
        inliers = start.inliers
    elif usable.sum() < 5:
        return _no_pose(len(pixels), guess)
    else:
        options = pycolmap.AbsolutePoseEstimationOptions(estimate_focal_length=True)
        options.ransac.max_error = threshold
        options.ransac.min_inlier_ratio = 0.02  # of the matches of a hard query few are right
        options.ransac.random_seed = seed
        camera = _colmap_camera(guess)
        found = pycolmap.estimate_absolute_pose(pixels[usable] + 0.5, world[usable], camera, options)
        if found is None or camera.focal_length < 0.1 * max(size):
            return _no_pose(len(pixels), guess)
        guess, pose = Camera.from_focal(camera.focal_length, size), found["cam_from_world"]
        inliers = np.zeros(len(pixels), bool)
        inliers[usable] = found["inlier_mask"]
    camera = _colmap_camera(Camera("SIMPLE_RADIAL", *size, (*guess.params, 0.0)))
    refinement = pycolmap.AbsolutePoseRefinementOptions(refine_focal_length=focal is None, refine_extra_params=True)
    refined = pycolmap.refine_absolute_pose(pose, pixels + 0.5, world, inliers, camera, refinement)
    matrix = (pose if refined is None else refined["cam_from_world"]).matrix()
    if camera.focal_length < 0.1 * max(size):
        return _no_pose(len(pixels), guess)
    final = Camera.from_colmap(camera.model_name, camera.width, camera.height, list(camera.params))
    return _checked(matrix[:, :3], matrix[:, 3], pixels, world, final, threshold)


@dataclass(frozen=True, eq=False)
class Localization:
    """Where one photograph was taken.

    Attributes
    ----------
    name : str
        The photograph.
    pose : AbsolutePose or None
        In the frame of the model; None if it was not found.
    inliers : int
        Its keypoints that agree with the best pose, also if these are too few to believe in.
    matches : int
        Its matches with 3D points.
    similar : tuple of str
        The photographs of the model it was matched with, the most similar first.
    problem : str
        Why there is no pose: ``"not found: 7 inliers"``; empty if there is one.
    """

    name: str
    pose: AbsolutePose | None
    inliers: int = 0
    matches: int = 0
    similar: tuple[str, ...] = ()
    problem: str = ""

    def summary(self) -> dict[str, Any]:
        """Return plain values that JSON can hold; ``quaternion`` is (w, x, y, z), pixels are counted from 0."""
        pose = self.pose
        known: dict[str, Any] = {"R": None, "t": None, "quaternion": None, "centre": None, "camera": None}
        if pose is not None and pose.R is not None and pose.t is not None and pose.centre is not None:
            camera = pose.camera
            known = {
                "R": pose.R.tolist(),
                "t": pose.t.tolist(),
                "quaternion": _quaternion(pose.R),
                "centre": pose.centre.tolist(),
                "camera": {
                    "model": camera.model,
                    "width": camera.width,
                    "height": camera.height,
                    "params": list(camera.params),
                },
            }
        return {
            "name": self.name,
            "found": pose is not None,
            **known,
            "inliers": self.inliers,
            "matches": self.matches,
            "similar": list(self.similar),
            "problem": self.problem,
        }


class Localizer:
    """Finds photographs in a model; `open` makes one from what ``tiepoint map`` wrote.

    Parameters
    ----------
    model : pycolmap.Reconstruction
        Its image names are those of the store.
    store : Store
        The features that the model was made from. Read when needed; keep it open.
    extractor : Extractor
        The one that made those features.
    matcher : Matcher
        For them.
    candidates : int
        How many photographs of the model a query is matched with.
    threshold : float
        Largest reprojection error of a right match, in pixels at the extractor's working size.
    least_inliers : int
        A query with fewer is not found.

    Raises
    ------
    ArgumentError
        An option out of range.
    InputError
        The model does not belong to the store.

    Examples
    --------
    ::

        localizer = Localizer.open("scene")
        for result in map(localizer, ["query0.jpg", "query1.jpg"]):
            print(result.name, result.problem or result.pose.centre)
    """

    def __init__(
        self,
        model: pycolmap.Reconstruction,
        store: Store,
        extractor: Extractor,
        matcher: Matcher,
        *,
        candidates: int = 10,
        threshold: float = 6.0,
        least_inliers: int = LEAST_INLIERS,
    ) -> None:
        if candidates < 1:
            raise ArgumentError(f"candidates must be at least 1 photograph, not {candidates}")
        if not threshold > 0:
            raise ArgumentError(f"threshold must be a positive number of pixels, not {threshold}")
        self.model, self.store, self.extractor, self.matcher = model, store, extractor, matcher
        self.candidates, self.threshold, self.least_inliers = candidates, threshold, least_inliers
        registered = {image.name: image_id for image_id, image in model.images.items() if image.has_pose}
        stored = {image.image_id: image.name for image in store.images() if image.name in registered}
        # Place in the store -> (name, image id in the model)
        self._images = {i: (name, registered[name]) for i, name in stored.items()}
        if not self._images:
            raise InputError(f"{store.path}: holds none of the photographs of the model; give the one it was made from")
        self._ids = np.array(sorted(self._images))
        self._looks: NDArray[np.float32] | None = None
        if len(self._ids) > candidates:
            self._vocabulary = retrieval.vocabulary_for(store)
            ids, looks = retrieval.describe_images(store, self._vocabulary)
            here = np.isin(ids, self._ids)
            self._ids, self._looks = ids[here], looks[here]

    @classmethod
    def open(
        cls,
        scene: str | os.PathLike[str],
        matcher: str = "auto",
        device: torch.device | str | None = None,
        **options: Any,
    ) -> Localizer:
        """Open the folder that ``tiepoint map`` wrote.

        Parameters
        ----------
        scene : path
            Holds ``database.db``, ``settings.json`` and ``sparse/0``, the largest model.
        matcher : str
            By default the one of the map.
        device : torch.device or str, optional
            Where networks run.
        **options
            ``candidates``, ``threshold`` and ``least_inliers`` of the class.

        Raises
        ------
        InputError
            The folder lacks one of these, or they cannot be read.
        WeightsError, MissingDependencyError
            What the features of the map need is not on this machine.
        """
        folder = Path(scene)
        sparse = folder / "sparse" / "0"
        for part in (folder / "database.db", folder / "settings.json", sparse):
            if not part.exists():
                raise InputError(f"{part}: does not exist; give the folder that 'tiepoint map' wrote")
        try:
            settings = read_settings(folder / "settings.json")
        except InputError as error:
            raise InputError(f"{folder}: cannot be read as a map ({error}); make it anew") from error
        model = read_model(sparse)
        limits = {key: settings[key] for key in ("max_keypoints", "long_side", "bands")}
        extractor, pairer, _ = pipeline.load(
            settings["features"],
            settings["matcher"] if matcher == "auto" else matcher,
            device,
            ExtractorOptions(**limits),
        )
        return cls(
            model,
            Store.open(folder / "database.db", create=False, read_only=True),
            extractor,
            pairer,
            **options,
        )

    def __call__(
        self, photograph: str | os.PathLike[str], camera: Camera | None = None, focal: float | None = None
    ) -> Localization:
        """Find one photograph.

        Parameters
        ----------
        photograph : path
        camera : Camera, optional
            Its intrinsics, if they are known. Otherwise it is the camera of the most similar photograph of the map, if
            the sizes agree and the matches with it; else the distortion of the lens is estimated with the pose, and so
            is the focal length, unless it is given or EXIF has it.
        focal : float, optional
            Focal length in pixels.

        Raises
        ------
        InputError
            The photograph cannot be read, or is a panorama.
        ArgumentError
            The camera is of another size.
        """
        picture = read_image(photograph, bands=self.extractor.options.bands)
        name = os.fspath(photograph)
        if camera is not None and (camera.width, camera.height) != picture.size:
            raise ArgumentError(
                f"{name}: is {picture.size[0]}x{picture.size[1]} pixels, but the camera {camera.width}x{camera.height}"
            )
        told = camera is not None or focal is not None
        if not told and (exif := camera_of(photograph)).has_prior_focal_length:
            focal = float(exif.focal_length)
        features = self.extractor(picture)
        similar = self._similar(features)
        own = None if told else self._camera_of_map(similar, picture.size, name)
        names = tuple(self._images[i][0] for i in similar)
        pairs = self._matches_with_points(features, similar)
        pixels = features.keypoints.cpu().numpy()[pairs[:, 0]]
        world = np.array([self.model.point3D(i).xyz for i in pairs[:, 1]]).reshape(-1, 3)
        working = self.extractor.options.long_side or max(picture.size)
        threshold = self.threshold * max(1.0, max(picture.size) / working)
        if camera is not None:
            pose = estimate_absolute_pose(pixels, world, camera, threshold)
        else:
            pose = estimate_camera_and_pose(pixels, world, picture.size, focal, threshold)
        if own is not None:
            # A free camera explains a few matches more, by bending to wrong ones.
            taken = estimate_absolute_pose(pixels, world, own, threshold)
            if taken.inliers.sum() >= OWN_CAMERA * pose.inliers.sum():
                pose = taken
        # A keypoint that agrees with two points counts once.
        inliers = len(np.unique(pairs[pose.inliers, 0]))
        matches = len(np.unique(pairs[:, 0]))
        if inliers < self.least_inliers:
            return Localization(name, None, inliers, matches, names, f"not found: {inliers} inliers")
        return Localization(name, pose, inliers, matches, names)

    def _camera_of_map(self, similar: list[int], size: tuple[int, int], name: str) -> Camera | None:
        """Return the camera that took the most similar photograph of the map, if it takes pictures of this size.

        Raises
        ------
        InputError
            It takes panoramas: no lens that could be estimated for the query would be right.
        """
        if not similar:
            return None
        camera = self.model.cameras[self.model.image(self._images[similar[0]][1]).camera_id]
        if (camera.width, camera.height) != size:
            return None
        if camera.is_spherical():
            raise InputError(
                f"{name}: is a panorama like those of the map; only photographs through a lens can be found"
            )
        return Camera.from_colmap(camera.model_name, camera.width, camera.height, list(camera.params))

    def _similar(self, features: Features) -> list[int]:
        """Return the ids, in the store, of the photographs to match with, the most similar first."""
        if self._looks is None:
            return [int(i) for i in self._ids]
        rows, _ = retrieval.most_similar(self._vocabulary.describe(features)[None], self._looks, self.candidates)
        return [int(self._ids[row]) for row in rows[0] if row >= 0]

    def _matches_with_points(self, features: Features, similar: list[int]) -> NDArray[np.int64]:
        """Return (row of the query's keypoint, id of the 3D point) for each match (K, 2), none twice."""
        seen = []
        for image_id in similar:
            stored, points = self.store.features(image_id), self._point_ids(image_id)
            if len(stored) != len(points):
                raise InputError(
                    f"{self.store.path}: {self._images[image_id][0]} has {len(stored)} keypoints here and "
                    f"{len(points)} in the model; make the model anew from this database"
                )
            # Only what became a 3D point is of use: the rest would cost time.
            seen.append((stored.select(torch.from_numpy(points >= 0)), points[points >= 0]))
        results = self.matcher.match_many([(features, stored) for stored, _ in seen])
        pairs = [
            np.column_stack([result.indices[:, 0], points[result.indices[:, 1]]])
            for result, (_, points) in zip(results, seen, strict=True)
        ]
        return np.unique(np.concatenate([np.zeros((0, 2), np.int64), *pairs]), axis=0)

    def _point_ids(self, image_id: int) -> NDArray[np.int64]:
        """Return the 3D point that each keypoint observes, -1 for none."""
        points = self.model.image(self._images[image_id][1]).points2D
        return np.array([point.point3D_id if point.has_point3D() else -1 for point in points], np.int64)


def write_localizations(path: str | os.PathLike[str], results: Iterable[Localization]) -> None:
    """Write results to a .json file (everything), or a .csv file (a line for each photograph).

    The columns of the table: ``name, found, inliers, qw, qx, qy, qz, tx, ty, tz`` (world to camera) and ``focal`` in
    pixels; nan where the photograph was not found.

    Raises
    ------
    ArgumentError
        Another suffix, or no such folder.
    InputError
        The file cannot be written.
    """
    target = files.check_output(path, FILES)
    rows = [result.summary() for result in results]
    if target.suffix.lower() == ".json":
        files.write_json(target, {"localizations": rows})
        return
    numbers = np.full((len(rows), 8), np.nan)
    for i, row in enumerate(rows):
        if row["found"]:
            numbers[i] = *row["quaternion"], *row["t"], row["camera"]["params"][0]
    columns: dict[str, NDArray[Any]] = {
        key: np.array([row[key] for row in rows]) for key in ("name", "found", "inliers")
    }
    names = ("qw", "qx", "qy", "qz", "tx", "ty", "tz", "focal")
    arrays.write_csv(target, {**columns, **dict(zip(names, numbers.T, strict=True))})


def _checked(R: Array, t: Array, pixels: Array, world: Array, camera: Camera, threshold: float) -> AbsolutePose:
    """Count inliers by their error under the final pose; refuse a pose that they do not determine.

    Three points agree with some pose always; and around points on a line the camera may turn.
    """
    with np.errstate(invalid="ignore"):
        error = np.linalg.norm(camera.project(world @ R.T + t) - pixels, axis=1)
    inliers = error <= threshold  # nan, behind the camera, is not
    if not (np.isfinite(R).all() and np.isfinite(t).all()) or len(np.unique(world[inliers], axis=0)) < 4:
        return _no_pose(len(pixels), camera)
    centred = pixels[inliers] - pixels[inliers].mean(axis=0)
    across = np.linalg.svd(centred, full_matrices=False)[2][1]
    if np.abs(centred @ across).max() <= threshold:
        return _no_pose(len(pixels), camera)
    return AbsolutePose(R, t, inliers, camera)


def _no_pose(count: int, camera: Camera) -> AbsolutePose:
    return AbsolutePose(None, None, np.zeros(count, bool), camera)


def _corresponding(points: ArrayLike, points3D: ArrayLike) -> tuple[Array, Array]:
    pixels, world = np.asarray(points, np.float64), np.asarray(points3D, np.float64)
    if pixels.ndim != 2 or world.ndim != 2 or pixels.shape != (len(world), 2) or world.shape[1] != 3:
        raise ArgumentError(f"points must be (K, 2) and points3D (K, 3), not {pixels.shape} and {world.shape}")
    return pixels, world


def _colmap_camera(camera: Camera) -> pycolmap.Camera:
    model, width, height, params = camera.to_colmap()
    return import_pycolmap().Camera(model=model, width=width, height=height, params=params)


def _quaternion(R: Array) -> list[float]:
    """Return (w, x, y, z)."""
    x, y, z, w = import_pycolmap().Rotation3d(R).quat
    return [float(w), float(x), float(y), float(z)]


__all__ = [
    "AbsolutePose",
    "Localization",
    "Localizer",
    "estimate_absolute_pose",
    "estimate_camera_and_pose",
    "write_localizations",
]
