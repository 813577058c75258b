"""The ladder of tries for two photographs: spend more on a pair only while what was found does not convince.

Every rung is a function ``(State) -> State`` that can be called alone. In order:

1. `best_keypoints`: match only the best 512 keypoints of each photograph.
2. `all_keypoints`: match all of them; this alone is ``effort="fast"``.
3. `second_pass`: warp one photograph into the frame of the other by the dominant homography, extract, match, map back.
4. `synthetic_views`: match both photographs as they would look from the side; then a second pass once more.
5. `second_extractor`: add what another extractor and its matcher find.

Keypoints are extracted once per photograph and sorted by score, so that rung 1 matches a prefix of them. A later rung
appends the keypoints that it matched, in pixels of the photograph.

The evidence of a try is the sum of the scores (`Matches.evidence`) of its strongest single call of the matcher. The sum
over a union of calls would count the same structure several times. A rung never lowers the evidence of the state: its
matches replace the earlier ones, join them, or are dropped.

References
----------
J.-M. Morel and G. Yu, ASIFT: a new framework for fully affine invariant image comparison, SIAM J. Imaging Sciences
2 (2), 2009. D. Mishkin, J. Matas and M. Perdoch, MODS: fast and robust method for two-view matching, CVIU 141, 2015.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from itertools import product
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .devices import plain_torch
from .errors import ArgumentError
from .features import Extractor, ExtractorOptions
from .features.base import allowed
from .features.tiling import concatenate
from .geometry import estimate_homography, transform
from .io.images import resize
from .matchers import Matcher
from .matchers.base import make_matches, no_matches
from .matchers.nearest import NearestNeighbour
from .matchers.overlay import without_overlay
from .types import Features, Image, Matches

Effort = Literal["fast", "auto", "thorough"]
EFFORTS: tuple[Effort, ...] = ("fast", "auto", "thorough")

# Many tries find more chance agreements: for the verdict, a try after the plain passes needs this many times the
# evidence at which the matcher alone calls two photographs overlapping. Of 39 unrelated pairs (1024 keypoints, all
# rungs) two were called overlapping with 1, none with 1.5 or more.
LATER = 3.0

# Evidence at which "auto" is content, chosen for Cairn with LightGlue by `benchmarks/effort.py` on a few pairs of each
# set. The best 512 keypoints reach 160 to 311 on kodak, lund_door and entry, where more tries change little, and 16 to
# 210 on graf, where a second pass halves the error. After it, pairs with the right geometry reached 118 or more.
EASY, PRECISE, SOLVED = 250.0, 800.0, 100.0
BEST = 512  # keypoints of the first rung
HOMOGRAPHY_THRESHOLD = 6.0  # working pixels: loose, because a scene is seldom a plane
TILTS = {2.0: 4, 4.0: 8}  # tilt -> number of directions in half a turn
COARSE_SIDE, COARSE_KEYPOINTS = 512, 256  # of the views that only vote
VIEW_PAIRS, VIEW_KEYPOINTS = 3, 1024  # pairs of views that the matcher sees; a second pass follows, with all keypoints
NEAR = 2.0  # working pixels: matches of two tries this close in both photographs are the same match
_MARGIN = 5  # working pixels along the edge of a warped photograph that hold no keypoints
_OPENCV_SIDE = 16_384  # cv2.warpPerspective takes sides below 2^15
_ROWS = 1024  # matches compared with all others at one time, which bounds memory
_FINEST = 8  # samples a pixel, along each axis, at most

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Attempt:
    """What one rung found.

    Attributes
    ----------
    name : str
        The rung.
    matches : int
        Number of its matches.
    evidence : float
        Sum of the scores of its strongest call of the matcher.
    seconds : float
        What it cost.
    kept : int
        How many matches of the result come from it.
    """

    name: str
    matches: int
    evidence: float
    seconds: float
    kept: int


@dataclass(frozen=True, eq=False)
class State:
    """A pair on the ladder.

    Attributes
    ----------
    images : (Image, Image)
        The photographs.
    extractor, matcher : Extractor, Matcher
        What all rungs but the last use.
    features : (Features, Features)
        First the keypoints of the photographs as they are, ``detected`` of each; then those that later rungs matched.
        Where another extractor found them their descriptors are zeros, since its descriptors cannot be compared.
    detected : (int, int)
        How many features come from the photographs as they are.
    matches : Matches
        Indices into ``features``. Pruning and matchability are told only if one pass over all keypoints of the
        photographs as they are made them.
    sources : int64 array (K,)
        Which of ``attempts`` each match comes from.
    attempts : tuple of Attempt
        What was tried, in order.
    second : callable or None
        Loads another extractor and its matcher.
    """

    images: tuple[Image, Image]
    extractor: Extractor
    matcher: Matcher
    features: tuple[Features, Features]
    detected: tuple[int, int]
    matches: Matches
    sources: NDArray[np.int64]
    attempts: tuple[Attempt, ...] = ()
    second: Callable[[], tuple[Extractor, Matcher]] | None = None

    @classmethod
    def begin(
        cls,
        images: tuple[Image, Image],
        extractor: Extractor,
        matcher: Matcher,
        second: Callable[[], tuple[Extractor, Matcher]] | None = None,
    ) -> State:
        """Extract both photographs; nothing is matched yet."""
        features = extractor(images[0]), extractor(images[1])
        nothing = no_matches(*features)
        detected = len(features[0]), len(features[1])
        return cls(images, extractor, matcher, features, detected, nothing, np.zeros(0, np.int64), (), second)

    def swapped(self) -> State:
        """Return the same state with the two photographs exchanged."""
        order = np.argsort(self.matches.indices[:, 1], kind="stable")
        return replace(
            self,
            images=self.images[::-1],
            features=self.features[::-1],
            detected=self.detected[::-1],
            matches=self.matches.swapped(),
            sources=self.sources[order],
        )

    def own(self, side: int) -> Features:
        """Return the keypoints of a photograph as it is."""
        return _first(self.features[side], self.detected[side])

    @property
    def evidence(self) -> float:
        """Evidence of the strongest try so far; 0 if nothing was tried."""
        return max((attempt.evidence for attempt in self.attempts), default=0.0)

    def without_matches(self) -> State:
        """Return the state as `begin` left it, with what has been tried."""
        features = self.own(0), self.own(1)
        return replace(self, features=features, matches=no_matches(*features), sources=np.zeros(0, np.int64))


Rung = Callable[[State], State]
Merge = Literal["replace", "join", "drop"]


@dataclass(frozen=True, eq=False)
class Found:
    """Matches of one call of a matcher, and the features that they index.

    ``features`` are in pixels of the photographs; None stands for the state's own features of that photograph.
    """

    matches: Matches
    features: tuple[Features | None, Features | None] = (None, None)


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
    for rung, enough in LADDER:
        if state.attempts and time.perf_counter() >= deadline:
            break
        if effort == "auto" and state.evidence >= enough:
            break
        state = rung(state)
    return state


def _rung(name: str, stronger: Merge, weaker: Merge) -> Callable[[Callable[[State], Sequence[Found]]], Rung]:
    """Make a rung of a function that finds matches; it finds nothing at all where it does not apply.

    What it found replaces the earlier matches, joins them or is dropped: ``stronger`` if its evidence is at least that
    of the state, else ``weaker``. A try that sees no overlap does not join others that do: it would add chance
    agreements.
    """

    def decorate(find: Callable[[State], Sequence[Found]]) -> Rung:
        @wraps(find)
        @plain_torch()
        def rung(state: State) -> State:
            begin = time.perf_counter()
            found = [_without_overlay(state, part) for part in find(state)]
            if not found:
                return state
            evidence = max(part.matches.evidence for part in found)
            how = stronger if evidence >= state.evidence else weaker
            if how == "join" and state.matches.overlaps and all(part.matches.overlaps is False for part in found):
                how = "drop"
            return _merge(state, name, found, begin, how)

        return rung

    return decorate


@_rung("best keypoints", stronger="replace", weaker="drop")
def best_keypoints(state: State) -> Sequence[Found]:
    """Match the best 512 keypoints of each photograph."""
    if max(state.detected) <= BEST:
        return []
    found = state.matcher(_first(state.own(0), BEST), _first(state.own(1), BEST))
    # They would tell of these keypoints only, not of all that the state holds.
    return [
        Found(replace(found, prune_layer0=None, prune_layer1=None, matchability0=None, matchability1=None)),
    ]


@_rung("all keypoints", stronger="replace", weaker="drop")
def all_keypoints(state: State) -> Sequence[Found]:
    """Match all keypoints of the photographs as they are."""
    return [Found(state.matcher(state.own(0), state.own(1)))]


@_rung("second pass", stronger="replace", weaker="join")
def second_pass(state: State) -> Sequence[Found]:
    """Warp one photograph into the frame of the other by the dominant homography, and match again.

    The photograph that the homography shrinks is warped, so that no detail has to be invented. A second pass over
    unchanged matches does not apply.
    """
    attempts = state.attempts
    before = [i for i, attempt in enumerate(attempts) if attempt.name == "second pass"]
    if before and not any(attempt.kept for attempt in attempts[before[-1] + 1 :]):
        return []
    points0, points1 = state.matches.points0, state.matches.points1
    scales = [_working(image.size, state.extractor.options)[1] for image in state.images]
    estimate = estimate_homography(points0, points1, HOMOGRAPHY_THRESHOLD / float(np.sqrt(np.linalg.det(scales[1]))))
    if estimate.model is None:
        return []
    H = estimate.model * np.sign(np.linalg.det(estimate.model))
    centre = points0[estimate.inliers].mean(axis=0, keepdims=True)
    growth = np.linalg.det(_slopes(scales[1] @ H @ np.linalg.inv(scales[0]), transform(scales[0], centre))[0])
    side = 0 if growth <= 1 else 1
    size, scale = _working(state.images[1 - side].size, state.extractor.options)
    warp = scale @ (H if side == 0 else np.linalg.inv(H))
    view = _look(_unresized(state.extractor), state.images[side], warp, size)
    views = (view, _View(state.own(1))) if side == 0 else (_View(state.own(0)), view)
    return _match_views(state.matcher, [views])


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
        for i, (warp, size) in enumerate(_tilted(image.size, small)):
            if min(size) >= max(quick.min_side, 2 * _MARGIN + 2):
                voters[side][i] = _look(quick, image, warp, size).features
    pairs = [(i, j) for i, j in product(*voters) if i or j]
    voter = NearestNeighbour(quick.name, state.matcher.device, ratio=None)
    votes = [m.evidence for m in voter.match_many([(voters[0][i], voters[1][j]) for i, j in pairs])]
    ranking = sorted(range(len(pairs)), key=lambda p: -votes[p])
    best = [pairs[p] for p in ranking[:VIEW_PAIRS] if votes[p] > 0]

    full = _unresized(state.extractor, VIEW_KEYPOINTS)
    views: list[dict[int, _View]] = [{0: _View(_first(state.own(side), VIEW_KEYPOINTS))} for side in (0, 1)]
    for side, image in enumerate(state.images):
        warps = _tilted(image.size, state.extractor.options)
        for i in {pair[side] for pair in best} - {0}:
            views[side][i] = _look(full, image, *warps[i])
    return _match_views(state.matcher, [(views[0][i], views[1][j]) for i, j in best])


@_rung("second extractor", stronger="join", weaker="join")
def second_extractor(state: State) -> Sequence[Found]:
    """Add what another extractor and its matcher find."""
    if state.second is None:
        return []
    extractor, matcher = state.second()
    features = extractor(state.images[0]), extractor(state.images[1])
    return [Found(_judged(matcher, matcher(*features)), features)]


# The rungs in order, and the evidence at which "auto" ends before each. A second pass costs about as much as the first
# and makes matches more precise, so that only the easiest pairs go without; views and another extractor cost several
# times that, and are for pairs that are not solved.
LADDER: tuple[tuple[Rung, float], ...] = (
    (best_keypoints, np.inf),
    (all_keypoints, EASY),
    (second_pass, PRECISE),
    (synthetic_views, SOLVED),
    (second_pass, PRECISE),
    (second_extractor, SOLVED),
)


# Joining what the rungs found.


def _without_overlay(state: State, found: Found) -> Found:
    """Leave out matches of a clock or a logo that is burnt into both photographs."""
    features0, features1 = (state.own(i) if part is None else part for i, part in enumerate(found.features))
    return replace(found, matches=without_overlay(found.matches, features0, features1))


def _merge(state: State, name: str, found: Sequence[Found], begin: float, how: Merge) -> State:
    """Add what a rung found to the state, and note the attempt."""
    number = len(state.attempts)
    alone = state.without_matches()
    for part in found:
        alone = _add(alone, part, number)
    result = {"replace": alone, "join": state, "drop": state}[how]
    if how == "join":
        for part in found:
            result = _add(result, part, number)
    evidence = max(part.matches.evidence for part in found)
    attempt = Attempt(name, len(alone.matches), evidence, time.perf_counter() - begin, 0)
    kept = np.bincount(result.sources, minlength=number + 1).tolist()
    return replace(
        result,
        matches=replace(result.matches, overlaps=_either(state.matches.overlaps, alone.matches.overlaps)),
        attempts=tuple(replace(a, kept=n) for a, n in zip((*state.attempts, attempt), kept, strict=True)),
    )


def _either(first: bool | None, second: bool | None) -> bool | None:
    """Return the verdict of two tries, of which one may have none."""
    return second if first is None else first if second is None else first or second


def _add(state: State, found: Found, number: int) -> State:
    """Return the union of the state's matches and those found; of rivals the better score stays.

    Rivals are matches that share a keypoint, or that lie within `NEAR` of each other in both photographs.
    """
    old, new = state.matches, found.matches
    if len(old) == 0 and found.features == (None, None):
        return replace(state, matches=new, sources=np.full(len(new), number))
    theirs = [state.own(i) if features is None else features for i, features in enumerate(found.features)]
    i, j = _rivals(state, found, theirs)
    stays = np.ones(len(new), bool)
    stays[j[old.scores[i] >= new.scores[j]]] = False
    remains = np.ones(len(old), bool)
    remains[i[stays[j]]] = False

    both, columns = [], []
    for side in (0, 1):
        rows = new.indices[stays, side]
        if found.features[side] is None:
            both.append(state.features[side])
        else:
            both.append(_appended(state.features[side], theirs[side].select(torch.from_numpy(rows))))
            rows = len(state.features[side]) + np.arange(len(rows))
        columns.append(np.concatenate([old.indices[remains, side], rows]))
    order = np.argsort(columns[0], kind="stable")
    scores = np.concatenate([old.scores[remains], new.scores[stays]])[order]
    sources = np.concatenate([state.sources[remains], np.full(stays.sum(), number)])[order]
    matches = make_matches(both[0], both[1], np.stack(columns, axis=1)[order], scores)
    matches = replace(matches, overlaps=_either(old.overlaps, new.overlaps))
    return replace(state, features=(both[0], both[1]), matches=matches, sources=sources)


def _rivals(state: State, found: Found, theirs: Sequence[Features]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of all rivals: of the state's matches, and of those found."""
    old, new = state.matches, found.matches
    pairs = []
    for begin in range(0, len(old), _ROWS):
        rows = slice(begin, begin + _ROWS)
        near, shared = np.array(True), np.array(False)
        for side in (0, 1):
            image, index = state.images[side], new.indices[:, side]
            points = theirs[side].keypoints.cpu().numpy()[index]
            radius = NEAR / np.sqrt(np.linalg.det(_working(image.size, state.extractor.options)[1]))
            away = np.abs((old.points0, old.points1)[side][rows, None] - points).max(axis=2, initial=0)
            near = near & (away <= radius)
            if found.features[side] is None:
                shared = shared | (old.indices[rows, side, None] == index)
        i, j = np.nonzero(near | shared)
        pairs.append((i + begin, j))
    if not pairs:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate([i for i, _ in pairs]), np.concatenate([j for _, j in pairs])


