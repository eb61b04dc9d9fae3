"""The pages: the morning, an image, logging in. They show data only and load nothing from elsewhere."""

from __future__ import annotations

import logging
import re
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import RedirectResponse

from activeseg.db.browse import image_detail
from activeseg.db.morning import read_morning
from activeseg.db.requests import ROUND
from activeseg.db.tokens import Scope
from activeseg.web.api import ImageId, InWorkspace, image_thumbnail, no_image
from activeseg.web.auth import Keys
from activeseg.web.browser import LoginNeeded, PageGate, Visit, require_own_form, sent_fields
from activeseg.web.curve import curve_of
from activeseg.web.hosts import Hosts
from activeseg.web.operations import ask_for_round, what_follows
from activeseg.web.render import STATIC, in_zone, page, static_file
from activeseg.web.sessions import COOKIE, FORM_COOKIE, LOGIN_PATH, Sessions, cookie_of, drop_cookie, new_form_value, set_cookie
from activeseg.workspace import Workspace

STATIC_CACHE = "public, max-age=3600"

_PLACE = re.compile(r"/(images/[0-9]{1,10})?", re.ASCII)
"""Where a login may lead: our own pages, never an address from outside."""

Reader = Annotated[Visit, Depends(PageGate(Scope.READ).check)]
Operator = Annotated[Visit, Depends(PageGate(Scope.OPERATE).check)]


def pages_router() -> APIRouter:
    """All pages; none stands in the API's schema."""
    router = APIRouter(include_in_schema=False)
    router.get("/")(morning)
    router.get("/images/{image_id}")(image)
    # Behind the session's cookie what /api gives behind a token.
    router.get("/images/{image_id}/thumbnail", dependencies=[Depends(PageGate(Scope.READ).check)])(image_thumbnail)
    router.post("/rounds")(request_round)
    router.post(LOGIN_PATH)(log_in)
    router.post("/logout")(log_out)
    router.get("/static/{name}")(static)
    return router


def install(app: FastAPI) -> None:
    """Add the pages to an application."""
    app.include_router(pages_router())
    app.add_exception_handler(LoginNeeded, _ask_to_log_in)


def morning(workspace: InWorkspace, visit: Reader) -> Response:
    """The page of the morning: the champion, the night, what waits, what went wrong, what the model doubts."""
    with workspace.database.read() as session:
        found = read_morning(session, workspace.settings)
        asked = any(request.kind == ROUND for request in found.requests)
        follows = what_follows(session, workspace.settings.zone) if asked else None
    return page("morning.html", **_frame(workspace, visit), morning=found, curve=curve_of(found.curve), follows=follows)


def image(workspace: InWorkspace, visit: Reader, image_id: ImageId) -> Response:
    """All that is known of an image."""
    with workspace.database.read() as session:
        found = image_detail(session, image_id)
    if found is None:
        raise no_image(image_id)
    return page("image.html", **_frame(workspace, visit), image=found)


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
