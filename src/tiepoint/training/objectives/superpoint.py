"""SuperPoint's recipe: corners of synthetic shapes, then of photographs, then descriptors (arXiv 1712.07629).

1. *Shapes*: the detector learns corners that are known, because we drew them (`ShapesMaker`).
2. *Homographic adaptation*: photographs are looked at in many warped views, and what is a corner in most of them is
   taken as true (`adapt`).
3. *Joint training*: two views of each photograph; the detector learns the corners just found, carried into both views,
   and the descriptors of cells that show the same place are pulled together, all others apart (`SuperPointObjective`).

Where the paper warps a whole picture and masks what is not covered, we cut both views out of a larger one: nothing has
to be masked.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...features.cairn import to_grey
from ...features.superpoint import CELL, SuperPointNet
from ...matchers.mutual import mutual_nearest
from ..data import homographies
from ..data.ground_truth import IGNORED, UNMATCHABLE, Labels
from ..pairs.corners import NO_CORNER, Corners
from .base import Objective, Output
from .losses import mean_where

POSITIVE, NEGATIVE = 1.0, 0.2  # margins of the descriptors' hinge loss
POSITIVE_WEIGHT = 250.0  # of cells that show the same place, of which there are few


class SuperPointObjective(Objective):
    """Cross-entropy over the pixels of each cell; for pairs also the hinge loss of the descriptors.

    Parameters
    ----------
    net : SuperPointNet
        What is trained.
    """

    net: SuperPointNet
    compiled = (SuperPointNet,)

    def forward(self, batch: Corners) -> Output:
        """Return the loss of pictures, or of pairs of them."""
        logits, descriptors = self.net.heads(to_grey(batch.images))
        with torch.autocast(logits.device.type, enabled=False):
            logits, descriptors = logits.float(), descriptors.float()
            detector = F.cross_entropy(logits, batch.cells)
            found = logits.detach().argmax(1)
            parts = {
                "detector": detector,
                "found": mean_where((found == batch.cells).float(), batch.cells != NO_CORNER),
            }
            if not len(batch.homography):
                nothing = torch.zeros(1, 0, dtype=torch.long)
                return Output(detector, torch.zeros(1, 0, 0), Labels(nothing, nothing), parts)
            same, labels = _same_place(batch.homography, logits.shape[2:])
            d0, d1 = descriptors.flatten(2).unflatten(0, (-1, 2)).unbind(1)
            cosine = d0.mT @ d1
            apart = (POSITIVE - cosine).clamp(min=0), (cosine - NEGATIVE).clamp(min=0)
            descriptor = torch.where(same, POSITIVE_WEIGHT * apart[0], apart[1]).mean()
            log_p = (20 * cosine).log_softmax(1) + (20 * cosine).log_softmax(2)
        return Output(detector + descriptor, log_p, labels, {**parts, "descriptor": descriptor})


def _same_place(homography: Tensor, cells: tuple[int, int] | torch.Size) -> tuple[Tensor, Labels]:
    """Return which cells (B, N, M) of two views show the same place, and whose partner which cell is."""
    rows, columns = cells
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    centres = (torch.stack([x, y], -1).flatten(0, 1).to(homography) + 0.5) * CELL - 0.5
    carried = homographies.transform(homography, centres)
    distance = torch.cdist(
        carried, centres.expand(len(homography), -1, -1), compute_mode="donot_use_mm_for_euclid_dist"
    )
    same = distance <= CELL
    closeness, partner, mutual = mutual_nearest(-distance)
    matches0 = torch.where(mutual & (closeness > -CELL), partner, IGNORED).masked_fill(~same.any(2), UNMATCHABLE)
    matches1 = torch.full_like(matches0, IGNORED).masked_fill(~same.any(1), UNMATCHABLE)
    pair, index = (matches0 >= 0).nonzero(as_tuple=True)
    matches1[pair, matches0[pair, index]] = index
    return same, Labels(matches0, matches1)
