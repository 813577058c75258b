"""Verified matches -> cameras and points, through COLMAP's mappers, and how good they are."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ...errors import ArgumentError, InputError
from ...geometry.colmap import import_pycolmap
from ...io.files import atomic_folder, make_folder, scratch_folder, write_json
from ...io.images import read_image
from ...io.model_files import write_model
from ..models import registered
from ..progress import Progress, Report, silent
from ..store import Store
from . import refine as refinement
from .adjust import adjust, reprojection_errors
from .assess import ONLY_TURNED, TURNED, Assessment, assess, turned_and_flat
from .densify import densify
from .thicken import thicken, torn_apart
from .verify import LEAST_INLIERS

if TYPE_CHECKING:
    import pycolmap

Mapper = Literal["incremental", "global"]
MAPPERS: tuple[Mapper, ...] = get_args(Mapper)

LEAST_IMAGES = 3  # of every model but the largest: two images more are no map, and often a mistake
OUTLIER = 4.0  # pixels by which an observation may miss its point: the mappers' own limit
REFINED_OUTLIER = 2.0  # of keypoints that were placed to a fraction of a pixel
AHEAD_DEGREES = 2.0  # median angle between rays that a first pair needs if COLMAP's 16, 8 and 4 find none


@dataclass(frozen=True)
class ImageQuality:
    """How well one image is held: observed points, and their mean reprojection error in pixels (0 without points)."""

    name: str
    observations: int
    error: float


@dataclass(frozen=True)
class Quality:
    """Quality of a model, measured without ground truth.

    Attributes
    ----------
    registered, total : int
        Images with a pose, and images in the database.
    points, observations : int
        3D points, and the keypoints that see them.
    track_length : float
        Mean number of images that see a point.
    error : float
        Mean reprojection error in pixels, as COLMAP computes it: over the points, of the mean of each.
    images : tuple of ImageQuality
        The registered images, weakest (fewest observations) first.

    Examples
    --------
    >>> quality = Quality(1, 2, 10, 20, 2.0, 0.5, (ImageQuality("a.jpg", 20, 0.5),))
    >>> print(quality)
    1 of 2 images, 10 points, track length 2.00, reprojection error 0.50 px
    """

    registered: int
    total: int
    points: int
    observations: int
    track_length: float
    error: float
    images: tuple[ImageQuality, ...]

    @classmethod
    def of(cls, model: pycolmap.Reconstruction, total: int | None = None) -> Quality:
        """Measure a model; ``total`` is the number of images it was to be made of, if that is known.

        Errors are computed anew from poses, cameras and keypoints; the points of the model get theirs.
        """
        images = []
        for image in registered(model):
            errors = reprojection_errors(model, image)
            images.append(ImageQuality(image.name, len(errors), float(errors.mean()) if len(errors) else 0.0))
        observations, points = sum(image.observations for image in images), model.num_points3D()
        model.update_point_3d_errors()
        return cls(
            registered=len(images),
            total=len(images) if total is None else total,
            points=points,
            observations=observations,
            track_length=observations / points if points else 0.0,
            error=model.compute_mean_reprojection_error() if points else 0.0,
            images=tuple(sorted(images, key=lambda image: (image.observations, -image.error, image.name))),
        )

    def __str__(self) -> str:
        return (
            f"{self.registered} of {self.total} images, {self.points} points, track length {self.track_length:.2f}, "
            f"reprojection error {self.error:.2f} px"
        )


@dataclass(frozen=True, eq=False)
class Scene:
    """What a collection of photographs became.

    Attributes
    ----------
    folder : Path
        Where it was written: ``sparse/0``, ``sparse/1`` … and ``quality.json``.
    models : tuple of pycolmap.Reconstruction
        Parts of the world, the one with the most images first. Each has a frame and a scale of its own. One image may
        be in several.
    qualities : tuple of Quality
        One for each model.
    left_out : dict
        Name of each image that is in no model -> why.
    assessments : tuple of Assessment
        One for each model: how far it can be trusted.
    notes : tuple of str
        How the models are connected, and which were rejected.
    """

    folder: Path
    models: tuple[pycolmap.Reconstruction, ...]
    qualities: tuple[Quality, ...]
    left_out: dict[str, str]
    assessments: tuple[Assessment, ...] = ()
    notes: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Return everything but the models themselves, ready for JSON."""
        models = [asdict(quality) for quality in self.qualities]
        for model, assessment in zip(models, self.assessments, strict=False):
            model["assessment"] = asdict(assessment)
        return {"models": models, "left_out": self.left_out}


