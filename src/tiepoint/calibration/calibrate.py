"""Choose the thresholds of a trained LightGlue on photographs, for a stated price.

How early to stop and which points to drop is a trade of matches for speed. Candidate settings, from cautious to bold,
are run beside the full model on pairs that were not trained on, and `calibration.choose` picks the cheapest that keeps
its promise; the theorem and its assumption stand there. Unrelated pairs among them give the threshold above which two
photographs are said to overlap.
"""

from __future__ import annotations

import copy
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import devices
from .. import features as extractors
from .. import weights as weights_module
from ..errors import ArgumentError, InputError
from ..io.files import check_output
from ..io.folders import list_images
from ..io.pair_lists import from_list
from ..matchers.lightglue import LightGlue, LightGlueConfig
from ..training.data.photographs import PhotoCache, build_cache
from ..training.pairs.maker import CHUNK, ChunkMaker, PairConfig
from ..training.pairs.steps import Steps
from ..training.pairs.traits import try_extractor
from ..training.runs.share import newest_weights
from ..training.stream import stream
from ..types import Features, Matches
from . import statistics as calibration

# (exit_confidence, prune_matchability) at every layer, from cautious to bold: each setting stops no later and drops no
# fewer points than the one before. Fixed before any pair is seen, as the theorem asks.
SETTINGS = (
    (0.995, 0.001),
    (0.99, 0.002),
    (0.98, 0.005),
    (0.97, 0.01),
    (0.95, 0.02),
    (0.92, 0.03),
    (0.88, 0.04),
    (0.82, 0.06),
    (0.75, 0.08),
    (0.65, 0.10),
)
LEAST_UNRELATED = 100  # pairs, made to find the threshold of `overlaps`
_SOLVED = 15  # right matches with which a pair counts as one that can be matched


@dataclass(frozen=True, eq=False)
class Sample:
    """One image pair to calibrate on.

    Attributes
    ----------
    features0, features1 : Features
    partners : int64 array (N,) or None
        True partner of each keypoint of image 0, negative if it has none; None if nobody knows.
    related : bool
        Whether the photographs overlap.
    """

    features0: Features
    features1: Features
    partners: NDArray[np.int64] | None
    related: bool


@dataclass
class Calibration:
    """What was measured, and what was chosen.

    Attributes
    ----------
    config : LightGlueConfig
        The weights' configuration with the chosen thresholds in it; without early exit and pruning if no setting keeps
        the promise.
    keep, confidence : float
        The promise: with this confidence, at least this fraction of the full model's right matches is kept.
    pairs, unrelated : int
        Pairs used for the one and the other threshold.
    settings : list of dict
        Of each candidate: ``exit_confidence``, ``prune_matchability``, ``pairs`` (related ones it was run on: all,
        unless it was given up), ``lost`` (mean fraction), ``p_value``, ``work`` (fraction of the full model's layers
        times points), ``seconds`` of matching, and whether it was ``chosen``.
    seconds : float
        Time that the full model took for the same pairs.
    solved_kept : float or None
        Fraction of the pairs solved at full depth (15 right matches) that are said to overlap.
    """

    config: LightGlueConfig
    keep: float
    confidence: float
    pairs: int = 0
    unrelated: int = 0
    settings: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    solved_kept: float | None = None

    @property
    def chosen(self) -> dict[str, Any] | None:
        """The chosen setting, or None for the full model."""
        return next((setting for setting in self.settings if setting["chosen"]), None)

    @property
    def speed_up(self) -> float:
        """Time of the full model divided by that of the chosen setting."""
        return 1.0 if self.chosen is None else self.seconds / self.chosen["seconds"]

    def summary(self) -> dict[str, Any]:
        """Return what was promised and measured, as JSON has it."""
        names = ("keep", "confidence", "pairs", "unrelated", "settings", "speed_up", "solved_kept")
        return {name: getattr(self, name) for name in names}


def with_setting(config: LightGlueConfig, exit_confidence: float, prune_matchability: float) -> LightGlueConfig:
    """Return a configuration with the same level at every layer.

    Examples
    --------
    >>> with_setting(LightGlueConfig(layers=3), 0.9, 0.01).exit_confidence
    (0.9, 0.9)
    """
    layers = config.layers - 1
    return replace(
        config, exit_confidence=(exit_confidence,) * layers, prune_matchability=(prune_matchability,) * layers
    )


