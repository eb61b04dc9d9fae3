"""The workspaces of a backtest: one for each strategy and seed, with known masks as the annotator.

What a workspace holds follows from the images each round labelled: one that is lost, or went another way, is made again.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import sqlalchemy as sa

from activeseg.backtest.dataset import link, make_class_folders
from activeseg.backtest.task import START, Place, Task
from activeseg.backtest.units import FULL
from activeseg.config import Settings
from activeseg.config.sections import ArtifactsSection, DatabaseSection, LabelsSection
from activeseg.db import images, migrate, rounds
from activeseg.db.database import Database
from activeseg.db.models import Arm, Image, ImageStatus, Round, RoundStatus, Split
from activeseg.errors import ActivesegError, DataError
from activeseg.imaging.mask_files import MaskFiles
from activeseg.loop import Listener, collect, finish_round, hand_out, open_round_if_due
from activeseg.records import QueryItem
from activeseg.stages.dataset import import_dataset
from activeseg.stages.pool import sync_pool
from activeseg.workspace import Workspace, open_workspace

ANNOTATOR = "backtest"

MADE_FOR = "made-for"
"""File of a finished workspace that says what it was made for."""


@contextmanager
def replaying(place: Place, task: Task) -> Iterator[Workspace]:
    """The replay's workspace, made where it is not there, or was made from other images or settings, or went another way."""
    folder = place.folder(task.strategy, task.seed)
    if not usable(folder, task.workspace):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    elif not follows(place, task):
        shutil.rmtree(folder)
        folder.mkdir(parents=True)
    settings = replay_settings(place, task)
    fresh = not (folder / MADE_FOR).exists()
    if fresh:
        with closing(Database(settings.database_url)) as database:
            migrate.upgrade(database)
    with open_workspace(settings) as workspace:
        if fresh:
            _fill(place, workspace)
            mark_usable(folder, task.workspace)
        yield workspace


def usable(folder: Path, note: str) -> bool:
    """Whether a workspace is there, finished, and made for this."""
    file = folder / MADE_FOR
    return file.exists() and file.read_text(encoding="utf-8") == _mark_of(folder, note)


def mark_usable(folder: Path, note: str) -> None:
    """Say of a workspace that it is finished, and what it was made for."""
    (folder / MADE_FOR).write_text(_mark_of(folder, note), encoding="utf-8")


def _mark_of(folder: Path, note: str) -> str:
    """The note and the place: the database of a workspace that was moved names images where they no longer are."""
    return f"{note} in {os.path.abspath(folder)}"


def follows(place: Place, task: Task) -> bool:
    """Whether a usable workspace labelled what the task says, as far as it got, and chose no more than the next round's images.

    Not so where an image was set aside: no choice and no training may be without it.
    """
    with open_workspace(replay_settings(place, task)) as workspace, workspace.database.read() as session:
        if any(status != ImageStatus.ACTIVE for _, status in images.count_by_status(session)):
            return False
        known = [names_of(place, workspace, row) for row in rounds.unfinished(session, *RoundStatus)]
    if not task.added:
        return True
    wanted = [set(names) for names in task.added]
    answered, pending = known[: len(wanted)], known[len(wanted) :]
    begun_choice = len(pending) <= 1 and all(not names or len(names) == task.next_query for names in pending)
    return begun_choice and all(set(names) == of for names, of in zip(answered, wanted, strict=False))


def names_of(place: Place, workspace: Workspace, row: Round) -> list[str]:
    """A round's images by name, in shown order."""
    prefix = place.folder_uri("pool")
    with workspace.database.read() as session:
        return [ref.uri.removeprefix(prefix) for _, ref in rounds.queries(session, row.id)]


def copy_workspace(source: Path, target: Path, note: str) -> None:
    """Begin a replay where another one stands. note: what it is made for."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    # Not a copy of the file: what the last writer left in the log beside it would be missing.
    with closing(sqlite3.connect(source / "replay.db")) as old, closing(sqlite3.connect(target / "replay.db")) as new:
        old.backup(new)
    mark_usable(target, note)


def replay_settings(place: Place, task: Task) -> Settings:
    """The user's settings, with what makes a replay: known images and steps, no control arm, no gate, always from the start."""
    own, pool = place.settings, len(place.data.pool)
    folder = place.folder(task.strategy, task.seed)
    selection = own.selection.model_copy(
        update={
            "acquisition": "entropy_sum" if task.strategy in (START, FULL) else task.strategy,
            "query_size": task.next_query or 1,
            "bootstrap_size": task.labels[0],
            # What is drawn at random is the control arm.
            "control_share": 1.0 if task.strategy == "random" else 0.0,
            "val_size": 0,
            "partial_cells": 0,
            "refill_below": pool,
            "max_open_tasks": pool,
            "seed": task.seed,
        }
    )
    training = own.training.model_copy(
        update={
            "steps": task.steps,
            "epochs": None,
            "start": "pretrained",
            "seed": task.seed,
            "validate_every": 0,
            "patience": 0,
            "min_train": 1,
        }
    )
    return Settings.model_construct(
        root=folder,
        database=DatabaseSection(url=f"sqlite:///{(folder / 'replay.db').absolute()}"),
        artifacts=ArtifactsSection(dir=place.artifacts.absolute()),
        # Groups are known, see `_fill`; in the paths of a replay a pattern would find other ones.
        pool=own.pool.model_copy(update={"images": str(place.data.folder / "pool" / "images"), "group_pattern": None}),
        labels=LabelsSection(
            file=place.data.folder / "classes.txt",
            overlap=own.labels.overlap,
            include_void=own.labels.include_void,
        ),
        model=own.model,
        training=training,
        scoring=own.scoring.model_copy(update={"budget": None, "devices": ()}),
        selection=selection,
    )


