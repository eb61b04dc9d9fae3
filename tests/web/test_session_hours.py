"""`[serve] session_hours`: a browser that logged in is asked again after it."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from activeseg.config import Settings
from activeseg.db.database import Database
from activeseg.web.app import create_app
from tests.web.conftest import TOKEN
from tests.web.test_pages import log_in


@pytest.mark.parametrize("hours", [0.5, 30.0])
def test_a_browser_is_asked_again_after_session_hours(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch, hours: float
) -> None:
    serve = settings.serve.model_copy(update={"session_hours": hours})
    app = create_app(settings.model_copy(update={"serve": serve}), database)
    later = [0.0]
    monkeypatch.setattr(app.state.sessions, "_clock", lambda: later[0])
    browser = TestClient(app)
    cookie = log_in(browser, TOKEN).headers["set-cookie"]
    assert f"Max-Age={hours * 3600:.0f};" in cookie
    statuses = []
    for later[0] in (hours * 3600 - 1, hours * 3600 + 1):
        statuses.append(browser.get("/").status_code)
    assert statuses == [200, 401]
