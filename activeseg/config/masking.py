"""What must not be read by others is put out of sight before a text leaves the program: in logs, in rows, on a terminal.

Every secret this process was handed is known here, because each enters by `Settings` or by `config.secrets`; what it was
never handed it cannot tell. Shapes of secrets of others (passwords in addresses, tokens in headers) are masked as well.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from urllib.parse import quote, quote_plus, unquote

MASK = "***"
SHORTEST = 8
"""Shorter ones may be ordinary words; in addresses and headers they are masked all the same."""

# One set for the process, as the loggers are: what is a secret anywhere in it is one everywhere.
_KNOWN: set[str] = set()

_SHAPES = (
    # scheme://user:password@host. The password may hold an @ itself. Lengths have limits, or long lines would take minutes.
    (re.compile(r"((?<!\w)\w{1,30}://[^\s/:@'\"]{0,200}:)[^\s'\"/]{1,500}(?=@)"), rf"\1{MASK}"),
    (re.compile(r"(?i)\b((?:bearer|basic|token)\s+)[\w.~+/=-]{12,}"), rf"\1{MASK}"),
    (re.compile(r"\beyJ[\w-]{8,2000}\.[\w-]{8,4000}\.[\w-]*"), MASK),
    (re.compile(r"\bactiveseg_[\w-]{43}(?![\w-])"), MASK),
    (re.compile(r"(?i)([?&](?:[\w-]*(?:token|signature|credential|password|secret|api_?key))=)[^&\s'\"]+"), rf"\1{MASK}"),
)


def remember_secret(value: str) -> None:
    """Mask this text from now on."""
    text = value.strip()
    if len(text) >= SHORTEST and text not in _KNOWN:
        _KNOWN.add(text)
        _pattern.cache_clear()


def remember_address(url: str) -> None:
    """Mask the password of an address, if it has one, wherever it stands alone."""
    found = re.search(r"://[^/:@]*:(.*)@", url)
    if found:
        remember_secret(found[1])
        remember_secret(unquote(found[1]))


def masked(text: str) -> str:
    """A text without secrets, in whatever way they are written in it: plain, quoted, escaped, percent-encoded."""
    if _KNOWN:
        text = _pattern().sub(MASK, text)
    for shape, replacement in _SHAPES:
        text = shape.sub(replacement, text)
    return text


@lru_cache(maxsize=1)
def _pattern() -> re.Pattern[str]:
    written = {form for value in _KNOWN for form in _forms(value)}
    # The longest first: a secret may begin with another one.
    return re.compile("|".join(re.escape(form) for form in sorted(written, key=len, reverse=True)))


def _forms(value: str) -> set[str]:
    escaped = {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]}
    twice = {json.dumps(form)[1:-1] for form in escaped}
    # A variable that is no UTF-8 comes with lone surrogates, which cannot be quoted as they are.
    quoted = {quote(value, safe="", errors="replace"), quote(value, errors="replace"), quote_plus(value, errors="replace")}
    return {value, *escaped, *twice, *quoted}
