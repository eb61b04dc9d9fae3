"""annotations -> splits: annotated pool images become training or validation images, once and for good."""

from __future__ import annotations

import time

from activeseg.core.selection import freeze_validation
from activeseg.db import images, splits, truth
from activeseg.db.models import ImageStatus, Split
from activeseg.records import StageReport
from activeseg.workspace import Workspace


def assign_splits(workspace: Workspace) -> StageReport:
    """Give every annotated pool image a split.

    The validation split grows first, up to [selection] val_size: only by images that were drawn at random, by whole
    groups (clips, sites), and never so far that fewer than [training] min_train images are left to train on. All others
    train, unless their group has validation images, or a copy of them validates: those would leak and go to the test split,
    which nothing uses.
    """
    started, selection = time.monotonic(), workspace.settings.selection
    with workspace.database.write() as session:
        waiting = truth.without_split(session)
        if (wanted := splits.wait_ends_at(session, workspace.settings)) is not None:
            details = {"waiting": len(waiting), "until": f"{wanted} images are annotated or no task is open"}
            return StageReport("split", seconds=time.monotonic() - started, details=details)
        counts = images.count_by_status(session)
        val = counts.get((Split.VAL, ImageStatus.ACTIVE), 0)
        train = len(truth.current(session, split=Split.TRAIN))
        training_groups = truth.groups_of(session, Split.TRAIN)
        trained_copies = truth.copies_in(session, list(waiting), Split.TRAIN)
        eligible = {
            image_id: group
            for image_id, (group, at_random) in waiting.items()
            if at_random and group not in training_groups and image_id not in trained_copies
        }
        # Images that may not validate train anyway: they count towards what must be left.
        keep = max(0, workspace.settings.training.min_train - train - (len(waiting) - len(eligible)))
        frozen = freeze_validation(
            eligible, max(0, selection.val_size - val), seed=selection.seed + val, keep_for_training=keep
        )
        images.set_split(session, sorted(frozen), Split.VAL)
        validation_groups = truth.groups_of(session, Split.VAL)
        rest = {image_id: group for image_id, (group, _) in waiting.items() if image_id not in frozen}
        copies = truth.copies_in(session, list(rest), Split.VAL)
        leaking = [image_id for image_id, group in rest.items() if group in validation_groups or image_id in copies]
        images.set_split(session, leaking, Split.TEST)
        images.set_split(session, [image_id for image_id in rest if image_id not in set(leaking)], Split.TRAIN)
    divided = {"train": len(rest) - len(leaking), "val": len(frozen), "test": len(leaking)}
    return StageReport("split", len(waiting), 0, time.monotonic() - started, divided)
