"""Tasks in, predictions out, one answer each: a task that cannot be answered never keeps another from its mask."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from activeseg.core.cells import asked_of, only_inside
from activeseg.core.labels import LabelSet
from activeseg.core.scaling import shrink_mask
from activeseg.errors import ActivesegError, LabelSetMismatch, LabelStudioError
from activeseg.labelstudio.labeling import MaskKind, config_labels, config_mask_kind, config_overlap
from activeseg.labelstudio.regions import mask_to_result
from activeseg.labelstudio.tasks import prediction_payload
from activeseg.mlbackend.champion import Champion
from activeseg.mlbackend.pictures import Pictures
from activeseg.nn.checkpoint import Segmenter

MAX_TASKS = 100
"""Tasks predicted per call. Those behind get none and are asked for again when they are opened."""

SECONDS = 80.0
"""Label Studio waits 100 s for an answer and then throws all of it away: the tasks left by then get none."""

SCORE = 0.5
"""The same for all: nobody shall tell from a live prediction's confidence how unsure the model is, or guess a rank."""

NONE: list[dict[str, Any]] = []
"""No prediction. A prediction without regions would be stored and shown, and say that nothing is there."""

Answer = dict[str, Any] | list[dict[str, Any]]

_log = logging.getLogger(__name__)


class Answers:
    """Predicts the tasks of one call after the other. clock: seconds, monotonic."""

    def __init__(self, champion: Champion, pictures: Pictures, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.champion, self._pictures, self._clock = champion, pictures, clock

    def predict(self, tasks: Sequence[Any], config: str, *, came_at: float) -> list[Answer]:
        """One answer for each task, in order: a prediction, or NONE with a line in the log that says why.

        config: the project's labeling configuration. came_at: when the call came, by the clock.
        """
        try:
            segmenter = self.champion.load()
            if segmenter is None:
                _log.warning("no prediction for %d tasks: there is no champion yet", len(tasks))
                return [NONE for _ in tasks]
            kind = fitting_kind(config, segmenter.spec.label_set)
        except ActivesegError as error:
            _log.warning("no prediction for %d tasks: %s", len(tasks), error)
            return [NONE for _ in tasks]
        answers: list[Answer] = []
        for task in tasks[:MAX_TASKS]:
            if self._clock() - came_at > SECONDS:
                break
            answers.append(self._answer(segmenter, task, kind))
        if left := len(tasks) - len(answers):
            _log.warning(
                "no prediction for the last %d of %d tasks: a call has %d s and %d tasks at most",
                left,
                len(tasks),
                SECONDS,
                MAX_TASKS,
            )
        return answers + [NONE] * left

    def _answer(self, segmenter: Segmenter, task: Any, kind: MaskKind) -> Answer:
        number = task.get("id") if isinstance(task, Mapping) else None
        name = f"task {number}" if isinstance(number, int) else "a task without a number"
        try:
            return self._predict_one(segmenter, task, kind, name)
        except ActivesegError as error:
            _log.warning("no prediction for %s: %s", name, error)
        except Exception:
            _log.exception("no prediction for %s", name)
        return NONE

    def _predict_one(self, segmenter: Segmenter, task: Any, kind: MaskKind, name: str) -> Answer:
        data = task.get("data") if isinstance(task, Mapping) else None
        if not isinstance(data, Mapping):
            raise LabelStudioError("it has no data")
        picture = self._pictures.of(data)
        mask = shrink_mask(self.champion.mask(segmenter, picture.pixels, name), picture.shown)
        if (cells := asked_of(picture.cells, segmenter.spec.label_set)) is not None:
            mask = only_inside(mask, cells)
        result = mask_to_result(mask, segmenter.spec.label_set, kind=kind)
        return prediction_payload(result, model_version=segmenter.model_version, score=SCORE)


def fitting_kind(config: str, label_set: LabelSet) -> MaskKind:
    """How the project draws masks. Raises LabelSetMismatch where its classes are not the champion's."""
    kind = config_mask_kind(config) if config else None
    if kind is None:
        raise LabelSetMismatch("the project has no BrushLabels or BitmaskLabels named 'label'")
    names = config_labels(config)
    if sorted(names) != sorted(label_set.names):
        raise LabelSetMismatch(f"the project has the classes {', '.join(names)}; the champion knows {label_set.sentence()}")
    if config_overlap(config) != label_set.overlap:
        raise LabelSetMismatch(
            "in the project classes exclude each other and for the champion they may overlap, or the reverse"
        )
    return kind
