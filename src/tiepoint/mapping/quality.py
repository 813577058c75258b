"""``tiepoint map --quality``: what each quality stands for.

The best keypoints of each photograph are matched first, which tells what shows the same place, and gives poses. All
other keypoints then cost little: they are matched along epipolar lines (`tiepoint.mapping.steps.densify`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..effort import Effort
from ..errors import ArgumentError

Quality = Literal["fast", "balanced", "dense"]
QUALITIES: tuple[Quality, ...] = get_args(Quality)


@dataclass(frozen=True)
class Preset:
    """What a quality chooses; the first four fields are options of a map, which win if they are given.

    Attributes
    ----------
    max_keypoints, long_side : int
        Keypoints of each photograph, and its longest side in pixels where they are looked for.
    effort : Effort
        For pairs that one pass does not solve.
    refine : bool
        Align the keypoints of each point to a fraction of a pixel.
    first_pass, nearest_first_pass : int or None
        Keypoints that a network, and nearest neighbours, match: the best of each photograph. A network gets only the
        best 512 of pairs that these leave no doubt about (`tiepoint.matchers.best_first`). None is all.
    """

    max_keypoints: int
    long_side: int
    effort: Effort
    refine: bool
    first_pass: int | None
    nearest_first_pass: int | None

    @property
    def second_pass(self) -> bool:
        """Whether all keypoints are then matched along epipolar lines."""
        return self.first_pass is not None

    def options(self) -> dict[str, Any]:
        """Return the options of a map that it chooses."""
        return {name: getattr(self, name) for name in ("max_keypoints", "long_side", "effort", "refine")}


PRESETS: dict[Quality, Preset] = {
    "fast": Preset(1024, 1024, effort="fast", refine=False, first_pass=None, nearest_first_pass=None),
    # With 3,072 for nearest neighbours lund, a walk along a street, falls apart.
    "balanced": Preset(10240, 1600, effort="fast", refine=True, first_pass=1536, nearest_first_pass=4096),
    "dense": Preset(32768, 3200, effort="auto", refine=True, first_pass=2048, nearest_first_pass=8192),
}


def preset_of(quality: str) -> Preset:
    """Return a preset by its name, or raise `ArgumentError`."""
    if quality not in QUALITIES:
        raise ArgumentError(f"no quality is called {quality!r}; there are: {', '.join(QUALITIES)}")
    return PRESETS[quality]
