"""Whatever an export holds: a row with the reason, or left alone and counted; never a crash, never a mask by mistake."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from activeseg.db.models import AnnotationStatus
from activeseg.labelstudio.regions import MAX_REGIONS
from activeseg.workspace import Workspace
from tests.stages.pulling import Site, plain, reasons

Make = Callable[..., Workspace]
VALID, QUARANTINED = AnnotationStatus.VALID, AnnotationStatus.QUARANTINED
NAN, INFINITE = float("nan"), float("inf")


@pytest.fixture
def site(make_workspace: Make) -> Site:
    return Site(make_workspace)


def test_each_kind_of_broken_annotation_is_quarantined_with_its_reason_and_the_good_one_is_kept(site: Site) -> None:
    task, good = site.tasks[0], site.result(plain(0))
    for fields in (
        {"result": None},
        {"result": {"regions": good}},
        {"result": "[]"},
        {"result": [good[0] | {"value": None}]},
        {"result": [None]},
        {"result": [good[0] | {"original_width": "64"}]},
        {"result": good * (MAX_REGIONS + 1)},
        {"was_cancelled": "yes"},
        {"updated_at": None},
        {"updated_at": "yesterday"},
        {"id": "first"},
        {"id": 2**70},
    ):
        item = site.submit(task, good)
        item |= fields
    del site.submit(task, good)["updated_at"]
    del site.submit(task, good)["id"]
    site.server.tasks[task]["annotations"] += ["an annotation", None]
    site.submit(task, good)
    report = site.pull()
    assert report.details == {"valid": 1, "quarantined": 16}
    assert all(reasons(site.rows(QUARANTINED)))
    told = "\n".join(reasons(site.rows(QUARANTINED)))
    for part in (
        "result must be a list of regions; got None",
        "got dict",
        "got str",
        f"it has {MAX_REGIONS + 1} regions, more than the {MAX_REGIONS} that are read",
        "expected was_cancelled to be true or false; got 'yes'",
        "expected an annotation with the time of its last change; got updated_at 'yesterday'",
        "expected an annotation with a number; got id 'first'",
        "expected an annotation; got NoneType",
    ):
        assert part in told
    # What has no number of its own is known again all the same.
    again = site.pull(full=True)
    assert (again.written, again.failed, again.details) == (0, 0, {})
    assert len(site.counting()) == 1


@pytest.mark.parametrize(
    ("fields", "annotator", "lead_time"),
    [
        ({"completed_by": None, "lead_time": None}, None, None),
        ({"completed_by": {"id": 5, "email": ""}, "lead_time": "3.5"}, "5", 3.5),
        ({"completed_by": [1], "lead_time": NAN}, None, None),
        ({"completed_by": "a\x00b\ud800", "lead_time": INFINITE}, "a b\\ud800", None),
        ({"completed_by": "x" * 1000, "lead_time": -1}, "x" * 255, None),
        ({"completed_by": True, "lead_time": True}, None, None),
        ({"completed_by": 10**400, "lead_time": 10**400}, "?", None),
    ],
)
def test_odd_facts_about_an_annotation_do_not_cost_its_mask(
    site: Site, fields: dict[str, Any], annotator: str | None, lead_time: float | None
) -> None:
    site.submit(site.tasks[0], site.result(plain(0)), **fields)
    assert site.pull().details == {"valid": 1}
    (row,) = site.rows()
    assert (row.annotator, row.lead_time) == (annotator, lead_time)


def test_numbers_as_text_are_numbers(site: Site) -> None:
    item = site.submit(site.tasks[0], site.result(plain(0)))
    item["id"] = str(item["id"])
    assert site.pull().details == {"valid": 1}
    assert site.pull(full=True).written == 0
    assert site.rows()[0].external_annotation_id == int(item["id"])


@pytest.mark.parametrize("data", [None, [], "data", {}, {"key": 5}, {"key": ["x"], "sha256": {}}])
def test_tasks_that_do_not_say_whose_they_are_are_foreign(site: Site, data: Any) -> None:
    site.submit(site.tasks[0], site.result(plain(0)))
    export = site.server.export_tasks
    site.server.export_tasks = lambda project, ids: [task | {"data": data} for task in export(project, ids)]
    assert site.pull().details == {"foreign": 1}


@pytest.mark.parametrize("broken", ["a task", None, {"data": {}}, {"id": "x", "data": {"key": "k"}}])
def test_an_export_that_cannot_be_read_deletes_nothing(site: Site, broken: Any) -> None:
    item = site.submit(site.tasks[0], site.result(plain(0)))
    site.pull()
    site.edit(site.tasks[0], item)
    export = site.server.export_tasks
    site.server.export_tasks = lambda project, ids: [broken]
    assert site.pull().details == {"foreign": 1}
    assert [row.status for row in site.rows()] == [VALID]
    # A task whose annotations cannot be read has not lost them either.
    site.edit(site.tasks[0], item)
    site.server.export_tasks = lambda project, ids: [task | {"annotations": "many"} for task in export(project, ids)]
    assert site.pull().details == {}
    assert [row.status for row in site.rows()] == [VALID]


def test_the_same_annotation_twice_in_an_export_is_one_row(site: Site) -> None:
    item = site.submit(site.tasks[0], site.result(plain(0)))
    site.server.tasks[site.tasks[0]]["annotations"].append(copy.deepcopy(item))
    other = copy.deepcopy(item) | {"result": []}
    site.server.tasks[site.tasks[1]]["annotations"].append(other)
    assert site.pull().details == {"valid": 1}
    assert len(site.rows()) == 1


def test_two_tasks_of_one_key_give_all_their_annotations_to_the_one_query(site: Site) -> None:
    """A duplicate made by a paused sender, which somebody has annotated."""
    first = site.tasks[0]
    second = next(site.server._numbers)
    site.server.tasks[second] = copy.deepcopy(site.server.tasks[first])
    site.submit(first, site.result(plain(0)), person=1)
    site.submit(second, site.result(plain(1)), person=2)
    assert site.pull().details == {"valid": 2}
    rows = site.rows()
    assert {row.query_id for row in rows} == {rows[0].query_id}
    assert [row.external_task_id for row in rows] == [first, second]
    assert [mask[0, 0] for mask in site.counting()] == [1]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PLACES = [
    ("id",), ("updated_at",), ("completed_by",), ("lead_time",), ("was_cancelled",), ("ground_truth",), ("result",),
    ("result", 0), ("result", 0, "type"), ("result", 0, "value"), ("result", 0, "original_width"),
    ("result", 0, "image_rotation"), ("result", 0, "origin"), ("result", 0, "value", "bitmasklabels"),
    ("result", 0, "value", "imageDataURL"), ("result", 0, "value", "bitmasklabels", 0),
]  # fmt: skip


@st.composite
def damage(draw: st.DrawFn) -> tuple[tuple[str | int, ...], str, Any]:
    """Where an annotation is damaged, and whether the place is removed or holds something else."""
    return draw(st.sampled_from(PLACES)), draw(st.sampled_from(["replace", "remove"])), draw(JSON)


def apply(item: dict[str, Any], place: tuple[str | int, ...], how: str, value: Any) -> None:
    inside: Any = item
    for step in place[:-1]:
        try:
            inside = inside[step]
        except (KeyError, IndexError, TypeError):
            return
    if not isinstance(inside, dict | list) or (isinstance(inside, list) and len(inside) <= 0):
        return
    if isinstance(inside, dict) != isinstance(place[-1], str):
        return
    if how == "remove" and (isinstance(inside, list) or place[-1] in inside):
        inside.pop(place[-1])
    elif how == "replace":
        inside[place[-1]] = value


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damages=st.lists(st.lists(damage(), min_size=1, max_size=3), min_size=1, max_size=5))
def test_whatever_an_annotation_holds_the_pull_goes_on_and_the_good_ones_are_kept(
    hostile_site: Site, damages: list[list[tuple[tuple[str | int, ...], str, Any]]]
) -> None:
    site = hostile_site
    for task in site.tasks:
        site.server.tasks[task]["annotations"].clear()
    good = site.submit(site.tasks[0], site.result(plain(0)))
    for changes in damages:
        item = site.submit(site.tasks[0], copy.deepcopy(site.result(plain(1))))
        for place, how, value in changes:
            apply(item, place, how, copy.deepcopy(value))
    site.submit(site.tasks[1], site.result(plain(2)))
    site.edit(site.tasks[0], good)
    site.pull()
    rows = [row for row in site.rows() if row.status != AnnotationStatus.DELETED]
    mine = [row for row in rows if row.external_annotation_id == good["id"] and row.status == VALID]
    assert mine
    assert all(row.reason for row in rows if row.status == QUARANTINED)
    assert all(row.mask_location for row in rows if row.status == VALID)
    assert (site.pull(full=True).written, site.pull().written) == (0, 0)


@pytest.fixture(scope="module")
def hostile_site(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Site:
    from tests.factories import WorkspaceFactory

    folder = tmp_path_factory.mktemp("hostile")
    shutil.copyfile(migrated_sqlite, folder / "activeseg.db")
    return Site(WorkspaceFactory(folder, f"sqlite:///{folder / 'activeseg.db'}"))
