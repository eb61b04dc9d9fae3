"""A simulated annotator: `python -m activeseg.demo.annotator --url U --token-file F --project ID --truth DIR`.

It stands for a person at a browser: a process of its own with a token of its own, who opens unlabelled tasks in the
shown order, looks at the prediction, and submits over HTTP what Label Studio's own page would send. It is the only
program that reads the known masks (PNGs in --truth, named like the images: class indices or, where the project says that
classes may overlap, the planes of all classes one below the other). One JSON line per task says what it
did; lead times are made up:

    corrected        the regions that differ from the truth are replaced, the others are left as predicted
    corrected twice  half corrected, submitted, then edited again
    unchanged        the prediction is submitted as it is
    skipped          the task is cancelled

--wrong draws class i + 1 (the last: 0) wherever the truth has class i, for a test of what becomes of wrong work.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import httpx
import numpy as np

from activeseg.core.labels import UNLABELED, LabelSet, Mask
from activeseg.core.masks import changed_share
from activeseg.imaging.masks import decode_mask, decode_planes
from activeseg.labelstudio.labeling import MaskKind, config_labels, config_mask_kind, config_overlap
from activeseg.labelstudio.regions import mask_to_result, result_to_mask

Json = dict[str, Any]

ROLES = ("corrected twice", "skipped", "unchanged")
"""What one task each gets, where there are enough; all others are 'corrected'."""

_UPLOADED = re.compile(r"^[0-9a-f]{8}-(?P<stem>.+)\.[^.]+$")  # Label Studio puts eight hex digits before an upload's name


class Browser:
    """The requests that Label Studio's page would make, with a personal access token instead of a session."""

    def __init__(self, url: str, token: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=120.0, trust_env=False)
        self._token = token

    def call(self, method: str, path: str, body: Json | None = None, **params: Any) -> Any:
        """JSON answer. Every call renews the access token, which lives for five minutes only."""
        access = self._http.post("/api/token/refresh/", json={"refresh": self._token}).raise_for_status().json()["access"]
        headers = {"Authorization": f"Bearer {access}"}
        return self._http.request(method, path, json=body, params=params, headers=headers).raise_for_status().json()


@dataclass(frozen=True)
class Screen:
    """What the project asks annotators for: its number, its classes and how masks are drawn."""

    project: int
    label_set: LabelSet
    mask_kind: MaskKind


@dataclass(frozen=True)
class Work:
    """An open task: the prediction a person would find on it, and the mask they know to be right."""

    task: Json
    prediction: Json | None
    shown: Mask
    truth: Mask


def open_screen(browser: Browser, project: int) -> Screen:
    """Read the project's labeling configuration."""
    config = browser.call("GET", f"/api/projects/{project}/")["label_config"]
    names, mask_kind = config_labels(config), config_mask_kind(config)
    if mask_kind is None:
        raise SystemExit(f"project {project} asks for no masks")
    return Screen(project, LabelSet(tuple(names), ((0, 0, 0),) * len(names), overlap=config_overlap(config)), mask_kind)


def open_tasks(browser: Browser, project: int, only: Sequence[int]) -> list[int]:
    """Numbers of the tasks nobody labelled or skipped, in the order the page shows them."""
    rules = [
        {"filter": f"filter:tasks:{name}", "operator": "equal", "type": "Number", "value": 0}
        for name in ("total_annotations", "cancelled_annotations")
    ]
    query = {"filters": {"conjunction": "and", "items": rules}, "ordering": ["tasks:data.order"]}
    fields: Json = {"fields": "task_only", "include": "id", "page_size": 10_000, "query": json.dumps(query)}
    tasks = browser.call("GET", "/api/tasks/", project=project, **fields)["tasks"]
    return [task["id"] for task in tasks if not only or task["id"] in only]


def read_truth(folder: Path) -> dict[str, Path]:
    """Known masks by the name Label Studio gives an upload: blanks become underscores, other signs vanish."""
    return {re.sub(r"[^-\w.]", "", file.stem.strip().replace(" ", "_")): file for file in sorted(folder.glob("*.png"))}


def open_task(browser: Browser, screen: Screen, number: int, truth: Mapping[str, Path], *, wrong: bool) -> Work:
    """Everything a person sees on a task, and the mask they would draw."""
    task = browser.call("GET", f"/api/tasks/{number}/", project=screen.project)
    name = PurePosixPath(task["data"]["image"]).name
    match = _UPLOADED.match(name)
    if match is None or match["stem"] not in truth:
        raise SystemExit(f"task {number}: no known mask for {name}")
    mask = _known_mask(truth[match["stem"]].read_bytes(), screen.label_set, wrong=wrong)
    prediction = max(task["predictions"], key=lambda item: item["id"], default=None)
    height, width = mask.shape[-2:]
    result = prediction["result"] if prediction else []
    shown = result_to_mask(result, screen.label_set, width=width, height=height).mask
    return Work(task, prediction, shown, mask)


def _known_mask(data: bytes, label_set: LabelSet, *, wrong: bool) -> Mask:
    if label_set.overlap:
        planes = decode_planes(data, len(label_set.names))
        return np.roll(planes, 1, axis=0) if wrong else planes
    mask = decode_mask(data)
    if wrong:
        mask[mask != UNLABELED] = (mask[mask != UNLABELED] + 1) % len(label_set.names)
    return mask


