"""Spans reach a collector where one is named, and nothing happens where none is."""

from __future__ import annotations

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

TRACED = """
import sys
from activeseg import tracing
from activeseg.records import StageReport
with tracing.run_span("round", run=7, planned_at=None) as note:
    tracing.stage_span(StageReport("score", 12, 1, 2.5, {"coverage": 0.5, "problems": {}}))
    note("failed", "the sentence")
print("opentelemetry.sdk" in sys.modules)
"""


def traced(**variables: str) -> str:
    import os

    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    command = [sys.executable, "-c", TRACED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment | variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_an_endpoint_nothing_is_even_imported() -> None:
    assert traced() == "False"


@pytest.mark.slow
def test_a_run_and_its_stages_are_spans_at_the_collector() -> None:
    proto = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    came: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
    }
    assert traced(**variables) == "True"
    server.shutdown()
    server.server_close()
    spans: dict[str, Any] = {}
    for body in came:
        for resource in proto.ExportTraceServiceRequest.FromString(body).resource_spans:
            spans |= {span.name: span for scope in resource.scope_spans for span in scope.spans}
    stage, run = spans["score"], spans["round"]
    assert stage.parent_span_id == run.span_id
    assert stage.end_time_unix_nano - stage.start_time_unix_nano == 2_500_000_000
    assert {one.key: one.value.int_value for one in run.attributes}["activeseg.run"] == 7
    assert (run.status.code, run.status.message) == (2, "the sentence")
