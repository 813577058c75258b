"""Mutual nearest neighbours, read off a matrix of similarities."""

from __future__ import annotations

import torch
from torch import Tensor


def mutual_nearest(similarity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find for each row its best column, and whether it is that column's best row in turn.

    Parameters
    ----------
    similarity : tensor (..., N, M)
        Larger is nearer; for distances, pass their negative. N and M are at least 1.

    Returns
    -------
    best : tensor (..., N)
        Largest value of each row.
    nearest : int64 tensor (..., N)
        Its column.
    mutual : bool tensor (..., N)
        Whether the row holds the largest value of that column.

    Examples
    --------
    >>> mutual_nearest(torch.tensor([[0.9, 0.1], [0.8, 0.2]]))[1:]
    (tensor([0, 0]), tensor([ True, False]))
    """
    best, nearest = similarity.max(-1)
    rows = torch.arange(similarity.shape[-2], device=similarity.device, dtype=torch.int32)
    # the first row that holds the largest value of a column: argmax(-2), which on CPUs takes twice as long
    largest = similarity == similarity.amax(-2, keepdim=True)
    first = torch.where(largest, rows[:, None], rows.shape[0]).amin(-2)  # len() would be a constant when exported
    return best, nearest, first.gather(-1, nearest) == rows
