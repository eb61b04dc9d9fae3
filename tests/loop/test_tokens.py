"""Both kinds of token carry a whole round there and back, also one that runs out in the middle of the work."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from activeseg.config import write_secret
from activeseg.db.models import Annotation, AnnotationStatus, JournalState, PushJournal, Task
from activeseg.demo.annotator import Browser
from activeseg.errors import LabelStudioUnauthorized
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.registration import open_client, open_project
from activeseg.labelstudio.server import RunningServer
from activeseg.loop import advance_round
from activeseg.stages.pull import pull_annotations
from activeseg.workspace import Workspace

pytestmark = [pytest.mark.labelstudio, pytest.mark.slow]

SELECTION = {"bootstrap_size": 5, "query_size": 4, "refill_below": 1}


def expired(access: str, key: str) -> str:
    """An access token of this server that ran out in 2001: signed with its own key, so that it refuses it for nothing else."""
    head, body, _ = access.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))) | {"exp": 1_000_000_000}
    text = f"{head}.{_base64(json.dumps(claims).encode())}"
    return f"{text}.{_base64(hmac.new(key.encode(), text.encode(), hashlib.sha256).digest())}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class RunsOut(httpx.BaseTransport):
    """Every fourth call is sent with a token that ran out, as in a job that takes longer than a token lives."""

    def __init__(self, key: str) -> None:
        self.inner, self.key = httpx.HTTPTransport(), key
        self.calls, self.refused, self.refused_imports = 0, 0, 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind == "Bearer":
            self.calls += 1
            if self.calls % 4 == 0:
                request.headers["Authorization"] = f"Bearer {expired(token, self.key)}"
        answer = self.inner.handle_request(request)
        if answer.status_code == 401:
            self.refused += 1
            self.refused_imports += b"return_task_ids" in request.url.query
        return answer


def annotate_all(server: RunningServer, project: int, tasks: list[Task]) -> None:
    person = Browser(server.url, server.add_user("somebody@example.com")[1])
    for task in tasks:
        person.call("POST", f"/api/tasks/{task.external_task_id}/annotations/", {"result": []}, project=project)


def push_annotate_pull(workspace: Workspace, client: LabelStudioClient, server: RunningServer) -> None:
    advance_round(workspace, client)
    project = open_project(workspace, client).external_project_id
    with workspace.database.read() as session:
        tasks = list(session.scalars(sa.select(Task)))
        assert set(session.scalars(sa.select(PushJournal.state))) == {JournalState.DONE}, "a refused call is no doubt"
    annotate_all(server, project, tasks)
    pull_annotations(workspace, client)
    assert client.find_tasks(project, [task.key for task in tasks]) == {task.key: [task.external_task_id] for task in tasks}
    with workspace.database.read() as session:
        drawn = session.scalars(sa.select(Annotation).where(Annotation.status == AnnotationStatus.VALID)).all()
    assert sorted(row.external_task_id or 0 for row in drawn) == sorted(task.external_task_id or 0 for task in tasks)
    assert len(drawn) == 5


def test_an_access_token_that_runs_out_in_the_middle_is_renewed_and_nothing_is_sent_twice(
    make_sqlite_workspace: Callable[..., Workspace], with_label_studio: dict[str, Any], labelstudio_server: RunningServer
) -> None:
    # So small that every task is a request of its own.
    workspace = make_sqlite_workspace(
        pool=8, selection=SELECTION, labelstudio=with_label_studio | {"batch_mb": 1e-4, "uncovered": "sky"}
    )
    environment = (labelstudio_server.data_dir / "app" / ".env").read_text(encoding="utf-8")
    transport = RunsOut(environment.strip().partition("SECRET_KEY=")[2])
    token = workspace.settings.labelstudio_token().get_secret_value()
    with LabelStudioClient(labelstudio_server.url, token, transport=transport) as client:
        assert client.token_kind == "personal"
        push_annotate_pull(workspace, client, labelstudio_server)
    assert transport.refused >= 4
    assert transport.refused_imports >= 1, "one that makes tasks must be among them"


@pytest.fixture
def legacy_token(labelstudio_server: RunningServer) -> Iterator[str]:
    """The owner's legacy token, while the organisation allows such."""
    owner = Browser(labelstudio_server.url, labelstudio_server.token())
    owner.call("POST", "/api/jwt/settings", {"api_tokens_enabled": True, "legacy_api_tokens_enabled": True})
    yield owner.call("GET", "/api/current-user/token")["token"]
    owner.call("POST", "/api/jwt/settings", {"api_tokens_enabled": True, "legacy_api_tokens_enabled": False})


def test_a_legacy_token_carries_a_round_there_and_back_and_is_refused_once_it_is_turned_off(
    make_sqlite_workspace: Callable[..., Workspace],
    with_label_studio: dict[str, Any],
    labelstudio_server: RunningServer,
    legacy_token: str,
    tmp_path: Path,
) -> None:
    write_secret(tmp_path / "legacy", legacy_token)
    section = with_label_studio | {"token_file": str(tmp_path / "legacy")}
    workspace = make_sqlite_workspace(pool=8, selection=SELECTION, labelstudio=section | {"uncovered": "sky"})
    with open_client(workspace.settings) as client:
        assert client.token_kind == "legacy"
        push_annotate_pull(workspace, client, labelstudio_server)
        owner = Browser(labelstudio_server.url, labelstudio_server.token())
        owner.call("POST", "/api/jwt/settings", {"api_tokens_enabled": True, "legacy_api_tokens_enabled": False})
        with pytest.raises(LabelStudioUnauthorized, match="legacy tokens are off by default") as caught:
            pull_annotations(workspace, client)
    assert legacy_token not in str(caught.value)
