from __future__ import annotations

import base64
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
from synthetic_scene import SyntheticScene
from tiepoint.errors import ArgumentError, InputError
from tiepoint.mapping.exchange import web_page as scene_page
from tiepoint.mapping.steps.reconstruct import Quality, Scene

Worlds = tuple[SyntheticScene, SyntheticScene]


@pytest.fixture(scope="module")
def worlds() -> Worlds:
    return (
        SyntheticScene([f"a/{i}.jpg" for i in range(4)], seed=1, noise=0.5),
        SyntheticScene(["b/</script>.jpg", "b/1.jpg", "b/2.jpg"], seed=2, noise=0.5),
    )


@pytest.fixture(scope="module")
def page(worlds: Worlds, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    for world in (*worlds, SyntheticScene(["alone.jpg"])):
        world.write_database(folder / "database.db")
    models = tuple(world.model() for world in worlds)
    qualities = tuple(Quality.of(model, 8) for model in models)
    scene = Scene(folder, models, qualities, {"alone.jpg": "no <other> photograph was found to show the same place"})
    path = folder / "scene.html"
    for world in worlds:
        world.write_photographs(folder / "photographs")
    for photograph in (folder / "photographs").rglob("*.jpg"):  # dark grey, where they would be black
        pixels = np.maximum(np.asarray(PIL.Image.open(photograph)), 45)
        PIL.Image.fromarray(pixels).save(photograph, quality=98)
    scene_page.write_scene_page(
        scene,
        folder / "database.db",
        path,
        photographs=folder / "photographs",
        title="The <room>",
        description="SIFT & <more>",
        unit="m",
    )
    return path


def data_of(path: Path) -> dict[str, Any]:
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"))[1]
    )


def test_page_holds_the_scene(page: Path, worlds: Worlds) -> None:
    data = data_of(page)
    assert data["images"] == sorted([*worlds[0].names, *worlds[1].names, "alone.jpg"])
    assert data["pairs"] == len(data["edges"]) == 6 + 3
    for i, j, inliers, _ in data["edges"]:
        assert data["images"][i][0] == data["images"][j][0]  # pairs are within a world
        assert inliers > 20
    assert data["leftOut"].keys() == {str(data["images"].index("alone.jpg"))}
    for world, entry in zip(worlds, data["models"], strict=True):
        points = np.frombuffer(base64.b64decode(entry["points"]), "<f4").reshape(-1, 3)
        colours = np.frombuffer(base64.b64decode(entry["colours"]), np.uint8).reshape(-1, 3)
        assert len(points) == len(colours) == entry["total"]
        truth = {tuple(np.float32(xyz)): tuple(rgb) for xyz, rgb in zip(world.points, world.colours, strict=True)}
        assert all(truth[tuple(p)] == tuple(c) for p, c in zip(points, colours, strict=True))
        assert [data["images"][camera["image"]] for camera in entry["cameras"]] == sorted(world.names)
        for camera in entry["cameras"]:
            R, t = world.poses[world.names.index(data["images"][camera["image"]])]
            np.testing.assert_allclose(camera["centre"], -R.T @ t, atol=1e-5)
            np.testing.assert_allclose(np.reshape(camera["axes"], (3, 3)), R, atol=1e-6)
            np.testing.assert_allclose(camera["corner"], (200 / 380, 150 / 380), rtol=1e-5)


def test_page_needs_no_network_and_escapes_names(page: Path) -> None:
    text = page.read_text("utf-8")
    assert not re.search(r"https?:|\ssrc=|@import|url\(", text)
    assert text.count("</script>") == 2
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "SIFT &amp; &lt;more&gt;" in text


def test_points_and_edges_are_capped(page: Path, worlds: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene_page, "MAX_POINTS", 10)
    monkeypatch.setattr(scene_page, "MAX_EDGES", 4)
    model = worlds[0].model()
    small = Scene(page.parent, (model,), (Quality.of(model),), {})
    scene_page.write_scene_page(small, page.parent / "database.db", page.parent / "small.html")
    data = data_of(page.parent / "small.html")
    assert len(base64.b64decode(data["models"][0]["points"])) == 10 * 12
    assert data["models"][0]["total"] == model.num_points3D()
    assert [edge[2] for edge in data["edges"]] == sorted((e[2] for e in data_of(page)["edges"]), reverse=True)[:4]
    assert data["pairs"] == 9


