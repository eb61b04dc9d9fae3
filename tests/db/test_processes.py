"""Whether a holder is gone is only said where it can be seen."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from activeseg.db import lease
from activeseg.db.database import Database
from activeseg.db.models import Lease
from activeseg.db.processes import is_gone, place, this_host, this_process
from activeseg.errors import LeaseError

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def holder(**parts: object) -> str:
    """This process's name with some of its parts exchanged."""
    names = ("host", "pid", "place", "start", "random")
    own = dict(zip(names, this_process().split(":"), strict=True))
    return ":".join(str({**own, **parts}[name]) for name in names)


def ended() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_this_process_is_there_and_two_holds_of_it_differ() -> None:
    assert not is_gone(this_process())
    assert this_process() != this_process()
    assert this_process().startswith(f"{this_host()}:{os.getpid()}:{place()}:")


def test_an_ended_process_of_this_machine_is_gone() -> None:
    assert is_gone(holder(pid=ended()))


@linux
def test_an_ended_process_whose_parent_did_not_look_yet_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", "print()"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.read()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_gone(holder(pid=child.pid))
    child.communicate()


@linux
def test_another_process_with_its_number_is_not_it() -> None:
    assert is_gone(holder(start=1))


@pytest.mark.parametrize("part", ["host", "place"])
def test_of_another_machine_or_container_nothing_is_said(part: str) -> None:
    assert not is_gone(holder(pid=ended(), **{part: "elsewhere"}))


@pytest.mark.parametrize("text", ["", "nonsense", "vm:12:abcd", "vm:x:y:z:w", ":" * 4, ":" * 9])
def test_of_what_names_no_process_nothing_is_said(text: str) -> None:
    assert not is_gone(text.replace("vm", this_host()))


def test_two_containers_with_one_host_name_keep_each_others_lease(database: Database) -> None:
    lease.acquire(database, "loop")
    with database.write() as session:
        session.get_one(Lease, "loop").holder = holder(pid=ended(), place="another")
    with pytest.raises(LeaseError):
        lease.acquire(database, "loop")
    with database.read() as session:
        assert lease.is_held(session)
