"""What an annotator sees, in a real browser: the predicted mask on the image, the entropy map beside it."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image

from activeseg.core.labels import LabelSet
from activeseg.labelstudio.regions import mask_to_result
from activeseg.labelstudio.tasks import task_payload

pytestmark = [pytest.mark.labelstudio, pytest.mark.browser]

FLAGS = [
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]  # fmt: skip
HEIGHT, WIDTH, GREY = 360, 480, 128


@dataclass(frozen=True)
class Seen:
    """Share of the image's canvas in each label's colour, share of mask pixels in the right one, spread of the map."""

    label_shares: list[float]
    aligned: float
    entropy_spread: float

    def is_workable(self) -> bool:
        labels = sum(share > 0.01 for share in self.label_shares)
        return labels >= 3 and self.aligned > 0.9 and self.entropy_spread > 20


def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A nearly grey image, so that a label's colour can be told through it; a mask of five classes; a map with a peak."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    image = np.repeat((GREY + (rows + columns) % 5 - 2)[..., None], 3, 2).astype(np.uint8)
    mask = np.full((HEIGHT, WIDTH), 3, np.uint8)
    mask[: HEIGHT // 3] = 0
    mask[60:300, 40:160] = 1
    mask[150:330, 220:420] = 7
    mask[30:200, 430:470] = 10
    bump = np.exp(-((rows - 180) ** 2 + (columns - 300) ** 2) / 9000.0)
    entropy = np.dstack([255 * bump, 60 + 0 * bump, 255 * (1 - bump)]).astype(np.uint8)
    return image, mask, entropy


def look_until_workable(page: Any, mask: np.ndarray, colors: tuple[tuple[int, int, int], ...], *, looks: int) -> Seen:
    """Look once a second while the page still draws; what was seen last."""
    for _ in range(looks):
        page.wait_for_timeout(1000)
        seen = look(page, mask, colors)
        if seen.is_workable():
            break
    return seen


def look(page: Any, mask: np.ndarray, colors: tuple[tuple[int, int, int], ...]) -> Seen:
    """Read the two canvases of the open task off the screen."""
    image, entropy = (_pixels(page, number) for number in (0, 1))
    height, width = image.shape[:2]
    # Labels lie on the image at an opacity that Label Studio chooses: 0.5 for bitmasks, 0.6 for brushes.
    blends = [(np.array(colors) - GREY) * opacity + GREY for opacity in (0.5, 0.6)]
    pixels = image[:, :, None, :].astype(float)
    distance = np.minimum(*(np.abs(pixels - blend).max(-1) for blend in blends))
    nearest = np.where(distance.min(-1) < 8, distance.argmin(-1), 255)
    expected = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    shares = [float((nearest == index).mean()) for index in range(len(colors))]
    return Seen(shares, float((nearest == expected).mean()), float(entropy.astype(float).std(axis=(0, 1)).max()))


def _pixels(page: Any, number: int) -> np.ndarray:
    box = page.locator(".konvajs-content").nth(number).bounding_box()
    data = page.screenshot(clip=box)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def open_task(page: Any, url: str, project: int, task: int) -> None:
    page.goto(f"{url}/projects/{project}/data?task={task}")
    page.wait_for_function("document.querySelectorAll('.konvajs-content').length >= 2")
    page.wait_for_function("[...document.querySelectorAll('.lsf-image img')].every(image => image.complete)")


@pytest.fixture(scope="module")
def page(labelstudio_server: Any) -> Iterator[Any]:
    """A page of the owner's, signed in."""
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser_path is None:
        message = "no browser: install Chromium (Debian: apt-get install chromium)"
        if "browser" in os.environ.get("ACTIVESEG_REQUIRE", ""):
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    flags = FLAGS + (["--no-sandbox"] if os.geteuid() == 0 else [])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, headless=True, args=flags)
        opened = browser.new_page(viewport={"width": 1440, "height": 900})
        opened.set_default_timeout(60_000)
        opened.goto(labelstudio_server.url + "/user/login/")
        opened.fill("input[name=email]", labelstudio_server.email)
        opened.fill("input[name=password]", labelstudio_server.password)
        opened.click("button[type=submit]")
        opened.wait_for_url(lambda address: "login" not in address)
        yield opened
        browser.close()


