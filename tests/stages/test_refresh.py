"""After a promotion untouched open tasks show what the new champion says, in its order; nobody can tell the arms apart."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image as Pillow

from activeseg.db import checkpoints, labeling, lease, scores
from activeseg.db.models import Annotation, Arm, Checkpoint, Prediction, Query, Score, Task
from activeseg.db.open_tasks import OpenTask, open_tasks
from activeseg.errors import LabelStudioUnreachable
from activeseg.loop import advance_round
from activeseg.predictions import predict_and_store
from activeseg.records import ImageRef, ImageScore
from activeseg.stages.pool import sync_pool
from activeseg.stages.promote import rollback
from activeseg.stages.pull import pull_annotations
from activeseg.stages.refresh import _line_up, _places, refresh_open_tasks
from activeseg.stages.score import score_pool, scoring_definition
from activeseg.stages.train import train_challenger
from activeseg.workspace import Workspace
from tests.memory_label_studio import MemoryLabelStudio, push, section

pytestmark = pytest.mark.slow

SELECTION = {"query_size": 8, "control_share": 0.25, "refill_below": 1}
MASKS = section("refreshed") | {"mask_kind": "bitmask"}


class Board:
    """A pushed round of eight tasks, two of them control, and a checkpoint that is to become champion after it."""

    def __init__(self, make: Callable[..., Workspace], train_champion: Callable[[Workspace], None]) -> None:
        self.server = MemoryLabelStudio()
        self.workspace = make(pool=12, selection=SELECTION, labelstudio=MASKS)
        train_champion(self.workspace)
        with lease.holding(self.workspace.database):
            sync_pool(self.workspace)
            score_pool(self.workspace)
        push(self.workspace, self.server)
        other = make(pool=12, selection=SELECTION, labelstudio=MASKS, training={"seed": 7, "steps": 30})
        with lease.holding(other.database):
            train_challenger(other, reason="test")
        with self.workspace.database.read() as session:
            self.second = session.scalars(sa.select(Checkpoint.model_version).order_by(Checkpoint.id.desc())).first() or ""

    def promote(self) -> None:
        rollback(self.workspace, self.second, decided_by="test", reason="test")

    def order(self) -> list[int]:
        """Task numbers as the tab sorts them."""
        return sorted(self.server.tasks, key=lambda number: (self.server.tasks[number]["data"]["order"], number))

    def rows(self) -> dict[int, tuple[Task, Query]]:
        with self.workspace.database.read() as session:
            found = session.execute(sa.select(Task, Query).join(Query, Query.id == Task.query_id)).all()
        return {task.external_task_id or 0: (task, query) for task, query in found}


@pytest.fixture
def board(make_sqlite_workspace: Callable[..., Workspace], train_champion: Callable[[Workspace], None]) -> Board:
    return Board(make_sqlite_workspace, train_champion)


def champion_scores(board: Board) -> tuple[dict[int, float], int]:
    """What the score stage writes for the champion: an independent way to the same numbers."""
    with lease.holding(board.workspace.database):
        score_pool(board.workspace)
    with board.workspace.database.read() as session:
        champion = checkpoints.require_champion(session)
        config = scores.find_config(session, champion.id, scoring_definition(board.workspace, champion)) or 0
        rows = session.execute(sa.select(Score.image_id, Score.entropy_sum).where(Score.scoring_config_id == config))
        return {image: float(value) for image, value in rows}, config


def test_untouched_tasks_show_the_new_champion_in_its_order_and_started_ones_stay(board: Board) -> None:
    before = deepcopy(board.server.tasks)
    started = board.order()[2]
    board.server.submit(started, [])
    board.promote()
    report = refresh_open_tasks(board.workspace, board.server)
    assert (report.written, report.details["left alone"]) == (7, 1)
    known, config = champion_scores(board)
    rows, order = board.rows(), board.order()
    assert board.server.tasks[started]["data"] == before[started]["data"]
    assert order.index(started) == 2
    assert sorted(task["data"]["order"] for task in board.server.tasks.values()) == [f"{place:06d}" for place in range(8)]
    chosen = [known[rows[number][1].image_id] for number in order if rows[number][1].arm == Arm.CHOSEN and number != started]
    assert len(chosen) >= 5
    assert chosen == sorted(chosen, reverse=True)
    assert order != sorted(board.server.tasks)
    with board.workspace.database.read() as session:
        for number in set(order) - {started}:
            task, query = rows[number]
            data = board.server.tasks[number]["data"]
            classes = scores.doubtful_classes(session, config, [query.image_id])[query.image_id]
            names = ", ".join(board.workspace.label_set.names[index] for index in classes)
            assert data["doubt"] == f"Least sure about: {names}"
            assert data["entropy"] == [task.entropy_url] != before[number]["data"]["entropy"]
            kept = ("image", "key", "sha256")
            assert [data[name] for name in kept] == [before[number]["data"][name] for name in kept]
            prediction = session.get_one(Prediction, task.prediction_id)
            (shown,) = board.server.tasks[number]["predictions"]
            assert prediction.source == f"checkpoint:{board.second}"
            assert shown["model_version"] == board.second
            assert shown["score"] == pytest.approx(([n for n in order if n != started].index(number) + 0.5) / 7)
    again = refresh_open_tasks(board.workspace, board.server)
    assert (again.written, board.order()) == (0, order)


def test_a_refresh_leaves_nothing_for_a_pull(board: Board) -> None:
    pull_annotations(board.workspace, board.server)
    board.promote()
    refresh_open_tasks(board.workspace, board.server)
    for full in (False, True):
        assert pull_annotations(board.workspace, board.server, full=full).written == 0
    with board.workspace.database.read() as session:
        assert session.scalars(sa.select(Annotation).where(Annotation.external_task_id.is_not(None))).all() == []


def test_a_round_chosen_under_the_old_champion_does_not_bring_its_version_back(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pushed after the promotion, it shows the champion, too, and so does the whole project."""
    replace, replaced = board.server.replace_predictions, list[list[int]]()

    def replacing(project: int, version: str, predictions: Sequence[Mapping[str, Any]]) -> None:
        replaced.append([item["task"] for item in predictions])
        replace(project, version, predictions)

    monkeypatch.setattr(board.server, "replace_predictions", replacing)
    board.server.dead = True
    with pytest.raises(LabelStudioUnreachable):
        push(board.workspace, board.server, size=4)
    board.server.dead = False
    board.promote()
    reports = advance_round(board.workspace, board.server, open_new=False)  # type: ignore[arg-type]
    written = [(report.stage, report.written) for report in reports if report.stage in ("push", "refresh")]
    assert written[:2] == [("refresh", 8), ("push", 4)]
    assert written[2] > ("refresh", 4)
    # Those that showed the champion got another place, and kept their predictions.
    assert [len(tasks) for tasks in replaced] == [8, 4]
    assert not set(replaced[0]) & set(replaced[1])
    assert len(board.server.tasks) == 12
    shown = {item["model_version"] for task in board.server.tasks.values() for item in task["predictions"]}
    assert (shown, board.server.versions) == ({board.second}, {1: board.second})


