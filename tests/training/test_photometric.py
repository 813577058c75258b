"""Photometric changes: JPEG as libjpeg makes it, nothing moves, everything stays in range."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray

from tiepoint.errors import ArgumentError
from tiepoint.training.data import photometric
from tiepoint.training.data._random import Draw
from tiepoint.training.data.photometric import PhotometricConfig, augment, jpeg

CHANGES = [
    photometric._colour,
    photometric._shadow,
    photometric._fog,
    photometric._glow,
    photometric._vignette,
    photometric._blur,
    photometric._motion_blur,
    photometric._exposure,
    photometric._noise,
    photometric._tone,
    photometric._jpeg,
    photometric._season,
    photometric._night,
    photometric._weather,
    photometric._spectrum,
    photometric._curve,
    photometric._film,
]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _batch(texture: NDArray[np.uint8], count: int) -> torch.Tensor:
    return torch.from_numpy(texture).permute(2, 0, 1).float().expand(count, -1, -1, -1) / 255


@pytest.mark.parametrize("quality", [10, 50, 90])
@pytest.mark.parametrize("subsample", [False, True])
def test_jpeg_agrees_with_libjpeg(texture: NDArray[np.uint8], quality: int, subsample: bool) -> None:
    # A size that is no multiple of 8 or 16; slightly smooth, since decoders differ in how they enlarge colour.
    picture = PIL.Image.fromarray(texture).resize((171, 123))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality, subsampling=2 if subsample else 0)
    theirs = np.asarray(PIL.Image.open(stream), np.float32)
    original = np.asarray(picture, np.float32)
    tensor = torch.from_numpy(original).permute(2, 0, 1)[None] / 255
    ours = jpeg(tensor, torch.tensor([quality]), subsample)[0].permute(1, 2, 0).numpy() * 255
    loss = np.abs(theirs - original).mean()
    assert np.abs(ours - theirs).mean() < 0.25 * loss + 0.5
    assert abs(np.abs(ours - original).mean() / loss - 1) < 0.1


def test_jpeg_qualities_of_a_batch_are_independent(texture: NDArray[np.uint8]) -> None:
    images = _batch(texture, 3)
    together = jpeg(images, torch.tensor([10.0, 40.0, 90.0]))
    error = (together - images).abs().mean((1, 2, 3))
    assert error[0] > 1.2 * error[1] > 1.2 * 1.2 * error[2]
    alone = jpeg(images[:1], torch.tensor([40.0]))[0]
    assert (together[1] - alone).abs().mean() < 1e-4


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_changes_and_scales_with_strength(change, texture: NDArray[np.uint8]) -> None:
    images = _batch(texture, 16)
    weak, strong = (
        (change(images, strength, Draw(_generator(1))).clamp(0, 1) - images).abs().mean() for strength in (0.1, 1.0)
    )
    assert strong > 0.01 and weak < 0.75 * strong


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_moves(change) -> None:
    """Bright dots on grey: what is left of each after the change is centred where it was."""
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing="ij")
    dot = torch.exp(-((x - 64) ** 2 + (y - 48) ** 2) / (2 * 3.0**2))
    empty = torch.full((1, 3, 96, 128), 0.35)
    changed = change((empty + 0.4 * dot).expand(24, -1, -1, -1).clone(), 1.0, Draw(_generator(2)))
    without = change(empty.expand(24, -1, -1, -1).clone(), 1.0, Draw(_generator(2)))
    window = (slice(None), slice(36, 61), slice(52, 77))
    left = (changed - without).mean(1)[window].clamp(min=0)
    left = torch.where(left > 0.3 * left.amax((1, 2), keepdim=True), left, 0.0)
    weight = left.sum((1, 2))
    seen = left.amax((1, 2)) > 0.02
    at_x = (left * x[window[1:]]).sum((1, 2)) / weight
    at_y = (left * y[window[1:]]).sum((1, 2)) / weight
    assert seen.sum() > 12
    assert (at_x - 64)[seen].abs().median() < 0.15 and (at_y - 48)[seen].abs().median() < 0.15
    assert (at_x - 64)[seen].abs().max() < 1.0 and (at_y - 48)[seen].abs().max() < 1.0


def test_presets(texture: NDArray[np.uint8]) -> None:
    images = _batch(texture, 32)
    before = images.clone()
    names = ("none", "mild", "strong", "extreme")
    none, mild, strong, extreme = (augment(images, PhotometricConfig.preset(name), _generator(3)) for name in names)
    assert torch.equal(images, before) and torch.equal(none, images)
    for changed in (mild, strong, extreme):
        assert changed.shape == images.shape and changed.dtype == torch.float32
        assert changed.min() >= 0 and changed.max() <= 1
    assert 0.01 < (mild - images).abs().mean() < 0.7 * (strong - images).abs().mean()
    # Every image has its own change, and none is black.
    assert len({round(float(v), 4) for v in strong.mean((1, 2, 3))}) > 28
    assert strong.mean((1, 2, 3)).min() > 0.03


def test_dark_photographs_do_not_go_black() -> None:
    dark = torch.rand(32, 3, 40, 40, generator=_generator()) * 0.1
    for seed in range(3):
        changed = augment(dark, PhotometricConfig.preset("strong"), _generator(seed))
        assert changed.mean((1, 2, 3)).min() > 0.02


def test_the_same_seed_gives_the_same_images(texture: NDArray[np.uint8]) -> None:
    images, config = _batch(texture, 8)[..., :64, :64], PhotometricConfig.preset("strong")
    first, second, other = (augment(images, config, _generator(seed)) for seed in (4, 4, 5))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_options_out_of_range() -> None:
    with pytest.raises(ArgumentError, match=r"fog is 1\.5"):
        PhotometricConfig(fog=1.5)
    with pytest.raises(ArgumentError, match="none, mild, strong, extreme"):
        PhotometricConfig.preset("moonlight")
