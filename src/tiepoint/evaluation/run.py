"""Running an extractor and a matcher over evaluation sets: pairs -> rows.

The protocol, the same for every combination:

- Each picture's features are extracted once and used for all its pairs.
- Homographies: weighted DLT on all matches (weights are the matcher's scores, as in LightGlue's HPatches
  table) and LO-RANSAC (PoseLib) at `RANSAC_PX`; the error is the mean displacement of the four corners of
  image 0.
- Relative poses: LO-RANSAC (PoseLib) at `RANSAC_PX`; the error is the larger of the angle of the rotation and
  the angle of the translation's direction. One threshold for every method: published tables often show the
  best of several, chosen on the test data.
- Where the extractor predicts covariances of its keypoints, they weight the final fit (`tiepoint.geometry.refine`), as
  they do in `tiepoint.match`.
- With another effort than ``fast`` the seconds of matching include reading the images again and extracting from warped
  ones.
- A pair without a model has no error in its row and counts as an infinite one. So does a pair that raised: it
  becomes a row with the message, and the run goes on.

Rows are appended to a file as they come, so that an interrupted run continues where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import effort as ladder
from .. import features as extractors
from .. import matchers, pipeline
from ..devices import environment
from ..effort import Effort
from ..errors import ArgumentError, InputError
from ..features import ExtractorOptions
from ..geometry.camera import Camera
from ..geometry.epipolar import pose_error
from ..geometry.homography import corner_error, estimate_dlt
from ..geometry.robust import estimate_homography, estimate_relative_pose
from ..io.files import check_output, explained, make_folder, parse_json
from ..names import split
from ..types import Features, Image, Matches
from . import metrics
from .datasets import EvalPair, HomographyTruth, Picture, load_pairs

RANSAC_PX = 1.5
MATCH_PX = 3.0
CACHED_PICTURES = 128

Extract = Callable[[Image], Features]
Match = Callable[[Features, Features], Matches]
Solve = Callable[[EvalPair, Features, Features], tuple[Matches, Features, Features]]
Progress = Callable[["Row", int, int], None]


@dataclass(frozen=True)
class Row:
    """What was measured on one pair.

    Attributes
    ----------
    set, pair : str
        Which pair.
    kind : "homography" or "pose"
        Which kind of ground truth it has.
    failure : str or None
        The message of what went wrong; every measurement is then None.
    keypoints0, keypoints1, matches, inliers : int or None
        Numbers; ``inliers`` of LO-RANSAC.
    precision, recall : float or None
        See `tiepoint.evaluation.metrics`; recall is None where the ground truth cannot tell (a pose without
        depth).
    dlt_error, ransac_error : float or None
        Corner errors of the homography in pixels of image 1; None without a model.
    pose_error : float or None
        Degrees; None without a model.
    overlaps : bool or None
        Whether the matcher says that the photographs show the same place; None if it does not say.
    stop_layer : int or None
        The layer at which an adaptive matcher stopped.
    pruned : float or None
        The share of all keypoints that it dropped before that layer.
    extract_seconds, match_seconds, geometry_seconds : float or None
        Both images together, without reading the files; RANSAC alone.
    """

    set: str
    pair: str
    kind: str
    failure: str | None = None
    keypoints0: int | None = None
    keypoints1: int | None = None
    matches: int | None = None
    inliers: int | None = None
    precision: float | None = None
    recall: float | None = None
    dlt_error: float | None = None
    ransac_error: float | None = None
    pose_error: float | None = None
    overlaps: bool | None = None
    stop_layer: int | None = None
    pruned: float | None = None
    extract_seconds: float | None = None
    match_seconds: float | None = None
    geometry_seconds: float | None = None


@dataclass(frozen=True)
class Run:
    """All rows of one combination of extractor and matcher.

    Attributes
    ----------
    label : str
        Short name for tables, e.g. ``"sift+nearest"``.
    rows : list of Row
        In the order of the pairs.
    configuration : dict
        Everything that changes the results.
    environment : dict
        Machine, versions and date of the (first) run.
    """

    label: str
    rows: list[Row]
    configuration: dict[str, Any]
    environment: dict[str, str] = field(default_factory=environment)


def run(
    data: str | Path,
    features: str = "sift",
    matcher: str = "nearest",
    *,
    sets: Sequence[str] | None = None,
    limit: int | None = None,
    max_keypoints: int | None = 2048,
    long_side: int | None = None,
    device: torch.device | str | None = "cpu",
    output: str | Path | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    effort: Effort = "fast",
) -> Run:
    """Evaluate an extractor and a matcher, both by name.

    Parameters
    ----------
    data : path
        Evaluation sets, see `tiepoint.evaluation.datasets.load_pairs`.
    features, matcher : str
        Names known to `tiepoint.features.load` and `tiepoint.matchers.load`, also with weights (``name@FILE``).
    sets, limit
        Which sets, and how many pairs of each; None takes all.
    max_keypoints, long_side : int or None
        Options of the extractor. Errors are always measured in pixels of the pictures of the set.
    device : str
        Where networks run.
    output : path or None
        Folder for ``<features>+<matcher>.jsonl`` (of weights only the name of the file); None keeps the rows in memory
        only.
    resume : bool
        Continue a file of the same configuration; False starts it again.
    progress : callable or None
        Called with (row, number done, number of all) after every pair.
    effort : {"fast", "auto", "thorough"}
        As in `tiepoint.match`.

    Returns
    -------
    Run

    Raises
    ------
    InputError, ArgumentError
        See `load_pairs`; also if ``output`` holds rows of another configuration, or cannot be written.
    WeightsError, MissingDependencyError
        The extractor or the matcher cannot be loaded.
    """
    ladder.check(effort, None)
    pairs = load_pairs(data, sets, limit)
    combination = Combination(features, matcher)
    options = ExtractorOptions(max_keypoints=max_keypoints, long_side=long_side)
    extract, match, _ = pipeline.load(*combination, device, options)
    configuration = {
        "features": features,
        "matcher": matcher,
        "max_keypoints": max_keypoints,
        "long_side": long_side,
        "device": str(extract.device),
    }
    short = []
    for name, _, file in (part.partition("@") for part in split(combination.label, _names())):
        if Path(file).is_file():
            configuration[f"sha256 of {file}"] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        short.append(f"{name}@{Path(file).name}" if file else name)
    label = combination.label
    if effort != "fast":
        configuration["effort"] = effort
        label, short[-1] = f"{label}, {effort}", f"{short[-1]}-{effort}"
    path = None
    if output is not None:
        path = check_output(make_folder(output) / f"{'+'.join(short)}.jsonl", None, inputs=[data])

    second = pipeline.another(extract) if effort == "thorough" else None

    def climb(pair: EvalPair, features0: Features, features1: Features) -> tuple[Matches, Features, Features]:
        images = pair.image0.read(), pair.image1.read()
        start = ladder.State.begin(images, extract, match, second, (features0, features1))
        state = ladder.climb(start, effort)
        return state.matches, *state.features

    solve = None if effort == "fast" else climb
    return evaluate_pairs(pairs, extract, match, label, configuration, path, resume, progress, solve)


class Combination(NamedTuple):
    """An extractor and a matcher by name, each as ``name@FILE`` if not with its own weights."""

    features: str
    matcher: str

    @property
    def label(self) -> str:
        """Short name for tables, as `parse_combination` reads it."""
        return f"{self.features}+{self.matcher}"


def parse_combination(text: str) -> Combination:
    """Read ``"features+matcher"``, each either a name or ``name@weights``.

    ``"features"`` alone takes the best matcher for them, as `tiepoint.match` does, and so does the name ``auto``.
    Several names of extractors are an ensemble, which the first name of a matcher ends. Weights are a file or a name
    of ``tiepoint weights list``.

    Raises
    ------
    ArgumentError
        Not of that form, or a name that does not exist.

    Examples
    --------
    >>> parse_combination("sift+lightglue@mine.safetensors").matcher
    'lightglue@mine.safetensors'
    >>> parse_combination("orb").label
    'orb+nearest'
    >>> parse_combination("cairn+sift")
    Combination(features='cairn+sift', matcher='lightglue')
    """
    parts = split(text, ["auto", *_names()])
    ends = (i for i, part in enumerate(parts) if i and part.partition("@")[0] not in extractors.names())
    count = next(ends, len(parts))
    ensemble, pairers = parts[:count], parts[count:] or ["auto"]
    for kind, part, names in (
        *(("extractor", part, extractors.names()) for part in ensemble),
        *(("matcher", part, matchers.names()) for part in pairers),
    ):
        if part.partition("@")[0] not in ("auto", *names):
            raise ArgumentError(f"{text!r}: no {kind} is called {part!r}; there are: {', '.join(names)}")
        if part.startswith("auto@"):
            raise ArgumentError(f"{text!r}: name the {kind} that these weights are for")
    return Combination(*pipeline.choose("+".join(ensemble), "+".join(pairers))[:2])


def _names() -> list[str]:
    """Return the names of all extractors and matchers."""
    return [*extractors.names(), *matchers.names()]


def evaluate_pairs(
    pairs: Sequence[EvalPair],
    extract: Extract,
    match: Match,
    label: str,
    configuration: dict[str, Any] | None = None,
    path: Path | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    solve: Solve | None = None,
) -> Run:
    """Evaluate any two callables: ``Image -> Features`` and ``(Features, Features) -> Matches``.

    The parameters are those of `run`; ``path`` is the file of rows itself. `run` calls this with tiepoint's
    own extractors and matchers, ``benchmarks/`` with those of other packages. ``solve``, instead of ``match``, may look
    at the images again: it gets the pair and its features, and returns the matches and the features they index.

    Examples
    --------
    >>> from tiepoint.evaluation import evaluate_pairs
    >>> evaluate_pairs([], extract=None, match=None, label="nothing").rows
    []
    """
    configuration = {
        **(configuration or {}),
        "ransac_px": RANSAC_PX,
        "match_px": MATCH_PX,
        "threads": torch.get_num_threads(),
    }
    known: dict[tuple[str, str], Row] = {}
    surroundings = environment()
    if path is not None:
        make_folder(path.parent)
        with explained(path):
            before = path.read_text("utf-8", errors="replace") if resume and path.exists() else ""
            if "\n" in before:
                surroundings, known = _continue(path, before, configuration)
            else:
                header = {"label": label, "configuration": configuration, "environment": surroundings}
                path.write_text(json.dumps(header) + "\n", "utf-8")

    @lru_cache(maxsize=CACHED_PICTURES)
    def extracted(picture: Picture) -> tuple[Features, float]:
        image = picture.read()
        return timed(lambda: extract(image))

    rows = []
    for done, pair in enumerate(pairs, start=1):
        row = known.get((pair.set, pair.name))
        if row is None:
            row = _measure(pair, extracted, solve or (lambda _, first, second: (match(first, second), first, second)))
            if path is not None:
                with explained(path), path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(row)) + "\n")
        rows.append(row)
        if progress is not None:
            progress(row, done, len(pairs))
    return Run(label, rows, configuration, surroundings)


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Call ``function`` and return its result and the seconds it took, waiting for a GPU to finish."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def _continue(
    path: Path, text: str, configuration: dict[str, Any]
) -> tuple[dict[str, str], dict[tuple[str, str], Row]]:
    """Return the environment and the rows of an earlier run, and cut a line it did not finish off its file.

    Rows of failures are not kept: what went wrong may have been mended.
    """
    complete = text[: text.rfind("\n") + 1]
    try:
        header, *lines = map(parse_json, complete.splitlines())
        rows = [Row(**line) for line in lines]
        before, first_environment = header["configuration"], header["environment"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not a file of evaluation rows ({error}); remove it or start again") from error
    if before != configuration:
        keys = sorted(before.keys() | configuration.keys())
        changed = [key for key in keys if before.get(key) != configuration.get(key)]
        raise ArgumentError(
            f"{path} holds results of another configuration ("
            + ", ".join(f"{k}: {before.get(k)} there, {configuration.get(k)} now" for k in changed)
            + "); choose another output folder, or measure again with --fresh"
        )
    if complete != text:
        path.write_text(complete, "utf-8")
    return first_environment, {(row.set, row.pair): row for row in rows if row.failure is None}


def _measure(pair: EvalPair, extracted: Callable[[Picture], tuple[Features, float]], solve: Solve) -> Row:
    """Extract, match, and compare with the ground truth; whatever goes wrong becomes a row."""
    kind = "homography" if isinstance(pair.truth, HomographyTruth) else "pose"
    try:
        features0, seconds0 = extracted(pair.image0)
        features1, seconds1 = extracted(pair.image1)
        found, match_seconds = timed(lambda: solve(pair, features0, features1))
        matches, features0, features1 = found
        return Row(
            pair.set,
            pair.name,
            kind,
            keypoints0=len(features0),
            keypoints1=len(features1),
            matches=len(matches),
            extract_seconds=seconds0 + seconds1,
            match_seconds=match_seconds,
            overlaps=None if matches.overlaps is None else bool(matches.overlaps),
            stop_layer=matches.stop_layer,
            pruned=_pruned(matches),
            precision=metrics.precision(pair.truth, matches.points0, matches.points1, MATCH_PX),
            recall=_recall(pair, features0, features1, matches),
            **_model_errors(pair, features0.image_size, features1.image_size, matches),
        )
    except Exception as error:
        return Row(pair.set, pair.name, kind, failure=f"{type(error).__name__}: {error}")


def _pruned(matches: Matches) -> float | None:
    """Return the share of keypoints that did not reach the layer at which the matcher stopped."""
    if matches.stop_layer is None or matches.prune_layer0 is None or matches.prune_layer1 is None:
        return None
    layers = np.concatenate([matches.prune_layer0, matches.prune_layer1])
    return float((layers < matches.stop_layer).mean()) if len(layers) else 0.0


def _recall(pair: EvalPair, features0: Features, features1: Features, matches: Matches) -> float | None:
    keypoints0 = features0.keypoints.cpu().numpy().astype(float)
    keypoints1 = features1.keypoints.cpu().numpy().astype(float)
    projected = metrics.project(pair.truth, keypoints0, keypoints1)
    if projected is None:
        return None
    return metrics.recall(matches.indices, keypoints0, keypoints1, *projected, MATCH_PX)


def _model_errors(pair: EvalPair, size0: tuple[int, int], size1: tuple[int, int], matches: Matches) -> dict[str, Any]:
    """Estimate the pair's geometry and compare: the fields of `Row` from ``inliers`` to ``pose_error``."""
    truth, points0, points1 = pair.truth, matches.points0, matches.points1
    if isinstance(truth, HomographyTruth):
        estimate, seconds = timed(
            lambda: estimate_homography(points0, points1, threshold=RANSAC_PX, covariances=matches.covariances)
        )
        H_dlt = estimate_dlt(points0, points1, matches.scores)
        errors = {
            "dlt_error": None if H_dlt is None else _finite(corner_error(H_dlt, truth.H, size0)),
            "ransac_error": None if estimate.model is None else _finite(corner_error(estimate.model, truth.H, size0)),
        }
    else:
        camera0, camera1 = Camera.from_K(truth.K0, size0), Camera.from_K(truth.K1, size1)
        estimate, seconds = timed(
            lambda: estimate_relative_pose(
                points0, points1, camera0, camera1, threshold=RANSAC_PX, covariances=matches.covariances
            )
        )
        errors = {"pose_error": None}
        if estimate.R is not None and estimate.t is not None:
            radians = max(pose_error(estimate.R, estimate.t, truth.R, truth.t))
            errors["pose_error"] = float(np.rad2deg(radians))
    return {**errors, "inliers": int(estimate.inliers.sum()), "geometry_seconds": seconds}


def _finite(error: float) -> float | None:
    """Return the error, or None if it is infinite: JSON has no infinity."""
    return error if np.isfinite(error) else None
