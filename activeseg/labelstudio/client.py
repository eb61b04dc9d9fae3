"""What the loop asks of a Label Studio server: projects, tasks, predictions, and what changed.

Projects go through the official SDK, which is imported on first use (it takes seconds); bulk calls go through plain HTTP, which
is several times faster and is never repeated behind our back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self, TypeVar

import httpx

from activeseg.core.labels import LabelSet
from activeseg.errors import LabelStudioError
from activeseg.labelstudio.http import Http, TokenKind
from activeseg.labelstudio.labeling import MaskKind
from activeseg.labelstudio.projects import Project, Projects

__all__ = ["LabelStudioClient", "Project", "TaskStamp"]

Item = TypeVar("Item")
_EXPORT_BLOCK = 50
_KEY_BLOCK = 50  # keys travel in the address, which proxies limit to 8 kB
_UPLOAD_BLOCK = 50  # Label Studio takes at most 100 files a request
_PAGE = 10_000
_TICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class TaskStamp:
    """When a task last changed (aware UTC): an annotation made, edited, deleted or skipped moves it."""

    id: int
    updated_at: datetime


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
        return str(self._http.get("/api/version")["release"])

    # Projects

    def ensure_project(self, title: str, label_set: LabelSet, mask_kind: MaskKind) -> Project:
        """The oldest project of this title, made if there is none.

        Raises LabelSetMismatch where an existing one has other classes, LabelStudioError where its masks are of another
        kind, LabelStudioDoubt where the answer to making it was lost (calling again finds it).
        """
        return self._projects.ensure(title, label_set, mask_kind)

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

    def ensure_tab(self, project_id: int, title: str, ordering: Sequence[str]) -> int:
        """Number of the project's tab of this title, made if missing and reordered if need be.

        ordering: columns such as 'tasks:data.order'; a leading '-' is descending. `data` columns compare as text.
        """
        wanted = list(ordering)
        for tab in self._http.get("/api/dm/views/", {"project": project_id}):
            if tab["data"].get("title") == title:
                if tab["data"].get("ordering") != wanted:
                    data = tab["data"] | {"ordering": wanted}
                    self._http.repeatable("PATCH", f"/api/dm/views/{tab['id']}/", body={"project": project_id, "data": data})
                return int(tab["id"])
        data = {"title": title, "type": "list", "target": "tasks", "ordering": wanted, "columnsDisplayType": {}}
        data |= {"hiddenColumns": {"explore": ["tasks:predictions_score"], "labeling": ["tasks:predictions_score"]}}
        return int(self._http.create("/api/dm/views/", {"project": project_id, "data": data})["id"])

    # Tasks

    def upload_files(self, project_id: int, files: Sequence[tuple[str, bytes]]) -> list[str]:
        """Store files on the server; their addresses for `data.image`, in order.

        Where it fails, at worst files that no task names are left behind: calling again is safe.
        """
        urls = []
        for block in _blocks(files, _UPLOAD_BLOCK):
            made = self._http.upload(f"/api/projects/{project_id}/import", block, {"commit_to_project": "false"})
            numbers = made["file_upload_ids"]
            if len(numbers) != len(block):
                raise LabelStudioError(f"Label Studio stored {len(numbers)} of {len(block)} uploaded files")
            stored = self._http.get(f"/api/projects/{project_id}/file-uploads", {"ids": json.dumps(numbers)})
            names = {upload["id"]: upload["file"] for upload in stored}
            urls += ["/data/" + names[number] for number in numbers]
        return urls

    def import_tasks(self, project_id: int, tasks: Sequence[Mapping[str, Any]]) -> list[int]:
        """Create tasks in one request; their numbers, in order. Never sent twice.

        Raises LabelStudioDoubt where the answer is lost: look with `find_tasks` before sending again.
        """
        if not tasks:
            return []
        path = f"/api/projects/{project_id}/import"
        made = self._http.create(path, list(tasks), {"return_task_ids": "true"})
        numbers = [int(number) for number in made.get("task_ids", ())]
        if len(numbers) != len(tasks):
            raise self._http.doubt(path, f"{len(numbers)} task ids for {len(tasks)} tasks")
        return numbers

    def find_tasks(self, project_id: int, keys: Sequence[str]) -> dict[str, list[int]]:
        """Task numbers by `data.key`, ascending; keys without a task are absent."""
        found: dict[str, list[int]] = {}
        for block in _blocks(keys, _KEY_BLOCK):
            match = {"filter": "filter:tasks:data.key", "operator": "in_list", "type": "List", "value": list(block)}
            for task in self._tasks(project_id, "id,data", [match]):
                if (key := task["data"].get("key")) in block:
                    found.setdefault(key, []).append(task["id"])
        return {key: sorted(numbers) for key, numbers in found.items()}

    def task_ids(self, project_id: int) -> list[int]:
        """Numbers of all tasks of a project, ascending."""
        return self._all_ids(project_id, [])

    def untouched_tasks(self, project_id: int) -> list[int]:
        """Numbers of the tasks without annotation, skip or draft of anybody, ascending."""
        started = ("total_annotations", "cancelled_annotations")
        rules = [_rule(name, "equal", "Number", 0) for name in started] + [_rule("draft_exists", "equal", "Boolean", False)]
        return self._all_ids(project_id, rules)

    def changed_tasks(self, project_id: int, since: datetime | None) -> list[TaskStamp]:
        """Tasks that changed after `since` (aware), oldest change first.

        Bulk predictions and drafts move no stamp. Ask with a few seconds of overlap: commits are not ordered.
        """
        seen: dict[int, TaskStamp] = {}
        while True:
            rules = [] if since is None else [_rule("updated_at", "greater", "Datetime", _iso(since))]
            page = [
                TaskStamp(task["id"], datetime.fromisoformat(task["updated_at"]).astimezone(UTC))
                for task in self._tasks(project_id, "id,updated_at", rules, "tasks:updated_at")
            ]
            fresh = [stamp for stamp in page if seen.get(stamp.id) != stamp]
            seen |= {stamp.id: stamp for stamp in fresh}
            if len(page) < _PAGE or not fresh:
                return sorted(seen.values(), key=lambda stamp: (stamp.updated_at, stamp.id))
            since = page[-1].updated_at - _TICK

    def export_tasks(self, project_id: int, ids: Sequence[int]) -> list[dict[str, Any]]:
        """Tasks with their annotations as Label Studio exports them; those without any annotation are left out."""
        tasks: list[dict[str, Any]] = []
        for block in _blocks(ids, _EXPORT_BLOCK):
            tasks += self._http.get(f"/api/projects/{project_id}/export", {"exportType": "JSON", "ids[]": list(block)})
        return tasks

    def delete_tasks(self, project_id: int, ids: Sequence[int]) -> None:
        """Delete tasks of this project with everything on them; numbers that are gone already do not matter."""
        self._action("delete_tasks", project_id, ids)

    def replace_predictions(self, project_id: int, model_version: str, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Give tasks new predictions in place of all they have, and make their version the shown one.

        predictions: from `tasks.prediction_payload` with a task_id. Safe to call again after a failure. Raises
        LabelStudioError where the server silently dropped some (it does not say which or why).
        """
        self._action("delete_tasks_predictions", project_id, [prediction["task"] for prediction in predictions])
        path = f"/api/projects/{project_id}/import/predictions"
        created = self._http.create(path, list(predictions))["created"] if predictions else 0
        if created != len(predictions):
            raise LabelStudioError(
                f"Label Studio kept {created} of {len(predictions)} predictions for project {project_id}: "
                "their labels, score or task do not fit the project"
            )
        self.set_model_version(project_id, model_version)

    def _action(self, name: str, project_id: int, ids: Sequence[int]) -> None:
        if not ids:  # Label Studio would take an empty selection for the whole project
            return
        selected = {"selectedItems": {"all": False, "included": list(ids)}}
        self._http.repeatable("POST", "/api/dm/actions", params={"id": name, "project": project_id}, body=selected)

    def _all_ids(self, project_id: int, rules: Sequence[Mapping[str, Any]]) -> list[int]:
        numbers: list[int] = []
        while True:
            after = [_rule("id", "greater", "Number", numbers[-1])] if numbers else []
            page = [task["id"] for task in self._tasks(project_id, "id", [*rules, *after], "tasks:id")]
            numbers += page
            if len(page) < _PAGE:
                return numbers

    def _tasks(
        self, project_id: int, include: str, rules: Sequence[Mapping[str, Any]], *ordering: str
    ) -> Iterator[dict[str, Any]]:
        query = {"filters": {"conjunction": "and", "items": list(rules)}, "ordering": list(ordering)}
        params: dict[str, str | int] = {
            "project": project_id,
            "fields": "task_only",
            "include": include,
            "page_size": _PAGE,
            "query": json.dumps(query),
        }
        yield from self._http.get("/api/tasks/", params)["tasks"]


def _blocks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _rule(column: str, operator: str, kind: str, value: Any) -> dict[str, Any]:
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
