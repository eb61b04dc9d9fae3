from __future__ import annotations

import json

import pytest

from activeseg.errors import ConfigError
from activeseg.labelstudio.tasks import batches, order_value, prediction_payload, task_payload


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
    assert "draw every class" in task["data"]["doubt"]


def test_a_rough_outline_is_called_one_whatever_is_doubtful():
    task = task_payload("k1", "/i.png", order=0, sha256="ab", result=[], score=0.5, model_version="graphcut", rough=True)
    assert "may be only a rough guess of one object" in task["data"]["doubt"]
    assert task["predictions"][0]["model_version"] == "graphcut"


@pytest.mark.parametrize("model", [{}, {"model_version": "graphcut", "score": 0.5, "rough": True}])
def test_a_task_keeps_a_text_that_is_true_of_a_champions_mask_too(model):
    text = task_payload("k1", "/i.png", order=0, sha256="ab", **model)["data"]["doubt"]
    assert text.endswith("draw every class that is missing.")
    assert not any(claim in text for claim in ("No prediction", "was outlined", "One object", "every other class"))


@pytest.mark.parametrize("rough", [False, True])
def test_where_classes_overlap_the_text_says_what_an_undrawn_one_means(rough):
    model = {"model_version": "graphcut", "score": 0.5, "rough": True} if rough else {}
    text = task_payload("k1", "/i.png", order=0, sha256="ab", overlap=True, **model)["data"]["doubt"]
    assert text.endswith("draw every class that is missing. Everything you leave undrawn counts as absent.")


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
    payloads = [{"n": number, "text": "x" * (number * 37 % 90)} for number in range(40)]
    groups = list(batches(payloads, max_bytes=200))
    assert [item for group in groups for item in group] == payloads
    assert len(groups) < 40
    assert all(len(json.dumps(group)) <= 202 or len(group) == 1 for group in groups)


def test_a_payload_larger_than_the_limit_goes_alone():
    assert [len(group) for group in batches([{"a": 1}, {"b": "x" * 500}, {"c": 1}], max_bytes=100)] == [1, 1, 1]
