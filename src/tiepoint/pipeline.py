"""Choose an extractor and a matcher that belong together, and load them.

`choose` decides what ``"auto"`` means on this machine, from names alone; `load` also loads what was chosen. All
parts of tiepoint that extract and match use it, so that ``"auto"`` and ``name@FILE`` mean the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import NamedTuple

import torch

from . import features as extractors
from . import matchers, names, weights
from .devices import pick_device
from .errors import ArgumentError
from .features import Extractor, ExtractorOptions
from .matchers import Matcher
from .runtimes import is_exported


@dataclass(frozen=True)
class Choice:
    """An extractor and a matcher that belong together, and what has to be on the machine for them."""

    features: str
    matcher: str
    package: str | None = None

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights that both need."""
        names = self.features, weights.WEIGHTS_FOR.get(self.matcher, {}).get(self.features)
        return tuple(name for name in names if name in weights.entries())

    def is_usable(self) -> bool:
        """Whether everything is here and its licences allow any use, commercial use included."""
        if self.package is not None and find_spec(self.package) is None:
            return False
        return all(map(_may_use, self.weights))


def _may_use(name: str) -> bool:
    """Whether weights are here and their licence allows commercial use."""
    known = weights.entries()
    return name in known and known[name].commercial and weights.available(name)


# What "auto" means: the first usable one of these. Ours comes first: always there, quick on a CPU, good at any roll.
PREFERENCES = (
    Choice("cairn", "lightglue"),
    Choice("sift", "lightglue"),
    Choice("aliked-n16", "lightglue"),
    Choice("disk", "lightglue", "kornia"),
    Choice("xfeat", "lightglue", "kornia"),
    Choice("sift", "nearest"),
)


class Pipeline(NamedTuple):
    """A loaded extractor and matcher, and one line that says what was chosen and why."""

    extractor: Extractor
    matcher: Matcher
    choice: str


def choose(features: str = "auto", matcher: str = "auto") -> tuple[str, str, str]:
    """Decide what ``"auto"`` means on this machine.

    Parameters
    ----------
    features, matcher : str
        A name, which is kept, also with weights of one's own (``name@FILE``), or ``"auto"``. Names joined by ``+`` are
        an ensemble (`tiepoint.features.ensemble`).

    Returns
    -------
    features, matcher, why : str
        The two names and one line that says what was picked and why.

    Raises
    ------
    ArgumentError
        Unknown matcher; or only weights that forbid commercial use would do, which have to be asked for by name.

    Examples
    --------
    >>> choose("orb", "auto")
    ('orb', 'nearest', 'orb + nearest: no trained matcher exists for orb features')
    """
    if features != "auto" and matcher != "auto":
        return features, matcher, f"{features} + {matcher}, as asked"
    members = names.split(features, extractors.names())
    if len(members) > 1:
        chosen = [choose(member)[1] for member in members]
        matcher = chosen[0] if len(set(chosen)) == 1 else "+".join(chosen)
        return features, matcher, f"{features} + {matcher}: the best matcher for each of these features"
    if features != "auto":
        name = weights.WEIGHTS_FOR["lightglue"].get(features)
        if name is not None and _may_use(name):
            return features, "lightglue", f"{features} + lightglue: the best matcher for these features"
        folder = names.weights_file(features)
        if is_exported(folder):
            return features, f"lightglue@{folder}", f"{features} + lightglue@{folder}: exported together"
        why = f"no trained matcher exists for {features} features"
        if "@" in features:
            why = "name the matcher that was trained on these weights, if there is one"
        if name is not None:
            why = f"no {name} weights on this machine that allow commercial use"
        return features, "nearest", f"{features} + nearest: {why}"
    known = weights.entries()
    offers = [c for c in PREFERENCES if matcher in ("auto", c.matcher) and known.keys() >= set(c.weights)]
    if not offers:
        if matcher.partition("@")[0] not in matchers.names():
            raise ArgumentError(f"no matcher is called {matcher!r}; there are: {', '.join(matchers.names())}")
        if "@" in matcher:
            raise ArgumentError(f"name the features that {matcher} was trained on")
        raise ArgumentError(
            f"'auto' picks nothing that forbids commercial use, and the matcher {matcher!r} has nothing else; "
            "name the features, e.g. features='superpoint'"
        )
    # If nothing is usable, loading the first offer says what is missing and how to get it.
    pick = next((offer for offer in offers if offer.is_usable()), offers[0])
    if pick.weights:
        why = "the first choice of what is on this machine and allows commercial use"
    elif matcher == "auto":
        why = "no trained weights on this machine; see 'tiepoint weights list' for better ones"
    else:
        why = f"the best features for the matcher {matcher}"
    return pick.features, pick.matcher, f"{pick.features} + {pick.matcher}: {why}"


def load(
    features: str | Extractor = "auto",
    matcher: str | Matcher = "auto",
    device: torch.device | str | None = "auto",
    options: ExtractorOptions | None = None,
) -> Pipeline:
    """Load an extractor and the matcher for its features.

    Parameters
    ----------
    features : str or Extractor
        A name as `choose` takes it, or an extractor that is already loaded: it is kept, with its own options.
    matcher : str or Matcher
        The same for the matcher.
    device : torch.device or str
        Where networks run, as `tiepoint.features.load` takes it.
    options : ExtractorOptions, optional
        Of an extractor that is loaded here.

    Returns
    -------
    Pipeline
        ``extractor``, ``matcher`` and ``choice``, one line that says what was picked and why.

    Raises
    ------
    ArgumentError
        An unknown name or device, or an option out of range.
    WeightsError
        What was asked for needs weights that are not on this machine; nothing is downloaded here.
    MissingDependencyError
        It needs an optional package.

    Examples
    --------
    >>> extractor, matcher, choice = load("orb", options=ExtractorOptions(max_keypoints=100))
    >>> extractor.options.max_keypoints, matcher.name
    (100, 'nearest')
    """
    pick_device(device)  # a wrong one is said before anything is loaded
    feature_name, matcher_name, why = choose(
        features if isinstance(features, str) else features.name,
        matcher if isinstance(matcher, str) else matcher.name,
    )
    if isinstance(features, str):
        features = extractors.load(feature_name, device=device, **vars(options or ExtractorOptions()))
    if isinstance(matcher, str):
        matcher = matchers.load(matcher_name, features=feature_name, device=device)
    return Pipeline(features, matcher, why)


def another(extractor: Extractor) -> Callable[[], tuple[Extractor, Matcher]] | None:
    """Return what loads the first usable one of `PREFERENCES` with another extractor than this, or None.

    It has the number of keypoints and the long side of ``extractor``, and its own threshold and radius.
    """
    here = names.split(extractor.name, extractors.names())
    other = next((choice for choice in PREFERENCES if choice.features not in here and choice.is_usable()), None)
    if other is None:
        return None
    options = replace(extractor.options, detection_threshold=None, nms_radius=None)
    return lambda: load(other.features, other.matcher, extractor.device, options)[:2]


def weights_files(*parts: str | Extractor | Matcher) -> list[str]:
    """Return the files that names of extractors and matchers hold: FILE of ``cairn@FILE``; none of what is loaded.

    Examples
    --------
    >>> weights_files("cairn@mine.safetensors+sift", "lightglue", "superglue@theirs.pth")
    ['mine.safetensors', 'theirs.pth']
    """
    known = [*extractors.names(), *matchers.names()]
    named = (names.split(part, known) for part in parts if isinstance(part, str))
    return [file for one in named for file in map(names.weights_file, one) if file]