def _appended(features: Features, more: Features) -> Features:
    """Append keypoints that may come from another extractor; what one of the two does not measure is dropped."""
    if more.extractor != features.extractor:
        nothing = features.descriptors.new_zeros(len(more), features.descriptors.shape[1])
        more = replace(more, extractor=features.extractor, descriptors=nothing)
    optional = ("scales", "orientations", "covariances")
    missing: dict[str, Any] = {
        name: None for name in optional if getattr(features, name) is None or getattr(more, name) is None
    }
    return concatenate([replace(features, **missing), replace(more.to(features.device), **missing)])


def _first(features: Features, count: int) -> Features:
    """Return the ``count`` keypoints with the best scores."""
    return features.select(torch.arange(min(count, len(features))))


def _order(image: Image) -> tuple[tuple[int, int], bytes, bytes]:
    """Return a key that orders photographs by content alone, so that the ladder sees (a, b) and (b, a) alike."""

    def digest(array: NDArray[np.uint8] | None) -> bytes:
        return b"" if array is None else hashlib.blake2b(np.ascontiguousarray(array).data).digest()

    return image.size, digest(image.pixels), digest(image.mask)


# Views of a photograph.


@dataclass(frozen=True, eq=False)
class _View:
    """Features of a warped photograph: in its own pixels, and in pixels of the photograph (None: not warped)."""

    features: Features
    original: Features | None = None


