"""`activeseg report` says what it knows, and what is missing where it knows too little."""

from __future__ import annotations

import pytest

from activeseg.db.database import Database
from activeseg.db.models import Arm
from tests.cli.commands import CommandLine
from tests.db.test_arms import Answers


def test_an_empty_workspace_says_what_is_missing(empty: CommandLine) -> None:
    told = empty("report").out
    assert "too early: 0 of at least 12 answered control images" in told
    data = empty("report", "--json").data
    assert data["worth"]["estimate"] is None
    assert data["chosen"]["asked"] == 0


def test_arms_are_compared_with_intervals(empty: CommandLine) -> None:
    assert empty.config is not None
    database = Database(f"sqlite:///{empty.config.parent / 'activeseg.db'}")
    answers = Answers(database)
    for number in range(6):
        row = answers.round()
        for k in range(3):
            answers.answered(row, Arm.CHOSEN, 0.3 + 0.01 * (number + k), rank=1 + k)
            answers.answered(row, Arm.CONTROL, 0.1 + 0.01 * (number + k), rank=20 + k)
    database.close()
    told = empty("report").out
    assert "a chosen image brings more corrected pixels than a random one" in told
    assert "6 rounds" in told
    data = empty("report", "--json").data
    ratio = data["worth"]["estimate"]
    assert 1 < ratio["low"] < ratio["value"] < ratio["high"]
    assert data["control"] == {
        "asked": 18,
        "annotated": 18,
        "skipped": 0,
        "open": 0,
        "completion": data["control"]["completion"],
        "answers": 18,
    }
    assert empty("report", "--rounds", "1000-2000", "--json").data["rounds"] == 0


@pytest.mark.parametrize("rounds", ["3-1", "x", "1-", "-2", "1-2-3", ""])
def test_a_wrong_range_is_told(empty: CommandLine, rounds: str) -> None:
    assert "--rounds: expected A-B" in empty("report", f"--rounds={rounds}").error
