"""A promotion against a real Label Studio: what untouched tasks show, what a kill leaves, what a pull makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from activeseg.db import checkpoints
from activeseg.db.models import Annotation, Task
from activeseg.errors import ActivesegError
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.registration import open_client, open_project
from activeseg.loop import advance_round
from activeseg.stages.pull import pull_annotations
from activeseg.stages.push import TAB_TITLE
from activeseg.stages.refresh import refresh_open_tasks
from activeseg.workspace import Workspace

pytestmark = [pytest.mark.labelstudio, pytest.mark.slow]

SELECTION = {"bootstrap_size": 10, "query_size": 4, "val_size": 0, "refill_below": 8, "control_share": 0.25}


class Dying(httpx.BaseTransport):
    """Carries out a number of changes of tasks, and nothing after them."""

    def __init__(self, changes: int) -> None:
        self.inner, self.left = httpx.HTTPTransport(), changes

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "PATCH" and "/api/tasks/" in request.url.path:
            self.left -= 1
        if self.left < 0:
            raise httpx.ConnectError("killed here")
        return self.inner.handle_request(request)


def tasks_of(client: LabelStudioClient, project: int) -> dict[int, dict[str, Any]]:
    found = client.http.get("/api/tasks/", {"project": project, "fields": "all"})["tasks"]
    return {task["id"]: task for task in found}


def test_a_killed_refresh_goes_on_and_a_pull_finds_nothing_new(
    make_sqlite_workspace: Callable[..., Workspace],
    with_label_studio: dict[str, Any],
    annotate: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workspace = make_sqlite_workspace(pool=20, selection=SELECTION, labelstudio=with_label_studio)
    with open_client(workspace.settings) as client:
        advance_round(workspace, client)
        project = open_project(workspace, client).external_project_id
        with workspace.database.read() as session:
            numbers = [number or 0 for number in session.scalars(sa.select(Task.external_task_id).order_by(Task.id))]
        annotate(workspace, client, "--tasks", ",".join(str(number) for number in numbers[:6]))
        started = numbers[7]
        client.http.create(f"/api/tasks/{started}/drafts", {"result": [], "lead_time": 1.0})
        before = tasks_of(client, project)

        # The loop's own refresh is cut off after two tasks.
        token = workspace.settings.labelstudio_token().get_secret_value()
        with monkeypatch.context() as patched:
            target = "activeseg.challengers.refresh_open_tasks"
            patched.setattr(target, lambda workspace, _: cut_off(workspace, client.url, token))
            with pytest.raises(ActivesegError, match="no answer from Label Studio"):
                advance_round(workspace, client, open_new=False)
        cut = tasks_of(client, project)
        assert sum(cut[number]["data"] != before[number]["data"] for number in numbers) == 2

        report = refresh_open_tasks(workspace, client)
        assert (report.written, report.details["left alone"]) == (3, 1)
        after = tasks_of(client, project)
        with workspace.database.read() as session:
            champion = checkpoints.require_champion(session).model_version
            rows = len(session.scalars(sa.select(Annotation)).all())
        for number in set(numbers) - set(numbers[6:]) | {started}:
            assert (after[number]["data"], after[number]["predictions"]) == (
                before[number]["data"],
                before[number]["predictions"],
            )
        fresh = sorted(set(numbers[6:]) - {started})
        for number in fresh:
            data, old = after[number]["data"], before[number]["data"]
            assert {name for name in data if data[name] != old.get(name)} >= {"entropy", "doubt"}
            assert [data[name] for name in ("image", "key", "sha256")] == [old[name] for name in ("image", "key", "sha256")]
            assert client.http.client.get(data["entropy"][0], headers=signed(client)).content.startswith(b"\x89PNG")
            assert [shown["model_version"] for shown in after[number]["predictions"]] == [champion]
        open_orders = [after[number]["data"]["order"] for number in [*fresh, started]]
        assert len(set(open_orders)) == 4
        tab = client.ensure_tab(project, TAB_TITLE, ["tasks:data.order"])
        listed = client.http.get("/api/tasks/", {"view": tab, "fields": "task_only"})["tasks"]
        assert [task["id"] for task in listed if task["id"] in fresh] == sorted(fresh, key=lambda n: after[n]["data"]["order"])
        assert by_confidence(after, fresh) == sorted(fresh, key=lambda n: after[n]["data"]["order"])

        for full in (False, True):
            assert pull_annotations(workspace, client, full=full).written == 0
        with workspace.database.read() as session:
            assert len(session.scalars(sa.select(Annotation)).all()) == rows
        assert refresh_open_tasks(workspace, client).written == 0
        assert client.model_version(project) == champion
        client.set_model_version(project, "")
        assert refresh_open_tasks(workspace, client).details == {"model_version": champion}
        assert client.model_version(project) == champion
        assert json.dumps(tasks_of(client, project)[fresh[0]]["data"]) == json.dumps(after[fresh[0]]["data"])


def cut_off(workspace: Workspace, url: str, token: str) -> Any:
    with LabelStudioClient(url, token, transport=Dying(2), retry_delays=()) as dying:
        return refresh_open_tasks(workspace, dying)


def signed(client: LabelStudioClient) -> dict[str, str]:
    return {"Authorization": client.http._renew()}


def by_confidence(tasks: dict[int, dict[str, Any]], numbers: list[int]) -> list[int]:
    return sorted(numbers, key=lambda number: tasks[number]["predictions"][0]["score"])
