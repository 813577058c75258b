"""The last bundle adjustment: principal points are found where photographs determine them, and left where not."""

from __future__ import annotations

import numpy as np
import pycolmap
import pytest

from synthetic_scene import SyntheticScene
from tiepoint.geometry import Camera
from tiepoint.mapping.steps.adjust import adjust

SIZE, FOCAL, MIDDLE = (400, 300), 380.0, (200.0, 150.0)  # the middle as COLMAP counts
TRUE = (206.5, 144.0)
NAMES = [f"{n}.jpg" for n in range(8)]


def world(turned: bool = True) -> SyntheticScene:
    """Views of a cloud by a camera whose lens is 8 pixels off, held in all ways if ``turned``."""
    camera = Camera("SIMPLE_RADIAL", *SIZE, (FOCAL, TRUE[0] - 0.5, TRUE[1] - 0.5, -0.05))
    scene = SyntheticScene(NAMES, points=500, noise=0.2, camera=camera)
    if turned:
        scene.poses = [(roll(n) @ R, roll(n) @ t) for n, (R, t) in enumerate(scene.poses)]
    scene.place_points()
    return scene


def roll(n: int) -> np.ndarray:
    c, s = np.cos(0.8 * n), np.sin(0.8 * n)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def off(model: pycolmap.Reconstruction) -> pycolmap.Reconstruction:
    """Take the principal point for the middle, as is done where nothing is known."""
    for camera in model.cameras.values():
        camera.params = [FOCAL, *MIDDLE, 0.0]
    return model


def worst_place(model: pycolmap.Reconstruction, scene: SyntheticScene) -> float:
    """Return by how much a camera is off, after the best similarity, whose radius around the cloud is 4."""
    found = np.array([model.images[n].projection_center() for n in range(1, 1 + len(NAMES))])
    truth = np.array([-R.T @ t for R, t in scene.poses])
    return float(np.linalg.norm(pycolmap.estimate_sim3d(found, truth) * found - truth, axis=1).max())


def test_the_principal_point_of_a_shared_camera_is_found_and_with_it_the_places() -> None:
    scene = world()
    models = [off(scene.model(one_camera=True)) for _ in range(2)]
    for model, principal_points in zip(models, (False, True), strict=True):
        adjust(model, True, 1, 4.0, principal_points=principal_points)
    left, found = models
    assert tuple(left.cameras[1].params[1:3]) == MIDDLE
    np.testing.assert_allclose(found.cameras[1].params[1:3], TRUE, atol=0.3)
    assert abs(found.cameras[1].params[0] / FOCAL - 1) < 2e-3
    assert worst_place(found, scene) < 0.5 * worst_place(left, scene)


@pytest.mark.parametrize("why", ["each image its own camera", "straight ahead", "cameras are fixed"])
def test_it_stays_where_it_is_not_determined_or_fixed(why: str) -> None:
    scene = world()
    if why == "straight ahead":
        scene.poses = [(np.eye(3), np.array([0.0, 0.0, 4.0 - 0.05 * n])) for n in range(len(NAMES))]
        scene.place_points()
    model = off(scene.model(one_camera=why != "each image its own camera"))
    adjust(model, why != "cameras are fixed", 1, 4.0, principal_points=True)
    assert {tuple(camera.params[1:3]) for camera in model.cameras.values()} == {MIDDLE}
    focal = {camera.params[0] for camera in model.cameras.values()}
    assert (focal == {FOCAL}) == (why == "cameras are fixed")


def test_each_camera_is_judged_by_itself() -> None:
    """Of two cameras one took seven pictures, the other one."""
    scene = world()
    model, whole = pycolmap.Reconstruction(), scene.model()
    for number, image in whole.images.items():
        camera = whole.cameras[number]
        camera.camera_id = 2 if number == 8 else 1
        if not model.exists_camera(camera.camera_id):
            model.add_camera_with_trivial_rig(camera)
        keypoints = np.array([point.xy for point in image.points2D])
        copy = pycolmap.Image(name=image.name, image_id=number, camera_id=camera.camera_id, keypoints=keypoints)
        model.add_image_with_trivial_frame(copy, image.cam_from_world())
    for point in whole.points3D.values():
        model.add_point3D(point.xyz, point.track, point.color)
    adjust(off(model), True, 1, 4.0, principal_points=True)
    np.testing.assert_allclose(model.cameras[1].params[1:3], TRUE, atol=1.5)  # the other is wrong, and pulls
    assert tuple(model.cameras[2].params[1:3]) == MIDDLE
