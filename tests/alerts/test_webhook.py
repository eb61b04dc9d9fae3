"""An alert arrives as a signed JSON document, or it is said why not; it goes nowhere else."""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from activeseg.alerts import webhook
from activeseg.config.masking import masked
from activeseg.db.models import Alert
from activeseg.errors import AlertError
from tests.alerts.receivers import Receiver

ALERT = Alert(
    id=7, kind="failure", about="round", message="round failed: “no room”\nline 2", created_at=datetime(2026, 3, 1, tzinfo=UTC)
)


def test_the_document_says_what_when_and_where_and_is_signed(receiver: Receiver) -> None:
    webhook.post(receiver.url, ALERT, secret="a secret of the two")
    [(path, headers, body)] = receiver.got
    found = json.loads(body)
    assert path == "/hook/key-0123456789abcdef"
    assert found.pop("host") == socket.gethostname()
    assert found == {
        "id": 7,
        "kind": "failure",
        "about": "round",
        "message": ALERT.message,
        "created_at": "2026-03-01T00:00:00+00:00",
    }
    assert headers["content-type"] == "application/json"
    expected = hmac.new(b"a secret of the two", body, hashlib.sha256).hexdigest()
    assert headers["x-activeseg-signature"] == f"sha256={expected}"


def test_a_key_in_the_address_is_masked_in_logs(receiver: Receiver) -> None:
    webhook.post(receiver.url, ALERT)
    assert masked(f"POST {receiver.url}") == "POST http://***"
    assert masked("the key key-0123456789abcdef by itself") == "the key *** by itself"


def test_a_short_key_in_the_address_stands_in_no_log_line_of_the_client(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    url = receiver.url.replace("key-0123456789abcdef", "k3y?a=b1")
    with caplog.at_level("INFO", logger="httpx"):
        webhook.post(url, ALERT)
    [line] = [record.getMessage() for record in caplog.records if record.name == "httpx"]
    assert url in line
    assert masked(line) == line.replace(url, "http://***")
    assert masked("k3y is an ordinary word") == "k3y is an ordinary word"


def test_the_host_of_the_address_is_no_secret() -> None:
    name = "alerts-of-no-hospital.invalid"
    with pytest.raises(AlertError, match=name):
        webhook.post(f"http://{name}/hook", ALERT)
    assert masked(f"http://{name}/api/tasks") == f"http://{name}/api/tasks"


def test_without_a_secret_nothing_is_signed(receiver: Receiver) -> None:
    webhook.post(receiver.url, ALERT)
    assert "x-activeseg-signature" not in receiver.got[0][1]


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_an_answer_that_is_no_yes_is_told(receiver: Receiver, status: int) -> None:
    receiver.status = status
    with pytest.raises(AlertError, match=f"answered {status}"):
        webhook.post(receiver.url, ALERT)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(receiver: Receiver, status: int) -> None:
    receiver.status, receiver.headers = status, {"Location": receiver.url + "/elsewhere"}
    with pytest.raises(AlertError, match="redirects are not followed"):
        webhook.post(receiver.url, ALERT)
    assert len(receiver.got) == 1


def test_a_receiver_that_never_answers_is_given_up(receiver: Receiver) -> None:
    receiver.silent = True
    with pytest.raises(AlertError, match="timed out"):
        webhook.post(receiver.url, ALERT, timeout=0.2)


@pytest.mark.parametrize(
    "down", [lambda url: url.replace("http:", "https:"), lambda url: "http://127.0.0.1:1/hook/key-0123456789abcdef"]
)
def test_an_error_names_the_host_and_never_the_whole_address(receiver: Receiver, down: Callable[[str], str]) -> None:
    with pytest.raises(AlertError) as caught:
        webhook.post(down(receiver.url), ALERT)
    assert "127.0.0.1:" in str(caught.value)
    assert "key-0123456789abcdef" not in str(caught.value)