def _match_views(matcher: Matcher, pairs: Sequence[tuple[_View, _View]]) -> list[Found]:
    results = matcher.match_many([(a.features, b.features) for a, b in pairs])
    return [
        Found(_judged(matcher, found), (a.original, b.original)) for found, (a, b) in zip(results, pairs, strict=True)
    ]


def _judged(matcher: Matcher, matches: Matches) -> Matches:
    """Return the matches with the verdict of a later try, see `LATER`."""
    threshold = matcher.overlap_threshold
    return matches if threshold is None else replace(matches, overlaps=matches.evidence > LATER * threshold)


def _unresized(extractor: Extractor, max_keypoints: int | None = None) -> Extractor:
    """Return the extractor for pictures that have its working size already."""
    other = copy.copy(extractor)
    options = extractor.options
    fewest = min((n for n in (options.max_keypoints, max_keypoints) if n is not None), default=None)
    other.options = replace(options, long_side=None, enlarge=False, max_keypoints=fewest)
    return other


def _look(extractor: Extractor, image: Image, warp: Array, size: tuple[int, int]) -> _View:
    """Extract the photograph warped by ``warp`` (3, 3), from its pixels to those of a picture of ``size``."""
    seen = extractor(_warped(image, warp, size))
    back = np.linalg.inv(warp)
    points = transform(back, seen.keypoints.cpu().numpy())
    slopes = torch.from_numpy(_slopes(back, seen.keypoints.cpu().numpy())).to(seen.keypoints)
    inside = ((points >= -0.5) & (points <= np.array(image.size) - 0.5)).all(axis=1)
    keypoints = torch.from_numpy(points).to(seen.keypoints)
    keep = torch.from_numpy(inside).to(seen.device)
    if image.mask is not None:
        keep &= allowed(torch.where(keep[:, None], keypoints, 0), image.mask)
    directions = orientations = None
    if seen.orientations is not None:
        directions = torch.stack([seen.orientations.cos(), seen.orientations.sin()], dim=1)
        directions = (slopes @ directions[:, :, None]).squeeze(2)
        orientations = torch.atan2(directions[:, 1], directions[:, 0])
    original = replace(
        seen,
        keypoints=keypoints,
        image_size=image.size,
        scales=None if seen.scales is None else seen.scales * slopes.det().abs().sqrt(),
        orientations=orientations,
        covariances=None if seen.covariances is None else slopes @ seen.covariances @ slopes.transpose(1, 2),
    )
    return _View(seen.select(keep), original.select(keep))


