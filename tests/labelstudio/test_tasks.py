from __future__ import annotations

import json

import pytest

from activeseg.errors import ConfigError
from activeseg.labelstudio.tasks import MAX_TASKS, batches, order_value, prediction_payload, task_body, task_payload


def test_a_task_shows_the_doubtful_classes_and_says_nothing_of_score_or_rank():
    task = task_payload(
        "k1", "/i.png", "/e.png", order=7, sha256="ab", doubtful=["pole", "fence"], result=[], score=0.25, model_version="m1"
    )
    assert task["data"] == {
        "image": "/i.png", "entropy": ["/e.png"], "doubt": "Least sure about: pole, fence", "key": "k1", "sha256": "ab",
        "order": "000007",
    }  # fmt: skip
    assert task["predictions"] == [{"model_version": "m1", "score": 0.25, "result": []}]


def test_without_a_model_there_is_no_prediction_and_the_plain_image_stands_beside():
    task = task_payload("k1", "/i.png", order=0, sha256="ab")
    assert "predictions" not in task
    assert task["data"]["entropy"] == ["/i.png"]
    assert task["data"]["doubt"] == "Draw every class that is missing; where something is drawn already, correct it."


def test_a_rough_outline_is_called_one_whatever_is_doubtful():
    task = task_payload("k1", "/i.png", order=0, sha256="ab", result=[], score=0.5, model_version="graphcut", rough=True)
    assert "may be only a rough guess of one object" in task["data"]["doubt"]
    assert task["predictions"][0]["model_version"] == "graphcut"


@pytest.mark.parametrize("model", [{}, {"model_version": "graphcut", "score": 0.5, "rough": True}])
def test_a_task_keeps_a_text_that_is_true_of_a_champions_mask_too(model):
    text = task_payload("k1", "/i.png", order=0, sha256="ab", **model)["data"]["doubt"]
    assert "draw every class that is missing" in text.lower()
    assert not any(claim in text for claim in ("No prediction", "was outlined", "One object", "every other class"))


@pytest.mark.parametrize("rough", [False, True])
def test_where_classes_overlap_the_text_says_what_an_undrawn_one_means(rough):
    model = {"model_version": "graphcut", "score": 0.5, "rough": True} if rough else {}
    text = task_payload("k1", "/i.png", order=0, sha256="ab", overlap=True, **model)["data"]["doubt"]
    assert "draw every class that is missing" in text.lower()
    assert text.endswith(". Everything you leave undrawn counts as absent.")


@pytest.mark.parametrize("entropy", [None, "/framed.png"])
@pytest.mark.parametrize(
    "model", [{}, {"model_version": "m1", "score": 0.5}, {"model_version": "g", "score": 0.5, "rough": True}]
)
def test_where_a_part_is_asked_about_the_text_begins_with_where_that_is(model, entropy):
    payload = {"order": 0, "sha256": "ab", **model}
    text, whole = (task_payload("k1", "/i", entropy, cells=cells, **payload)["data"]["doubt"] for cells in ([1, 2, 12], None))
    beside = " (framed in the picture beside)" if entropy else ""
    where = f"Label only these cells of 4 rows and 4 columns: row 1, columns 2-3; row 4, column 1{beside}."
    assert text == f"{where} The rest does not count. " + whole.replace("the whole mask", "the mask there")


@pytest.mark.parametrize("score", [-0.1, 1.1, 7, float("nan"), float("inf")])
def test_a_score_that_the_server_would_drop_silently_is_refused(score):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        prediction_payload([], model_version="m", score=score)


def test_a_prediction_without_confidence_is_refused():
    with pytest.raises(ConfigError, match="confidence"):
        task_payload("k", "/i", order=0, sha256="", model_version="m")


def test_orders_compare_as_text_like_numbers():
    orders = [0, 9, 10, 99, 100, 123456]
    assert sorted(map(order_value, orders)) == [order_value(order) for order in orders]


def test_batches_keep_order_and_stay_under_the_limit():
    tasks = [task_body({"data": {"key": f"k{number}", "text": "x" * (number * 37 % 90)}}, number) for number in range(40)]
    groups = list(batches(tasks, max_bytes=200))
    assert [item for group in groups for item in group] == tasks
    assert len(groups) < 40
    assert all(sum(len(task.body) + 1 for task in group) <= 200 for group in groups)


def test_a_task_larger_than_the_limit_goes_alone():
    tasks = [task_body({"data": {"key": key, "text": "x" * length}}, 1) for key, length in (("a", 1), ("b", 500), ("c", 1))]
    assert [[task.key for task in group] for group in batches(tasks, max_bytes=100)] == [["a"], ["b"], ["c"]]


def test_the_first_requests_are_small_so_that_the_server_soon_has_something_to_do():
    tasks = [task_body({"data": {"key": "k", "text": "x" * 900}}, number) for number in range(100)]
    assert [len(group) for group in batches(tasks, max_bytes=8000, first_bytes=2000)] == [2, 4, *[8] * 11, 6]


def test_small_tasks_go_in_requests_of_a_limited_number():
    tasks = [task_body({"data": {"key": "k"}}, number) for number in range(MAX_TASKS + 1)]
    assert [len(group) for group in batches(tasks, max_bytes=10_000_000)] == [MAX_TASKS, 1]


def test_a_task_is_made_json_once_and_tells_how_many_predictions_it_holds():
    payload = task_payload("k1", "/i.png", order=0, sha256="ab", result=[], score=0.5, model_version="m1")
    body = task_body(payload, 7)
    assert (body.key, body.row_id, body.predictions) == ("k1", 7, 1)
    assert json.loads(body.body) == payload
    assert task_body(task_payload("k2", "/i.png", order=0, sha256="ab"), 8).predictions == 0
