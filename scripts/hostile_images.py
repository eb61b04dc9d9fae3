"""Broken and hostile image files, the same for a seed."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Random = np.random.Generator
SIDE = (72, 56)  # width, height
MANY = 64 * 2**20  # bytes that bombs unpack to

PNG = b"\x89PNG\r\n\x1a\n"
_WRONG = {
    "html": b"<!doctype html><script>alert(1)</script>",
    "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "elf": b"\x7fELF\x02\x01\x01" + bytes(200),
    "gzip": b"\x1f\x8b\x08\0" + bytes(64),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    "pickle": b"\x80\x04cposix\nsystem\n(S'touch /tmp/owned'\ntR.",
    "gif": b"GIF89a\xff\xff\xff\xff\0\0\0",
    "jpeg2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(64),
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0" + bytes(64),
}


def picture(random: Random, width: int = SIDE[0], height: int = SIDE[1]) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8: slopes and noise, so that every part of a decoder has something to do."""
    slopes = np.add.outer(np.arange(height) * 2.0, np.arange(width) * 1.5)[..., None] * [0.5, 1.0, 0.7]
    return np.asarray((slopes + random.integers(0, 40, (height, width, 3))).clip(0, 255), np.uint8)


@cache
def whole_files(seed: int) -> dict[str, bytes]:
    """Good files of every kind that is read."""
    random = np.random.default_rng(seed)
    rgb = Image.fromarray(picture(random))
    deep = Image.fromarray(random.integers(0, 65535, SIDE[::-1], np.uint16))
    animated: dict[str, Any] = {"save_all": True, "append_images": [rgb.rotate(180), rgb.rotate(90)]}
    return {
        "jpg": _saved(rgb, "JPEG", quality=90),
        "progressive.jpg": _saved(rgb, "JPEG", progressive=True, subsampling=2),
        "grey.jpg": _saved(rgb.convert("L"), "JPEG"),
        "cmyk.jpg": _saved(rgb.convert("CMYK"), "JPEG"),
        "restart.jpg": _saved(rgb, "JPEG", restart_marker_rows=1),
        "png": _saved(rgb, "PNG"),
        "palette.png": _saved(rgb.quantize(32), "PNG", transparency=3),
        "alpha.png": _saved(rgb.convert("RGBA"), "PNG"),
        "deep.png": _saved(deep, "PNG"),
        "bit.png": _saved(rgb.convert("1"), "PNG"),
        "animated.png": _saved(rgb, "PNG", **animated),
        "tif": _saved(rgb, "TIFF"),
        "lzw.tif": _saved(rgb, "TIFF", compression="tiff_lzw"),
        "deflate.tif": _saved(rgb, "TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tif": _saved(rgb, "TIFF", compression="jpeg"),
        "packbits.tif": _saved(rgb.convert("L"), "TIFF", compression="packbits"),
        "fax.tif": _saved(rgb.convert("1"), "TIFF", compression="group4"),
        "deep.tif": _saved(deep, "TIFF"),
        "pages.tif": _saved(rgb, "TIFF", **animated),
        "webp": _saved(rgb, "WEBP", quality=80),
        "lossless.webp": _saved(rgb.convert("RGBA"), "WEBP", lossless=True),
        "animated.webp": _saved(rgb, "WEBP", **animated),
        "bmp": _saved(rgb, "BMP"),
        "palette.bmp": _saved(rgb.quantize(16), "BMP"),
    }


def _saved(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def cut(data: bytes, random: Random) -> bytes:
    """The beginning of a file."""
    return data[: int(random.integers(0, len(data)))]


def flipped(data: bytes, random: Random) -> bytes:
    """Up to 40 bits turned over; half of them in the first 200 bytes, where headers are."""
    found = bytearray(data)
    for _ in range(int(random.integers(1, 40))):
        end = min(len(found), 200) if random.random() < 0.5 else len(found)
        found[int(random.integers(0, end))] ^= 1 << int(random.integers(8))
    return bytes(found)


def overwritten(data: bytes, random: Random) -> bytes:
    """A stretch of noise, zeros or ones."""
    start, length = int(random.integers(0, len(data))), int(random.integers(1, 400))
    patch = (random.bytes(length), bytes(length), b"\xff" * length)[int(random.integers(3))]
    return data[:start] + patch + data[start + length :]


def shifted(data: bytes, random: Random) -> bytes:
    """A stretch left out, or there twice."""
    start, length = int(random.integers(0, len(data))), int(random.integers(1, 300))
    return data[:start] + data[start + length :] if random.random() < 0.5 else data[: start + length] + data[start:]


def polyglot(data: bytes, random: Random) -> bytes:
    """Two files in one."""
    other = list(_WRONG.values())[int(random.integers(len(_WRONG)))]
    return data + other + b"PK\x05\x06" + bytes(18) if random.random() < 0.7 else other[:8] + data


MUTATIONS: tuple[Callable[[bytes, Random], bytes], ...] = (cut, flipped, flipped, overwritten, shifted, polyglot)


def png(width: int, height: int, depth: int, color: int, packed: bytes, *before: tuple[bytes, bytes]) -> bytes:
    """A PNG of any claims whose checksums are right."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return PNG + b"".join(chunk(kind, data) for kind, data in ((b"IHDR", header), *before, (b"IDAT", packed), (b"IEND", b"")))


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@cache
def bomb(size: int = MANY) -> bytes:
    """zlib data of so many zeros."""
    return zlib.compress(bytes(size), 9)


def lying(random: Random) -> bytes:
    """A header whose claims and contents have nothing to do with each other."""
    sides = (0, 1, 65_535, 2**31 - 1, 2**32 - 1, int(random.integers(1, 200_000)))
    width, height = (int(random.choice(sides)) for _ in range(2))
    kind = int(random.integers(6))
    if kind == 0:
        return png(width, height, int(random.choice((1, 2, 8, 16, 77))), int(random.choice((0, 2, 3, 4, 6, 9))), bomb(2**20))
    if kind == 1:
        whole = bytearray(whole_files(0)["jpg"])
        at = whole.index(b"\xff\xc0") + 5
        whole[at : at + 4] = struct.pack(">HH", width & 0xFFFF, height & 0xFFFF)
        return bytes(whole)
    if kind == 2:
        head = struct.pack(
            "<IiiHHIIiiII", 40, width - 2**31, height - 2**31, 1, int(random.choice((1, 4, 8, 24, 32))), 1, 0, 0, 0, 0, 0
        )
        return b"BM" + struct.pack("<IHHI", 2**32 - 1, 0, 0, 54) + head + random.bytes(64)
    if kind == 3:
        canvas = struct.pack("<I", (width & 0xFFFFFF))[:3] + struct.pack("<I", (height & 0xFFFFFF))[:3]
        return (
            b"RIFF" + struct.pack("<I", 2**31) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + canvas + random.bytes(90)
        )
    return tiff(width, height, random)


def tiff(width: int, height: int, random: Random) -> bytes:
    """A TIFF whose tags are wild: counts, offsets, a directory that leads to itself."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, int(random.choice((1, 8, 16, 32, 64)))), (259, 3, 1, 1)]
    tags += [(262, 3, 1, int(random.integers(0, 10))), (273, 4, 1, 8), (277, 3, 1, int(random.choice((1, 3, 4, 500))))]
    tags += [(278, 4, 1, 2**32 - 1), (279, 4, int(random.choice((1, 2**28, 2**32 - 1))), int(random.integers(0, 2**32)))]
    tags += [
        (int(random.integers(280, 65_535)), int(random.integers(0, 14)), int(random.integers(0, 2**32)), 8) for _ in range(4)
    ]
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + struct.pack("<I", 8) + random.bytes(64)


def odd_metadata(random: Random) -> bytes:
    """EXIF, profiles and texts nobody means."""
    rgb = Image.fromarray(picture(random))
    loop = b"II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"
    orientation = (
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + struct.pack("<I", int(random.integers(0, 2**32))) + bytes(4)
    )
    exif = (b"Exif\0\0" + loop, b"Exif\0\0" + orientation, b"Exif\0\0" + random.bytes(60_000), random.bytes(100))
    kind = int(random.integers(5))
    if kind == 0:
        return _saved(rgb, "JPEG", exif=exif[int(random.integers(4))])
    if kind == 1:
        return _saved(rgb, "JPEG", icc_profile=random.bytes(int(random.integers(1, 300_000))))
    if kind == 2:
        return _saved(rgb, "WEBP", exif=exif[int(random.integers(4))], icc_profile=random.bytes(300))
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in np.asarray(rgb)))
    packed = b"name\0\0" + bomb()
    texts = (
        (b"iCCP", packed),
        (b"zTXt", packed),
        (b"iTXt", b"k\0\1\0\0\0" + bomb()),
        (b"eXIf", exif[1][6:]),
        (b"tEXt", b"\0" * 70_000),
    )
    return png(*SIDE, 8, 2, rows, texts[int(random.integers(len(texts)))])


