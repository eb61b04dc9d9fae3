"""Whole rounds against a real Label Studio and a real database, with the program killed again and again; or the takeover.

    python scripts/chaos.py [--kills 100] [--rounds 5] [--seed N] [--database postgres|sqlite] [--keep DIR]
    python scripts/chaos.py --takeover 20 [--ttl 5] [--database postgres|sqlite]

The story (`chaos_story.py`) is told twice, on two fresh databases and projects: undisturbed, and with SIGKILL at random
moments, commits and requests, Label Studio ended and started again, PostgreSQL restarted in immediate mode under a working
process. At the end every query has exactly one task, every annotation is collected and every answer counts, no score and no
file is missing, nothing stands still, and the canonical dump (`canonical.py`) of both databases is the same.

--takeover: how long after the holder of the lease died or stopped another process has it.

Lines for people go to stderr, one for each kill; the figures go to stdout as JSON. Exit 1 on any loss, on kills that did not
hit, on a takeover that took longer than the lease and 2 s. SIGTERM or SIGINT ends the servers and the program, too.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench_startup import machine
from canonical import canonical_dump, differences
from chaos_checks import Found, check
from chaos_lives import Hangs, adopt_orphans, end_lives, one_thread, orphans
from chaos_servers import Databases, LabelStudio, databases, label_studio, leave_by_signals
from chaos_site import Site, as_json, say
from chaos_story import Disturbed, Stuck, tell_undisturbed
from chaos_takeover import takeover

from activeseg.db.database import Database

# The one column in which the two tellings differ on purpose: each has a project of its own on the one server.
TITLE = frozenset({"title"})
SHOWN = 20


def main() -> None:
    options = parse_options()
    one_thread()
    leave_by_signals()
    adopt_orphans()
    if options.takeover:
        report = takeover(options.takeover, ttl=options.ttl, kind=options.database, seed=options.seed)
    else:
        report = chaos(options)
    as_json({"machine": machine(), "system": platform.platform(), "database": options.database, "seed": options.seed} | report)
    sys.exit(0 if report["holds"] else 1)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="kills that are to hit a living process")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that are answered")
    parser.add_argument("--away", type=int, help="how often Label Studio is ended (default: one for 16 kills)")
    parser.add_argument("--restarts", type=int, help="how often PostgreSQL is restarted (default: one for 8 kills)")
    parser.add_argument("--seed", type=int, default=0, help="of kills and restarts; the rounds are always the same")
    parser.add_argument("--database", choices=["postgres", "sqlite"], default="postgres")
    parser.add_argument("--doubt-seconds", type=float, default=10.0, help="[labelstudio] doubt_seconds of the site")
    parser.add_argument(
        "--quick", action="store_true", help="fork lives from a process that has everything imported; do not wait at the end"
    )
    parser.add_argument("--keep", type=Path, help="new folder for the sites and their logs; default: a temporary one, removed")
    parser.add_argument("--takeover", type=int, metavar="N", help="instead: N takeovers after a kill and N after a stop")
    parser.add_argument("--ttl", type=float, default=5.0, help="seconds a lease lives, for --takeover")
    return parser.parse_args()


def chaos(options: argparse.Namespace) -> dict[str, Any]:
    """The story twice, and what came of it."""
    started = time.monotonic()
    folder = options.keep.resolve() if options.keep else Path(tempfile.mkdtemp(prefix="chaos-"))
    with ExitStack() as stack:
        if options.keep is None:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        bases = stack.enter_context(databases(options.database))
        say("starting Label Studio")
        server = stack.enter_context(label_studio(folder / "label-studio"))
        stack.callback(end_lives)
        report = _tell_twice(options, folder, server, bases)
    return report | {"seconds": round(time.monotonic() - started, 1)}


def _tell_twice(options: argparse.Namespace, folder: Path, server: LabelStudio, bases: Databases) -> dict[str, Any]:
    calm, wild = (
        new_site(folder, name, server, bases, doubt_seconds=options.doubt_seconds) for name in ("undisturbed", "disturbed")
    )
    sizes = tell_undisturbed(calm, options.rounds, quick=options.quick)
    story = Disturbed(
        wild, server, bases, kills=options.kills, seed=options.seed,
        quick=options.quick, away=options.kills // 16 if options.away is None else options.away,
        restarts=0 if options.database == "sqlite" else options.kills // 8 if options.restarts is None else options.restarts,
    )  # fmt: skip
    stopped = None
    try:
        story.tell(sizes)
    except (Stuck, Hangs) as error:
        stopped = f"{type(error).__name__}: {error}"
        say(stopped)
    server.wait()
    # The first round, and one after each that was answered.
    expected, found = (check(site, rounds=options.rounds + 1) for site in (calm, wild))
    differing = compare(calm, wild)
    left = orphans()
    failed_without_cause = max(0, len(found.failed_trainings) - bases.restarts)
    losses = [
        *(f"undisturbed: {one}" for one in expected.losses), *([stopped] if stopped else []), *story.harm.seen, *found.losses,
        *(f"a process goes on without the one that started it: {line}" for line in left),
        *([f"{failed_without_cause} trainings failed without a restart of the database"] if failed_without_cause else []),
    ]  # fmt: skip
    holds = not losses and not differing and not found.doubles and story.harm.hits == options.kills
    return {
        "kills_asked": story.harm.asked,
        "kills_that_hit": story.harm.hits,
        "kills_by_kind": dict(story.harm.hit),
        "kills_by_place": dict(story.harm.where),
        "restarts": {"label_studio": server.restarts, "database": bases.restarts},
        "what_a_restart_did": dict(story.harm.answers_to_restarts),
        "undisturbed_lives_that_failed": story.harm.failures,
        "trainings_that_failed": found.failed_trainings,
        "answers_given": wild.given,
        **_sizes(found),
        "undisturbed": _sizes(expected),
        "doubles": found.doubles + story.harm.doubles_seen,
        "losses": losses[:SHOWN],
        "equal_dump": not differing,
        "differences": {name: {side: rows[:3] for side, rows in sides.items()} for name, sides in differing.items()},
        "holds": holds,
    }


def new_site(
    folder: Path, name: str, server: LabelStudio, bases: Databases, *, doubt_seconds: float = 10.0, **sections: dict[str, Any]
) -> Site:
    """A site on a database and a project of its own."""
    root = folder / name
    root.mkdir(parents=True)
    person = server.person("person@example.com")
    return Site(root, bases.make(root), server.url, server.token, person, name, doubt_seconds, sections)


def compare(calm: Site, wild: Site) -> dict[str, Any]:
    """Where the two databases differ. A training that a restart of the database broke off is done again: its failed row is
    the only trace that a disturbance may leave, and is counted."""
    dumps = []
    for site in (calm, wild):
        database = Database(site.database_url)
        dumps.append(canonical_dump(database, left_out=TITLE, failed_trainings=False))
        database.close()
    return differences(*dumps)


def _sizes(found: Found) -> dict[str, int]:
    return {"rounds": found.rounds, "tasks": found.tasks, "annotations": found.annotations}


if __name__ == "__main__":
    main()
