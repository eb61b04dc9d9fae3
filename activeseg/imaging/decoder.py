"""The process behind the wall: takes bytes, gives pixels, and may die over them. `imaging.sandbox` starts it.

It has no secrets in its environment, opens no file and no connection once it is ready (where a limit on open files can keep
it from that), and takes no more memory and processor time for an image than it was told. It ends when its caller does.

On standard input come requests: a REQUEST, then as many bytes as it says. On standard output go a REPLY and its text. Pixels
go through memory both share, from its beginning on. Nothing is pickled, so neither side can be made to run what it reads.
"""

from __future__ import annotations

import mmap
import os
import resource
import signal
import struct
import sys
from io import BytesIO
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from activeseg.errors import DataError, ImageError, MaskError
from activeseg.imaging.decode import FORMATS, check_resized, decode_sized
from activeseg.imaging.masks import read_values

PROBE, IMAGE, REDUCED, MASK = range(4)
"""What is asked for: size and format; pixels; pixels that may be decoded at a fraction of their size; the values of a mask."""

REQUEST = struct.Struct("<BQIQ")
"""What, pixels allowed, short side (0 = none), length of the data."""

REPLY = struct.Struct("<BIIIIBI")
"""State, height and width of what lies in the shared memory, height and width of the image, format, length of the text."""

READY, DONE, IMAGE_BAD, MASK_BAD, TOO_LARGE = range(5)
"""States. The text of DONE is what a mask says of its planes; that of the others the reason."""

CPU_SECONDS = 60
"""Processor time for one image. One of a hundred megapixels takes a few seconds."""

BYTES_PER_PIXEL = 32
"""Memory for a pixel: Pillow's four bytes each for the picture, a copy upright, with and over transparency; then ours."""

SPARE_BYTES = 512 * 2**20
"""Memory besides: what a decoder takes for itself."""

LONGEST_TEXT = 500

_NO_PIXELS: npt.NDArray[np.uint8] = np.empty((0, 0), np.uint8)


def main(shared: int) -> None:
    """Answer requests until there are none; shared: file descriptor of the memory for pixels."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the caller whom Ctrl-C is meant for
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", 0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)  # whatever a library prints is no reply
    _die_first()
    _warm_up()
    memory = mmap.mmap(shared, 0)
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
        resource.setrlimit(limit, (0, 0))
    replies.write(REPLY.pack(READY, 0, 0, 0, 0, 0, 0))
    while header := requests.read(REQUEST.size):
        what, max_pixels, short_side, length = REQUEST.unpack(header)
        replies.write(_answer(memory, what, max_pixels, short_side, requests, length))


def _answer(memory: mmap.mmap, what: int, max_pixels: int, short_side: int, requests: BinaryIO, length: int) -> bytes:
    text, name, size = "", FORMATS[0], (0, 0)
    pixels = _NO_PIXELS
    _limit(max_pixels, length)
    data = requests.read(length)
    try:
        if what == MASK:
            pixels, said = read_values(data, max_pixels)
            text, size = said or "", (pixels.shape[0], pixels.shape[1])
        else:
            found, name = decode_sized(data, max_pixels, short_side or None if what != PROBE else None, draft=what == REDUCED)
            size = found.size
            if what == PROBE:
                _prove_input(data, name, size, max_pixels, short_side)
            else:
                pixels = found.pixels
        memory.seek(0)
        memory.write(np.ascontiguousarray(pixels).data)
        state = DONE
    except (DataError, MemoryError) as error:
        pixels = _NO_PIXELS
        state = MASK_BAD if isinstance(error, MaskError) else IMAGE_BAD if isinstance(error, ImageError) else TOO_LARGE
        text = str(error)
    told = text.encode("utf-8", "replace")[:LONGEST_TEXT]
    height, width = pixels.shape[:2]
    return REPLY.pack(state, height, width, *size, FORMATS.index(name), len(told)) + told


def _prove_input(data: bytes, name: str, size: tuple[int, int], max_pixels: int, short_side: int) -> None:
    """A JPEG that scoring decodes at a fraction of its size is decoded so here, too: that is other code of libjpeg."""
    if short_side:
        check_resized(size, short_side, max_pixels)
        if name == "JPEG":
            decode_sized(data, max_pixels, short_side, draft=True)


def _limit(max_pixels: int, length: int) -> None:
    """Processor time and memory for one request, on top of what was used so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _at_most(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS)
    if (taken := _address_space()) is not None:
        _at_most(resource.RLIMIT_AS, taken + SPARE_BYTES + BYTES_PER_PIXEL * max_pixels + 3 * length)


def _at_most(limit: int, value: int) -> None:
    hard = resource.getrlimit(limit)[1]
    resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


_statm: BinaryIO | None = None


def _address_space() -> int | None:
    """Bytes of this process's address space; None where the system does not say (it then has no such limit either)."""
    if _statm is None:
        return None
    _statm.seek(0)
    return int(_statm.read().split()[0]) * resource.getpagesize()


def _die_first() -> None:
    """Where memory runs out, the kernel is to take this process and not the one that does the work."""
    global _statm
    try:
        _statm = open("/proc/self/statm", "rb", 0)  # noqa: SIM115
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
    except OSError:
        return  # not Linux


def _warm_up() -> None:
    """Decode a picture of each format: what is imported for them can be opened now, and not later."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    for name in FORMATS:
        picture = Image.fromarray(pixels).convert("RGB" if name in ("JPEG", "BMP") else "RGBA")
        stream, exif = BytesIO(), Image.Exif()
        exif[0x0112] = 6
        picture.save(stream, name, **({} if name == "BMP" else {"exif": exif.tobytes()}))
        decode_sized(stream.getvalue(), pixels.size, 4, draft=True)
    for values in (np.zeros((8, 8), np.uint16), np.zeros((8, 8), np.float32)):
        stream = BytesIO()
        Image.fromarray(values).save(stream, "TIFF", compression="tiff_lzw")
        try:
            decode_sized(stream.getvalue(), values.size)
        except ImageError:
            continue


if __name__ == "__main__":
    main(int(sys.argv[1]))