def test_a_version_that_was_changed_by_hand_is_set_again_where_tasks_show_the_champion(board: Board) -> None:
    first = board.server.versions[1]
    board.promote()
    started = board.order()[0]
    board.server.submit(started, [])
    refresh_open_tasks(board.workspace, board.server)
    for _ in range(2):
        board.server.set_model_version(1, first)
        report = refresh_open_tasks(board.workspace, board.server)
        assert (report.written, report.details, board.server.versions[1]) == (0, {"model_version": board.second}, board.second)
        pull_annotations(board.workspace, board.server)
        first = "somebody's"
        board.server.tasks[started]["predictions"] = [{"model_version": first}]
    assert refresh_open_tasks(board.workspace, board.server).details == {}


def test_a_damaged_mask_is_drawn_again_and_a_task_without_image_costs_no_pull_anything(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.promote()
    with board.workspace.database.read() as session:
        champion = checkpoints.require_champion(session)
        images = {item.task.external_task_id or 0: item.image for item in open_tasks(session, 1)}
    predict_and_store(board.workspace, champion, list(images.values()))
    with board.workspace.database.read() as session:
        stored = labeling.predictions_of(session, f"checkpoint:{board.second}", [ref.image_id for ref in images.values()])
    masks = {number: stored[ref.image_id].mask_location for number, ref in images.items()}
    # Equal masks are one file.
    lost = Counter(masks.values()).most_common()[-1][0]
    damaged = [number for number in masks if masks[number] == lost]
    edited, bare, *others = (number for number in masks if masks[number] != lost)
    board.workspace.artifacts.path(lost).write_bytes(b"")
    board.workspace.artifacts.path(stored[images[bare].image_id].entropy_location or "").unlink()
    del board.server.tasks[edited]["data"]["image"]
    before = deepcopy(board.server.tasks[edited])
    board.server.tasks[bare]["data"]["entropy"] = {"odd": 1}
    # A GPU need not draw it again as it was.
    monkeypatch.setattr("activeseg.predictions.without_specks", lambda mask, _: np.flip(mask, axis=1).copy())
    report = refresh_open_tasks(board.workspace, board.server)
    assert (report.written, report.failed) == (1 + len(others) + len(damaged), 1)
    assert {name: report.details[name] for name in ("tasks without image", "left alone")} == {
        "tasks without image": 1,
        "left alone": 1,
    }
    assert board.server.tasks[edited] == before
    for number in damaged:
        assert board.server.tasks[number]["predictions"][0]["model_version"] == board.second
    assert board.server.tasks[bare]["data"]["entropy"] == [board.server.tasks[bare]["data"]["image"]]
    assert board.server.tasks[bare]["predictions"][0]["model_version"] == board.second
    monkeypatch.delattr("activeseg.stages.refresh._draw")
    monkeypatch.delattr("activeseg.stages.refresh._show")
    again = refresh_open_tasks(board.workspace, board.server)
    assert (again.written, again.failed, again.details) == (0, 1, {"tasks without image": 1})


def test_a_stored_mask_of_another_size_is_left_counted_and_drawn_by_no_pull(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.promote()
    with board.workspace.database.read() as session:
        champion = checkpoints.require_champion(session)
        items = open_tasks(session, 1)
    stored = board.workspace.store_mask(np.zeros((8, 8), np.uint8))
    with board.workspace.database.write() as session:
        columns = {"mask_location": stored.location, "mask_sha256": stored.sha256, "checkpoint_id": champion.id}
        session.add(Prediction(image_id=items[0].image.image_id, source=f"checkpoint:{board.second}", **columns))
    before = deepcopy(board.server.tasks[items[0].task.external_task_id])
    report = refresh_open_tasks(board.workspace, board.server)
    assert (report.written, report.failed, report.details["masks that do not fit"]) == (7, 1, 1)
    assert board.server.tasks[items[0].task.external_task_id] == before
    monkeypatch.delattr("activeseg.stages.refresh._draw")
    again = refresh_open_tasks(board.workspace, board.server)
    assert (again.written, again.details) == (0, {"masks that do not fit": 1})


class Stumbling:
    """A server that works for a number of writing calls and is gone then."""

    def __init__(self, server: MemoryLabelStudio, calls: int) -> None:
        self.server, self.calls, self.done = server, calls, 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.server, name)
        if name not in ("upload_files", "set_task_data", "replace_predictions"):
            return found

        def call(*arguments: Any) -> Any:
            if self.done >= self.calls:
                raise LabelStudioUnreachable("killed here")
            self.done += 1
            return found(*arguments)

        return call


def seen(server: MemoryLabelStudio) -> dict[int, Any]:
    return {number: (task["data"], task["predictions"]) for number, task in server.tasks.items()}


def test_a_kill_at_any_call_is_harmless_and_the_next_run_goes_on(board: Board) -> None:
    board.promote()
    whole = deepcopy(board.server)
    counting = Stumbling(whole, 100)
    first_rows = {number: (task.prediction_id, task.entropy_url) for number, (task, _) in board.rows().items()}
    refresh_open_tasks(board.workspace, counting)  # type: ignore[arg-type]
    outcome = seen(whole)
    assert counting.done == 1 + 8 + 1
    for calls in range(counting.done):
        with board.workspace.database.write() as session:
            for number, (prediction, url) in first_rows.items():
                task = session.scalars(sa.select(Task).where(Task.external_task_id == number)).one()
                task.prediction_id, task.entropy_url = prediction, url
        server = deepcopy(board.server)
        with pytest.raises(LabelStudioUnreachable):
            refresh_open_tasks(board.workspace, Stumbling(server, calls))  # type: ignore[arg-type]
        goes_on = Stumbling(server, 100)
        assert refresh_open_tasks(board.workspace, goes_on).written == 8  # type: ignore[arg-type]
        assert seen(server) == outcome
        # What is there already is not sent again; a map that no task names yet is.
        patched = max(calls - 1, 0)
        assert goes_on.done == (patched < 8) + (8 - patched) + 1


@pytest.mark.parametrize("left", [6, 1])
def test_a_kill_between_groups_leaves_no_task_at_its_former_place(
    board: Board, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    monkeypatch.setattr("activeseg.stages.refresh.GROUP", 2)
    former = {number: task.prediction_id for number, (task, _) in board.rows().items()}
    board.promote()
    refresh_open_tasks(board.workspace, board.server)
    lone = board.order()[0]  # the one that does not show the champion yet is to be the first of all
    for number, task in board.server.tasks.items():
        task["data"]["order"] = str(900 + number)

    def refreshed(server: object) -> None:
        with board.workspace.database.write() as session:
            row = session.scalars(sa.select(Task).where(Task.external_task_id == lone)).one()
            row.prediction_id = former[lone]
        refresh_open_tasks(board.workspace, server)  # type: ignore[arg-type]

    whole, server = deepcopy(board.server), deepcopy(board.server)
    counting = Stumbling(whole, 100)
    refreshed(counting)
    with pytest.raises(LabelStudioUnreachable):
        refreshed(Stumbling(server, counting.done - left))
    refresh_open_tasks(board.workspace, server)  # type: ignore[arg-type]
    assert seen(server) == seen(whole)


def test_a_task_started_while_the_champion_draws_is_left_alone(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    board.promote()
    started = board.order()[0]
    before = deepcopy(board.server.tasks[started]["data"])
    ask = board.server.task_data

    def meanwhile(project_id: int, ids: Sequence[int]) -> Mapping[int, Any]:
        board.server.submit(started, [])
        return ask(project_id, ids)

    monkeypatch.setattr(board.server, "task_data", meanwhile)
    assert refresh_open_tasks(board.workspace, board.server).written == 7
    assert board.server.tasks[started]["data"] == before
    assert board.server.tasks[started]["predictions"][0]["model_version"] != board.second


def test_masks_and_maps_have_the_size_the_task_is_shown_at(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    with board.workspace.database.write() as session:
        for task in session.scalars(sa.select(Task)):
            task.shown_width, task.shown_height = 32, 24
    board.promote()
    files: list[bytes] = []
    upload = board.server.upload_files
    monkeypatch.setattr(
        board.server, "upload_files", lambda project, some: [files.append(png) for _, png in some] and upload(project, some)
    )
    assert refresh_open_tasks(board.workspace, board.server).written == 8
    assert {Pillow.open(io.BytesIO(png)).size for png in files} == {(32, 24)}
    for task in board.server.tasks.values():
        for region in task["predictions"][0]["result"]:
            assert (region["original_width"], region["original_height"]) == (32, 24)
            url = region["value"]["imageDataURL"].split(",")[1]
            assert Pillow.open(io.BytesIO(base64.b64decode(url))).size == (32, 24)


def test_both_arms_get_the_same_fields_and_texts(board: Board) -> None:
    board.promote()
    refresh_open_tasks(board.workspace, board.server)
    forms = set()
    for number, (_, query) in board.rows().items():
        data = board.server.tasks[number]["data"]
        (shown,) = board.server.tasks[number]["predictions"]
        forms.add(
            (tuple(data), len(data["entropy"]), data["doubt"].split(":")[0], tuple(sorted(shown)), shown["model_version"])
        )
        assert not any(word in str(data).lower() for word in ("control", "chosen", "rank", "score"))
        assert query.arm in (Arm.CONTROL, Arm.CHOSEN)
    assert len(forms) == 1


def open_task(number: int, arm: Arm, place: int) -> OpenTask:
    return OpenTask(Task(id=number), ImageRef(number, str(number), ""), arm, place, (8, 8), (8, 8), None)


def image_score(number: int, value: float) -> ImageScore:
    return ImageScore(number, value, 0.0, 1, 0.0, 0.0, 0.0, (), ())


def test_control_tasks_are_as_likely_at_any_place_as_at_any_other() -> None:
    arms = [Arm.CONTROL] * 2 + [Arm.CHOSEN] * 6
    free = [open_task(number, arm, number) for number, arm in enumerate(arms)]
    # The control images are the most uncertain ones: sorted by score with the others they would stand at the head.
    known = {number: image_score(number, 100.0 - number) for number in range(8)}
    counts = Counter(
        place for seed in range(2000) for place, item in enumerate(_line_up(free, known, seed=seed)) if item.arm == Arm.CONTROL
    )
    expected = 2000 * 2 / 8
    assert sum((counts[place] - expected) ** 2 / expected for place in range(8)) < 18.5  # chi square, 7 degrees, 1 %
    assert [_line_up(free, known, seed=5) for _ in range(3)] == [_line_up(list(reversed(free)), known, seed=5)] * 3


def test_places_begin_where_the_tasks_were_and_leave_out_those_of_started_ones() -> None:
    free = [open_task(1, Arm.CHOSEN, 5), open_task(2, Arm.CHOSEN, 3), open_task(3, Arm.CONTROL, 9)]
    places = _places(free, {"000004", "000005", "None", "", "9" * 5000})
    assert [next(places) for _ in free] == [3, 6, 7]
