"""The simulated annotator as its own process against a real Label Studio."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from activeseg.demo.annotator import ROLES
from activeseg.labelstudio.regions import result_to_mask

pytestmark = pytest.mark.labelstudio
SHAPE = (24, 35)


@pytest.fixture
def at_work(board, labelstudio_server, random_mask, tmp_path):
    """Five tasks whose predictions differ from the known masks, and the annotator let loose on them."""

    def run(*options, kind="brush", predicted=True):
        used = board(kind)
        truth = {}
        payloads = []
        for number in range(5):
            mask = random_mask(*SHAPE, seed=number)
            Image.fromarray(mask).save(tmp_path / f"scene {number}.png")
            guess = np.where(mask == 4, 5, mask).astype(np.uint8)
            payloads.append(used.payload(guess if predicted else None, name=f"scene {number}", shape=SHAPE))
            truth[used.keys[-1]] = (guess, mask)
        used.client.import_tasks(used.project.id, payloads)
        token = tmp_path / "token"
        token.write_text(labelstudio_server.add_user("annotator@example.com")[1])
        command = [sys.executable, "-m", "activeseg.demo.annotator", "--url", labelstudio_server.url, "--token-file", token]
        command += ["--project", str(used.project.id), "--truth", tmp_path, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        exported = used.client.export_tasks(used.project.id, used.client.task_ids(used.project.id))
        return used, truth, [json.loads(line) for line in done.stdout.splitlines()], exported

    return run


def drawn(used, task):
    (annotation,) = task["annotations"]
    return result_to_mask(annotation["result"], used.labels, width=SHAPE[1], height=SHAPE[0])


@pytest.mark.parametrize("kind", ["brush", "bitmask"])
def test_it_works_like_a_person(at_work, kind):
    used, truth, lines, exported = at_work(kind=kind)
    assert [line["key"] for line in lines] == used.keys
    assert Counter(line["did"] for line in lines) == Counter([*ROLES, "corrected", "corrected"])
    did = {line["task"]: line["did"] for line in lines}
    for task in exported:
        guess, mask = truth[task["data"]["key"]]
        (annotation,) = task["annotations"]
        role = did[task["id"]]
        assert annotation["was_cancelled"] is (role == "skipped")
        assert annotation["parent_prediction"]
        assert annotation["lead_time"] > 0
        assert np.array_equal(drawn(used, task).mask, guess if role in ("skipped", "unchanged") else mask)
        assert (drawn(used, task).changed > 0) is role.startswith("corrected")
        assert (annotation["updated_at"] > annotation["created_at"]) or role != "corrected twice"


def test_wrong_work_is_what_it_drew_not_the_truth(at_work):
    used, truth, lines, exported = at_work("--wrong")
    did = {line["task"]: line["did"] for line in lines}
    for task in exported:
        if did[task["id"]].startswith("corrected"):
            assert np.array_equal(drawn(used, task).mask, (truth[task["data"]["key"]][1] + 1) % 12)


def test_without_predictions_it_draws_everything(at_work):
    used, truth, lines, exported = at_work(predicted=False)
    did = {line["task"]: line["did"] for line in lines}
    assert "unchanged" not in did.values()
    for task in exported:
        if did[task["id"]] != "skipped":
            assert np.array_equal(drawn(used, task).mask, truth[task["data"]["key"]][1])
