"""The page of a large map: 200,000 points and 100 cameras, its size, and how fast a browser draws it.

    python benchmarks/map_page.py

Chromium runs without a screen and without a graphics card, so that SwiftShader draws on the CPU: frames a second are a
lower bound for any machine with a card. Script is what the page itself takes for a frame.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pycolmap
import typer
from playwright.sync_api import sync_playwright

from tiepoint.devices import environment
from tiepoint.mapping.exchange.web_page import write_scene_page
from tiepoint.mapping.steps.reconstruct import Quality, Scene
from tiepoint.mapping.store import NewImage, Store

RESULTS = Path(__file__).parent / "results" / "map_page.json"
VIEWS = 3  # cameras that see a point
FRAMES = 30

# Turn the scene a little and draw it. A pixel that is read waits for what the graphics card, or SwiftShader, has to do.
DRAW = """(count) => {
  const pixel = new Uint8Array(4);
  const turn = () => { orbit(3, 1); paintSpace(); };
  const wait = () => gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
  turn(); wait();
  let begin = performance.now();
  for (let k = 0; k < count; k++) turn();
  const script = (performance.now() - begin) / count;
  wait();
  begin = performance.now();
  for (let k = 0; k < count; k++) { turn(); wait(); }
  return [script, (performance.now() - begin) / count];
}"""
FLAGS = ["--no-sandbox", "--disable-gpu", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


def ring(points: int, cameras: int) -> pycolmap.Reconstruction:
    """Return a model: cameras on a circle look at a ball of points, of which each sees its share."""
    rng = np.random.default_rng(0)
    xyz = rng.normal(size=(points, 3))
    first = rng.integers(0, cameras, points)
    seen_by = (first[:, None] + np.arange(VIEWS)) % cameras
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=1200, height=900, params=[1000, 600, 450], camera_id=1)
    model.add_camera_with_trivial_rig(camera)
    rows = np.zeros((points, VIEWS), int)
    for number in range(cameras):
        angle = 2 * np.pi * number / cameras
        R = np.array([[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]])
        t = np.array([0, 0, 8.0])
        mine = np.nonzero(seen_by == number)
        rows[mine] = np.arange(len(mine[0]))
        pixels = camera.img_from_cam(xyz[mine[0]] @ R.T + t)
        image = pycolmap.Image(name=f"{number:03d}.jpg", image_id=number + 1, camera_id=1, keypoints=pixels)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(np.column_stack([R, t])))
    for point in range(points):
        elements = [
            pycolmap.TrackElement(int(i) + 1, int(row)) for i, row in zip(seen_by[point], rows[point], strict=True)
        ]
        model.add_point3D(xyz[point], pycolmap.Track(elements), np.full(3, 200, np.uint8))
    return model


def main(
    points: Annotated[int, typer.Option(help="Points of the map.")] = 200_000,
    cameras: Annotated[int, typer.Option(help="Cameras of the map.")] = 100,
    output: Annotated[Path, typer.Option("-o", "--output", help="A JSON file.")] = RESULTS,
) -> None:
    """Write the page, open it, turn it."""
    model = ring(points, cameras)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with Store.open(folder / "database.db") as store:
            store.add_images([NewImage(image.name, model.cameras[1], "one") for image in model.images.values()])
        scene = Scene(folder, (model,), (Quality.of(model),), {})
        begin = time.perf_counter()
        write_scene_page(scene, folder / "database.db", folder / "scene.html", title="200,000 points")
        written = time.perf_counter() - begin
        line: dict[str, Any] = {
            "points": points,
            "cameras": cameras,
            "megabytes": (folder / "scene.html").stat().st_size / 1e6,
            "seconds_to_write": written,
        }
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            begin = time.perf_counter()
            page.goto((folder / "scene.html").as_uri())
            page.wait_for_function("typeof gl !== 'undefined' && buffers.xyz")
            line["seconds_to_open"] = time.perf_counter() - begin
            script, frame = page.evaluate(DRAW, FRAMES)
            browser.close()
    line |= {"script_ms_a_frame": script, "frames_a_second_without_card": 1000 / frame, **environment()}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(line, indent=1) + "\n", "utf-8")
    print(json.dumps(line, indent=1))


if __name__ == "__main__":
    typer.run(main)
