"""Rows in the shapes the stages write them, for tests of what reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from activeseg.db.database import Database
from activeseg.db.models import (
    Annotation,
    AnnotationSource,
    AnnotationStatus,
    Arm,
    Checkpoint,
    ClassScoreRow,
    Decision,
    Evaluation,
    Image,
    ImageStatus,
    LabelingProject,
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
from activeseg.db.models.columns import now
from tests.factories import CLASSES

MORNING = now().replace(hour=6, minute=0, second=0, microsecond=123456)


def minutes(count: float) -> datetime:
    """A moment of this morning."""
    return MORNING + timedelta(minutes=count)


class Rows:
    """Inserts rows and returns their ids."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.runs: dict[int, int] = {}
        self.count = 0

    def add(self, row: Model) -> int:
        """Insert one row."""
        with self.database.write() as session:
            session.add(row)
            session.flush()
            return int(sa.inspect(row).identity[0])

    def next(self) -> int:
        """A number nothing had before."""
        self.count += 1
        return self.count

    def label_set(self) -> int:
        """The test classes' row."""
        with self.database.read() as session:
            found = session.scalar(sa.select(LabelSetRow.id))
        return found or self.add(LabelSetRow(fingerprint=CLASSES.fingerprint, definition=CLASSES.as_dict()))

    def image(self, *, split: Split = Split.POOL, status: ImageStatus = ImageStatus.ACTIVE, **columns: Any) -> int:
        """A pool image, unless the columns say otherwise."""
        uri = columns.pop("uri", f"file:///pool/{self.next():04d}.png")
        digest = hashlib.sha256(uri.encode()).hexdigest()
        return self.add(Image(uri=uri, sha256=digest, size_bytes=1, width=64, height=48, split=split, status=status, **columns))

    def checkpoint(self, version: str | None = None, decision: Decision | None = None) -> int:
        """A checkpoint; with a decision, one about it."""
        spec = {"label_set": CLASSES.as_dict()}
        checkpoint = self.add(
            Checkpoint(
                model_version=version or f"fcn-{self.next():04d}",
                location="checkpoint/x.safetensors",
                sha256="0" * 64,
                architecture="fcn_mobilenet_v2",
                spec=spec,
                label_set_id=self.label_set(),
            )
        )
        if decision:
            self.decide(checkpoint, decision)
        return checkpoint

    def decide(self, checkpoint: int, decision: Decision) -> int:
        """A row of promotions."""
        return self.add(Promotion(checkpoint_id=checkpoint, decision=decision, reason="test", decided_by="test"))

    def config(self, checkpoint: int) -> int:
        """A scoring configuration of a checkpoint, scored with in one run."""
        fingerprint = hashlib.sha256(str(self.next()).encode()).hexdigest()
        config = self.add(ScoringConfig(checkpoint_id=checkpoint, fingerprint=fingerprint, definition={}))
        self.run(config)
        return config

    def run(self, config: int, **columns: Any) -> int:
        """One more scoring run with a configuration."""
        values = {"device": "cpu", "images_planned": 1} | columns
        self.runs[config] = self.add(ScoringRun(scoring_config_id=config, **values))
        return self.runs[config]

    def score(self, config: int, image: int, entropy: float, classes: Mapping[int, float] | None = None) -> None:
        """A score, and those of some classes."""
        with self.database.write() as session:
            session.add(self.score_row(config, image, entropy_sum=entropy))
            session.add_all(self.class_row(config, image, index, value) for index, value in (classes or {}).items())

    def score_row(self, config: int, image: int, **columns: Any) -> Score:
        """A score, not yet written."""
        values = {"entropy_sum": 1.0, "entropy_mean": 0.1, "entropy_share": 0.1, "margin_mean": 0.1}
        values |= {"least_confidence_mean": 0.1, "valid_pixels": 3072, "grid": [0.0] * 64} | columns
        return Score(scoring_config_id=config, image_id=image, scoring_run_id=self.runs[config], **values)

    def class_row(self, config: int, image: int, index: int, entropy: float) -> ClassScoreRow:
        """One class's part of a score, not yet written."""
        return ClassScoreRow(
            scoring_config_id=config,
            image_id=image,
            class_index=index,
            channel_entropy_sum=entropy,
            region_pixels=0,
            region_entropy_sum=0.0,
            mean_confidence=None,
        )

    def round(self, status: RoundStatus = RoundStatus.PUSHED, **columns: Any) -> int:
        """A round."""
        values = {"acquisition": "entropy_sum", "query_size": 4, "control_share": 0.0, "seed": 0} | columns
        return self.add(Round(number=self.next(), status=status, **values))

    def query(self, round_id: int, image: int, status: QueryStatus = QueryStatus.PUSHED, arm: Arm = Arm.CHOSEN) -> int:
        """One image of a round."""
        row = Query(round_id=round_id, image_id=image, arm=arm, shown_order=self.next(), reason="test", status=status)
        return self.add(row)

    def project(self, external_id: int = 1, instance: str = "server") -> int:
        """A Label Studio project."""
        return self.add(
            LabelingProject(
                server_url="http://127.0.0.1:1",
                instance_key=instance,
                external_project_id=external_id,
                title="activeseg",
                mask_kind="brush",
                config_sha256="0" * 64,
                label_set_id=self.label_set(),
            )
        )

    def annotation(
        self,
        image: int,
        *,
        outside: tuple[int, int] | None = None,
        at: float = 0,
        status: AnnotationStatus = AnnotationStatus.VALID,
        **columns: Any,
    ) -> int:
        """An annotation. outside: (project, annotation id) in Label Studio, else imported; at: minutes of the morning."""
        mask = f"mask/{self.next()}.png" if status == AnnotationStatus.VALID else None
        row = Annotation(
            image_id=image,
            source=AnnotationSource.LABELSTUDIO if outside else AnnotationSource.IMPORT,
            status=status,
            label_set_id=self.label_set(),
            mask_location=mask,
            mask_sha256="0" * 64 if mask else None,
            labeling_project_id=outside[0] if outside else None,
            external_annotation_id=outside[1] if outside else None,
            external_updated_at=minutes(at) if outside else None,
            import_sha256=None if outside else f"{self.next():064d}",
            received_at=minutes(at),
            **columns,
        )
        return self.add(row)

    def evaluation(self, checkpoint: int, value: float, *, split: Split = Split.VAL, class_name: str = "*") -> None:
        """A mean IoU."""
        with self.database.write() as session:
            session.add(
                Evaluation(
                    checkpoint_id=checkpoint,
                    split=split,
                    metric="mean_iou" if class_name == "*" else "iou",
                    class_name=class_name,
                    value=value,
                    num_images=3,
                )
            )
