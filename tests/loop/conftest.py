from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from activeseg.config import write_secret
from activeseg.db.models import Split
from activeseg.labelstudio.registration import open_project
from activeseg.labelstudio.server import RunningServer
from activeseg.stages.dataset import import_dataset
from activeseg.workspace import Workspace
from tests.factories import write_balls

_titles = count(1)


@pytest.fixture
def with_label_studio(labelstudio_server: RunningServer, tmp_path: Path) -> dict[str, Any]:
    """The [labelstudio] section for a project of this test's own on the real server."""
    token_file = tmp_path / "token"
    write_secret(token_file, labelstudio_server.token())
    # Doubts that tests stage are over at once: nothing goes on behind their backs unless they say so.
    section = {"url": labelstudio_server.url, "token_file": str(token_file), "doubt_seconds": 0.3}
    return section | {"project": f"loop {next(_titles)}"}


@pytest.fixture
def annotate(labelstudio_server: RunningServer, tmp_path: Path) -> Callable[..., None]:
    """Let the simulated annotator's process answer all open tasks of a workspace's project, over HTTP only."""

    def run(workspace: Workspace, client: Any, *options: str) -> None:
        token_file = tmp_path / "annotator-token"
        write_secret(token_file, labelstudio_server.add_user("annotator@example.com")[1])
        project = open_project(workspace, client).external_project_id
        command = [sys.executable, "-m", "activeseg.demo.annotator", "--url", labelstudio_server.url]
        command += ["--token-file", str(token_file), "--project", str(project), "--truth", str(tmp_path / "truth"), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return run


@pytest.fixture
def import_labelled(tmp_path: Path) -> Callable[[Workspace], None]:
    """Six labelled training images of a workspace's own."""

    def run(workspace: Workspace) -> None:
        write_balls(tmp_path / "start", range(100, 106), masks=tmp_path / "start-masks")
        import_dataset(workspace, str(tmp_path / "start"), tmp_path / "start-masks", Split.TRAIN)

    return run
