"""Who gets in, what every answer carries, and what a broken server says."""

from __future__ import annotations

import socket
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from activeseg.config import Settings, write_secret
from activeseg.db.database import Database
from activeseg.errors import ConfigError
from activeseg.listening import open_socket, url_of
from activeseg.web.app import create_app
from activeseg.web.auth import bearer_token

FORBIDDEN = (
    "torch",
    "label_studio_sdk",
    "activeseg.nn",
    "activeseg.stages",
    "activeseg.loop",
    "activeseg.labelstudio",
    "activeseg.explain",
)


def api_paths(client: TestClient) -> list[str]:
    paths = client.get("/openapi.json").json()["paths"]
    found = [path.replace("{image_id}", "1") for path in paths if path.startswith("/api")]
    assert len(found) >= 3
    return found


def test_no_api_route_answers_without_the_token(anonymous: TestClient) -> None:
    for path in api_paths(anonymous):
        answer = anonymous.get(path)
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert list(answer.json()) == ["error"]


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic {token}",
        "{token}",
        "Bearer {token}x",
        "Bearer x{token}",
        "Bearer {short}",
        "Bearer {upper}",
        "Bearer ünïcode",
    ],
)
def test_a_wrong_token_is_refused_before_the_question_is_read(anonymous: TestClient, settings: Settings, header: str) -> None:
    assert settings.serve.token is not None
    token = settings.serve.token.get_secret_value()
    value = header.format(token=token, short=token[:-1], upper=token.upper())

    answer = anonymous.get("/api/rankings?limit=none", headers={b"Authorization": value.encode()})

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert token not in answer.text


def test_the_right_token_opens(anonymous: TestClient, settings: Settings) -> None:
    assert settings.serve.token is not None
    token = settings.serve.token.get_secret_value()
    assert anonymous.get("/api/rounds", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    assert anonymous.get("/api/rounds", headers={"Authorization": f"bearer {token}"}).status_code == 200
    # The token counts only in the header: an address ends up in logs.
    assert anonymous.get(f"/api/rounds?token={token}").status_code == 401


def test_every_answer_carries_the_security_headers(client: TestClient) -> None:
    @client.app.get("/breaks")  # type: ignore[attr-defined]
    def breaks() -> None:
        raise RuntimeError("a secret detail")

    lenient = TestClient(client.app, raise_server_exceptions=False, headers=client.headers)
    for path, status in (("/api/rounds", 200), ("/api/images/1", 404), ("/nowhere", 404), ("/healthz", 200), ("/breaks", 500)):
        answer = lenient.get(path)
        assert answer.status_code == status
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; base-uri 'none'")
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in answer.headers
        assert "secret detail" not in answer.text
        if status != 200:
            assert list(answer.json()) == ["error"]


def test_the_schema_is_served_and_no_page_that_loads_scripts_from_elsewhere(anonymous: TestClient) -> None:
    schema = anonymous.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        "/api/rankings", "/api/images/{image_id}", "/api/images/{image_id}/thumbnail", "/api/images/{image_id}/prediction",
        "/api/images/{image_id}/entropy", "/api/images/{image_id}/annotation", "/api/rounds", "/api/report", "/api/status",
        "/api/runs", "/api/alerts", "/healthz", "/readyz", "/metrics",
    }  # fmt: skip
    assert schema["paths"]["/api/rankings"]["get"]["security"]
    assert {"limit", "class", "checkpoint", "after"} == {
        item["name"] for item in schema["paths"]["/api/rankings"]["get"]["parameters"]
    }
    assert [anonymous.get(path).status_code for path in ("/docs", "/redoc")] == [404, 404]


def test_nothing_but_a_request_can_be_written_and_reading_changes_no_row(
    client: TestClient, filler: Any, tmp_path: Path
) -> None:
    filler.checkpoint("m1")
    filler.scored("m1", "a", {0: 1.0})
    before = dump(tmp_path / "activeseg.db")

    for path in [*api_paths(client), "/healthz", "/metrics"]:
        client.get(path)
        for method in {"POST", "PUT", "PATCH", "DELETE"} - ({"POST"} if path == "/api/rounds" else set()):
            answer = client.request(method, path)
            assert answer.status_code == 405
            assert list(answer.json()) == ["error"]

    assert dump(tmp_path / "activeseg.db") == before


def dump(file: Path) -> list[str]:
    connection = sqlite3.connect(file)
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


def test_health_needs_no_token_and_follows_the_database(anonymous: TestClient, database: Database) -> None:
    assert (anonymous.get("/healthz").status_code, anonymous.get("/healthz").json()) == (200, {"status": "ok"})
    with database.write() as session:
        session.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    assert anonymous.get("/healthz").status_code == 503


