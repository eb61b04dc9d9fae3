"""What people submitted on a task -> rows of annotations with their masks at the image's own size.

Of an image that was asked about in part only that part counts: pixels outside are unlabelled, whatever was drawn there and
whatever [labelstudio] uncovered says, and how much was changed is a share of the pixels inside.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np

from activeseg.core.cells import asked_of, inside, only_inside
from activeseg.core.labels import UNLABELED, LabelSet, Mask
from activeseg.core.masks import changed_share
from activeseg.core.scaling import restore_mask, shrink_mask
from activeseg.db.labeling import KnownTask
from activeseg.db.models import Annotation, AnnotationSource, AnnotationStatus, LabelingProject
from activeseg.db.planned import size_shown
from activeseg.errors import AnnotationError, ConfigError, DataError
from activeseg.labelstudio.regions import AnnotatedMask, result_to_mask
from activeseg.labelstudio.submissions import Submission, clean
from activeseg.workspace import Workspace

IGNORE = "ignore"


def uncovered_value(workspace: Workspace) -> int:
    """What [labelstudio] uncovered gives pixels under no region: UNLABELED or a class index. Raises ConfigError."""
    name, label_set = workspace.settings.labelstudio.uncovered, workspace.label_set
    if name == IGNORE:
        return UNLABELED
    if label_set.overlap:
        raise ConfigError(
            f"[labelstudio] uncovered = {name!r}: where classes overlap, a pixel under no region belongs to no class; "
            f"set it to {IGNORE!r}"
        )
    if name not in label_set.names:
        raise ConfigError(
            f"[labelstudio] uncovered = {name!r}: expected {IGNORE!r} or the name of a class ({', '.join(label_set.names)})"
        )
    return label_set.names.index(name)


def fill_for(workspace: Workspace, label_set: LabelSet) -> int:
    """`uncovered_value` in the numbering of a project's classes: UNLABELED where they lack the class, or may overlap."""
    name = workspace.settings.labelstudio.uncovered
    if name == IGNORE or name not in label_set.names or label_set.overlap:
        return UNLABELED
    return label_set.names.index(name)


@dataclass(frozen=True, slots=True)
class _Prediction:
    """The mask a task was shown with: as people saw it, at the image's own size, and where it is stored."""

    shown: Mask
    full: Mask
    location: str
    as_stored: bool


@dataclass(frozen=True, slots=True)
class Drawing:
    """How the submissions of one project are read.

    label_set: the classes the project was made for; masks are decoded and stored in their numbering, whatever [labels] says
    today. fill: from `fill_for`.
    """

    workspace: Workspace
    project: LabelingProject
    label_set: LabelSet
    fill: int

    def rows(self, ours: KnownTask, task_number: int, submissions: Sequence[Submission]) -> list[Annotation]:
        """One row for each submission, not yet written; what cannot be used is quarantined with the reason.

        The masks are stored. Needs no database, and may run in several threads.
        """
        if not submissions:
            return []
        prediction = self._prediction(ours)
        return [self._row(ours, task_number, submission, prediction) for submission in submissions]

    def _row(self, ours: KnownTask, task_number: int, submission: Submission, prediction: _Prediction | None) -> Annotation:
        row = Annotation(
            image_id=ours.image.image_id,
            query_id=ours.task.query_id,
            source=AnnotationSource.LABELSTUDIO,
            status=AnnotationStatus.SKIPPED,
            label_set_id=self.project.label_set_id,
            labeling_project_id=self.project.id,
            external_task_id=task_number,
            external_annotation_id=submission.number,
            external_updated_at=submission.updated_at,
            annotator=submission.annotator,
            lead_time=submission.lead_time,
            ground_truth=submission.ground_truth and not submission.skipped,
            rubber_stamp=False,
        )
        try:
            if submission.problem is not None:
                raise AnnotationError(submission.problem)
            if not submission.skipped:
                self._attach_mask(row, ours, submission, prediction)
        except DataError as error:
            row.status, row.reason = AnnotationStatus.QUARANTINED, clean(str(error))
        return row

    def _attach_mask(self, row: Annotation, ours: KnownTask, submission: Submission, prediction: _Prediction | None) -> None:
        drawn, cells = self._decode(ours, submission), self._cells(ours)
        self.label_set.require_labelled(drawn.mask)
        if prediction is not None:
            asked = ... if cells is None else inside(cells, _shown_size(ours))
            row.changed_share = changed_share(prediction.shown[asked], drawn.mask[asked])
        if prediction is not None and prediction.as_stored and row.changed_share == 0:
            row.mask_location, row.mask_sha256 = prediction.location, PurePosixPath(prediction.location).stem
        else:
            mask = _at_own_size(ours, drawn.mask, prediction, cells)
            stored = self.workspace.store_mask(mask, label_set=self.label_set)
            row.mask_location, row.mask_sha256 = stored.location, stored.sha256
        row.status, row.overlap_share = AnnotationStatus.VALID, drawn.overlap_share

    def _decode(self, ours: KnownTask, submission: Submission) -> AnnotatedMask:
        (height, width), cells = _shown_size(ours), self._cells(ours)
        try:
            drawn = result_to_mask(submission.result, self.label_set, width=width, height=height, fill=self.fill)
            return drawn if cells is None else replace(drawn, mask=only_inside(drawn.mask, cells))
        except DataError:
            raise
        except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
            # Nobody can list all that a file from outside may hold; one annotation must not stop all others.
            raise AnnotationError(f"its regions cannot be read ({type(error).__name__}: {error})") from error

    def _cells(self, ours: KnownTask) -> list[int] | None:
        return asked_of(ours.cells, self.label_set)

    def _prediction(self, ours: KnownTask) -> _Prediction | None:
        """None where none was shown, or none of the project's classes: only such are sent, so what is stored is in them."""
        location, size = ours.prediction_location, _shown_size(ours)
        if location is None:
            return None
        try:
            full = self.workspace.read_mask(location, label_set=self.label_set)
            self.label_set.check_mask(full)
            if full.shape[-2:] != (ours.height, ours.width):
                return None
            # What no region covers means the same in the mask that was shown and in the one that comes back.
            uncovered = full == UNLABELED if full.ndim == 2 and self.fill != UNLABELED else np.zeros(1, np.bool_)
            if uncovered.any():
                full = np.where(uncovered, np.uint8(self.fill), full)
            shown, cells = shrink_mask(full, size), self._cells(ours)
            shown = shown if cells is None else only_inside(shown, cells)
            return _Prediction(shown, full, location, cells is None and not uncovered.any())
        except DataError:
            return None


def _shown_size(ours: KnownTask) -> tuple[int, int]:
    """(height, width) of the picture the annotator drew on."""
    return size_shown(ours.task, (ours.height, ours.width))


def _at_own_size(ours: KnownTask, drawn: Mask, prediction: _Prediction | None, cells: Collection[int] | None) -> Mask:
    size = (ours.height, ours.width)
    if drawn.shape[-2:] == size:
        return drawn
    shown, full = (prediction.shown, prediction.full) if prediction is not None else (None, None)
    mask = restore_mask(drawn, size, shown=shown, full=full)
    if cells is not None:  # outside both the shown and the drawn mask are unlabelled, and the full one is not
        asked = restore_mask(inside(cells, _shown_size(ours)), size)
        mask = np.where(asked, mask, np.uint8(UNLABELED))
    return mask
