"""An export is read without trusting it: nothing raises, and what is read fits the columns it goes into."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from activeseg.labelstudio.submissions import read_task

MOMENT = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
GOOD: dict[str, Any] = {"id": 3, "updated_at": "2026-11-20T10:00:00.123456Z", "completed_by": 1, "result": []}
ANNOTATION = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("id", "updated_at", "completed_by", "lead_time", "was_cancelled", "ground_truth"), JSON)
)
TASK = st.fixed_dictionaries(
    {"id": st.integers(-1, 5) | JSON},
    optional={
        "data": st.dictionaries(st.sampled_from(["key", "sha256"]), JSON) | JSON,
        "annotations": st.lists(st.just(GOOD) | ANNOTATION | JSON, max_size=4) | JSON,
    },
)


@given(TASK | JSON)
def test_nothing_in_an_export_raises_and_what_is_read_fits_its_columns(item: Any) -> None:
    task = read_task(item, {1: MOMENT})
    if task is None:
        return
    assert 0 < task.number < 2**63
    for one in task.submissions:
        assert -(2**63) < one.number < 2**63
        assert one.updated_at.utcoffset() is not None
        assert one.lead_time is None or (math.isfinite(one.lead_time) and one.lead_time >= 0)
        text = (one.annotator or "") + (one.problem or "") + task.key + task.sha256
        assert text.encode("utf-8") == text.encode("utf-8", "replace")
        assert "\x00" not in text
        assert len(one.annotator or "") <= 255
        assert one.problem is not None or one.number > 0
    again = read_task(item, {1: MOMENT})
    assert again is not None
    assert [one.number for one in again.submissions] == [one.number for one in task.submissions]


def test_a_time_without_zone_is_utc_and_versions_come_oldest_first() -> None:
    items = [GOOD | {"id": 1, "updated_at": "2026-11-20T12:00:00"}, GOOD | {"id": 2, "updated_at": "2026-11-20T12:30:00+01:00"}]
    task = read_task({"id": 1, "data": {}, "annotations": items}, {})
    assert task is not None
    assert [(one.number, one.updated_at.hour, one.updated_at.minute) for one in task.submissions] == [(2, 11, 30), (1, 12, 0)]
    assert (task.complete, task.key, task.sha256) == (True, "", "")


def test_annotations_without_a_number_of_two_tasks_are_told_apart() -> None:
    numbers = set()
    for number in (1, 2):
        task = read_task({"id": number, "data": {}, "annotations": [GOOD | {"id": None}]}, {})
        assert task is not None
        numbers |= {one.number for one in task.submissions}
    assert len(numbers) == 2


def test_what_has_no_number_leaves_open_which_annotations_are_gone() -> None:
    task = read_task({"id": 1, "data": {}, "annotations": [GOOD, GOOD | {"id": None}]}, {})
    assert task is not None
    assert not task.complete
    assert [one.problem is None for one in task.submissions] == [True, False]
