"""Base of all objectives: a module that turns the pairs of a step into a loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..data.ground_truth import Labels


@dataclass(frozen=True, eq=False)
class Output:
    """One forward pass: the loss of a batch, and the predicted assignment.

    Attributes
    ----------
    loss : scalar tensor
    log_p : tensor (B, N, M)
        Log assignment of the last layer.
    labels : Labels
        Ground truth.
    parts : dict of scalar tensors
        Other columns of the metrics.
    threshold : float
        P above which a mutual maximum of ``log_p`` is reported as a match.
    """

    loss: Tensor
    log_p: Tensor
    labels: Labels
    parts: dict[str, Tensor] = field(default_factory=dict)
    threshold: float = 0.1


class Objective(nn.Module):
    """A network and what it minimises; `fit` trains it.

    Attributes
    ----------
    net : Module
        What is averaged, saved and resumed.
    compiled : tuple of types
        Modules that `compile_parts` compiles; they do not depend on the layout of a batch, so that one compilation
        serves batches of any.
    """

    net: nn.Module
    compiled: tuple[type[nn.Module], ...]

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Any) -> Output:
        """Return the loss of a batch."""
        raise NotImplementedError

    def compile_parts(self) -> None:
        """Compile the parts of the network that take most of the time."""
        for module in self.modules():
            if isinstance(module, self.compiled):
                module.compile(dynamic=True)
