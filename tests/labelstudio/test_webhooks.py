"""The project's webhook: made, found, mended; and the whole way of a hint from a person's submit to the pull."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from activeseg.config import write_secret
from activeseg.core.labels import LabelSet
from activeseg.db import requests
from activeseg.db.models import Annotation, RequestRow
from activeseg.demo.annotator import Browser
from activeseg.errors import LabelStudioDoubt, LabelStudioError, LabelStudioUnauthorized, LabelStudioUnreachable
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.http import Http
from activeseg.labelstudio.install import SERVER_VERSION
from activeseg.labelstudio.regions import mask_to_result
from activeseg.labelstudio.server import RunningServer
from activeseg.labelstudio.webhooks import ACTIONS, can_be_asked, ensure_webhook, find_webhook, refusal
from activeseg.loop import advance_round
from activeseg.scheduler import Scheduler, loop_jobs
from activeseg.workspace import Workspace
from tests.cli.commands import CommandLine

SECRET = SecretStr("a-secret-only-for-these-tests")
URL = "http://127.0.0.1:9"
_titles = count(1)


def hook(**changes: Any) -> dict[str, Any]:
    """A hook as the server lists it."""
    made = {
        "id": 7,
        "url": f"{URL}/hooks/label-studio",
        "is_active": True,
        "send_payload": False,
        "send_for_all_actions": False,
        "headers": {"X-Activeseg-Secret": SECRET.get_secret_value()},
        "actions": list(ACTIONS),
    }
    return made | changes


@contextmanager
def staged(
    listed: list[dict[str, Any]], *answers: Any, version: str = SERVER_VERSION, delays: tuple[float, ...] = ()
) -> Iterator[Any]:
    """A server that lists these hooks; what else it was sent is collected. Answers: to creating and changing calls."""
    sent: list[tuple[str, str, Any]] = []
    queue = list(answers)

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/version":
            return httpx.Response(200, json={"release": version})
        if request.method == "GET":
            return httpx.Response(200, json=listed)
        body = json.loads(request.content or b"{}")
        sent.append((request.method, request.url.path, body))
        answer = queue.pop(0) if queue else httpx.Response(200, json=hook() | body)
        if isinstance(answer, Exception):
            raise answer
        return answer

    http = Http("http://ls", "legacy", retry_delays=delays, transport=httpx.MockTransport(handle))
    yield http, sent
    http.close()


def test_without_a_hook_one_is_made_for_annotations_only_and_without_payload() -> None:
    with staged([hook(url="http://elsewhere/x", headers={})]) as (http, sent):
        ensure_webhook(http, 3, URL + "/", SECRET)
    [(method, path, body)] = sent
    assert (method, path, body["project"], body["url"]) == ("POST", "/api/webhooks/", 3, f"{URL}/hooks/label-studio")
    assert (body["send_payload"], body["send_for_all_actions"], body["is_active"]) == (False, False, True)
    assert body["headers"] == {"X-Activeseg-Secret": SECRET.get_secret_value()}
    assert body["actions"]
    assert all(action.startswith("ANNOTATION") for action in body["actions"])


def test_a_hook_that_is_right_is_left_alone() -> None:
    with staged([hook()]) as (http, sent):
        assert ensure_webhook(http, 3, URL, SECRET).problem(URL, SECRET) is None
    assert sent == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"is_active": False}, "is disabled"),
        ({"headers": {}}, "sends no X-Activeseg-Secret"),
        ({"headers": {"x-activeseg-secret": "another"}}, "sends another secret than ours"),
        ({"url": "http://old:8090/hooks/label-studio"}, "goes to http://old:8090/hooks/label-studio, not to"),
        ({"actions": ["ANNOTATION_CREATED"]}, "does not tell ANNOTATIONS_CREATED, ANNOTATIONS_DELETED, ANNOTATION_UPDATED"),
        ({"send_payload": True}, None),
        ({"send_for_all_actions": True, "actions": []}, None),
    ],
)
def test_a_hook_that_is_not_right_is_named_and_mended_in_one_call(changes: dict[str, Any], problem: str | None) -> None:
    with staged([hook(**changes)]) as (http, sent):
        found = find_webhook(http, 3, URL)
        assert found is not None
        told = found.problem(URL, SECRET)
        assert told is None if problem is None else told is not None and told.startswith(problem)
        ensure_webhook(http, 3, URL, SECRET)
    [(method, path, body)] = sent
    assert (method, path) == ("PATCH", "/api/webhooks/7/")
    # A PATCH without the actions would empty them.
    assert set(body["actions"]) == set(ACTIONS)
    assert "project" not in body


def test_the_hook_at_our_address_is_taken_before_an_older_one_elsewhere() -> None:
    with staged([hook(id=1, url="http://old/hooks/label-studio"), hook(id=5), hook(id=9)]) as (http, _):
        found = find_webhook(http, 3, URL)
    assert found is not None
    assert found.id == 5


def test_a_secret_is_in_no_text_about_the_hook() -> None:
    with staged([hook(headers={"X-Activeseg-Secret": "another-secret"})]) as (http, _):
        found = find_webhook(http, 3, URL)
    assert found is not None
    assert "another-secret" not in repr(found) + str(found.problem(URL, SECRET))
    assert SECRET.get_secret_value() not in str(found.problem(URL, SECRET))


@pytest.mark.parametrize("answer", [httpx.ReadTimeout("gone"), httpx.Response(504)])
def test_a_lost_answer_to_making_it_is_a_doubt_and_it_is_not_made_twice(answer: Any) -> None:
    with staged([], answer) as (http, sent), pytest.raises(LabelStudioDoubt):
        ensure_webhook(http, 3, URL, SECRET)
    assert len(sent) == 1


@pytest.mark.parametrize("listed", [[], [hook(is_active=False)]], ids=["making", "mending"])
def test_what_the_server_says_of_the_address_is_told_with_the_remedy_by_the_one_call(listed: list[dict[str, Any]]) -> None:
    for status, said, remedy in [
        (403, "URL resolves to a reserved network address (block: 127.0.0.0/8)", "SSRF_PROTECTION_ENABLED=false, or unset"),
        (500, "Can't resolve hostname x", "whose host the server can look up"),
        (400, "Enter a valid URL.", "whose host the server can look up"),
    ]:
        answer = httpx.Response(status, json={"detail": said})
        with staged(listed, answer) as (http, sent), pytest.raises(LabelStudioError, match=remedy):
            ensure_webhook(http, 3, URL, SECRET)
        assert len(sent) == 1


def test_another_reason_not_to_make_it_is_told_as_the_server_says_it() -> None:
    answer = httpx.Response(404, json={"detail": "Project not found."})
    with staged([], answer) as (http, _), pytest.raises(LabelStudioError, match="HTTP 404: Project not found"):
        ensure_webhook(http, 3, URL, SECRET)


@pytest.mark.parametrize("answer", [httpx.ReadTimeout("gone"), httpx.Response(500), httpx.Response(429)])
def test_the_question_whether_an_address_is_refused_is_sent_once(answer: Any) -> None:
    again = httpx.Response(201, json=hook(id=9))
    with staged([], answer, again, delays=(0.0, 0.0)) as (http, sent), suppress(LabelStudioDoubt):
        assert refusal(http, URL) is None
    assert len(sent) == 1


def test_a_server_that_makes_a_hook_of_the_question_has_it_deleted() -> None:
    with staged([], httpx.Response(201, json=hook(id=31)), httpx.Response(204)) as (http, sent):
        assert refusal(http, URL) is None
    assert [(method, path) for method, path, _ in sent] == [("POST", "/api/webhooks/"), ("DELETE", "/api/webhooks/31/")]


@pytest.mark.parametrize("version", ["1.24.0", "1.23.20", "", "2.0.0.dev1"])
def test_a_server_of_another_version_is_not_asked_whether_it_refuses(version: str) -> None:
    with staged([hook()], version=version) as (http, sent):
        assert not can_be_asked(http)
        assert refusal(http, URL) is None
        ensure_webhook(http, 3, URL, SECRET)
    assert sent == []


def test_a_refused_token_and_a_silent_server_are_no_refused_address() -> None:
    for call in (lambda http: refusal(http, URL), lambda http: ensure_webhook(http, 3, URL, SECRET)):
        answer = httpx.Response(401, json={"detail": "bad token"})
        with staged([], answer) as (http, _), pytest.raises(LabelStudioUnauthorized):
            call(http)
    silent = Http("http://127.0.0.1:9", "legacy", retry_delays=())
    with pytest.raises(LabelStudioUnreachable):
        refusal(silent, URL)
    silent.close()


# The real server


@pytest.mark.labelstudio
@pytest.mark.parametrize("address", ["http://127.0.0.1:8090", "http://localhost:8090", "http://192.168.7.7:8090"])
def test_by_default_the_server_calls_no_private_address_and_the_remedy_is_told(
    client: LabelStudioClient, labels: LabelSet, address: str
) -> None:
    project = client.ensure_project(f"hooks {next(_titles)}", labels, "brush").id
    with pytest.raises(LabelStudioError, match="SSRF_PROTECTION_ENABLED=false, or unset"):
        ensure_webhook(client.http, project, address, SECRET)
    assert client.http.get("/api/webhooks/", {"project": project}) == []


@pytest.mark.labelstudio
def test_an_address_the_server_cannot_look_up_is_told_before_anything_is_made(
    client: LabelStudioClient, labels: LabelSet
) -> None:
    project = client.ensure_project(f"hooks {next(_titles)}", labels, "brush").id
    with pytest.raises(LabelStudioError, match="webhook_url to one whose host the server can look up"):
        ensure_webhook(client.http, project, "http://no-such-host.invalid:8090", SECRET)
    assert client.http.get("/api/webhooks/", {"project": project}) == []


@pytest.mark.labelstudio
def test_looking_whether_an_address_is_refused_makes_nothing(client: LabelStudioClient) -> None:
    assert can_be_asked(client.http)
    before = client.http.get("/api/webhooks/")
    assert refusal(client.http, "http://93.184.216.34:8090") is None
    assert refusal(client.http, "http://127.0.0.1:8090") is not None
    assert client.http.get("/api/webhooks/") == before


@pytest.fixture
def called(calling_labelstudio: RunningServer, make_sqlite_workspace: Callable[..., Workspace], tmp_path: Path) -> Any:
    """A workspace with six pushed tasks on a server that may call us, and `activeseg serve` beside it."""
    write_secret(tmp_path / "token", calling_labelstudio.token())
    section = {"url": calling_labelstudio.url, "token_file": "token", "project": f"called {next(_titles)}"}
    lines = [f'{key} = "{value}"' for key, value in section.items()]
    config = tmp_path / "activeseg.toml"
    text = '[pool]\nimages = "pool"\n[labelstudio]\n' + "\n".join(lines)
    config.write_text(text + '\nwebhook_url = "http://127.0.0.1:1"\n', encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ACTIVESEG_")}
    program = [sys.executable, "-c", "from activeseg.cli import main; main()", "--config", str(config)]
    with subprocess.Popen(
        [*program, "serve", "--port", "0", "--json"], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            said = ""
            while not said.endswith("}\n"):
                line = process.stdout.readline()
                assert line
                said += line
            url = json.loads(said)["url"]
            config.write_text(text + f'\nwebhook_url = "{url}"\n', encoding="utf-8")
            sections = {"bootstrap_size": 6, "query_size": 4, "val_size": 2}
            yield make_sqlite_workspace(pool=6, selection=sections, labelstudio=section | {"webhook_url": url}), config
        finally:
            process.kill()


@pytest.mark.labelstudio
@pytest.mark.slow
def test_a_person_submits_and_the_scheduler_pulls_without_being_asked(called: Any, calling_labelstudio: RunningServer) -> None:
    workspace, config = called
    url, secret = workspace.settings.labelstudio.webhook_url, workspace.settings.webhook_secret()
    doctor = CommandLine(config)
    with LabelStudioClient(calling_labelstudio.url, calling_labelstudio.token()) as client:
        advance_round(workspace, client)
        project = client.ensure_project(workspace.settings.labelstudio.project, workspace.label_set, "brush").id
        assert "has no webhook" in told(doctor)
        made = ensure_webhook(client.http, project, url, secret)
        assert "no hint came so far" in told(doctor)
        task = client.task_ids(project)[0]
        person = Browser(calling_labelstudio.url, calling_labelstudio.add_user("person@example.com")[1])
        mask = np.ones((48, 64), np.uint8)
        person.call(
            "POST",
            f"/api/tasks/{task}/annotations/",
            {"result": mask_to_result(mask, workspace.label_set, kind="brush"), "lead_time": 9.0},
        )
        [request] = wait_for_requests(workspace)
        assert (request.kind, request.taken_at) == ("pull", None)

        scheduler = Scheduler(workspace.database, loop_jobs(workspace.settings))
        result = scheduler.serve_request()
        assert result is not None
        assert (result.job, result.outcome, result.message.split(",")[0]) == ("pull", "done", "pull 1")
        with workspace.database.read() as session:
            [row] = session.scalars(sa.select(Annotation))
        assert np.array_equal(workspace.read_mask(row.mask_location), mask)
        assert scheduler.serve_request() is None

        assert "the last hint came" in told(doctor)
        client.http.repeatable("PATCH", f"/api/webhooks/{made.id}/", body={"is_active": False, "actions": list(ACTIONS)})
        assert "is disabled" in told(doctor)
        ensure_webhook(client.http, project, url, SecretStr("another-secret-of-this-test"))
        assert "sends another secret" in told(doctor)
        ensure_webhook(client.http, project, "http://127.0.0.1:1", secret)
        assert "goes to http://127.0.0.1:1/hooks" in told(doctor)


def told(doctor: CommandLine) -> str:
    """The doctor's line about the webhook; other checks may find what they like."""
    [line] = [line for line in doctor("doctor").out.splitlines() if " webhook " in line]
    return line


def wait_for_requests(workspace: Workspace) -> list[RequestRow]:
    """The server answered the person, then our receiver wrote the row: a moment may pass."""
    for _ in range(600):
        with workspace.database.read() as session:
            found = list(session.scalars(sa.select(RequestRow).where(RequestRow.kind == requests.PULL)))
        if found:
            return found
        time.sleep(0.1)
    return []
