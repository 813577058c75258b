"""What a keypoint looks like: patches in polar coordinates -> descriptor, direction and covariance."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..steerable import steer
from .config import NOISE, CairnConfig

FAINT = 0.1  # amplitude of the harmonic below which a direction means little


class Description(NamedTuple):
    """What `DescriptorHead` says about N keypoints.

    Attributes
    ----------
    descriptors : tensor (N, D)
        Of unit length.
    directions : tensor (N, 2)
        (cos, sin) of the keypoint's direction, of unit length.
    spreads : tensor (N, 2, 2)
        Lower triangular L, in pixels of the keypoint's level and along the image's axes: L L^T is the covariance of
        its position.
    """

    descriptors: Tensor
    directions: Tensor
    spreads: Tensor


class DescriptorHead(nn.Module):
    """Patches in polar coordinates (N, angles, rings) -> `Description`."""

    def __init__(self, config: CairnConfig) -> None:
        super().__init__()
        c = config.channels
        self.first = nn.Linear(5 * config.rings, c)
        self.second = nn.Linear(3 * c, c)
        self.third = nn.Linear(3 * c, c)
        self.compass = nn.Linear(c, 1)
        self.descriptor = nn.Linear(c * config.angles // 2, config.dim)
        self.spread = nn.Linear(c * config.angles // 2, 3)

    def forward(self, patches: Tensor) -> Description:
        """Describe patches, each of any brightness and contrast."""
        x = F.layer_norm(patches, patches.shape[1:], eps=NOISE**2)
        x = _norm(F.relu(_around(x, self.first, step=2)))
        x = _norm(F.relu(_around(x, self.second)))
        x = _norm(F.relu(_around(x, self.third)))
        direction = self._direction(x)
        x = _turn(x, direction).flatten(1)
        descriptors = F.normalize(self.descriptor(x), dim=1)
        # how precise a position is must not bend what describes it
        return Description(descriptors, direction, self._spread(x.detach(), direction.detach()))

    def _direction(self, x: Tensor) -> Tensor:
        """Return the phase of the first harmonic of one feature around the circle, as a unit vector.

        Where the harmonic all but vanishes its phase is chance, whose gradient would be without bounds: the gradient is
        that of a vector which shrinks there.
        """
        angle = torch.arange(x.shape[1], device=x.device) * (2 * math.pi / x.shape[1])
        compass = self.compass(x)[..., 0].float()
        # the same on all sides means angle 0
        harmonic = torch.stack([(compass * angle.cos()).sum(1) + 1e-6, (compass * angle.sin()).sum(1)], 1)
        shrinking = harmonic * (harmonic.square().sum(1, keepdim=True) + FAINT**2).rsqrt()
        return F.normalize(harmonic, dim=1).detach() + (shrinking - shrinking.detach())

    def _spread(self, x: Tensor, direction: Tensor) -> Tensor:
        """Return a Cholesky factor: predicted along the keypoint's direction, turned to the image's axes."""
        a, b, c = self.spread(x).float().unbind(1)
        cos, sin = direction.float().unbind(1)
        a, c = a.clamp(-4, 4).exp(), c.clamp(-4, 4).exp()
        # turned: rows of R L; its covariance factored again, in closed form
        xx, xy, yx, yy = cos * a - sin * b, -sin * c, sin * a + cos * b, cos * c
        first = torch.sqrt(xx * xx + xy * xy)
        second = (xx * yx + xy * yy) / first
        third = a * c / first  # the determinant stays
        return torch.stack([first, torch.zeros_like(first), second, third], 1).unflatten(1, (2, 2))


class SteerableDescriptorHead(nn.Module):
    """Patches in polar coordinates (N, angles, rings) -> `Description`, all of it read from circular harmonics.

    After the layers each patch is a function on the circle with values in R^channels. Its Fourier coefficients of order
    m turn by m times the angle by which the photograph is turned. A coefficient of order 1 gives the direction, one of
    order 0 and one of order 2 the covariance, and linear maps that keep the orders apart give the descriptor.
    """

    layers: Any  # a list of linear layers, of which PyTorch does not say the kind

    def __init__(self, config: CairnConfig) -> None:
        super().__init__()
        c = config.channels
        self.harmonics = config.harmonics
        self.first = nn.Linear(5 * config.rings, c)
        self.layers = nn.ModuleList(nn.Linear(3 * c, c) for _ in range(config.depth))
        self.compass = nn.Linear(c, 2, bias=False)
        # real and imaginary parts of complex weights
        self.descriptor = nn.ModuleList(
            nn.Linear(c, (2 if order else 1) * count, bias=order == 0) for order, count in enumerate(config.harmonics)
        )
        self.size = nn.Linear(c, 1)
        self.stretch = nn.Linear(c, 2, bias=False)

    def forward(self, patches: Tensor) -> Description:
        """Describe patches, each of any brightness and contrast."""
        x = F.layer_norm(patches, patches.shape[1:], eps=NOISE**2)
        x = _norm(F.relu(_around(x, self.first, step=2)))
        for layer in self.layers:
            x = _norm(x + F.relu(_around(x, layer)))
        real, imaginary = self.orders(x)
        direction = _unit(torch.cat(_complex(self.compass, real[:, 1], imaginary[:, 1]), 1))
        read = self.read(real, imaginary)
        turned = steer(read, -torch.atan2(direction[:, 1], direction[:, 0]), self.harmonics)
        return Description(turned, direction, self._spread(real.detach(), imaginary.detach()))

    def orders(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return real and imaginary parts (N, orders, C) of the Fourier coefficients of (N, A, C) around the circle."""
        orders = max(3, len(self.harmonics))  # direction and covariance need three
        angle = torch.arange(x.shape[1], device=x.device) * (2 * math.pi / x.shape[1])
        phase = torch.arange(orders, device=x.device)[:, None] * angle
        x = x.float()
        return phase.cos() @ x / x.shape[1], phase.sin() @ x / x.shape[1]

    def read(self, real: Tensor, imaginary: Tensor) -> Tensor:
        """Return unit descriptors (N, D) as the image stands."""
        parts = [self.descriptor[0](real[:, 0])]
        for order in range(1, len(self.harmonics)):
            parts.extend(_complex(self.descriptor[order], real[:, order], imaginary[:, order]))
        return F.normalize(torch.cat(parts, 1), dim=1)

    def _spread(self, real: Tensor, imaginary: Tensor) -> Tensor:
        """Return the Cholesky factor of a covariance with axes exp(size ± stretch), stretched in a direction."""
        size = self.size(real[:, 0])[:, 0].clamp(-4, 4)
        x, y = (part[:, 0].clamp(-4, 4) for part in _complex(self.stretch, real[:, 2], imaginary[:, 2]))
        stretch = (x * x + y * y + 1e-6).sqrt()
        along = torch.sinh(stretch.clamp(max=4)) / stretch
        a, b, c = torch.cosh(stretch.clamp(max=4)) + along * x, along * y, torch.cosh(stretch.clamp(max=4)) - along * x
        first = a.sqrt()
        second = b / first
        third = (c - second * second).clamp(min=1e-6).sqrt()
        rows = torch.stack([first, torch.zeros_like(first), second, third], 1).unflatten(1, (2, 2))
        return rows * size.exp()[:, None, None]


