"""gc, backup, restore and the disk lines of status, as people call them."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from activeseg.config import load_settings
from activeseg.db import labeling
from activeseg.db.models import Prediction
from activeseg.storage.artifacts import ArtifactStore
from tests.cli.commands import CommandLine
from tests.cli.conftest import trained_copy, trained_folder
from tests.housekeeping.conftest import Store

__all__ = ["trained_copy", "trained_folder"]

FIRST, SECOND, THIRD = "fcn_mobilenet_v2-0001", "fcn_mobilenet_v2-0002", "fcn_mobilenet_v2-0003"


def test_from_a_first_gc_to_a_restored_workspace(
    trained_copy: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = load_settings(trained_copy.config).root
    store = ArtifactStore(root / "artifacts")
    disk = trained_copy("status", "--json").data["disk"]
    assert disk["checkpoints"] > 100_000
    assert disk["masks"] > 0
    assert "disk         masks " in trained_copy("status").out

    monkeypatch.setenv("ACTIVESEG_TRAINING__STEPS", "5")  # the first two are equal, and share a file
    assert trained_copy("train", "--no-promote", "--json").data
    assert trained_copy("promote", THIRD, "--json").data
    text = trained_copy.config.read_text() + "[housekeeping]\nkeep_days = 0\nkeep_checkpoints = 0\n"
    trained_copy.config.write_text(text)
    assert trained_copy("gc", "--json").data[0]["written"] == 0, "stored a moment ago, all of it"
    for file in store.files("checkpoint"):
        os.utime(store.path(file.location), (time.time() - 2 * 86400,) * 2)
    assert "0 files removed" in trained_copy("gc").out, "a rollback goes to one, the other is the champion"
    assert trained_copy("rollback", "--json").data
    planned = trained_copy("gc", "--dry-run").out
    assert "1 file would be removed" in planned
    assert "checkpoints kept: 1 a rollback goes there, 1 champion" in planned
    done = trained_copy("gc", "--json").data[0]
    assert (done["details"]["checkpoints"], done["details"]["bytes"] > 100_000) == (1, True)
    for words in (("promote", THIRD), ("evaluate", THIRD), ("rollback", THIRD)):
        assert "its file was removed by gc on 20" in trained_copy(*words).error
    rows = {row["model_version"]: row["file_removed"] for row in trained_copy("checkpoints", "--json").data}
    assert (rows[FIRST], rows[SECOND]) == (None, None)
    assert rows[THIRD].startswith("20")
    assert "file removed by gc" in trained_copy("checkpoints").out

    told = trained_copy("backup", tmp_path / "backups").out
    assert "backup: 1 written" in told
    before = trained_copy("status", "--json").data
    assert "has data: " in trained_copy("restore", tmp_path / "backups").error
    shutil.rmtree(root / "artifacts")
    for file in root.glob("activeseg.db*"):
        file.unlink()
    assert trained_copy("restore", tmp_path / "backups", "--json").data[0]["stage"] == "restore"
    after = trained_copy("status", "--json").data
    assert [after[name] for name in ("champion", "images", "annotations")] == [
        before[name] for name in ("champion", "images", "annotations")
    ]
    assert trained_copy("evaluate", "--json").data["model_version"] == SECOND
    assert "no backup in" in trained_copy("restore", tmp_path / "nowhere").error


def test_a_prediction_whose_map_was_removed_is_drawn_again(house: Store) -> None:
    checkpoint, image, other = house.checkpoint(), house.image(), house.image()
    kept = house.predicted(other, "checkpoint:m")
    row, mask, _ = house.predicted(image, "checkpoint:m")
    house._set(Prediction, row, checkpoint_id=checkpoint, entropy_location=None)
    house._set(Prediction, kept[0], checkpoint_id=checkpoint)
    with house.database.write() as session:
        images = [other, image]
        assert labeling.drawn(session, "checkpoint:m", images) == {other}
        fresh = Prediction(image_id=image, source="checkpoint:m", mask_location=mask, mask_sha256="0" * 64,
                           entropy_location="pictures/new")  # fmt: skip
        assert labeling.store_prediction(session, fresh).id == row
        assert labeling.drawn(session, "checkpoint:m", images) == set(images)
