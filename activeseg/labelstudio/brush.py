"""Label Studio's brush masks: RLE of interleaved RGBA values, bit by bit (thi.ng rle-pack).

Layout, most significant bit first: 32 bits number of values (4 per pixel), 5 bits word size - 1, four times 4 bits run
size - 1; then records of 1 bit repeat flag, 2 bits index of the run size, the run's length - 1 in that many bits, and one
word (repeat) or `length` words (literals). Source: thi.ng/umbrella packages/rle-pack and the SDK's converter/brush.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from activeseg.errors import AnnotationError

BoolMask = npt.NDArray[np.bool_]

_CHANNELS = 4
_WORD = 8
_RUN_BITS = np.array([3, 4, 8, 16])
_RUN_LIMITS = np.array([8, 16, 256])  # the longest run of each size but the last
_LONGEST = 1 << 16
_HEADER_BITS = 32 + 5 + 4 * 4
_OPAQUE = 127  # strokes drawn in the browser have soft edges: a pixel belongs to the mask above half opacity


def encode_rle(mask: BoolMask) -> list[int]:
    """Bytes (0..255) of a mask (H, W) bool: every channel is 255 inside and 0 outside.

    Equal to the SDK's `mask2rle`, but for the zero byte it adds to a stream that ends on a full byte already.
    """
    flat = mask.ravel()
    header = [(flat.size * _CHANNELS, 32), (_WORD - 1, 5), *((int(bits) - 1, 4) for bits in _RUN_BITS)]
    bits = np.concatenate([*(_bits_of(value, width) for value, width in header), _record_bits(flat)])
    return list(np.packbits(bits).tobytes())


def decode_rle(rle: Sequence[int] | bytes, height: int, width: int) -> BoolMask:
    """Mask (H, W) bool from RLE bytes: True where alpha is above half.

    The header is compared with height x width before anything is allocated. Raises AnnotationError where the bytes do
    not describe exactly that many pixels.
    """
    data = _as_bytes(rle)
    total = height * width * _CHANNELS
    if len(data) * 8 < _HEADER_BITS:
        raise AnnotationError(f"RLE of {len(data)} bytes is too short for its header")
    header = int.from_bytes(data[:7]) >> (56 - _HEADER_BITS)
    if (count := header >> 21) != total:
        raise AnnotationError(f"RLE holds {count} values; expected {total} for {width}x{height} pixels in RGBA")
    if (word := (header >> 16 & 31) + 1) != _WORD:
        raise AnnotationError(f"RLE has words of {word} bits; expected {_WORD}")
    values = np.empty(total, np.uint8)
    _fill(values, data, [(header >> shift & 15) + 1 for shift in (12, 8, 4, 0)])
    return values.reshape(height, width, _CHANNELS)[..., 3] > _OPAQUE


def _record_bits(flat: BoolMask) -> npt.NDArray[np.uint8]:
    """The records of all runs as a bit array: each record is a number of at most 27 bits, cut from a row of 27."""
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]])) if flat.size else np.array([], np.int64)
    lengths = np.diff(starts, append=flat.size) * _CHANNELS
    pieces = -(-lengths // _LONGEST)
    # All pieces of a long run have the widest size, also a short last one: so the SDK writes them.
    size = np.repeat(np.searchsorted(_RUN_LIMITS, lengths), pieces)
    value = np.repeat(np.where(flat[starts], 255, 0), pieces)
    length = np.full(pieces.sum(), _LONGEST)
    length[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * _LONGEST
    width = 1 + 2 + _RUN_BITS[size] + _WORD
    code = ((0b100 | size) << _RUN_BITS[size] | (length - 1)) << _WORD | value
    column = np.arange(int(width.max(initial=0)) - 1, -1, -1)
    bits: npt.NDArray[np.uint8] = ((code[:, None] >> column) & 1).astype(np.uint8)[column < width[:, None]]
    return bits


def _bits_of(value: int, width: int) -> npt.NDArray[np.uint8]:
    return ((value >> np.arange(width - 1, -1, -1)) & 1).astype(np.uint8)


def _as_bytes(rle: Sequence[int] | bytes) -> bytes:
    try:
        return bytes(rle)
    except (TypeError, ValueError) as error:
        raise AnnotationError(f"RLE must be a list of numbers 0..255 ({error})") from error


def _fill(values: npt.NDArray[np.uint8], data: bytes, run_bits: Sequence[int]) -> None:
    """Decode the records. A record but for its literals fits into 40 bits from the byte it begins in."""
    windows = _windows(data)
    at, position, total, last = 0, _HEADER_BITS, values.size, len(data) * 8
    while at < total:
        if position >= last:
            raise AnnotationError(f"RLE of {len(data)} bytes ends after {at} of {total} values")
        window, left = windows[position >> 3], 37 - (position & 7)
        head = window >> left & 7
        bits = run_bits[head & 3]
        end = at + (window >> left - bits & (1 << bits) - 1) + 1
        if end > total:
            raise AnnotationError(f"RLE describes more than the {total} values of its header")
        position += 3 + bits
        if head & 4:
            values[at:end] = window >> left - bits - _WORD & 255
            position += _WORD
        else:
            values[at:end] = _literals(data, position, end - at)
            position += (end - at) * _WORD
        at = end
    if position > last:
        raise AnnotationError(f"RLE of {len(data)} bytes ends in the middle of a record")


def _windows(data: bytes) -> list[int]:
    """The 40 bits that begin at each byte."""
    padded = np.frombuffer(data + bytes(4), np.uint8).astype(np.int64)
    count = len(data)
    windows = sum((padded[i : i + count] << (32 - 8 * i) for i in range(1, 5)), padded[:count] << 32)
    return [int(window) for window in windows.tolist()]


def _literals(data: bytes, position: int, count: int) -> npt.NDArray[np.uint8]:
    first, shift = position >> 3, position & 7
    window = np.frombuffer(data[first : first + count + 1] + b"\0", np.uint8).astype(np.uint16)
    if len(window) < count + 1:
        raise AnnotationError(f"RLE of {len(data)} bytes ends in the middle of a record")
    return ((window[:count] << shift | window[1 : count + 1] >> (8 - shift)) & 0xFF).astype(np.uint8)
