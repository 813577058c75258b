"""Cairn: geometry of pyramid, patches and peaks against closed forms; what must hold with any weights."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

import tiepoint as tp
from tiepoint import weights
from tiepoint.errors import ArgumentError, WeightsError
from tiepoint.features.cairn import CELL, Cairn, CairnConfig, CairnNet, Scores, SteerableDescriptorHead, pyramid
from tiepoint.features.cairn.config import NOISE, RADIUS, RINGS_PER_OCTAVE
from tiepoint.features.cairn.description import _complex
from tiepoint.features.steerable import steer
from tiepoint.types import Features

SMALL = CairnConfig(levels=4, width=8, rings=10, angles=16, channels=16, dim=32)
STEERABLE = replace(SMALL, angles=32, dim=33, harmonics=(9, 6, 4, 2))


@pytest.fixture(scope="module", params=[SMALL, STEERABLE], ids=["one direction", "steerable"])
def net(request: pytest.FixtureRequest) -> CairnNet:
    torch.manual_seed(0)
    return CairnNet(request.param).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def file(net: CairnNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "cairn.safetensors"
    weights.save(path, net.state_dict(), asdict(net.config))
    return path


def grey(texture: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(texture).float().mean(2)[None, None] / 255


def test_a_patch_of_a_ramp_is_what_the_formula_says(net: CairnNet) -> None:
    y, x = torch.meshgrid(torch.arange(300.0), torch.arange(400.0), indexing="ij")
    a, b = 0.002, -0.001
    images = net.levels((0.3 + a * x + b * y)[None, None])
    at, levels = torch.tensor([[[201.3, 148.7], [180.0, 160.25]]]), torch.tensor([[0, 3]])
    patches = net.patches(images, at, levels)[0]
    angle = 2 * math.pi * torch.arange(net.config.angles) / net.config.angles
    for k, scale in enumerate((1.0, 2**1.5)):
        radius = scale * RADIUS * 2 ** (torch.arange(SMALL.rings) / RINGS_PER_OCTAVE)
        px = at[0, k, 0] + angle.cos()[:, None] * radius
        py = at[0, k, 1] + angle.sin()[:, None] * radius
        torch.testing.assert_close(patches[k], 0.3 + a * px + b * py, atol=2e-4, rtol=0)


def test_beyond_the_edge_a_patch_repeats_the_edge_and_not_another_level(net: CairnNet) -> None:
    images = net.levels(torch.full((1, 1, 70, 90), 0.7))
    corners = torch.tensor([[[0.0, 0], [89, 0], [0, 69], [89, 69]]])
    patches = net.patches(images, corners, torch.tensor([[0, 1, 2, 3]]))
    torch.testing.assert_close(patches, torch.full_like(patches, 0.7))


def test_layers_see_each_angle_beside_its_neighbours(net: CairnNet) -> None:
    """The descriptor head's convolutions against their definition: linear layers on neighbouring angles joined."""
    describer = net.describer
    patches = torch.rand(20, net.config.angles, net.config.rings, generator=torch.Generator().manual_seed(2))

    def joined(x: torch.Tensor, reach: int) -> torch.Tensor:
        return torch.cat([x.roll(shift, 1) for shift in range(reach, -reach - 1, -1)], 2)

    def norm(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean((1, 2), keepdim=True)) / (x.var((1, 2), False, keepdim=True) + 1e-5).sqrt()

    x = F.layer_norm(patches, patches.shape[1:], eps=NOISE**2)
    x = norm(describer.first(joined(x, 2)[:, ::2]).relu())
    if isinstance(describer, SteerableDescriptorHead):
        for layer in describer.layers:
            x = norm(x + layer(joined(x, 1)).relu())
        real, imaginary = describer.orders(x)
        direction = F.normalize(torch.cat(_complex(describer.compass, real[:, 1], imaginary[:, 1]), 1), dim=1)
        expected = steer(
            describer.read(real, imaginary), -torch.atan2(direction[:, 1], direction[:, 0]), net.config.harmonics
        )
    else:
        x = norm(describer.second(joined(x, 1)).relu())
        x = norm(describer.third(joined(x, 1)).relu())
        compass = describer.compass(x)[..., 0].double()
        angles = 2 * math.pi * torch.arange(x.shape[1]) / x.shape[1]
        direction = F.normalize(torch.stack([(compass * f(angles)).sum(1) for f in (torch.cos, torch.sin)], 1), dim=1)
        at = torch.atan2(direction[:, 1], direction[:, 0]) * x.shape[1] / (2 * math.pi)
        turned = []
        for one, begin in zip(x, at.tolist(), strict=True):  # between angles linear
            places = (begin + np.arange(x.shape[1])) % x.shape[1]
            circle = torch.cat([one, one[:1]])
            turned.append([(1 - p % 1) * circle[int(p)] + p % 1 * circle[int(p) + 1] for p in places])
        expected = describer.descriptor(torch.stack([torch.stack(one) for one in turned]).flatten(1))
        expected = F.normalize(expected, dim=1)
    found = describer(patches)
    # with random weights the directions' harmonic is small: their rounding turns the steerable descriptors
    torch.testing.assert_close(found.descriptors, expected, atol=3e-5, rtol=0)
    torch.testing.assert_close(found.directions, direction.float(), atol=1e-4, rtol=0)


