"""The match page: what it holds, and what a browser draws of it."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from browsing import Watched, shot, until
from tiepoint import viz
from tiepoint.errors import ArgumentError
from tiepoint.types import Image, Matches
from tiepoint.viz.pictures import INLIER, OUTLIER

N = 40


def grey(width: int, height: int, name: str = "grey.jpg") -> Image:
    return Image(np.full((height, width, 3), 128, np.uint8), name=name)


def some_matches(points0: Any, points1: Any, scores: Any) -> Matches:
    index = np.arange(len(points0), dtype=np.int64)
    p0, p1 = (np.array(p, np.float32).reshape(-1, 2) for p in (points0, points1))
    return Matches(np.stack([index, index], 1), np.array(scores, np.float32), p0, p1)


def page_data(path: Path) -> dict[str, Any]:
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"))[1]
    )


def test_page_holds_matches_in_original_pixels_and_whole_pictures(tmp_path: Path) -> None:
    image = grey(3200, 800)
    matches = some_matches([[3000.25, 700.5]], [[10, 20]], [0.75])
    viz.write_page(image, image, matches, tmp_path / "a.html", inliers=np.array([False]))
    data = page_data(tmp_path / "a.html")
    assert data["matches"] == [[3000.25, 700.5, 10.0, 20.0, 0.75]] and data["inliers"] == [0]
    assert (data["images"][0]["width"], data["images"][0]["height"]) == (3200, 800)
    embedded = PIL.Image.open(io.BytesIO(base64.b64decode(data["images"][0]["source"].split(",")[1])))
    assert embedded.size == (1600, 400)


def test_page_is_self_contained_and_escapes_names(tmp_path: Path) -> None:
    image = grey(20, 20, name="</script><script>alert(1)</script><!--.jpg")
    viz.write_page(image, image, some_matches([], [], []), tmp_path / "a.html", description="<b>a & b</b>")
    text = (tmp_path / "a.html").read_text("utf-8")
    assert text.count("</script>") == 2 and "alert(1)</" not in text and "<!--" not in text
    assert "&lt;b&gt;a &amp; b&lt;/b&gt;" in text
    assert not re.search(r"https?:|//[a-z]+\.|@import|\ssrc=", text), "the page must open without a network"
    assert page_data(tmp_path / "a.html")["images"][0]["name"] == Path(image.name).name


def test_page_needs_its_suffix(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"\.html"):
        viz.write_page(grey(9, 9), grey(9, 9), some_matches([], [], []), tmp_path / "a.htm")


@pytest.fixture(scope="module")
def opened(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A page of 40 matches on grey photographs, the first 30 of them inliers; white where each match lies."""
    rng = np.random.default_rng(0)
    points = [np.round(rng.uniform(10, (389, 289), (N, 2))) for _ in range(2)]
    images = []
    for side, own in enumerate(points):
        picture = np.full((300, 400, 3), 60, np.uint8)
        for x, y in own.astype(int):
            picture[y, x] = 255
        images.append(Image(picture, name=f"holiday/side {side}.jpg"))
    path = tmp_path_factory.mktemp("page") / "match.html"
    viz.write_page(
        *images,
        some_matches(*points, np.linspace(0.1, 1, N)),
        path,
        inliers=np.arange(N) < 30,
        description="sift + nearest",
        verdict="The photographs overlap.",
    )
    watched = Watched(browser, path.as_uri(), viewport={"width": 1200, "height": 800})
    until(watched.page, "pictures.length === 2")
    yield watched.page
    watched.close()


def near(picture: NDArray[np.int64], name: str, tolerance: int = 60) -> NDArray[np.bool_]:
    return np.abs(picture - [int(name[i : i + 2], 16) for i in (1, 3, 5)]).max(axis=2) < tolerance


def test_names_verdict_and_counts_stand_on_the_page(opened: Any) -> None:
    assert opened.text_content("#verdict") == "The photographs overlap."
    assert opened.locator("#names span").all_text_contents() == ["side 0.jpg · 400 × 300", "side 1.jpg · 400 × 300"]
    assert opened.text_content("#count") == "40 of 40 matches, 30 inliers"
    opened.fill("#least", "0.5")
    scores = np.linspace(0.1, 1, N)
    assert opened.text_content("#count").startswith(f"{(scores >= 0.5).sum()} of 40")
    opened.fill("#least", "0")
    assert opened.is_visible("#inlier-key")
    assert opened.is_hidden("#score-key")


def test_inliers_have_the_colour_of_the_picture(opened: Any) -> None:
    opened.click("#whole")
    drawn = shot(opened, "#canvas")
    assert near(drawn, INLIER).sum() > 500
    assert near(drawn, OUTLIER).sum() > 100
    opened.check("#inliers")
    drawn = shot(opened, "#canvas")
    opened.uncheck("#inliers")
    assert near(drawn, INLIER).sum() > 500
    assert near(drawn, OUTLIER).sum() == 0


