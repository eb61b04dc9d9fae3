"""The pages, as a browser's requests see them; what a real browser does with them stands in test_browser.py."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from activeseg.config import Settings
from activeseg.db import tokens
from activeseg.db.database import Database
from activeseg.db.models import Alert, ImageStatus, JobOutcome, JobRun, QueryStatus, RequestRow, Token
from activeseg.imaging.thumbnails import encode_png
from activeseg.web.app import create_app
from activeseg.web.sessions import SESSIONS, Sessions
from tests.web.conftest import TOKEN

ORIGIN = {"Origin": "http://testserver"}
EVIL = "<img src=x onerror=alert(1)>{{7*7}}\"'</script><script>alert(2)</script>"


class Page(HTMLParser):
    """What a page would have a browser load, run or send."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.forms: dict[str, dict[str, str]] = {}
        self._form: dict[str, str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.attributes += found.items()
        if tag == "form":
            self._form = self.forms[found["action"]] = {}
        if tag == "input" and self._form is not None:
            self._form[found["name"]] = found.get("value", "")


def log_in(client: TestClient, token: str = TOKEN, **fields: str) -> Any:
    form = Page(client.get("/").text).forms["/login"] | {"token": token} | fields
    return client.post("/login", data=form, headers=ORIGIN, follow_redirects=False)


@pytest.fixture
def browser(anonymous: TestClient) -> TestClient:
    """A client that logged in."""
    assert log_in(anonymous).status_code == 303
    return anonymous


def form_of(browser: TestClient, action: str) -> dict[str, str]:
    return Page(browser.get("/").text).forms[action]


def test_without_a_session_there_is_the_login_and_a_wrong_token_opens_nothing(anonymous: TestClient) -> None:
    answer = anonymous.get("/images/1")
    assert (answer.status_code, Page(answer.text).forms["/login"]["next"]) == (401, "/images/1")
    refused = log_in(anonymous, "wrong")
    assert refused.status_code == 401
    assert "revoked" in refused.text
    assert anonymous.get("/").status_code == 401


def test_a_session_lasts_until_it_is_ended(browser: TestClient) -> None:
    assert browser.get("/").status_code == 200
    cookie = f"activeseg_session={browser.cookies['activeseg_session']}"
    answer = browser.post("/logout", data=form_of(browser, "/logout"), headers=ORIGIN, follow_redirects=False)
    assert answer.status_code == 303
    # The server forgot it, whatever the browser does with the cookie.
    assert browser.get("/", headers={"Cookie": cookie}).status_code == 401


def test_the_cookie_is_seen_by_no_script_and_sent_by_no_other_site(anonymous: TestClient) -> None:
    cookie = log_in(anonymous).headers["set-cookie"]
    assert re.match(r"activeseg_session=[\w-]{43}; HttpOnly; Max-Age=43200; Path=/; SameSite=strict,", cookie)
    assert TOKEN not in cookie


def test_behind_tls_the_cookie_goes_over_tls_only(settings: Settings, database: Database) -> None:
    hosts = {"serve": settings.serve.model_copy(update={"hosts": ("https://streets.example",)})}
    client = TestClient(create_app(settings.model_copy(update=hosts), database), base_url="https://streets.example")
    form = Page(client.get("/").text).forms["/login"] | {"token": TOKEN}
    answer = client.post("/login", data=form, headers={"Origin": "https://streets.example"}, follow_redirects=False)
    assert answer.headers["set-cookie"].startswith("__Host-activeseg_session=")
    assert "; Secure" in answer.headers["set-cookie"].split(",")[0]
    assert client.get("/").status_code == 200


def test_a_session_dies_with_its_token_and_with_its_time(anonymous: TestClient, database: Database) -> None:
    with database.write() as session:
        text = tokens.create(session, "ann")
    log_in(anonymous, text)
    assert "Log out" in anonymous.get("/").text
    with database.write() as session:
        session.execute(sa.update(Token).values(revoked_at=datetime.now(UTC)))
    assert anonymous.get("/").status_code == 401
    moment = [0.0]
    sessions = Sessions(timedelta(hours=1), clock=lambda: moment[0])
    headers = Headers({"Cookie": f"other=1; activeseg_session={sessions.begin('0' * 64)}"})
    assert sessions.of(headers) is not None
    moment[0] = 3600.0
    assert sessions.of(headers) is None


def test_a_thousand_browsers_and_no_more_are_remembered() -> None:
    sessions = Sessions(timedelta(hours=1))
    made = [Headers({"Cookie": f"activeseg_session={sessions.begin('0' * 64)}"}) for _ in range(SESSIONS + 10)]
    assert [sessions.of(headers) is not None for headers in made] == [False] * 10 + [True] * SESSIONS


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://testserver:81", "https://testserver.evil.example", ""]
)
@pytest.mark.parametrize("path", ["/login", "/rounds", "/logout"])
def test_a_form_of_another_site_does_nothing(browser: TestClient, database: Database, path: str, origin: str | None) -> None:
    form = form_of(browser, "/rounds") | {"token": TOKEN, "next": "/"}
    answer = browser.post(path, data=form, headers={} if origin is None else {"Origin": origin}, follow_redirects=False)
    assert answer.status_code == 403
    assert browser.get("/").status_code == 200
    with database.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(RequestRow)) == 0


