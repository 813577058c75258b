"""The page in a real browser: what a person does, and what is on the screen then."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import tiepoint
from browsing import Watched, shot, until
from serving import Server
from textured_room import Room, look

SLOW = 240_000  # milliseconds, on a machine with other work


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server") / "folder")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six photographs of one room."""
    folder = tmp_path_factory.mktemp("photographs") / "room"
    folder.mkdir()
    world = Room()
    for i in range(6):
        PIL.Image.fromarray(world.photograph(look((0.35 * i - 1, 0.1 * i, 0.2 * i)))).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def castle(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """A folder of eleven photographs of a castle, small, a damaged one and a text file."""
    folder = tmp_path_factory.mktemp("photographs") / "castle"
    folder.mkdir()
    for path in (data_dir / "demo" / "sceaux" / "images").glob("*.jpg"):
        with PIL.Image.open(path) as photograph:
            photograph.thumbnail((400, 400))
            photograph.save(folder / path.name, quality=90)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(500))
    (folder / "notes.txt").write_text("no photograph")
    return folder


def watch(browser: Any, server: Server, **context: Any) -> Watched:
    watched = Watched(browser, server.address, **context)
    watched.page.wait_for_selector("#options select", state="attached")
    return watched


def test_every_wait_has_words() -> None:
    """Whatever a map reports as a step is explained on the page."""
    package = Path(tiepoint.__file__).parent
    sources = [path.read_text("utf-8") for path in (package / "mapping").rglob("*.py")]
    named = {name for text in sources for name in re.findall(r'Progress\(\s*"([a-z ]+)"', text)}
    assert {"matching", "mapping", "verifying"} <= named
    page = (package / "serve" / "page.html").read_text("utf-8")
    steps = page.partition("const steps = {")[2].partition("};")[0]
    explained = {a or b for a, b in re.findall(r'^\s*(?:"([^"]+)"|(\w+)): "[^"]{8,}",$', steps, re.MULTILINE)}
    assert named | {"starting", "extracting"} == explained  # the latter is followed by the extractor's name


def test_two_photographs_are_matched(browser: Any, server: Server, photographs: Path) -> None:
    watched = watch(browser, server, viewport={"width": 1280, "height": 900})
    page = watched.page
    page.set_input_files("#pick", [photographs / "0.png", photographs / "1.png"])
    assert page.is_checked("input[value=matches]")
    assert page.locator("#chosen img").count() == 2
    for name in ("features", "matcher", "effort"):  # each choice says what it means
        assert len(page.text_content(f"#{name}-line")) > 20
    before = page.text_content("#features-line")
    page.select_option("#features", "sift")
    assert page.text_content("#features-line") != before
    page.select_option("#matcher", "nearest")
    page.select_option("#effort", "fast")
    page.click("#start")
    page.wait_for_selector(".job.done", timeout=SLOW)
    job = server.get("/jobs").json()[0]
    result = server.get(f"/matches/{job['id']}").json()["result"]
    assert f"{result['matches']:,} matches" in page.text_content(".job .verdict")
    assert page.text_content(".job h3") == "Match: 0.png – 1.png"
    # The picture has the colour of inliers on it.
    until(page, "document.querySelector('.job img').naturalWidth > 0")
    shown = shot(page, ".job img")
    assert (np.abs(shown - (0xA8, 0xEF, 0x2E)).max(axis=2) < 40).sum() > 100
    with page.expect_popup() as popup:
        page.click("text=Open the match page")
    match_page = popup.value
    until(match_page, "document.querySelector('#count')?.textContent.includes('matches')")
    assert f"of {result['matches']} matches" in match_page.text_content("#count")
    page.click(".job button")
    page.wait_for_selector(".job", state="detached")
    assert server.get("/jobs").json() == []
    watched.close()


