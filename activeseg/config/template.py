"""The text of a new `activeseg.toml`, and values as TOML."""

from __future__ import annotations

import json
from typing import Any

from activeseg.config.section import Section
from activeseg.config.settings import SECRETS, Settings


def commented_toml(*, images: str, classes: str) -> str:
    """The text of a new activeseg.toml: every key with its default and what it means; the two given ones set."""
    given = {("pool", "images"): images, ("labels", "file"): classes}
    lines = [
        "# activeseg: what every key means stands in docs/configuration.md. ACTIVESEG_SECTION__KEY in the environment",
        "# beats this file. Keys that are commented out have the value shown.",
    ]
    for name, section in Settings.model_fields.items():
        kind = section.annotation
        if not (isinstance(kind, type) and issubclass(kind, Section)):
            continue
        lines += ["", f"# {(kind.__doc__ or '').strip().splitlines()[0]}", f"[{name}]"]
        for key, field in kind.model_fields.items():
            if (name, key) in SECRETS:  # secrets never stand in this file
                continue
            lines.append(f"# {field.description}")
            value = given.get((name, key), field.default)
            prefix = "" if (name, key) in given else "# "
            note = "  # unset" if value is None else ""
            lines.append(f"{prefix}{key} = {toml_value(value)}{note}")
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """A value as TOML text; None, which TOML lacks, as the empty text that `Section` takes for unset."""
    if value is None:
        return '""'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    return repr(value) if isinstance(value, int | float) else _toml_text(str(value))


def _toml_text(value: str) -> str:
    # A TOML basic string is a JSON string, but for DEL, which JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