def test_bad_names(page: Path, tmp_path: Path) -> None:
    empty = Scene(tmp_path, (), (), {})
    with pytest.raises(ArgumentError, match=r"must end in \.html"):
        scene_page.write_scene_page(empty, page.parent / "database.db", tmp_path / "scene.png")
    with pytest.raises(InputError, match="does not exist"):
        scene_page.write_scene_page(empty, tmp_path / "none.db", tmp_path / "scene.html")


@pytest.fixture(scope="module")
def opened(browser: Any, page: Path) -> Iterator[Any]:
    """The page in a browser; any error of its script fails the test."""
    watched = Watched(browser, page.as_uri(), viewport={"width": 1200, "height": 800})
    until(watched.page, "sheet !== null")
    yield watched.page
    watched.close()


def show_model(opened: Any, number: int) -> None:
    opened.select_option("#model", str(number))
    for name in ("#axes", "#path", "#pairs"):
        opened.set_checked(name, False)


def click_on(opened: Any, xyz: str, **options: Any) -> None:
    """Click where a place of the world is on the screen."""
    box = opened.locator("#space").bounding_box()
    x, y, _ = opened.evaluate(f"onScreen(matrix(), {xyz}, space.getBoundingClientRect())")
    opened.click("#space", position={"x": x - box["x"], "y": y - box["y"]}, **options)


def test_lists_and_second_model(opened: Any) -> None:
    show_model(opened, 1)
    assert opened.text_content("h1") == "The <room>"
    assert re.match(r"3 of 8 images, \d+ points", opened.text_content("#summary"))
    rows = opened.locator("#weakest tr")
    assert rows.count() == 3
    assert "b/</script>.jpg" in opened.text_content("#weakest")
    assert "no <other> photograph" in opened.text_content("#reasons")
    assert "8 images, 9 verified pairs; one colour for each model" in opened.text_content("#key")
    rows.first.click()
    assert opened.locator("#weakest tr.picked").count() == 1


def test_first_view_holds_all_cameras_and_many_points(opened: Any, worlds: Worlds) -> None:
    show_model(opened, 0)
    opened.click("#reset")
    places = opened.evaluate(
        "model.cameras.map(c => onScreen(matrix(), c.centre, {left: 0, top: 0, width: 1, height: 1}))"
    )
    assert len(places) == 4
    assert all(0 < x < 1 and 0 < y < 1 for x, y, _ in places)
    drawn = shot(opened, "#space")
    assert (drawn.max(axis=2) > 60).sum() > 3000  # points of several pixels, on dark ground
    assert np.median(drawn) < 20


def test_frusta_show_the_photographs(opened: Any) -> None:
    show_model(opened, 0)
    opened.evaluate("find('cameras').value = 3; through(model.cameras[1]); closer(1.5)")
    with_photographs = shot(opened, "#space")
    opened.set_checked("#thumbnails", False)
    without = shot(opened, "#space")
    opened.set_checked("#thumbnails", True)
    opened.evaluate("find('cameras').value = 1")
    assert (np.abs(with_photographs - without).max(axis=2) > 20).mean() > 0.02


def test_looking_through_a_camera_the_points_lie_on_the_photograph(opened: Any, worlds: Worlds) -> None:
    """The photograph has a blob at each keypoint; the camera's points are drawn on the blobs, at any opacity."""
    show_model(opened, 0)
    opened.evaluate("find('thumbnails').checked = false; find('cameras').value = 0; through(model.cameras[2])")
    places = opened.evaluate(
        """() => { const box = space.getBoundingClientRect(), m = matrix();
             return seenIn(model.cameras[2].image).map(({i}) => onScreen(m, xyzOf(i), {...box, left: 0, top: 0,
               width: box.width, height: box.height})); }"""
    )
    assert len(places) > 50
    rows, columns = np.array(places)[:, 1].round().astype(int), np.array(places)[:, 0].round().astype(int)
    for opacity in ("0", "1"):  # only the points, only the photograph
        opened.fill("#opacity", opacity)
        drawn = shot(opened, "#space").max(axis=2)
        assert (drawn[rows, columns] > 75).mean() > 0.95
        assert (drawn > 75).mean() < 0.2  # so that this says something
    opened.evaluate("find('thumbnails').checked = true; find('cameras').value = 1; paint()")
    box = opened.locator("#photo").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(400 / 300, rel=0.01)


