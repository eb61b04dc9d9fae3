"""`activeseg doctor`: each thing that is wrong is told once, by the check it belongs to."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from activeseg.config import write_secret
from activeseg.core.labels import LabelSet
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.server import RunningServer
from activeseg.labelstudio.webhooks import ensure_webhook
from activeseg.workspace import Workspace
from tests.cli.commands import CommandLine

SECRET = "a-secret-only-for-these-tests"
# Nobody listens there, and it is no address of this machine.
PUBLIC = "http://93.184.216.34:8090"
_titles = count(1)


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CommandLine]:
    """The program with a Label Studio nobody runs, unless told otherwise. keys: of [labelstudio]."""
    monkeypatch.setenv("ACTIVESEG_LABELSTUDIO__WEBHOOK_SECRET", SECRET)

    def make(**keys: str) -> CommandLine:
        write_secret(tmp_path / "token", keys.pop("token", "legacy-token"))
        section = {"url": "http://127.0.0.1:9", "token_file": "token", "webhook_url": PUBLIC} | keys
        lines = "\n".join(f'{key} = "{value}"' for key, value in section.items() if value)
        config = tmp_path / "activeseg.toml"
        config.write_text(f'[pool]\nimages = "pool"\n[labelstudio]\n{lines}\n', encoding="utf-8")
        return CommandLine(config)

    return make


def told(doctor: CommandLine) -> dict[str, tuple[str, str]]:
    """State and message of each check."""
    return {item["check"]: (item["state"], item["message"]) for item in json.loads(doctor("doctor", "--json").out)}


def test_without_a_schema_the_webhooks_line_points_at_the_database(configured: Any) -> None:
    found = told(configured())
    assert found["database"][0] == "problem"
    assert found["webhook"] == ("warning", "not checked: see database")


@pytest.mark.slow
def test_a_first_query_that_nothing_can_spread_is_a_problem(
    configured: Any, make_sqlite_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_sqlite_workspace(pool=1)
    assert told(configured())["champion"][0] == "warning"
    monkeypatch.setenv("ACTIVESEG_SELECTION__BOOTSTRAP", "kcenter")
    state, message = told(configured())["champion"]
    assert state == "problem"
    assert "activeseg weights import" in message


@pytest.mark.slow
def test_a_label_studio_that_is_away_is_one_problem(configured: Any, make_sqlite_workspace: Callable[..., Workspace]) -> None:
    make_sqlite_workspace(pool=1)
    found = told(configured())
    assert found["label studio"][0] == "problem"
    assert "no answer" in found["label studio"][1]
    assert found["webhook"] == ("warning", "not checked: see label studio")
    assert [check for check, (state, _) in found.items() if state == "problem"] == ["label studio"]


def test_a_webhook_secret_that_keeps_nobody_out_is_the_webhooks_own_problem(
    configured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTIVESEG_LABELSTUDIO__WEBHOOK_SECRET", "brief")
    state, message = told(configured())["webhook"]
    assert (state, "at least 16" in message, "brief" in message) == ("problem", True, False)


@pytest.mark.parametrize("uncovered", ["grass", "Sky"])
def test_a_class_for_uncovered_pixels_that_does_not_exist_is_told_before_a_pull_needs_it(
    configured: Any, make_sqlite_workspace: Callable[..., Workspace], uncovered: str
) -> None:
    make_sqlite_workspace(pool=1)
    state, message = told(configured(uncovered=uncovered, webhook_url=""))["label studio"]
    assert state == "problem"
    assert message.startswith("[labelstudio] uncovered")


@pytest.mark.labelstudio
@pytest.mark.slow
def test_a_project_of_other_classes_is_one_problem(
    configured: Any, make_sqlite_workspace: Callable[..., Workspace], labelstudio_server: RunningServer
) -> None:
    make_sqlite_workspace(pool=1)
    title = f"doctor {next(_titles)}"
    with LabelStudioClient(labelstudio_server.url, labelstudio_server.token()) as client:
        client.ensure_project(title, LabelSet(("cat", "dog"), ((1, 2, 3), (4, 5, 6)), None), "brush")
    found = told(configured(url=labelstudio_server.url, token=labelstudio_server.token(), project=title))
    assert "cat" in found["label studio"][1]
    assert found["webhook"] == ("warning", "not checked: see label studio")
    assert [check for check, (state, _) in found.items() if state == "problem"] == ["label studio"]


@pytest.mark.labelstudio
@pytest.mark.slow
def test_of_a_version_that_is_not_tested_it_says_what_it_cannot_see(
    configured: Any,
    make_sqlite_workspace: Callable[..., Workspace],
    labelstudio_server: RunningServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workspace = make_sqlite_workspace(pool=1)
    title = f"doctor {next(_titles)}"
    with LabelStudioClient(labelstudio_server.url, labelstudio_server.token()) as client:
        project = client.ensure_project(title, workspace.label_set, "brush")
        ensure_webhook(client.http, project.id, PUBLIC, SecretStr(SECRET))
    doctor = configured(url=labelstudio_server.url, token=labelstudio_server.token(), project=title)
    state, message = told(doctor)["webhook"]
    assert (state, "can be asked" in message) == ("ok", False), message
    monkeypatch.setattr("activeseg.labelstudio.webhooks.SERVER_VERSION", "1.0.0")
    state, message = told(doctor)["webhook"]
    assert state == "ok"
    assert message.endswith("only Label Studio 1.23.2 can be asked whether it calls this address")
