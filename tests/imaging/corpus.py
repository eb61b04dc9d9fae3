"""Good and broken image files, made in memory: what a folder of a real user may hold.

Every good case carries the pixels it must decode to, worked out with numpy and not with the code under test.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]

# What orientation 1..8 says of the stored rows and columns (EXIF 2.32, tag 0x0112): the 0th row and the 0th column of the
# file lie on these sides of the upright picture.
ORIENTATIONS = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


@dataclass(frozen=True)
class Case:
    """A file, and what must come of it: pixels within `tolerance` grey levels on average, or None for an error."""

    name: str
    data: bytes
    pixels: Pixels | None = None
    tolerance: float = 0.0


def scene(width: int = 48, height: int = 32) -> Pixels:
    """A smooth picture (H, W, 3) in which no two corners are alike."""
    x = np.linspace(0, 1, width)[None, :]
    y = np.linspace(0, 1, height)[:, None]
    planes = (230 * x + 0 * y, 230 * y + 0 * x, 120 + 100 * x * y)
    return np.stack([plane.round().astype(np.uint8) for plane in planes], axis=-1)


def stored_for(upright: Pixels, orientation: int) -> Pixels:
    """The rows and columns a camera writes so that `orientation` turns them into `upright`."""
    row_side, column_side = ORIENTATIONS[orientation]
    flipped = upright
    if "bottom" in (row_side, column_side):
        flipped = flipped[::-1]
    if "right" in (row_side, column_side):
        flipped = flipped[:, ::-1]
    swapped = row_side in ("left", "right")
    return np.ascontiguousarray(flipped.swapaxes(0, 1) if swapped else flipped)


def encode(pixels: npt.NDArray[Any], format: str, *, mode: str | None = None, **options: Any) -> bytes:
    stream = BytesIO()
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(stream, format, **options)
    return stream.getvalue()


def exif(orientation: int) -> bytes:
    """An EXIF block, byte by byte, that holds nothing but the orientation."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0" + b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 1) + entry + struct.pack("<I", 0)


def png(width: int, height: int, depth: int, color_type: int, rows: list[bytes], **chunks: bytes) -> bytes:
    """A PNG by hand: for bit depths and lies that Pillow does not write. `chunks` go between header and pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [("IHDR", header), *chunks.items(), ("IDAT", body), ("IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind.encode() + data + struct.pack(">I", zlib.crc32(kind.encode() + data))
        for kind, data in parts
    )


def good_cases() -> list[Case]:
    return [*_color_cases(), *_grey_cases(), *_alpha_cases(), *_many_frame_cases(), *_oriented_cases()]


def bad_cases() -> list[Case]:
    rgb = scene()
    jpeg = encode(rgb, "JPEG", quality=95)
    page = b"<!doctype html><title>404 Not Found</title>"
    cases = [
        Case("empty.jpg", b""),
        Case("text.png", b"these are not the pixels you are looking for\n"),
        Case("page.jpg", page),
        Case("noise.png", np.random.default_rng(7).bytes(4096)),
        Case("magic_only.jpg", b"\xff\xd8\xff"),
        Case("magic_only.png", b"\x89PNG\r\n\x1a\n"),
        Case("magic_only.webp", b"RIFF\x10\0\0\0WEBP"),
        Case("magic_only.bmp", b"BM"),
        Case("magic_only.tif", b"II*\0"),
        Case("bomb.png", png(60000, 60000, 8, 2, [b""])),
        Case("no_width.png", png(0, 10, 8, 2, [b""])),
        Case("animated.gif.png", encode(rgb, "GIF", save_all=True, append_images=[Image.fromarray(rgb[::-1])])),
        Case("float.tif", encode(rgb[..., 0].astype(np.float32) / 255, "TIFF")),
        Case("int32.tif", encode(rgb[..., 0].astype(np.int32) * 1000, "TIFF")),
        Case("jpeg2000.jpg", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100)),
        Case("no_pixels.png", png(48, 32, 8, 2, [])),
    ]
    for name, data in (("jpg", jpeg), *((f, encode(rgb, k)) for f, k in _LOSSLESS.items())):
        cases += [Case(f"cut_{percent}.{name}", data[: len(data) * percent // 100]) for percent in (5, 30, 60, 90)]
    return cases


def write_corpus(folder: Path) -> tuple[list[Path], list[Path]]:
    """Write every case into `folder`; returns the paths of the good and of the broken files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [[folder / case.name for case in cases] for cases in (good_cases(), bad_cases())]
    for case in (*good_cases(), *bad_cases()):
        (folder / case.name).write_bytes(case.data)
    return paths[0], paths[1]


_LOSSLESS = {"png": "PNG", "tif": "TIFF", "webp": "WEBP", "bmp": "BMP"}


