from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from activeseg.core.labels import UNLABELED, LabelSet
from activeseg.demo.annotator import ROLES, Screen, Work, assign_roles, correct, read_truth, untouched
from activeseg.labelstudio.regions import mask_to_result, result_to_mask

LABELS = LabelSet(("a", "b", "c", "d"), ((0, 0, 0),) * 4)


def work_on(shown: list[list[int]], truth: list[list[int]], kind: str = "brush") -> Work:
    seen, known = np.array(shown, np.uint8), np.array(truth, np.uint8)
    return Work({"id": 1, "data": {}}, {"id": 2, "result": mask_to_result(seen, LABELS, kind=kind)}, seen, known)


@pytest.mark.parametrize("kind", ["brush", "bitmask"])
def test_a_corrected_prediction_shows_the_truth_and_says_what_was_touched(kind):
    work = work_on([[0, 0, 1], [1, 1, 3]], [[0, 0, 1], [1, 2, UNLABELED]], kind)
    regions = correct(work, Screen(1, LABELS, kind), work.truth)
    assert np.array_equal(result_to_mask(regions, LABELS, width=3, height=2).mask, work.truth)
    origins = {region["value"][region["type"]][0]: region["origin"] for region in regions}
    assert origins == {"a": "prediction", "b": "prediction-changed", "c": "manual"}
    old = {region["value"][region["type"]][0]: region["id"] for region in work.prediction["result"]}
    assert [region["id"] for region in regions[:2]] == [old["a"], old["b"]]


@pytest.mark.parametrize("kind", ["brush", "bitmask"])
def test_overlapping_classes_are_corrected_one_by_one(kind):
    labels = LabelSet(("a", "b", "c"), ((0, 0, 0),) * 3, overlap=True)
    shown = np.array([[[1, 1, 0]], [[0, 1, 1]], [[0, 0, 0]]], bool)
    truth = np.array([[[1, 1, 0]], [[1, 1, 1]], [[0, 1, 0]]], bool)
    work = Work({"id": 1, "data": {}}, {"id": 2, "result": mask_to_result(shown, labels, kind=kind)}, shown, truth)
    regions = correct(work, Screen(1, labels, kind), truth)
    assert np.array_equal(result_to_mask(regions, labels, width=3, height=1).mask, truth)
    origins = {region["value"][region["type"]][0]: region["origin"] for region in regions}
    assert origins == {"a": "prediction", "b": "prediction-changed", "c": "manual"}


def test_without_a_prediction_everything_is_drawn_by_hand():
    truth = np.array([[0, 3]], np.uint8)
    work = Work({"id": 1, "data": {}}, None, np.full((1, 2), UNLABELED, np.uint8), truth)
    regions = correct(work, Screen(1, LABELS, "brush"), truth)
    assert {region["origin"] for region in regions} == {"manual"}
    assert np.array_equal(result_to_mask(regions, LABELS, width=2, height=1).mask, truth)
    assert untouched(work) == []


def test_an_untouched_prediction_keeps_its_regions():
    work = work_on([[0, 1]], [[1, 1]])
    assert [region["origin"] for region in untouched(work)] == ["prediction"] * 2
    assert np.array_equal(result_to_mask(untouched(work), LABELS, width=2, height=1).mask, work.shown)


@pytest.mark.parametrize(("tasks", "special"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3), (12, 3)])
def test_every_role_is_played_once_and_somebody_corrects_plainly(tasks, special):
    roles = assign_roles(range(100, 100 + tasks), seed=3)
    assert list(roles) == list(range(100, 100 + tasks))
    assert sorted(role for role in roles.values() if role != "corrected") == sorted(ROLES[:special])


def test_roles_follow_the_seed():
    assert assign_roles(range(12), seed=1) == assign_roles(range(12), seed=1)
    assert any(assign_roles(range(12), seed=1) != assign_roles(range(12), seed=seed) for seed in range(2, 5))


def test_known_masks_are_found_by_the_name_an_upload_gets(tmp_path: Path):
    for stem in ("scene_0001", "a b (1)", "Sün.x"):
        Image.new("P", (2, 2)).save(tmp_path / f"{stem}.png")
    assert sorted(read_truth(tmp_path)) == ["Sün.x", "a_b_1", "scene_0001"]
