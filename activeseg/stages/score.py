"""images -> scores, embeddings: one forward pass of the champion over every pool image it has not scored yet, or as many as
time allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import sqlalchemy as sa
import torch
from sqlalchemy.orm import Session

from activeseg.config import Settings
from activeseg.config.budget import Budget
from activeseg.config.strategies import Strategy
from activeseg.core.idset import IdSet
from activeseg.core.shift import Reservoir
from activeseg.core.temperature import serving
from activeseg.db import checkpoints, embeddings, images, scores, shift
from activeseg.db.database import Database
from activeseg.db.models import Checkpoint, ScoringRun
from activeseg.db.models.columns import now
from activeseg.nn.allowance import Allowance
from activeseg.nn.checkpoint import Segmenter, load_checkpoint
from activeseg.nn.committee import DROPOUT, PASSES, SCALES
from activeseg.nn.decoding import Read
from activeseg.nn.device import describe_devices, pick_devices
from activeseg.nn.infer import score_images
from activeseg.nn.pace import Pace
from activeseg.nn.prefetch import Behind
from activeseg.nn.spread import score_spread
from activeseg.records import ImageRef, ImageScore, ScoreFailure, StageReport
from activeseg.workspace import Workspace

Progress = Callable[[int, int, str], None]
"""Called with (images done, images planned, what the pass waits for)."""

Chunk = list[ImageScore | ScoreFailure]

LABELLED = embeddings.labelled()

LONGEST_DEVICES = 100
"""Characters of the column."""

_HOW = {
    "bald": {"passes": PASSES, "dropout": DROPOUT},
    "tta_jsd": {"mirrored": True, "scales": list(SCALES)},
    "gradients": {"of": "predicted classes"},
}
"""What a strategy may need that is only computed where one does, as it is told in a scoring configuration."""


def score_pool(workspace: Workspace, *, budget: Budget | None = None, on_progress: Progress | None = None) -> StageReport:
    """Score what the champion's configuration has not scored; commits as it goes, so a killed run goes on.

    budget: how much at most (default: [scoring] budget). Images that were never scored come first then, and after them those
    the scores before (of any checkpoint) were highest for; the next run goes on with the rest. At least one batch is scored.

    An embedding is stored with every score. Where the acquisition compares them, images without a score of their own get one
    as well: those that are trained on, and first of all those an older version scored.

    The run is compared with those before it: see `db.shift`. Images that cannot be read are quarantined with the reason.
    Raises NotReadyError without a champion, NonFiniteScoreError where the network yields NaN or infinity (nothing of that
    chunk is written), DeviceMemoryError where memory is too small, and what a failed write raises.
    """
    started = time.monotonic()
    configured = workspace.settings.scoring.budget
    budget = budget or (Budget.parse(configured) if configured else None)
    devices = pick_devices(workspace.settings.scoring.devices, workspace.settings.model.device)
    with workspace.database.write() as session:
        champion = checkpoints.require_champion(session)
        checkpoints.require_labels(champion, workspace.label_set)
        config = scores.ensure_config(session, champion.id, scoring_definition(workspace, champion))
        embedders = _embedders(session, config, needs(workspace))
    with workspace.database.read() as session:
        work = _Work.planned(session, config, needs(workspace), embedders)
        previous = scores.previous_config(session, config) if budget else None
    if not work.images:
        details = {"scoring_config": config, "model_version": champion.model_version, "coverage": 1.0}
        details |= _told(_conclude(workspace, config))
        return StageReport("score", 0, 0, time.monotonic() - started, details)
    with workspace.database.write() as session:
        run = ScoringRun(
            scoring_config_id=config,
            device=describe_devices(devices)[:LONGEST_DEVICES],
            images_planned=min(work.images, budget.images or work.images) if budget else work.images,
            work_order="id" if previous is None else "previous ranking",
            budget=budget.text if budget else None,
        )
        session.add(run)
        session.flush()
    doing = _Pass(workspace, run, work, budget, previous, started)
    doing.score(champion, devices, on_progress)
    return doing.finish(champion)


def _conclude(workspace: Workspace, config: int) -> shift.Judgement | None:
    """Judge and end the last run, if it was killed before it did so itself. Nobody waits while it is judged."""
    with workspace.database.read() as session:
        concluded = shift.conclude(session, config, workspace.settings.drift)
    if concluded is None:
        return None
    with workspace.database.write() as session:
        shift.write_conclusion(session, concluded)
    return concluded.judged


def needs(workspace: Workspace) -> frozenset[str]:
    """What [selection] acquisition asks of the scoring pass besides the usual statistics."""
    return Strategy.parse(workspace.settings.selection.acquisition).needs


def scoring_definition(workspace: Workspace, checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything besides checkpoint and image that decides a score, but for the last bits.

    What only decides how fast it comes (device, batches, compiling) is not in it: see docs/scoring.md for how far such
    scores may differ.
    """
    policy = checkpoint.spec["input_policy"]
    temperature = serving(checkpoint.temperature, workspace.settings.scoring.temperature)
    usual = {
        "input_policy": policy,
        "precision": workspace.settings.model.precision,
        # The name for a decoder at full size is that of older versions, whose scores stay valid.
        "decoder": "pillow, JPEG reduced" if policy.get("reduced") else "pillow",
    }
    more = {name: how for name, how in _HOW.items() if name in needs(workspace)}
    return usual | more | ({} if temperature == 1.0 else {"temperature": temperature})


