"""Whole rounds against a real Label Studio, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image as Pillow

from activeseg.db import checkpoints, labeling, truth
from activeseg.db.models import (
    Annotation,
    AnnotationStatus,
    Image,
    JournalState,
    PushJournal,
    Query,
    QueryStatus,
    Round,
    RoundStatus,
    Split,
    Task,
)
from activeseg.errors import LabelStudioDoubt, LabelStudioError, LabelStudioUnreachable
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.registration import open_client, open_project
from activeseg.loop import advance_round
from activeseg.workspace import Workspace

pytestmark = [pytest.mark.labelstudio, pytest.mark.slow]

SELECTION = {"bootstrap_size": 8, "query_size": 4, "val_size": 2, "refill_below": 1, "control_share": 0.25}


def known_mask(folder: Path, uri: str) -> np.ndarray:
    return np.asarray(Pillow.open(folder / "truth" / Path(uri).name))


def test_from_nothing_but_images_to_a_second_round_by_entropy(
    make_workspace: Callable[..., Workspace], with_label_studio: dict[str, Any], annotate: Callable[..., None], tmp_path: Path
) -> None:
    workspace = make_workspace(pool=20, selection=SELECTION, labelstudio=with_label_studio)
    with open_client(workspace.settings) as client:
        advance_round(workspace, client)
        with workspace.database.read() as session:
            assert checkpoints.champion(session) is None
            (bootstrap,) = session.scalars(sa.select(Round))
            assert (bootstrap.status, bootstrap.acquisition) == (RoundStatus.PUSHED, "random")
            tasks = session.scalars(sa.select(Task)).all()
            assert len({task.external_task_id for task in tasks if task.external_task_id}) == 8
        project = open_project(workspace, client).external_project_id
        assert "predictions" not in client.export_tasks(project, [tasks[0].external_task_id or 0])

        annotate(workspace, client, "--seed", "1")
        advance_round(workspace, client)
        with workspace.database.read() as session:
            statuses = Counter(session.scalars(sa.select(Query.status).where(Query.round_id == bootstrap.id)))
            assert statuses == {QueryStatus.ANNOTATED: 7, QueryStatus.SKIPPED: 1}
            assert len(truth.current(session, split=Split.VAL)) == 2
            trained = truth.current(session, split=Split.TRAIN)
            assert len(trained) == 5
            champion = checkpoints.require_champion(session)
            second = session.scalars(sa.select(Round).where(Round.number == 2)).one()
            assert (second.acquisition, second.status) == ("entropy_sum", RoundStatus.PUSHED)
            ranked = session.execute(sa.text("SELECT rank, entropy_sum FROM uncertainty_ranking ORDER BY rank")).all()
        assert [rank for rank, _ in ranked] == list(range(1, 14))
        assert [value for _, value in ranked] == sorted((value for _, value in ranked), reverse=True)
        assert champion.model_version == "fcn_mobilenet_v2-0001"

        # A second call has nothing to do, and says so.
        reports = {report.stage: report.written for report in advance_round(workspace, client)}
        assert set(reports.values()) == {0}


def test_wrong_annotations_are_what_the_model_learns(
    make_sqlite_workspace: Callable[..., Workspace],
    with_label_studio: dict[str, Any],
    annotate: Callable[..., None],
    tmp_path: Path,
) -> None:
    workspace = make_sqlite_workspace(pool=10, selection=SELECTION | {"val_size": 0}, labelstudio=with_label_studio)
    with open_client(workspace.settings) as client:
        advance_round(workspace, client)
        annotate(workspace, client, "--wrong")
        advance_round(workspace, client, open_new=False)
    with workspace.database.read() as session:
        run = checkpoints.latest_training(session)
        assert run is not None
        learned = truth.current(session, annotation_ids=checkpoints.annotations_of(session, run.id))
    assert len(learned) >= 4
    wrong = 0
    for item in learned:
        shown = known_mask(tmp_path, item.image.uri)
        drawn = workspace.read_labeled(item)[1]
        wrong += np.array_equal(drawn, (shown + 1) % 4)
        assert not np.array_equal(drawn, shown)
    # One task is submitted unchanged; without a prediction that is an empty mask.
    assert wrong >= len(learned) - 1


def test_edits_and_deletions_in_label_studio_are_seen_and_pulling_twice_writes_nothing(
    make_sqlite_workspace: Callable[..., Workspace], with_label_studio: dict[str, Any], annotate: Callable[..., None]
) -> None:
    from activeseg.stages.pull import pull_annotations

    workspace = make_sqlite_workspace(pool=10, selection=SELECTION, labelstudio=with_label_studio)
    with open_client(workspace.settings) as client:
        advance_round(workspace, client)
        annotate(workspace, client)
        assert pull_annotations(workspace, client).written == 8
        assert pull_annotations(workspace, client).written == 0
        assert pull_annotations(workspace, client, full=True).written == 0
        with workspace.database.read() as session:
            kept = session.scalars(sa.select(Annotation).where(Annotation.status == AnnotationStatus.VALID)).all()
        gone, edited = kept[0], kept[1]
        client._http.repeatable("DELETE", f"/api/annotations/{gone.external_annotation_id}/")
        client._http.repeatable("PATCH", f"/api/annotations/{edited.external_annotation_id}/", body={"result": []})
        client.delete_tasks(open_project(workspace, client).external_project_id, [kept[2].external_task_id or 0])
        pull_annotations(workspace, client)
    with workspace.database.read() as session:
        assert session.get_one(Annotation, gone.id).status == AnnotationStatus.DELETED
        assert session.get_one(Query, gone.query_id).status == QueryStatus.PUSHED
        assert session.get_one(Annotation, kept[2].id).status == AnnotationStatus.DELETED
        newest = truth.newest_of_images(session, [edited.image_id])[-1]
        assert newest.id != edited.id
        assert newest.status == AnnotationStatus.QUARANTINED
        assert "no pixel has a class" in (newest.reason or "")


class DropsOnce(httpx.BaseTransport):
    """Lets the server commit the first import of tasks and then loses its answer."""

    def __init__(self) -> None:
        self.inner = httpx.HTTPTransport()
        self.dropped = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self.inner.handle_request(request)
        if not self.dropped and request.url.path.endswith("/import") and b"return_task_ids" in request.url.query:
            response.read()
            self.dropped += 1
            raise httpx.ReadError("connection lost", request=request)
        return response


def test_an_answer_lost_after_the_server_committed_makes_no_task_twice(
    make_workspace: Callable[..., Workspace], with_label_studio: dict[str, Any]
) -> None:
    workspace = make_workspace(pool=10, selection=SELECTION, labelstudio=with_label_studio)
    transport = DropsOnce()
    token = workspace.settings.labelstudio_token().get_secret_value()
    with LabelStudioClient(with_label_studio["url"], token, transport=transport) as client:
        advance_round(workspace, client)
        assert transport.dropped == 1
        project = open_project(workspace, client)
        with workspace.database.read() as session:
            tasks = session.scalars(sa.select(Task)).all()
            states = Counter(session.scalars(sa.select(PushJournal.state)))
        found = client.find_tasks(project.external_project_id, [task.key for task in tasks])
    assert {key: [task.external_task_id for task in tasks if task.key == key] for key in found} == found
    assert len(found) == 8
    assert states == {JournalState.SETTLED: 1}


def test_a_doubt_that_stays_leaves_the_round_for_the_next_run(
    make_sqlite_workspace: Callable[..., Workspace], with_label_studio: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_sqlite_workspace(pool=10, selection=SELECTION, labelstudio=with_label_studio)

    class NeverAnswers(DropsOnce):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.path.endswith("/import") and b"return_task_ids" in request.url.query:
                raise httpx.ReadTimeout("silent", request=request)
            return self.inner.handle_request(request)

    token = workspace.settings.labelstudio_token().get_secret_value()
    with (
        LabelStudioClient(with_label_studio["url"], token, transport=NeverAnswers()) as client,
        pytest.raises(LabelStudioDoubt),
    ):
        advance_round(workspace, client)
    with workspace.database.read() as session:
        row = session.scalars(sa.select(Round)).one()
        assert row.status == RoundStatus.SELECTED
        assert row.error
    with open_client(workspace.settings) as client:
        advance_round(workspace, client)
        project = open_project(workspace, client)
        assert len(client.task_ids(project.external_project_id)) == 8
        with workspace.database.read() as session:
            assert labeling.unsettled(session, project.id) == []
            assert session.scalars(sa.select(Round)).one().error is None


def test_tasks_of_a_rebuilt_or_foreign_project_are_never_taken_for_ours(
    make_sqlite_workspace: Callable[..., Workspace], with_label_studio: dict[str, Any], annotate: Callable[..., None]
) -> None:
    from activeseg.stages.pull import pull_annotations

    workspace = make_sqlite_workspace(pool=10, selection=SELECTION, labelstudio=with_label_studio)
    with open_client(workspace.settings) as client:
        advance_round(workspace, client)
        project = open_project(workspace, client)
        tasks = client._http.get("/api/tasks/", {"project": project.external_project_id, "fields": "all"})["tasks"]
        stranger = dict(tasks[0]["data"]) | {"sha256": "0" * 64}
        client.import_tasks(project.external_project_id, [{"data": stranger}, {"data": stranger | {"key": "unknown"}}])
        annotate(workspace, client)
        report = pull_annotations(workspace, client)
    assert report.details["foreign"] == 2
    with workspace.database.read() as session:
        assert len(session.scalars(sa.select(Annotation)).all()) == 8


def test_a_push_cut_off_between_two_requests_goes_on_in_the_same_order(
    make_sqlite_workspace: Callable[..., Workspace], with_label_studio: dict[str, Any]
) -> None:
    # So small that every task is a request of its own.
    section = with_label_studio | {"batch_mb": 0.0001}
    workspace = make_sqlite_workspace(pool=10, selection=SELECTION, labelstudio=section)

    class CutOff(DropsOnce):
        requests = 0

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.path.endswith("/import") and b"return_task_ids" in request.url.query:
                self.requests += 1
                if self.requests > 3:
                    raise httpx.ConnectError("gone", request=request)
            return self.inner.handle_request(request)

    token = workspace.settings.labelstudio_token().get_secret_value()
    with (
        LabelStudioClient(with_label_studio["url"], token, retry_delays=(), transport=CutOff()) as client,
        pytest.raises(LabelStudioError),
    ):
        advance_round(workspace, client)
    with open_client(workspace.settings) as client:
        advance_round(workspace, client)
        project = open_project(workspace, client).external_project_id
        tasks = client._http.get("/api/tasks/", {"project": project, "fields": "all"})["tasks"]
    with workspace.database.read() as session:
        shown = session.execute(
            sa.select(Task.external_task_id, Query.shown_order).join(Query, Query.id == Task.query_id)
        ).all()
    assert {task["id"]: int(task["data"]["order"]) for task in tasks} == dict(shown)
    assert sorted(order for _, order in shown) == list(range(8))


def test_a_round_that_lost_an_image_is_pushed_all_the_same(
    make_sqlite_workspace: Callable[..., Workspace],
    with_label_studio: dict[str, Any],
    annotate: Callable[..., None],
    tmp_path: Path,
) -> None:
    """The first of a round's images is withdrawn between the choice and the push."""
    from activeseg.db import lease
    from activeseg.loop import Listener, finish_round, rounds_to_push
    from activeseg.stages.rank import rank_round

    workspace = make_sqlite_workspace(pool=20, selection=SELECTION | {"refill_below": 1}, labelstudio=with_label_studio)
    with open_client(workspace.settings) as client:
        advance_round(workspace, client)
        annotate(workspace, client)
        advance_round(workspace, client, open_new=False)
        with lease.holding(workspace.database):
            (row,) = rounds_to_push(workspace, None)
            rank_round(workspace, row.id)
            with workspace.database.read() as session:
                first = session.scalars(sa.select(Query).where(Query.round_id == row.id, Query.shown_order == 0)).one()
                uri = session.get_one(Image, first.image_id).uri
            Path(uri).write_bytes(b"broken meanwhile")
            list(finish_round(workspace, row, client, Listener()))
    with workspace.database.read() as session:
        statuses = Counter(session.scalars(sa.select(Query.status).where(Query.round_id == row.id)))
        assert session.get_one(Round, row.id).status == RoundStatus.PUSHED
    assert statuses == {QueryStatus.PUSHED: 3, QueryStatus.WITHDRAWN: 1}


