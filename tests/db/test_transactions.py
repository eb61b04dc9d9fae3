from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db.database import Database
from activeseg.db.models import Image, LabelSetRow, RequestRow
from activeseg.errors import ConfigError, LeaseError
from tests.db.rows import Rows


def count(database: Database) -> int:
    with database.read() as session:
        return session.scalar(sa.select(sa.func.count()).select_from(Image)) or 0


class Boom(Exception):
    pass


def test_a_write_commits_at_its_end(database: Database, rows: Rows) -> None:
    rows.image()
    assert count(database) == 1


def test_one_beside_another_has_its_own_fence_and_leaves_the_engine_open(database: Database, rows: Rows) -> None:
    class Lost:
        def check(self, session: Session) -> None:
            raise LeaseError("another process took over")

    beside = database.beside()
    assert beside.engine is database.engine
    beside.fence = Lost()
    with pytest.raises(LeaseError), beside.write():
        pass
    rows.image()
    with database.engine.connect() as held, held.begin():
        pool = database.engine.pool
        beside.close()
        assert database.engine.pool is pool
    assert count(database) == 1


def test_an_exception_rolls_everything_back(database: Database, rows: Rows) -> None:
    row = rows.image()

    def fail_half_way() -> None:
        with database.write() as session:
            session.get_one(Image, row).reason = "never seen"
            session.add(RequestRow(kind="x", requested_by="test"))
            session.flush()
            raise Boom

    with pytest.raises(Boom):
        fail_half_way()
    with database.read() as session:
        assert session.get_one(Image, row).reason is None
        assert session.scalar(sa.select(RequestRow)) is None


def test_rows_outlive_their_transaction(database: Database, rows: Rows) -> None:
    row = rows.image(uri="file:///a.png")
    with database.read() as session:
        image = session.get_one(Image, row)
    assert image.uri == "file:///a.png"


def test_reading_goes_on_while_another_writes_and_sees_only_what_was_committed(database: Database, rows: Rows) -> None:
    rows.image()
    label_set = LabelSetRow(fingerprint="f", definition={})
    with database.write() as session:
        session.execute(sa.update(Image).values(reason="half-way"))
        session.add(label_set)
        session.flush()
        with database.read() as other:
            assert other.scalar(sa.select(Image.reason)) is None
            assert other.scalar(sa.select(LabelSetRow)) is None
    with database.read() as other:
        assert other.scalar(sa.select(Image.reason)) == "half-way"


def test_transactions_that_read_and_then_write_wait_for_each_other_on_sqlite(sqlite_url: str) -> None:
    def append(database: Database, problems: list[Exception]) -> None:
        try:
            for _ in range(25):
                with database.write() as session:
                    seen = session.scalar(sa.select(sa.func.max(RequestRow.id))) or 0
                    session.add(RequestRow(kind=str(seen + 1), requested_by="test"))
        except sa.exc.SQLAlchemyError as error:
            problems.append(error)

    databases = [Database(sqlite_url) for _ in range(3)]
    problems: list[Exception] = []
    threads = [threading.Thread(target=append, args=(database, problems)) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with databases[0].read() as session:
        found = list(session.scalars(sa.select(RequestRow.kind).order_by(RequestRow.id)))
    for database in databases:
        database.close()
    assert problems == []
    assert found == [str(number) for number in range(1, 76)]


def test_sqlite_takes_the_write_lock_at_the_start_of_a_write_and_not_of_a_read(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    begun: list[str] = []
    sa.event.listen(database.engine, "before_cursor_execute", lambda c, cursor, statement, *rest: begun.append(statement))
    with database.read() as session:
        session.scalar(sa.select(Image))
    with database.write() as session:
        session.scalar(sa.select(Image))
    database.close()
    assert [statement for statement in begun if statement.startswith("BEGIN")] == ["BEGIN DEFERRED", "BEGIN IMMEDIATE"]


def test_sqlite_runs_in_wal_mode_with_foreign_keys(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    with database.read() as session:
        assert session.scalar(sa.text("PRAGMA journal_mode")) == "wal"
        assert session.scalar(sa.text("PRAGMA foreign_keys")) == 1
    database.close()


def test_times_come_back_aware_in_utc_whatever_zone_they_had(database: Database) -> None:
    tokyo = datetime(2026, 3, 1, 8, 30, 0, 123456, tzinfo=timezone(timedelta(hours=9)))
    with database.write() as session:
        session.add(RequestRow(kind="x", requested_by="test", created_at=tokyo))
    with database.read() as session:
        found = session.scalar(sa.select(RequestRow.created_at))
        same = session.scalar(sa.select(RequestRow.id).where(RequestRow.created_at == tokyo))
    assert found == tokyo
    assert found is not None
    assert found.tzinfo is UTC
    assert found.hour == 23
    assert same is not None


def test_naive_times_are_refused(database: Database) -> None:
    with (
        pytest.raises(sa.exc.StatementError, match=r"aware time, got naive .* datetime\.now\(UTC\)"),
        database.write() as session,
    ):
        session.add(RequestRow(kind="x", requested_by="test", created_at=datetime(2026, 3, 1)))
    with database.read() as session:
        assert session.scalar(sa.select(RequestRow)) is None


def test_the_folder_of_a_new_database_is_made(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/a/b/x.db")
    assert database.revision() is None
    database.close()


def test_the_password_is_never_shown() -> None:
    database = Database("postgresql+psycopg://user:sesame@host/x")
    assert "sesame" not in database.masked_url + repr(database.engine)


def test_postgresql_without_a_driver_means_psycopg() -> None:
    assert Database("postgresql://user@host/x").url.drivername == "postgresql+psycopg"


def test_other_databases_are_refused() -> None:
    with pytest.raises(ConfigError, match="sqlite:///file or postgresql"):
        Database("mysql+pymysql://host/x")
