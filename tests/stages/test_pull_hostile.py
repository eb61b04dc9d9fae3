"""Whatever an export holds: a row with the reason, or left alone and counted; never a crash, never a mask by mistake."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from activeseg.db.models import AnnotationStatus
from activeseg.errors import LabelStudioError, LabelStudioUnauthorized, LabelStudioUnreachable
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
    assert (report.details["valid"], report.details["quarantined"]) == (1, 16)
    assert "11 more quarantined" in report.details["problems"]
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


def test_a_task_that_cannot_be_exported_keeps_no_other_from_being_pulled(site: Site) -> None:
    for task in site.tasks:
        site.submit(task, site.result(plain(0)))
    first, broken, last = site.tasks
    export, asked = site.server.export_tasks, []

    def fails(project: int, numbers: Sequence[int]) -> list[dict[str, Any]]:
        asked.append(list(numbers))
        if broken in numbers:
            raise LabelStudioError("HTTP 500: nobody can serialise this")
        return export(project, numbers)

    site.server.export_tasks = fails
    report = site.pull()
    assert (report.written, report.failed) == (2, 1)
    problem = {f"task {broken} of Label Studio project 1": "HTTP 500: nobody can serialise this"}
    assert report.details == {"valid": 2, "not exported": 1, "problems": problem}
    assert asked == [[first, broken, last], [first], [broken], [last]]
    site.server.export_tasks = export
    assert site.pull(full=True).details == {"valid": 1}


def test_an_export_that_came_back_empty_is_mended_by_a_full_one(site: Site) -> None:
    """To a pull the annotations are deleted; what they were comes back with the next answer that has them."""
    site.submit(site.tasks[0], site.result(plain(0)))
    site.submit(site.tasks[1], site.result(plain(1)), was_cancelled=True)
    site.pull()
    before = [(row.id, row.status, row.mask_location) for row in site.rows()]
    for task in site.tasks[:2]:
        site.server.tasks[task]["updated"] = site.tick()
    export = site.server.export_tasks
    site.server.export_tasks = lambda project, numbers: []
    assert site.pull().details == {"deleted": 2}
    assert (site.counting(), {row.status for row in site.rows()}) == ([], {AnnotationStatus.DELETED})
    site.server.export_tasks = export
    assert site.pull(full=True).details == {"there again": 2}
    assert [(row.id, row.status, row.mask_location) for row in site.rows()] == before
    assert len(site.counting()) == 1


@pytest.mark.parametrize("error", [LabelStudioUnreachable("gone"), LabelStudioUnauthorized("refused")])
def test_a_server_that_is_away_is_not_a_task_that_cannot_be_exported(site: Site, error: LabelStudioError) -> None:
    site.submit(site.tasks[0], site.result(plain(0)))
    site.server.export_tasks = raising(error)
    with pytest.raises(type(error)):
        site.pull()


@pytest.mark.parametrize("error", [LabelStudioError("HTTP 502: bad gateway"), RecursionError()])
def test_where_nothing_can_be_exported_the_next_pull_begins_there_again(site: Site, error: Exception) -> None:
    item = site.submit(site.tasks[0], site.result(plain(0)))
    site.pull()
    site.edit(site.tasks[0], item)
    export = site.server.export_tasks
    site.server.export_tasks = raising(error)
    assert site.pull().details["not exported"] == 1
    assert [row.status for row in site.rows()] == [VALID]
    site.tick()
    site.server.export_tasks = export
    assert site.pull().details == {"valid": 1}


def raising(error: Exception) -> Callable[..., Any]:
    def export(project: int, numbers: Sequence[int]) -> Any:
        raise error

    return export


def test_nesting_that_no_parser_bears_costs_its_own_annotation_only(site: Site) -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    good = site.submit(site.tasks[0], site.result(plain(0)))
    for fields in ({"id": deep}, {"updated_at": deep}, {"was_cancelled": deep}, {"result": deep}, {"result": [deep]}):
        item = site.submit(site.tasks[0], site.result(plain(0)))
        item |= fields
    site.server.export_tasks = lambda project, ids: [site.server.tasks[site.tasks[0]] | {"id": site.tasks[0]}]
    details = site.pull().details
    assert (details["valid"], details["quarantined"], len(details["problems"])) == (1, 5, 5)
    assert [row.external_annotation_id for row in site.rows(VALID)] == [good["id"]]
    assert any("nested too deeply" in reason for reason in reasons(site.rows(QUARANTINED)))


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
    other = copy.deepcopy(item) | {"result": site.result(plain(1))}
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
    assert site.pull().details == {"valid": 2, "merged": 1}
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
