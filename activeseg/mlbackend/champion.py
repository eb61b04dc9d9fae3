"""The champion in memory: loaded once, and again when another one is promoted."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from activeseg.core.labels import LabelSet, Mask
from activeseg.db import checkpoints
from activeseg.db.models import Checkpoint
from activeseg.errors import NotReadyError
from activeseg.nn.checkpoint import Segmenter, load_checkpoint
from activeseg.nn.device import pick_device
from activeseg.nn.infer import Prediction, predict_masks
from activeseg.predictions import without_specks
from activeseg.records import ImageRef
from activeseg.workspace import Workspace


class Champion:
    """Answers one call at a time: the network's memory is not needed twice, and a device is busy with one anyway."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._device = pick_device(workspace.settings.model.device)
        self._lock = threading.Lock()
        self._loaded: Segmenter | None = None

    def version(self) -> str | None:
        """The champion's model version by the database; None without one."""
        row = self._row()
        return None if row is None else row.model_version

    def label_set(self) -> LabelSet | None:
        """The classes the champion knows; None without one."""
        row = self._row()
        return None if row is None else LabelSet.from_dict(row.spec["label_set"])

    def load(self) -> Segmenter | None:
        """The champion's network, read again only where the database names another one.

        Raises CheckpointError where its file is missing, altered or damaged.
        """
        with self._lock:
            row = self._row()
            if row is None:
                self._loaded = None
            elif self._loaded is None or self._loaded.model_version != row.model_version:
                data = self._workspace.artifacts.read(row.location, sha256=row.sha256)
                self._loaded = load_checkpoint(data, model_version=row.model_version, device=self._device)
            return self._loaded

    def mask(self, segmenter: Segmenter, pixels: npt.NDArray[np.uint8], name: str) -> Mask:
        """What it sees in (H, W, 3) uint8, as a push would draw it: a mask of the same size without specks."""
        ref, model = ImageRef(0, name, ""), self._workspace.settings.model
        with self._lock:
            [item] = predict_masks(
                segmenter, [ref], lambda _: pixels, device=self._device, precision=model.precision, batch_size=1
            )
        if not isinstance(item, Prediction):
            raise NotReadyError(item.reason)
        return without_specks(item.mask, self._workspace.settings.labelstudio.min_region_pixels)

    def _row(self) -> Checkpoint | None:
        with self._workspace.database.read() as session:
            return checkpoints.champion(session)
