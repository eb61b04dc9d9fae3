"""Which of our rows a Label Studio project is: made or checked on the server, then found or inserted here."""

from __future__ import annotations

import hashlib

from pydantic import SecretStr

from activeseg.config import Settings
from activeseg.db import images, labeling
from activeseg.db.models import LabelingProject
from activeseg.errors import ConfigError
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.workspace import Workspace


def open_client(settings: Settings, token: SecretStr | None = None) -> LabelStudioClient:
    """A client for the configured server. Raises ConfigError where address or token is missing."""
    if settings.labelstudio.url is None:
        raise ConfigError("no Label Studio: set [labelstudio] url in activeseg.toml")
    secret = token or settings.labelstudio_token()
    return LabelStudioClient(settings.labelstudio.url, secret.get_secret_value(), timeout=settings.labelstudio.timeout)


def open_project(workspace: Workspace, client: LabelStudioClient) -> LabelingProject:
    """Our row of the configured project; the project is made on the server if it has none of this title.

    The row is found by the project's number and the moment it was made: a server rebuilt from nothing counts its
    projects and tasks from 1 again and must not be taken for the old one; a server that moved is still the same.
    """
    section = workspace.settings.labelstudio
    project = client.ensure_project(section.project, workspace.label_set, section.mask_kind, entropy_map=section.entropy_map)
    digest = hashlib.sha256(project.config.encode()).hexdigest()
    with workspace.database.write() as session:
        found = labeling.project(session, project.created_at, project.id)
        if found is None:
            found = LabelingProject(
                server_url=client.url,
                instance_key=project.created_at,
                external_project_id=project.id,
                title=project.title,
                mask_kind=project.mask_kind,
                config_sha256=digest,
                label_set_id=images.label_set_row(session, workspace.label_set).id,
            )
            session.add(found)
        found.server_url, found.config_sha256 = client.url, digest
    return found


def check_project(workspace: Workspace, client: LabelStudioClient) -> str:
    """How the configured project stands, in a few words; nothing is made. Raises LabelSetMismatch where it does not fit."""
    section = workspace.settings.labelstudio
    found = client.find_project(section.project, workspace.label_set, section.mask_kind)
    if found is None:
        return f"project {section.project!r} will be made with the first push"
    return f"project {found.id} {found.title!r} fits the classes"
