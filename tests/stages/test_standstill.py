"""Where no round can be opened, the one reason that holds is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from activeseg.db import images
from activeseg.db.models import Split
from activeseg.db.status import read_status
from activeseg.errors import NotReadyError
from activeseg.loop import preview_query, rounds_to_push, why_nothing_to_push
from activeseg.stages.pool import sync_pool
from activeseg.workspace import Workspace
from tests.memory_label_studio import MemoryLabelStudio, push
from tests.stages.pulling import Site, plain

Make = Callable[..., Workspace]


def told(workspace: Workspace) -> str:
    with pytest.raises(NotReadyError) as caught:
        rounds_to_push(workspace, None)
    assert preview_query(workspace, None) == []
    assert str(caught.value) == f"nothing to push: {why_nothing_to_push(workspace)}"
    return why_nothing_to_push(workspace)


def test_a_pool_that_was_not_read_yet(make_sqlite_workspace: Make) -> None:
    workspace = make_sqlite_workspace(pool=1)
    place = workspace.settings.images_uri
    expected = f"what lies in {place} was not read yet: run `activeseg pool sync` or `activeseg round run`"
    assert told(workspace) == expected
    with workspace.database.read() as session:
        assert expected in read_status(session, workspace.settings)["next"]


def test_an_empty_pool(make_sqlite_workspace: Make) -> None:
    workspace = make_sqlite_workspace(pool=1)
    for file in Path(workspace.settings.images_uri).iterdir():
        file.rename(file.with_name(f".{file.name}"))
    assert (
        told(workspace) == f"the pool is empty: put images into {workspace.settings.images_uri} and run `activeseg pool sync`"
    )


def test_as_many_open_tasks_as_may_be(make_sqlite_workspace: Make) -> None:
    selection = {"max_open_tasks": 1, "query_size": 1, "bootstrap_size": 1}
    site = Site(make_sqlite_workspace, {"selection": selection}, images=2)
    assert told(site.workspace).startswith("1 task open, and [selection] max_open_tasks allows 1: ")


def test_images_the_champion_has_not_scored(make_sqlite_workspace: Make, train_champion: Callable[[Workspace], None]) -> None:
    workspace = make_sqlite_workspace(pool=3)
    sync_pool(workspace)
    train_champion(workspace)
    assert told(workspace) == "the champion has not scored the 3 images left to ask about: run `activeseg score`"


def test_every_image_was_asked_about(make_sqlite_workspace: Make) -> None:
    site = Site(make_sqlite_workspace, images=3)
    site.submit(site.tasks[0], site.result(plain(0)))
    site.submit(site.tasks[1], [], was_cancelled=True)
    site.pull()
    assert told(site.workspace) == (
        "no image is left to ask about (1 annotated, 1 skipped, 1 waiting for annotators): add images to the pool and run "
        "`activeseg pool sync`"
    )


def test_images_whose_clip_validates_are_kept_back(make_sqlite_workspace: Make) -> None:
    workspace = make_sqlite_workspace(pool=2, pool_section={"group_pattern": "(ball)"})
    sync_pool(workspace)
    with workspace.database.write() as session:
        images.set_split(session, [1], Split.VAL)
    assert told(workspace).startswith("no image is left to ask about (1 kept back because their clip or a copy validates): ")


def test_what_can_be_pushed_is(make_sqlite_workspace: Make) -> None:
    assert push(make_sqlite_workspace(pool=2), MemoryLabelStudio())["push"].written == 2
