"""What a real Label Studio on this machine takes and gives: tasks pushed, images uploaded, annotations pulled, a second.

    python scripts/bench_labelstudio.py [--tasks N] [--annotated M] [--kinds bitmask,brush] [--scale N] [--json] [--keep]

A private server is started, and a workspace with N drawn images of 480x360, whose masks show all 12 classes, is made in a
temporary folder. Then the production code works, and beside each figure stands what it is to be compared with:

    push     `push_round`, images by link     the server alone: the same requests, made before, sent by plain HTTP
                                              the SDK's `projects.import_tasks`, the same tasks
    upload   `push_round`, images uploaded    the same files sent by plain HTTP
    pull     `pull_annotations`               the SDK's `tasks.list(fields="all")`

--scale N: instead, one project is filled to N tasks, a tenth of them annotated (or --annotated), another to 500; what a
task takes in the large one, our own peak memory, and how much of the time was the server's. About a minute for each 5,000
bitmask tasks, four for brush.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import sqlalchemy as sa
from bench_startup import machine
from label_studio_sdk.client import LabelStudio
from PIL import Image as Pillow

from activeseg.config import Settings, write_secret
from activeseg.db import images, migrate
from activeseg.db.database import Database
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
    Split,
)
from activeseg.demo.scenes import SCENE_CLASSES, draw_scene
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.labeling import MaskKind
from activeseg.labelstudio.registration import open_project
from activeseg.labelstudio.server import RunningServer, start_server
from activeseg.stages.pull import pull_annotations
from activeseg.stages.push import UPLOAD_GROUP, push_round
from activeseg.workspace import Workspace

WIDTH, HEIGHT, CLASSES = 480, 360, len(SCENE_CLASSES.names)
SCENES = 24  # drawn ones; each image is one of them with a number in its file
SDK_TASKS = 200  # the SDK takes 70 ms for a brush task
UPLOADS = 200
SMALL = 500
Figures = dict[str, Any]


@dataclass
class Bench:
    """The server, the folder, and the drawn files. scenes: (JPEG, mask) each."""

    server: RunningServer
    folder: Path
    scenes: list[tuple[bytes, npt.NDArray[np.uint8]]]
    made: int = 0

    def client(self, transport: httpx.BaseTransport | None = None) -> LabelStudioClient:
        """The production client."""
        return LabelStudioClient(self.server.url, self.server.token(), timeout=600.0, transport=transport)


# What is sent


def draw_scenes(count: int) -> list[tuple[bytes, npt.NDArray[np.uint8]]]:
    """Street scenes; classes that one lacks are added as small boxes, so that every mask has all twelve."""
    scenes = []
    for seed in range(count):
        scene = draw_scene(seed, width=WIDTH, height=HEIGHT)
        for index in set(range(CLASSES)) - set(np.unique(scene.mask).tolist()):
            scene.mask[20 + 25 * index : 40 + 25 * index, 30 + 35 * index : 60 + 35 * index] = index
        stream = io.BytesIO()
        Pillow.fromarray(scene.image).save(stream, "JPEG", quality=90)
        scenes.append((stream.getvalue(), scene.mask))
    return scenes


def numbered(jpeg: bytes, number: int) -> bytes:
    """The same picture as another file: a comment behind the first marker."""
    text = str(number).encode()
    return jpeg[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + jpeg[2:]


def make_workspace(bench: Bench, kind: MaskKind, rounds: list[int], **section: Any) -> Workspace:
    """A workspace with these many images in each of its rounds, chosen and predicted but not pushed."""
    bench.made += 1
    root = bench.folder / f"workspace-{bench.made}"
    (root / "pool").mkdir(parents=True)
    (root / "classes.txt").write_text(SCENE_CLASSES.to_text(), encoding="utf-8")
    write_secret(root / "token", bench.server.token())
    labelstudio = {"url": bench.server.url, "token_file": "token", "project": f"bench {bench.made} {kind}", "mask_kind": kind}
    labelstudio |= {"images": "link", "link": "http://images.invalid/{path}", "entropy_map": "none"} | section
    url = f"sqlite:///{root}/activeseg.db"
    settings = Settings(
        root=root,
        database={"url": url},
        pool={"images": "pool"},
        labels={"file": "classes.txt", "include_void": True},
        labelstudio=labelstudio,
    )
    database = Database(url)
    migrate.upgrade(database)
    workspace = Workspace(settings, database)
    fill(workspace, bench, rounds)
    return workspace


def fill(workspace: Workspace, bench: Bench, rounds: list[int]) -> None:
    """The rows that scoring, ranking and predicting would have left; the files beside them."""
    pool = Path(workspace.settings.images_uri)
    masks = [workspace.store_mask(mask) for _, mask in bench.scenes]
    numbers = range(1, sum(rounds) + 1)
    rows = []
    for number in numbers:
        data = numbered(bench.scenes[number % SCENES][0], number)
        path = pool / f"{number:06d}.jpg"
        path.write_bytes(data)
        row = {"id": number, "uri": str(path), "sha256": sha256(data).hexdigest(), "size_bytes": len(data)}
        rows.append(row | {"width": WIDTH, "height": HEIGHT, "split": Split.POOL, "status": ImageStatus.ACTIVE})
    with workspace.database.write() as session:
        label_set = images.label_set_row(session, workspace.label_set)
        spec = {"label_set": workspace.label_set.as_dict()}
        session.add(Checkpoint(id=1, model_version="bench-0001", label_set_id=label_set.id, location="checkpoint/x",
                               sha256="0" * 64, architecture="fcn_mobilenet_v2", spec=spec))  # fmt: skip
        session.flush()
        session.add(ScoringConfig(id=1, checkpoint_id=1, fingerprint="0" * 64, definition={}))
        session.execute(sa.insert(Image), rows)
        session.flush()
        shares = [{"class_index": index, "channel_entropy_sum": float(index)} for index in range(CLASSES)]
        nothing = {"scoring_config_id": 1, "region_pixels": 0, "region_entropy_sum": 0.0}
        session.execute(sa.insert(ClassScoreRow), [nothing | {"image_id": n} | share for n in numbers for share in shares])
        predicted = {"source": "checkpoint:bench-0001", "checkpoint_id": 1}
        stored = [{"mask_location": mask.location, "mask_sha256": mask.sha256} for mask in masks]
        session.execute(sa.insert(Prediction), [predicted | {"image_id": n} | stored[n % SCENES] for n in numbers])
        ids = iter(numbers)
        for number, size in enumerate(rounds, start=1):
            session.add(Round(id=number, number=number, status=RoundStatus.SELECTED, scoring_config_id=1, seed=0,
                              acquisition="entropy_sum", query_size=size, control_share=0.1))  # fmt: skip
            session.flush()
            query = {"round_id": number, "arm": Arm.CHOSEN, "reason": "bench", "status": QueryStatus.SELECTED}
            session.execute(sa.insert(Query), [query | {"image_id": next(ids), "shown_order": n} for n in range(size)])


# What stands between the client and the server


@dataclass
class Wire(httpx.BaseTransport):
    """Carries requests, measures how long the server takes, and keeps or alters the imports that pass.

    keep: folder to which their bodies are written. annotate: every task is sent with its prediction as an annotation.
    """

    keep: Path | None = None
    annotate: bool = False
    seconds: float = 0.0
    kept: list[Path] = field(default_factory=list)
    inner: httpx.HTTPTransport = field(default_factory=httpx.HTTPTransport)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Pass one request on."""
        is_import = request.url.path.endswith("/import") and b"return_task_ids" in request.url.query
        if is_import and self.keep is not None:
            self.kept.append(self.keep / f"{len(self.kept):05d}.json")
            self.kept[-1].write_bytes(request.content)
        if is_import and self.annotate:
            headers = {name: value for name, value in request.headers.items() if name != "content-length"}
            request = httpx.Request(request.method, request.url, headers=headers, content=_annotated(request.content))
        started = time.perf_counter()
        answer = self.inner.handle_request(request)
        answer.read()
        self.seconds += time.perf_counter() - started
        return answer


