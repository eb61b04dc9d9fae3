"""What all tables share: metadata with named constraints, aware UTC times, enumerations stored as text."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from activeseg.config.masking import masked

NAMING = {
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class Model(DeclarativeBase):
    """Declarative root; constraint names are the same on every database, so migrations can name them."""

    metadata = sa.MetaData(naming_convention=NAMING)


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """An aware UTC time. Naive values raise ValueError on the way in; values come back aware, SQLite included."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """To the database: UTC, without zone on SQLite, which has none."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"expected an aware time, got naive {value!r}; use datetime.now(UTC)")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """From the database: aware."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class PackedFloats(sa.types.TypeDecorator[list[float]]):
    """Finite numbers in four bytes each (IEEE 754, high byte first), as a list on the way out; as JSON text they would
    take four times the room and a hundred times the time. ValueError for what is not finite."""

    impl = sa.LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Sequence[float] | None, dialect: sa.Dialect) -> bytes | None:
        """To the database: bytes."""
        if value is None:
            return None
        if not math.isfinite(sum(value)):
            raise ValueError(f"expected finite numbers, got {list(value)}")
        return struct.pack(f">{len(value)}f", *value)

    def process_result_value(self, value: bytes | None, dialect: sa.Dialect) -> list[float] | None:
        """From the database: a list."""
        return None if value is None else list(struct.unpack(f">{len(value) // 4}f", value))


class ErrorText(sa.types.TypeDecorator[str]):
    """What an error says, at most so many characters of it, without secrets: pages, logs and backups show it to others."""

    impl = sa.String
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """To the database: masked, then cut."""
        return None if value is None else masked(value)[: self.length]


def now() -> datetime:
    """The current time, aware and UTC."""
    return datetime.now(UTC)


def text_enum(kind: type[StrEnum]) -> sa.Enum:
    """A column type that stores the enumeration's values as text under a CHECK constraint."""
    return sa.Enum(
        kind,
        native_enum=False,
        create_constraint=True,
        length=20,
        name=kind.__name__.lower(),
        values_callable=lambda members: [member.value for member in members],
    )


def created() -> Mapped[datetime]:
    """A 'when this row was written' column."""
    return mapped_column(UtcDateTime, default=now)


Json = dict[str, Any]