def bombs(random: Random) -> bytes:
    """Small files of many pixels: above and below what is allowed."""
    kind = int(random.integers(5))
    side = int(random.choice((1_000, 2_500, 60_000, 2**31 - 1)))
    if kind == 0:
        return png(side, side, 1, 0, bomb())
    if kind == 1:
        return png(1, 3_000_000, 8, 0, bomb())
    if kind == 2:
        return png(*SIDE, 8, 2, bomb())
    if kind == 3:
        return png(2_000, 1_500, 16, 6, bomb(2_000 * 1_500 * 8 + 1_500))
    flat = Image.new("L", (3_000, 1_000))
    return _saved(flat, str(random.choice(("WEBP", "JPEG", "PNG"))))


def wrong(random: Random) -> bytes:
    """Something else than an image, or next to nothing."""
    kind = int(random.integers(4))
    if kind == 0:
        return (b"", b"\0", b"\xff", b"BM", b"II*\0", b"\xff\xd8\xff", PNG, b"RIFF\0\0\0\0WEBP")[int(random.integers(8))]
    if kind == 1:
        magic = (b"BM", b"II*\0", b"MM\0*", b"II+\0", b"\xff\xd8\xff\xe0", PNG, b"RIFF\xff\xff\xff\xffWEBP")[
            int(random.integers(7))
        ]
        return magic + random.bytes(int(random.integers(1, 4_000)))
    if kind == 2:
        return random.bytes(int(random.integers(1, 4_000)))
    return list(_WRONG.values())[int(random.integers(len(_WRONG)))]


