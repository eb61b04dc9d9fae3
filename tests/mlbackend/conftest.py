"""A workspace with a champion that nobody trained, and the real application in front of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from activeseg.core.labels import LabelSet
from activeseg.db import checkpoints, images
from activeseg.db.models import Checkpoint, Decision
from activeseg.labelstudio.http import Http
from activeseg.labelstudio.labeling import labeling_config
from activeseg.mlbackend.answers import Answers
from activeseg.mlbackend.app import create_app
from activeseg.mlbackend.auth import login
from activeseg.mlbackend.champion import Champion
from activeseg.mlbackend.pictures import Pictures
from activeseg.nn.checkpoint import NetworkSpec, checkpoint_bytes, new_segmenter
from activeseg.stages.pool import sync_pool
from activeseg.workspace import Workspace

PASSWORD = "a-password-only-for-these-tests"
USER = ("label-studio", PASSWORD)


def promote(workspace: Workspace, version: str, *, seed: int = 0, label_set: LabelSet | None = None) -> str:
    """Make random weights the champion."""
    labels, model = label_set or workspace.label_set, workspace.settings.model
    spec = NetworkSpec(model.architecture, model.width, model.decoder_stride, labels, workspace.input_policy)
    segmenter = new_segmenter(spec, model_version=version, seed=seed)
    stored = workspace.artifacts.put(checkpoint_bytes(segmenter), "checkpoint", ".safetensors")
    with workspace.database.write() as session:
        row = Checkpoint(
            model_version=version,
            location=stored.location,
            sha256=stored.sha256,
            architecture=spec.architecture,
            spec=spec.as_dict(),
            label_set_id=images.label_set_row(session, labels).id,
        )
        session.add(row)
        session.flush()
        checkpoints.decide(session, row.id, Decision.PROMOTED, "test", decided_by="test")
    return version


@pytest.fixture
def workspace(make_sqlite_workspace: Callable[..., Workspace]) -> Workspace:
    """Four images in the pool, all classes drawn, specks kept; no champion yet."""
    made = make_sqlite_workspace(pool=4, labelstudio={"min_region_pixels": 0}, ml_backend={"password": PASSWORD})
    sync_pool(made)
    return made


@pytest.fixture
def backend(workspace: Workspace) -> Iterator[Callable[..., TestClient]]:
    """The application over the workspace; http: the Label Studio pictures may come from; clock: of the time limit."""
    opened: list[TestClient] = []

    def make(http: Http | None = None, *, over: Workspace | None = None, **options: Any) -> TestClient:
        used = over or workspace
        answers = Answers(Champion(used), Pictures(used, http), **options)
        opened.append(TestClient(create_app(answers, login(used.settings)), headers={}))
        opened[-1].auth = USER
        return opened[-1]

    yield make
    for client in opened:
        client.close()


@pytest.fixture
def config(workspace: Workspace) -> str:
    """The configuration of a project for the workspace's classes."""
    return labeling_config(workspace.label_set, mask_kind="brush")
