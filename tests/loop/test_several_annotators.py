"""Two people with accounts of their own on a real Label Studio: whose mask counts, and what never does."""

from __future__ import annotations

import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from activeseg.config import toml_value
from activeseg.core.labels import UNLABELED, Mask
from activeseg.db import truth
from activeseg.db.database import Database
from activeseg.db.models import Annotation, AnnotationStatus, Query, QueryStatus
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.regions import mask_to_result
from activeseg.labelstudio.registration import open_client, open_project
from activeseg.labelstudio.server import RunningServer
from activeseg.stages.pull import pull_annotations
from activeseg.workspace import Workspace
from tests.canonical import canonical_dump, differences
from tests.factories import CLASSES
from tests.forked import exit_status
from tests.loop.pull_worker import pull_in_blocks
from tests.memory_label_studio import push
from tests.stages.pulling import halves, plain

pytestmark = [pytest.mark.labelstudio, pytest.mark.slow]

SELECTION = {"bootstrap_size": 5, "query_size": 5, "refill_below": 1, "control_share": 0.0}
VALID = AnnotationStatus.VALID


def result(mask: Mask) -> list[dict[str, Any]]:
    """The regions of a mask a person drew."""
    return [region | {"origin": "manual"} for region in mask_to_result(mask, CLASSES, kind="brush")]


@dataclass
class Person:
    """Somebody at a page of their own, with their own token."""

    client: LabelStudioClient
    project: int

    def submit(self, task: int, mask: Mask | None, *, skip: bool = False) -> int:
        """Submit a mask, or skip; the annotation's number."""
        body = {"result": [] if mask is None else result(mask), "lead_time": 3.0, "was_cancelled": skip}
        made = self.client.http.create(f"/api/tasks/{task}/annotations/", body, {"project": self.project})
        return int(made["id"])

    def change(self, annotation: int, **fields: Any) -> None:
        """Change an annotation; the star of Label Studio's page does it with ground_truth."""
        self.client.http.repeatable("PATCH", f"/api/annotations/{annotation}/", body=fields)

    def delete(self, annotation: int) -> None:
        """Delete an annotation."""
        self.client.http.repeatable("DELETE", f"/api/annotations/{annotation}/")

    def draft(self, task: int, mask: Mask) -> None:
        """Leave a task without submitting what was drawn."""
        body = {"result": result(mask), "lead_time": 3.0}
        self.client.http.create(f"/api/tasks/{task}/drafts", body, {"project": self.project})


@dataclass
class Round:
    """A pushed round, its tasks, and two people who annotate it."""

    workspace: Workspace
    client: LabelStudioClient
    tasks: list[int]
    ann: Person
    bob: Person

    def pull(self, **settings: Any) -> dict[str, Any]:
        """What a pull reports."""
        return pull_annotations(self.workspace, self.client, **settings).details

    def counting(self) -> list[Mask]:
        """The masks that count."""
        with self.workspace.database.read() as session:
            return [self.workspace.read_mask(item.mask_location, item.mask_sha256) for item in truth.current(session)]

    def rows(self) -> list[Annotation]:
        """All rows of annotations."""
        with self.workspace.database.read() as session:
            return list(session.scalars(sa.select(Annotation).order_by(Annotation.id)))


@pytest.fixture
def make_round(
    make_sqlite_workspace: Callable[..., Workspace], with_label_studio: dict[str, Any], labelstudio_server: RunningServer
) -> Iterator[Callable[..., Round]]:
    """A round with these settings of [labelstudio]."""
    with ExitStack() as closing:

        def make(**settings: Any) -> Round:
            workspace = make_sqlite_workspace(pool=5, selection=SELECTION, labelstudio=with_label_studio | settings)
            client = closing.enter_context(open_client(workspace.settings))
            push(workspace, client)  # type: ignore[arg-type]
            project = open_project(workspace, client).external_project_id
            people = [
                Person(closing.enter_context(LabelStudioClient(labelstudio_server.url, token)), project)
                for name in ("ann", "bob")
                for _, token in [labelstudio_server.add_user(f"{name}@example.com")]
            ]
            return Round(workspace, client, client.task_ids(project), *people)

        yield make


def test_the_majority_of_two_people_follows_edits_and_deletions(make_round: Callable[..., Round]) -> None:
    here = make_round(consensus="majority")
    task = here.tasks[0]
    first = here.ann.submit(task, halves(0, 1))
    second = here.bob.submit(task, halves(0, 2))
    assert here.pull() == {"valid": 2, "consensus": 1}
    assert np.array_equal(here.counting()[0], halves(0, UNLABELED))
    ann, bob, outcome = here.rows()
    assert len({ann.annotator, bob.annotator}) == 2
    assert (ann.agreement, bob.agreement, ann.lead_time) == (0.5, 0.5, 3.0)
    assert outcome.consensus_of == [ann.id, bob.id]
    here.bob.change(second, result=result(halves(0, 1)))
    assert here.pull() == {"valid": 1, "consensus": 1}
    assert np.array_equal(here.counting()[0], halves(0, 1))
    here.ann.delete(first)
    here.bob.change(second, result=result(plain(2)))
    assert here.pull() == {"valid": 1, "deleted": 1}
    assert np.array_equal(here.counting()[0], plain(2))
    assert here.pull(full=True) == {}


