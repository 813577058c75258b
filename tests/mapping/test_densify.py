"""The second match pass, in a room whose true points are known; and what the qualities of a map make of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import tiepoint as tp
from textured_room import CAMERA, HIGH, LOW, Pose, Room, look, true_errors
from tiepoint.features import ExtractorOptions
from tiepoint.geometry import fundamental_from_pose, relative_pose, symmetric_epipolar_error
from tiepoint.mapping import NewImage, Store
from tiepoint.mapping.plan import Plan
from tiepoint.mapping.quality import PRESETS
from tiepoint.mapping.steps import densify as second_pass
from tiepoint.mapping.steps.densify import View, densify, match_along_lines, pairs_that_share_points
from tiepoint.mapping.steps.reconstruct import Quality
from tiepoint.types import Features

pycolmap = pytest.importorskip("pycolmap")

POSES = [look((x, 0.1 * x, -1.5 + 0.3 * abs(x)), -0.12 * x, 0.02) for x in np.linspace(-1.2, 1.2, 5)]


@pytest.fixture(scope="module")
def features() -> list[Features]:
    room, sift = Room(), tp.features.load("sift", max_keypoints=1500)
    return [sift(room.photograph(pose)) for pose in POSES]


def model_of(features: list[Features], poses: list[Pose]) -> Any:
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=320, height=240, params=[260, 160, 120], camera_id=1)
    model.add_camera_with_trivial_rig(camera)
    for number, (one, pose) in enumerate(zip(features, poses, strict=True), start=1):
        points = one.keypoints.numpy().astype(float) + 0.5
        image = pycolmap.Image(name=f"{number}.png", image_id=number, camera_id=1, keypoints=points)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(np.column_stack(pose)))
    return model


@pytest.mark.parametrize(("a", "b"), [(0, 1), (0, 4), (3, 1)])
def test_matches_lie_on_epipolar_lines_and_are_right(features: list[Features], a: int, b: int) -> None:
    model = model_of(features, POSES)
    found = match_along_lines(View.of(model, a + 1, features[a]), View.of(model, b + 1, features[b]))
    p0, p1 = (features[i].keypoints.numpy()[found[:, side]] for side, i in enumerate((a, b)))
    F = fundamental_from_pose(CAMERA.K, CAMERA.K, *relative_pose(POSES[a], POSES[b]))
    assert (symmetric_epipolar_error(F, p0, p1) < 2.5 * second_pass.BAND**2).all()
    good = true_errors(POSES[a], POSES[b], p0, p1) < 2
    plain = tp.matchers.load("nearest")(features[a], features[b])
    plain_good = true_errors(POSES[a], POSES[b], plain.points0, plain.points1) < 2
    assert good.mean() > 0.95
    assert good.sum() > 1.05 * plain_good.sum() > 50
    back = match_along_lines(View.of(model, b + 1, features[b]), View.of(model, a + 1, features[a]))
    assert sorted(map(tuple, back[:, ::-1].tolist())) == list(map(tuple, found.tolist()))


def test_a_wrong_pose_finds_little(features: list[Features]) -> None:
    """What agrees with lines that lead elsewhere is chance."""
    right = model_of(features, POSES)
    wrong = model_of(features, [POSES[0], look((0.6, 1.5, -1.0), -0.4, -0.3), *POSES[2:]])
    counts = [len(match_along_lines(*(View.of(m, i + 1, features[i]) for i in (0, 1)))) for m in (right, wrong)]
    assert counts[1] < 0.2 * counts[0]


def test_the_camera_may_move_ahead() -> None:
    """The epipole is in the middle of both photographs, and lines run in all directions around it."""
    room, sift = Room(), tp.features.load("sift", max_keypoints=1000)
    poses = [look((0.1, 0.0, z), 0.0, 0.0) for z in (-2.0, -1.0)]
    both = [sift(room.photograph(pose)) for pose in poses]
    model = model_of(both, poses)
    found = match_along_lines(View.of(model, 1, both[0]), View.of(model, 2, both[1]))
    p0, p1 = (both[i].keypoints.numpy()[found[:, i]] for i in (0, 1))
    directions = np.degrees(np.arctan2(p0[:, 1] - 119.5, p0[:, 0] - 159.5))
    assert (np.histogram(directions, bins=8, range=(-180, 180))[0] > 5).all()
    assert (true_errors(poses[0], poses[1], p0, p1) < 2).mean() > 0.9


def test_keypoints_without_a_line(features: list[Features]) -> None:
    """Of rays along the baseline, or of a lens that has none, nothing is matched; of one keypoint, that one."""
    model = model_of(features, POSES)
    views = [View.of(model, i + 1, features[i]) for i in (0, 1)]
    axis = views[1].centre - views[0].centre
    on_the_baseline = np.broadcast_to(axis / np.linalg.norm(axis), views[0].rays.shape)
    for rays in (on_the_baseline, np.full_like(views[0].rays, np.nan)):
        nowhere = replace(views[0], rays=rays)
        assert match_along_lines(nowhere, views[1]).shape == match_along_lines(views[1], nowhere).shape == (0, 2)
        assert match_along_lines(nowhere, replace(nowhere, centre=views[1].centre)).shape == (0, 2)
    row, column = match_along_lines(*views)[7].tolist()
    only = [
        View(view.centre, view.rays[[i]], view.focal, view.features.select(torch.tensor([i])))
        for view, i in zip(views, (row, column), strict=True)
    ]
    assert match_along_lines(only[0], only[1]).tolist() == match_along_lines(only[1], only[0]).tolist() == [[0, 0]]
    assert [column] in match_along_lines(only[0], views[1])[:, 1:].tolist()


def test_binary_descriptors(features: list[Features]) -> None:
    room, orb = Room(), tp.features.load("orb", max_keypoints=1000)
    both = [orb(room.photograph(pose)) for pose in POSES[:2]]
    model = model_of(both, POSES[:2])
    found = match_along_lines(View.of(model, 1, both[0]), View.of(model, 2, both[1]))
    p0, p1 = (both[i].keypoints.numpy()[found[:, i]] for i in (0, 1))
    assert len(found) > 50
    assert (true_errors(POSES[0], POSES[1], p0, p1) < 4).mean() > 0.8


def test_points_are_added_where_the_walls_are(features: list[Features], tmp_path: Path) -> None:
    model = model_of(features, POSES)
    best = [one.select(torch.arange(300)) for one in features]
    graph = pycolmap.CorrespondenceGraph()
    for i in range(5):
        graph.add_image(i + 1, len(features[i]))
    nearest = tp.matchers.load("nearest")
    for i, j in combinations(range(5), 2):
        geometry = pycolmap.TwoViewGeometry()
        geometry.config = pycolmap.TwoViewGeometryConfiguration.CALIBRATED
        geometry.inlier_matches = nearest(best[i], best[j]).indices.astype(np.uint32)
        graph.add_two_view_geometry(i + 1, j + 1, geometry)
    graph.finalize()
    triangulator = pycolmap.IncrementalTriangulator(graph, model, pycolmap.ObservationManager(model, graph))
    for i in range(5):
        triangulator.triangulate_image(pycolmap.IncrementalTriangulatorOptions(), i + 1)
    before, poses = Quality.of(model), {i: image.cam_from_world().matrix() for i, image in model.images.items()}
    assert before.points > 50
    assert len(pairs_that_share_points(model)) == 10
    with Store.open(tmp_path / "database.db") as store:
        camera = model.cameras[1]
        store.add_images([NewImage(f"{i}.png", camera, "one") for i in range(1, 6)])
        store.write_features(enumerate(features, start=1))
        assert densify(model, store) > 1000
    after = Quality.of(model)
    assert after.points > 2 * before.points
    assert all((image.cam_from_world().matrix() == poses[i]).all() for i, image in model.images.items())
    xyz = np.array([point.xyz for point in model.points3D.values()])
    off = np.abs(np.stack([xyz - LOW, HIGH - xyz], axis=2)).min(axis=(1, 2))
    assert np.median(off) < 0.02  # metres
    assert np.quantile(off, 0.9) < 0.2


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for number, pose in enumerate(POSES):
        cv2.imwrite(str(folder / f"{number}.png"), Room().photograph(pose)[..., ::-1])
    return folder


def test_qualities_of_a_map(photographs: Path, tmp_path: Path, tiepoint: Any) -> None:
    """More points for more quality, and no worse; what was chosen is said, kept, and overruled."""
    reports = {}
    for quality in ("fast", "balanced", "dense"):
        options = ["-f", "sift", "-m", "nearest", "--focal", "260", "--workers", "0", "--quality", quality]
        ran = tiepoint("map", photographs, "-o", tmp_path / quality, *options)
        assert ran.code == 0, ran.err
        assert f"quality {quality}: 5 photographs, 10 pairs" in ran.err
        assert "estimated" in ran.err and ", model " in ran.err
        assert "where these leave a doubt" not in ran.err  # that is a network's
        assert f"ns-train splatfacto --data {tmp_path / quality}/undistorted" in ran.out.splitlines()[-1]
        reports[quality] = json.loads((tmp_path / quality / "report.json").read_text())
    fast, balanced, dense = (reports[quality]["models"][0] for quality in ("fast", "balanced", "dense"))
    assert fast["registered"] == balanced["registered"] == dense["registered"] == 5
    assert dense["points"] >= balanced["points"] > 1.3 * fast["points"]
    assert balanced["error"] < 1.15 * fast["error"] < 0.15  # weaker keypoints, but refined
    assert dense["error"] < 1.1 * balanced["error"]
    assert reports["balanced"]["plan"]["chosen"] == {
        **{"max_keypoints": 10240, "long_side": 1600, "effort": "fast", "refine": True},
        **{"first_pass": 4096, "second_pass": True},
    }
    ran = tiepoint("map", photographs, "-o", tmp_path / "few", *options[:-2], "-k", "200", "--no-refine", "--json")
    assert json.loads(ran.out)["plan"]["chosen"].keys() == {"long_side", "effort", "second_pass"}
    with Store.open(tmp_path / "few/database.db") as store:
        assert max(store.keypoint_counts().values()) <= 200


def test_a_network_matches_the_best_keypoints_first(photographs: Path, tmp_path: Path, tiepoint: Any) -> None:
    """And the second pass the others too; the rerun is the same."""
    few = tmp_path / "photographs"  # a network takes a second for each pair
    few.mkdir()
    for number in range(3):
        shutil.copy(photographs / f"{number}.png", few)
    options = ["-m", "lightglue", "-f", "sift", "--focal", "260", "--workers", "0", "-k", "1700", "--json"]
    ran = tiepoint("map", few, "-o", tmp_path / "map", *options)
    report = json.loads(ran.out)
    assert report["plan"]["chosen"]["first_pass"] == 1536
    assert "first pass 512, 1536 where these leave a doubt" in ran.err
    with Store.open(tmp_path / "map/database.db") as store:
        for a, b in store.verified_pairs():
            found = store.matches(a, b)
            assert found is not None and found.indices.max() < 1536
    again = json.loads(tiepoint("map", few, "-o", tmp_path / "map", *options).out)
    assert again["pairs"][0]["matched"] == 0
    assert again["plan"]["seconds"] is None
    assert again["models"][0]["points"] == pytest.approx(report["models"][0]["points"], rel=0.02)


def test_nearest_neighbours_match_the_best_keypoints_first(
    photographs: Path, tmp_path: Path, tiepoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second pass finds the others; without one, all are matched at once, also more than the quality chooses."""
    for quality in ("fast", "balanced"):
        few = replace(PRESETS[quality], nearest_first_pass=150 if quality == "balanced" else None, max_keypoints=200)
        monkeypatch.setitem(PRESETS, quality, few)
    highest = {}
    for quality in ("fast", "balanced"):
        options = ["-f", "sift", "-m", "nearest", "--focal", "260", "--workers", "0", "--quality", quality, "-k", "400"]
        ran = tiepoint("map", photographs, "-o", tmp_path / quality, *options)
        assert ran.code == 0 and ("first pass 150" in ran.err) == (quality == "balanced"), ran.err
        with Store.open(tmp_path / quality / "database.db") as store:
            pairs = [store.matches(a, b) for a, b in store.verified_pairs()]
            highest[quality] = max(found.indices.max() for found in pairs if found is not None)
    assert highest["balanced"] < 150 < 200 < highest["fast"]
    model = pycolmap.Reconstruction(tmp_path / "balanced/sparse/0")
    used = [track.point2D_idx for point in model.points3D.values() for track in point.track.elements]
    assert max(used) >= 150


def test_slow_exhaustive_pairs_are_named() -> None:
    """A plan of 100 photographs with 20 s a pair says what to use instead; one of 2 s a pair does not."""
    slow, quick = (Plan("balanced", {}, 100, 4950, 2000, (60.0, 4950 * each, 200.0)).lines() for each in (20.0, 0.1))
    assert "--pairs retrieval" in slow[-1] and "27.5 h of that" in slow[-1] and "11.1 h" in slow[-1]
    assert len(quick) == 2 and "estimated" in quick[-1]


def test_options_of_the_extractor_are_those_of_the_quality() -> None:
    from tiepoint.errors import ArgumentError
    from tiepoint.mapping.quality import preset_of

    assert [one.max_keypoints for one in PRESETS.values()] == sorted(one.max_keypoints for one in PRESETS.values())
    for preset in PRESETS.values():
        if preset.second_pass:
            assert preset.first_pass <= preset.nearest_first_pass <= preset.max_keypoints
        ExtractorOptions(max_keypoints=preset.max_keypoints, long_side=preset.long_side)
    with pytest.raises(ArgumentError, match="fast, balanced, dense"):
        preset_of("best")
