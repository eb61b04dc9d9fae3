"""The pictures of an image, by its id: itself, what was predicted, where the model is unsure, what was annotated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from activeseg.core.labels import LabelSet, Mask
from activeseg.core.scaling import shown_size, shrink_mask
from activeseg.db import images, shown
from activeseg.db.models import Image, ImageStatus
from activeseg.db.shown import StoredMask, StoredPrediction
from activeseg.errors import ConfigError, ImageError
from activeseg.imaging.coloring import colorize, with_palette
from activeseg.imaging.sandbox import decode_image
from activeseg.imaging.thumbnails import encode_jpeg, encode_png, thumbnail
from activeseg.records import ImageRef
from activeseg.web.answers import Problem
from activeseg.web.api import ImageId, InWorkspace, no_image
from activeseg.web.auth import require_token
from activeseg.workspace import Workspace

PICTURES_AT_ONCE = 2

Palette = Literal["labels", "voc"]


class PictureQuery(BaseModel):
    """What may be asked of a picture."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    side: int = Field(256, ge=16, le=1024, description="longer side in pixels, at most")


class MaskQuery(PictureQuery):
    """What may be asked of a mask's picture."""

    palette: Palette = Field("labels", description="the classes' own colours, or those of PASCAL VOC")


async def _pictures_limit(request: Request) -> CapacityLimiter:
    limiter: CapacityLimiter = request.app.state.pictures
    return limiter


# Decoding needs memory by the image's pixels, so only a few run at a time; waiting costs no thread.
InTurn = Annotated[CapacityLimiter, Depends(_pictures_limit)]


def pictures_router() -> APIRouter:
    """The routes below /api, each behind a token that may read."""
    refusals = (401, 403, 404, 409, 422, 503)
    responses: dict[int | str, dict[str, object]] = {status: {"model": Problem} for status in refusals}
    router = APIRouter(prefix="/api", dependencies=[Depends(require_token)], responses=responses)
    add_pictures(router)
    return router


def add_pictures(router: APIRouter) -> None:
    """The same pictures for programs and for our pages, whose gates differ."""
    kinds: tuple[tuple[str, str, Callable[..., object]], ...] = (
        ("thumbnail", "image/jpeg", image_thumbnail),
        ("prediction", "image/png", image_prediction),
        ("entropy", "image/png", image_entropy),
        ("annotation", "image/png", image_annotation),
    )
    for tail, media, route in kinds:
        responses: dict[int | str, dict[str, object]] = {200: {"content": {media: {}}}}
        router.get(f"/images/{{image_id}}/{tail}", response_class=Response, responses=responses)(route)


async def image_thumbnail(
    workspace: InWorkspace, turn: InTurn, image_id: ImageId, asked: Annotated[PictureQuery, Query()]
) -> Response:
    """A small JPEG of an active image."""
    return Response(await to_thread.run_sync(_thumbnail, workspace, image_id, asked, limiter=turn), media_type="image/jpeg")


async def image_prediction(
    workspace: InWorkspace, turn: InTurn, image_id: ImageId, asked: Annotated[MaskQuery, Query()]
) -> Response:
    """The champion's stored prediction, else the youngest there is, in the colours of the classes: a PNG."""
    return Response(await to_thread.run_sync(_prediction, workspace, image_id, asked, limiter=turn), media_type="image/png")


async def image_entropy(
    workspace: InWorkspace, turn: InTurn, image_id: ImageId, asked: Annotated[PictureQuery, Query()]
) -> Response:
    """The entropy map that is stored with that prediction: a PNG, blue at 0, red at the largest entropy there is."""
    return Response(await to_thread.run_sync(_entropy, workspace, image_id, asked, limiter=turn), media_type="image/png")


async def image_annotation(
    workspace: InWorkspace, turn: InTurn, image_id: ImageId, asked: Annotated[MaskQuery, Query()]
) -> Response:
    """The annotation that counts today, in the colours of the classes: a PNG."""
    return Response(await to_thread.run_sync(_annotation, workspace, image_id, asked, limiter=turn), media_type="image/png")


def _thumbnail(workspace: Workspace, image_id: int, asked: PictureQuery) -> bytes:
    return encode_jpeg(thumbnail(workspace.read_image(_drawable(workspace, image_id)), asked.side))


def _prediction(workspace: Workspace, image_id: int, asked: MaskQuery) -> bytes:
    with workspace.database.read() as session:
        prediction = _stored_prediction(session, image_id)
    return _mask_png(workspace, prediction.mask, asked)


def _entropy(workspace: Workspace, image_id: int, asked: PictureQuery) -> bytes:
    with workspace.database.read() as session:
        prediction = _stored_prediction(session, image_id)
    if prediction.entropy_location is None:
        raise HTTPException(404, f"image {image_id} has no entropy map: {why_no_map(prediction)}")
    data = workspace.artifacts.read(prediction.entropy_location)
    return encode_png(thumbnail(decode_image(data, max_pixels=workspace.settings.pool.max_pixels), asked.side))


def _annotation(workspace: Workspace, image_id: int, asked: MaskQuery) -> bytes:
    with workspace.database.read() as session:
        _require_image(session, image_id)
        mask = shown.annotation_of(session, image_id)
    if mask is None:
        raise HTTPException(404, f"image {image_id} has no annotation that counts")
    return _mask_png(workspace, mask, asked)


def _stored_prediction(session: Session, image_id: int) -> StoredPrediction:
    _require_image(session, image_id)
    prediction = shown.prediction_of(session, image_id)
    if prediction is None:
        raise HTTPException(404, f"image {image_id} has no stored prediction: only images that were asked about have one")
    return prediction


def why_no_map(prediction: StoredPrediction) -> str:
    """Why a prediction comes without an entropy map."""
    if prediction.model_version is None:
        return "its mask was drawn by a pre-annotator, which gives none"
    return "housekeeping removed it, as nobody is asked about the image any more"


def _mask_png(workspace: Workspace, stored: StoredMask, asked: MaskQuery) -> bytes:
    mask, label_set = read_stored(workspace, stored)
    size = shown_size(mask.shape[-2], mask.shape[-1], asked.side)
    return encode_png(np.asarray(colorize(shrink_mask(mask, size), with_palette(label_set, asked.palette))))


def read_stored(workspace: Workspace, stored: StoredMask) -> tuple[Mask, LabelSet]:
    """A stored mask and its classes, in today's colours where they are today's classes.

    Raises MaskError where it is missing, altered or no mask of its classes, ConfigError where those are nowhere.
    """
    label_set = stored.label_set
    try:
        if label_set is None or workspace.label_set.same_masks(label_set):
            label_set = workspace.label_set
    except ConfigError:
        if label_set is None:
            raise
    mask = workspace.read_mask(stored.location, stored.sha256, label_set=label_set)
    label_set.check_mask(mask)
    return mask, label_set


def _drawable(workspace: Workspace, image_id: int) -> ImageRef:
    with workspace.database.read() as session:
        row = _require_image(session, image_id)
        if row.status is not ImageStatus.ACTIVE:
            raise ImageError(f"image {image_id} is {row.status.value}: {row.reason or 'there is nothing to show'}")
        return images.refs(session, [image_id])[image_id]


def _require_image(session: Session, image_id: int) -> Image:
    row = session.get(Image, image_id)
    if row is None:
        raise no_image(image_id)
    return row