def calibrate(
    matcher: LightGlue,
    samples: Iterator[Sequence[Sample]],
    keep: float = 0.99,
    confidence: float = 0.95,
    max_false_overlaps: float = 0.05,
    expected: int | None = None,
    progress: Callable[[int, int], None] = lambda related, unrelated: None,
) -> Calibration:
    """Choose exit, pruning and overlap thresholds on image pairs.

    Parameters
    ----------
    matcher : LightGlue
        Its weights' confidence classifiers must be trained.
    samples : iterator of sequences of Sample
        Independent pairs, not trained on, like those the matcher will meet. Read to its end.
    keep : float
        Fraction of the full model's right matches to keep, on average over pairs; where the truth is not known, of all
        its matches.
    confidence : float
        Probability, over the draw of the samples, that this and the fraction of false overlaps hold.
    max_false_overlaps : float
        Fraction of unrelated pairs that may be said to overlap.
    expected : int
        How many related pairs will come, if known. A setting that could not be accepted even if nothing more were lost
        is then given up, with all bolder ones: the choice is the same, and takes less time.
    progress : callable
        Called with the numbers of related and unrelated pairs so far.

    Raises
    ------
    ArgumentError
        The confidence classifiers were never trained.
    """
    if (
        not any(bool(parameter.any()) for parameter in matcher.net.confidence.parameters())
        and matcher.config.layers > 1
    ):
        raise ArgumentError(
            "the confidence classifiers of these weights were never trained: run 'tiepoint train confidence RUN' first"
        )
    full = _Trial(_with_config(matcher, matcher.config, adaptive=False))
    trials = [_Trial(_with_config(matcher, with_setting(matcher.config, *setting))) for setting in SETTINGS]
    open_trials = trials  # those that can still be accepted
    right: list[int] = []
    related: list[bool] = []
    for group in samples:
        truths = [_right(matches, sample) for matches, sample in zip(full.match(group), group, strict=True)]
        for trial in open_trials:
            trial.compare(group, truths)
        right.extend(len(truth) for truth in truths)
        related.extend(sample.related for sample in group)
        if expected is not None and open_trials:
            losses = [trial.losses for trial in open_trials]
            open_trials = trials[: calibration.count_acceptable(losses, expected, keep, confidence)]
        progress(sum(related), len(related) - sum(related))

    use = np.array(related, bool)
    count = int(use.sum())
    result = Calibration(matcher.config, keep, confidence, count, len(use) - count, seconds=full.seconds)
    losses, costs = [trial.losses for trial in open_trials], [trial.cost for trial in open_trials]
    chosen = calibration.choose(losses, costs, keep, confidence) if open_trials else None
    for s, ((exit_confidence, prune_matchability), trial) in enumerate(zip(SETTINGS, trials, strict=True)):
        result.settings.append(
            {
                "exit_confidence": exit_confidence,
                "prune_matchability": prune_matchability,
                "pairs": len(trial.losses),
                "lost": float(np.mean(trial.losses)) if trial.losses else 0.0,
                "p_value": calibration.hoeffding_bentkus_p_value(trial.losses, 1 - keep),
                "work": trial.cost,
                "seconds": trial.seconds,
                "chosen": s == chosen,
            }
        )
    if chosen is None:
        used, config = full, replace(matcher.config, exit_confidence=None, prune_matchability=None)
    else:
        used, config = trials[chosen], trials[chosen].matcher.config
    scores = np.array(used.evidence)
    threshold = None if use.all() else calibration.choose_pair_threshold(scores[~use], max_false_overlaps, confidence)
    solved = use & (np.array(right) >= _SOLVED)
    if threshold is not None and solved.any():
        result.solved_kept = float((scores[solved] > threshold).mean())
    result.config = replace(config, overlap_threshold=threshold)
    return result


def _with_config(matcher: LightGlue, config: LightGlueConfig, adaptive: bool = True) -> LightGlue:
    """Return a matcher with the same network and other thresholds."""
    other = copy.copy(matcher)
    other.config, other.adaptive = config, adaptive
    return other


class _Trial:
    """One setting that is tried: a matcher, and what was measured of it.

    Attributes
    ----------
    losses, work : lists of float
        Of each related pair: the fraction of right matches lost, and layers times points as a fraction of all.
    evidence : list of float
        Of each pair.
    seconds : float
        Time of matching.
    """

    def __init__(self, matcher: LightGlue) -> None:
        self.matcher = matcher
        self.losses: list[float] = []
        self.work: list[float] = []
        self.evidence: list[float] = []
        self.seconds = 0.0

    @property
    def cost(self) -> float:
        """Mean of ``work``."""
        return float(np.mean(self.work)) if self.work else 1.0

    def match(self, group: Sequence[Sample]) -> list[Matches]:
        """Match pairs; note time and evidence."""
        began = time.perf_counter()
        found = self.matcher.match_many([(sample.features0, sample.features1) for sample in group])
        self.seconds += time.perf_counter() - began
        self.evidence.extend(matches.evidence for matches in found)
        return found

    def compare(self, group: Sequence[Sample], truths: Sequence[NDArray[np.int64]]) -> None:
        """Match pairs; note what of the right matches is lost, and at which cost."""
        for matches, truth, sample in zip(self.match(group), truths, group, strict=True):
            if sample.related:
                kept = np.isin(_keys(matches.indices, sample), truth).sum()
                self.losses.append(float(calibration.share_lost(kept, len(truth))))
                self.work.append(_work(matches, self.matcher.config.layers))


