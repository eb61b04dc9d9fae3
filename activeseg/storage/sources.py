"""Opening the place that images come from, by its URI."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from activeseg.errors import ConfigError
from activeseg.storage.files import ImageSource, SourceFile
from activeseg.storage.local import LocalSource, uri_to_path
from activeseg.storage.objects import SCHEMES, ObjectSource, ObstoreBucket

__all__ = ["ImageSource", "SourceFile", "open_source"]


def open_source(uri: str) -> ImageSource:
    """The images at a folder, `file:///folder`, or `s3://`, `gs://`, `az://` bucket and prefix.

    Raises ConfigError where the folder does not exist, the scheme is unknown, or an object store is named and the extra
    `activeseg[s3]` is not installed. An object store is first asked when its files are listed.
    """
    scheme = uri.split("://", 1)[0] if "://" in uri else ""
    if scheme in SCHEMES:
        url = uri.rstrip("/")
        if not urlsplit(url).netloc:
            raise ConfigError(f"expected {scheme}://bucket or {scheme}://bucket/prefix; got {uri!r}")
        return ObjectSource(url, ObstoreBucket(url))
    if scheme not in ("", "file"):
        raise ConfigError(f"cannot read images from {uri!r}; expected a folder, file://, {'://, '.join(SCHEMES)}://")
    if not uri:
        raise ConfigError("expected a folder or URI of images; got an empty string: set [pool] images")
    source = LocalSource(Path(os.path.abspath(uri_to_path(uri))))
    source.check()
    return source
