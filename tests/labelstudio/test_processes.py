from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from activeseg.labelstudio.processes import end_group, free_port, is_locked, locked

# Ignores SIGTERM, as a server that hangs would; says when it does.
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"


def holder(lock: Path, program: str) -> subprocess.Popen[bytes]:
    """A process group that holds the lock, as a server does: it alone, its parent having let go."""
    with locked(lock) as descriptor:
        child = subprocess.Popen(
            [sys.executable, "-c", program], pass_fds=[descriptor], start_new_session=True, stdout=subprocess.PIPE
        )
    assert child.stdout is not None
    assert child.stdout.readline() == b"on\n"
    return child


def test_a_lock_lives_exactly_as_long_as_the_child_it_was_given_to(tmp_path):
    lock = tmp_path / "lock"
    assert not is_locked(lock)
    child = holder(lock, "import time; print('on', flush=True); time.sleep(600)")
    assert is_locked(lock)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not is_locked(lock)


def test_a_group_that_ignores_the_polite_signal_is_killed(tmp_path):
    child = holder(tmp_path / "lock", STUBBORN)
    end_group(child.pid, tmp_path / "lock", patience=0.3)
    assert child.wait() == -signal.SIGKILL


def test_a_number_that_no_longer_holds_the_lock_is_left_alone(tmp_path):
    child = holder(tmp_path / "lock", STUBBORN)
    (tmp_path / "other").touch()
    end_group(child.pid, tmp_path / "other")
    assert child.poll() is None
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def test_free_ports_are_ports():
    assert 1024 < free_port() < 65536
