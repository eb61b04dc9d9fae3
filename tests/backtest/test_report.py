"""The command from end to end: what it prints, the report, the rows, and a workspace's own history."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from activeseg.cli.app import app
from activeseg.db.database import Database
from activeseg.db.models import Backtest, BacktestUnit, Split
from activeseg.errors import ConfigError
from activeseg.stages.dataset import import_dataset
from activeseg.workspace import Workspace
from tests.factories import CLASSES, write_balls, write_class_folders

pytestmark = pytest.mark.slow

RECIPE = """
[model]
width = 0.1
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
device = "cpu"
[training]
steps = 3
batch_size = 4
crop = [48, 64]
scale = [1.0, 1.2]
learning_rate = 0.05
warmup_steps = 1
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE, encoding="utf-8")
    return file


def run(*arguments: object) -> Any:
    found = CliRunner().invoke(app, ["backtest", "--workers", "1", *map(str, arguments)])
    assert found.exit_code == 0, (found.output, found.exception)
    return found


def test_the_report_holds_figures_pictures_and_rows(
    labelled: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--data", labelled, "--config", recipe, "--out", "out", "--budgets", "4,7", "--full-steps", 4, "--rare", "ball")
    printed = run(*options, "--seeds", 2).stdout
    assert "entropy_sum" in printed
    assert "out/report.html" in printed
    summary = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert summary["rare"] == ["ball"]
    found = summary["strategies"]["entropy_sum"]
    units = [json.loads((tmp_path / f"out/units/entropy_sum-s{seed}-r1.json").read_text()) for seed in (0, 1)]
    assert found["rounds"][1]["mean_iou"] == pytest.approx(sum(unit["overall"]["mean_iou"] for unit in units) / 2)
    assert found["against_baseline"]["seeds"] == [0, 1]
    assert summary["full"]["labels"] == 14
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert len(re.findall(r'src="data:image/png;base64,', page)) == 5
    assert not re.findall(r'(?:src|href)="(?!data:)', page)  # one file, nothing from elsewhere
    database = Database(f"sqlite:///{tmp_path}/out/backtest.db")
    with database.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(BacktestUnit)) == 9
        curve = session.execute(sa.text("SELECT seeds, mean_iou FROM backtest_curve WHERE strategy = 'random' AND round = 1"))
        [(seeds, mean)] = curve
        assert (seeds, mean) == (2, pytest.approx(summary["strategies"]["random"]["rounds"][1]["mean_iou"]))
    # Again, and for more seeds: the same backtest.
    asked = json.loads(run(*options, "--seeds", 3, "--strategies", "random", "--json").stdout)
    assert asked["strategies"]["random"]["seeds"] == [0, 1, 2]
    with database.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Backtest)) == 1
        assert session.scalar(sa.select(sa.func.count()).select_from(BacktestUnit)) == 11
    database.close()


