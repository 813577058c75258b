"""The rungs and their order: `climb`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..devices import plain_torch
from ..errors import ArgumentError
from ..features import Extractor, ExtractorOptions
from ..features.ensemble import Ensemble
from ..geometry import estimate_fundamental, estimate_homography, transform
from ..matchers import Matcher
from ..matchers.base import joined, make_matches
from ..matchers.best_first import BEST
from ..matchers.nearest import NearestNeighbour
from ..matchers.overlay import without_overlay
from ..types import Features, Image, Matches
from .along_lines import AGAIN, INLIER, LEAST, PLANAR, estimate, match_along
from .state import Found, Merge, State, merge
from .views import MARGIN, View, cropped, look, slopes, tilted, working_frame

Effort = Literal["fast", "auto", "thorough"]
EFFORTS: tuple[Effort, ...] = ("fast", "auto", "thorough")

# Many tries find more chance agreements: for the verdict, a try after the plain passes needs this many times the
# evidence at which the matcher alone calls two photographs overlapping. Of 39 unrelated pairs (1024 keypoints, all
# rungs) two were called overlapping with 1, none with 1.5 or more.
LATER = 3.0

# Evidence at which "auto" is content, chosen for Cairn with LightGlue by `benchmarks/effort.py` on a few pairs of each
# set. The best 512 keypoints reach 60 to 311 on entry, fountain, kitti, 7scenes and lund_door, with errors of the pose
# that no further try makes smaller; below, the errors are sometimes several degrees. On a plane a second pass halves
# the error of graf's homographies (evidence 16 to 210); those of kodak (205 to 306) get better by 0.01 to 0.05 pixels.
EASY, SOLVED = 300.0, 60.0
HOMOGRAPHY_THRESHOLD = 6.0  # working pixels: loose, because a scene is seldom a plane
# A plane with this many times the evidence of a scene replaces it, because such a scene is made of chance agreements.
# Where both are right (six pairs of 7scenes) the plane has at most 3 times; beside a chance scene of the tests, 14.
FLATTER = 5.0
CLOSER = 1.25  # a zoom that enlarges neither photograph by as much is not worth its cost
COARSE_SIDE, COARSE_KEYPOINTS = 512, 256  # of the views that only vote
VIEW_PAIRS, VIEW_KEYPOINTS = 3, 1024  # pairs of views that the matcher sees; a second pass follows, with all keypoints

Rung = Callable[[State], State]


@plain_torch()
def climb(state: State, effort: Effort, budget: float | None = None, spent: float = 0.0) -> State:
    """Try rung after rung.

    Parameters
    ----------
    state : State
        From `State.begin`.
    effort : {"fast", "auto", "thorough"}
        One pass on all keypoints; rungs until the evidence is enough, see `LADDER`; or all rungs.
    budget : float, optional
        No rung but the first begins after this many seconds.
    spent : float
        Seconds of the budget that are gone already.

    Returns
    -------
    State
        ``climb(state.swapped(), ...)`` is exactly ``climb(state, ...).swapped()``, unless the budget ends it.

    Raises
    ------
    ArgumentError
        Unknown effort, or a budget that is not a positive number.

    Examples
    --------
    >>> import tiepoint as tp
    >>> noise = np.random.default_rng(0).integers(0, 255, (60, 80), dtype=np.uint8)
    >>> photo = tp.read_image(np.kron(noise, np.ones((4, 4), np.uint8)))
    >>> sift, nearest = tp.features.load("sift"), tp.matchers.load("nearest", features="sift")
    >>> state = climb(State.begin((photo, photo), sift, nearest), "auto")
    >>> [attempt.name for attempt in state.attempts]
    ['best keypoints']
    """
    check(effort, budget)
    deadline = np.inf if budget is None else time.perf_counter() + budget - spent
    if effort == "fast":
        return all_keypoints(state)
    if _order(state.images[1]) < _order(state.images[0]):
        return _climb(state.swapped(), effort, deadline).swapped()
    return _climb(state, effort, deadline)


def check(effort: str, budget: float | None) -> None:
    """Raise `ArgumentError` for what `climb` does not take."""
    if effort not in EFFORTS:
        raise ArgumentError(f"no effort is called {effort!r}; there are: {', '.join(EFFORTS)}")
    if budget is not None and not budget > 0:
        raise ArgumentError(f"budget must be a positive number of seconds, not {budget}")
    if budget is not None and effort == "fast":
        raise ArgumentError("a budget bounds the further tries of effort 'auto' and 'thorough'; 'fast' has none")


def _climb(state: State, effort: Effort, deadline: float) -> State:
    for rung, limit in LADDER:
        if state.attempts and time.perf_counter() >= deadline:
            break
        enough = state.evidence >= limit or (state.evidence >= SOLVED and is_scene(state))
        if effort == "auto" and enough:
            break
        state = rung(state)
    return state


def _rung(name: str, stronger: Merge, weaker: Merge) -> Callable[[Callable[[State], Sequence[Found]]], Rung]:
    """Make a rung of a function that finds matches; it finds nothing at all where it does not apply.

    What it found replaces the earlier matches, joins them or is dropped: ``stronger`` if its evidence is at least that
    of the state, else ``weaker``. A try that sees no overlap does not join others that do: it would add chance
    agreements. A try that sees one plane does not replace matches of a scene, but joins them, unless it has far more
    evidence: a plane alone hardly gives a pose.
    """

    def decorate(find: Callable[[State], Sequence[Found]]) -> Rung:
        @wraps(find)
        @plain_torch()
        def rung(state: State) -> State:
            begin = time.perf_counter()
            found = [_without_overlay(state, part) for part in find(state)]
            if not found:
                return state
            evidence = max(part.evidence for part in found)
            how = stronger if evidence >= state.evidence else weaker
            if how == "join" and state.matches.overlaps and all(part.matches.overlaps is False for part in found):
                how = "drop"
            after = merge(state, name, found, begin, how)
            if how == "replace" and evidence < FLATTER * state.evidence and is_scene(state) and not is_scene(after):
                return merge(state, name, found, begin, "join")
            return after

        return rung

    return decorate


@_rung("best keypoints", stronger="replace", weaker="drop")
def best_keypoints(state: State) -> Sequence[Found]:
    """Match the best 512 keypoints of each photograph, and the others where the geometry of these puts them.

    It does not apply to an ensemble, whose keypoints come one extractor after the other.
    """
    if max(state.detected) <= BEST or isinstance(state.extractor, Ensemble):
        return []
    return [_match_best(state, (View(state.own(0)), View(state.own(1))))]


@_rung("all keypoints", stronger="replace", weaker="drop")
def all_keypoints(state: State) -> Sequence[Found]:
    """Match all keypoints of the photographs as they are."""
    found = state.matcher(state.own(0), state.own(1))
    return [Found(found, found.evidence)]


@_rung("second pass", stronger="replace", weaker="join")
def second_pass(state: State) -> Sequence[Found]:
    """Warp one photograph into the frame of the other by the dominant homography, and match again.

    The photograph that the homography shrinks is warped, so that no detail has to be invented. The best keypoints are
    matched as in `best_keypoints`, and all where these are not enough. A second pass over unchanged matches does not
    apply.
    """
    attempts = state.attempts
    before = [i for i, attempt in enumerate(attempts) if attempt.name == "second pass"]
    if before and not any(attempt.kept for attempt in attempts[before[-1] + 1 :]):
        return []
    points0, points1 = state.matches.points0, state.matches.points1
    scales = [working_frame(image.size, state.extractor.options)[1] for image in state.images]
    estimate = estimate_homography(points0, points1, HOMOGRAPHY_THRESHOLD / float(np.sqrt(np.linalg.det(scales[1]))))
    if estimate.model is None:
        return []
    H = estimate.model * np.sign(np.linalg.det(estimate.model))
    centre = points0[estimate.inliers].mean(axis=0, keepdims=True)
    growth = np.linalg.det(slopes(scales[1] @ H @ np.linalg.inv(scales[0]), transform(scales[0], centre))[0])
    side = 0 if growth <= 1 else 1
    size, scale = working_frame(state.images[1 - side].size, state.extractor.options)
    warp = scale @ (H if side == 0 else np.linalg.inv(H))
    view = look(_unresized(state.extractor), state.images[side], warp, size)
    views = (view, View(state.own(1))) if side == 0 else (View(state.own(0)), view)
    best = None if isinstance(state.extractor, Ensemble) else _match_best(state, views)
    if best is None or best.evidence < max(SOLVED, state.evidence):
        return _match_views(state.matcher, [views])
    return [replace(best, matches=_judged(state.matcher, best.matches, best.evidence))]


@_rung("zoom", stronger="join", weaker="join")
def zoom(state: State) -> Sequence[Found]:
    """Match again what both photographs show, enlarged to the working size, and so to one scale in both.

    It does not apply where that is nearly all of either photograph.
    """
    common = estimate(*_working_points(state))
    if common is None:
        return []
    frames = [working_frame(image.size, state.extractor.options) for image in state.images]
    points = state.matches.points0, state.matches.points1
    views, largest = [], 1.0
    for side, (image, (working, frame)) in enumerate(zip(state.images, frames, strict=True)):
        warp, size = cropped(image.size, points[side][common.inliers], max(working))
        factor = float(np.linalg.det(warp) / np.linalg.det(frame)) ** 0.5
        largest = max(largest, factor)
        enlarges = factor >= CLOSER and min(size) >= max(state.extractor.min_side, 2 * MARGIN + 2)
        extractor = _unresized(state.extractor)
        views.append(look(extractor, image, warp, size) if enlarges else View(state.own(side)))
    return [] if largest < CLOSER else _match_views(state.matcher, [(views[0], views[1])])


@_rung("synthetic views", stronger="replace", weaker="drop")
def synthetic_views(state: State) -> Sequence[Found]:
    """Match both photographs as they would look from the side.

    All pairs of views vote by the nearest neighbours of few keypoints of small views; the matcher sees only the few
    pairs with most votes, at full size.
    """
    quick = _unresized(state.extractor, COARSE_KEYPOINTS)
    small = ExtractorOptions(long_side=min(COARSE_SIDE, state.extractor.options.long_side or COARSE_SIDE))
    voters: list[dict[int, Features]] = [{}, {}]
    for side, image in enumerate(state.images):
        for i, (warp, size) in enumerate(tilted(image.size, small)):
            if min(size) >= max(quick.min_side, 2 * MARGIN + 2):
                voters[side][i] = look(quick, image, warp, size).features
    pairs = [(i, j) for i, j in product(*voters) if i or j]
    voter = NearestNeighbour(quick.name, state.matcher.device, ratio=None)
    votes = [m.evidence for m in voter.match_many([(voters[0][i], voters[1][j]) for i, j in pairs])]
    ranking = sorted(range(len(pairs)), key=lambda p: -votes[p])
    best = [pairs[p] for p in ranking[:VIEW_PAIRS] if votes[p] > 0]

    full = _unresized(state.extractor, VIEW_KEYPOINTS)
    views: list[dict[int, View]] = [{0: View(state.own(side).first(VIEW_KEYPOINTS))} for side in (0, 1)]
    for side, image in enumerate(state.images):
        warps = tilted(image.size, state.extractor.options)
        for i in {pair[side] for pair in best} - {0}:
            views[side][i] = look(full, image, *warps[i])
    return _match_views(state.matcher, [(views[0][i], views[1][j]) for i, j in best])


@_rung("second extractor", stronger="join", weaker="join")
def second_extractor(state: State) -> Sequence[Found]:
    """Add what another extractor and its matcher find."""
    if state.second is None:
        return []
    extractor, matcher = state.second()
    first, second = extractor(state.images[0]), extractor(state.images[1])
    found = matcher(first, second)
    features = extractor.with_covariances(first), extractor.with_covariances(second)
    return [Found(_judged(matcher, found, found.evidence), found.evidence, features)]


@_rung("guided", stronger="join", weaker="join")
def guided(state: State) -> Sequence[Found]:
    """Look for the partners of the other keypoints along their epipolar lines, see `tiepoint.effort.along_lines`.

    It does not apply where no try saw an overlap: any two photographs have keypoints that agree with some geometry.
    """
    if state.matches.overlaps is False:
        return []
    found = match_along(state.features, state.matches, (state.own(0), state.own(1)), _frames(state))
    return [] if found is None else [Found(found, 0.0)]


# The rungs in order, and the evidence at which "auto" ends before each. The pose of a scene is settled as soon as it is
# solved; where the matches lie on one plane, a second pass makes its homography more precise, so that only the easiest
# planes go without.
LADDER: tuple[tuple[Rung, float], ...] = (
    (best_keypoints, SOLVED),
    (second_pass, EASY),
    (all_keypoints, SOLVED),
    (second_pass, SOLVED),
    (zoom, SOLVED),
    (synthetic_views, SOLVED),
    (second_pass, SOLVED),
    (second_extractor, SOLVED),
    (guided, SOLVED),
)


def is_scene(state: State) -> bool:
    """Whether the matches agree with an epipolar geometry, and too few of them, even loosely, with one plane."""
    points = _working_points(state)
    scene = estimate_fundamental(*points, INLIER, max_iterations=AGAIN).inliers.sum()
    plane = estimate_homography(*points, HOMOGRAPHY_THRESHOLD, max_iterations=AGAIN).inliers.sum()
    return bool(scene >= LEAST and plane < PLANAR * scene)


def _working_points(state: State) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the points of the matches in working pixels."""
    frames = _frames(state)
    return transform(frames[0], state.matches.points0), transform(frames[1], state.matches.points1)


