"""`activeseg ls connect` against a real server: it finds what is wrong, and leaves nothing behind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from activeseg.config import write_secret
from activeseg.core.labels import LabelSet
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.connection import TEST_KEY, Check, check_connection
from activeseg.labelstudio.registration import open_client, open_project
from activeseg.labelstudio.server import RunningServer
from activeseg.stages.pull import pull_annotations
from activeseg.workspace import Workspace
from tests.cli.commands import CommandLine

pytestmark = [pytest.mark.labelstudio, pytest.mark.slow]

_titles = count(1)


@pytest.fixture
def section(labelstudio_server: RunningServer, tmp_path: Path) -> dict[str, Any]:
    write_secret(tmp_path / "token", labelstudio_server.token())
    return {"url": labelstudio_server.url, "token_file": str(tmp_path / "token"), "project": f"connect {next(_titles)}"}


@pytest.fixture
def connect(
    make_sqlite_workspace: Callable[..., Workspace], section: dict[str, Any], tmp_path: Path
) -> Callable[..., tuple[Workspace, dict[str, Check]]]:
    """Check the connection of a workspace with these classes, by way of a transport where one is given."""

    def run(classes: str | None = None, *, transport: Any = None, **labels: Any) -> tuple[Workspace, dict[str, Check]]:
        extra = {name: labels.pop(name) for name in ("mask_kind", "images", "local_root", "link", "url") if name in labels}
        tables: dict[str, Any] = {"labels": labels} if labels else {}
        workspace = make_sqlite_workspace(pool=2, labelstudio=section | extra, **tables)
        if classes is not None:
            (tmp_path / "classes.txt").write_text(classes, encoding="utf-8")
        token = workspace.settings.labelstudio_token().get_secret_value()
        with LabelStudioClient(workspace.settings.labelstudio.url or "", token, transport=transport) as client:
            return workspace, {check.name: check for check in check_connection(workspace, client)}

    return run


def nothing_left(workspace: Workspace) -> None:
    with open_client(workspace.settings) as client:
        project = open_project(workspace, client).external_project_id
        assert client.task_ids(project) == []
        assert client.http.get(f"/api/projects/{project}/file-uploads", {"all": "true"}) == []
        assert client.http.get(f"/api/projects/{project}/")["model_version"] == ""


SIXTY = "".join(f"class {number} – 道 & <{number}>\n" for number in range(60))


@pytest.mark.parametrize("kind", ["brush", "bitmask"])
@pytest.mark.parametrize(("classes", "overlap"), [(None, False), (SIXTY, False), ("person\nbag\n", True)])
def test_every_class_goes_there_and_back_and_nothing_is_left_behind(
    connect: Callable[..., Any], kind: str, classes: str | None, overlap: bool
) -> None:
    workspace, checks = connect(classes, mask_kind=kind, file="classes.txt", overlap=overlap)
    assert {name: check.ok for name, check in checks.items()} == dict.fromkeys(
        ("server", "token", "project", "image", "mask"), True
    ), checks
    assert f"{len(workspace.label_set.names)} classes" in checks["mask"].message
    nothing_left(workspace)


def test_other_classes_are_told_one_by_one(connect: Callable[..., Any]) -> None:
    workspace, checks = connect("sky\nroad\ncar\n", file="classes.txt")
    assert "was made, with 3 classes" in checks["project"].message
    assert re.search(rf": {workspace.settings.labelstudio.url}/projects/\d+/data$", checks["project"].message)
    _, again = connect("sky\nroad\ncar\n", file="classes.txt")
    assert again["project"].message == checks["project"].message.replace("was made, with", "was there, with these")
    for classes, difference in [
        ("sky\nroad\nbus\n", "(missing there: bus; only there: car)"),
        ("road\nsky\ncar\n", "(the same classes in another order)"),
    ]:
        _, checks = connect(classes, file="classes.txt")
        assert list(checks) == ["server", "token", "project"]
        assert not checks["project"].ok
        assert difference in checks["project"].message


class Tampers(httpx.BaseTransport):
    """Changes what passes: a proxy that compresses pictures, a server that keeps masks in its own way."""

    def __init__(self, change: Callable[[httpx.Request, bytes], bytes]) -> None:
        self.inner, self.change = httpx.HTTPTransport(), change

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self.inner.handle_request(request)
        content = self.change(request, answer.read())
        return httpx.Response(answer.status_code, content=content, headers={"Content-Type": answer.headers["Content-Type"]})


def test_an_image_that_comes_back_changed_is_a_problem_and_no_mask_is_tried(connect: Callable[..., Any]) -> None:
    def shrink(request: httpx.Request, content: bytes) -> bytes:
        return content[:-1] if request.url.path.startswith("/data/upload") else content

    workspace, checks = connect(transport=Tampers(shrink))
    assert not checks["image"].ok
    assert "does a proxy before it change images?" in checks["image"].message
    assert "mask" not in checks
    nothing_left(workspace)


@pytest.mark.parametrize(("path", "what"), [("/api/tasks/", "as a prediction"), ("/export", "as an annotation")])
def test_a_mask_that_comes_back_changed_is_a_problem_and_the_test_task_goes_all_the_same(
    connect: Callable[..., Any], path: str, what: str
) -> None:
    def lose_a_class(request: httpx.Request, content: bytes) -> bytes:
        if request.method == "GET" and path in request.url.path and b'"rle"' in content:
            data = json.loads(content)
            items = [data] if isinstance(data, dict) else data
            for item in [drawn for task in items for drawn in (*task["predictions"], *task["annotations"])]:
                if isinstance(item, dict):
                    item["result"] = item["result"][1:]
            return json.dumps(data).encode()
        return content

    workspace, checks = connect(transport=Tampers(lose_a_class))
    assert not checks["mask"].ok
    assert what in checks["mask"].message
    nothing_left(workspace)


def test_a_test_task_left_by_a_killed_run_is_nobodys_and_goes_with_the_next(connect: Callable[..., Any]) -> None:
    workspace, _ = connect()
    with open_client(workspace.settings) as client:
        project = open_project(workspace, client).external_project_id
        data = {"image": "x", "entropy": ["x"], "doubt": "", "key": TEST_KEY, "sha256": "0" * 64}
        (left,) = client.import_tasks(project, [{"data": data}])
        client.http.create(f"/api/tasks/{left}/annotations/", {"result": []}, {"project": project})
        assert "foreign" not in pull_annotations(workspace, client).details
    connect()
    nothing_left(workspace)


def test_files_the_server_cannot_read_are_a_problem_with_the_remedy(connect: Callable[..., Any], tmp_path: Path) -> None:
    _, checks = connect(images="local-files", local_root=tmp_path)
    assert checks["mask"].ok
    assert not checks["images"].ok
    assert "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true" in checks["images"].message


def test_no_server_and_a_refused_token_end_it_at_once(connect: Callable[..., Any], tmp_path: Path) -> None:
    _, checks = connect(url="http://127.0.0.1:9")
    assert [(check.name, check.ok) for check in checks.values()] == [("server", False)]
    write_secret(tmp_path / "token", "0" * 40)
    _, checks = connect()
    assert [(check.name, check.ok) for check in checks.values()] == [("token", False)]
    assert "Personal Access Token" in checks["token"].message


def test_the_command_says_a_line_for_each_check_and_ends_with_one_where_one_fails(
    section: dict[str, Any], tmp_path: Path, migrated_sqlite: Path
) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "classes.txt").write_text("sky\nroad\n", encoding="utf-8")
    (tmp_path / "activeseg.db").write_bytes(migrated_sqlite.read_bytes())
    config = tmp_path / "activeseg.toml"
    text = f'[labels]\nfile = "classes.txt"\n[pool]\nimages = "pool"\n[labelstudio]\nurl = "{section["url"]}"\n'
    config.write_text(text + f'token_file = "{section["token_file"]}"\nproject = "{section["project"]}"\n', encoding="utf-8")
    answer = CommandLine()("--config", str(config), "ls", "connect")
    assert (answer.code, [line.split()[:2] for line in answer.out.splitlines()]) == (
        0,
        [["ok", name] for name in ("server", "token", "project", "image", "mask")],
    )
    assert CommandLine()("--config", str(config), "reconcile").code == 0
    (tmp_path / "classes.txt").write_text("sky\ncar\n", encoding="utf-8")
    answer = CommandLine()("--config", str(config), "ls", "connect", "--json")
    assert (answer.code, [check["ok"] for check in json.loads(answer.out)]) == (1, [True, True, False])


def test_the_round_trip_covers_every_class_of_a_large_set() -> None:
    from activeseg.labelstudio.connection import sample_mask

    many = LabelSet(tuple(f"c{n}" for n in range(200)), ((0, 0, 0),) * 200)
    assert set(range(200)) < set(sample_mask(many).ravel().tolist())
