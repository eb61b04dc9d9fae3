"""A round killed at any commit goes on where it stopped and ends the same."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from pathlib import Path

import pytest

from activeseg.config import toml_value
from activeseg.db.database import Database
from tests.canonical import canonical_dump, differences
from tests.factories import CLASSES, MODEL, TRAINING, write_balls
from tests.loop.worker import advance, answer

# Processes forked from one that has torch imported but never used: a start costs milliseconds instead of seconds.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "activeseg.loop", "tests.loop.worker"])

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
    process = CONTEXT.Process(target=advance, args=(config, commits))
    process.start()
    process.join(300)
    assert process.exitcode is not None, "the worker hangs"
    return process.exitcode


def _dump(config: Path) -> dict[str, list[str]]:
    database = Database(f"sqlite:///{config.parent / 'activeseg.db'}")
    try:
        return canonical_dump(database)
    finally:
        database.close()


def _set_back(config: Path, saved: Path) -> None:
    """The folder as it was when it was saved; its path stays, because rows name files by it."""
    shutil.rmtree(config.parent)
    shutil.copytree(saved, config.parent)


def _kill_after_every_commit(config: Path, saved: Path) -> int:
    """Kill the loop at each of its commits in turn, let it go on, compare; returns how many kills there were."""
    shutil.copytree(config.parent, saved)
    assert _work(config, None) == 0
    expected = _dump(config)
    for commits in range(1, 100):
        _set_back(config, saved)
        if _work(config, commits) != -signal.SIGKILL:
            return commits - 1
        assert _work(config, None) == 0, f"the run after a kill at commit {commits} failed"
        assert differences(expected, _dump(config)) == {}, f"killed after commit {commits}"
    raise AssertionError("a call of the loop should need fewer than 100 commits here")


@pytest.mark.slow
def test_a_round_killed_after_any_commit_goes_on_and_ends_the_same(site: Path, tmp_path: Path) -> None:
    # The first call registers the pool and asks for the bootstrap round; the second splits, trains, promotes, scores,
    # ranks and asks again.
    assert _kill_after_every_commit(site, tmp_path / "first") >= 4
    answer(site)
    assert _kill_after_every_commit(site, tmp_path / "second") >= 12
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
