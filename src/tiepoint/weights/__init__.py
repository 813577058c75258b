"""Weights: a name -> a verified file -> tensors and configuration.

`resolve` looks, in this order, into what tiepoint ships, the local cache, and installed packages that carry
the official file; only `pull` downloads. `load` also takes the path of a file of one's own. Every official
file is described in `registry`, with its licence.
"""

from .download import pull
from .registry import WEIGHTS_FOR, Carrier, Entry
from .store import (
    NonCommercialWeightsWarning,
    UnverifiedWeightsWarning,
    available,
    cache_dir,
    entries,
    entry,
    load,
    load_into,
    locate,
    read_config,
    resolve,
    save,
    sha256,
    unfilled,
    verify,
)

__all__ = [
    "WEIGHTS_FOR",
    "Carrier",
    "Entry",
    "NonCommercialWeightsWarning",
    "UnverifiedWeightsWarning",
    "available",
    "cache_dir",
    "entries",
    "entry",
    "load",
    "load_into",
    "locate",
    "pull",
    "read_config",
    "resolve",
    "save",
    "sha256",
    "unfilled",
    "verify",
]
