"""activeseg doctor: is everything in place, and what mends what is not."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import typer

from activeseg.cli.output import AsJson, print_json, settings_of
from activeseg.errors import ActivesegError, NotReadyError
from activeseg.wording import counted, moment

if TYPE_CHECKING:
    from pydantic import SecretStr

    from activeseg.config import Settings
    from activeseg.labelstudio.client import LabelStudioClient, Project
    from activeseg.workspace import Workspace

LOW_DISK_GB = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. state: ok, warning or problem."""

    check: str
    state: str
    message: str


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(context: typer.Context, as_json: AsJson = False) -> None:
    """Check configuration, database, artifacts, pool, Label Studio, device and disk; says the remedy for each problem."""
    settings = settings_of(context)
    checks: dict[str, Callable[[Settings], str]] = {
        "python": lambda _: f"Python {sys.version.split()[0]}",
        "classes": _classes,
        "database": _database,
        "pool": _pool,
        "artifacts": _artifacts,
        "disk": _disk,
        "device": _device,
        "champion": _champion,
        "label studio": _labelstudio,
        "webhook": _webhook,
    }
    findings = [_run(name, check, settings) for name, check in checks.items()]
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        marks = {"ok": "ok     ", "warning": "warning", "problem": "PROBLEM"}
        for finding in findings:
            typer.echo(f"{marks[finding.state]}  {finding.check:<13} {finding.message}")
    problems = sum(finding.state == "problem" for finding in findings)
    if problems:
        raise NotReadyError(f"{problems} of {len(findings)} checks found a problem")


def _run(name: str, check: Callable[[Settings], str], settings: Settings) -> Finding:
    try:
        return Finding(name, "ok", check(settings))
    except _Warning as warning:
        return Finding(name, "warning", str(warning))
    except ActivesegError as error:
        return Finding(name, "problem", str(error))


class _Warning(Exception):
    """Worth knowing, nothing to stop for."""


def _classes(settings: Settings) -> str:
    from activeseg.db.database import Database
    from activeseg.workspace import Workspace

    label_set = Workspace(settings, Database("sqlite://")).label_set
    ignored = "" if label_set.ignore_index is None else f", {label_set.names[label_set.ignore_index]!r} ignored"
    return f"{counted(len(label_set.names), 'class', 'classes')}{ignored}"


def _database(settings: Settings) -> str:
    from activeseg.db.database import Database

    database = Database(settings.database_url)
    try:
        database.require_schema()
        return f"{database.masked_url}, schema {database.revision()}"
    finally:
        database.close()


def _pool(settings: Settings) -> str:
    from activeseg.storage.sources import open_source

    first = next(iter(open_source(settings.images_uri).files()), None)
    if first is None:
        raise NotReadyError(f"no images in {settings.images_uri}: put images there or set [pool] images")
    return f"{settings.images_uri} is readable"


def _artifacts(settings: Settings) -> str:
    import os

    from activeseg.errors import ConfigError

    folder = settings.path(settings.artifacts.dir)
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        raise ConfigError(f"artifacts folder {folder} cannot be written: chmod it or set [artifacts] dir")
    return f"{folder} can be written"


def _disk(settings: Settings) -> str:
    folder = settings.path(settings.artifacts.dir)
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free / 1e9
    floor = settings.housekeeping.min_free_gb
    if free < floor:
        raise NotReadyError(
            f"{free:.2f} GB free where artifacts lie, below [housekeeping] min_free_gb ({floor:g}): nothing is begun; run "
            "`activeseg gc` or free some"
        )
    if free < LOW_DISK_GB:
        raise _Warning(f"{free:.1f} GB free where artifacts lie: free some, a checkpoint must fit")
    return f"{free:.1f} GB free"