def reconstruct(
    database: str | os.PathLike[str],
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    mapper: Mapper = "incremental",
    refine_cameras: bool = True,
    second_pass: bool = False,
    refine_keypoints: bool = False,
    bands: Sequence[int] | None = None,
    seed: int = 0,
    threads: int | None = None,
    report: Report = silent,
    align: Callable[[pycolmap.Reconstruction], None] | None = None,
) -> Scene:
    """Turn verified matches into cameras and points.

    Parameters
    ----------
    database : path
        A COLMAP database with matches and two-view geometries, of ours or COLMAP's making.
    images : path
        The folder of the photographs, for colours and for ``refine_keypoints``.
    output : path
        A folder, made if need be. Its ``sparse/`` and ``quality.json`` are replaced, each as a whole, once the
        reconstruction is done.
    mapper : {"incremental", "global"}
        Incremental adds one image after the other and copes with wrong matches and unknown focal lengths.
        Global (GLOMAP) solves for all images at once: much faster from some hundred images on, but it needs
        good matches, and focal lengths that are roughly right.
    refine_cameras : bool
        Adjust focal lengths and distortion along with the poses, and at the end the principal points that the
        photographs determine (`tiepoint.mapping.steps.adjust`). False for calibrated cameras.
    second_pass : bool
        Also match all keypoints along epipolar lines, for many more points (`tiepoint.mapping.steps.densify`). And if
        the largest model lacks photographs that pairs connect with it, find more matches for these pairs
        (`tiepoint.mapping.steps.thicken`), and map once more.
    refine_keypoints : bool
        Also align each track's keypoints to a fraction of a pixel (`tiepoint.mapping.steps.refine`), from the
        photographs at full size. With SIFT at 1600 pixels it takes a quarter to a third off the reprojection error
        (fountain 0.22 to 0.15 px, entry 0.25 to 0.19, sceaux 0.35 to 0.27), but does not make the cameras'
        positions better (medians: fountain 0.018 to 0.022 %, entry 0.028 to 0.026 % of the extent).
    bands : one or three ints, optional
        Which bands of the photographs to use for colours and ``refine_keypoints``, see `tiepoint.read_image`.
    seed : int
        Of all random choices.
    threads : int, optional
        By default one for each core. The result is the same, bit for bit, in every run with ``threads=1``; with
        more, COLMAP's incremental mapper sums in an order that varies.
    report : callable
        Gets a `Progress` after each image that the incremental mapper places, each pair of the second pass, each image
        whose keypoints are refined.
    align : callable, optional
        Called with each model before it is written, to move it into another frame.

    Returns
    -------
    Scene
        The models, the largest first, and the images that are in none of them, with the reason.

    Raises
    ------
    ArgumentError
        Unknown mapper, or ``threads`` below 1.
    InputError
        The database cannot be used, holds no verified pair, or no model with depth can be made of it; or the output
        cannot be written.
    MissingDependencyError
        pycolmap is not installed.

    Warns
    -----
    UserWarning
        A photograph cannot be read: points that only it sees stay black.

    Notes
    -----
    Both mappers end with bundle adjustments by least squares, after which outliers of up to 4 pixels remain. Another
    one follows here with a robust loss (Cauchy's). On laser-measured sets it takes a tenth (fountain) to nearly half
    (entry) off the median error of the cameras' positions: benchmarks/mapping_quality.py.

    References
    ----------
    Schönberger and Frahm, Structure-from-Motion Revisited, CVPR 2016 (incremental). Pan et al., Global
    Structure-from-Motion Revisited, ECCV 2024 (global).
    """
    if mapper not in MAPPERS:
        raise ArgumentError(f"no mapper is called {mapper!r}; there are: {', '.join(MAPPERS)}")
    if threads is not None and threads < 1:
        raise ArgumentError(f"threads must be at least 1, not {threads}")
    collection = _Collection.of(Path(database))
    target = make_folder(output)  # before the long work, not after
    placed, total = 0, len(collection.names)

    def on_image() -> None:
        nonlocal placed
        placed += 1
        report(Progress("mapping", min(placed, total), total))

    report(Progress("mapping", 0, total))

    def try_to_map() -> list[pycolmap.Reconstruction]:
        """Return the models, the largest first."""
        with scratch_folder() as work, _quiet():
            found = _map(
                Path(database), work, mapper, refine_cameras, seed, threads or -1, on_image, collection.camera_models
            )
        return sorted(found, key=_size, reverse=True)

    found = try_to_map()
    if second_pass:
        with Store.open(database, create=False) as store:
            torn = torn_apart(found[0].reg_image_ids() if found else (), store.verified_pairs())
            thicker = bool(torn) and thicken(store, torn, report) > 0
        if thicker:
            placed, collection = 0, _Collection.of(Path(database))
            found = max(found, try_to_map(), key=lambda models: [_size(model) for model in models[:1]])
    report(Progress("mapping", total, total))
    # COLMAP keeps the first model that it makes, however small, and that need not be the largest.
    models = tuple(model for model in found if model is found[0] or model.num_reg_images() >= LEAST_IMAGES)
    for model in models:
        furthest = OUTLIER
        if second_pass:
            with _quiet(), Store.open(database, create=False) as store:
                adjust(model, refine_cameras, threads or -1, furthest)
                densify(model, store, lambda *counts: report(Progress("matching along lines", *counts)))
        if refine_keypoints:
            refinement.refine_keypoints(model, images, bands, report)
            furthest = REFINED_OUTLIER
        report(Progress("adjusting", 0, 0))
        with _quiet():
            adjust(model, refine_cameras, threads or -1, furthest, principal_points=True)
    with Store.open(database, create=False) as store:
        judged = [assess(model, store, collection.verified, len(collection.names)) for model in models]
        kept = [place for place, assessment in enumerate(judged) if assessment.verdict != "no 3D"]
        models = tuple(models[place] for place in kept)
        if not models:
            begun = {image.image_id: image.camera for image in store.images()}
            only_turned = turned_and_flat(store, sorted(collection.verified), begun)[0] > TURNED
            why = ONLY_TURNED if only_turned else judged[0].reasons[0] if judged else _NO_MODEL[mapper]
            raise InputError(f"{database}: no model can be made of it: {why}")
    for model in models:
        if align is not None:
            align(model)
        _colour(model, Path(images), bands)
    with atomic_folder(target / "sparse") as folder:
        for number, model in enumerate(models):
            (folder / str(number)).mkdir()
            write_model(model, folder / str(number))
    rejected = [assessment.reasons[0] for assessment in judged if assessment.verdict == "no 3D"]
    notes = [f"a model was rejected: {reason}" for reason in rejected]
    scene = Scene(
        folder=target,
        models=models,
        qualities=tuple(Quality.of(model, len(collection.names)) for model in models),
        left_out=collection.left_out(models),
        assessments=tuple(judged[place] for place in kept),
        notes=tuple(notes + collection.connections(models)),
    )
    write_json(target / "quality.json", scene.summary())
    return scene


