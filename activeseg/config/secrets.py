"""Secret files: one secret each, readable by their owner only."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from activeseg.config.masking import remember_secret
from activeseg.errors import ConfigError

MIN_LENGTH = 16
_NEW_BYTES = 32


@dataclass(frozen=True, slots=True)
class OwnSecret:
    """A secret of this installation, which others must send to it.

    file: where it lies; None when it came from the environment. explicit: a person set it or named its file, so they know
    that there is one to keep. variable: of the environment that sets it.
    """

    value: SecretStr
    file: Path | None
    explicit: bool
    variable: str

    @property
    def place(self) -> str:
        """Where a person finds it."""
        return str(self.file or f"the environment variable {self.variable}")


def read_secret(file: Path, setting: str = "") -> SecretStr:
    """The stripped content of a secret file. Raises ConfigError where others may read it or there is nothing in it.

    setting: the key that names the file, for the error: '[labelstudio] token_file'.
    """
    what = f"{setting}: secret file {file}" if setting else f"secret file {file}"
    if not file.is_file():
        raise ConfigError(f"{what} does not exist")
    if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{what} can be read by others: chmod 600 {file}")
    try:
        secret = file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        # Not chained: the error's text would show the bytes.
        raise ConfigError(f"{what} is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{what} cannot be read: {error.strerror}") from error
    if not secret:
        raise ConfigError(f"{what} is empty")
    remember_secret(secret)
    return SecretStr(secret)


def write_secret(file: Path, value: str) -> None:
    """Write a secret file with mode 0600 from its first byte on."""
    remember_secret(value)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        stream.write(value + "\n")


def own_secret(value: SecretStr | None, file: Path | None, *, default: Path, variable: str, setting: str) -> OwnSecret:
    """`value` where there is one (it came from the environment), else a file's, made with a random secret at first use.

    file: the one a person named; None for `default`. Of two processes that start at once, one makes the file and both get
    what is in it. setting: the key that names the file. Raises ConfigError as `read_secret`, and for one that is short or
    that a header cannot carry.
    """
    where = file or default
    if value is None:
        if not where.exists():
            _write_unless_there(where, secrets.token_urlsafe(_NEW_BYTES), setting)
        found = OwnSecret(read_secret(where, setting), where, file is not None, variable)
    else:
        found = OwnSecret(value, None, True, variable)
    text = found.value.get_secret_value()
    if len(text) < MIN_LENGTH or not (text.isascii() and text.isprintable()):
        remedy = "delete the file and a new one is made" if found.file else "set another one, or unset it"
        raise ConfigError(
            f"{setting}: secret in {found.place}: expected at least {MIN_LENGTH} printable ASCII characters, because it "
            f"travels in a header: {remedy}"
        )
    return found


def _write_unless_there(file: Path, value: str, setting: str) -> None:
    """Write a secret file that appears whole, with its mode, or not at all; one that is there already stays."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=file.parent, prefix=f"{file.name}.")  # mode 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(value + "\n")
            with contextlib.suppress(FileExistsError):
                os.link(partial, file)
        finally:
            os.unlink(partial)
    except OSError as error:
        raise ConfigError(f"{setting}: secret file {file} cannot be made: {error.strerror}") from error