def _annotated(body: bytes) -> bytes:
    tasks = json.loads(body)
    for task in tasks:
        result = [region | {"origin": "prediction"} for region in task["predictions"][0]["result"]]
        task["annotations"] = [{"result": result, "lead_time": 20.0}]
    return json.dumps(tasks).encode()


# What is measured


def timed(call: Callable[[], Any]) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure_push(bench: Bench, kind: MaskKind, tasks: int) -> Figures:
    """Tasks a second through `push_round`, beside the server alone and the SDK."""
    workspace = make_workspace(bench, kind, [tasks])
    bodies = Path(tempfile.mkdtemp(dir=bench.folder))
    wire = Wire(keep=bodies)
    with bench.client(wire) as client:
        project = open_project(workspace, client).external_project_id  # loads the SDK, which takes seconds
        seconds = timed(lambda: push_round(workspace, 1, client))
        assert len(client.task_ids(project)) == tasks
    size = sum(path.stat().st_size for path in wire.kept)
    figures: Figures = {"tasks/s": tasks / seconds, "kB a task": size / tasks / 1000, "requests": len(wire.kept)}
    figures["server's share"] = wire.seconds / seconds
    with bench.client() as client:
        project = client.ensure_project(f"bench alone {kind}", SCENE_CLASSES, kind).id
        prebuilt = iter([path.read_bytes() for path in wire.kept])
        path, params = f"/api/projects/{project}/import", {"return_task_ids": "true"}
        seconds = timed(lambda: [client.http.create(path, body, params) for body in prebuilt])
        figures["server alone tasks/s"] = tasks / seconds
    sdk_tasks = [task for file in wire.kept for task in json.loads(file.read_bytes())][:SDK_TASKS]
    sdk = LabelStudio(base_url=bench.server.url, api_key=bench.server.token(), timeout=600.0)
    seconds = timed(lambda: sdk.projects.import_tasks(id=project, request=sdk_tasks, return_task_ids=True))
    figures["SDK tasks/s"] = len(sdk_tasks) / seconds
    return figures


