"""Many rows at once: COPY on PostgreSQL, the driver's executemany on SQLite."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db.models import Model


def insert_rows(session: Session, model: type[Model], names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Append rows, their values in the order of `names`, inside the session's transaction.

    Values are as the model's attributes: the columns' types convert them as they would for an insert. Columns not named
    must be nullable or have a default in the database. Pending changes of the session must have been flushed.
    Raises sqlalchemy.exc.IntegrityError where a constraint does not hold; the transaction must then be rolled back.
    """
    columns: list[Any] = [getattr(model, name).property.columns[0] for name in names]
    connection = session.connection()
    if connection.dialect.name == "postgresql":
        _copy(connection, columns, rows)
    else:
        _executemany(connection, columns, rows)


def _executemany(connection: sa.Connection, columns: Sequence[sa.Column[Any]], rows: Iterable[Sequence[Any]]) -> None:
    types = [column.type.dialect_impl(connection.dialect) for column in columns]
    values = [tuple(row) for row in _converted(rows, [kind.bind_processor(connection.dialect) for kind in types])]
    if values:
        names, places = ", ".join(column.name for column in columns), ", ".join("?" * len(columns))
        connection.exec_driver_sql(f"INSERT INTO {columns[0].table.name} ({names}) VALUES ({places})", values)


def _copy(connection: sa.Connection, columns: Sequence[sa.Column[Any]], rows: Iterable[Sequence[Any]]) -> None:
    import psycopg

    names = ", ".join(column.name for column in columns)
    statement = f"COPY {columns[0].table.name} ({names}) FROM STDIN (FORMAT BINARY)"
    # Only our own types convert: the driver has binary forms of the others, by the name PostgreSQL gives them.
    own = [_own_processor(column, connection.dialect) for column in columns]
    kinds = [column.type.compile(connection.dialect).lower().split("(")[0] for column in columns]
    cursor = connection.connection.cursor()
    try:
        with cursor.copy(statement) as copy:
            copy.set_types(kinds)
            for row in _converted(rows, own):
                copy.write_row(row)
    except psycopg.Error as error:
        raise sa.exc.DBAPIError.instance(statement, None, error, psycopg.Error, dialect=connection.dialect) from error
    finally:
        cursor.close()


def _own_processor(column: sa.Column[Any], dialect: sa.Dialect) -> Any:
    kind = column.type
    return partial(kind.process_bind_param, dialect=dialect) if isinstance(kind, sa.types.TypeDecorator) else None


def _converted(rows: Iterable[Sequence[Any]], processors: Sequence[Any]) -> Iterable[Sequence[Any]]:
    places = [(place, processor) for place, processor in enumerate(processors) if processor is not None]
    for row in rows:
        values = list(row)
        for place, processor in places:
            values[place] = processor(values[place])
        yield values
