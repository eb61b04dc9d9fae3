"""A pinned Label Studio in an environment of its own, in the user's cache folder, made once per version.

<cache>/activeseg/label-studio/<version>/
    venv/         the environment, from the pin list shipped with this package
    template/     a data directory with all migrations applied and no user in it
    ready         sha256 of the pin list; written last, so a killed install is started afresh
    lock          held by whoever installs, and by the tools it runs
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from activeseg.errors import ConfigError
from activeseg.labelstudio.processes import locked

SERVER_VERSION = "1.23.2"
_SETTINGS = {
    "COLLECT_ANALYTICS": "false",
    "LATEST_VERSION_CHECK": "false",
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
    "DISABLE_SIGNUP_WITHOUT_LINK": "true",
    "LOG_LEVEL": "WARNING",
}
_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SSL_CERT_FILE", "LD_LIBRARY_PATH")


@dataclass(frozen=True, slots=True)
class ServerInstall:
    """Where the pinned Label Studio is.

    executable: the `label-studio` command. It starts a server whatever its arguments say: never probe with it.
    template: a migrated data directory without users; it is copied, never served.
    """

    version: str
    executable: Path
    template: Path


def install_server(*, on_progress: Callable[[str], None] | None = None) -> ServerInstall:
    """Install the pinned Label Studio unless it is there already; about a minute and 800 MB the first time.

    `uv` makes the environment where it is on PATH or named by ACTIVESEG_UV; else `python -m venv` and pip do. Two processes may
    call this at once, and a killed call leaves nothing that a later one would trust. Raises ConfigError with the
    installer's last line and the remedy.
    """
    root = cache_folder() / "label-studio" / SERVER_VERSION
    install = ServerInstall(SERVER_VERSION, root / "venv" / "bin" / "label-studio", root / "template")
    if _is_ready(root, install):
        return install
    progress = on_progress or _silent
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked(root / "lock") as lock:
        if not _is_ready(root, install):
            (root / "ready").unlink(missing_ok=True)
            progress(f"installing Label Studio {SERVER_VERSION} into {root} (once, about 800 MB)")
            _make_environment(root / "venv", lock)
            progress("preparing Label Studio's database (once, about a minute)")
            _make_template(install, lock)
            (root / "ready").write_text(_fingerprint(), encoding="utf-8")
    return install


def cache_folder() -> Path:
    """The user's cache folder for this program: $XDG_CACHE_HOME/activeseg, or ~/.cache/activeseg."""
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (configured if configured.is_absolute() else Path.home() / ".cache") / "activeseg"


def server_environment(data_dir: Path) -> dict[str, str]:
    """The server's whole environment. Nothing is inherited that would change it: Label Studio reads HOST, PORT, DEBUG,
    USERNAME and SECRET_KEY of any shell it is started from."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    settings = {f"LABEL_STUDIO_{name}": value for name, value in _SETTINGS.items()}
    return kept | _SETTINGS | settings | {"LABEL_STUDIO_BASE_DATA_DIR": str(data_dir), "PYTHONUNBUFFERED": "1"}


def _silent(_: str) -> None:
    pass


def _is_ready(root: Path, install: ServerInstall) -> bool:
    try:
        finished = (root / "ready").read_text(encoding="utf-8") == _fingerprint()
    except FileNotFoundError:
        return False
    python = root / "venv" / "bin" / "python"
    return finished and python.exists() and install.executable.exists() and install.template.is_dir()


def _fingerprint() -> str:
    return hashlib.sha256(_pins().encode()).hexdigest()


def _pins() -> str:
    return (files("activeseg.labelstudio") / f"server-{SERVER_VERSION}.txt").read_text(encoding="utf-8")


def _make_environment(venv: Path, lock: int) -> None:
    shutil.rmtree(venv, ignore_errors=True)
    pins = venv.parent / "pins.txt"
    pins.write_text(_pins(), encoding="utf-8")
    python = str(venv / "bin" / "python")
    uv = os.environ.get("ACTIVESEG_UV") or shutil.which("uv")
    if uv:
        _call([uv, "venv", "--quiet", "--python", sys.executable, str(venv)], lock)
        _call([uv, "pip", "install", "--quiet", "--no-deps", "--python", python, "-r", str(pins)], lock)
    else:
        _call([sys.executable, "-m", "venv", str(venv)], lock)
        _call([python, "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(pins)], lock)


def _make_template(install: ServerInstall, lock: int) -> None:
    partial = install.template.with_suffix(".partial")
    for folder in (install.template, partial):
        shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir(mode=0o700)
    # `user` migrates the database, prints that there is no such user, and ends: the one command that starts no server.
    _call([str(install.executable), "user", "--username", "nobody@localhost"], lock, env=server_environment(partial))
    (partial / ".env").unlink(missing_ok=True)  # its SECRET_KEY must not be shared by the servers made from this copy
    partial.rename(install.template)


def _call(command: Sequence[str], lock: int, *, env: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, text=True,
            errors="replace", pass_fds=[lock], check=False,
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(f"installing Label Studio {SERVER_VERSION}: cannot run {command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        last = (done.stdout.strip().splitlines() or ["no output"])[-1]
        raise ConfigError(
            f"installing Label Studio {SERVER_VERSION}: `{Path(command[0]).name} {command[1]}` failed with {last!r}; "
            "it needs a package index (network or PIP_INDEX_URL / UV_INDEX_URL) once: try again when one is reachable"
        )
