"""The calls Label Studio makes, and that none of them brings more than its own answer down."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from activeseg.core.labels import UNLABELED, LabelSet
from activeseg.core.scaling import shrink_mask
from activeseg.db import checkpoints, images
from activeseg.db.models import Arm, Image, LabelingProject, Query, QueryStatus, Round, RoundStatus, Task, TaskStatus
from activeseg.labelstudio.labeling import labeling_config
from activeseg.labelstudio.regions import result_to_mask
from activeseg.mlbackend import answers as answering
from activeseg.mlbackend import app as application
from activeseg.nn.checkpoint import load_checkpoint
from activeseg.nn.infer import Prediction, predict_masks
from activeseg.records import ImageRef
from activeseg.workspace import Workspace
from tests.mlbackend.conftest import PASSWORD, USER, promote

Backend = Callable[..., TestClient]


def plan_tasks(workspace: Workspace, *, shown: tuple[int, int] | None = None) -> list[dict[str, Any]]:
    """A task of ours for each image of the pool, as Label Studio sends it; shown: (width, height) annotators draw on."""
    with workspace.database.write() as session:
        found = list(session.scalars(sa.select(Image).order_by(Image.id)))
        row = Round(number=1, status=RoundStatus.PUSHED, acquisition="random", query_size=9, control_share=0.0, seed=0)
        project = LabelingProject(
            server_url="http://ls",
            instance_key="born",
            external_project_id=1,
            title="t",
            mask_kind="brush",
            config_sha256="0" * 64,
            label_set_id=images.label_set_row(session, workspace.label_set).id,
        )
        session.add_all([row, project])
        session.flush()
        for number, image in enumerate(found):
            query = Query(
                round_id=row.id,
                image_id=image.id,
                status=QueryStatus.PUSHED,
                rank=1,
                arm=Arm.CHOSEN,
                shown_order=number,
                reason="r",
            )
            session.add(query)
            session.flush()
            width, height = shown or (None, None)
            session.add(
                Task(
                    labeling_project_id=project.id,
                    query_id=query.id,
                    key=f"key-{number}",
                    status=TaskStatus.PUSHED,
                    shown_width=width,
                    shown_height=height,
                )
            )
    return [
        {"id": number, "data": {"image": "/data/upload/1/x.png", "key": f"key-{number}", "sha256": image.sha256}}
        for number, image in enumerate(found)
    ]


def predicted(workspace: Workspace, task: dict[str, Any]) -> np.ndarray:
    """What the champion's network says of a task's image, without the backend."""
    with workspace.database.read() as session:
        row = checkpoints.require_champion(session)
        image = session.scalars(sa.select(Image).where(Image.sha256 == task["data"]["sha256"])).one()
    segmenter = load_checkpoint(workspace.artifacts.read(row.location), model_version="m", device="cpu")
    ref = ImageRef(image.id, image.uri, image.sha256)
    options = {"device": next(segmenter.module.parameters()).device, "precision": workspace.settings.model.precision}
    [item] = predict_masks(segmenter, [ref], workspace.read_image, **options)
    assert isinstance(item, Prediction)
    return item.mask


def ask(client: TestClient, tasks: list[Any], config: str) -> list[Any]:
    answer = client.post("/predict", json={"tasks": tasks, "label_config": config, "project": "1.1", "params": {}})
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert len(results) == len(tasks)
    return list(results)


@pytest.mark.parametrize("kind", ["brush", "bitmask"])
def test_a_task_of_ours_gets_the_champions_mask_of_its_image(workspace: Workspace, backend: Backend, kind: Any) -> None:
    promote(workspace, "m-0001")
    tasks = plan_tasks(workspace)
    config = labeling_config(workspace.label_set, mask_kind=kind)
    for task, answer in zip(tasks, ask(backend(), tasks, config), strict=True):
        assert (answer["model_version"], answer["score"]) == ("m-0001", 0.5)
        drawn = result_to_mask(answer["result"], workspace.label_set, width=64, height=48).mask
        assert np.array_equal(drawn, predicted(workspace, task))


@pytest.mark.slow
def test_the_mask_has_the_size_annotators_draw_on(workspace: Workspace, backend: Backend, config: str) -> None:
    promote(workspace, "m-0001")
    tasks = plan_tasks(workspace, shown=(32, 24))
    [answer, *_] = ask(backend(), tasks, config)
    assert {(region["original_width"], region["original_height"]) for region in answer["result"]} == {(32, 24)}
    drawn = result_to_mask(answer["result"], workspace.label_set, width=32, height=24).mask
    assert np.array_equal(drawn, shrink_mask(predicted(workspace, tasks[0]), (24, 32)))


@pytest.mark.slow
def test_of_an_image_that_is_asked_about_in_part_only_that_part_is_drawn(
    workspace: Workspace, backend: Backend, config: str
) -> None:
    promote(workspace, "m-0001")
    tasks = plan_tasks(workspace)
    with workspace.database.write() as session:
        session.execute(sa.update(Query).values(cells=[0, 15]))
    [answer, *_] = ask(backend(), tasks, config)
    drawn = result_to_mask(answer["result"], workspace.label_set, width=64, height=48).mask
    expected = np.full((48, 64), UNLABELED)
    for part in (np.s_[:12, :16], np.s_[36:, 48:]):
        expected[part] = predicted(workspace, tasks[0])[part]
    assert np.array_equal(drawn, expected)


@pytest.mark.slow
def test_all_get_the_same_confidence_so_that_it_tells_no_rank(workspace: Workspace, backend: Backend, config: str) -> None:
    promote(workspace, "m-0001")
    assert {answer["score"] for answer in ask(backend(), plan_tasks(workspace), config)} == {0.5}


BAD: list[Any] = [
    None,
    7,
    "task",
    [],
    {},
    {"id": 1},
    {"id": 1, "data": None},
    {"id": 1, "data": {}},
    {"id": 1, "data": {"image": None, "key": 3, "sha256": []}},
    {"id": 1, "data": {"key": "key-0", "sha256": "0" * 64}},
    {"id": "x" * 10_000, "data": {"image": "http://169.254.169.254/latest/meta-data"}},
]


@pytest.mark.slow
def test_bad_tasks_get_nothing_and_the_others_among_them_their_masks(
    workspace: Workspace, backend: Backend, config: str, caplog: pytest.LogCaptureFixture
) -> None:
    promote(workspace, "m-0001")
    good = plan_tasks(workspace)[0]
    results = ask(backend(), [task for bad in BAD for task in (bad, good)] + [good], config)
    assert results[:-1:2] == [[] for _ in BAD]
    assert results[1]["result"]
    assert all(answer == results[1] for answer in results[1::2])
    told = [record.message for record in caplog.records if "no prediction for" in record.message]
    assert len(told) == len(BAD)
    assert max(map(len, told)) < 1000


@pytest.mark.slow
def test_an_image_that_changed_or_breaks_gets_nothing(workspace: Workspace, backend: Backend, config: str) -> None:
    promote(workspace, "m-0001")
    tasks = plan_tasks(workspace)
    files = sorted((workspace.settings.root / "pool").iterdir())
    files[0].unlink()
    files[1].write_bytes(b"no image")
    results = ask(backend(), tasks, config)
    assert [bool(answer) for answer in results] == [False, False, True, True]


def test_without_a_champion_it_is_up_and_predicts_nothing(workspace: Workspace, backend: Backend, config: str) -> None:
    client = backend()
    assert client.get("/health").json() == {"status": "UP"}
    assert client.post("/setup", json={"project": "1.1", "schema": config}).json() == {"model_version": ""}
    assert client.get("/versions").json() == {"versions": []}
    assert ask(client, plan_tasks(workspace), config) == [[], [], [], []]


@pytest.mark.slow
def test_a_promotion_is_noticed_by_the_next_call(workspace: Workspace, backend: Backend, config: str) -> None:
    client, tasks = backend(), plan_tasks(workspace)[:1]
    for seed, version in enumerate(["m-0001", "m-0002", "m-0003"]):
        promote(workspace, version, seed=seed)
        assert client.post("/setup", json={"schema": config}).json() == {"model_version": version}
        assert client.get("/versions").json() == {"versions": [version]}
        [answer] = ask(client, tasks, config)
        assert answer["model_version"] == version
        drawn = result_to_mask(answer["result"], workspace.label_set, width=64, height=48).mask
        assert np.array_equal(drawn, predicted(workspace, tasks[0]))


@pytest.mark.slow
def test_the_network_is_read_once(workspace: Workspace, backend: Backend, config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def load(data: bytes, *, model_version: str, device: Any) -> Any:
        read.append(model_version)
        return load_checkpoint(data, model_version=model_version, device=device)

    monkeypatch.setattr("activeseg.mlbackend.champion.load_checkpoint", load)
    promote(workspace, "m-0001")
    client, tasks = backend(), plan_tasks(workspace)
    for _ in range(3):
        ask(client, tasks[:1], config)
    assert read == ["m-0001"]


@pytest.mark.slow
def test_a_champion_whose_file_is_gone_costs_answers_and_nothing_else(
    workspace: Workspace, backend: Backend, config: str, caplog: pytest.LogCaptureFixture
) -> None:
    promote(workspace, "m-0001")
    client, tasks = backend(), plan_tasks(workspace)
    with workspace.database.read() as session:
        location = checkpoints.require_champion(session).location
    (workspace.artifacts.root / location).unlink()
    assert ask(client, tasks, config) == [[]] * 4
    assert "no prediction for 4 tasks" in caplog.text
    assert client.get("/health").status_code == 200


def other_classes(label_set: LabelSet) -> str:
    renamed = replace(label_set, names=("sky", "ground", "ball", "other"))
    return labeling_config(renamed, mask_kind="brush")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (other_classes, "has the classes sky, ground, ball, other"),
        (lambda labels: labeling_config(replace(labels, overlap=True, ignore_index=None), mask_kind="brush"), "overlap"),
        (lambda labels: "<View/>", "no BrushLabels or BitmaskLabels"),
        (lambda labels: "", "no BrushLabels or BitmaskLabels"),
        (lambda labels: "<View", "not XML"),
        (lambda labels: "<!DOCTYPE x [<!ENTITY a 'b'>]><View>&a;</View>", "XML entities"),
    ],
)
@pytest.mark.slow
def test_a_project_of_other_classes_gets_nothing_and_the_log_says_why(
    workspace: Workspace, backend: Backend, caplog: pytest.LogCaptureFixture, make: Callable[[LabelSet], str], reason: str
) -> None:
    promote(workspace, "m-0001")
    config, client = make(workspace.label_set), backend()
    assert ask(client, plan_tasks(workspace), config) == [[]] * 4
    assert reason in caplog.text
    refused = client.post("/setup", json={"project": "1.1", "schema": config})
    assert refused.status_code == 409
    assert reason in refused.json()["error"]


@pytest.mark.slow
def test_tasks_beyond_the_limit_get_nothing_and_the_call_is_answered(
    workspace: Workspace, backend: Backend, config: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    promote(workspace, "m-0001")
    monkeypatch.setattr(answering, "MAX_TASKS", 3)
    results = ask(backend(), plan_tasks(workspace) * 2, config)
    assert [bool(answer) for answer in results] == [True] * 3 + [False] * 5
    assert "last 5 of 8 tasks" in caplog.text


@pytest.mark.slow
def test_what_is_left_when_time_is_up_gets_nothing(workspace: Workspace, backend: Backend, config: str) -> None:
    promote(workspace, "m-0001")
    beats = iter([0.0, 1.0, 1e9])
    results = ask(backend(clock=lambda: next(beats)), plan_tasks(workspace), config)
    assert [bool(answer) for answer in results] == [True, True, False, False]


@pytest.mark.parametrize("path", ["/health", "/versions", "/"])
@pytest.mark.parametrize(
    "auth", [None, ("label-studio", "wrong"), ("root", PASSWORD), ("", ""), ("label-studio", PASSWORD + "x")]
)
def test_nobody_gets_in_without_user_and_password(backend: Backend, path: str, auth: Any) -> None:
    client = backend()
    client.auth = auth
    answer = client.get(path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic")
    assert PASSWORD not in answer.text


@pytest.mark.parametrize("path", ["/setup", "/predict"])
def test_a_call_without_the_password_is_refused_before_it_is_read(backend: Backend, path: str) -> None:
    client = backend()
    client.auth = None
    assert client.post(path, content=b"{").status_code == 401
    assert client.post(path, content=b"{", headers={"Authorization": "Basic !!!"}).status_code == 401
    assert client.post(path, content=b"{", headers={"Authorization": f"Bearer {PASSWORD}"}).status_code == 401


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b"null", b'{"tasks": 3}', b'{"tasks": []}', b"[" * 100_000, b"\xff"])
def test_what_is_no_question_is_told_so(backend: Backend, body: bytes) -> None:
    answer = backend().post("/predict", content=body)
    assert (answer.status_code, list(answer.json())) == (422, ["error"])


def test_a_question_too_large_is_not_read_to_its_end(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "MAX_BODY", 1000)
    assert backend().post("/predict", content=b" " * 1001).status_code == 413


def in_process(backend: Backend) -> httpx.AsyncClient:
    """Calls whose bodies arrive as a test sends them."""
    transport = httpx.ASGITransport(app=backend().app)
    return httpx.AsyncClient(transport=transport, base_url="http://backend", auth=USER)


@pytest.mark.parametrize(("path", "other"), [("/predict", "/setup"), ("/setup", "/predict")])
def test_calls_whose_bodies_are_still_arriving_count(
    backend: Backend, config: str, monkeypatch: pytest.MonkeyPatch, path: str, other: str
) -> None:
    monkeypatch.setattr(application, "MAX_CALLS", 2)
    question = json.dumps({"tasks": [{}], "label_config": config, "schema": config}).encode()
    codes: list[int] = []
    read: list[str] = []

    async def body(arrived: anyio.Event, rest: anyio.Event) -> AsyncIterator[bytes]:
        yield question[:10]
        arrived.set()
        await rest.wait()
        yield question[10:]

    async def unread() -> AsyncIterator[bytes]:
        read.append("read")
        yield question

    async def scenario() -> None:
        rest = anyio.Event()
        async with in_process(backend) as client, anyio.create_task_group() as group:

            async def call(arrived: anyio.Event) -> None:
                codes.append((await client.post(path, content=body(arrived, rest))).status_code)

            for _ in range(2):
                arrived = anyio.Event()
                group.start_soon(call, arrived)
                await arrived.wait()
            assert (await client.post(path, content=unread())).status_code == 503
            assert read == []
            # Neither opened tasks nor bodies that stop keep the server from connecting, nor the reverse.
            assert (await client.post(other, content=question)).status_code == 200
            rest.set()
        async with in_process(backend) as client:
            assert (await client.post(path, content=question)).status_code == 200

    anyio.run(scenario)
    assert codes == [200, 200]


def test_a_place_is_free_again_after_whatever_went_wrong(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "MAX_CALLS", 1)
    monkeypatch.setattr(application, "MAX_BODY", 1000)
    client = backend()
    wrong = [b"{", b" " * 1001, b"[]", b'{"tasks": 3}', b"\xff"]
    assert [client.post("/predict", content=body).status_code for body in wrong * 2] == [422, 413, 422, 422, 422] * 2


def test_a_body_that_stops_in_the_middle_gives_its_place_back(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "MAX_CALLS", 1)
    monkeypatch.setattr(application, "BODY_SECONDS", 0.01)

    async def stops() -> AsyncIterator[bytes]:
        yield b"{"
        await anyio.sleep_forever()

    async def scenario() -> list[int]:
        async with in_process(backend) as client:
            return [(await client.post("/predict", content=stops())).status_code for _ in range(2)]

    assert anyio.run(scenario) == [408, 408]


@pytest.mark.parametrize("body", [b"", b"{", b'{"action": "START_TRAINING"}', bytes(2 * 2**20)])
def test_the_webhook_needs_no_password_answers_and_does_nothing(workspace: Workspace, backend: Backend, body: bytes) -> None:
    client = backend()
    client.auth = None
    answer = client.post("/webhook", content=body)
    assert (answer.status_code, answer.json()) == (200, {})
    with workspace.database.read() as session:
        assert [session.scalar(sa.text(f"SELECT count(*) FROM {name}")) for name in ("requests", "job_runs")] == [0, 0]


@pytest.mark.slow
def test_nothing_is_written_whatever_is_asked(workspace: Workspace, backend: Backend, config: str) -> None:
    promote(workspace, "m-0001")
    tasks = plan_tasks(workspace)
    with workspace.database.read() as session:
        before = session.scalar(sa.text("PRAGMA data_version"))
    ask(backend(), tasks, config)
    with workspace.database.read() as session:
        assert session.scalar(sa.text("SELECT count(*) FROM predictions")) == 0
        assert session.scalar(sa.text("PRAGMA data_version")) == before


def test_the_web_process_does_not_load_the_backend_nor_the_command_line_torch() -> None:
    program = "import sys, activeseg.cli.app; print([n for n in ('torch', 'activeseg.mlbackend.app') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_password_file_is_made_for_its_owner_and_a_weak_password_refused(
    make_sqlite_workspace: Callable[..., Workspace], tmp_path: Path
) -> None:
    from activeseg.errors import ConfigError
    from activeseg.mlbackend.auth import login

    made = login(make_sqlite_workspace(pool=1).settings)
    file = made.password.file
    assert file is not None
    assert (file.name, file.stat().st_mode & 0o777, made.password.explicit) == (".activeseg-ml-backend-password", 0o600, False)
    assert made.password.value.get_secret_value() not in repr(made)
    named = login(make_sqlite_workspace(pool=1, ml_backend={"password_file": "keys/ml"}).settings)
    assert (named.password.file, named.password.explicit) == (tmp_path / "keys/ml", True)
    for weak in ("short", "ünïcode" * 4):
        with pytest.raises(ConfigError, match="at least 16 printable ASCII") as caught:
            login(make_sqlite_workspace(pool=1, ml_backend={"password": weak}).settings)
        assert weak not in str(caught.value)
    with pytest.raises(ConfigError, match="without a colon"):
        login(make_sqlite_workspace(pool=1, ml_backend={"password": PASSWORD, "user": "a:b"}).settings)
