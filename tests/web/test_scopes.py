"""Which token opens which route. The table is walked, so that a new route cannot be forgotten."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from fastapi import APIRouter, FastAPI
from fastapi.routing import iter_route_contexts
from starlette.testclient import TestClient

from activeseg.config import Settings
from activeseg.db import tokens
from activeseg.db.database import Database
from activeseg.db.models import RequestRow, Token
from activeseg.db.tokens import Scope
from activeseg.hints import HOOK_PATH
from activeseg.web.app import OPEN_PATHS, create_app
from activeseg.web.auth import gates_of, require_gates

OPEN = {"/healthz", "/readyz", "/openapi.json", HOOK_PATH, "/login", "/static/{name}"}
VALUES = {"{image_id}": "1", "{name}": "activeseg.css"}


def routes(app: FastAPI) -> list[tuple[str, str, set[Scope]]]:
    """(method, path, scopes) of every route there is, the schema's too."""
    found = [
        (method, route.path or "", gates_of(route))
        for route in iter_route_contexts(app.routes)
        for method in route.methods or ()
    ]
    assert len(found) > 15
    return [(method, path, scopes) for method, path, scopes in found if method != "HEAD"]


@pytest.fixture
def app(settings: Settings, database: Database) -> FastAPI:
    tables = {"root": settings.root, "pool": {"images": "pool"}, "serve": settings.serve}
    hook = {"labelstudio": {"webhook_secret": "a-secret-only-for-these-tests"}}
    return create_app(Settings.model_validate(tables | hook), database)


@pytest.fixture
def make_token(database: Database) -> Callable[..., dict[str, str]]:
    """Makes a token and gives the header that shows it."""

    def make(name: str, *scopes: Scope) -> dict[str, str]:
        with database.write() as session:
            return {"Authorization": f"Bearer {tokens.create(session, name, scopes=scopes)}"}

    return make


def test_every_route_asks_for_a_scope_or_stands_in_a_short_list(app: FastAPI) -> None:
    assert set(OPEN_PATHS) == OPEN
    for method, path, scopes in routes(app):
        assert bool(scopes) != (path in OPEN), (method, path)
        if scopes and path != "/logout":
            assert scopes == {Scope.READ if method == "GET" else Scope.OPERATE}, (method, path)


def test_without_a_token_every_route_that_is_not_open_says_401(app: FastAPI) -> None:
    client = TestClient(app)
    for method, path, _ in routes(app):
        if path not in OPEN:
            for part, value in VALUES.items():
                path = path.replace(part, value)
            assert client.request(method, path).status_code == 401, (method, path)


def test_an_application_with_a_route_nobody_thought_of_does_not_start(app: FastAPI) -> None:
    router = APIRouter()
    router.get("/new")(lambda: "open to all")
    app.include_router(router)
    with pytest.raises(RuntimeError, match="/new"):
        require_gates(app, OPEN_PATHS)


def test_a_token_that_may_only_read_cannot_ask_for_work(
    anonymous: TestClient, make_token: Callable[..., dict[str, str]], database: Database
) -> None:
    reader = make_token("reader")
    assert anonymous.get("/api/rounds", headers=reader).status_code == 200
    refused = anonymous.post("/api/rounds", headers=reader)
    assert refused.status_code == 403
    assert "--scope operate" in refused.json()["error"]
    assert 'error="insufficient_scope"' in refused.headers["www-authenticate"]
    with database.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(RequestRow)) == 0
    operator = make_token("operator", Scope.OPERATE)
    assert anonymous.get("/api/rounds", headers=operator).status_code == 200
    assert anonymous.post("/api/rounds", headers=operator).status_code == 202


def test_an_expired_or_revoked_token_is_refused_at_once(
    anonymous: TestClient, make_token: Callable[..., dict[str, str]], database: Database
) -> None:
    for column in ("expires_at", "revoked_at"):
        header = make_token(column.replace("_", "."))
        assert anonymous.get("/metrics", headers=header).status_code == 200
        with database.write() as session:
            session.execute(sa.update(Token).values({column: datetime.now(UTC) - timedelta(seconds=1)}))
        assert anonymous.get("/metrics", headers=header).status_code == 401


def test_the_installations_own_token_may_do_all(client: TestClient) -> None:
    assert client.get("/api/status").status_code == 200
    assert client.post("/api/rounds").status_code == 202


@pytest.mark.parametrize("name", ["order_by", "sha256", "tokens__sha256", "fields", "filter", "columns", "sort", "expand"])
def test_no_question_reaches_a_column_that_is_not_offered(client: TestClient, database: Database, name: str) -> None:
    with database.write() as session:
        text = tokens.create(session, "ann")
    secret = tokens.digest(text.encode())
    paths = client.get("/openapi.json").json()["paths"]
    asked = [path.replace("{image_id}", "1") for path, methods in paths.items() if "get" in methods and path.startswith("/api")]
    for path in asked:
        for value in (secret[:8], "tokens.sha256", "-sha256", "1) UNION SELECT sha256 FROM tokens --"):
            answer = client.get(path, params={name: value})
            assert answer.status_code < 500
            assert secret not in answer.text
            with_parameters = any(
                item["in"] == "query" for item in paths[path.replace("/1", "/{image_id}")]["get"].get("parameters", [])
            )
            assert answer.status_code == 422 or not with_parameters or "/1" in path
