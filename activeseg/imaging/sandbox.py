"""Decoding behind a wall: a file that kills its decoder, eats the memory or never ends costs itself and nothing else.

The functions are those of `imaging.decode` and `imaging.masks`; they give and raise the same, but decode in processes of
their own (`imaging.decoder`), which are kept for the next image. What kills such a process becomes an ImageError (of a mask:
a MaskError) with its reason. Safe to call from several threads: as many images are decoded at a time as there are cores.

Pixels come through memory that both share (`imaging.shared_pixels`). Limits on processor time, files and core dumps hold on
macOS, too; the one on memory, and being the first to go where memory runs out, are Linux's.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

import activeseg
from activeseg.errors import ConfigError, ImageError, MaskError
from activeseg.imaging import decoder
from activeseg.imaging.decode import FORMATS, Decoded, ImageInfo, Pixels
from activeseg.imaging.masks import Mask, class_indices, plane_errors
from activeseg.imaging.shared_pixels import SharedPixels
from activeseg.records import InputPolicy

WALL_SECONDS = 10.0 * decoder.CPU_SECONDS
"""A decoder that has not answered by then is ended; the processor may be busy with other things."""

START_SECONDS = 120.0

LOOK_AGAIN = "looked at again by the next sync"
"""Part of a reason that may be the machine's fault and not the file's."""

_START = "import sys; sys.path.append(sys.argv[2]); from activeseg.imaging.decoder import main; main(int(sys.argv[1]))"
_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_STATES = (decoder.DONE, decoder.IMAGE_BAD, decoder.MASK_BAD, decoder.TOO_LARGE)
_IMPOSSIBLE = "its decoder gave an answer that cannot be"
_BAD = {decoder.IMAGE_BAD: ImageError, decoder.MASK_BAD: MaskError}


def probe(data: bytes, *, max_pixels: int, policy: InputPolicy | None = None) -> ImageInfo:
    """As `decode.probe`. policy: how scoring will see it; where that is by other code, it is decoded so, too."""
    short_side = policy.short_side if policy is not None else None
    reply = _decoders.ask(_Request(decoder.PROBE, data, max_pixels, short_side))
    return ImageInfo(reply.size[1], reply.size[0], reply.format)


def decode_image(data: bytes, *, max_pixels: int) -> Pixels:
    """As `decode.decode_image`."""
    return _decoders.ask(_Request(decoder.IMAGE, data, max_pixels)).pixels


def decode_input(data: bytes, policy: InputPolicy, *, max_pixels: int) -> Decoded:
    """As `decode.decode_input`."""
    what = decoder.REDUCED if policy.reduced else decoder.IMAGE
    reply = _decoders.ask(_Request(what, data, max_pixels, policy.short_side))
    return Decoded(reply.pixels, reply.size)


def decode_mask(data: bytes, *, max_pixels: int) -> Mask:
    """As `masks.decode_mask`."""
    try:
        reply = _decoders.ask(_Request(decoder.MASK, data, max_pixels))
    except ImageError as error:
        raise MaskError(f"mask: {error}") from error
    return class_indices(reply.pixels, reply.text or None)


def decode_plane(data: bytes, *, max_pixels: int) -> npt.NDArray[np.bool_]:
    """As `masks.decode_plane`."""
    with plane_errors():
        return decode_mask(data, max_pixels=max_pixels) > 0


def close() -> None:
    """End the decoders; the next image starts new ones."""
    _decoders.close()


def processes() -> list[int]:
    """Process numbers of the decoders that wait for an image."""
    return _decoders.waiting()


@dataclass(frozen=True, slots=True)
class _Request:
    what: int
    data: bytes
    max_pixels: int
    short_side: int | None = None

    @property
    def header(self) -> bytes:
        return decoder.REQUEST.pack(self.what, self.max_pixels, self.short_side or 0, len(self.data))

    @property
    def room(self) -> int:
        """Bytes of shared memory it needs at most."""
        return 3 * self.max_pixels


@dataclass(frozen=True, slots=True, eq=False)
class _Reply:
    """pixels: (h, w, 3) or (h, w) uint8, empty for a probe. size: (H, W) of the image. text: what a mask says of its planes."""

    pixels: npt.NDArray[np.uint8]
    size: tuple[int, int]
    format: str
    text: str


class _DecoderDied(Exception):
    """reason: for people, and for a quarantine row. final: it would end like that a second time."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.final = reason, final


def _end_of(status: int) -> _DecoderDied:
    """What a process's end says. status: as `Popen.wait` gives it."""
    if status == -signal.SIGXCPU:
        return _too_long()
    if status == -signal.SIGKILL:
        return _DecoderDied(f"its decoder was killed, as where memory runs out: it is {LOOK_AGAIN}")
    how = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
    return _DecoderDied(f"its decoder died over it ({how})")


def _too_long() -> _DecoderDied:
    # Made anew each time: an error keeps the frames it went through, and with them the bytes of the image.
    return _DecoderDied(f"decoding it takes more than {decoder.CPU_SECONDS} s of processor time: it was given up", final=True)