def _warped(image: Image, warp: Array, size: tuple[int, int]) -> Image:
    """Return the photograph warped; where it shows nothing, or something masked, the mask is 0.

    Where the warp shrinks, several samples a pixel are averaged: along the axis that shrinks, as a tilt needs it.
    """
    width, height = size
    pixels = resize(image.pixels, _OPENCV_SIDE)
    warp = warp @ np.linalg.inv(_scaling(image.size, pixels.shape[1::-1]))
    warp = warp * np.sign(np.linalg.det(warp))
    back = np.linalg.inv(warp)
    grid = np.stack(np.meshgrid(np.linspace(0, width - 1, 9), np.linspace(0, height - 1, 9)), -1).reshape(-1, 2)
    lands = transform(back, grid)
    steps = np.linalg.norm(_slopes(back, grid), axis=1)
    steps = steps[((lands >= 0) & (lands < pixels.shape[1::-1])).all(axis=1)]
    samples = np.clip(np.round(np.median(steps, axis=0)), 1, _FINEST).astype(int) if len(steps) else np.ones(2, int)
    fine = min(int(samples[0]) * width, _OPENCV_SIDE), min(int(samples[1]) * height, _OPENCV_SIDE)

    def draw(source: NDArray[np.uint8], border: int) -> NDArray[np.uint8]:
        drawn = cv2.warpPerspective(
            source, _scaling(size, fine) @ warp, fine, flags=cv2.INTER_LINEAR, borderMode=border
        )
        return np.asarray(cv2.resize(drawn, size, interpolation=cv2.INTER_AREA), np.uint8)

    mask = np.full(pixels.shape[:2], 255, np.uint8) if image.mask is None else image.mask
    if mask.shape != pixels.shape[:2]:
        mask = np.asarray(cv2.resize(mask, pixels.shape[1::-1], interpolation=cv2.INTER_AREA), np.uint8)
    visible = draw((mask == 255).astype(np.uint8) * 255, cv2.BORDER_CONSTANT) == 255
    # Beyond the line that comes from infinity a homography shows the photograph mirrored.
    visible &= back[2, 0] * np.arange(width) + back[2, 1] * np.arange(height)[:, None] + back[2, 2] > 0
    kernel = np.ones((2 * _MARGIN + 1, 2 * _MARGIN + 1), np.uint8)
    eroded = cv2.erode(visible.astype(np.uint8) * 255, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=255)
    return Image(draw(pixels, cv2.BORDER_REPLICATE), np.asarray(eroded, np.uint8), image.name)


