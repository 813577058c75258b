"""Base of batches, worlds and cameras: dataclasses whose tensors are moved, selected and joined together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch

T = TypeVar("T", bound="Tensors")


@dataclass(frozen=True, eq=False)
class Tensors:
    """Base of dataclasses whose fields are tensors, all of as many rows. Other fields stay as they are.

    Examples
    --------
    >>> @dataclass(frozen=True, eq=False)
    ... class Points(Tensors):
    ...     x: torch.Tensor
    >>> both = Points.cat([Points(torch.zeros(2)), Points(torch.ones(1))]).to("cpu")
    >>> both.x, both.select(torch.tensor([2])).x
    (tensor([0., 0., 1.]), tensor([1.]))
    """

    def __len__(self) -> int:
        return len(next(iter(self.tensors().values())))

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}

    def to(self: T, device: torch.device | str) -> T:
        """Return them on another device."""
        moved: dict[str, Any] = {name: value.to(device, non_blocking=True) for name, value in self.tensors().items()}
        return replace(self, **moved)

    def select(self: T, rows: torch.Tensor) -> T:
        """Return these rows of every tensor, repeated as often as they occur."""
        chosen: dict[str, Any] = {name: value[rows.to(value.device)] for name, value in self.tensors().items()}
        return replace(self, **chosen)

    @classmethod
    def cat(cls: type[T], parts: Sequence[T]) -> T:
        """Join parts along the first dimension; of a tensor without dimensions the first is kept."""
        columns = {name: [getattr(part, name) for part in parts] for name in parts[0].tensors()}
        joined: dict[str, Any] = {k: torch.cat(v) if v[0].ndim else v[0] for k, v in columns.items()}
        return replace(parts[0], **joined)
