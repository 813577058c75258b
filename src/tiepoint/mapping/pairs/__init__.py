"""Which images to match: all, neighbours in time, by position, by image retrieval, from a list."""

from .select import (
    PairList,
    Pairs,
    by_position,
    by_retrieval,
    earth_centred,
    exhaustive,
    expand_covisibility,
    from_list,
    sequential,
    union,
)

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
