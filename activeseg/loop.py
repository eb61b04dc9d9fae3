"""advance_round(): the only place where stages meet. It owns the lease, the order of things and what a failure leaves.

    sync pool -> pull -> split -> (train -> promote -> refresh open tasks, if due: challengers.py) -> finish begun rounds
    -> (refresh again, if one of them was chosen under a former champion) -> score -> (open a round, if due)

Every step looks at the tables for what is left to do, so a process killed anywhere goes on where it stopped, and a
second call with nothing new writes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from sqlalchemy.orm import Session

from activeseg import logs
from activeseg.challengers import judge, train_and_promote
from activeseg.db import candidates, checkpoints, drift, lease, rounds, scores
from activeseg.db.models import Query, QueryStatus, Round, RoundStatus
from activeseg.db.standstill import why_no_round
from activeseg.errors import ActivesegError, LabelStudioDoubt, LeaseError, NotReadyError
from activeseg.housekeeping import require_room, with_room
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.preannotate import PreAnnotator
from activeseg.records import QueryItem, StageReport
from activeseg.stages.embed import embed_pool, require_start_weights
from activeseg.stages.pool import sync_pool
from activeseg.stages.predict import predict_round
from activeseg.stages.pull import pull_annotations
from activeseg.stages.push import push_round
from activeseg.stages.rank import CHOICE, choose_images, rank_round
from activeseg.stages.refresh import refresh_open_tasks
from activeseg.stages.score import score_pool, scoring_definition
from activeseg.stages.split import assign_splits
from activeseg.workspace import Workspace

Progress = Callable[[str, int, int, str], None]
"""Called with (stage, done, planned, note) during long stages; note: what is to be said of it, or nothing."""


@dataclass
class Listener:
    """What a caller wants to hear while the loop works."""

    report: Callable[[StageReport], None] = field(default=lambda report: None)
    progress: Progress = field(default=lambda stage, done, planned, note: None)

    def of(self, stage: str) -> StageProgress:
        """The progress callback of one stage."""
        return lambda done, planned, note="": self.progress(stage, done, planned, note)


class StageProgress(Protocol):
    """How far a stage is, and what is to be said of it."""

    def __call__(self, done: int, planned: int, note: str = "") -> None:
        """Tell it."""


def advance_round(
    workspace: Workspace,
    client: LabelStudioClient | None,
    *,
    open_new: bool = True,
    full_pull: bool = False,
    listener: Listener | None = None,
) -> list[StageReport]:
    """Do everything that can be done now; returns what each stage did.

    client: None works without Label Studio: queries are handed out in the database and answered by
    `activeseg dataset import --split query`. open_new: False finishes what was begun and opens no further round.
    full_pull: compare all of Label Studio's annotations, not only those that say they changed.
    A step that fails does not keep the others from being done; its error (the first, of several) is raised at the end.
    Raises LeaseError at once where another process is at work, NotReadyError for an empty pool.
    """
    listener = listener or Listener()
    reports, note = _noting(listener)
    failures = _Failures()
    with lease.holding(workspace.database):
        with failures.kept(), with_room(workspace):
            note(sync_pool(workspace))
        # A pool that cannot be read must not be scored: every image of it would be set aside.
        readable = not failures.errors
        with failures.kept(), with_room(workspace):
            collect(workspace, client, note, full=full_pull)
        with failures.kept(), with_room(workspace):
            train_and_promote(workspace, client, note, on_progress=listener.of("train"), retry_failed=True)
        begun = _begun(workspace)
        for row in begun:
            with failures.kept(), with_room(workspace):
                _carry_on(workspace, row, client, note, listener)
        if client is not None and _pushed_for_another(workspace, begun):
            with failures.kept(), with_room(workspace):
                note(refresh_open_tasks(workspace, client))
        if readable and _has_champion(workspace):
            with failures.kept(), with_room(workspace):
                note(score_pool(workspace, on_progress=listener.of("score")))
        if (held := _push_held(workspace)) is not None:
            note(StageReport("push", details={"held": held}))
        elif readable and open_new and (opened := open_round_if_due(workspace)) is not None:
            with failures.kept(), with_room(workspace):
                _carry_on(workspace, opened, client, note, listener)
    failures.raise_first()
    return reports


def _noting(listener: Listener) -> tuple[list[StageReport], Callable[[StageReport], None]]:
    """A list of reports, and what adds one to it and tells it."""
    reports: list[StageReport] = []

    def note(report: StageReport) -> None:
        reports.append(report)
        listener.report(report)

    return reports, note


class _Failures:
    """Errors of steps that others do not depend on: Label Studio being away is no reason not to score."""

    def __init__(self) -> None:
        self.errors: list[ActivesegError] = []

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep an error for later. Losing the lease ends everything at once."""
        try:
            yield
        except LeaseError:
            raise
        except ActivesegError as error:
            # The first one is raised, and told by whoever called; others would be told by nobody.
            if self.errors and str(error) != str(self.errors[0]):
                logging.getLogger(__name__).error("and also: %s", error)
            self.errors.append(error)

    def raise_first(self) -> None:
        """Raise the first error there was."""
        if self.errors:
            raise self.errors[0]


