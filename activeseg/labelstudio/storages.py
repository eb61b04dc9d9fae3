"""Local-files storages: a project's permission to serve files below a folder of the server's machine."""

from __future__ import annotations

import posixpath

from activeseg.errors import LabelStudioDoubt, LabelStudioError, LabelStudioUnauthorized, LabelStudioUnreachable
from activeseg.labelstudio.http import Http

_PATH = "/api/storages/localfiles/"
_TITLE = "activeseg: the pool"


def ensure_local_storage(http: Http, project_id: int, folder: str) -> int:
    """Number of the project's storage that covers `folder`, made if there is none; nothing is imported by it.

    folder: absolute path on the server's machine, below its document root. Raises LabelStudioError, with what to set on the
    server, where it refuses; LabelStudioDoubt where the answer to making it was lost (calling again finds it).
    """
    for storage in http.get(_PATH, {"project": project_id}):
        if _covers(str(storage.get("path") or ""), folder):
            return int(storage["id"])
    try:
        made = http.create(_PATH, {"project": project_id, "title": _TITLE, "path": folder, "use_blob_urls": True})
    except (LabelStudioDoubt, LabelStudioUnauthorized, LabelStudioUnreachable):
        raise
    except LabelStudioError as error:
        raise LabelStudioError(
            f"{error}: local files need LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
            "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT on the server, and a folder that is there"
        ) from error
    return int(made["id"])


def _covers(path: str, folder: str) -> bool:
    # The server compares whole names: /data/ds does not cover /data/ds-private.
    return folder == path or folder.startswith(posixpath.normpath(path).rstrip("/") + "/") if path else False
