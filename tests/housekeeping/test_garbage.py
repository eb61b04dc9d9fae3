"""`activeseg gc` removes what nothing needs, and nothing else, whatever happens beside it."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from activeseg.config import Settings
from activeseg.db import checkpoints, lease, retention
from activeseg.db.database import Database
from activeseg.db.models import Decision, Prediction, QueryStatus, Round, RoundStatus, TrainingRun, TrainingStatus
from activeseg.db.models.columns import now
from activeseg.errors import CheckpointError, ConfigError, LeaseError
from activeseg.housekeeping import collect_garbage, garbage, owners
from activeseg.housekeeping.exclusive import files_lease
from activeseg.stages.promote import promote_by_hand, rollback
from activeseg.storage import removal
from activeseg.workspace import Workspace
from tests.housekeeping.conftest import DAY, Store, claimed


def closed_round(house: Store, *, days: float = 60) -> int:
    return house.round(RoundStatus.CLOSED, closed_at=now() - timedelta(days=days))


def test_checkpoints_beyond_the_kept_ones_lose_their_file_and_say_so(make_house: Callable[..., Store]) -> None:
    house = claimed(make_house(housekeeping={"min_free_gb": 0, "keep_checkpoints": 2, "keep_rollbacks": 1}))
    former = [house.trained(Decision.PROMOTED) for _ in range(3)]
    champion = house.trained(Decision.PROMOTED)
    refused = [house.trained() for _ in range(3)]
    undecided, young = house.trained(None), house.trained(days=3)
    report = collect_garbage(house.workspace)
    gone = [location for _, location in (*former[:2], *refused)]
    kept = [location for _, location in (former[2], champion, undecided, young)]
    assert [house.has(location) for location in gone + kept] == [False] * 5 + [True] * 4
    assert (report.written, report.details["checkpoints"]) == (5, 5)
    today = removal.day_of(time.time())
    for read in (house.artifacts.read, house.artifacts.require):
        with pytest.raises(CheckpointError, match=f"its file was removed by gc on {today}; restore .* or go back to another"):
            read(gone[0])
    assert house.artifacts.removed(gone[0]) == today
    assert house.artifacts.removed(kept[0]) is None
    assert collect_garbage(house.workspace).written == 0


def test_no_pointer_moves_to_a_checkpoint_whose_file_is_gone(make_house: Callable[..., Store]) -> None:
    house = claimed(make_house(housekeeping={"min_free_gb": 0, "keep_checkpoints": 0, "keep_rollbacks": 1}))
    first, second, third = (house.trained(Decision.PROMOTED)[0] for _ in range(3))
    collect_garbage(house.workspace)
    with house.database.read() as session:
        names = [session.get_one(checkpoints.Checkpoint, row).model_version for row in (first, second, third)]
    for move in (rollback, promote_by_hand):
        with pytest.raises(CheckpointError, match="removed by gc"):
            move(house.workspace, names[0], decided_by="me", reason="test")
    assert rollback(house.workspace, None, decided_by="me", reason="test").details["model_version"] == names[1]
    with pytest.raises(CheckpointError, match="removed by gc"):
        rollback(house.workspace, None, decided_by="me", reason="test")
    with house.database.read() as session:
        assert checkpoints.require_champion(session).id == second


def test_what_a_training_goes_on_from_stays(make_house: Callable[..., Store]) -> None:
    house = claimed(make_house(housekeeping={"min_free_gb": 0, "keep_checkpoints": 0}))
    parent, location = house.trained()
    house.trained(Decision.PROMOTED)
    run = TrainingRun(status=TrainingStatus.RUNNING, reason="test", configuration={}, code_version="0", num_images=1,
                      label_set_id=house.label_set(), parent_id=parent)  # fmt: skip
    house.add(run)
    training = house.artifacts.root / "training"
    training.mkdir()
    with house.database.read() as session:
        state = checkpoints.state_name(session.get_one(TrainingRun, run.id))
    for name in (state, "7-0a1b2c3d.safetensors", "8-0a1b2c3d.safetensors", "notes.txt"):
        (training / name).write_bytes(b"state")
        house.age(training / name, 0.5 if name.startswith("8") else 2)
    assert collect_garbage(house.workspace).details["training states"] == 1
    assert sorted(path.name for path in training.iterdir()) == sorted([state, "8-0a1b2c3d.safetensors", "notes.txt"])
    assert house.has(location)


def test_every_version_of_every_annotation_keeps_its_mask(house: Store) -> None:
    image, project = house.image(), house.project()
    masks = [house.annotated(image, outside=(project, 7), at=minute) for minute in (1, 2)] + [house.annotated(image)]
    weights, orphan = house.file("weights", suffix=".safetensors"), house.file("mask")
    assert collect_garbage(house.workspace).details["masks"] == 1
    assert all(map(house.has, [*masks, weights]))
    assert not house.has(orphan)


def test_what_open_tasks_show_stays_and_answered_ones_lose_the_map(house: Store) -> None:
    images = [house.image() for _ in range(6)]
    files = [house.predicted(image) for image in images]
    former = house.predicted(images[0], "checkpoint:former")
    open_round, answered, late = house.round(), closed_round(house), closed_round(house, days=3)
    house.task(house.query(open_round, images[0]), files[0][0])
    house.query(open_round, images[1], QueryStatus.SELECTED)  # drawn, its task not planned yet
    house.task(house.query(answered, images[2], QueryStatus.ANNOTATED), files[2][0])
    house.task(house.query(late, images[3], QueryStatus.ANNOTATED), files[3][0])
    house.query(answered, images[4], QueryStatus.SKIPPED)  # handed out without Label Studio
    house.task(house.query(answered, images[5], QueryStatus.ANNOTATED), files[5][0])
    house.annotated(images[5], days=2)  # changed the other day
    report = collect_garbage(house.workspace)
    # The mask of a task stays: an annotation that is edited later is compared with it.
    there = [(house.has(mask), house.has(entropy)) for _, mask, entropy in [*files, former]]
    assert there == [(True, True), (True, True), (True, False), (True, True), (False, False), (True, True), (True, True)]
    assert (report.details["masks"], report.details["pictures"]) == (1, 2)
    with house.database.read() as session:
        rows = {row.id: row.entropy_location for row in session.query(Prediction)}
    assert files[4][0] not in rows
    assert rows[files[2][0]] is None


def test_nobody_waits_longer_than_for_a_handful_of_predictions(house: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = [house.predicted(house.image()) for _ in range(5)]
    house.task(house.query(closed_round(house), house.image(), QueryStatus.ANNOTATED), house.predicted(house.image())[0])
    forget, parts = retention.forget_predictions, []

    def count() -> int:
        with house.database.engine.connect() as other:
            return int(other.exec_driver_sql("SELECT count(*) FROM predictions").scalar_one())

    def noted(session: Session, part: retention.Done) -> None:
        parts.append((count(), len(part.rows), len(part.maps)))  # what others see by now
        forget(session, part)

    monkeypatch.setattr(retention, "forget_predictions", noted)
    monkeypatch.setattr(garbage, "ROWS", 2)
    collect_garbage(house.workspace)
    assert parts == [(6, 2, 0), (4, 2, 0), (2, 1, 0), (1, 0, 1)]
    assert not any(house.has(file) for _, *files in predictions for file in files)


def test_files_no_row_names_go_after_a_day(house: Store) -> None:
    old, young = house.file("mask", days=1.1), house.file("mask", days=0.9)
    assert collect_garbage(house.workspace).written == 1
    assert (house.has(old), house.has(young)) == (False, True)


def test_bytes_that_are_stored_again_count_as_new(house: Store) -> None:
    location = house.file("mask")
    data = house.artifacts.read(location)
    house.artifacts.put(data, "mask", ".png")
    assert collect_garbage(house.workspace).written == 0
    assert house.has(location)


def test_a_dry_run_tells_the_same_and_changes_nothing(house: Store) -> None:
    house.trained(Decision.PROMOTED)
    image = house.image()
    house.predicted(image)
    house.file("mask")
    before = sorted(house.artifacts.root.rglob("*"))
    with lease.holding(house.database):  # also while somebody works
        planned = collect_garbage(house.workspace, dry_run=True)
    assert sorted(house.artifacts.root.rglob("*")) == before
    done = collect_garbage(house.workspace)
    assert planned.details.pop("dry run")
    assert (planned.written, planned.details) == (done.written, done.details)
    assert done.written == 3


def test_leftovers_compiled_networks_and_old_logs_go(make_house: Callable[..., Store], tmp_path: Path) -> None:
    house = claimed(make_house(log={"dir": "logs"}))
    house.trained(Decision.PROMOTED, days=1)
    root = house.artifacts.root
    digest = "ab" * 32
    names = ["incoming/x.txt", f"incoming/{digest}.png.77.0a1b2c3d", "compiled/fxgraph/x/y.py", "compiled/costs.json"]
    for name in [
        *names,
        "../logs/20260101-020000-round-7.jsonl",
        "../logs/mine.txt",
        "../logs/mine.jsonl",
        f"incoming/{digest}.png.78.0a1b2c3d",
    ]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
        house.age(root / name, 0.5 if ".78." in name else 40)
    report = collect_garbage(house.workspace)
    assert {kind: report.details[kind] for kind in ("leftovers", "compiled", "logs")} == dict.fromkeys(
        ("leftovers", "compiled", "logs"), 1
    )
    left = {path.name for folder in (root, tmp_path / "logs") for path in folder.rglob("*") if path.is_file()}
    assert {"x.txt", "costs.json", "mine.txt", "mine.jsonl", f"{digest}.png.78.0a1b2c3d"} <= left


def test_nothing_is_removed_where_another_database_stores_files(house: Store, tmp_path: Path) -> None:
    orphan = house.file("mask")
    other = tmp_path / "artifacts/owners/0123456789abcdef.json"
    own = json.loads(next((tmp_path / "artifacts/owners").glob("*.json")).read_text())
    other.write_text(json.dumps(own | {"database": "sqlite:////srv/other.db", "identity": "another", "place": "/srv/other.db"}))
    for dry_run in (True, False):
        with pytest.raises(ConfigError, match=r"another database, too: sqlite:////srv/other.db; nothing is removed"):
            collect_garbage(house.workspace, dry_run=dry_run)
    assert house.has(orphan)
    other.unlink()
    assert collect_garbage(house.workspace).written == 1


def test_a_copy_of_the_database_is_another_owner(house: Store, tmp_path: Path) -> None:
    if house.database.dialect != "sqlite":
        pytest.skip("a copy of a file")
    copy = tmp_path / "copy.db"
    with closing(sqlite3.connect(str(house.database.url.database))) as old, closing(sqlite3.connect(copy)) as new:
        old.backup(new)
    database = Database(f"sqlite:///{copy}")
    workspace = Workspace(Settings(root=tmp_path, database={"url": f"sqlite:///{copy}"}), database)
    with pytest.raises(ConfigError, match="another database"):
        owners.require_alone(workspace)
    database.close()


def test_a_workspace_that_was_moved_or_copied_as_a_whole_owns_its_folder(house: Store, tmp_path: Path) -> None:
    if house.database.dialect != "sqlite":
        pytest.skip("a folder with its database")
    for name, bring in (("copied", shutil.copytree), ("moved", lambda old, new: old.rename(new))):
        place = tmp_path / name
        place.mkdir()
        (tmp_path / "classes.txt").replace(place / "classes.txt") if name == "moved" else None
        source = Path(str(house.database.url.database))
        house.database.close()
        bring(house.artifacts.root, place / "artifacts")
        (shutil.copyfile if name == "copied" else os.rename)(source, place / "own.db")
        database = Database(f"sqlite:///{place / 'own.db'}")
        workspace = Workspace(Settings(root=place, database={"url": str(database.url)}), database)
        own = owners.require_alone(workspace)
        assert own is not None
        assert own.place == str(place / "own.db")
        database.close()


def test_files_from_before_the_folder_was_claimed_wait_for_other_databases(make_house: Callable[..., Store]) -> None:
    house = make_house()
    _, released, _ = house.predicted(house.image())  # its row says that it was ours
    unknown = house.file("mask", days=60)
    collect_garbage(house.workspace)
    assert (house.has(unknown), house.has(released)) == (True, False)
    claimed(house, days=31)
    collect_garbage(house.workspace)
    assert not house.has(unknown)


def test_garbage_waits_for_the_loop_and_for_backups(house: Store) -> None:
    other = Workspace(house.workspace.settings, Database(house.database.url.render_as_string(hide_password=False)))
    with lease.holding(other.database), pytest.raises(LeaseError, match="another process is at work"):
        collect_garbage(house.workspace)
    with files_lease(other), pytest.raises(LeaseError, match="a backup is being made"):
        collect_garbage(house.workspace)
    other.database.close()


def test_a_holder_that_was_paused_removes_nothing_after_another_took_over(
    house: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had read is old news: a rollback may have made a champion of what it wanted to remove."""
    orphan = house.file("mask")
    found = garbage._found

    def taken_over(*arguments: object) -> object:
        with house.database.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE leases SET token = token + 1 WHERE name = 'loop'")
        return found(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(garbage, "_found", taken_over)
    with pytest.raises(LeaseError):
        collect_garbage(house.workspace)
    assert house.has(orphan)


@pytest.mark.parametrize("moment", ["looked at", "moved aside"])
def test_bytes_stored_while_they_are_taken_away_stay(house: Store, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Whoever stores the very bytes that are being removed has them afterwards, and the file that is removed is an old one."""
    location = house.file("mask")
    data = house.artifacts.read(location)

    def store(*arguments: object) -> None:
        assert house.artifacts.put(data, "mask", ".png").location == location

    def renamed(path: Path, target: Path) -> None:
        os.rename(path, target)
        store()

    if moment == "looked at":
        monkeypatch.setattr(removal, "_write_note", store)
    else:
        monkeypatch.setattr(Path, "rename", renamed)
    gone = removal.take_away(house.artifacts, location, older_than=time.time() - DAY, note="2026-11-01")
    assert house.artifacts.read(location) == data
    assert gone == (moment == "moved aside")
    assert not [path for path in (house.artifacts.root / "incoming").rglob("*") if path.is_file()]


KILLED = """
import os, signal, sys
from pathlib import Path
from activeseg.config import Settings
from activeseg.db.database import Database
from activeseg.housekeeping import collect_garbage
from activeseg.workspace import Workspace
from activeseg.storage import removal
root, url, step = sys.argv[1:]
die = lambda *args, **kw: os.kill(os.getpid(), signal.SIGKILL)
calls = []
def second(real):
    def call(*args, **kw):
        calls.append(1)
        return die() if len(calls) == 2 else real(*args, **kw)
    return call
if step == "note": removal._write_note = second(removal._write_note)
if step == "rename": Path.rename = second(Path.rename)
if step == "unlink": Path.unlink = second(Path.unlink)
if step == "tables":
    from activeseg.housekeeping import garbage
    garbage._found = die
if step == "commit":
    from activeseg.db import retention
    retention.forget_predictions = die
if step == "handful":
    from activeseg.db import retention
    from activeseg.housekeeping import garbage
    garbage.ROWS, retention.forget_predictions = 1, second(retention.forget_predictions)
rules = {"min_free_gb": 0, "keep_checkpoints": 0}
settings = Settings(root=root, database={"url": url}, housekeeping=rules)
collect_garbage(Workspace(settings, Database(url)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("step", ["commit", "handful", "tables", "note", "rename", "unlink"])
def test_killed_anywhere_the_next_run_mends_it(make_house: Callable[..., Store], tmp_path: Path, step: str) -> None:
    house = claimed(make_house(housekeeping={"min_free_gb": 0, "keep_checkpoints": 0}))
    gone = [house.trained()[1] for _ in range(2)] + [house.file("mask")]
    gone += [file for _ in range(2) for file in house.predicted(house.image())[1:]]
    kept = [house.trained(Decision.PROMOTED)[1], house.annotated(house.image()), house.predicted(asked := house.image())[1]]
    house.query(house.round(), asked)
    url = house.database.url.render_as_string(hide_password=False)
    died = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), url, step], check=False)
    assert died.returncode == -9
    assert all(map(house.has, kept))
    collect_garbage(house.workspace)
    assert all(map(house.has, kept))
    assert not any(map(house.has, gone))
    assert not list((house.artifacts.root / "incoming").rglob("*.*"))
    assert collect_garbage(house.workspace).written == 0
    with house.database.read() as session:
        assert session.query(Round).count() == 1
