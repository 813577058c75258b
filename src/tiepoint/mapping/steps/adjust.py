"""The last bundle adjustment of a model: robust, and with the principal points that its photographs determine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...geometry.colmap import import_pycolmap
from ..models import registered

if TYPE_CHECKING:
    import pycolmap

LEAST_ANGLE = 1.5  # degrees between the rays to a point: as the mappers
# Standard deviation of a principal point that is adjusted, as a share of the longer side. Lenses are off by half a
# percent; systematic errors, which the deviation does not know of, were up to 20 times as large in dense maps.
DETERMINED = 1e-3
MOST_IMAGES = 500  # of a model in which deviations are looked for: the time grows with the third power


def adjust(
    model: pycolmap.Reconstruction,
    refine_cameras: bool,
    threads: int,
    furthest: float,
    *,
    principal_points: bool = False,
) -> None:
    """Adjust poses, points and cameras with Cauchy's loss, and drop outliers.

    Parameters
    ----------
    model : pycolmap.Reconstruction
        It is changed.
    refine_cameras : bool
        Adjust focal lengths and distortion.
    threads : int
        -1 for all cores.
    furthest : float
        Pixels by which an observation may miss its point; others are dropped.
    principal_points : bool
        Adjust these too, with ``refine_cameras``, where the photographs determine them: a standard deviation of at
        most a thousandth of the longer side. Few views, a camera that moves straight ahead, or a plane seen from one
        side do not; then they stay where they are.

    Notes
    -----
    A principal point that is taken for the middle is off by some pixels. Turned cameras make up for most of that, and
    reprojection errors hardly show it, but positions do: see docs/how-to/splats.md.
    """
    pycolmap = import_pycolmap()
    options = pycolmap.BundleAdjustmentOptions(print_summary=False, refine_focal_length=refine_cameras)
    options.refine_extra_params = refine_cameras
    options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    options.ceres.solver_options.num_threads = threads
    config = pycolmap.BundleAdjustmentConfig()
    for image in registered(model):
        config.add_image(image.image_id)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    for number in range(2):  # the first takes the errors down, and with them what counts as an outlier
        pycolmap.ObservationManager(model).filter_observations_with_negative_depth()
        errors = np.concatenate([reprojection_errors(model, image) for image in registered(model)])
        errors = errors[np.isfinite(errors)]
        if not len(errors):
            return
        options.ceres.loss_function_scale = max(2 * float(np.median(errors)), 0.01)
        # Less takes up to twice as long, and changes errors by 0.3 % and no camera. The first only has to come near.
        options.ceres.solver_options.function_tolerance = 1e-2 if number == 0 else 1e-4
        if number == 1 and principal_points and refine_cameras:
            _free_principal_points(model, options, config, float(np.median(errors)))
        # What pycolmap.bundle_adjustment does, which logs at any level.
        pycolmap.create_default_bundle_adjuster(options, config, model).solve()
    pycolmap.ObservationManager(model).filter_observations_with_negative_depth()
    pycolmap.ObservationManager(model).filter_all_points3D(furthest, LEAST_ANGLE)
    model.update_point_3d_errors()


def reprojection_errors(model: pycolmap.Reconstruction, image: pycolmap.Image) -> NDArray[np.float64]:
    """Return by how many pixels each observation of an image misses its point."""
    seen = image.get_observation_points2D()
    if not seen:
        return np.zeros(0)
    points = np.array([model.points3D[point.point3D_id].xyz for point in seen])
    pose = image.cam_from_world()
    camera = model.cameras[image.camera_id]
    pixels = np.asarray(camera.img_from_cam(points @ pose.rotation.matrix().T + pose.translation))
    return np.linalg.norm(pixels - [point.xy for point in seen], axis=1)


def _free_principal_points(model: pycolmap.Reconstruction, options: Any, config: Any, error: float) -> None:
    """Set up an adjustment of the principal points that are determined; ``error`` is that of the observations."""
    pycolmap = import_pycolmap()
    if model.num_reg_images() > MOST_IMAGES:
        return
    options.refine_principal_point = True
    adjuster = pycolmap.create_default_ceres_bundle_adjuster(options, config, model)
    everything = pycolmap.BACovarianceOptions(params=pycolmap.BACovarianceOptionsParams.ALL)
    found = pycolmap.estimate_ba_covariance(everything, model, adjuster)
    free = []
    for camera in {image.camera_id: model.cameras[image.camera_id] for image in registered(model)}.values():
        covariance = None if found is None else found.get_other_params_cov(camera.params)
        if covariance is not None and len(covariance) == len(camera.params):
            variances = np.diag(covariance)[list(camera.principal_point_idxs())]
            if error * np.sqrt(variances.max()) <= DETERMINED * max(camera.width, camera.height):
                free.append(camera.camera_id)
                continue
        config.set_constant_cam_intrinsics(camera.camera_id)
    if not free:
        options.refine_principal_point = False
        for camera_id in list(config.constant_cam_intrinsics):
            config.set_variable_cam_intrinsics(camera_id)