def measure_uploads(bench: Bench, count: int) -> Figures:
    """Images a second through `push_round` where they are uploaded, beside the same files sent by plain HTTP."""
    workspace = make_workspace(bench, "bitmask", [count], images="upload")
    with bench.client() as client:
        project = open_project(workspace, client).external_project_id
        seconds = timed(lambda: push_round(workspace, 1, client))
        files = [(path.name, path.read_bytes()) for path in sorted(Path(workspace.settings.images_uri).iterdir())]
        path, params = f"/api/projects/{project}/import", {"commit_to_project": "false"}
        groups = [files[start : start + UPLOAD_GROUP] for start in range(0, count, UPLOAD_GROUP)]
        alone = timed(lambda: [client.http.upload(path, group, params) for group in groups])
    return {"images/s": count / seconds, "server alone images/s": count / alone}


def measure_pull(bench: Bench, kind: MaskKind, annotated: int) -> Figures:
    """Annotated tasks a second through `pull_annotations`, beside the SDK's listing."""
    workspace = make_workspace(bench, kind, [annotated])
    with bench.client(Wire(annotate=True)) as client:
        push_round(workspace, 1, client)
    wire = Wire()
    with bench.client(wire) as client:
        project = open_project(workspace, client).external_project_id
        before = wire.seconds
        seconds = timed(lambda: _pull_all(workspace, client, annotated))
        share = (wire.seconds - before) / seconds
    sdk = LabelStudio(base_url=bench.server.url, api_key=bench.server.token(), timeout=600.0)
    listed = timed(lambda: list(sdk.tasks.list(project=project, fields="all")))
    return {"tasks/s": annotated / seconds, "server's share": share, "SDK tasks/s": annotated / listed}


