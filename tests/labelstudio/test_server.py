"""The life of a real Label Studio process."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from activeseg.labelstudio.processes import is_locked
from activeseg.labelstudio.server import OWNER, start_server

pytestmark = pytest.mark.labelstudio

STARTER = """
import os, signal, sys
from pathlib import Path
from activeseg.labelstudio.server import start_server
folder = Path(sys.argv[1])
server = start_server(folder / "data", log=folder / "server.log")
print(server.pid, server.url, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def secret_key(server) -> str:
    return (server.data_dir / "app" / ".env").read_text()


def test_a_server_outlives_its_killed_parent_and_the_next_start_takes_it_over(labelstudio_server, tmp_path):
    parent = subprocess.run([sys.executable, "-c", STARTER, str(tmp_path)], capture_output=True, text=True, check=False)
    assert parent.returncode == -signal.SIGKILL
    pid, url = parent.stdout.split()
    server = start_server(tmp_path / "data", log=tmp_path / "server.log")
    assert (str(server.pid), server.url) == (pid, url)
    assert server.token()
    assert secret_key(server) != secret_key(labelstudio_server)
    assert server.password != labelstudio_server.password
    server.stop()
    server.stop()
    assert not is_locked(tmp_path / "data" / "server.lock")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", int(url.rsplit(":", 1)[1])))


def test_it_listens_on_the_loopback_address_only(labelstudio_server):
    port = int(labelstudio_server.url.rsplit(":", 1)[1])
    table = Path("/proc/net/tcp")
    if not table.exists():
        pytest.skip("needs /proc/net/tcp")
    sockets = [line.split() for line in table.read_text().splitlines()[1:]]
    local = [fields[1] for fields in sockets if fields[3] == "0A" and fields[1].endswith(f":{port:04X}")]
    assert local == [f"0100007F:{port:04X}"]


def test_passwords_and_tokens_are_kept_where_only_the_owner_reads(labelstudio_server):
    labelstudio_server.token()
    secrets = list((labelstudio_server.data_dir / "accounts").iterdir())
    assert {file.name for file in secrets} >= {f"{OWNER}.password", f"{OWNER}.token"}
    assert {file.stat().st_mode & 0o777 for file in secrets} == {0o600}
    assert labelstudio_server.data_dir.stat().st_mode & 0o777 == 0o700
    assert labelstudio_server.password not in repr(labelstudio_server)


def test_no_password_or_token_is_in_the_log(labelstudio_server):
    log = labelstudio_server.log.read_text()
    assert labelstudio_server.password not in log
    assert labelstudio_server.token() not in log


def test_a_second_person_is_made_once(labelstudio_server):
    first = labelstudio_server.add_user("second@example.com")
    assert labelstudio_server.add_user("second@example.com") == first


def test_a_token_file_that_was_lost_is_replaced_and_the_old_token_revoked(labelstudio_server):
    _, lost = labelstudio_server.add_user("forgetful@example.com")
    (labelstudio_server.data_dir / "accounts" / "forgetful@example.com.token").unlink()
    _, fresh = labelstudio_server.add_user("forgetful@example.com")
    refresh = f"{labelstudio_server.url}/api/token/refresh/"
    assert httpx.post(refresh, json={"refresh": fresh}).status_code == 200
    assert httpx.post(refresh, json={"refresh": lost}).status_code == 401


def test_strangers_cannot_sign_up(labelstudio_server):
    with httpx.Client(base_url=labelstudio_server.url) as stranger:
        stranger.get("/user/signup/")
        form = {"email": "x@example.com", "password": "long enough 1", "csrfmiddlewaretoken": stranger.cookies["csrftoken"]}
        answer = stranger.post("/user/signup/", data=form, headers={"Referer": f"{labelstudio_server.url}/user/signup/"})
    assert answer.status_code == 403
