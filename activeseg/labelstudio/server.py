"""A private Label Studio on the loopback address, for the demo and the tests.

    <data_dir>/                 mode 0700
        app/                    Label Studio's own data directory, with a SECRET_KEY of its own
        accounts/               one password and one token file per person, mode 0600
        server.lock             held by the server process for as long as it lives
        server.pid              "<pid> <port>"

The server outlives a killed parent; the next `start_server` on the same folder finds it by the lock and takes it over.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self
from urllib.parse import quote

import httpx

from activeseg.config import write_secret
from activeseg.errors import LabelStudioError, LabelStudioUnauthorized, LabelStudioUnreachable
from activeseg.labelstudio.accounts import Session
from activeseg.labelstudio.install import (
    SERVER_VERSION,
    ServerInstall,
    cache_folder,
    install_server,
    server_environment,
)
from activeseg.labelstudio.processes import end_group, free_port, is_locked

__all__ = ["SERVER_VERSION", "RunningServer", "ServerInstall", "cache_folder", "install_server", "start_server"]

OWNER = "owner@example.com"
_POLL = 0.1
_TAKEOVER_PATIENCE = 30.0
# The shell writes its own number and becomes the server, so the file is there even if the parent is killed right away.
_ANNOUNCE = 'echo "$$ $1" > "$0"; shift; exec "$@"'


@dataclass
class RunningServer:
    """A server that answers. Leaving the context, or `stop()`, ends its process group.

    email, password: the owner's log-in. pid: leader of the server's process group. log: its output.
    """

    url: str
    email: str
    password: str = field(repr=False)
    pid: int
    data_dir: Path
    log: Path
    _child: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def token(self) -> str:
        """The owner's personal access token, made on the first call and kept in `accounts/`."""
        return self._token_of(self.email, self.password)

    def add_user(self, email: str) -> tuple[str, str]:
        """Password and personal access token of another person, whose account is made on the first call."""
        password = _secret(_account(self.data_dir, email, "password"), secrets.token_urlsafe(24))
        with Session(self.url) as session:
            known = session.sign_in(email, password)
        if not known:
            with Session(self.url) as owner:
                self._sign_in(owner, self.email, self.password)
                invitation = owner.invitation()
            with Session(self.url) as session:
                session.sign_up(email, password, invitation=invitation)
        return password, self._token_of(email, password)

    def stop(self) -> None:
        """End the server and whatever it started; does nothing where it ended already."""
        end_group(self.pid, _lock_file(self.data_dir))
        if self._child is not None:
            self._child.wait()
        _pid_file(self.data_dir).unlink(missing_ok=True)

    def _token_of(self, email: str, password: str) -> str:
        file = _account(self.data_dir, email, "token")
        if kept := _read(file):
            return kept
        with Session(self.url) as session:
            self._sign_in(session, email, password)
            token = session.personal_token()
        write_secret(file, token)
        return token

    def _sign_in(self, session: Session, email: str, password: str) -> None:
        if not session.sign_in(email, password):
            raise LabelStudioUnauthorized(
                f"{self.url} does not know {email} with the password kept in {self.data_dir / 'accounts'}: "
                "is another program listening on this port? Otherwise remove that folder's parent and start afresh"
            )


def start_server(
    data_dir: Path,
    *,
    port: int | None = None,
    log: Path,
    timeout: float = 240.0,
    variables: Mapping[str, str] | None = None,
) -> RunningServer:
    """Start Label Studio on 127.0.0.1, installing it first if need be, and wait until it answers (about 15 s warm).

    data_dir is made if it is new. A server that still runs on it, left by a killed process, is taken over (or ended,
    where it does not answer or `port` asks for another port). variables: of its environment, such as
    SSRF_PROTECTION_ENABLED; a server that is taken over keeps those it was started with. Raises LabelStudioError with the
    log's last line where the server ends or stays silent for `timeout` seconds.
    """
    data_dir = data_dir.resolve()
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = log.resolve()
    log.parent.mkdir(parents=True, exist_ok=True)
    install = install_server()
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with _try_lock(_lock_file(data_dir)) as lock:
            server = None if lock is None else _launch(install, data_dir, port or free_port(), log, lock, variables or {})
        if server is not None:
            return _wait_for(server, deadline)
        if (running := _take_over(data_dir, port, log)) is not None:
            return running
    raise LabelStudioError(f"a Label Studio on {data_dir} neither answers nor ends: see {log}, end it by hand and try again")


