"""A mail arrives encrypted or not at all, once per alert as far as headers can say, and nothing forges its headers."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from activeseg.alerts import mail
from activeseg.config import AlertsSection
from activeseg.db.models import Alert
from activeseg.errors import AlertError
from tests.alerts.receivers import SmtpSink

WHEN = datetime(2026, 3, 1, 6, 30, tzinfo=UTC)


def alert(message: str = "round failed: no room\nsee the log") -> Alert:
    return Alert(id=7, kind="failure", about="round", message=message, created_at=WHEN)


@pytest.fixture
def section() -> Callable[..., AlertsSection]:
    def make(sink: SmtpSink, **more: Any) -> AlertsSection:
        keys = {"email_to": ("ada@example.org",), "email_from": "activeseg@example.org", "smtp_host": "127.0.0.1"}
        return AlertsSection(**keys | {"smtp_port": sink.port, "smtp_security": "none"} | more)

    return make


def test_a_mail_on_the_loopback_says_what_and_keeps_its_number(sink: SmtpSink, section: Callable[..., AlertsSection]) -> None:
    for _ in range(2):
        mail.send(section(sink, email_to=("ada@example.org", "bob@example.org")), alert())
    (to, found, _), (_, again, _) = sink.mails
    assert to == ["ada@example.org", "bob@example.org"]
    assert (found["From"], found["To"]) == ("activeseg@example.org", "ada@example.org, bob@example.org")
    assert found["Subject"] == "activeseg: round failed: no room"
    assert found["Date"].datetime == WHEN
    assert found.get_content().splitlines()[:2] == ["round failed: no room", "see the log"]
    assert found["Message-ID"] == again["Message-ID"] == "<activeseg-7-20260301T063000000000@example.org>"


@pytest.mark.parametrize(
    "message",
    [
        "failed\r\nBcc: eve@example.org\r\n\r\nbody",
        "\r\n\r\nfailed",
        "failed\u2028Bcc: eve@example.org",
        "failed\x00\x0b\x0c\x1b]0;x\x07\x85Bcc: eve@example.org",
        "=?utf-8?q?failed=0D=0ABcc:_eve=40example.org?=",
        "\udcff" + "ä" * 5000 + "\n.\nQUIT",
        "",
    ],
)
def test_no_message_adds_a_header_or_ends_the_mail(sink: SmtpSink, section: Callable[..., AlertsSection], message: str) -> None:
    mail.send(section(sink), alert(message))
    [(to, found, _)] = sink.mails
    assert to == ["ada@example.org"]
    assert {name.lower() for name in found} == {
        "from", "to", "subject", "date", "message-id", "auto-submitted", "content-type", "content-transfer-encoding",
        "mime-version",
    }  # fmt: skip
    assert "alert 7" in found.get_content()
    assert not any(char in found["Subject"] for char in "\r\n")


def test_starttls_encrypts_before_it_logs_in(
    section: Callable[..., AlertsSection],
    server_context: ssl.SSLContext,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    with SmtpSink(starttls=server_context, user=("ada", "pass word")) as sink:
        chosen = section(sink, smtp_security="starttls", smtp_user="ada")
        mail.send(chosen, alert(), password="pass word")
        assert [encrypted for _, _, encrypted in sink.mails] == [True]
        with pytest.raises(AlertError, match="535") as caught:
            mail.send(chosen, alert(), password="another one")
        assert "another one" not in str(caught.value)


def test_tls_from_the_first_byte(
    section: Callable[..., AlertsSection],
    server_context: ssl.SSLContext,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with SmtpSink(tls=server_context) as sink:
        with pytest.raises(AlertError, match="certificate"):
            mail.send(section(sink, smtp_security="tls"), alert())
        monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
        mail.send(section(sink, smtp_security="tls"), alert())
        assert [encrypted for _, _, encrypted in sink.mails] == [True]


def test_a_server_without_starttls_gets_nothing(sink: SmtpSink, section: Callable[..., AlertsSection]) -> None:
    with pytest.raises(AlertError, match="STARTTLS"):
        mail.send(section(sink, smtp_security="starttls"), alert())
    assert sink.mails == []


@pytest.mark.parametrize("host", ["mail.example.org", "10.0.0.1", "localhost.example.org"])
def test_a_plain_mail_never_leaves_the_machine(host: str) -> None:
    with pytest.raises(ValidationError, match="on this machine only"):
        AlertsSection(email_to=("a@b.c",), email_from="a@b.c", smtp_host=host, smtp_security="none")


@pytest.mark.parametrize(
    "address", ["ada", "ada@example.org, eve@example.org", "ada@example.org\nBcc: eve@example.org", "Ada <ada@example.org>"]
)
def test_an_address_is_one_address(address: str) -> None:
    for keys in ({"email_to": (address,)}, {"email_from": address}):
        with pytest.raises(ValidationError, match="plain addresses"):
            AlertsSection(**{"email_from": "a@b.c", "smtp_host": "mail.example.org"} | keys)


def test_a_mail_that_some_may_have_is_not_sent_again_to_them() -> None:
    with SmtpSink(refuse=frozenset({"eve@example.org"})) as sink:
        base: dict[str, Any] = {
            "email_from": "a@b.c",
            "smtp_host": "127.0.0.1",
            "smtp_port": sink.port,
            "smtp_security": "none",
        }
        with pytest.raises(mail.PartlyRefused, match=r"refused eve@example\.org"):
            mail.send(AlertsSection(email_to=("ada@example.org", "eve@example.org"), **base), alert())
        assert [to for to, _, _ in sink.mails] == [["ada@example.org"]]
        with pytest.raises(AlertError, match=r"eve@example\.org.*550"):
            mail.send(AlertsSection(email_to=("eve@example.org",), **base), alert())
