"""Still pictures, for a notebook, a phone screen and a paper: a figure, written to a file if asked; no global state.

Everything is drawn through matplotlib's objects on an off-screen canvas; `matplotlib.pyplot`, which keeps
figures alive and switches back ends for the whole process, is never imported.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, MissingDependencyError
from ..io.files import atomic, check_output
from ..io.images import resize
from ..types import Features, Image, Matches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# One look for all pictures: 8 inches wide (two paper columns) at 200 dots per inch, 1600 pixels.
WIDTH, DPI = 8.0, 200
MAX_LINES = 80  # more lines than this hide the photographs; the points are always all drawn
LINE_SPACING = 0.06  # inches, on average, between lines where they leave a photograph: less cannot be told apart
MAX_HEIGHT = 24.0  # inches; photographs that would be higher, 10 pixels wide and 10,000 high, are shown smaller
GAP = 0.012  # between the photographs, as a share of the picture's width
ABOVE, BELOW = 0.42, 0.44  # inches of room for the title, and for the legend or colour bar
STACK_ABOVE = 3.2  # photographs that would be wider than this side by side are stacked instead
SCORE_COLOURS = "plasma"  # even steps in brightness for colour-blind people, and no hue of sky or grass
INLIER, OUTLIER = "#a8ef2e", "#ff2f92"  # told apart by colour-blind people, and from sky and grass
# Okabe and Ito's colours, told apart by colour-blind people: as many as the ladder has rungs.
ATTEMPTS = ("#56b4e9", "#f0e442", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
SUFFIXES = (".png", ".jpg", ".pdf", ".svg")


def plot_matches(
    image0: Image,
    image1: Image,
    matches: Matches,
    path: str | os.PathLike[str] | None = None,
    *,
    inliers: NDArray[np.bool_] | None = None,
    color: str = "score",
    attempts: tuple[Sequence[str], NDArray[np.int64]] | None = None,
    method: str = "",
) -> Figure:
    """Draw two photographs side by side, a dot for every matched point, and lines between them.

    Wide photographs are stacked. As many lines are drawn as can be told apart, 80 at most, spread over the photographs,
    with the same fraction of inliers (or of each attempt) as there is among all; the title gives the true count.

    Parameters
    ----------
    image0, image1 : Image
        The photographs.
    matches : Matches
        What to draw.
    path : path, optional
        File to write, ending in .png, .jpg, .pdf or .svg; written atomically.
    inliers : bool array (K,) or None
        Which matches agree with the estimated geometry.
    color : {"score", "inlier", "attempt"}
        What the colour of a line says.
    attempts : names and int64 array (K,), or None
        The tries, and which of them each match comes from.
    method : str
        How the matches were made, for the title.

    Returns
    -------
    matplotlib.figure.Figure
        Shows itself at the end of a notebook's cell.

    Raises
    ------
    ArgumentError
        Unknown suffix or colour, no such folder or one of the photographs, ``color="inlier"`` without ``inliers``, or
        ``color="attempt"`` without ``attempts``.
    MissingDependencyError
        matplotlib is not installed.
    """
    if color not in ("score", "inlier", "attempt"):
        raise ArgumentError(f"color must be 'score', 'inlier' or 'attempt', not {color!r}")
    if color == "inlier" and inliers is None:
        raise ArgumentError("color='inlier' needs inliers: estimate a geometry first")
    if color == "attempt" and attempts is None:
        raise ArgumentError("color='attempt' needs attempts: which try each match comes from")
    target = _check(path, image0, image1)

    title = _count(len(matches), "match", "matches")
    if inliers is not None:
        title += f", {int(inliers.sum())} inliers"
    layout = Layout.of(image0, image1)
    figure, axes = layout.draw(image0, image1)

    start, end = layout.place(matches.points0, 0), layout.place(matches.points1, 1)
    groups = np.zeros(len(matches), np.int64)
    if inliers is not None:
        groups = inliers.astype(np.int64)
    if color == "attempt" and attempts is not None:
        groups = attempts[1]
    lines = _spread(np.hstack([start, end]), groups, layout.most_lines)
    if len(lines) < len(matches):
        title += f", {len(lines)} drawn as lines"
    if color == "inlier" and inliers is not None:
        colours: Any = np.where(inliers, INLIER, OUTLIER)
        order = np.argsort(inliers, kind="stable")[::-1]  # the few outliers on top, where they can be seen
        _legend(axes, {INLIER: f"inlier {int(inliers.sum())}", OUTLIER: f"outlier {int((~inliers).sum())}"})
    elif color == "attempt" and attempts is not None:
        names, sources = attempts
        palette = np.array(ATTEMPTS)[np.arange(len(names)) % len(ATTEMPTS)]
        colours = palette[sources] if len(sources) else np.zeros((0, 4))
        order = np.argsort(sources, kind="stable")  # the later ones on top
        counts = np.bincount(sources, minlength=len(names)).tolist()
        _legend(axes, {c: f"{n} {k}" for c, n, k in zip(palette.tolist(), names, counts, strict=True) if k})
    else:
        colours = _score_colours(matches.scores)
        order = np.argsort(matches.scores, kind="stable")  # the sure ones on top
        _colour_bar(figure, axes, "score of the match")
    order = order[np.isin(order, lines)]

    from matplotlib.collections import LineCollection

    # More lines have to be thinner and more transparent to leave something of the photographs.
    crowd = len(lines) / MAX_LINES
    width, alpha = 1.5 - 0.6 * crowd, 0.95 - 0.15 * crowd
    segments = list(np.stack([start[order], end[order]], axis=1))
    axes.add_collection(LineCollection(segments, colors=colours[order], linewidths=width, alpha=alpha))
    for points in (start, end):
        axes.scatter(
            *points.T,
            s=7 if len(matches) < 500 else 4,
            c=colours,
            edgecolors="black",
            linewidths=0.25,
            zorder=3,
        )
    names = f"{_short(image0.name)} – {_short(image1.name)}"
    _title(axes, names, "; ".join(part for part in (title, method) if part))
    return _finished(figure, target)


def plot_pruning(
    image0: Image,
    image1: Image,
    features0: Features,
    features1: Features,
    matches: Matches,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draw all keypoints, coloured by the number of layers they took part in before they were pruned.

    Parameters
    ----------
    image0, image1, features0, features1
        The photographs and their keypoints.
    matches : Matches
        From a matcher that prunes.
    path : path, optional
        File to write, ending in .png, .jpg, .pdf or .svg; written atomically.

    Returns
    -------
    matplotlib.figure.Figure
        Shows itself at the end of a notebook's cell.

    Raises
    ------
    ArgumentError
        Unknown suffix, no such folder, one of the photographs, or the matcher does not tell where it pruned.
    MissingDependencyError
        matplotlib is not installed.
    """
    if matches.stop_layer is None or matches.prune_layer0 is None or matches.prune_layer1 is None:
        raise ArgumentError(
            "this matcher has no layers at which points are pruned; try matcher 'lightglue' and effort 'fast'"
        )
    target = _check(path, image0, image1)
    layout = Layout.of(image0, image1)
    figure, axes = layout.draw(image0, image1, dim=0.45)
    from matplotlib import colormaps

    last = matches.stop_layer
    kept = 0
    for side, features, layers in (
        (0, features0, matches.prune_layer0),
        (1, features1, matches.prune_layer1),
    ):
        points = layout.place(features.keypoints.cpu().numpy(), side)
        kept += int((layers >= last).sum())
        order = np.argsort(layers, kind="stable")
        axes.scatter(
            *points[order].T,
            s=9,
            c=layers[order],
            cmap=colormaps[SCORE_COLOURS].resampled(last),  # as in the legend
            vmin=0.5,
            vmax=last + 0.5,
            edgecolors="black",
            linewidths=0.2,
        )
    total = len(features0) + len(features1)
    _colour_bar(figure, axes, "layers until it was pruned", steps=last)
    share = f"{100 * (total - kept) / total:.0f} % of {total}" if total else "no"
    _title(
        axes, f"{_short(image0.name)} – {_short(image1.name)}", f"{share} keypoints pruned, stopped after layer {last}"
    )
    return _finished(figure, target)