def test_track_of_a_point_and_points_of_a_pair(opened: Any, worlds: Worlds) -> None:
    show_model(opened, 0)
    model = worlds[0].model()
    first = min(model.point3D_ids())
    track = model.points3D[first].track.elements
    opened.evaluate("pickPoint(0)")
    assert opened.text_content("#panel-title") == f"A point, seen {len(track)} times"
    names = [model.images[element.image_id].name for element in track]
    assert sorted(opened.locator("#sightings figcaption").all_text_contents()) == sorted(names)
    seen = opened.evaluate("sightings(0).map(s => [data.images[s.camera.image], s.x, s.y])")
    for name, x, y in seen:
        i = worlds[0].names.index(name)
        truth = worlds[0].keypoints[i][np.flatnonzero(worlds[0].visible[i] == first_place(worlds[0], model, first))[0]]
        rays = (2 * np.array([x, y]) - 1) * (200 / 380, 150 / 380)  # without distortion
        np.testing.assert_allclose(worlds[0].camera.project(np.array([[*rays, 1.0]]))[0], truth, atol=0.02)
    opened.evaluate("pick(model.cameras[0].image)")
    opened.locator("#partner-rows tr").first.click()
    title = opened.text_content("#panel-title")
    a, b = (worlds[0].names.index(name) for name in title.split(" – "))
    both = set(worlds[0].visible[a]) & set(worlds[0].visible[b])
    opened.select_option("#kind", "points")
    points = f"{len(both)} points of the scene seen by both (every 2nd with its line)."
    assert opened.text_content("#panel-text") == f"{len(both)} verified matches; {points}"
    assert (shot(opened, "#picture").max(axis=2) > 150).sum() > 500
    opened.select_option("#kind", "matches")


def test_matches_on_the_page_lie_where_both_photographs_show_the_point(page: Path, worlds: Worlds) -> None:
    data = data_of(page)
    places = np.frombuffer(base64.b64decode(data["matchesAt"]), "<u2").reshape(-1, 4) / 65535
    assert len(places) == sum(edge[3] for edge in data["edges"])
    for i, j, inliers, held in data["edges"]:
        assert held == min(inliers, scene_page.MATCHES_OF_A_PAIR)
        mine, places = places[:held], places[held:]
        world = worlds[data["images"][i].startswith("b")]
        found = []
        for image, at in ((i, mine[:, :2]), (j, mine[:, 2:])):
            view = world.names.index(data["images"][image])
            rays = (2 * at - 1) * (200 / 380, 150 / 380)  # without distortion
            pixels = world.camera.project(np.column_stack([rays, np.ones(held)]))
            away = np.linalg.norm(pixels[:, None] - world.keypoints[view], axis=2)
            assert away.min(axis=1).max() < 0.02
            found.append(world.visible[view][away.argmin(axis=1)])
        assert (found[0] == found[1]).all()


