"""Pictures and the page: what they show, not only that they exist."""

from __future__ import annotations

import base64
import io
import re
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from tiepoint import viz
from tiepoint.errors import ArgumentError, MissingDependencyError
from tiepoint.matchers.base import make_matches
from tiepoint.two_view import TwoView
from tiepoint.types import Features, Image, Matches
from tiepoint.viz import pictures


def grey(width: int, height: int, name: str = "grey.jpg") -> Image:
    return Image(np.full((height, width, 3), 128, np.uint8), name=name)


def some_matches(points0: list[list[float]], points1: list[list[float]], scores: list[float]) -> Matches:
    index = np.arange(len(points0), dtype=np.int64)
    p0, p1 = (np.array(p, np.float32).reshape(-1, 2) for p in (points0, points1))
    return Matches(np.stack([index, index], 1), np.array(scores, np.float32), p0, p1)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(PIL.Image.open(path).convert("RGB")).astype(int)


def at(path: Path, layout: pictures.Layout, point: list[float], side: int) -> tuple[int, int]:
    """Return (row, column) in the PNG of a pixel of a photograph."""
    x, y = layout.place(np.array([point], np.float32), side)[0] * pictures.DPI
    top = pictures.ABOVE * pictures.DPI
    return round(y + top), round(x)


@pytest.mark.parametrize("size", [(400, 300), (900, 250)], ids=["beside", "stacked"])
def test_a_line_joins_the_two_points(tmp_path: Path, size: tuple[int, int]) -> None:
    image = grey(*size)
    p, q = [40.0, 50.0], [300.0, 200.0]
    viz.plot_matches(image, image, some_matches([p], [q], [1.0]), tmp_path / "one.png")
    viz.plot_matches(image, image, some_matches([], [], []), tmp_path / "none.png")
    changed = np.abs(pixels(tmp_path / "one.png") - pixels(tmp_path / "none.png")).max(-1) > 60
    layout = pictures.Layout.of(image, image)
    ends = np.array([at(tmp_path / "one.png", layout, p, 0), at(tmp_path / "one.png", layout, q, 1)])
    for share in np.linspace(0, 1, 21):
        row, column = np.rint(ends[0] + share * (ends[1] - ends[0])).astype(int)
        assert changed[row - 2 : row + 3, column - 2 : column + 3].any(), f"nothing at {share:.0%} of the line"
    title_and_photographs = changed.sum()
    assert title_and_photographs < 0.02 * changed.size, "one match must not change the whole picture"


def test_pixel_centres_are_drawn_at_pixel_centres(tmp_path: Path) -> None:
    """One white pixel and a match on it must coincide, which half a pixel of error would break."""
    picture = np.zeros((30, 40, 3), np.uint8)
    picture[10, 15] = 255
    image = Image(picture)
    figure, _ = (layout := pictures.Layout.of(image, image)).draw(image, image)
    figure.savefig(tmp_path / "white.png", dpi=pictures.DPI)
    white = np.argwhere(pixels(tmp_path / "white.png")[90:-100, :780].min(-1) > 200).mean(0) + np.array([90, 0])
    expected = at(tmp_path / "white.png", layout, [15, 10], 0)
    assert np.abs(white - expected).max() < 0.2 * layout.scales[0] * pictures.DPI


def test_wide_photographs_are_stacked() -> None:
    beside, stacked = (
        pictures.Layout.of(grey(400, 300), grey(300, 400)),
        pictures.Layout.of(grey(900, 250), grey(900, 250)),
    )
    assert beside.corners[1][1] == 0 and beside.corners[1][0] > 0
    assert stacked.corners[1][0] == 0 and stacked.corners[1][1] > 0


def test_inliers_and_outliers_have_their_colours(tmp_path: Path) -> None:
    image = grey(400, 300)
    points = [[50.0, 50.0], [50.0, 250.0]]
    matches = some_matches(points, points, [0.9, 0.9])
    path = tmp_path / "a.png"
    viz.plot_matches(image, image, matches, path, inliers=np.array([True, False]), color="inlier")
    layout = pictures.Layout.of(image, image)
    for point, name in zip(points, (pictures.INLIER, pictures.OUTLIER), strict=True):
        wanted = [int(name[i : i + 2], 16) for i in (1, 3, 5)]
        row, column = at(path, layout, point, 0)
        assert np.abs(pixels(path)[row, column] - wanted).max() < 40