def plot_scores(matches: Matches, path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw the histogram of the matches' scores (the confidence of the assignment).

    Parameters
    ----------
    matches : Matches
        Whose ``scores`` to count.
    path : path, optional
        File to write, ending in .png, .jpg, .pdf or .svg; written atomically.

    Returns
    -------
    matplotlib.figure.Figure
        Shows itself at the end of a notebook's cell.

    Raises
    ------
    ArgumentError
        Unknown suffix, no such folder, one of the photographs.
    MissingDependencyError
        matplotlib is not installed.
    """
    target = _check(path)
    figure = _figure(WIDTH * 0.62, WIDTH * 0.4)
    axes = figure.add_axes((0.11, 0.15, 0.86, 0.74))
    counts, edges = np.histogram(matches.scores, bins=25, range=(0.0, 1.0))
    axes.bar(
        edges[:-1],
        counts,
        width=np.diff(edges),
        align="edge",
        color=_score_colours(edges[:-1] + 0.02),
        ec="white",
    )
    axes.set_xlim(0, 1)
    axes.set_xlabel("score of the match")
    axes.set_ylabel("matches")
    axes.locator_params(axis="y", integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    title = _count(len(matches), "match", "matches")
    if len(matches):
        median = float(np.median(matches.scores))
        axes.axvline(median, color="black", linewidth=1, linestyle="--")
        title += f", median score {median:.2f}"
    _title(axes, title)
    return _finished(figure, target)


@dataclass(frozen=True)
class Layout:
    """Where each photograph lies in the picture; lengths are in inches, from the top left."""

    corners: tuple[tuple[float, float], tuple[float, float]]
    scales: tuple[float, float]  # inches per pixel
    width: float
    height: float

    @classmethod
    def of(cls, image0: Image, image1: Image) -> Layout:
        """Fit both photographs to one height side by side, or to one width when stacked, and to `MAX_HEIGHT`."""
        (w0, h0), (w1, h1) = image0.size, image1.size
        gap = WIDTH * GAP
        if w0 / h0 + w1 / h1 <= STACK_ABOVE:
            height = min(MAX_HEIGHT, (WIDTH - gap) / (w0 / h0 + w1 / h1))
            scales = height / h0, height / h1
            return cls(((0, 0), (w0 * scales[0] + gap, 0)), scales, WIDTH, height)
        scales = min(WIDTH / w0, MAX_HEIGHT / h0), min(WIDTH / w1, MAX_HEIGHT / h1)
        return cls(((0, 0), (0, h0 * scales[0] + gap)), scales, WIDTH, h0 * scales[0] + gap + h1 * scales[1])

    @property
    def most_lines(self) -> int:
        """How many lines between the two photographs can be told apart."""
        beside = self.corners[1][0] > 0
        return max(1, min(MAX_LINES, int((self.height if beside else self.width) / LINE_SPACING)))

    def place(self, points: NDArray[np.float32], side: int) -> NDArray[np.float64]:
        """Map pixels of one photograph, whose first pixel's centre is (0, 0), to inches of the picture."""
        return (np.asarray(points, np.float64) + 0.5) * self.scales[side] + self.corners[side]

    def draw(self, image0: Image, image1: Image, dim: float = 0.0) -> tuple[Any, Any]:
        """Return a figure and its axes (in inches) holding both photographs; ``dim`` darkens them."""
        total = ABOVE + self.height + BELOW
        figure = _figure(self.width, total)
        axes = figure.add_axes((0, BELOW / total, 1, self.height / total))
        for side, image in enumerate((image0, image1)):
            (x, y), scale, (w, h) = self.corners[side], self.scales[side], image.size
            # Twice the resolution that can be seen keeps vector formats small.
            shown = resize(image.pixels, max(1, round(2 * DPI * scale * max(w, h))))
            shown = (shown * (1 - dim)).astype(np.uint8) if dim else shown
            axes.imshow(shown, extent=(x, x + w * scale, y + h * scale, y), aspect="auto", interpolation="antialiased")
        axes.set(xlim=(0, self.width), ylim=(self.height, 0))
        axes.axis("off")
        return figure, axes


def _check(path: str | os.PathLike[str] | None, *shown: Image) -> Path | None:
    """Return ``path`` if a picture can be written there, and not over the photographs that it shows."""
    return None if path is None else check_output(path, SUFFIXES, inputs=[image.name for image in shown])


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        figure = _figure_class()(figsize=(width, height), dpi=DPI, facecolor="white")
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "viz", "drawing pictures") from error
    FigureCanvasAgg(figure)
    return figure


