from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthetic_scene import SyntheticScene
from tiepoint.errors import ArgumentError, InputError
from tiepoint.mapping.exchange import web_page as scene_page
from tiepoint.mapping.steps.reconstruct import Quality, Scene

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NODE = shutil.which("node")


@pytest.fixture(scope="module")
def worlds() -> tuple[SyntheticScene, SyntheticScene]:
    return (
        SyntheticScene([f"a/{i}.jpg" for i in range(4)], seed=1, noise=0.5),
        SyntheticScene(["b/</script>.jpg", "b/1.jpg", "b/2.jpg"], seed=2, noise=0.5),
    )


@pytest.fixture(scope="module")
def page(worlds: tuple[SyntheticScene, SyntheticScene], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    for world in (*worlds, SyntheticScene(["alone.jpg"])):
        world.write_database(folder / "database.db")
    models = tuple(world.model() for world in worlds)
    qualities = tuple(Quality.of(model, 8) for model in models)
    scene = Scene(folder, models, qualities, {"alone.jpg": "no <other> photograph was found to show the same place"})
    path = folder / "scene.html"
    scene_page.write_scene_page(scene, folder / "database.db", path, description="SIFT & <more>")
    return path


def data_of(path: Path) -> dict[str, Any]:
    line = next(line for line in path.read_text("utf-8").splitlines() if line.startswith("const data = "))
    return json.loads(line.removeprefix("const data = ").removesuffix(";"))


def test_page_holds_the_scene(page: Path, worlds: tuple[SyntheticScene, SyntheticScene]) -> None:
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
    assert not re.search(r"https?:|src=|@import|url\(", text)
    assert text.count("</script>") == 1
    assert "SIFT &amp; &lt;more&gt;" in text


def test_points_and_edges_are_capped(
    page: Path, worlds: tuple[SyntheticScene, SyntheticScene], monkeypatch: pytest.MonkeyPatch
) -> None:
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


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_script_is_valid(page: Path, tmp_path: Path) -> None:
    script = page.read_text("utf-8").partition("<script>")[2].partition("</script>")[0]
    (tmp_path / "scene.js").write_text(script, "utf-8")
    checked = subprocess.run([NODE, "--check", tmp_path / "scene.js"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_page_works_in_a_browser(page: Path) -> None:
    """Load it, choose the second model and an image by clicks, and read what stands on the page then."""
    clicks = """
      window.addEventListener("error", event => { document.body.dataset.error = event.message; });
      setTimeout(() => {
        find("model").value = 1; find("model").dispatchEvent(new Event("input"));
        document.querySelector("#weakest tr").click();
        through(model.cameras[0]); paintSpace();
        const drawn = new Uint8Array(4 * space.width * space.height);
        gl.readPixels(0, 0, space.width, space.height, gl.RGBA, gl.UNSIGNED_BYTE, drawn);
        let bright = 0;
        for (let i = 0; i < drawn.length; i += 4) if (drawn[i] + drawn[i + 1] + drawn[i + 2] > 150) bright++;
        document.body.dataset.bright = bright;
      }, 0);
    """
    clicked = page.with_name("clicked.html")
    clicked.write_text(page.read_text("utf-8").replace("paintGraph();\n</script>", f"paintGraph();\n{clicks}</script>"))
    options = ["--headless", "--no-sandbox", "--enable-unsafe-swiftshader", "--virtual-time-budget=3000"]
    run = subprocess.run(
        [BROWSER, *options, f"--user-data-dir={page.parent}/profile", "--dump-dom", clicked.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    dom = run.stdout
    assert "<h1" in dom, run.stderr[-2000:]
    assert "data-error" not in dom
    assert re.search(r'<h1 id="title">3 of 8 images, \d+ points', dom)
    rows = re.search(r'<tbody id="weakest">(.*?)</tbody>', dom)[1]
    assert rows.count("<tr") == 3
    assert rows.count('class="picked"') == 1
    assert "b/&lt;/script&gt;.jpg" in rows
    assert "no &lt;other&gt; photograph" in dom
    assert "8 images, 9 verified pairs; one colour for each model" in dom
    assert int(re.search(r'data-bright="(\d+)"', dom)[1]) > 200
