"""queries -> predictions: the masks and entropy maps that a round's tasks will show.

They are drawn by the round's checkpoint, or for a first round by a pre-annotator, and stored before anything is sent, so
that a push that is repeated shows the same.
"""

from __future__ import annotations

import time

from activeseg.db import checkpoints, images, labeling, planned
from activeseg.db.models import Round
from activeseg.preannotate import PreAnnotator, pre_annotate_and_store
from activeseg.predictions import predict_and_store, source_of
from activeseg.records import StageReport
from activeseg.workspace import Workspace


def predict_round(workspace: Workspace, round_id: int, *, pre_annotator: PreAnnotator | None = None) -> StageReport:
    """Draw and store the masks and entropy maps of a round's waiting queries; those that exist are kept.

    A bootstrap round has none, or those of `pre_annotator`; the report counts and lists the images it leaves without.
    Images that cannot be read any more are quarantined and their queries withdrawn. Raises LabelSetMismatch where the
    round's checkpoint knows other classes than are configured, although its masks are stored already.
    """
    started = time.monotonic()
    with workspace.database.read() as session:
        checkpoint = checkpoints.of_round(session, session.get_one(Round, round_id))
        waiting = [item.image for item in planned.waiting(session, round_id)]
        source = source_of(checkpoint) if checkpoint else pre_annotator.source if pre_annotator else None
        known = labeling.drawn(session, source, [ref.image_id for ref in waiting]) if source else set()
    if checkpoint is not None:
        checkpoints.require_labels(checkpoint, workspace.label_set)
    work = [ref for ref in waiting if ref.image_id not in known] if source else []
    failures: dict[int, str] = {}
    without: dict[int, str] = {}
    if work and checkpoint is not None:
        failures = predict_and_store(workspace, checkpoint, work)
    elif work and pre_annotator is not None:
        failures, without = pre_annotate_and_store(workspace, pre_annotator, work)
    if failures:
        with workspace.database.write() as session:
            images.quarantine(session, failures)
    problems = {ref.uri: f"no mask: {without[ref.image_id]}" for ref in work if ref.image_id in without}
    details = {"without a mask": len(problems), "problems": problems} if problems else {}
    done = len(work) - len(failures) - len(problems)
    return StageReport("predict", done, len(failures), time.monotonic() - started, details)
