"""Several combinations of extractor and matcher on the same pairs: `evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import torch

from ..effort import Effort
from .run import Row, Run, parse_combination, run
from .tables import save


def evaluate(
    data: str | Path,
    combinations: Sequence[str] = ("auto",),
    *,
    sets: Sequence[str] | None = None,
    limit: int | None = None,
    max_keypoints: int | None = 2048,
    long_side: int | None = None,
    effort: Sequence[Effort] = ("fast",),
    device: torch.device | str | None = "auto",
    output: str | Path | None = None,
    fresh: bool = False,
    progress: Callable[[str, Row, int, int], None] | None = None,
) -> list[Run]:
    """Measure combinations of extractor and matcher on pairs of images with ground truth.

    Parameters
    ----------
    data : path
        Evaluation sets, see `tiepoint.evaluation.datasets.load_pairs`.
    combinations : sequence of str
        ``"features+matcher"``, each a name or ``name@WEIGHTS``; see `parse_combination`.
    sets, limit, max_keypoints, long_side
        As in `run`. At full size by default: errors are measured in pixels of the images of the set.
    effort : sequence of {"fast", "auto", "thorough"}
        Measure each combination at each of these, see `tiepoint.match`.
    device : torch.device or str
        Where networks run; ``"auto"`` is `tiepoint.devices.best_device`.
    output : path, optional
        Folder for rows and tables; a run that was interrupted continues there.
    fresh : bool
        Measure again what the folder holds.
    progress : callable or None
        Called with (label, row, number done, number of all) after every pair.

    Returns
    -------
    list of Run
        One for each combination and effort, for `tiepoint.evaluation.rich_tables` and `tiepoint.evaluation.save`.

    Raises
    ------
    ArgumentError
        An unknown name; or ``output`` holds rows of another configuration.
    InputError
        The sets cannot be read, or the output cannot be written.
    WeightsError, MissingDependencyError
        What an extractor or a matcher needs is not on this machine.

    Examples
    --------
    ::

        for run in tiepoint.evaluate("eval", ["sift+nearest", "cairn"]):
            print(run.label, tiepoint.evaluation.summarise(run))
    """
    runs = []
    for combination, level in product(dict.fromkeys(map(parse_combination, combinations)), dict.fromkeys(effort)):
        runs.append(
            run(
                data,
                *combination,
                sets=sets,
                limit=limit,
                max_keypoints=max_keypoints,
                long_side=long_side,
                device=device,
                output=output,
                resume=not fresh,
                effort=level,
                progress=None if progress is None else partial(progress, combination.label),
            )
        )
    if output is not None:
        save(runs, output)
    return runs
