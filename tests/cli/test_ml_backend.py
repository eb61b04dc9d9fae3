"""`activeseg ml-backend`: what it refuses before it listens, and what it tells the person who connects it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from activeseg.workspace import Workspace
from tests.cli.commands import CommandLine


@pytest.fixture
def program(make_sqlite_workspace: Callable[..., Workspace], tmp_path: Path) -> CommandLine:
    """The command line in a folder without a champion and without a Label Studio."""
    make_sqlite_workspace(pool=1)
    config = tmp_path / "activeseg.toml"
    config.write_text('[pool]\nimages = "pool"\n[model]\ndevice = "cpu"\n', encoding="utf-8")
    return CommandLine(config)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ends the program where it would wait for calls; the addresses it listened on."""
    found: list[str] = []
    monkeypatch.setattr("activeseg.listening.run", lambda app, opened: found.append(opened.getsockname()[0]))
    return found


def test_off_the_loopback_it_refuses_with_a_password_nobody_set(program: CommandLine, served: list[str]) -> None:
    error = program("ml-backend", "--host", "0.0.0.0", "--port", "0").error
    assert error.startswith("refusing to listen on 0.0.0.0, where other machines reach it, with a password nobody set")
    assert "set ACTIVESEG_ML_BACKEND__PASSWORD or [ml_backend] password_file first" in error
    assert served == []


def test_with_a_password_of_ones_own_it_listens_where_it_is_told(
    program: CommandLine, served: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ACTIVESEG_ML_BACKEND__PASSWORD", "a-password-only-for-this-test")
    answer = program("ml-backend", "--host", "0.0.0.0", "--port", "0", "--json")
    assert answer.data["password"] == "the environment variable ACTIVESEG_ML_BACKEND__PASSWORD"
    assert "a-password-only-for-this-test" not in answer.out + answer.err
    assert served == ["0.0.0.0"]
    assert not (tmp_path / ".activeseg-ml-backend-password").exists()


def test_it_says_what_to_enter_in_label_studio_and_never_the_password(
    program: CommandLine, served: list[str], tmp_path: Path
) -> None:
    answer = program("ml-backend", "--port", "0")
    file = tmp_path / ".activeseg-ml-backend-password"
    assert answer.code == 0
    for words in ("http://127.0.0.1:", "Settings > Model", "user label-studio", str(file), "no champion yet"):
        assert words in answer.out
    assert "until a champion is promoted" in answer.err
    assert file.read_text(encoding="utf-8").strip() not in answer.out + answer.err


@pytest.mark.parametrize("password", ["short", "\u00fcnicode" * 5])
def test_a_password_that_keeps_nobody_out_is_refused(
    program: CommandLine, served: list[str], monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    monkeypatch.setenv("ACTIVESEG_ML_BACKEND__PASSWORD", password)
    error = program("ml-backend", "--port", "0").error
    assert "expected at least 16 printable ASCII characters" in error
    assert password not in error
    assert served == []
