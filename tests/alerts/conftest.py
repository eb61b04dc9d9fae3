"""Receivers of alerts on the loopback: a web server and a mail server that keep what they get."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from activeseg.config import Settings
from activeseg.db import alerts
from activeseg.db.alerts import AlertKind
from activeseg.db.database import Database
from activeseg.db.models import Alert
from tests.alerts.receivers import Receiver, SmtpSink


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A web server that answers 200 until it is told otherwise."""
    with Receiver() as opened:
        yield opened


@pytest.fixture
def sink() -> Iterator[SmtpSink]:
    """A mail server without encryption."""
    with SmtpSink() as opened:
        yield opened


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1 with its key, signed by itself."""
    file = tmp_path_factory.mktemp("certificate") / "both.pem"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    named = [*words.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(file), "-out", f"{file}.crt"]
    subprocess.run(named, check=True, capture_output=True)
    file.write_bytes(file.read_bytes() + Path(f"{file}.crt").read_bytes())
    return file


@pytest.fixture
def server_context(certificate: Path) -> ssl.SSLContext:
    """What a mail server with that certificate is made with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    """Settings with these keys of [alerts], and other sections as they are given."""

    def make(*, alerts: dict[str, Any] | None = None, **sections: Any) -> Settings:
        return Settings(root=tmp_path, alerts=alerts or {}, **sections)

    return make


@pytest.fixture
def noted(database: Database) -> Callable[..., Alert]:
    """Note an alert in `database`."""

    def note(message: str = "round failed: no room", *, kind: AlertKind = AlertKind.FAILURE, **columns: Any) -> Alert:
        with database.write() as session:
            return alerts.note(session, kind, columns.pop("about", "round"), message, **columns)

    return note


@pytest.fixture
def rows(database: Database) -> Callable[[], list[Alert]]:
    """All alerts, oldest first."""

    def read() -> list[Alert]:
        with database.read() as session:
            return alerts.newest(session)[::-1]

    return read
