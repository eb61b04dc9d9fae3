"""Annotations that cannot be used, and where to mend them."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from activeseg.db.models import Annotation, AnnotationStatus, Image, LabelingProject


@dataclass(frozen=True, slots=True)
class QuarantinedAnnotation:
    """An annotation in quarantine. image: its address. task, annotation: Label Studio's numbers. link: opens the task."""

    image: str
    task: int | None
    annotation: int | None
    link: str | None
    reason: str

    @property
    def name(self) -> str:
        """What a person looks for: 'clip1.png, annotation 7 of http://labels/projects/1/data?task=5'."""
        return f"{self.image}, annotation {self.annotation} of {self.link or f'task {self.task}'}"


def quarantined(session: Session, *, limit: int) -> tuple[int, list[QuarantinedAnnotation]]:
    """How many annotations cannot be used as they stand today, and the latest of them."""
    newer = aliased(Annotation)
    mended = sa.exists().where(
        newer.labeling_project_id == Annotation.labeling_project_id,
        newer.external_annotation_id == Annotation.external_annotation_id,
        sa.or_(
            newer.external_updated_at > Annotation.external_updated_at,
            sa.and_(newer.external_updated_at == Annotation.external_updated_at, newer.id > Annotation.id),
        ),
    )
    stands = (Annotation.status == AnnotationStatus.QUARANTINED, ~mended)
    count = session.scalar(sa.select(sa.func.count()).select_from(Annotation).where(*stands)) or 0
    statement = (
        sa.select(Annotation, Image.uri, LabelingProject)
        .join(Image, Image.id == Annotation.image_id)
        .outerjoin(LabelingProject, LabelingProject.id == Annotation.labeling_project_id)
        .where(*stands)
        .order_by(Annotation.id.desc())
        .limit(limit)
    )
    return count, [described(row, uri, project) for row, uri, project in session.execute(statement)] if count else []


def described(row: Annotation, uri: str, project: LabelingProject | None) -> QuarantinedAnnotation:
    """An annotation's row for people."""
    task = row.external_task_id
    link = project.task_page(task) if project is not None and task is not None else None
    return QuarantinedAnnotation(uri, task, row.external_annotation_id, link, row.reason or "")
