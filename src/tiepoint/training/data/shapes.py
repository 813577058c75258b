"""Synthetic shapes whose corners are known: what a detector of corners learns its first idea of a corner from.

As in SuperPoint (arXiv 1712.07629, section 4): polygons, line segments, stars, checkerboards, stripes and cubes, before
a ground of blurred blots; and ellipses and bare noise, which have no corners at all.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Array = NDArray[np.float64]

_FINE = 3  # pixels of the drawing along a pixel of the picture
_STEP = 40  # grey levels by which a shape stands out at least


def draw_shapes(random: np.random.Generator, size: tuple[int, int]) -> tuple[NDArray[np.uint8], Array]:
    """Draw one picture.

    Parameters
    ----------
    random : numpy.random.Generator
        Chooses everything.
    size : (int, int)
        (height, width), pixels.

    Returns
    -------
    picture : uint8 array (H, W)
    corners : float array (N, 2)
        (x, y) of those inside the picture; (0, 0) is the centre of the top-left pixel.

    Examples
    --------
    >>> picture, corners = draw_shapes(np.random.default_rng(3), (120, 160))
    >>> picture.shape, bool((corners >= 0).all())
    ((120, 160), True)
    """
    height, width = size
    canvas = _Canvas(random, size)
    kinds = (_polygons, _segments, _star, _checkerboard, _stripes, _cube, _ellipses, _noise)
    corners = kinds[random.integers(len(kinds))](canvas)
    inside = ((corners >= 0) & (corners <= [width - 1, height - 1])).all(1)
    return canvas.picture(), corners[inside]


class _Canvas:
    """A drawing in progress, in coordinates of the final picture."""

    def __init__(self, random: np.random.Generator, size: tuple[int, int]) -> None:
        self.random = random
        self.height, self.width = size
        self.side = min(size)
        blots = Image.fromarray(random.integers(0, 256, (6, 8), dtype=np.uint8))
        ground = np.asarray(blots.resize((_FINE * self.width, _FINE * self.height), Image.Resampling.BICUBIC), float)
        self.ground = random.uniform(40, 215)
        self.image = Image.fromarray((self.ground + random.uniform(0, 0.25) * (ground - 128)).clip(0, 255).astype("u1"))
        self.pen = ImageDraw.Draw(self.image)

    def shade(self, *others: float) -> int:
        """Return a grey level that stands out from the ground and from others."""
        while True:
            level = self.random.uniform(0, 255)
            if all(abs(level - other) >= _STEP for other in (self.ground, *others)):
                return int(level)

    def points(self, count: int, margin: float = 0.05) -> Array:
        """Return random places on the picture."""
        return self.random.uniform(margin, 1 - margin, (count, 2)) * [self.width, self.height]

    def fill(self, polygon: Array, level: int) -> None:
        """Fill a polygon of (x, y)."""
        self.pen.polygon([tuple(point) for point in _fine(polygon)], fill=level)

    def line(self, ends: Array, level: int, thickness: float) -> None:
        """Draw a line from point to point."""
        self.pen.line([tuple(point) for point in _fine(ends)], fill=level, width=max(1, round(_FINE * thickness)))

    def picture(self) -> NDArray[np.uint8]:
        """Return it at its size, a little blurred and noisy."""
        blurred = self.image.filter(ImageFilter.GaussianBlur(_FINE * self.random.uniform(0, 0.8)))
        small = np.asarray(blurred.resize((self.width, self.height), Image.Resampling.BOX), float)
        noise = self.random.normal(0, self.random.uniform(0, 6), small.shape)
        return (small + noise).round().clip(0, 255).astype(np.uint8)


def _fine(points: Array) -> Array:
    return _FINE * (points + 0.5) - 0.5


def _polygons(canvas: _Canvas) -> Array:
    """Draw one to four convex polygons that do not touch."""
    corners: list[Array] = []
    taken: list[tuple[Array, float]] = []
    for _ in range(canvas.random.integers(1, 5)):
        radius = canvas.random.uniform(0.12, 0.35) * canvas.side
        centre = canvas.points(1)[0]
        if any(np.linalg.norm(centre - other) < radius + far for other, far in taken):
            continue
        taken.append((centre, radius))
        count = canvas.random.integers(3, 7)
        angles = (np.arange(count) + canvas.random.uniform(-0.3, 0.3, count)) * 2 * np.pi / count
        angles += canvas.random.uniform(0, 2 * np.pi)
        corners.append(centre + radius * np.column_stack([np.cos(angles), np.sin(angles)]))
        canvas.fill(corners[-1], canvas.shade())
    return np.concatenate(corners)


def _segments(canvas: _Canvas) -> Array:
    """Draw line segments; corners are their ends and where they cross."""
    ends = [canvas.points(2) for _ in range(canvas.random.integers(2, 9))]
    for pair in ends:
        canvas.line(pair, canvas.shade(), canvas.random.uniform(1, 3))
    crossings = [_crossing(a, b) for i, a in enumerate(ends) for b in ends[:i]]
    return np.concatenate([*ends, *(point[None] for point in crossings if point is not None)])


def _crossing(first: Array, second: Array) -> Array | None:
    """Return where two segments (2, 2) cross, if they do."""
    along = np.column_stack([first[1] - first[0], second[0] - second[1]])
    if abs(np.linalg.det(along)) < 1e-9:
        return None
    shares = np.linalg.solve(along, second[0] - first[0])
    return first[0] + shares[0] * (first[1] - first[0]) if ((shares >= 0) & (shares <= 1)).all() else None


def _star(canvas: _Canvas) -> Array:
    """Draw rays from one point."""
    centre = canvas.points(1, margin=0.3)
    count = canvas.random.integers(3, 9)
    angles = (np.arange(count) + canvas.random.uniform(-0.3, 0.3, count)) * 2 * np.pi / count
    length = canvas.random.uniform(0.15, 0.45, count) * canvas.side
    ends = centre + length[:, None] * np.column_stack([np.cos(angles), np.sin(angles)])
    level, thickness = canvas.shade(), canvas.random.uniform(1, 3)
    for end in ends:
        canvas.line(np.concatenate([centre, end[None]]), level, thickness)
    return np.concatenate([centre, ends])


def _checkerboard(canvas: _Canvas) -> Array:
    """Draw a board seen from anywhere; corners are where its squares meet."""
    return _board(canvas, int(canvas.random.integers(3, 8)), int(canvas.random.integers(3, 8)))


def _stripes(canvas: _Canvas) -> Array:
    """Draw stripes seen from anywhere; corners are their ends."""
    return _board(canvas, 1, int(canvas.random.integers(4, 10)))


def _board(canvas: _Canvas, rows: int, columns: int) -> Array:
    grid = np.stack(np.meshgrid(np.arange(columns + 1) / columns, np.arange(rows + 1) / rows), -1)
    grid[1:-1, :, 1] += canvas.random.uniform(-0.3, 0.3, rows - 1)[:, None] / rows
    grid[:, 1:-1, 0] += canvas.random.uniform(-0.3, 0.3, columns - 1) / columns
    # bilinear between four corners is not a perspective view, but its lines are as straight
    frame = np.array([[0.15, 0.15], [0.85, 0.15], [0.85, 0.85], [0.15, 0.85]]) + canvas.random.uniform(
        -0.2, 0.2, (4, 2)
    )
    frame = frame * [canvas.width, canvas.height]
    u, v = grid[..., :1], grid[..., 1:]
    at = (1 - u) * (1 - v) * frame[0] + u * (1 - v) * frame[1] + u * v * frame[2] + (1 - u) * v * frame[3]
    first = canvas.shade()
    second = canvas.shade(first)
    for row in range(rows):
        for column in range(columns):
            square = at[[row, row, row + 1, row + 1], [column, column + 1, column + 1, column]]
            canvas.fill(square, second if (row + column) % 2 else first)
    return at.reshape(-1, 2)


def _cube(canvas: _Canvas) -> Array:
    """Draw three faces of a block in parallel projection; corners are its seven visible ones."""
    angles = canvas.random.uniform(-0.25, 0.25, 3) + np.array([0.5, 2.6, -1.57])  # right and down, left and down, up
    length = canvas.random.uniform(0.2, 0.4, 3) * canvas.side
    right, left, up = length[:, None] * np.column_stack([np.cos(angles), np.sin(angles)])
    middle = canvas.points(1, margin=0.4)[0]
    levels: list[float] = []
    for a, b in ((right, left), (left, up), (up, right)):
        levels.append(canvas.shade(*levels))
        canvas.fill(np.array([middle, middle + a, middle + a + b, middle + b]), int(levels[-1]))
    return middle + np.array([0 * up, right, left, up, right + left, left + up, up + right])


def _ellipses(canvas: _Canvas) -> Array:
    """Draw ellipses: nothing is a corner."""
    for centre in canvas.points(int(canvas.random.integers(1, 9))):
        radii = canvas.random.uniform(0.04, 0.2, 2) * canvas.side
        box = _fine(np.array([centre - radii, centre + radii])).ravel().tolist()
        canvas.pen.ellipse(box, fill=canvas.shade())
    return np.zeros((0, 2))


def _noise(canvas: _Canvas) -> Array:
    """Draw noise: nothing is a corner."""
    grain = canvas.random.normal(128, 50, (canvas.height, canvas.width)).clip(0, 255).astype(np.uint8)
    canvas.image = Image.fromarray(grain).resize(canvas.image.size, Image.Resampling.BILINEAR)
    return np.zeros((0, 2))