@pytest.mark.parametrize("content", [None, b"", b"this is no database " * 100], ids=["missing", "empty", "garbage"])
def test_health_of_an_unusable_database_is_503_and_names_no_place(
    settings: Settings, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "other.db"
    if content is not None:
        file.write_bytes(content)
    database = Database(f"sqlite:///{file}")
    try:
        answer = TestClient(create_app(settings, database)).get("/healthz")
    finally:
        database.close()

    assert answer.status_code == 503
    assert list(answer.json()) == ["error"]
    assert str(tmp_path) not in answer.text
    assert "sqlite" not in answer.text


def test_a_database_that_breaks_while_serving_is_503_without_its_sql(client: TestClient, database: Database) -> None:
    with database.write() as session:
        session.execute(sa.text("DROP VIEW annotation_progress"))

    answer = client.get("/api/rounds")

    assert answer.status_code == 503
    assert "SELECT" not in answer.text
    assert "annotation_progress" not in answer.text


def test_the_token_file_is_made_once_and_only_for_its_owner(tmp_path: Path) -> None:
    settings = Settings.model_validate({"root": tmp_path})
    token, again = bearer_token(settings), bearer_token(settings)

    assert token == again
    assert len(token.value.get_secret_value()) >= 43
    assert not token.explicit
    file = tmp_path / ".activeseg-serve-token"
    assert token.file == file
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert token.value.get_secret_value() not in repr(token)


def test_a_token_from_the_environment_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTIVESEG_SERVE__TOKEN", "from-the-environment")

    token = bearer_token(Settings.model_validate({"root": tmp_path}))

    assert (token.value.get_secret_value(), token.file, token.explicit) == ("from-the-environment", None, True)
    assert "ACTIVESEG_SERVE__TOKEN" in token.place
    assert list(tmp_path.iterdir()) == []


def test_a_configured_token_file_is_read_or_made(tmp_path: Path) -> None:
    settings = Settings.model_validate({"root": tmp_path, "serve": {"token_file": "keys/api"}})
    made = bearer_token(settings)
    assert made.explicit
    assert stat.S_IMODE((tmp_path / "keys/api").stat().st_mode) == 0o600

    write_secret(tmp_path / "keys/api", "one that a person chose")
    assert bearer_token(settings).value.get_secret_value() == "one that a person chose"

    (tmp_path / "keys/api").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        bearer_token(settings)


def test_a_token_that_keeps_nobody_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 16"):
        bearer_token(Settings.model_validate({"root": tmp_path, "serve": {"token": "short"}}))
    write_secret(tmp_path / ".activeseg-serve-token", "short")
    with pytest.raises(ConfigError, match="at least 16"):
        bearer_token(Settings.model_validate({"root": tmp_path}))
    with pytest.raises(ConfigError, match="printable ASCII"):
        bearer_token(Settings.model_validate({"root": tmp_path, "serve": {"token": "\u00fcn\u00efcode" * 5}}))


def test_an_empty_token_counts_as_none_and_a_strong_one_is_made(tmp_path: Path) -> None:
    token = bearer_token(Settings.model_validate({"root": tmp_path, "serve": {"token": ""}}))
    assert len(token.value.get_secret_value()) >= 32
    assert not token.explicit


def test_an_emptied_token_file_is_refused(tmp_path: Path) -> None:
    write_secret(tmp_path / ".activeseg-serve-token", "")
    with pytest.raises(ConfigError, match="token"):
        bearer_token(Settings.model_validate({"root": tmp_path}))


def opened_for(host: str, port: int = 0, *, explicit: bool = False) -> socket.socket:
    return open_socket(host, port, section="serve", secret="token", explicit=explicit)


@pytest.mark.parametrize("host", ["0.0.0.0", "0", "::", "192.0.2.1", "203.0.113.9"])
def test_off_the_loopback_it_does_not_listen_with_a_token_nobody_chose(host: str) -> None:
    with pytest.raises(ConfigError, match=r"refusing to listen.*set ACTIVESEG_SERVE__TOKEN or \[serve\] token_file"):
        opened_for(host)


@pytest.mark.parametrize(
    ("host", "explicit"), [("127.0.0.1", False), ("localhost", False), ("127.0.0.2", False), ("0.0.0.0", True)]
)
def test_it_listens_where_that_is_safe_or_wanted(host: str, explicit: bool) -> None:
    with opened_for(host, explicit=explicit) as opened:
        port = opened.getsockname()[1]
        assert port > 0
        assert url_of(opened).endswith(f":{port}")


def test_an_address_that_cannot_be_had_is_one_sentence() -> None:
    with opened_for("127.0.0.1") as opened, pytest.raises(ConfigError, match="--port"):
        opened_for("127.0.0.1", opened.getsockname()[1])
    for host in ("", "no such host", "a" * 300):
        with pytest.raises(ConfigError, match="host"):
            opened_for(host)


@pytest.mark.slow
def test_the_web_process_loads_no_torch_and_nothing_that_works() -> None:
    program = f"import sys, activeseg.web.app, activeseg.listening; print([n for n in {FORBIDDEN!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
