"""Which device computes, and in which precision."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from activeseg.errors import ConfigError

PRECISIONS = ("auto", "float32", "bfloat16", "float16")


def pick_device(name: str) -> torch.device:
    """The device called 'auto' (CUDA where there is one, else CPU), 'cpu', 'cuda' or 'cuda:N'.

    Raises ConfigError where it is unknown or not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"unknown device {name!r}; expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name} is not there: {torch.cuda.device_count()} CUDA devices are visible; use auto or cpu")
    return device


def pick_devices(names: Sequence[str], alone: str) -> list[torch.device]:
    """The devices a pass is spread over; `alone` where none are named. 'all' is every CUDA device, or `alone` without one.

    Raises ConfigError as `pick_device`.
    """
    if list(names) == ["all"]:
        names = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [pick_device(name) for name in names or [alone]]


def pick_precision(device: torch.device, precision: str) -> str:
    """'float32', 'bfloat16' or 'float16'; 'auto' becomes bfloat16 where the device computes it natively.

    Raises ConfigError for any other name, and for float16 on a CPU.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    if precision == "float16" and device.type == "cpu":
        raise ConfigError("precision float16 needs a CUDA device, this is a CPU: set [model] precision to auto or float32")
    if precision != "auto":
        return precision
    return "bfloat16" if _native_bfloat16(device) else "float32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Context in which matrix products and convolutions run in `precision` on `device`; weights stay float32."""
    picked = pick_precision(device, precision)
    if picked == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.float16 if picked == "float16" else torch.bfloat16)


def _native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Emulated bfloat16 is several times slower than float32.
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def describe_device(device: torch.device) -> str:
    """The device's name for a person, such as 'cuda:0 NVIDIA H200' or 'cpu'."""
    return f"{device} {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)


def describe_devices(devices: Sequence[torch.device]) -> str:
    """All of them for a person, such as 'cuda:0, cuda:1 NVIDIA H200'."""
    kinds = dict.fromkeys(torch.cuda.get_device_name(device) for device in devices if device.type == "cuda")
    return " ".join([", ".join(map(str, devices)), *kinds])
