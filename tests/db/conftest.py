"""Rows to fill databases with."""

from __future__ import annotations

import pytest

from activeseg.db.database import Database
from tests.db.rows import Rows


@pytest.fixture
def rows(database: Database) -> Rows:
    """Inserts rows into `database`."""
    return Rows(database)