@pytest.mark.parametrize("form", ["", "wrong", "\u00fc\udcff".encode("utf-8", "surrogateescape").decode("latin-1")])
@pytest.mark.parametrize("path", ["/login", "/rounds", "/logout"])
def test_a_form_without_its_pages_secret_does_nothing(browser: TestClient, database: Database, path: str, form: str) -> None:
    # The login page of a browser without a session leaves its cookie too.
    browser.get("/", headers={"Cookie": ""})
    answer = browser.post(path, data={"form": form, "token": TOKEN}, headers=ORIGIN, follow_redirects=False)
    assert answer.status_code in (401, 403)
    with database.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(RequestRow)) == 0


@pytest.mark.parametrize(
    "place", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)", "/images/1/../x"]
)
def test_a_login_leads_to_our_own_pages_only(anonymous: TestClient, place: str) -> None:
    assert log_in(anonymous, next=place).headers["location"] == "/"


def test_the_button_asks_for_a_round_once(browser: TestClient, database: Database) -> None:
    form = form_of(browser, "/rounds")
    for _ in range(2):
        assert browser.post("/rounds", data=form, headers=ORIGIN, follow_redirects=False).status_code == 303
    with database.read() as session:
        [row] = session.scalars(sa.select(RequestRow))
    assert (row.kind, row.requested_by) == ("round", "web: the installation's token")
    text = browser.get("/").text
    assert "A round is asked for" in text
    assert "no scheduler was ever seen on this database; the round begins once <code>activeseg schedule</code> runs" in text


def test_a_run_names_who_asked_for_it(browser: TestClient, filler: Any) -> None:
    began = datetime(2026, 3, 1, 2, tzinfo=UTC)
    filler.add(RequestRow(kind="round", argument={}, requested_by="web: <ann>", taken_at=began))
    filler.add(
        JobRun(job="round", host="h", pid=1, outcome=JobOutcome.DONE, started_at=began, ended_at=began, message="push 3")
    )
    assert 'push 3 <span class="quiet">(asked for by web: &lt;ann&gt;)</span>' in browser.get("/").text


def test_who_may_only_read_sees_no_button_and_cannot_press_it(anonymous: TestClient, database: Database) -> None:
    with database.write() as session:
        text = tokens.create(session, "reader")
    log_in(anonymous, text)
    page = Page(anonymous.get("/").text)
    assert "/rounds" not in page.forms
    answer = anonymous.post("/rounds", data=page.forms["/logout"], headers=ORIGIN | {"Accept": "text/html"})
    assert answer.status_code == 403
    assert "scope" in answer.text


