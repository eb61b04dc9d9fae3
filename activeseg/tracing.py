"""Spans for OpenTelemetry: one for each run, one below it for each stage.

Without the extra `otel`, or without OTEL_EXPORTER_OTLP_ENDPOINT, nothing is imported and nothing happens. Everything else
(headers, time-outs, sampling, the service's name) is told by OpenTelemetry's own variables.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from activeseg import __version__
from activeseg.records import StageReport

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
FLUSH_SECONDS = 5


Note = Callable[[str, str], None]
"""Writes a run's outcome and its sentence into its span."""


@contextmanager
def run_span(job: str, **attributes: str | int | None) -> Iterator[Note]:
    """A span around a run; it is sent when the run ends. Yields what takes the outcome."""
    provider = _provider() if _wanted() else None
    if provider is None:
        yield lambda outcome, message: None
        return
    plain = {f"activeseg.{key}": value for key, value in attributes.items() if value is not None}
    try:
        with provider.get_tracer("activeseg").start_as_current_span(job, attributes=plain) as span:
            yield partial(_note, span)
    finally:
        # A process started by cron ends right after; the SDK waits for nobody.
        provider.force_flush(FLUSH_SECONDS * 1000)


def _note(span: Span, outcome: str, message: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("activeseg.outcome", outcome)
    good = outcome in ("done", "busy")
    span.set_status(Status(StatusCode.OK) if good else Status(StatusCode.ERROR, message))


def stage_span(report: StageReport) -> None:
    """A span below the run's for a stage that has just ended, as long as it took."""
    provider = _provider() if _wanted() else None
    if provider is None:
        return
    ended = time.time_ns()
    numbers = {key: value for key, value in report.details.items() if isinstance(value, bool | int | float | str)}
    attributes = {"written": report.written, "failed": report.failed, **numbers}
    span = provider.get_tracer("activeseg").start_span(
        report.stage,
        start_time=ended - int(report.seconds * 1e9),
        attributes={f"activeseg.{key}": value for key, value in attributes.items()},
    )
    span.end(ended)


def _wanted() -> bool:
    return any(os.environ.get(name) for name in ENDPOINTS)


@cache
def _provider() -> TracerProvider | None:
    """Made once, at the first span. It belongs to this module: a program around us may have one of its own."""
    try:
        missing = find_spec("opentelemetry.sdk") is None or find_spec("opentelemetry.exporter.otlp.proto.http") is None
    except ModuleNotFoundError:
        missing = True
    if missing:
        remedy = "the extra is not installed: pip install 'activeseg[otel]'"
        logging.getLogger(__name__).warning("%s is set, but %s", ENDPOINTS[0], remedy)
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = os.environ.get("OTEL_SERVICE_NAME", "activeseg")
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: named, "service.version": __version__}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