def mutated(random: Random) -> bytes:
    """A good file that something happened to."""
    whole = list(whole_files(0).values())
    return MUTATIONS[int(random.integers(len(MUTATIONS)))](whole[int(random.integers(len(whole)))], random)


KINDS: dict[str, tuple[float, Callable[[Random], bytes]]] = {
    "mutated": (0.62, mutated),
    "lying header": (0.14, lying),
    "odd metadata": (0.09, odd_metadata),
    "wrong type": (0.10, wrong),
    "bomb": (0.05, bombs),
}
"""What there is, with its share."""


def images(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`count` files and what kind each is of."""
    random = np.random.default_rng([seed, 1])
    names = random.choice(list(KINDS), count, p=[share for share, _ in KINDS.values()])
    for name in names:
        yield str(name), KINDS[str(name)][1](random)


def odd_names(seed: int) -> Iterator[bytes]:
    """File names, as bytes, that programs stumble over; without their ending."""
    yield from (
        b"-rf",
        b"a b",
        b"'; DROP TABLE images; --",
        b"new\nline",
        b"tab\t",
        b"\xff\xfe\x80",
        b"%2e%2e%2f",
        b"con",
        b"$(id)",
    )
    yield from (
        "🦆".encode(),
        "\u202egnp".encode(),
        "é".encode(),
        "e\u0301".encode(),
        b"x" * 240,
        b"\x01\x1b[31m",
        b"<b>",
        b"{}",
        b"a\\b",
    )
    random = np.random.default_rng([seed, 2])
    for _ in range(20):
        yield bytes(byte for byte in random.bytes(24) if byte not in b"/\0") or b"x"
