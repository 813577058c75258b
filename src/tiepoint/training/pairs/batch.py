"""Batches of features with ground truth: what the training loop eats.

Work is cut into *chunks* of a few pairs. Chunk c is a function of the seed and c alone, so that training resumes
exactly, gives the same pairs on one machine or on many, and can keep finished chunks on disk and use them again
(a hand-made extractor is slower than a small matcher learns).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from ... import features as extractors
from ...errors import ArgumentError, InputError, TiepointError
from ...features import Extractor
from ...io.files import atomic, read_json
from ...types import Features
from ..data import ground_truth, homographies, photometric, scenes
from ..data._random import seeded
from ..data.ground_truth import IGNORED, Labels
from ..data.photographs import PhotoCache
from ..data.posed import PosedPool
from ..data.real_pairs import RealPool

T = TypeVar("T")
CHUNK = 8  # pairs made together
_ROUNDS = 8  # times a chunk is topped up before we conclude that the extractor finds too little
_PER_SCENE = 4  # photographs drawn for each scene; it borrows some of the next one's
_LEAST = 32  # keypoints without which a picture is not used
TEXTURE = 512  # side of the textures of rendered scenes, pixels; about what the photographs of a pool resolve


@dataclass(frozen=True)
class PairConfig:
    """Which pairs are made, and which features are taken from them.

    Attributes
    ----------
    features : str
        The extractor, as `tiepoint.features.load` takes it.
    detection_threshold : float or None
        Of the extractor; lower than its default, dark and blurred pictures have enough points too.
    keypoints : int
        Points kept per picture, at most.
    size : (int, int)
        (height, width) of the pictures.
    difficulty, max_roll, max_scale : float
        See `tiepoint.training.data.homographies.HomographyConfig`.
    photometric : str
        Preset of `tiepoint.training.data.photometric.PhotometricConfig`.
    scenes : float in [0, 1]
        Share of chunks that show rendered scenes instead of homographies.
    posed : float in [0, 1]
        Share of chunks of photographs whose depth and pose are known, see `tiepoint.training.data.posed.PosedPool`.
    real : float in [0, 1]
        Share of chunks of photographs that overlap, matched by a teacher, see
        `tiepoint.training.data.real_pairs.RealPool`.
    negatives : float in [0, 1]
        Share of pairs that show two unrelated photographs, so that the matcher learns to say "no".
    """

    features: str = "sift"
    detection_threshold: float | None = None
    keypoints: int = 512
    size: tuple[int, int] = (480, 640)
    difficulty: float = 0.7
    max_roll: float = 0.7854
    max_scale: float = 2.0
    photometric: str = "strong"
    scenes: float = 0.0
    posed: float = 0.0
    real: float = 0.0
    negatives: float = 0.1

    @property
    def extractor(self) -> str:
        """Its name, without weights."""
        return self.features.partition("@")[0]

    def __post_init__(self) -> None:
        for name in ("scenes", "posed", "real", "negatives"):
            if not 0 <= getattr(self, name) <= 1:
                raise ArgumentError(f"{name} is a share between 0 and 1, not {getattr(self, name)}")
        if self.scenes + self.posed + self.real > 1:
            raise ArgumentError(
                f"scenes, posed, real ({self.scenes}, {self.posed}, {self.real}) are shares of one whole: more than 1"
            )


@dataclass(frozen=True, eq=False)
class Batch:
    """Features of B pairs, at most N of each picture, and what is true of them.

    Pictures are ordered pair by pair: rows 2p and 2p + 1 are the two pictures of pair p. Pictures with fewer
    than N keypoints are padded with zeros.

    Attributes
    ----------
    descriptors : float16 tensor (2 B, N, D)
    keypoints : float32 tensor (2 B, N, 2)
        Pixels.
    scores : float32 tensor (2 B, N)
    scales, orientations : float32 tensors (2 B, N), or (2 B, 0) where the extractor does not measure them
    counts : int64 tensor (2 B,)
        Keypoints of each picture.
    sizes : float32 tensor (2 B, 2)
        (width, height) of each picture.
    matches0, matches1 : int64 tensors (B, N)
        The two sides of `Labels`.
    related : bool tensor (B,)
        False for a pair of two unrelated photographs.
    """

    descriptors: torch.Tensor
    keypoints: torch.Tensor
    scores: torch.Tensor
    scales: torch.Tensor
    orientations: torch.Tensor
    counts: torch.Tensor
    sizes: torch.Tensor
    matches0: torch.Tensor
    matches1: torch.Tensor
    related: torch.Tensor

    @property
    def labels(self) -> Labels:
        """Ground truth."""
        return Labels(self.matches0, self.matches1)

    def __len__(self) -> int:
        return len(self.related)

    @property
    def present(self) -> torch.Tensor:
        """False for padding, bool (2 B, N)."""
        return torch.arange(self.keypoints.shape[1], device=self.counts.device) < self.counts[:, None]

    @property
    def has_scales(self) -> bool:
        """Whether the extractor measures scale and orientation of a keypoint."""
        return self.scales.shape[1] > 0

    def features(self, extractor: str) -> list[tuple[Features, Features]]:
        """Return the features of each pair without padding, as a matcher takes them."""
        rows = []
        for i, count in enumerate(self.counts.tolist()):
            width, height = self.sizes[i].long().tolist()
            rows.append(
                Features(
                    self.keypoints[i, :count],
                    self.scores[i, :count],
                    self.descriptors[i, :count].float(),
                    (width, height),
                    extractor,
                    self.scales[i, :count] if self.has_scales else None,
                    self.orientations[i, :count] if self.has_scales else None,
                )
            )
        return list(zip(rows[0::2], rows[1::2], strict=True))

    def tensors(self) -> dict[str, torch.Tensor]:
        """All fields by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on another device."""
        return Batch(**{k: v.to(device, non_blocking=True) for k, v in self.tensors().items()})

    def head(self, keypoints: int) -> Batch:
        """Keep the best ``keypoints`` of each picture; a point whose partner went is ignored from now on."""
        n = keypoints
        matches = [torch.where(m[:, :n] >= n, IGNORED, m[:, :n]) for m in (self.matches0, self.matches1)]
        per_point = {
            name: getattr(self, name)[:, :n]
            for name in ("descriptors", "keypoints", "scores", "scales", "orientations")
        }
        return Batch(
            **per_point,
            counts=self.counts.clamp(max=n),
            sizes=self.sizes,
            matches0=matches[0],
            matches1=matches[1],
            related=self.related,
        )

    def reframed(self, random: np.random.Generator, largest: float = 2.5) -> Batch:
        """Pretend that every picture is a part of a larger one, taken with the camera rolled.

        A matcher sees photographs only through keypoints, so what would cost another extraction costs nothing: one set
        of features stands for many frames. Points gather in a part of the frame as dense as in photographs with more of
        them, small scales come with large photographs, and nothing depends on the position in the frame. Where the
        extractor measures orientations (its descriptors then do not change when the camera rolls) pictures are turned,
        too.

        Parameters
        ----------
        random : numpy.random.Generator
            Chooses.
        largest : float
            How much longer, at most, the side of the frame is than that of the picture.
        """
        pairs = len(self)
        sizes, keypoints, orientations = self.sizes, self.keypoints, self.orientations
        if self.has_scales:
            turn = torch.from_numpy(random.uniform(-math.pi, math.pi, (2 * pairs, 1))).float()
            cos, sin = turn.cos(), turn.sin()
            x, y = (keypoints - (sizes[:, None] - 1) / 2).unbind(-1)
            bounds = torch.stack([(sizes * torch.cat(row, 1).abs()).sum(1) for row in ((cos, sin), (sin, cos))], 1)
            keypoints = torch.stack([cos * x - sin * y, sin * x + cos * y], -1) + (bounds[:, None] - 1) / 2
            orientations = torch.remainder(orientations + turn, 2 * math.pi)
            sizes = bounds
        frames = sizes * torch.from_numpy(random.uniform(1, largest, (2 * pairs, 1))).float()
        offsets = (frames - sizes) * torch.from_numpy(random.random((2 * pairs, 2))).float()
        return replace(self, keypoints=keypoints + offsets[:, None], orientations=orientations, sizes=frames)

    @staticmethod
    def cat(batches: list[Batch]) -> Batch:
        """Join batches with the same number of keypoints."""
        return Batch(**{f.name: torch.cat([getattr(b, f.name) for b in batches]) for f in fields(Batch)})


class ChunkMaker:
    """Makes chunk c from photographs: draws, warps or renders, relights, extracts, labels.

    Parameters
    ----------
    photos : PhotoCache
        Where pictures come from.
    config : PairConfig
        What is made.
    seed : int
        Of all random choices.
    held_out : bool
        Use the photographs kept for evaluation.
    device : torch.device or str
        Where pictures are made and, if it can, the extractor runs.
    folder : path, optional
        Chunks found here are read, others written here after they are made.
    posed : PosedPool, optional
        Photographs with depth and pose; needed if ``config.posed`` is not zero.
    real : RealPool, optional
        Photographs that overlap; needed if ``config.real`` is not zero.
    """

    def __init__(
        self,
        photos: PhotoCache,
        config: PairConfig,
        seed: int,
        held_out: bool = False,
        device: torch.device | str = "cpu",
        folder: Path | None = None,
        posed: PosedPool | None = None,
        real: RealPool | None = None,
    ) -> None:
        if (config.posed and posed is None) or (config.real and real is None):
            raise ArgumentError("a share of posed photographs or of real pairs is asked for, but none are given")
        self.real = real
        self.photos, self.config, self.seed, self.held_out, self.posed = photos, config, seed, held_out, posed
        self.device = torch.device(device)
        self.folder = folder
        self._extractor: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_extractor": None}  # a worker process loads its own

    def __call__(self, chunk: int) -> Batch:
        """Return chunk number ``chunk``, the same at every call."""
        if self.folder is None:
            return self._make(chunk)[0]
        path = self.path(chunk)
        if path.exists():
            try:
                return Batch(**safetensors.torch.load_file(path, device="cpu"))
            except (OSError, safetensors.SafetensorError) as error:
                raise InputError(f"{path}: damaged ({error}); delete it, and it is made again") from error
        batch = self._make(chunk)[0]
        with atomic(path) as unfinished:
            unfinished.write_bytes(safetensors.torch.save(batch.tensors()))
        return batch

    def path(self, chunk: int) -> Path:
        """Where chunk number ``chunk`` is kept, if there is a folder."""
        assert self.folder is not None
        return self.folder / f"{'held-out' if self.held_out else 'train'}-{chunk:07d}.safetensors"

    def pictures(self, chunk: int) -> list[torch.Tensor]:
        """Return the 2 `CHUNK` pictures that chunk ``chunk`` was made from, float32 (3, H, W) in [0, 1]."""
        return [picture.cpu() for picture in self._make(chunk)[1]]

    def claim_folder(self) -> None:
        """Note in the folder of chunks what they are, or check that they are what this maker would make.

        Raises
        ------
        InputError
            The folder holds chunks of other photographs, another configuration or another seed.
        """
        if self.folder is None:
            return
        names = hashlib.sha256(repr((self.photos.names, self.photos.sizes.tolist())).encode()).hexdigest()
        told: dict[str, Any] = {"seed": self.seed, "photographs": names, **asdict(self.config)}
        if self.posed is not None:
            told["posed photographs"] = self.posed.digest
        if self.real is not None:
            told["real pairs"] = self.real.digest
        mine = json.loads(json.dumps(told))
        note = self.folder / "pairs.json"
        if note.exists():
            theirs = read_json(note)
            if differing := [name for name in mine if mine[name] != theirs.get(name)]:
                what = "; ".join(f"{name} is {theirs.get(name)} there and {mine[name]} here" for name in differing)
                raise InputError(f"{self.folder} holds chunks of other pairs: {what}. Give another folder")
            return
        with atomic(note) as unfinished:
            self.folder.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(json.dumps(mine, indent=1))

    def _make(self, chunk: int) -> tuple[Batch, list[torch.Tensor]]:
        generator = seeded(self.seed, chunk, self.held_out)
        kind = float(torch.rand((), generator=generator))
        if kind < self.config.scenes:
            make = self._scenes
        elif kind < self.config.scenes + self.config.posed:
            make = self._posed
        elif kind < self.config.scenes + self.config.posed + self.config.real and self._overlapping:
            make = self._real
        else:
            make = self._homographies
        found: list[tuple[Batch, list[torch.Tensor]]] = []
        for _ in range(_ROUNDS):
            found.extend(make(generator))
            if len(found) >= CHUNK:
                batches, pictures = zip(*found[:CHUNK], strict=True)
                return Batch.cat(list(batches)), [picture for pair in pictures for picture in pair]
        raise InputError(
            f"the extractor {self.config.features!r} finds {_LEAST} keypoints in hardly any picture made "
            "from these photographs: lower its detection threshold, choose milder photometric changes, or give "
            "photographs with more texture"
        )

    def _extract(self, images: Sequence[torch.Tensor]) -> list[Features]:
        return self._load_extractor().extract_many([_as_photograph(image) for image in images])

    def _load_extractor(self) -> Extractor:
        if self._extractor is None:
            self._extractor = extractors.load(
                self.config.features,
                device=self.device,
                max_keypoints=self.config.keypoints,
                detection_threshold=self.config.detection_threshold,
            )
        return self._extractor

    def _homographies(self, generator: torch.Generator) -> Iterator[tuple[Batch, list[torch.Tensor]]]:
        config = self.config
        rows = self.photos.draw(CHUNK, generator, self.held_out)
        photos = self.photos.sample(rows, config.size, generator, self.device)
        views = homographies.HomographyConfig(
            config.size, config.difficulty, max_roll=config.max_roll, max_scale=config.max_scale
        )
        pairs = homographies.make_pairs(photos, views, generator)

        def label(b: int, f0: Features, f1: Features) -> Labels:
            size = torch.tensor([f0.image_size], dtype=torch.float32)
            return ground_truth.from_homography(
                f0.keypoints[None].cpu(),
                f1.keypoints[None].cpu(),
                pairs.homography[b : b + 1].cpu(),
                size,
                size,
            )

        yield from self._relit(pairs.images0, pairs.images1, label, generator, rows[:, None])

    def _scenes(self, generator: torch.Generator) -> Iterator[tuple[Batch, list[torch.Tensor]]]:
        config = self.config
        rows = self.photos.draw(_PER_SCENE * CHUNK, generator, self.held_out)
        textures = self.photos.sample(rows, (TEXTURE, TEXTURE), generator, self.device)
        roll360 = config.max_roll > 3
        scene = scenes.SceneConfig.roll360(config.size) if roll360 else scenes.SceneConfig.standard(config.size)
        pairs = scenes.make_pairs(textures, CHUNK, scene, generator)

        def label(b: int, f0: Features, f1: Features) -> Labels:
            of_pair = {
                name: getattr(pairs, name)[b : b + 1].cpu()
                for name in ("depth0", "depth1", "K0", "K1", "R", "t", "moved0", "moved1")
            }
            return ground_truth.from_depth(f0.keypoints[None].cpu(), f1.keypoints[None].cpu(), **of_pair)

        first = _PER_SCENE * torch.arange(CHUNK)[:, None]
        seen = rows[(first + torch.arange(scenes.TEXTURES_PER_SCENE)) % len(rows)]
        yield from self._relit(pairs.images0, pairs.images1, label, generator, seen)

    def _posed(self, generator: torch.Generator) -> Iterator[tuple[Batch, list[torch.Tensor]]]:
        config, light = self.config, photometric.PhotometricConfig.preset(self.config.photometric)
        assert self.posed is not None  # see __init__
        seed = int(torch.randint(2**62, (), generator=generator))
        pairs = self.posed.draw(CHUNK, np.random.default_rng(seed), self.held_out)
        views = [[view.read(max(config.size)) for view in (pair.view0, pair.view1)] for pair in pairs]
        images = [
            [
                photometric.augment(torch.tensor(view.pixels).permute(2, 0, 1)[None] / 255, light, generator)[0]
                for view in both
            ]
            for both in views
        ]

        def label(b: int, f0: Features, f1: Features) -> Labels:
            (view0, view1), pair = views[b], pairs[b]
            depth0, depth1, K0, K1, R, t = (
                torch.from_numpy(np.asarray(x, np.float32))[None]
                for x in (view0.depth, view1.depth, view0.K, view1.K, pair.R, pair.t)
            )
            points0, points1 = f0.keypoints[None].cpu(), f1.keypoints[None].cpu()
            return ground_truth.from_depth(points0, points1, depth0, depth1, K0, K1, R, t)

        images0, images1 = zip(*images, strict=True)
        # None is called unrelated: two pairs of one scene may well show the same thing.
        nothing = torch.zeros(len(pairs), 0, dtype=torch.long)
        yield from self._featurise(images0, images1, label, torch.zeros(len(pairs), dtype=torch.bool), nothing)

    @cached_property
    def _overlapping(self) -> list[tuple[int, int]]:
        """Real pairs of this split. Few photographs that are held out may not overlap."""
        return [] if self.real is None else self.real.confirmed(self.held_out)

    def _real(self, generator: torch.Generator) -> Iterator[tuple[Batch, list[torch.Tensor]]]:
        """Yield real pairs, relit, with the keypoints and labels that they have as they were taken."""
        assert self.real is not None  # see __init__
        chosen = self._overlapping
        light = photometric.PhotometricConfig.preset(self.config.photometric)
        for i in torch.randint(len(chosen), (CHUNK,), generator=generator).tolist():
            pair = self.real.read(chosen[i])
            photos = [torch.tensor(self.photos[row]).permute(2, 0, 1)[None] / 255 for row in pair.rows]
            images = [photometric.augment(photo, light, generator)[0] for photo in photos]
            f0, f1 = (
                self._load_extractor().describe(_as_photograph(image), features)
                for image, features in zip(images, pair.features, strict=True)
            )
            yield self._batch(f0, f1, pair.labels, related=True), images

    def _relit(
        self,
        images0: torch.Tensor,
        images1: torch.Tensor,
        label: Callable[[int, Features, Features], Labels],
        generator: torch.Generator,
        rows: torch.Tensor,
    ) -> Iterator[tuple[Batch, list[torch.Tensor]]]:
        """Change light and camera, declare some pairs unrelated, go on with `_featurise`.

        ``rows`` (B, K) are the photographs that each pair was made of.
        """
        light = photometric.PhotometricConfig.preset(self.config.photometric)
        images0, images1 = (photometric.augment(images, light, generator) for images in (images0, images1))
        unrelated = torch.rand(len(images0), generator=generator) < self.config.negatives
        sources = torch.from_numpy(self.photos.sources)[rows]
        yield from self._featurise(images0.unbind(), images1.unbind(), label, unrelated, sources)

    def _featurise(
        self,
        images0: Sequence[torch.Tensor],
        images1: Sequence[torch.Tensor],
        label: Callable[[int, Features, Features], Labels],
        unrelated: torch.Tensor,
        sources: torch.Tensor,
    ) -> Iterator[tuple[Batch, list[torch.Tensor]]]:
        """Extract and label; pairs in which too few keypoints are found are left out.

        ``sources`` (B, K) tell which photographs a pair shows. An unrelated one that shows none of them is looked for
        half a chunk on first; where there is none, the pair stays related.
        """
        config = self.config
        features0, features1 = self._extract(images0), self._extract(images1)
        for b in range(len(images0)):
            other = b
            if unrelated[b]:
                others = ((b + len(images0) // 2 + i) % len(images0) for i in range(len(images0)))
                other = next((i for i in others if not torch.isin(sources[i], sources[b]).any()), b)
            negative = other != b
            f0, f1 = features0[b], features1[other]
            if min(len(f0), len(f1)) < _LEAST:
                continue
            present = [torch.arange(config.keypoints)[None] < len(f) for f in (f0, f1)]
            labels = Labels.unmatched(*present) if negative else label(b, f0, f1)
            yield self._batch(f0, f1, labels, not negative), [images0[b], images1[other]]

    def _batch(self, f0: Features, f1: Features, labels: Labels, related: bool) -> Batch:
        """Pad the features and labels of one pair."""
        matches0, matches1 = (
            F.pad(m, (0, self.config.keypoints - m.shape[1]), value=IGNORED) for m in (labels.matches0, labels.matches1)
        )
        return Batch(
            descriptors=self._stack(f0.descriptors.half(), f1.descriptors.half()),
            keypoints=self._stack(f0.keypoints, f1.keypoints),
            scores=self._stack(f0.scores, f1.scores),
            scales=self._stack(f0.scales, f1.scales, fill=1),
            orientations=self._stack(f0.orientations, f1.orientations),
            counts=torch.tensor([len(f0), len(f1)]),
            sizes=torch.tensor([f0.image_size, f1.image_size], dtype=torch.float32),
            matches0=matches0,
            matches1=matches1,
            related=torch.tensor([related]),
        )

    def _stack(self, *rows: torch.Tensor | None, fill: float = 0) -> torch.Tensor:
        """Pad to the same number of keypoints and stack; nothing, if the extractor does not measure this."""
        n = self.config.keypoints
        padded = [
            torch.zeros(0) if r is None else F.pad(r.cpu(), (0, 0) * (r.ndim - 1) + (0, n - len(r)), value=fill)
            for r in rows
        ]
        return torch.stack(padded)


def _as_photograph(image: torch.Tensor) -> NDArray[np.uint8]:
    """Return the 8-bit RGB array (H, W, 3) of a tensor (3, H, W) in [0, 1]."""
    return (image * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()


class Steps(Dataset[Batch]):
    """Item i is the batch of step i for one of ``world`` processes; parameters are those of `stream`."""

    def __init__(
        self,
        maker: ChunkMaker,
        pairs: int,
        steps: int,
        rank: int,
        world: int,
        distinct: int | None,
        fewest: float,
        reframe: bool = False,
    ) -> None:
        self.maker, self.steps, self.distinct, self.fewest, self.reframe = maker, steps, distinct, fewest, reframe
        self.chunks = pairs // CHUNK
        self.mine = share_of(pairs, CHUNK, rank, world)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        batch = Batch.cat([self.maker(self._chunk(step * self.chunks + i)) for i in self.mine])
        most = batch.keypoints.shape[1]
        fewest = max(1, round(self.fewest * most))
        random = self._random(step)
        batch = batch.head(int(random.integers(fewest, most + 1)))
        return batch.reframed(random) if self.reframe else batch

    def needed(self) -> list[int]:
        """Return the numbers of all chunks that a limited set's steps use."""
        total = self.steps * self.chunks
        return sorted({self._chunk(position) for position in range(min(total, self.distinct or total))})

    def _random(self, *what: int) -> np.random.Generator:
        """Return random numbers that all processes agree on."""
        return np.random.default_rng([self.maker.seed, *what])

    def _chunk(self, position: int) -> int:
        """Return the number of the chunk at this position; a limited set comes in another order every time."""
        if self.distinct is None:
            return position
        epoch, place = divmod(position, self.distinct)
        return int(self._random(epoch, self.distinct).permutation(self.distinct)[place])


