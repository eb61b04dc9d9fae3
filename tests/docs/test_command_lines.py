"""Command lines in the documents are ones the program takes."""

from __future__ import annotations

import re
import shlex

import pytest

from scripts.write_docs import program
from tests.docs.pages import PAGES, ROOT, Command, commands

ALL = list(dict.fromkeys(command for page in PAGES for command in commands(page)))
OURS = [command for command in ALL if command.words[0] == "activeseg"]
MAKE = [command for command in ALL if command.words[0] == "make"]


def parse(words: tuple[str, ...]) -> None:
    """Parse a command line as the program would, without running it. Raises what click raises."""
    command, context, rest = program(), None, list(words[1:])
    while True:
        context = command.make_context(command.name, rest, parent=context)
        children = getattr(command, "commands", None)
        if not children:
            return
        rest = [*context._protected_args, *context.args]
        if not rest and command.invoke_without_command:
            return
        command = children[rest.pop(0)]


def unknown_options(words: tuple[str, ...]) -> list[str]:
    """Options the named command does not have; raises KeyError for a command there is not."""
    command, rest = program(), list(words[1:])
    if rest[0] in ("-c", "--config"):
        del rest[:2]
    while getattr(command, "commands", None) and rest and not rest[0].startswith("-"):
        command = command.commands[rest.pop(0)]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    return [word for word in rest if word.startswith("--") and word.split("=")[0] not in known]


def test_the_documents_hold_commands() -> None:
    assert len([command for command in OURS if command.whole]) > 30
    assert len([command for command in OURS if not command.whole]) > 20
    assert ("make", "check") in {command.words for command in MAKE}


@pytest.mark.parametrize("command", [command for command in OURS if command.whole], ids=str)
def test_a_command_to_paste_is_parsed(command: Command) -> None:
    try:
        parse(command.words)
    except Exception as error:  # click's errors are private to typer
        pytest.fail(f"{command}: {type(error).__name__}: {error}", pytrace=False)


@pytest.mark.parametrize("command", [command for command in OURS if not command.whole], ids=str)
def test_a_command_in_prose_exists_with_its_options(command: Command) -> None:
    try:
        assert not unknown_options(command.words), str(command)
    except KeyError as error:
        pytest.fail(f"{command}: there is no command {error}", pytrace=False)


@pytest.mark.parametrize("command", MAKE, ids=str)
def test_make_targets_exist_and_take_these_arguments(command: Command) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    target, *variables = command.words[1:]
    assert target in targets, f"{command}: make has {sorted(targets)}"
    for word in variables:
        name, _, value = word.partition("=")
        assert name in ("ARGS", "ADVISORIES"), str(command)
        if target == "demo":
            parse(("activeseg", "demo", *shlex.split(value.replace("$CAMVID", "camvid"))))


@pytest.mark.parametrize("line", ["activeseg rankings --no-such-option", "activeseg frobnicate", "activeseg dataset import"])
def test_a_wrong_command_line_is_noticed(line: str) -> None:
    with pytest.raises(Exception):  # noqa: B017
        parse(tuple(line.split()))
