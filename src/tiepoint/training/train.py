"""Any training, by its settings: `train`."""

from __future__ import annotations

from typing import Any

from ..errors import ArgumentError
from .runs import features, matcher, superpoint
from .runs.features import FeatureSettings
from .runs.matcher import MatcherSettings
from .runs.superpoint import SuperPointSettings
from .runs.task import Report, Stop, never, silent

Settings = MatcherSettings | FeatureSettings | SuperPointSettings


def train(settings: Settings, report: Report = silent, stop: Stop = never) -> dict[str, Any]:
    """Train an extractor or a matcher on photographs of your own, or resume a training.

    Parameters
    ----------
    settings : MatcherSettings, FeatureSettings or SuperPointSettings
        What to train, on which photographs, into which folder; from `tiepoint.training`. The fields are the options of
        ``tiepoint train matcher``, ``features`` and ``superpoint``.
    report : callable, optional
        Called with (stage, row of metrics) while it runs.
    stop : callable, optional
        Asked after every step; True saves a checkpoint and raises KeyboardInterrupt. Run it again to resume.

    Returns
    -------
    dict
        The last row of metrics; the weights are in the folder ``output`` of the settings.

    Raises
    ------
    ArgumentError
        An option that makes no sense.
    InputError
        No folder, too few or unreadable photographs, or ``output`` holds a run with another configuration.
    WeightsError
        Weights to start from that cannot be used.
    TrainingError
        The loss is not a number.

    Examples
    --------
    >>> import tiepoint as tp
    >>> settings = tp.training.MatcherSettings(images="photographs", output="runs/mine", features="sift", minutes=30)
    >>> tp.train(settings)["held_out_precision"]  # doctest: +SKIP
    0.87
    """
    if isinstance(settings, MatcherSettings):
        return matcher.train(settings, report, stop)
    if isinstance(settings, FeatureSettings):
        return features.train(settings, report, stop)
    if isinstance(settings, SuperPointSettings):
        return superpoint.train(settings, report, stop)
    raise ArgumentError(
        f"give MatcherSettings, FeatureSettings or SuperPointSettings of tiepoint.training, not {settings!r}"
    )


__all__ = ["FeatureSettings", "MatcherSettings", "Settings", "SuperPointSettings", "train"]
