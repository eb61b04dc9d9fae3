"""Memory that pixels come through from a decoder, which may have been taken over by the file it decoded.

On Linux it is sealed: the decoder cannot make it shorter under our reading, which would kill this process. Elsewhere (macOS) it
is a file without a name in the folder for temporary files, and is read as a file: one that was cut off has no answer in it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile

import numpy as np
import numpy.typing as npt

from activeseg.errors import ConfigError

KEPT_BYTES = 32 * 2**20
"""Shared memory a decoder keeps between two images; what a larger one took is given back."""


class SharedPixels:
    """Memory that a decoder writes pixels to, and that no name leads to. Raises ConfigError where there is no room for it.

    Nothing is taken before it is written to.
    """

    def __init__(self, size: int) -> None:
        try:
            self.descriptor, sealed = _nameless_file(size)
            try:
                # Never of a file that can be made shorter.
                self._view = mmap.mmap(self.descriptor, size) if sealed else None
            except OSError:
                os.close(self.descriptor)
                raise
        except OSError as error:
            raise ConfigError(
                f"no {size} bytes to share with a process for decoding images ({error.strerror}): allow this one more "
                "memory, or lower [pool] max_pixels"
            ) from error

    def read(self, size: int) -> npt.NDArray[np.uint8] | None:
        """A copy of the first bytes; None where there are fewer."""
        if self._view is None:
            return self._read_file(size)
        pixels = np.frombuffer(self._view, np.uint8, size).copy()
        if size > KEPT_BYTES and hasattr(mmap, "MADV_REMOVE"):
            self._view.madvise(mmap.MADV_REMOVE)
        return pixels

    def _read_file(self, size: int) -> npt.NDArray[np.uint8] | None:
        pixels = bytearray()
        while len(pixels) < size:
            part = os.pread(self.descriptor, min(size - len(pixels), KEPT_BYTES), len(pixels))
            if not part:
                return None
            pixels += part
        return np.frombuffer(pixels, np.uint8)

    def close(self) -> None:
        """Give it back; a second time does nothing."""
        if self._view is not None:
            self._view.close()
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


def _nameless_file(size: int) -> tuple[int, bool]:
    """Its descriptor, and whether it is sealed: nobody can make it shorter."""
    if not (hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")):
        with tempfile.TemporaryFile() as file:
            file.truncate(size)
            return os.dup(file.fileno()), False
    memory = os.memfd_create("activeseg-pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memory, size)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)  # reading behind its end would kill this process
    except OSError:
        os.close(memory)
        raise
    return memory, True
