from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture
from starlette.testclient import TestClient

from activeseg.db.models import (
    Annotation,
    AnnotationSource,
    AnnotationStatus,
    Arm,
    Decision,
    ImageStatus,
    LabelingProject,
    QueryStatus,
    Split,
)
from activeseg.imaging.thumbnails import encode_png

SKY, VOID, ROAD, CAR = range(4)


def test_an_image_carries_its_scores_by_class_name_under_the_champion(filler: Any, client: TestClient) -> None:
    filler.checkpoint("m1")
    image = filler.scored("m1", "a", {SKY: 1.0, ROAD: 2.0, CAR: 4.0})
    filler.checkpoint("refused", decision=Decision.REFUSED)
    filler.score("refused", image, {SKY: 100.0})

    detail = client.get(f"/api/images/{image}").json()

    assert (detail["id"], detail["uri"], detail["split"], detail["status"]) == (image, "/pool/a.png", "pool", "active")
    assert detail["score"]["model_version"] == "m1"
    assert detail["score"]["entropy_sum"] == 7.0
    assert sum(detail["score"]["grid"]) == 7.0
    assert {name: part["channel_entropy_sum"] for name, part in detail["score"]["classes"].items()} == {
        "sky": 1.0,
        "road": 2.0,
        "car": 4.0,
    }
    assert detail["score"]["scored_at"].endswith(("Z", "+00:00"))
    assert detail["queries"] == detail["annotations"] == []


def test_an_image_without_a_champion_or_a_score_has_none(filler: Any, client: TestClient) -> None:
    image = filler.image("/pool/a")
    assert client.get(f"/api/images/{image}").json()["score"] is None
    filler.checkpoint("m1")
    assert client.get(f"/api/images/{image}").json()["score"] is None


def test_a_quarantined_image_says_why(filler: Any, client: TestClient) -> None:
    image = filler.image("/pool/a", status=ImageStatus.QUARANTINED, reason="truncated JPEG", width=None, height=None)

    detail = client.get(f"/api/images/{image}").json()

    assert (detail["status"], detail["reason"], detail["width"]) == ("quarantined", "truncated JPEG", None)


def test_queries_and_every_annotation_version_are_listed_and_the_one_that_counts_is_marked(
    filler: Any, client: TestClient
) -> None:
    image, other = filler.image("/pool/a"), filler.image("/pool/b")
    round_id = filler.round()
    query = filler.query(round_id, image, QueryStatus.ANNOTATED)
    filler.query(round_id, other, QueryStatus.PUSHED, rank=None, score=None, arm=Arm.CONTROL)
    project = LabelingProject(
        server_url="http://127.0.0.1:1",
        instance_key="k",
        external_project_id=1,
        title="t",
        mask_kind="brush",
        config_sha256="0" * 64,
        label_set_id=filler.label_set_id(),
    )
    project_id = filler.add(project)
    for day, share in ((1, 0.1), (2, 0.2)):
        version = Annotation(
            image_id=image,
            query_id=query,
            source=AnnotationSource.LABELSTUDIO,
            status=AnnotationStatus.VALID,
            label_set_id=filler.label_set_id(),
            mask_location="masks/x",
            mask_sha256="0" * 64,
            labeling_project_id=project_id,
            external_annotation_id=11,
            external_updated_at=datetime(2026, 3, day, tzinfo=UTC),
            annotator="ann@example.org",
            changed_share=share,
        )
        filler.add(version)

    detail = client.get(f"/api/images/{image}").json()

    expected = {"round": 1, "rank": 1, "score": 9.5, "arm": "chosen", "shown_order": 0, "reason": "most uncertain"}
    assert detail["queries"] == [expected | {"status": "annotated"}]
    assert [(item["changed_share"], item["counts"]) for item in detail["annotations"]] == [(0.1, False), (0.2, True)]
    assert {item["annotator"] for item in detail["annotations"]} == {"ann@example.org"}
    assert client.get(f"/api/images/{other}").json()["queries"][0]["rank"] is None


def test_an_unknown_image_is_a_404_that_names_it(client: TestClient) -> None:
    for path in ("/api/images/7", "/api/images/7/thumbnail"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()) == (404, {"error": "no image has id 7"})


@pytest.mark.parametrize(
    "identity",
    ["0", "-1", "1.5", "abc", "%00", "1%00", "2147483648", "9" * 30, "9" * 5000, "..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd"],
)
@pytest.mark.parametrize("tail", ["", "/thumbnail", "/annotation"])
def test_what_is_no_image_id_is_refused(client: TestClient, identity: str, tail: str) -> None:
    answer = client.get(f"/api/images/{identity}{tail}")

    assert answer.status_code in (404, 422)
    assert list(answer.json()) == ["error"]


@pytest.fixture
def picture(filler: Any, settings: Any) -> tuple[int, Path]:
    """A pool image with a file: left half red, right half blue."""
    pixels = np.zeros((60, 120, 3), np.uint8)
    pixels[:, :60, 0] = pixels[:, 60:, 2] = 255
    file = Path(settings.images_uri) / "a.png"
    file.write_bytes(encode_png(pixels))
    data = file.read_bytes()
    return filler.image(str(file), sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data)), file


def test_a_thumbnail_is_the_image_in_small(picture: tuple[int, Path], client: TestClient) -> None:
    answer = client.get(f"/api/images/{picture[0]}/thumbnail?side=40")

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/jpeg"
    small = np.asarray(Picture.open(BytesIO(answer.content)).convert("RGB")).astype(int)
    assert small.shape == (20, 40, 3)
    assert np.abs(small[:, 4:16] - (255, 0, 0)).max() < 40
    assert np.abs(small[:, 24:36] - (0, 0, 255)).max() < 40


@pytest.mark.parametrize("side", ["15", "1025", "-1", "x", "9" * 40])
def test_a_thumbnail_has_bounds(picture: tuple[int, Path], client: TestClient, side: str) -> None:
    assert client.get(f"/api/images/{picture[0]}/thumbnail?side={side}").status_code == 422


def test_a_file_that_changed_or_vanished_is_not_shown(picture: tuple[int, Path], client: TestClient) -> None:
    image, file = picture
    file.with_name("neighbour.png").write_bytes(b"")  # a folder without any file is a disk that is not mounted
    file.write_bytes(b"something else")
    changed = client.get(f"/api/images/{image}/thumbnail")
    file.unlink()
    gone = client.get(f"/api/images/{image}/thumbnail")

    assert (changed.status_code, gone.status_code) == (409, 409)
    assert "activeseg pool sync" in changed.json()["error"]


def test_a_quarantined_file_is_never_decoded(filler: Any, picture: tuple[int, Path], client: TestClient) -> None:
    data = picture[1].read_bytes()
    copy = picture[1].with_name("b.png")
    copy.write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    image = filler.image(str(copy), sha256=sha256, status=ImageStatus.QUARANTINED, reason="a bomb")

    answer = client.get(f"/api/images/{image}/thumbnail")

    assert answer.status_code == 409
    assert "a bomb" in answer.json()["error"]


def test_a_row_cannot_lead_a_thumbnail_out_of_its_folder(filler: Any, client: TestClient, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    digest = hashlib.sha256(secret.read_bytes()).hexdigest()
    image = filler.image(str(tmp_path / "pool" / ".." / "secret.png"), sha256=digest, split=Split.POOL)

    assert client.get(f"/api/images/{image}/thumbnail").status_code == 409