def _color_cases() -> list[Case]:
    rgb = scene()
    palette = Image.fromarray(rgb).quantize(16)
    stream = BytesIO()
    palette.save(stream, "PNG")
    colors = np.reshape(palette.getpalette() or [], (-1, 3)).astype(np.uint8)
    wide = (rgb.astype(np.uint16) * 257).astype(">u2")
    cmyk = np.dstack([255 - rgb, np.zeros(rgb.shape[:2], np.uint8)])
    return [
        Case("plain.jpg", encode(rgb, "JPEG", quality=95), rgb, 3),
        Case("progressive.JPEG", encode(rgb, "JPEG", quality=95, progressive=True), rgb, 3),
        Case("really_a_jpeg.png", encode(rgb, "JPEG", quality=95), rgb, 3),
        Case("broken_exif.jpg", encode(rgb, "JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"), rgb, 3),
        Case("cmyk.jpg", _cmyk("JPEG", cmyk), rgb, 3),
        Case("cmyk.tif", _cmyk("TIFF", cmyk), rgb, 1),
        Case("plain.png", encode(rgb, "PNG"), rgb),
        Case("palette.png", stream.getvalue(), colors[np.asarray(palette)]),
        Case("rgb16.png", png(48, 32, 16, 2, [row.tobytes() for row in wide]), rgb),
        Case("plain.tif", encode(rgb, "TIFF"), rgb),
        Case("lzw.tiff", encode(rgb, "TIFF", compression="tiff_lzw"), rgb),
        Case("lossless.webp", encode(rgb, "WEBP", lossless=True), rgb),
        Case("lossy.webp", encode(rgb, "WEBP", quality=95), rgb, 4),
        Case("plain.bmp", encode(rgb, "BMP"), rgb),
    ]


def _grey_cases() -> list[Case]:
    grey = scene()[..., 0]
    rgb = np.repeat(grey[..., None], 3, axis=2)
    bits = (grey > 100).astype(np.uint8)
    ramp = np.linspace(0, 65535, 48 * 32).round().astype(np.uint16).reshape(32, 48)
    upper = np.repeat((ramp // 256).astype(np.uint8)[..., None], 3, axis=2)
    return [
        Case("grey.jpg", encode(grey, "JPEG", quality=95), rgb, 3),
        Case("grey.png", encode(grey, "PNG"), rgb),
        Case("one_bit.png", encode(bits * 255, "PNG", mode="1"), np.repeat(bits[..., None] * 255, 3, axis=2)),
        Case("grey16.png", encode(ramp, "PNG"), upper),
        Case("grey16.tif", encode(ramp, "TIFF"), upper),
        Case("grey16_oriented.png", encode(stored_for(ramp, 6), "PNG", exif=exif(6)), upper),
    ]


def _alpha_cases() -> list[Case]:
    rgb = scene()
    alpha = np.zeros(rgb.shape[:2], np.uint8)
    alpha[:, :24] = 255
    seen = np.where(alpha[..., None] == 255, rgb, 255).astype(np.uint8)
    grey = np.dstack([rgb[..., 0], alpha])
    indices = (np.arange(48 * 32).reshape(32, 48) % 2).astype(np.uint8)
    palette = {"PLTE": bytes([10, 20, 30, 40, 50, 60]), "tRNS": bytes([255, 0])}
    return [
        Case("rgba.png", encode(np.dstack([rgb, alpha]), "PNG"), seen),
        Case("rgba.webp", encode(np.dstack([rgb, alpha]), "WEBP", lossless=True), seen),
        Case("grey_alpha.png", encode(grey, "PNG"), np.where(alpha[..., None] == 255, rgb[..., :1], 255).repeat(3, 2)),
        Case(
            "palette_alpha.png",
            png(48, 32, 8, 3, [row.tobytes() for row in indices], **palette),
            np.array([[10, 20, 30], [255, 255, 255]], np.uint8)[indices],
        ),
    ]


def _many_frame_cases() -> list[Case]:
    rgb = scene()
    more: dict[str, Any] = {"save_all": True, "append_images": [Image.fromarray(rgb[::-1].copy())]}
    return [
        Case("pages.tif", encode(rgb, "TIFF", **more), rgb),
        Case("animated.webp", encode(rgb, "WEBP", lossless=True, **more), rgb),
        Case("animated.png", encode(rgb, "PNG", **more), rgb),
    ]


def _oriented_cases() -> list[Case]:
    rgb = scene()
    return [
        Case(f"orientation_{o}.jpg", encode(stored_for(rgb, o), "JPEG", quality=95, exif=exif(o)), rgb, 3) for o in ORIENTATIONS
    ]


def _cmyk(format: str, values: Pixels) -> bytes:
    stream = BytesIO()
    options = {"quality": 95} if format == "JPEG" else {}
    Image.frombytes("CMYK", (values.shape[1], values.shape[0]), values.tobytes()).save(stream, format, **options)
    return stream.getvalue()
