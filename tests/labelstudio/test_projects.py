"""An existing project's screen is brought up to date where only the entropy map differs, and in no other case."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from activeseg.errors import LabelSetMismatch, LabelStudioError
from activeseg.labelstudio.labeling import config_entropy_map, labeling_config
from activeseg.labelstudio.regions import result_to_mask

pytestmark = [pytest.mark.labelstudio, pytest.mark.slow]


def test_a_screen_that_differs_only_in_the_map_is_brought_up_to_date_and_nothing_else_changes(board, client, labels, person):
    used = board("bitmask")
    mask = np.tile(np.arange(12, dtype=np.uint8), (8, 2))
    first, second = used.push(mask, mask)
    result = client.http.get(f"/api/tasks/{first}")["predictions"][0]["result"]
    person.call("POST", f"/api/tasks/{first}/annotations/", {"result": result}, project=used.project.id)
    before = client.http.get(f"/api/projects/{used.project.id}/")
    for wanted in ("folded", "none", "none", "beside"):
        found = client.ensure_project(used.project.title, labels, "bitmask", entropy_map=wanted)
        assert (found.id, found.created) == (used.project.id, False)
        assert config_entropy_map(found.config, labels, "bitmask") == wanted
    after = client.http.get(f"/api/projects/{used.project.id}/")
    assert {key for key in before if before[key] != after[key]} <= {"updated_at", "config_has_control_tags"}
    assert client.task_ids(used.project.id) == [first, second]
    (task,) = client.export_tasks(used.project.id, [first])
    drawn = result_to_mask(task["annotations"][0]["result"], labels, width=24, height=8)
    assert (drawn.mask == mask).all()
    assert len(client.http.get(f"/api/tasks/{second}")["predictions"]) == 1


def test_what_is_up_to_date_is_not_sent_again(board, client, labels, monkeypatch):
    used = board()
    sent = []
    monkeypatch.setattr(client.http, "repeatable", lambda method, *rest, **fields: sent.append((method, rest)))
    client.ensure_project(used.project.title, labels, "brush")
    assert [call for call in sent if call[0] == "PATCH"] == []


def test_a_screen_changed_by_hand_stays_as_it_is(board, client, labels):
    used = board()
    changed = used.project.config.replace('size="5"', 'size="3"')
    client.http.repeatable("PATCH", f"/api/projects/{used.project.id}/", body={"label_config": changed})
    found = client.ensure_project(used.project.title, labels, "brush", entropy_map="none")
    assert found.config == changed
    assert config_entropy_map(found.config, labels, "brush") is None


def test_other_labels_another_mask_kind_or_another_overlap_are_refused_and_nothing_is_sent(board, client, labels):
    used = board()
    others = replace(labels, names=(*labels.names[:-1], "other"))
    with pytest.raises(LabelSetMismatch):
        client.ensure_project(used.project.title, others, "brush", entropy_map="none")
    with pytest.raises(LabelSetMismatch):
        client.ensure_project(used.project.title, replace(labels, overlap=True), "brush", entropy_map="none")
    with pytest.raises(LabelStudioError, match="draws masks as brush"):
        client.ensure_project(used.project.title, labels, "bitmask", entropy_map="none")
    assert client.get_project(used.project.id).config == used.project.config


@pytest.mark.parametrize("entropy_map", ["beside", "folded", "none"])
def test_a_new_project_has_the_map_where_it_is_wanted(client, labels, entropy_map):
    made = client.ensure_project(f"map {entropy_map}", labels, "brush", entropy_map=entropy_map)
    assert made.created
    assert config_entropy_map(made.config, labels, "brush") == entropy_map
    assert made.config == labeling_config(labels, mask_kind="brush", entropy_map=entropy_map)