def test_both_photographs_zoom_and_move_together(opened: Any) -> None:
    """After any zoom and move, each end of a match lies on the white pixel of its photograph."""
    opened.uncheck("#lines")
    box = opened.locator("#canvas").bounding_box()
    opened.mouse.move(box["x"] + 200, box["y"] + 150)
    for _ in range(5):
        opened.mouse.wheel(0, -200)
    until(opened, "view.zoom > 4")
    opened.mouse.down()
    opened.mouse.move(box["x"] + 260, box["y"] + 120, steps=3)
    opened.mouse.up()
    opened.mouse.move(5, 5)
    # Without matches, only the photographs: every white pixel must lie where `place` says.
    opened.fill("#least", "1")
    opened.evaluate("shown = []; hovered = -1; data.kept = data.matches; data.matches = []; paint()")
    drawn = shot(opened, "#canvas").min(axis=2)
    opened.evaluate("data.matches = data.kept")
    checked = 0
    for k in range(N):
        for side in (0, 1):
            x, y = opened.evaluate(f"place({side}, data.matches[{k}][{2 * side}], data.matches[{k}][{2 * side + 1}])")
            if opened.evaluate(f"inside({side}, {x} - 8, {y} - 8) && inside({side}, {x} + 8, {y} + 8)"):
                assert drawn[round(y), round(x)] > 200
                checked += 1
    assert checked >= 3
    zooms = opened.evaluate("frames.map((f, i) => (place(i, 100, 0)[0] - place(i, 0, 0)[0]) / f.w)")
    assert zooms[0] == pytest.approx(zooms[1])
    opened.click("#whole")
    assert opened.evaluate("view.zoom") == 1
    opened.check("#lines")
    opened.fill("#least", "0")


def test_a_match_is_followed_and_told(opened: Any) -> None:
    opened.click("#whole")
    x, y = opened.evaluate("place(0, data.matches[5][0], data.matches[5][1])")
    opened.hover("#canvas", position={"x": x, "y": y})
    told = opened.text_content("#told")
    score, px, py = opened.evaluate("[data.matches[5][4], data.matches[5][0], data.matches[5][1]]")
    assert told.startswith(f"score {score:.3f} · inlier · ({px:.1f}, {py:.1f})")


def test_on_a_phone_photographs_are_stacked_and_nothing_is_cut(opened: Any) -> None:
    opened.set_viewport_size({"width": 390, "height": 844})
    until(opened, "frames[1].y > 0")
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
    opened.set_viewport_size({"width": 1200, "height": 800})
    until(opened, "frames[1].x > 0")


def test_lines_of_many_matches_can_be_told_apart(browser: Any, tmp_path: Path) -> None:
    """Most matches lie in one corner; lines leave the photograph everywhere. Coming closer, all in view get one."""
    rng = np.random.default_rng(0)
    points = np.vstack([rng.uniform(10, (100, 90), (1500, 2)), rng.uniform(10, (389, 289), (500, 2))])
    inliers = rng.random(2000) < 0.9
    viz.write_page(
        *(Image(np.full((300, 400, 3), 60, np.uint8), name=f"{side}.jpg") for side in "ab"),
        some_matches(points, points, np.ones(2000)),
        tmp_path / "many.html",
        inliers=inliers,
    )
    watched = Watched(browser, (tmp_path / "many.html").as_uri(), viewport={"width": 1200, "height": 800})
    page = watched.page
    until(page, "pictures.length === 2")
    lined = page.evaluate("[...lined]")
    assert 90 <= len(lined) <= 100
    assert page.text_content("#count").endswith(f"inliers, {len(lined)} with a line")
    assert abs(np.mean(inliers[lined]) - 0.9) < 0.03
    for axis, size in ((0, 400), (1, 300)):  # every fifth of the photograph has its share
        assert np.histogram(points[lined, axis], bins=5, range=(0, size))[0].min() >= 8
    middle = round(page.evaluate("frames[1].x - 4"))  # between the photographs, where there are lines alone
    gap = shot(page, "#canvas")[:, middle].min(axis=1) < 200
    assert (np.diff(gap.astype(int)) == 1).sum() > 40
    assert gap.mean() < 0.6
    page.evaluate("zoomAt(16, frames[0].x + frames[0].w * .7, frames[0].h * .6)")
    seen = page.evaluate("shown.filter(i => visible(ends(data.matches[i])).every(Boolean))")
    assert 0 < len(seen) <= 100
    assert sorted(page.evaluate("[...lined]")) == sorted(seen)
    watched.close()