def _figure_class() -> type[Figure]:
    """Return matplotlib's figure with what a notebook asks for; on its own only pyplot's figures show themselves."""
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        def _repr_png_(self) -> bytes:
            return as_png(self)

    return NotebookFigure


def as_png(figure: Figure) -> bytes:
    """Return a figure as a notebook shows it."""
    png = BytesIO()
    figure.savefig(png, format="png", dpi=DPI / 2)
    return png.getvalue()


def _finished(figure: Figure, path: Path | None) -> Figure:
    """Write the figure if there is a path."""
    if path is not None:
        with atomic(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=DPI)
    return figure


def _title(axes: Any, *lines: str) -> None:
    """Write small lines above the axes; a text wider than the picture is shortened, never cut."""
    figure = axes.figure
    width = figure.get_figwidth() * figure.dpi * 0.98
    for row, text in enumerate(reversed(lines)):
        label = axes.annotate(
            text, (0.5, 1), (0, 5 + 11 * row), "axes fraction", "offset points", ha="center", fontsize=8, color="#222"
        )
        while text and label.get_window_extent().width > width:
            text = text[:-2]
            label.set_text(f"{text} …")


def _short(name: str) -> str:
    """Return the last part of a file name, shortened in its middle."""
    name = Path(name).name or "array"
    return name if len(name) <= 40 else f"{name[:20]}…{name[-18:]}"


