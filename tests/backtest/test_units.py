from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from activeseg.backtest.units import Chosen, Unit, UnitFolder, added_by_round, labelled_after
from tests.backtest.conftest import result

UNIT = Unit(
    fingerprint="f" * 64,
    strategy="entropy_sum",
    seed=2,
    round=1,
    labelled=("a.png", "b.png"),
    chosen=(Chosen("c.png", 1, 3.5, "chosen", "rank 1 of 3"), Chosen("é.png", None, None, "control", "drawn")),
    classes=("sky", "ball"),
    overall={"mean_iou": 0.25, "nll": None},
    iou={"sky": 0.5, "ball": None},
    seconds={"training": 1.5},
    machine={"device": "cpu"},
    held_out=("h.png",),
    counts=np.arange(6).reshape(1, 3, 2),
    details={"steps": 3},
)


def test_a_unit_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    folder = UnitFolder(tmp_path)
    folder.write(UNIT)
    assert folder.names() == ["entropy_sum-s2-r1"]
    found, problem = folder.read(UNIT.name)
    assert problem is None
    assert found is not None
    assert (result(found), replace(found, counts=UNIT.counts).to_json()) == (result(UNIT), UNIT.to_json())
    assert found.counts.dtype == np.int64


@pytest.mark.parametrize("content", ["", "{}", "[1]", UNIT.to_json()[:-30], UNIT.to_json().replace("[[0,1]", "[[0]")])
def test_a_damaged_file_is_told_and_not_used(tmp_path: Path, content: str) -> None:
    (tmp_path / f"{UNIT.name}.json").write_text(content, encoding="utf-8")
    found, problem = UnitFolder(tmp_path).read(UNIT.name)
    assert found is None
    assert problem is not None
    assert "entropy_sum-s2-r1.json is not a unit's file" in problem


def test_a_file_under_another_units_name_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "random-s0-r0.json").write_text(UNIT.to_json(), encoding="utf-8")
    assert UnitFolder(tmp_path).read("random-s0-r0") == (None, "random-s0-r0.json holds the unit entropy_sum-s2-r1")
    assert UnitFolder(tmp_path).read("random-s0-r1") == (None, None)


def test_fields_of_a_later_version_are_left_out(tmp_path: Path) -> None:
    text = UNIT.to_json().replace('"seed": 2', '"seed": 2,\n"invented_later": [1]')
    assert result(Unit.from_json(text)) == result(UNIT)


def test_a_file_that_is_replaced_is_kept_under_another_name(tmp_path: Path) -> None:
    folder = UnitFolder(tmp_path)
    for seconds in (1.0, 2.0, 3.0):
        folder.write(replace(UNIT, seconds={"training": seconds}))
    assert folder.names() == [UNIT.name]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{UNIT.name}.{end}" for end in ("json", "old1", "old2")]


def test_what_rounds_labelled_follows_from_their_choices() -> None:
    first = replace(UNIT, round=0, labelled=("b.png",), chosen=(Chosen("a.png", 1, 1.0, "chosen", ""),))
    assert labelled_after([first]) == UNIT.labelled
    assert added_by_round([first, UNIT]) == [["b.png"], ["a.png"]]
