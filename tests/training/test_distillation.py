"""Learning from a teacher: answers that survive a kill, views with the right geometry, the loss's minimum."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import softmax
from scipy.stats import entropy

import tiepoint as tp
from tiepoint.errors import ArgumentError, InputError
from tiepoint.features.cairn import DIAMETER, CairnConfig, CairnNet
from tiepoint.features.steerable import steer
from tiepoint.training.data.photographs import PhotoCache, build_cache
from tiepoint.training.data.teacher import Answers, TeacherConfig
from tiepoint.training.objectives.distillation import DistillationObjective, Student
from tiepoint.training.pairs.taught_views import TaughtViewMaker
from tiepoint.training.pairs.views import ViewConfig

CONFIG = TeacherConfig(teacher="sift", keypoints=60)
MODEL = CairnConfig(rings=10, channels=16, dim=33, harmonics=(9, 6, 4, 2))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, texture: NDArray[np.uint8]) -> PhotoCache:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(9):
        turned = np.rot90(np.roll(texture, 37 * i, 1), i % 4)
        Image.fromarray(np.ascontiguousarray(turned)).save(folder / f"{i}.png")
    return build_cache(folder, folder / "photos.cache", long_side=320)


@pytest.fixture(scope="module")
def answers(photos: PhotoCache, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    made = Answers(photos, CONFIG, tmp_path_factory.mktemp("answers") / "sift")
    assert [done for done, _ in made.make(0)] == list(range(1, 10)) and not made.missing
    return made


def contents(answers: Answers) -> list[NDArray[np.generic]]:
    return [part for row in range(len(answers.photos)) for part in answers[row]]


def test_answers_are_the_teachers_about_the_students_keypoints(photos: PhotoCache, answers: Answers) -> None:
    student = tp.features.load("cairn", max_keypoints=60)
    found = student(photos[3].copy())
    keypoints, levels, descriptors = answers[3]
    np.testing.assert_array_equal(keypoints, found.keypoints)
    np.testing.assert_allclose(DIAMETER * 2 ** (levels / 2), found.scales, rtol=1e-5)
    fine = levels < 2  # those of the first octave are described in the photograph as it is
    upright = replace(found, orientations=torch.zeros(len(found)))
    expected = tp.features.load("sift").describe(photos[3].copy(), upright.select(torch.from_numpy(fine)))
    np.testing.assert_allclose(descriptors[fine], expected.descriptors, atol=1e-3)
    assert fine.any() and not fine.all()


def test_answers_stopped_and_gone_on_with_equal_undisturbed_ones(
    photos: PhotoCache, answers: Answers, tmp_path: Path
) -> None:
    some = Answers(photos, CONFIG, tmp_path / "a")
    for done, _ in some.make(0):
        if done == 4:
            break
    again = Answers(photos, CONFIG, tmp_path / "a")
    assert again.missing == [4, 5, 6, 7, 8]
    list(again.make(0))
    for mine, theirs in zip(contents(again), contents(answers), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_answers_of_another_teacher_and_teachers_that_may_not_teach_are_refused(
    photos: PhotoCache, answers: Answers
) -> None:
    with pytest.raises(InputError, match="keypoints is 60 there and 61 here"):
        Answers(photos, TeacherConfig("sift", keypoints=61), answers.folder)
    with pytest.raises(ArgumentError, match="may not teach"):
        Answers(photos, TeacherConfig("superpoint"), answers.folder.parent / "other")
    with pytest.raises(ArgumentError, match="cannot describe"):
        Answers(photos, TeacherConfig("orb"), answers.folder.parent / "other")


def test_answers_belong_to_the_detector_and_not_to_the_describer(
    photos: PhotoCache, answers: Answers, tmp_path: Path
) -> None:
    """A distillation that goes on from its own result asks nobody again; half precision is judged by its numbers."""
    state, config = tp.weights.load("cairn")

    def given(name: str, **changed: torch.Tensor) -> TeacherConfig:
        tp.weights.save(tmp_path / f"{name}.safetensors", {**state, **changed}, config)
        return replace(CONFIG, student=f"cairn@{tmp_path / name}.safetensors")

    parts = {part: next(name for name in sorted(state) if name.startswith(part)) for part in ("detector", "describer")}
    bent = {part: {name: state[name] * 1.0001} for part, name in parts.items()}
    taught = Answers(photos, given("taught", **bent["describer"]), answers.folder)
    assert not taught.missing
    for mine, theirs in zip(contents(taught), contents(answers), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(InputError, match="the student's detector is"):
        Answers(photos, given("moved", **bent["detector"]), answers.folder)
    # The bundled detector is kept in half precision, so it loses nothing; one that was trained since does.
    exact = {name: value.half() for name, value in state.items()}
    assert not Answers(photos, given("half", **exact), answers.folder).missing
    rounded = {name: value.half() for name, value in bent["detector"].items()}
    mine = Answers(photos, given("trained", **bent["detector"]), tmp_path / "answers")
    with pytest.raises(InputError, match="the student's detector is"):
        Answers(photos, given("rounded", **rounded), mine.folder)


def test_keypoints_of_the_views_show_what_they_show_in_the_photograph(photos: PhotoCache, answers: Answers) -> None:
    maker = TaughtViewMaker(answers, ViewConfig((200, 240), max_scale=1.5, photometric="none"), 60, 7, seed=1)
    batch = maker(0, range(1))
    student = tp.features.load("cairn", max_keypoints=60)
    rows = photos.draw(4, _generator(maker, 0, 0)).tolist()
    close, turned = [], []
    for pair, row in enumerate(rows):
        keypoints, levels, _ = answers[row]
        for side in (0, 1):
            image = 2 * pair + side
            order = [np.flatnonzero((answers[row][2] == a).all(1))[0] for a in batch.answers[pair].numpy() if a.any()]
            seen = batch.seen[image].numpy()[: len(order)]
            # OpenCV finds the homography from the points; its derivative turns as the angles say
            H, inliers = cv2.findHomography(
                keypoints[order][seen], batch.positions[image].numpy()[: len(order)][seen], cv2.RANSAC, 4
            )
            assert inliers.mean() > 0.9
            for k in np.flatnonzero(seen)[:5]:
                x, y = keypoints[order[k]].astype(float)
                step = cv2.perspectiveTransform(np.array([[[x, y], [x + 1e-3, y], [x, y + 1e-3]]]), H)[0]
                J = (step[1:] - step[0]).T / 1e-3
                U, _, Vt = np.linalg.svd(J)
                R = U @ Vt  # the rotation nearest to the derivative
                turn = math.atan2(R[1, 0], R[0, 0]) - float(batch.angles[image, k])
                turned.append(abs((turn + math.pi) % (2 * math.pi) - math.pi))
                scale = math.sqrt(abs(np.linalg.det(J)))
                close.append(abs(int(batch.levels[image, k]) - levels[order[k]] - 2 * math.log2(scale)))
    assert max(turned) < 0.1 and max(close) < 1.0
    assert len(student.harmonics) in (0, 5)  # the detector that was asked about is the bundled one


def _generator(maker: TaughtViewMaker, step: int, chunk: int) -> torch.Generator:
    from tiepoint.training.data._random import seeded

    return seeded(maker.seed, maker.held_out, step, chunk)


def test_the_loss_is_least_for_a_student_that_says_what_the_teacher_says(answers: Answers) -> None:
    torch.manual_seed(0)
    maker = TaughtViewMaker(answers, ViewConfig((200, 240), photometric="none"), 60, 7, seed=1)
    batch = maker(0, range(1))
    student = Student(CairnNet(MODEL), answers.dim)
    objective = DistillationObjective(student).eval()
    output = objective(batch)
    assert output.loss.isfinite() and output.parts["explained"] < 0.5
    # With a perfect student the relations' divergence is zero.
    perfect = batch.answers.float().repeat_interleave(2, 0)
    assert float(objective._relations(perfect, batch.answers.float(), batch.seen)) == pytest.approx(0, abs=1e-4)
    shuffled = perfect[:, torch.randperm(perfect.shape[1])]
    seen = (batch.seen[0::2] & batch.seen[1::2]).numpy()
    first, second, given = (part.double().numpy()[seen] for part in (shuffled[0::2], shuffled[1::2], batch.answers))
    expected = entropy(softmax(20 * given @ given.T, 1), softmax(20 * first @ second.T, 1), axis=1).mean()
    assert expected > 0.1
    divergence = float(objective._relations(shuffled, batch.answers.float(), batch.seen))
    assert divergence == pytest.approx(expected, rel=1e-4)


def test_a_student_learns_from_few_photographs_and_its_detector_stays(answers: Answers) -> None:
    torch.manual_seed(0)
    maker = TaughtViewMaker(answers, ViewConfig((200, 240), photometric="none"), 60, 7, seed=1)
    net = CairnNet(MODEL)
    before = {k: v.clone() for k, v in net.detector.state_dict().items()}
    objective = DistillationObjective(Student(net, answers.dim))
    optimiser = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], 3e-3)
    batches = [maker(step, range(1)) for step in range(3)]
    losses = []
    for step in range(45):
        output = objective(batches[step % 3])
        output.loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        parts = output.loss, output.parts["explained"], output.parts["matched"]
        losses.append([float(part.detach()) for part in parts])
    first, last = np.mean(losses[:3], 0), np.mean(losses[-3:], 0)
    assert last[0] < 0.8 * first[0] and last[1] > first[1] + 0.1 and last[2] > first[2]
    assert all(torch.equal(before[k], v) for k, v in net.detector.state_dict().items())


def test_a_view_that_is_rolled_asks_for_the_same_answer(answers: Answers, photos: PhotoCache) -> None:
    """The student's descriptor, turned back by the view's angle, is that of the photograph as it stands."""
    torch.manual_seed(0)
    net = CairnNet(MODEL).eval()
    photo = torch.from_numpy(photos[0].copy()).float().mean(2)[None, None, :224, :224] / 255
    points = 40 + 140 * torch.rand(1, 30, 2)
    rolled = torch.stack([points[..., 1], 223 - points[..., 0]], 2)  # as rot90 turns: from +x to -y
    levels = torch.zeros(1, 30, dtype=torch.long)
    standing = []
    with torch.no_grad():
        for image, at, angle in ((photo, points, 0.0), (torch.rot90(photo, 1, (2, 3)), rolled, -math.pi / 2)):
            d = net.describe(net.levels(image), at, levels)
            own = torch.atan2(d.directions[:, 1], d.directions[:, 0])
            standing.append(steer(d.descriptors, own - angle, MODEL.harmonics))
    torch.testing.assert_close(standing[0], standing[1], atol=2e-3, rtol=0)