def test_a_folder_of_eleven_is_mapped_through_a_reload(browser: Any, server: Server, castle: Path) -> None:
    """On a phone, in the dark, with a damaged photograph among the others."""
    watched = watch(browser, server, viewport={"width": 390, "height": 844}, color_scheme="dark")
    page = watched.page
    page.set_input_files("#pick-folder", castle)
    assert "notes.txt: not a photograph" in page.text_content("#summary")
    assert page.is_checked("input[value=maps]")
    assert page.is_hidden("#effort")  # is for matches
    page.select_option("#quality", "fast")
    assert "shortest time" in page.text_content("#quality-line")
    page.select_option("#features", "sift")
    page.select_option("#matcher", "nearest")
    page.click("#start")
    page.wait_for_selector(".job.running progress", timeout=SLOW)
    page.reload()
    page.wait_for_selector(".job.running progress", timeout=SLOW)  # it is still at work, and followed again
    (job,) = server.get("/jobs").json()
    assert job["state"] == "running"
    until(page, "/: \\d+ of \\d+.* so far/.test(document.querySelector('.wait')?.textContent)")
    page.wait_for_selector(".job.done", timeout=SLOW)
    (job,) = server.get("/jobs").json()
    assert job["options"] == {"features": "sift", "matcher": "nearest", "quality": "fast"}
    assert job["starts"] == 1
    assert "11 of 11 photographs placed" in page.text_content(".job .verdict")
    assert page.locator(".notes li", has_text="broken.jpg").count() == 1
    # Dark, and nothing reaches beyond the side of a phone.
    assert shot(page, "body")[:5].mean() < 60
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    with page.expect_popup() as popup:
        page.click("text=Open the map")
    opened = popup.value
    opened.wait_for_load_state()
    until(opened, "sheet !== null")
    assert opened.text_content("h1") == "castle"
    assert re.match(r"11 of 11 images, [\d,]+ points", opened.text_content("#summary"))
    assert opened.evaluate("model.cameras.length") == 11
    assert (shot(opened, "#space").max(axis=2) > 60).sum() > 1000  # points and cameras, on dark ground
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.click(".job button")
    page.wait_for_selector(".job", state="detached")
    watched.close()


def test_cancel_by_keyboard(browser: Any, server: Server, photographs: Path) -> None:
    watched = watch(browser, server)
    page = watched.page
    page.set_input_files("#pick", sorted(photographs.glob("?.png")))
    page.focus("#start")
    page.keyboard.press("Enter")
    page.wait_for_selector(".job.running, .job.waiting", timeout=SLOW)
    job = next(job for job in server.get("/jobs").json() if job["state"] in ("waiting", "running"))
    page.locator(".job.running button, .job.waiting button").first.focus()
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#live').textContent.endsWith('cancelled')")
    assert server.get(f"/maps/{job['id']}").status_code == 404
    assert not (server.folder / job["id"]).exists()
    # What the page still asks of a job while it is deleted is answered with 404.
    watched.errors = [error for error in watched.errors if job["id"] not in error]
    watched.close()


def test_a_dropped_folder_and_names_that_are_html(browser: Any, server: Server, photographs: Path) -> None:
    watched = watch(browser, server)
    page = watched.page
    picture = list((photographs / "0.png").read_bytes())
    page.evaluate(
        """bytes => {
          const transfer = new DataTransfer();
          for (const name of ["<img src=x onerror=alert(1)>.png", "b.png"])
            transfer.items.add(new File([new Uint8Array(bytes)], name, {type: "image/png"}));
          document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""",
        picture,
    )
    page.wait_for_selector("#chosen li")
    assert page.locator("#chosen img").count() == 2
    page.select_option("#features", "sift")
    page.select_option("#matcher", "nearest")
    page.select_option("#effort", "fast")
    page.click("#start")
    page.wait_for_selector(".job.done h3:has-text('onerror')", timeout=SLOW)
    assert page.locator(".job img[src=x]").count() == 0
    watched.close()


def test_the_token_is_asked_for_once(browser: Any, tmp_path: Path) -> None:
    token = "sixteen letters or more"
    server = Server(tmp_path / "folder", TIEPOINT_TOKEN=token)
    try:
        watched = Watched(browser, server.address)
        page = watched.page
        page.fill("#token", "some other sixteen letters")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=That is not the token.")
        watched.errors.clear()  # the browser reports the answer 401 as one
        page.fill("#token", token)
        page.keyboard.press("Enter")
        page.wait_for_selector("#options select", state="attached")
        page.reload()
        page.wait_for_selector("#options select", state="attached")
        watched.close()
    finally:
        server.stop()


def test_no_foreign_script_runs(browser: Any, server: Server) -> None:
    watched = watch(browser, server)
    watched.page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))"
    )
    assert watched.page.evaluate("window.ran") is None  # the policy allows the page's own script alone
    assert any("Content Security Policy" in error for error in watched.errors)
    watched.context.close()
