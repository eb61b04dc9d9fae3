"""A Label Studio in memory, for what becomes of our side: projects, tasks and annotations as the client gives them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from activeseg.core.labels import LabelSet
from activeseg.errors import LabelStudioUnreachable
from activeseg.labelstudio.client import KeyedTask, TaskStamp
from activeseg.labelstudio.labeling import EntropyMap, MaskKind, labeling_config
from activeseg.labelstudio.projects import Project
from activeseg.loop import Listener, finish_round, rounds_to_push
from activeseg.preannotate import PreAnnotator
from activeseg.records import StageReport
from activeseg.stages.pool import sync_pool
from activeseg.workspace import Workspace


class MemoryLabelStudio:
    """Does what `LabelStudioClient` does, as far as push and pull need it.

    dead: creating tasks fails, as where the process is killed before it sends them.
    """

    url = "http://memory"

    def __init__(self, *, dead: bool = False) -> None:
        self.dead = dead
        self.projects: dict[int, Project] = {}
        self.tasks: dict[int, dict[str, Any]] = {}
        self.versions: dict[int, str] = {}
        self._numbers = iter(range(1, 10_000))

    def ensure_project(
        self, title: str, label_set: LabelSet, mask_kind: MaskKind, *, entropy_map: EntropyMap = "beside"
    ) -> Project:
        for project in self.projects.values():
            if project.title == title:
                return project
        number = len(self.projects) + 1
        config = labeling_config(label_set, mask_kind=mask_kind, entropy_map=entropy_map)
        self.projects[number] = Project(number, title, True, datetime.now(UTC).isoformat(), config, mask_kind)
        return self.projects[number]

    def project_births(self) -> dict[int, str]:
        return {project.id: project.created_at for project in self.projects.values()}

    def upload_files(self, project_id: int, files: Sequence[tuple[str, bytes]]) -> list[str]:
        return [f"/data/{name}" for name, _ in files]

    def import_tasks(
        self, project_id: int, tasks: Sequence[Mapping[str, Any] | bytes], *, predictions: int | None = None
    ) -> list[int]:
        if self.dead:
            raise LabelStudioUnreachable("killed here")
        numbers = [next(self._numbers) for _ in tasks]
        for number, task in zip(numbers, tasks, strict=True):
            self.tasks[number] = {"predictions": []} | dict(json.loads(task) if isinstance(task, bytes) else task)
            self.tasks[number] |= {"project": project_id, "annotations": [], "updated": datetime.now(UTC)}
        return numbers

    def set_model_version(self, project_id: int, version: str) -> None:
        shown = [item["model_version"] for number in self.task_ids(project_id) for item in self.tasks[number]["predictions"]]
        assert version in shown, "Label Studio refuses a version that no task has"
        self.versions[project_id] = version

    def model_version(self, project_id: int) -> str:
        return self.versions.get(project_id, "")

    def ensure_tab(self, project_id: int, title: str, ordering: Sequence[str]) -> int:
        return 1

    def find_tasks(self, project_id: int, keys: Sequence[str]) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for number in self.task_ids(project_id):
            if (key := self.tasks[number]["data"]["key"]) in keys:
                found.setdefault(key, []).append(number)
        return found

    def keyed_tasks(self, project_id: int, keys: Sequence[str] | None = None) -> Iterator[KeyedTask]:
        for number in self.task_ids(project_id):
            data = self.tasks[number]["data"]
            if keys is None or data.get("key") in keys:
                yield KeyedTask(number, data.get("key", ""), data.get("sha256", ""))

    def untouched_tasks(self, project_id: int, among: Sequence[int] | None = None) -> list[int]:
        numbers = [number for number in self.task_ids(project_id) if not self.tasks[number]["annotations"]]
        return [number for number in numbers if among is None or number in among]

    def task_data(self, project_id: int, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        return {number: dict(self.tasks[number]["data"]) for number in self.task_ids(project_id) if number in ids}

    def set_task_data(self, task_id: int, data: Mapping[str, Any]) -> None:
        self.tasks[task_id] |= {"data": dict(data), "updated": datetime.now(UTC)}

    def replace_predictions(self, project_id: int, model_version: str, predictions: Sequence[Mapping[str, Any]]) -> None:
        for item in predictions:
            self.tasks[item["task"]]["predictions"] = [dict(item)]
        self.set_model_version(project_id, model_version)

    def delete_tasks(self, project_id: int, ids: Sequence[int]) -> None:
        for number in ids:
            self.tasks.pop(number, None)

    def task_ids(self, project_id: int, expected: Collection[int] = ()) -> list[int]:
        return [number for number, task in self.tasks.items() if task["project"] == project_id]

    def changed_tasks(self, project_id: int, since: datetime | None) -> list[TaskStamp]:
        found = ((number, self.tasks[number]) for number in self.task_ids(project_id))
        stamps = [TaskStamp(number, task["updated"], untouched=not task["annotations"]) for number, task in found]
        stamps.sort(key=lambda stamp: (stamp.updated_at, stamp.id))
        return [stamp for stamp in stamps if since is None or stamp.updated_at > since]

    def export_tasks(self, project_id: int, task_ids: Sequence[int]) -> list[dict[str, Any]]:
        tasks = [self.tasks[number] | {"id": number} for number in task_ids]
        return [task for task in tasks if task["annotations"]]

    def submit(self, task: int, result: Sequence[Mapping[str, Any]]) -> None:
        """A person submits these regions."""
        moment = datetime.now(UTC)
        item = {"id": next(self._numbers), "updated_at": moment.isoformat(), "result": list(result), "completed_by": 1}
        self.tasks[task]["annotations"].append(item)
        self.tasks[task]["updated"] = moment

    def delete_project(self, project_id: int) -> None:
        """A person deletes a project with its tasks."""
        for number in self.task_ids(project_id):
            del self.tasks[number]
        del self.projects[project_id]


def section(title: str) -> dict[str, Any]:
    """The [labelstudio] section for a project of this title."""
    return {"url": MemoryLabelStudio.url, "project": title, "token_file": "token", "doubt_seconds": 0}


def push(
    workspace: Workspace, client: Any, annotator: PreAnnotator | None = None, *, size: int | None = None
) -> dict[str, StageReport]:
    """What `activeseg pool sync` and `activeseg push` do; the reports by stage."""
    sync_pool(workspace)
    rows = rounds_to_push(workspace, size)
    reports = [one for row in rows for one in finish_round(workspace, row, client, Listener(), pre_annotator=annotator)]
    return {report.stage: report for report in reports}
