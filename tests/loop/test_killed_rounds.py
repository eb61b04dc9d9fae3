"""A round killed at any commit goes on where it stopped and ends the same."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from activeseg.config import load_settings, toml_value
from activeseg.db import labeling, lease
from activeseg.db.database import Database
from activeseg.db.models import Task
from activeseg.labelstudio.registration import open_client, open_project
from activeseg.reconciliation import reconcile
from activeseg.workspace import open_workspace
from tests.canonical import canonical_dump, differences
from tests.factories import CLASSES, MODEL, TRAINING, write_balls
from tests.forked import exit_status
from tests.loop.worker import advance, advance_and_copy, advance_with_label_studio, answer

TABLES = {
    "pool": {"images": "pool"},
    "labels": {"file": "classes.txt"},
    "model": MODEL,
    "training": TRAINING | {"steps": 3},
    "scoring": {"batch_size": 2, "chunk_size": 4},
    "selection": {"bootstrap_size": 6, "query_size": 3, "val_size": 2, "refill_below": 1},
}


@pytest.fixture
def site(tmp_path: Path, migrated_sqlite: Path) -> Path:
    """A configured folder with a pool and an empty database; returns its activeseg.toml."""
    folder = tmp_path / "site"
    write_balls(folder / "pool", range(12), masks=folder / "truth")
    (folder / "classes.txt").write_text(CLASSES.to_text(), encoding="utf-8")
    shutil.copyfile(migrated_sqlite, folder / "activeseg.db")
    lines = [f"[{name}]\n" + "".join(f"{k} = {toml_value(v)}\n" for k, v in table.items()) for name, table in TABLES.items()]
    config = folder / "activeseg.toml"
    config.write_text("\n".join(lines), encoding="utf-8")
    return config


def _work(config: Path, commits: int | None) -> int:
    return exit_status(advance, config, commits)


def _dump(config: Path) -> dict[str, list[str]]:
    return _dump_of(config.parent)


def _dump_of(folder: Path) -> dict[str, list[str]]:
    database = Database(f"sqlite:///{folder / 'activeseg.db'}")
    try:
        return canonical_dump(database)
    finally:
        database.close()


def _set_back(config: Path, saved: Path) -> None:
    """The folder as it was when it was saved; its path stays, because rows name files by it."""
    shutil.rmtree(config.parent)
    shutil.copytree(saved, config.parent)


def _go_on_from_every_commit(config: Path, copies: Path) -> int:
    """Let the loop go on from what a kill after each of its commits leaves, and compare; returns how many there were."""
    before = copies / "before"
    shutil.copytree(config.parent, before)
    assert exit_status(advance_and_copy, config, copies / "after") == 0
    expected = _dump(config)
    left = sorted((copies / "after").iterdir())
    _set_back(config, before)
    assert _work(config, len(left) // 2) == -signal.SIGKILL
    assert differences(_dump(config), _dump_of(left[len(left) // 2 - 1])) == {}, "a copy is what a kill leaves"
    for commits, folder in enumerate(left, 1):
        _set_back(config, folder)
        assert _work(config, None) == 0, f"the run after a kill at commit {commits} failed"
        assert differences(expected, _dump(config)) == {}, f"killed after commit {commits}"
    return len(left)


@pytest.mark.slow
def test_a_round_killed_after_any_commit_goes_on_and_ends_the_same(site: Path, tmp_path: Path) -> None:
    # The first call registers the pool and asks for the bootstrap round; the second splits, trains, promotes, scores,
    # ranks and asks again.
    assert _go_on_from_every_commit(site, tmp_path / "first") >= 4
    answer(site)
    assert _go_on_from_every_commit(site, tmp_path / "second") >= 12
    final = _dump(site)
    assert {name: len(final[name]) for name in ("training_runs", "promotions", "checkpoints", "rounds")} == {
        "training_runs": 1,
        "promotions": 1,
        "checkpoints": 1,
        "rounds": 2,
    }


@pytest.mark.slow
def test_a_process_killed_again_and_again_still_gets_there(site: Path, tmp_path: Path) -> None:
    assert _work(site, None) == 0
    answer(site)
    shutil.copytree(site.parent, tmp_path / "saved")
    assert _work(site, None) == 0
    expected = _dump(site)
    _set_back(site, tmp_path / "saved")
    lives = 0
    while _work(site, 7) == -signal.SIGKILL:
        lives += 1
        assert lives < 30, "it makes no progress"
    assert lives >= 2
    assert differences(expected, _dump(site)) == {}


@pytest.mark.slow
@pytest.mark.labelstudio
def test_a_push_killed_anywhere_sends_every_task_exactly_once(
    site: Path, tmp_path: Path, with_label_studio: dict[str, Any]
) -> None:
    shutil.copytree(site.parent, tmp_path / "saved")
    # 0: killed with the request in flight; n: killed after the n-th commit.
    for kill in range(100):
        _set_back(site, tmp_path / "saved")
        # A project of its own: keys are the same whenever the same images are asked for in the same project.
        section = with_label_studio | {"project": f"{with_label_studio['project']} kill {kill}"}
        text = "".join(f"{key} = {toml_value(value)}\n" for key, value in section.items())
        site.write_text(site.read_text(encoding="utf-8") + "\n[labelstudio]\n" + text, encoding="utf-8")
        killed = exit_status(advance_with_label_studio, site, kill or None, kill == 0) == -signal.SIGKILL
        if kill % 2:  # whether somebody looks before the next push makes no difference
            _reconcile(site, f"kill {kill}")
        assert exit_status(advance_with_label_studio, site, None, False) == 0, f"the run after kill {kill} failed"
        _check_tasks(site, f"kill {kill}")
        if not killed:
            break
    assert kill >= 8, "the worker must have been killed at every step of the push"


def _reconcile(config: Path, when: str) -> None:
    """Nothing is lost and nothing is there twice; and nothing was to be removed."""
    settings = load_settings(config)
    with open_workspace(settings) as workspace, open_client(settings) as client, lease.holding(workspace.database):
        found = reconcile(workspace, client).details
    assert {name: found[name] for name in ("lost", "twice", "removed")} == {"lost": 0, "twice": 0, "removed": 0}, when


def _check_tasks(config: Path, when: str) -> None:
    """Every query has one task, the server has that one and no other, and nothing is left in doubt."""
    _reconcile(config, when)
    with open_workspace(load_settings(config)) as workspace, open_client(workspace.settings) as client:
        project = open_project(workspace, client)
        with workspace.database.read() as session:
            tasks = list(session.scalars(sa.select(Task)))
            assert labeling.unsettled(session, project.id) == [], when
        found = client.find_tasks(project.external_project_id, [task.key for task in tasks])
        assert found == {task.key: [task.external_task_id] for task in tasks}, when
        assert len(client.task_ids(project.external_project_id)) == len(tasks) == 6, when
