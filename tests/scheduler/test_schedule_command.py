"""`activeseg schedule` as a user starts it: a process of its own, ended by a signal."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import sqlalchemy as sa
from PIL import Image
from sqlalchemy.sql.compiler import SQLCompiler

from activeseg.cli import main
from activeseg.cli.schedule import JobName
from activeseg.config import load_settings
from activeseg.db.database import Database
from activeseg.db.models import JobRun, RequestRow
from activeseg.records import StageReport
from activeseg.scheduler import Scheduler, loop_jobs
from activeseg.scheduler.jobs import _sentence

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
    ("line", "named"),
    [
        ('round = "nightly"', "[schedule] round"),
        ('timezone = "Mars"', "[schedule] timezone"),
        ('promote = "0 8 * * * Mars"', "unknown time zone 'Mars'; use an IANA name such as Europe/Berlin"),
    ],
)
def test_a_bad_setting_ends_it_at_start_with_one_line(configure: Configure, in_process: Run, line: str, named: str) -> None:
    configure(f"[schedule]\n{line}\n")
    status, output, errors = in_process("schedule")
    assert (status, output) == (1, "")
    assert len(errors.splitlines()) == 1
    assert named in errors


def test_every_job_can_be_run_by_hand_whether_it_is_planned_or_not(configure: Configure) -> None:
    names = [job.name for job in loop_jobs(load_settings(Path("activeseg.toml")))]
    assert names == list(get_args(JobName))
    configure('[schedule]\nsync = "0 12 * * *"\n')
    planned = [job.name for job in loop_jobs(load_settings(Path("activeseg.toml"))) if job.cron is not None]
    assert planned == ["round", "pull", "sync"]


def test_statements_compiled_in_one_run_serve_the_next(configure: Configure, database: Database, folder: Path) -> None:
    scheduler = Scheduler(database, loop_jobs(load_settings(Path("activeseg.toml")), database))
    kept = []
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"images/{number}.png")
        assert scheduler.run_once("sync").message == "pool sync 1"
        gc.collect()
        compiled = [one for one in gc.get_objects() if isinstance(one, SQLCompiler)]
        kept.append(sum(one.string.startswith("INSERT INTO images ") for one in compiled))
    assert kept == kept[:1] * 4


@pytest.mark.parametrize(
    ("job", "outcome", "said"),
    [
        ("sync", "done", "pool sync 1"),
        ("push", "done", "nothing new"),
        ("train", "done", "nothing new"),
        ("promote", "done", "nothing new"),
        ("report", "done", ""),
        ("gc", "done", ""),
        ("score", "failed", "champion"),
    ],
)
def test_a_job_of_its_own_leaves_a_row_that_says_what_came_of_it(
    configure: Configure, in_process: Run, folder: Path, runs: Runs, job: str, outcome: str, said: str
) -> None:
    Image.new("RGB", (16, 16)).save(folder / "images" / "one.png")
    status, output, _ = in_process("schedule", "--once", job)
    assert (status, outcome in output, said in output) == (int(outcome != "done"), True, True), output
    [run] = runs()
    assert (run.job, run.outcome, said in (run.message or "")) == (job, outcome, True)


def test_a_run_has_its_own_log_file_which_its_row_names(
    configure: Configure, in_process: Run, folder: Path, runs: Runs
) -> None:
    Image.new("RGB", (16, 16)).save(folder / "images" / "one.png")
    configure('[log]\ndir = "where/logs"\n')
    in_process("schedule", "--once", "sync")
    [run] = runs()
    assert run.log is not None
    assert Path(run.log).parent == folder / "where" / "logs"
    lines = [json.loads(line) for line in Path(run.log).read_text(encoding="utf-8").splitlines()]
    assert [line["event"].split(":")[0] for line in lines] == ["run begun", "pool sync", "run done"]
    assert {(line["run"], line["job"]) for line in lines} == {(run.id, "sync")}


def test_a_log_of_warnings_only_still_says_that_a_run_failed(
    configure: Configure, in_process: Run, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    in_process("round", "request")
    with caplog.at_level(logging.WARNING, logger="activeseg"):
        result = Scheduler(database, loop_jobs(load_settings(Path("activeseg.toml")))).serve_request()
    assert result is not None
    assert result.outcome == "failed"
    assert f"run failed: {result.message}" in [line.getMessage() for line in caplog.records]


def test_a_run_that_drift_kept_from_sending_does_not_say_nothing_new() -> None:
    reports = [StageReport("score", 12), StageReport("push", details={"held": "waits since scoring run 2: a sentence"})]
    assert _sentence(reports) == "score 12, push waits (see `activeseg status`)"


def test_without_a_folder_there_is_no_log_file(configure: Configure, in_process: Run, folder: Path, runs: Runs) -> None:
    configure('[log]\ndir = ""\n')
    in_process("schedule", "--once", "train")
    assert runs()[0].log is None
    assert not (folder / "logs").exists()


def test_a_round_that_is_asked_for_is_only_a_row_until_a_scheduler_takes_it(
    configure: Configure, in_process: Run, database: Database, runs: Runs
) -> None:
    status, output, _ = in_process("round", "request", "--reason", "new images")
    assert (status, output) == (0, "asked for; `activeseg schedule` does it\n")
    assert json.loads(in_process("round", "request", "--json")[1]) == {"kind": "round", "written": False}
    assert runs() == []
    jobs = [replace(job, run=lambda check_stop: "worked") for job in loop_jobs(load_settings(Path("activeseg.toml")))]
    served = Scheduler(database, jobs).serve_request()
    assert served is not None
    assert (served.job, served.planned_at, served.outcome) == ("round", None, "done")
    with database.read() as session:
        [row] = session.scalars(sa.select(RequestRow))
    assert (row.reason, row.requested_by.startswith("command line: ")) == ("new images", True)


def test_the_history_shows_each_run_youngest_first(configure: Configure, in_process: Run) -> None:
    for job in ("push", "train", "score"):
        in_process("schedule", "--once", job)
    table = in_process("runs")[1].splitlines()
    assert [line.split()[1] for line in table[1:]] == ["score", "train", "push"]
    found = json.loads(in_process("runs", "--limit", "2", "--json")[1])
    assert [(one["job"], one["outcome"]) for one in found] == [("score", "failed"), ("train", "done")]
    assert set(found[0]) >= {"planned_at", "started_at", "ended_at", "message", "host", "log"}
    assert "last score" in in_process("status")[1]


def test_the_status_tells_the_next_time_of_each_job_in_its_own_zone(configure: Configure, in_process: Run) -> None:
    configure('[schedule]\nround = "0 2 * * * Asia/Tokyo"\npull = "0 4 1 1 *"\n')
    [night, pull] = [line for line in in_process("status")[1].splitlines() if line.startswith("plan ")]
    assert night.split()[:2] == ["plan", "round"]
    assert night.endswith(" 02:00 JST (0 2 * * * Asia/Tokyo)")
    assert pull.endswith("-01-01 04:00 UTC (0 4 1 1 *)")
    told = json.loads(in_process("status", "--json")[1])["planned"]
    assert [(one["job"], one["timezone"]) for one in told] == [("round", "Asia/Tokyo"), ("pull", "UTC")]
    configure('[schedule]\nround = "nightly"\n')
    status, output, _ = in_process("status")
    assert (status, "problem      [schedule] round: expected five cron fields" in output) == (0, True)
