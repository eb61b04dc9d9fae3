"""Rounds back to back in one process: whether its memory, file handles, threads and connections stay what they are.

    python scripts/soak.py [--minutes 20] [--database postgres|sqlite] [--keep DIR]

The process is what `activeseg schedule` runs at its planned times, one round after another instead of one a night. Between two
rounds all open tasks are answered in a real Label Studio and new images are laid into the pool, so every round collects,
trains, promotes, scores and pushes. After each round the process is looked at from outside, with the processes it started.

The first fifth of the rounds is the warm-up. Of the rest, the medians of the first and the last quarter are compared: exit 1
where memory grew by more than 2 %, or file handles, threads, processes or connections by any. The slope is Theil and Sen's
with its 95 % interval, per hour. A line for each round goes to stderr, the figures go to stdout as JSON.
SIGTERM or SIGINT ends the servers and the process, too.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from bench_startup import machine
from chaos_lives import one_thread
from chaos_servers import databases, label_studio, leave_by_signals
from chaos_site import BOOTSTRAP, QUERY, Site, as_json, say

from activeseg.config import load_settings
from activeseg.db.database import Database

WARM_UP = 0.2
LEAST_ROUNDS = 20
MEMORY_GROWTH = 0.02
AHEAD = 6
"""Rounds' worth of images in the pool that nobody asked about yet."""

Sample = dict[str, float]
# What must not grow, and by what share it may all the same; the database grows with the work, and is only told.
LIMITS = {"memory_mb": MEMORY_GROWTH, "handles": 0.0, "threads": 0.0, "processes": 0.0, "connections": 0.0}

# Of the process without its decoders; pages that processes share are counted for each of them above.
TOLD = ("main_memory_mb", "database_mb", "round_seconds")


def main() -> None:
    options = parse_options()
    if options.work:
        work(options.work)
        return
    one_thread()
    leave_by_signals()
    started = time.monotonic()
    samples, outcomes = soak(options)
    report = {"machine": machine(), "system": platform.platform(), "database": options.database, "minutes": options.minutes}
    as_json(report | (judged := judge(samples, outcomes)) | {"seconds": round(time.monotonic() - started, 1)})
    sys.exit(0 if judged["holds"] else 1)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long rounds follow one another")
    parser.add_argument("--database", choices=["postgres", "sqlite"], default="postgres")
    parser.add_argument("--keep", type=Path, help="new folder for the site and its logs; default: a temporary one, removed")
    parser.add_argument("--work", type=Path, metavar="CONFIG", help="instead: be the process, a round for each line of stdin")
    return parser.parse_args()


# The process


def work(config: Path) -> None:
    """One round of the scheduler for each line of standard input; its outcome as a line of JSON."""
    from activeseg.scheduler import Scheduler, loop_jobs, watcher

    settings = load_settings(config)
    database = Database(settings.database_url)
    logs = None if settings.log.dir is None else settings.path(settings.log.dir)
    catch_up = timedelta(hours=settings.schedule.catch_up_hours)
    watch = watcher(settings, database)
    scheduler = Scheduler(database, loop_jobs(settings, database), watch=watch, catch_up=catch_up, logs=logs)
    for _ in sys.stdin:
        result = scheduler.run_once("round")
        print(json.dumps({"outcome": result.outcome, "message": result.message, "seconds": result.seconds}), flush=True)


# The site around it


def soak(options: argparse.Namespace) -> tuple[list[Sample], Counter[str]]:
    """A sample and an outcome for each round."""
    folder = options.keep.resolve() if options.keep else Path(tempfile.mkdtemp(prefix="soak-"))
    with ExitStack() as stack:
        if options.keep is None:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        bases = stack.enter_context(databases(options.database))
        say("starting Label Studio")
        server = stack.enter_context(label_studio(folder / "label-studio"))
        root = folder / "site"
        root.mkdir(parents=True)
        person = server.person("person@example.com")
        site = Site(root, bases.make(root), server.url, server.token, person, "soak", doubt_seconds=10.0)
        site.add_images(BOOTSTRAP + AHEAD * QUERY)
        process = stack.enter_context(_worker(site))
        return _rounds(site, process, time.monotonic() + 60 * options.minutes)


@contextmanager
def _worker(site: Site) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, __file__, "--work", str(site.config)]
    with (site.folder / "program.log").open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        yield process
        process.communicate()  # its input ends, and so does it
    finally:
        process.kill()
        process.wait()


