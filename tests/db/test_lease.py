from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing

import pytest
import sqlalchemy as sa

from activeseg.db import lease
from activeseg.db.database import Database
from activeseg.db.lease import HeldLease
from activeseg.db.models import Lease, RequestRow
from activeseg.errors import LeaseError
from tests.db.rows import Rows

PATIENCE = 30


def expire(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(sa.update(Lease).values(expires_at=1.0))  # long ago; 0 is one that was released


def row(database: Database) -> Lease:
    with database.read() as session:
        return session.get_one(Lease, "loop")


def requests(database: Database) -> int:
    with database.read() as session:
        return session.scalar(sa.select(sa.func.count()).select_from(RequestRow)) or 0


def test_only_one_holds_it(database: Database) -> None:
    held = lease.acquire(database, "loop")
    with pytest.raises(LeaseError, match=rf"another process is at work .*:{os.getpid()}:"):
        lease.acquire(database, "loop")
    assert row(database).token == held.token == 1


def test_leases_of_other_names_are_others(database: Database) -> None:
    lease.acquire(database, "loop")
    assert lease.acquire(database, "else").token == 1


def test_a_released_lease_is_free_at_once_and_its_token_grows(database: Database) -> None:
    lease.acquire(database, "loop").release()
    assert lease.acquire(database, "loop").token == 2


def test_an_expired_lease_is_taken_over_with_a_larger_token(database: Database) -> None:
    first = lease.acquire(database, "loop")
    expire(database)
    second = lease.acquire(database, "loop")
    assert second.token == first.token + 1
    assert not first.renew()
    assert second.renew()


def test_a_former_holder_cannot_release_what_another_holds(database: Database) -> None:
    first = lease.acquire(database, "loop")
    expire(database)
    lease.acquire(database, "loop")
    first.release()
    with pytest.raises(LeaseError):
        lease.acquire(database, "loop")


def test_renewing_moves_the_expiry_forward(database: Database) -> None:
    held = lease.acquire(database, "loop", ttl=5)
    before = row(database).expires_at
    held.ttl = 500
    assert held.renew()
    assert row(database).expires_at > before + 400


def test_a_stale_holders_write_raises_and_leaves_nothing(database: Database, database_url: str) -> None:
    other = Database(database_url)
    with lease.holding(database):
        with database.write() as session:
            session.add(RequestRow(kind="mine", requested_by="test"))
        expire(database)
        with lease.holding(other), pytest.raises(LeaseError, match="went to another process"), database.write() as session:
            session.add(RequestRow(kind="too late", requested_by="test"))
        assert requests(database) == 1
    other.close()


def test_reading_needs_no_lease(database: Database, database_url: str) -> None:
    other = Database(database_url)
    with lease.holding(database):
        expire(database)
        lease.acquire(other, "loop")
        assert requests(database) == 0
    other.close()


def test_an_expired_lease_that_nobody_took_still_holds(database: Database) -> None:
    with lease.holding(database):
        expire(database)
        with database.write() as session:
            session.add(RequestRow(kind="mine", requested_by="test"))
    assert requests(database) == 1


def test_holding_again_inside_is_the_same_lease_and_the_outer_one_ends_it(database: Database, database_url: str) -> None:
    other = Database(database_url)
    with lease.holding(database) as outer:
        with lease.holding(database) as inner:
            assert inner is outer
        with pytest.raises(LeaseError):
            lease.acquire(other, "loop")
    assert database.fence is None
    assert lease.acquire(other, "loop").token == outer.token + 1
    other.close()


def test_an_exception_releases_it(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), lease.holding(database):
        _ = 1 / 0
    assert database.fence is None
    assert lease.acquire(database, "loop").token == 2


def test_who_did_not_get_it_has_no_fence_and_can_try_again(database: Database, database_url: str) -> None:
    other = Database(database_url)
    with lease.holding(database):
        with pytest.raises(LeaseError), lease.holding(other):
            pytest.fail("two hold the lease")
        assert other.fence is None
    with lease.holding(other):
        pass
    other.close()


def test_a_holder_renews_it_while_it_works(database: Database) -> None:
    with lease.holding(database, ttl=0.3):
        first = row(database).expires_at
        deadline = time.monotonic() + PATIENCE
        while row(database).expires_at <= first:
            assert time.monotonic() < deadline, "never renewed"
            time.sleep(0.02)


HOLDER = """
import sys
from activeseg.db import lease
from activeseg.db.database import Database
from activeseg.db.models import RequestRow
from activeseg.errors import LeaseError
database = Database(sys.argv[1])
with lease.holding(database, ttl=float(sys.argv[2])) as held:
    print(held.token, flush=True)
    sys.stdin.readline()
    try:
        with database.write() as session:
            session.add(RequestRow(kind="late", requested_by="holder"))
        print("written")
    except LeaseError as error:
        print("refused", error)
"""


def start_holder(url: str, ttl: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, url, str(ttl)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    return process


def eventually(take: Callable[[], HeldLease]) -> HeldLease:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return take()
        except LeaseError:
            assert time.monotonic() < deadline, "the lease never became free"
            time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_holder_is_followed_by_another_process(database: Database, database_url: str) -> None:
    process = start_holder(database_url, 2.0)
    with pytest.raises(LeaseError, match=f":{process.pid}:"):
        lease.acquire(database, "loop")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert eventually(lambda: lease.acquire(database, "loop")).token == 2


@pytest.mark.slow
def test_a_holder_that_was_paused_past_its_expiry_can_no_longer_write(database: Database, database_url: str) -> None:
    process = start_holder(database_url, 1.0)
    process.send_signal(signal.SIGSTOP)
    try:
        held = eventually(lambda: lease.acquire(database, "loop"))
    finally:
        process.send_signal(signal.SIGCONT)
    assert held.token == 2
    said, _ = process.communicate("\n", timeout=PATIENCE)
    assert said.startswith("refused")
    assert requests(database) == 0


PAUSED = """
import sys
from activeseg.db import lease
from activeseg.db.bulk import insert_rows
from activeseg.db.database import Database
from activeseg.db.models import RequestRow, ScheduleSlot
from activeseg.db.models.columns import now

def wait(row=None):
    print("there", flush=True)
    sys.stdin.readline()
    return row

database, where = Database(sys.argv[1]), sys.argv[3]
slots = [(str(number), now(), now()) for number in range(2)]
with lease.holding(database, ttl=float(sys.argv[2])), database.write() as session:
    session.add(RequestRow(kind="half", requested_by="paused"))
    session.flush()
    if where == "copying":
        insert_rows(session, ScheduleSlot, ("job", "planned_at", "claimed_at"), map(wait, slots))
    elif where == "answered":
        session.connection().connection.driver_connection.pgconn.send_query(
            b"SELECT repeat('x', 1000) FROM generate_series(1, 200000)")
    wait()
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["between", "copying", "answered"])
def test_a_holder_that_is_stopped_in_the_middle_of_a_write_is_followed_within_the_lease_and_two_seconds(
    database: Database, database_url: str, where: str
) -> None:
    """Between two statements, while it hands over rows, and while the server waits for it to take an answer."""
    if database.dialect == "sqlite":
        pytest.skip("SQLite's one lock is kept for as long as the process lives")
    ttl = 3.0
    command = [sys.executable, "-c", PAUSED, database_url, str(ttl), where]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        time.sleep(ttl / 3 + 0.3)  # by now its other thread waits for its own lock, to renew the lease: that must not count
        process.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        try:
            held = eventually(lambda: lease.acquire(database, "loop", ttl=ttl))
            assert time.monotonic() - stopped <= ttl + 2
        finally:
            process.send_signal(signal.SIGCONT)
        process.communicate("\n\n\n", timeout=PATIENCE)
    assert held.token == 2
    assert requests(database) == 0


def test_a_write_under_no_lease_is_not_left_open_for_ever_either(database: Database) -> None:
    if database.dialect == "sqlite":
        pytest.skip("SQLite's one lock is kept for as long as the process lives")
    with database.write() as session:
        assert session.scalar(sa.text("SHOW idle_in_transaction_session_timeout")) == "1min"
    with database.read() as session:
        assert session.scalar(sa.text("SHOW idle_in_transaction_session_timeout")) == "0"


def test_nobody_takes_or_uses_a_lease_while_the_tables_are_replaced(database: Database, database_url: str) -> None:
    if database.dialect == "sqlite":
        pytest.skip("there the row that is copied in says so")
    other = Database(database_url)
    held = lease.acquire(database, "loop")
    with lease.barred(database, ["loop"]):
        held.release()
        with pytest.raises(LeaseError, match="a backup is being restored"):
            lease.acquire(other, "loop")
        with pytest.raises(LeaseError, match="a backup is being restored"), other.write() as session:
            held.check(session)
        assert lease.acquire(other, "else").token == 1
    assert lease.acquire(other, "loop").token == 2
    other.close()


def test_what_bars_the_leases_outlasts_the_patience_of_server_and_pooler(database: Database, database_url: str) -> None:
    """A lock of the session would stay with a connection that a pooler gives to others, and end with an idle session."""
    if database.dialect == "sqlite":
        pytest.skip("there the row that is copied in says so")
    patience = "-c idle_in_transaction_session_timeout=200 -c idle_session_timeout=200"
    url = sa.make_url(database_url).update_query_dict({"options": patience})
    impatient = Database(url.render_as_string(hide_password=False))
    held = sa.text(
        "SELECT state FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND datname = current_database()"
    )
    with lease.barred(impatient, ["loop"]):
        time.sleep(0.5)
        with database.read() as session:
            assert session.scalar(held) == "idle in transaction"
        with pytest.raises(LeaseError, match="a backup is being restored"):
            lease.acquire(database, "loop")
    assert lease.acquire(database, "loop").token == 1
    impatient.close()


def test_who_waits_for_a_write_that_does_not_end_is_told_what_to_do(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr("activeseg.db.database.BUSY_SECONDS", 0.1)
    held = lease.acquire(database, "loop")
    expire(database)
    with closing(Database(database_url)) as other, database.write() as session:
        held.check(session)
        with pytest.raises(LeaseError, match=rf"{held.holder}.* in the middle of a write: try again later, or end it"):
            lease.acquire(other, "loop", ttl=0.3)


def test_who_waits_for_a_write_outside_the_lease_is_sent_to_nobody(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if database.dialect == "postgresql":
        pytest.skip("there a write outside the lease keeps nobody from taking it")
    monkeypatch.setattr(lease, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr("activeseg.db.database.BUSY_SECONDS", 0.1)
    with closing(Database(database_url)) as other:
        for _ in range(2):  # before anybody held it, and after it was released
            with database.write() as session:
                session.connection()  # only now the transaction begins
                with pytest.raises(LeaseError, match="nobody holds the lease") as caught:
                    lease.acquire(other, "loop", ttl=0.3)
            assert str(os.getpid()) not in str(caught.value)
            lease.acquire(database, "loop").release()


def test_a_holder_whose_process_is_gone_is_not_waited_for(database: Database, rows: Rows) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    held = lease.acquire(database, "loop")
    with database.write() as session:
        session.get_one(Lease, "loop").holder = held.holder.replace(f":{os.getpid()}:", f":{gone.pid}:")
    assert lease.acquire(database, "loop").token == 2


@pytest.mark.parametrize("holder", ["elsewhere:999999:abc", "nonsense", ""])
def test_a_holder_on_another_host_is_waited_for(database: Database, holder: str) -> None:
    lease.acquire(database, "loop")
    with database.write() as session:
        session.get_one(Lease, "loop").holder = holder
    with pytest.raises(LeaseError):
        lease.acquire(database, "loop")


def move_clock(monkeypatch: pytest.MonkeyPatch, database: Database, seconds: float) -> None:
    """The database's clock, as all of the program sees it."""
    monkeypatch.setitem(lease.CLOCK, database.dialect, f"({lease.CLOCK[database.dialect]} + ({seconds}))")


def test_a_lease_taken_while_the_clock_ran_ahead_is_not_waited_for_until_then(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as ahead:
        move_clock(ahead, database, 86400)
        lease.acquire(database, "loop")
    with database.write() as session:
        session.get_one(Lease, "loop").holder = "elsewhere:999999:abc:9:x"
    with database.read() as session:
        assert not lease.is_held(session)
    assert lease.acquire(database, "loop").token == 2
    with pytest.raises(LeaseError):
        lease.acquire(database, "loop")


def test_a_holder_from_before_the_clock_was_put_back_can_no_longer_write_once_another_took_over(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Database(database_url)
    with monkeypatch.context() as ahead:
        move_clock(ahead, database, 86400)
        database.fence = lease.acquire(database, "loop")
    with lease.holding(other), pytest.raises(LeaseError, match="went to another process"), database.write() as session:
        session.add(RequestRow(kind="too late", requested_by="test"))
    other.close()


def test_a_clock_put_back_by_less_than_a_lease_lasts_takes_it_from_nobody(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = lease.acquire(database, "loop")
    move_clock(monkeypatch, database, -50)
    with pytest.raises(LeaseError):
        lease.acquire(database, "loop")
    with database.read() as session:
        assert lease.is_held(session)
    assert held.renew()
