"""Measuring: evaluation sets with ground truth -> tables of accuracy and time.

>>> from tiepoint import evaluation
>>> evaluation.auc([0.5, 2.0, float("inf")], [5])
[0.566...]
"""

from __future__ import annotations

from .compare import evaluate
from .datasets import EvalPair, HomographyTruth, Picture, PoseTruth, load_pairs, roll
from .metrics import auc, match_errors, precision, recall
from .run import Row, Run, evaluate_pairs, parse_combination, run
from .speed import Speed, Timing, bench, speed_table
from .tables import markdown, rich_tables, save, summarise

__all__ = [
    "EvalPair",
    "HomographyTruth",
    "Picture",
    "PoseTruth",
    "Row",
    "Run",
    "Speed",
    "Timing",
    "auc",
    "bench",
    "evaluate",
    "evaluate_pairs",
    "load_pairs",
    "markdown",
    "match_errors",
    "parse_combination",
    "precision",
    "recall",
    "rich_tables",
    "roll",
    "run",
    "save",
    "speed_table",
    "summarise",
]
