"""Pairs of pictures with exact correspondences: the training data of an extractor.

Made as the pairs for matchers are (`homographies`, `scenes`, `photometric`), but nothing is extracted: pictures go to
the network, and `Views.carry` says where any point of one lies in the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import ArgumentError
from ..data import ground_truth, homographies, photometric, scenes
from ..data._random import seeded
from ..data.homographies import HomographyConfig
from ..data.photographs import PhotoCache
from ..data.photometric import PhotometricConfig
from ..data.scene_layouts import SceneConfig
from ..tensors import Tensors

CHUNK = 4  # pairs made together
TEXTURE = 512  # side of the textures of rendered scenes, pixels; about what the photographs of a pool resolve
_STEP = 1.5  # pixels over which the derivative of a warp given by depth is measured


@dataclass(frozen=True)
class ViewConfig:
    """Which pairs of pictures are made.

    Attributes
    ----------
    size : (int, int)
        (height, width) of the pictures.
    difficulty, max_roll, max_scale : float
        See `tiepoint.training.data.homographies.HomographyConfig`.
    photometric : str
        Preset of `tiepoint.training.data.photometric.PhotometricConfig`.
    scenes : float in [0, 1]
        Fraction of steps, or of chunks for a matcher, that show rendered scenes instead of homographies.
    """

    size: tuple[int, int] = (480, 640)
    difficulty: float = 0.8
    max_roll: float = math.pi
    max_scale: float = 4.0
    photometric: str = "strong"
    scenes: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.scenes <= 1:
            raise ArgumentError(f"scenes is a fraction between 0 and 1, not {self.scenes}")

    @property
    def homographies(self) -> HomographyConfig:
        """Which homographies are drawn."""
        return HomographyConfig(self.size, self.difficulty, max_roll=self.max_roll, max_scale=self.max_scale)

    @property
    def rendered(self) -> SceneConfig:
        """Which scenes are rendered."""
        return SceneConfig.rolled(self.size, self.max_roll)

    @property
    def light(self) -> PhotometricConfig:
        """How light and camera differ."""
        return PhotometricConfig.preset(self.photometric)


class Carried(NamedTuple):
    """Where N points of each picture lie in the other one of its pair.

    Attributes
    ----------
    points : float32 tensor (B, N, 2)
        Pixels; infinite behind the camera, and where no depth is known.
    jacobian : float32 tensor (B, N, 2, 2)
        Derivative of the new position by the old one.
    seen : bool tensor (B, N)
        Whether the point is inside the other picture, and not hidden there.
    """

    points: Tensor
    jacobian: Tensor
    seen: Tensor


@dataclass(frozen=True, eq=False)
class Views(Tensors):
    """B pairs of pictures; rows 2p and 2p + 1 are the two of pair p.

    Attributes
    ----------
    images : uint8 tensor (2 B, 3, H, W)
        RGB.
    homography : float32 tensor (B, 3, 3), or (0, 3, 3) for rendered scenes
        Maps pixels of the first picture to the second.
    depth : float32 tensor (2 B, H, W), or (0, H, W) for homographies
        z in the camera's frame, 0 where unknown or moving.
    K, R, t : float32 tensors (2 B, 3, 3), (B, 3, 3), (B, 3), or of no rows for homographies
        Intrinsics; ``x1 = R x0 + t``.
    seed : int64 tensor ()
        For random choices during the step.
    """

    images: Tensor
    homography: Tensor
    depth: Tensor
    K: Tensor
    R: Tensor
    t: Tensor
    seed: Tensor

    def __len__(self) -> int:
        return len(self.images) // 2

    def carry(self, points: Tensor, forward: bool) -> Carried:
        """Carry points (B, N, 2) of the first pictures into the second ones, or back."""
        height, width = self.images.shape[2:]
        size = torch.tensor([[width, height]], device=points.device).expand(len(self), 2)
        if len(self.homography):
            H = self.homography if forward else torch.linalg.inv(self.homography)
            return carry_by_homography(points, H, size)
        # The derivative is that of the surface, measured by carrying points around each.
        around = points.new_tensor([[0, 0], [_STEP, 0], [-_STEP, 0], [0, _STEP], [0, -_STEP]])
        many = (points[:, :, None] + around).flatten(1, 2)
        depth, K = self.depth.unflatten(0, (-1, 2)), self.K.unflatten(0, (-1, 2))
        R, t = self.R, self.t
        here, there = (0, 1) if forward else (1, 0)
        if not forward:
            R = R.transpose(1, 2)
            t = -(R * t[:, None]).sum(2)
        carried, visible = ground_truth.carry_by_depth(
            many, depth[:, here], depth[:, there], K[:, here], K[:, there], R, t
        )
        carried, visible = carried.unflatten(1, (-1, 5)), visible.unflatten(1, (-1, 5))
        right, left, down, up = carried[:, :, 1:].unbind(2)
        jacobian = torch.stack([right - left, down - up], -1) / (2 * _STEP)
        usable = carried.isfinite().all(3).all(2)
        jacobian = torch.where(usable[..., None, None], jacobian, torch.eye(2, device=points.device))
        return Carried(carried[:, :, 0], jacobian, visible[:, :, 0] & usable)


def carry_by_homography(points: Tensor, H: Tensor, size: Tensor) -> Carried:
    """Carry points (B, N, 2) by homographies (B, 3, 3) into pictures of ``size`` (B, 2), width first."""
    # Written out because a matrix product may run in TF32, whose rounding is pixels wide. Both views lie within one
    # photograph, so no point that the other sees is behind its camera.
    H = H[:, None] * torch.linalg.det(H).sign()[:, None, None, None]
    x, y = points.unbind(-1)
    u, v, w = (H[..., i, 0] * x + H[..., i, 1] * y + H[..., i, 2] for i in range(3))
    front = w > 0
    w = torch.where(front, w, 1.0)
    carried = torch.stack([u / w, v / w], -1)
    jacobian = (H[..., :2, :2] - carried[..., None] * H[..., 2:, :2]) / w[..., None, None]
    carried = torch.where(front[..., None], carried, torch.inf)
    inside = ((carried >= -0.5) & (carried < size[:, None] - 0.5)).all(-1)
    return Carried(carried, jacobian, front & inside)


class ViewMaker:
    """Makes the pairs of a step from photographs: draws, warps or renders, relights.

    Parameters
    ----------
    photos : PhotoCache
        Where pictures come from.
    config : ViewConfig
        What is made.
    seed : int
        Of all random choices.
    held_out : bool
        Use the photographs kept for evaluation.
    device : torch.device or str
        Where pictures are made.
    """

    def __init__(
        self,
        photos: PhotoCache,
        config: ViewConfig,
        seed: int,
        held_out: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.photos, self.config, self.seed, self.held_out = photos, config, seed, held_out
        self.device = torch.device(device)

    def __call__(self, step: int, chunks: range) -> Views:
        """Return these chunks of `CHUNK` pairs of a step, the same at every call; all are of one kind."""
        rendered = bool(seeded(self.seed, self.held_out, step).initial_seed() % 1000 < 1000 * self.config.scenes)
        parts = []
        for chunk in chunks:
            generator = seeded(self.seed, self.held_out, step, chunk)
            parts.append(self._scenes(generator) if rendered else self._homographies(generator))
        return Views.cat(parts)

    def _homographies(self, generator: torch.Generator) -> Views:
        config = self.config
        size = 2 * config.size[0], 2 * config.size[1]  # so that the closer of two views is no blur
        photos = self.photos.sample(self.photos.draw(CHUNK, generator, self.held_out), size, generator, self.device)
        pairs = homographies.make_pairs(photos, config.homographies, generator)
        images = self._relight(pairs.images0, pairs.images1, generator)
        none = images.new_zeros(0, dtype=torch.float32)
        height, width = config.size
        return Views(
            images=images,
            homography=pairs.homography,
            depth=none.view(0, height, width),
            K=none.view(0, 3, 3),
            R=none.view(0, 3, 3),
            t=none.view(0, 3),
            seed=torch.randint(2**62, (), generator=generator),
        )

    def _scenes(self, generator: torch.Generator) -> Views:
        rows = self.photos.draw(6 * CHUNK, generator, self.held_out)
        textures = self.photos.sample(rows, (TEXTURE, TEXTURE), generator, self.device)
        pairs = scenes.make_pairs(textures, CHUNK, self.config.rendered, generator)
        images = self._relight(pairs.images0, pairs.images1, generator)
        return Views(
            images=images,
            homography=pairs.R.new_zeros(0, 3, 3),
            depth=torch.stack([pairs.depth0, pairs.depth1], 1).flatten(0, 1),
            K=torch.stack([pairs.K0, pairs.K1], 1).flatten(0, 1),
            R=pairs.R,
            t=pairs.t,
            seed=torch.randint(2**62, (), generator=generator),
        )

    def _relight(self, images0: Tensor, images1: Tensor, generator: torch.Generator) -> Tensor:
        """Change the light of both pictures of each pair; (2 B, 3, H, W), pair by pair, as 8-bit photographs have."""
        both = [photometric.augment(images, self.config.light, generator) for images in (images0, images1)]
        return (torch.stack(both, 1).flatten(0, 1) * 255).round().byte()
