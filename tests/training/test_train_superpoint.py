"""SuperPoint's recipe: what is drawn, what is labelled, and a run from photographs to features."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tiepoint as tp
from tiepoint.cli import main
from tiepoint.errors import InputError
from tiepoint.features.superpoint import CELL, SuperPointNet, scores_of
from tiepoint.training.data import homographies, shapes
from tiepoint.training.data.ground_truth import UNMATCHABLE
from tiepoint.training.data.photographs import PhotoCache, build_cache
from tiepoint.training.loop import FitConfig
from tiepoint.training.objectives.superpoint import SuperPointObjective
from tiepoint.training.pairs.corners import (
    NO_CORNER,
    CornerPairsMaker,
    Corners,
    CornersConfig,
    ShapesMaker,
    adapt,
    cells_of,
)
from tiepoint.training.runs import presets
from tiepoint.training.runs.presets import SuperPointPreset
from tiepoint.training.runs.superpoint import SuperPointSettings, train

FIT = FitConfig(steps=2, learning_rate=1e-3, warmup=1, log_every=1, evaluate_every=2, save_every=1, bfloat16=False)
MINIATURE = SuperPointPreset(
    size=(48, 64), shapes=FIT, corners=CornersConfig(views=2, most=20), fit=FIT, batch=4, held_out=1
)


@pytest.fixture(scope="module")
def photos(images: Path) -> PhotoCache:
    return build_cache(images, images / "photos.cache")


@pytest.mark.parametrize("kind", ["_polygons", "_segments", "_star", "_checkerboard", "_stripes", "_cube"])
def test_what_is_called_a_corner_is_one(kind: str) -> None:
    """OpenCV's measure of corners is far above its mean at most of those that were drawn."""
    strong = []
    for seed in range(20):
        canvas = shapes._Canvas(np.random.default_rng(seed), (120, 160))
        corners = getattr(shapes, kind)(canvas)
        picture = cv2.GaussianBlur(canvas.picture(), (0, 0), 1.0)
        measure = cv2.cornerMinEigenVal(picture, 5)
        near = cv2.dilate(measure, np.ones((5, 5)))
        for x, y in corners.round().astype(int):
            if 8 <= x < 152 and 8 <= y < 112:
                strong.append(near[y, x] > 3 * measure.mean())
    assert len(strong) > 40 and np.mean(strong) > 0.9


def test_ellipses_and_noise_have_no_corners() -> None:
    for kind in (shapes._ellipses, shapes._noise):
        canvas = shapes._Canvas(np.random.default_rng(0), (60, 80))
        assert len(kind(canvas)) == 0 and canvas.picture().std() > 3


def test_segments_cross_where_they_do() -> None:
    crossing = shapes._crossing(np.array([[0.0, 0], [4, 4]]), np.array([[0.0, 2], [4, 2]]))
    assert crossing is not None and np.allclose(crossing, [2, 2])
    assert shapes._crossing(np.array([[0.0, 0], [1, 1]]), np.array([[0.0, 2], [4, 2]])) is None
    assert shapes._crossing(np.array([[0.0, 0], [1, 1]]), np.array([[1.0, 0], [2, 1]])) is None


def test_cells_name_the_pixels_that_the_network_would_score() -> None:
    """A network certain of these classes scores 1 at the corners and 0 everywhere else."""
    corners = torch.tensor([[0.0, 0.0], [9.4, 2.0], [30.6, 23.0], [13.0, 6.0], [31.6, 0.0], [-0.6, 3.0]])
    cells = cells_of(corners, (24, 32))
    scores = scores_of(50 * F.one_hot(cells, CELL**2 + 1).permute(2, 0, 1)[None].float())[0]
    assert (scores > 0.5).nonzero().flip(1).tolist() == [[0, 0], [9, 2], [31, 23]], "the first of a cell, none outside"
    assert (cells == NO_CORNER).sum() == 3 * 4 - 3


