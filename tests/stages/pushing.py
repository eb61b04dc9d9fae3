"""A round that is chosen and predicted without a network, and a Label Studio that keeps what it is given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from PIL import Image as Pillow

from activeseg.db import images
from activeseg.db.models import (
    Arm,
    Checkpoint,
    ClassScoreRow,
    Image,
    ImageStatus,
    Prediction,
    Query,
    QueryStatus,
    Round,
    RoundStatus,
    ScoringConfig,
)
from activeseg.imaging.thumbnails import encode_png
from activeseg.records import ImageRef
from activeseg.stages.pool import sync_pool
from activeseg.workspace import Workspace
from tests.imaging.corpus import scene
from tests.memory_label_studio import MemoryLabelStudio

LINK = {"images": "link", "link": "http://images.example.org/{path}"}


class Shelf(MemoryLabelStudio):
    """Keeps what was uploaded, by its address."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}

    def upload_files(self, project_id: int, files: Sequence[tuple[str, bytes]]) -> list[str]:
        urls = [f"/data/upload/{len(self.files) + number}-{name}" for number, (name, _) in enumerate(files)]
        self.files |= {url: data for url, (_, data) in zip(urls, files, strict=True)}
        return urls

    def sent(self) -> list[dict[str, Any]]:
        """The tasks, in the order they were made."""
        return list(self.tasks.values())


def chosen(workspace: Workspace, *, masks: bool = True, maps: bool = True) -> list[ImageRef]:
    """A round that asks for the whole pool, by a checkpoint whose masks and entropy maps are stored; its images in order."""
    sync_pool(workspace)
    with workspace.database.write() as session:
        rows = list(session.scalars(sa.select(Image).where(Image.status == ImageStatus.ACTIVE).order_by(Image.uri)))
        label_set = images.label_set_row(session, workspace.label_set)
        weights = {"location": "checkpoint/x", "sha256": "0" * 64, "architecture": "fcn_mobilenet_v2", "spec": {}}
        session.add(Checkpoint(id=1, model_version="m-0001", label_set_id=label_set.id, **weights))
        session.flush()
        session.add(ScoringConfig(id=1, checkpoint_id=1, fingerprint="0" * 64, definition={}))
        session.flush()
        common = {"status": RoundStatus.SELECTED, "acquisition": "entropy_sum", "control_share": 0.0, "seed": 1}
        session.add(Round(id=1, number=1, scoring_config_id=1, query_size=len(rows), **common))
        session.flush()
        for place, image in enumerate(rows):
            session.add(Query(round_id=1, image_id=image.id, arm=Arm.CHOSEN, shown_order=place, reason="test",
                              status=QueryStatus.SELECTED))  # fmt: skip
            if masks:
                session.add(_prediction(workspace, image, maps))
                session.add_all(_class_scores(image.id))
    return [ImageRef(image.id, image.uri, image.sha256) for image in rows]


def _prediction(workspace: Workspace, image: Image, maps: bool) -> Prediction:
    mask = drawn_mask(image.height or 0, image.width or 0)
    stored = workspace.store_mask(mask)
    picture = encode_png(np.repeat(mask[..., None] * 60, 3, axis=2))
    entropy = workspace.artifacts.put(picture, "picture", ".png").location if maps else None
    return Prediction(image_id=image.id, source="checkpoint:m-0001", checkpoint_id=1, mask_location=stored.location,
                      mask_sha256=stored.sha256, entropy_location=entropy)  # fmt: skip


def _class_scores(image_id: int) -> Iterable[ClassScoreRow]:
    for index in range(4):
        share = {"channel_entropy_sum": float((index + image_id) % 4), "region_pixels": 1, "region_entropy_sum": 0.0}
        yield ClassScoreRow(scoring_config_id=1, image_id=image_id, class_index=index, **share)


def drawn_mask(height: int, width: int) -> np.ndarray:
    """A mask with single pixels that shrinking loses."""
    rows, columns = np.mgrid[:height, :width]
    mask = ((rows // 9 + columns // 13) % 3).astype(np.uint8)
    mask[::7, ::5] = 3
    return mask


def save_picture(file: Path, width: int, height: int) -> None:
    Pillow.fromarray(scene(width, height)).save(file)