def _score_colours(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Return RGBA (K, 4); scores 0 to 1 always span the whole scale, so that pictures can be compared."""
    from matplotlib import colormaps

    return colormaps[SCORE_COLOURS](np.asarray(scores, np.float64))


def _colour_bar(figure: Any, axes: Any, label: str, steps: int | None = None) -> None:
    """Draw a flat bar under the photographs, from 0 to 1, or with a colour for each of ``steps``, the last "kept"."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    below = axes.get_position().y0
    place = figure.add_axes((0.3, below * 0.62, 0.4, below * 0.2))
    if steps is None:
        mappable, ticks = ScalarMappable(Normalize(0, 1), SCORE_COLOURS), [0, 0.25, 0.5, 0.75, 1]
    else:
        ticks = list(range(1, steps + 1))
        mappable = ScalarMappable(Normalize(0.5, steps + 0.5), colormaps[SCORE_COLOURS].resampled(steps))
    bar = figure.colorbar(mappable, cax=place, orientation="horizontal", ticks=ticks)
    if steps is not None:
        bar.set_ticklabels([*map(str, ticks[:-1]), "kept"])
    bar.outline.set_visible(False)
    place.tick_params(labelsize=8, length=2, pad=1)
    figure.text(0.29, below * 0.72, label, fontsize=9, ha="right", va="center")


def _legend(axes: Any, names: dict[str, str]) -> None:
    from matplotlib.lines import Line2D

    axes.legend(
        handles=[Line2D([], [], color=colour, linewidth=3, label=name) for colour, name in names.items()],
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=len(names),
        frameon=False,
        fontsize=10,
    )


def _spread(ends: NDArray[np.float64], groups: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return at most ``count`` rows of ``ends`` (K, 4), each group with its fraction, that lie far from each other.

    Within a group every next one is the farthest from those taken (Gonzalez 1985).
    """
    if len(ends) <= count:
        return np.arange(len(ends))
    kinds, sizes = np.unique(groups, return_counts=True)
    shares = np.maximum(1, np.floor(count * sizes / len(ends))).astype(int)
    chosen = []
    for kind, share in zip(kinds, shares, strict=True):
        rows = np.flatnonzero(groups == kind)
        places = ends[rows]
        next_one = int(((places - places.mean(axis=0)) ** 2).sum(axis=1).argmin())
        away = np.full(len(rows), np.inf)
        for _ in range(min(share, len(rows))):
            chosen.append(rows[next_one])
            away = np.minimum(away, ((places - places[next_one]) ** 2).sum(axis=1))
            next_one = int(away.argmax())
    return np.array(sorted(chosen), np.int64)


def _count(n: int, one: str, many: str) -> str:
    return f"{n if n else 'no'} {one if n == 1 else many}"