def _launch(
    install: ServerInstall, data_dir: Path, port: int, log: Path, lock: int, variables: Mapping[str, str]
) -> RunningServer:
    _pid_file(data_dir).unlink(missing_ok=True)
    password = _secret(_account(data_dir, OWNER, "password"), secrets.token_urlsafe(24))
    app = _prepare(install, data_dir)
    environment = server_environment(app) | {"LABEL_STUDIO_USERNAME": OWNER, "LABEL_STUDIO_PASSWORD": password, **variables}
    arguments = ["start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port)]
    with _open_log(log) as output:
        child = subprocess.Popen(
            ["sh", "-c", _ANNOUNCE, str(_pid_file(data_dir)), str(port), str(install.executable), *arguments],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=app,
            pass_fds=[lock], start_new_session=True, umask=0o077,
        )  # fmt: skip
    return RunningServer(f"http://127.0.0.1:{port}", OWNER, password, child.pid, data_dir, log, child)


def _wait_for(server: RunningServer, deadline: float) -> RunningServer:
    try:
        _await_health(server, deadline)
    except BaseException:
        server.stop()
        raise
    return server


def _prepare(install: ServerInstall, data_dir: Path) -> Path:
    """Label Studio's data directory, copied from the template under another name and renamed when whole."""
    app, partial = data_dir / "app", data_dir / "app.partial"
    if not app.exists():
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(install.template, partial)
        write_secret(partial / ".env", f"SECRET_KEY={secrets.token_urlsafe(64)}")
        partial.rename(app)
    return app


def _await_health(server: RunningServer, deadline: float) -> None:
    while time.monotonic() < deadline:
        if server._child is not None and server._child.poll() is not None:
            raise LabelStudioError(f"Label Studio ended while starting: {_last_line(server.log)} (see {server.log})")
        if _is_healthy(server.url):
            with Session(server.url) as session:
                server._sign_in(session, server.email, server.password)
            return
        time.sleep(_POLL)
    raise LabelStudioUnreachable(f"Label Studio did not answer at {server.url} in time: see {server.log}")


def _take_over(data_dir: Path, port: int | None, log: Path) -> RunningServer | None:
    """The server another process started here, once it answers; None where it ended or had to be ended."""
    deadline = time.monotonic() + _TAKEOVER_PATIENCE
    while is_locked(_lock_file(data_dir)):
        words = _read(_pid_file(data_dir)).split()
        if len(words) != 2:  # its parent is still preparing the folder
            time.sleep(_POLL)
            continue
        pid, url = int(words[0]), f"http://127.0.0.1:{words[1]}"
        password = _read(_account(data_dir, OWNER, "password"))
        if port in (None, int(words[1])) and _is_healthy(url):
            return RunningServer(url, OWNER, password, pid, data_dir, log)
        if port not in (None, int(words[1])) or time.monotonic() > deadline:
            end_group(pid, _lock_file(data_dir))
        time.sleep(_POLL)
    return None


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(url + "/health", timeout=5.0, trust_env=False, follow_redirects=True).status_code == 200
    except httpx.TransportError:
        return False


@contextlib.contextmanager
def _try_lock(path: Path) -> Iterator[int | None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield descriptor if _lock_now(descriptor) else None
    finally:
        os.close(descriptor)


def _lock_now(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_file(data_dir: Path) -> Path:
    return data_dir / "server.lock"


def _pid_file(data_dir: Path) -> Path:
    return data_dir / "server.pid"


def _account(data_dir: Path, email: str, kind: str) -> Path:
    return data_dir / "accounts" / f"{quote(email, safe='@+')}.{kind}"


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def _secret(file: Path, new: str) -> str:
    """The content of a secret file, written first where it is missing or a killed process left it empty."""
    if not _read(file):
        write_secret(file, new)
    return _read(file)


def _open_log(log: Path) -> IO[bytes]:
    return os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return repr(lines[-1]) if lines else "no output"
