"""Secret files: one secret each, readable by their owner only."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pydantic import SecretStr

from activeseg.errors import ConfigError


def read_secret(file: Path) -> SecretStr:
    """The stripped content of a secret file. Raises ConfigError where others may read it or there is nothing in it."""
    if not file.is_file():
        raise ConfigError(f"secret file {file} does not exist")
    if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"secret file {file} can be read by others: chmod 600 {file}")
    try:
        secret = file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        # Not chained: the error's text would show the bytes.
        raise ConfigError(f"secret file {file} is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"secret file {file} cannot be read: {error.strerror}") from error
    if not secret:
        raise ConfigError(f"secret file {file} is empty")
    return SecretStr(secret)


def write_secret(file: Path, value: str) -> None:
    """Write a secret file with mode 0600 from its first byte on."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        stream.write(value + "\n")
