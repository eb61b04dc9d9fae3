"""The first round's masks without a checkpoint: a classifier's object, outlined, shown and never taken for a label."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from activeseg.core.labels import UNLABELED
from activeseg.core.masks import changed_share
from activeseg.db import labeling, rounds
from activeseg.db.models import Annotation, AnnotationStatus, Prediction, Query, Round, Task, TaskStatus
from activeseg.errors import LabelStudioUnreachable
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.regions import result_to_mask
from activeseg.labelstudio.registration import open_client, open_project
from activeseg.loop import Listener, finish_round, rounds_to_push
from activeseg.preannotate import PreAnnotator
from activeseg.stages.pool import sync_pool
from activeseg.stages.pull import pull_annotations
from activeseg.workspace import Workspace
from tests.classifiers import annotator_of

pytestmark = [pytest.mark.labelstudio, pytest.mark.slow]

SELECTION = {"bootstrap_size": 6, "query_size": 4, "refill_below": 1}


def push(workspace: Workspace, client: LabelStudioClient, annotator: PreAnnotator | None) -> dict[str, Any]:
    """What `activeseg pool sync` and `activeseg push` do; the reports by stage."""
    sync_pool(workspace)
    rows = rounds_to_push(workspace, None)
    reports = [one for row in rows for one in finish_round(workspace, row, client, Listener(), pre_annotator=annotator)]
    return {report.stage: report for report in reports}


def tasks_on_the_server(workspace: Workspace, client: LabelStudioClient) -> dict[int, dict[str, Any]]:
    with workspace.database.read() as session:
        numbers = session.execute(sa.select(Task.query_id, Task.external_task_id).where(Task.status == TaskStatus.PUSHED)).all()
    return {query: client._http.get(f"/api/tasks/{number}/") for query, number in numbers}


@pytest.mark.parametrize("overlap", [False, True])
def test_objects_are_outlined_shown_corrected_and_never_taken_for_labels(
    make_sqlite_workspace: Callable[..., Workspace],
    with_label_studio: dict[str, Any],
    annotate: Callable[..., None],
    tmp_path: Path,
    overlap: bool,
) -> None:
    workspace = make_sqlite_workspace(pool=8, selection=SELECTION, labels={"overlap": overlap}, labelstudio=with_label_studio)
    # Above the redness of the palest images: their likeliest category is 'cloud', which is no class.
    annotator = annotator_of(workspace, 0.0145)
    with open_client(workspace.settings) as client:
        reports = push(workspace, client, annotator)
        drawn, without = reports["predict"].written, reports["predict"].details["without a mask"]
        assert (drawn >= 2, without >= 1, drawn + without) == (True, True, 6)
        assert set(reports["predict"].details["problems"].values()) == {
            "no mask: its likeliest category 'cloud' is mapped to no class"
        }
        project = open_project(workspace, client).external_project_id
        assert client._http.get(f"/api/projects/{project}/")["model_version"] == "graphcut"
        shown = {}
        for query, task in tasks_on_the_server(workspace, client).items():
            if not task["predictions"]:
                assert "Draw every class" in task["data"]["doubt"]
                continue
            (prediction,) = task["predictions"]
            assert prediction["model_version"] == "graphcut"
            assert "rough guess" in task["data"]["doubt"]
            assert task["data"]["doubt"].endswith("counts as absent.") is overlap
            assert [region["value"]["brushlabels"] for region in prediction["result"]] == [["ball"]]
            mask = result_to_mask(prediction["result"], workspace.label_set, width=64, height=48).mask
            assert (set(np.unique(mask)) == {2, UNLABELED}) is not overlap
            shown[query] = mask
        assert len(shown) == drawn
        pull_annotations(workspace, client)
        with workspace.database.read() as session:
            assert session.scalars(sa.select(Annotation)).all() == []
        if overlap:
            return
        annotate(workspace, client, "--seed", "2")
        pull_annotations(workspace, client)
    with workspace.database.read() as session:
        valid = session.scalars(sa.select(Annotation).where(Annotation.status == AnnotationStatus.VALID)).all()
        sources = set(session.scalars(sa.select(Prediction.source)))
    assert sources == {annotator.source}
    assert len(valid) == 5
    for row in valid:
        mask = workspace.read_mask(row.mask_location or "")
        before = shown.get(row.query_id or 0)
        assert row.changed_share == (None if before is None else pytest.approx(changed_share(before, mask)))


class Refuses(LabelStudioClient):
    """A client whose process is killed, as it were, before the tasks are sent."""

    def import_tasks(self, *_: object, **__: object) -> list[int]:
        raise LabelStudioUnreachable("killed here")


@pytest.mark.parametrize("again", ["the same flags", "no flags", "other flags"])
def test_a_push_that_ended_half_way_sends_what_it_drew(
    make_sqlite_workspace: Callable[..., Workspace], with_label_studio: dict[str, Any], again: str
) -> None:
    workspace = make_sqlite_workspace(pool=8, selection=SELECTION, labelstudio=with_label_studio)
    annotator = annotator_of(workspace)
    token = workspace.settings.labelstudio_token().get_secret_value()
    with Refuses(with_label_studio["url"], token) as client, pytest.raises(LabelStudioUnreachable):
        push(workspace, client, annotator)
    with workspace.database.read() as session:
        row = session.scalars(sa.select(Round)).one()
        asked = [ref.image_id for _, ref in rounds.queries(session, row.id)]
        stored = labeling.predictions_of(session, annotator.source, asked)
    assert len(stored) == 6
    # Everything is 'cloud' to the other one: its push shows nothing, whatever an earlier one had drawn.
    repeated = {"the same flags": annotator, "no flags": None, "other flags": annotator_of(workspace, 1e9)}[again]
    with open_client(workspace.settings) as client:
        report = push(workspace, client, repeated)["predict"]
        tasks = tasks_on_the_server(workspace, client)
    assert report.written == 0
    expected = 0 if again == "other flags" else 6
    assert sum(bool(task["predictions"]) for task in tasks.values()) == expected
    with workspace.database.read() as session:
        links = dict(session.execute(sa.select(Query.image_id, Task.prediction_id).join(Task)).all())
        assert len(session.scalars(sa.select(Prediction)).all()) == 6
    assert links == (dict.fromkeys(asked) if expected == 0 else {i: stored[i].id for i in asked})
