"""A real migrated database, rows to fill it with, and a client of the real application over it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from activeseg.config import Settings
from activeseg.core.labels import LabelSet, parse_classes
from activeseg.db import migrate
from activeseg.db.database import Database
from activeseg.db.models import (
    Arm,
    Checkpoint,
    ClassScoreRow,
    Decision,
    Image,
    ImageStatus,
    LabelSetRow,
    Model,
    Promotion,
    Query,
    QueryStatus,
    Round,
    RoundStatus,
    Score,
    ScoringConfig,
    ScoringRun,
    Split,
)
from activeseg.web.app import create_app

TOKEN = "a-token-only-for-these-tests"
CLASSES = "sky #0000ff\nvoid #000000 ignore\nroad #808080\ncar #ff0000\n"


class Filler:
    """Writes rows through the models, in the shapes the stages write."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.label_set = parse_classes(CLASSES)
        self.runs: dict[str, tuple[int, int]] = {}
        self.rounds = 0

    def add(self, row: Model) -> Any:
        """Insert one row and return its id."""
        with self.database.write() as session:
            session.add(row)
            session.flush()
            return sa.inspect(row).identity[0]

    def label_set_id(self, label_set: LabelSet | None = None) -> int:
        """The id of a label set's row."""
        wanted = label_set or self.label_set
        with self.database.write() as session:
            found = session.scalar(sa.select(LabelSetRow.id).where(LabelSetRow.fingerprint == wanted.fingerprint))
        return found or self.add(LabelSetRow(fingerprint=wanted.fingerprint, definition=wanted.as_dict()))

    def checkpoint(self, version: str, *, label_set: LabelSet | None = None, decision: Decision = Decision.PROMOTED) -> None:
        """A checkpoint with a scoring configuration, a run of it and a decision."""
        sha256 = hashlib.sha256(version.encode()).hexdigest()
        row = Checkpoint(
            model_version=version,
            location=f"checkpoints/{version}.safetensors",
            sha256=sha256,
            architecture="fcn_mobilenet_v2",
            spec={},
            label_set_id=self.label_set_id(label_set),
        )
        checkpoint = self.add(row)
        config = self.add(ScoringConfig(checkpoint_id=checkpoint, fingerprint=sha256, definition={}))
        self.runs[version] = config, self.add(ScoringRun(scoring_config_id=config, device="cpu", images_planned=0))
        self.add(Promotion(checkpoint_id=checkpoint, decision=decision, reason="first", decided_by="test"))

    def image(self, uri: str, **columns: Any) -> int:
        """An active pool image, unless the columns say otherwise."""
        values = {"sha256": hashlib.sha256(uri.encode()).hexdigest(), "size_bytes": 1, "width": 40, "height": 30}
        values |= {"split": Split.POOL, "status": ImageStatus.ACTIVE} | columns
        return int(self.add(Image(uri=uri, **values)))

    def score(self, version: str, image_id: int, channels: dict[int, float]) -> None:
        """A score whose channel entropies (class index -> nats) add up to its sum."""
        config, run = self.runs[version]
        total = sum(channels.values())
        row = Score(
            scoring_config_id=config,
            image_id=image_id,
            scoring_run_id=run,
            entropy_sum=total,
            entropy_mean=total / 1200,
            valid_pixels=1200,
            entropy_share=0.25,
            margin_mean=0.5,
            least_confidence_mean=0.75,
            grid=[total / 4] * 4,
        )
        parts = [
            ClassScoreRow(
                scoring_config_id=config,
                image_id=image_id,
                class_index=index,
                channel_entropy_sum=value,
                region_pixels=400,
                region_entropy_sum=value / 2,
                mean_confidence=0.5,
            )
            for index, value in channels.items()
        ]
        with self.database.write() as session:
            session.add_all([row, *parts])

    def scored(self, version: str, name: str, channels: dict[int, float]) -> int:
        """An image and its score."""
        image_id = self.image(f"/pool/{name}.png")
        self.score(version, image_id, channels)
        return image_id

    def round(self) -> int:
        """The next round; returns its row's id."""
        self.rounds += 1
        row = Round(
            number=self.rounds,
            status=RoundStatus.PUSHED,
            acquisition="entropy_sum",
            query_size=5,
            control_share=0.0,
            seed=0,
        )
        return int(self.add(row))

    def query(self, round_id: int, image_id: int, status: QueryStatus, **columns: Any) -> int:
        """An image of a round."""
        values = {"rank": 1, "score": 9.5, "arm": Arm.CHOSEN, "shown_order": 0, "reason": "most uncertain"} | columns
        return int(self.add(Query(round_id=round_id, image_id=image_id, status=status, **values)))


@pytest.fixture(scope="session")
def empty_database_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file without rows."""
    file = tmp_path_factory.mktemp("migrated") / "activeseg.db"
    database = Database(f"sqlite:///{file}")
    migrate.upgrade(database)
    database.close()
    return file


@pytest.fixture
def database(tmp_path: Path, empty_database_file: Path) -> Iterator[Database]:
    """This test's own migrated database."""
    shutil.copy(empty_database_file, tmp_path / "activeseg.db")
    opened = Database(f"sqlite:///{tmp_path / 'activeseg.db'}")
    yield opened
    opened.close()


@pytest.fixture
def filler(database: Database) -> Filler:
    """Writes rows into this test's database."""
    return Filler(database)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a token from the environment, as far as the application can tell."""
    (tmp_path / "pool").mkdir()
    return Settings.model_validate(
        {
            "root": tmp_path,
            "pool": {"images": "pool"},
            "serve": {"token": TOKEN, "hosts": ["testserver"], "requests_per_minute": 100_000},
        }
    )


@pytest.fixture
def anonymous(settings: Settings, database: Database) -> TestClient:
    """A client without a token; an exception in the application fails the test."""
    return TestClient(create_app(settings, database))


@pytest.fixture
def client(anonymous: TestClient) -> TestClient:
    """A client with the right token."""
    anonymous.headers["Authorization"] = f"Bearer {TOKEN}"
    return anonymous


@pytest.fixture
def pages(client: TestClient) -> Callable[..., list[dict[str, Any]]]:
    """Follows `next` to the end and returns all items."""

    def follow(path: str, params: Sequence[tuple[str, Any]] = (), after: Any = None) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        cursors = set()
        while True:
            more = [("after", after)] if after is not None else []
            answer = client.get(path, params=[*params, *more])
            assert answer.status_code == 200, answer.text
            page = answer.json()
            items += page["items"]
            after = page["next"]
            if after is None:
                return items
            assert after not in cursors, "paging turns in a circle"
            cursors.add(after)

    return follow
