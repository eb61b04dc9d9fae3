from __future__ import annotations

import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from activeseg.db.database import SCHEMA_REVISION
from tests.cli.commands import PROGRAM, CommandLine
from tests.cli.conftest import write_configuration

pytestmark = pytest.mark.slow


@pytest.fixture
def fresh(tmp_path: Path) -> CommandLine:
    """A configuration whose database does not exist yet."""
    return CommandLine(write_configuration(tmp_path))


def set_revision(folder: Path, revision: str) -> None:
    with closing(sqlite3.connect(folder / "activeseg.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        connection.commit()


def test_up_check_down_and_up_again(fresh: CommandLine) -> None:
    assert fresh("db", "upgrade").out == f"schema empty -> {SCHEMA_REVISION}\n"
    assert fresh("db", "upgrade").out == f"schema {SCHEMA_REVISION}, as it was\n"
    checked = fresh("db", "check")
    assert (checked.out, checked.err) == (f"schema {SCHEMA_REVISION}: up to date, no differences\n", "")
    former = f"{int(SCHEMA_REVISION) - 1:04}"
    assert fresh("db", "downgrade", "-1", "--yes").out == f"schema {SCHEMA_REVISION} -> {former}\n"
    assert fresh("db", "upgrade", "--json").data == {"before": former, "after": SCHEMA_REVISION}
    assert fresh("db", "check", "--json").data == {"revision": SCHEMA_REVISION, "differences": []}
    assert fresh("db", "downgrade", "base", "--yes", "--json").data == {"before": SCHEMA_REVISION, "after": None}


def test_commands_migrate_both_databases(fresh: CommandLine, monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    monkeypatch.setenv("ACTIVESEG_DATABASE__URL", database_url)
    assert fresh("db", "downgrade", "base", "--yes", "--json").data["after"] is None
    assert "no schema yet" in fresh("status").error
    assert fresh("db", "upgrade", "--json").data == {"before": None, "after": SCHEMA_REVISION}
    assert fresh("db", "check").code == 0


def test_downgrading_asks_first(fresh: CommandLine) -> None:
    fresh("db", "upgrade")
    command = [*PROGRAM, "--config", str(fresh.config), "db", "downgrade", "base", "--json"]
    asked = subprocess.run(command, input="n\n", capture_output=True, text=True, timeout=60)
    assert asked.returncode == 1
    assert "schema" not in asked.stdout
    assert "Later tables are dropped" in asked.stderr
    assert fresh("db", "check").code == 0


@pytest.mark.parametrize("command", [["status"], ["rankings"], ["db", "check"], ["pool", "sync"], ["checkpoints"]])
def test_without_a_schema_the_error_names_the_command(fresh: CommandLine, command: list[str]) -> None:
    assert "has no schema yet: run `activeseg db upgrade`" in fresh(*command).error


def test_a_newer_schema_is_refused_by_every_command(fresh: CommandLine, tmp_path: Path) -> None:
    fresh("db", "upgrade")
    set_revision(tmp_path, "9999")
    assert "at schema 9999, this version needs" in fresh("rankings").error
    assert "9999" in fresh("db", "upgrade").error
    assert "9999" in fresh("db", "downgrade", "base", "--yes").error


def test_an_unknown_revision_is_one_line(fresh: CommandLine) -> None:
    fresh("db", "upgrade")
    assert "'nope'" in fresh("db", "downgrade", "nope", "--yes").error


def test_a_changed_table_is_found(fresh: CommandLine, tmp_path: Path) -> None:
    fresh("db", "upgrade")
    with closing(sqlite3.connect(tmp_path / "activeseg.db")) as connection:
        connection.execute("ALTER TABLE requests DROP COLUMN reason")
    assert "1 differences from the models" in fresh("db", "check").error


@pytest.mark.parametrize(
    "url", ["postgresql://u:sesame@127.0.0.1:1/x", "mysql://u:sesame@h/x", "sqlite:////proc/nope/x.db", "sqlite:////tmp"]
)
@pytest.mark.parametrize("command", ["status", "db upgrade", "db check", "rankings"])
def test_a_database_that_cannot_be_opened_is_one_line(
    fresh: CommandLine, monkeypatch: pytest.MonkeyPatch, url: str, command: str
) -> None:
    monkeypatch.setenv("ACTIVESEG_DATABASE__URL", url)
    assert "sesame" not in fresh(*command.split()).error
