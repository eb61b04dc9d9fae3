"""The story: rounds of a site, told once undisturbed and once with kills and restarts.

    step 0         the program asks for the first round
    step 2r - 1    the person answers half of what is asked (and changes an earlier answer); the program works
    step 2r        the person answers the rest, new images lie in the pool; the program works

A step is over when the program, undisturbed, ended without an error. People act between steps only: what is answered when
decides what is trained on, so the two tellings would differ for a good reason if an answer came in the middle of a kill.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

import sqlalchemy as sa
from chaos_checks import Watch
from chaos_lives import COMMANDS, Kill, Life, Running
from chaos_servers import Databases, Ending, LabelStudio
from chaos_site import BOOTSTRAP, NEW_IMAGES, QUERY, Site, say

from activeseg.db.database import Database
from activeseg.db.lease import TTL_SECONDS
from activeseg.db.models import JobRun

PATIENCE = 4
"""Undisturbed lives in a row that may end with an error before the story counts as stuck."""


MISSES = 10
"""Kills in a row that came too late before one is put where every life passes."""

TRIES = 3
"""Lives begun until a server is ended under one that still works."""


class Stuck(Exception):
    """The program makes no progress although nothing disturbs it."""


def act(site: Site, step: int) -> None:
    """What people do before the program works."""
    if step == 0:
        rounds_ahead = 6  # so that the pool never runs dry
        site.add_images(BOOTSTRAP + rounds_ahead * QUERY)
    elif step % 2:
        if step > 1:
            site.change_mind()
        site.answer(0.5)
    else:
        site.answer(1.0)
        site.add_images(NEW_IMAGES + QUERY)


@dataclass
class Measured:
    """What a life takes undisturbed: the sizes that kills are drawn from."""

    seconds: float
    first_commit: float
    commits: int
    requests: int


@dataclass
class Sizes:
    """Of each step's life, and of one that has nothing to do: what every life repeats before it gets to what is left."""

    steps: list[Measured]
    idle: Measured


def tell_undisturbed(site: Site, rounds: int, *, quick: bool = False) -> Sizes:
    """The story without any harm; how long and how much each step was."""
    if quick:  # the imports are no part of a life
        Running(site.config, ["status"], quick=True).wait()
    steps = []
    for step in range(2 * rounds + 1):
        act(site, step)
        steps.append(_measured(site, f"step {step} of {2 * rounds}", quick=quick))
    return Sizes(steps, _measured(site, "nothing to do", quick=quick))


def _measured(site: Site, name: str, *, quick: bool) -> Measured:
    life = Running(site.config, COMMANDS[0], quick=quick).wait()
    if life.outcome != "done":
        raise Stuck(f"undisturbed, {name}: {life.outcome}: {life.message}")
    told = life.told
    found = Measured(life.seconds, told["first_commit"] or 0.0, told.get("commits", 0), told.get("requests", 0))
    say(f"undisturbed, {name}: {found.seconds:.1f} s, {found.commits} commits, {found.requests} requests")
    return found


@dataclass
class Harm:
    """What was done to the program, and what it did then."""

    asked: int = 0
    hit: Counter[str] = field(default_factory=Counter)
    where: Counter[str] = field(default_factory=Counter)
    answers_to_restarts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    doubles_seen: int = 0

    @property
    def hits(self) -> int:
        """Kills that met a living process."""
        return self.hit.total()


