"""Progress reports of the steps of a map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a step is; its ``report`` callback gets one after each image, pair or batch.

    Attributes
    ----------
    step : str
        Name of the step, for display: ``"extracting sift"``, ``"matching"`` …
    done, total : int
        Images or pairs that are finished, those of earlier runs included, and their total number.
    early_exits : float or None
        Of the pairs matched in this run, the share that an adaptive matcher stopped before its last layer.
    note : str
        A message to show, such as why a photograph was left out; usually empty.
    """

    step: str
    done: int
    total: int
    early_exits: float | None = None
    note: str = ""


Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Ignore progress reports."""
