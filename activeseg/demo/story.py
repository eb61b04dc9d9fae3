"""activeseg demo: the whole loop on a small set of images, told as it happens.

Everything goes through the same code as a real run; only the annotator is simulated, by a process of its own. State lies
in one folder; a demo that was killed goes on where it stopped.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from activeseg.config import Settings, load_settings, toml_value, write_secret
from activeseg.db import checkpoints, lease, migrate, rounds
from activeseg.db.database import Database
from activeseg.db.models import QueryStatus, Round, RoundStatus, Split
from activeseg.demo.layout import Sizes, claim, copy_dataset
from activeseg.demo.recipe import DEMO_RECIPE, REAL_RECIPE, DemoRecipe
from activeseg.demo.scenes import write_scenes
from activeseg.demo.telling import learning_curve, print_curve, print_ending, print_ranking, print_round
from activeseg.errors import ActivesegError, NotReadyError
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.registration import open_client, open_project
from activeseg.labelstudio.server import RunningServer, start_server
from activeseg.loop import Listener, advance_round
from activeseg.records import StageReport
from activeseg.stages.dataset import import_dataset
from activeseg.stages.pool import sync_pool
from activeseg.stages.promote import promote_challengers
from activeseg.stages.train import train_challenger
from activeseg.wording import counted
from activeseg.workspace import Workspace, open_workspace

ANNOTATOR = "annotator@example.com"


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What `activeseg demo` was asked for. data: a labelled dataset, or None for synthetic scenes. stays: Label Studio is
    left running, so where it is and how to log in is worth telling."""

    state: Path
    data: Path | None
    rounds: int
    query_size: int
    offline: bool
    stays: bool = True


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What a demo made. curve: a row per trained checkpoint. server: the Label Studio that runs, None offline."""

    curve: list[dict[str, Any]]
    seconds: dict[str, float]
    server: RunningServer | None


@dataclass
class Clock:
    """Seconds per stage, in the order in which they first came."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, seconds: float) -> None:
        """Add to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of a block."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.add(stage, time.monotonic() - started)


@dataclass
class Story:
    """One demo: where it is told, how long things take, and who listens."""

    options: DemoOptions
    console: Console
    listener: Listener
    clock: Clock = field(default_factory=Clock)

    def say(self, text: str) -> None:
        """One line of the story."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def heard(self, report: StageReport) -> None:
        """A stage ended: its seconds count, and it is told if it did something."""
        self.clock.add(report.stage, report.seconds)
        if report.written or report.failed:
            self.say("  " + report.sentence())


def run_demo(options: DemoOptions, console: Console, listener: Listener) -> DemoResult:
    """Run the demo to its end. The Label Studio in the result still runs; the caller stops it."""
    story = Story(options, console, listener)
    listener.report = story.heard
    state = options.state.absolute()
    recipe = REAL_RECIPE if options.data else DEMO_RECIPE
    with story.clock.measure("prepare data"):
        _prepare_data(story, state, recipe)
    settings = _prepare_settings(options, state, recipe, steps=recipe.first_steps)
    with _ServerStart(options, state) as starting:
        with open_workspace(settings) as workspace:
            _first_checkpoint(story, workspace, state)
        with story.clock.measure("wait for Label Studio"):
            server = starting.wait(story)
    try:
        curve = _tell_rounds(story, state, recipe, server)
    except BaseException:
        if server is not None:
            server.stop()
        raise
    return DemoResult(curve, story.clock.seconds, server)


def _tell_rounds(story: Story, state: Path, recipe: DemoRecipe, server: RunningServer | None) -> list[dict[str, Any]]:
    settings = _prepare_settings(story.options, state, recipe, steps=recipe.training.steps, server=server)
    with open_workspace(settings) as workspace, _client(settings, server) as client:
        while (number := _next_round(workspace, story.options.rounds)) is not None:
            story.say(f"\nRound {number} of {story.options.rounds}")
            advance_round(workspace, client, listener=story.listener)
            row = _standing_round(workspace)
            print_ranking(story.console, workspace, row)
            with story.clock.measure("annotator (simulated)"):
                _annotate(story, workspace, client, server, row, state)
            advance_round(workspace, client, open_new=False, listener=story.listener)
            print_round(story.console, workspace, row)
        # A demo killed while it trained after the last round still owes that checkpoint.
        advance_round(workspace, client, open_new=False, listener=story.listener)
        print_curve(story.console, workspace, state)
        stays = server if story.options.stays else None
        print_ending(story.console, workspace, state, story.clock.seconds, stays, client)
        return learning_curve(workspace)


def _next_round(workspace: Workspace, wanted: int) -> int | None:
    """The round to go on with: one that stands open, or the next, up to the wanted number."""
    with workspace.database.read() as session:
        last = rounds.latest(session)
    if last is None:
        return 1
    if last.status is not RoundStatus.CLOSED:
        return last.number
    return last.number + 1 if last.number < wanted else None


def _standing_round(workspace: Workspace) -> Round:
    with workspace.database.read() as session:
        pushed = rounds.unfinished(session, RoundStatus.PUSHED)
    if not pushed:
        raise NotReadyError("no image of the demo's pool is left to ask about: remove the folder to start again")
    return pushed[-1]


def _prepare_data(story: Story, state: Path, recipe: DemoRecipe) -> None:
    target, options = state / "data", story.options
    if options.data is not None:
        story.say(f"Copying images of {options.data} into {target}")
        copy_dataset(options.data, target, Sizes(recipe.start, recipe.val, recipe.pool), seed=recipe.seed)
        return
    claim(target, {"scenes": recipe.seed})
    story.say(f"Drawing {recipe.start + recipe.val + recipe.pool} synthetic street scenes into {target}")
    progress = story.listener.of("draw scenes")
    write_scenes(target, train=recipe.start, val=recipe.val, pool=recipe.pool, seed=recipe.seed, on_progress=progress)