def _rounds(site: Site, process: subprocess.Popen[str], until: float) -> tuple[list[Sample], Counter[str]]:
    samples: list[Sample] = []
    outcomes = Counter[str]()
    began = time.monotonic()
    while time.monotonic() < until:
        site.add_images(site.answer(1.0))
        done = _one_round(process)
        outcomes[done["outcome"]] += 1
        samples.append(
            {"hours": (time.monotonic() - began) / 3600, "round_seconds": done["seconds"]} | sample(site, process.pid)
        )
        last = samples[-1]
        say(f"round {len(samples)} {done['outcome']} in {done['seconds']:.1f} s: {last['memory_mb']:.1f} MB, "
            f"{last['handles']:.0f} handles, {last['threads']:.0f} threads: {done['message']}")  # fmt: skip
    return samples, outcomes


def _one_round(process: subprocess.Popen[str]) -> dict[str, Any]:
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the process has no pipes")
    process.stdin.write("go\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the process ended with status {process.wait()}: see program.log (--keep DIR)")
    found: dict[str, Any] = json.loads(line)
    return found


# What is measured


def sample(site: Site, pid: int) -> Sample:
    """The process and those it started, and its database: megabytes and counts."""
    family = [pid, *_children(pid)]
    connections, size = _of_database(site.database_url)
    return {
        "main_memory_mb": _status(pid, "VmRSS") / 1024,
        "memory_mb": sum(_status(one, "VmRSS") for one in family) / 1024,
        "handles": float(sum(map(_handles, family))),
        "threads": sum(_status(one, "Threads") for one in family),
        "processes": float(len(family)),
        "connections": connections,
        "database_mb": size / 1e6,
    }


def _children(pid: int) -> list[int]:
    """All processes that a process, or one of these, has started."""
    numbers: list[int] = []
    with suppress(OSError):  # one of them ends as we look
        for task in Path(f"/proc/{pid}/task").iterdir():
            numbers += map(int, (task / "children").read_text(encoding="ascii").split())
    return [*numbers, *(one for number in numbers for one in _children(number))]


def _handles(pid: int) -> int:
    with suppress(OSError):
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return 0


def _status(pid: int, name: str) -> float:
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next((float(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0.0)
    return 0.0


def _of_database(url: str) -> tuple[float, float]:
    """Connections of others to it (0 on SQLite), and its size in bytes."""
    database = Database(url)
    try:
        if database.dialect == "sqlite":
            file = Path(str(database.url.database))
            return 0.0, float(sum(one.stat().st_size for one in file.parent.glob(f"{file.name}*")))
        with database.engine.connect() as connection:
            others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            count = connection.scalar(sa.text(f"SELECT count(*) {others}"))
            size = connection.scalar(sa.text("SELECT pg_database_size(current_database())"))
        return float(count), float(size)
    finally:
        database.close()


# What it means


def judge(samples: Sequence[Sample], outcomes: Counter[str]) -> dict[str, Any]:
    """The figures, and whether all of them hold."""
    warm = samples[round(len(samples) * WARM_UP) :]
    report: dict[str, Any] = {"rounds": len(samples), "outcomes": dict(outcomes), "rounds_after_warm_up": len(warm)}
    if len(samples) < LEAST_ROUNDS:
        return report | {"problem": f"fewer than {LEAST_ROUNDS} rounds tell nothing: more --minutes", "holds": False}
    trends = {name: trend(warm, name) for name in [*LIMITS, *TOLD]}
    grown = [name for name, limit in LIMITS.items() if trends[name]["growth"] > limit]
    holds = not grown and set(outcomes) == {"done"}
    return report | {"trends": trends, "allowed_growth": LIMITS, "grown": grown, "holds": holds}


def trend(samples: Sequence[Sample], name: str) -> dict[str, Any]:
    """Medians of the first and the last quarter, the growth between them, and the slope per hour with its interval."""
    from scipy.stats import theilslopes

    values = [one[name] for one in samples]
    quarter = max(1, len(values) // 4)
    first, last = statistics.median(values[:quarter]), statistics.median(values[-quarter:])
    slope = theilslopes(values, [one["hours"] for one in samples], alpha=0.95)
    return {
        "first_quarter": round(first, 3),
        "last_quarter": round(last, 3),
        "growth": round(last / first - 1, 5) if first else float(last > 0),
        "per_hour": round(float(slope.slope), 3),
        "interval": [round(float(slope.low_slope), 3), round(float(slope.high_slope), 3)],
        "most": round(max(values), 3),
    }


if __name__ == "__main__":
    main()
