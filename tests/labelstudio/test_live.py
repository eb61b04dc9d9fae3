"""Against a real Label Studio server."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import pytest

from activeseg.core.labels import LabelSet
from activeseg.errors import LabelSetMismatch, LabelStudioDoubt, LabelStudioError, LabelStudioUnauthorized
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.processes import free_port
from activeseg.labelstudio.regions import mask_to_result, result_to_mask
from activeseg.labelstudio.tasks import prediction_payload

pytestmark = pytest.mark.labelstudio


class CommitThenDrop(httpx.BaseTransport):
    """Carries each request to the server, then loses the answers to the imports."""

    def __init__(self) -> None:
        self.inner = httpx.HTTPTransport()
        self.imports = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self.inner.handle_request(request)
        if request.method == "POST" and request.url.path.endswith("/import"):
            answer.read()
            self.imports += 1
            raise httpx.ReadError("connection reset by peer")
        return answer


def submit(person, project, task, result, **extra):
    return person.call(
        "POST", f"/api/tasks/{task}/annotations/", {"result": result, "lead_time": 3.0, **extra}, project=project
    )


def exported_mask(client, project, task, labels, shape):
    (exported,) = client.export_tasks(project, [task])
    result = exported["annotations"][-1]["result"]
    return result_to_mask(result, labels, width=shape[1], height=shape[0]).mask


def test_the_server_says_its_version(client):
    assert client.version() == "1.23.2"
    assert client.token_kind == "personal"


@pytest.mark.parametrize("kind", ["brush", "bitmask"])
@pytest.mark.parametrize("shape", [(36, 48), (37, 53), (1, 9), (120, 160)])
def test_masks_of_twelve_classes_come_back_pixel_by_pixel(board, person, random_mask, kind, shape):
    used = board(kind)
    mask = random_mask(*shape)
    (task,) = used.push(mask)
    shown = person.call("GET", f"/api/tasks/{task}/", project=used.project.id)["predictions"][0]
    submit(person, used.project.id, task, [region | {"origin": "prediction"} for region in shown["result"]])
    assert np.array_equal(exported_mask(used.client, used.project.id, task, used.labels, shape), mask)


def test_a_second_look_finds_the_same_project(board, client, labels):
    first = board().project
    again = client.ensure_project(first.title, labels, "brush")
    assert (first.created, again.created) == (True, False)
    assert (again.id, again.created_at, again.config) == (first.id, first.created_at, first.config)


def test_other_classes_or_masks_than_the_projects_are_refused(board, client, labels):
    title = board().project.title
    with pytest.raises(LabelSetMismatch, match="expected cat, dog: use another project title"):
        client.ensure_project(title, LabelSet(("cat", "dog"), ((1, 1, 1),) * 2), "brush")
    with pytest.raises(LabelStudioError, match="mask_kind = 'brush'"):
        client.ensure_project(title, labels, "bitmask")


@pytest.mark.parametrize("overlap", [True, False])
def test_a_project_made_for_exclusive_classes_is_none_for_overlapping_ones_and_vice_versa(client, labels, overlap):
    title = f"test overlap {overlap}"
    made = replace(labels, overlap=overlap)
    assert client.ensure_project(title, made, "brush").created
    assert client.find_project(title, made, "brush") is not None
    with pytest.raises(LabelSetMismatch, match=r"by \[labels\] overlap they .*: use another project title"):
        client.ensure_project(title, replace(labels, overlap=not overlap), "brush")


def test_uploads_keep_their_order_and_their_stems(board):
    used = board()
    urls = used.client.upload_files(used.project.id, [(f"b {n} ü.png", bytes([n])) for n in range(60)])
    assert [url.split("-", 1)[1] for url in urls] == [f"b_{n}_ü.png" for n in range(60)]


def test_tasks_are_found_by_key(board):
    used = board()
    assert used.client.find_tasks(used.project.id, ["key-0"]) == {}
    numbers = used.push(None, None, None)
    twin = used.client.import_tasks(used.project.id, [used.payload(None) | {}])
    assert used.client.find_tasks(used.project.id, ["key-0", "key-2", "nothing"]) == {
        "key-0": [numbers[0]],
        "key-2": [numbers[2]],
    }
    assert used.client.task_ids(used.project.id) == [*numbers, *twin]


def test_a_lost_answer_is_a_doubt_that_a_look_settles(board, labelstudio_server, random_mask):
    used = board()
    tasks = [used.payload(random_mask(8, 8, seed)) for seed in range(3)]
    transport = CommitThenDrop()
    with LabelStudioClient(labelstudio_server.url, labelstudio_server.token(), transport=transport) as cut_off:
        with pytest.raises(LabelStudioDoubt, match="may or may not"):
            cut_off.import_tasks(used.project.id, tasks)
        found = cut_off.find_tasks(used.project.id, used.keys)
    assert transport.imports == 1
    assert {key: len(numbers) for key, numbers in found.items()} == dict.fromkeys(used.keys, 1)


def test_whatever_a_person_does_is_seen(board, person, random_mask):
    used = board()
    project, client = used.project.id, used.client
    submitted, skipped, edited, deleted, drafted, left = used.push(*(random_mask(8, 8, seed) for seed in range(6)))
    assert not list(client.changed_tasks(project, datetime.now(UTC) + timedelta(hours=1)))
    first_seen = list(client.changed_tasks(project, None))
    assert all(stamp.untouched for stamp in first_seen)
    since = max(stamp.updated_at for stamp in first_seen)
    touched: dict[int, bool] = {}

    def changed() -> set[int]:
        nonlocal since
        stamps = list(client.changed_tasks(project, since))
        assert stamps == sorted(stamps, key=lambda stamp: stamp.updated_at)
        touched.update({stamp.id: not stamp.untouched for stamp in stamps})
        since = max((stamp.updated_at for stamp in stamps), default=since)
        return {stamp.id for stamp in stamps}

    submit(person, project, submitted, [])
    submit(person, project, skipped, [], was_cancelled=True)
    first = submit(person, project, edited, [])
    gone = submit(person, project, deleted, [])
    person.call("POST", f"/api/tasks/{drafted}/drafts", {"result": [], "lead_time": 1.0}, project=project)
    assert changed() == {submitted, skipped, edited, deleted}
    assert touched == dict.fromkeys([submitted, skipped, edited, deleted], True)
    assert client.untouched_tasks(project) == [left]

    mask = random_mask(8, 8, 99)
    person.call("PATCH", f"/api/annotations/{first['id']}/", {"result": mask_to_result(mask, used.labels, kind="brush")})
    assert changed() == {edited}
    assert np.array_equal(exported_mask(client, project, edited, used.labels, (8, 8)), mask)

    access = httpx.post(f"{client.url}/api/token/refresh/", json={"refresh": person._token}).json()["access"]
    httpx.delete(
        f"{client.url}/api/annotations/{gone['id']}/", headers={"Authorization": f"Bearer {access}"}
    ).raise_for_status()
    assert changed() == {deleted}
    assert client.export_tasks(project, [deleted]) == []
    (export,) = client.export_tasks(project, [skipped])
    assert export["annotations"][0]["was_cancelled"] is True

    client.delete_tasks(project, [submitted, 10**9])
    assert client.task_ids(project) == [skipped, edited, deleted, drafted, left]


def test_numbers_that_are_expected_are_counted_instead_of_listed(board):
    used = board()
    bodies = [{"data": {"image": "/data/x.png", "key": f"k{number}"}} for number in range(250)]
    numbers = used.client.import_tasks(used.project.id, bodies)
    assert numbers == list(range(numbers[0], numbers[0] + 250)), "this test needs numbers in a row"
    for gone in ([], [numbers[3], numbers[200]]):
        used.client.delete_tasks(used.project.id, gone)
        there = [number for number in numbers if number not in gone]
        assert used.client.task_ids(used.project.id, expected=numbers[:-20]) == there
        assert used.client.task_ids(used.project.id, expected=[*numbers, *range(numbers[-1] + 1, numbers[-1] + 200)]) == there


def test_new_predictions_take_the_place_of_the_old(board, person, random_mask):
    used = board()
    numbers = used.push(random_mask(8, 8, 1), random_mask(8, 8, 2))
    new = random_mask(8, 8, 3)
    result = mask_to_result(new, used.labels, kind="brush")
    for _ in range(2):
        predictions = [prediction_payload(result, model_version="m2", score=0.4, task_id=number) for number in numbers]
        used.client.replace_predictions(used.project.id, "m2", predictions)
    for number in numbers:
        (shown,) = person.call("GET", f"/api/tasks/{number}/", project=used.project.id)["predictions"]
        assert shown["model_version"] == "m2"
        assert np.array_equal(result_to_mask(shown["result"], used.labels, width=8, height=8).mask, new)


def test_a_label_the_project_does_not_know_is_noticed(board, random_mask):
    used = board()
    numbers = used.push(random_mask(8, 8))
    result = mask_to_result(random_mask(8, 8), LabelSet(tuple(f"x{i}" for i in range(12)), ((0, 0, 0),) * 12), kind="brush")
    prediction = prediction_payload(result, model_version="m2", score=0.4, task_id=numbers[0])
    with pytest.raises(LabelStudioError, match="kept 0 of 1 predictions"):
        used.client.replace_predictions(used.project.id, "m2", [prediction])


def test_the_tab_is_made_once_and_shows_the_shown_order(board, person):
    used = board()
    used.push(*[None] * 11)
    first = used.client.ensure_tab(used.project.id, "in order", ["-tasks:data.order"])
    assert used.client.ensure_tab(used.project.id, "in order", ["tasks:data.order"]) == first
    tasks = person.call("GET", "/api/tasks/", view=first, fields="task_only", include="id,data")["tasks"]
    assert [task["data"]["key"] for task in tasks] == used.keys


def test_a_wrong_token_is_named_with_the_remedy(labelstudio_server, labels):
    good = labelstudio_server.token()
    for wrong in (good[:-6] + "aaaaaa", "0123456789abcdef0123456789abcdef01234567"):
        with LabelStudioClient(labelstudio_server.url, wrong) as refused:
            for call in (refused.version, lambda c=refused: c.ensure_project("never made", labels, "brush")):
                with pytest.raises(LabelStudioUnauthorized, match="Personal Access Token") as caught:
                    call()
                assert wrong not in str(caught.value)


def test_a_project_that_is_not_there_is_named(client):
    with pytest.raises(LabelStudioError, match="HTTP 404"):
        client.get_project(10**6)
    with pytest.raises(LabelStudioError, match="HTTP 404"):
        client.import_tasks(10**6, [{"data": {"image": "x"}}])


def test_no_server_is_named(labels):
    with (
        LabelStudioClient(f"http://127.0.0.1:{free_port()}", "x", retry_delays=()) as nobody,
        pytest.raises(LabelStudioError, match="is it running"),
    ):
        nobody.ensure_project("title", labels, "brush")
