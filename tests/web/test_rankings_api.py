from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from activeseg.core.labels import parse_classes
from activeseg.db.models import ImageStatus, Split

pytestmark = pytest.mark.slow

SKY, VOID, ROAD, CAR = range(4)
Pages = Callable[..., list[dict[str, Any]]]
Channels = dict[int, dict[int, float]]


@pytest.fixture
def known(filler: Any) -> Channels:
    """image id -> channel entropies of a scored pool; many images tie, by sum and by class."""
    filler.checkpoint("m1")
    draw = random.Random(7)
    found = {}
    for number in range(40):
        channels = {index: draw.choice([0.0, 0.1, 1 / 3, 2.5, 700.25]) for index in (SKY, ROAD, CAR)}
        found[filler.scored("m1", f"{number:03}", channels)] = channels
    return found


def by_hand(known: Channels, *classes: int) -> list[int]:
    wanted = classes or (SKY, ROAD, CAR)
    return sorted(known, key=lambda image: (-sum(known[image][index] for index in wanted), image))


@pytest.mark.parametrize("limit", [1, 7, 39, 40, 41, 500])
def test_pages_of_any_size_add_up_to_the_whole_ranking(known: Channels, pages: Pages, limit: int) -> None:
    items = pages("/api/rankings", [("limit", limit)])

    assert [item["image_id"] for item in items] == by_hand(known)
    assert [item["rank"] for item in items] == list(range(1, 41))
    assert [item["score"] for item in items] == [sum(known[item["image_id"]].values()) for item in items]
    assert {item["model_version"] for item in items} == {"m1"}


def test_rows_added_between_pages_neither_repeat_nor_hide_others(
    known: Channels, client: TestClient, pages: Pages, filler: Any
) -> None:
    first = client.get("/api/rankings", params={"limit": 15}).json()
    above = {filler.scored("m1", f"above{number}", {SKY: 5_000.0 + number, ROAD: 0, CAR: 0}) for number in range(3)}
    edge = first["items"][-1]["score"]
    tied = filler.scored("m1", "tied", {SKY: edge, ROAD: 0, CAR: 0})
    below = filler.scored("m1", "below", {SKY: 0.0, ROAD: 0.05, CAR: 0})

    seen = [item["image_id"] for item in first["items"] + pages("/api/rankings", [("limit", 4)], first["next"])]

    assert len(seen) == len(set(seen))
    assert [image for image in seen if image in known] == by_hand(known)
    assert {tied, below} < set(seen)
    assert not above & set(seen)


@pytest.mark.parametrize("classes", [("road",), ("road", "sky"), ("car", "road", "sky"), ("car", "car")])
def test_class_filter_ranks_by_the_sum_of_their_channel_entropies(
    known: Channels, pages: Pages, classes: tuple[str, ...]
) -> None:
    indices = sorted({{"sky": SKY, "road": ROAD, "car": CAR}[name] for name in classes})

    items = pages("/api/rankings", [("limit", 6), *(("class", name) for name in classes)])

    assert [item["image_id"] for item in items] == by_hand(known, *indices)
    expected = [sum(known[item["image_id"]][index] for index in indices) for item in items]
    assert [item["score"] for item in items] == pytest.approx(expected, rel=1e-12)


def test_a_past_checkpoint_is_read_with_the_classes_it_was_trained_on(filler: Any, client: TestClient) -> None:
    filler.checkpoint("old", label_set=parse_classes("car\nsky\n"))
    filler.checkpoint("new")
    image = filler.scored("old", "a", {0: 3.0, 1: 5.0})

    asked = {"checkpoint": "old", "class": "car"}
    assert [row["score"] for row in client.get("/api/rankings", params=asked).json()["items"]] == [3.0]
    assert client.get("/api/rankings", params={"checkpoint": "old", "class": "road"}).status_code == 422
    assert client.get("/api/rankings").json() == {"items": [], "next": None}
    assert client.get(f"/api/images/{image}").json()["score"] is None


def test_labelled_and_quarantined_images_stay_only_in_history(filler: Any, client: TestClient) -> None:
    filler.checkpoint("m1")
    ids = [filler.image("/pool/a"), filler.image("/pool/b", split=Split.TRAIN)]
    ids.append(filler.image("/pool/c", status=ImageStatus.QUARANTINED, reason="truncated"))
    for place, image in enumerate(ids):
        filler.score("m1", image, {SKY: 9.0 - place})

    assert [row["image_id"] for row in client.get("/api/rankings").json()["items"]] == ids[:1]
    assert [row["image_id"] for row in client.get("/api/rankings?checkpoint=m1").json()["items"]] == ids


def test_without_a_champion_the_answer_says_how_to_get_one(client: TestClient) -> None:
    answer = client.get("/api/rankings")

    assert answer.status_code == 409
    assert "activeseg train" in answer.json()["error"]


@pytest.mark.parametrize(
    ("query", "status", "word"),
    [
        ("limit=0", 422, "limit"),
        ("limit=501", 422, "limit"),
        ("limit=-1", 422, "limit"),
        ("limit=1e2", 422, "limit"),
        ("limit=" + "9" * 5000, 422, "limit"),
        ("limit=", 422, "limit"),
        ("klass=sky", 422, "klass"),
        ("class=dragon", 422, "dragon"),
        ("class=void", 422, "ignored"),
        ("class=", 422, "class"),
        ("class=%00", 422, "class"),
        ("&".join(["class=sky"] * 300), 422, "class"),
        ("checkpoint=m9", 404, "m1"),
        ("checkpoint=%00", 422, "checkpoint"),
        ("checkpoint=" + "m" * 101, 422, "checkpoint"),
        ("checkpoint=m1'%20OR%201=1--", 404, "m1"),
        ("after=1:nan:1", 422, "next"),
        ("after=1:inf:1", 422, "next"),
        ("after=1:0x1.0p%2b9999:1", 422, "next"),
        ("after=1:0x1.0p%2b0:99999999999999999999", 422, "next"),
        ("after=1:0x1.0p%2b0:2147483648", 422, "next"),
        ("after=-1:0x1.0p%2b0:1", 422, "next"),
        ("after=1_0:0x1.0p%2b0:1", 422, "next"),
        ("after=", 422, "next"),
        ("after=" + "1" * 9_000, 422, "next"),
    ],
)
def test_wrong_questions_get_one_sentence_that_names_the_fault(
    filler: Any, client: TestClient, query: str, status: int, word: str
) -> None:
    filler.checkpoint("m1")

    answer = client.get(f"/api/rankings?{query}")

    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert word in answer.json()["error"]
    assert len(answer.text) < 700


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    after=st.text() | st.from_regex(r"[0-9_-]*:[-0-9a-fx.p+]*:[0-9]*", fullmatch=True),
    limit=st.text(max_size=30) | st.integers().map(str),
)
@example(after="999999999:0x1.0000000000000p+0:2147483647", limit="500")
@example(after="0:-0x0.0p+0:0", limit="1")
def test_no_cursor_or_limit_whatever_it_is_breaks_the_server(client: TestClient, after: str, limit: str) -> None:
    # An empty database answers a question that makes sense with 409: there is no champion.
    assert client.get("/api/rankings", params={"after": after}).status_code in (409, 422)
    assert client.get("/api/rankings", params={"limit": limit}).status_code in (409, 422)
    assert client.get("/api/rounds", params={"after": after, "limit": limit}).status_code in (200, 422)
