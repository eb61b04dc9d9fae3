"""What was predicted, where the model is unsure and what was annotated: as pictures, and on the page of an image."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import sqlalchemy as sa
from PIL import Image as Picture
from starlette.testclient import TestClient

from activeseg.config import Settings
from activeseg.core.labels import LabelSet, Mask
from activeseg.db.database import Database
from activeseg.db.models import Annotation, AnnotationSource, AnnotationStatus, Checkpoint, Prediction, QueryStatus
from activeseg.explain.heatmap import heatmap
from activeseg.imaging.masks import encode_mask
from activeseg.imaging.thumbnails import encode_png
from activeseg.workspace import Workspace
from tests.web.conftest import CLASSES
from tests.web.test_pages import log_in

SKY, VOID, ROAD, CAR = range(4)
BLUE, GREY, RED = (0, 0, 255), (128, 128, 128), (255, 0, 0)
HEIGHT, WIDTH = 30, 40
KINDS = ("prediction", "entropy", "annotation")

OVERLAPPING = LabelSet(("animal", "dog"), ((255, 0, 0), (0, 0, 255)), overlap=True)


class Stored:
    """Writes masks, maps and rows as the stages do, for one image."""

    def __init__(self, filler: Any, settings: Settings, database: Database, label_set: LabelSet) -> None:
        self.filler, self.label_set, self.workspace = filler, label_set, Workspace(settings, database)
        light = 90 + len(list((settings.root / "pool").iterdir()))
        file = settings.root / "pool" / f"street <{light}>.png"
        file.write_bytes(data := encode_png(np.full((HEIGHT, WIDTH, 3), light, np.uint8)))
        self.image = filler.image(str(file), sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))

    def path(self, location: str) -> Path:
        return self.workspace.artifacts.path(location)

    def prediction(self, mask: Mask, *, version: str | None = "m1", entropy: bool = True) -> Prediction:
        """By this checkpoint, or a pre-annotator; its entropy grows from left to right."""
        stored = self.workspace.store_mask(mask, label_set=self.label_set)
        ramp = np.linspace(0, 1, WIDTH)[None].repeat(HEIGHT, 0)
        location = self.workspace.artifacts.put(encode_png(np.asarray(heatmap(ramp, upper=1.0))), "picture", ".png").location
        with self.filler.database.read() as session:
            checkpoint = session.scalar(sa.select(Checkpoint.id).where(Checkpoint.model_version == version))
        row = Prediction(
            image_id=self.image,
            source=f"checkpoint:{version}" if version else "graphcut:mobilenet@0",
            checkpoint_id=checkpoint,
            mask_location=stored.location,
            mask_sha256=stored.sha256,
            entropy_location=location if entropy else None,
        )
        self.filler.add(row)
        return row

    def annotation(self, mask: Mask, label_set: LabelSet | None = None) -> str:
        """The answer to a query; returns the mask's location."""
        classes = label_set or self.label_set
        stored = self.workspace.store_mask(mask, label_set=classes)
        row = Annotation(
            image_id=self.image,
            query_id=self.filler.query(self.filler.round(), self.image, QueryStatus.ANNOTATED),
            source=AnnotationSource.LABELSTUDIO,
            status=AnnotationStatus.VALID,
            label_set_id=self.filler.label_set_id(classes),
            mask_location=stored.location,
            mask_sha256=stored.sha256,
            external_annotation_id=1,
            external_updated_at=datetime.now(UTC),
            changed_share=0.25,
        )
        self.filler.add(row)
        return stored.location


@pytest.fixture
def stored(filler: Any, settings: Settings, database: Database) -> Stored:
    """An image of exclusive classes, a champion m1 that scored it; the class list is configured."""
    (settings.root / "classes.txt").write_text(CLASSES, encoding="utf-8")
    filler.checkpoint("m1")
    made = Stored(filler, settings, database, filler.label_set)
    filler.score("m1", made.image, {SKY: 60.0, ROAD: 40.0})
    return made


@pytest.fixture
def show(client: TestClient, stored: Stored) -> Callable[..., Any]:
    return lambda kind, query="": client.get(f"/api/images/{stored.image}/{kind}{query}")


@pytest.fixture
def browser(anonymous: TestClient) -> TestClient:
    assert log_in(anonymous).status_code == 303
    return anonymous


