"""The command line, called the way the installed program calls it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from activeseg import cli

PROGRAM = [sys.executable, "-c", "from activeseg.cli import main; main()"]


@dataclass(frozen=True)
class Answer:
    """What a call printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """What `--json` printed."""
        assert self.code == 0, self.err
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line of a known error."""
        assert self.code == 1, (self.code, self.out, self.err)
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1
        assert self.err.endswith("\n")
        return self.err.removeprefix("error: ").rstrip("\n")


@dataclass(frozen=True)
class CommandLine:
    """`activeseg --config <file>`, in this process: an exception that the program lets out fails the test."""

    config: Path | None = None

    def __call__(self, *arguments: object) -> Answer:
        out, err, code = io.StringIO(), io.StringIO(), 0
        words = [*(("--config", self.config) if self.config else ()), *arguments]
        with patch.object(sys, "argv", ["activeseg", *map(str, words)]), redirect_stdout(out), redirect_stderr(err):
            try:
                cli.main()
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return Answer(code, out.getvalue(), err.getvalue())

    def process(self, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """The same in a process of its own."""
        words = [*(("--config", self.config) if self.config else ()), *arguments]
        return subprocess.run([*PROGRAM, *map(str, words)], capture_output=True, text=True, timeout=120, **options)
