"""Cairn and a LightGlue trained together: the rank of a keypoint is learnt from the matcher that uses it.

LightGlue's assignment loss on the keypoints just found is added to Cairn's own loss (`cairn`). Its
gradient goes through the descriptors into their head, which learns to tell apart what the matcher confuses. Which
keypoints are kept is a choice without a gradient; but their ranks learn from whether the *matcher* matched them
rightly, in place of nearest neighbours, so the detector keeps those that serve it.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import weights
from ...errors import ArgumentError
from ...features.cairn import DIAMETER, CairnConfig, CairnNet, Description, Keypoints
from ...matchers.lightglue import LightGlueConfig, LightGlueNet
from ..data.ground_truth import IGNORED, UNMATCHABLE, Labels
from ..pairs.batch import Batch
from ..pairs.views import Views
from .cairn import CairnObjective, Comparison
from .lightglue import LightGlueObjective

_STALE = ("exit_confidence", "prune_matchability", "overlap_threshold")  # chosen for the features before


@dataclass(frozen=True)
class EndToEndConfig:
    """Sizes of the two networks."""

    extractor: CairnConfig
    matcher: LightGlueConfig


class EndToEndNet(nn.Module):
    """An extractor and a matcher of its features.

    Parameters
    ----------
    extractor : CairnNet
    matcher : LightGlueNet
    """

    def __init__(self, extractor: CairnNet, matcher: LightGlueNet) -> None:
        super().__init__()
        self.config = EndToEndConfig(extractor.config, matcher.config)
        self.extractor, self.matcher = extractor, matcher


class EndToEndObjective(CairnObjective):
    """What `Cairn` learns by itself, and the assignment loss of a LightGlue on its features.

    Parameters
    ----------
    net : EndToEndNet
        What is trained.
    keypoints : int
        Of each picture.
    """

    def __init__(self, net: EndToEndNet, keypoints: int) -> None:
        super().__init__(net, keypoints)
        self.matching = LightGlueObjective(net.matcher)

    def compile_parts(self) -> None:
        """Compile the parts of both networks."""
        super().compile_parts()
        self.matching.compile_parts()

    @property
    def extractor(self) -> CairnNet:
        """The part of the network that finds and describes."""
        return cast(EndToEndNet, self.net).extractor

    def match(
        self, batch: Views, found: Keypoints, described: Description, similarity: Tensor, labels: Labels
    ) -> Comparison:
        """Match by the LightGlue; its output holds its loss.

        Parameters are those of `CairnObjective.match`. One pair more is made of the first two: of unrelated pictures.
        """
        output = self.matching(self._features(batch, found, described, labels))
        closeness = output.log_p[: len(batch)].detach()
        return Comparison(closeness.masked_fill(closeness.isneginf(), -1e6), output)

    @staticmethod
    def _features(batch: Views, found: Keypoints, described: Description, labels: Labels) -> Batch:
        count = len(found.ranks)
        pictures = list(range(count)) + ([0, 3] if count > 2 else [])
        unrelated = len(pictures) - count
        height, width = batch.images.shape[2:]
        # A keypoint that the other picture does not show has no partner there; one without depth is ignored.
        positions = found.positions.detach()
        points, real = positions.unflatten(0, (-1, 2)), found.ranks.isfinite()
        sides = []
        for side, matches in enumerate((labels.matches0, labels.matches1)):
            carried = batch.carry(points[:, side], forward=side == 0)
            hidden = ~carried.seen & carried.points.isfinite().all(2)
            matches = matches.masked_fill(hidden & (matches < 0), UNMATCHABLE)
            matches = F.pad(matches, (0, 0, 0, unrelated // 2), value=UNMATCHABLE)
            sides.append(matches.masked_fill(~real[pictures[side::2]], IGNORED))
        directions = described.directions.detach()
        scales = DIAMETER * torch.exp2(found.levels / 2)
        return Batch(
            descriptors=described.descriptors.unflatten(0, (count, -1))[pictures],
            keypoints=positions[pictures],
            scores=found.ranks.detach().sigmoid()[pictures],
            scales=scales[pictures],
            orientations=torch.remainder(torch.atan2(directions[:, 1], directions[:, 0]), 2 * math.pi)
            .unflatten(0, (count, -1))[pictures],
            counts=real.sum(1)[pictures],
            sizes=positions.new_tensor([width, height]).expand(len(pictures), 2),
            matches0=sides[0],
            matches1=sides[1],
            related=torch.arange(len(pictures) // 2, device=positions.device) < len(batch),
        )  # fmt: skip


def open_matcher(source: str | os.PathLike[str], dim: int) -> LightGlueNet:
    """Return a LightGlue trained on Cairn.

    Parameters
    ----------
    source : path or str
        A file, or a name of ``tiepoint weights list``.
    dim : int
        Of the descriptors it will see.

    Raises
    ------
    ArgumentError
        It was trained on something else.
    WeightsError
        See `tiepoint.weights.load`.
    """
    state, metadata = weights.load(source)
    if metadata.get("features") != ["cairn"] or metadata.get("input_dim") != dim:
        raise ArgumentError(f"{source} is no LightGlue that was trained on descriptors of {dim} numbers from cairn")
    net = weights.load_into(LightGlueNet(LightGlueConfig.from_dict(metadata)), state, source)
    return net.train().requires_grad_(True)


def split(run: str | os.PathLike[str]) -> list[Path]:
    """Write ``cairn.safetensors`` and, if one was trained, ``lightglue.safetensors`` into the folder of a run.

    The matcher runs at full depth and says nothing about overlap: its confidence classifiers and thresholds are those
    of the features before. Train and calibrate them anew.
    """
    folder = Path(run)
    state, metadata = weights.load(folder / "weights.safetensors")
    here = metadata["training"]
    parts = [
        ("extractor", metadata.get("extractor", metadata), {**here, "kind": "cairn"}, folder / "cairn.safetensors")
    ]
    if "matcher" in metadata:
        before = {**here["matcher"], "end to end": {k: v for k, v in here.items() if k != "matcher"}}
        config = {**metadata["matcher"], **dict.fromkeys(_STALE)}
        parts.append(("matcher", config, before, folder / "lightglue.safetensors"))
    for part, config, training, path in parts:
        own = {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}
        weights.save(path, own, {**config, "training": training})
    return [path for *_, path in parts]
