"""Label Studio's brush masks: RLE of interleaved RGBA values, bit by bit (thi.ng rle-pack).

Layout, most significant bit first: 32 bits number of values (4 per pixel), 5 bits word size - 1, four times 4 bits run
size - 1; then records of 1 bit repeat flag, 2 bits index of the run size, the run's length - 1 in that many bits, and one
word (repeat) or `length` words (literals). Source: thi.ng/umbrella packages/rle-pack and the SDK's converter/brush.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from activeseg.errors import AnnotationError

BoolMask = npt.NDArray[np.bool_]
_Ints = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

_CHANNELS = 4
_WORD = 8
_RUN_BITS = np.array([3, 4, 8, 16])
_RUN_LIMITS = np.array([8, 16, 256])  # the longest run of each size but the last
_LONGEST = 1 << 16
_HEADER_BITS = 32 + 5 + 4 * 4
_OPAQUE = 127  # strokes drawn in the browser have soft edges: a pixel belongs to the mask above half opacity

_COSTLIEST = 1 + 2 + 16 + _WORD  # bits of a record that holds a single value
_BLOCK = 1 << 15  # so many bytes are read at a time: the tables stay small, whatever a stream holds
_MOST_LITERALS = 1 << 16


def encode_rle(mask: BoolMask) -> list[int]:
    """Bytes (0..255) of a mask (H, W) bool: every channel is 255 inside and 0 outside.

    Equal to the SDK's `mask2rle`, but for the zero byte it adds to a stream that ends on a full byte already.
    """
    flat = np.asarray(mask, np.bool_).ravel()
    sizes = sum(int(bits) - 1 << shift for bits, shift in zip(_RUN_BITS, (12, 8, 4, 0), strict=True))
    header = [(flat.size * _CHANNELS, 32), ((_WORD - 1) << 16 | sizes, _HEADER_BITS - 32)]
    codes, widths = _records(flat)
    first, first_widths = (np.array(column, np.int64) for column in zip(*header, strict=True))
    return list(_join(np.concatenate([first, codes]), np.concatenate([first_widths, widths])))


def decode_rle(rle: Sequence[int] | bytes, height: int, width: int) -> BoolMask:
    """Mask (H, W) bool from RLE bytes: True where alpha is above half.

    The header is compared with height x width, and the number of bytes with what so many pixels can need, before anything
    is allocated; beside the mask and the bytes it takes a few megabytes, whatever they say. Raises AnnotationError where
    they do not describe exactly that many pixels.
    """
    total = height * width * _CHANNELS
    stream = _open(rle, total, f"{width}x{height}")
    mask = np.zeros(height * width, np.bool_)
    position, done = _HEADER_BITS, 0
    while done < total:
        if position >= stream.bits:
            raise AnnotationError(f"RLE of {stream.bits // 8} bytes ends after {done} of {total} values")
        starts, position = _find_records(stream, position)
        lengths, values = _read_records(stream, starts, total - done)
        # Pixel i is what its alpha says, value 4i + 3: a run decides the pixels whose alpha it holds.
        ends = (done + np.cumsum(lengths)) // _CHANNELS
        first = done // _CHANNELS
        mask[first : int(ends[-1])] = np.repeat(values > _OPAQUE, np.diff(ends, prepend=first))
        done += int(lengths.sum())
    return mask.reshape(height, width)


def _records(flat: BoolMask) -> tuple[_Ints, _Ints]:
    """The records of all runs: the bits of each as a number, and how many they are."""
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1]) if flat.size else np.array([], np.int64)
    lengths = np.diff(starts, append=flat.size) * _CHANNELS
    pieces = -(-lengths // _LONGEST)
    # All pieces of a long run have the widest size, also a short last one: so the SDK writes them.
    size = np.repeat(np.searchsorted(_RUN_LIMITS, lengths), pieces)
    value = np.repeat(np.where(flat[starts], 255, 0), pieces)
    length = np.full(int(pieces.sum()), _LONGEST)
    length[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * _LONGEST
    bits = _RUN_BITS[size]
    return ((0b100 | size) << bits | (length - 1)) << _WORD | value, 1 + 2 + bits + _WORD


def _join(codes: _Ints, widths: _Ints) -> bytes:
    """Numbers of at most 32 bits written one behind the other, with zeros up to a full byte."""
    ends = np.cumsum(widths)
    starts = ends - widths
    # Each lies in one word of 32 bits or in two. No two share a bit, so words are sums, and float64 holds them exactly.
    halves = codes.astype(np.uint64) << (64 - (starts & 31) - widths).astype(np.uint64)
    word, count = starts >> 5, (int(ends[-1]) >> 5) + 2
    words = np.bincount(word, halves >> np.uint64(32), count) + np.bincount(word + 1, halves & np.uint64(0xFFFFFFFF), count)
    return words.astype(">u4").tobytes()[: (int(ends[-1]) + 7) // 8]


@dataclass(frozen=True, slots=True)
class _Stream:
    """The bytes, with zeros behind the end; how many bits there are; the four sizes of a run's length, in bits."""

    data: bytes
    bits: int
    sizes: tuple[int, ...]

    def windows(self, kind: str) -> npt.NDArray[np.generic]:
        """The big-endian number of this kind that begins at each byte; nothing is copied."""
        count = len(self.data) - np.dtype(kind).itemsize + 1
        return np.ndarray((count,), kind, self.data, strides=(1,))


