"""Label Studio's bitmasks: PNG data URLs, opaque where the mask is.

What is sent is a PNG of one bit a pixel, black inside and transparent outside. What comes back is the same string for a
region nobody touched, and an RGBA picture from the browser for one that was edited.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL.PngImagePlugin import PngImageFile

from activeseg.errors import AnnotationError, ImageError
from activeseg.imaging.decode import decoding_errors

BoolMask = npt.NDArray[np.bool_]
_Bytes = npt.NDArray[np.uint8]

_DATA_URL = "data:image/png;base64,"
_OPAQUE = 127
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PALETTE, _RGBA = 3, 6
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), _PALETTE: (1, 2, 4, 8), 4: (8, 16), _RGBA: (8, 16)}
_CHANNELS = {0: 1, 2: 3, _PALETTE: 1, 4: 2, _RGBA: 4}
_LEFT, _UP = 1, 2  # row filters of PNG: bytes less those of the pixel to the left, less those above (0: as they are)
_END = bytes.fromhex("0000000049454e44ae426082")  # the last chunk of every PNG
_SLACK = 1 << 16  # bytes a PNG may have beyond its largest possible pixels


@dataclass(frozen=True, slots=True)
class _Png:
    """The parts of a PNG that decide its pixels; `rows` are its filtered rows, inflated."""

    header: bytes
    palette: bytes | None
    transparency: bytes | None
    rows: bytes


def encode_bitmask(mask: BoolMask) -> str:
    """A mask (H, W) bool as Label Studio's bitmask: data URL of a 1-bit PNG, black inside and transparent outside."""
    packed = np.packbits(mask, axis=1)
    rows = np.empty((packed.shape[0], packed.shape[1] + 1), np.uint8)
    rows[:, 0], rows[0, 1:] = _UP, packed[0]
    np.subtract(packed[1:], packed[:-1], out=rows[1:, 1:])
    # Less the row above, a mask is nearly all zeros. zlib's run-length strategy packs them smaller than its slowest level
    # packs the plain rows, in a tenth of the time.
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    pixels = _chunk(b"IDAT", packer.compress(rows.tobytes()) + packer.flush())
    return _DATA_URL + binascii.b2a_base64(_start(*mask.shape) + pixels + _END, newline=False).decode("ascii")


@lru_cache(maxsize=64)
def _start(height: int, width: int) -> bytes:
    """What stands before the pixels of a bitmask: many of one size are written one after the other."""
    header = struct.pack(">IIBBBBB", width, height, 1, _PALETTE, 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"PLTE", bytes(6)) + _chunk(b"tRNS", b"\0\xff")


def decode_bitmask(url: str, height: int, width: int) -> BoolMask:
    """Mask (H, W) bool of a bitmask, True where it is more than half opaque.

    Its size is checked before anything is unpacked, unpacking ends with that size, and whatever does not decide a pixel
    (texts, profiles) is never looked at. Raises AnnotationError, with the reason, on anything but a whole PNG of this size.
    """
    png = _read(_bytes_of(url, height, width), height, width)
    kind = png.header[8], png.header[9]
    rows = np.frombuffer(png.rows, np.uint8).reshape(height, -1)
    if kind == (8, _RGBA) and (alpha := _unfilter(rows[:, 0], rows[:, 4::4])) is not None:
        return alpha > _OPAQUE
    if kind == (1, _PALETTE) and (packed := _unfilter(rows[:, 0], rows[:, 1:])) is not None:
        opaque = [alpha > _OPAQUE for alpha in ((png.transparency or b"")[:2]).ljust(2, b"\xff")]
        bits = np.unpackbits(packed, axis=1, count=width)
        return bits.view(np.bool_) if opaque == [False, True] else np.array(opaque)[bits]
    return _alpha(png) > _OPAQUE