def test_open_tasks_show_the_new_champion_after_a_promotion(
    make_sqlite_workspace: Callable[..., Workspace], with_label_studio: dict[str, Any], annotate: Callable[..., None]
) -> None:
    selection = SELECTION | {"refill_below": 8, "val_size": 0}
    workspace = make_sqlite_workspace(pool=20, selection=selection, labelstudio=with_label_studio)
    with open_client(workspace.settings) as client:
        advance_round(workspace, client)
        project = open_project(workspace, client).external_project_id
        # Half of the first round is answered; the model they teach then draws on the other half.
        with workspace.database.read() as session:
            numbers = session.scalars(sa.select(Task.external_task_id).order_by(Task.external_task_id)).all()
        annotate(workspace, client, "--tasks", ",".join(str(number) for number in numbers[:6]))
        reports = {report.stage: report.written for report in advance_round(workspace, client, open_new=False)}
        assert reports["promote"] == 1
        assert reports["refresh"] == 2
        tasks = client._http.get("/api/tasks/", {"project": project, "fields": "all"})["tasks"]
        shown = {task["id"]: [prediction["model_version"] for prediction in task["predictions"]] for task in tasks}
        assert [shown[number] for number in numbers[6:]] == [["fcn_mobilenet_v2-0001"]] * 2
        again = {report.stage: report.written for report in advance_round(workspace, client, open_new=False)}
        assert again["refresh"] == 0