def test_peaks_are_those_of_max_pooling_and_windows_hold_the_logits_around(net: CairnNet) -> None:
    logits = torch.randn(2, 4, 15, 21, generator=torch.Generator().manual_seed(3))
    ranks = torch.zeros(2, 15, 21)
    small = torch.randn(2, 4, 11, 15, generator=torch.Generator().manual_seed(4))
    scores = Scores.join(
        [(torch.zeros(2, 1, 30, 42), logits, ranks), (torch.zeros(2, 1, 21, 30), small, torch.zeros(2, 11, 15))]
    )
    highest = logits.amax(1)
    peaks = (highest == F.max_pool2d(highest, 3, 1, 1))[:, 3:12, 3:18]
    assert torch.equal(scores.ranks[:, : 15 * 21].view(2, 15, 21)[:, 3:12, 3:18].isfinite(), peaks)
    picture, steps = F.pixel_shuffle(small, CELL)[:, 0], torch.arange(-2, 3)
    x, y, level = torch.tensor([[7], [24]]), torch.tensor([[13], [5]]), torch.tensor([[1], [1]])
    expected = torch.stack([picture[0, 11:16, 5:10], picture[1, 3:8, 22:27]])
    assert torch.equal(scores.window(level, x, y, steps)[:, 0], expected)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turning_the_photograph_turns_the_direction_and_nothing_else(
    net: CairnNet, texture: NDArray[np.uint8], turns: int
) -> None:
    image = grey(texture)[:, :, :192, :192]
    points = torch.rand(1, 40, 2, generator=torch.Generator().manual_seed(1)) * 191
    levels = torch.arange(40)[None] % 3
    before = net.describe(net.levels(image), points, levels)
    # rot90 turns from +x to -y, that is by minus a quarter
    turned_points = points
    for _ in range(turns):
        turned_points = torch.stack([turned_points[..., 1], 191 - turned_points[..., 0]], 2)
    after = net.describe(net.levels(torch.rot90(image, turns, (2, 3))), turned_points, levels)
    torch.testing.assert_close(after.descriptors, before.descriptors, atol=2e-3, rtol=0)
    c, s = math.cos(-turns * math.pi / 2), math.sin(-turns * math.pi / 2)
    turn = torch.tensor([[c, -s], [s, c]])
    torch.testing.assert_close(after.directions, before.directions @ turn.T, atol=2e-3, rtol=0)
    covariance = before.spreads @ before.spreads.mT
    torch.testing.assert_close(after.spreads @ after.spreads.mT, turn @ covariance @ turn.T, atol=2e-3, rtol=0)


