"""The messages of docs/bad-input.md are the program's, word for word."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from tests.docs.pages import ROOT, text_of

PAGE = ROOT / "docs" / "bad-input.md"
GAP = "…"


def messages() -> list[str]:
    """The last cell of each row of the page's tables, where it is in backticks."""
    cells = [line.strip("| ").split(" | ")[-1] for line in text_of(PAGE).splitlines() if line.startswith("| ")]
    return [cell.strip(" `") for cell in cells if re.fullmatch(r" *`[^|]+` *", cell)]


@cache
def texts_in_the_source() -> tuple[str, ...]:
    """Every string of the package, with a gap for each value that is put in."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "activeseg").rglob("*.py"))
    return tuple(text for tree in trees for node in ast.walk(tree) for text in _text(node))


def _text(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def is_in_the_source(message: str) -> bool:
    parts = [part.strip() for part in message.split(GAP)]
    pattern = re.compile(".*?".join(map(re.escape, parts)), re.DOTALL)
    # The expression is slow, and most texts lack a part.
    return any(all(part in text for part in parts) and pattern.search(text) for text in texts_in_the_source())


def test_the_page_has_messages() -> None:
    assert len(messages()) > 35


@pytest.mark.parametrize("message", messages())
def test_a_message_of_the_page_is_in_the_program(message: str) -> None:
    assert is_in_the_source(message), f"nothing in activeseg/ says: {message}"


def test_a_message_nobody_says_is_noticed() -> None:
    assert not is_in_the_source("file is empty (… kilobytes)")
