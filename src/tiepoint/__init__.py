"""tiepoint: local feature matching, from two photographs to cameras and points.

>>> import tiepoint as tp
>>> "sift" in tp.features.names()
True
"""

from __future__ import annotations

from . import features, matchers
from .errors import TiepointError
from .images import read_image
from .types import Features, Image, Matches

__version__ = "0.1.0"
__all__ = ["Features", "Image", "Matches", "TiepointError", "features", "matchers", "read_image"]
