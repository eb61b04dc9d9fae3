"""`[alerts] smtp_password` and `smtp_password_file` reach the mail server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from activeseg.alerts import send_test
from activeseg.config import Settings, write_secret
from activeseg.db.database import Database
from tests.alerts.receivers import SmtpSink

PASSWORD = "four plain words here"


@pytest.mark.parametrize("key", ["smtp_password", "smtp_password_file"])
def test_a_mail_server_that_wants_a_password_gets_the_configured_one(
    database: Database, make_settings: Callable[..., Settings], tmp_path: Path, key: str
) -> None:
    write_secret(tmp_path / "smtp.secret", PASSWORD)
    to = {"email_to": ("ada@example.org",), "email_from": "a@example.org", "smtp_user": "ada"}
    with SmtpSink(user=("ada", PASSWORD)) as sink:
        server = {"smtp_host": "127.0.0.1", "smtp_port": sink.port, "smtp_security": "none"}
        secret = {key: PASSWORD if key == "smtp_password" else "smtp.secret"}
        assert send_test(make_settings(alerts=to | server | secret), database, asked_by="ada") == {"mail": None}
        assert len(sink.mails) == 1
        told = send_test(make_settings(alerts=to | server), database, asked_by="ada")
        assert "535" in (told["mail"] or ""), "without it the server says no"