def test_answers_in_a_former_project_are_collected_and_lost_projects_block_nothing(
    make_sqlite_workspace: Callable[..., Workspace], with_label_studio: dict[str, Any], annotate: Callable[..., None]
) -> None:
    from activeseg.stages.pull import pull_annotations

    workspace = make_sqlite_workspace(pool=20, selection=SELECTION, labelstudio=with_label_studio)
    renamed = make_sqlite_workspace(
        pool=20, selection=SELECTION, labelstudio=with_label_studio | {"project": with_label_studio["project"] + " new"}
    )
    with open_client(workspace.settings) as client:
        advance_round(workspace, client)
        former = open_project(workspace, client).external_project_id
        annotate(workspace, client)
        assert pull_annotations(renamed, client).written == 8
        advance_round(renamed, client)
        client._http.repeatable("DELETE", f"/api/projects/{open_project(renamed, client).external_project_id}/")
        third = make_sqlite_workspace(
            pool=20, selection=SELECTION, labelstudio=with_label_studio | {"project": with_label_studio["project"] + " third"}
        )
        report = pull_annotations(third, client)
        assert report.details["tasks deleted"] == 4
        advance_round(third, client)
    with third.database.read() as session:
        assert former not in {row.external_project_id for row in labeling.others_with_open_tasks(session, 0)}
        assert session.scalars(sa.select(Round).order_by(Round.number)).all()[-1].status == RoundStatus.PUSHED


def test_label_studio_being_away_keeps_nothing_else_from_being_done(
    make_sqlite_workspace: Callable[..., Workspace], with_label_studio: dict[str, Any], import_labelled: Callable[..., None]
) -> None:
    workspace = make_sqlite_workspace(
        pool=6, selection=SELECTION, labelstudio=with_label_studio | {"url": "http://127.0.0.1:9"}
    )
    import_labelled(workspace)
    token = workspace.settings.labelstudio_token().get_secret_value()
    with (
        LabelStudioClient("http://127.0.0.1:9", token, retry_delays=()) as client,
        pytest.raises(LabelStudioUnreachable),
    ):
        advance_round(workspace, client)
    with workspace.database.read() as session:
        assert checkpoints.champion(session) is not None
        assert session.scalar(sa.text("SELECT count(*) FROM scores")) == 6
        row = session.scalars(sa.select(Round)).one()
    assert "127.0.0.1:9" in (row.error or "")