def test_the_matches_of_a_picked_pair_are_drawn(browser: Any, tmp_path: Path) -> None:
    """The model has lost half of the points: their matches are drawn as matches, and not as points of both."""
    world = SyntheticScene(["0.jpg", "1.jpg", "2.jpg"], seed=3, points=30)
    world.write_database(tmp_path / "database.db", pairs=[(0, 1), (1, 2)])
    world.write_photographs(tmp_path)
    model = world.model()
    for point in sorted(model.point3D_ids())[::2]:
        model.delete_point3D(point)
    scene = Scene(tmp_path, (model,), (Quality.of(model),), {})
    target = tmp_path / "scene.html"
    scene_page.write_scene_page(scene, tmp_path / "database.db", target, photographs=tmp_path)
    watched = Watched(browser, target.as_uri(), viewport={"width": 1200, "height": 800})
    page = watched.page
    until(page, "sheet !== null")
    page.evaluate("pick(model.cameras[0].image)")
    matches = len(set(world.visible[0]) & set(world.visible[1]))
    points = model.points3D.values()
    counts = [sum({1, other} <= {e.image_id for e in point.track.elements} for point in points) for other in (2, 3)]
    rows = [row.split("\t") for row in page.locator("#partner-rows tr").all_inner_texts()]
    assert rows == [["1.jpg", str(matches), str(counts[0])], ["2.jpg", "–", str(counts[1])]]  # 0 and 2 are not matched
    assert matches > counts[0] + 10

    page.locator("#partner-rows tr").first.click()
    told = f"{matches} verified matches; {counts[0]} points of the scene seen by both."
    assert page.text_content("#panel-text") == told
    segments = np.array(page.evaluate("find('picture').segments"))[:, :4]
    assert len(segments) == matches
    assert drawn_share(shot(page, "#picture"), segments) > 0.97
    page.select_option("#kind", "points")
    kept = np.array(page.evaluate("find('picture').segments"))[:, :4]
    assert len(kept) == counts[0]
    lost = np.array([line for line in segments if np.abs(kept - line).max(axis=1).min() > 0.5])
    assert drawn_share(shot(page, "#picture"), kept) > 0.97 > 0.7 > drawn_share(shot(page, "#picture"), lost)
    page.select_option("#kind", "matches")

    page.click("#picture")  # larger, side by side; the pointer follows one match
    assert page.locator("#large").evaluate("dialog => dialog.open")
    large = np.array(page.evaluate("find('large-picture').segments"))[:, :4]
    box = page.locator("#large-picture").bounding_box()
    assert box["width"] > 1000 and (large[:, 2] > box["width"] / 2).all() and (large[:, 0] < box["width"] / 2).all()
    page.mouse.move(5, 5)
    before = shot(page, "#large-picture")
    assert drawn_share(before, large) > 0.97
    page.hover("#large-picture", position={"x": large[4, 0], "y": large[4, 1]})
    alone = shot(page, "#large-picture")
    assert drawn_share(alone, large[4:5]) > 0.97 > 0.5 > drawn_share(alone, np.delete(large, 4, axis=0))
    page.keyboard.press("Escape")

    page.evaluate("pair(model.cameras[2].image)")
    assert page.text_content("#panel-text").startswith("Not matched with each other; ")
    assert page.evaluate("find('picture').segments.length") == counts[1]
    page.set_viewport_size({"width": 375, "height": 800})
    page.evaluate("pair(model.cameras[1].image)")
    page.click("#enlarge")
    phone = np.array(page.evaluate("find('large-picture').segments"))[:, :4]
    assert (phone[:, 3] > phone[:, 1].max()).all()  # one above the other
    assert drawn_share(shot(page, "#large-picture"), phone) > 0.97
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.click("#close")
    watched.close()


def drawn_share(picture: NDArray[np.int64], segments: NDArray[np.float64]) -> float:
    """Return which share of places along the lines (x0, y0, x1, y1) is coloured, not grey."""
    colour = picture.max(axis=2) - picture.min(axis=2) > 40
    found = []
    for x0, y0, x1, y1 in segments:
        for t in np.linspace(0.1, 0.9, 9):
            x, y = round(x0 + t * (x1 - x0)), round(y0 + t * (y1 - y0))
            found.append(colour[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].any())
    return float(np.mean(found))


def test_matches_stay_within_their_budget_of_the_strongest_pairs_first(
    page: Path, worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scene_page, "MATCHES_OF_A_PAIR", 20)
    monkeypatch.setattr(scene_page, "MAX_MATCHES", 70)
    model = worlds[0].model()
    small = Scene(page.parent, (model,), (Quality.of(model),), {})
    target = page.parent / "matches.html"
    scene_page.write_scene_page(small, page.parent / "database.db", target)
    data = data_of(target)
    held = [edge[3] for edge in data["edges"] if data["images"][edge[0]].startswith("a")]
    assert sum(held) == 70 == len(base64.b64decode(data["matchesAt"])) / 8
    # Worlds without a model have no photograph here, so nothing to draw a match on.
    assert all(edge[3] == 0 for edge in data["edges"] if data["images"][edge[0]].startswith("b"))
    reached = {image for edge in data["edges"] if edge[3] == 20 for image in edge[:2]}
    assert len(reached) == 4  # each image has the matches of its strongest pair


