"""Broken and hostile masks, regions, weights, class lists and settings, the same for a seed."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from hostile_images import MUTATIONS, SIDE, Random, bomb, lying, picture, png, wrong
from PIL import Image

from activeseg.labelstudio.bitmask import encode_bitmask
from activeseg.labelstudio.brush import encode_rle

WIDTH, HEIGHT = SIDE


class Touch:
    """Where it is unpickled, code runs: the file `trace` appears."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        """What a pickle calls."""
        return Path.touch, (self.trace,)


def masks(count: int, seed: int) -> Iterator[bytes]:
    """Mask files for an image of SIDE."""
    random = np.random.default_rng([seed, 3])
    values = np.arange(WIDTH * HEIGHT, dtype=np.uint8).reshape(HEIGHT, WIDTH) % 3
    whole = _png(Image.fromarray(values))
    for _ in range(count):
        kind = int(random.integers(6))
        if kind < 3:
            yield MUTATIONS[int(random.integers(len(MUTATIONS)))](whole, random)
        elif kind == 3:
            yield (lying, wrong)[int(random.integers(2))](random)
        elif kind == 4:
            yield png(WIDTH, HEIGHT, 8, 0, bomb(), (b"zTXt", b"activeseg:planes\0\0" + bomb()))
        else:
            odd = [random.integers(0, 256, (HEIGHT, WIDTH), np.uint8), picture(random), np.full((HEIGHT, WIDTH), 255, np.uint8)]
            odd += [np.zeros((HEIGHT + 1, WIDTH), np.uint8), random.integers(0, 65535, (HEIGHT, WIDTH), np.uint16)]
            yield _png(Image.fromarray(odd[int(random.integers(len(odd)))]))


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def results(count: int, seed: int) -> Iterator[Any]:
    """Results of annotations of an image of SIDE, as JSON gives them."""
    random = np.random.default_rng([seed, 4])
    area = random.random((HEIGHT, WIDTH)) > 0.5
    rle, url = encode_rle(area), encode_bitmask(area)
    for _ in range(count):
        size = {"original_width": WIDTH, "original_height": HEIGHT}
        region: dict[str, Any] = {"type": "brushlabels", "image_rotation": 0, **size}
        region["value"] = {"brushlabels": ["ball"], "format": "rle", "rle": _rle(rle, random)}
        if random.random() < 0.5:
            region |= {"type": "bitmasklabels", "value": {"bitmasklabels": ["ball"], "imageDataURL": _url(url, random)}}
        if random.random() < 0.3:
            region[str(random.choice(list(region)))] = _anything(random)
        yield [region] if random.random() < 0.95 else _anything(random)


def _rle(rle: list[int], random: Random) -> Any:
    kind = int(random.integers(5))
    data = bytes(rle)
    if kind == 0:
        return [*struct.pack(">I", int(random.integers(0, 2**32))), *data[4:]]
    if kind == 1:
        return list(MUTATIONS[int(random.integers(len(MUTATIONS)))](data, random))
    if kind == 2:
        return list(data[:7]) + [255] * int(random.integers(0, 200_000))
    return [_anything(random) for _ in range(9)] if kind == 3 else _anything(random)


def _url(url: str, random: Random) -> Any:
    kind, head = int(random.integers(4)), "data:image/png;base64,"
    data = b64decode(url.removeprefix(head))
    if kind == 0:
        return head + b64encode(MUTATIONS[int(random.integers(len(MUTATIONS)))](data, random)).decode()
    if kind == 1:
        return head + b64encode(png(WIDTH, HEIGHT, 8, 6, bomb(), (b"zTXt", b"k\0\0" + bomb()))).decode()
    return head + b64encode(lying(random)).decode() if kind == 2 else _anything(random)


def _anything(random: Random) -> Any:
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    found: tuple[Any, ...] = (
        None,
        True,
        -1,
        2**70,
        float("nan"),
        "",
        "\ud800",
        "x" * 5_000,
        [],
        {},
        deep,
        ["ball", "sky"],
        {"a": 1},
        [[]],
        0.5,
    )
    return found[int(random.integers(len(found)))]


def weights(count: int, seed: int, trace: Path) -> Iterator[tuple[str, bytes]]:
    """Weights files by their ending. trace: what appears where one of them runs code."""
    random = np.random.default_rng([seed, 5])
    whole = _whole_weights()
    hostile = hostile_weights(trace)
    for number in range(count):
        if number < len(hostile):
            yield hostile[number]
        elif random.random() < 0.8:
            ending = str(random.choice(list(whole)))
            yield ending, MUTATIONS[int(random.integers(len(MUTATIONS)))](whole[ending], random)
        else:
            yield str(random.choice(list(whole))), wrong(random)


@cache
def _whole_weights() -> dict[str, bytes]:
    tensors = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5, dtype=torch.float16)}
    zipped, legacy = io.BytesIO(), io.BytesIO()
    torch.save(tensors, zipped)
    torch.save(tensors, legacy, _use_new_zipfile_serialization=False)
    return {".safetensors": safetensors.torch.save(tensors), ".pth": zipped.getvalue(), ".pt": legacy.getvalue()}


def hostile_weights(trace: Path) -> list[tuple[str, bytes]]:
    """Files made to run code, or to take memory that they do not hold."""
    zipped, legacy, packed, tarred = io.BytesIO(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"a": Touch(trace)}, zipped)
    torch.save({"a": Touch(trace)}, legacy, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(io.BytesIO(_whole_weights()[".pth"])) as source, zipfile.ZipFile(packed, "w") as target:
        for member in source.infolist():
            data = bytes(2**26) if "/data/" in member.filename else source.read(member)
            target.writestr(member.filename, data, zipfile.ZIP_DEFLATED)
    with tarfile.open(fileobj=tarred, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors", "../../escape"):
            data = pickle.dumps(Touch(trace))
            archive.addfile(_member(name, len(data)), io.BytesIO(data))
    view = io.BytesIO()
    torch.save({"a": torch.zeros(1).expand(2**40)}, view)
    many = io.BytesIO()
    one = torch.zeros(2**16)
    torch.save({str(number): one for number in range(5_000)}, many)
    deep = b"[" * 100_000
    headers = (b"", b"{}", deep, b'{"a":' * 50_000, b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}')
    found = [(".pth", stream.getvalue()) for stream in (zipped, legacy, packed, tarred, view, many)]
    found += [(".pth", pickle.dumps(Touch(trace), protocol)) for protocol in range(6)]
    found += [(".safetensors", struct.pack("<Q", len(header)) + header + bytes(4)) for header in headers]
    found += [(".safetensors", struct.pack("<Q", size) + b"{}") for size in (2**32, 2**63, 2**64 - 1)]
    return [*found, (".safetensors", zipped.getvalue()), (".pt", _whole_weights()[".safetensors"])]


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    return member


def class_lists(count: int, seed: int) -> Iterator[bytes]:
    """Class files."""
    random = np.random.default_rng([seed, 6])
    whole = b"sky #78b4f0\nground #5a8c3c\nball #dc3c28\nvoid #000000 ignore\n"
    odd = [
        b"",
        b"\xff\xfe",
        whole * 90,
        b"sky\nsky\n",
        b"a" * 100_000,
        b"ignore #000000\n",
        "\u202ex #000000\n".encode(),
        b"\0\n",
        whole * 2,
    ]
    for number in range(count):
        yield odd[number] if number < len(odd) else MUTATIONS[int(random.integers(4))](whole, random)


def settings_files(count: int, seed: int) -> Iterator[bytes]:
    """Settings files."""
    random = np.random.default_rng([seed, 7])
    whole = b'[pool]\nimages = "pool"\nmax_pixels = 1000000\n[selection]\nquery_size = 3\n[labels]\nfile = "classes.txt"\n'
    keys = (
        "pool.max_pixels",
        "pool.images",
        "model.width",
        "model.mean",
        "training.crop",
        "labelstudio.url",
        "schedule.timezone",
    )
    values = ("-1", "1e400", "nan", '""', "[]", "{}", '"\\u0000"', "1979-05-27", '"' + "x" * 20_000 + '"', "true", "9" * 5_000)
    yield from (b"a = " + b"[" * 50_000, b"\xff", b"x = {" * 20_000, b"[a]\n[a]\n", json.dumps({"pool": 1}).encode())
    for _ in range(count - 5):
        if random.random() < 0.5:
            yield MUTATIONS[int(random.integers(4))](whole, random)
        else:
            yield f"{random.choice(keys)} = {random.choice(values)}\n".encode()
