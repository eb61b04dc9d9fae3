"""Challengers: when one is trained, and when the gate decides about it. A part of the loop, which owns the lease.

Where [schedule] promote is set, only that job decides. Until then the champion goes on serving, and what a challenger was
trained on counts as seen, so that nothing is trained twice.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from activeseg.db import checkpoints, truth
from activeseg.db.models import Split
from activeseg.db.models.columns import now
from activeseg.db.standstill import why_undecided
from activeseg.housekeeping import require_room
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.records import StageReport
from activeseg.stages.promote import promote_challengers
from activeseg.stages.refresh import refresh_open_tasks
from activeseg.stages.train import Progress, train_challenger
from activeseg.workspace import Workspace

Note = Callable[[StageReport], None]
"""Takes what a stage did."""


def train_and_promote(
    workspace: Workspace, client: LabelStudioClient | None, note: Note, *, on_progress: Progress, retry_failed: bool
) -> None:
    """Train if due; then decide, or say that the challengers wait for the planned `promote`.

    Those that were trained before are decided about first: a training that cannot go on must not keep them waiting.
    """
    with workspace.database.read() as session:
        waits = why_undecided(session, workspace.settings)
    if waits is None:
        _promote(workspace, note)
    if reason := training_due(workspace, retry_failed=retry_failed):
        require_room(workspace)
        note(train_challenger(workspace, reason=reason, on_progress=on_progress))
    with workspace.database.read() as session:
        waits = why_undecided(session, workspace.settings)
    if waits is not None:
        note(StageReport("promote", details={"held": waits}))
        _refresh(workspace, client, note)
    else:
        judge(workspace, client, note)


def judge(workspace: Workspace, client: LabelStudioClient | None, note: Note) -> None:
    """Decide about all challengers now, and show annotators what the champion says of open tasks."""
    _promote(workspace, note)
    _refresh(workspace, client, note)


def _promote(workspace: Workspace, note: Note) -> None:
    with workspace.database.read() as session:
        waiting = bool(checkpoints.undecided(session))
    if waiting:
        require_room(workspace)
        note(promote_challengers(workspace))


def training_due(workspace: Workspace, *, retry_failed: bool = True) -> str | None:
    """Why a training should start now, or None.

    It is due when one was interrupted, when there is no champion and [training] min_train images are annotated, when
    retrain_after annotations are new, or when any is new and retrain_days went by.
    """
    rules = workspace.settings.training
    with workspace.database.read() as session:
        if checkpoints.interrupted_training(session) is not None:
            return "interrupted"
        new = truth.untrained(session, retry_failed=retry_failed)
        latest = checkpoints.latest_training(session)
        labeled = len(truth.current(session, split=Split.TRAIN))
    if new == 0 or labeled < rules.min_train:
        return None
    if latest is None:
        return f"first: {new} annotated images"
    if new >= rules.retrain_after:
        return f"{new} new annotations"
    waited = now() - latest.started_at
    if waited >= timedelta(days=rules.retrain_days):
        return f"{new} new annotations after {waited.days} days"
    return None


def _refresh(workspace: Workspace, client: LabelStudioClient | None, note: Note) -> None:
    if client is not None:
        require_room(workspace)
        note(refresh_open_tasks(workspace, client))
