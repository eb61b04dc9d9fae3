"""What an export of Label Studio says, read without trusting it: tasks, and the versions of the annotations on them.

Nothing raises here. A task that cannot be recognised reads as None; what is wrong with an annotation is its `problem`, the
reason it will be quarantined for.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

_LARGEST = 2**63 - 1
# Numbers of ours for annotations without one: below every number that a row of the database could have.
_NAMELESS = -(2**48)


@dataclass(frozen=True, slots=True)
class Submission:
    """One version of an annotation.

    number: Label Studio's, or a negative one made from the content where it has none. updated_at: aware UTC; the task's
    where the annotation does not say. result: as it came. problem: why nothing of it can be used; None where it can.
    """

    number: int
    updated_at: datetime
    annotator: str | None
    lead_time: float | None
    skipped: bool
    ground_truth: bool
    result: Any
    problem: str | None


@dataclass(frozen=True, slots=True)
class ExportedTask:
    """A task with its annotations, oldest version first.

    key, sha256: what `task.data` says, '' where it does not. complete: whether `submissions` are all annotations that the
    task has, so that others are gone.
    """

    number: int
    key: str
    sha256: str
    submissions: tuple[Submission, ...]
    complete: bool


def read_task(task: Any, changed: Mapping[int, datetime]) -> ExportedTask | None:
    """An exported task; None where it has no number or no data. changed: task number -> when it last changed."""
    number = _whole(task.get("id")) if isinstance(task, Mapping) else None
    data = task.get("data") if number is not None else None
    if number is None or not isinstance(data, Mapping):
        return None
    items = task.get("annotations")
    moment = changed.get(number) or max(changed.values(), default=datetime.now(UTC))
    found = [_submission(item, number, moment) for item in items] if isinstance(items, list) else []
    complete = isinstance(items, list) and all(submission.number > 0 for submission in found)
    found.sort(key=lambda submission: submission.updated_at)
    key, sha256 = (value if isinstance(value := data.get(name), str) else "" for name in ("key", "sha256"))
    return ExportedTask(number, clean(key), clean(sha256), tuple(found), complete)


def _submission(item: Any, task: int, fallback: datetime) -> Submission:
    fields: Mapping[str, Any] = item if isinstance(item, Mapping) else {}
    number, updated_at = _whole(fields.get("id")), _moment(fields.get("updated_at"))
    skipped = fields.get("was_cancelled")
    problem = None
    if not isinstance(item, Mapping):
        problem = f"expected an annotation; got {type(item).__name__}"
    elif number is None:
        problem = f"expected an annotation with a number; got id {_short(fields.get('id'))}"
    elif updated_at is None:
        problem = f"expected an annotation with the time of its last change; got updated_at {_short(fields.get('updated_at'))}"
    elif skipped is not None and not isinstance(skipped, bool):
        problem = f"expected was_cancelled to be true or false; got {_short(skipped)}"
    return Submission(
        number=_nameless(item, task) if number is None else number,
        updated_at=updated_at or fallback,
        annotator=_annotator(fields.get("completed_by")),
        lead_time=_seconds(fields.get("lead_time")),
        skipped=skipped is True,
        ground_truth=fields.get("ground_truth") is True,
        result=fields.get("result"),
        problem=problem,
    )


def clean(text: str, length: int = 500) -> str:
    """Text that every database takes: no control characters, no half characters, at most `length` long."""
    readable = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(sign if sign.isprintable() else " " for sign in readable)[:length]


def _whole(value: Any) -> int | None:
    """A positive whole number that fits a column; numbers as text count."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST else None


def _moment(value: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None


def _seconds(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 and not isinstance(value, bool) else None


def _annotator(completed_by: Any) -> str | None:
    """Who submitted it: Label Studio gives a number or, with some exports, an object."""
    if isinstance(completed_by, Mapping):
        completed_by = completed_by.get("email") or completed_by.get("id")
    if isinstance(completed_by, bool) or not isinstance(completed_by, str | int) or completed_by == "":
        return None
    return clean(str(completed_by) if isinstance(completed_by, str) or abs(completed_by) <= _LARGEST else "?", 255)


def _nameless(item: Any, task: int) -> int:
    """The same number whenever the same annotation of a task without a number comes."""
    try:
        text = json.dumps([task, item], sort_keys=True, default=str)
    except RecursionError:
        text = f"[{task}]"  # nobody can tell several such apart, and none of them can be used
    return _NAMELESS - zlib.crc32(text.encode())


def _short(value: Any) -> str:
    try:
        return clean(repr(value), 60)
    except RecursionError:
        return f"{type(value).__name__} nested too deeply"
