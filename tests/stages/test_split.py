"""Annotated images become training and validation images; what they wait for is said."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from activeseg.db.models import Arm, Image, QueryStatus, RoundStatus
from activeseg.db.status import read_status
from activeseg.stages.dataset import import_dataset
from activeseg.stages.split import assign_splits
from activeseg.workspace import Workspace
from tests.db.rows import Rows
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


@pytest.fixture
def annotated_pool(make_workspace: Callable[..., Workspace]) -> Callable[..., dict[str, str]]:
    """Annotate drawn images of clips, divide them, and tell the split of each by its name."""

    workspace = make_workspace(pool=1, training={"min_train": 2}, selection={"val_size": 4})
    rows = Rows(workspace.database)

    def run(groups: dict[str, str | None], *, bytes_of: dict[str, str] | None = None) -> dict[str, str]:
        round_id = rows.round(RoundStatus.CLOSED)
        for name, group in groups.items():
            image = rows.image(uri=f"file:///pool/{name}", group_name=group)
            if bytes_of and name in bytes_of:
                digest = hashlib.sha256(bytes_of[name].encode()).hexdigest()
                with workspace.database.write() as session:
                    session.get_one(Image, image).sha256 = digest
            query = rows.query(round_id, image, QueryStatus.ANNOTATED, Arm.CONTROL)
            rows.annotation(image, query_id=query)
        assign_splits(workspace)
        with workspace.database.read() as session:
            return {image.uri.rpartition("/")[2]: image.split.value for image in session.scalars(sa.select(Image))}

    return run


def test_no_clip_is_both_trained_on_and_validated_with(annotated_pool: Callable[..., dict[str, str]]) -> None:
    groups = {f"{clip}{frame}": clip for clip in "abcdef" for frame in range(2)}
    split_of = annotated_pool(groups)
    assert set(split_of.values()) == {"train", "val"}
    assert all(split_of[f"{clip}0"] == split_of[f"{clip}1"] for clip in "abcdef")
    more = annotated_pool({f"{clip}2": clip for clip in "abcdef"})  # the clips' next frames, annotated later
    for clip in "abcdef":
        assert more[f"{clip}2"] == ("test" if more[f"{clip}0"] == "val" else "train")


def test_no_image_is_trained_on_while_a_copy_of_it_validates(annotated_pool: Callable[..., dict[str, str]]) -> None:
    names = [f"{name}{copy}" for name in "abcdef" for copy in range(2)]
    split_of = annotated_pool(dict.fromkeys(names), bytes_of={name: name[0] for name in names})
    pairs = [{split_of[f"{name}0"], split_of[f"{name}1"]} for name in "abcdef"]
    assert {"val"} in pairs or {"val", "test"} in pairs
    assert {"train"} in pairs
    assert {"train", "val"} not in pairs
    later = annotated_pool(dict.fromkeys(f"{name}2" for name in "abcdef"), bytes_of={f"{name}2": name for name in "abcdef"})
    assert all({later[f"{name}{copy}"] for copy in range(3)} != {"train", "val"} for name in "abcdef")
    assert all(
        "train" not in {later[f"{n}{c}"] for c in range(3)} for n in "abcdef" if "val" in {later[f"{n}0"], later[f"{n}1"]}
    )
