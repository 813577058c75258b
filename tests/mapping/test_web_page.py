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
    for i, j, inliers in data["edges"]:
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
    assert opened.text_content("#panel-text").startswith(f"{len(both)} points of both")
    assert (shot(opened, "#picture").max(axis=2) > 150).sum() > 500


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
