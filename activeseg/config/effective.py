"""Every setting as it holds now, with where it comes from, and no secret in it."""

from __future__ import annotations

import json
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote_plus

from pydantic import SecretStr

from activeseg.config.section import Section
from activeseg.config.settings import ENV_PREFIX, SECRETS, Settings, chosen_file, load_settings

Source = Literal["default", "file", "environment"]
MASK = "***"
_HARMLESS = frozenset(
    {"host", "port", "sslmode", "sslrootcert", "connect_timeout", "application_name", "mode", "timeout", "region", "endpoint",
     "target_session_attrs", "client_encoding", "options"}
)  # fmt: skip
"""Parameters of an address that are shown; others may be keys, signatures, passwords."""
_CAPABILITIES = frozenset({("alerts", "webhook_url")})
"""Addresses that open by themselves: of many services' webhooks, the path is the secret."""
_ADDRESS = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class EffectiveSetting:
    """One key. value: plain, masked where it is or holds a secret. source: who said so; variable: of the environment."""

    section: str
    key: str
    value: Any
    source: Source
    variable: str


def effective_settings(path: Path | None = None) -> list[EffectiveSetting]:
    """All keys in the order of docs/configuration.md. Raises ConfigError as `load_settings`."""
    settings = load_settings(path)
    data = tomllib.loads(chosen_file(path).read_text(encoding="utf-8"))
    environment = {name.upper() for name in os.environ}
    found = []
    for name, field in Settings.model_fields.items():
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            continue
        section = getattr(settings, name)
        for key in field.annotation.model_fields:
            variable = f"{ENV_PREFIX}{name}__{key}".upper()
            source = _source(name, key, data, environment)
            found.append(EffectiveSetting(name, key, shown(name, key, getattr(section, key)), source, variable))
    return found


def shown(section: str, key: str, value: Any) -> Any:
    """A value without secrets: those are masked, and so is what in an address may be one."""
    if value is None:
        return None
    if isinstance(value, SecretStr) or (section, key) in SECRETS:
        return MASK
    if isinstance(value, tuple | list):
        return [shown(section, key, item) for item in value]
    if isinstance(value, str | Path):
        return _without_secrets(str(value), hide_path=(section, key) in _CAPABILITIES)
    return value


def _source(section: str, key: str, data: dict[str, Any], environment: set[str]) -> Source:
    variable = f"{ENV_PREFIX}{section}__{key}".upper()
    # A whole section may come as JSON (ACTIVESEG_SECTION), a part of a key as ACTIVESEG_SECTION__KEY__PART.
    if variable in environment or any(name.startswith(f"{variable}__") for name in environment):
        return "environment"
    if key in _json_section(section):
        return "environment"
    return "file" if key in data.get(section, {}) else "default"


def _json_section(section: str) -> set[str]:
    for name, text in os.environ.items():
        if name.upper() == f"{ENV_PREFIX}{section}".upper():
            found = json.loads(text)  # it was read as settings before
            return set(found) if isinstance(found, dict) else set()
    return set()


def _without_secrets(text: str, *, hide_path: bool) -> str:
    match = _ADDRESS.fullmatch(text)
    if match is None:
        return text
    # A password may hold any sign that nobody wrote as %..: all before the last @ is the user's part.
    user, at, tail = match["rest"].rpartition("@")
    if "?" in user or "#" in user:  # or is that @ in a parameter? Nothing says so.
        return f"{match['scheme']}://{MASK}"
    place, question, query = tail.partition("?")
    place, query = place.partition("#")[0], query.partition("#")[0]
    name, colon, _ = user.partition(":")
    if match["scheme"].partition("+")[0] != "postgresql" or not re.fullmatch(r"[\w.-]*", name):
        name, colon = MASK, ""
    hidden = f"{name}:{MASK}@" if colon else f"{name}@"
    if hide_path and "/" in place:
        place = place.partition("/")[0] + "/" + MASK
    shown_query = "&".join(map(_shown_parameter, query.split("&"))) if query else ""
    return f"{match['scheme']}://{hidden if at else ''}{place}{question}{shown_query}"


def _shown_parameter(text: str) -> str:
    name, equals, _ = text.partition("=")
    if not equals:
        return MASK
    return text if unquote_plus(name).lower() in _HARMLESS else f"{name}={MASK}"
