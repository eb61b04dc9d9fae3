"""Hostile requests against a real `activeseg serve`: no server error, no leak.

    .venv/bin/python scripts/bench_http.py --rate 500 --seconds 60

Requests are sent at their planned times whatever the answers do (an open loop), each over a connection of its own: paths,
queries, headers, hosts, tokens, cursors, cookies, forms and bodies that are malformed, huge, binary, cut off or nested, some
of them with the right token, so that they reach the database. The limit of requests is raised so far that none is answered
by it; --limited keeps the default. Prints JSON: answers by status, server errors (5xx and connections without an answer where
HTTP promises one), p50 and p99 in milliseconds, memory and file handles before and after. Ends with 1 on a server error, on
memory above --max-growth MB, on file handles that stay open, and where less than 95 % of the planned requests were sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from activeseg.db import migrate
from activeseg.db.database import Database
from activeseg.db.models import (
    Checkpoint,
    Decision,
    Image,
    ImageStatus,
    LabelSetRow,
    Promotion,
    Score,
    ScoringConfig,
    ScoringRun,
    Split,
)

IMAGES = 200
WARM_UP = 300
SETTLE_SECONDS = 12.0
"""Longer than the server keeps a connection that says nothing."""

ANSWER_SECONDS = 30.0
EXPECT_NOTHING = "cut off"
PROGRAM = "from activeseg.cli import main; main()"


@dataclass
class Tally:
    """What came back. problems: the first requests that went wrong, shortened."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    errors: int = 0
    problems: list[str] = field(default_factory=list)

    def wrong(self, request: bytes, what: str) -> None:
        self.errors += 1
        if len(self.problems) < 10:
            self.problems.append(f"{what}: {request[:160]!r}")


@dataclass(frozen=True)
class Asked:
    """Raw bytes to send. answered: whether HTTP promises an answer."""

    data: bytes
    answered: bool = True


