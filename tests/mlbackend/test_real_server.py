"""A real Label Studio connects to `activeseg ml-backend`: what annotators get, and what connecting changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from activeseg.config import write_secret
from activeseg.errors import LabelStudioError
from activeseg.imaging.thumbnails import encode_png
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.regions import result_to_mask
from activeseg.labelstudio.server import RunningServer
from activeseg.loop import advance_round
from activeseg.mlbackend.champion import Champion
from activeseg.workspace import Workspace
from tests.factories import MODEL, draw_ball
from tests.mlbackend.conftest import promote

pytestmark = [pytest.mark.labelstudio, pytest.mark.slow]
TITLE = "activeseg live"
_titles = count(1)


@pytest.fixture
def section(calling_labelstudio: RunningServer, tmp_path: Path) -> dict[str, Any]:
    write_secret(tmp_path / "token", calling_labelstudio.token())
    return {"url": calling_labelstudio.url, "token_file": "token", "project": f"live {next(_titles)}", "min_region_pixels": 0}


@contextmanager
def running(folder: Path, section: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The program as a user starts it; yields what it says of itself."""
    tables = {"labelstudio": section, "model": MODEL, "pool": {"images": "pool"}}
    lines = [
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
        for name, table in tables.items()
    ]
    (folder / "activeseg.toml").write_text("".join(lines), encoding="utf-8")
    program = [sys.executable, "-c", "from activeseg.cli import main; main()", "--config", str(folder / "activeseg.toml")]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ACTIVESEG_")}
    with subprocess.Popen(
        [*program, "ml-backend", "--port", "0", "--json"], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            said = ""
            while not said.endswith("}\n"):
                line = process.stdout.readline()
                assert line
                said += line
            yield json.loads(said)
        finally:
            process.kill()


class Project:
    """A project as its owner handles it through the API."""

    def __init__(self, client: LabelStudioClient, number: int) -> None:
        self.client, self.number = client, number

    def connect(self, said: dict[str, Any], password: str) -> dict[str, Any]:
        body = {"project": self.number, "url": said["url"], "title": TITLE, "auth_method": "BASIC_AUTH"}
        login = {"basic_auth_user": said["user"], "basic_auth_pass": password}
        made: dict[str, Any] = self.client.http.create("/api/ml/", body | login)
        return made

    def by_hand(self, *pictures: np.ndarray, addresses: tuple[str, ...] = ()) -> list[int]:
        """Tasks that somebody imports without us."""
        urls = self.client.upload_files(self.number, [("x.png", encode_png(picture)) for picture in pictures])
        return self.client.import_tasks(self.number, [{"data": {"image": url}} for url in [*urls, *addresses]])

    def opened(self, task: int) -> list[dict[str, Any]]:
        """The predictions of a task that is opened."""
        found: list[dict[str, Any]] = self.client.http.get(f"/api/tasks/{task}/")["predictions"]
        return found

    @property
    def shown_version(self) -> str:
        return str(self.client.http.get(f"/api/projects/{self.number}/")["model_version"] or "")


def seen(workspace: Workspace, picture: np.ndarray) -> np.ndarray:
    """What the champion sees, without a server between."""
    champion = Champion(workspace)
    segmenter = champion.load()
    assert segmenter is not None
    return champion.mask(segmenter, picture, "test")


def test_a_task_opened_by_hand_gets_a_mask_and_the_next_push_sets_the_shown_version_right(
    make_sqlite_workspace: Callable[..., Workspace], section: dict[str, Any], tmp_path: Path
) -> None:
    selection = {"bootstrap_size": 4, "query_size": 4, "val_size": 1, "control_share": 0.0}
    workspace = make_sqlite_workspace(pool=6, labelstudio=section, selection=selection)
    with (
        running(tmp_path, section) as said,
        LabelStudioClient(section["url"], (tmp_path / "token").read_text().strip()) as client,
    ):
        project = Project(client, client.ensure_project(section["project"], workspace.label_set, "brush").id)
        password = Path(said["password"]).read_text(encoding="utf-8").strip()
        assert (said["user"], said["model_version"]) == ("label-studio", None)

        # Connecting: only with the password, and with side effects on a project that shows no version yet.
        with pytest.raises(LabelStudioError, match="authentication parameters"):
            project.connect(said, "not the password")
        made = project.connect(said, password)
        assert (made["readable_state"], made["model_version"]) == ("Connected", "")
        assert project.shown_version == TITLE
        [hook] = client.http.get("/api/webhooks/", {"project": project.number})
        assert (hook["url"], hook["headers"], hook["send_payload"]) == (f"{said['url']}/webhook", {}, True)

        # Opened by hand: nothing without a champion, its mask as soon as there is one.
        pictures = [draw_ball(seed, width=61, height=47)[0] for seed in (501, 502)]
        first, second, foreign = project.by_hand(*pictures, addresses=("http://127.0.0.1:1/x.png",))
        assert project.opened(first) == []
        version = promote(workspace, "m-0001", seed=1)
        [prediction] = project.opened(first)
        assert (prediction["model_version"], prediction["score"]) == (version, 0.5)
        drawn = result_to_mask(prediction["result"], workspace.label_set, width=61, height=47)
        assert np.array_equal(drawn.mask, seen(workspace, pictures[0]))
        assert project.opened(foreign) == []
        assert [item["id"] for item in project.opened(first)] == [prediction["id"]]

        # Our push shows its own predictions again, and pushed tasks are not asked for a second time.
        assert project.shown_version == TITLE
        advance_round(workspace, client)
        assert project.shown_version == version
        pushed = [number for number in client.task_ids(project.number) if number not in (first, second, foreign)]
        assert len(pushed) == 4
        for number in pushed:
            [prediction] = project.opened(number)
            assert (prediction["model_version"], prediction["score"] != 0.5) == (version, True)

        # A promotion reaches tasks that are opened from then on.
        later = promote(workspace, "m-0002", seed=2)
        [prediction] = project.opened(second)
        assert prediction["model_version"] == later
        drawn = result_to_mask(prediction["result"], workspace.label_set, width=61, height=47)
        assert np.array_equal(drawn.mask, seen(workspace, pictures[1]))

        # Disconnected and connected again: a project that shows a version keeps it.
        client.http.repeatable("DELETE", f"/api/ml/{made['id']}")
        assert project.shown_version == version
        assert [item["url"] for item in client.http.get("/api/webhooks/", {"project": project.number})] == [hook["url"]]
        project.connect(said, password)
        assert project.shown_version == version


def test_a_project_of_other_classes_cannot_be_connected(
    make_sqlite_workspace: Callable[..., Workspace], section: dict[str, Any], tmp_path: Path
) -> None:
    from activeseg.core.labels import LabelSet

    workspace = make_sqlite_workspace(pool=1, labelstudio=section)
    promote(workspace, "m-0001")
    with (
        running(tmp_path, section) as said,
        LabelStudioClient(section["url"], (tmp_path / "token").read_text().strip()) as client,
    ):
        others = LabelSet(("cat", "dog"), ((1, 2, 3), (4, 5, 6)))
        project = Project(client, client.ensure_project(f"others {next(_titles)}", others, "brush").id)
        with pytest.raises(LabelStudioError, match="look like a valid ML backend"):
            project.connect(said, Path(said["password"]).read_text(encoding="utf-8").strip())
        assert project.shown_version == ""