def collect_and_train(
    workspace: Workspace, client: LabelStudioClient | None, *, listener: Listener | None = None
) -> list[StageReport]:
    """Collect annotations and, if due, train and promote: what happens by day, between the nightly rounds.

    A training that failed is not tried again before there is something new; the nightly round does try again.
    """
    listener = listener or Listener()
    reports, note = _noting(listener)
    with lease.holding(workspace.database):
        with with_room(workspace):
            collect(workspace, client, note)
        with with_room(workspace):
            train_and_promote(workspace, client, note, on_progress=listener.of("train"), retry_failed=False)
    return reports


def train_if_due(
    workspace: Workspace, client: LabelStudioClient | None, *, listener: Listener | None = None
) -> list[StageReport]:
    """Train and promote, if due, on what was collected before. One that failed is tried again."""
    listener = listener or Listener()
    reports, note = _noting(listener)
    with lease.holding(workspace.database), with_room(workspace):
        train_and_promote(workspace, client, note, on_progress=listener.of("train"), retry_failed=True)
    return reports


def promote_waiting(
    workspace: Workspace, client: LabelStudioClient | None, *, listener: Listener | None = None
) -> list[StageReport]:
    """Let the gate decide about every checkpoint nobody decided about: the planned `promote`."""
    reports, note = _noting(listener or Listener())
    with lease.holding(workspace.database), with_room(workspace):
        judge(workspace, client, note)
    return reports


def finish_begun(
    workspace: Workspace, client: LabelStudioClient | None, *, listener: Listener | None = None
) -> list[StageReport]:
    """Take every begun round as far as annotators; opens none. One that fails keeps no other from it."""
    listener = listener or Listener()
    reports, note = _noting(listener)
    failures = _Failures()
    with lease.holding(workspace.database):
        for row in _begun(workspace):
            with failures.kept(), with_room(workspace):
                _carry_on(workspace, row, client, note, listener)
    failures.raise_first()
    return reports


def collect(
    workspace: Workspace,
    client: LabelStudioClient | None,
    note: Callable[[StageReport], None],
    *,
    full: bool = False,
) -> None:
    """Pull annotations, give their images a split and close answered rounds. full: see `pull_annotations`."""
    if client is not None:
        note(pull_annotations(workspace, client, full=full))
    with lease.holding(workspace.database):
        note(assign_splits(workspace))
        with workspace.database.write() as session:
            rounds.close_answered(session)


def open_round_if_due(workspace: Workspace) -> Round | None:
    """Open a round if few enough tasks are open and images are left to ask about; None otherwise."""
    with workspace.database.write() as session:
        if rounds.open_tasks(session) >= workspace.settings.selection.refill_below:
            return None
        return _open_round(workspace, session, None)


def rounds_to_push(workspace: Workspace, size: int | None) -> list[Round]:
    """Begun rounds, or else a new one of `size` images (default: [selection] query_size), however many tasks are open.

    Raises NotReadyError where no image is left to ask about or max_open_tasks are open.
    """
    if begun := _begun(workspace):
        return begun
    with workspace.database.write() as session:
        row = _open_round(workspace, session, size)
    if row is None:
        raise NotReadyError(f"nothing to push: {why_nothing_to_push(workspace)}")
    return [row]


def why_nothing_to_push(workspace: Workspace) -> str:
    """The reason that holds, and what to do. Ask where no round could be opened."""
    with workspace.database.read() as session:
        return why_no_round(session, workspace.settings)


def preview_query(workspace: Workspace, size: int | None) -> list[QueryItem]:
    """What the next round would ask for, in shown order; nothing is written."""
    with workspace.database.read() as session:
        row = _plan_round(workspace, session, size)
        if row and row.scoring_config_id is None and workspace.settings.selection.bootstrap == "kcenter":
            raise NotReadyError("the first query is chosen by k-center once its round is open: nothing can be told before")
        return choose_images(session, row) if row else []


def _open_round(workspace: Workspace, session: Session, size: int | None) -> Round | None:
    """Write the next round's row, if there is anything to ask about."""
    row = _plan_round(workspace, session, size)
    if row is None or not candidates.has_candidates(session, row.scoring_config_id):
        return None
    session.add(row)
    session.flush()
    return row


