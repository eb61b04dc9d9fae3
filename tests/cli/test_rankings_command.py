from __future__ import annotations

import csv
import sqlite3
from contextlib import closing
from itertools import pairwise
from typing import Any

import pytest

from activeseg.cli.output import print_table
from tests.cli.commands import CommandLine
from tests.factories import CLASSES

FIRST, SECOND = "fcn_mobilenet_v2-0001", "fcn_mobilenet_v2-0002"


def order(rows: list[dict[str, Any]]) -> list[int]:
    return [row["image_id"] for row in rows]


def select(command: CommandLine, statement: str) -> list[tuple[Any, ...]]:
    assert command.config is not None
    with closing(sqlite3.connect(command.config.parent / "activeseg.db")) as connection:
        return connection.execute(statement).fetchall()


def test_json_is_the_ranking_view(trained: CommandLine) -> None:
    rows = trained("rankings", "--json").data
    assert len(rows) == 7
    assert all(above["score"] >= below["score"] for above, below in pairwise(rows))
    view = select(trained, "SELECT rank, image_id, uri, entropy_sum FROM uncertainty_ranking ORDER BY rank")
    assert [(row["rank"], row["image_id"], row["uri"], row["score"]) for row in rows] == view
    assert {row["model_version"] for row in rows} == {SECOND}


def test_csv_has_the_same_rows_to_the_last_digit(trained: CommandLine) -> None:
    answer = trained("rankings", "--csv")
    assert "\r" not in answer.out
    rows = list(csv.DictReader(answer.out.splitlines()))
    assert [{k: str(v) for k, v in row.items()} for row in trained("rankings", "--json").data] == rows


def test_the_table_has_a_line_an_image(trained: CommandLine) -> None:
    lines = trained("rankings").out.splitlines()
    assert "all classes" in lines[0]
    assert len(lines) == 2 + 7
    assert all(line.endswith(".png") for line in lines[2:])


def test_small_scores_of_a_table_differ_from_zero(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("rank", "score"), [(1, 0.000224), (2, 1.07e-06), (3, 0.0), (4, 0.0127), (5, 4.5678)])
    shown = [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]]
    assert shown == ["0.000224", "1.07e-06", "0.000", "0.013", "4.568"]


def test_limit(trained: CommandLine) -> None:
    assert trained("rankings", "--limit", "2", "--json").data == trained("rankings", "--json").data[:2]


def test_by_class_sums_the_channel_entropies_of_those_classes(trained: CommandLine) -> None:
    parts = {
        name: {row["image_id"]: row["score"] for row in trained("rankings", "--class", name, "--json").data}
        for name in CLASSES.names
        if name != "void"
    }
    both = trained("rankings", "--class", "sky", "--class", "ball", "--class", "sky", "--json").data
    for row in both:
        assert row["score"] == pytest.approx(parts["sky"][row["image_id"]] + parts["ball"][row["image_id"]], rel=1e-9)
    assert order(both) == [row["image_id"] for row in sorted(both, key=lambda row: (-row["score"], row["image_id"]))]
    for row in trained("rankings", "--json").data:
        assert row["score"] == pytest.approx(sum(scores[row["image_id"]] for scores in parts.values()), rel=1e-5)


def test_a_past_checkpoints_ranking_is_its_own(trained: CommandLine) -> None:
    former = trained("rankings", "--checkpoint", FIRST, "--json").data
    assert {row["model_version"] for row in former} == {FIRST}
    view = f"SELECT image_id FROM uncertainty_ranking_history WHERE model_version = '{FIRST}' ORDER BY rank"
    assert order(former) == [image for (image,) in select(trained, view)]


def test_the_ranking_follows_a_rollback_at_once(trained_copy: CommandLine) -> None:
    former = trained_copy("rankings", "--checkpoint", FIRST, "--json").data
    assert trained_copy("rankings", "--json").data != former
    assert trained_copy("rollback").code == 0
    assert trained_copy("rankings", "--json").data == former


def test_file_names_are_no_markup(trained_copy: CommandLine) -> None:
    assert trained_copy.config is not None
    odd = "file:///pool/[red]a[/b] :car: " + "long" * 80 + ".png"
    with closing(sqlite3.connect(trained_copy.config.parent / "activeseg.db")) as connection:
        connection.execute("UPDATE images SET uri = ? WHERE id = 1", (odd,))
        connection.commit()
    assert odd in trained_copy("rankings").out


def test_an_unknown_class_names_the_known_ones(trained: CommandLine) -> None:
    assert trained("rankings", "--class", "boat").error == "unknown class 'boat'; the label set has: sky, ground, ball, void"


def test_an_unknown_checkpoint_names_the_latest(trained: CommandLine) -> None:
    assert trained("rankings", "--checkpoint", "x").error == f"no checkpoint 'x'; the latest are: {SECOND}, {FIRST}"


def test_json_and_csv_together_are_refused(trained: CommandLine) -> None:
    assert "choose one" in trained("rankings", "--json", "--csv").error


def test_without_a_champion_the_error_says_how_to_get_one(empty: CommandLine) -> None:
    assert "no champion yet: import labelled images" in empty("rankings").error


def test_a_champion_that_scored_nothing_says_what_to_run(trained_copy: CommandLine) -> None:
    assert trained_copy.config is not None
    with closing(sqlite3.connect(trained_copy.config.parent / "activeseg.db")) as connection:
        connection.execute("UPDATE images SET split = 'train'")
        connection.commit()
    answer = trained_copy("rankings", "--json")
    assert answer.data == []
    assert "run `activeseg score`" in answer.err


def test_by_another_function(trained: CommandLine) -> None:
    rows = trained("rankings", "--by", "margin", "--json").data
    stored = select(trained, "SELECT image_id, margin_mean FROM scores ORDER BY margin_mean DESC, image_id")
    margins = dict(stored)
    assert [row["score"] for row in rows] == [margins[row["image_id"]] for row in rows]
    assert all(above["score"] >= below["score"] for above, below in pairwise(rows))
    balanced = trained("rankings", "--by", "class_balanced_entropy").out.splitlines()
    assert f"{SECOND}: class_balanced_entropy" in balanced[0]
    assert len(balanced) == 2 + 7
    missing = trained("rankings", "--by", "bald")
    assert missing.code == 0
    assert "set [selection] acquisition = 'bald' and run `activeseg score`" in missing.err
    unknown = trained("rankings", "--by", "kcenter")
    assert (unknown.code, "unknown acquisition function 'kcenter'" in unknown.err) == (1, True)
