"""An annotator's seat: a real browser on a real Label Studio, its mouse and its keys."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

FLAGS = [
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]  # fmt: skip
PICTURE = ".lsf-image img"
FOLD = "Where the model doubts"
_STEPS = 25

Point = tuple[float, float]
"""(x, y) in pixels of the picture."""


class NoBrowser(Exception):
    """There is no browser on this machine."""


@contextmanager
def browsing() -> Iterator[Any]:
    """An empty page of a real browser. Raises NoBrowser."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        raise NoBrowser("no browser: install Chromium (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    flags = FLAGS + (["--no-sandbox"] if os.geteuid() == 0 else [])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=flags)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


@contextmanager
def signed_in(url: str, email: str, password: str) -> Iterator[Any]:
    """A page of somebody who has signed in to Label Studio."""
    with browsing() as page:
        page.goto(url + "/user/login/")
        page.fill("input[name=email]", email)
        page.fill("input[name=password]", password)
        page.click("button[type=submit]")
        page.wait_for_url(lambda address: "login" not in address)
        yield page


def picture(page: Any, number: int = 0) -> npt.NDArray[np.uint8]:
    """What is on the screen where the image (0) or the entropy map (1) lies: (h, w, 3)."""
    data = page.screenshot(clip=page.locator(PICTURE).nth(number).bounding_box())
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@dataclass
class Seat:
    """The page and the server it looks at."""

    page: Any
    url: str

    def open(self, project: int, task: int, *, maps: int = 1) -> None:
        """Open a task; returns when its pictures are there. maps: how many beside the image."""
        self.page.goto(f"{self.url}/projects/{project}/data?task={task}")
        self.page.wait_for_function(f"document.querySelectorAll('.konvajs-content').length >= {1 + maps}")
        self.page.wait_for_function(f"[...document.querySelectorAll('{PICTURE}')].every(image => image.complete)")

    def rest(self, milliseconds: int = 1500) -> None:
        """Let the page come to rest."""
        self.page.wait_for_timeout(milliseconds)

    def fold(self) -> None:
        """Fold the entropy map away, or get it back."""
        self.page.get_by_text(FOLD).click()
        self.rest()

    def regions(self) -> list[str]:
        """Classes in the region list, in its order."""
        return [text.split("\n")[-1] for text in self.page.locator(".lsf-tree-node-content-wrapper").all_inner_texts()]

    def select(self, name: str) -> None:
        """Select a region in the list."""
        self.page.locator(".lsf-tree-node-content-wrapper", has_text=name).first.click()
        self.rest(500)

    def press(self, key: str) -> None:
        """Press a key, with the mouse resting on the page's ground."""
        self.page.keyboard.press(key)
        self.rest(300)

    def stroke(self, points: Sequence[Point], *, width: int) -> None:
        """Draw with the mouse along `points`. width: of the picture, in its own pixels."""
        box = self.page.locator(PICTURE).first.bounding_box()
        scale = box["width"] / width
        (x, y), *rest = [(box["x"] + x * scale, box["y"] + y * scale) for x, y in points]
        self.page.mouse.move(x - 3, y - 3)
        self.page.mouse.move(x, y)
        self.rest(200)
        self.page.mouse.down()
        for to_x, to_y in rest:
            self.page.mouse.move(to_x, to_y, steps=_STEPS)
        self.page.mouse.up()
        self.rest(700)

    def submit(self) -> list[dict[str, Any]]:
        """Submit; the regions the page sent."""
        with self.page.expect_response(lambda answer: "/annotations" in answer.url and answer.request.method == "POST") as sent:
            self.page.get_by_role("button", name="Submit").click()
        assert sent.value.ok, sent.value.status
        result: list[dict[str, Any]] = sent.value.request.post_data_json["result"]
        return result


def distance_to_path(height: int, width: int, points: Sequence[Point]) -> npt.NDArray[np.float64]:
    """(H, W): how far each pixel's centre lies from the path, in pixels."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    nearest = np.full((height, width), np.inf)
    for (x0, y0), (x1, y1) in pairwise(points):
        length = max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-9)
        along = np.clip(((columns - x0) * (x1 - x0) + (rows - y0) * (y1 - y0)) / length, 0, 1)
        nearest = np.minimum(nearest, np.hypot(columns - x0 - along * (x1 - x0), rows - y0 - along * (y1 - y0)))
    return nearest
