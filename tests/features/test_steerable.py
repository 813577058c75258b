"""Steerable descriptors: they turn as the definition says, and as the photograph turns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tiepoint.errors import ArgumentError
from tiepoint.features.cairn import CairnConfig, CairnNet
from tiepoint.features.steerable import length, steer

HARMONICS = (3, 2, 0, 1)
ANGLES = st.floats(-10, 10)


@settings(deadline=None)
@given(a=ANGLES, b=ANGLES)
def test_turning_twice_is_turning_by_the_sum(a: float, b: float) -> None:
    d = torch.from_numpy(np.random.default_rng(0).normal(size=(4, length(HARMONICS))))
    turn = lambda x, angle: steer(x, torch.full((4,), angle, dtype=torch.float64), HARMONICS)  # noqa: E731
    torch.testing.assert_close(turn(turn(d, a), b), turn(d, a + b))
    torch.testing.assert_close(turn(d, a).norm(dim=1), d.norm(dim=1))


def test_each_order_turns_that_many_times_as_fast() -> None:
    d = torch.from_numpy(np.random.default_rng(1).normal(size=length(HARMONICS)))
    turned = steer(d, torch.tensor(0.3, dtype=torch.float64), HARMONICS).numpy()
    assert np.array_equal(turned[:3], d[:3])
    for order, first, count in ((1, 3, 2), (3, 7, 1)):
        before, after = (
            x[first : first + count] + 1j * x[first + count : first + 2 * count] for x in (d.numpy(), turned)
        )
        np.testing.assert_allclose(after, before * np.exp(1j * order * 0.3))


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_photograph_has_turned_descriptors(texture: NDArray[np.uint8], turns: int) -> None:
    config = CairnConfig(levels=3, width=8, rings=10, channels=16, dim=33, harmonics=(9, 6, 4, 2))
    torch.manual_seed(0)
    net = CairnNet(config).eval().requires_grad_(False)
    image = torch.from_numpy(texture).float().mean(2)[None, None, :192, :192] / 255
    points = torch.rand(1, 40, 2, generator=torch.Generator().manual_seed(1)) * 191
    levels = torch.arange(40)[None] % 3

    def as_it_stands(image: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        found = net.describe(net.levels(image), points, levels)
        return steer(found.descriptors, torch.atan2(*found.directions.flip(1).unbind(1)), config.harmonics)

    before, turned_points = as_it_stands(image, points), points
    for _ in range(turns):
        turned_points = torch.stack([turned_points[..., 1], 191 - turned_points[..., 0]], 2)
    after = as_it_stands(torch.rot90(image, turns, (2, 3)), turned_points)
    angle = torch.full((40,), -turns * math.pi / 2)  # rot90 turns from +x to -y
    assert (after - before).abs().max() > 0.05  # or the test would say nothing
    torch.testing.assert_close(after, steer(before, angle, config.harmonics), atol=2e-3, rtol=0)


@pytest.mark.parametrize("harmonics", [(9, 6), (1,) * 17])
def test_harmonics_that_do_not_fit_are_refused(harmonics: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match="harmonics"):
        CairnConfig(dim=33, harmonics=harmonics)
