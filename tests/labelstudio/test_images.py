"""Addresses of pool images, for browsers and for Label Studio's storages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote_to_bytes, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activeseg.config import Settings
from activeseg.errors import ConfigError
from activeseg.labelstudio.images import address_of, folder_on_server, link_address, path_in_pool
from activeseg.storage.local import path_to_uri

LINK = {"images": "link", "link": "https://images.example.org/pool/{path}"}
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name not in (".", "..")
)


def settings(pool: str = "/data/pool", **section: Any) -> Settings:
    return Settings(root=Path("/site"), pool={"images": pool}, labelstudio=section)


@pytest.mark.parametrize(
    ("pool", "uri", "path"),
    [
        ("/data/pool", "/data/pool/a/b c.jpg", "a/b c.jpg"),
        ("/data/pool/", "/data/pool/a.jpg", "a.jpg"),
        ("file:///data/pool", "/data/pool/a.jpg", "a.jpg"),
        ("/data/pool", "/data/pool-2/a.jpg", None),
        ("/data/pool", "/data/other.jpg", None),
        ("/data/pool", "/data/pool", None),
        ("/data/pool", "/data/pool/../secret.jpg", None),
        ("/data/pool", "/data/pool/a/../../secret.jpg", None),
        ("s3://bucket", "s3://bucket//a.jpg", None),
        ("/data/pool", "file:///data/pool/caf%C3%A9.jpg", "café.jpg"),
        ("/data/pool", "file:///data/pool/..%2F..%2Fsecret.jpg", None),
        ("s3://bucket/prefix", "s3://bucket/prefix/a/b c.jpg", "a/b c.jpg"),
        ("s3://bucket/prefix", "s3://bucket/prefix-2/a.jpg", None),
        ("s3://bucket", "s3://bucket/../a.jpg", None),
        ("s3://bucket", "/data/a.jpg", None),
    ],
)
def test_only_what_lies_in_the_pool_has_a_path(pool: str, uri: str, path: str | None) -> None:
    assert path_in_pool(pool, uri) == path


@given(st.lists(NAMES, min_size=1, max_size=3))
def test_an_address_says_the_path_and_nothing_else(names: list[str]) -> None:
    path = "/".join(names)
    address = link_address("https://h/x/{path}?size=full", path)
    assert address is not None
    parts = urlsplit(address)
    assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("https", "h", "size=full", "")
    assert unquote_to_bytes(parts.path) == b"/x/" + path.encode()
    assert parts.path.count("/") == 1 + len(names)
    assert address.isascii()


@given(st.lists(NAMES, min_size=1, max_size=3))
def test_a_local_files_address_is_read_back_by_the_server_as_the_file(names: list[str]) -> None:
    path = "/".join(names)
    used = settings(images="local-files", local_root="/data")
    address = address_of(used, f"/data/pool/{path}")
    if address is None:
        assert len(path.encode()) > 200, "only an address that is too long is refused"
        return
    parts = urlsplit(address)
    assert parts.path == "/data/local-files/"
    assert parse_qs(parts.query, strict_parsing=True) == {"d": [f"pool/{path}"]}


@pytest.mark.parametrize("scheme", ["s3", "gs", "azure-blob"])
def test_an_objects_key_is_text_as_label_studio_takes_it(scheme: str) -> None:
    link = scheme + "://bucket/pool/{path}"
    assert link_address(link, "a b/ü+%20#1.jpg") == scheme + "://bucket/pool/a b/ü+%20#1.jpg"
    assert link_address(link, "what?.jpg") is None
    assert link_address(link, os.fsdecode(b"caf\xe9.jpg")) is None


def test_a_pool_in_a_bucket_is_linked_to_by_its_own_address() -> None:
    used = settings("s3://bucket/frames", images="link", link="s3://bucket/frames/{path}")
    assert address_of(used, "s3://bucket/frames/day 1/0001.jpg") == "s3://bucket/frames/day 1/0001.jpg"


def test_a_name_that_is_no_utf8_has_a_link_and_no_local_file() -> None:
    uri = path_to_uri(os.fsdecode(b"/data/pool/caf\xe9.jpg"))
    assert address_of(settings(**LINK), uri) == "https://images.example.org/pool/caf%E9.jpg"
    assert address_of(settings(images="local-files", local_root="/data"), uri) is None


def test_what_has_no_address_is_uploaded() -> None:
    assert address_of(settings(images="upload"), "/data/pool/a.jpg") is None
    assert address_of(settings(**LINK), "/imported/a.jpg") is None
    assert address_of(settings(**LINK), "/data/pool/" + "x" * 990 + ".jpg") is None


@pytest.mark.parametrize(
    ("pool", "section", "folder", "address"),
    [
        ("/data/pool", {"local_root": "/data"}, "/data/pool", "pool/a%20b.jpg"),
        ("/data/pool", {"local_root": "/"}, "/data/pool", "data/pool/a%20b.jpg"),
        ("/data/pool", {"local_root": "/ls/files/", "local_pool": "/ls/files/x/../pool/"}, "/ls/files/pool", "pool/a%20b.jpg"),
        ("s3://bucket/p", {"local_root": "/mnt", "local_pool": "/mnt/bucket/p"}, "/mnt/bucket/p", "bucket/p/a%20b.jpg"),
    ],
)
def test_files_are_named_as_the_servers_machine_sees_them(
    pool: str, section: dict[str, str], folder: str, address: str
) -> None:
    used = settings(pool, images="local-files", **section)
    assert folder_on_server(used) == folder
    assert address_of(used, f"{pool}/a b.jpg") == "/data/local-files/?d=" + address


@pytest.mark.parametrize(
    ("pool", "section", "told"),
    [
        ("/data/pool", {"local_root": "/data/pool"}, "must lie below local_root"),
        ("/data/pool", {"local_root": "/data/poo"}, "must lie below local_root"),
        ("/data/pool", {"local_root": "/elsewhere"}, "local_pool if the server sees the pool elsewhere"),
        ("/data/pool", {"local_root": "/ls", "local_pool": "/ls/../pool"}, "must lie below local_root"),
        ("s3://bucket", {"local_root": "/mnt"}, "is no folder; set local_pool"),
    ],
)
def test_a_pool_the_server_cannot_serve_is_refused_with_the_setting(pool: str, section: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        address_of(settings(pool, images="local-files", **section), f"{pool}/a.jpg")