def _tilted(size: tuple[int, int], options: ExtractorOptions) -> list[tuple[Array, tuple[int, int]]]:
    """Return warps of a photograph of ``size`` and the sizes of their pictures: upright at working size, then `TILTS`.

    A tilt t in one direction shrinks the photograph by t along it: what a distant plane looks like from the side.
    """
    working, upright = _working(size, options)
    corners = np.array([[0, 0], [working[0], 0], list(working), [0, working[1]]]) - 0.5
    warps = [(upright, working)]
    for tilt, directions in TILTS.items():
        for angle in np.arange(directions) * np.pi / directions:
            direction = np.array([np.cos(angle), np.sin(angle)])
            A = np.eye(3)
            A[:2, :2] -= (1 - 1 / tilt) * np.outer(direction, direction)
            moved = transform(A, corners)
            A[:2, 2] = -0.5 - moved.min(axis=0)
            width, height = np.ceil(np.ptp(moved, axis=0) - 1e-6).astype(int).tolist()
            warps.append((A @ upright, (width, height)))
    return warps


def _working(size: tuple[int, int], options: ExtractorOptions) -> tuple[tuple[int, int], Array]:
    """Return the size at which an extractor works, and the matrix from pixels of the photograph to its pixels."""
    factor = 1.0 if options.long_side is None else options.long_side / max(size)
    if not options.enlarge:
        factor = min(factor, 1.0)
    working = max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
    return working, _scaling(size, working)


def _scaling(before: tuple[int, ...], after: tuple[int, ...]) -> Array:
    """Return the matrix (3, 3) of a resize: its outer edges stay where they are."""
    x, y = after[0] / before[0], after[1] / before[1]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])


def _slopes(H: ArrayLike, points: ArrayLike) -> Array:
    """Return how a homography changes around points (N, 2): Jacobians (N, 2, 2), rows x and y, by differences."""
    at = np.asarray(points, np.float64)
    steps = [transform(H, at + half) - transform(H, at - half) for half in np.eye(2) / 2]
    return np.stack(steps, axis=2)
