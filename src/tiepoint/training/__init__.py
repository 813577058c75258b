"""Training: photographs -> pairs with exact ground truth -> weights.

Everything here needs only torch, numpy, Pillow and safetensors. `tiepoint.train` runs a training by its settings:

- `MatcherSettings`: LightGlue or SuperGlue on the features of any extractor
- `FeatureSettings`: Cairn, tiepoint's own extractor
- `SuperPointSettings`: the classic SuperPoint

``data`` makes the pairs, ``pairs`` batches of them, ``objectives`` the losses, ``runs`` whole trainings.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .train import FeatureSettings, MatcherSettings, SuperPointSettings

__all__ = ["FeatureSettings", "MatcherSettings", "SuperPointSettings"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.train"), name)
