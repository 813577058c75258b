"""How the steps of a map tell whoever watches where they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Where a step is; handed to its ``report`` callback after every bit of work.

    Attributes
    ----------
    step : str
        What is going on, for people: ``"extracting sift"``, ``"matching"`` …
    done, total : int
        How many images or pairs are finished, those of earlier runs included, and how many there are in all.
    early_exits : float or None
        Of the pairs matched in this run, the share that an adaptive matcher stopped before its last layer.
    note : str
        A line worth reading, such as why a photograph was left out; usually empty.
    """

    step: str
    done: int
    total: int
    early_exits: float | None = None
    note: str = ""


Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Report to nobody."""
