"""The ladder of tries for two photographs: spend more on a pair only while what was found does not convince.

Every rung is a function ``(State) -> State`` that can be called alone. In order:

1. `best_keypoints`: match the best 512 keypoints of each photograph, then the others by guided matching.
2. `second_pass`: warp one photograph into the frame of the other by the dominant homography, extract, match, map back.
3. `all_keypoints`: match all of them; this alone is ``effort="fast"``. Then a second pass from these.
4. `zoom`: match again the part that both show, enlarged.
5. `synthetic_views`: match both photographs as they would look from the side; then a second pass once more.
6. `second_extractor`: add what another extractor and its matcher find.
7. `guided`: look for the partners of the other keypoints along their epipolar lines.

Keypoints are extracted once per photograph and sorted by score, so that rung 1 matches a prefix of them. A later rung
appends the keypoints that it matched, in pixels of the photograph.

The evidence of a try is the sum of the scores (`Matches.evidence`) of its strongest single call of the matcher. The sum
over a union of calls would count the same structure several times. A rung never lowers the evidence of the state: its
matches replace the earlier ones, join them, or are dropped.

`ladder` holds the order and the rungs, `state` what a pair knows between two rungs, `views` warped photographs,
`along_lines` the guided matching.

References
----------
J.-M. Morel and G. Yu, ASIFT: a new framework for fully affine invariant image comparison, SIAM J. Imaging Sciences
2 (2), 2009. D. Mishkin, J. Matas and M. Perdoch, MODS: fast and robust method for two-view matching, CVIU 141, 2015.
"""

from .ladder import (
    EFFORTS,
    LADDER,
    Effort,
    all_keypoints,
    best_keypoints,
    check,
    climb,
    guided,
    is_scene,
    second_extractor,
    second_pass,
    synthetic_views,
    zoom,
)
from .state import Attempt, Found, State

__all__ = [
    "EFFORTS",
    "LADDER",
    "Attempt",
    "Effort",
    "Found",
    "State",
    "all_keypoints",
    "best_keypoints",
    "check",
    "climb",
    "guided",
    "is_scene",
    "second_extractor",
    "second_pass",
    "synthetic_views",
    "zoom",
]
