"""What all batches have in common: they are tensors by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch

T = TypeVar("T", bound="Tensors")


@dataclass(frozen=True, eq=False)
class Tensors:
    """Base of dataclasses all of whose fields are tensors.

    Examples
    --------
    >>> @dataclass(frozen=True, eq=False)
    ... class Points(Tensors):
    ...     x: torch.Tensor
    >>> Points.cat([Points(torch.zeros(2)), Points(torch.ones(1))]).to("cpu").x
    tensor([0., 0., 1.])
    """

    def tensors(self) -> dict[str, torch.Tensor]:
        """All fields by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def to(self: T, device: torch.device | str) -> T:
        """Return them on another device."""
        moved: dict[str, Any] = {k: v.to(device, non_blocking=True) for k, v in self.tensors().items()}
        return type(self)(**moved)

    @classmethod
    def cat(cls: type[T], parts: Sequence[T]) -> T:
        """Join parts along the first dimension; of a tensor without dimensions the first is kept."""
        columns = {name: [getattr(part, name) for part in parts] for name in parts[0].tensors()}
        joined: dict[str, Any] = {k: torch.cat(v) if v[0].ndim else v[0] for k, v in columns.items()}
        return cls(**joined)