def _plan_round(workspace: Workspace, session: Session, size: int | None) -> Round | None:
    """The next round's row, not yet written.

    None where no more tasks may be open, the champion has scored nothing or [drift] blocks a push.
    """
    selection = workspace.settings.selection
    if drift.held(session, workspace.settings.drift, "push") is not None:
        return None
    champion = checkpoints.champion(session)
    config = None
    if champion is None and selection.bootstrap == "kcenter":
        require_start_weights(workspace)
    if champion is not None:
        config = scores.find_config(session, champion.id, scoring_definition(workspace, champion))
        if config is None:
            return None
    wanted = size or (selection.bootstrap_size if champion is None else selection.query_size)
    allowed = min(wanted, selection.max_open_tasks - rounds.open_tasks(session))
    if allowed < 1:
        return None
    acquisition = "random" if champion is None else selection.acquisition
    drawn = champion is not None and acquisition == "random"
    return rounds.plan_round(
        session,
        scoring_config_id=config,
        acquisition=acquisition,
        query_size=allowed,
        control_share=1.0 if drawn else selection.control_share,
        seed=selection.seed,
        selection={name: getattr(selection, name) for name in CHOICE},
    )


def finish_round(
    workspace: Workspace,
    row: Round,
    client: LabelStudioClient | None,
    listener: Listener,
    *,
    pre_annotator: PreAnnotator | None = None,
) -> Iterator[StageReport]:
    """Take a begun round as far as annotators; yields each stage's report.

    pre_annotator: draws the masks of a round without a champion.
    """
    if row.status == RoundStatus.OPEN:
        if row.scoring_config_id is None and workspace.settings.selection.bootstrap == "kcenter":
            require_room(workspace)
            yield embed_pool(workspace, row.id, on_progress=listener.of("embed"))
        ranked = rank_round(workspace, row.id)
        yield ranked
        if ranked.details.get("closed"):
            return
    require_room(workspace)
    yield predict_round(workspace, row.id, pre_annotator=pre_annotator)
    if client is None:
        yield hand_out(workspace, row.id)
        return
    require_room(workspace)
    source, on_progress = pre_annotator.source if pre_annotator else None, listener.of("push")
    try:
        yield push_round(workspace, row.id, client, pre_annotation=source, on_progress=on_progress)
    except LabelStudioDoubt:
        # push_round looks the doubtful tasks up by key before it sends anything, so calling it again is no blind retry.
        yield push_round(workspace, row.id, client, pre_annotation=source, on_progress=on_progress)


def hand_out(workspace: Workspace, round_id: int) -> StageReport:
    """Without Label Studio: mark a round's queries as waiting for masks from outside, unless [drift] blocks it."""
    if (held := _push_held(workspace)) is not None:
        return StageReport("hand out", details={"held": held})
    with workspace.database.write() as session:
        waiting = rounds.queries(session, round_id, QueryStatus.SELECTED)
        for query, _ in waiting:
            session.get_one(Query, query.id).status = QueryStatus.PUSHED
        rounds.finish_pushing(session, round_id)
    return StageReport("hand out", len(waiting))


def _carry_on(
    workspace: Workspace,
    row: Round,
    client: LabelStudioClient | None,
    note: Callable[[StageReport], None],
    listener: Listener,
) -> None:
    with logs.bound(round=row.number), _error_in_row(workspace, row):
        for report in finish_round(workspace, row, client, listener):
            note(report)


@contextmanager
def _error_in_row(workspace: Workspace, row: Round) -> Iterator[None]:
    """Leave the reason in the round's row; the round itself stays where it is and goes on next time."""
    try:
        yield
    except ActivesegError as error:
        with workspace.database.write() as session:
            session.get_one(Round, row.id).error = str(error)
        raise


def _push_held(workspace: Workspace) -> str | None:
    """Why nothing may be pushed before a person says so."""
    with workspace.database.read() as session:
        return drift.held(session, workspace.settings.drift, "push")


def _begun(workspace: Workspace) -> list[Round]:
    with workspace.database.read() as session:
        return rounds.unfinished(session, RoundStatus.OPEN, RoundStatus.SELECTED)


def _pushed_for_another(workspace: Workspace, begun: Sequence[Round]) -> bool:
    """Whether one of these rounds was pushed though it was chosen by another checkpoint than today's champion, or by none."""
    with workspace.database.read() as session:
        champion = checkpoints.champion(session)
        rows = [session.get_one(Round, row.id) for row in begun]
        chosen_by = [checkpoints.of_round(session, row) for row in rows if row.status == RoundStatus.PUSHED]
    return champion is not None and any(one is None or one.id != champion.id for one in chosen_by)


def _has_champion(workspace: Workspace) -> bool:
    with workspace.database.read() as session:
        return checkpoints.champion(session) is not None
