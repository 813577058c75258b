"""Cairn: tiepoint's own extractor, a SIFT whose parts are learned.

What SIFT has by construction, Cairn keeps by construction: keypoints are found on every level of an image pyramid,
so scale is measured and not learned; each is described by a patch around it whose size follows that level and whose
direction is the keypoint's own, so a camera may be rolled and zoomed. What SIFT has by hand is learned from
photographs: where a keypoint is (`Detector`), how likely it is to be matched, which direction is its own, how
precisely it is located, and its descriptor (`DescriptorHead`).

1. `detection.pyramid`: the grey image, each level smaller by the square root of 2.
2. `detection.Detector`: a small convolutional network, the same on every level: for each pixel a logit of being the
   keypoint of its neighbourhood, for each cell of 2 x 2 pixels the logit that its keypoint would be matched correctly
   (the rank).
3. `network.CairnNet.detect`: peaks of the former, the best by the latter, placed between pixels by a soft arg-max.
4. `network.CairnNet.describe`: rings of samples around each keypoint, wide ones read from coarse levels of the pyramid,
   so that the patch is fine at its centre, coarse outside, and nowhere aliased. Turning the photograph turns the rings;
   convolutions along them commute with that, so the keypoint's direction is equivariant without being taught.
   `description` has the networks that read these patches.

`extractor.Cairn` makes an `Extractor` of it. It is trained by ``tiepoint train features``, see
`tiepoint.training.objectives.cairn`.
"""

from .config import CELL, DIAMETER, CairnConfig
from .description import Description, DescriptorHead, SteerableDescriptorHead
from .detection import Detector, Keypoints, Scores, pyramid, to_grey
from .extractor import Cairn
from .network import CairnNet

__all__ = [
    "CELL",
    "DIAMETER",
    "Cairn",
    "CairnConfig",
    "CairnNet",
    "Description",
    "DescriptorHead",
    "Detector",
    "Keypoints",
    "Scores",
    "SteerableDescriptorHead",
    "pyramid",
    "to_grey",
]
