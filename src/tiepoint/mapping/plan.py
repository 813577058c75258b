"""What a map is going to do and how long that takes, said before the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..features import Extractor
from ..io.folders import mask_of
from ..matchers import Matcher
from ..matchers.best_first import BEST, BestFirst
from ..types import Features
from .pairs.choose import SIMILAR, expected_pairs
from .quality import Quality
from .steps.extract import IMAGES_PER_PROCESS
from .store import Store
from .workers import cores

if TYPE_CHECKING:
    from .settings import MapSettings

SLOW = 600.0  # seconds of matching from which on other pairs are worth a thought
# Seconds that a model takes for each keypoint of a photograph: 1.3e-4 to 2.6e-4 for 11 photographs in all qualities
# (AMD EPYC, one thread, 2026-12-01). Some hundred photographs take longer: adjusting all of them is not linear.
MODEL = 2e-4


@dataclass(frozen=True)
class Plan:
    """What a map is about to do, and about how long that takes.

    Attributes
    ----------
    quality : Quality
    chosen : dict
        What the quality chose, the caller having left it open.
    photographs, pairs : int
        To be extracted, and to be matched in the first round; the latter is an upper bound unless all are matched.
    fewer_pairs : int
        An upper bound for what image retrieval would begin with instead of all pairs; 0 if not all pairs are matched.
    seconds : (float, float, float) or None
        Of features and of matches, from a measurement on two photographs, and of the model, roughly (`MODEL`); None
        where an earlier run was at work, as what is left is not known.
    """

    quality: Quality
    chosen: dict[str, Any]
    photographs: int
    pairs: int
    fewer_pairs: int
    seconds: tuple[float, float, float] | None

    def lines(self) -> list[str]:
        """Return the plan in words, a line each."""
        words = {name: _word(value) for name, value in self.chosen.items()}
        if "best_first" in words:
            words["first_pass"] = f"{words.pop('best_first')}, {words['first_pass']} where these leave a doubt"
        chosen = ", ".join(f"{name.replace('_', ' ')} {word}" for name, word in words.items())
        what = f"{self.photographs} photographs, {'' if self.fewer_pairs else 'up to '}{self.pairs} pairs"
        lines = [f"quality {self.quality}: {what}{'; ' if chosen else ''}{chosen}"]
        if self.seconds is None:
            return lines
        lines.append(
            f"about {in_words(sum(self.seconds))}, estimated from two of the photographs: features "
            f"{in_words(self.seconds[0])}, matches {in_words(self.seconds[1])}, model {in_words(self.seconds[2])}"
        )
        if self.seconds[1] > SLOW and 0 < self.fewer_pairs < self.pairs:
            fewer = self.seconds[1] * self.fewer_pairs / self.pairs
            lines.append(
                f"{in_words(self.seconds[1])} of that for all pairs: --pairs retrieval, or --pairs sequential if they "
                f"were taken one after the other, begins with at most {self.fewer_pairs}, about {in_words(fewer)}"
            )
        return lines


def make_plan(
    store: Store,
    asked: MapSettings,
    folder: Path,
    names: Sequence[str],
    is_video: bool,
    extractor: Extractor,
    matcher: Matcher,
    first_pass: int | None,
) -> Plan:
    """Make the plan of a map; where nothing was done yet, extract two photographs to see how long it takes.

    Parameters
    ----------
    store : Store
        Holds the photographs. Nothing was done yet if it holds no features; it then gets those of the two.
    asked : MapSettings
    folder : path
        Of the photographs.
    names : sequence of str
        Those of the photographs, two at least.
    is_video : bool
        They are frames of a video.
    extractor, matcher : Extractor, Matcher
    first_pass : int or None
        Keypoints that the matcher gets; None is all.
    """
    count = len(names)
    pairs, all_pairs = expected_pairs(asked.pairs, count, is_video)
    seconds = None
    if not store.has_features():
        images = {image.name: image for image in store.images()}

        def extract(number: int) -> Features:
            image = images[names[number * count // 2]]  # the first, and one from the middle
            features = extractor(folder / image.name, mask_of(asked.masks, image.name))
            if features.image_size == image.size:  # else it has changed since it was registered
                store.write_features([(image.image_id, features)])
            return features

        with suppress(InputError):  # such a photograph is named when its turn comes
            one, pair, keypoints = seconds_of_one(extract, matcher, first_pass)
            at_once = 1 if extractor.is_network else min(asked.workers or cores(), count // IMAGES_PER_PROCESS)
            seconds = one * count / max(1, at_once), pair * pairs, MODEL * keypoints * count
    chosen = dict(asked.chosen)
    if first_pass is not None:
        chosen |= {"first_pass": first_pass} | ({"best_first": BEST} if isinstance(matcher, BestFirst) else {})
    chosen["second_pass"] = asked.preset.second_pass
    return Plan(asked.quality, chosen, count, pairs, min(pairs, count * SIMILAR) if all_pairs else 0, seconds)


def seconds_of_one(
    extract: Callable[[int], Features], matcher: Matcher, first_pass: int | None
) -> tuple[float, float, int]:
    """Return how long one photograph and one pair take, and the number of keypoints of a photograph.

    ``extract`` gets 0 and 1, the numbers of two photographs.
    """
    found, begin = [], 0.0
    for number in (0, 1):  # the first also loads code and weights
        begin = time.perf_counter()
        found.append(extract(number))
    extraction = time.perf_counter() - begin
    first, second = (one.first(first_pass) for one in found)
    begin = time.perf_counter()
    matcher.match_many([(first, second)])
    return extraction, time.perf_counter() - begin, max(len(one) for one in found)


def in_words(seconds: float) -> str:
    """Return a duration as people say it.

    Examples
    --------
    >>> in_words(4.2), in_words(200), in_words(9000)
    ('4 s', '3 min', '2.5 h')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _word(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