def _prepare_settings(
    options: DemoOptions, state: Path, recipe: DemoRecipe, *, steps: int, server: RunningServer | None = None
) -> Settings:
    """Write activeseg.toml and bring the database to its schema; both are left alone where they are right already."""
    tables: dict[str, dict[str, Any]] = {
        "pool": {"images": "data/pool/images"},
        "labels": {"file": "data/classes.txt"},
        "model": recipe.model.model_dump(mode="json", exclude_defaults=True),
        "training": recipe.training.model_dump(mode="json", exclude_defaults=True) | {"steps": steps, "retrain_after": 1},
        "selection": {"query_size": options.query_size, "val_size": 0, "refill_below": 1},
    }
    if server is not None:
        write_secret(state / "labelstudio-token", server.token())
        tables["labelstudio"] = {"url": server.url, "token_file": "labelstudio-token", "project": "activeseg demo"}
    file = state / "activeseg.toml"
    file.write_text("# Written by `activeseg demo`.\n" + _toml(tables), encoding="utf-8")
    settings = load_settings(file)
    database = Database(settings.database_url)
    try:
        migrate.upgrade(database)
    finally:
        database.close()
    return settings


def _toml(tables: dict[str, dict[str, object]]) -> str:
    lines = []
    for name, table in tables.items():
        lines += [f"\n[{name}]"] + [f"{key} = {toml_value(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _first_checkpoint(story: Story, workspace: Workspace, state: Path) -> None:
    """Import the labelled images and train the first checkpoint, unless an earlier run of the demo did."""
    with workspace.database.read() as session:
        if checkpoints.champion(session) is not None:
            return
    story.say("\nThe first checkpoint, from a few labelled images")
    data = state / "data"
    with lease.holding(workspace.database):
        for part, split in (("start", Split.TRAIN), ("val", Split.VAL)):
            story.heard(import_dataset(workspace, str(data / part / "images"), data / part / "masks", split))
        story.heard(sync_pool(workspace))
        progress = story.listener.of("train")
        story.heard(train_challenger(workspace, reason="first", on_progress=progress))
        story.heard(promote_challengers(workspace))


def _annotate(
    story: Story,
    workspace: Workspace,
    client: LabelStudioClient | None,
    server: RunningServer | None,
    row: Round,
    state: Path,
) -> None:
    """Let the simulated annotator's process answer a round. It gets a token or a folder, and the known masks."""
    truth = state / "data/truth/masks"
    if client is None or server is None:
        _annotate_offline(workspace, row, truth, state)
        return
    _, token = server.add_user(ANNOTATOR)
    write_secret(state / "annotator-token", token)
    project = open_project(workspace, client).external_project_id
    arguments = ["--url", server.url, "--token-file", str(state / "annotator-token"), "--project", str(project)]
    arguments += ["--truth", str(truth), "--seed", str(row.number)]
    output = _run("activeseg.demo.annotator", arguments)
    story.say(f"  annotator: {counted(len(output.splitlines()), 'task')} answered in Label Studio")


def _annotate_offline(workspace: Workspace, row: Round, truth: Path, state: Path) -> None:
    with workspace.database.read() as session:
        asked = rounds.queries(session, row.id, QueryStatus.PUSHED)
    out = state / f"annotator/round-{row.number}"
    names = ",".join(Path(ref.uri).stem for _, ref in asked)
    _run("activeseg.demo.offline", ["--truth", str(truth), "--out", str(out), "--images", names, "--seed", str(row.number)])
    with lease.holding(workspace.database):
        answer_offline(workspace, row, out)


def answer_offline(workspace: Workspace, row: Round, masks: Path) -> None:
    """Import what the offline annotator wrote; images it left out are skipped, as in Label Studio."""
    report = import_dataset(workspace, workspace.settings.images_uri, masks, None, annotator="offline")
    if report.failed:
        raise ActivesegError(f"the offline annotator's masks do not fit: {report.details['problems']}")
    with workspace.database.write() as session:
        rounds.skip_unanswered(session, row.id)


def _run(module: str, arguments: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ActivesegError(f"the simulated annotator failed: {last}")
    return done.stdout


@contextmanager
def _client(settings: Settings, server: RunningServer | None) -> Iterator[LabelStudioClient | None]:
    if server is None:
        yield None
        return
    with open_client(settings) as client:
        yield client


class _ServerStart:
    """Label Studio, started on a thread while the first checkpoint trains."""

    def __init__(self, options: DemoOptions, state: Path) -> None:
        self.server: RunningServer | None = None
        self.error: BaseException | None = None
        folder = state / "labelstudio"
        self.thread = threading.Thread(target=self._start, args=(folder,), name="label-studio", daemon=True)
        self.wanted = not options.offline

    def _start(self, folder: Path) -> None:
        try:
            self.server = start_server(folder / "data", log=folder / "server.log")
        except BaseException as error:
            self.error = error

    def __enter__(self) -> _ServerStart:
        if self.wanted:
            self.thread.start()
        return self

    def wait(self, story: Story) -> RunningServer | None:
        """The server, once it answers; None offline. Raises what its start raised."""
        if not self.wanted:
            return None
        if self.thread.is_alive():
            story.say("\nWaiting for Label Studio (the very first start installs it: some minutes)")
        self.thread.join()
        if self.error is not None:
            raise self.error
        return self.server

    def __exit__(self, kind: object, *_: object) -> None:
        # A failure elsewhere: do not leave a server behind that nobody stops.
        if kind is not None and self.wanted:
            self.thread.join()
            if self.server is not None:
                self.server.stop()
