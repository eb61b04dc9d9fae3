"""One life of the program: started as a user starts it, in a process group of its own, ended by itself or by SIGKILL.

A quick life is forked from a process that has everything imported already: the short test has not the time for imports.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import chaos_worker

WORKER = Path(__file__).with_name("chaos_worker.py")
PROGRAM = [sys.executable, "-c", "from activeseg.cli import main; main()"]
HANGS = 300.0
"""Seconds after which a life that should have ended counts as hanging; a round of this size takes a few."""

COMMANDS = (["schedule", "--once", "round"], ["round", "run"])


@dataclass(frozen=True)
class Kill:
    """When a life is ended. moment: seconds after its start; or a count, at the n-th commit or request."""

    kind: Literal["moment", "commits", "requests"]
    moment: float = 0.0
    at: int = 0
    when: Literal["before", "after"] = "after"

    def __str__(self) -> str:
        return f"at {self.moment:.1f} s" if self.kind == "moment" else f"{self.when} {self.kind} {self.at}"


@dataclass(frozen=True)
class Life:
    """What became of it. told: what the worker said of itself, see chaos_worker.py."""

    outcome: Literal["done", "failed", "killed"]
    seconds: float
    told: dict[str, Any] = field(default_factory=dict)
    message: str = ""


class Hangs(Exception):
    """A life that did not end by itself."""


_living: set[_Executed | _Forked] = set()


def end_lives() -> None:
    """End those that still work; for a script that leaves in the middle of one."""
    while _living:
        _living.pop().kill()


class Running:
    """A life that has begun."""

    def __init__(self, config: Path, command: list[str], kill: Kill | None = None, *, quick: bool = False) -> None:
        self._tell = config.parent / "told.json"
        self._tell.unlink(missing_ok=True)
        self._moment = kill.moment if kill and kill.kind == "moment" else None
        counted = kill if kill and kill.kind != "moment" else Kill("commits")
        words = [str(self._tell), counted.kind, str(counted.at), counted.when, "--", "--config", str(config), *command]
        self._log = config.parent / "program.log"
        self._begun = self._log.stat().st_size if self._log.exists() else 0
        self._started = time.monotonic()
        self._process: _Executed | _Forked
        if quick:
            self._process = _Forked(self._log, words)
        elif self._moment is None:
            self._process = _Executed(self._log, [sys.executable, str(WORKER), *words])
        else:
            # A kill from without meets the very command of a user; the worker is needed to die, or to count, from within.
            self._process = _Executed(self._log, [*PROGRAM, *words[5:]])
        _living.add(self._process)

    def wait(self) -> Life:
        """Until it ended, by itself or as it was to be killed."""
        status = self._process.wait(HANGS if self._moment is None else self._moment)
        if status is None:
            status = self._process.kill()
            if self._moment is None:
                raise Hangs(f"it worked for {HANGS:.0f} s: {self._said()}")
        _living.discard(self._process)
        outcome: Literal["done", "failed", "killed"] = "done" if status == 0 else "failed"
        if status == -signal.SIGKILL:
            outcome = "killed"
        told = json.loads(self._tell.read_text(encoding="utf-8")) if self._tell.is_file() else {}
        return Life(outcome, time.monotonic() - self._started, told, self._said())

    @property
    def lives(self) -> bool:
        """Whether it still works."""
        return self._process.wait(0) is None

    def _said(self) -> str:
        """The last line it wrote in this life."""
        with self._log.open("rb") as log:
            log.seek(self._begun)
            lines = log.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""


class _Executed:
    """A process of its own program."""

    def __init__(self, log: Path, command: list[str]) -> None:
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self, seconds: float) -> int | None:
        """Its exit status; None where it still works after so many seconds."""
        with suppress(subprocess.TimeoutExpired):
            return self._child.wait(seconds)
        return None

    def kill(self) -> int:
        """End it with everything it started."""
        if self._child.poll() is None:
            os.killpg(self._child.pid, signal.SIGKILL)
        return self._child.wait()


class _Forked:
    """A process forked from one that has everything imported and used none of it."""

    _context = multiprocessing.get_context("forkserver")
    _context.set_forkserver_preload(["torch", "label_studio_sdk.client", "activeseg.cli.app", "activeseg.loop", "psycopg"])

    def __init__(self, log: Path, words: list[str]) -> None:
        self._child: BaseProcess = self._context.Process(target=chaos_worker.in_a_fork, args=(str(log), words))
        self._child.start()

    def wait(self, seconds: float) -> int | None:
        """Its exit status; None where it still works after so many seconds."""
        self._child.join(seconds)
        return self._child.exitcode

    def kill(self) -> int:
        """End it with everything it started."""
        with suppress(ProcessLookupError):  # it has just ended, or leads no group yet
            os.killpg(self._child.pid or 0, signal.SIGKILL)
        self._child.kill()
        self._child.join()
        return self._child.exitcode or 0


PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Become the parent of what killed processes leave behind, so that it can be seen; on Linux."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def orphans(patience: float = 10.0) -> list[str]:
    """Command lines of activeseg's processes that outlive, by so many seconds, the one that started them."""
    deadline = time.monotonic() + patience
    while (found := _adopted()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _adopted() -> list[str]:
    """Those that are our children now though another process of this program started them: decoders of images."""
    lines = []
    for task in Path("/proc/self/task").iterdir():
        for number in (task / "children").read_text(encoding="ascii").split():
            with suppress(OSError):  # it ends as we look
                lines.append(Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in lines if "activeseg.imaging" in line]


def one_thread() -> None:
    """Let all lives compute with one thread, so that sums come in one order; nothing of the developer's settings reaches
    them."""
    for name in list(os.environ):
        if (name.startswith("ACTIVESEG_") and name != "ACTIVESEG_UV") or name == "PYTHONDONTWRITEBYTECODE":
            del os.environ[name]
    os.environ["OMP_NUM_THREADS"] = "1"