def correct(work: Work, screen: Screen, target: Mask) -> list[Json]:
    """The prediction's regions after a person turned them into `target`.

    A region that is right already stays a 'prediction', one redrawn becomes 'prediction-changed' under its old number,
    a class that was missing gets a 'manual' one, and a class that is not there loses its region.
    """
    regions = mask_to_result(target, screen.label_set, kind=screen.mask_kind)
    old = {_label(region): region for region in (work.prediction["result"] if work.prediction else [])}
    for region in regions:
        index = screen.label_set.index_of(_label(region))
        before = old.get(_label(region))
        if before is None:
            region["origin"] = "manual"
        elif np.array_equal(_area(work.shown, index), _area(target, index)):
            region |= {"id": before["id"], "value": before["value"], "origin": "prediction"}
        else:
            region |= {"id": before["id"], "origin": "prediction-changed"}
    return regions


def _area(mask: Mask, index: int) -> Mask:
    area: Mask = mask[index] if mask.ndim == 3 else mask == index
    return area


def _label(region: Mapping[str, Any]) -> str:
    return str(region["value"][region["type"]][0])


def untouched(work: Work) -> list[Json]:
    """The prediction's regions as they are."""
    return [region | {"origin": "prediction"} for region in (work.prediction["result"] if work.prediction else [])]


def submit(browser: Browser, screen: Screen, work: Work, result: list[Json], lead_time: float, *, skip: bool = False) -> int:
    """Submit (or skip) a task as the page does; the annotation's number."""
    body = {
        "result": result,
        "lead_time": lead_time,
        "draft_id": 0,
        "parent_prediction": work.prediction["id"] if work.prediction else None,
        "parent_annotation": None,
        "started_at": datetime.now(UTC).isoformat(),
        "project": str(screen.project),
        "was_cancelled": skip,
    }
    made = browser.call("POST", f"/api/tasks/{work.task['id']}/annotations/", body, project=screen.project)
    return int(made["id"])


def annotate(browser: Browser, screen: Screen, work: Work, role: str, lead_time: float) -> Json:
    """Do one task in the given role; what was done, for the report."""
    left = work.shown if role in ("unchanged", "skipped") else work.truth
    if role == "skipped":
        number = submit(browser, screen, work, untouched(work), lead_time, skip=True)
    elif role == "unchanged":
        number = submit(browser, screen, work, untouched(work), lead_time)
    elif role == "corrected twice":
        half = work.truth.copy()
        middle = half.shape[-1] // 2
        half[..., middle:] = work.shown[..., middle:]
        number = submit(browser, screen, work, correct(work, screen, half), lead_time)
        edit = {"result": correct(work, screen, work.truth), "lead_time": lead_time * 1.5}
        browser.call("PATCH", f"/api/annotations/{number}/", edit, project=screen.project, taskID=work.task["id"])
    else:
        number = submit(browser, screen, work, correct(work, screen, work.truth), lead_time)
    return {"task": work.task["id"], "key": work.task["data"].get("key"), "did": role, "annotation": number,
            "changed": round(changed_share(work.shown, left), 4), "lead_time": lead_time}  # fmt: skip


def assign_roles(numbers: Sequence[int], *, seed: int) -> dict[int, str]:
    """A role for each task: one each of ROLES for random tasks, as long as one remains to be corrected plainly."""
    chosen = random.Random(seed).sample(list(numbers), min(len(ROLES), max(0, len(numbers) - 1)))
    return dict.fromkeys(numbers, "corrected") | dict(zip(chosen, ROLES, strict=False))


def main(arguments: Sequence[str] | None = None) -> int:
    """Do all open tasks; 0 where each was done."""
    parser = argparse.ArgumentParser(prog="python -m activeseg.demo.annotator", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--url", required=True, help="Label Studio's address")
    parser.add_argument("--token-file", required=True, type=Path, help="file with the annotator's personal access token")
    parser.add_argument("--project", required=True, type=int, help="number of the project")
    parser.add_argument("--truth", required=True, type=Path, help="folder of known masks, <image stem>.png")
    parser.add_argument("--tasks", default="", help="only these tasks, e.g. 1,2,3")
    parser.add_argument("--seed", type=int, default=0, help="of roles and lead times")
    parser.add_argument("--wrong", action="store_true", help="draw deliberately wrong masks")
    options = parser.parse_args(arguments)

    browser = Browser(options.url, options.token_file.read_text(encoding="utf-8").strip())
    screen = open_screen(browser, options.project)
    only = [int(number) for number in options.tasks.split(",") if number]
    numbers = open_tasks(browser, options.project, only)
    roles = assign_roles(numbers, seed=options.seed)
    truth = read_truth(options.truth)
    patience = random.Random(options.seed)
    for number in numbers:
        work = open_task(browser, screen, number, truth, wrong=options.wrong)
        role = "corrected" if work.prediction is None and roles[number] == "unchanged" else roles[number]
        done = annotate(browser, screen, work, role, round(patience.uniform(20.0, 90.0), 1))
        print(json.dumps(done), flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except httpx.HTTPError as error:
        sys.exit(f"Label Studio: {error}")
