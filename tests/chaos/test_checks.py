"""The checks of the chaos run see what they are there to see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chaos_checks
import numpy as np
import pytest
import sqlalchemy as sa
from chaos_site import Answer

from activeseg.db.database import Database
from activeseg.db.models import Annotation, JobOutcome, JobRun, QueryStatus, RoundStatus, TrainingRun, TrainingStatus
from activeseg.labelstudio.client import KeyedTask
from tests.db.rows import Rows


@pytest.fixture
def rows(sqlite_url: str) -> Iterator[Rows]:
    database = Database(sqlite_url)
    yield Rows(database)
    database.close()


def said(rows: Rows, check: Callable[..., Iterator[str]], *rest: Any) -> str:
    with rows.database.read() as session:
        return "\n".join(check(session, *rest))


def server(*tasks: tuple[int, str]) -> Any:
    """A Label Studio that has these tasks, by number and key."""
    return SimpleNamespace(keyed_tasks=lambda project: [KeyedTask(number, key, "") for number, key in tasks])


def test_a_key_that_is_there_twice_not_at_all_or_nobodys_is_told() -> None:
    project, found = SimpleNamespace(external_project_id=1), chaos_checks.Found()
    told = list(chaos_checks._tasks(server((1, "a"), (2, "b"), (3, "b"), (4, "d")), project, {"a": 1, "b": 2, "c": 3}, found))
    assert (found.tasks, found.doubles) == (4, 1)
    assert [line.split(" key ")[1][0] for line in told] == ["b", "c", "d"]


def test_a_task_that_is_there_twice_is_told_after_every_kill() -> None:
    watch = chaos_checks.Watch(SimpleNamespace())
    assert len(list(watch._twice(server((1, "a"), (2, "a"), (3, "b")), 1))) == watch.doubles == 1


def test_rows_that_vanish_are_told(rows: Rows) -> None:
    image = rows.image()
    rows.annotation(image)
    watch = chaos_checks.Watch(SimpleNamespace(database_url=rows.database.url.render_as_string(), project=lambda: None))
    assert watch.look(server=True) == []
    with rows.database.write() as session:
        session.execute(sa.delete(Annotation))
    assert watch.look(server=True) == ["annotations fell from 1 to 0"]


def test_a_round_a_training_and_a_run_that_stand_still_are_told(rows: Rows) -> None:
    first, _ = rows.round(RoundStatus.SELECTED), rows.round(RoundStatus.PUSHED)
    rows.query(first, rows.image(), QueryStatus.SELECTED)
    values = {"reason": "2 new", "configuration": {}, "code_version": "1", "num_images": 1}
    rows.add(TrainingRun(status=TrainingStatus.RUNNING, label_set_id=rows.label_set(), **values))
    rows.add(JobRun(job="round", host="here", pid=1, outcome=JobOutcome.RUNNING))
    found = chaos_checks.Found()
    standing = said(rows, chaos_checks._standing, found, 2)
    assert "round 1 is selected, expected closed" in standing
    assert "training 1 is 'running'" in standing
    assert "2 rounds, expected 3" in said(rows, chaos_checks._standing, found, 3)
    left = said(rows, chaos_checks._left_over)
    assert "run 1 of round is 'running'" in left
    assert "1 queries without a task" in left


def test_an_answer_that_does_not_count_or_counts_otherwise_is_told(rows: Rows) -> None:
    round_id, drawn = rows.round(), np.ones((2, 2), np.uint8)
    images = [rows.image(uri=f"file:///pool/{name}.png") for name in ("kept", "lost", "other", "skipped")]
    for image in images:
        rows.query(round_id, image, QueryStatus.ANNOTATED)
    masks = {}
    for image, mask in ((images[0], drawn), (images[2], drawn + 1)):
        number = rows.annotation(image)
        with rows.database.read() as session:
            masks[session.get_one(Annotation, number).mask_location] = mask
    answers = {name: Answer(name, "corrected", 1, drawn) for name in ("kept", "lost", "other")}
    answers["skipped"] = Answer("skipped", "skipped", 1, None)
    workspace = SimpleNamespace(read_mask=lambda location, sha256: masks[location])
    told = said(rows, chaos_checks._answers, workspace, SimpleNamespace(answers=answers))
    assert [line.split()[0].rstrip(":") for line in told.splitlines()] == ["lost", "other", "skipped"]


def test_a_kill_is_drawn_all_over_the_work_that_is_left(tmp_path: Path) -> None:
    import chaos_story

    sizes = chaos_story.Measured(seconds=10.0, first_commit=1.0, commits=40, requests=20)
    story = chaos_story.Disturbed(
        SimpleNamespace(), SimpleNamespace(), SimpleNamespace(), kills=1, away=0, restarts=0, seed=1, quick=True
    )
    story._idle, story._progress = chaos_story.Measured(4.0, 1.0, 10, 8), 0.0
    drawn = [story._draw(sizes, 1)[0] for _ in range(600)]
    at = {kind: [kill.at for kill in drawn if kill.kind == kind] for kind in ("commits", "requests")}
    assert set(at["commits"]) >= set(range(11, 40))
    assert (min(at["requests"]), max(at["requests"])) == (1, 20)
    moments = [kill.moment for kill in drawn if kill.kind == "moment"]
    assert min(moments) < 1.0
    assert 8.0 < max(moments) < 10.0
    story._progress = 1.0
    assert max(story._draw(sizes, 1)[0].at for _ in range(200)) <= 11, "nothing is left but what every life repeats"
