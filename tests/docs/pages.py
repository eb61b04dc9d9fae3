"""What tests read out of the documents: fenced blocks, command lines, headings and links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

_FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>\w*)\n(?P<body>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
_SHELL = ("sh", "bash", "shell", "console", "ini")
_PUNCTUATION = set("();<>|&")


@dataclass(frozen=True)
class Command:
    """One command of a document, as words; `whole`: from a block to paste, so nothing may be missing."""

    page: str
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


@cache
def text_of(page: Path) -> str:
    """A document's text."""
    return page.read_text(encoding="utf-8")


def blocks(page: Path, *kinds: str) -> list[str]:
    """The bodies of a document's fenced blocks of these kinds."""
    found = _FENCE.finditer(text_of(page))
    return [_dedented(match["body"], len(match["indent"])) for match in found if match["kind"] in kinds]


def prose(page: Path) -> str:
    """A document without its fenced blocks."""
    return _FENCE.sub("", text_of(page))


def code_spans(page: Path) -> list[str]:
    """What stands between single backticks."""
    return _CODE.findall(prose(page))


def links(page: Path) -> list[str]:
    """Targets of the links of a document."""
    return _LINK.findall(_CODE.sub("", prose(page)))


def anchors(page: Path) -> set[str]:
    """The headings as they are linked to: lower case, no punctuation, dashes for spaces."""
    headings = _HEADING.findall(prose(page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[Command]:
    """Every shell command in blocks to paste, and every `activeseg ...` and `make ...` in the prose."""
    for body in blocks(page, *_SHELL):
        for line in _lines(body):
            for words in _split(line):
                yield Command(page.name, words, True)
    for span in code_spans(page):
        if span.startswith(("activeseg ", "make ")):
            yield Command(page.name, tuple(shlex.split(span)), False)


def _lines(body: str) -> list[str]:
    """Commands of a block: with `$ ` prompts only the lines that have one, and no systemd keys but ExecStart."""
    lines = body.replace("\\\n", " ").splitlines()
    prompted = [line[2:] for line in lines if line.startswith("$ ")]
    started = [line.removeprefix("ExecStart=") for line in lines if line.startswith("ExecStart=")]
    return prompted or started or [line for line in lines if line.strip() and not re.match(r"[\[\w]+\]?=|\[", line)]


def _split(line: str) -> Iterator[tuple[str, ...]]:
    """The simple commands of a shell line, without variables set in front of them."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for token in [*lexer, ";"]:
        if not set(token) <= _PUNCTUATION:
            words.append(token)
            continue
        if ">" in token and words and words[-1].isdigit():
            words.pop()  # `2>&1`: the number is no argument
        while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        if words:
            yield (Path(words[0]).name, *words[1:])
        words = []


def _dedented(body: str, indent: int) -> str:
    return "".join(line[indent:] if line.strip() else line for line in body.splitlines(keepends=True))
