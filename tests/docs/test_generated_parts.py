"""The generated parts of the documents are what the program says today, and nothing is missing from them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from activeseg.config import Settings
from scripts.write_docs import DOCS, command_paths, program, render, sections, variable
from tests.docs.pages import PAGES, blocks, prose, text_of

MEND = "run .venv/bin/python scripts/write_docs.py"
OWN_VARIABLES = {"ACTIVESEG_CONFIG", "ACTIVESEG_UV", "ACTIVESEG_REQUIRE", "ACTIVESEG_TEST_PG_URL", "ACTIVESEG_SECTION__KEY"}


def command_at(path: tuple[str, ...]) -> Any:
    command = program()
    for name in path:
        command = command.commands[name]
    return command


def is_group(path: tuple[str, ...]) -> bool:
    return bool(getattr(command_at(path), "commands", None))


def known_settings() -> dict[str, set[str]]:
    return {name: set(kind.model_fields) for name, kind in sections()}


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_generated_parts_are_up_to_date(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert render(text) == text, f"{page.name} is out of date: {MEND}"


def test_an_outdated_part_is_noticed_and_mended() -> None:
    current = text_of(DOCS / "commands.md")
    outdated = current.replace("--offline", "--no-network")
    assert outdated != current
    assert render(outdated) != outdated
    assert "--offline" in render(outdated)


def test_a_part_nobody_can_generate_is_an_error() -> None:
    with pytest.raises(KeyError, match="help no-such-command"):
        render("<!-- generated: help no-such-command -->\n<!-- end -->")


@pytest.mark.parametrize("path", command_paths(), ids=lambda path: " ".join(path) or "activeseg")
def test_every_command_is_documented(path: tuple[str, ...]) -> None:
    text = text_of(DOCS / "commands.md")
    name = " ".join(["activeseg", *path])
    assert f"<!-- generated: {' '.join(['help', *path])} -->" in text, f"{name} has no place in docs/commands.md"
    if path:
        assert re.search(rf"^#+ {name}$", text, re.MULTILINE), f"{name} has no heading in docs/commands.md"


@pytest.mark.parametrize("path", [path for path in command_paths() if not is_group(path)], ids=" ".join)
def test_every_command_has_an_example_of_its_own(path: tuple[str, ...]) -> None:
    examples = [line for block in blocks(DOCS / "commands.md", "sh") for line in block.splitlines()]
    name = " ".join(["activeseg", *path])
    assert [line for line in examples if line == name or line.startswith(f"{name} ")], f"{name} has no example"


@pytest.mark.parametrize("path", command_paths(), ids=lambda path: " ".join(path) or "activeseg")
def test_every_command_and_each_of_its_options_says_what_it_does(path: tuple[str, ...]) -> None:
    command = command_at(path)
    assert command.help
    silent = [parameter.name for parameter in command.params if not getattr(parameter, "help", None)]
    assert not silent, f"{' '.join(path)}: no help for {silent}"


def test_every_setting_is_described_and_documented_under_its_section() -> None:
    parts = text_of(DOCS / "configuration.md").split("\n### [")
    tables = {part.split("]", 1)[0]: part for part in parts[1:]}
    for name, kind in sections():
        for key, field in kind.model_fields.items():
            assert field.description, f"[{name}] {key} has no description"
            assert f"| `{key}` |" in tables[name], f"[{name}] {key} is not in docs/configuration.md: {MEND}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_the_documents_name_exist(page: Path) -> None:
    known = known_settings()
    # What [promotion] reads like in prose: `[section] key`, in backticks.
    named = re.findall(r"`\[(\w+)\] (\w+)", prose(page))
    unknown = [f"[{section}] {key}" for section, key in named if key not in known.get(section, set())]
    assert not unknown, f"{page.name} names settings that do not exist: {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_variables_the_documents_name_exist(page: Path) -> None:
    known = {variable(section, key) for section, keys in known_settings().items() for key in keys} | OWN_VARIABLES
    named = set(re.findall(r"\bACTIVESEG_[A-Z_]+\b", text_of(page)))
    assert named <= known, f"{page.name} names variables that do not exist: {sorted(named - known)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configurations_in_the_documents_are_valid(page: Path) -> None:
    for body in blocks(page, "toml"):
        Settings(**tomllib.loads(body))
