"""What must hold of a site: after every kill what can be seen at a glance, at the end everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import sqlalchemy as sa
from chaos_site import Answer, Site
from sqlalchemy.orm import Session

from activeseg.db import candidates, checkpoints, labeling, lease, scores, truth
from activeseg.db.database import Database
from activeseg.db.models import (
    Annotation,
    AnnotationStatus,
    Checkpoint,
    Image,
    JobOutcome,
    JobRun,
    LabelingProject,
    Prediction,
    Promotion,
    Query,
    QueryStatus,
    Round,
    RoundStatus,
    Score,
    Task,
    TaskStatus,
    TrainingRun,
    TrainingStatus,
)
from activeseg.errors import ActivesegError
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.stages.score import scoring_definition
from activeseg.workspace import Workspace

# What was committed is never taken back, whatever is killed.
GROWING = {"annotations": Annotation, "scores": Score, "tasks": Task, "queries": Query, "promotions": Promotion}


@dataclass
class Watch:
    """Looks at a site again and again. counts: rows of each growing table when it looked last."""

    site: Site
    counts: dict[str, int] = field(default_factory=dict)
    doubles: int = 0

    def look(self, *, server: bool) -> list[str]:
        """What is wrong now, in sentences. server: whether Label Studio is there to be asked."""
        found = list(self._database())
        project = self.site.project()
        if server and project is not None:
            with self.site.client() as client:
                found += self._twice(client, project)
        return found

    def _database(self) -> Iterator[str]:
        database = Database(self.site.database_url)
        try:
            with database.read() as session:
                counts = {name: _count(session, model) for name, model in GROWING.items()}
        finally:
            database.close()
        yield from (f"{name} fell from {n} to {counts[name]}" for name, n in self.counts.items() if counts[name] < n)
        self.counts = counts

    def _twice(self, client: LabelStudioClient, project: int) -> Iterator[str]:
        keys = Counter(task.key for task in client.keyed_tasks(project))
        twice = [key for key, number in keys.items() if number > 1]
        self.doubles += len(twice)
        yield from (f"Label Studio has {keys[key]} tasks of the key {key}" for key in twice)


@dataclass
class Found:
    """What there is at the end, and what is wrong with it."""

    rounds: int = 0
    tasks: int = 0
    annotations: int = 0
    doubles: int = 0
    losses: list[str] = field(default_factory=list)
    failed_trainings: list[str] = field(default_factory=list)


def check(site: Site, *, rounds: int) -> Found:
    """Everything, once nothing works any more and Label Studio answers. rounds: how many must have been pushed."""
    found = Found()
    with site.workspace() as workspace, site.client() as client:
        with workspace.database.read() as session:
            found.losses += _standing(session, found, rounds)
            found.losses += _left_over(session)
            found.losses += _unscored(session, workspace)
            found.losses += _files(session, workspace)
            found.losses += _answers(session, workspace, site)
            project = session.scalars(sa.select(LabelingProject)).one()
            found.losses += (f"the call {row.id} was never settled" for row in labeling.unsettled(session, project.id))
            rows = {row.key: row.external_task_id for row in session.scalars(sa.select(Task))}
        found.losses += _tasks(client, project, rows, found)
        found.losses += _collected(workspace, client, project, found)
    return found


def _count(session: Session, model: type[Any], *rules: Any) -> int:
    return session.scalar(sa.select(sa.func.count()).select_from(model).where(*rules)) or 0


def _standing(session: Session, found: Found, wanted: int) -> Iterator[str]:
    """Rounds and trainings: none stands still, none 'works' without a process."""
    rounds = list(session.scalars(sa.select(Round).order_by(Round.number)))
    found.rounds = len(rounds)
    if len(rounds) != wanted:
        yield f"{len(rounds)} rounds, expected {wanted}"
    for row in rounds:
        expected = RoundStatus.PUSHED if row is rounds[-1] else RoundStatus.CLOSED
        if row.status != expected or row.error:
            yield f"round {row.number} is {row.status}, expected {expected}: {row.error}"
    for training in session.scalars(sa.select(TrainingRun).order_by(TrainingRun.id)):
        if training.status == TrainingStatus.RUNNING:
            yield f"training {training.id} is 'running' and nobody runs it"
        if training.status == TrainingStatus.FAILED:
            found.failed_trainings.append(training.error or "")


def _left_over(session: Session) -> Iterator[str]:
    """Nobody is said to work, and no query waits for its task."""
    for run in session.scalars(sa.select(JobRun).where(JobRun.outcome == JobOutcome.RUNNING)):
        yield f"run {run.id} of {run.job} is 'running' and nobody runs it"
    if lease.is_held(session):
        yield "somebody still holds the lease"
    orphans = sa.select(sa.func.count()).select_from(Query).where(~sa.exists().where(Task.query_id == Query.id))
    if without := session.scalar(orphans):
        yield f"{without} queries without a task"
    if planned := _count(session, Task, Task.status != TaskStatus.PUSHED):
        yield f"{planned} tasks are not pushed"


def _unscored(session: Session, workspace: Workspace) -> Iterator[str]:
    champion = checkpoints.champion(session)
    if champion is None:
        yield "there is no champion"
        return
    config = scores.find_config(session, champion.id, scoring_definition(workspace, champion))
    scored = sa.exists().where(Score.image_id == Image.id, Score.scoring_config_id == config)
    for uri in session.scalars(sa.select(Image.uri).where(candidates.IN_POOL, ~scored)):
        yield f"{PurePosixPath(uri).name} has no score of {champion.model_version}"


def _files(session: Session, workspace: Workspace) -> Iterator[str]:
    """Every file a row names is there, with the bytes it was written with."""
    masks = [*session.execute(sa.select(Annotation.mask_location, Annotation.mask_sha256))]
    masks += session.execute(sa.select(Prediction.mask_location, Prediction.mask_sha256))
    weights = [(row.location, row.sha256) for row in session.scalars(sa.select(Checkpoint))]
    for location, sha256 in {*(tuple(row) for row in masks if row[0]), *weights}:
        try:
            workspace.artifacts.read(location, sha256=sha256)
        except ActivesegError as error:
            yield f"the file {location}: {error}"


def _answers(session: Session, workspace: Workspace, site: Site) -> Iterator[str]:
    """Every answer counts: the mask that counts today is the one the person left last."""
    known = {PurePosixPath(item.image.uri).stem: item for item in truth.current(session)}
    statement = sa.select(Image.uri, Query.status).join(Query, Query.image_id == Image.id)
    statuses = {PurePosixPath(uri).stem: status for uri, status in session.execute(statement)}
    for image, answer in sorted(site.answers.items()):
        if answer.mask is None:
            if statuses.get(image) != QueryStatus.SKIPPED:
                yield f"{image} was skipped, its query is {statuses.get(image)}"
        elif (item := known.get(image)) is None:
            yield f"{image} was answered ({answer.role}) and nothing counts for it: its query is {statuses.get(image)}"
        elif not _is_that(workspace.read_mask(item.mask_location, item.mask_sha256), answer):
            yield f"{image}: another mask counts than the one that was drawn ({answer.role})"


def _is_that(mask: Any, answer: Answer) -> bool:
    return answer.mask is not None and np.array_equal(mask, answer.mask)


def _tasks(client: LabelStudioClient, project: LabelingProject, rows: dict[str, int | None], found: Found) -> Iterator[str]:
    """Every query has exactly one task, counted by key, and the project has no other."""
    there: dict[str, list[int]] = {}
    for task in client.keyed_tasks(project.external_project_id):
        there.setdefault(task.key, []).append(task.id)
    found.tasks = sum(map(len, there.values()))
    for key in sorted(rows.keys() | there.keys()):
        numbers = there.get(key, [])
        found.doubles += max(0, len(numbers) - 1)
        if key not in rows:
            yield f"task {numbers} of the key {key} belongs to no query"
        elif numbers != [rows[key]]:
            yield f"the query of the key {key} has the tasks {numbers}, its row says {rows[key]}"


def _collected(workspace: Workspace, client: LabelStudioClient, project: LabelingProject, found: Found) -> Iterator[str]:
    """Every annotation the server has is a row, in its last version."""
    numbers = client.task_ids(project.external_project_id)
    exported = client.export_tasks(project.external_project_id, numbers)
    there = {(one["id"], datetime.fromisoformat(one["updated_at"])) for task in exported for one in task["annotations"]}
    found.annotations = len(there)
    with workspace.database.read() as session:
        known = truth.known_versions(session, project.id, [number for number, _ in there])
        ours = set(
            session.scalars(
                sa.select(sa.func.coalesce(Annotation.external_annotation_id, 0)).where(
                    Annotation.status != AnnotationStatus.DELETED
                )
            )
        )
    yield from (f"annotation {number} of {moment} was never collected" for number, moment in sorted(there - known))
    yield from (f"annotation {number} is not on the server" for number in sorted(ours - {number for number, _ in there}))
