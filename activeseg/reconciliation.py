"""What became of our tasks in Label Studio: calls nobody knows the end of, tasks that are there twice.

Label Studio has no unique key, so ours stands in `task.data.key`: a task is looked up by it before it is sent again.
"""

from __future__ import annotations

import hashlib

from activeseg.db import labeling
from activeseg.db.models import JournalState, LabelingProject
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.workspace import Workspace


def settle(workspace: Workspace, client: LabelStudioClient, project: LabelingProject) -> int:
    """Look up what became of calls nobody knows the end of; returns how many tasks were found and recorded.

    A key with more than one task (a paused or cut-off sender) keeps the first one; others nobody has touched are
    removed, and annotations on the rest are collected by pull under the same query.
    """
    with workspace.database.read() as session:
        open_calls = labeling.unsettled(session, project.id)
    found_tasks = 0
    for call in open_calls:
        found = client.find_tasks(project.external_project_id, call.keys)
        surplus = [number for numbers in found.values() for number in numbers[1:]]
        if surplus:
            untouched = set(client.untouched_tasks(project.external_project_id))
            client.delete_tasks(project.external_project_id, [number for number in surplus if number in untouched])
        with workspace.database.write() as session:
            first = {key: numbers[0] for key, numbers in found.items()}
            found_tasks += labeling.mark_pushed(session, project.id, first)
            note = f"{len(found)} of {len(call.keys)} tasks were there, {len(surplus)} surplus"
            labeling.journal(session, call.id, JournalState.SETTLED, note)
    return found_tasks


def task_key(project: LabelingProject, round_number: int, image_sha256: str) -> str:
    """The key of an image's task in a round: the same whenever it is computed, and telling nothing."""
    text = f"{project.instance_key}/{project.external_project_id}/{round_number}/{image_sha256}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]
