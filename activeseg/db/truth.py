"""Ground truth: one writer for annotations from Label Studio and from imports, and which of them count today."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from activeseg.db.images import blocks
from activeseg.db.models import (
    Annotation,
    AnnotationSource,
    AnnotationStatus,
    Image,
    ImageStatus,
    Query,
    QueryStatus,
    Round,
    RoundStatus,
    Split,
    TrainingRun,
    TrainingRunAnnotation,
    TrainingStatus,
)
from activeseg.db.models.columns import now
from activeseg.errors import DataError
from activeseg.records import ImageRef

CURRENT = sa.table(
    "current_annotations",
    sa.column("annotation_id", sa.Integer),
    sa.column("image_id", sa.Integer),
    sa.column("label_set_id", sa.Integer),
    sa.column("mask_location", sa.String),
    sa.column("mask_sha256", sa.String),
)


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """An image with the mask that counts today."""

    annotation_id: int
    image: ImageRef
    label_set_id: int
    mask_location: str
    mask_sha256: str


def known_versions(session: Session, labeling_project_id: int, annotation_ids: Iterable[int]) -> set[tuple[int, datetime]]:
    """(outside id, moment of its last change) of all versions of these Label Studio annotations that were pulled before."""
    found: set[tuple[int, datetime]] = set()
    for block in blocks(sorted(set(annotation_ids))):
        statement = sa.select(Annotation.external_annotation_id, Annotation.external_updated_at).where(
            Annotation.labeling_project_id == labeling_project_id, Annotation.external_annotation_id.in_(block)
        )
        found.update((number, moment) for number, moment in session.execute(statement) if number and moment)
    return found


def move_stars(session: Session, labeling_project_id: int, stars: Mapping[tuple[int, datetime], bool], *, decides: bool) -> int:
    """Set who is starred as ground truth, by outside id and moment of versions pulled before; returns how many changed.

    Label Studio takes the star from all other annotations of a task without marking them as changed. decides: whether a star
    says what counts ([labelstudio] consensus), so that what several annotators agreed on is to be found again.
    """
    moved: list[Annotation] = []
    for block in blocks(sorted({number for number, _ in stars})):
        statement = sa.select(Annotation).where(
            Annotation.labeling_project_id == labeling_project_id,
            Annotation.external_annotation_id.in_(block),
            Annotation.status == AnnotationStatus.VALID,
        )
        for row in session.scalars(statement):
            starred = stars.get((row.external_annotation_id or 0, moment_of(row)), row.ground_truth)
            if starred != row.ground_truth:
                row.ground_truth = starred
                moved.append(row)
    session.flush()
    if decides:
        _reopen_votes(session, {row.image_id for row in moved})
    return len(moved)


def known_import(session: Session, image_id: int, import_sha256: str) -> bool:
    """Whether this very mask file is the one imported last for this image."""
    statement = sa.select(Annotation.import_sha256).where(
        Annotation.image_id == image_id, Annotation.import_sha256.is_not(None)
    )
    return session.scalar(statement.order_by(Annotation.id.desc()).limit(1)) == import_sha256


def record(session: Session, annotation: Annotation) -> None:
    """Add one row; see `record_all`."""
    record_all(session, [annotation])


def record_all(session: Session, rows: Sequence[Annotation]) -> None:
    """The one writer of annotations: adds the rows and says so on their queries.

    What several annotators agreed on counts no more where one of them has a new version; see `db.votes`.
    """
    session.add_all(rows)
    session.flush()
    drawn = [row for row in rows if row.consensus_of is None]
    _reopen_votes(session, {row.image_id for row in drawn if row.source == AnnotationSource.LABELSTUDIO})
    refresh_queries(session, {row.query_id for row in drawn if row.query_id is not None})


def _reopen_votes(session: Session, image_ids: set[int]) -> None:
    """The outcomes and agreements of these images were found with other votes: none may count until found again."""
    for block in blocks(sorted(image_ids)):
        here = Annotation.image_id.in_(block)
        outcome = sa.and_(here, Annotation.consensus_of.is_not(sa.null()), Annotation.status == AnnotationStatus.VALID)
        session.execute(sa.update(Annotation).where(outcome).values(status=AnnotationStatus.DELETED, deleted_at=now()))
        session.execute(sa.update(Annotation).where(here, Annotation.agreement.is_not(None)).values(agreement=None))


def refresh_queries(session: Session, query_ids: Iterable[int]) -> None:
    """Set the status of queries, unless withdrawn, from the newest version of each of their annotations.

    Where that leaves one without an answer, its round is open again, too.
    """
    for block in blocks(sorted(set(query_ids))):
        statuses: dict[int, set[AnnotationStatus]] = {}
        for row in _newest(session, Annotation.query_id.in_(block)):
            statuses.setdefault(row.query_id or 0, set()).add(row.status)
        for query in session.scalars(sa.select(Query).where(Query.id.in_(block))):
            if query.status != QueryStatus.WITHDRAWN:
                query.status = _answer(statuses.get(query.id, set()))
        session.flush()
        reopen_rounds(session, block)


def reopen_rounds(session: Session, query_ids: Sequence[int]) -> None:
    """Rounds that count as answered though one of these queries waits for annotators."""
    waits = sa.exists().where(Query.round_id == Round.id, Query.id.in_(query_ids), Query.status == QueryStatus.PUSHED)
    for row in session.scalars(sa.select(Round).where(Round.status == RoundStatus.CLOSED, waits)):
        row.status, row.closed_at = RoundStatus.PUSHED, None
    session.flush()


def _answer(statuses: set[AnnotationStatus]) -> QueryStatus:
    if AnnotationStatus.VALID in statuses:
        return QueryStatus.ANNOTATED
    return QueryStatus.SKIPPED if AnnotationStatus.SKIPPED in statuses else QueryStatus.PUSHED


def newest_of_images(session: Session, image_ids: Sequence[int]) -> list[Annotation]:
    """The newest version of each annotation that people made of these images in Label Studio.

    What several annotators agreed on is nobody's annotation.
    """
    found: list[Annotation] = []
    for block in blocks(image_ids):
        found += _newest(session, Annotation.image_id.in_(block), Annotation.source == AnnotationSource.LABELSTUDIO)
    return found


def newest_of_queries(session: Session, query_ids: Sequence[int]) -> list[Annotation]:
    """The newest version of each annotation that people made in answer to these queries."""
    found: list[Annotation] = []
    for block in blocks(query_ids):
        found += _newest(session, Annotation.query_id.in_(block))
    return found


def _newest(session: Session, *conditions: sa.ColumnElement[bool]) -> list[Annotation]:
    statement = sa.select(Annotation).where(*conditions, Annotation.consensus_of.is_(sa.null())).order_by(Annotation.id)
    newest: dict[tuple[int | None, int], Annotation] = {}
    for row in session.scalars(statement):
        key = (row.labeling_project_id, row.external_annotation_id or -row.id)
        held = newest.get(key)
        if held is None or moment_of(row) >= moment_of(held):
            newest[key] = row
    return list(newest.values())


def moment_of(row: Annotation) -> datetime:
    """When an annotation was last changed, as far as that is known: of several the last one counts."""
    return row.external_updated_at or row.received_at


def mark_deleted(session: Session, labeling_project_id: int, external_task_ids: Iterable[int], kept: set[int]) -> int:
    """Mark annotations of these tasks deleted unless their outside id is in `kept`; returns how many."""
    gone: list[Annotation] = []
    for block in blocks(list(external_task_ids)):
        statement = sa.select(Annotation).where(
            Annotation.labeling_project_id == labeling_project_id,
            Annotation.external_task_id.in_(block),
            Annotation.status != AnnotationStatus.DELETED,
        )
        gone += [row for row in session.scalars(statement) if row.external_annotation_id not in kept]
    for row in gone:
        row.status, row.deleted_at = AnnotationStatus.DELETED, now()
    session.flush()
    _reopen_votes(session, {row.image_id for row in gone})
    refresh_queries(session, {row.query_id for row in gone if row.query_id is not None})
    return len(gone)


def revive(session: Session, labeling_project_id: int, versions: Iterable[tuple[int, datetime]]) -> int:
    """Annotations that were marked deleted and are there, in the very version: they are again what they were.

    versions: (outside id, moment of its last change). Returns how many.
    """
    there = set(versions)
    back: list[Annotation] = []
    for block in blocks(sorted({number for number, _ in there})):
        statement = sa.select(Annotation).where(
            Annotation.labeling_project_id == labeling_project_id,
            Annotation.external_annotation_id.in_(block),
            Annotation.status == AnnotationStatus.DELETED,
        )
        back += [row for row in session.scalars(statement) if (row.external_annotation_id, moment_of(row)) in there]
    for row in back:
        row.status, row.deleted_at = _before_deletion(row), None
    session.flush()
    _reopen_votes(session, {row.image_id for row in back})
    refresh_queries(session, {row.query_id for row in back if row.query_id is not None})
    return len(back)


def _before_deletion(row: Annotation) -> AnnotationStatus:
    if row.mask_location is not None:
        return AnnotationStatus.VALID
    return AnnotationStatus.SKIPPED if row.reason is None else AnnotationStatus.QUARANTINED


def current(
    session: Session, *, split: Split | None = None, annotation_ids: Sequence[int] | None = None
) -> list[AnnotatedImage]:
    """The masks that count today, by image id: of one split, or exactly these annotations.

    With `annotation_ids`, masks count even if newer ones came since (a training that is repeated after a kill).
    """
    if annotation_ids is not None:
        return _exactly(session, annotation_ids)
    statement = (
        sa.select(CURRENT.c.annotation_id, Image, CURRENT.c.label_set_id, CURRENT.c.mask_location, CURRENT.c.mask_sha256)
        .join(Image, Image.id == CURRENT.c.image_id)
        .where(Image.status == ImageStatus.ACTIVE)
        .order_by(Image.id)
    )
    if split is not None:
        statement = statement.where(Image.split == split)
    return [_annotated(*row) for row in session.execute(statement)]


def _exactly(session: Session, annotation_ids: Sequence[int]) -> list[AnnotatedImage]:
    found: list[AnnotatedImage] = []
    for block in blocks(annotation_ids):
        statement = (
            sa.select(Annotation.id, Image, Annotation.label_set_id, Annotation.mask_location, Annotation.mask_sha256)
            .join(Image, Image.id == Annotation.image_id)
            .where(Annotation.id.in_(block), Annotation.mask_location.is_not(None))
        )
        found += [_annotated(*row) for row in session.execute(statement)]
    return sorted(found, key=lambda item: item.image.image_id)


def _annotated(annotation_id: int, image: Image, label_set_id: int, location: str | None, sha256: str | None) -> AnnotatedImage:
    if location is None or sha256 is None:
        raise DataError(f"annotation {annotation_id} counts but has no mask: the database was changed by hand")
    return AnnotatedImage(annotation_id, ImageRef(image.id, image.uri, image.sha256), label_set_id, location, sha256)


def without_split(session: Session) -> dict[int, tuple[str | None, bool]]:
    """Annotated images still in the pool: image id -> (group, drawn at random).

    Only images that were drawn at random (control arm, bootstrap) may become validation images. Those asked about in part do
    not count as such: their labels lie where the model was least sure.
    """
    at_random = (
        sa.select(sa.func.count())
        .select_from(Query)
        .where(Query.image_id == Image.id, Query.arm == "control", Query.status == QueryStatus.ANNOTATED)
        .where(Query.cells.is_(sa.null()))
        .scalar_subquery()
    )
    statement = (
        sa.select(Image.id, Image.group_name, at_random)
        .join(CURRENT, CURRENT.c.image_id == Image.id)
        .where(Image.split == Split.POOL, Image.status == ImageStatus.ACTIVE)
        .order_by(Image.id)
    )
    return {image_id: (group, bool(count)) for image_id, group, count in session.execute(statement)}


def groups_of(session: Session, split: Split) -> set[str]:
    """Groups (clips, sites) that have images in a split. Images without a group are each their own and not listed."""
    statement = sa.select(Image.group_name).where(Image.split == split, Image.group_name.is_not(None)).distinct()
    return {group for group in session.scalars(statement) if group is not None}


def copies_in(session: Session, image_ids: Sequence[int], split: Split) -> set[int]:
    """Those of these images whose very bytes are those of an image in a split, by whatever name."""
    there = sa.select(Image.sha256).where(Image.split == split)
    found: set[int] = set()
    for block in blocks(image_ids):
        found.update(session.scalars(sa.select(Image.id).where(Image.id.in_(block), Image.sha256.in_(there))))
    return found


def untrained(session: Session, *, retry_failed: bool = True) -> int:
    """Current training annotations that no training has seen; what failed trainings saw counts as unseen, if so asked.

    What several annotators agreed on is seen, too, where a training saw the very mask of the image in another row: votes are
    counted again without a change in what they come to.
    """
    own, trained = aliased(Annotation), aliased(Annotation)
    agreed = sa.exists().where(own.id == CURRENT.c.annotation_id, own.consensus_of.is_not(sa.null()))
    same_mask = sa.and_(
        trained.image_id == CURRENT.c.image_id,
        trained.mask_sha256 == CURRENT.c.mask_sha256,
        trained.label_set_id == CURRENT.c.label_set_id,
    )
    seen = sa.exists().where(
        TrainingRun.id == TrainingRunAnnotation.training_run_id,
        trained.id == TrainingRunAnnotation.annotation_id,
        sa.or_(trained.id == CURRENT.c.annotation_id, sa.and_(same_mask, agreed)),
    )
    if retry_failed:
        seen = seen.where(TrainingRun.status != TrainingStatus.FAILED)
    statement = (
        sa.select(sa.func.count())
        .select_from(CURRENT)
        .join(Image, Image.id == CURRENT.c.image_id)
        .where(Image.split == Split.TRAIN, Image.status == ImageStatus.ACTIVE, ~seen)
    )
    return session.scalar(statement) or 0


def from_import(
    *,
    image_id: int,
    label_set_id: int,
    location: str,
    sha256: str,
    import_sha256: str,
    query_id: int | None,
    annotator: str | None,
) -> Annotation:
    """An annotation row for an imported mask."""
    return Annotation(
        image_id=image_id,
        query_id=query_id,
        source=AnnotationSource.IMPORT,
        status=AnnotationStatus.VALID,
        label_set_id=label_set_id,
        mask_location=location,
        mask_sha256=sha256,
        import_sha256=import_sha256,
        annotator=annotator,
    )
