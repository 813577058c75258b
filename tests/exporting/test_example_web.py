"""`examples/web` matches two photographs in a real browser as PyTorch does."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import PIL.Image
import pytest

import tiepoint as tp
from browsing import Watched, until

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "web"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def page(browser: Any, folders: dict[str, Path], tmp_path: Path) -> Iterator[Any]:
    """The example as its README sets it up."""
    if not (EXAMPLE / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip("onnxruntime-web is not installed (npm install in examples/web)")
    for name in ("index.html", "exported.js", "node_modules"):
        (tmp_path / name).symlink_to(EXAMPLE / name)
    (tmp_path / "exported").symlink_to(folders["onnx"])
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    Thread(target=server.serve_forever, daemon=True).start()
    watched = Watched(browser, f"http://127.0.0.1:{server.server_port}/index.html")
    yield watched.page
    watched.errors = [error for error in watched.errors if "favicon.ico" not in error]
    watched.close()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("names", [("ruins", "ruins-viewpoint"), ("room-1", "field")], ids=" and ".join)
def test_two_photographs_in_a_browser(page: Any, small_pairs: Path, tmp_path: Path, names: tuple[str, str]) -> None:
    paths = [tmp_path / f"{name}.png" for name in names]  # PNG: two decoders of WebP may differ
    for name, path in zip(names, paths, strict=True):
        with PIL.Image.open(small_pairs / "viewpoint" / "images" / f"{name}.webp") as picture:
            picture.thumbnail((256, 256))  # a browser computes many times slower
            picture.convert("RGB").save(path)
    for place, path in zip(page.locator("input").all(), paths, strict=True):
        place.set_input_files(path)
    until(page, "document.querySelector('output').textContent.match(/ s$|did not/)", 180)
    assert "matches in" in page.locator("output").text_content()
    lines = page.evaluate("fetch(document.querySelector('a').href).then(file => file.text())").splitlines()
    assert lines[0] == "x0,y0,x1,y1,score"
    found = np.array([[float(number) for number in line.split(",")] for line in lines[1:]]).reshape(-1, 5)
    wanted = tp.matchers.load("lightglue", "cairn")(*map(tp.features.load("cairn"), paths))
    ends = np.concatenate([wanted.points0, wanted.points1], 1)
    same = (np.abs(found[:, None, :4] - ends).max(2) < 0.02).any(0).sum()
    assert same >= 0.99 * max(len(found), len(ends))
    assert len(ends) > 300 or names == ("room-1", "field")