def _bytes_of(url: str, height: int, width: int) -> bytes:
    if not isinstance(url, str) or not url.startswith(_DATA_URL):
        raise AnnotationError(f"a bitmask must be a {_DATA_URL!r} string")
    most = 8 * height * width + height + _SLACK
    if len(url) * 3 // 4 > most + len(_DATA_URL):
        raise AnnotationError(f"a bitmask of {len(url)} characters is longer than {width}x{height} pixels can need")
    try:
        return base64.b64decode(url[len(_DATA_URL) :], validate=True)
    except ValueError as error:
        raise _unreadable(f"not base64: {error}") from error


def _unreadable(reason: str) -> AnnotationError:
    return AnnotationError(f"a bitmask is not a readable PNG ({reason})")


def _read(data: bytes, height: int, width: int) -> _Png:
    if data[:8] != _SIGNATURE or data[12:16] != b"IHDR" or data[16:24] != struct.pack(">II", width, height):
        raise AnnotationError(f"a bitmask must be a PNG of {width}x{height} pixels")
    chunks = _chunks(data)
    header = chunks[b"IHDR"]
    if len(header) != 13 or header[8] not in _DEPTHS.get(header[9], ()) or header[10:12] != b"\0\0":
        raise _unreadable("damaged header")
    if header[12]:
        raise _unreadable("it is interlaced; save it without")
    bits = width * _CHANNELS[header[9]] * header[8]
    rows = _inflate(chunks.get(b"IDAT", b""), height * (1 + (bits + 7) // 8))
    return _Png(header, chunks.get(b"PLTE"), chunks.get(b"tRNS"), rows)


def _chunks(data: bytes) -> dict[bytes, bytes]:
    """The chunks that decide pixels, their checksums compared; those of the image data as one."""
    found: dict[bytes, bytes] = {}
    pixels: list[bytes] = []
    at = len(_SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        if kind == b"IEND":
            return found | {b"IDAT": b"".join(pixels)}
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT"):
            if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
                raise _unreadable(f"damaged {kind.decode()} chunk")
            content = data[at + 8 : end - 4]
            if kind == b"IDAT":
                pixels.append(content)
            elif found.setdefault(kind, content) is not content:
                raise _unreadable(f"two {kind.decode()} chunks")
        at = end
    raise _unreadable("it ends early")


def _inflate(data: bytes, size: int) -> bytes:
    """Exactly `size` bytes; no more are ever unpacked."""
    unpacker = zlib.decompressobj()
    try:
        rows = unpacker.decompress(data, size + 1)
    except zlib.error as error:
        raise _unreadable(f"damaged pixels: {error}") from error
    if len(rows) > size:
        raise _unreadable(f"it unpacks to more than the {size} bytes of its size")
    if len(rows) < size or not unpacker.eof:
        raise _unreadable("its pixels end early")
    return rows


def _unfilter(filters: _Bytes, rows: _Bytes) -> _Bytes | None:
    """Rows of one channel that all have the same of the simple filters, as we and browsers write them; None for others."""
    first = int(filters[0])
    if first > _UP or (filters != first).any():
        return None
    plain = np.array(rows, order="C")
    summed = plain.T if first == _LEFT else plain
    step = 1 if first else len(summed)
    while step < len(summed):  # running sums, in log2 of the length steps: numpy's accumulate takes ten times as long
        summed[step:] += summed[:-step]
        step *= 2
    return plain


def _alpha(png: _Png) -> _Bytes:
    """Alpha (H, W) uint8 by Pillow. It is handed the checked chunks only, and pixels that are unpacked already."""
    data = _write(png.header, png.palette, png.transparency, zlib.compress(png.rows, 0))
    try:
        with decoding_errors("PNG"), PngImageFile(BytesIO(data)) as image:
            image.load()
            full = image if image.mode in ("RGBA", "LA") else image.convert("RGBA")
            return np.asarray(full.getchannel("A"))
    except ImageError as error:
        raise _unreadable(str(error)) from error


def _write(header: bytes, palette: bytes | None, transparency: bytes | None, pixels: bytes) -> bytes:
    parts = ((b"IHDR", header), (b"PLTE", palette), (b"tRNS", transparency), (b"IDAT", pixels), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, content) for kind, content in parts if content is not None)


def _chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return len(content).to_bytes(4) + body + zlib.crc32(body).to_bytes(4)
