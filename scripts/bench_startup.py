"""How long the command line takes to start: medians over fresh processes of `--help` and of `rankings`.

    python scripts/bench_startup.py [--runs N] [--images N]

`rankings` reads a migrated SQLite database in a temporary folder, with a champion and that many scored images. The
processor time is the figure to watch: the wall clock also measures what else the machine is doing. Python's compiled files
go to a temporary folder, whatever PYTHONDONTWRITEBYTECODE says: the first start of each command writes them and stands in
a column of its own, the others read them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from activeseg.config import commented_toml
from activeseg.db import migrate
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

AIM_SECONDS = 0.5
PROGRAM = [sys.executable, "-c", "from activeseg.cli import main; main()"]


def fill(database: Database, images: int) -> None:
    """A champion with one score for each image."""
    migrate.upgrade(database)
    with database.write() as session:
        session.add(LabelSetRow(id=1, fingerprint="0" * 64, definition={}))
        session.flush()
        weights = {"location": "checkpoint/x", "sha256": "0" * 64, "architecture": "fcn_mobilenet_v2", "spec": {}}
        session.add(Checkpoint(id=1, model_version="fcn-0001", label_set_id=1, **weights))
        session.flush()
        session.add(Promotion(checkpoint_id=1, decision=Decision.PROMOTED, reason="first", decided_by="bench"))
        session.add(ScoringConfig(id=1, checkpoint_id=1, fingerprint="0" * 64, definition={}))
        session.flush()
        session.add(ScoringRun(id=1, scoring_config_id=1, device="cpu", images_planned=images))
        session.flush()
        pool = {"size_bytes": 1, "split": Split.POOL, "status": ImageStatus.ACTIVE}
        ids = range(1, images + 1)
        session.execute(sa.insert(Image), [{"id": n, "uri": f"/{n}", "sha256": f"{n:064d}"} | pool for n in ids])
        figures = {"entropy_mean": 0.1, "entropy_share": 0.1, "margin_mean": 0.1, "least_confidence_mean": 0.1}
        score = {"scoring_config_id": 1, "scoring_run_id": 1, "valid_pixels": 1, "grid": []} | figures
        scores = [score | {"image_id": n, "entropy_sum": float(n * 7919 % 10_007)} for n in ids]
        session.execute(sa.insert(Score), scores)


class Start(NamedTuple):
    """Seconds: medians of the wall clock and of the processor, and the processor's in the first start."""

    wall: float
    processor: float
    first: float


def measure(arguments: list[str], runs: int, environment: dict[str, str]) -> Start:
    """Times of `runs` processes after a first one, which compiles what it imports."""
    walls, processors = [], []
    for _ in range(runs + 1):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([*PROGRAM, *arguments], stdout=subprocess.DEVNULL, check=True, env=environment)
        walls.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processors.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return Start(statistics.median(walls[1:]), statistics.median(processors[1:]), processors[0])


def environment(compiled: Path) -> dict[str, str]:
    """This process's, with compiled files kept in a folder of their own."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPYCACHEPREFIX": str(compiled)}


def machine() -> str:
    """The processor's name and how many of its cores there are."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}"


def main() -> None:
    """Print a line a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--json", type=Path, help="write the figures here, too; a ratio is at best at most its reach")
    options = parser.parse_args()
    print(f"{machine()}; medians of {options.runs} runs")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "activeseg.toml"
        file.write_text(commented_toml(images=folder, classes=f"{folder}/classes.txt"), encoding="utf-8")
        database = Database(f"sqlite:///{folder}/activeseg.db")
        fill(database, options.images)
        database.close()
        found = {}
        for name, arguments in {"--help": ["--help"], "rankings": ["--config", str(file), "rankings"]}.items():
            found[name] = start = measure(arguments, options.runs, environment(Path(folder) / "compiled" / name))
            verdict = "" if start.processor <= AIM_SECONDS else f"  above the aim of {AIM_SECONDS} s"
            print(
                f"activeseg {name:<9} {start.wall:.2f} s wall, {start.processor:.2f} s processor "
                f"(the first start {start.first:.2f} s){verdict}"
            )
    if options.json:
        measures = [
            start._asdict() | {"measure": f"activeseg {name}", "ratio": start.processor / AIM_SECONDS, "reach": 1.0}
            for name, start in found.items()
        ]
        options.json.write_text(json.dumps({"machine": machine(), "measures": measures}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
