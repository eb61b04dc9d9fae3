"""Log lines: structlog behind the standard library, so that the lines of everything used here come out alike.

The library logs by `logging.getLogger(__name__)`; a program calls `configure` once. Every line of a run carries its run,
job and round, whichever thread or library wrote it. No line carries a secret.

structlog is imported with the first line or the first run: most commands end before either, and it costs them a fifth of a
second.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from activeseg.config import LogSection, masked

Event = MutableMapping[str, Any]

OURS = "activeseg"
ALSO_TOLD = ("httpx",)
"""Libraries whose ordinary lines are worth a place in a run's file: which requests were made."""

_HANDLER = "activeseg"

_FORMATTED = ("message", "asctime", "color_message")
"""What other formatters leave in a record; it repeats the event."""

# What the run that is on binds. A process does one run at a time; its threads (readers, writers) inherit no context.
_bound: dict[str, Any] = {}

# Whether this process's structlog is ours to set up: a program around the library may have set it up otherwise.
_configured = False


def configure(section: LogSection, *, service: bool = False) -> None:
    """Send log lines to standard error by [log]. Calling it again replaces what the last call set up.

    service: a process that keeps running and tells by its log what it does. A command that ends tells its results
    itself: of it, warnings and errors are shown, and everything at level debug.
    """
    global _configured
    _configured = True
    if service or "structlog" in sys.modules:
        _lead_here()
    debug = section.level == "debug"
    root, ours = logging.getLogger(), logging.getLogger(OURS)
    for handler in [one for one in root.handlers if one.name == _HANDLER]:
        root.removeHandler(handler)
    root.setLevel(logging.INFO if debug else logging.WARNING)
    ours.setLevel(section.level.upper())
    for name in ALSO_TOLD:
        logging.getLogger(name).setLevel(logging.INFO if section.level in ("debug", "info") else logging.WARNING)
    # SQLAlchemy sets a level of its own where nobody did: every statement only where everything was asked for.
    logging.getLogger("sqlalchemy").setLevel(logging.INFO if debug else logging.WARNING)
    # It warns of the one index it cannot read back; `db check` leaves that out.
    logging.getLogger("alembic.ddl.impl").setLevel(logging.ERROR)
    # It tells of each look, every second.
    logging.getLogger("apscheduler").setLevel(logging.WARNING)
    shown = _StandardError()
    shown.name = _HANDLER
    if not service and not debug:
        shown.setLevel(max(logging.WARNING, ours.level))
    if not debug:
        shown.addFilter(lambda record: record.levelno >= logging.WARNING or _is_ours(record))
    shown.setFormatter(_Later(section.format))
    root.addHandler(shown)


def _lead_here() -> None:
    """Lines of libraries that log by structlog itself go where all others go."""
    import structlog

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


@contextmanager
def run_log(file: Path | None, **ids: Any) -> Iterator[None]:
    """While it lasts, every line of this process carries `ids` and goes to `file`, too, as a JSON document a line.

    file: None writes none. One that cannot be written is told in a warning and stops nothing.
    """
    with ExitStack() as stack:
        stack.enter_context(bound(**ids))
        if file is not None:
            stack.enter_context(_into(file))
        yield


@contextmanager
def bound(**values: Any) -> Iterator[None]:
    """While it lasts, every line of this process carries these values. For what a process does one of at a time."""
    import structlog

    if _configured:
        _lead_here()
    before = dict(_bound)
    _bound.update(values)
    try:
        with structlog.contextvars.bound_contextvars(**values):
            yield
    finally:
        _bound.clear()
        _bound.update(before)


@contextmanager
def _into(file: Path) -> Iterator[None]:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = _RunFile(file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        logging.getLogger(__name__).warning("this run has no log file: %s: %s", file, error.strerror)
        yield
        return
    handler.setFormatter(_Later("json"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


class _StandardError(logging.StreamHandler[TextIO]):
    """To whatever standard error is when a line comes: tests and progress bars put another one in its place."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


class _RunFile(logging.FileHandler):
    """A file whose disk may be full: the work goes on, and one line says that its log does not."""

    told = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Tell it once, elsewhere."""
        if not self.told:
            self.told = True
            sys.stderr.write(f"{self.baseFilename}: log lines of this run are lost: {sys.exc_info()[1]}\n")

    def close(self) -> None:
        """What was not written by now stays unwritten."""
        with suppress(OSError):
            super().close()


class _Later(logging.Formatter):
    """`_formatter`, made with the first line."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return self._made.format(record)

    @cached_property
    def _made(self) -> logging.Formatter:
        return _formatter(self._kind)


def _formatter(kind: str) -> logging.Formatter:
    import structlog

    renderer: Any
    if kind == "json":
        renderer = structlog.processors.JSONRenderer(ensure_ascii=False)
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=False, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback, sort_keys=False
        )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
        ],
        processors=[
            _add_bound,
            _add_time,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _mask,
            renderer,
        ],
    )


def _add_bound(logger: Any, method: str, event: Event) -> Event:
    for key in _FORMATTED:
        event.pop(key, None)
    for key, value in _bound.items():
        event.setdefault(key, value)
    return event


def _add_time(logger: Any, method: str, event: Event) -> Event:
    # The record's own time, in UTC: lines may be formatted long after they were written.
    record: logging.LogRecord = event["_record"]
    event["timestamp"] = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    return event


def _mask(logger: Any, method: str, event: Event) -> Event:
    return {masked(str(key)): _clean(value) for key, value in event.items()}


def _clean(value: Any) -> Any:
    """A value that JSON has, without secrets."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        return {masked(str(key)): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item) for item in value]
    return masked(value if isinstance(value, str) else repr(value))


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name == OURS or record.name.startswith(OURS + ".")
