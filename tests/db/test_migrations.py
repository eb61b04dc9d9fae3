from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory

from activeseg.db import migrate
from activeseg.db.database import SCHEMA_REVISION, Database
from activeseg.db.models import Model, Score, Task, TaskStatus
from activeseg.db.views import POSTGRESQL_VIEWS, VIEWS
from activeseg.errors import ConfigError, SchemaError
from tests.db.rows import Rows


def scripts() -> ScriptDirectory:
    return ScriptDirectory(str(migrate.migrations_folder()))


def set_revision(database: Database, revision: str | None) -> None:
    with database.write() as session:
        session.execute(sa.text("DELETE FROM alembic_version"))
        if revision:
            session.execute(sa.text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": revision})


def names(database: Database) -> tuple[set[str], set[str]]:
    inspector = sa.inspect(database.engine)
    return set(inspector.get_table_names()), set(inspector.get_view_names())


def test_up_down_up_leaves_nothing_behind_and_makes_everything_again(database: Database) -> None:
    everything = names(database)
    assert everything == ({*Model.metadata.tables, "alembic_version"}, set(VIEWS))
    migrate.downgrade(database, "base")
    assert names(database) == ({"alembic_version"}, set())
    assert database.revision() is None
    migrate.upgrade(database)
    assert names(database) == everything
    assert database.revision() == SCHEMA_REVISION


def test_upgrading_a_current_database_changes_nothing(database: Database, rows: Rows) -> None:
    rows.image()
    migrate.upgrade(database)
    with database.read() as session:
        assert session.scalar(sa.text("SELECT count(*) FROM images")) == 1


def test_a_downgrade_works_with_rows_in_every_corner(database: Database, rows: Rows) -> None:
    image, checkpoint = rows.image(), rows.checkpoint()
    rows.score(rows.config(checkpoint), image, 1.0, {0: 1.0})
    rows.annotation(image, query_id=rows.query(rows.round(), image))
    for revision in [*[script.revision for script in scripts().walk_revisions()][1:], None]:
        migrate.downgrade(database, "-1")
        assert database.revision() == revision


def corner_rows(rows: Rows, *, shown: tuple[int, int]) -> tuple[int, int]:
    """A consensus row, a star and an open task whose picture has this size (height, width); ids of row and task's query."""
    image, project = rows.image(), rows.project()
    query = rows.query(rows.round(), image)
    task = Task(labeling_project_id=project, query_id=query, key="k", status=TaskStatus.PUSHED, external_task_id=70)
    task.shown_height, task.shown_width = shown
    rows.add(task)
    starred = rows.annotation(image, outside=(project, 1), at=1, ground_truth=True, agreement=0.5, overlap_share=0.1)
    other = rows.annotation(image, outside=(project, 2), at=2, rubber_stamp=True)
    return rows.annotation(image, outside=(project, 3), at=2, consensus_of=[starred, other]), query


def test_a_downgrade_ends_what_annotators_agreed_on_and_keeps_what_they_drew(database: Database, rows: Rows) -> None:
    agreed, _ = corner_rows(rows, shown=(48, 64))
    migrate.downgrade(database, "0001")
    with database.read() as session:
        rows_now = session.execute(sa.text("SELECT id, status FROM annotations")).all()
        statuses = {row.id: row.status for row in rows_now}
        assert statuses == {agreed - 2: "valid", agreed - 1: "valid", agreed: "deleted"}
        assert session.scalar(sa.text("SELECT annotation_id FROM current_annotations")) == agreed - 1
    migrate.upgrade(database)
    with database.read() as session:
        assert session.scalar(sa.text("SELECT count(*) FROM annotations WHERE ground_truth OR consensus_of IS NOT NULL")) == 0


def test_a_downgrade_is_refused_while_an_open_task_shows_its_image_shrunk(database: Database, rows: Rows) -> None:
    _, query = corner_rows(rows, shown=(24, 32))
    migrate.downgrade(database, "0002")
    with pytest.raises(SchemaError, match=r"1 open tasks show their image shrunk.*have them answered, or delete them in Label"):
        migrate.downgrade(database, "0001")
    assert (database.revision(), names(database)[1]) == ("0002", set(VIEWS) - {"backtest_curve"})
    with database.write() as session:
        assert session.scalar(sa.text("SELECT count(*) FROM annotations WHERE status = 'deleted'")) == 0
        session.execute(sa.text("UPDATE queries SET status = 'annotated' WHERE id = :query"), {"query": query})
    migrate.downgrade(database, "0001")
    assert database.revision() == "0001"


@pytest.mark.slow
def test_an_upgrade_keeps_the_rows_of_each_earlier_schema(database: Database, rows: Rows) -> None:
    image = rows.image()
    annotation = rows.annotation(image, query_id=rows.query(rows.round(), image))
    with database.write() as session:
        before = session.execute(sa.text("SELECT * FROM annotations")).mappings().one()
    for script in [script.revision for script in scripts().walk_revisions()][1:]:
        migrate.downgrade(database, script)
        migrate.upgrade(database)
        with database.read() as session:
            assert session.execute(sa.text("SELECT * FROM annotations")).mappings().one() == before
            assert session.scalar(sa.text("SELECT annotation_id FROM current_annotations")) == annotation


def test_scores_keep_their_grid_and_runs_their_figures_through_the_earlier_schema(database: Database, rows: Rows) -> None:
    config = rows.config(rows.checkpoint())
    rows.run(config, images_done=3, images_per_second=4.5)
    # Zero, the smallest and nearly the largest number of four bytes, one of seven digits, no cell at all.
    grids = {rows.image(): grid for grid in ([0.0, 1.5, 2.0**-149, 3.3e38], [98765.43] * 64, [])}
    for image, grid in grids.items():
        with database.write() as session:
            session.add(rows.score_row(config, image, grid=grid))
    before = figures(database, config)
    assert [row.grid for row in before] == [np.float32(grid).tolist() for grid in grids.values()]
    migrate.downgrade(database, "0002")
    with database.read() as session:
        texts = session.execute(sa.text("SELECT grid FROM scores ORDER BY image_id")).scalars().all()
    decoded = [json.loads(text) if isinstance(text, str) else text for text in texts]
    assert decoded == [row.grid for row in before]
    migrate.upgrade(database)
    assert figures(database, config) == before
    with database.read() as session:
        columns = "images_done, images_per_second, compiled_images, compile_seconds"
        last = session.execute(sa.text(f"SELECT {columns} FROM scoring_throughput ORDER BY scoring_run_id DESC")).first()
    assert last == (3, 4.5, 0, None)


def figures(database: Database, config: int) -> list[Any]:
    """Scores as the models read them."""
    with database.read() as session:
        columns = (Score.image_id, Score.entropy_sum, Score.scored_at, Score.grid)
        return list(session.execute(sa.select(*columns).where(Score.scoring_config_id == config).order_by(Score.image_id)))


def test_scores_of_the_earlier_schema_stay_and_know_no_disagreement(database: Database, rows: Rows) -> None:
    config, image = rows.config(rows.checkpoint()), rows.image()
    rows.score(config, image, 1.5)
    before = figures(database, config)
    migrate.downgrade(database, "0003")
    migrate.upgrade(database)
    assert figures(database, config) == before
    with database.read() as session:
        assert session.execute(sa.select(Score.bald, Score.tta_jsd)).all() == [(None, None)]


def test_tables_equal_the_models(database: Database) -> None:
    assert migrate.differences(database) == []


def test_a_missing_column_is_a_difference(database: Database) -> None:
    with database.write() as session:
        session.execute(sa.text("ALTER TABLE requests DROP COLUMN reason"))
    assert len(migrate.differences(database)) == 1


def test_the_ranking_index_that_differences_cannot_compare_descends(database: Database) -> None:
    if database.dialect == "sqlite":
        statement = "SELECT sql FROM sqlite_master WHERE name = 'ix_scores_ranking'"
    else:
        statement = "SELECT indexdef FROM pg_indexes WHERE indexname = 'ix_scores_ranking'"
    with database.read() as session:
        text = str(session.scalar(sa.text(statement)))
    assert "scoring_config_id, entropy_sum DESC, image_id" in text


def test_one_connection_enforces_foreign_keys_after_migrating(database: Database, rows: Rows) -> None:
    migrate.upgrade(database)
    with pytest.raises(sa.exc.IntegrityError), database.write() as session:
        session.add(rows.class_row(999, 999, 0, 1.0))


def test_schema_revision_is_the_only_head() -> None:
    assert scripts().get_heads() == [SCHEMA_REVISION]


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("migration_under_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_views_in_the_program_are_those_the_migrations_create() -> None:
    created: dict[str, dict[str, str]] = {"VIEWS": {}, "POSTGRESQL_VIEWS": {}}
    for script in reversed(list(scripts().walk_revisions())):
        for name, texts in created.items():
            texts |= getattr(load(script.path), name, {})
    assert created == {"VIEWS": VIEWS, "POSTGRESQL_VIEWS": POSTGRESQL_VIEWS}


def test_an_empty_database_is_refused_with_the_command(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/new.db")
    with pytest.raises(SchemaError, match=r"no schema yet: run `activeseg db upgrade`"):
        database.require_schema()
    database.close()


@pytest.mark.parametrize("revision", ["0000", "9999"])
def test_another_schema_is_refused_with_the_command(database: Database, revision: str) -> None:
    database.require_schema()
    set_revision(database, revision)
    with pytest.raises(SchemaError, match=rf"at schema {revision}, this version needs {SCHEMA_REVISION}: run `activeseg db"):
        database.require_schema()


def test_a_version_table_without_a_version_is_an_empty_database(database: Database) -> None:
    set_revision(database, None)
    with pytest.raises(SchemaError, match="no schema yet"):
        database.require_schema()


def test_a_newer_schema_is_neither_upgraded_nor_downgraded(database: Database) -> None:
    set_revision(database, "9999")
    with pytest.raises(SchemaError, match=r"9999.*newer version"):
        migrate.upgrade(database)
    with pytest.raises(SchemaError, match=r"9999.*newer version"):
        migrate.downgrade(database, "base")
    assert database.revision() == "9999"


@pytest.mark.parametrize("revision", ["nope", "-7"])
def test_a_revision_that_does_not_exist_is_a_schema_error(database: Database, revision: str) -> None:
    with pytest.raises(SchemaError, match=revision):
        migrate.downgrade(database, revision)
    assert database.revision() == SCHEMA_REVISION


UPGRADE = """
import sys
import alembic.command
from activeseg.db import migrate
from activeseg.db.database import Database
database = Database(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
migrate.upgrade(database)
print(database.revision())
"""


@pytest.mark.slow
def test_of_upgrades_at_the_same_time_each_succeeds(database: Database) -> None:
    migrate.downgrade(database, "base")
    url = database.url.render_as_string(hide_password=False)
    command = [sys.executable, "-c", UPGRADE, url]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    answers = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        answers.append((process.communicate(timeout=60), process.returncode))
    assert answers == [((f"{SCHEMA_REVISION}\n", ""), 0)] * 3


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "mysql://user:sesame@host/x",
        "postgresql+psycopg2://user:sesame@host/x",
        "postgresql+nope://user:sesame@host/x",
        "postgresql+psycopg://user:sesame@host:port/x",
        "postgresql+psycopg://user:ses@me@host:port/x",
        "sqlite+aiosqlite:///x.db",
        "",
    ],
)
def test_an_unusable_url_is_one_line_without_the_password(url: str) -> None:
    with pytest.raises(ConfigError, match=r"expected sqlite:///file or postgresql\+psycopg://") as caught:
        Database(url)
    assert "ses" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_is_one_line_without_the_password() -> None:
    database = Database("postgresql://user:sesame@127.0.0.1:1/x")
    with pytest.raises(SchemaError, match="cannot be opened") as caught:
        database.require_schema()
    assert "sesame" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, but long enough to have a header" * 40)
    database = Database(f"sqlite:///{tmp_path}/text.db")
    with pytest.raises(SchemaError, match="cannot be opened"):
        database.require_schema()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        Database(f"sqlite:///{tmp_path}/file/x.db")
