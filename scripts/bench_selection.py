"""How long choosing a query takes, by strategy: reading statistics and embeddings, ranking, choosing.

    python scripts/bench_selection.py [--images N] [--labelled N] [--query N] [--json FILE]

N images (100,000 unless told otherwise) in clips of 500 frames, scored for 11 classes and embedded; some of them labelled.
Everything lies in a new SQLite database in a temporary folder that is deleted at the end. Seconds are wall time of
`choose_images`, the second of two calls; beside them processor time, which other work on the machine does not lengthen much.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from activeseg.core.embedding import pack
from activeseg.core.entropy import GRID
from activeseg.db import embeddings, migrate
from activeseg.db.bulk import insert_rows
from activeseg.db.database import Database
from activeseg.db.models import (
    Checkpoint,
    Image,
    ImageStatus,
    LabelSetRow,
    Round,
    RoundStatus,
    ScoringConfig,
    ScoringRun,
    Split,
)
from activeseg.db.models.columns import now
from activeseg.db.scores import insert_scores
from activeseg.records import ClassScore, ImageScore
from activeseg.stages.rank import choose_images

CLASSES, CLIP, CHUNK, PIXELS = 11, 500, 5_000, 240 * 320
LIMITS = {"min_frame_gap": 30, "max_per_group": 2}
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("entropy_sum", {}),
    ("entropy_sum", LIMITS),
    ("class_balanced_entropy", {}),
    ("power_entropy_sum", {}),
    ("kcenter", {}),
    ("entropy_kcenter", {}),
    ("entropy_kcenter", LIMITS),
    ("badge_seg", {}),
)


def fill(database: Database, count: int, labelled: int) -> int:
    """A scored pool; the id of its scoring configuration."""
    with database.write() as session:
        run = _run(session, count, labelled)
        embedders = [
            make(session, run.scoring_config_id) for make in (embeddings.feature_embedder, embeddings.gradient_embedder)
        ]
    rng = np.random.default_rng(0)
    for first in range(1, count + 1, CHUNK):
        ids = range(first, min(first + CHUNK, count + 1))
        vectors = rng.normal(size=(len(ids), 128)).astype(np.float32)
        packed = {image: pack(vector) for image, vector in zip(ids, vectors, strict=True)}
        with database.write() as session:
            insert_scores(session, run, [_score(image, rng) for image in ids])
            for embedder in embedders:
                embeddings.insert(session, embedder, packed)
    return run.scoring_config_id


def _run(session: Session, count: int, labelled: int) -> ScoringRun:
    label_set = LabelSetRow(fingerprint="0", definition={})
    session.add(label_set)
    session.flush()
    weights = {"location": "x", "sha256": "0" * 64, "architecture": "x", "spec": {}, "label_set_id": label_set.id}
    checkpoint = Checkpoint(model_version="m", **weights)
    session.add(checkpoint)
    session.flush()
    config = ScoringConfig(checkpoint_id=checkpoint.id, fingerprint="0", definition={})
    session.add(config)
    session.flush()
    run = ScoringRun(scoring_config_id=config.id, device="none", images_planned=count)
    session.add(run)
    session.flush()
    names = ("id", "uri", "sha256", "size_bytes", "split", "status", "created_at", "group_name")
    insert_rows(session, Image, names, _images(count, labelled))
    return run


def _images(count: int, labelled: int) -> Iterator[tuple[Any, ...]]:
    every = max(count // labelled, 1)
    for number in range(1, count + 1):
        split = Split.TRAIN if number % every == 0 else Split.POOL
        clip = f"clip{number // CLIP:05d}"
        uri = f"file:///pool/{clip}/{number % CLIP:06d}.jpg"
        yield (number, uri, f"{number:064x}", 1, split, ImageStatus.ACTIVE, now(), clip)


def _score(image: int, rng: np.random.Generator) -> ImageScore:
    shares = rng.dirichlet(np.full(CLASSES, 0.5))
    entropy = float(rng.gamma(4, PIXELS / 40))
    classes = tuple(
        ClassScore(c, entropy * share, int(PIXELS * share), entropy * share, 0.8) for c, share in enumerate(shares.tolist())
    )
    mean = entropy / PIXELS
    return ImageScore(image, entropy, mean, PIXELS, 0.1, 0.2, 0.1, (entropy / GRID**2,) * GRID**2, classes)


def measure(database: Database, config: int, name: str, limits: dict[str, Any], size: int) -> dict[str, Any]:
    """The second of two calls."""
    row = Round(number=1, status=RoundStatus.OPEN, scoring_config_id=config, acquisition=name, query_size=size)
    row.control_share, row.seed, row.selection = 0.1, 1, limits
    for _ in range(2):
        wall, processor = time.perf_counter(), time.process_time()
        with database.read() as session:
            items = choose_images(session, row)
        spent = time.perf_counter() - wall, time.process_time() - processor
    shown = name + (" with gap and cap" if limits else "")
    return {"strategy": shown, "images": len(items), "seconds": round(spent[0], 2), "processor_seconds": round(spent[1], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--labelled", type=int, default=300)
    parser.add_argument("--query", type=int, default=12)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/bench.db")
        migrate.upgrade(database)
        config = fill(database, options.images, options.labelled)
        found = [measure(database, config, name, limits, options.query) for name, limits in CASES]
        database.close()
    for one in found:
        print(f"{one['strategy']:<32} {one['seconds']:6.2f} s   processor {one['processor_seconds']:6.2f} s")
    if options.json:
        about = {"images": options.images, "labelled": options.labelled, "python": platform.python_version()}
        options.json.write_text(json.dumps({**about, "measures": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
