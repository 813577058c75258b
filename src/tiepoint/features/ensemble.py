"""Several extractors as one: ``cairn+sift`` finds the keypoints of both.

The `Features` of an ensemble hold one block of keypoints after another, in the order of its members. A descriptor of
member k of K has its numbers in the k-th of K equal blocks of columns, and zeros elsewhere; it remains a unit vector.
So each row tells which member made it, also after rows were selected or stored, and descriptors of two members are
never similar. `part` takes the features of one member out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ArgumentError
from ..io.images import ImageSource, read_image
from ..types import Features
from .base import Extractor
from .tiling import concatenate


class Ensemble(Extractor):
    """The keypoints of several extractors.

    Options hold for each member: ``max_keypoints=2048`` keeps the best 2048 of each. Keypoints have the scale and
    orientation that their member measures, and 1 and 0 where it measures none; and the covariances that it predicts, or
    those of `Extractor.with_covariances`.

    Parameters
    ----------
    members : sequence of Extractor
        Of different names, with real descriptors.

    Raises
    ------
    ArgumentError
        Fewer than two members, or two of the same name.

    Examples
    --------
    >>> import numpy as np, tiepoint as tp
    >>> image = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    >>> both = tp.features.load("cairn+sift", max_keypoints=20)
    >>> both.name, len(both(image))
    ('cairn+sift', 40)
    """

    default_threshold: ClassVar[float] = 0.0

    def __init__(self, members: Sequence[Extractor]) -> None:
        names = [member.name for member in members]
        if len(set(names)) < max(2, len(names)):
            raise ArgumentError(f"an ensemble is made of different extractors, not of {'+'.join(names)}")
        super().__init__(members[0].options, members[0].device)
        self.members = tuple(members)
        self.name = "+".join(names)  # type: ignore[misc]  # of every other extractor it is the class's

    @property
    def is_network(self) -> bool:
        """Whether one of the members is."""
        return any(member.is_network for member in self.members)

    def with_options(self, **changes: Any) -> Ensemble:
        """Return the ensemble with other options of every member."""
        return Ensemble([member.with_options(**changes) for member in self.members])

    def __call__(self, image: ImageSource, mask: ImageSource | None = None) -> Features:
        """Extract the features of one image by every member, see `Extractor.__call__`."""
        picture = read_image(image, mask, bands=self.options.bands)
        return _join([member.with_covariances(member(picture)) for member in self.members], self.name)

    def _extract(self, pixels: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> Features:
        raise NotImplementedError("the members extract")


def _join(parts: Sequence[Features], name: str) -> Features:
    """Put the features of the members of an ensemble together."""
    for part in parts:
        if part.is_binary:
            raise ArgumentError(f"{part.extractor} has binary descriptors, which {name} cannot hold beside real ones")
    width = max(part.descriptors.shape[1] for part in parts)
    some = {key: any(getattr(part, key) is not None for part in parts) for key in ("scales", "orientations")}
    blocks = []
    for k, part in enumerate(parts):
        descriptors = part.descriptors.new_zeros(len(part), len(parts) * width)
        descriptors[:, k * width : k * width + part.descriptors.shape[1]] = part.descriptors
        scales = torch.ones_like(part.scores) if part.scales is None and some["scales"] else part.scales
        flat = part.orientations is None and some["orientations"]
        orientations = torch.zeros_like(part.scores) if flat else part.orientations
        block = replace(part, extractor=name, descriptors=descriptors, scales=scales, orientations=orientations)
        blocks.append(block.to(parts[0].device))
    return concatenate(blocks)


def part(
    features: Features, members: Sequence[str], k: int, columns: int | None = None
) -> tuple[Features, torch.Tensor]:
    """Return what one member of an ensemble found.

    Parameters
    ----------
    features : Features
        Of an `Ensemble`.
    members : sequence of str
        Names of all its members.
    k : int
        Which of them.
    columns : int, optional
        How many numbers its descriptors have; without, zeros may follow them.

    Returns
    -------
    Features, int64 tensor (N,)
        Those of that member, and their rows in ``features``.
    """
    width = features.descriptors.shape[1] // len(members)
    owners = features.descriptors.unflatten(1, (len(members), width)).abs().amax(2).argmax(1)
    rows = torch.nonzero(owners == k).flatten()
    begin = k * width
    own = features.select(rows)
    return replace(own, extractor=members[k], descriptors=own.descriptors[:, begin : begin + (columns or width)]), rows


__all__ = ["Ensemble", "part"]