def _keys(matches: NDArray[np.int64], sample: Sample) -> NDArray[np.int64]:
    """Return one number for each match."""
    return matches[:, 0] * len(sample.features1) + matches[:, 1]


def _right(matches: Matches, sample: Sample) -> NDArray[np.int64]:
    """Return the numbers of the right matches; of all, where the truth is not known."""
    rows = matches.indices
    if sample.partners is not None:
        rows = rows[sample.partners[rows[:, 0]] == rows[:, 1]]
    return _keys(rows, sample)


def _work(matches: Matches, layers: int) -> float:
    """Return layers times points, as a fraction of the full model's."""
    if matches.prune_layer0 is None or matches.prune_layer1 is None:  # a pair without keypoints
        return 0.0
    points = len(matches.prune_layer0) + len(matches.prune_layer1)
    return float(matches.prune_layer0.sum() + matches.prune_layer1.sum()) / (layers * points)


def samples_from_photographs(
    photos: PhotoCache,
    config: PairConfig,
    related: int,
    unrelated: int,
    seed: int = 0,
    held_out: bool = False,
    workers: int = 1,
) -> Iterator[list[Sample]]:
    """Make pairs from photographs: related ones first, then unrelated ones.

    Parameters
    ----------
    photos : PhotoCache
        Where pictures come from; pairs are the more independent the more photographs there are.
    config : PairConfig
        Which pairs are made; its ``negatives``, ``posed`` and ``real`` are not used.
    related, unrelated : int
        How many of each, rounded up to whole chunks.
    seed : int
        Of all random choices.
    held_out : bool
        Use only the photographs that a training on this cache did not see.
    workers : int
        Processes that make pairs.

    Yields
    ------
    list of Sample
    """
    for negatives, count in ((0.0, related), (1.0, unrelated)):
        maker = ChunkMaker(photos, replace(config, negatives=negatives, posed=0.0, real=0.0), seed, held_out)
        for batch in stream(Steps(maker, CHUNK), range(math.ceil(count / CHUNK)), workers):
            yield [
                Sample(f0, f1, batch.matches0[p].numpy(), bool(batch.related[p]))
                for p, (f0, f1) in enumerate(batch.features(config.extractor))
            ]


def read_pairs(file: str | os.PathLike[str], images: str | os.PathLike[str]) -> list[tuple[Path, Path]]:
    """Read a list of image pairs as `tiepoint.io.pair_lists.from_list` does, but insist on every line.

    Raises
    ------
    InputError
        The list cannot be read, or a line does not name two images below ``images``.
    """
    names = list_images(images)
    listed = from_list(file, {name: number for number, name in enumerate(names)})
    if listed.unused:
        number, what = listed.unused[0]
        raise InputError(f"{file}, line {number}: names {what}; give two images of {images} on each line")
    return [(Path(images) / names[i], Path(images) / names[j]) for i, j in listed.pairs.tolist()]


def samples_from_pairs(
    pairs: Sequence[tuple[Path, Path]],
    features: str,
    max_keypoints: int = 1024,
    long_side: int = 1024,
    device: torch.device | str = "cpu",
) -> Iterator[list[Sample]]:
    """Extract pairs of images; their truth is not known.

    Raises
    ------
    InputError
        An image cannot be read.
    """
    extractor = extractors.load(features, device=device, max_keypoints=max_keypoints, long_side=long_side)
    for image0, image1 in pairs:
        yield [Sample(extractor(image0), extractor(image1), None, True)]


