"""Every line of a run says whose it is, whichever library wrote it, and none holds a secret."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import sqlalchemy as sa
import structlog

from activeseg import logs
from activeseg.config import SECRETS, LogSection, Settings, load_settings, masked
from activeseg.config.secrets import read_secret

SECRET = 'hush"\\né-42 of this test&only'
Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """Levels and handlers of a process are everybody's."""
    names = ("", "activeseg", "httpx", "sqlalchemy")
    before = {name: (logging.getLogger(name).level, list(logging.getLogger(name).handlers)) for name in names}
    yield
    for name, (level, handlers) in before.items():
        logging.getLogger(name).setLevel(level)
        logging.getLogger(name).handlers[:] = handlers
    structlog.reset_defaults()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "run.jsonl"


@pytest.fixture
def lines(file: Path) -> Lines:
    return lambda: [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_every_line_of_a_run_carries_its_run_job_and_round(file: Path, lines: Lines) -> None:
    logs.configure(LogSection(level="debug"))
    engine = sa.create_engine("sqlite://", echo=False)
    client = httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(200)))
    with logs.run_log(file, run=7, job="round"):
        logging.getLogger("activeseg.stages.score").info("scored", extra={"images": 12})
        with logs.bound(round=3):
            client.get("http://label-studio/api/tasks")
            with engine.connect() as connection:
                connection.execute(sa.text("SELECT 41 + 1"))
            logging.getLogger("apscheduler.executors").warning("late by %s", "1 s")
            structlog.get_logger("stamina").warning("tried again", attempt=2)
            thread = threading.Thread(target=lambda: logging.getLogger("activeseg.nn").info("from a reader's thread"))
            thread.start()
            thread.join()
        logging.getLogger("activeseg.loop").info("after the round")
    logging.getLogger("activeseg.loop").info("after the run")
    engine.dispose()
    found = lines()
    assert {(line["run"], line["job"]) for line in found} == {(7, "round")}
    assert [found[0].get("round"), found[-1].get("round")] == [None, None]
    assert {line.get("round") for line in found[1:-1]} == {3}
    told = {line["logger"].split(".")[0] for line in found}
    assert told == {"activeseg", "httpx", "sqlalchemy", "apscheduler", "stamina"}
    assert found[0] | {"timestamp": ""} == {
        "event": "scored", "images": 12, "run": 7, "job": "round", "level": "info", "timestamp": "",
        "logger": "activeseg.stages.score",
    }  # fmt: skip
    assert any("SELECT 41 + 1" in line["event"] for line in found)
    assert "after the run" not in {line["event"] for line in found}


@pytest.mark.parametrize(("section", "key"), [*SECRETS, ("database", "url")])
@pytest.mark.parametrize("way", ["environment", "file"])
def test_no_secret_reaches_a_line(
    section: str, key: str, way: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    secret = f"{SECRET} {section} {key} {way}"
    if key == "url":
        value = f"postgresql://ann:{quote(secret)}@db/activeseg"
        monkeypatch.setenv("ACTIVESEG_DATABASE__URL", value)
    elif way == "environment":
        value = secret
        monkeypatch.setenv(f"ACTIVESEG_{section}__{key}".upper(), value)
    else:
        value = secret
        (tmp_path / "key").write_text(value + "\n", encoding="utf-8")
        (tmp_path / "key").chmod(0o600)
        read_secret(tmp_path / "key", key)
    (tmp_path / "activeseg.toml").write_text("", encoding="utf-8")
    settings = load_settings(tmp_path / "activeseg.toml")
    logs.configure(settings.log, service=True)
    log = logging.getLogger("activeseg.anything")
    with logs.run_log(file, run=1, job="pull"):
        log.warning("the key is %s", secret)
        log.warning("it came as %r", {"nested": [secret]})
        log.warning("extra", extra={"headers": {"X-Key": secret}, "note": (secret,), secret: 1})
        log.warning("asked http://server/?next=%s and %s", quote(secret), value)
        structlog.get_logger("other").error("event", body=json.dumps({"key": secret}))
        try:
            raise RuntimeError(f"refused: {secret!r}")
        except RuntimeError:
            log.exception("it failed")
    for told in (file.read_text(encoding="utf-8"), capsys.readouterr().err):
        assert "the key is ***" in told
        assert "RuntimeError: refused: '***'" in told
        for form in (secret, quote(secret), repr(secret)[1:-1], json.dumps(secret)[1:-1], SECRET, "hush"):
            assert form not in told, form


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("postgresql+psycopg://ann:a@b:c@db/x failed", "postgresql+psycopg://ann:***@db/x failed"),
        ("redis://:only-a-password@host", "redis://:***@host"),
        ("Authorization: Bearer eyJhbGciOi.eyJzdWIiOiIx.c2lnbmF0dXJl", "Authorization: Bearer ***"),
        ("Authorization: Token 0123456789abcdef0123", "Authorization: Token ***"),
        ("the JWT eyJhbGciOiJI.eyJzdWIiOiIx.c2ln stands alone", "the JWT *** stands alone"),
        ("GET http://s3/b/k?X-Amz-Signature=abc&X-Amz-Date=1", "GET http://s3/b/k?X-Amz-Signature=***&X-Amz-Date=1"),
        ("a token activeseg_" + "aB3_-" * 8 + "xyz is new", "a token *** is new"),
        ("see https://label-studio:8080/a@b and ann@host", "see https://label-studio:8080/a@b and ann@host"),
        ("activeseg_last_scoring_ended_timestamp_seconds", "activeseg_last_scoring_ended_timestamp_seconds"),
    ],
)
def test_what_looks_like_a_secret_of_others_is_masked_and_nothing_else(text: str, told: str) -> None:
    assert masked(text) == told