_NO_MODEL: dict[Mapper, str] = {
    "incremental": "no pair of photographs shows enough points from two sides; take some from places further apart, "
    "or, if there are such, check the focal lengths",
    "global": "the views do not agree, or no point is in three of them; mapper='incremental' copes with more",
}


def _size(model: pycolmap.Reconstruction) -> tuple[int, int]:
    return model.num_reg_images(), model.num_points3D()


def _map(
    database: Path,
    work: Path,
    mapper: Mapper,
    refine_cameras: bool,
    seed: int,
    threads: int,
    on_image: Callable[[], None] | None,
    camera_models: set[str],
) -> list[pycolmap.Reconstruction]:
    """Run one of COLMAP's mappers; it writes into the empty folder ``work``."""
    # COLMAP looks for the photographs in the same folder and finds none: it would read colours without turning the
    # picture as EXIF says.
    places = database, work, work
    pycolmap = import_pycolmap()
    if mapper == "global":
        options = pycolmap.GlobalPipelineOptions(random_seed=seed, num_threads=threads, min_model_size=LEAST_IMAGES)
        options.min_num_matches = LEAST_INLIERS
        options.mapper.bundle_adjustment.refine_focal_length = refine_cameras
        options.mapper.bundle_adjustment.refine_extra_params = refine_cameras
        return list(pycolmap.global_mapping(*places, options).values())
    options = pycolmap.IncrementalPipelineOptions(random_seed=seed, num_threads=threads, min_model_size=LEAST_IMAGES)
    options.min_num_matches = LEAST_INLIERS
    options.extract_colors = False
    options.ba_refine_focal_length = options.mapper.abs_pose_refine_focal_length = refine_cameras
    options.ba_refine_extra_params = options.mapper.abs_pose_refine_extra_params = refine_cameras
    # Beyond 1 COLMAP takes a coefficient for absurd, and drops the image. The beta of EUCM is 1 without distortion.
    for part in (options, options.mapper, options.triangulation) if "EUCM" in camera_models else ():
        part.max_extra_param = 10.0
    found = pycolmap.incremental_mapping(*places, options, next_image_callback=on_image)
    if not found:
        # No pair to start from. A camera that only moves ahead sees everything at small angles.
        options.mapper.init_max_forward_motion, options.mapper.init_min_tri_angle = 1.0, AHEAD_DEGREES
        found = pycolmap.incremental_mapping(*places, options, next_image_callback=on_image)
    return list(found.values())


