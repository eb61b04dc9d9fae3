from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from activeseg import __version__
from activeseg.cli.app import app
from tests.cli.commands import CommandLine

COMMANDS = {
    "init", "db upgrade", "db downgrade", "db check", "pool sync", "dataset import", "dataset export",
    "weights import", "weights adopt", "weights classes", "networks", "train", "evaluate",
    "promote", "rollback", "checkpoints", "score", "rankings", "report", "push", "pull", "reconcile", "ls connect", "round run",
    "round request", "status",
    "explain image", "explain saliency", "explain class-model", "explain localise", "explain figure", "explain sheet",
    "schedule", "runs", "serve", "ml-backend", "doctor", "demo", "backtest",
    "alerts test", "drift accept", "gc", "backup", "restore", "config show", "token create", "token list", "token revoke",
}  # fmt: skip


def leaves(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path.strip(), command
        return
    for name, child in children.items():
        yield from leaves(child, f"{path} {name}")


FOUND = dict(leaves(typer.main.get_command(app)))


def test_every_command_is_there() -> None:
    assert set(FOUND) == COMMANDS


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_explains_itself_and_its_options(name: str) -> None:
    answer = CommandLine()(*name.split(), "--help")
    assert answer.code == 0
    assert answer.err == ""
    assert " ".join(FOUND[name].help.split()[:5]) in " ".join(answer.out.split())
    undocumented = [parameter.name for parameter in FOUND[name].params if not getattr(parameter, "help", None)]
    assert undocumented == []


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_can_print_json(name: str) -> None:
    assert "--json" in {option for parameter in FOUND[name].params for option in parameter.opts}


@pytest.mark.parametrize(
    "group", ["db", "pool", "dataset", "weights", "round", "explain", "ls", "alerts", "drift", "config", "token"]
)
def test_a_group_explains_itself(group: str) -> None:
    answer = CommandLine()(group, "--help")
    assert answer.code == 0
    assert len(answer.out.splitlines()) > 5


def test_help_shows_every_command_with_a_sentence() -> None:
    out = CommandLine()("--help").out
    names = {name.split()[0] for name in COMMANDS}
    told = {line.split()[0] for line in out.splitlines() if line.startswith("  ") and len(line.split()) > 2}
    assert names <= told


def test_version() -> None:
    assert CommandLine()("--version").out == f"activeseg {__version__}\n"


@pytest.mark.parametrize(
    "words", [["nope"], ["rankings", "--nope"], ["rankings", "--limit", "0"], ["init"], ["db", "downgrade"]]
)
def test_a_wrong_call_is_told_from_an_error_by_its_status(words: list[str]) -> None:
    assert CommandLine()(*words).code == 2
