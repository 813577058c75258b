"""A page in the browser, for tests: its errors, what is drawn, and waiting for what its script says."""

from __future__ import annotations

import io
import time
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray


class Watched:
    """A page in a context of its own; every error of its script and every refusal of its policy is kept."""

    def __init__(self, browser: Any, address: str, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.context.set_default_timeout(120_000)  # milliseconds: without a graphics card, on a machine with other work
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._hear)
        self.page.goto(address)

    def _hear(self, line: Any) -> None:
        if line.type == "error":
            self.errors.append(f"{line.text} {line.location.get('url', '')}")

    def close(self) -> None:
        self.context.close()
        assert self.errors == []


def until(page: Any, expression: str, seconds: float = 60) -> None:
    """Wait until an expression is true; playwright's own waiting needs ``eval``, which the pages' policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"not within {seconds} s: {expression}"
        time.sleep(0.05)


def shot(page: Any, what: str) -> NDArray[np.int64]:
    """Return the pixels (H, W, 3) of an element, once what its script asked for is drawn."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    picture = PIL.Image.open(io.BytesIO(page.locator(what).screenshot()))
    return np.asarray(picture.convert("RGB")).astype(np.int64)
