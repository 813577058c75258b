"""The pairs of a map: what each choice of ``tiepoint map --pairs`` means for the images of a store."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np

from ...errors import InputError
from ...io.exif import order_in_time
from ...io.pair_lists import Pairs, from_list, union
from ..progress import Progress, Report
from .retrieval import describe_images
from .select import by_position, by_retrieval, earth_centred, exhaustive, expand_covisibility, sequential

if TYPE_CHECKING:
    from ..steps.match import Matching
    from ..store import Store

PairChoice = Literal["auto", "exhaustive", "sequential", "retrieval", "position"]
PAIR_CHOICES: tuple[PairChoice, ...] = get_args(PairChoice)

FEW_IMAGES = 100  # of which "auto" matches all pairs
SIMILAR = 20  # partners that each image chooses by image retrieval, or by its position
LOOP = 50  # frames of a video after which a place that is seen again closes a loop
NEAR = 100.0  # metres between photographs that may show the same thing


class ChosenPairs(NamedTuple):
    """What `choose_pairs` decided.

    Attributes
    ----------
    pairs : int32 array (P, 2)
    notes : list of str
        What is worth knowing about the choice, a line each.
    grows : bool
        Whether more pairs follow from those that match: the choice left some out.
    """

    pairs: Pairs
    notes: list[str]
    grows: bool


def choose_pairs(
    store: Store, folder: Path, choice: str | os.PathLike[str], is_video: bool, report: Report
) -> ChosenPairs:
    """Choose which of the images with features to match.

    Parameters
    ----------
    store : Store
    folder : path
        The photographs, whose EXIF times order a sequence.
    choice : PairChoice or path
        See `tiepoint.mapping.map_photographs`.
    is_video : bool
        The images are frames of a video.
    report : callable
        Gets a `Progress` before images are described for retrieval.

    Raises
    ------
    InputError
        Fewer than two images have features, no pair was chosen, or the list cannot be used.
    """
    have = store.has_features()
    images = [image for image in store.images() if image.image_id in have]
    if len(images) < 2:
        raise InputError(f"only {len(images)} photographs have features, and a pair needs two; see what is left out")
    if choice not in PAIR_CHOICES:
        listed = from_list(choice, {image.name: image.image_id for image in store.images()})
        first = "; the first that was not, line {}, names {}".format(*listed.unused[0]) if listed.unused else ""
        note = f"{choice}: used {listed.lines - len(listed.unused)} of {listed.lines} lines{first}"
        return ChosenPairs(listed.pairs, [note], grows=False)
    choice, nearby = _settle(choice, len(images), is_video)
    if choice == "exhaustive":
        return ChosenPairs(exhaustive([image.image_id for image in images]), [], grows=False)

    notes, lists = [], []
    if choice == "sequential":
        ordered, note = order_in_time(folder, [image.name for image in images])
        by_name = {image.name: image for image in images}
        images = [by_name[name] for name in ordered]
        notes += [f"pairs in sequence: {note}"] if note else []
    ids = [image.image_id for image in images]
    located = [image.image_id for image in images if image.position is not None]
    if choice == "position" and not located:
        raise InputError("no photograph says where it was taken (GPS in EXIF); choose its pairs in another way")
    if nearby and located:
        rest = choice == "position" and len(located) < len(ids)
        others = "; the others are paired by image retrieval" if rest else ""
        notes.append(f"GPS: {len(located)} of {len(ids)} photographs say where they were taken{others}")

    if choice == "sequential":
        lists.append(sequential(ids))
        if len(ids) > LOOP:
            lists.append(_by_retrieval(store, ids, report, min_gap=LOOP))
    elif choice == "retrieval":
        lists.append(_by_retrieval(store, ids, report))
    elif len(located) < len(ids):
        alike = _by_retrieval(store, ids, report)
        lists.append(alike[~np.isin(alike, located).all(axis=1)])
    if nearby:
        places = earth_centred([image.position or (np.nan, np.nan, np.nan) for image in images])
        lists.append(by_position(ids, places, SIMILAR, NEAR))
    chosen = union(*lists)
    if not len(chosen):
        raise InputError(
            f"no pairs of the {len(ids)} photographs were chosen ({choice}); choose them in another way, such as "
            "exhaustive"
        )
    return ChosenPairs(chosen, notes, grows=True)


def expected_pairs(choice: str | os.PathLike[str], images: int, is_video: bool) -> tuple[int, bool]:
    """Return how many pairs a choice begins with, at most, and whether these are all there are.

    Parameters
    ----------
    choice : PairChoice or path
    images : int
        How many there are.
    is_video : bool
        They are frames of a video.

    Examples
    --------
    >>> expected_pairs("auto", 11, False), expected_pairs("auto", 1000, False)
    ((55, True), (20000, False))
    """
    if choice not in PAIR_CHOICES:
        with Path(choice).open("rb") as lines:
            return sum(1 for _ in lines), False
    choice, _ = _settle(choice, images, is_video)
    if choice == "exhaustive":
        return images * (images - 1) // 2, True
    if choice == "sequential":
        return len(sequential(range(images))) + (images * SIMILAR if images > LOOP else 0), False
    return images * SIMILAR, False


def _settle(choice: str | os.PathLike[str], images: int, is_video: bool) -> tuple[str | os.PathLike[str], bool]:
    """Return what "auto" stands for, and whether images near each other by GPS are paired too."""
    if choice != "auto":
        return choice, choice == "position"
    settled = "sequential" if is_video else "exhaustive" if images <= FEW_IMAGES else "retrieval"
    return settled, settled == "retrieval"


def match_chosen(
    store: Store, chosen: ChosenPairs, match: Callable[[Pairs], Matching]
) -> tuple[tuple[Matching, ...], Pairs]:
    """Match the chosen pairs; return what was done in each round, and all pairs that were matched.

    Where the choice grows, rounds follow until no new pair does: ten pairs an image, and what follows from them, then
    hold what all pairs would. Each round follows from the pairs of this run, whatever else is in the store, so that an
    interrupted run chooses the same.
    """
    pairs, done = chosen.pairs, [match(chosen.pairs)]
    while chosen.grows:
        tried = set(map(tuple, pairs.tolist()))
        verified = {pair: inliers for pair, inliers in store.verified_pairs().items() if pair in tried}
        more = expand_covisibility(verified, tried)
        if not len(more):
            break
        done.append(match(more))
        pairs = union(pairs, more)
    return tuple(done), pairs


def _by_retrieval(store: Store, ids: list[int], report: Report, min_gap: int = 1) -> Pairs:
    """Pair the images that look most alike."""
    report(Progress("describing", 0, len(ids)))
    described, looks = describe_images(store)
    row = {image_id: i for i, image_id in enumerate(described.tolist())}
    return by_retrieval(ids, looks[[row[image_id] for image_id in ids]], SIMILAR, min_gap)