def test_a_command_tells_warnings_and_a_service_what_it_does(capsys: Any) -> None:
    for service in (False, True):
        logs.configure(LogSection(), service=service)
        logging.getLogger("activeseg.loop").info("doing %s", "this")
        logging.getLogger("activeseg.loop").warning("beware")
        logging.getLogger("httpx").info("HTTP Request: GET http://x")
    shown = capsys.readouterr().err
    assert (shown.count("doing this"), shown.count("beware"), shown.count("HTTP Request")) == (1, 2, 0)


def test_standard_error_is_json_where_that_is_asked_for(capsys: Any) -> None:
    logs.configure(LogSection(format="json"), service=True)
    logging.getLogger("uvicorn.error").warning("uvicorn's line")
    [line] = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "uvicorn's line"


@pytest.mark.parametrize("level", ["warning", "error"])
def test_a_higher_level_keeps_lower_lines_out_of_the_file_too(level: Any, file: Path, lines: Lines) -> None:
    logs.configure(LogSection(level=level), service=True)
    with logs.run_log(file, run=1, job="round"):
        for kind in ("debug", "info", "warning", "error"):
            getattr(logging.getLogger("activeseg.x"), kind)(kind)
    assert [line["event"] for line in lines()] == ["warning", "error"][["warning", "error"].index(level) :]


def test_a_folder_that_cannot_be_written_stops_no_run(tmp_path: Path, capsys: Any) -> None:
    logs.configure(LogSection())
    (tmp_path / "logs").write_text("a file, not a folder", encoding="utf-8")
    with logs.run_log(tmp_path / "logs" / "run.jsonl", run=1, job="round"):
        logging.getLogger("activeseg.x").warning("goes on")
    shown = capsys.readouterr().err
    assert "this run has no log file" in shown
    assert "goes on" in shown


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_stops_no_run_and_is_told_once(capsys: Any) -> None:
    logs.configure(LogSection())
    with logs.run_log(Path("/dev/full"), run=1, job="round"):
        for _ in range(5):
            logging.getLogger("activeseg.x").warning("goes on")
    shown = capsys.readouterr().err
    assert shown.count("goes on") == 5
    assert shown.count("log lines of this run are lost") == 1


def test_settings_made_anywhere_are_known(file: Path) -> None:
    Settings.model_validate({"labelstudio": {"token": "a-token-nobody-wrote-down"}})
    assert masked("it is a-token-nobody-wrote-down!") == "it is ***!"


@pytest.mark.slow
def test_a_command_that_writes_no_line_does_not_wait_for_structlog() -> None:
    program = (
        "import logging, sys; from activeseg import logs; from activeseg.config import LogSection\n"
        "logs.configure(LogSection())\n"
        "assert 'structlog' not in sys.modules\n"
        "logging.getLogger('activeseg').warning('a line'); assert 'structlog' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, "a line" in done.stderr) == (0, True), done.stderr
