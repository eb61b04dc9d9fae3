"""`activeseg serve` as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from activeseg.db.database import Database

pytestmark = pytest.mark.slow

ACTIVESEG = [sys.executable, "-c", "from activeseg.cli import main; main()"]


@pytest.fixture
def config(tmp_path: Path, database: Database) -> Path:
    file = tmp_path / "activeseg.toml"
    file.write_text('[database]\nurl = "sqlite:///activeseg.db"\n', encoding="utf-8")
    return file


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("ACTIVESEG_")}


@contextmanager
def serving(config: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    command = [*ACTIVESEG, "--config", str(config), "serve", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        try:
            assert process.stdout is not None
            lines = []
            while not lines or lines[-1].strip() != "}":
                line = process.stdout.readline()
                assert line, process.stderr.read() if process.stderr else ""
                lines.append(line)
            yield process, json.loads("".join(lines))
        finally:
            process.kill()


def get(url: str, token: str | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_it_answers_on_a_free_port_with_the_token_it_names_and_ends_on_ctrl_c(config: Path, filler: Any) -> None:
    filler.checkpoint("m1")
    image = filler.scored("m1", "a", {0: 1.5})

    with serving(config) as (process, said):
        token = Path(said["token"]).read_text(encoding="utf-8").strip()
        assert said["url"].startswith("http://127.0.0.1:")
        assert get(f"{said['url']}/healthz") == (200, {"status": "ok"})
        assert get(f"{said['url']}/api/rankings")[0] == 401
        status, page = get(f"{said['url']}/api/rankings", token)
        assert (status, [item["image_id"] for item in page["items"]]) == (200, [image])

        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=120)

    assert (process.returncode, out, error) == (0, "", "")


def test_off_the_loopback_it_refuses_in_one_line(config: Path) -> None:
    command = [*ACTIVESEG, "--config", str(config), "serve", "--host", "0.0.0.0", "--port", "0"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment())

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: refusing to listen on 0.0.0.0")
    assert done.stderr.count("\n") == 1