def test_light_and_contrast_hardly_change_a_descriptor(net: CairnNet, texture: NDArray[np.uint8]) -> None:
    points = 40 + 150 * torch.rand(1, 50, 2, generator=torch.Generator().manual_seed(2))
    levels = torch.zeros(1, 50, dtype=torch.long)
    bright = net.describe(net.levels(grey(texture)), points, levels)
    dark = net.describe(net.levels(0.15 + 0.6 * grey(texture)), points, levels)
    alike = (bright.descriptors * dark.descriptors).sum(1)
    assert alike.median() > 0.99 and alike.quantile(0.1) > 0.9  # the least in patches of next to no contrast


def planted(places: list[tuple[int, float, float]], levels: int = 3) -> Scores:
    """Scores of a 120 x 96 image whose logits are those of Gaussians at (level, x, y)."""
    parts = []
    for level, image in enumerate(pyramid(torch.zeros(1, 1, 96, 120), levels)):
        height, width = image.shape[2:]
        rows, columns = -(-height // CELL), -(-width // CELL)
        y, x = torch.meshgrid(torch.arange(float(CELL * rows)), torch.arange(float(CELL * columns)), indexing="ij")
        logits = torch.full_like(x, -40.0)
        ranks = torch.zeros(1, rows, columns)
        for k, (on, px, py) in enumerate(places):
            if on == level:
                logits = logits.maximum(-((x - px) ** 2 + (y - py) ** 2) / (2 * 0.7**2))
                ranks[0, int(py + 0.5) // CELL, int(px + 0.5) // CELL] = 10 - k
        parts.append((image, F.pixel_unshuffle(logits[None, None], CELL), ranks))
    return Scores.join(parts)


def test_peaks_come_by_rank_from_all_levels_and_lie_between_pixels(net: CairnNet) -> None:
    places = [(1, 30.3, 41.8), (0, 70.45, 20.2), (2, 25.0, 33.6), (0, 50.9, 60.1)]
    found = net.detect(planted(places), 4)
    assert found.levels[0].tolist() == [1, 0, 2, 0]
    sizes = [(120, 96), (85, 68), (60, 48)]
    expected = [((x + 0.5) * 120 / sizes[on][0] - 0.5, (y + 0.5) * 96 / sizes[on][1] - 0.5) for on, x, y in places]
    torch.testing.assert_close(found.positions[0], torch.tensor(expected), atol=0.05, rtol=0)


def test_no_keypoints_along_the_edges(net: CairnNet) -> None:
    scores = planted([(0, 2.0, 50.0), (0, 60.0, 94.0), (0, 60.0, 50.0)])
    found = net.detect(scores, 5)
    assert found.ranks[0].isfinite().sum() >= 1
    inside = found.positions[0][found.ranks[0] > 5]
    torch.testing.assert_close(inside, torch.tensor([[60.0, 50.0]]), atol=0.05, rtol=0)


def test_places_in_the_row_of_all_levels_lead_back(net: CairnNet) -> None:
    scores = planted([])
    index = torch.arange(scores.ranks.shape[1])[None]
    level, x, y = scores.locate(index)
    shapes = [tuple(cells) for cells in scores.cells.flip(1).tolist()]
    expected = np.concatenate(
        [np.stack([np.full(h * w, k), *np.indices((h, w)).reshape(2, -1)]) for k, (h, w) in enumerate(shapes)], 1
    )
    assert np.array_equal(torch.stack([level[0], y[0], x[0]]).numpy(), expected)
    at = torch.rand(1, 9, 2) * 40
    on = torch.arange(9)[None] % 3
    torch.testing.assert_close(scores.to_level(scores.to_image(at, on), on), at)


def test_extractor_keeps_the_contract(file: Path, texture: NDArray[np.uint8]) -> None:
    extractor = tp.features.load("cairn", weights=file, max_keypoints=200, detection_threshold=0.0)
    f = extractor(texture)
    assert len(f) == 200 and f.descriptors.shape == (200, extractor.net.config.dim) and f.extractor == "cairn"
    assert (f.scores.diff() <= 0).all() and f.scores.min() >= 0 and f.scores.max() <= 1
    gaps = torch.cdist(f.keypoints, f.keypoints, p=torch.inf).fill_diagonal_(9)
    assert gaps.min() > 2, "near-duplicate keypoints"
    torch.testing.assert_close(f.descriptors.norm(dim=1), torch.ones(200))
    assert f.covariances is not None and (torch.linalg.eigvalsh(f.covariances) > 0).all()
    again = extractor(texture)
    assert torch.equal(f.descriptors, again.descriptors) and torch.equal(f.keypoints, again.keypoints)


@pytest.mark.parametrize("size", [(24, 24), (25, 97), (131, 64)])
def test_any_size(file: Path, texture: NDArray[np.uint8], size: tuple[int, int]) -> None:
    f = Cairn(tp.features.ExtractorOptions(detection_threshold=0.0), weights=file)(texture[: size[0], : size[1]].copy())
    assert torch.isfinite(f.keypoints).all()
    assert (f.keypoints >= 0).all() and (f.keypoints < torch.tensor([size[1], size[0]])).all()


def test_a_mask_hides_the_best_keypoints_and_the_next_come(file: Path, texture: NDArray[np.uint8]) -> None:
    extractor = tp.features.load("cairn", weights=file, max_keypoints=50, detection_threshold=0.0)
    mask = np.full(texture.shape[:2], 255, np.uint8)
    mask[:, :200] = 0
    f = extractor(texture, mask)
    assert len(f) == 50 and f.keypoints[:, 0].min() > 199


def test_covariances_follow_the_size(file: Path, texture: NDArray[np.uint8]) -> None:
    options = {"weights": file, "max_keypoints": 30, "detection_threshold": 0.0}
    half = np.ascontiguousarray(texture[::2, ::2])
    small = tp.features.load("cairn", **options)(half)
    enlarged = np.repeat(np.repeat(half, 2, 0), 2, 1)
    reduced = tp.features.load("cairn", long_side=160, **options)(enlarged)
    assert small.covariances is not None and reduced.covariances is not None
    assert reduced.image_size == (320, 240)
    torch.testing.assert_close(reduced.covariances, 4 * small.covariances, rtol=1e-3, atol=1e-4)


def test_half_precision_is_nearly_the_same(file: Path, texture: NDArray[np.uint8]) -> None:
    options = {"weights": file, "max_keypoints": 300, "detection_threshold": 0.0}
    full, half = (
        tp.features.load("cairn", **options)(texture),
        tp.features.load("cairn", bfloat16=True, **options)(texture),
    )
    nearest = torch.cdist(full.keypoints, half.keypoints).min(1)
    same = nearest.values < 0.5
    assert same.float().mean() > 0.6  # ranks of random weights lie close together
    alike = (full.descriptors[same] * half.descriptors[nearest.indices[same]]).sum(1)
    assert alike.median() > 0.99


@pytest.mark.parametrize(
    "config", [replace(SMALL, levels=2), replace(STEERABLE, levels=1)], ids=["one direction", "steerable"]
)
def test_onnxruntime_finds_the_same(config: CairnConfig, texture: NDArray[np.uint8], tmp_path: Path) -> None:
    """The whole network as an ONNX file, run without torch. Few levels, since tracing takes seconds for each."""
    torch.manual_seed(0)
    net = CairnNet(config).eval().requires_grad_(False)
    pictures = torch.from_numpy(texture[:96, :128].copy()).permute(2, 0, 1)[None]
    file = tmp_path / "cairn.onnx"
    torch.onnx.export(net, (pictures, 40), dynamo=True, optimize=False, verbose=False).save(str(file))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    theirs = session.run(None, {session.get_inputs()[0].name: pictures.numpy()})
    found, described = net(pictures, 40)
    for ours, other in zip((*found, *described), theirs, strict=True):
        np.testing.assert_allclose(ours.numpy(), other, atol=1e-3)


def test_foreign_weights_are_refused(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    weights.save(path, {"a": torch.zeros(1)}, {})
    with pytest.raises(WeightsError, match="CairnNet"):
        Cairn(weights=path)


def test_features_check_the_shape_of_covariances() -> None:
    with pytest.raises(ArgumentError, match="covariances"):
        Features(torch.zeros(2, 2), torch.ones(2), torch.eye(2), (9, 9), "x", covariances=torch.zeros(2, 2))
