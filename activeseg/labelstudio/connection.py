"""Does a Label Studio do what the loop needs? Each check does the real thing once and takes it away again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from activeseg.core.labels import UNLABELED, LabelSet, Mask
from activeseg.db.models import LabelingProject
from activeseg.errors import ActivesegError, AddressRefused, LabelStudioError, LabelStudioUnauthorized
from activeseg.fetching import fetch, host_of
from activeseg.imaging.thumbnails import encode_png
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.install import SERVER_VERSION
from activeseg.labelstudio.labeling import MaskKind
from activeseg.labelstudio.regions import mask_to_result, result_to_mask
from activeseg.labelstudio.registration import open_project
from activeseg.labelstudio.tasks import task_payload
from activeseg.wording import counted
from activeseg.workspace import Workspace

TEST_KEY = "activeseg-connection-test"
"""`data.key` of the task that `activeseg ls connect` sends and removes: never one of ours, nor a stranger's."""

Undo = tuple[str, Callable[[], object]]
"""Something made on the server, and what takes it away."""

_HEIGHT, _WIDTH = 23, 37  # odd, and no multiple of anything: a wrong stride or a transposed mask shows
_VERSION = "activeseg-connection-test"
_ORDER = 999_999  # behind every other task


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried. message: what was found, or what is wrong and what mends it."""

    name: str
    ok: bool
    message: str


def check_connection(workspace: Workspace, client: LabelStudioClient) -> Iterator[Check]:
    """Try what the loop will do, from the token to a mask there and back; a check that fails ends what depends on it.

    Makes the project if there is none of its title. Needs the lease: a pull meanwhile would see the test task.
    """
    trying = "server"
    try:
        yield Check("server", True, _server(client))
        yield Check("token", True, _token(client))
        trying, section = "project", workspace.settings.labelstudio
        there = client.find_project(section.project, workspace.label_set, section.mask_kind) is not None
        project = open_project(workspace, client)
    except ActivesegError as error:
        yield Check("token" if isinstance(error, LabelStudioUnauthorized) else trying, False, str(error))
        return
    classes = _classes(workspace.label_set)
    state = f"was there, with these {classes}" if there else f"was made, with {classes}"
    yield Check("project", True, f"{project.external_project_id} {project.title!r} {state}: {project.page}")
    undo: list[Undo] = []
    try:
        yield from _tried(workspace, client, project, undo)
    finally:
        # Whatever ended it, also a caller that asks for no further check; nothing is raised here that would hide it.
        left = _clean_up(client, undo)
    if left is not None:
        yield left


def _tried(workspace: Workspace, client: LabelStudioClient, project: LabelingProject, undo: list[Undo]) -> Iterator[Check]:
    """What is tried in a project that fits; what it leaves there goes to `undo`."""
    section, url = workspace.settings.labelstudio, None
    try:
        url = _upload(client, project.external_project_id, undo)
        yield Check("image", True, "an uploaded image comes back byte for byte")
    except LabelStudioError as error:
        yield Check("image", False, str(error))
    if url is not None:
        yield _checked(client, "mask", lambda: _round_trip(workspace, client, project, url, undo))
    if section.images != "upload":
        yield _checked(client, "images", lambda: _delivery(workspace, client, project))
    if section.webhook_url is not None:
        yield _checked(client, "webhook", lambda: _webhook(workspace, client, project))


def _clean_up(client: LabelStudioClient, undo: Sequence[Undo]) -> Check | None:
    """Take away what was made, last things first; what could not be is told, None where nothing is left."""
    left: list[str] = []
    for name, remove in reversed(undo):
        try:
            with client.http.expecting(f"the removal of {name}"):
                remove()
        except ActivesegError as error:
            left.append(f"{name}: {error}")
    if not left:
        return None
    return Check(
        "clean-up",
        False,
        f"not everything could be taken away again ({'; '.join(left)}): run it again; if it stays so, remove the task with the "
        f"key {TEST_KEY} in Label Studio",
    )


def remove_test_tasks(client: LabelStudioClient, project_id: int) -> int:
    """Remove test tasks, also what a killed run left behind; returns how many."""
    left = client.find_tasks(project_id, [TEST_KEY]).get(TEST_KEY, [])
    client.delete_tasks(project_id, left)
    return len(left)


def sample_mask(label_set: LabelSet) -> Mask:
    """A mask of 37x23 pixels in which every class occurs, for the kind of classes a label set has."""
    count, pixels = len(label_set.names), _HEIGHT * _WIDTH
    if label_set.overlap:
        return np.random.default_rng(count).random((count, _HEIGHT, _WIDTH)) > 0.5
    values = np.arange(pixels) * (count + 1) // pixels
    return np.where(values == count, UNLABELED, values).astype(np.uint8).reshape(_HEIGHT, _WIDTH)


def _checked(client: LabelStudioClient, name: str, check: Callable[[], str]) -> Check:
    try:
        with client.http.expecting(f"the check {name!r}"):
            return Check(name, True, check())
    except ActivesegError as error:
        return Check(name, False, str(error))


def _server(client: LabelStudioClient) -> str:
    version = client.version()
    tested = "" if version == SERVER_VERSION else f"; activeseg is tested with {SERVER_VERSION}"
    return f"{client.url}, Label Studio {version}{tested}"


def _token(client: LabelStudioClient) -> str:
    if client.token_kind == "personal":
        return "personal access token, renewed by itself"
    return "legacy token: it works until the organisation turns those off; a personal access token does not depend on that"


def _classes(label_set: LabelSet) -> str:
    kind = "that may overlap" if label_set.overlap else "that exclude each other"
    return f"{counted(len(label_set.names), 'class', 'classes')} {kind}"


def _upload(client: LabelStudioClient, project_id: int, undo: list[Undo]) -> str:
    """Address of a small picture that came back as it was sent; how to remove it goes to `undo`."""
    rows, columns = np.mgrid[:_HEIGHT, :_WIDTH]
    picture = encode_png(np.dstack([rows * 11 % 256, columns * 7 % 256, (rows + columns) % 256]).astype(np.uint8))
    files = [("activeseg-connection-test.png", picture)]
    path = f"/api/projects/{project_id}"
    made = client.http.upload(f"{path}/import", files, {"commit_to_project": "false"})
    with client.http.expecting("an upload"):
        numbers = list(made["file_upload_ids"])
    body = {"file_upload_ids": numbers}
    undo.append(("the uploaded image", lambda: client.http.repeatable("DELETE", f"{path}/file-uploads", body=body)))
    found = client.http.get(f"{path}/file-uploads", {"ids": json.dumps(numbers)})
    with client.http.expecting("GET file-uploads"):
        url = "/data/" + str(found[0]["file"])
    if (came := client.http.download(url, max_bytes=1_000_000)) != picture:
        raise LabelStudioError(
            f"Label Studio gave back {len(came)} bytes for an uploaded image of {len(picture)}: does a proxy before it change "
            "images?"
        )
    return url


def _round_trip(workspace: Workspace, client: LabelStudioClient, project: LabelingProject, url: str, undo: list[Undo]) -> str:
    """Send a task with every class, submit its mask as the page would, and read it back; `undo` removes the task."""
    number, shown = project.external_project_id, client.http.get(f"/api/projects/{project.external_project_id}/")
    version = str(shown.get("model_version") or "")
    mask, kind = sample_mask(workspace.label_set), _kind(project)
    result = mask_to_result(mask, workspace.label_set, kind=kind)
    remove_test_tasks(client, number)
    undo.append(("the model version shown before", lambda: _show_again(client, number, version)))
    undo.append(("the test task", lambda: _leave_no_test_task(client, number)))
    (task,) = client.import_tasks(number, [_payload(url, result)], predictions=1)
    drawn = [region | {"origin": "prediction"} for region in _predicted(client, number, task)]
    _same(workspace.label_set, mask, drawn, "as a prediction")
    client.http.create(f"/api/tasks/{task}/annotations/", {"result": drawn, "lead_time": 0.0}, {"project": number})
    exported = client.export_tasks(number, [task])
    submitted = exported[0]["annotations"] if exported else []
    _same(workspace.label_set, mask, submitted[0]["result"] if submitted else [], "as an annotation")
    classes = counted(len(workspace.label_set.names), "class", "classes")
    return f"a mask of {classes} came back pixel by pixel as {kind} masks"


def _leave_no_test_task(client: LabelStudioClient, project_id: int) -> None:
    remove_test_tasks(client, project_id)
    if client.find_tasks(project_id, [TEST_KEY]):
        raise LabelStudioError("the test task could not be removed: may the token's user delete tasks in this project?")


def _payload(url: str, result: Sequence[Any]) -> dict[str, Any]:
    digest = hashlib.sha256(TEST_KEY.encode()).hexdigest()
    payload = task_payload(
        TEST_KEY, url, order=_ORDER, sha256=digest, result=result, score=1.0, model_version=_VERSION
    )  # fmt: skip
    payload["data"]["doubt"] = "activeseg tests its connection with this task; it goes away by itself."
    return payload


def _predicted(client: LabelStudioClient, project_id: int, task: int) -> list[dict[str, Any]]:
    found = client.http.get(f"/api/tasks/{task}/", {"project": project_id})["predictions"]
    return list(found[0]["result"]) if found else []


def _same(label_set: LabelSet, mask: Mask, result: Any, what: str) -> None:
    came = result_to_mask(result, label_set, width=_WIDTH, height=_HEIGHT).mask
    if not np.array_equal(came, mask):
        raise LabelStudioError(
            f"a mask sent to Label Studio came back {what} with {int((came != mask).sum())} other pixels of {mask.size}: "
            "push nothing to this server"
        )


def _show_again(client: LabelStudioClient, project_id: int, version: str) -> None:
    """The first import of a project sets which model's predictions are shown."""
    if client.http.get(f"/api/projects/{project_id}/").get("model_version") != version:
        client.set_model_version(project_id, version)


