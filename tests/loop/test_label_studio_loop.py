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
from PIL import Image

from activeseg.db import checkpoints, labeling, truth
from activeseg.db.models import (
    Annotation,
    AnnotationStatus,
    JournalState,
    PushJournal,
    Query,
    QueryStatus,
    Round,
    RoundStatus,
    Split,
    Task,
)
from activeseg.errors import LabelStudioDoubt
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.registration import open_client, open_project
from activeseg.loop import advance_round
from activeseg.workspace import Workspace

pytestmark = [pytest.mark.labelstudio, pytest.mark.slow]

SELECTION = {"bootstrap_size": 8, "query_size": 4, "val_size": 2, "refill_below": 1, "control_share": 0.25}


def known_mask(folder: Path, uri: str) -> np.ndarray:
    return np.asarray(Image.open(folder / "truth" / Path(uri).name))


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
        newest = truth.newest_versions(session, edited.query_id or 0)[-1]
        assert newest.id != edited.id
        assert (workspace.read_mask(newest.mask_location or "") == 255).all()


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
