"""Annotated images become training and validation images; what they wait for is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from activeseg.db.status import read_status
from activeseg.stages.dataset import import_dataset
from activeseg.stages.split import assign_splits
from activeseg.workspace import Workspace
from tests.stages.pulling import Site, plain


@pytest.fixture
def site(make_sqlite_workspace: Callable[..., Workspace]) -> Site:
    """Five tasks of a first round; three answers end the wait: two to train on and one to validate with."""
    sections = {"training": {"min_train": 2}, "selection": {"bootstrap_size": 5, "val_size": 1, "control_share": 0.0}}
    return Site(make_sqlite_workspace, sections, images=5)


def annotate(site: Site, *places: int) -> None:
    for place in places:
        site.submit(site.tasks[place], site.result(plain(0)))
    site.pull()


def next_lines(site: Site) -> str:
    with site.workspace.database.read() as session:
        return "\n".join(read_status(session, site.workspace.settings)["next"])


def test_the_first_answers_wait_and_it_is_said_for_what(site: Site) -> None:
    annotate(site, 0)
    report = assign_splits(site.workspace)
    assert report.details == {"waiting": 1, "until": "3 images are annotated or no task is open"}
    assert "1 annotated image of 3 to divide into training and validation" in next_lines(site)
    annotate(site, 1, 2)
    assert assign_splits(site.workspace).details == {"train": 2, "val": 1, "test": 0}
    assert "divide" not in next_lines(site)


def test_an_import_that_answers_queries_has_no_split_before_the_next_run(site: Site, tmp_path: Path) -> None:
    import_dataset(site.workspace, site.workspace.settings.images_uri, tmp_path / "truth", None)
    assert "5 annotated images without a split: `activeseg round run` divides them" in next_lines(site)


def test_nothing_annotated_is_no_wait(site: Site) -> None:
    assert assign_splits(site.workspace).details == {"train": 0, "val": 0, "test": 0}
    assert "annotated image" not in next_lines(site).replace("annotated training image", "")
