"""Pictures of training pairs with their labels or with predicted matches; TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch
from numpy.typing import NDArray

from ..data.ground_truth import IGNORED
from ..objectives.base import Output
from ..objectives.losses import predicted_partners
from ..pairs.batch import Batch

GREEN, RED, GREY = (60, 220, 90), (235, 60, 60), (150, 150, 150)


def draw_pair(
    images: Sequence[torch.Tensor], batch: Batch, pair: int, predicted: torch.Tensor | None = None
) -> NDArray[np.uint8]:
    """Draw the two pictures of a pair side by side, with its labels or with predicted matches.

    Parameters
    ----------
    images : 2 B float32 tensors (3, H, W) in [0, 1]
        Pictures of the batch, see `ChunkMaker.pictures`; of one pair they may have two sizes.
    batch : Batch
        Keypoints and labels.
    pair : int
        Which pair.
    predicted : int64 tensor (N,), optional
        Partner of each keypoint of the first picture, or -1. Right matches are drawn green, wrong ones red, those of
        ignored keypoints grey. Without it: true matches are green, unmatchable keypoints red, ignored ones grey.

    Returns
    -------
    uint8 array (H, W0 + W1, 3)
    """
    first, second = (
        PIL.Image.fromarray(images[2 * pair + side].permute(1, 2, 0).mul(255).round().byte().cpu().numpy())
        for side in (0, 1)
    )
    width = first.width
    canvas = PIL.Image.new("RGB", (width + second.width, max(first.height, second.height)))
    canvas.paste(first)
    canvas.paste(second, (width, 0))
    pen = PIL.ImageDraw.Draw(canvas)
    points = [(batch.keypoints[2 * pair + side] + torch.tensor([side * width, 0.0])).tolist() for side in (0, 1)]
    truth = [batch.matches0[pair].tolist(), batch.matches1[pair].tolist()]
    counts = batch.counts[2 * pair : 2 * pair + 2].tolist()

    def line(i: int, j: int, colour: tuple[int, int, int]) -> None:
        pen.line([*points[0][i], *points[1][j]], fill=colour)

    if predicted is None:
        for side in (0, 1):
            for (x, y), label in zip(points[side][: counts[side]], truth[side], strict=False):
                pen.ellipse(
                    [x - 2, y - 2, x + 2, y + 2], outline=GREEN if label >= 0 else GREY if label == IGNORED else RED
                )
        for i, j in enumerate(truth[0]):
            if j >= 0:
                line(i, j, GREEN)
    else:
        for i, j in enumerate(predicted.tolist()):
            if j >= 0:
                line(i, j, GREY if truth[0][i] == IGNORED else GREEN if truth[0][i] == j else RED)
    return np.asarray(canvas)


class Board:
    """Scalars and pictures of matches for TensorBoard."""

    def __init__(self, writer: Any, batch: Batch, drawing: Callable[[], list[torch.Tensor]]) -> None:
        self.writer, self.batch, self.drawing = writer, batch, drawing
        self.predictions: torch.Tensor | None = None
        self._images: list[torch.Tensor] = []

    @classmethod
    def open(cls, folder: Path, batch: Batch, drawing: Callable[[], list[torch.Tensor]]) -> Board | None:
        """Return a board, or None where TensorBoard is not installed.

        Parameters
        ----------
        folder : Path
            The run's.
        batch : Batch
            Held-out pairs, of which the first three are drawn.
        drawing : callable
            Returns their pictures, see `draw_pair`.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        return cls(SummaryWriter(str(folder / "tensorboard")), batch, drawing)

    def look(self, output: Output) -> None:
        """Keep the predicted matches of the pairs."""
        self.predictions = predicted_partners(output.log_p, output.threshold).cpu()

    def add(self, row: dict[str, Any]) -> None:
        """Write one row of metrics and, after an evaluation, how three held-out pairs are matched."""
        step = row["step"]
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, step)
        if self.predictions is not None:
            self._images = self._images or self.drawing()
            for pair in range(3):
                drawn = draw_pair(self._images, self.batch, pair, self.predictions[pair])
                self.writer.add_image(f"held-out/{pair}", drawn, step, dataformats="HWC")
            self.predictions = None
        self.writer.flush()
