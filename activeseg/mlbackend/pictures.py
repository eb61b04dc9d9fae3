"""The picture of a task: of our own tasks from the pool, of others only from the configured Label Studio itself.

A task's data is whatever somebody imported. An address in it must never make this process, which may stand inside a
network that others do not reach, fetch from anywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt

from activeseg.db import labeling
from activeseg.errors import ImageError
from activeseg.imaging.sandbox import decode_image
from activeseg.labelstudio.http import Http
from activeseg.labelstudio.labeling import IMAGE
from activeseg.workspace import Workspace

SERVED = ("/data/upload/", "/data/local-files/")
"""What Label Studio serves itself; other paths of it lead elsewhere by redirects."""

MAX_ADDRESS = 2000


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """pixels: (H, W, 3) uint8, upright, as the network sees them. shown: (height, width) annotators draw on.

    cells: what of it is asked about; None for all of it.
    """

    pixels: npt.NDArray[np.uint8]
    shown: tuple[int, int]
    cells: list[int] | None = None


class Pictures:
    """Finds pictures. http: connection to the configured Label Studio; None where none is configured."""

    def __init__(self, workspace: Workspace, http: Http | None) -> None:
        self._workspace, self._http = workspace, http

    def of(self, data: Mapping[str, Any]) -> Picture:
        """The picture of a task with this data. Raises ImageError or LabelStudioError with the reason there is none."""
        return self._from_pool(data) or self._from_server(data.get(IMAGE))

    def _from_pool(self, data: Mapping[str, Any]) -> Picture | None:
        key, sha256 = data.get("key"), data.get("sha256")
        if not (isinstance(key, str) and isinstance(sha256, str)):
            return None
        with self._workspace.database.read() as session:
            found = labeling.task_of_image(session, key, sha256)
        if found is None:
            return None
        task, ref, cells = found
        pixels = self._workspace.read_image(ref)
        height, width = pixels.shape[:2]
        return Picture(pixels, (task.shown_height or height, task.shown_width or width), cells)

    def _from_server(self, address: Any) -> Picture:
        path = self._path_on_server(address)
        assert self._http is not None
        pool = self._workspace.settings.pool
        pixels = decode_image(self._http.download(path, max_bytes=pool.max_bytes), max_pixels=pool.max_pixels)
        return Picture(pixels, (pixels.shape[0], pixels.shape[1]))

    def _path_on_server(self, address: Any) -> str:
        if self._http is None:
            raise ImageError("no task of ours, and no [labelstudio] url whose pictures could be read")
        if not isinstance(address, str) or not address.isprintable() or len(address) > MAX_ADDRESS:
            raise ImageError(f"data.{IMAGE} is no address of a picture")
        path = address.removeprefix(self._http.url)
        parts = urlsplit(path)
        steps = unquote(unquote(parts.path)).replace("\\", "/").split("/")
        if parts.scheme or parts.netloc or not path.startswith(SERVED) or ".." in steps:
            raise ImageError(f"only pictures that Label Studio serves itself are fetched, not {address[:200]!r}")
        return path
