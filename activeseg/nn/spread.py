"""One pass over several devices: a process for each, fed with images and heard by this one.

    this process    hands out images, a few at a time, to whoever asks; takes what comes of them, in whatever order
    the others      open network and files themselves (`Prepare`) and do what `infer.score_images` does, on their device

Between them go references to images, scores and reasons; pixels never. A process asks for more before it has used up what it
has, so the faster device gets the larger share. All end with the pass, and with the process that holds it, however that ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from activeseg import errors
from activeseg.errors import ActivesegError, DeviceLostError
from activeseg.nn.checkpoint import Segmenter
from activeseg.nn.decoding import FEWEST_READERS, Read, default_readers
from activeseg.nn.infer import score_images
from activeseg.nn.pace import Pace
from activeseg.records import ImageRef, ImageScore, ScoreFailure

Prepare = Callable[[torch.device], tuple[Segmenter, Read]]
"""Opens the network on a device, and whatever images are read from. Called in the process that uses it; must be picklable."""

BLOCK = 16
"""Images handed out at once, at most."""

Result = ImageScore | ScoreFailure


@dataclass(frozen=True, slots=True)
class _More:
    """Asked by a process: the next images."""


@dataclass(frozen=True, slots=True)
class _Block:
    """The answer. images: none where there are no more. left: images this process will still get, as far as can be told."""

    images: list[ImageRef]
    left: float


@dataclass(frozen=True, slots=True)
class _Found:
    """Told by a process: results, and its pace so far. ended: there is nothing more to come."""

    results: list[Result]
    pace: dict[str, Any]
    ended: bool = False


@dataclass(frozen=True, slots=True)
class _Failed:
    """Told by a process: what it was ended by. Its words and not itself, which need not survive the way."""

    kind: str
    message: str
    trace: str


def score_spread(
    devices: Sequence[torch.device],
    images: Iterable[ImageRef],
    prepare: Prepare,
    *,
    pace: Pace,
    left: Callable[[], float],
    options: Mapping[str, Any],
) -> Generator[Result, None, None]:
    """Scores as `infer.score_images` gives them, one result per image, as the devices finish them.

    images: iterated in this process, no further ahead than the others ask. pace: images and failures are sums over the
    processes, waiting their mean, compiling what took longest. left: images the pass will still see.
    options: whatever else `score_images` takes (precision, batch_size, readers, compile, cache, needs, temperature).

    Raises what `prepare` or `score_images` raised in one of the processes (RuntimeError for what is no ActivesegError),
    DeviceLostError where one was ended.
    """
    context, coming, crew = multiprocessing.get_context("spawn"), iter(images), list[_Member]()
    try:
        for device in devices:
            crew.append(_Member(context, device, prepare, _share_of(options, devices, device)))
        while working := [member for member in crew if not member.ended]:
            speaking = wait([member.connection for member in working])
            for member in (one for one in working if one.connection in speaking):
                told = member.hear()
                if isinstance(told, _More):
                    count = max(1, min(BLOCK, round(left() / (2 * len(crew)))))
                    member.answer(_Block(list(islice(coming, count)), left() / len(crew)))
                else:
                    member.pace, member.ended = told.pace, told.ended
                    _gather(pace, [one.pace for one in crew if one.pace])
                    yield from told.results
    finally:
        for member in crew:
            member.end()


class _Member:
    """A process and the pipe to it. pace: its last one."""

    def __init__(self, context: Any, device: torch.device, prepare: Prepare, options: Mapping[str, Any]) -> None:
        self.device, self.pace, self.ended = device, dict[str, Any](), False
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(
            target=_work, args=(theirs, str(device), prepare, dict(options)), name=f"activeseg-score {device}", daemon=True
        )
        self.process.start()
        theirs.close()  # else its end would not be seen here

    def hear(self) -> _More | _Found:
        """What it says. Raises what it was ended by."""
        try:
            told = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._gone() from error
        if isinstance(told, _Failed):
            kind = getattr(errors, told.kind, None)
            if isinstance(kind, type) and issubclass(kind, ActivesegError):
                raise kind(told.message)
            raise RuntimeError(f"{told.kind} while scoring on {self.device}: {told.message}\n{told.trace}")
        assert isinstance(told, _More | _Found)
        return told

    def answer(self, block: _Block) -> None:
        """Hand over images."""
        try:
            self.connection.send(block)
        except OSError as error:
            raise self._gone() from error

    def end(self) -> None:
        """End the process, whatever it is at."""
        self.connection.close()
        self.process.kill()
        self.process.join()
        self.process.close()

    def _gone(self) -> DeviceLostError:
        self.process.join(10)
        return DeviceLostError(
            f"the process that scored on {self.device} ended (exit status {self.process.exitcode}; -9 is what the kernel does "
            "where memory runs out): what was written stays, and the next run goes on"
        )


def _share_of(options: Mapping[str, Any], devices: Sequence[torch.device], device: torch.device) -> dict[str, Any]:
    """The options of one of the processes. Where no `readers` are asked for, together they read with as many as one would,
    but each with FEWEST_READERS at least."""
    readers = options.get("readers") or max(FEWEST_READERS, default_readers() // len(devices))
    # Several on one CPU would each take all of its cores.
    threads = max(1, torch.get_num_threads() // devices.count(device)) if device.type == "cpu" else torch.get_num_threads()
    return {**options, "readers": readers, "threads": threads}


def _gather(pace: Pace, told: Sequence[Mapping[str, Any]]) -> None:
    pace.images = sum(one["images"] for one in told)
    pace.failed = sum(one["failed"] for one in told)
    pace.batch_size = max(one["batch_size"] for one in told)
    pace.compiled_images = sum(one["compiled_images"] for one in told)
    pace.compile_seconds = max(one["compile_seconds"] for one in told)
    pace.not_compiled = next((one["not_compiled"] for one in told if one["not_compiled"]), None)
    pace.waited["decode"] = sum(one["waited"]["decode"] for one in told) / len(told)
    pace.waited["device"] = sum(one["waited"]["device"] for one in told) / len(told)


# In the processes


class _NobodyListens(BaseException):
    """The process that holds this one is gone. No error: nobody is left to be told of one."""


def _work(connection: Connection, device: str, prepare: Prepare, options: dict[str, Any]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C, or a service manager's to all: it is the caller who is meant
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(options.pop("threads"))
    try:
        try:
            _score(connection, torch.device(device), prepare, options)
        except Exception as error:
            _say(connection, _Failed(type(error).__name__, str(error), traceback.format_exc()))
    except _NobodyListens:
        os._exit(1)


def _score(connection: Connection, device: torch.device, prepare: Prepare, options: dict[str, Any]) -> None:
    segmenter, read = prepare(device)
    pace, results = Pace(), list[Result]()
    feed = _Feed(connection, lambda: _tell(connection, results, pace))
    for result in score_images(segmenter, feed, read, device=device, pace=pace, left=lambda: feed.left, **options):
        results.append(result)
        if len(results) >= BLOCK:
            _tell(connection, results, pace)
    _tell(connection, results, pace, ended=True)


def _tell(connection: Connection, results: list[Result], pace: Pace, *, ended: bool = False) -> None:
    """Hand over what was found so far."""
    if results or ended:
        _say(connection, _Found(results, asdict(pace), ended))
        results.clear()


def _say(connection: Connection, what: _More | _Found | _Failed) -> None:
    try:
        connection.send(what)
    except OSError as error:
        raise _NobodyListens from error


class _Feed:
    """The images of one process, asked for as they are needed. left: images it will still get, as far as was told."""

    def __init__(self, connection: Connection, before_waiting: Callable[[], None]) -> None:
        self._connection, self._before_waiting = connection, before_waiting
        self.left = 0.0

    def __iter__(self) -> Iterator[ImageRef]:
        _say(self._connection, _More())
        while block := self._next():
            _say(self._connection, _More())  # before these are used up
            yield from block

    def _next(self) -> list[ImageRef]:
        self._before_waiting()
        try:
            block: _Block = self._connection.recv()
        except (EOFError, OSError) as error:
            raise _NobodyListens from error
        self.left = block.left
        return block.images