class Disturbed:
    """Tells the story with kills and restarts, drawn by a seed.

    kills: how many are to hit. away, restarts: how often Label Studio and the database are ended under a working process.
    quick: lives are forked, and beats of killed runs are set back at the end instead of waiting until they are old.
    """

    def __init__(
        self,
        site: Site,
        server: LabelStudio,
        databases: Databases,
        *,
        kills: int,
        away: int,
        restarts: int,
        seed: int,
        quick: bool,
    ) -> None:
        self.site, self.server, self.databases = site, server, databases
        self.kills, self.away, self.restarts = kills, away, restarts
        self.random, self.harm, self.watch, self.quick = random.Random(seed), Harm(), Watch(site), quick
        self._progress = 0.0

    def tell(self, sizes: Sizes) -> None:
        """All steps. Raises Stuck or Hangs where the program does not get there."""
        self._idle, steps = sizes.idle, sizes.steps
        last = len(steps) - 1
        troubles = self._spread(last + 1)
        for step, size in enumerate(steps):
            self.server.wait()
            act(self.site, step)
            self._progress = 0.0
            wanted = -(-(self.kills - self.harm.hits) // (last + 1 - step))
            line: list[str] = ["kill"] * wanted + troubles[step]
            self.random.shuffle(line)
            for number, what in enumerate(line):
                self._trouble(what, size, left=len(line) - number, insist=step == last)
            self._finish(step)
        self._look_back()

    def _look_back(self) -> None:
        """A run that was killed is seen as abandoned by the next look, once it has not been heard of for long enough."""
        say(f"waiting {TTL_SECONDS:.0f} s until killed runs count as not heard of" if not self.quick else "last look")
        if self.quick:
            self._let_time_pass()
        else:
            time.sleep(TTL_SECONDS + 1)
        self._finish(-1)

    def _let_time_pass(self) -> None:
        database = Database(self.site.database_url)
        with database.write() as session:
            session.execute(sa.update(JobRun).values(beat_at=JobRun.beat_at - TTL_SECONDS - 1))
        database.close()

    def _spread(self, steps: int) -> list[list[str]]:
        """Restarts of the servers by step, as evenly as they go."""
        kinds = ["database"] * self.restarts + [("SIGKILL", "SIGTERM")[number % 2] for number in range(self.away)]
        self.random.shuffle(kinds)
        return [kinds[len(kinds) * step // steps : len(kinds) * (step + 1) // steps] for step in range(steps)]

    def _trouble(self, what: str, size: Measured, *, left: int, insist: bool) -> None:
        if what == "kill":
            self._kill(size, left, insist=insist)
        elif what == "database":
            self._restart_database(size)
        else:
            self._end_server("SIGKILL" if what == "SIGKILL" else "SIGTERM", size)
        self._look(what)

    # Kills

    def _kill(self, size: Measured, left: int, *, insist: bool) -> None:
        """One kill. One that came too late is repeated earlier, where no later step can make up for it."""
        for misses in count():
            kill, progress = self._draw(size, left) if misses < MISSES else (Kill("commits", at=1), 0.0)
            self.harm.asked += 1
            life = self._run(kill)
            if life.outcome == "killed":
                self.harm.hit[kill.kind] += 1
                self.harm.where[life.told.get("where", "killed from without")] += 1
                self._progress += progress
            elif life.outcome == "done":
                self._progress = 1.0
            where = life.told.get("where", "")
            say(f"kill {self.harm.hits} of {self.kills} {kill}: {life.outcome} after {life.seconds:.1f} s {where}")
            if life.outcome == "killed" or not insist:
                return
            left += 1

    def _draw(self, size: Measured, left: int) -> tuple[Kill, float]:
        """A point in what is left of the step's work, so far on that the kills to come fall into the rest, or one of five
        times in what every life repeats; and how much of the step is done by then."""
        kind = self.random.choice(["moment", "commits", "requests"])
        share = self._rest() * min(1.0, 2 / (left + 1)) * self.random.random()
        early = self.random.random() < 0.2
        if kind == "moment":
            return Kill("moment", moment=self._moment(size, share, early=early)), 0.0 if early else share
        idle, whole = (self._idle.commits, size.commits) if kind == "commits" else (self._idle.requests, size.requests)
        repeated, work = min(idle, whole), max(0, whole - idle)
        at = self.random.randint(1, max(1, repeated)) if early or not work else repeated + 1 + round(share * (work - 1))
        when: Literal["before", "after"] = "before" if self.random.random() < 0.5 else "after"
        done = 0.0 if early or not work else share
        return (Kill("commits", at=at, when=when) if kind == "commits" else Kill("requests", at=at, when=when)), done

    def _moment(self, size: Measured, share: float, *, early: bool) -> float:
        """Seconds after the start of a life."""
        idle = self._idle.seconds * self.random.random()
        return max(0.05, idle if early else 0.8 * self._idle.seconds + share * max(0.0, size.seconds - self._idle.seconds))

    def _rest(self) -> float:
        """The share of the step that is still to be done, as far as can be told."""
        return max(0.0, 1.0 - self._progress)

    # Restarts

    def _restart_database(self, size: Measured) -> None:
        running = self._in_the_middle(size)
        lived = running.lives
        self.databases.restart()
        self._note("database restarted", lived, running)

    def _end_server(self, how: Ending, size: Measured) -> None:
        self.server.wait()
        running = self._in_the_middle(size)
        lived = running.lives
        self.server.end(how)
        self._note(f"Label Studio ended by {how}", lived, running)
        self.server.start()  # and is away for the next kills

    def _in_the_middle(self, size: Measured) -> Running:
        """A life that is at work; the last of a few tries may have ended all the same."""
        for attempt in range(TRIES):
            running = self._start(None)
            rest = self._rest() * self.random.random() / (attempt + 1)
            time.sleep(self._moment(size, rest, early=attempt > 0 or not self._rest()))
            if running.lives:
                break
            self._until_end(running)
        return running

    def _note(self, what: str, lived: bool, running: Running) -> None:
        life = self._until_end(running)
        self.harm.answers_to_restarts[f"{what}: {life.outcome if lived else 'too late'}"] += 1
        say(f"{what} under {'a working' if lived else 'no'} process: {life.outcome} {life.message}")

    def _until_end(self, running: Running) -> Life:
        life = running.wait()
        self._progress = 1.0 if life.outcome == "done" else self._progress
        return life

    # Lives

    def _finish(self, step: int) -> None:
        """Work undisturbed until the step is done; -1 is the last look."""
        self.server.wait()
        for _ in range(PATIENCE):
            life = self._run(None) if step >= 0 else self._begin(COMMANDS[0]).wait()
            if life.outcome == "done":
                self._look(f"step {step}")
                return
            self.harm.failures.append(f"step {step}: {life.message}")
            say(f"step {step}: an undisturbed life ended with {life.outcome}: {life.message}")
        raise Stuck(f"step {step}: {PATIENCE} undisturbed lives in a row ended with an error, the last: {life.message}")

    def _run(self, kill: Kill | None) -> Life:
        return self._start(kill).wait()

    def _start(self, kill: Kill | None) -> Running:
        return self._begin(self.random.choice(COMMANDS), kill)

    def _begin(self, command: list[str], kill: Kill | None = None) -> Running:
        return Running(self.site.config, command, kill, quick=self.quick)

    def _look(self, when: str) -> None:
        found = self.watch.look(server=self.server.answers)
        self.harm.seen += (f"after {when}: {one}" for one in found)
        self.harm.doubles_seen = self.watch.doubles
        for one in found:
            say(f"WRONG: {one}")
