"""What a task looks like when it is sent, and how requests are kept small."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from activeseg.core.cells import GRID, in_words
from activeseg.errors import ConfigError
from activeseg.labelstudio.http import json_bytes

MAX_TASKS = 200
"""Tasks in a request: nobody makes tasks while the server takes the last one, and those without masks are so small that
bytes alone would let thousands run into a time-out."""

FIRST_BYTES = 1_000_000

# A task keeps its text for good, so it must stay true when a champion's mask takes the place of nothing or of a guess.
_NO_MODEL = "Draw every class that is missing; where something is drawn already, correct it."
_ROUGH = "What is drawn may be only a rough guess of one object: correct it, and draw every class that is missing."
_ABSENT = " Everything you leave undrawn counts as absent."


def task_payload(
    key: str,
    image_url: str,
    entropy_url: str | None = None,
    *,
    order: int,
    sha256: str,
    doubtful: Sequence[str] = (),
    result: Sequence[Mapping[str, Any]] = (),
    score: float | None = None,
    model_version: str | None = None,
    rough: bool = False,
    overlap: bool = False,
    cells: Collection[int] | None = None,
) -> dict[str, Any]:
    """A task for import. What annotators see says nothing about score, rank or arm.

    key: stable and ours; `find_tasks` looks it up. order: 0-based place in which annotators see it. sha256: the image's.
    entropy_url: without one the plain image stands beside the one being labelled.
    doubtful: classes the model is least sure of, most doubtful first.
    result, score, model_version: the prediction, as in `prediction_payload`; without a model_version there is none.
    rough: the prediction outlines one object only (a pre-annotation); the task's text says so. overlap: the classes may;
    where the model has not drawn all of them, the text says what an undrawn one means. cells: what of the image is asked
    about (`core.cells`), None for all of it; the text says where that is, and that the picture beside frames it if there is
    one, which `entropy_url` then shows.
    """
    guide = _NO_MODEL if model_version is None else _ROUGH if rough else None
    where = "" if cells is None else _where(cells, framed=entropy_url is not None)
    data = {
        "image": image_url,
        "entropy": [entropy_url or image_url],
        "doubt": where + (guide + _ABSENT * overlap if guide else _hint(doubtful, whole=cells is None)),
        "key": key,
        "sha256": sha256,
        "order": order_value(order),
    }
    if model_version is None:
        return {"data": data}
    if score is None:
        raise ConfigError("score: a prediction needs a confidence between 0 and 1")
    return {"data": data, "predictions": [prediction_payload(result, model_version=model_version, score=score)]}


def prediction_payload(
    result: Sequence[Mapping[str, Any]], *, model_version: str, score: float, task_id: int | None = None
) -> dict[str, Any]:
    """A prediction for import, inside a task or (with task_id) for an existing one.

    score: confidence, 0..1, higher = surer (the other way round than activeseg's scores). Label Studio drops a
    prediction with another score without a word, so it raises ConfigError here.
    """
    if not 0.0 <= score <= 1.0:
        raise ConfigError(f"score: expected a confidence between 0 and 1, got {score}")
    payload: dict[str, Any] = {"model_version": model_version, "score": score, "result": [dict(r) for r in result]}
    return payload if task_id is None else {"task": task_id} | payload


def confidence_of_order(shown_order: int, size: int) -> float:
    """Label Studio's prediction score (confidence, lowest served first) of a place in the shown order, in 0..1.

    Our scores are uncertainty, highest first: this is the one place where the direction turns. It tells the place in
    the shown order and nothing of the score, so that control images cannot be recognised.
    """
    return (shown_order + 0.5) / max(size, 1)


def _hint(doubtful: Sequence[str], *, whole: bool) -> str:
    if doubtful:
        return "Least sure about: " + ", ".join(doubtful)
    return "Check the whole mask." if whole else "Check the mask there."


def _where(cells: Collection[int], *, framed: bool) -> str:
    seen = " (framed in the picture beside)" if framed else ""
    return f"Label only these cells of {GRID} rows and {GRID} columns: {in_words(cells)}{seen}. The rest does not count. "


def order_value(order: int) -> str:
    """The shown order as Label Studio can sort it: it compares `data` values as text."""
    return f"{order:06d}"


@dataclass(frozen=True, slots=True)
class TaskBody:
    """A task as JSON, ready to be sent.

    key: `data.key`. row_id: of our tasks row. predictions: how many are in it. left_out: the prediction that was planned does
    not fit its image any more and is not in it.
    """

    key: str
    row_id: int
    body: bytes
    predictions: int
    left_out: bool = False


def task_body(payload: Mapping[str, Any], row_id: int, *, left_out: bool = False) -> TaskBody:
    """The JSON of a payload from `task_payload`; made once, measured and sent as it is."""
    body = json_bytes(payload)
    return TaskBody(payload["data"]["key"], row_id, body, len(payload.get("predictions", ())), left_out)


def batches(tasks: Iterable[TaskBody], *, max_bytes: int, first_bytes: int = FIRST_BYTES) -> Iterator[list[TaskBody]]:
    """Tasks in order, in groups of at most `max_bytes` of JSON (a single larger one goes alone) and MAX_TASKS.

    The first group has at most first_bytes and each next one twice as many: whoever makes the second while the first is on
    its way should not wait long for it.
    """
    group: list[TaskBody] = []
    size, limit = 0, min(first_bytes, max_bytes)
    for task in tasks:
        length = len(task.body) + 1
        if group and (size + length > limit or len(group) == MAX_TASKS):
            yield group
            group, size, limit = [], 0, min(2 * limit, max_bytes)
        group.append(task)
        size += length
    if group:
        yield group