def test_the_star_of_one_annotation_goes_when_another_gets_it(make_round: Callable[..., Round]) -> None:
    here = make_round(consensus="ground_truth")
    task = here.tasks[0]
    first, second = here.ann.submit(task, plain(0)), here.bob.submit(task, plain(1))
    assert here.pull() == {"valid": 2}
    assert np.array_equal(here.counting()[0], plain(1))
    here.bob.change(first, ground_truth=True)
    here.bob.change(second, result=result(plain(2)))
    here.pull()
    assert np.array_equal(here.counting()[0], plain(0))
    here.bob.change(second, ground_truth=True)
    assert here.pull()["stars moved"] == 1
    assert np.array_equal(here.counting()[0], plain(2))
    here.bob.change(second, ground_truth=False)
    here.ann.change(first, result=result(plain(3)))
    here.pull()
    assert np.array_equal(here.counting()[0], plain(3))
    assert not [row for row in here.rows() if row.consensus_of and row.status == VALID]
    assert here.pull(full=True) == {}


def test_by_default_whoever_changed_theirs_last_counts(make_round: Callable[..., Round]) -> None:
    here = make_round()
    first = here.ann.submit(here.tasks[0], plain(0))
    here.bob.submit(here.tasks[0], plain(1))
    here.pull()
    assert np.array_equal(here.counting()[0], plain(1))
    here.ann.change(first, result=result(plain(2)))
    here.pull()
    assert np.array_equal(here.counting()[0], plain(2))


def test_drafts_skips_and_tasks_that_went_away(make_round: Callable[..., Round]) -> None:
    here = make_round()
    drafted, skipped, deleted, *_ = here.tasks
    here.ann.draft(drafted, plain(0))
    skip = here.ann.submit(skipped, None, skip=True)
    here.ann.submit(deleted, plain(1))
    here.bob.draft(deleted, plain(2))
    assert here.pull() == {"valid": 1, "skipped": 1}
    here.ann.change(skip, was_cancelled=False, result=result(plain(2)))
    here.client.delete_tasks(here.ann.project, [deleted])
    assert here.pull() == {"valid": 1, "tasks deleted": 1}
    assert [mask[0, 0] for mask in here.counting()] == [2]
    with here.workspace.database.read() as session:
        statuses = Counter(session.scalars(sa.select(Query.status)))
    # The image of the task that went away may be asked for again: the other answer to it is gone with it.
    assert statuses == {QueryStatus.PUSHED: 3, QueryStatus.ANNOTATED: 1, QueryStatus.WITHDRAWN: 1}
    assert here.pull(full=True) == {}


def test_a_pull_killed_anywhere_ends_as_if_nothing_had_happened(
    make_round: Callable[..., Round], tmp_path: Path, with_label_studio: dict[str, Any]
) -> None:
    here = make_round(consensus="majority")
    for number, task in enumerate(here.tasks):
        here.ann.submit(task, halves(number % 3, 1))
        if number % 2:
            here.bob.submit(task, halves(number % 3, 2))
    here.workspace.database.close()
    site, saved = tmp_path / "site", tmp_path / "saved"
    site.mkdir()
    for name in ("activeseg.db", "classes.txt"):
        shutil.copy(tmp_path / name, site)
    config = site / "activeseg.toml"
    tables = {"pool": {"images": str(tmp_path / "pool")}, "labels": {"file": "classes.txt"}, "selection": SELECTION}
    tables["labelstudio"] = with_label_studio | {"consensus": "majority"}
    lines = [f"[{name}]\n" + "".join(f"{k} = {toml_value(v)}\n" for k, v in table.items()) for name, table in tables.items()]
    config.write_text("\n".join(lines), encoding="utf-8")
    shutil.copytree(site, saved)
    assert exit_status(pull_in_blocks, config, tmp_path / "copies") == 0
    expected = dump(site)
    assert len(expected["annotations"]) == 5 + 2 + 2
    left = sorted((tmp_path / "copies").iterdir())
    assert len(left) >= 4 + 9, "a copy after every commit, and one for every mask"
    for folder in left:
        put_back(folder, site)
        assert exit_status(pull_in_blocks, config) == 0, f"the pull after a kill at {folder.name} failed"
        assert differences(expected, dump(site)) == {}, f"killed at {folder.name}"
    put_back(saved, site)
    assert exit_status(pull_in_blocks, config, kill=2) == -signal.SIGKILL
    assert exit_status(pull_in_blocks, config) == 0
    assert differences(expected, dump(site)) == {}, "killed indeed"


def put_back(folder: Path, site: Path) -> None:
    """The site as it was when it was copied; its path stays, because rows name files by it."""
    shutil.rmtree(site)
    shutil.copytree(folder, site)


def dump(site: Path) -> dict[str, list[str]]:
    """What the site's database holds."""
    database = Database(f"sqlite:///{site / 'activeseg.db'}")
    try:
        return canonical_dump(database)
    finally:
        database.close()