def _open(workspace: Workspace, stored: _Stored, device: torch.device) -> tuple[Segmenter, Read]:
    data = workspace.artifacts.read(stored.location, sha256=stored.sha256)
    segmenter = load_checkpoint(data, model_version=stored.model_version, device=device)
    return segmenter, partial(workspace.read_input, policy=segmenter.spec.input_policy)


def _open_elsewhere(settings: Settings, stored: _Stored, device: torch.device) -> tuple[Segmenter, Read]:
    """As `_open`, in a process of its own. It has no use for the database, which is never connected to."""
    return _open(Workspace(settings, Database(settings.database_url)), stored, device)


def _embedders(session: Session, config: int, needs: frozenset[str]) -> dict[str, int]:
    """Whose vectors a run writes, by field of a score; makes their rows."""
    embedders = {"feature": embeddings.feature_embedder(session, config)}
    if "gradients" in needs:
        embedders["gradient"] = embeddings.gradient_embedder(session, config)
    return embedders


class _Stored(NamedTuple):
    """Where a checkpoint lies and what it is called."""

    location: str
    sha256: str
    model_version: str


@dataclass(frozen=True)
class _Work:
    """What a run has to do. embedders: whose vectors are written, by field of a score. images: without a score or, where the
    strategy compares features, without an embedding.
    """

    needs: frozenset[str]
    embedders: dict[str, int]
    images: int

    @classmethod
    def planned(cls, session: Session, config: int, needs: frozenset[str], embedders: dict[str, int]) -> _Work:
        """The work that is left under a configuration."""
        unscored = scores.count_unscored(session, config)
        if "features" in needs:
            unscored += embeddings.count_missing(session, embedders["feature"], sa.or_(LABELLED, embeddings.in_pool(config)))
        return cls(needs, embedders, unscored)

    def to_embed(self, database: Database, which: sa.ColumnElement[bool]) -> Iterator[ImageRef]:
        """Those of the images that need an embedding and no score."""
        if "features" in self.needs:
            for page in embeddings.missing_pages(database, self.embedders["feature"], which):
                yield from page