def test_lines_are_few_spread_over_the_photographs_and_as_often_inliers_as_all(tmp_path: Path) -> None:
    """Most matches lie in one corner; lines leave the first photograph everywhere, and can be told apart."""
    rng = np.random.default_rng(0)
    image = grey(400, 300)
    points = np.vstack([rng.uniform((0, 0), (40, 30), (1900, 2)), rng.uniform((0, 0), (399, 299), (100, 2))])
    inliers = np.arange(2000) % 4 > 0
    matches = some_matches(points.tolist(), points.tolist(), [0.5] * 2000)
    viz.plot_matches(image, image, matches, tmp_path / "a.png", inliers=inliers, color="inlier")
    layout = pictures.Layout.of(image, image)
    gap = pixels(tmp_path / "a.png")[
        round(pictures.ABOVE * pictures.DPI) : round((pictures.ABOVE + layout.height) * pictures.DPI),
        round((layout.corners[1][0] - pictures.WIDTH * pictures.GAP / 2) * pictures.DPI),
    ]
    green, pink = gap[:, 1] - gap[:, 0] > 60, gap[:, 0] - gap[:, 1] > 60
    lines = np.flatnonzero(np.diff((green | pink).astype(int)) == 1)
    assert 30 < len(lines) <= pictures.MAX_LINES
    assert np.histogram(lines, bins=5, range=(0, len(gap)))[0].min() >= 3  # every fifth of the height has some
    assert 0.1 < pink.sum() / (pink.sum() + green.sum()) < 0.4


