"""Which images to match: all, neighbours in time, by position, by image retrieval, from a list."""

from ...io.pair_lists import PairList, Pairs, from_list, union
from .select import by_position, by_retrieval, earth_centred, exhaustive, expand_covisibility, sequential

__all__ = [
    "PairList",
    "Pairs",
    "by_position",
    "by_retrieval",
    "earth_centred",
    "exhaustive",
    "expand_covisibility",
    "from_list",
    "sequential",
    "union",
]