def stream(
    maker: ChunkMaker,
    pairs: int,
    start: int,
    steps: int,
    workers: int,
    rank: int = 0,
    world: int = 1,
    distinct: int | None = None,
    fewest: float = 1.0,
    reframe: bool = False,
) -> Iterator[Batch]:
    """Yield the batches of steps ``start`` to ``steps`` - 1 in order, made ahead by worker processes.

    A step's pairs do not depend on how many processes share them.

    Parameters
    ----------
    maker : ChunkMaker
        Makes them.
    pairs : int
        Batch size of all processes together; a multiple of `CHUNK` times ``world``.
    start, steps : int
        First step, and the step before which to stop.
    workers : int
        Worker processes; 0 makes batches in this process (the choice for extractors on a GPU).
    rank, world : int
        Number of this process and of all processes that share the training.
    distinct : int, optional
        Use only this many different chunks, again and again (with a maker that keeps them on disk).
    fewest : float in (0, 1]
        Each step keeps a random number of the best keypoints, between this share of them and all, so that the
        matcher sees sparse points and dense ones.
    reframe : bool
        Also put pictures into random frames, see `Batch.reframed`.

    Raises
    ------
    ArgumentError
        ``pairs`` cannot be shared out.
    """
    data = Steps(maker, pairs, steps, rank, world, distinct, fewest, reframe)
    return in_order(data, start, steps, workers)


