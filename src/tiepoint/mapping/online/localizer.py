"""Where was this photograph taken? Its camera's pose in a model that exists already: `Localizer`.

A query has features as the photographs of the model have; its matches with theirs are matches with the 3D points that
those observed, and a pose follows from these. Only the photographs that look most like the query are matched. With an
effort, those with most matches are tried harder (`tiepoint.effort`), and what is found is snapped to their keypoints.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ... import effort as ladder
from ... import pipeline
from ...effort import Effort, State
from ...errors import ArgumentError, InputError
from ...features import Extractor, ExtractorOptions
from ...geometry import Camera
from ...geometry.absolute import AbsolutePose, estimate_absolute_pose, estimate_camera_and_pose
from ...geometry.colmap import quaternion_of
from ...io.images import ImageSource, read_image
from ...io.model_files import read_model
from ...matchers import Matcher
from ...two_view import FEW
from ...types import Features, Image
from ..inputs import read_settings
from ..models import point_ids
from ..pairs import retrieval
from ..steps.effort import snapped
from ..steps.images import camera_of, parse_camera
from ..store import Store

if TYPE_CHECKING:
    import pycolmap

LEAST_INLIERS = FEW  # fewer agree by chance with a pose in a scene that is not theirs

TRIES = 3  # photographs of the map that are tried harder, those with most matches

OWN_CAMERA = 0.9  # share of the best inliers with which a camera of the map is believed to have taken the query


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
    readable : bool
        Whether the photograph could be used at all.
    keypoints : float64 array (inliers, 2), or None
        The keypoints that agree with the pose, in pixels.
    points : int64 array (inliers,), or None
        The ids of the model's points that they see.
    """

    name: str
    pose: AbsolutePose | None
    inliers: int = 0
    matches: int = 0
    similar: tuple[str, ...] = ()
    problem: str = ""
    readable: bool = True
    keypoints: NDArray[np.float64] | None = None
    points: NDArray[np.int64] | None = None

    def summary(self) -> dict[str, Any]:
        """Return plain values that JSON can hold; ``quaternion`` is (w, x, y, z), pixels are counted from 0."""
        pose = self.pose
        known: dict[str, Any] = dict.fromkeys(("R", "t", "quaternion", "centre", "camera"))
        if pose is not None and pose.R is not None and pose.t is not None and pose.centre is not None:
            known = {
                "R": pose.R.tolist(),
                "t": pose.t.tolist(),
                "quaternion": quaternion_of(pose.R).tolist(),
                "centre": pose.centre.tolist(),
                "camera": {**asdict(pose.camera), "params": list(pose.camera.params)},
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
    effort, images
        See `tiepoint.localize`.

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
        effort: Effort = "fast",
        images: str | os.PathLike[str] | None = None,
    ) -> None:
        if candidates < 1:
            raise ArgumentError(f"candidates must be at least 1 photograph, not {candidates}")
        if not threshold > 0:
            raise ArgumentError(f"threshold must be a positive number of pixels, not {threshold}")
        ladder.check(effort, None)
        if (effort == "fast") != (images is None):
            raise ArgumentError(
                "effort 'fast' does not look at the images of the map again; give them with 'auto' or 'thorough'"
                if effort == "fast"
                else f"effort {effort!r} looks at the images of the map again; say in which folder they are"
            )
        self.effort, self.folder = effort, None if images is None else Path(images)
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
        device: torch.device | str | None = "auto",
        **options: Any,
    ) -> Localizer:
        """Open the folder that ``tiepoint map`` wrote.

        Parameters
        ----------
        scene : path
            Holds ``database.db``, ``settings.json`` and ``sparse/0``, the largest model.
        matcher : str
            By default the one of the map.
        device : torch.device or str
            Where networks run.
        **options
            ``candidates``, ``threshold``, ``least_inliers``, ``effort`` and ``images`` of the class.

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
        limits["max_keypoints"] = settings["first_pass"] or limits["max_keypoints"]
        matcher = settings["matcher"] if matcher == "auto" else matcher
        extractor, pairer, _ = pipeline.load(settings["features"], matcher, device, ExtractorOptions(**limits))
        store = Store.open(folder / "database.db", create=False, read_only=True)
        return cls(model, store, extractor, pairer, **options)

    def __call__(
        self,
        photograph: ImageSource,
        camera: Camera | str | os.PathLike[str] | None = None,
        focal: float | None = None,
    ) -> Localization:
        """Find one photograph.

        Parameters
        ----------
        photograph : path, array, Pillow image, tensor, file object or Image
            See `tiepoint.read_image`.
        camera : Camera, text or path, optional
            Its intrinsics, if they are known, as a `Camera` or as COLMAP writes them: ``"MODEL:PARAMETERS"`` or a file
            ``cameras.txt``. Otherwise it is the camera of the most similar photograph of the map, if
            the sizes agree and the matches with it; else the distortion of the lens is estimated with the pose, and so
            is the focal length, unless it is given or the EXIF of the file has it.
        focal : float, optional
            Focal length in pixels.

        Raises
        ------
        InputError
            The photograph cannot be read, or is a panorama.
        ArgumentError
            The camera is of another size, or is given with a focal length.
        """
        picture = read_image(photograph, bands=self.extractor.options.bands)
        is_path = isinstance(photograph, (str, os.PathLike))
        name = str(photograph) if is_path else picture.name
        if camera is not None and not isinstance(camera, Camera):
            camera, focal = parse_camera(camera, focal, picture.size), None
        if camera is not None and focal is not None:
            raise ArgumentError("give a camera or a focal length, not both: a camera has its focal length")
        if camera is not None and (camera.width, camera.height) != picture.size:
            raise ArgumentError(
                f"{name}: is {picture.size[0]}x{picture.size[1]} pixels, but the camera {camera.width}x{camera.height}"
            )
        given = camera is not None or focal is not None
        if not given and is_path and (exif := camera_of(name)).has_prior_focal_length:
            focal = float(exif.focal_length)
        features = self.extractor(picture)
        similar = self._similar(features)
        own = None if given else self._camera_of_map(similar, picture.size, name)
        names = tuple(self._images[i][0] for i in similar)
        found = self._matches_with_points(features, similar)
        pairs = _pooled(found)

        def solve() -> tuple[AbsolutePose, int]:
            pose = self._pose(features, pairs, picture.size, camera, focal, own)
            return pose, len(np.unique(pairs[pose.inliers, 0]))  # a keypoint that agrees with two points counts once

        pose, inliers = solve()
        most = sorted(zip(similar, found, strict=True), key=lambda pair: -len(pair[1]))
        for image_id, _ in most[: 0 if self.folder is None else TRIES]:
            if self.effort == "auto" and inliers >= self.least_inliers:
                break
            pairs = _pooled([pairs, self._tried_harder(picture, features, image_id)])
            pose, inliers = solve()
        matches = len(np.unique(pairs[:, 0]))
        if inliers < self.least_inliers:
            return Localization(name, None, inliers, matches, names, f"not found: {inliers} inliers")
        seen = pairs[pose.inliers][np.unique(pairs[pose.inliers, 0], return_index=True)[1]]
        keypoints = features.keypoints.cpu().numpy()[seen[:, 0]].astype(np.float64)
        return Localization(name, pose, inliers, matches, names, keypoints=keypoints, points=seen[:, 1])

    def _pose(
        self,
        features: Features,
        pairs: NDArray[np.int64],
        size: tuple[int, int],
        camera: Camera | None,
        focal: float | None,
        own: Camera | None,
    ) -> AbsolutePose:
        """Return the pose that most matches of keypoints with 3D points (K, 2) agree with."""
        pixels = features.keypoints.cpu().numpy()[pairs[:, 0]]
        world = np.array([self.model.point3D(i).xyz for i in pairs[:, 1]]).reshape(-1, 3)
        threshold = self.threshold * max(1.0, max(size) / (self.extractor.options.long_side or max(size)))
        if camera is not None:
            pose = estimate_absolute_pose(pixels, world, camera, threshold)
        else:
            pose = estimate_camera_and_pose(pixels, world, size, focal, threshold)
        if own is not None:
            # A free camera explains a few matches more, by bending to wrong ones.
            taken = estimate_absolute_pose(pixels, world, own, threshold)
            if taken.inliers.sum() >= OWN_CAMERA * pose.inliers.sum():
                pose = taken
        return pose

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

    def _matches_with_points(self, features: Features, similar: list[int]) -> list[NDArray[np.int64]]:
        """Return (row of the query's keypoint, id of the 3D point) for each match (K, 2), for each photograph."""
        seen = []
        for image_id in similar:
            stored, points = self._observed(image_id)
            # Only what became a 3D point is of use, the best first: the rest would cost time.
            rows = np.flatnonzero(points >= 0)[: self.extractor.options.max_keypoints]
            seen.append((stored.select(torch.from_numpy(rows)), points[rows]))
        results = self.matcher.match_many([(features, stored) for stored, _ in seen])
        return [
            np.column_stack([result.indices[:, 0], points[result.indices[:, 1]]])
            for result, (_, points) in zip(results, seen, strict=True)
        ]

    def _tried_harder(self, picture: Image, features: Features, image_id: int) -> NDArray[np.int64]:
        """Climb the ladder with one photograph of the map; return matches as `_matches_with_points` does."""
        assert self.folder is not None
        stored, points = self._observed(image_id)
        image = read_image(self.folder / self._images[image_id][0], bands=self.extractor.options.bands)
        if image.size != stored.image_size:
            raise InputError(f"{image.name}: is not of the size that the map was made from; is it another photograph?")
        stored = stored.first(self.extractor.options.max_keypoints)
        second = pipeline.another(self.extractor)
        begin = State.begin((picture, image), self.extractor, self.matcher, second, (features, stored))
        matches = snapped(ladder.climb(begin, self.effort))
        pairs = np.column_stack([matches.indices[:, 0], points[matches.indices[:, 1]]])
        # Any two photographs have a few matches: those of unrelated ones would only agree by chance.
        return pairs[(pairs[:, 1] >= 0) & (matches.overlaps is not False)]

    def _observed(self, image_id: int) -> tuple[Features, NDArray[np.int64]]:
        """Return the features of a photograph of the map, and the 3D point that each observes, -1 for none."""
        stored = self.store.features(image_id)
        points = point_ids(self.model.image(self._images[image_id][1]))
        if len(stored) != len(points):
            raise InputError(
                f"{self.store.path}: {self._images[image_id][0]} has {len(stored)} keypoints here and "
                f"{len(points)} in the model; make the model anew from this database"
            )
        return stored, points


def _pooled(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Put matches (K, 2) of several photographs together, none twice."""
    return np.unique(np.concatenate([np.zeros((0, 2), np.int64), *parts]), axis=0)