@dataclass(frozen=True, eq=False)
class _Collection:
    """What a database holds, as far as it explains why an image is in no model."""

    database: Path
    names: dict[int, str]
    verified: dict[tuple[int, int], int]
    camera_models: set[str]

    @classmethod
    def of(cls, database: Path) -> _Collection:
        """Read a database.

        Raises
        ------
        InputError
            It cannot be used, or no model can come of it.
        """
        with Store.open(database, create=False) as store:
            images = store.images()
            names = {image.image_id: image.name for image in images}
            models = {image.camera.model_name for image in images}
            collection = cls(database, names, store.verified_pairs(), models)
            matched, verified = len(store.matched_pair_ids()), len(store.verified_pair_ids())
        best = max(collection.verified.values(), default=0)
        if len(collection.names) < 2:
            raise InputError(f"{database}: holds {len(collection.names)} images; a model needs two at least")
        if best == 0 and not verified:
            lacking = "verified; verify" if matched else "matched; match"
            raise InputError(f"{database}: no pairs of its {len(collection.names)} images were {lacking} them first")
        if best == 0:
            raise InputError(
                f"{database}: in none of its {verified} matched pairs do both images show the same place; take "
                "photographs that overlap more"
            )
        if best < LEAST_INLIERS:
            raise InputError(
                f"{database}: the best of {len(collection.verified)} verified pairs has {best} matches, and "
                f"{LEAST_INLIERS} are needed; take photographs that overlap more"
            )
        return collection

    def connections(self, models: tuple[pycolmap.Reconstruction, ...]) -> list[str]:
        """Return how each model but the first is connected with the first, a line each."""
        notes = []
        inside = [set(model.reg_image_ids()) for model in models]
        for number, images in enumerate(inside[1:], start=1):
            shared = images & inside[0]
            links = sum(
                inliers >= LEAST_INLIERS and any((a in inside[0] and b in images) for a, b in (pair, pair[::-1]))
                for pair, inliers in self.verified.items()
            )
            if shared:
                how = f"{len(shared)} of its {len(images)} photographs are in model 0 too, but the two do not agree"
            elif links:
                how = f"{links} pairs match with model 0, but too weakly to join the two"
            else:
                how = "no photograph connects it with model 0"
            notes.append(f"model {number}: {how}")
        return notes

    def left_out(self, models: tuple[pycolmap.Reconstruction, ...]) -> dict[str, str]:
        """Return name -> reason for the images that are in none of the models."""
        placed = {image_id for model in models for image_id in model.reg_image_ids()}
        # Of the pairs of each image the one that explains most: a usable one with a placed image, else the strongest.
        best: dict[int, tuple[bool, int, int]] = {}
        for pair, inliers in self.verified.items():
            for image_id, other in (pair, pair[::-1]):
                rank = (inliers >= LEAST_INLIERS and other in placed, inliers, other)
                best[image_id] = max(best.get(image_id, rank), rank)
        pycolmap = import_pycolmap()
        with closing(pycolmap.Database.open(self.database)) as database:
            empty = {i for i in self.names if i not in placed and database.num_keypoints_for_image(i) == 0}
        reasons = {}
        for image_id, name in sorted(self.names.items(), key=lambda item: item[1]):
            if image_id in placed:
                continue
            near, inliers, other = best.get(image_id, (False, 0, 0))
            if image_id in empty:
                reason = "it has no keypoints"
            elif inliers == 0:
                reason = "no other photograph was found to show the same place"
            elif inliers < LEAST_INLIERS:
                reason = (
                    f"it shares at most {inliers} verified matches with any other, {self.names[other]}; "
                    f"{LEAST_INLIERS} are needed"
                )
            elif near:
                reason = (
                    f"it shares {inliers} verified matches with {self.names[other]}, but too few of them are points "
                    "of the model, or they do not agree with it"
                )
            else:
                reason = f"it is linked only to photographs that are left out too, such as {self.names[other]}"
            reasons[name] = reason
        return reasons


