from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from tests.cli.commands import CommandLine
from tests.factories import CLASSES

FIRST, SECOND = "fcn_mobilenet_v2-0001", "fcn_mobilenet_v2-0002"
NAMES = ["sky", "ground", "ball"]


def stored(command: CommandLine, version: str) -> dict[tuple[str, str], float]:
    assert command.config is not None
    statement = (
        "SELECT e.metric, e.class_name, e.value FROM evaluations e JOIN checkpoints c ON c.id = e.checkpoint_id "
        f"WHERE c.model_version = '{version}' AND e.split = 'val'"
    )
    with closing(sqlite3.connect(command.config.parent / "activeseg.db")) as connection:
        return {(metric, name): value for metric, name, value in connection.execute(statement)}


def test_one_checkpoint_has_its_figures_and_they_agree_with_its_confusion_matrix(trained_copy: CommandLine) -> None:
    data = trained_copy("evaluate", FIRST, "--confusion", "--json").data
    assert (data["model_version"], data["split"], data["images"]) == (FIRST, "val", 3)
    matrix = np.array(data["confusion"])
    for index, row in enumerate(data["classes"]):
        hits = matrix[index, index]
        assert row["name"] == NAMES[index]
        assert row["truth_pixels"] == matrix[index].sum()
        assert row["iou"] == pytest.approx(hits / (matrix[index].sum() + matrix[:, index].sum() - hits))
        assert row["dice"] == pytest.approx(2 * hits / (matrix[index].sum() + matrix[:, index].sum()))
        assert row["accuracy"] == pytest.approx(hits / matrix[index].sum())
    assert data["mean_iou"] == pytest.approx(np.mean([row["iou"] for row in data["classes"]]))
    assert data["pixel_accuracy"] == pytest.approx(np.trace(matrix) / matrix.sum())
    assert data["nll"] > 0
    bins = [one for one in data["reliability"] if one["count"]]
    assert (len(data["reliability"]), sum(one["count"] for one in bins)) == (15, matrix.sum())
    gaps = [one["count"] * abs(one["accuracy"] - one["confidence"]) for one in bins]
    assert data["ece"] == pytest.approx(sum(gaps) / matrix.sum())


def test_the_champion_is_measured_where_none_is_named(trained_copy: CommandLine) -> None:
    out = trained_copy("evaluate", "--confusion").out
    assert out.startswith(f"{SECOND} on val, 3 images")
    lines = [line.split() for line in out.splitlines()]
    for word in ("mIoU", "NLL", "ECE", "smoothed"):
        assert any(line[:1] == [word] for line in lines), word
    assert [line[0] for line in lines if line[1:] and line[0] in NAMES] == NAMES * 2  # the figures, the matrix


def test_compare_shows_checkpoints_side_by_side_with_intervals(trained_copy: CommandLine) -> None:
    answer = trained_copy("evaluate", "--compare", FIRST, SECOND, "--confidence", "0.8")
    assert answer.code == 0, answer.err
    tables = answer.out.split("\n\n")
    for title, table in zip(("IoU", "Dice"), tables[1:3], strict=True):
        lines = [line.split() for line in table.splitlines()]
        assert lines[0] == [title, FIRST, SECOND]
        assert [line[0] for line in lines[1:]] == NAMES
    overall = {line.rsplit(maxsplit=2)[0]: line.split()[-2:] for line in tables[3].splitlines()}
    for version, column in ((FIRST, 0), (SECOND, 1)):
        assert overall["mIoU"][column] == f"{stored(trained_copy, version)['mean_iou', '*']:.3f}"
        assert overall["ECE (15 bins)"][column] == f"{stored(trained_copy, version)['ece', '*']:.3f}"
    title, header, *rows = tables[4].splitlines()
    assert title == f"IoU minus that of {FIRST}, with 80 % bootstrap intervals over images"
    assert header.split() == ["difference", SECOND]
    assert [row.split()[0] for row in rows] == ["mIoU", *NAMES]
    assert all(row.count("(") == row.count(" .. ") == 1 for row in rows)


def test_compare_gives_json_with_differences_from_the_first(trained_copy: CommandLine) -> None:
    data = trained_copy("evaluate", SECOND, FIRST, "--compare", "--json").data
    assert (data["split"], data["images"], data["confidence"]) == ("val", 3, 0.95)
    old, new = data["checkpoints"]
    assert [old["model_version"], new["model_version"]] == [SECOND, FIRST]
    assert "difference" not in old
    assert list(new["difference"]["iou"]) == NAMES
    intervals = {"*": new["difference"]["mean_iou"]} | new["difference"]["iou"]
    expected = {"*": new["mean_iou"] - old["mean_iou"]}
    expected |= {a["name"]: b["iou"] - a["iou"] for a, b in zip(old["classes"], new["classes"], strict=True)}
    for name, interval in intervals.items():
        assert interval["difference"] == pytest.approx(expected[name])
        assert interval["low"] <= interval["high"]


def test_all_figures_are_stored_by_name(trained_copy: CommandLine) -> None:
    data = trained_copy("evaluate", FIRST, "--json").data
    rows = stored(trained_copy, FIRST)
    for name in ("mean_iou", "mean_dice", "pixel_accuracy", "nll", "ece", "smoothed_iou", "smoothed_dice"):
        assert rows[name, "*"] == data[name]
    for row in data["classes"]:
        for name in ("iou", "dice", "accuracy", "truth_pixels", "smoothed_iou", "smoothed_dice"):
            assert rows[name, row["name"]] == row[name]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([FIRST, SECOND], "add --compare"),
        (["--compare", FIRST], "two or more different checkpoints"),
        (["--compare", FIRST, FIRST], "two or more different checkpoints"),
        (["--compare", FIRST, "x"], "no checkpoint 'x'"),
        (["--compare", FIRST, SECOND, "--confidence", "95"], "between 0 and 1"),
        (["--split", "pool"], "expected val, train or test; got 'pool'"),
        (["--split", "test"], "the test split has no annotated images"),
    ],
)
def test_a_call_that_cannot_be_answered_says_why(trained: CommandLine, words: list[Any], told: str) -> None:
    assert told in trained("evaluate", *words).error


def test_a_checkpoint_of_other_classes_is_named(trained_copy: CommandLine) -> None:
    assert trained_copy.config is not None
    (trained_copy.config.parent / "classes.txt").write_text(CLASSES.to_text().replace("ball", "cube"))
    error = trained_copy("evaluate", "--compare", FIRST, SECOND).error
    assert f"{FIRST} knows the classes sky, ground, ball" in error
    assert "cube" in error


def test_overlapping_classes_have_no_confusion_matrix(trained_copy: CommandLine) -> None:
    assert trained_copy.config is not None
    with trained_copy.config.open("a") as file:
        file.write("\n[labels]\noverlap = true\n")
    assert "no confusion matrix" in trained_copy("evaluate", "--confusion").error
