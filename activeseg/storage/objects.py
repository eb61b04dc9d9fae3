"""Images in an object store: s3://, gs:// or az://, through obstore (the extra `activeseg[s3]`).

Credentials, region and endpoint come from the environment variables of the store (AWS_ACCESS_KEY_ID, AWS_REGION,
AWS_ENDPOINT_URL; GOOGLE_APPLICATION_CREDENTIALS; AZURE_STORAGE_ACCOUNT_NAME, ...), never from the configuration file.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from activeseg.errors import ConfigError, ImageError, SourceGoneError
from activeseg.storage.files import MAX_STAMP, SourceFile, is_listed, require_storable, storable, too_large

SCHEMES = ("s3", "gs", "az")


class Entry(NamedTuple):
    """An object as a store lists it: key, size in bytes, and the tag of its version (None from stores that have none)."""

    key: str
    size: int
    tag: str | None = None


class Bucket(Protocol):
    """The two calls an object store must answer. Keys are relative to the URL the bucket was opened with."""

    def list(self) -> Iterator[Entry]:
        """Every object, in any order."""

    def get(self, key: str, max_bytes: int | None) -> bytes:
        """The bytes of an object. Raises FileNotFoundError where there is none, OSError where the store fails.

        ImageError where it has more than `max_bytes`, known before they are read.
        """


@dataclass(frozen=True, slots=True)
class ObjectSource:
    """The images below `url` ('s3://bucket/prefix', no slash at the end). A file's URI is `url`/key."""

    url: str
    bucket: Bucket

    def files(self) -> Iterator[SourceFile]:
        """Images sorted by key, the store's tag as their stamp. Raises SourceGoneError where the store does not answer."""
        try:
            # Not every store lists in an order, so all keys are held at once.
            entries = sorted((entry for entry in self.bucket.list() if is_listed(entry.key)), key=lambda entry: entry.key)
        except OSError as error:
            raise self._unreachable(error) from error
        for entry in entries:
            # The time of change alone counts in seconds: an object may be written twice in one.
            stamp = entry.tag if entry.tag and len(entry.tag) <= MAX_STAMP else None
            yield SourceFile(storable(f"{self.url}/{entry.key}"), entry.size, stamp)

    def read(self, uri: str, *, max_bytes: int | None = None) -> bytes:
        """Bytes of a listed object; ImageError where it is gone, SourceGoneError where the store does not answer."""
        key = uri.removeprefix(f"{self.url}/")
        if key == uri:
            raise ImageError(f"{uri} is not inside {self.url}")
        require_storable(uri)
        try:
            return self.bucket.get(key, max_bytes)
        except FileNotFoundError as error:
            raise ImageError(f"{uri} is gone; run `activeseg pool sync`") from error
        except OSError as error:
            # A store that is down says nothing about this image: quarantining it would empty the pool.
            raise self._unreachable(error) from error

    def hidden(self, uris: Iterable[str]) -> set[str]:
        """None: a store lists everything or nothing."""
        return set()

    def _unreachable(self, error: OSError) -> SourceGoneError:
        return SourceGoneError(f"cannot read {self.url}: {error}; check name, network, region and credentials")


class ObstoreBucket:
    """`Bucket` by obstore; `options` go to `obstore.store.from_url`."""

    def __init__(self, url: str, **options: Any) -> None:
        self._obstore = _import_obstore(url)
        try:
            self._store = importlib.import_module("obstore.store").from_url(url, **options)
        except Exception as error:  # obstore raises its own and plain ValueErrors for a bad URL or option
            raise ConfigError(f"cannot open {url}: {_one_line(error)}") from error

    def list(self) -> Iterator[Entry]:
        """Every object, in the store's order."""
        try:
            for batch in self._obstore.list(self._store):
                yield from (Entry(item["path"], item["size"], item["e_tag"]) for item in batch)
        except self._obstore.exceptions.BaseError as error:
            raise OSError(_one_line(error)) from error

    def get(self, key: str, max_bytes: int | None) -> bytes:
        """The bytes of an object."""
        try:
            found = self._obstore.get(self._store, key)
            if max_bytes is not None and (size := found.meta["size"]) > max_bytes:
                raise too_large(size, max_bytes)
            return bytes(found.bytes())
        except FileNotFoundError:
            raise
        except self._obstore.exceptions.BaseError as error:
            raise OSError(_one_line(error)) from error


def _import_obstore(url: str) -> Any:
    try:
        return importlib.import_module("obstore")
    except ImportError as error:
        raise ConfigError(f"{url} needs the extra for object stores: pip install 'activeseg[s3]'") from error


def _one_line(error: Exception) -> str:
    """obstore's messages carry a Rust debug dump after the first line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
