"""A database as a value: what a run decided and made, without times, hosts, speeds and outside numbers.

Two runs did the same if and only if their canonical dumps are equal.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from activeseg.db.database import Database
from activeseg.db.models import Model

# A repeated pass has a run of its own; leases and job runs tell who worked, not what was done.
LEFT_OUT_TABLES = {"scoring_runs", "leases", "job_runs", "schedule_slots", "push_journal"}
LEFT_OUT_COLUMNS = {
    "created_at", "scored_at", "started_at", "ended_at", "opened_at", "pushed_at", "closed_at", "received_at", "deleted_at",
    "evaluated_at", "pulled_until", "external_updated_at", "external_task_id", "external_annotation_id", "external_project_id",
    "stamp", "instance_key", "server_url", "key", "image_url", "entropy_url", "scoring_run_id", "lead_time", "uri",
}  # fmt: skip


def canonical_dump(database: Database) -> dict[str, list[str]]:
    """Table -> its rows as sorted JSON texts."""
    dump = {}
    with database.engine.connect() as connection:
        for table in Model.metadata.sorted_tables:
            if table.name in LEFT_OUT_TABLES:
                continue
            columns = [column for column in table.columns if column.name not in LEFT_OUT_COLUMNS]
            rows = connection.execute(sa.select(*columns)).mappings()
            dump[table.name] = sorted(json.dumps(dict(row), default=str, sort_keys=True) for row in rows)
    return dump


def differences(one: dict[str, list[str]], other: dict[str, list[str]]) -> dict[str, Any]:
    """Tables that differ, with the rows only one side has: what a failing comparison should show."""
    return {
        name: {
            "only first": sorted(set(one[name]) - set(other[name])),
            "only second": sorted(set(other[name]) - set(one[name])),
        }
        for name in one
        if one[name] != other[name]
    }
