"""A database as a value: what a run decided and made, without times, hosts, speeds and outside numbers.

Two runs did the same if and only if their canonical dumps are equal. What is left out, and why no more:

    tables     those that tell who worked when, not what came of it
    columns    moments, addresses, and the numbers another server or another folder gives
    ids        become the row's place among its table's ids: PostgreSQL's sequences skip the numbers of transactions that
               were rolled back, but never change the order
    versions   a checkpoint is named after its training run's id, so its name becomes its place, too, wherever it stands
    embedders  are named after their scoring configuration's id; the name's number becomes its place
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from activeseg.db.database import Database
from activeseg.db.models import Model

# A repeated pass has a run of its own; leases, job runs and alerts tell who worked and who was told, not what was done; keys
# to the API are random.
LEFT_OUT_TABLES = {"scoring_runs", "leases", "job_runs", "schedule_slots", "push_journal", "alerts", "tokens"}
LEFT_OUT_COLUMNS = {
    "created_at", "scored_at", "started_at", "ended_at", "opened_at", "pushed_at", "closed_at", "received_at", "deleted_at",
    "evaluated_at", "pulled_until", "external_updated_at", "external_task_id", "external_annotation_id", "external_project_id",
    "stamp", "instance_key", "server_url", "key", "image_url", "entropy_url", "scoring_run_id", "lead_time", "uri",
}  # fmt: skip
# Lists of ids inside JSON: (table, column, key inside it or None) -> the table they are ids of.
LISTED_IDS = {
    ("annotations", "consensus_of", None): "annotations",
    ("training_runs", "configuration", "validation"): "annotations",
    ("training_runs", "configuration", "unlabelled"): "images",
}

_NUMBERED = {("embedders", "name"): "scoring_configs"}
"""(table, column) -> the table whose id is the last word of a name."""

Places = Mapping[str, Mapping[int, int]]
"""table -> id -> place among the table's ids, from 1."""


def canonical_dump(database: Database, *, left_out: frozenset[str] = frozenset(), failed_trainings: bool = True) -> Dump:
    """Table -> its rows as sorted JSON texts.

    left_out: further columns. failed_trainings: False leaves trainings out that came to nothing.
    """
    tables = [table for table in Model.metadata.sorted_tables if table.name not in LEFT_OUT_TABLES]
    with database.engine.connect() as connection:
        rows = {table.name: [dict(row) for row in connection.execute(sa.select(table)).mappings()] for table in tables}
    if not failed_trainings:
        _forget_failed_trainings(rows)
    places = {name: _places(found) for name, found in rows.items()}
    versions = {row["model_version"]: f"checkpoint {places['checkpoints'][row['id']]}" for row in rows["checkpoints"]}
    names = re.compile("|".join(map(re.escape, sorted(versions, key=len, reverse=True))) or "(?!)")
    return {
        table.name: sorted(
            names.sub(lambda match: versions[match.group()], _text(table, row, places, LEFT_OUT_COLUMNS | left_out))
            for row in rows[table.name]
        )
        for table in tables
    }


Dump = dict[str, list[str]]


def differences(one: Dump, other: Dump) -> dict[str, Any]:
    """Tables that differ, with the rows only one side has: what a failing comparison should show."""
    return {
        name: {
            "only first": sorted(set(one[name]) - set(other[name])),
            "only second": sorted(set(other[name]) - set(one[name])),
        }
        for name in one
        if one[name] != other[name]
    }


def _places(rows: list[dict[str, Any]]) -> dict[int, int]:
    return {number: place for place, number in enumerate(sorted(row["id"] for row in rows if "id" in row), 1)}


def _forget_failed_trainings(rows: dict[str, list[dict[str, Any]]]) -> None:
    failed = {row["id"] for row in rows["training_runs"] if row["status"] == "failed"}
    rows["training_runs"] = [row for row in rows["training_runs"] if row["id"] not in failed]
    links = rows["training_run_annotations"]
    rows["training_run_annotations"] = [row for row in links if row["training_run_id"] not in failed]


def _text(table: sa.Table, row: dict[str, Any], places: Places, left_out: set[str]) -> str:
    shown = {}
    for column in table.columns:
        if column.name not in left_out:
            shown[column.name] = _value(table.name, column, row[column.name], places)
    return json.dumps(shown, default=str, sort_keys=True)


def _value(table: str, column: sa.Column[Any], value: Any, places: Places) -> Any:
    if value is None:
        return None
    if column.name == "id":
        return places[table][value]
    for key in column.foreign_keys:
        if (known := places.get(key.column.table.name)) is not None:
            return known[value]
    if (listed := LISTED_IDS.get((table, column.name, None))) is not None:
        return [places[listed][number] for number in value]
    if (numbered := _NUMBERED.get((table, column.name))) is not None and (found := re.search(r"(?<= )\d+$", value)):
        return f"{value[: found.start()]}{places[numbered][int(found.group())]}"
    for (owner, name, key_inside), listed in LISTED_IDS.items():
        if (owner, name) == (table, column.name) and key_inside in value:
            value = value | {key_inside: [places[listed][number] for number in value[key_inside]]}
    return value
