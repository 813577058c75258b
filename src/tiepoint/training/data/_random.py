"""Random parameters for batches: drawn on the CPU, so that every device gets the same numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch


def seeded(*numbers: int) -> torch.Generator:
    """Return a generator on the CPU that these numbers alone decide."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> 1))


@dataclass(frozen=True)
class Draw:
    """Shorthand around an explicit CPU `torch.Generator`.

    Examples
    --------
    >>> import torch
    >>> draw = Draw(torch.Generator().manual_seed(0))
    >>> bool((draw.uniform(2, 3, 5) >= 2).all()), tuple(draw.chance(0.5, 4, 2).shape)
    (True, (4, 2))
    """

    generator: torch.Generator

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        """Float32 numbers in [low, high)."""
        return torch.rand(shape, generator=self.generator) * (high - low) + low

    def log_uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        """Numbers in [low, high) whose logarithm is uniform: as many halvings as doublings."""
        return self.uniform(math.log(low), math.log(high), *shape).exp()

    def chance(self, probability: float, *shape: int) -> torch.Tensor:
        """Booleans that are true with the given probability."""
        return torch.rand(shape, generator=self.generator) < probability

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        """Int64 numbers in [0, high)."""
        return torch.randint(high, shape, generator=self.generator)

    def device_generator(self, device: torch.device) -> torch.Generator:
        """Return a generator on ``device``, seeded from this one, for noise that is too much to draw on the CPU."""
        seed = int(torch.randint(2**62, (), generator=self.generator))
        return torch.Generator(device).manual_seed(seed)
