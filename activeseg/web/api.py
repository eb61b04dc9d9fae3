"""The routes below /api: rankings, images, rounds, the report on the control arm. All of them read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, field_validator
from sqlalchemy.orm import Session

from activeseg.core.findings import Findings
from activeseg.db import arms, checkpoints
from activeseg.db.browse import ImageDetail, RoundRow, image_detail, label_set_of, rounds_page
from activeseg.db.models import Checkpoint
from activeseg.db.rankings import Cursor, RankingRow, ranking
from activeseg.errors import ConfigError, NotReadyError
from activeseg.web.answers import Problem
from activeseg.web.auth import require_token
from activeseg.workspace import Workspace

MAX_PAGE = 500
MAX_ID = 2**31 - 1
MAX_CLASSES = 255

# What str(Cursor) makes of a stored score: no inf, no nan, no digits of other scripts.
_CURSOR = re.compile(r"[0-9]{1,9}:-?0x[01]\.[0-9a-f]{1,13}p[+-][0-9]{1,4}:[0-9]{1,10}", re.ASCII)


@dataclass(frozen=True, slots=True)
class RankingPage:
    """A page of the ranking. next: send it as `after` for the page behind this one; null at the end."""

    items: list[RankingRow]
    next: str | None


@dataclass(frozen=True, slots=True)
class RoundsPage:
    """A page of rounds. next: send it as `after` for older ones; null at the end."""

    items: list[RoundRow]
    next: int | None


class RankingQuery(BaseModel):
    """What may be asked of /api/rankings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: int = Field(50, ge=1, le=MAX_PAGE, description="rows of this page")
    class_name: list[str] = Field(
        [], alias="class", max_length=MAX_CLASSES, description="rank by the entropy of this class; repeat to add up several"
    )
    checkpoint: str | None = Field(
        None,
        max_length=100,
        pattern=r"^[^\x00-\x1f]+$",
        description="a past model version's ranking, images that were labelled since included; default: the champion's",
    )
    after: str | None = Field(None, description="the 'next' value of the page before")

    @field_validator("after")
    @classmethod
    def _made_by_us(cls, value: str | None) -> str | None:
        if value is not None and not (_CURSOR.fullmatch(value) and Cursor.parse(value).image_id <= MAX_ID):
            raise ValueError("expected the 'next' value of a former page")
        return value


class RoundsQuery(BaseModel):
    """What may be asked of /api/rounds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: int = Field(50, ge=1, le=MAX_PAGE, description="rows of this page")
    after: int | None = Field(None, ge=1, le=MAX_ID, description="the 'next' value of the page before")


class ReportQuery(BaseModel):
    """What may be asked of /api/report."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    first: int | None = Field(None, ge=1, le=MAX_ID, description="number of the first round; default: all from the beginning")
    last: int | None = Field(None, ge=1, le=MAX_ID, description="number of the last round; default: all to the end")


# Dependencies that do nothing are coroutines all the same: others cost a thread each.
async def _workspace(request: Request) -> Workspace:
    workspace: Workspace = request.app.state.workspace
    return workspace


InWorkspace = Annotated[Workspace, Depends(_workspace)]
ImageId = Annotated[int, Path(ge=1, le=MAX_ID)]


def api_router() -> APIRouter:
    """All routes, each behind a token that may read."""
    refusals = (401, 403, 404, 409, 422, 503)
    responses: dict[int | str, dict[str, object]] = {status: {"model": Problem} for status in refusals}
    router = APIRouter(prefix="/api", dependencies=[Depends(require_token)], responses=responses)
    router.get("/rankings")(rankings)
    router.get("/images/{image_id}")(image)
    router.get("/rounds")(rounds)
    router.get("/report")(report)
    return router


def rankings(workspace: InWorkspace, asked: Annotated[RankingQuery, Query()]) -> RankingPage:
    """The images the model is least sure of, by summed entropy in nats, highest first, ties by image id.

    Pages never repeat or skip a row, however many rows are added meanwhile; rows that come in above a page already read
    are not shown, and `rank` counts on from the page before.
    """
    after = Cursor.parse(asked.after) if asked.after else None
    with workspace.database.read() as session:
        checkpoint = _checkpoint(session, asked.checkpoint)
        indices = _class_indices(session, checkpoint, asked.class_name)
        rows = ranking(
            session,
            checkpoint,
            limit=asked.limit + 1,
            class_indices=indices,
            after=after,
            pool_only=asked.checkpoint is None,
        )
    items = rows[: asked.limit]
    more = len(rows) > asked.limit
    return RankingPage(items, str(Cursor(items[-1].rank, items[-1].score, items[-1].image_id)) if more else None)


def _checkpoint(session: Session, model_version: str | None) -> Checkpoint:
    if model_version is None:
        return checkpoints.require_champion(session)
    try:
        return checkpoints.by_version(session, model_version)
    except NotReadyError as error:
        raise HTTPException(404, str(error)) from error


def _class_indices(session: Session, checkpoint: Checkpoint, names: list[str]) -> list[int]:
    if not names:
        return []
    label_set = label_set_of(session, checkpoint)
    try:
        indices = sorted({label_set.index_of(name) for name in names})
    except ConfigError as error:
        raise HTTPException(422, f"class: {error}"[:500]) from error
    ignored = set(indices).difference(label_set.channels)
    if ignored:
        raise HTTPException(
            422, f"class: {label_set.names[ignored.pop()]!r} is the ignored class; the model has no entropy of it"
        )
    return indices


def image(workspace: InWorkspace, image_id: ImageId) -> ImageDetail:
    """One image: its row, its score under the champion, which prediction is stored, its queries and annotations."""
    with workspace.database.read() as session:
        found = image_detail(session, image_id)
    if found is None:
        raise no_image(image_id)
    return found


def no_image(image_id: int) -> HTTPException:
    """404 for an image that is not there."""
    return HTTPException(404, f"no image has id {image_id}")


def rounds(workspace: InWorkspace, asked: Annotated[RoundsQuery, Query()]) -> RoundsPage:
    """The rounds, youngest first, and how far their annotators are."""
    with workspace.database.read() as session:
        rows = rounds_page(session, limit=asked.limit + 1, after=asked.after)
    items = list(rows[: asked.limit])
    return RoundsPage(items, items[-1].round if len(rows) > asked.limit else None)


def report(workspace: InWorkspace, asked: Annotated[ReportQuery, Query()]) -> Findings:
    """What the control arm tells: whether choosing pays, with 95 % intervals. `high` is null where no limit can be told."""
    with workspace.database.read() as session:
        return arms.findings(session, first=asked.first, last=asked.last)
