"""`activeseg schedule` as a user starts it: a process of its own, ended by a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from activeseg.cli import main
from activeseg.db.database import Database
from activeseg.db.models import JobRun

pytestmark = pytest.mark.slow

Configure = Callable[[str], None]
Run = Callable[..., tuple[object, str, str]]
Runs = Callable[[], list[JobRun]]


@pytest.fixture(autouse=True)
def folder(database: Database, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configured folder on the migrated database, made the working one."""
    (tmp_path / "classes.txt").write_text("sky #4080ff\nroad #808080\n", encoding="utf-8")
    (tmp_path / "images").mkdir()
    for name in [name for name in os.environ if name.startswith("ACTIVESEG_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def configure(folder: Path, database_url: str) -> Callable[[str], None]:
    def write(text: str) -> None:
        (folder / "activeseg.toml").write_text(f'[database]\nurl = "{database_url}"\n{text}', encoding="utf-8")

    write("")
    return write


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program here, where torch is loaded once; returns exit status, output and errors."""

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["activeseg", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return run


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from activeseg.cli import main; main()", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_after_the_start_ends_it_cleanly(configure: Configure, number: int) -> None:
    configure('[schedule]\ntimezone = "Europe/Berlin"\nround = "30 4 * * *"\npull = "0 4 1 1 *"\n')
    process = start("schedule")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    process.send_signal(number)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Europe/Berlin" in lines[0]
    assert lines[1].split()[:6] == ["round", "30", "4", "*", "*", "*"]
    assert lines[1].count(" 04:30 CE") == 3
    assert lines[2].count("-01-01 04:00 CET") == 3
    assert rest == ""
    assert "Traceback" not in errors


def test_the_plan_as_json_is_one_document(configure: Configure) -> None:
    configure('[schedule]\nround = "0 2 29 2 *"\npull = "0 4 1 1 *"\n')
    process = start("schedule", "--json")
    assert process.stdout is not None
    text = ""
    while not text.endswith("\n]\n") and (line := process.stdout.readline()):
        text += line
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    plan = json.loads(text)
    assert [(job["job"], len(job["next"])) for job in plan] == [("round", 3), ("pull", 3)]
    assert all(time.endswith("-02-29T02:00:00+00:00") for time in plan[0]["next"])


def test_once_without_label_studio_says_so_in_one_line(configure: Configure, in_process: Run, runs: Runs) -> None:
    status, output, errors = in_process("schedule", "--once", "pull")
    assert (status, errors) == (0, "")
    [line] = output.splitlines()
    assert "pull done: nothing new (no Label Studio to pull from: [labelstudio] url is not set)" in line
    [run] = runs()
    assert (run.job, run.planned_at, run.outcome) == ("pull", None, "done")


def test_once_with_label_studio_away_fails_with_one_line_and_status_1(
    configure: Configure, in_process: Run, folder: Path, runs: Runs
) -> None:
    (folder / "token").write_text("secret", encoding="utf-8")
    (folder / "token").chmod(0o600)
    # Port 9 of the loopback address: nothing listens there.
    configure('[labelstudio]\nurl = "http://127.0.0.1:9"\ntoken_file = "token"\n')
    status, output, errors = in_process("schedule", "--once", "pull", "--json")
    assert (status, errors) == (1, "")
    result = json.loads(output)
    assert (result["job"], result["outcome"], result["planned_at"]) == ("pull", "failed", None)
    assert "127.0.0.1:9" in result["message"]
    assert "\n" not in result["message"]
    assert [run.outcome for run in runs()] == ["failed"]


def test_once_on_an_empty_pool_fails_with_the_remedy(configure: Configure, in_process: Run) -> None:
    status, output, errors = in_process("schedule", "--once", "round")
    assert (status, errors) == (1, "")
    [line] = output.splitlines()
    assert "round failed: " in line


@pytest.mark.parametrize(
    ("line", "named"), [('round = "nightly"', "[schedule] round"), ('timezone = "Mars"', "[schedule] timezone")]
)
def test_a_bad_setting_ends_it_at_start_with_one_line(configure: Configure, in_process: Run, line: str, named: str) -> None:
    configure(f"[schedule]\n{line}\n")
    status, output, errors = in_process("schedule")
    assert (status, output) == (1, "")
    assert len(errors.splitlines()) == 1
    assert named in errors
