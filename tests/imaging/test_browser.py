"""Which files a browser shows as they are decoded here: said of each kind, and looked up in a real browser."""

from __future__ import annotations

import base64
import os
import shutil
import struct
from typing import Any

import numpy as np
import pytest
from PIL.PngImagePlugin import PngInfo

from activeseg.errors import ImageError
from activeseg.imaging.browser import resize_picture, shows_as_decoded
from activeseg.imaging.decode import decode_image
from tests.imaging.corpus import Case, encode, exif, good_cases, png, scene, stored_for

ALIKE = {
    "plain.jpg", "progressive.JPEG", "really_a_jpeg.png", "broken_exif.jpg", "plain.png", "lossless.webp", "lossy.webp",
    "grey.jpg", "grey.png", "orientation_1.jpg",
}  # fmt: skip
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def texts(**entries: str) -> PngInfo:
    info = PngInfo()
    for key, value in entries.items():
        info.add_text(key, value)
    return info


def more_cases() -> list[tuple[str, bytes, bool]]:
    rgb = scene()
    turned = stored_for(rgb, 6)
    xmp = PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", XMP)
    one_frame = png(48, 32, 8, 2, [row.tobytes() for row in rgb], acTL=struct.pack(">II", 1, 0))
    plain = encode(rgb, "PNG")
    late_exif = plain[:-12] + chunk(b"eXIf", exif(6)[6:]) + plain[-12:]
    return [
        ("a text chunk says nothing about pixels", encode(rgb, "PNG", pnginfo=texts(Software="GIMP")), True),
        ("a colour profile moves nothing", encode(rgb, "PNG", icc_profile=b"x" * 200), True),
        ("a turned PNG", encode(turned, "PNG", exif=exif(6)), False),
        ("a PNG turned by a chunk behind its pixels", late_exif, False),
        ("a PNG turned by XMP", encode(turned, "PNG", pnginfo=xmp), False),
        ("a turned WebP", encode(turned, "WEBP", exif=exif(6)), False),
        ("four bits of grey", png(4, 1, 4, 0, [bytes([0x0F, 0x37])]), False),
        ("an animation of one frame", one_frame, False),
        ("a transparent colour", png(48, 32, 8, 2, [row.tobytes() for row in rgb], tRNS=bytes(6)), False),
    ]


def chunk(name: bytes, data: bytes) -> bytes:
    import zlib

    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize("case", good_cases(), ids=lambda case: case.name)
def test_plain_files_only_are_shown_as_they_were_decoded(case: Case) -> None:
    assert shows_as_decoded(case.data) == (case.name in ALIKE)


@pytest.mark.parametrize(("name", "data", "alike"), more_cases(), ids=lambda value: value if isinstance(value, str) else "")
def test_what_lies_hidden_in_a_file_counts(name: str, data: bytes, alike: bool) -> None:
    assert shows_as_decoded(data) == alike


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"II*\0", b"BM"])
def test_other_formats_are_never_shown_alike(data: bytes) -> None:
    assert not shows_as_decoded(data)


@pytest.mark.parametrize("data", [b"\xff\xd8\xff", b"RIFF\x10\0\0\0WEBP", b"\x89PNG\r\n\x1a\n"])
def test_a_damaged_header_is_an_image_error(data: bytes) -> None:
    with pytest.raises(ImageError, match="damaged"):
        shows_as_decoded(data)


@pytest.mark.parametrize("size", [(32, 48), (16, 24), (7, 11), (1, 1), (31, 48)])
def test_a_picture_is_resized_in_place(size: tuple[int, int]) -> None:
    rgb = scene()
    small = resize_picture(rgb, size)
    assert small.shape == (*size, 3)
    if size == rgb.shape[:2]:
        assert small is rgb
    # Nothing is moved: the colours of a smooth picture are those at the same place of the large one.
    rows, columns = ((2 * np.arange(n) + 1) * total // (2 * n) for n, total in zip(size, rgb.shape, strict=False))
    assert np.abs(small.astype(int) - rgb[rows][:, columns]).mean() < 6


@pytest.mark.slow
@pytest.mark.browser
def test_a_real_browser_shows_those_files_with_our_pixels() -> None:
    files = {case.name: case.data for case in good_cases() if case.name in ALIKE}
    files |= {name: data for name, data, alike in more_cases() if alike}
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser_path is None:
        message = "no browser: install Chromium (Debian: apt-get install chromium)"
        (pytest.fail if "browser" in os.environ.get("ACTIVESEG_REQUIRE", "") else pytest.skip)(message)
    from playwright.sync_api import sync_playwright

    flags = ["--disable-gpu", "--force-color-profile=srgb"] + (["--no-sandbox"] if os.geteuid() == 0 else [])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, headless=True, args=flags)
        page = browser.new_page()
        shown = {name: pixels_in(page, data) for name, data in files.items()}
        browser.close()
    for name, data in files.items():
        ours = decode_image(data, max_pixels=10**6)
        assert shown[name].shape == ours.shape, name
        # Decoders of JPEG and lossy WebP round differently, by a level or two.
        assert np.abs(shown[name].astype(int) - ours).max() <= (0 if "png" in name.lower() or "less" in name else 4), name


def pixels_in(page: Any, data: bytes) -> np.ndarray:
    """An image file as the browser draws it, (H, W, 3)."""
    script = """async (text) => {
        const image = new Image();
        image.src = "data:;base64," + text;
        await image.decode();
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        const context = canvas.getContext("2d");
        context.drawImage(image, 0, 0);
        return [canvas.height, canvas.width, Array.from(context.getImageData(0, 0, canvas.width, canvas.height).data)];
    }"""
    height, width, values = page.evaluate(script, base64.b64encode(data).decode())
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]