def _colour(model: pycolmap.Reconstruction, folder: Path, bands: Sequence[int] | None) -> None:
    """Give each point the mean colour of the pixels that observe it."""
    ids, colours = [np.zeros(0, np.int64)], [np.zeros((0, 3), np.uint8)]
    for image in registered(model):
        try:
            view = read_image(folder / image.name, bands=bands)
        except InputError as error:
            warnings.warn(f"no colours from this photograph: {error}", stacklevel=3)
            continue
        seen = image.get_observation_points2D()
        # COLMAP counts from the corner of the image, so the whole part is the pixel.
        at = np.array([point.xy for point in seen]).reshape(-1, 2).astype(int).clip(0, np.subtract(view.size, 1))
        ids.append(np.array([point.point3D_id for point in seen], np.int64))
        colours.append(view.pixels[at[:, 1], at[:, 0]])
    points, rows = np.unique(np.concatenate(ids), return_inverse=True)
    sums = [np.bincount(rows, band, len(points)) for band in np.concatenate(colours).T]
    means = np.rint(np.stack(sums, axis=1) / np.bincount(rows, minlength=len(points))[:, None]).astype(np.uint8)
    for point, colour in zip(points.tolist(), means, strict=True):
        model.points3D[point].color = colour


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence COLMAP's log, which reports every image and every iteration."""
    logging = import_pycolmap().logging
    before = logging.minloglevel
    logging.minloglevel = logging.FATAL
    try:
        yield
    finally:
        logging.minloglevel = before