def _without_overlay(state: State, found: Found) -> Found:
    """Leave out matches of a clock or a logo that is burnt into both photographs."""
    features0, features1 = (state.own(i) if part is None else part for i, part in enumerate(found.features))
    kept = without_overlay(found.matches, features0, features1)
    if kept is found.matches:
        return found
    evidence = max(0.0, found.evidence - (found.matches.evidence - kept.evidence))
    if found.matches.overlaps:  # it may have been the overlay that overlapped
        kept = _judged(state.matcher, kept, evidence)
    return replace(found, matches=kept, evidence=evidence)


def _match_views(matcher: Matcher, pairs: Sequence[tuple[View, View]]) -> list[Found]:
    results = matcher.match_many([(a.features, b.features) for a, b in pairs])
    return [
        Found(_judged(matcher, found, found.evidence), found.evidence, (a.original, b.original))
        for found, (a, b) in zip(results, pairs, strict=True)
    ]


def _match_best(state: State, views: tuple[View, View]) -> Found:
    """Match the best keypoints of two views, and the others where the geometry of these puts them.

    The network's work grows with the square of the number of keypoints; a search along epipolar lines costs a tenth.
    """
    found = state.matcher(views[0].features.first(BEST), views[1].features.first(BEST))
    seen = [view.features if view.original is None else view.original for view in views]
    pixels = make_matches(seen[0], seen[1], found.indices, found.scores)
    more = None
    if found.overlaps is not False:
        more = match_along((seen[0], seen[1]), pixels, (seen[0], seen[1]), _frames(state))
    if more is not None:
        pixels = joined(seen[0], seen[1], pixels, more)
    pixels = replace(pixels, overlaps=found.overlaps, stop_layer=found.stop_layer)
    return Found(pixels, found.evidence, (views[0].original, views[1].original))


def _judged(matcher: Matcher, matches: Matches, evidence: float) -> Matches:
    """Return the matches with the verdict of a later try, see `LATER`."""
    threshold = matcher.overlap_threshold
    return matches if threshold is None else replace(matches, overlaps=evidence > LATER * threshold)


def _frames(state: State) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the matrices from pixels of each photograph to working pixels."""
    first, second = (working_frame(image.size, state.extractor.options)[1] for image in state.images)
    return first, second


def _unresized(extractor: Extractor, max_keypoints: int | None = None) -> Extractor:
    """Return the extractor for pictures that have its working size already."""
    fewest = min((n for n in (extractor.options.max_keypoints, max_keypoints) if n is not None), default=None)
    return extractor.with_options(long_side=None, enlarge=False, max_keypoints=fewest)


def _order(image: Image) -> tuple[tuple[int, int], bytes, bytes]:
    """Return a key that orders photographs by content alone, so that the ladder sees (a, b) and (b, a) alike."""

    def digest(array: NDArray[np.uint8] | None) -> bytes:
        return b"" if array is None else hashlib.blake2b(np.ascontiguousarray(array).data).digest()

    return image.size, digest(image.pixels), digest(image.mask)
