"""The pages: the morning, an image, logging in. They show data only and load nothing from elsewhere."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, ConfigDict
from sqlalchemy.orm import Session

from activeseg.db import checkpoints
from activeseg.db.browse import image_detail, label_set_of
from activeseg.db.morning import read_morning
from activeseg.db.requests import ROUND
from activeseg.db.shown import Answered, annotation_of, last_answered, mean_confidences, prediction_of, with_entropy_map
from activeseg.db.tokens import Scope
from activeseg.web.api import ImageId, InWorkspace, no_image
from activeseg.web.auth import Keys
from activeseg.web.browser import LoginNeeded, PageGate, Visit, require_own_form, sent_fields
from activeseg.web.curve import curve_of
from activeseg.web.hosts import Hosts
from activeseg.web.operations import ask_for_round, what_follows
from activeseg.web.panels import EntropyScale, panels_of, scale_of
from activeseg.web.pictures import InTurn, Palette, add_pictures
from activeseg.web.render import STATIC, in_zone, page, static_file
from activeseg.web.sessions import COOKIE, FORM_COOKIE, LOGIN_PATH, Sessions, cookie_of, drop_cookie, new_form_value, set_cookie
from activeseg.workspace import Workspace

STATIC_CACHE = "public, max-age=3600"

_PLACE = re.compile(r"/(images/[0-9]{1,10})?", re.ASCII)
"""Where a login may lead: our own pages, never an address from outside."""

ANSWERED = 6

Reader = Annotated[Visit, Depends(PageGate(Scope.READ).check)]
Operator = Annotated[Visit, Depends(PageGate(Scope.OPERATE).check)]


@dataclass(frozen=True, slots=True)
class MorningPictures:
    """What the morning's pictures come with. answered: images whose annotation came back last.

    mapped: images of the ranking whose entropy map is stored, drawn on `scale`. confidences: of the ranking, by image id.
    """

    answered: Sequence[Answered]
    mapped: Set[int] = frozenset()
    scale: EntropyScale | None = None
    confidences: Mapping[int, float] = field(default_factory=dict)


class ImagePageQuery(BaseModel):
    """What may be asked of an image's page."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    palette: Palette = "labels"


def pages_router() -> APIRouter:
    """All pages; none stands in the API's schema."""
    router = APIRouter(include_in_schema=False)
    router.get("/")(morning)
    router.get("/images/{image_id}")(image)
    router.post("/rounds")(request_round)
    router.post(LOGIN_PATH)(log_in)
    router.post("/logout")(log_out)
    router.get("/static/{name}")(static)
    return router


def own_pictures_router() -> APIRouter:
    """Behind the session's cookie the pictures that /api gives behind a token."""
    router = APIRouter(include_in_schema=False, dependencies=[Depends(PageGate(Scope.READ).check)])
    add_pictures(router)
    return router


def install(app: FastAPI) -> None:
    """Have an application ask for a token where a page needs one."""
    app.add_exception_handler(LoginNeeded, _ask_to_log_in)


def morning(workspace: InWorkspace, visit: Reader) -> Response:
    """The page of the morning: the champion, the night, what waits, what went wrong, what the model doubts."""
    with workspace.database.read() as session:
        found = read_morning(session, workspace.settings)
        asked = any(request.kind == ROUND for request in found.requests)
        follows = what_follows(session, workspace.settings.zone) if asked else None
        pictures = _morning_pictures(session, [row.image_id for row in found.ranking])
    return page(
        "morning.html",
        **_frame(workspace, visit),
        morning=found,
        curve=curve_of(found.curve),
        follows=follows,
        pictures=pictures,
    )


def _morning_pictures(session: Session, image_ids: list[int]) -> MorningPictures:
    answered = last_answered(session, limit=ANSWERED)
    champion = checkpoints.champion(session)
    if champion is None:
        return MorningPictures(answered)
    mapped = with_entropy_map(session, champion, image_ids)
    scale = scale_of(label_set_of(session, champion)) if mapped else None
    return MorningPictures(answered, mapped, scale, mean_confidences(session, champion, image_ids))