def _open(rle: Sequence[int] | bytes, total: int, size: str) -> _Stream:
    if not isinstance(rle, (list, tuple, bytes)):  # of a number, bytes() would make that many zeros
        raise AnnotationError(f"RLE must be a list of numbers 0..255; got {type(rle).__name__}")
    if len(rle) > (most := (_HEADER_BITS + total * _COSTLIEST) // 8 + 2):
        raise AnnotationError(f"RLE of {len(rle)} bytes is longer than the {most} that {size} pixels can need")
    try:
        data = bytes(rle)
    except (TypeError, ValueError) as error:
        raise AnnotationError("RLE must be a list of numbers 0..255; it holds something else") from error
    if len(data) * 8 < _HEADER_BITS:
        raise AnnotationError(f"RLE of {len(data)} bytes is too short for its header")
    header = int.from_bytes(data[:7]) >> (56 - _HEADER_BITS)
    if (count := header >> 21) != total:
        raise AnnotationError(f"RLE holds {count} values; expected {total} for {size} pixels in RGBA")
    if (word := (header >> 16 & 31) + 1) != _WORD:
        raise AnnotationError(f"RLE has words of {word} bits; expected {_WORD}")
    return _Stream(data + bytes(8), len(data) * 8, tuple((header >> shift & 15) + 1 for shift in (12, 8, 4, 0)))


def _find_records(stream: _Stream, position: int) -> tuple[_Ints, int]:
    """Where the next block's records begin, in bits from the start, and where the first one behind them does.

    The first three bits of a record say how long it is, unless it holds literals. So the way to the next record is worked
    out for every bit of the block at once, and the loop over records does hardly more than look it up.
    """
    first = position >> 3
    block = min(_BLOCK, stream.bits // 8 - first)
    bits = np.unpackbits(np.frombuffer(stream.data, np.uint8, block + 1, first))
    head = bits[:-8] << 2 | bits[1:-7] << 1 | bits[2:-6]
    ways = np.array([0] * 4 + [3 + size + _WORD for size in stream.sizes], np.uint8)[head].tobytes()
    at, literals, starts = position & 7, 0, []
    while at < len(ways) and literals < _MOST_LITERALS:
        starts.append(at)
        if way := ways[at]:
            at += way
        else:
            size = stream.sizes[head[at]]
            count = _length(stream, first * 8 + at + 3, size)
            literals += count
            at += 3 + size + count * _WORD
    return first * 8 + np.array(starts), first * 8 + at


def _length(stream: _Stream, position: int, size: int) -> int:
    window = int.from_bytes(stream.data[position >> 3 : (position >> 3) + 3])
    return (window >> 24 - (position & 7) - size & (1 << size) - 1) + 1


def _read_records(stream: _Stream, starts: _Ints, left: int) -> tuple[_Ints, _Ints]:
    """Lengths and values of runs, a literal being a run of one. What lies behind the last of `left` values is not read."""
    rest = stream.windows(">u8")[starts >> 3].astype(np.uint64) << (starts & 7).astype(np.uint64)
    head = rest >> np.uint64(61)
    sizes = np.array(stream.sizes, np.uint64)[head & np.uint64(3)]
    rest <<= np.uint64(3)
    lengths = (rest >> np.uint64(64) - sizes).astype(np.int64) + 1
    values = (rest << sizes >> np.uint64(64 - _WORD)).astype(np.int64)
    literal = head < 4
    ends = np.cumsum(lengths)
    kept = int(np.searchsorted(ends, left)) + 1
    if int(ends[kept - 1 : kept].sum()) > left:
        raise AnnotationError("RLE describes more than the values of its header")
    starts, sizes, lengths, values, literal = (part[:kept] for part in (starts, sizes, lengths, values, literal))
    words = np.where(literal, lengths, 1)
    begins = starts + 3 + sizes.astype(np.int64)
    if int(begins[-1] + words[-1] * _WORD) > stream.bits:
        raise AnnotationError(f"RLE of {stream.bits // 8} bytes ends in the middle of a record")
    if not literal.any():
        return lengths, values
    record = np.repeat(np.arange(len(words)), words)
    place = np.arange(len(record)) - np.repeat(np.cumsum(words) - words, words)
    position = begins[record] + place * _WORD
    pairs = stream.windows(">u2")[position >> 3].astype(np.int64)
    return np.where(literal, 1, lengths)[record], pairs >> 8 - (position & 7) & 255
