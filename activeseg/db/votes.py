"""Several annotators of one image: whose masks are votes, and the row of what they agreed on.

An outcome is an annotation of its own that nobody drew (`consensus_of` names the rows it comes of). It is as new as the
newest vote, so the view `current_annotations` takes it by itself. `db.truth` ends it as soon as a vote changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db import truth
from activeseg.db.images import blocks
from activeseg.db.models import Annotation, AnnotationSource, AnnotationStatus, LabelingProject, Query
from activeseg.db.models.columns import now

Rule = Literal["latest", "majority", "ground_truth"]


@dataclass(frozen=True, slots=True)
class Ballot:
    """The votes on one image.

    masks: every mask people submitted that still stands, oldest first. votes: of these the newest of each annotator,
    drawn for the classes of the newest; whoever worked in two projects of a server has one vote. A server is known by its
    address, for no row says which one it is: one rebuilt there counts as the same, one that moved as another.
    outcomes: rows that count as what they agreed on; more than one is too many. in_part: only cells of the image were asked
    about, at least once.
    """

    image_id: int
    masks: tuple[Annotation, ...]
    votes: tuple[Annotation, ...]
    outcomes: tuple[Annotation, ...]
    in_part: bool = False

    def wanted(self, rule: Rule) -> list[int]:
        """Ids of the rows that the outcome comes of by a rule; empty where the newest mask counts by itself."""
        if rule == "majority" and len(self.votes) > 1:
            return sorted(vote.id for vote in self.votes)
        starred = [mask for mask in self.masks if mask.ground_truth]
        if rule == "ground_truth" and starred and starred[-1] is not self.masks[-1]:
            return [starred[-1].id]
        return []

    def is_settled(self, rule: Rule) -> bool:
        """Whether the outcome of a rule and everybody's agreement are written down."""
        written = [outcome.consensus_of or [] for outcome in self.outcomes]
        wanted = [self.wanted(rule)] if self.wanted(rule) else []
        return written == wanted and (len(self.votes) < 2 or all(vote.agreement is not None for vote in self.votes))


def contested(session: Session) -> list[int]:
    """Ids of images that several annotations were submitted for, or that have an outcome, ascending."""
    # Two projects may count their annotations alike.
    number = (Annotation.image_id, Annotation.labeling_project_id, Annotation.external_annotation_id)
    valid = sa.select(*number).where(
        Annotation.source == AnnotationSource.LABELSTUDIO, Annotation.status == AnnotationStatus.VALID
    )
    drawn = valid.where(Annotation.consensus_of.is_(sa.null())).distinct().subquery()
    several = sa.select(drawn.c.image_id).group_by(drawn.c.image_id).having(sa.func.count() > 1)
    agreed = valid.where(Annotation.consensus_of.is_not(sa.null())).subquery()
    return sorted(session.scalars(several.union(sa.select(agreed.c.image_id))))


def ballots(session: Session, image_ids: Sequence[int]) -> list[Ballot]:
    """The votes on these images, in the same order."""
    masks: dict[int, list[Annotation]] = {}
    outcomes: dict[int, list[Annotation]] = {}
    for row in truth.newest_of_images(session, image_ids):
        if row.status == AnnotationStatus.VALID:
            masks.setdefault(row.image_id, []).append(row)
    for block in blocks(image_ids):
        statement = sa.select(Annotation).where(
            Annotation.image_id.in_(block),
            Annotation.consensus_of.is_not(sa.null()),
            Annotation.status == AnnotationStatus.VALID,
        )
        for row in session.scalars(statement.order_by(Annotation.id)):
            outcomes.setdefault(row.image_id, []).append(row)
    servers = {row.id: row.server_url for row in session.scalars(sa.select(LabelingProject))}
    in_part = _asked_in_part(session, image_ids)
    found = ((number, masks.get(number, []), outcomes.get(number, [])) for number in image_ids)
    return [_ballot(*one, servers, in_part=one[0] in in_part) for one in found]


def _asked_in_part(session: Session, image_ids: Sequence[int]) -> set[int]:
    found: set[int] = set()
    for block in blocks(image_ids):
        statement = sa.select(Query.image_id).where(Query.image_id.in_(block), Query.cells.is_not(sa.null()))
        found.update(session.scalars(statement))
    return found


def _ballot(
    image_id: int, masks: list[Annotation], outcomes: list[Annotation], servers: Mapping[int, str], *, in_part: bool
) -> Ballot:
    masks = sorted(masks, key=lambda row: (truth.moment_of(row), row.id))
    newest: dict[object, Annotation] = {}
    for row in masks:
        # Of two annotations without a name nobody knows that they are one person's.
        person = -row.id if row.annotator is None else (servers.get(row.labeling_project_id or 0), row.annotator)
        if row.label_set_id == masks[-1].label_set_id:
            newest[person] = row
    votes = sorted(newest.values(), key=lambda row: (truth.moment_of(row), row.id))
    return Ballot(image_id, tuple(masks), tuple(votes), tuple(outcomes), in_part)


def write_agreement(session: Session, shares: dict[int, float]) -> None:
    """Write how far annotations agree with the others' of their image. shares: annotation id -> share of equal pixels."""
    for number, share in shares.items():
        session.execute(sa.update(Annotation).where(Annotation.id == number).values(agreement=share))


def write_outcome(session: Session, ballot: Ballot, consensus_of: list[int], location: str, sha256: str) -> None:
    """Write what the annotators of an image agreed on, in place of what they had agreed on before."""
    end_outcomes(session, ballot)
    newest = ballot.masks[-1]
    outcome = Annotation(
        image_id=ballot.image_id,
        query_id=newest.query_id,
        source=AnnotationSource.LABELSTUDIO,
        status=AnnotationStatus.VALID,
        label_set_id=newest.label_set_id,
        labeling_project_id=newest.labeling_project_id,
        external_updated_at=newest.external_updated_at,
        mask_location=location,
        mask_sha256=sha256,
        consensus_of=consensus_of,
    )
    truth.record(session, outcome)


def end_outcomes(session: Session, ballot: Ballot) -> None:
    """What was agreed on before counts no more."""
    ended = [outcome.id for outcome in ballot.outcomes]
    values = {"status": AnnotationStatus.DELETED, "deleted_at": now()}
    session.execute(sa.update(Annotation).where(Annotation.id.in_(ended)).values(values))
