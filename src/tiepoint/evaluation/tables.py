"""From rows to tables: one line per set and combination, on screen and as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rich.box
from rich.table import Table

from ..io.files import atomic, make_folder
from .metrics import auc
from .run import MATCH_PX, RANSAC_PX, Row, Run

HOMOGRAPHY_PX = (1, 3, 5)
POSE_DEGREES = (5, 10, 20)
SOLVED_PX, SOLVED_DEGREES = 5, 10  # errors up to which a pair counts as solved
MEAN = "mean"

Value = float | int | str | None


@dataclass(frozen=True)
class Column:
    """What one column shows: one measure, or several in one cell, as papers print AUC at several thresholds."""

    heading: str
    keys: tuple[str, ...]
    digits: int
    factor: float = 1.0

    def text(self, line: Mapping[str, Value]) -> str:
        """Return the cell of a line, a dash where nothing is known."""
        known = [value for value in map(line.get, self.keys) if value is not None]
        return "/".join(f"{float(value) * self.factor:.{self.digits}f}" for value in known) or "–"


COLUMNS = (
    Column("pairs", ("pairs",), 0),
    Column("failed", ("failed",), 0),
    Column("AUC DLT @1/3/5px", tuple(f"dlt_auc_{t}px" for t in HOMOGRAPHY_PX), 1, 100),
    Column("AUC RANSAC @1/3/5px", tuple(f"ransac_auc_{t}px" for t in HOMOGRAPHY_PX), 1, 100),
    Column("AUC pose @5/10/20°", tuple(f"pose_auc_{t}deg" for t in POSE_DEGREES), 1, 100),
    Column("P @3px", ("precision",), 1, 100),
    Column("R @3px", ("recall",), 1, 100),
    Column("kept %", ("kept",), 1, 100),
    Column("matches", ("matches",), 0),
    Column("stop layer", ("stop_layer",), 1),
    Column("pruned %", ("pruned",), 1, 100),
    Column("extract ms", ("extract_seconds",), 0, 1000),
    Column("match ms", ("match_seconds",), 0, 1000),
    Column("geometry ms", ("geometry_seconds",), 0, 1000),
)
KEYS = tuple(key for column in COLUMNS for key in column.keys)

LEGEND = f"""\
AUC in percent: homographies by the mean corner error (DLT: all matches, weighted by score; RANSAC: PoseLib's
LO-RANSAC at {RANSAC_PX} px), relative poses by the larger of the angles of rotation and translation (the
same RANSAC). A pair that failed counts as an infinite error. P: matches within {MATCH_PX:.0f} px of the true
homography, or of their epipolar lines, in percent. R: keypoint pairs that agree to {MATCH_PX:.0f} px under
the ground truth and were found, in percent (7scenes: its depth maps are some pixels off; compare R there, but
do not read it alone). kept: of the pairs solved to {SOLVED_DEGREES}° or {SOLVED_PX} px, those that the
matcher calls overlapping, in percent. Precision, recall, matches, layers: means over pairs. Times: medians
over pairs, extraction of both images together. `{MEAN}`: over the sets."""


def summarise(run: Run) -> list[dict[str, Value]]:
    """Return one dictionary per set, and one of the means over sets if there are several.

    The keys are ``label``, ``set`` and `KEYS`; shares are in [0, 1], times in seconds, and what
    a set cannot tell is None.
    """
    names = list(dict.fromkeys(row.set for row in run.rows))
    table = [
        {"label": run.label, "set": name, **_summary([row for row in run.rows if row.set == name])} for name in names
    ]
    if len(table) > 1:
        mean: dict[str, Value] = {"label": run.label, "set": MEAN}
        for key in KEYS:
            combine = np.sum if key in ("pairs", "failed") else np.mean
            mean[key] = _over([line[key] for line in table], combine)
        table.append(mean)
    return table


def _summary(rows: list[Row]) -> dict[str, Value]:
    """Summarise the rows of one set."""
    good = [row for row in rows if row.failure is None]
    homographies = [row for row in rows if row.kind == "homography"]
    poses = [row for row in rows if row.kind == "pose"]
    line: dict[str, Value] = {"pairs": len(rows), "failed": len(rows) - len(good)}
    for name, errors, thresholds, unit in (
        ("dlt", [row.dlt_error for row in homographies], HOMOGRAPHY_PX, "px"),
        ("ransac", [row.ransac_error for row in homographies], HOMOGRAPHY_PX, "px"),
        ("pose", [row.pose_error for row in poses], POSE_DEGREES, "deg"),
    ):
        infinite = [np.inf if error is None else error for error in errors]
        areas = auc(infinite, thresholds) if infinite else [None] * len(thresholds)
        line |= {f"{name}_auc_{t}{unit}": area for t, area in zip(thresholds, areas, strict=True)}
    solved = [row.overlaps for row in good if _is_solved(row)]
    line["kept"] = _over(solved, np.mean)
    for key in ("precision", "recall", "matches", "stop_layer", "pruned"):
        line[key] = _over([getattr(row, key) for row in good], np.mean)
    for key in ("extract_seconds", "match_seconds", "geometry_seconds"):
        line[key] = _over([getattr(row, key) for row in good], np.median)
    return line


def _is_solved(row: Row) -> bool:
    pixels, degrees = row.ransac_error, row.pose_error
    return (pixels is not None and pixels <= SOLVED_PX) or (degrees is not None and degrees <= SOLVED_DEGREES)


def _over(values: Sequence[Any], combine: Any) -> float | int | None:
    """Combine the values that are known into one; None if none is."""
    known = [value for value in values if value is not None]
    return combine(known).item() if known else None


def by_set(runs: Sequence[Run]) -> dict[str, list[dict[str, Value]]]:
    """Return set -> one line per run, with the means over sets last."""
    grouped: dict[str, list[dict[str, Value]]] = {}
    for line in (line for run in runs for line in summarise(run)):
        grouped.setdefault(str(line["set"]), []).append(line)
    if MEAN in grouped:
        grouped[MEAN] = grouped.pop(MEAN)
    return grouped


def rich_tables(runs: Sequence[Run]) -> list[Table]:
    """Return one table per set, for `rich.print`; columns without any value are left out."""
    tables = []
    for name, lines in by_set(runs).items():
        columns = _columns(lines)
        table = Table(title=name, title_justify="left", box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("", no_wrap=True)
        for column in columns:
            table.add_column("\n".join(column.heading.rsplit(" ", 1)), justify="right", overflow="fold")
        for line in lines:
            table.add_row(str(line["label"]), *(column.text(line) for column in columns))
        tables.append(table)
    return tables


def markdown(runs: Sequence[Run]) -> str:
    """Return all tables as Markdown, with what the columns mean and where it was measured."""
    parts = []
    for name, lines in by_set(runs).items():
        columns = _columns(lines)
        parts.append(f"## {name}\n")
        parts.append("| | " + " | ".join(column.heading for column in columns) + " |")
        parts.append("|---|" + "---:|" * len(columns))
        for line in lines:
            cells = " | ".join(column.text(line) for column in columns)
            parts.append(f"| {line['label']} | {cells} |")
        parts.append("")
    parts += [LEGEND, "", *_provenance(runs)]
    return "\n".join(parts) + "\n"


def _provenance(runs: Sequence[Run]) -> list[str]:
    """Return one line per combination: its configuration and where it ran."""
    return [
        f"- {run.label}: "
        + ", ".join(f"{k} {v}" for k, v in run.configuration.items() if k not in ("features", "matcher"))
        + "; "
        + ", ".join(f"{k} {v}" for k, v in run.environment.items())
        for run in runs
    ]


def _columns(lines: list[dict[str, Value]]) -> list[Column]:
    """Return the columns that at least one line has a value for."""
    known = {key for line in lines for key in KEYS if line[key] is not None}
    if not any(line["failed"] for line in lines):
        known.discard("failed")
    return [column for column in COLUMNS if known.intersection(column.keys)]


def save(runs: Sequence[Run], folder: str | Path) -> list[Path]:
    """Write ``summary.json``, ``summary.csv`` and ``summary.md`` into a folder and return their paths.

    Raises
    ------
    InputError
        They cannot be written.
    """
    folder = make_folder(folder)
    paths = [folder / f"summary.{kind}" for kind in ("json", "csv", "md")]
    document = [
        {
            "label": run.label,
            "configuration": run.configuration,
            "environment": run.environment,
            "sets": summarise(run),
        }
        for run in runs
    ]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, ["label", "set", *KEYS])
    writer.writeheader()
    writer.writerows(line for run in runs for line in summarise(run))
    texts = (json.dumps(document, indent=1) + "\n", table.getvalue(), markdown(runs))
    for path, text in zip(paths, texts, strict=True):
        with atomic(path) as temporary:
            temporary.write_bytes(text.encode("utf-8"))
    return paths
