"""Makes chunks of pairs: draw photographs, warp or render them, change the light, extract features, label.

Chunk c is a function of the seed and c alone. So training resumes exactly, and makes the same pairs on one machine or
on many, and finished chunks can be kept on disk and used again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ... import features as extractors
from ...errors import ArgumentError, InputError
from ...features import Extractor
from ...io.files import atomic
from ...types import Features
from ..data import ground_truth, homographies, photometric, scenes
from ..data._random import seeded
from ..data.claims import claim
from ..data.ground_truth import IGNORED, Labels
from ..data.photographs import PhotoCache
from ..data.posed import PosedPool
from ..data.real_pairs import RealPool
from ..data.scene_layouts import TEXTURES_PER_SCENE
from .batch import Batch
from .views import TEXTURE, ViewConfig

CHUNK = 8  # pairs made together
_ROUNDS = 8  # times a chunk is topped up before we conclude that the extractor finds too little
_PER_SCENE = 4  # photographs drawn for each scene; it borrows some of the next one's
_LEAST = 32  # keypoints without which a picture is not used


@dataclass(frozen=True)
class PairConfig(ViewConfig):
    """Which pairs are made, and which features are taken from them.

    Attributes
    ----------
    features : str
        The extractor, as `tiepoint.features.load` takes it.
    detection_threshold : float or None
        Of the extractor; lower than its default, dark and blurred pictures have enough points too.
    keypoints : int
        Points kept per picture, at most.
    posed : float in [0, 1]
        Fraction of chunks of photographs whose depth and pose are known, see `tiepoint.training.data.posed.PosedPool`.
    real : float in [0, 1]
        Fraction of chunks of photographs that overlap, matched by a teacher, see
        `tiepoint.training.data.real_pairs.RealPool`.
    negatives : float in [0, 1]
        Fraction of pairs that show two unrelated photographs, so that the matcher learns to say "no".

    Attributes of the pictures are those of `ViewConfig`.
    """

    difficulty: float = 0.7
    max_roll: float = 0.7854
    max_scale: float = 2.0
    scenes: float = 0.0
    features: str = "sift"
    detection_threshold: float | None = None
    keypoints: int = 512
    posed: float = 0.0
    real: float = 0.0
    negatives: float = 0.1

    @classmethod
    def from_dict(cls, values: Any) -> PairConfig:
        """Read a configuration from JSON, which has lists where we have tuples."""
        try:
            return cls(**{**values, "size": tuple(values["size"])})
        except (KeyError, TypeError) as error:
            raise InputError(f"the pairs trained on are not described ({error}); train anew") from error

    @property
    def extractor(self) -> str:
        """Its name, without weights."""
        return self.features.partition("@")[0]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("posed", "real", "negatives"):
            if not 0 <= getattr(self, name) <= 1:
                raise ArgumentError(f"{name} is a fraction between 0 and 1, not {getattr(self, name)}")
        if self.scenes + self.posed + self.real > 1:
            raise ArgumentError(
                f"scenes, posed, real ({self.scenes}, {self.posed}, {self.real}) are fractions that sum to more than 1"
            )


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
            raise ArgumentError("posed photographs or real pairs are asked for, but none are given")
        self.real = real
        self.photos, self.config, self.seed, self.held_out, self.posed = photos, config, seed, held_out, posed
        self.device = torch.device(device)
        self.folder = folder

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the extractor: a worker process loads its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_extractor"}

    def __call__(self, chunk: int) -> Batch:
        """Return chunk number ``chunk``, the same at every call."""
        if self.folder is None:
            return self._make(chunk)[0]
        self.make_file(chunk)
        path = self.path(chunk)
        try:
            return Batch(**safetensors.torch.load_file(path, device="cpu"))
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(f"{path}: damaged ({error}); delete it, and it is made again") from error

    def make_file(self, chunk: int) -> None:
        """Make the file of chunk number ``chunk`` if the folder lacks it."""
        path = self.path(chunk)
        if not path.exists():
            batch = self._make(chunk)[0]
            with atomic(path) as unfinished:
                unfinished.write_bytes(safetensors.torch.save(batch.tensors()))

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
        mine: dict[str, Any] = {"seed": self.seed, "photographs": names, **asdict(self.config)}
        if self.posed is not None:
            mine["posed photographs"] = self.posed.digest
        if self.real is not None:
            mine["real pairs"] = self.real.digest
        claim(self.folder / "pairs.json", mine, "chunks of other pairs")

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

    @cached_property
    def _extractor(self) -> Extractor:
        return extractors.load(
            self.config.features,
            device=self.device,
            max_keypoints=self.config.keypoints,
            detection_threshold=self.config.detection_threshold,
        )

    def _extract(self, images: Sequence[torch.Tensor]) -> list[Features]:
        return self._extractor.extract_many([_as_photograph(image) for image in images])

    def _relit(self, photo: NDArray[np.uint8], generator: torch.Generator) -> torch.Tensor:
        """Change the light and camera of one photograph; float32 (3, H, W) in [0, 1]."""
        images = torch.tensor(photo).permute(2, 0, 1)[None] / 255
        return photometric.augment(images, self.config.light, generator)[0]

    def _homographies(self, generator: torch.Generator) -> Iterator[tuple[Batch, list[torch.Tensor]]]:
        config = self.config
        rows = self.photos.draw(CHUNK, generator, self.held_out)
        photos = self.photos.sample(rows, config.size, generator, self.device)
        pairs = homographies.make_pairs(photos, config.homographies, generator)

        def label(b: int, f0: Features, f1: Features) -> Labels:
            size = torch.tensor([f0.image_size], dtype=torch.float32)
            return ground_truth.from_homography(
                f0.keypoints[None].cpu(), f1.keypoints[None].cpu(), pairs.homography[b : b + 1].cpu(), size, size
            )

        yield from self._relight(pairs.images0, pairs.images1, label, generator, rows[:, None])

    def _scenes(self, generator: torch.Generator) -> Iterator[tuple[Batch, list[torch.Tensor]]]:
        rows = self.photos.draw(_PER_SCENE * CHUNK, generator, self.held_out)
        textures = self.photos.sample(rows, (TEXTURE, TEXTURE), generator, self.device)
        pairs = scenes.make_pairs(textures, CHUNK, self.config.rendered, generator)

        def label(b: int, f0: Features, f1: Features) -> Labels:
            of_pair = {
                name: getattr(pairs, name)[b : b + 1].cpu()
                for name in ("depth0", "depth1", "K0", "K1", "R", "t", "moved0", "moved1")
            }
            return ground_truth.from_depth(f0.keypoints[None].cpu(), f1.keypoints[None].cpu(), **of_pair)

        first = _PER_SCENE * torch.arange(CHUNK)[:, None]
        seen = rows[(first + torch.arange(TEXTURES_PER_SCENE)) % len(rows)]
        yield from self._relight(pairs.images0, pairs.images1, label, generator, seen)

    def _posed(self, generator: torch.Generator) -> Iterator[tuple[Batch, list[torch.Tensor]]]:
        assert self.posed is not None  # see __init__
        seed = int(torch.randint(2**62, (), generator=generator))
        pairs = self.posed.draw(CHUNK, np.random.default_rng(seed), self.held_out)
        side = max(self.config.size)
        views = [[view.read(side) for view in (pair.view0, pair.view1)] for pair in pairs]
        images = [[self._relit(view.pixels, generator) for view in both] for both in views]

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
        for i in torch.randint(len(self._overlapping), (CHUNK,), generator=generator).tolist():
            pair = self.real.read(self._overlapping[i])
            images = [self._relit(self.photos[row], generator) for row in pair.rows]
            f0, f1 = (
                self._extractor.describe(_as_photograph(image), features)
                for image, features in zip(images, pair.features, strict=True)
            )
            yield self._batch(f0, f1, pair.labels, related=True), images

    def _relight(
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
        images0, images1 = (photometric.augment(images, self.config.light, generator) for images in (images0, images1))
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
