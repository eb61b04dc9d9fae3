"""The figures of the monitoring endpoint come out alike on both databases."""

from __future__ import annotations

from activeseg.db.database import Database
from activeseg.db.figures import read_figures
from activeseg.db.models import Decision, ImageStatus, Split
from tests.db.rows import Rows


def test_figures_are_plain_numbers_on_both_databases(database: Database, rows: Rows) -> None:
    rows.checkpoint("m1", Decision.PROMOTED)
    rows.image()
    rows.image()
    rows.image(status=ImageStatus.QUARANTINED)
    with database.read() as session:
        figures = read_figures(session)
    assert figures.images == {(Split.POOL, ImageStatus.ACTIVE): 2, (Split.POOL, ImageStatus.QUARANTINED): 1}
    assert (figures.scored, figures.failed, figures.annotated, figures.open_tasks) == (0, 0, 0, 0)
    assert figures.champion is not None
    assert (figures.champion[0], figures.champion[1].tzinfo is not None) == ("m1", True)