def _pull_all(workspace: Workspace, client: LabelStudioClient, expected: int) -> None:
    report = pull_annotations(workspace, client)
    assert report.details.get("valid") == expected, report


def measure_scale(bench: Bench, kind: MaskKind, tasks: int, annotated: int) -> Figures:
    """What a task takes in a project of `tasks`, the last ones of them apart, and what our memory is meanwhile."""
    workspace = make_workspace(bench, kind, [annotated, tasks - annotated])
    with bench.client(Wire(annotate=True)) as client:
        push_round(workspace, 1, client)
    moments = [(0, time.perf_counter())]
    wire = Wire()
    figures: Figures = {}
    with bench.client(wire) as client:
        open_project(workspace, client)
        before = wire.seconds
        with peak_memory(figures, "push"):
            moments[0] = (0, time.perf_counter())
            push_round(workspace, 2, client, on_progress=lambda sent, _: moments.append((sent, time.perf_counter())))
        total = time.perf_counter() - moments[0][1]
        figures |= {"push tasks/s": (tasks - annotated) / total, "push server's share": (wire.seconds - before) / total}
        figures["push ms a task"] = 1000 * total / (tasks - annotated)
        figures["push ms a task, the last"] = 1000 * _slope([one for one in moments if one[0] >= moments[-1][0] - SMALL])
        before, started = wire.seconds, time.perf_counter()
        with peak_memory(figures, "pull"):
            _pull_all(workspace, client, annotated)
        total = time.perf_counter() - started
    figures |= {"pull tasks/s": annotated / total, "pull server's share": (wire.seconds - before) / total}
    figures["pull ms a task"] = 1000 * total / annotated
    return figures


def _slope(moments: list[tuple[int, float]]) -> float:
    (first, started), (last, ended) = moments[0], moments[-1]
    return (ended - started) / (last - first) if last > first else float("nan")


@contextmanager
def peak_memory(figures: Figures, name: str) -> Iterator[None]:
    """Note the largest resident memory of this process meanwhile, and what it was before, in MB (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    before = _status("VmRSS")
    yield
    figures |= {f"{name} peak MB": _status("VmHWM"), f"{name} MB before": before}


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":"))


def run(bench: Bench, options: argparse.Namespace) -> Iterator[tuple[str, Figures]]:
    """Each measurement's name and figures, as they come."""
    for kind in options.kinds:
        if options.scale:
            yield f"scale {kind} {SMALL}", measure_scale(bench, kind, SMALL, SMALL // 10)
            annotated = options.annotated or options.scale // 10
            yield f"scale {kind} {options.scale}", measure_scale(bench, kind, options.scale, annotated)
        else:
            yield f"push {kind}", measure_push(bench, kind, options.tasks)
            yield f"pull {kind}", measure_pull(bench, kind, options.annotated or 200)
    if not options.scale:
        yield "upload", measure_uploads(bench, min(options.tasks, UPLOADS))


def main() -> None:
    """Print a line a measurement, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=1_000)
    parser.add_argument("--annotated", type=int)
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=["bitmask", "brush"])
    parser.add_argument("--scale", type=int, metavar="N")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", action="store_true", help="leave the server's and the workspaces' folder")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="activeseg-bench-"))
    everything: Figures = {"machine": machine(), "tasks": options.tasks}
    if not options.json:
        print(machine())
    with start_server(folder / "label-studio", log=folder / "server.log") as server:
        for name, figures in run(Bench(server, folder, draw_scenes(SCENES)), options):
            everything[name] = {key: round(value, 3) for key, value in figures.items()}
            if not options.json:
                print(f"{name:<22}" + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()), flush=True)
    if options.json:
        print(json.dumps(everything, indent=2))
    if options.keep:
        print(folder)
    else:
        import shutil

        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
