"""What an annotator sees, in a real browser: the predicted mask on the image, the entropy map beside it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image

from activeseg.core.labels import LabelSet
from activeseg.labelstudio.regions import mask_to_result, result_to_mask
from activeseg.labelstudio.tasks import task_payload
from tests.labelstudio.seat import FOLD, PICTURE, Seat, distance_to_path, picture

pytestmark = [pytest.mark.labelstudio, pytest.mark.browser, pytest.mark.slow]

HEIGHT, WIDTH, GREY = 360, 480, 128
BOXES = """
() => Object.fromEntries(Object.entries({tools: '.lsf-toolbar', labels: '.lsf-label', slider: '.lsf-tool__controls'}).map(
    ([name, selector]) => [name, [...document.querySelectorAll(selector)].map(element => element.getBoundingClientRect())]))
"""


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
    image, entropy = (picture(page, number) for number in (0, 1))
    height, width = image.shape[:2]
    # Labels lie on the image at an opacity that Label Studio chooses: 0.5 for bitmasks, 0.6 for brushes.
    blends = [(np.array(colors) - GREY) * opacity + GREY for opacity in (0.5, 0.6)]
    shown = image[:, :, None, :].astype(float)
    distance = np.minimum(*(np.abs(shown - blend).max(-1) for blend in blends))
    nearest = np.where(distance.min(-1) < 8, distance.argmin(-1), 255)
    expected = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    shares = [float((nearest == index).mean()) for index in range(len(colors))]
    return Seen(shares, float((nearest == expected).mean()), float(entropy.astype(float).std(axis=(0, 1)).max()))


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
    Seat(page, used.client.url).open(used.project.id, push_scene(used, with_prediction=True))
    seen = look_until_workable(page, scene()[1], used.labels.colors, looks=30)
    page.screenshot(path=tmp_path / f"{kind}.png")
    assert seen.is_workable(), seen
    image, entropy = (page.locator(".konvajs-content").nth(number).bounding_box() for number in (0, 1))
    assert (image["y"], image["width"], image["height"]) == (entropy["y"], entropy["width"], entropy["height"])
    assert entropy["x"] >= image["x"] + image["width"]
    boxes = page.evaluate(BOXES)
    labels_top = min(box["top"] for box in boxes["labels"])
    assert boxes["tools"]
    assert all(box["bottom"] <= labels_top for box in boxes["tools"]), "the tools lie on the labels"
    assert boxes["slider"][0]["top"] >= image["y"] - 1, "the slider for the brush's size is cut off"
    text = page.inner_text("body")
    assert "Least sure about: car, pole" in text
    assert all(name in text for name in used.labels.names)
    assert "50.00%" not in text


def test_the_same_look_fails_on_a_task_without_prediction(page, board, tmp_path):
    used = board()
    Seat(page, used.client.url).open(used.project.id, push_scene(used, with_prediction=False))
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
    Seat(page, client.url).open(project.id, client.import_tasks(project.id, [task])[0])
    places = {(60, 320): ["road"], (240, 60): ["person"], (180, 240): ["road", "person"], (260, 240): ["road", "person", "bag"]}
    for _ in range(30):
        page.wait_for_timeout(1000)
        pixels = picture(page).astype(float)
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


def fold_states(entropy_map: str) -> list[bool]:
    """Whether the map is there when a task opens, after a click, and after another."""
    first = entropy_map == "beside"
    return [first, not first, first]


@pytest.mark.parametrize(("kind", "entropy_map"), [("brush", "beside"), ("bitmask", "folded")])
def test_the_map_folds_away_and_comes_back_and_strokes_land_where_the_mouse_is(
    page, client, labels, tmp_path, kind, entropy_map
):
    project = client.ensure_project(f"folding {kind}", labels, kind, entropy_map=entropy_map)
    image, mask, entropy = scene()
    urls = client.upload_files(project.id, [("scene.png", _png(image)), ("entropy.png", _png(entropy))])
    common = {"order": 0, "sha256": "ab", "score": 0.5, "model_version": "m1"}
    task = task_payload("k", *urls, **common, result=mask_to_result(mask, labels, kind=kind))
    seat = Seat(page, client.url)
    seat.open(project.id, client.import_tasks(project.id, [task])[0])
    widths = []
    for number, is_open in enumerate(fold_states(entropy_map)):
        seat.fold() if number else seat.rest(4000)
        page.screenshot(path=tmp_path / f"{kind}-{number}.png")
        shown, map_shown = (page.locator(PICTURE).nth(index).bounding_box() for index in (0, 1))
        assert (map_shown is not None) is is_open
        if is_open:
            assert (map_shown["y"], map_shown["width"], map_shown["height"]) == (shown["y"], shown["width"], shown["height"])
            assert map_shown["x"] > shown["x"] + shown["width"]
            assert picture(page, 1).astype(float).std(axis=(0, 1)).max() > 20
        widths.append(shown["width"])
        assert_mask_on_image(page, mask, labels.colors)
    assert widths[0] == widths[2] != widths[1]
    assert max(widths) >= WIDTH  # wide: at least as large as it is
    seat.select("car")
    seat.fold()
    path = [(250.0, 60.0), (330.0, 100.0)]
    seat.stroke(path, width=WIDTH)
    page.screenshot(path=tmp_path / f"{kind}-stroke.png")
    drawn = result_to_mask(seat.submit(), labels, width=WIDTH, height=HEIGHT).mask
    away = distance_to_path(HEIGHT, WIDTH, path)
    assert (drawn[away < 3] == labels.index_of("car")).all()
    assert (drawn == mask)[away > 22].all()


def assert_mask_on_image(page, mask, colors):
    """The classes' colours lie where the mask has them."""
    image = picture(page)
    height, width = image.shape[:2]
    expected = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    looks = [np.abs(image - ((np.array(colors) - GREY) * opacity + GREY)[expected]).max(-1) < 8 for opacity in (0.5, 0.6)]
    assert max(look.mean() for look in looks) > 0.9


def test_without_a_map_the_image_has_the_whole_width(page, client, labels, tmp_path):
    project = client.ensure_project("no map", labels, "brush", entropy_map="none")
    image, mask, _ = scene()
    (url,) = client.upload_files(project.id, [("scene.png", _png(image))])
    result = mask_to_result(mask, labels, kind="brush")
    task = task_payload("k", url, order=0, sha256="ab", result=result, score=0.5, model_version="m1")
    seat = Seat(page, client.url)
    seat.open(project.id, client.import_tasks(project.id, [task])[0], maps=0)
    seat.rest(4000)
    page.screenshot(path=tmp_path / "none.png")
    assert page.locator(PICTURE).count() == 1
    assert page.get_by_text(FOLD).count() == 0
    assert page.locator(PICTURE).bounding_box()["width"] > 700
    assert_mask_on_image(page, mask, labels.colors)


def test_the_list_of_tasks_says_nothing_of_score_rank_or_arm(page, board, tmp_path):
    used = board()
    push_scene(used, with_prediction=True)
    tab = used.client.ensure_tab(used.project.id, "activeseg: most useful first", ["tasks:data.order"])
    page.goto(f"{used.client.url}/projects/{used.project.id}/data?tab={tab}")
    page.get_by_text("Least sure about").first.wait_for()
    page.screenshot(path=tmp_path / "list.png")
    text = page.inner_text("body").lower()
    assert "0.5" not in text
    assert not any(word in text.split() for word in ("score", "rank", "arm", "control", "chosen", "confidence"))