def _fill(place: Place, workspace: Workspace) -> None:
    """The pool, and the images held out: as test images, which no stage ever reads."""
    sync_pool(workspace)
    require_all_active(workspace)
    held = place.data.folder / "held"
    report = import_dataset(workspace, str(held / "images"), held / "masks", Split.TEST, annotator=ANNOTATOR)
    _require_all(report.details["problems"])
    # What is held out has no group. No unlabelled image teaches whose clip measures a real gate; here labelled ones do as well.
    groups = {place.uri(name): group for name, group in place.data.groups.items()}
    with workspace.database.write() as session:
        known = images.by_uri(session, list(groups))
        images.name_groups(session, {known[uri][-1].id: group for uri, group in groups.items()})


def _require_all(problems: dict[str, str]) -> None:
    if problems:
        name, problem = next(iter(problems.items()))
        raise DataError(f"{name}: {problem}; the images of a backtest must not change while it runs")


def require_all_active(workspace: Workspace) -> None:
    """Raises DataError where an image was set aside: what is computed without it would stand for the whole pool."""
    with workspace.database.read() as session:
        aside = session.execute(sa.select(Image.uri, Image.reason).where(Image.status != ImageStatus.ACTIVE).limit(1)).first()
    if aside is not None:
        raise DataError(f"{aside.uri} was set aside ({aside.reason}): see that it can be read, and give the same command again")


def open_round(workspace: Workspace) -> Round:
    """The next round, opened and its images chosen by the loop's own rules. Raises ActivesegError where there is none."""
    row = open_round_if_due(workspace)
    if row is None:
        raise ActivesegError("no round could be opened: the pool has no image that may be asked about")
    _choose_images(workspace, row)
    return row


def _choose_images(workspace: Workspace, row: Round) -> None:
    for report in finish_round(workspace, row, None, Listener()):
        if report.stage == "rank":
            return  # what comes next draws masks for annotators


def round_of(workspace: Workspace, number: int) -> Round | None:
    """A round by its number, with its images chosen; None where it was not opened."""
    with workspace.database.read() as session:
        found = [row for row in rounds.unfinished(session, *RoundStatus) if row.number == number]
    if found and found[0].status == RoundStatus.OPEN:
        _choose_images(workspace, found[0])
    return found[0] if found else None


def bring_to(place: Place, workspace: Workspace, added: Sequence[Sequence[str]]) -> None:
    """Rounds 1, 2, ... answered, with these images; those that are not in the database yet are written as they were."""
    for number, names in enumerate(added, start=1):
        row = round_of(workspace, number) or _insert_round(place, workspace, names)
        answer(place, workspace, row)


def _insert_round(place: Place, workspace: Workspace, names: Sequence[str]) -> Round:
    """A round whose choice is known from a unit's file."""
    with workspace.database.write() as session:
        known = images.by_uri(session, [place.uri(name) for name in names])
        ids = [known[place.uri(name)][-1].id for name in names]
        row = rounds.plan_round(
            session, scoring_config_id=None, acquisition="random", query_size=len(ids), control_share=0.0, seed=0
        )
        session.add(row)
        session.flush()
        items = [QueryItem(image, None, None, Arm.CHOSEN.value, order, "as before") for order, image in enumerate(ids)]
        rounds.insert_queries(session, row, items)
    return row


def answer(place: Place, workspace: Workspace, row: Round) -> None:
    """Hand out a round and import the known masks of its images, as `activeseg dataset import --split query` does."""
    with workspace.database.read() as session:
        if session.get_one(Round, row.id).status == RoundStatus.CLOSED:
            return
    hand_out(workspace, row.id)
    answers = workspace.settings.root / "answers"
    _lay_out_masks(place, names_of(place, workspace, row), answers)
    report = import_dataset(workspace, workspace.settings.images_uri, answers, None, annotator=ANNOTATOR)
    _require_all(report.details["problems"])
    collect(workspace, None, lambda report: None)
    shutil.rmtree(answers)
    with workspace.database.read() as session:
        if session.get_one(Round, row.id).status != RoundStatus.CLOSED:
            raise DataError(f"round {row.number} of {workspace.settings.root} stays open: some image has no mask")


def _lay_out_masks(place: Place, names: Sequence[str], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    label_set, masks = place.data.label_set, place.data.folder / "pool" / "masks"
    if label_set.overlap:
        make_class_folders(folder, label_set)
    files = MaskFiles(masks, label_set, place.settings.pool.max_pixels).files
    for name in names:
        for path in files[Path(name).stem].values():
            link(path, folder / path.relative_to(masks))
