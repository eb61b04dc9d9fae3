"""The command line. Commands parse and print; heavy imports (torch, the SDK) happen inside them."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO

from activeseg.errors import ActivesegError


def main() -> None:
    """Run the command line: exit 1 and one line on a known error, a traceback on a bug."""
    from activeseg.cli.app import app

    sys.stdout = _leavable(sys.stdout)
    try:
        app()
    except Exception as error:
        problem = _known_problem(error)
        if problem is None:
            raise
        sys.stdout.flush()
        sys.stderr.write(f"error: {_without_secrets(' '.join(problem.split()))}\n")
        sys.exit(1)


def _known_problem(error: Exception) -> str | None:
    """What to tell the user; None for a bug."""
    if isinstance(error, ActivesegError):
        return str(error)
    # A disk that is full, a folder that may not be written: nothing in the program is wrong.
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    database = sys.modules.get("sqlalchemy.exc")
    if database is not None and isinstance(error, database.OperationalError):
        line = str(error.orig).strip().splitlines()[0]
        # SQLite calls a misspelt column operational, too.
        return None if line.startswith("no such") else f"the database gave up: {line}"
    ours = sys.modules.get("activeseg.db.database")
    if ours is not None and ours.was_ended(error):
        return "this process stood still in a write, which the database ended: nothing of it was written; run it again"
    return None


def _without_secrets(line: str) -> str:
    # Before the settings were read this process knows none.
    settings = sys.modules.get("activeseg.config")
    return line if settings is None else str(settings.masked(line))


class _LeavableFile(io.FileIO):
    """Standard output whose reader may leave (`| head`): that ends the printing, not the work, and is no error."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return memoryview(data).nbytes


def _leavable(stream: TextIO | None) -> TextIO:
    if stream is None:  # closed before the program began: `>&-`
        return open(os.devnull, "w", encoding="utf-8")
    try:
        raw = _LeavableFile(stream.fileno(), "w", closefd=False)
    except OSError:
        return stream
    buffer = io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, encoding=stream.encoding, errors=stream.errors, line_buffering=stream.isatty())
