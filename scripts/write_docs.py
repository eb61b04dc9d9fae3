"""Write the generated parts of docs/*.md anew: the settings and the help of every command.

    .venv/bin/python scripts/write_docs.py

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`; what stands around it is written by hand.
Names: `settings` (all sections), `help` (the program itself) and `help COMMAND` (`help db upgrade`).
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from typer.main import get_command

from activeseg.config import ENV_PREFIX, Section, Settings, toml_value

DOCS = Path(__file__).parents[1] / "docs"
HELP_WIDTH = 100
_BLOCK = re.compile(r"(?P<begin><!-- generated: (?P<name>[^\n]+?) -->\n)(?P<body>.*?)(?P<end><!-- end -->)", re.DOTALL)
_LIMITS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"), ("min_length", "length ≥"), ("max_length", "length ≤"))


def render(text: str) -> str:
    """A document with each of its generated parts as the program is today. Raises KeyError for an unknown part."""
    parts = {"settings": settings_text()} | {" ".join(["help", *path]): help_text(path) for path in command_paths()}
    return _BLOCK.sub(lambda match: f"{match['begin']}{parts[match['name']]}{match['end']}", text)


def settings_text() -> str:
    """A heading and a table for each section of activeseg.toml."""
    return "".join(_section_text(name, kind) for name, kind in sections())


def sections() -> Iterator[tuple[str, type[Section]]]:
    """Every section of activeseg.toml with its class."""
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield name, field.annotation


def _section_text(name: str, kind: type[Section]) -> str:
    lines = [f"### [{name}]", "", (kind.__doc__ or "").strip().splitlines()[0], ""]
    lines += ["| key | default | meaning |", "|---|---|---|"]
    lines += [f"| `{key}` | {_default(field)} | {_meaning(field)} |" for key, field in kind.model_fields.items()]
    return "\n".join([*lines, "", ""])


def _default(field: FieldInfo) -> str:
    if field.default is None:
        return "unset"
    return f"`{toml_value(field.default)}`"


def _meaning(field: FieldInfo) -> str:
    allowed = _allowed(field)
    text = (field.description or "").replace("|", "\\|")
    return f"{text} ({allowed})" if allowed else text


def _allowed(field: FieldInfo) -> str:
    """'≥ 0, < 1' or '`brush` or `bitmask`'; empty where the type alone says it."""
    choices = _choices(field.annotation)
    if choices:
        return " or ".join(f"`{choice}`" for choice in choices)
    limits = [(sign, getattr(item, name, None)) for item in field.metadata for name, sign in _LIMITS]
    return ", ".join(f"{sign} {limit:g}" for sign, limit in limits if limit is not None)


def _choices(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()


def variable(section: str, key: str) -> str:
    """The environment variable that sets a key."""
    return f"{ENV_PREFIX}{section}__{key}".upper()


@cache
def program() -> Any:
    """The command tree, as typer builds it."""
    from activeseg.cli.app import app

    return get_command(app)


def command_paths() -> list[tuple[str, ...]]:
    """The program (), every group and every command, parents first."""
    return [(), *_below(program(), ())]


def _below(group: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, command in getattr(group, "commands", {}).items():
        yield (*path, name)
        yield from _below(command, (*path, name))


def help_text(path: tuple[str, ...]) -> str:
    """What `activeseg PATH --help` prints, as a fenced block."""
    command = program()
    context = command.context_class(command, info_name="activeseg", terminal_width=HELP_WIDTH)
    for name in path:
        command = command.commands[name]
        context = command.context_class(command, info_name=name, parent=context)
    lines = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    return f"```text\n{lines}\n```\n"


def main() -> None:
    """Rewrite the documents whose generated parts are out of date."""
    for file in sorted(DOCS.glob("*.md")):
        before = file.read_text(encoding="utf-8")
        after = render(before)
        if after != before:
            file.write_text(after, encoding="utf-8")
        print(f"{'wrote     ' if after != before else 'up to date'} {file.relative_to(DOCS.parent)}")


if __name__ == "__main__":
    main()
