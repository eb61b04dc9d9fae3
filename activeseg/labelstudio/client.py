"""What the loop asks of a Label Studio server: projects, tasks, predictions, and what changed.

Projects go through the official SDK, which is imported on first use (it takes seconds); bulk calls go through plain HTTP, which
is several times faster and is never repeated behind our back.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self, TypeVar

import httpx

from activeseg.core.labels import LabelSet
from activeseg.errors import LabelStudioError
from activeseg.labelstudio.http import Http, Params, TokenKind, json_bytes
from activeseg.labelstudio.labeling import EntropyMap, MaskKind
from activeseg.labelstudio.projects import Project, Projects

__all__ = ["KeyedTask", "LabelStudioClient", "Project", "TaskStamp"]

Item = TypeVar("Item")
_KEY_BLOCK = 50  # keys travel in the address, which proxies limit to 8 kB
_ID_BLOCK = 200  # so do numbers
_EXPORT_BLOCK = 400  # of seven digits, about 7 kB
_UPLOAD_BLOCK = 50  # Label Studio takes at most 100 files a request
_UPLOAD_BYTES = 100_000_000  # and at most 250 MB; proxies often less
_PAGE = 1_000  # Label Studio holds the masks of all tasks of a page in memory, whatever is asked of them
# Counting a run of numbers takes the server as long as listing some fifty tasks.
_RUN = 100
_RUNS = 20  # each is a condition in the address
_TICK = timedelta(microseconds=1)
_STAMP = "id,updated_at,total_annotations,cancelled_annotations"


@dataclass(frozen=True, slots=True)
class TaskStamp:
    """When a task last changed (aware UTC): an annotation made, edited, deleted or skipped moves it.

    untouched: Label Studio counts no annotation and no skip on it. Its counters may lag behind.
    """

    id: int
    updated_at: datetime
    untouched: bool = False


@dataclass(frozen=True, slots=True)
class KeyedTask:
    """A task with what says whose it is: `data.key` and `data.sha256`, empty where it has none."""

    id: int
    key: str
    sha256: str


class LabelStudioClient:
    """One server, one token (personal access token or legacy). Close it, or use it as a context manager."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout: float = 60.0,
        retry_delays: Sequence[float] = (0.5, 1.5),
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = Http(url, token, timeout=timeout, retry_delays=retry_delays, transport=transport)
        self._projects = Projects(self._http, token)

    def __repr__(self) -> str:
        return f"LabelStudioClient({self.url!r}, {self.token_kind} token)"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Address of the server, without a trailing slash."""
        return self._http.url

    @property
    def http(self) -> Http:
        """The connection itself, for the parts of Label Studio that have a module of their own."""
        return self._http

    @property
    def token_kind(self) -> TokenKind:
        """'personal' (renewed by itself) or 'legacy' (off by default since Label Studio 1.17)."""
        return self._http.token_kind

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def version(self) -> str:
        """Version of the server, e.g. '1.23.2'. Checks the token too."""
        self._http.get("/api/current-user/whoami")
        answer = self._http.get("/api/version")
        with self._http.expecting("GET /api/version"):
            return str(answer["release"])

    # Projects

    def ensure_project(
        self, title: str, label_set: LabelSet, mask_kind: MaskKind, *, entropy_map: EntropyMap = "beside"
    ) -> Project:
        """The oldest project of this title, made if there is none; its screen gets the entropy map where it is wanted.

        A screen that somebody changed by hand stays as it is.

        Raises LabelSetMismatch where an existing one has other classes, LabelStudioError where its masks are of another
        kind, LabelStudioDoubt where the answer to making it was lost (calling again finds it).
        """
        return self._projects.ensure(title, label_set, mask_kind, entropy_map=entropy_map)

    def find_project(self, title: str, label_set: LabelSet, mask_kind: MaskKind) -> Project | None:
        """The oldest project of this title, or None; raises as `ensure_project` where it does not fit."""
        return self._projects.find(title, label_set, mask_kind)

    def project_births(self) -> dict[int, str]:
        """When each project of the server was made (ISO, UTC), by its number: what `Project.created_at` says."""
        return self._projects.births()

    def get_project(self, project_id: int) -> Project:
        """A project by number. Raises LabelStudioError where there is none or it has no mask control named `label`."""
        return self._projects.get(project_id)

    def set_model_version(self, project_id: int, version: str) -> None:
        """Make this version's predictions the ones annotators see."""
        self._http.repeatable("PATCH", f"/api/projects/{project_id}/", body={"model_version": version})

    def model_version(self, project_id: int) -> str:
        """Whose predictions annotators see; '' where that was never said."""
        return str(self._http.get(f"/api/projects/{project_id}/").get("model_version") or "")

    def ensure_tab(self, project_id: int, title: str, ordering: Sequence[str]) -> int:
        """Number of the project's tab of this title, made if missing and reordered if need be.

        ordering: columns such as 'tasks:data.order'; a leading '-' is descending. `data` columns compare as text.
        """
        wanted, path = list(ordering), "/api/dm/views/"
        tabs = self._http.get(path, {"project": project_id})
        with self._http.expecting(f"GET {path}"):
            known = {str(tab["data"].get("title")): (int(tab["id"]), dict(tab["data"])) for tab in reversed(tabs)}
        if title in known:
            number, data = known[title]
            if data.get("ordering") != wanted:
                body = {"project": project_id, "data": data | {"ordering": wanted}}
                self._http.repeatable("PATCH", f"{path}{number}/", body=body)
            return number
        data = {"title": title, "type": "list", "target": "tasks", "ordering": wanted, "columnsDisplayType": {}}
        data |= {"hiddenColumns": {"explore": ["tasks:predictions_score"], "labeling": ["tasks:predictions_score"]}}
        made = self._http.create(path, {"project": project_id, "data": data})
        with self._http.expecting(f"POST {path}"):
            return int(made["id"])

    # Tasks

    def upload_files(self, project_id: int, files: Sequence[tuple[str, bytes]]) -> list[str]:
        """Store files on the server; their addresses for `data.image`, in order.

        Where it fails, at worst files that no task names are left behind: calling again is safe.
        """
        urls = []
        for block in _uploads(files):
            made = self._http.upload(f"/api/projects/{project_id}/import", block, {"commit_to_project": "false"})
            with self._http.expecting("an upload"):
                numbers = [int(number) for number in made["file_upload_ids"]]
            if len(numbers) != len(block):
                raise LabelStudioError(f"Label Studio stored {len(numbers)} of {len(block)} uploaded files")
            stored = self._http.get(f"/api/projects/{project_id}/file-uploads", {"ids": json.dumps(numbers)})
            with self._http.expecting("GET file-uploads"):
                names = {upload["id"]: upload["file"] for upload in stored}
                urls += ["/data/" + names[number] for number in numbers]
        return urls

    def import_tasks(
        self, project_id: int, tasks: Sequence[Mapping[str, Any] | bytes], *, predictions: int | None = None
    ) -> list[int]:
        """Create tasks in one request; their numbers, in order. Never sent twice.

        tasks: from `tasks.task_payload`, or their JSON. predictions: how many are in them, to be compared with the answer.
        Raises LabelStudioDoubt where the answer is lost: look with `find_tasks` before sending again. Raises
        LabelStudioError where the tasks are there and some of their predictions are not.
        """
        if not tasks:
            return []
        path = f"/api/projects/{project_id}/import"
        body = b"[" + b",".join(task if isinstance(task, bytes) else json_bytes(task) for task in tasks) + b"]"
        made = self._http.create(path, body, {"return_task_ids": "true"})
        try:
            numbers = [int(number) for number in made.get("task_ids", ())]
        except (AttributeError, TypeError, ValueError) as error:
            raise self._http.doubt(path, "an answer of an unexpected shape") from error
        if len(numbers) != len(tasks):
            raise self._http.doubt(path, f"{len(numbers)} task ids for {len(tasks)} tasks")
        if predictions is not None and (kept := made.get("prediction_count")) != predictions:
            raise LabelStudioError(
                f"Label Studio made {len(tasks)} tasks in project {project_id} with {kept} of {predictions} predictions: "
                "the others open without a mask; delete those tasks in Label Studio to have their images asked for again"
            )
        return numbers

    def find_tasks(self, project_id: int, keys: Sequence[str]) -> dict[str, list[int]]:
        """Task numbers by `data.key`, ascending; keys without a task are absent."""
        found: dict[str, list[int]] = {}
        for task in self.keyed_tasks(project_id, keys):
            found.setdefault(task.key, []).append(task.id)
        return {key: sorted(numbers) for key, numbers in found.items()}

    def keyed_tasks(self, project_id: int, keys: Sequence[str] | None = None) -> Iterator[KeyedTask]:
        """All tasks of a project by number, or those of some keys; a page at a time."""
        if keys is None:
            yield from map(_keyed, self._all(project_id, "id,data", []))
            return
        for block in _blocks(keys, _KEY_BLOCK):
            match = _rule("data.key", "in_list", "List", list(block))
            yield from (task for task in map(_keyed, self._all(project_id, "id,data", [match])) if task.key in block)

    def task_ids(self, project_id: int, expected: Collection[int] = ()) -> list[int]:
        """Numbers of all tasks of a project, ascending.

        expected: numbers that are probably there. Of those that follow one another a count tells whether all are, so that
        only the others are listed: Label Studio reads every mask of the tasks that it lists.
        """
        runs = [_rule("id", "in", "Number", {"min": first, "max": last}) for first, last in _runs(expected)]
        found = [task["id"] for task in self._all(project_id, "id", [run | {"operator": "not_in"} for run in runs])]
        for run in runs:
            first, last = run["value"]["min"], run["value"]["max"]
            _, total = self._page(project_id, "id", [run], "tasks:id", size=1)
            whole = total == last - first + 1
            found += range(first, last + 1) if whole else (task["id"] for task in self._all(project_id, "id", [run]))
        return sorted(found)

    def untouched_tasks(self, project_id: int, among: Sequence[int] | None = None) -> list[int]:
        """Numbers of the tasks (or of those `among` them) without annotation, skip or draft of anybody, ascending."""
        started = ("total_annotations", "cancelled_annotations")
        rules = [_rule(name, "equal", "Number", 0) for name in started] + [_rule("draft_exists", "equal", "Boolean", False)]
        if among is None:
            return [task["id"] for task in self._all(project_id, "id", rules)]
        blocks = ([*rules, _rule("id", "in_list", "List", list(block))] for block in _blocks(among, _ID_BLOCK))
        return sorted(task["id"] for chosen in blocks for task in self._all(project_id, "id", chosen))

    def task_data(self, project_id: int, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """The data of tasks by number; numbers that are gone are absent."""
        rules = (_rule("id", "in_list", "List", list(block)) for block in _blocks(ids, _ID_BLOCK))
        return {task["id"]: _data(task) for rule in rules for task in self._all(project_id, "id,data", [rule])}

    def set_task_data(self, task_id: int, data: Mapping[str, Any]) -> None:
        """Give a task these data in place of all it has; its predictions stay. Moves its stamp (`changed_tasks`)."""
        self._http.repeatable("PATCH", f"/api/tasks/{task_id}/", body={"data": dict(data)})

    def changed_tasks(self, project_id: int, since: datetime | None) -> Iterator[TaskStamp]:
        """Tasks that changed after `since` (aware), oldest change first, a page at a time.

        One that changes meanwhile comes again with its new stamp. Bulk predictions and drafts move no stamp. Ask with a few
        seconds of overlap: commits are not ordered.
        """
        seen: dict[int, TaskStamp] = {}
        while True:
            rules = [] if since is None else [_rule("updated_at", "greater", "Datetime", _iso(since))]
            tasks, total = self._page(project_id, _STAMP, rules, "tasks:updated_at")
            with self._http.expecting("GET /api/tasks/"):
                page = [_stamp(task) for task in tasks]
            fresh = [stamp for stamp in page if seen.get(stamp.id) != stamp]
            seen |= {stamp.id: stamp for stamp in fresh}
            yield from sorted(fresh, key=lambda stamp: (stamp.updated_at, stamp.id))
            if len(page) >= total:
                return
            since = page[-1].updated_at
            if fresh:
                since -= _TICK
            else:  # a whole page changed at the same moment: the rest of it, by number
                same = self._all(project_id, "id", [_rule("updated_at", "equal", "Datetime", _iso(since))])
                rest = [TaskStamp(task["id"], since) for task in same if task["id"] not in seen]
                seen |= {stamp.id: stamp for stamp in rest}
                yield from rest

    def export_tasks(self, project_id: int, ids: Sequence[int]) -> list[dict[str, Any]]:
        """Tasks with their annotations as Label Studio exports them; those without any annotation are left out."""
        tasks: list[dict[str, Any]] = []
        for block in _blocks(ids, _EXPORT_BLOCK):
            path = f"/api/projects/{project_id}/export"
            answer = self._http.get(path, {"exportType": "JSON", "ids[]": list(block)})
            if not isinstance(answer, list):
                raise LabelStudioError(f"{self.url} answered GET {path} with something else than a list of tasks")
            tasks += answer
        return tasks

    def delete_tasks(self, project_id: int, ids: Sequence[int]) -> None:
        """Delete tasks of this project with everything on them; numbers that are gone already do not matter.

        Sent once. Raises LabelStudioDoubt where the answer is lost: somebody may have started a task since it was found to be
        untouched, so ask again before the next attempt.
        """
        if ids:  # Label Studio would take an empty selection for the whole project
            self._http.create("/api/dm/actions", _selected(ids), {"id": "delete_tasks", "project": project_id})

    def replace_predictions(self, project_id: int, model_version: str, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Give tasks new predictions in place of all they have, and make their version the shown one.

        predictions: from `tasks.prediction_payload` with a task_id. Safe to call again after a failure. Raises
        LabelStudioError where the server silently dropped some (it does not say which or why).
        """
        path, created = f"/api/projects/{project_id}/import/predictions", 0
        if predictions:  # Label Studio would take an empty selection for the whole project
            action: Params = {"id": "delete_tasks_predictions", "project": project_id}
            selected = _selected([prediction["task"] for prediction in predictions])
            self._http.repeatable("POST", "/api/dm/actions", params=action, body=selected)
            answer = self._http.create(path, list(predictions))
            with self._http.expecting(f"POST {path}"):
                created = answer["created"]
        if created != len(predictions):
            raise LabelStudioError(
                f"Label Studio kept {created} of {len(predictions)} predictions for project {project_id}: "
                "their labels, score or task do not fit the project"
            )
        self.set_model_version(project_id, model_version)

    def _all(self, project_id: int, include: str, rules: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Tasks by number, whatever page size the server allows: an empty page is the end."""
        last = 0
        while True:
            after = [_rule("id", "greater", "Number", last)] if last else []
            tasks, total = self._page(project_id, include, [*rules, *after], "tasks:id")
            yield from tasks
            if len(tasks) >= total:
                return
            last = tasks[-1]["id"]

    def _page(
        self, project_id: int, include: str, rules: Sequence[Mapping[str, Any]], ordering: str, *, size: int = _PAGE
    ) -> tuple[list[dict[str, Any]], int]:
        """The first tasks that fit the rules, and how many there are in all: a server may allow smaller pages than asked.

        Raises LabelStudioError for an answer that counts tasks and shows none: taken for the end, it would lose them.
        """
        query = {"filters": {"conjunction": "and", "items": list(rules)}, "ordering": [ordering]}
        params: dict[str, str | int] = {
            "project": project_id,
            "fields": "task_only",
            "include": include,
            "page_size": size,
            "query": json.dumps(query),
        }
        answer = self._http.get("/api/tasks/", params)
        with self._http.expecting("GET /api/tasks/"):
            tasks, total = [dict(task) | {"id": int(task["id"])} for task in answer["tasks"]], int(answer.get("total", 0))
        if total and not tasks:
            raise LabelStudioError(
                f"{self.url} counts {total} tasks in project {project_id} and shows none of them: run it again; if it stays "
                "so, look whether the project opens in Label Studio"
            )
        return tasks, total


def _keyed(task: Mapping[str, Any]) -> KeyedTask:
    data = _data(task)
    return KeyedTask(int(task["id"]), str(data.get("key") or ""), str(data.get("sha256") or ""))


def _stamp(task: Mapping[str, Any]) -> TaskStamp:
    untouched = task.get("total_annotations") == 0 == task.get("cancelled_annotations")
    return TaskStamp(task["id"], datetime.fromisoformat(task["updated_at"]).astimezone(UTC), untouched)


def _data(task: Mapping[str, Any]) -> dict[str, Any]:
    """A task's data; what somebody imported by hand may be anything."""
    data = task.get("data")
    return dict(data) if isinstance(data, Mapping) else {}


def _selected(ids: Sequence[int]) -> dict[str, Any]:
    return {"selectedItems": {"all": False, "included": list(ids)}}


def _blocks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _uploads(files: Sequence[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    """Files in order, as many as a request may hold; one that is larger goes alone."""
    block: list[tuple[str, bytes]] = []
    size = 0
    for file in files:
        if block and (len(block) == _UPLOAD_BLOCK or size + len(file[1]) > _UPLOAD_BYTES):
            yield block
            block, size = [], 0
        block.append(file)
        size += len(file[1])
    if block:
        yield block


def _runs(numbers: Collection[int]) -> list[tuple[int, int]]:
    """First and last of the longest runs of consecutive numbers, as far as counting them is worth a request."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and number <= runs[-1][1] + 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    longest = sorted(runs, key=lambda run: run[0] - run[1])[:_RUNS]
    return [run for run in longest if run[1] - run[0] + 1 >= _RUN]


def _rule(column: str, operator: str, kind: str, value: Any) -> dict[str, Any]:
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
