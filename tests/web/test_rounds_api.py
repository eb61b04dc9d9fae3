from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from activeseg.db.models import QueryStatus

STATUSES = (QueryStatus.ANNOTATED, QueryStatus.ANNOTATED, QueryStatus.SKIPPED, QueryStatus.PUSHED, QueryStatus.WITHDRAWN)


def test_a_round_is_listed_with_what_became_of_its_images(filler: Any, client: TestClient) -> None:
    row = filler.round()
    for number, status in enumerate(STATUSES):
        filler.query(row, filler.image(f"/pool/{number}"), status)

    page = client.get("/api/rounds").json()

    counts = {key: page["items"][0][key] for key in ("round", "images", "annotated", "skipped", "open", "withdrawn")}
    assert counts == {"round": 1, "images": 5, "annotated": 2, "skipped": 1, "open": 1, "withdrawn": 1}
    assert page["items"][0]["status"] == "pushed"
    assert page["items"][0]["opened_at"].endswith(("Z", "+00:00"))
    assert page["items"][0]["closed_at"] is None
    assert page["next"] is None


@pytest.mark.parametrize("limit", [1, 3, 7, 8])
def test_rounds_come_youngest_first_in_pages_that_new_rounds_do_not_move(
    filler: Any, client: TestClient, pages: Callable[..., list[dict[str, Any]]], limit: int
) -> None:
    for _ in range(7):
        filler.round()
    assert [item["round"] for item in pages("/api/rounds", [("limit", limit)])] == [7, 6, 5, 4, 3, 2, 1]

    first = client.get("/api/rounds?limit=2").json()
    filler.round()
    rest = pages("/api/rounds", [("limit", limit)], first["next"])
    assert [item["round"] for item in first["items"] + rest] == [7, 6, 5, 4, 3, 2, 1]


def test_no_rounds_is_an_empty_page(client: TestClient) -> None:
    assert client.get("/api/rounds").json() == {"items": [], "next": None}


@pytest.mark.parametrize("query", ["limit=0", "limit=501", "after=0", "after=-3", "after=x", "after=2147483648", "before=3"])
def test_wrong_questions_about_rounds_are_refused(client: TestClient, query: str) -> None:
    answer = client.get(f"/api/rounds?{query}")

    assert answer.status_code == 422
    assert query.split("=")[0] in answer.json()["error"]