@dataclass
class _Pass:
    """One run over the pool. done, failed: images whose rows are committed. embedding: those handed to the network that get no
    score. labelled: those of these that are trained on.
    """

    workspace: Workspace
    run: ScoringRun
    work: _Work
    budget: Budget | None
    previous: int | None
    started: float
    pace: Pace = field(default_factory=Pace)
    done: int = 0
    failed: int = 0
    embedding: IdSet = field(default_factory=IdSet)
    labelled: IdSet = field(default_factory=IdSet)
    embedded: int = 0
    allowance: Allowance = field(init=False)
    values: Reservoir = field(init=False)
    """mean entropies, to compare with those of the runs before"""

    def __post_init__(self) -> None:
        self.allowance = Allowance(self.budget, self.pace, self.run.images_planned, self.started)
        self.values = shift.gathering(self.run.id)

    def score(self, champion: Checkpoint, devices: Sequence[torch.device], on_progress: Progress | None) -> None:
        """Score and write; rows are written by a thread of their own while the next ones are computed."""
        # One half is written while the other is computed: together they are what a kill may lose.
        size = max(1, self.workspace.settings.scoring.chunk_size // 2)
        with closing(self._stream(champion, devices)) as stream, Behind(self._write, waiting=0) as writer:
            self.pace.started = time.monotonic()  # the network is loaded; where there are several, each is by its own process
            for chunk in _chunks(stream, size):
                with self.pace.waiting("database"):
                    writer.put(chunk)
                if on_progress:
                    on_progress(self.done + self.failed, self.run.images_planned, f"waits for {self.pace.described}")
            with self.pace.waiting("database"):
                writer.finish()
        if on_progress:
            on_progress(self.done + self.failed, self.done + self.failed, "")

    def _stream(
        self, champion: Checkpoint, devices: Sequence[torch.device]
    ) -> Generator[ImageScore | ScoreFailure, None, None]:
        settings = self.workspace.settings
        options: dict[str, Any] = {
            "precision": settings.model.precision,
            "batch_size": settings.scoring.batch_size,
            "readers": settings.scoring.readers,
            "compile": settings.scoring.compile,
            "cache": self.workspace.artifacts.root / "compiled",
            "needs": self.work.needs,
            "temperature": serving(champion.temperature, settings.scoring.temperature),
        }
        stored, left = _Stored(champion.location, champion.sha256, champion.model_version), self.allowance.left
        if len(devices) > 1:
            prepare = partial(_open_elsewhere, settings, stored)
            return score_spread(devices, self._images(), prepare, pace=self.pace, left=left, options=options)
        [device] = devices
        segmenter, read = _open(self.workspace, stored, device)
        return score_images(segmenter, self._images(), read, device=device, pace=self.pace, left=left, **options)

    def finish(self, champion: Checkpoint) -> StageReport:
        """Judge the run and complete its row; what is to be said of it."""
        seconds = max(time.monotonic() - self.pace.started, 1e-9)
        waiting, told = {what: self.pace.waited[what] / seconds for what in self.pace.waited}, self.pace.described
        with self.workspace.database.read() as session:
            run = session.get_one(ScoringRun, self.run.id)
            judged = shift.judge(session, run, self.values, self.workspace.settings.drift)
            coverage = scores.coverage(session, self.run.scoring_config_id)
        with self.workspace.database.write() as session:
            held = session.get_one(ScoringRun, self.run.id)
            held.images_per_second, held.ended_at = (self.done + self.failed) / seconds, now()
            held.coverage = coverage
            held.batch_size, held.compiled_images = self.pace.batch_size, self.pace.compiled_images
            held.compile_seconds = self.pace.compile_seconds or None
            held.waiting_decode, held.waiting_device = waiting["decode"], waiting["device"]
            held.waiting_database = waiting["database"]
            held.shift, held.drift = judged.shift, judged.drift
        details = {
            "scoring_config": self.run.scoring_config_id,
            "model_version": champion.model_version,
            "images_per_second": round((self.done + self.failed) / seconds, 1),
            "coverage": coverage,
            "waiting": told,
        }
        if self.budget:
            details |= {"budget": self.budget.text, "order": self.run.work_order}
        if self.embedded:
            details["embedded only"] = self.embedded
        details |= _told(judged)
        if self.pace.compiled_images:
            details["compiled"] = f"{self.pace.compiled_images} images after {self.pace.compile_seconds:.0f} s"
        elif self.pace.not_compiled:
            details["not compiled"] = self.pace.not_compiled
        return StageReport("score", self.done, self.failed, time.monotonic() - self.started, details)

    def _images(self) -> Iterator[ImageRef]:
        """The work list, page by page, until the budget is used up."""
        database, config = self.workspace.database, self.run.scoring_config_id
        lines = (
            ((self.embedding, self.labelled), self.work.to_embed(database, LABELLED)),
            ((self.embedding,), self.work.to_embed(database, embeddings.in_pool(config))),
            ((), chain.from_iterable(scores.work_pages(database, config, previous=self.previous))),
        )
        for kinds, line in lines:
            for image in line:
                if not self.allowance.one_more():
                    return
                self.allowance.taken += 1
                for kind in kinds:
                    kind.update([image.image_id])
                yield image

    def _write(self, chunk: Chunk) -> None:
        good = [item for item in chunk if isinstance(item, ImageScore)]
        bad = {item.image_id: item.reason for item in chunk if isinstance(item, ScoreFailure)}
        scored = [item for item in good if item.image_id not in self.embedding]
        done, failed = self.done + len(good), self.failed + len(bad)
        with self.workspace.database.write() as session:
            scores.insert_scores(session, self.run, scored)
            for name, embedder in self.work.embedders.items():
                embeddings.insert(session, embedder, {item.image_id: getattr(item, name) for item in good})
            # Of an image that is trained on, the training tells what is wrong, and leaves it to a person.
            images.quarantine(session, {image: why for image, why in bad.items() if image not in self.labelled})
            held = session.get_one(ScoringRun, self.run.id)
            held.images_done, held.images_failed = done, failed
        self.done, self.failed, self.embedded = done, failed, self.embedded + len(good) - len(scored)
        self.values.extend(item.entropy_mean for item in scored)


def _told(judged: shift.Judgement | None) -> dict[str, Any]:
    found = {} if judged is None or judged.shift is None else {"shift": round(judged.shift, 3)}
    return found | ({"drift": judged.drift} if judged and judged.drift else {})


def _chunks(stream: Iterable[ImageScore | ScoreFailure], size: int) -> Iterator[Chunk]:
    chunk: Chunk = []
    for item in stream:
        chunk.append(item)
        if len(chunk) >= size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
