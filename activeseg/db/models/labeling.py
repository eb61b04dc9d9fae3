"""labeling_projects, tasks and push_journal: our side of Label Studio. Outside ids count only with their project."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from activeseg.db.models.columns import Model, UtcDateTime, created, text_enum


class TaskStatus(StrEnum):
    """What is known of a task."""

    PLANNED = "planned"
    """the key is fixed; Label Studio may or may not have the task: look by key before sending"""
    PUSHED = "pushed"
    DELETED = "deleted"
    """deleted in Label Studio"""


class JournalState(StrEnum):
    """Before and after a call that creates something."""

    INTENDED = "intended"
    """written before the call; found after a crash it means: look by key"""
    DONE = "done"
    DOUBT = "doubt"
    """the answer was lost; look by key before sending again"""
    SETTLED = "settled"
    """looked up after a crash or a doubt; what was missing went out under a new row"""


class LabelingProject(Model):
    """A Label Studio project. `instance_key` differs when a rebuilt server counts from 1 again; its address may change."""

    __tablename__ = "labeling_projects"
    __table_args__ = (sa.UniqueConstraint("instance_key", "external_project_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    server_url: Mapped[str] = mapped_column(sa.String(500))
    instance_key: Mapped[str] = mapped_column(sa.String(100))
    external_project_id: Mapped[int]
    title: Mapped[str] = mapped_column(sa.String(50))
    mask_kind: Mapped[str] = mapped_column(sa.String(20))
    config_sha256: Mapped[str] = mapped_column(sa.String(64))
    label_set_id: Mapped[int] = mapped_column(sa.ForeignKey("label_sets.id"))
    pulled_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """largest Task.updated_at pulled so far: the next pull starts a little before it"""
    created_at: Mapped[datetime] = created()

    @property
    def page(self) -> str:
        """Address of the project for people."""
        return f"{self.server_url.rstrip('/')}/projects/{self.external_project_id}/data"

    def task_page(self, external_task_id: int) -> str:
        """Address of a task for people."""
        return f"{self.page}?task={external_task_id}"


class Task(Model):
    """One query in one Label Studio project."""

    __tablename__ = "tasks"
    __table_args__ = (
        sa.UniqueConstraint("labeling_project_id", "key"),
        sa.UniqueConstraint("labeling_project_id", "external_task_id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    labeling_project_id: Mapped[int] = mapped_column(sa.ForeignKey("labeling_projects.id"))
    query_id: Mapped[int] = mapped_column(sa.ForeignKey("queries.id"), unique=True)
    # Looked up for each prediction that housekeeping deletes.
    prediction_id: Mapped[int | None] = mapped_column(sa.ForeignKey("predictions.id"), index=True)
    key: Mapped[str] = mapped_column(sa.String(64))
    external_task_id: Mapped[int | None] = mapped_column(sa.BigInteger)
    image_url: Mapped[str | None] = mapped_column(sa.String(1000))
    entropy_url: Mapped[str | None] = mapped_column(sa.String(1000))
    shown_width: Mapped[int | None]
    shown_height: Mapped[int | None]
    """pixels of the picture annotators draw on; None: the image's own"""
    status: Mapped[TaskStatus] = mapped_column(text_enum(TaskStatus))
    created_at: Mapped[datetime] = created()
    pushed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class PushJournal(Model):
    """One creating call to Label Studio."""

    __tablename__ = "push_journal"

    id: Mapped[int] = mapped_column(primary_key=True)
    labeling_project_id: Mapped[int] = mapped_column(sa.ForeignKey("labeling_projects.id"), index=True)
    keys: Mapped[list[str]] = mapped_column(sa.JSON)
    state: Mapped[JournalState] = mapped_column(text_enum(JournalState))
    note: Mapped[str | None] = mapped_column(sa.String(500))
    intended_at: Mapped[datetime] = created()
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