def _complex(weights: nn.Module, real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply complex numbers (N, C) by the complex matrix whose real and imaginary parts a linear layer holds."""
    (a, b), (c, d) = weights(real).chunk(2, 1), weights(imaginary).chunk(2, 1)
    return a - d, b + c


def _unit(harmonic: Tensor) -> Tensor:
    """Return vectors (N, 2) at unit length.

    Where one all but vanishes its direction is chance, whose gradient would be without bounds: the gradient is that of
    a vector which shrinks there.
    """
    harmonic = harmonic + harmonic.new_tensor([1e-6, 0.0])  # the same on all sides means angle 0
    shrinking = harmonic * (harmonic.square().sum(1, keepdim=True) + FAINT**2).rsqrt()
    return F.normalize(harmonic, dim=1).detach() + (shrinking - shrinking.detach())


def _around(x: Tensor, layer: nn.Linear, step: int = 1) -> Tensor:
    """Apply a linear layer to every ``step``-th angle of (N, A, C) joined with its neighbours: (N, A / step, C').

    How many neighbours on each side, its size says. This is a convolution along the circle, and is computed as one:
    joining the neighbours costs more memory traffic than the product itself.
    """
    joined = layer.in_features // x.shape[2]
    reach = joined // 2
    weight = layer.weight.unflatten(1, (joined, -1)).transpose(1, 2).unsqueeze(2)
    circle = torch.cat([x[:, -reach:], x, x[:, :reach]], 1)
    # (N, C, 1, angles) in channels-last order: what the linear layer's rows are already
    return F.conv2d(circle.mT.unsqueeze(2), weight, layer.bias, stride=(1, step)).squeeze(2).mT


def _norm(x: Tensor) -> Tensor:
    """Standardise each patch as a whole, so that what holds for one angle holds for all."""
    return F.layer_norm(x, x.shape[1:])


def _turn(x: Tensor, direction: Tensor) -> Tensor:
    """Turn (N, A, C) so that angle 0 is that of ``direction`` (N, 2); linear between angles."""
    count = x.shape[1]
    angle = torch.atan2(direction[:, 1], direction[:, 0]) * (count / (2 * math.pi))
    whole = angle.detach().floor()
    part = (angle - whole)[:, None, None].to(x.dtype)
    index = (whole.long()[:, None] + torch.arange(count + 1, device=x.device)) % count
    rows = index + count * torch.arange(x.shape[0], device=x.device)[:, None]
    # whole rows are copied, several times faster than gathering number by number
    x = x.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, (-1, count + 1))
    return torch.lerp(x[:, :-1], x[:, 1:], part)
