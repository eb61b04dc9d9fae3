"""What masks cost on their way to Label Studio and back, beside the SDK (brush) and Pillow (bitmask).

    python scripts/bench_codec.py [--repeats N] [--json]

Smooth blobs of three sizes; how many runs they have is printed. Ours and theirs take turns, so that a busy machine slows both;
the figures are medians, in milliseconds of one mask. Every result is compared with the mask. Below them, in the same way
without a counterpart: whole predictions of 12 and 60 classes as regions and back.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import statistics
import time
import zlib
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from label_studio_sdk.converter import brush as sdk
from PIL import Image

from activeseg.core.labels import LabelSet
from activeseg.labelstudio.bitmask import decode_bitmask, encode_bitmask
from activeseg.labelstudio.brush import decode_rle, encode_rle
from activeseg.labelstudio.labeling import MaskKind
from activeseg.labelstudio.regions import mask_to_result, result_to_mask

BoolMask = npt.NDArray[np.bool_]
Row = dict[str, Any]

SIZES = ((360, 480, 90), (1024, 2048, 110), (3000, 4000, 120))  # height, width, pixels from blob to blob
SHOWN = ((360, 480, 12), (360, 480, 60), (960, 1280, 12), (960, 1280, 60))  # height, width, classes
KINDS: tuple[MaskKind, ...] = ("brush", "bitmask")
URL = "data:image/png;base64,"


def blobs(height: int, width: int, cell: int) -> BoolMask:
    """Where smooth noise is above its middle: random values at the corners of cells, linear between them."""
    corners = np.random.default_rng(0).random((height // cell + 2, width // cell + 2))
    rows, columns = np.arange(height) / cell, np.arange(width) / cell
    top, left = rows.astype(int), columns.astype(int)
    down, right = (rows - top)[:, None], (columns - left)[None]
    above = corners[top][:, left] * (1 - right) + corners[top][:, left + 1] * right
    below = corners[top + 1][:, left] * (1 - right) + corners[top + 1][:, left + 1] * right
    return np.ascontiguousarray(above * (1 - down) + below * down > 0.5)


def pillow_encode(mask: BoolMask) -> str:
    """The same kind of PNG as `encode_bitmask` makes, by Pillow."""
    image = Image.fromarray(mask.astype(np.uint8), "P")
    image.putpalette([0] * 6)
    buffer = BytesIO()
    image.save(buffer, "PNG", bits=1, transparency=bytes([0, 255]))
    return URL + base64.b64encode(buffer.getvalue()).decode("ascii")


def pillow_decode(url: str) -> BoolMask:
    """The alpha of any PNG, cut at half, by Pillow."""
    mask: BoolMask = np.asarray(Image.open(BytesIO(base64.b64decode(url[len(URL) :]))).convert("RGBA"))[..., 3] > 127
    return mask


def browser_bitmask(mask: BoolMask) -> str:
    """A mask as Chromium's canvas writes it: RGBA, every row less the row above."""
    height, width = mask.shape
    alpha = mask * np.uint8(255)
    rows = np.zeros((height, 1 + 4 * width), np.uint8)
    rows[:, 0] = 2
    rows[:, 4::4] = np.diff(alpha, axis=0, prepend=np.zeros((1, width), np.uint8))
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 6, 0, 0, 0])
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(rows.tobytes(), 3), b"IEND"]
    data = b"".join((len(chunk) - 4).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4) for chunk in chunks)
    return URL + base64.b64encode(b"\x89PNG\r\n\x1a\n" + data).decode("ascii")


def medians(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Processor milliseconds of each call; they take turns, once before it counts."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            started = time.process_time()
            call()
            seconds[name].append(time.process_time() - started)
    return {name: statistics.median(taken[1:]) * 1e3 for name, taken in seconds.items()}


def compare(height: int, width: int, cell: int, repeats: int) -> list[Row]:
    """A row for each direction of both mask kinds."""
    mask = blobs(height, width, cell)
    values = mask.astype(np.uint8) * 255
    rle, url, drawn = encode_rle(mask), encode_bitmask(mask), browser_bitmask(mask)
    theirs = sdk.mask2rle(values)
    assert rle in (theirs, theirs[:-1]), "the bytes differ from the SDK's"
    for decoded in (decode_rle(rle, height, width), decode_bitmask(url, height, width), decode_bitmask(drawn, height, width)):
        assert np.array_equal(decoded, mask), "a mask came back changed"
    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "brush encode": (lambda: sdk.mask2rle(values), lambda: encode_rle(mask)),
        "brush decode": (lambda: sdk.decode_rle(rle), lambda: decode_rle(rle, height, width)),
        "bitmask encode": (lambda: pillow_encode(mask), lambda: encode_bitmask(mask)),
        "bitmask decode": (lambda: pillow_decode(url), lambda: decode_bitmask(url, height, width)),
        "RGBA bitmask decode": (lambda: pillow_decode(drawn), lambda: decode_bitmask(drawn, height, width)),
    }
    size = {"size": f"{width}x{height}", "runs": int(np.count_nonzero(np.diff(mask.ravel()))) + 1}
    rows = []
    for name, (before, ours) in pairs.items():
        taken = medians({"theirs": before, "ours": ours}, repeats)
        rows.append({"what": name} | size | taken | {"ratio": taken["theirs"] / taken["ours"]})
    return rows


def whole(height: int, width: int, classes: int, repeats: int) -> list[Row]:
    """A row for each mask kind of a prediction in which squares of all classes lie side by side."""
    squares = np.random.default_rng(0).integers(0, classes, (height // 24 + 1, width // 24 + 1))
    mask = np.kron(squares, np.ones((24, 24), np.int64))[:height, :width].astype(np.uint8)
    label_set = LabelSet(tuple(f"class {index}" for index in range(classes)), ((0, 0, 0),) * classes)
    rows = []
    for kind in KINDS:
        result = mask_to_result(mask, label_set, kind=kind)
        calls: dict[str, Callable[[], Any]] = {
            "to": partial(mask_to_result, mask, label_set, kind=kind),
            "back": partial(result_to_mask, result, label_set, width=width, height=height),
        }
        rows.append({"what": kind, "size": f"{width}x{height}", "regions": len(result)} | medians(calls, repeats))
    return rows


def machine() -> str:
    """What the figures depend on besides the processor's name."""
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    masks = [row for size in SIZES for row in compare(*size, options.repeats)]
    predictions = [row for shown in SHOWN for row in whole(*shown, options.repeats)]
    if options.json:
        print(json.dumps({"machine": machine(), "repeats": options.repeats, "masks": masks, "predictions": predictions}))
        return
    print(f"{machine()}; medians of {options.repeats} turns, processor ms")
    print(f"\n{'':<20} {'size':>10} {'runs':>7} {'theirs':>9} {'ours':>8} {'ratio':>7}")
    for row in masks:
        figures = f"{row['theirs']:>9.2f} {row['ours']:>8.2f} {row['ratio']:>7.1f}"
        print(f"{row['what']:<20} {row['size']:>10} {row['runs']:>7} {figures}")
    print(f"\n{'whole predictions':<20} {'size':>10} {'regions':>7} {'to':>9} {'back':>8}")
    for row in predictions:
        print(f"{row['what']:<20} {row['size']:>10} {row['regions']:>7} {row['to']:>9.2f} {row['back']:>8.2f}")


if __name__ == "__main__":
    main()