def _delivery(workspace: Workspace, client: LabelStudioClient, project: LabelingProject) -> str:
    """Whether an image of the pool is what its address gives."""
    from activeseg.labelstudio.images import address_of, folder_on_server
    from activeseg.labelstudio.storages import ensure_local_storage

    settings = workspace.settings
    first = next(iter(workspace.pool_source.files()), None)
    if first is None:
        return "not tried: the pool is empty"
    if (address := address_of(settings, first.uri)) is None:
        return f"{first.uri} has a name that no address can carry: it would be uploaded; no other was tried"
    data = workspace.pool_source.read(first.uri)
    if settings.labelstudio.images == "local-files":
        ensure_local_storage(client.http, project.external_project_id, folder_on_server(settings))
        came = client.http.download(address, max_bytes=len(data) + 1)
    elif address.startswith(("http://", "https://")):
        came = _fetch(address, max_bytes=settings.pool.max_bytes)
    else:
        return f"not tried: only Label Studio's cloud storage can read {address}"
    if came != data:
        raise LabelStudioError(f"{address} is another file than {first.uri} of the pool: see [labelstudio] link, local_pool")
    return f"{address} is the pool's {first.uri}"


def _fetch(address: str, max_bytes: int) -> bytes:
    """What a browser would load. Raises LabelStudioError where it would not: other pages may not read it."""
    try:
        answer = fetch(
            address,
            hosts=(host_of(address),),
            max_bytes=max_bytes,
            seconds=60.0,
            headers={"Origin": "http://label-studio.invalid"},
        )
    except AddressRefused as error:
        raise LabelStudioError(f"{address} is not loaded from here ({error}): see [labelstudio] link") from error
    except httpx.HTTPError as error:
        raise LabelStudioError(
            f"{address} cannot be loaded from here ({type(error).__name__}): see [labelstudio] link"
        ) from error
    if not 200 <= answer.status < 300:
        raise LabelStudioError(f"{address} answers HTTP {answer.status}: see [labelstudio] link")
    if "access-control-allow-origin" not in answer.headers:
        raise LabelStudioError(
            f"{address} sends no Access-Control-Allow-Origin: browsers will not show it; let the image server send it"
        )
    return answer.content


def _webhook(workspace: Workspace, client: LabelStudioClient, project: LabelingProject) -> str:
    from activeseg.labelstudio.webhooks import ensure_webhook

    url, secret = workspace.settings.labelstudio.webhook_url, workspace.settings.webhook_secret()
    if url is None or secret is None:
        return "none configured"
    hook = ensure_webhook(client.http, project.external_project_id, url, secret)
    return f"number {hook.id} gives hints to {hook.url}"


def _kind(project: LabelingProject) -> MaskKind:
    return "bitmask" if project.mask_kind == "bitmask" else "brush"
