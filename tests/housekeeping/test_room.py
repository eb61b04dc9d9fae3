"""Nothing is begun without room; what meets a full disk ends with one clear error, and the next run mends it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from activeseg.config import HousekeepingSection
from activeseg.db import checkpoints
from activeseg.db.database import Database
from activeseg.db.models import Image, Split, TrainingRun, TrainingStatus
from activeseg.errors import ConfigError, NoRoomError
from activeseg.housekeeping import require_room, with_room
from activeseg.housekeeping.usage import disk_use
from activeseg.loop import advance_round
from activeseg.stages.dataset import import_dataset
from activeseg.storage.artifacts import ArtifactStore
from activeseg.workspace import Workspace
from tests.canonical import canonical_dump, differences
from tests.factories import write_balls
from tests.housekeeping.conftest import Store


def test_below_the_floor_nothing_is_begun_and_it_is_said_what_to_do(make_sqlite_workspace: Callable[..., Workspace]) -> None:
    workspace = make_sqlite_workspace(pool=4, housekeeping={"min_free_gb": 1e6}, selection={"bootstrap_size": 2})
    expected = (
        r"GB free on the disk of the artifacts folder \(.*\), \[housekeeping\] min_free_gb asks for 1e\+06 .*`activeseg gc`"
    )
    with pytest.raises(NoRoomError, match=expected):
        advance_round(workspace, None)
    with workspace.database.read() as session:
        assert session.query(Image).count() == 0
    settings = workspace.settings.model_copy(update={"housekeeping": HousekeepingSection(min_free_gb=0)})
    reports = {one.stage: one.written for one in advance_round(Workspace(settings, workspace.database), None)}
    assert (reports["pool sync"], reports["hand out"]) == (4, 2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte, mounted where artifacts lie."""
    folder = tmp_path / "artifacts"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("no disk can be mounted here: run as root with CAP_SYS_ADMIN")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_leaves_no_half_file(small_disk: Path) -> None:
    store = ArtifactStore(small_disk)
    store.put(b"first", "mask", ".png")

    def fill() -> None:
        while True:
            store.put(os.urandom(100_000), "mask", ".png")

    with pytest.raises(NoRoomError, match=r"no room left to write .*/masks/.* \(No space left on device\): run `activeseg gc`"):
        fill()
    assert len(list(store.files("mask"))) > 3
    for file in store.files("mask"):
        assert store.read(file.location)
    assert not list((small_disk / "incoming").iterdir())


def test_a_training_that_met_a_full_disk_goes_on_when_there_is_room(
    make_sqlite_workspace: Callable[..., Workspace], small_disk: Path, tmp_path: Path
) -> None:
    workspace = make_sqlite_workspace(pool=4, housekeeping={"min_free_gb": 0}, selection={"bootstrap_size": 2})
    write_balls(tmp_path / "train", range(100, 106), masks=tmp_path / "masks")
    import_dataset(workspace, str(tmp_path / "train"), tmp_path / "masks", Split.TRAIN)
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 20_000))
    with pytest.raises(NoRoomError, match="no room left to write"):
        advance_round(workspace, None)
    with workspace.database.read() as session:
        run = session.scalars(sa.select(TrainingRun)).one()
        assert (run.status, checkpoints.champion(session)) == (TrainingStatus.RUNNING, None)
    filler.unlink()
    reports = {one.stage: one.written for one in advance_round(workspace, None)}
    assert (reports["train"], reports["promote"]) == (1, 1)
    with workspace.database.read() as session:
        assert session.scalars(sa.select(TrainingRun)).one().status == TrainingStatus.DONE


def test_a_full_database_ends_a_transaction_and_the_next_one_goes_on(database: Database) -> None:
    before = canonical_dump(database)
    if database.dialect == "sqlite":
        limit = [40]

        def few_pages(connection: sa.Connection) -> None:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {limit[0]}")

        database.close()
        sa.event.listen(database.engine, "begin", few_pages)
    else:

        def full(connection: object, cursor: object, statement: str, *rest: object) -> None:
            if statement.startswith("INSERT"):  # as the server says it; its own disk is not ours to fill
                raise psycopg.errors.DiskFull('could not extend file "base/1/2": No space left on device')

        sa.event.listen(database.engine, "before_cursor_execute", full)

    def write() -> None:
        with database.write() as session:
            rows = (Image(uri=f"{number} {'x' * 900}", sha256=str(number), size_bytes=1, split=Split.POOL, status="active")
                    for number in range(3000))  # fmt: skip
            session.add_all(rows)

    with pytest.raises(NoRoomError, match=r"no room left for database .*\(.*full|No space left.*\): run `activeseg gc`"):
        write()
    assert differences(canonical_dump(database), before) == {}
    if database.dialect == "sqlite":
        limit[0] = 1_000_000
    else:
        sa.event.remove(database.engine, "before_cursor_execute", full)
    write()
    with database.read() as session:
        assert session.query(Image).count() == 3000


def test_an_artifacts_folder_that_cannot_be_written_is_named(house: Store) -> None:
    house.file("mask")
    shutil.rmtree(house.artifacts.root / "owners")
    (house.artifacts.root / "owners").write_text("in the way")
    with pytest.raises(ConfigError, match=r"cannot write to the artifacts folder .*artifacts: "):
        require_room(house.workspace)


def test_other_errors_of_files_stay_what_they_are(house: Store) -> None:
    with pytest.raises(FileNotFoundError), with_room(house.workspace):
        Path("/nowhere/at/all").read_bytes()


def test_disk_use_is_told_by_kind(house: Store) -> None:
    mask, checkpoint = house.file("mask"), house.file("checkpoint", suffix=".safetensors")
    root = house.artifacts.root
    for name, size in (("compiled/a/b.so", 700), ("training/1-0a1b2c3d.safetensors", 50), ("incoming/x", 3)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * size)
    (house.workspace.settings.root / "logs").mkdir()
    (house.workspace.settings.root / "logs/run.jsonl").write_bytes(b"{}\n")
    found = disk_use(house.workspace)
    sizes = [house.artifacts.path(location).stat().st_size for location in (mask, checkpoint)]
    assert [found[kind] for kind in ("masks", "checkpoints", "weights", "pictures")] == [*sizes, 0, 0]
    assert [found[kind] for kind in ("compiled", "training", "incoming", "logs")] == [700, 50, 3, 3]
    assert found["database"] > 10_000
    assert found["free"] <= shutil.disk_usage(root).free * 1.1


def test_room_is_asked_for_where_nothing_is_yet(house: Store) -> None:
    shutil.rmtree(house.artifacts.root)
    require_room(house.workspace)
