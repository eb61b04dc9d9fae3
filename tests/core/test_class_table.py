from __future__ import annotations

import numpy as np
import pytest

from activeseg.core.class_table import class_table
from activeseg.core.labels import UNLABELED, LabelSet
from activeseg.errors import MaskError
from activeseg.explain.truth import image_scores

CLASSES = LabelSet(("sky", "void", "road", "car"), ((0, 0, 0),) * 4, ignore_index=1)
OVERLAPPING = LabelSet(("animal", "dog", "void"), ((0, 0, 0),) * 3, ignore_index=2, overlap=True)


def test_the_figures_are_those_of_the_metrics() -> None:
    random = np.random.default_rng(0)
    truth = random.choice([0, 1, 2, 3, UNLABELED], (700, 90)).astype(np.uint8)  # taller than is counted at a time
    guess = np.where(random.random(truth.shape) < 0.5, truth, random.choice([0, 2, 3], truth.shape)).astype(np.uint8)
    guess[(guess == 1) | (guess == UNLABELED)] = 0
    planes = random.random((3, 700, 90)) < 0.4
    other = planes ^ (random.random(planes.shape) < 0.2)
    for label_set, prediction, annotation in ((CLASSES, guess, truth), (OVERLAPPING, other, planes)):
        rows = class_table(prediction, annotation, label_set)
        expected = image_scores(prediction, annotation, label_set)
        compared = [row for row in rows if row.iou is not None]
        assert [row.index for row in compared] == [row.class_index for row in expected]
        assert [row.iou for row in compared] == pytest.approx([row.iou for row in expected])
        assert [row.dice for row in compared] == pytest.approx([row.dice for row in expected])
        for row in rows:
            where = annotation[row.index] if label_set.overlap else annotation == row.index
            assert row.annotated == pytest.approx(where.mean())


def test_pixels_nobody_labelled_and_the_ignored_class_do_not_count() -> None:
    truth = np.array([[0, 0, UNLABELED, 1]], np.uint8)
    [sky, *others] = class_table(np.array([[0, 2, 3, 3]], np.uint8), truth, CLASSES)
    assert (sky.index, sky.predicted, sky.annotated, sky.iou, sky.dice) == (0, 0.25, 0.5, 0.5, pytest.approx(2 / 3))
    assert {row.index: row.iou for row in others} == {1: None, 2: None, 3: None}


def test_classes_without_figures_come_last_by_their_larger_share() -> None:
    truth = np.array([[0, 0, 1, 1, 1, 1, 1, 1]], np.uint8)
    rows = class_table(np.array([[0, 0, 0, 0, 0, 1, 3, 3]], np.uint8), truth, CLASSES)
    assert [(row.index, row.predicted, row.annotated) for row in rows] == [(0, 0.625, 0.25), (1, 0.125, 0.75), (3, 0.25, 0.0)]


def test_one_mask_alone_has_shares_only_and_no_pixel_of_none() -> None:
    assert class_table(None, None, CLASSES) == []
    [row] = class_table(np.array([[2, UNLABELED]], np.uint8), None, CLASSES)
    assert (row.index, row.predicted, row.annotated, row.iou) == (2, 0.5, None, None)


def test_what_is_no_mask_of_the_classes_or_of_one_size_is_refused() -> None:
    mask = np.zeros((2, 3), np.uint8)
    for guess, truth in ((mask + 9, None), (mask, np.zeros((3, 2), np.uint8)), (None, np.zeros((3, 2, 3), np.bool_))):
        with pytest.raises(MaskError):
            class_table(guess, truth, CLASSES)
