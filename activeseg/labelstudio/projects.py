"""Projects, through the official SDK. It takes seconds to import, so it is imported by the first call that needs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import httpx

from activeseg.core.labels import LabelSet
from activeseg.errors import LabelSetMismatch, LabelStudioError
from activeseg.labelstudio.http import UNSENT, Http
from activeseg.labelstudio.labeling import (
    EntropyMap,
    MaskKind,
    classes_unlike,
    config_entropy_map,
    config_labels,
    config_mask_kind,
    config_overlap,
    labeling_config,
)

if TYPE_CHECKING:
    from label_studio_sdk.client import LabelStudio
    from label_studio_sdk.types.all_roles_project_list import AllRolesProjectList

Answer = TypeVar("Answer")
_PATH = "/api/projects/"
_PAGE = 100
_RULE = {True: "may overlap", False: "exclude each other"}


@dataclass(frozen=True, slots=True)
class Project:
    """A project. created: made by this very call. config: its labeling configuration (XML).

    created_at: ISO 8601 UTC, when the server made it; tells a project from one of the same number on a rebuilt server.
    """

    id: int
    title: str
    created: bool
    created_at: str
    config: str
    mask_kind: MaskKind


class Projects:
    """Finds, makes and checks projects over the connections of `http`."""

    def __init__(self, http: Http, token: str) -> None:
        self._http = http
        self._token = token
        self._connected: LabelStudio | None = None

    def ensure(self, title: str, label_set: LabelSet, mask_kind: MaskKind, *, entropy_map: EntropyMap = "beside") -> Project:
        """See LabelStudioClient.ensure_project."""
        config = labeling_config(label_set, mask_kind=mask_kind, entropy_map=entropy_map)
        if (known := self.find(title, label_set, mask_kind)) is not None:
            if config_entropy_map(known.config, label_set, mask_kind) in (None, entropy_map):
                return known
            self._http.repeatable("PATCH", f"{_PATH}{known.id}/", body={"label_config": config})
            return self.get(known.id)
        projects = self._sdk().projects
        made = self._call(
            lambda: projects.create(
                title=title,
                label_config=config,
                sampling="Sequential sampling",
                show_collab_predictions=True,
                request_options={"max_retries": 0},
            ),
            creates=True,
        )
        return replace(self.get(made.id), created=True)

    def find(self, title: str, label_set: LabelSet, mask_kind: MaskKind) -> Project | None:
        """See LabelStudioClient.find_project."""
        known = [p.id for p in self._all(title=title, include="id,title") if p.title == title]
        return self._checked(self.get(min(known)), label_set, mask_kind) if known else None

    def births(self) -> dict[int, str]:
        """See LabelStudioClient.project_births."""
        found = self._all(include="id,created_at")
        return {p.id: p.created_at.astimezone(UTC).isoformat() for p in found if p.id and p.created_at}

    def get(self, project_id: int) -> Project:
        """See LabelStudioClient.get_project."""
        projects = self._sdk().projects
        found = self._call(lambda: projects.get(project_id))
        config, title = found.label_config or "", found.title or ""
        mask_kind = config_mask_kind(config) if config else None
        if mask_kind is None:
            raise LabelStudioError(
                f"Label Studio project {project_id} {title!r} has no BrushLabels or BitmaskLabels named 'label': "
                "use another project title"
            )
        if found.created_at is None:
            raise LabelStudioError(f"Label Studio does not say when project {project_id} {title!r} was made")
        return Project(project_id, title, False, found.created_at.astimezone(UTC).isoformat(), config, mask_kind)

    def _all(self, *, include: str, title: str | None = None) -> list[AllRolesProjectList]:
        """The projects of the server. Page by page until it names no next one: the SDK would ask for one more, a 404."""
        projects = self._sdk().projects
        found: list[AllRolesProjectList] = []

        def ask(page: int) -> bool:
            answer = projects.list(title=title, include=include, page=page, page_size=_PAGE)
            found.extend(answer.items or ())
            return bool(answer.items and answer.response.next)

        page = 1
        while self._call(partial(ask, page)):
            page += 1
        return found

    def _sdk(self) -> LabelStudio:
        if self._connected is None:
            from label_studio_sdk.client import LabelStudio

            self._http.get("/api/current-user/whoami")  # no server, or a refused token: said in our words, not the SDK's
            self._connected = LabelStudio(base_url=self._http.url, api_key=self._token, httpx_client=self._http.client)
        return self._connected

    def _call(self, call: Callable[[], Answer], *, creates: bool = False) -> Answer:
        from label_studio_sdk.core.api_error import ApiError

        try:
            return call()
        except ApiError as error:
            status = error.status_code or 0
            if creates and status >= 500:
                raise self._http.doubt(_PATH, f"HTTP {status}") from None
            raise self._http.failed(status, " ".join(str(error.body).split())[:300], _PATH) from None
        except httpx.RequestError as error:
            if creates and not isinstance(error, UNSENT):
                raise self._http.doubt(_PATH, type(error).__name__) from error
            raise self._http.unreachable(error) from error
        except (AttributeError, LookupError, TypeError, ValueError) as error:  # what the SDK makes of another shape
            if creates:
                raise self._http.doubt(_PATH, "an answer of an unexpected shape") from error
            raise LabelStudioError(
                f"{self._http.url} answered {_PATH} in an unexpected shape ({type(error).__name__}): is it a Label Studio?"
            ) from error

    def _checked(self, project: Project, label_set: LabelSet, mask_kind: MaskKind) -> Project:
        names = config_labels(project.config)
        if names != list(label_set.names):
            raise LabelSetMismatch(
                f"Label Studio project {project.id} {project.title!r} has the classes {', '.join(names)}; expected "
                f"{', '.join(label_set.names)}: use another project title or the class file it was made from "
                f"({classes_unlike(names, label_set.names)})"
            )
        if (told := config_overlap(project.config)) != label_set.overlap:
            raise LabelSetMismatch(
                f"Label Studio project {project.id} {project.title!r} tells annotators that classes {_RULE[told]}; by "
                f"[labels] overlap they {_RULE[label_set.overlap]}: use another project title"
            )
        if project.mask_kind != mask_kind:
            raise LabelStudioError(
                f"Label Studio project {project.id} {project.title!r} draws masks as {project.mask_kind}, not as {mask_kind}: "
                f"set [labelstudio] mask_kind = {project.mask_kind!r} or use another project title"
            )
        return project