def test_a_session_is_no_token_and_a_token_no_session(browser: TestClient) -> None:
    assert browser.get("/api/rounds").status_code == 401
    assert browser.post("/api/rounds").status_code == 401
    browser.cookies.clear()
    assert browser.get("/", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 401


def fill(filler: Any, settings: Settings, text: str = "m1") -> int:
    """A champion, a ranking, a round, runs, alerts; returns an image's id."""
    picture = settings.root / "pool" / "a.png"
    picture.write_bytes(encode_png(np.full((30, 40, 3), 128, np.uint8)))
    filler.checkpoint(text)
    image = filler.image(str(picture), sha256=hashlib.sha256(picture.read_bytes()).hexdigest())
    filler.score(text, image, {0: 200.0, 2: 100.0})
    filler.query(filler.round(), image, QueryStatus.PUSHED, reason=text)
    filler.image(f"/pool/{text}", status=ImageStatus.QUARANTINED, reason=text)
    filler.add(JobRun(job="round", host="h", pid=1, outcome=JobOutcome.FAILED, message=text, ended_at=datetime.now(UTC)))
    filler.add(Alert(kind="failure", about="round", message=text, attempts=1, error=text))
    return int(image)


def test_the_morning_page_says_what_the_tables_say(browser: TestClient, filler: Any, settings: Settings) -> None:
    image = fill(filler, settings)
    text = browser.get("/").text
    for told in (
        "m1",
        "failed",
        "a.png",
        "300 nats",
        f"/images/{image}/thumbnail",
        "1 image quarantined",
        "1 alert could not be sent yet",
    ):
        assert told in text
    answer = browser.get(f"/images/{image}/thumbnail?side=64")
    assert (answer.status_code, answer.headers["content-type"], answer.headers["cache-control"]) == (
        200,
        "image/jpeg",
        "no-store",
    )
    detail = browser.get(f"/images/{image}").text
    for told in ("a.png", "300", "sky", "200", "road", "pushed", "chosen"):
        assert told in detail


@pytest.mark.parametrize("path", ["/", "/images/{image}"])
def test_names_and_messages_are_text_and_nothing_comes_from_elsewhere(
    browser: TestClient, filler: Any, settings: Settings, path: str
) -> None:
    image = fill(filler, settings, EVIL)
    answer = browser.get(path.format(image=image))
    assert answer.status_code == 200
    page = Page(answer.text)
    assert not {"script", "iframe", "object", "embed", "base", "style"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "style"]
    linked = [value for name, value in page.attributes if name in ("src", "href", "action")]
    assert all(re.match(r"/(?!/)", value) for value in linked), linked
    assert "alert(1)" in answer.text  # it is shown, as text
    assert "49" not in answer.text.split("alert(1)")[1][:20]  # and is no template
    policy = answer.headers["content-security-policy"]
    assert "script" not in policy
    assert policy.startswith("default-src 'none'; style-src 'self'; img-src 'self'")


def test_pages_too_say_what_is_wrong_as_a_page(browser: TestClient, database: Database) -> None:
    missing = browser.get("/images/77", headers={"Accept": "text/html"})
    assert (missing.status_code, "no image has id 77" in missing.text) == (404, True)
    with database.write() as session:
        session.execute(sa.text("DROP TABLE alerts"))
    broken = browser.get("/", headers={"Accept": "text/html"})
    assert (broken.status_code, "activeseg doctor" in broken.text, "SELECT" in broken.text) == (503, True, False)


def test_an_empty_installation_has_a_page_too(browser: TestClient) -> None:
    text = browser.get("/").text
    assert "none yet" in text
    assert "activeseg pool sync" in text


def test_only_the_files_named_are_served(anonymous: TestClient) -> None:
    assert anonymous.get("/static/activeseg.css").headers["content-type"] == "text/css; charset=utf-8"
    for path in (
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e%2fapp.py",
        "/static/base.html",
        "/static//etc/passwd",
    ):
        assert anonymous.get(path).status_code == 404, path
    assert "http" not in Path(__file__).parents[2].joinpath("activeseg/web/static/activeseg.css").read_text(encoding="utf-8")
