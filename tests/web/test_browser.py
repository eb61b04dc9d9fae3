"""A person at the pages, in a real browser: log in, look, ask for a round, log out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from activeseg.db.database import Database
from activeseg.db.models import QueryStatus, RequestRow
from activeseg.imaging.thumbnails import encode_png
from tests.labelstudio.seat import NoBrowser, browsing
from tests.web.test_serve_command import serving

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WIDTHS = (1280, 400)


@pytest.fixture
def page() -> Iterator[Any]:
    try:
        with browsing() as opened:
            yield opened
    except NoBrowser as error:
        if "browser" in os.environ.get("ACTIVESEG_REQUIRE", ""):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture
def config(tmp_path: Path, filler: Any) -> Path:
    """A configuration whose pool has two pictures, one of them asked about."""
    (tmp_path / "pool").mkdir()
    filler.checkpoint("m1")
    for name, value in (("first.png", 60), ("second <b>.png", 160)):
        file = tmp_path / "pool" / name
        file.write_bytes(data := encode_png(np.full((60, 80, 3), value, np.uint8)))
        image = filler.image(str(file), sha256=hashlib.sha256(data).hexdigest(), width=80, height=60)
        filler.score("m1", image, {0: float(value), 2: 7.5})
    filler.query(filler.round(), image, QueryStatus.PUSHED)
    file = tmp_path / "activeseg.toml"
    file.write_text('[database]\nurl = "sqlite:///activeseg.db"\n[pool]\nimages = "pool"\n', encoding="utf-8")
    return file


def fits(page: Any) -> bool:
    """Whether nothing has to be scrolled sideways to be seen."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))


def widths(page: Any) -> list[int]:
    """Of the thumbnails, as they came; 0 for one that did not come within some seconds."""
    script = "[...document.querySelectorAll('.pictures img')].map(image => image.naturalWidth)"
    for _ in range(60):
        if all(found := page.evaluate(script)):
            break
        page.wait_for_timeout(500)
    return list(found)


def test_a_person_logs_in_looks_asks_for_a_round_and_logs_out(
    page: Any, config: Path, database: Database, tmp_path: Path
) -> None:
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    with serving(config) as (_, server):
        page.goto(server["url"])
        page.screenshot(path=tmp_path / "login.png")
        said.clear()  # the browser's own note that the first answer was 401
        page.fill("#token", Path(server["token"]).read_text(encoding="utf-8").strip())
        page.click("main button")
        page.get_by_text("What the model doubts most").wait_for()
        # Both thumbnails are drawn, which the policy and the cookie must let through.
        assert widths(page) == [80, 80]
        assert [item.inner_text().split()[1] for item in page.locator(".caption").all()] == ["second", "first.png"]
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            assert fits(page)
        page.click("text=Request a round")
        page.get_by_text("A round is asked for").wait_for()
        with database.read() as session:
            assert session.scalars(sa.select(RequestRow.kind)).all() == ["round"]
        page.click(".pictures a >> nth=0")
        page.get_by_text("By class").wait_for()
        assert "second <b>.png" in page.inner_text("h1")
        assert fits(page)
        cookies = page.context.cookies()
        assert [(cookie["httpOnly"], cookie["sameSite"]) for cookie in cookies] == [(True, "Strict")]
        assert page.evaluate("document.cookie") == ""
        page.click("text=Log out")
        page.locator("#token").wait_for()
        page.goto(server["url"] + "/images/1")
        assert page.locator("#token").count() == 1
        assert not [line for line in said if "Security Policy" in line], said
