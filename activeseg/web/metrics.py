"""GET /metrics: where the loop stands, in the text format of Prometheus, version 0.0.4.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from fastapi import APIRouter, Depends, Response

from activeseg.db.figures import Figures, read_figures
from activeseg.db.models import ScoringRun
from activeseg.storage.room import free_bytes
from activeseg.web.answers import Problem
from activeseg.web.api import InWorkspace
from activeseg.web.auth import require_token

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Sample:
    """One number with its labels."""

    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Metric:
    """A named family of numbers. kind: 'counter' never falls, 'gauge' may."""

    name: str
    kind: str
    help: str
    samples: tuple[Sample, ...]


def metrics_router() -> APIRouter:
    """The route, behind the same token as those below /api."""
    responses: dict[int | str, dict[str, object]] = {
        200: {"content": {"text/plain": {}}},
        **{status: {"model": Problem} for status in (401, 503)},
    }
    router = APIRouter(dependencies=[Depends(require_token)])
    router.get("/metrics", response_class=Response, responses=responses)(metrics)
    return router


def metrics(workspace: InWorkspace) -> Response:
    """Images, scoring, annotations, champion, jobs and room as Prometheus metrics."""
    settings = workspace.settings
    with workspace.database.read() as session:
        text = exposition(read_figures(session), free=free_bytes(settings.path(settings.artifacts.dir)))
    # As bytes: a text would get a second charset.
    return Response(text.encode(), media_type=CONTENT_TYPE)


def exposition(figures: Figures, *, free: int) -> str:
    """The metrics as text. One without a number (no run has ended yet, no champion) is left out.

    free: bytes left on the disk of the artifacts.
    """
    room = Metric("activeseg_free_bytes", "gauge", "Room left on the disk of the artifacts.", (Sample(free),))
    return "".join(_lines(metric) for metric in (*_metrics(figures), room) if metric.samples)


def _metrics(figures: Figures) -> Iterator[Metric]:
    def single(name: str, kind: str, text: str, value: float | None) -> Metric:
        return Metric(name, kind, text, () if value is None else (Sample(value),))

    counts = sorted(figures.images.items())
    images = tuple(Sample(count, {"split": split.value, "status": status.value}) for (split, status), count in counts)
    yield Metric("activeseg_images", "gauge", "Images by split and status.", images)
    results = (Sample(figures.scored, {"result": "scored"}), Sample(figures.failed, {"result": "failed"}))
    yield Metric("activeseg_scoring_images_total", "counter", "Images of all scoring runs.", results)
    yield single("activeseg_scoring_runs_total", "counter", "Scoring runs begun.", figures.runs)
    yield from _of_last_run(figures.last_run)
    yield single("activeseg_annotated_images", "gauge", "Images with a mask that counts.", figures.annotated)
    yield single("activeseg_open_tasks", "gauge", "Images that wait for annotators.", figures.open_tasks)
    if figures.champion is not None:
        version, since = figures.champion
        labelled = (Sample(since.timestamp(), {"model_version": version}),)
        yield Metric("activeseg_champion_since_timestamp_seconds", "gauge", "When the champion was promoted.", labelled)
    yield from _of_jobs(figures)
    yield single("activeseg_lease_held", "gauge", "1 while a process moves the loop on.", float(figures.lease_held))
    yield single("activeseg_alerts_waiting", "gauge", "Alerts that were not sent yet.", figures.alerts_waiting)


def _of_jobs(figures: Figures) -> Iterator[Metric]:
    ended = sorted(figures.job_runs.items())
    counted = tuple(Sample(count, {"job": job, "outcome": outcome.value}) for (job, outcome), count in ended)
    yield Metric("activeseg_job_runs_total", "counter", "Runs of jobs that ended, by outcome.", counted)
    took = tuple(
        Sample((run.ended_at - run.started_at).total_seconds(), {"job": run.job})
        for run in figures.last_of_job
        if run.ended_at is not None
    )
    yield Metric("activeseg_last_job_run_seconds", "gauge", "How long the last run of a job took.", took)
    done = tuple(Sample(when.timestamp(), {"job": job}) for job, when in sorted(figures.last_success.items()))
    text = "When a job last ended well."
    yield Metric("activeseg_last_job_success_timestamp_seconds", "gauge", text, done)


def _of_last_run(run: ScoringRun | None) -> Iterator[Metric]:
    if run is None:
        return
    gauges = {
        "images_per_second": ("Images per second of the last scoring run.", run.images_per_second),
        "coverage_ratio": ("Share of the active pool with a score after the last scoring run.", run.coverage),
        "started_timestamp_seconds": ("When the last scoring run began.", run.started_at.timestamp()),
        "ended_timestamp_seconds": ("When the last scoring run ended.", run.ended_at.timestamp() if run.ended_at else None),
    }
    for name, (text, value) in gauges.items():
        yield Metric(f"activeseg_last_scoring_{name}", "gauge", text, () if value is None else (Sample(value),))
    shares = {"decode": run.waiting_decode, "device": run.waiting_device, "database": run.waiting_database}
    waiting = tuple(Sample(share, {"for": what}) for what, share in shares.items() if share is not None)
    yield Metric(
        "activeseg_last_scoring_waiting_ratio", "gauge", "Share of the last scoring run's time spent waiting.", waiting
    )


def _lines(metric: Metric) -> str:
    samples = (f"{metric.name}{_labels(sample.labels)} {float(sample.value)!r}\n" for sample in metric.samples)
    return f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.kind}\n" + "".join(samples)


def _labels(labels: Mapping[str, str]) -> str:
    escaped = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
    return "{" + ",".join(f'{name}="{value.translate(escaped)}"' for name, value in labels.items()) + "}" if labels else ""