class Attacker:
    """Makes requests, the same ones for the same seed."""

    def __init__(self, token: str, seed: int) -> None:
        self.random, self.token = random.Random(seed), token
        self.kinds: list[Callable[[], Asked]] = [
            self.path, self.path, self.query, self.query, self.cursor, self.cursor, self.image, self.thumbnail, self.header,
            self.host, self.bearer, self.bearer, self.cookie, self.form, self.form, self.operate, self.method, self.body,
            self.chunked, self.smuggled, self.garbage, self.cut_off, self.huge_query, self.huge_header, self.readiness,
        ]  # fmt: skip

    def next(self) -> Asked:
        return self.random.choice(self.kinds)()

    def bytes_(self, most: int) -> bytes:
        return self.random.randbytes(self.random.randrange(most))

    def word(self) -> str:
        words = (
            "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%00", "' OR 1=1 --", "1; DROP TABLE images", "NaN", "-1", "1e999",
            "9" * 30, "\u0660", "\U0001f600" * 9, "{{7*7}}", "<script>", "a" * 900, "%ff%fe", "null", "[]", "0x10", " ", "",
        )  # fmt: skip
        return self.random.choice(words) if self.random.random() < 0.7 else quote(self.bytes_(30))

    def http(
        self,
        method: str,
        target: str,
        headers: list[tuple[str, bytes]] | None = None,
        body: bytes = b"",
        host: bytes = b"localhost",
    ) -> Asked:
        lines = [
            f"{method} {quote(target, safe='/?&=%;:+[]@!$*(),._~-')} HTTP/1.1".encode("ascii", "replace"),
            b"Host: " + host,
        ]
        lines += [name.encode() + b": " + value for name, value in headers or []]
        if body:
            lines.append(b"Content-Length: " + str(len(body)).encode())
        lines.append(b"Connection: close")
        return Asked(b"\r\n".join(lines) + b"\r\n\r\n" + body)

    def right(self) -> list[tuple[str, bytes]]:
        return [("Authorization", b"Bearer " + self.token.encode())]

    def path(self) -> Asked:
        start = self.random.choice(["/", "/api/", "/images/", "/static/", "/api/images/", "//", "/hooks/", "/."])
        return self.http("GET", start + self.word(), self.right())

    def query(self) -> Asked:
        route = self.random.choice(["rankings", "rounds", "runs", "alerts", "report", "status", "images/1/thumbnail"])
        names = ["limit", "after", "class", "checkpoint", "first", "last", "side", "order_by", "password", "__class__"]
        parts = "&".join(f"{self.random.choice(names)}={self.word()}" for _ in range(self.random.randrange(1, 6)))
        return self.http("GET", f"/api/{route}?{parts}", self.right())

    def cursor(self) -> Asked:
        score = self.random.choice([self.random.uniform(-9, 9).hex(), "inf", "nan", "0x1.0p+1023", "0x1.0p-1074", "-0x0.0p+0"])
        after = f"{self.random.randrange(10**9)}:{score}:{self.random.choice([1, 0, -1, 2**31, 2**63, 10**9])}"
        return self.http("GET", f"/api/rankings?after={after}", self.right())

    def image(self) -> Asked:
        return self.http("GET", f"/api/images/{self.random.choice([1, 0, -1, 2**31 - 1, 2**31, 10**30, IMAGES])}", self.right())

    def thumbnail(self) -> Asked:
        return self.http("GET", f"/api/images/{self.random.randrange(1, IMAGES)}/thumbnail?side={self.word()}", self.right())

    def header(self) -> Asked:
        value = self.bytes_(200).replace(b"\r", b"").replace(b"\n", b"").replace(b"\0", b"")
        name = self.random.choice(["Accept", "Cookie", "X-Forwarded-For", "Content-Type", "Range", "If-None-Match", "Origin"])
        return self.http("GET", "/api/rounds", [*self.right(), (name, value.strip() or b"x")])

    def host(self) -> Asked:
        return self.http(
            "GET",
            "/api/rounds",
            self.right(),
            host=self.random.choice([b"evil.example", b"", b"a b", b"[::1", b"\xff", b"x" * 500]),
        )

    def bearer(self) -> Asked:
        tokens = [
            self.bytes_(60).hex().encode(),
            b"\xff\xfe",
            self.token[:-1].encode(),
            b"",
            b"Bearer",
            b"a" * 5000,
            b"activeseg_" + b"A" * 43,
        ]
        return self.http("GET", "/metrics", [("Authorization", b"Bearer " + self.random.choice(tokens))])

    def cookie(self) -> Asked:
        return self.http(
            "GET", "/", [("Cookie", b"activeseg_session=" + self.bytes_(60).hex().encode()), ("Accept", b"text/html")]
        )

    def form(self) -> Asked:
        path = self.random.choice(["/login", "/rounds", "/logout"])
        origin = self.random.choice([b"http://localhost", b"http://evil.example", b"null"])
        return self.http("POST", path, [("Origin", origin), ("Cookie", b"activeseg_form=x")], self.bytes_(400) or b"form=x")

    def operate(self) -> Asked:
        return self.http("POST", "/api/rounds", self.right(), self.bytes_(200))

    def method(self) -> Asked:
        return self.http(
            self.random.choice(["TRACE", "OPTIONS", "DELETE", "PUT", "PATCH", "BREW", "get"]), "/api/rounds", self.right()
        )

    def body(self) -> Asked:
        body = self.random.choice([b"[" * 5000, b'{"a":' * 2000, b"\x00" * 9000, b"a=1&" * 3000])
        return self.http("POST", "/api/rounds", [*self.right(), ("Content-Type", b"application/json")], body)

    def chunked(self) -> Asked:
        chunk = b"2000\r\n" + b"a" * 0x2000 + b"\r\n"
        return Asked(self.chunked_head([b"Origin: http://localhost"]) + chunk * self.random.randrange(1, 6) + b"0\r\n\r\n")

    def smuggled(self) -> Asked:
        return Asked(self.chunked_head([b"Content-Length: 4"]) + b"0\r\n\r\nGET /api/rounds HTTP/1.1\r\n\r\n")

    @staticmethod
    def chunked_head(more: list[bytes]) -> bytes:
        lines = [b"POST /login HTTP/1.1", b"Host: localhost", *more, b"Transfer-Encoding: chunked", b"Connection: close"]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def garbage(self) -> Asked:
        return Asked(self.bytes_(300) + b"\r\n\r\n")

    def cut_off(self) -> Asked:
        whole = self.query().data
        return Asked(whole[: self.random.randrange(len(whole) - 4)], answered=False)

    def huge_query(self) -> Asked:
        return self.http("GET", "/api/rankings?class=" + "a" * self.random.choice([9000, 17_000, 60_000]), self.right())

    def huge_header(self) -> Asked:
        return self.http("GET", "/api/rankings", [*self.right(), ("X-A", b"a" * self.random.choice([15_000, 17_000, 60_000]))])

    def readiness(self) -> Asked:
        return self.http("GET", self.random.choice(["/healthz", "/readyz", "/openapi.json", "/metrics"]), self.right())


