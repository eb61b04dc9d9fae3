from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.commands import CommandLine
from tests.factories import write_balls

FIRST, SECOND = "fcn_mobilenet_v2-0001", "fcn_mobilenet_v2-0002"


def test_status_and_checkpoints_tell_the_champion(trained: CommandLine) -> None:
    status = trained("status", "--json").data
    assert status["champion"]["model_version"] == SECOND
    assert status["images"] == {"pool": 7, "train": 6, "val": 3}
    assert (status["annotations"], status["new_annotations"], status["coverage"]) == (9, 0, 1.0)
    assert "9 that count: 6 for training (0 not trained on yet), 3 for validation\n" in trained("status").out
    assert (
        f"champion     {SECOND}, val mIoU" in trained("status").out or f"champion     {SECOND}, since" in trained("status").out
    )
    rows = trained("checkpoints", "--json").data
    assert [(row["model_version"], row["champion"]) for row in rows] == [(SECOND, True), (FIRST, False)]
    table = trained("checkpoints").out.splitlines()
    assert [line.split()[0] for line in table if line.startswith("*")] == ["*"]


def test_status_of_an_empty_workspace_says_what_comes_next(empty: CommandLine) -> None:
    status = empty("status", "--json").data
    assert (status["champion"], status["coverage"], status["rounds"]) == (None, None, [])
    assert any("first training after 4 more" in line for line in status["next"])
    assert status["next"][0].endswith("/pool and run `activeseg pool sync`")


def test_evaluate_gives_iou_and_dice_by_class(trained_copy: CommandLine) -> None:
    data = trained_copy("evaluate", "--json").data
    assert (data["model_version"], data["split"], data["images"]) == (SECOND, "val", 3)
    for row in data["classes"]:
        if row["iou"] is not None:
            assert row["dice"] == pytest.approx(2 * row["iou"] / (1 + row["iou"]))
    assert "mIoU" in trained_copy("evaluate", FIRST).out


def test_repeating_sync_import_and_score_writes_nothing(trained_copy: CommandLine, trained_folder: Path) -> None:
    images, masks = trained_folder / "train/images", trained_folder / "train/masks"
    again = trained_copy("dataset", "import", "--images", images, "--masks", masks, "--split", "train", "--json").data
    assert (again[0]["written"], again[0]["details"]["unchanged"]) == (0, 6)
    assert trained_copy("score", "--json").data[0]["written"] == 0


def test_an_import_that_leaves_pairs_out_prints_the_reasons_and_fails(empty: CommandLine, tmp_path: Path) -> None:
    write_balls(tmp_path / "images", range(2), masks=tmp_path / "masks")
    (tmp_path / "masks/ball_0001.png").unlink()
    words = ("dataset", "import", "--images", tmp_path / "images", "--masks", tmp_path / "masks", "--split", "train", "--json")
    answer = empty(*words)
    assert (answer.code, answer.err) == (1, "error: left out: 1 pair; the reasons stand above\n")
    report = json.loads(answer.out)[0]
    assert (report["written"], report["failed"], list(report["details"]["problems"].values())) == (
        1,
        1,
        ["no mask ball_0001.png"],
    )


def test_explain_draws_pictures_of_any_image(trained: CommandLine, trained_folder: Path, tmp_path: Path) -> None:
    image = trained_folder / "pool/ball_0001.png"
    data = trained("explain", "image", image, "--out", tmp_path / "out", "--json").data
    assert data["entropy_sum"] > 0
    assert all(Path(file).read_bytes().startswith(b"\x89PNG") for file in data["files"])


def test_a_dry_run_shows_the_query_and_writes_nothing(trained: CommandLine) -> None:
    items = trained("push", "--dry-run", "--json").data
    assert len(items) == 3
    assert trained("push", "--dry-run", "--size", "2", "--json").data != items
    assert trained("status", "--json").data["rounds"] == []


def test_a_round_without_label_studio_waits_for_masks(trained_copy: CommandLine) -> None:
    assert trained_copy.config is not None
    pool = trained_copy.config.parent / "pool"
    reports = {item["stage"]: item for item in trained_copy("round", "run", "--json").data}
    assert pool.is_dir()
    assert reports["hand out"]["written"] == 3
    assert trained_copy("status", "--json").data["rounds"][0]["open"] == 3


def test_rolling_back_twice_says_that_there_is_nothing_left(trained_copy: CommandLine) -> None:
    assert trained_copy("rollback", "--reason", "worse at night", "--json").data[0]["details"]["model_version"] == FIRST
    assert "no champion before this one" in trained_copy("rollback").error
    rows = trained_copy("checkpoints", "--json").data
    assert [(row["decision"], row["reason"]) for row in rows if row["champion"]] == [("rolled_back", "worse at night")]


def test_doctor_says_what_is_wrong_and_goes_on(empty: CommandLine, trained: CommandLine) -> None:
    found = {item["check"]: item for item in json.loads(empty("doctor", "--json").out)}
    assert found["database"]["state"] == "ok"
    assert found["pool"]["state"] == "problem"
    assert "put images there" in found["pool"]["message"]
    assert "1 of" in empty("doctor").error
    healthy = trained("doctor", "--json").data
    assert {item["state"] for item in healthy} <= {"ok", "warning"}
