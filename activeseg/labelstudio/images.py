"""How Label Studio gets a pool image: by an address of our making, or else by upload.

    upload       a copy on the server, task by task
    local-files  a file that lies on the server's machine, by its path below the server's document root
    link         an address the annotator's browser loads, or an object the server's cloud storage signs

Addresses are text: nothing is asked here, and nothing is read.
"""

from __future__ import annotations

import os
import posixpath
from urllib.parse import quote, urlsplit

from activeseg.config import Settings
from activeseg.errors import ConfigError
from activeseg.storage.local import uri_to_path

_LOCAL = "/data/local-files/?d="
_LONGEST = 1000  # characters of tasks.image_url


def address_of(settings: Settings, uri: str) -> str | None:
    """The address of an image by [labelstudio] images; None where it has to be uploaded.

    That is with images = 'upload', for an image outside the pool (an imported dataset) and for a name that an address
    cannot carry. Raises ConfigError where local-files cannot work as configured.
    """
    section = settings.labelstudio
    if section.images == "upload" or (path := path_in_pool(settings.images_uri, uri)) is None:
        return None
    address = local_address(settings, path) if section.images == "local-files" else link_address(section.link or "", path)
    return address if address and len(address) <= _LONGEST else None


def path_in_pool(pool: str, uri: str) -> str | None:
    """Path of an image relative to the pool, with '/' between its parts; None where it is not inside.

    pool, uri: a folder or a `file://` or object store URI, as [pool] images and `images.uri` hold them. Bytes of a name
    that are no UTF-8 come as lone surrogates, as Python gives them.
    """
    stored = "://" in pool and not pool.startswith("file://")
    root, path = (pool, uri) if stored else (os.path.abspath(uri_to_path(pool)), str(uri_to_path(uri)))
    prefix = root.rstrip("/") + "/"
    inside = path.removeprefix(prefix)
    if inside == path or any(part in ("", ".", "..") for part in inside.split("/")):
        return None
    return inside


def link_address(link: str, path: str) -> str | None:
    """`link` with its {path}; None for a name it cannot carry.

    In an address that a browser loads the path is percent-encoded. In an object's (s3://, gs://, azure-blob://) it stays as
    it is, because Label Studio takes it for the key; it would cut a key at '?', and a key is UTF-8.
    """
    scheme = urlsplit(link).scheme
    if scheme in ("", "http", "https"):
        return link.replace("{path}", quote(os.fsencode(path)))
    return link.replace("{path}", path) if "?" not in path and _is_text(path) else None


def local_address(settings: Settings, path: str) -> str | None:
    """The address under which a Label Studio with local files enabled serves a file of the pool."""
    root, pool = _folders(settings)
    return _LOCAL + quote(posixpath.relpath(f"{pool}/{path}", root)) if _is_text(path) else None


def folder_on_server(settings: Settings) -> str:
    """The pool's folder as the server's machine sees it. Raises ConfigError where it is not below local_root."""
    return _folders(settings)[1]


def _folders(settings: Settings) -> tuple[str, str]:
    section, pool = settings.labelstudio, settings.images_uri
    if section.local_pool is None and "://" in pool and not pool.startswith("file://"):
        raise ConfigError(
            f"[labelstudio] images = 'local-files': {pool} is no folder; set local_pool to the folder that Label Studio's "
            "machine sees it as, or images to 'link' or 'upload'"
        )
    seen = str(section.local_pool) if section.local_pool is not None else os.path.abspath(uri_to_path(pool))
    root, folder = posixpath.normpath(str(section.local_root)), posixpath.normpath(seen)
    # Label Studio refuses a storage that is the document root itself.
    if not folder.startswith(root.rstrip("/") + "/"):
        raise ConfigError(
            f"[labelstudio] images = 'local-files': the pool's folder on Label Studio's machine ({folder}) must lie below "
            f"local_root ({root}) and not be it: set local_root to the server's document root, and local_pool if the server "
            "sees the pool elsewhere"
        )
    return root, folder


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