def halves(left: int, right: int) -> Mask:
    mask = np.full((HEIGHT, WIDTH), left, np.uint8)
    mask[:, WIDTH // 2 :] = right
    return mask


def pixels(answer: Any) -> npt.NDArray[np.uint8]:
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png"), answer.text
    with Picture.open(BytesIO(answer.content)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def text_of(browser: TestClient, path: str) -> str:
    """A page as it is read: tags away, spaces single."""
    answer = browser.get(path)
    assert answer.status_code == 200, answer.text
    return " ".join(re.sub(r"<[^>]+>", " ", answer.text).split())


def test_the_masks_come_in_the_colours_of_their_classes(stored: Stored, show: Callable[..., Any]) -> None:
    stored.prediction(halves(SKY, ROAD))
    stored.annotation(halves(CAR, ROAD))
    for kind, left in (("prediction", BLUE), ("annotation", RED)):
        shown = pixels(show(kind))
        assert shown.shape == (HEIGHT, WIDTH, 3)
        assert (shown[:, :20] == left).all()
        assert (shown[:, 20:] == GREY).all()


def test_a_large_mask_is_shrunk_without_mixing_classes_and_voc_has_its_own_colours(
    stored: Stored, show: Callable[..., Any]
) -> None:
    stored.prediction(halves(SKY, ROAD))
    small = pixels(show("prediction", "?side=16"))
    assert small.shape == (12, 16, 3)
    assert {tuple(color) for color in small.reshape(-1, 3).tolist()} == {BLUE, GREY}
    voc = pixels(show("prediction", "?palette=voc"))
    assert tuple(voc[0, 0]) == (0, 0, 0)  # VOC's colour 0
    assert tuple(voc[0, -1]) == (0, 128, 0)  # and its colour 2


def test_the_entropy_map_is_the_one_that_was_stored(stored: Stored, show: Callable[..., Any]) -> None:
    row = stored.prediction(halves(SKY, ROAD))
    assert row.entropy_location is not None
    with Picture.open(stored.path(row.entropy_location)) as picture:
        np.testing.assert_array_equal(pixels(show("entropy")), np.asarray(picture))
    assert max(pixels(show("entropy", "?side=16")).shape) == 16


def test_overlapping_classes_have_pictures_too(filler: Any, settings: Settings, database: Database, client: TestClient) -> None:
    filler.checkpoint("m1", label_set=OVERLAPPING)
    stored = Stored(filler, settings, database, OVERLAPPING)
    planes = np.zeros((2, HEIGHT, WIDTH), np.bool_)
    planes[0, :, 10:], planes[1, :, 20:] = True, True
    stored.prediction(planes)
    stored.annotation(planes[::-1].copy())
    shown = pixels(client.get(f"/api/images/{stored.image}/prediction"))
    assert [tuple(shown[0, x]) for x in (0, 10, 20)] == [(255, 255, 255), RED, (128, 0, 128)]
    assert tuple(pixels(client.get(f"/api/images/{stored.image}/annotation"))[0, 10]) == BLUE
    log_in(client)
    page = text_of(client, f"/images/{stored.image}")
    assert "1.39 nats, 2 log 2, where each of the 2 classes is as likely as not" in page
    assert "animal 75.0 % – 50.0 % 0.667 0.800" in page
    assert "no class" in page
    assert "several classes" in page


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_without_it_is_a_404_that_says_why(stored: Stored, show: Callable[..., Any], kind: str) -> None:
    answer = show(kind)
    assert answer.status_code == 404
    expected = "no annotation that counts" if kind == "annotation" else "only images that were asked about have one"
    assert answer.json()["error"].startswith(f"image {stored.image} has ")
    assert expected in answer.json()["error"]


def test_a_prediction_without_a_map_says_why(stored: Stored, show: Callable[..., Any]) -> None:
    stored.prediction(halves(SKY, ROAD), version=None, entropy=False)
    assert "pre-annotator" in show("entropy").json()["error"]
    stored.prediction(halves(SKY, ROAD), entropy=False)
    answer = show("entropy")
    assert (answer.status_code, "housekeeping removed it" in answer.json()["error"]) == (404, True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["altered", "gone"])
def test_a_damaged_file_is_told_and_never_a_server_error(
    stored: Stored, show: Callable[..., Any], browser: TestClient, kind: str, how: str
) -> None:
    row = stored.prediction(halves(SKY, ROAD))
    where = {
        "prediction": row.mask_location,
        "entropy": row.entropy_location,
        "annotation": stored.annotation(halves(CAR, SKY)),
    }
    file = stored.path(str(where[kind]))
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(encode_png(np.zeros((4, 4, 3), np.uint8)))
    answer = show(kind)
    assert (answer.status_code, list(answer.json())) == (409, ["error"])
    assert ("holds other bytes" if how == "altered" else "cannot be read") in answer.json()["error"]
    page = browser.get(f"/images/{stored.image}")
    assert page.status_code == 200
    assert (f"/images/{stored.image}/{kind}?" in page.text) == (kind == "entropy")  # its bytes are not read for the page
    assert ("restore the artifacts folder" in page.text) == (kind != "entropy")


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_file_that_is_no_picture_of_these_classes_is_told(
    stored: Stored, show: Callable[..., Any], filler: Any, kind: str
) -> None:
    row = stored.prediction(halves(SKY, ROAD))
    stored.annotation(halves(SKY, ROAD))
    of = {"mask": encode_png(np.zeros((4, 4, 3), np.uint8)), "picture": b"no picture"}
    kept = stored.workspace.artifacts.put(of["picture" if kind == "entropy" else "mask"], "mask", ".png")
    picture = stored.workspace.artifacts.put(of["picture"], "picture", ".png")
    with filler.database.write() as session:
        session.execute(
            sa.update(Prediction)
            .where(Prediction.id == row.id)
            .values(mask_location=kept.location, mask_sha256=kept.sha256, entropy_location=picture.location)
        )
        session.execute(sa.update(Annotation).values(mask_location=kept.location, mask_sha256=kept.sha256))
    answer = show(kind)
    assert (answer.status_code, list(answer.json())) == (409, ["error"])


def test_a_mask_of_values_that_are_no_classes_is_told(
    stored: Stored, show: Callable[..., Any], filler: Any, browser: TestClient
) -> None:
    stored.prediction(halves(SKY, ROAD))
    odd = stored.workspace.artifacts.put(encode_mask(halves(SKY, 9)), "mask", ".png")
    with filler.database.write() as session:
        session.execute(sa.update(Prediction).values(mask_location=odd.location, mask_sha256=odd.sha256))
    assert (show("prediction").status_code, show("entropy").status_code) == (409, 200)
    assert "mask values [9] are not classes" in text_of(browser, f"/images/{stored.image}")


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_ask_for_a_token_have_bounds_and_carry_the_headers(
    stored: Stored, client: TestClient, show: Callable[..., Any], kind: str
) -> None:
    stored.prediction(halves(SKY, ROAD))
    stored.annotation(halves(SKY, ROAD))
    answer = show(kind)
    assert (answer.headers["cache-control"], answer.headers["x-content-type-options"]) == ("no-store", "nosniff")
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert [show(kind, query).status_code for query in ("?side=15", "?side=1025", "?palette=x", "?path=/etc/passwd")] == [
        422
    ] * 4
    unknown = client.get(f"/api/images/77/{kind}")
    assert (unknown.status_code, unknown.json()) == (404, {"error": "no image has id 77"})
    assert client.get(f"/api/images/..%2f1/{kind}").status_code in (404, 422)
    del client.headers["Authorization"]
    assert show(kind).status_code == 401
    assert client.get(f"/images/{stored.image}/{kind}").status_code == 401
    log_in(client)
    assert client.get(f"/images/{stored.image}/{kind}").content == answer.content


def test_the_champions_prediction_is_shown_before_a_younger_one_of_another(
    stored: Stored, filler: Any, show: Callable[..., Any], client: TestClient
) -> None:
    stored.prediction(halves(SKY, SKY))
    stored.prediction(halves(CAR, CAR), version=None, entropy=False)
    assert tuple(pixels(show("prediction"))[0, 0]) == BLUE
    detail = client.get(f"/api/images/{stored.image}").json()["prediction"]
    assert (detail["model_version"], detail["of_champion"], detail["entropy_map"]) == ("m1", True, True)
    assert detail["confidences"] == {"sky": 0.5, "road": 0.5}
    filler.checkpoint("m2")  # a champion that drew none: the youngest, whoever made it
    assert tuple(pixels(show("prediction"))[0, 0]) == RED
    log_in(client)
    assert "by graphcut:mobilenet@0, not the champion" in text_of(client, f"/images/{stored.image}")


def test_the_page_shows_image_prediction_entropy_and_annotation_with_their_classes(stored: Stored, browser: TestClient) -> None:
    stored.prediction(halves(SKY, ROAD))
    drawn = halves(SKY, CAR)
    drawn[:, 20:30] = ROAD
    stored.annotation(drawn)
    answer = browser.get(f"/images/{stored.image}")
    pictures = re.findall(rf'<img src="/images/{stored.image}/(\w+)\?side=640" alt="([^"]+)"', answer.text)
    assert [kind for kind, _ in pictures] == ["thumbnail", "prediction", "entropy", "annotation"]
    assert all(alt for _, alt in pictures)
    assert dict(pictures)["prediction"] == "the mask that m1 predicts: sky 50%, road 50%"
    for kind, _ in pictures:
        assert browser.get(f"/images/{stored.image}/{kind}?side=640").status_code == 200
    page = text_of(browser, f"/images/{stored.image}")
    # Best IoU first: share predicted, confidence, share annotated, IoU, Dice.
    assert "sky 50.0 % 50.0 % 50.0 % 1.000 1.000 road 50.0 % 50.0 % 25.0 % 0.500 0.667 car 0.0 % – 25.0 % 0.000 0.000" in page
    assert "0 to 1.10 nats, log 3, where all 3 classes are equally likely" in page
    assert [color for color in ("#0000ff", "#808080", "#ff0000") if f'fill="{color}"' not in answer.text] == []


def test_the_page_in_vocs_colours_asks_for_pictures_in_them(stored: Stored, browser: TestClient) -> None:
    stored.prediction(halves(SKY, ROAD))
    text = browser.get(f"/images/{stored.image}?palette=voc").text
    assert f"/images/{stored.image}/prediction?side=640&amp;palette=voc" in text
    assert f"/images/{stored.image}/entropy?side=640&amp;" not in text
    assert 'fill="#008000"' in text
    assert browser.get(f"/images/{stored.image}?palette=x").status_code == 422


def test_without_a_prediction_the_page_says_why_and_asks_for_no_picture_of_it(stored: Stored, browser: TestClient) -> None:
    answer = browser.get(f"/images/{stored.image}")
    assert "only images that were asked about have one" in answer.text
    assert not [kind for kind in KINDS if f"/{kind}?" in answer.text]
    assert "<h2>Classes</h2>" not in answer.text


def test_masks_of_other_classes_or_sizes_are_shown_and_not_compared(stored: Stored, browser: TestClient) -> None:
    stored.prediction(halves(SKY, ROAD))
    stored.annotation(np.zeros((10, 10), np.uint8))
    assert "of different sizes" in text_of(browser, f"/images/{stored.image}")
    stored.annotation(halves(0, 1), LabelSet(("lake", "hill"), (RED, BLUE)))
    page = text_of(browser, f"/images/{stored.image}")
    assert "of different class lists" in page
    assert "lake – – 50.0 % – –" in page


def test_the_morning_has_the_maps_that_are_stored_the_confidence_and_what_came_back(
    stored: Stored, filler: Any, browser: TestClient
) -> None:
    other = filler.scored("m1", "never asked", {SKY: 10.0})
    plain = browser.get("/").text
    assert "entropy map" not in plain
    assert "What came back last" not in plain
    stored.prediction(halves(SKY, ROAD))
    stored.annotation(halves(SKY, CAR))
    cleared = Stored(filler, stored.workspace.settings, filler.database, filler.label_set)
    filler.score("m1", cleared.image, {SKY: 20.0})
    cleared.prediction(halves(SKY, ROAD), entropy=False)
    answer = browser.get("/").text
    assert f"/images/{stored.image}/entropy?side=320" in answer
    assert f"/images/{cleared.image}/entropy" not in answer
    assert f"/images/{other}/entropy" not in answer
    assert f"/images/{stored.image}/annotation?side=320" in answer
    page = text_of(browser, "/")
    assert "100 nats · confidence 50.0 %" in page
    assert "1.10 nats" in page
    assert "25.0 % changed" in page


def test_the_colours_of_the_scale_are_those_of_the_map() -> None:
    css = (Path(__file__).parents[2] / "activeseg/web/static/activeseg.css").read_text(encoding="utf-8")
    [gradient] = re.findall(r"\.jet \{.*linear-gradient\(to right, ([^)]+)\)", css)
    stops = [
        (float(at) / 100, [int(color[i : i + 2], 16) for i in (0, 2, 4)])
        for color, at in re.findall(r"#(\w{6}) ([\d.]+)%", gradient)
    ]
    places = np.linspace(0, 1, 256)
    drawn = np.stack([np.interp(places, [at for at, _ in stops], [color[c] for _, color in stops]) for c in range(3)], axis=1)
    assert np.abs(drawn - np.asarray(heatmap(places[None], upper=1.0))[0]).max() <= 2
