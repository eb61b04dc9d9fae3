from __future__ import annotations

import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from activeseg import cli
from activeseg.config import load_settings
from activeseg.db.database import Database, idle_at_most
from tests.cli.commands import CommandLine


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("pool sync", "no images in"),
        ("round run", "no images in"),
        ("score", "no champion yet"),
        ("train", "0 annotated training images"),
        ("evaluate", "no champion yet"),
        ("evaluate --split night", "--split: expected val, train or test"),
        ("promote x", "no checkpoint 'x'; the latest are: none"),
        ("rollback", "no champion before this one"),
        ("rollback x", "no checkpoint 'x'"),
        ("rankings", "no champion yet"),
        ("push", "no Label Studio: set [labelstudio] url"),
        ("push --classifier resnet18", "--classifier, --weights, --categories and --map belong to --pre-annotate graphcut"),
        ("push --pre-annotate graphcut", "--pre-annotate graphcut needs --classifier"),
        ("push --pre-annotate graphcut --classifier resnet18 --map cat", "--map: expected CATEGORY=CLASS, got 'cat'"),
        ("push --pre-annotate graphcut --classifier x", "unknown classification network 'x'; known: alexnet"),
        ("pull", "no Label Studio: set [labelstudio] url"),
        ("explain image nowhere.png", "no champion yet"),
        ("weights import nowhere.pth", "cannot read weights nowhere.pth"),
        ("dataset import --images nowhere --masks nowhere --split val", "mask folder nowhere does not exist"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_step_that_lacks_something_says_so_in_a_line(empty: CommandLine, words: str, expected: str, as_json: bool) -> None:
    assert expected in empty(*words.split(), *(["--json"] if as_json else [])).error


def test_beside_a_champion_no_other_masks_are_drawn(trained: CommandLine) -> None:
    error = trained("push", "--pre-annotate", "graphcut", "--classifier", "resnet18").error
    assert error == "--pre-annotate: the champion fcn_mobilenet_v2-0002 draws its own masks, which are better; leave it out"


@pytest.mark.parametrize("command", ["status", "rankings", "db upgrade", "pool sync", "doctor", "push", "schedule", "serve"])
def test_without_a_configuration_every_command_names_init(tmp_path: Path, command: str) -> None:
    assert "run `activeseg init`" in CommandLine(tmp_path / "activeseg.toml")(*command.split()).error


@pytest.mark.parametrize("line", ["stepz = 1", 'steps = "x"', "steps ="])
def test_a_wrong_configuration_is_one_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "activeseg.toml"
    file.write_text(f"[training]\n{line}\n")
    assert str(file) in CommandLine(file)("status").error


def test_a_missing_pool_folder_is_named(empty: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "pool").rmdir()
    assert f"image folder {tmp_path}/pool does not exist" in empty("pool", "sync").error


def test_a_missing_class_list_is_named(empty: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").unlink()
    assert f"class list {tmp_path}/classes.txt cannot be read" in empty("rankings", "--class", "sky").error


@pytest.mark.parametrize("command", ["push", "pull", "round run"])
def test_a_label_studio_that_is_not_there_is_one_line(
    trained_copy: CommandLine, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("ACTIVESEG_LABELSTUDIO__URL", "http://127.0.0.1:9")
    assert "token" in trained_copy(*command.split()).error
    monkeypatch.setenv("ACTIVESEG_LABELSTUDIO__TOKEN", "sesame-open-9")
    error = trained_copy(*command.split()).error
    assert "http://127.0.0.1:9" in error
    assert "sesame" not in error


def test_who_was_stopped_in_the_middle_of_a_write_is_told_to_run_it_again(database: Database) -> None:
    if database.dialect == "sqlite":
        pytest.skip("SQLite waits for the process")

    def pause() -> None:
        with database.write() as session:
            session.execute(sa.select(idle_at_most(0.1)))
            time.sleep(0.5)
            session.execute(sa.select(1))

    with pytest.raises(sa.exc.DBAPIError) as raised:
        pause()
    assert "nothing of it was written; run it again" in (cli._known_problem(raised.value) or "")


def test_a_broken_image_is_no_traceback(trained: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert "broken.png" in trained("explain", "image", tmp_path / "broken.png").error


def test_altered_weights_are_refused(trained_copy: CommandLine) -> None:
    assert trained_copy.config is not None
    for file in (trained_copy.config.parent / "artifacts").rglob("*.safetensors"):
        file.chmod(0o644)
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert trained_copy("evaluate").error


class TestInit:
    """`activeseg init`."""

    @pytest.fixture
    def classes(self, tmp_path: Path) -> Path:
        """A class list."""
        file = tmp_path / "classes.txt"
        file.write_text("sky #0000ff\nroad #00ff00\nvoid #000000 ignore\n")
        return file

    def test_writes_a_file_that_loads_from_anywhere(
        self, tmp_path: Path, classes: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        answer = CommandLine()("init", "new/place", "--images", "pool", "--classes", "classes.txt", "--json")
        assert answer.data == {"file": "new/place/activeseg.toml", "classes": ["sky", "road", "void"]}
        settings = load_settings(tmp_path / "new/place/activeseg.toml")
        assert settings.images_uri == str(tmp_path / "pool")
        assert settings.labels.file == classes

    def test_keeps_a_uri(self, tmp_path: Path, classes: Path) -> None:
        CommandLine()("init", tmp_path, "--images", "s3://bucket/pool", "--classes", classes)
        assert load_settings(tmp_path / "activeseg.toml").images_uri == "s3://bucket/pool"

    def test_refuses_to_overwrite(self, tmp_path: Path, classes: Path) -> None:
        words = ("init", tmp_path, "--images", "pool", "--classes", classes)
        assert CommandLine()(*words).code == 0
        (tmp_path / "activeseg.toml").write_text("# mine\n")
        assert "exists already" in CommandLine()(*words).error
        assert (tmp_path / "activeseg.toml").read_text() == "# mine\n"

    @pytest.mark.parametrize(("content", "expected"), [(b"\xff\xfe", "not UTF-8"), (b"sky\n", "classes"), (b"", "class")])
    def test_refuses_a_class_list_that_is_none(self, tmp_path: Path, classes: Path, content: bytes, expected: str) -> None:
        classes.write_bytes(content)
        assert expected in CommandLine()("init", tmp_path / "new", "--images", "pool", "--classes", classes).error
        assert not (tmp_path / "new").exists()

    def test_refuses_a_missing_class_list_and_a_file_for_a_folder(self, tmp_path: Path, classes: Path) -> None:
        assert "does not exist" in CommandLine()("init", tmp_path, "--images", "pool", "--classes", tmp_path / "no").error
        assert "is a file" in CommandLine()("init", classes, "--images", "pool", "--classes", classes).error