def _device(settings: Settings) -> str:
    from activeseg.core.reduction import can_compile
    from activeseg.nn.device import describe_device, describe_devices, pick_device, pick_devices, pick_precision

    device, hindrance = pick_device(settings.model.device), can_compile()
    spread = pick_devices(settings.scoring.devices, settings.model.device)
    scoring = f"scoring on {describe_devices(spread)}, " if spread != [device] else ""
    compiling = "networks can be compiled" if hindrance is None else f"networks are not compiled: {hindrance}"
    return f"{describe_device(device)}, {scoring}{pick_precision(device, settings.model.precision)}, {compiling}"


def _champion(settings: Settings) -> str:
    from activeseg.db import checkpoints
    from activeseg.stages.embed import require_start_weights
    from activeseg.workspace import open_workspace

    with open_workspace(settings) as workspace:
        with workspace.database.read() as session:
            champion = checkpoints.champion(session)
        if champion is None:
            if settings.selection.bootstrap == "kcenter":
                require_start_weights(workspace)
            raise _Warning("none yet: import labelled images and `activeseg train`, or let `activeseg round run` ask for some")
        checkpoints.require_labels(champion, workspace.label_set)
        workspace.artifacts.read(champion.location, sha256=champion.sha256)
    return f"{champion.model_version}, weights intact, classes match"


def _labelstudio(settings: Settings) -> str:
    if settings.labelstudio.url is None:
        raise _Warning("none configured: set [labelstudio] url, or answer queries with `activeseg dataset import`")
    from activeseg.labelstudio.drawings import uncovered_value
    from activeseg.labelstudio.registration import check_project, open_client
    from activeseg.workspace import open_workspace

    with open_client(settings) as client, open_workspace(settings, check_schema=False) as workspace:
        uncovered_value(workspace)
        version, kind = client.version(), client.token_kind
        state = check_project(workspace, client)
    return f"{settings.labelstudio.url}, version {version}, {kind} token, {state}"


def _webhook(settings: Settings) -> str:
    """How the project's hook stands. One that fails costs minutes, never annotations: warnings, no problems."""
    from activeseg.errors import LabelStudioError, SchemaError
    from activeseg.labelstudio.registration import open_client
    from activeseg.workspace import open_workspace

    section = settings.labelstudio
    if section.url is None or section.webhook_url is None:
        return "off: annotations arrive with the next planned pull"
    secret = settings.webhook_secret(make=False)
    with ExitStack() as stack:
        # What fails here has failed in another check, whose line says why.
        try:
            client = stack.enter_context(open_client(settings))
            workspace = stack.enter_context(open_workspace(settings))
            project = client.find_project(section.project, workspace.label_set, section.mask_kind)
        except SchemaError as error:
            raise _Warning("not checked: see database") from error
        except ActivesegError as error:
            raise _Warning("not checked: see label studio") from error
        try:
            return _asked_about_webhook(workspace, client, project, section.webhook_url, secret)
        except LabelStudioError as error:
            raise _Warning(f"not known: {error}") from error


def _asked_about_webhook(
    workspace: Workspace, client: LabelStudioClient, project: Project | None, url: str, secret: SecretStr | None
) -> str:
    from activeseg.db import requests
    from activeseg.labelstudio.install import SERVER_VERSION
    from activeseg.labelstudio.webhooks import can_be_asked, find_webhook, refusal

    hook = find_webhook(client.http, project.id, url) if project else None
    remedy = "`activeseg ls connect` makes and mends it"
    if why := refusal(client.http, url):
        raise _Warning(why)
    if hook is None or secret is None:
        raise _Warning(f"the project has no webhook to {url} yet: {remedy}")
    if problem := hook.problem(url, secret):
        raise _Warning(f"the project's webhook {hook.id} {problem}: {remedy}")
    with workspace.database.read() as session:
        last = requests.last_asked(session, requests.PULL, requests.HINT)
    came = f"the last hint came {moment(last, workspace.settings.zone)}" if last else "no hint came so far"
    unseen = f"; only Label Studio {SERVER_VERSION} can be asked whether it calls this address"
    return f"hook {hook.id} to {hook.url} is in place; {came}" + ("" if can_be_asked(client.http) else unseen)