class _Decoder:
    """One process and the memory it shares with this one."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._shared = SharedPixels(room)
        root = str(Path(activeseg.__file__).parents[1])
        kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        try:
            # Isolated: neither the caller's variables nor its folder say what is imported. Nobody's secrets go along.
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-c", _START, str(self._shared.descriptor), root],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                pass_fds=(self._shared.descriptor,),
                env=kept | {"LC_ALL": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            self._shared.close()
            raise ConfigError(f"no process for decoding images can be started: {error.strerror}") from error
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._to, self._from = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self._to, False)
        os.set_blocking(self._from, False)
        self._await_ready()

    def _await_ready(self) -> None:
        try:
            self._receive(decoder.REPLY.size, time.monotonic() + START_SECONDS)
        except _DecoderDied as error:
            raise ConfigError(f"the process for decoding images does not start ({error.reason}): is memory short?") from error

    def ask(self, request: _Request) -> _Reply:
        """Raises ImageError or MaskError as the process did, and _DecoderDied."""
        until = time.monotonic() + WALL_SECONDS
        self._send(request.header, until)
        self._send(request.data, until)
        state, height, width, full_height, full_width, number, length = decoder.REPLY.unpack(
            self._receive(decoder.REPLY.size, until)
        )
        # What answers may have been taken over by what it decoded: nothing it says is believed unseen.
        shape = (height, width) if request.what == decoder.MASK else (height, width, 3)
        sizes = (height * width if request.what != decoder.PROBE else 1, full_height * full_width)
        honest = state != decoder.DONE or all(0 < size <= request.max_pixels for size in sizes)
        if not honest or state not in _STATES or number >= len(FORMATS) or length > decoder.LONGEST_TEXT:
            self.end()
            raise _DecoderDied(_IMPOSSIBLE, final=True)
        text = self._receive(length, until).decode("utf-8", "replace")
        if state == decoder.TOO_LARGE:
            raise ImageError("decoding it takes more memory than its pixels can need: it was given up")
        if state != decoder.DONE:
            raise _BAD[state](text)
        return _Reply(self._take(shape), (full_height, full_width), FORMATS[number], text)

    def end(self) -> None:
        """End the process and give everything back."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self._shared.close()

    def _take(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        pixels = self._shared.read(int(np.prod(shape)))
        if pixels is None:
            self.end()
            raise _DecoderDied(_IMPOSSIBLE, final=True)
        return pixels.reshape(shape)

    def _send(self, data: bytes, until: float) -> None:
        left = memoryview(data)
        while left:
            self._wait(self._to, select.POLLOUT, until)
            try:
                left = left[os.write(self._to, left) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._died() from error

    def _receive(self, count: int, until: float) -> bytes:
        received = bytearray()
        while len(received) < count:
            self._wait(self._from, select.POLLIN, until)
            try:
                part = os.read(self._from, count - len(received))
            except BlockingIOError:
                continue
            if not part:
                raise self._died()
            received += part
        return bytes(received)

    def _wait(self, descriptor: int, event: int, until: float) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(max(until - time.monotonic(), 0.0) * 1000):
            self.end()
            raise _DecoderDied(f"its decoder gave no answer in time and was given up: it is {LOOK_AGAIN}", final=True)

    def _died(self) -> _DecoderDied:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5.0)  # it closed its end: what ended it is known in a moment
        status = self.process.poll()
        self.end()
        return _end_of(self.process.returncode if status is None else status)


class _Decoders:
    """Decoders in waiting, and how many there may be."""

    def __init__(self) -> None:
        self._waiting: list[_Decoder] = []
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(cores())

    def ask(self, request: _Request) -> _Reply:
        """What a decoder answers. One that dies is replaced once: it may have died of something else."""
        with self._free:
            try:
                return self._ask(request)
            except _DecoderDied as error:
                if error.final:
                    raise ImageError(error.reason) from error
            try:
                return self._ask(request)
            except _DecoderDied as error:
                raise ImageError(error.reason) from error

    def _ask(self, request: _Request) -> _Reply:
        with self._lock:
            found = self._waiting.pop() if self._waiting else None
        if found is not None and found.room < request.room:
            found.end()
            found = None
        used = found or _Decoder(request.room)
        try:
            reply = used.ask(request)
        except (ImageError, MaskError):
            self._put_back(used)
            raise
        except BaseException:
            used.end()  # also where this process is interrupted: its answer would be taken for the next one's
            raise
        self._put_back(used)
        return reply

    def _put_back(self, used: _Decoder) -> None:
        with self._lock:
            self._waiting.append(used)

    def waiting(self) -> list[int]:
        """Process numbers of those in waiting."""
        with self._lock:
            return [used.process.pid for used in self._waiting]

    def close(self) -> None:
        """End those in waiting."""
        with self._lock:
            ended, self._waiting = self._waiting, []
        for used in ended:
            used.end()


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_decoders = _Decoders()


def _forget() -> None:
    """A forked process has copies of pipes that another one talks through."""
    global _decoders
    _decoders = _Decoders()


atexit.register(close)
os.register_at_fork(after_in_child=_forget)
