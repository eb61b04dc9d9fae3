"""What is refused before any route: wrong names, heads and bodies too large, too many requests."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from activeseg.config import Settings
from activeseg.db.database import Database
from activeseg.errors import ConfigError
from activeseg.hints import HOOK_PATH, SECRET_HEADER
from activeseg.listening import HEAD_SECONDS
from activeseg.web.app import create_app
from activeseg.web.guard import MAX_BODY, MAX_HEAD, MAX_HEADERS, MAX_TARGET
from activeseg.web.hosts import Hosts
from activeseg.web.limits import LOGINS_PER_MINUTE, Buckets, Limits, network_of
from tests.web.conftest import TOKEN


def hosts(**serve: Any) -> Hosts:
    tables = {"serve": serve, "labelstudio": {"webhook_url": "http://hooked:8090"}}
    return Hosts.of(Settings.model_validate(tables))


@pytest.mark.parametrize(
    "header",
    [
        "127.0.0.1:8090",
        "localhost",
        "LOCALHOST:1",
        "[::1]:8090",
        "10.0.0.7",
        "streets.example",
        "Streets.Example.:443",
        "hooked:8090",
    ],
)
def test_it_answers_to_numbers_and_to_the_names_it_has(header: str) -> None:
    assert hosts(hosts=["https://streets.example"]).answers_to(header)


@pytest.mark.parametrize(
    "header",
    ["", "evil.example", "127.0.0.1.evil.example", "streets.example.evil.example", "localhost.evil", "a b", "x@127.0.0.1",
     "127.0.0.1:x", "[::1", "streets.example:8090/", "\u0131p"],
)  # fmt: skip
def test_a_name_that_others_can_rebind_to_us_is_refused(header: str) -> None:
    assert not hosts(hosts=["streets.example"]).answers_to(header)


def test_a_rebound_name_gets_nothing_even_with_the_token(client: TestClient) -> None:
    answer = client.get("/api/rounds", headers={"Host": "evil.example"})
    assert (answer.status_code, list(answer.json())) == (421, ["error"])
    assert "evil" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["", "a b", "ftp://streets.example", "https://streets.example/path"])
def test_a_configured_name_that_is_none_is_told(name: str) -> None:
    with pytest.raises(ConfigError, match=r"\[serve\] hosts"):
        hosts(hosts=[name])


def test_an_origin_counts_with_its_port() -> None:
    known = hosts(hosts=["https://streets.example:8443"])
    assert known.is_own("https://streets.example:8443", "127.0.0.1:8090")
    assert known.is_own("http://127.0.0.1:8090", "127.0.0.1:8090")
    for origin in ("https://streets.example", "http://127.0.0.1:8080", "null", "", "file://", "https://"):
        assert not known.is_own(origin, "127.0.0.1:8090"), origin


def test_a_bucket_empties_and_fills_evenly() -> None:
    moment = [0.0]
    bucket = Buckets(60, clock=lambda: moment[0])
    assert [bucket.take("a") for _ in range(60)] == [0.0] * 60
    assert bucket.take("a") == pytest.approx(1.0)
    assert bucket.take("b") == 0.0
    moment[0] = 2.5
    assert [bucket.take("a") == 0.0 for _ in range(3)] == [True, True, False]


def test_of_many_a_tenth_may_come_at_once() -> None:
    bucket = Buckets(6000, clock=lambda: 0.0)
    assert [bucket.take("a") == 0.0 for _ in range(601)] == [True] * 600 + [False]


def test_no_more_callers_are_remembered_than_allowed() -> None:
    bucket = Buckets(1, callers=50)
    for number in range(500):
        bucket.take(str(number))
    assert len(bucket) == 50
    assert bucket.take("499") > 0
    assert bucket.take("0") == 0.0


def test_others_at_one_address_cannot_use_up_what_a_token_may_ask() -> None:
    limits = Limits(5)
    limits.recognise("f" * 64)
    for _ in range(20):
        limits.take("0" * 64, "10.0.0.1")  # a token nobody knows is no caller of its own
    assert limits.take(None, "10.0.0.1") > 0
    assert limits.take("f" * 64, "10.0.0.1") == 0.0


def test_addresses_of_one_household_are_one_caller() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") != network_of("2001:db8:0:1::1")
    assert network_of("::ffff:10.0.0.1") == "10.0.0.1"
    assert network_of("x" * 500) == "x" * 100


@pytest.fixture
def limited(settings: Settings, database: Database) -> TestClient:
    serve = settings.serve.model_copy(update={"requests_per_minute": 20})
    return TestClient(create_app(settings.model_copy(update={"serve": serve}), database))


def test_too_many_requests_are_told_when_to_come_again(limited: TestClient) -> None:
    answers = [limited.get("/api/rounds") for _ in range(25)]
    assert [answer.status_code for answer in answers[:20]] == [401] * 20
    assert 429 in {answer.status_code for answer in answers[20:]}
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert answers[-1].headers["content-security-policy"].startswith("default-src 'none'")


def test_attempts_to_log_in_are_few(anonymous: TestClient) -> None:
    codes = [anonymous.post("/login", data={"token": TOKEN}).status_code for _ in range(LOGINS_PER_MINUTE + 2)]
    assert codes == [403] * LOGINS_PER_MINUTE + [429] * 2
    assert anonymous.get("/healthz").status_code == 200


def test_a_head_too_large_is_refused(client: TestClient) -> None:
    assert client.get("/healthz", headers={"X-A": "a" * MAX_HEAD}).status_code == 431
    assert client.get("/healthz", headers={f"X-{number}": "1" for number in range(MAX_HEADERS)}).status_code == 431
    assert client.get("/api/rounds?after=" + "1" * MAX_TARGET).status_code == 414


def test_a_body_too_large_is_refused_and_a_hint_may_be_larger(settings: Settings, database: Database) -> None:
    hook = settings.model_copy(update={"labelstudio": settings.labelstudio.model_copy(update={"webhook_url": "http://a:1"})})
    client = TestClient(create_app(hook, database))
    big, origin = b"a" * (MAX_BODY + 1), {"Origin": "http://testserver"}
    assert client.post("/login", content=big, headers=origin).status_code == 413
    assert client.post("/login", content=iter([big, big]), headers=origin).status_code == 413
    secret = hook.webhook_secret()
    assert secret is not None
    assert client.post(HOOK_PATH, content=big, headers={SECRET_HEADER: secret.get_secret_value()}).status_code == 200


@pytest.mark.parametrize(
    "body", [b"", b"&" * 500, b"a=1&" * 50, b"\xff\xfe=\x00", b"%zz=%", b'{"token": 1}', b"form=" + b"%F0" * 900]
)
def test_a_form_that_is_none_is_refused(anonymous: TestClient, body: bytes) -> None:
    anonymous.get("/")
    answer = anonymous.post("/login", content=body, headers={"Origin": "http://testserver"})
    assert answer.status_code in (400, 403)


@pytest.fixture
def address(tmp_path: Path, database: Database) -> Iterator[tuple[str, int]]:
    from tests.web.test_serve_command import serving

    config = tmp_path / "activeseg.toml"
    config.write_text('[database]\nurl = "sqlite:///activeseg.db"\n', encoding="utf-8")
    with serving(config) as (_, said):
        host, _, port = said["url"].removeprefix("http://").partition(":")
        yield host, int(port)


@pytest.mark.slow
def test_connections_that_never_say_a_whole_request_are_closed(address: tuple[str, int]) -> None:
    silent, dripping = socket.create_connection(address, 60), socket.create_connection(address, 60)
    late = socket.create_connection(address, 60)
    late.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"200 OK" in late.recv(4096)
    late.sendall(b"GET /healthz HT")
    closed = set()
    for _ in range(round(HEAD_SECONDS) * 6):
        for connection in {silent, dripping, late} - closed:
            try:
                if connection is not silent:
                    connection.sendall(b"G")
                connection.settimeout(0.05)
                if connection.recv(1) == b"":
                    closed.add(connection)
            except TimeoutError:
                continue
            except OSError:
                closed.add(connection)
        if len(closed) == 3:
            break
        time.sleep(0.5)
    assert closed == {silent, dripping, late}