def first_place(world: SyntheticScene, model: Any, point_id: int) -> int:
    return int(np.abs(world.points - model.points3D[point_id].xyz).sum(axis=1).argmin())


def test_distance_is_measured_between_two_clicked_points(opened: Any) -> None:
    show_model(opened, 0)
    opened.click("#measure")
    # Two points that nothing hides.
    far = opened.evaluate(
        """() => { const found = [], box = space.getBoundingClientRect();
             for (let i = 0; i < model.xyz.length / 3 && found.length < 2; i++) {
               const [x, y] = onScreen(matrix(), xyzOf(i), box);
               if (pointAt({clientX: x, clientY: y}) === i) found.push(i);
             } return found; }"""
    )
    for i in far:
        click_on(opened, f"xyzOf({i})")
    a, b = (np.array(opened.evaluate(f"xyzOf({i})")) for i in far)
    told = opened.text_content("#distance")
    opened.click("#measure")
    assert float(told.split()[1]) == pytest.approx(np.linalg.norm(a - b), rel=1e-3)
    assert told.endswith(" m")


def test_colours_path_and_keys(opened: Any) -> None:
    show_model(opened, 0)
    photo = shot(opened, "#space")
    ranges = set()
    for kind in ("error", "length", "height"):
        opened.select_option("#colour", kind)
        ranges.add(opened.text_content("#range"))
        assert np.abs(shot(opened, "#space") - photo).max(axis=2).mean() > 0.5
    assert len(ranges) == 3
    opened.select_option("#colour", "photo")
    assert np.abs(shot(opened, "#space") - photo).mean() < 0.5
    opened.set_checked("#path", True)
    opened.set_checked("#axes", True)
    assert np.abs(shot(opened, "#space") - photo).max(axis=2).sum() > 1000
    opened.focus("#space")
    opened.keyboard.press("n")
    until(opened, "document.querySelector('#through-name').textContent === 'a/0.jpg'")
    opened.keyboard.press("n")
    until(opened, "document.querySelector('#through-name').textContent === 'a/1.jpg'")
    opened.keyboard.press("p")
    until(opened, "document.querySelector('#through-name').textContent === 'a/0.jpg'")
    opened.keyboard.press("ArrowLeft")
    opened.wait_for_selector("#photo", state="hidden")


def test_two_hundred_thousand_points_stay_fluent(browser: Any, tmp_path: Path) -> None:
    world = SyntheticScene([f"{i}.jpg" for i in range(3)], points=150)
    world.write_database(tmp_path / "database.db")
    model = world.model()
    scene = Scene(tmp_path, (model,), (Quality.of(model),), {})
    scene_page.write_scene_page(scene, tmp_path / "database.db", tmp_path / "scene.html")
    watched = Watched(browser, (tmp_path / "scene.html").as_uri(), viewport={"width": 500, "height": 500})
    seconds = watched.page.evaluate(
        """() => { const n = 200000, xyz = new Float32Array(3 * n).map(() => Math.random() - .5);
             model.xyz = xyz; model.rgb = new Uint8Array(3 * n).fill(200);
             fill(buffers.xyz, xyz); fill(buffers.rgb, model.rgb);
             const begin = performance.now();
             for (let k = 0; k < 3; k++) { orbit(1, 0); paintSpace(); }
             const passed = (performance.now() - begin) / 1000 / 3;
             gl.finish();
             return passed; }"""
    )
    watched.close()
    assert seconds < 0.1  # of script a frame; a graphics card draws the rest in less


def test_photographs_stay_within_their_budget(worlds: Worlds, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene_page, "THUMBNAIL_BYTES", 9000)
    model = worlds[0].model()
    small = Scene(page.parent, (model,), (Quality.of(model),), {})
    target = page.parent / "budget.html"
    scene_page.write_scene_page(small, page.parent / "database.db", target, photographs=page.parent / "photographs")
    thumbnails = [base64.b64decode(text) for text in data_of(target)["thumbnails"].values()]
    assert 1 <= len(thumbnails) <= 4
    assert sum(map(len, thumbnails)) <= 9000