def test_title_and_labels_are_not_cut(tmp_path: Path) -> None:
    """Text of any length leaves the border of the picture white."""
    image = grey(400, 300, name="x" * 300 + ".jpg")
    viz.plot_matches(image, image, some_matches([[9, 9]], [[9, 9]], [1.0]), tmp_path / "a.png", method="m" * 500)
    _, features, matches = pruned()
    viz.plot_pruning(image, image, features, features, matches, tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        picture = pixels(tmp_path / name)
        title = picture[: round(pictures.ABOVE * pictures.DPI) - 2]
        below = picture[-round(pictures.BELOW * pictures.DPI) + 2 :]
        for part in (title, below):
            assert (part < 128).any()  # there is text
            assert (part[:, :4] > 250).all() and (part[:, -4:] > 250).all()
        assert (picture[:2] > 250).all() and (picture[-2:] > 250).all()


def test_the_last_colour_of_pruning_is_of_those_kept(tmp_path: Path) -> None:
    """The legend has one colour a layer; its last is that of keypoints that were never pruned."""
    image, features, matches = pruned()
    viz.plot_pruning(image, image, features, features, matches, tmp_path / "p.png")
    picture = pixels(tmp_path / "p.png")
    layout = pictures.Layout.of(image, image)
    kept = picture[at(tmp_path / "p.png", layout, features.keypoints[5].tolist(), 0)]
    row = round((pictures.ABOVE + layout.height + pictures.BELOW * (1 - 0.72)) * pictures.DPI)
    bar = picture[row, round(0.3 * pictures.WIDTH * pictures.DPI) : round(0.7 * pictures.WIDTH * pictures.DPI)]
    assert len(np.unique(bar[20:-20] // 8, axis=0)) == 3
    assert np.abs(bar[-20] - kept).max() < 12
    assert np.abs(bar[len(bar) // 2] - kept).max() > 40


def pruned() -> tuple[Image, Features, Matches]:
    import torch

    n = 6
    points = torch.tensor([[20.0 + 10 * i, 30.0] for i in range(n)])
    features = Features(points, torch.ones(n), torch.eye(n), (100, 60), "sift")
    base = make_matches(features, features, np.array([[5, 5]]), np.ones(1, np.float32))
    layers = np.array([1, 1, 2, 2, 3, 3])
    return (
        grey(100, 60),
        features,
        Matches(base.indices, base.scores, base.points0, base.points1, 3, layers, np.full(n, 3)),
    )


def test_pruning_colours_keypoints_by_layer(tmp_path: Path) -> None:
    image, features, matches = pruned()
    path = tmp_path / "p.png"
    viz.plot_pruning(image, image, features, features, matches, path)
    layout = pictures.Layout.of(image, image)
    colours = [pixels(path)[at(path, layout, point, 0)] for point in features.keypoints.tolist()]
    brightness = np.array(colours).sum(1)
    assert (brightness[:2] < brightness[2:4]).all() and (brightness[2:4] < brightness[4:]).all()


def test_pruning_needs_a_matcher_that_prunes(tmp_path: Path) -> None:
    image, features, _ = pruned()
    matches = some_matches([], [], [])
    with pytest.raises(ArgumentError, match="lightglue"):
        viz.plot_pruning(image, image, features, features, matches, tmp_path / "p.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scores", [[], [0.0], [1.0], [0.1, 0.5, 0.5, 0.9]])
def test_score_histograms(tmp_path: Path, scores: list[float]) -> None:
    viz.plot_scores(some_matches([[0, 0]] * len(scores), [[0, 0]] * len(scores), scores), tmp_path / "h.png")
    picture = pixels(tmp_path / "h.png")
    coloured = (picture.max(-1) - picture.min(-1) > 60).any()
    assert coloured == bool(scores)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".pdf", ".svg"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    image = grey(60, 40)
    viz.plot_matches(image, image, some_matches([[5, 5]], [[9, 9]], [0.5]), tmp_path / f"a{suffix}")
    start = {".png": b"\x89PNG", ".jpg": b"\xff\xd8", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix]
    assert (tmp_path / f"a{suffix}").read_bytes().startswith(start)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_figure_shows_itself_in_a_notebook_and_is_the_file(tmp_path: Path) -> None:
    image = grey(200, 100)
    found = some_matches([[40.0, 50.0]], [[100.0, 20.0]], [1.0])
    figure = viz.plot_matches(image, image, found, tmp_path / "a.png")
    shown = figure._repr_png_()
    size = PIL.Image.open(io.BytesIO(shown)).size
    written = PIL.Image.open(tmp_path / "a.png").size
    assert np.abs(np.array(size) * 2 - written).max() <= 2, "half the resolution of the file"
    assert viz.plot_matches(image, image, found)._repr_png_() == shown
    assert viz.plot_scores(found)._repr_png_() != shown
    assert len(list(tmp_path.iterdir())) == 1, "without a path no file is written"


def test_a_result_shows_itself_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    image, found = grey(200, 100), some_matches([[40.0, 50.0]], [[100.0, 20.0]], [1.0])
    one = Features(torch.tensor([[40.0, 50.0]]), torch.ones(1), torch.eye(4)[:1], image.size, "mine")
    result = TwoView(image, image, one, one, found, choice="mine + <i>nearest</i>")
    shown = result._repr_html_()
    (picture,) = re.findall(r'src="data:image/png;base64,([^"]+)"', shown)
    assert base64.b64decode(picture) == result.plot()._repr_png_()
    words = shown.partition("<img")[0]
    assert "1 matches; mine + &lt;i&gt;nearest&lt;/i&gt;" in words and "<i>" not in shown
    assert "Fewer than 15 matches" in words
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert result._repr_html_() == words, "without matplotlib there is no picture"


def test_drawing_leaves_no_trace_in_pyplot(tmp_path: Path) -> None:
    import matplotlib

    before = matplotlib.get_backend(auto_select=False)
    viz.plot_scores(some_matches([], [], []), tmp_path / "h.png")
    assert matplotlib.get_backend(auto_select=False) == before


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, matches = grey(20, 20), some_matches([], [], [])
    with pytest.raises(ArgumentError, match="must end in"):
        viz.plot_matches(image, image, matches, tmp_path / "a.bmp")
    with pytest.raises(ArgumentError, match="geometry"):
        viz.plot_matches(image, image, matches, tmp_path / "a.png", color="inlier")
    with pytest.raises(ArgumentError, match="color"):
        viz.plot_matches(image, image, matches, tmp_path / "a.png", color="red")
    with pytest.raises(ArgumentError, match="does not exist"):
        viz.plot_matches(image, image, matches, tmp_path / "no" / "a.png")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match="tiepoint\\[viz\\]"):
        viz.plot_scores(matches, tmp_path / "a.png")


@pytest.mark.parametrize(
    "sizes", [((10, 10_000), (10, 10_000)), ((10, 10_000), (10_000, 10)), ((10_000, 10), (400, 300))]
)
def test_photographs_of_extreme_shapes_take_little_memory(tmp_path: Path, sizes: tuple) -> None:
    """Drawn as wide as others they would be 4 m high, 18 GiB of pixels."""
    one, two = grey(*sizes[0]), grey(*sizes[1])
    viz.plot_matches(one, two, some_matches([[5, 5]], [[5, 5]], [1.0]), tmp_path / "a.png")
    width, height = PIL.Image.open(tmp_path / "a.png").size
    assert width == pictures.WIDTH * pictures.DPI and height <= (2 * pictures.MAX_HEIGHT + 2) * pictures.DPI
    layout = pictures.Layout.of(one, two)
    for image, corner, scale in zip((one, two), layout.corners, layout.scales, strict=True):
        assert corner[0] + image.size[0] * scale <= layout.width + 1e-9
        assert corner[1] + image.size[1] * scale <= layout.height + 1e-9