class _Missing(Dataset[int]):
    """Item i makes the i-th chunk that a maker's folder lacks."""

    def __init__(self, maker: ChunkMaker, chunks: Sequence[int]) -> None:
        self.maker = maker
        self.missing = [chunk for chunk in chunks if not maker.path(chunk).exists()]

    def __len__(self) -> int:
        return len(self.missing)

    def __getitem__(self, i: int) -> int:
        self.maker(self.missing[i])
        return i


def make_ahead(maker: ChunkMaker, chunks: Sequence[int], workers: int) -> Iterator[tuple[int, int]]:
    """Make those chunks that the maker's folder lacks; yield how many are made, and how many there are to make.

    Where pairs are made by the processors that train, one after the other is faster than both at once: two that share
    a core wait for each other at every step.
    """
    data = _Missing(maker, chunks)
    for i in in_order(data, 0, len(data), min(workers, len(data))):
        yield i + 1, len(data)


class _Telling(Dataset["T | TiepointError"]):
    """The items of a data set; an error of ours is one too, or it would come from a worker as a text of many lines."""

    def __init__(self, data: Dataset[T]) -> None:
        self.data = data

    def __getitem__(self, i: int) -> T | TiepointError:
        try:
            return self.data[i]
        except TiepointError as error:
            return error


def in_order(data: Dataset[T], start: int, steps: int, workers: int) -> Iterator[T]:
    """Yield items ``start`` to ``steps`` - 1 of a data set, made ahead by worker processes if there are any."""
    loader: DataLoader[T | TiepointError] = DataLoader(
        _Telling(data),
        batch_size=None,
        sampler=range(start, steps),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_start_worker if workers else None,
    )
    for item in loader:
        if isinstance(item, TiepointError):
            raise item
        yield item


def share_of(pairs: int, chunk: int, rank: int, world: int) -> range:
    """Return which of the chunks of a step process ``rank`` of ``world`` makes.

    Raises
    ------
    ArgumentError
        The pairs of a step cannot be shared out in whole chunks.
    """
    if pairs % (chunk * world):
        raise ArgumentError(f"the batch size must be a multiple of {chunk} times {world} processes, not {pairs}")
    share = pairs // chunk // world
    return range(rank * share, (rank + 1) * share)


def _start_worker(_: int) -> None:
    """One core for each worker; Ctrl-C, or a cluster's SIGTERM to all, is for the process that trains."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    with contextlib.suppress(ImportError):  # training does not need OpenCV, but SIFT does
        import cv2

        cv2.setNumThreads(1)
