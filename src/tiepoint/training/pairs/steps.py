"""Which chunks of pairs the steps of a training use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import ArgumentError
from ..stream import stream
from .batch import Batch
from .maker import CHUNK, ChunkMaker


def chunks_of(pairs: int, chunk: int, rank: int = 0, world: int = 1) -> range:
    """Return which of a step's chunks process ``rank`` of ``world`` makes.

    Raises
    ------
    ArgumentError
        The pairs of a step cannot be divided among the processes in whole chunks.
    """
    if pairs % (chunk * world):
        raise ArgumentError(f"the batch size must be a multiple of {chunk} times {world} processes, not {pairs}")
    count = pairs // chunk // world
    return range(rank * count, (rank + 1) * count)


@dataclass(frozen=True)
class Steps:
    """Gives the batch of a training step for one of several processes; together they make the same pairs as one.

    Attributes
    ----------
    maker : ChunkMaker
    pairs : int
        Batch size of all processes together; a multiple of `CHUNK` times ``world``.
    rank, world : int
        Number of this process and of all processes.
    distinct : int, optional
        Use only this many different chunks, again and again (with a maker that keeps them on disk).
    fewest : float in (0, 1]
        Each step keeps a random number of the best keypoints, between this fraction of them and all, so that the
        matcher sees sparse points and dense ones.
    reframe : bool
        Also put pictures into random frames, see `Batch.reframed`.
    """

    maker: ChunkMaker
    pairs: int
    rank: int = 0
    world: int = 1
    distinct: int | None = None
    fewest: float = 1.0
    reframe: bool = False

    def __post_init__(self) -> None:
        chunks_of(self.pairs, CHUNK, self.rank, self.world)  # raises now and not in a worker

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step."""
        first = step * (self.pairs // CHUNK)
        mine = chunks_of(self.pairs, CHUNK, self.rank, self.world)
        batch = Batch.cat([self.maker(self.chunk_at(first + i)) for i in mine])
        most = batch.keypoints.shape[1]
        random = self._random(step)
        batch = batch.head(int(random.integers(max(1, round(self.fewest * most)), most + 1)))
        return batch.reframed(random) if self.reframe else batch

    def needed(self, steps: int) -> list[int]:
        """Return the numbers of all chunks that so many steps use."""
        total = steps * (self.pairs // CHUNK)
        return sorted({self.chunk_at(position) for position in range(min(total, self.distinct or total))})

    def _random(self, *what: int) -> np.random.Generator:
        """Return random numbers that all processes agree on."""
        return np.random.default_rng([self.maker.seed, *what])

    def chunk_at(self, position: int) -> int:
        """Return the number of the chunk at this position; a limited set comes in another order every time."""
        if self.distinct is None:
            return position
        epoch, place = divmod(position, self.distinct)
        return int(self._random(epoch, self.distinct).permutation(self.distinct)[place])


def make_ahead(maker: ChunkMaker, chunks: Sequence[int], workers: int) -> Iterator[tuple[int, int]]:
    """Make those chunks that the maker's folder lacks; yield how many are made, and how many there are to make.

    Where pairs are made by the processors that train, one after the other is faster than both at once: two that share
    a core wait for each other at every step.
    """
    missing = [chunk for chunk in chunks if not maker.path(chunk).exists()]
    for done, _ in enumerate(stream(maker.make_file, missing, min(workers, len(missing))), start=1):
        yield done, len(missing)