def push_scene(used: Any, *, with_prediction: bool) -> int:
    image, mask, entropy = scene()
    files = [("scene.png", _png(image)), ("entropy.png", _png(entropy))]
    image_url, entropy_url = used.client.upload_files(used.project.id, files)
    common: dict[str, Any] = {"order": 0, "sha256": "ab"}
    task = task_payload("without", image_url, **common)
    if with_prediction:
        result = mask_to_result(mask, used.labels, kind=used.project.mask_kind)
        task = task_payload(
            "with", image_url, entropy_url, **common, doubtful=("car", "pole"), result=result, score=0.5, model_version="m1"
        )
    return int(used.client.import_tasks(used.project.id, [task])[0])


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["brush", "bitmask"])
def test_an_annotator_sees_the_mask_on_the_image_and_the_map_beside_it(page, board, tmp_path, kind):
    used = board(kind)
    open_task(page, used.client.url, used.project.id, push_scene(used, with_prediction=True))
    seen = look_until_workable(page, scene()[1], used.labels.colors, looks=30)
    page.screenshot(path=tmp_path / f"{kind}.png")
    assert seen.is_workable(), seen
    image, entropy = (page.locator(".konvajs-content").nth(number).bounding_box() for number in (0, 1))
    assert (image["y"], image["width"], image["height"]) == (entropy["y"], entropy["width"], entropy["height"])
    assert entropy["x"] >= image["x"] + image["width"]
    text = page.inner_text("body")
    assert "Least sure about: car, pole" in text
    assert all(name in text for name in used.labels.names)
    assert "50.00%" not in text


def test_the_same_look_fails_on_a_task_without_prediction(page, board, tmp_path):
    used = board()
    open_task(page, used.client.url, used.project.id, push_scene(used, with_prediction=False))
    seen = look_until_workable(page, scene()[1], used.labels.colors, looks=6)
    page.screenshot(path=tmp_path / "without.png")
    assert not seen.is_workable()
    assert sum(share > 0.01 for share in seen.label_shares) == 0
    assert seen.entropy_spread < 20


OVERLAPPING = LabelSet(
    ("person", "bag", "road", "void"), ((220, 20, 60), (255, 200, 0), (60, 160, 60), (9, 9, 9)), 3, overlap=True
)
SELECTED = """
name => [...document.querySelectorAll('.lsf-tree-node-content-wrapper, .lsf-outliner-item')]
    .some(item => item.closest('[class*=selected]') && item.innerText.includes(name))
"""


def overlapping_scene() -> np.ndarray:
    """A person on the road with a bag before them: three masks, one inside the other."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    planes = np.zeros((4, HEIGHT, WIDTH), bool)
    planes[0] = ((columns - 240) / 90) ** 2 + ((rows - 180) / 150) ** 2 < 1
    planes[1, 200:280, 230:290] = True
    planes[2, 120:] = True
    return planes


def blend(names: list[str], opacity: float) -> np.ndarray:
    """What the grey image looks like under the masks of these classes, the lowest first."""
    color = np.full(3, float(GREY))
    for name in names:
        color += opacity * (np.array(OVERLAPPING.colors[OVERLAPPING.index_of(name)]) - color)
    return color


@pytest.mark.parametrize("kind", ["brush", "bitmask"])
def test_where_classes_overlap_an_annotator_sees_each_and_a_click_finds_the_smallest(page, client, tmp_path, kind):
    project = client.ensure_project(f"browser overlap {kind}", OVERLAPPING, kind)
    image, _, entropy = scene()
    urls = client.upload_files(project.id, [("scene.png", _png(image)), ("entropy.png", _png(entropy))])
    result = mask_to_result(overlapping_scene(), OVERLAPPING, kind=kind)
    task = task_payload("k", *urls, order=0, sha256="ab", result=result, score=0.5, model_version="m1")
    open_task(page, client.url, project.id, client.import_tasks(project.id, [task])[0])
    places = {(60, 320): ["road"], (240, 60): ["person"], (180, 240): ["road", "person"], (260, 240): ["road", "person", "bag"]}
    for _ in range(30):
        page.wait_for_timeout(1000)
        pixels = _pixels(page, 0).astype(float)
        scale = pixels.shape[1] / WIDTH
        shown = {place: pixels[int(place[1] * scale), int(place[0] * scale)] for place in places}
        # Label Studio chooses the opacity; the labeling configuration's does not count.
        looks = [max(np.abs(shown[at] - blend(names, o)).max() for at, names in places.items()) for o in (0.5, 0.6)]
        if min(looks) < 12:
            break
    page.screenshot(path=tmp_path / f"{kind}.png")
    assert min(looks) < 12, shown
    assert "Classes may overlap" in page.inner_text("body")
    box = page.locator(".konvajs-content").nth(0).bounding_box()
    page.locator("[aria-label=move-tool]").first.click()
    page.mouse.click(box["x"] + 260 * scale, box["y"] + 240 * scale)
    page.wait_for_function(SELECTED, arg="bag")
    if kind == "brush":  # a click on bitmasks selects all that lie under it
        assert not page.evaluate(SELECTED, "person")
