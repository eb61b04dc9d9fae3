"""The sums by a small program in C++ that is built on this machine when it is first wanted, in about a second; several times
faster than torch's own operations. Without a C++ compiler those do.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import lru_cache
from itertools import pairwise, product
from pathlib import Path

import torch
from torch import Tensor

from activeseg.core.entropy import GRID
from activeseg.core.sums import Coarse, Sums

SOURCE = Path(__file__).with_name("reduction.cpp")

BUILD_SECONDS = 120.0
"""A build that takes longer has failed."""

# Nothing infinite or NaN comes in; -ffast-math as a whole would undo the rounding in `exponential`.
_OPTIONS = "-std=c++17 -O3 -shared -fPIC -fopenmp-simd -fno-math-errno -fno-trapping-math -ffinite-math-only -fno-signed-zeros"
# By what torch says of the processor, not -march=native: a folder of built programs may be shared by several machines.
_CPU_OPTIONS = {
    "AVX2": "-mavx2 -mfma",
    "AVX512": "-mavx2 -mfma -mavx512f -mavx512bw -mavx512dq -mavx512vl",
}


class BuildError(Exception):
    """The program cannot be built or loaded here; the message says why."""


def compiler() -> str | None:
    """The C++ compiler: $CXX, else g++, clang++ or c++; None where there is none."""
    return next(
        (found for name in (os.environ.get("CXX"), "g++", "clang++", "c++") if name and (found := shutil.which(name))), None
    )


def kernel_sums(coarse: Coarse, class_map: Tensor | None) -> Sums:
    """The sums of a batch on the CPU, on as many threads as torch may use; fills `class_map`.

    Rows of the grid are computed each on its own and added in order, so that threads do not change a bit of the sums.
    Raises BuildError where the program cannot be built.
    """
    reduce_band = _program(compiler(), os.environ.get("TORCHINDUCTOR_CACHE_DIR")).reduce_band
    count, channels, height, width = *coarse.logits.shape[:2], coarse.height, coarse.width
    columns = torch.zeros(count, GRID, width, dtype=torch.float64)
    pixels = torch.zeros(count, GRID, 3, dtype=torch.float64)
    classes = torch.zeros(count, GRID, channels, 4, dtype=torch.float64)
    bands = list(pairwise(coarse.bands))

    def reduce(part: tuple[int, int]) -> int:
        image, band = part
        failed: int = reduce_band(
            _address(coarse.logits[image]),
            channels,
            *coarse.logits.shape[2:],
            *(_address(values) for taps in (coarse.down, coarse.across) for values in (taps.first, taps.second, taps.weight)),
            *bands[band],
            height,
            width,
            int(coarse.sigmoid),
            coarse.threshold,
            *(_address(values[part]) for values in (columns, pixels, classes)),
            None if class_map is None else _address(class_map[image]),
        )
        return failed

    with ExitStack() as stack:
        threads = min(torch.get_num_threads(), count * GRID)
        each = stack.enter_context(ThreadPoolExecutor(threads)).map if threads > 1 else map
        if any(each(reduce, product(range(count), range(GRID)))):
            raise MemoryError("no memory to reduce logits in")
    return Sums(columns, pixels.sum(dim=1), classes.sum(dim=1))


def _address(values: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(values.data_ptr())


@lru_cache(maxsize=8)
def _program(chosen: str | None, cache: str | None) -> ctypes.CDLL:
    if chosen is None:
        raise BuildError("no C++ compiler found: install g++, or name one in the environment variable CXX")
    try:
        with ExitStack() as stack:
            folder = Path(cache or stack.enter_context(tempfile.TemporaryDirectory(prefix="activeseg-")))
            program = ctypes.CDLL(str(_built(chosen, folder)))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise BuildError(f"{chosen} cannot build the reduction: {said.strip()[:300]}") from error
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    program.reduce_band.argtypes = [
        pointer, *[integer] * 3, *[pointer] * 6, *[integer] * 5, ctypes.c_float, *[pointer] * 4
    ]  # fmt: skip
    program.reduce_band.restype = integer
    return program


def _built(chosen: str, folder: Path) -> Path:
    """The program in `folder`, where it may lie from an earlier process."""
    options = [*_OPTIONS.split(), *_CPU_OPTIONS.get(torch.backends.cpu.get_cpu_capability(), "").split()]
    version = subprocess.run([chosen, "--version"], capture_output=True, text=True, check=True, timeout=BUILD_SECONDS).stdout
    made_of = "\n".join([chosen, version, *options, SOURCE.read_text()])
    target = folder / f"reduction-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            made = Path(unfinished, target.name)
            command = [chosen, *options, "-o", str(made), str(SOURCE)]
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=BUILD_SECONDS)
            made.replace(target)
    return target