def test_val_beside_a_clip_held_out_is_told_apart(
    labelled: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--data", labelled, "--config", recipe, "--out", "out", "--budgets", "3,5", "--full-steps", 0, "--seeds", 1)
    printed = run(*options, "--strategies", "random", "--hold-out", "_000[0-2]", "--with-val").stdout
    assert "what was held out of train alone, 3 images" in printed
    assert "val alone, 4 images" in printed
    summary = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    unit = json.loads((tmp_path / "out/units/random-s0-r0.json").read_text(encoding="utf-8"))
    assert (summary["held_out"], len(unit["held_out"])) == (7, 7)
    for part, name in (("train", "ball_000"), ("val", "ball_010")):
        counts = [row for held, row in zip(unit["held_out"], unit["counts"], strict=True) if held.startswith(name)]
        hits, truth, predicted = np.sum(counts, axis=0)
        expected = np.mean(hits / (truth + predicted - hits))
        assert summary["parts"][part]["strategies"]["random"]["rounds"][0]["mean_iou"] == pytest.approx(expected)
    assert "val alone" in (tmp_path / "out/report.html").read_text(encoding="utf-8")

    refused = CliRunner().invoke(app, ["backtest", *map(str, options), "--with-val"])
    assert isinstance(refused.exception, ConfigError)
    assert "--hold-out" in str(refused.exception)


def test_overlapping_classes_other_sizes_and_no_names_of_clips_are_replayed_too(recipe: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_balls(data / "train/images", range(5), masks=tmp_path / "masks/train")
    write_balls(data / "train/images", range(5, 10), masks=tmp_path / "masks/train", width=90, height=40)
    write_class_folders(tmp_path / "masks/train", data / "train/masks")
    for number, file in enumerate(sorted((data / "train/images").iterdir())):
        mask_names = [(folder / file.name, folder / f"{number}x.png") for folder in (data / "train/masks").iterdir()]
        for old, new in [(file, file.with_name(f"{number}x.png")), *mask_names]:
            old.rename(new)
    (data / "classes.txt").write_text(CLASSES.to_text(), encoding="utf-8")
    recipe.write_text(RECIPE + "[labels]\noverlap = true\n", encoding="utf-8")
    options = ("--strategies", "random,class_balanced_entropy", "--full-steps", 0, "--seeds", 1)
    held = ("--hold-out", "[08]x", "--initial", "30%", "--step", "25%", "--until", "55%")
    found = json.loads(run("--data", data, "--config", recipe, "--out", tmp_path / "out", *held, *options, "--json").stdout)
    assert found["held_out"] == 2
    assert [item["labels"] for item in found["strategies"]["class_balanced_entropy"]["rounds"]] == [2, 4]


def test_a_workspace_replays_its_own_annotations_and_keeps_the_rows(
    make_sqlite_workspace: Callable[..., Workspace], tmp_path: Path
) -> None:
    workspace = make_sqlite_workspace(pool=12, pool_section={"group_pattern": r"ball_\d\d(\d\d)"})
    answers = tmp_path / "answers"
    answers.mkdir()
    for file in sorted((tmp_path / "truth").iterdir())[:10]:
        shutil.copy(file, answers)
    (tmp_path / "labelled").mkdir()
    for file in sorted((tmp_path / "pool").iterdir())[:10]:
        shutil.copy(file, tmp_path / "labelled")
    import_dataset(workspace, str(tmp_path / "labelled"), answers, Split.TRAIN)
    database = f'[database]\nurl = "{workspace.settings.database_url}"\n'
    config = tmp_path / "activeseg.toml"
    config.write_text(RECIPE + database, encoding="utf-8")
    options = ("--budgets", "3,5", "--seeds", 1, "--full-steps", 0, "--strategies", "random", "--json")
    found = json.loads(run("--on-history", "--config", config, "--out", tmp_path / "out", *options).stdout)
    assert found["pool"] == 7
    assert found["held_out"] == 3
    with workspace.database.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(BacktestUnit)) == 2
    assert not (tmp_path / "out/backtest.db").exists()


def test_the_report_is_there_though_the_rows_could_not_be_written(
    labelled: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*arguments: object) -> None:
        raise sa.exc.OperationalError("INSERT", {}, Exception("the connection is lost"))

    monkeypatch.setattr("activeseg.backtest.results.backtests.store", lost)
    options = ("--budgets", 4, "--full-steps", 0, "--seeds", 1, "--strategies", "random", "--workers", 1)
    arguments = ("backtest", "--data", labelled, "--config", recipe, "--out", tmp_path / "out", *options)
    found = CliRunner().invoke(app, list(map(str, arguments)))
    assert found.exit_code != 0
    assert "the connection is lost" in str(found.exception)
    assert json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))["strategies"]["random"]["seeds"] == [0]


def test_an_interrupted_backtest_says_how_to_go_on(
    labelled: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("activeseg.backtest.run.run_backtest", interrupted)
    arguments = ("backtest", "--data", labelled, "--config", recipe, "--out", tmp_path / "out", "--budgets", 4)
    found = CliRunner().invoke(app, list(map(str, arguments)))
    assert found.exit_code != 0
    assert "the same command goes on" in found.stderr
    assert str(tmp_path / "out/units") in found.stderr


def test_what_is_asked_for_must_be_there(labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, said in (
        ((), "either --data"),
        (("--data", labelled, "--on-history"), "either --data"),
        (("--on-history",), "replays a workspace"),
        (("--data", labelled, "--budgets", "4", "--rare", "unicorn"), "unicorn"),
        (("--data", labelled, "--strategies", "guess"), "guess"),
        (("--data", labelled), "more images than the one before"),  # 5 % of 14 images is less than one
    ):
        found = CliRunner().invoke(app, ["backtest", "--out", "out", *map(str, arguments)])
        assert found.exit_code != 0
        assert said in str(found.exception)
