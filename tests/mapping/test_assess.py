"""Is a map believed for the right reasons: depth, coverage, focal length, how models hang together; and overlays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from synthetic_scene import SyntheticScene
from textured_room import CAMERA, Room, look
from tiepoint import Features, Matches
from tiepoint import match as match_two
from tiepoint.errors import InputError
from tiepoint.mapping.online.track import Tracker
from tiepoint.mapping.steps.assess import assess
from tiepoint.mapping.steps.reconstruct import reconstruct
from tiepoint.mapping.store import Store
from tiepoint.matchers.overlay import overlay_of, without_overlay

pytest.importorskip("pycolmap")

NAMES = [f"{n}.jpg" for n in range(8)]


def judged(world: SyntheticScene, folder: Path, focal: float | None = None) -> Any:
    """Judge the true model of a world, perhaps after its focal length was believed to be another."""
    world.write_database(folder / "world.db")
    model = world.model()
    if focal is not None:
        for camera in model.cameras.values():
            camera.params = [focal, *camera.params[1:]]
    with Store.open(folder / "world.db") as store:
        return assess(model, store, store.verified_pairs(), len(world.names))


def test_a_good_model_is_good(tmp_path: Path) -> None:
    told = judged(SyntheticScene(NAMES, points=400, noise=0.3), tmp_path)
    assert (told.verdict, told.reasons) == ("good", ())
    assert 20 < told.angle < 60  # the arc spans 57 degrees
    assert told.coverage > 0.5
    assert told.turned == told.flat == 0
    assert told.focal_shift == pytest.approx(0, abs=1e-9)


def test_few_points_hardly_any_way_and_a_moved_focal_length_are_doubted(tmp_path: Path) -> None:
    for name, world, focal, words in (
        ("few", SyntheticScene(NAMES, points=60), None, "points for 8 photographs"),
        ("focal", SyntheticScene(NAMES, points=400), 300.0, "given as 380 px and came out as 300 (-21%)"),
    ):
        (tmp_path / name).mkdir()
        told = judged(world, tmp_path / name, focal)
        assert told.verdict == "doubtful"
        assert words in str(told)
    (tmp_path / "near").mkdir()
    world = SyntheticScene(NAMES, points=400)
    R, t = world.poses[3]
    world.poses = [(R, t + np.array([0.015 * n, 0.01 * (n % 2), 0])) for n in range(8)]
    world.place_points()
    told = judged(world, tmp_path / "near")  # 10 cm of way, 4 m from the scene
    assert told.angle < 2
    assert told.verdict == "no 3D"
    assert "moved too little" in str(told)


@pytest.mark.parametrize("mapper", ["incremental", "global"])
def test_a_camera_that_only_turns_gives_no_model(tmp_path: Path, mapper: Any) -> None:
    world = SyntheticScene(NAMES[:5], points=250, noise=0.4)
    R, t = world.poses[3]
    centre = -R.T @ t
    turns = [cv2.Rodrigues(np.array([0.02 * (n % 3), 0.05 * n - 0.18, 0]))[0] for n in range(5)]
    world.poses = [(turn @ R, -turn @ R @ centre) for turn in turns]
    world.place_points()
    world.write_database(tmp_path / "turned.db")
    with pytest.raises(InputError, match="only turned"):
        reconstruct(tmp_path / "turned.db", tmp_path, tmp_path / "out", mapper=mapper, threads=1)
    assert not (tmp_path / "out/sparse").exists()


def test_models_say_what_they_share(tmp_path: Path) -> None:
    """Two halves that no pair connects, and two that a few weak matches do."""
    world = SyntheticScene(NAMES, points=400, noise=0.2)
    halves = [(i, j) for i in range(8) for j in range(i) if (i < 4) == (j < 4)]
    world.write_database(tmp_path / "apart.db", pairs=halves)
    world.write_photographs(tmp_path / "photos")
    scene = reconstruct(tmp_path / "apart.db", tmp_path / "photos", tmp_path / "out", threads=1)
    assert len(scene.models) == 2
    assert scene.notes == ("model 1: no photograph connects it with model 0",)
    summary = json.loads((tmp_path / "out/quality.json").read_text())
    assert [model["assessment"]["verdict"] for model in summary["models"]] == [
        told.verdict for told in scene.assessments
    ]


CLOCK = np.random.default_rng(5).integers(0, 256, (28, 90, 3)).astype(np.uint8)


def film(steps: list[float], clock: bool = True) -> list[np.ndarray]:
    room = Room(2)
    pictures = []
    for step in steps:
        picture = room.photograph(look((step, 0.1 * step, -1.0), 0.1 * step)).copy()
        if clock:
            picture[8:36, 10:100] = CLOCK
        pictures.append(picture)
    return pictures


def in_clock(points: np.ndarray) -> np.ndarray:
    return ((points >= (8, 6)) & (points <= (102, 38))).all(axis=1)


def test_no_match_lies_on_a_clock_but_a_camera_at_rest_keeps_its_matches() -> None:
    first, second = film([0.0, 0.5])
    found = match_two(first, second, features="sift", matcher="nearest").matches
    assert len(found) > 60
    assert not (in_clock(found.points0) & in_clock(found.points1)).any()
    still = match_two(first, first, features="sift", matcher="nearest").matches
    assert in_clock(still.points0).sum() > 5
    assert len(still) > 200


def test_tracking_starts_in_spite_of_a_clock() -> None:
    from tiepoint.io.video import Frame

    tracker = Tracker(CAMERA, "sift", "nearest", max_keypoints=500)
    states = [
        tracker(Frame(n, n / 10, picture, f"{n}")) for n, picture in enumerate(film([0.15 * n for n in range(6)]))
    ]
    assert states[-1].status == "tracked"
    images = tracker.reconstruction.images
    for point in tracker.reconstruction.points3D.values():  # none stands still in the pictures
        at = np.array([images[e.image_id].points2D[e.point2D_idx].xy for e in point.track.elements])
        assert not (in_clock(at).all() and np.ptp(at, axis=0).max() < 1.5)


def test_overlay_rules(rng: np.random.Generator) -> None:
    def found(x0: np.ndarray, x1: np.ndarray) -> tuple[Matches, Features, Features]:
        sides = [
            Features(torch.tensor(x, dtype=torch.float32), torch.ones(len(x)), torch.eye(len(x)), (640, 480), "sift")
            for x in (x0, x1)
        ]
        rows = np.arange(len(x0)).repeat(2).reshape(-1, 2)
        table = Matches(rows, np.ones(len(x0), np.float32), x0.astype(np.float32), x1.astype(np.float32), overlaps=True)
        return table, sides[0], sides[1]

    x0 = rng.uniform(0, 1, (300, 2)) * (640, 480)
    ahead = 320 + 1.1 * (x0 - 320)  # what lies ahead of a car stands still, what is around it moves a little
    assert len(without_overlay(*found(x0, ahead), least_moving=0)) == 300
    overlay = np.array([600.0, 30]) + rng.uniform(0, 30, (12, 2))
    both = np.vstack([overlay, x0]), np.vstack([overlay, x0 + np.array([25, 3])])
    kept = without_overlay(*found(*both))
    assert kept.overlaps is None  # it was said of all of them
    # A letter is matched with the same letter elsewhere in the text as well.
    letters = np.vstack([both[0], overlay[:6]]), np.vstack([both[1], overlay[6:]])
    assert np.array_equal(without_overlay(*found(*letters)).points0, kept.points0)
    # Of the scene only what begins and ends beside the overlay is lost: 32 pixels from its 30.
    box = np.array([600, 30]), np.array([630, 60])
    away = np.maximum(*(np.linalg.norm(x - x.clip(*box), axis=1) for x in both)) > 32
    expected = np.flatnonzero(away[12:]) + 12
    assert 280 < len(expected) < 300
    assert set(expected) <= set(kept.indices[:, 0])
    assert kept.indices.min() >= 12  # nothing of the overlay
    forward, backward = without_overlay(*found(*both)), without_overlay(*found(*both[::-1]))
    assert np.array_equal(forward.indices, backward.indices)
    # Only the overlay matches: nothing says that the camera moved, unless the caller knows.
    table, f0, f1 = found(*both)
    few = Matches(table.indices[:12], table.scores[:12], table.points0[:12], table.points1[:12])
    assert len(without_overlay(few, f0, f1)) == 12
    assert len(without_overlay(few, f0, f1, least_moving=0)) == 0


def test_what_a_pair_hides_of_an_overlay_other_pairs_tell(rng: np.random.Generator) -> None:
    scene, clock = rng.uniform(0, 1, (300, 2)) * (420, 440), np.array([580.0, 440]) + rng.uniform(0, 30, (12, 2))

    def frame(shift: float) -> Features:
        points = torch.tensor(np.vstack([clock, scene + np.array([shift, shift / 4])]), dtype=torch.float32)
        return Features(points, torch.ones(312), torch.eye(312), (640, 480), "sift")

    film = [frame(20 * n) for n in range(5)]
    known = overlay_of(film)
    assert len(known) >= 10  # some of the twelve share a pixel
    assert np.linalg.norm(known[:, None] - clock, axis=2).min(axis=1).max() < 1
    assert not len(overlay_of(film[:2]))  # of two nobody knows which of both is the rule
    assert not len(overlay_of([frame(0)] * 5))  # a camera at rest
    # Letters are matched with other letters, none with itself: the pair alone shows nothing that stands still.
    rows = np.stack([np.arange(312), np.r_[np.roll(np.arange(12), 1), 12:312]], axis=1)
    points = [features.keypoints.numpy()[rows[:, n]] for n, features in enumerate(film[:2])]
    table = Matches(rows, np.ones(312, np.float32), *points, overlaps=True)
    assert len(without_overlay(table, *film[:2], least_moving=0)) == 312
    kept = without_overlay(table, *film[:2], least_moving=0, known=known)
    assert np.array_equal(kept.indices, table.indices[12:])
    # Where no match is near, the table is the same object, with its verdict.
    assert without_overlay(kept, *film[:2], known=known) is kept


def test_the_verdict_is_on_the_screen_the_page_and_in_the_report(
    tiepoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where nobody watches a bar, lines tell how far it is."""
    monkeypatch.setattr("tiepoint.mapping.progress.MINUTE", 0)
    for n, picture in enumerate(film([0.0, 0.4, 0.8, 1.2], clock=False)):
        (tmp_path / "photos").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "photos" / f"{n}.png"), picture)
    out = tmp_path / "out"
    command = ["map", tmp_path / "photos", "-o", out, "-f", "sift", "-m", "nearest", "-k", "500", "--workers", "0"]
    ran = tiepoint(*command, "--focal", 400)  # it is 260
    assert ran.code == 0, ran.err
    told = json.loads((out / "report.json").read_text())["models"][0]["assessment"]
    assert told["verdict"] == "doubtful"
    # Four views in a row determine it badly: it comes out much too short or much too long, as the threads fall.
    assert abs(told["focal_shift"]) > 0.2
    reason = next(reason for reason in told["reasons"] if "was given as 400 px" in reason)
    assert f"verdict: doubtful: {'; '.join(told['reasons'])}" in ran.out
    assert reason in (out / "scene.html").read_text()
    for line in ("tiepoint: extracting sift: 4 of 4", "tiepoint: matching: 6 of 6", "tiepoint: mapping: 4 of 4"):
        assert line in ran.err
