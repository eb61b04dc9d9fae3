"""Label Studio's hints: who may give them, what becomes of them, and that nobody waits for it."""

from __future__ import annotations

import http.client
import json
import logging
import time
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import pytest
import sqlalchemy as sa
from starlette.requests import Request
from starlette.testclient import TestClient
from starlette.types import Message

from activeseg.config import Settings
from activeseg.db import lease
from activeseg.db.database import BUSY_SECONDS, Database
from activeseg.db.models import RequestRow
from activeseg.hints import HOOK_PATH, SECRET_HEADER, hook_address
from activeseg.listening import MAX_DISCARDED, discard_body
from activeseg.web.app import create_app
from tests.web.test_serve_command import serving

SECRET = "a-secret-only-for-these-tests"


@pytest.fixture
def hinting(settings: Settings, database: Database) -> TestClient:
    """A client that sends the right secret and no bearer token."""
    tables = {
        "root": settings.root,
        "pool": {"images": "pool"},
        "serve": settings.serve,
        "labelstudio": {"webhook_secret": SECRET},
    }
    app = create_app(Settings.model_validate(tables), database)
    return TestClient(app, headers={SECRET_HEADER: SECRET})


def rows(database: Database) -> list[RequestRow]:
    with database.read() as session:
        return list(session.scalars(sa.select(RequestRow).order_by(RequestRow.id)))


def test_a_hint_leaves_a_request_to_pull_and_the_next_ones_no_other(hinting: TestClient, database: Database) -> None:
    for _ in range(3):
        answer = hinting.post(HOOK_PATH, json={"action": "ANNOTATION_CREATED"})
        assert (answer.status_code, answer.content) == (200, b"")
    [row] = rows(database)
    assert (row.kind, row.argument, row.requested_by, row.taken_at) == ("pull", {}, "label studio webhook", None)


def test_after_a_request_was_taken_the_next_hint_leaves_another(hinting: TestClient, database: Database) -> None:
    hinting.post(HOOK_PATH)
    with database.write() as session:
        session.execute(sa.text("UPDATE requests SET taken_at = created_at"))
    hinting.post(HOOK_PATH)
    assert [row.taken_at is None for row in rows(database)] == [False, True]


@pytest.mark.parametrize("secret", [None, "", SECRET[:-1], SECRET + "x", SECRET.upper(), "ünïcode"])
def test_whoever_does_not_know_the_secret_leaves_nothing(hinting: TestClient, database: Database, secret: str | None) -> None:
    del hinting.headers[SECRET_HEADER]
    headers = {} if secret is None else {SECRET_HEADER.encode(): secret.encode()}
    answer = hinting.post(HOOK_PATH, headers=headers)
    assert (answer.status_code, list(answer.json())) == (401, ["error"])
    assert SECRET not in answer.text
    assert rows(database) == []


def test_the_bearer_token_is_no_secret_and_the_secret_no_token(hinting: TestClient, settings: Settings) -> None:
    assert settings.serve.token is not None
    token = {"Authorization": f"Bearer {settings.serve.token.get_secret_value()}"}
    assert hinting.post(HOOK_PATH, headers=token | {SECRET_HEADER: "wrong"}).status_code == 401
    assert hinting.get("/api/rounds").status_code == 401


def test_without_a_configured_secret_there_is_no_such_route(client: TestClient, tmp_path: Path) -> None:
    answer = client.post(HOOK_PATH, headers={SECRET_HEADER: SECRET})
    assert (answer.status_code, list(answer.json())) == (404, ["error"])
    assert not (tmp_path / ".activeseg-webhook-secret").exists()


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_only_a_post_is_a_hint(hinting: TestClient, database: Database, method: str) -> None:
    assert hinting.request(method, HOOK_PATH).status_code == 405
    assert rows(database) == []


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\x00" * 500, json.dumps({"project": {"id": -1}}).encode(), b"[" * 100_000])
def test_the_body_is_never_believed_nor_read_as_anything(hinting: TestClient, database: Database, body: bytes) -> None:
    assert hinting.post(HOOK_PATH, content=body, headers={"Content-Type": "application/json"}).status_code == 200
    assert [row.argument for row in rows(database)] == [{}]


def endless(part: bytes) -> tuple[Request, list[int]]:
    """A request whose body has no end, and how much of it was read; an empty part never comes."""
    read: list[int] = []

    async def receive() -> Message:
        if not part:
            await anyio.sleep_forever()
        read.append(len(part))
        return {"type": "http.request", "body": part, "more_body": True}

    return Request({"type": "http", "method": "POST", "headers": []}, receive), read


def test_of_a_body_without_end_no_more_is_read_than_allowed() -> None:
    request, read = endless(bytes(2**16))
    anyio.run(discard_body, request)
    assert MAX_DISCARDED < sum(read) <= MAX_DISCARDED + 2**16


def test_a_body_that_never_comes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("activeseg.listening.DISCARD_SECONDS", 0.01)
    request, read = endless(b"")
    anyio.run(discard_body, request)
    assert read == []


def test_it_works_while_another_process_holds_the_lease(hinting: TestClient, database: Database, tmp_path: Path) -> None:
    loop = Database(f"sqlite:///{tmp_path / 'activeseg.db'}")
    try:
        with lease.holding(loop):
            assert hinting.post(HOOK_PATH).status_code == 200
    finally:
        loop.close()
    assert len(rows(database)) == 1


def test_an_absent_database_is_told_in_the_log_and_not_to_the_annotator(
    hinting: TestClient, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with database.write() as session:
        session.execute(sa.text("DROP TABLE requests"))
    with caplog.at_level(logging.WARNING):
        assert hinting.post(HOOK_PATH).status_code == 200
    assert "could not be written down" in caplog.text


@pytest.mark.parametrize("url", ["http://here:8090", "http://here:8090/", "http://here:8090/hooks/label-studio"])
def test_the_address_is_that_of_the_server_with_the_route(url: str) -> None:
    assert hook_address(url) == "http://here:8090/hooks/label-studio"


def post(url: str, secret: str) -> int:
    """Status of a hint sent as Label Studio does: one connection, gone after the answer; impatient beside a locked database."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=BUSY_SECONDS / 2)
    connection.request("POST", parts.path, b'{"action": "ANNOTATION_CREATED"}', {SECRET_HEADER: secret})
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.slow
def test_nobody_waits_while_the_database_is_locked_and_the_hint_is_written_afterwards(
    tmp_path: Path, database: Database
) -> None:
    config = tmp_path / "activeseg.toml"
    config.write_text(
        '[database]\nurl = "sqlite:///activeseg.db"\n[labelstudio]\nwebhook_url = "http://127.0.0.1:1"\n', encoding="utf-8"
    )
    with serving(config) as (_, said):
        secret = (tmp_path / ".activeseg-webhook-secret").read_text(encoding="utf-8").strip()
        assert said["hook"] == said["url"] + HOOK_PATH
        with database.write() as session:
            session.execute(sa.text("DELETE FROM requests"))  # the write lock is ours until the block ends
            assert [post(said["hook"], secret) for _ in range(5)] == [200] * 5
        for _ in range(300):
            if found := rows(database):
                break
            time.sleep(0.1)
    assert len(found) == 1
