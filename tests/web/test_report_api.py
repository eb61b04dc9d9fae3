from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from activeseg.db.models import Arm, QueryStatus


def test_the_report_is_the_commands(filler: Any, client: TestClient) -> None:
    row = filler.round()
    for number in range(3):
        filler.query(row, filler.image(f"/pool/{number}"), QueryStatus.ANNOTATED, arm=Arm.CONTROL)
    answer = client.get("/api/report")
    assert answer.status_code == 200, answer.text
    assert answer.json()["left_out"] == {"of rounds without a model": 3}
    assert answer.json()["ranking"]["estimate"] is None
    assert "12 more are needed" in answer.json()["ranking"]["sentence"]
    assert client.get("/api/report?first=2&last=3").json()["left_out"] == {}


@pytest.mark.parametrize("query", ["first=0", "last=x", "rounds=1-2", "last=2147483648"])
def test_wrong_questions_about_the_report_are_refused(client: TestClient, query: str) -> None:
    assert client.get(f"/api/report?{query}").status_code == 422


def test_the_report_needs_the_token(anonymous: TestClient) -> None:
    assert anonymous.get("/api/report").status_code == 401
