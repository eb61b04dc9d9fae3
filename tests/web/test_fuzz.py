"""Questions nobody would think of: no answer is a server error. A real SQLite database with some rows is behind it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from urllib.parse import quote

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from starlette.testclient import TestClient

from activeseg.config import Settings
from activeseg.db.database import Database
from activeseg.db.models import Alert, JobOutcome, JobRun, QueryStatus
from activeseg.web.app import create_app
from tests.web.conftest import TOKEN

FEW = settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
FEWER = settings(FEW, max_examples=6)
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def app(settings: Settings, database: Database, filler: Any) -> Any:
    """The application over some rows of each kind; asking often is allowed here."""
    filler.checkpoint("m1")
    for number in range(3):
        filler.query(filler.round(), filler.scored("m1", f"i{number}", {0: 1.0 + number, 2: 2.0}), QueryStatus.PUSHED)
    filler.add(JobRun(job="round", host="h", pid=1, outcome=JobOutcome.DONE, message="nothing new"))
    filler.add(Alert(kind="failure", about="round", message="m"))
    serve = settings.serve.model_copy(update={"requests_per_minute": 10**9})
    return create_app(settings.model_copy(update={"serve": serve}), database)


def operations(app: Any) -> list[Any]:
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    return [found.ok() for found in schema.get_all_operations()]


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_no_question_the_schema_allows_or_forbids_is_a_server_error(app: Any, mode: schemathesis.GenerationMode) -> None:
    found = operations(app)
    assert len(found) >= 12
    asked: dict[int, int] = {}
    for operation in found:

        @FEWER
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            answer = case.call(headers=HEADERS)
            asked[answer.status_code] = asked.get(answer.status_code, 0) + 1
            assert answer.status_code < 500, (case.as_curl_command(), answer.text)

        # What takes no value at all cannot be asked wrongly.
        with suppress(Unsatisfiable):
            ask()
    assert asked.get(200, 0) + asked.get(422, 0) + asked.get(404, 0) > 30, asked


def test_no_path_header_cookie_or_form_is_a_server_error(app: Any) -> None:
    client = TestClient(app)
    words = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
    paths = st.sampled_from(
        [
            "/",
            "/images/{}",
            "/images/{}/thumbnail",
            "/images/1/annotation?palette={}",
            "/static/{}",
            "/api/rankings?after={}",
            "/{}",
        ]
    )
    raw = st.binary(max_size=40).map(lambda value: value.replace(b"\r", b"").replace(b"\n", b""))

    @FEW
    @given(st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "DELETE"]), paths, words, raw, raw, raw)
    def ask(method: str, path: str, word: str, authorization: bytes, cookie: bytes, body: bytes) -> None:
        headers = {b"Authorization": authorization, b"Cookie": b"activeseg_session=" + cookie, b"Origin": b"http://testserver"}
        address = path.format(quote(word, safe="%/?&=#"))
        answer = client.request(method, address, headers=headers, content=body if method == "POST" else None)
        assert answer.status_code < 500

    ask()