def calibrate_file(
    target: str | os.PathLike[str],
    images: str | os.PathLike[str],
    *,
    keep: float = 0.99,
    confidence: float = 0.95,
    pairs: str | os.PathLike[str] | None = None,
    features: str | None = None,
    count: int | None = None,
    match_threshold: float | None = None,
    max_keypoints: int = 1024,
    output: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    workers: int = 1,
    seed: int = 0,
    device: torch.device | str | None = "auto",
    progress: Callable[[int, int], None] = lambda related, unrelated: None,
) -> tuple[Calibration, Path]:
    """Calibrate a run or a weights file on photographs, and write weights with thresholds in their metadata.

    Pairs are made as for training, with another number of keypoints, and from other photographs.

    Parameters
    ----------
    target : path
        A run's folder, or LightGlue weights of ours (``.safetensors``).
    images : path
        Photographs like those that will be matched. If the weights were trained on this very folder, only the
        photographs that training held out are used.
    keep, confidence : float
        See `calibrate`.
    output : path, optional
        By default ``calibrated.safetensors`` in the run, or ``NAME-calibrated.safetensors`` beside the file.
    pairs : path, optional
        Calibrate on these pairs of images, see `read_pairs`, instead of pairs made from single photographs.
        The overlap threshold then stays as it is.
    features : str, optional
        The extractor that the weights will be used with, as `tiepoint.features.load` takes it; by default the one they
        were trained on.
    count : int, optional
        Related pairs to make, where no list gives them; by default four times `calibration.pairs_needed`, which leaves
        room for some loss.
    max_keypoints : int
        Of each picture: as many as will be matched.
    seed : int
        Of the pairs.
    cache : path, optional
        File of decoded photographs, which several runs can use; by default none is kept.
    workers : int
        Processes that make pairs.
    device : torch.device or str
        Where to match; ``"auto"`` is `tiepoint.devices.best_device`.
    match_threshold : float, optional
        Least score of a match, stored with the weights; by default theirs.
    progress : callable
        See `calibrate`.

    Returns
    -------
    Calibration, Path
        What was chosen, and the file.

    Raises
    ------
    InputError, ArgumentError, WeightsError
        The photographs or the weights cannot be used, or there are too few pairs to promise anything.
    """
    if pairs is not None and count is not None:
        raise ArgumentError("count is for pairs that are made; the list of pairs has its own")
    target, chosen_device = Path(target), devices.pick_device(device)
    source = newest_weights(target, calibrated=False) if target.is_dir() else target
    if output is None:
        output = (
            target / "calibrated.safetensors"
            if target.is_dir()
            else target.with_name(f"{target.stem}-calibrated.safetensors")
        )
    check_output(output, (".safetensors",), inputs=[source, pairs, cache])
    state, metadata = weights_module.load(source)
    if metadata.get("training", {}).get("kind") != "lightglue":
        raise ArgumentError(f"{source} does not hold LightGlue weights of ours")
    trained_on = PairConfig.from_dict(metadata["training"].get("pairs"))
    if features is not None:
        trained_on = replace(trained_on, features=features)
    matcher = LightGlue(trained_on.extractor, chosen_device, weights=str(source), match_threshold=match_threshold)
    needed = calibration.pairs_needed(keep, confidence)
    count = 4 * needed if count is None else count
    listed = None if pairs is None else read_pairs(pairs, images)
    if listed is not None:
        count = len(listed)
    if count < needed:
        raise ArgumentError(
            f"to promise {keep:g} with confidence {confidence:g} takes at least {needed} pairs, not {count}"
        )
    with TemporaryDirectory(ignore_cleanup_errors=True) as temporary:  # Windows keeps a mapped file
        if listed is not None:
            samples = samples_from_pairs(listed, trained_on.features, max_keypoints, device=chosen_device)
        else:
            config = replace(trained_on, keypoints=max_keypoints)
            photos = build_cache(images, cache or Path(temporary) / "photos.cache", long_side=4 * max(config.size) // 3)
            try_extractor(photos, config, torch.device("cpu"))
            seen = metadata["training"].get("photographs") == photos.digest
            different = len(set(photos.sources[photos.held_out if seen else slice(None)].tolist()))
            if different < needed:
                warnings.warn(
                    f"the promise rests on independent pairs: for {keep:g} on at least {needed} photographs; there are "
                    f"{different}{' (held out of the training)' if seen else ''}",
                    stacklevel=2,
                )
            count = CHUNK * math.ceil(count / CHUNK)
            samples = samples_from_photographs(
                photos, config, count, max(LEAST_UNRELATED, count // 4), seed, seen, workers
            )
        result = calibrate(matcher, samples, keep, confidence, expected=count, progress=progress)
    result.config = replace(result.config, match_threshold=matcher.match_threshold)
    if listed is not None:
        result.config = replace(result.config, overlap_threshold=matcher.config.overlap_threshold)
    about = {**result.summary(), "keypoints": max_keypoints, "seed": seed, "weights": weights_module.sha256(source)}
    weights_module.save(output, state, {**metadata, **asdict(result.config), "calibration": about})
    return result, Path(output)
