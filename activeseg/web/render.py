"""Pages: templates in which every value is escaped, no script, one style sheet of our own."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import unquote

from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from activeseg import __version__
from activeseg.wording import counted

PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    # With 'no-referrer' a browser sends `Origin: null` with the page's own forms.
    "Referrer-Policy": "same-origin",
}

_CODE = re.compile("`([^`]+)`")

STATIC = {"activeseg.css": "text/css; charset=utf-8", "icon.svg": "image/svg+xml"}
"""The files that are served, and no others."""


def page(template: str, code: int = 200, headers: dict[str, str] | None = None, /, **context: Any) -> HTMLResponse:
    """A rendered template. code: HTTP status."""
    text = _environment().get_template(template).render(context)
    return HTMLResponse(text, code, PAGE_HEADERS | (headers or {}))


@cache
def static_file(name: str) -> bytes:
    """The bytes of one of STATIC."""
    return resources.files("activeseg.web").joinpath("static", name).read_bytes()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("activeseg.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"version": __version__, "counted": counted}
    environment.filters |= {"name": file_name, "told": told, "span": span, "nats": nats, "share": share, "figure": figure}
    return environment


def told(text: str) -> Markup:
    """A sentence as text, what stands between backticks as code."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))


def file_name(uri: str) -> str:
    """'a b.png' of 'file:///pool/a%20b.png'; the whole where there is nothing behind the last slash."""
    tail = uri.rsplit("/", 1)[-1] or uri
    return unquote(tail, errors="replace") if "://" in uri else tail


def span(length: timedelta | None) -> str:
    """'3.2 s', '12 min', '2 h 05 min', '4 d'; '' for None."""
    if length is None:
        return ""
    seconds = length.total_seconds()
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d"


def nats(value: float) -> str:
    """'19,857' or '0.034'."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def share(value: float | None) -> str:
    """'12.5 %'; '–' for None."""
    return "–" if value is None else f"{value:.1%}".replace("%", " %")


def figure(value: float | None) -> str:
    """'0.873'; '–' for None."""
    return "–" if value is None else f"{value:.3f}"


def in_zone(time: datetime | None, zone: Any) -> str:
    """'2026-11-21 02:00' in this time zone; '–' for None."""
    return "–" if time is None else f"{time.astimezone(zone):%Y-%m-%d %H:%M}"