async def image(
    workspace: InWorkspace, turn: InTurn, visit: Reader, image_id: ImageId, asked: Annotated[ImagePageQuery, Query()]
) -> Response:
    """All that is known of an image."""
    # It decodes masks to say what is in them, as its pictures do.
    return await to_thread.run_sync(_image_page, workspace, visit, image_id, asked, limiter=turn)


def _image_page(workspace: Workspace, visit: Visit, image_id: int, asked: ImagePageQuery) -> Response:
    with workspace.database.read() as session:
        found = image_detail(session, image_id)
        prediction, annotation = prediction_of(session, image_id), annotation_of(session, image_id)
    if found is None:
        raise no_image(image_id)
    panels = panels_of(workspace, found, prediction, annotation, asked.palette)
    return page("image.html", **_frame(workspace, visit), image=found, panels=panels)


async def request_round(request: Request, visit: Operator) -> Response:
    """Ask for a round, and show the page that says it waits."""
    await ask_for_round(request, visit.caller.name)
    return RedirectResponse("/", 303)


async def log_in(request: Request) -> Response:
    """Open a session for the token in the form."""
    fields = await sent_fields(request)
    # The page's own cookie and field: nobody is logged in under another's token by a form from elsewhere.
    expected = cookie_of(request.headers, FORM_COOKIE)
    if not expected:
        return _login_page(request, fields.get("next", "/"), "Your browser sent no cookie with the form. Please try again.")
    require_own_form(fields.get("form", ""), expected)
    keys: Keys = request.app.state.keys
    caller = await keys.find_token(fields.get("token", "").strip().encode())
    log, address = logging.getLogger(__name__), request.client.host if request.client else "an unknown address"
    if caller is None:
        log.warning("a login from %s was refused", address)
        return _login_page(request, fields.get("next", "/"), "This token is not known here, has expired or was revoked.")
    log.info("%s logged in from %s", caller.name, address)
    sessions: Sessions = request.app.state.sessions
    answer = RedirectResponse(_place(fields.get("next", "/")), 303)
    secure = _is_secure(request)
    set_cookie(answer, COOKIE, sessions.begin(caller.sha256), secure=secure, seconds=sessions.seconds)
    drop_cookie(answer, FORM_COOKIE, secure=secure)
    return answer


def log_out(request: Request, visit: Reader) -> Response:
    """End the session."""
    request.app.state.sessions.end(request.headers)
    answer = RedirectResponse("/", 303)
    drop_cookie(answer, COOKIE, secure=_is_secure(request))
    return answer


def static(name: str) -> Response:
    """The style sheet or the icon."""
    if name not in STATIC:
        raise HTTPException(404, "there is no such file")
    return Response(static_file(name), media_type=STATIC[name], headers={"Cache-Control": STATIC_CACHE})


async def _ask_to_log_in(request: Request, error: Exception) -> Response:
    return _login_page(request, request.url.path if request.method == "GET" else "/", "")


def _login_page(request: Request, place: str, problem: str) -> Response:
    form = cookie_of(request.headers, FORM_COOKIE) or new_form_value()
    answer = page(
        "login.html", 401, {"WWW-Authenticate": 'Bearer realm="activeseg"'}, form=form, next=_place(place), problem=problem
    )
    set_cookie(answer, FORM_COOKIE, form, secure=_is_secure(request))
    return answer


def _place(asked: str) -> str:
    return asked if _PLACE.fullmatch(asked) else "/"


def _is_secure(request: Request) -> bool:
    hosts: Hosts = request.app.state.hosts
    return hosts.is_secure(request.headers.get("origin", ""), request.headers.get("host", ""))


def _frame(workspace: Workspace, visit: Visit) -> dict[str, Any]:
    """What every page shows around its content."""
    zone = workspace.settings.zone
    return {
        "form": visit.session.form,
        "who": visit.caller.name,
        "may_operate": Scope.OPERATE in visit.caller.scopes,
        "zone": zone.key,
        "when": partial(in_zone, zone=zone),
    }