def test_points_are_carried_as_opencv_does() -> None:
    H = torch.tensor([[[1.1, 0.1, -3], [0.05, 0.9, 4], [1e-3, -2e-3, 1]], [[0, -1, 7], [1, 0, 2], [0, 0, -1]]])
    points = torch.rand(20, 2, generator=torch.Generator().manual_seed(0)) * 50
    for sign in (1, -1):
        carried = homographies.transform(sign * H, points)
        for matrix, ours in zip(H, carried, strict=True):
            expected = cv2.perspectiveTransform(points[None].double().numpy(), matrix.double().numpy())[0]
            front = (torch.linalg.det(matrix).sign() * (points @ matrix[2, :2] + matrix[2, 2]) > 0).numpy()
            np.testing.assert_allclose(ours[front], expected[front], atol=1e-3)
            assert ours[~front].isinf().all()


def test_adaptation_finds_what_most_views_show() -> None:
    """With a detector of bright pixels the corners of a dark picture are its bright dots, in every view's place."""

    class Bright(SuperPointNet):
        def heads(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            cells = F.pixel_unshuffle(images, CELL)
            return torch.cat([20 * cells, torch.full_like(cells[:, :1], 8.0)], 1), cells

    photo = torch.zeros(1, 3, 96, 128)
    dots = torch.tensor([[20, 30], [64, 48], [100, 70], [40, 80]])
    for x, y in dots.tolist():
        photo[..., y - 1 : y + 2, x - 1 : x + 2] = 0.8
        photo[..., y, x] = 1
    config = CornersConfig(views=30, threshold=0.1, most=10)
    found = adapt(Bright(False).eval(), photo, config, torch.Generator().manual_seed(0))
    distance = torch.cdist(found, dots.float())
    assert len(found) == 4 and (distance.amin(1) < 1.5).all() and sorted(distance.argmin(1).tolist()) == [0, 1, 2, 3]
    few = CornersConfig(views=30, threshold=0.1, most=2)
    assert torch.equal(adapt(Bright(False).eval(), photo, few, torch.Generator().manual_seed(0)), found[:2])


def test_corners_lie_on_the_same_places_of_both_views(photos: PhotoCache) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = [torch.rand(60, 2, generator=generator) * torch.tensor([255.0, 191.0]) for _ in range(len(photos))]
    maker = CornerPairsMaker(photos, corners, (96, 128), "none", seed=1)
    batch = maker(3, range(2))
    assert len(batch) == 8 and batch.images.shape == (16, 3, 96, 128)
    again = maker(3, range(2)).tensors()
    assert all(torch.equal(value, again[name]) for name, value in batch.tensors().items())
    scores = scores_of(50 * F.one_hot(batch.cells, CELL**2 + 1).permute(0, 3, 1, 2).float())
    near = compared = 0
    for pair in range(8):
        first, second = ((scores[2 * pair + side] > 0.5).nonzero().flip(1).float() for side in (0, 1))
        carried = homographies.transform(batch.homography[pair], first)
        inside = ((carried > 8) & (carried < torch.tensor([119.0, 87.0]))).all(1)
        if len(second) and inside.any():
            # a corner may be missing where two share a cell; half a pixel of rounding, twice, and any scale up to 2
            near += int((torch.cdist(carried[inside], second).amin(1) < 2.5).sum())
            compared += int(inside.sum())
        # what both views show of a place looks alike
        picture0, picture1 = (batch.images[2 * pair + side].float().mean(0)[None, None] for side in (0, 1))
        warped = homographies.warp(picture0, torch.linalg.inv(batch.homography[pair : pair + 1].double()), (96, 128))
        whole = homographies.transform(
            torch.linalg.inv(batch.homography[pair]), torch.tensor([[64.0, 48.0], [40.0, 40.0], [90.0, 60.0]])
        )
        for (x, y), (u, v) in zip([(64, 48), (40, 40), (90, 60)], whole.tolist(), strict=True):
            if 8 < u < 119 and 8 < v < 87:
                patch0 = warped[0, 0, y - 4 : y + 5, x - 4 : x + 5]
                patch1 = picture1[0, 0, y - 4 : y + 5, x - 4 : x + 5]
                assert (patch0.mean() - patch1.mean()).abs() < 12
    assert compared > 30 and near / compared > 0.85


def test_the_loss_is_what_the_paper_says() -> None:
    """Against loops over cells, for two views shifted by two cells."""
    torch.manual_seed(0)
    shift = torch.tensor([[[1.0, 0, 16], [0, 1, 0], [0, 0, 1]]])
    batch = Corners(torch.randint(0, 256, (2, 3, 24, 40), dtype=torch.uint8), torch.randint(0, 65, (2, 3, 5)), shift)
    objective = SuperPointObjective(SuperPointNet(batch_norm=True)).eval()
    output = objective(batch)
    logits, d = objective.net.heads((batch.images.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(
        1, keepdim=True) / 255)  # fmt: skip
    detector = -torch.stack(
        [logits[b, :, y, x].log_softmax(0)[batch.cells[b, y, x]] for b, y, x in np.ndindex(2, 3, 5)]
    ).mean()
    total = 0.0
    for y, x, v, u in np.ndindex(3, 5, 3, 5):
        cosine = (d[0, :, y, x] @ d[1, :, v, u]).item()
        same = np.hypot(8 * (x - u) + 16, 8 * (y - v)) <= 8
        total += 250 * max(0, 1 - cosine) if same else max(0, cosine - 0.2)
    assert output.parts["detector"].item() == pytest.approx(detector.item(), rel=1e-4)
    assert output.parts["descriptor"].item() == pytest.approx(total / 15**2, rel=1e-4)
    assert output.loss.item() == pytest.approx(detector.item() + total / 15**2, rel=1e-4)
    matches = output.labels.matches0.view(3, 5)
    assert matches[:, :3].tolist() == [[2, 3, 4], [7, 8, 9], [12, 13, 14]]
    assert (matches[:, 4] == UNMATCHABLE).all()


def test_the_detector_learns_corners_of_shapes() -> None:
    torch.manual_seed(0)
    objective = SuperPointObjective(SuperPointNet(batch_norm=True))
    optimiser = torch.optim.Adam(objective.parameters(), 2e-3)
    batch = ShapesMaker((48, 64), 1)(0, range(1))
    assert (batch.cells != NO_CORNER).sum() > 10
    for _ in range(40):
        output = objective(batch)
        output.loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert output.parts["found"] > 0.5, "of those that it has seen often it knows the very pixel"


def test_command_line_from_photographs_to_features(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(presets.SUPERPOINT_PRESETS, "tiny", MINIATURE)
    run = tmp_path / "run"
    base = ["train", "superpoint", "--images", str(images), "-o", str(run), "--workers", "0", "--device", "cpu"]
    assert main([*base, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["step"] == 2 and 0 <= told["held_out_found"] <= 1
    before = (run / "weights.safetensors").read_bytes()
    assert main(base) == 0, "a finished run is told again"
    assert (run / "weights.safetensors").read_bytes() == before
    assert main([*base, "--seed", "2"]) == InputError.exit_code
    assert main(["export-weights", str(run), "--half"]) == 0
    file = run / "superpoint-open.safetensors"
    extractor = tp.features.load(f"superpoint-open@{file}", max_keypoints=50, detection_threshold=0.0)
    found = extractor(images / "0.png")
    assert len(found) == 50 and found.descriptors.shape == (50, 256)
    assert main(["train", "confidence", str(run)]) == InputError.exit_code


def test_corners_are_found_once_and_gone_on_with(images: Path, tmp_path: Path) -> None:
    options = SuperPointSettings(images=images, output=tmp_path / "parts", preset=MINIATURE, workers=0, device="cpu")

    def interrupted(stop_after: int, folder: Path) -> None:
        asked = iter([False] * stop_after + [True] * 99)
        train(replace(options, output=folder), stop=lambda: next(asked))

    with pytest.raises(KeyboardInterrupt):
        interrupted(2, tmp_path / "parts")  # after the two steps of the first stage
    corners = (tmp_path / "parts" / "corners.safetensors").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        interrupted(1, tmp_path / "parts")  # after the first of the last
    parts = train(options)
    whole = train(replace(options, output=tmp_path / "whole"))
    assert (tmp_path / "whole" / "corners.safetensors").read_bytes() == corners
    assert parts["held_out_loss"] == whole["held_out_loss"]
