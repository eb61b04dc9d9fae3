"""Command lines on workspaces: an empty one, and a trained one that all tests share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from activeseg.config import toml_value
from tests.cli.commands import CommandLine
from tests.factories import CLASSES, MODEL, TRAINING, write_balls

TABLES = {
    "pool": {"images": "pool"},
    "model": MODEL,
    "training": TRAINING,
    "scoring": {"batch_size": 2, "chunk_size": 3},
    "selection": {"query_size": 3},
}


def write_configuration(folder: Path) -> Path:
    """A configuration of the tests' small network in `folder`."""
    (folder / "classes.txt").write_text(CLASSES.to_text(), encoding="utf-8")
    tables = [f"[{name}]\n" + "".join(f"{k} = {toml_value(v)}\n" for k, v in table.items()) for name, table in TABLES.items()]
    file = folder / "activeseg.toml"
    file.write_text("\n".join(tables), encoding="utf-8")
    return file


@pytest.fixture
def empty(tmp_path: Path) -> CommandLine:
    """A migrated workspace with nothing in it."""
    (tmp_path / "pool").mkdir()
    command = CommandLine(write_configuration(tmp_path))
    assert command("db", "upgrade").code == 0
    return command


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven scored pool images under the second of two trained checkpoints, made by the commands themselves."""
    folder = tmp_path_factory.mktemp("trained")
    write_balls(folder / "pool", range(7))
    write_balls(folder / "train/images", range(100, 106), masks=folder / "train/masks")
    write_balls(folder / "val/images", range(200, 203), masks=folder / "val/masks")
    command = CommandLine(write_configuration(folder))
    steps: list[tuple[str, ...]] = [("db", "upgrade"), ("pool", "sync")]
    for split in ("train", "val"):
        images, masks = str(folder / split / "images"), str(folder / split / "masks")
        steps.append(("dataset", "import", "--images", images, "--masks", masks, "--split", split))
    steps += [("train",), ("score",), ("train", "--no-promote"), ("promote", "fcn_mobilenet_v2-0002"), ("score",)]
    for step in steps:
        answer = command(*step)
        assert answer.code == 0, (step, answer.err)
    return folder


@pytest.fixture
def trained(trained_folder: Path) -> CommandLine:
    """The shared trained workspace, for commands that only read."""
    return CommandLine(trained_folder / "activeseg.toml")


@pytest.fixture
def trained_copy(trained_folder: Path, tmp_path: Path) -> CommandLine:
    """A trained workspace of the test's own, for commands that write."""
    shutil.copytree(trained_folder, tmp_path / "copy")
    return CommandLine(tmp_path / "copy/activeseg.toml")