async def send(address: tuple[str, int], asked: Asked, tally: Tally) -> None:
    """One request over a connection of its own."""
    began = time.perf_counter()
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(*address)
            try:
                answer = await _exchange(reader, writer, asked)
            finally:
                writer.close()
    except TimeoutError:
        tally.wrong(asked.data, f"no answer in {ANSWER_SECONDS:g} s")
        return
    except OSError as error:
        # A body that is refused unread may cost the connection before its answer was read.
        tally.statuses["reset"] += 1
        if len(asked.data) < 2**13:
            tally.wrong(asked.data, f"connection lost ({error})")
        return
    status = answer[9:12].decode("ascii", "replace") if answer.startswith(b"HTTP/1.1 ") else EXPECT_NOTHING
    tally.statuses[status] += 1
    tally.seconds.append(time.perf_counter() - began)
    if status.startswith("5"):
        tally.wrong(asked.data, f"status {status}")
    elif status == EXPECT_NOTHING and asked.answered:
        tally.wrong(asked.data, "no answer")


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: Asked) -> bytes:
    writer.write(asked.data)
    await writer.drain()
    if not asked.answered:
        return b""
    answer = await reader.read(2**16)
    while await reader.read(2**16):
        pass
    return answer


async def flood(address: tuple[str, int], attacker: Attacker, *, rate: float, count: int) -> tuple[Tally, float]:
    """`count` requests, one each 1/rate seconds; what came back, and how many seconds the sending took."""
    tally, began = Tally(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            wait = began + number / rate - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            elif number % 50 == 0:
                await asyncio.sleep(0)
            group.create_task(send(address, attacker.next(), tally))
        sent = time.perf_counter() - began
    return tally, sent


def make_workspace(folder: Path, *, limit: int) -> Path:
    """A configuration and a database with a ranking of IMAGES images."""
    (folder / "pool").mkdir()
    database = Database(f"sqlite:///{folder / 'activeseg.db'}")
    migrate.upgrade(database)
    sha = "0" * 64
    definition = {"names": ["sky", "road"], "colors": [[0, 0, 255], [128, 128, 128]], "ignore_index": None}
    with database.write() as session:
        session.add(labels := LabelSetRow(fingerprint=sha, definition=definition))
        session.flush()
        common = {"location": "checkpoints/x", "sha256": sha, "architecture": "a", "spec": {}}
        session.add(checkpoint := Checkpoint(model_version="m1", label_set_id=labels.id, **common))
        session.flush()
        session.add(Promotion(checkpoint_id=checkpoint.id, decision=Decision.PROMOTED, reason="first", decided_by="bench"))
        session.add(config := ScoringConfig(checkpoint_id=checkpoint.id, fingerprint=sha, definition={}))
        session.flush()
        session.add(run := ScoringRun(scoring_config_id=config.id, device="cpu", images_planned=IMAGES))
        session.flush()
        for number in range(1, IMAGES + 1):
            columns = {
                "sha256": sha,
                "size_bytes": 1,
                "width": 4,
                "height": 3,
                "split": Split.POOL,
                "status": ImageStatus.ACTIVE,
            }
            session.add(image := Image(uri=str(folder / f"pool/{number}.png"), **columns))
            session.flush()
            shares = {"entropy_share": 0.5, "margin_mean": 0.5, "least_confidence_mean": 0.5}
            figures = {"entropy_sum": float(number), "entropy_mean": 0.1, "valid_pixels": 12, "grid": [0.1] * 4}
            session.add(Score(scoring_config_id=config.id, image_id=image.id, scoring_run_id=run.id, **shares, **figures))
    database.close()
    file = folder / "activeseg.toml"
    serve = f"[serve]\nrequests_per_minute = {limit}\n"
    file.write_text(f'[database]\nurl = "sqlite:///activeseg.db"\n[pool]\nimages = "pool"\n{serve}', encoding="utf-8")
    return file


@contextmanager
def serving(config: Path) -> Iterator[tuple[int, tuple[str, int], str]]:
    """(process, address, token) of a server of its own."""
    command = [sys.executable, "-c", PROGRAM, "--config", str(config), "serve", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines: list[str] = []
            while not lines or lines[-1].strip() != "}":
                line = process.stdout.readline() if process.stdout else ""
                if not line:
                    raise SystemExit("the server did not start")
                lines.append(line)
            said = json.loads("".join(lines))
            host, _, port = said["url"].removeprefix("http://").rpartition(":")
            yield process.pid, (host, int(port)), Path(said["token"]).read_text(encoding="utf-8").strip()
        finally:
            process.terminate()
            process.wait(30)


def held(pid: int) -> dict[str, float]:
    """Memory in MB, open file handles and processor time of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    # Behind the name in brackets, which may hold anything, utime and stime are the 12th and 13th field.
    ticks = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[11:13]
    processor = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    handles = len(os.listdir(f"/proc/{pid}/fd"))
    return {"memory_mb": round(resident / 1024, 1), "file_handles": handles, "processor_seconds": round(processor, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=500.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-growth", type=float, default=32.0, help="MB of memory")
    parser.add_argument("--limited", action="store_true", help="keep the default limit: most answers are 429")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-http-") as folder:
        config = make_workspace(Path(folder), limit=600 if given.limited else 10**9)
        with serving(config) as (pid, address, token):
            attacker = Attacker(token, given.seed)
            # What is loaded and cached with the first requests is no leak.
            asyncio.run(flood(address, attacker, rate=1e6, count=WARM_UP))
            time.sleep(SETTLE_SECONDS)
            before = held(pid)
            count = round(given.rate * given.seconds)
            tally, seconds = asyncio.run(flood(address, attacker, rate=given.rate, count=count))
            time.sleep(SETTLE_SECONDS)
            after = held(pid)
    times = sorted(tally.seconds) or [0.0]
    growth = after["memory_mb"] - before["memory_mb"]
    reached = count / max(seconds, 1e-9)
    print(
        json.dumps(
            {
                "requests": count,
                "planned_per_second": given.rate,
                "sent_per_second": round(reached, 1),
                "server_errors": tally.errors,
                "statuses": dict(sorted(tally.statuses.items())),
                "p50_ms": round(times[len(times) // 2] * 1000, 1),
                "p99_ms": round(times[int(len(times) * 0.99)] * 1000, 1),
                "before": before,
                "after": after,
                "problems": tally.problems,
                "cores": os.cpu_count(),
            },
            indent=2,
        )
    )
    leaks = growth > given.max_growth or after["file_handles"] > before["file_handles"] + 4
    sys.exit(1 if tally.errors or leaks or reached < given.rate * 0.95 else 0)


if __name__ == "__main__":
    main()
