"""LightGlue (Lindenberger et al., ICCV 2023): a transformer that matches sparse keypoints.

Read `network` first, the paper in plain tensors. `packed` computes the same for many pairs at once; `matcher` is what
users load; `alignment` is ours; `upstream` converts the original authors' checkpoints.
"""

from .alignment import FRAME_CODE, align, frame_code, normalise_positions, pair_positions
from .config import LightGlueConfig
from .matcher import WEIGHTS_FOR, LightGlue
from .network import AssignmentHead, CrossAttention, Layer, LightGlueNet, SelfAttention, Update, match
from .packed import Adaptive, Layout, assign, attend, attend_padded, attention, rotate, run_layer, run_layers
from .upstream import from_upstream, shape_of_upstream, to_upstream

__all__ = [
    "FRAME_CODE",
    "WEIGHTS_FOR",
    "Adaptive",
    "AssignmentHead",
    "CrossAttention",
    "Layer",
    "Layout",
    "LightGlue",
    "LightGlueConfig",
    "LightGlueNet",
    "SelfAttention",
    "Update",
    "align",
    "assign",
    "attend",
    "attend_padded",
    "attention",
    "frame_code",
    "from_upstream",
    "match",
    "normalise_positions",
    "pair_positions",
    "rotate",
    "run_layer",
    "run_layers",
    "shape_of_upstream",
    "to_upstream",
]
