"""Links lead somewhere, and the documents and sources name no place that only their authors have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, links, text_of

EXPECTED = {"configuration", "commands", "sql", "label-studio", "operations", "architecture", "decisions", "bad-input"}
SHARED = "../" + "shared"
PACKAGE_HOSTS = re.compile(
    r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|registry\.npmjs\.org|ghcr\.io|docker\.io|conda\.anaconda\.org"
)


def published() -> Iterator[Path]:
    """README, documents, sources and scripts: what must not name a place of their authors."""
    yield from PAGES
    yield from (ROOT / name for name in ("Makefile", "pyproject.toml", "alembic.ini", ".ci/run"))
    for folder in ("activeseg", "migrations", "scripts"):
        yield from (path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".sh", ".txt", ".md", ".toml"))


def test_all_documents_are_there() -> None:
    there = {page.stem for page in PAGES if page.parent.name == "docs" and text_of(page).strip()}
    assert there >= EXPECTED
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        assert text_of(ROOT / name).startswith("# ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for link in links(page):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link} leads nowhere"
        assert target.is_relative_to(ROOT), f"{page.name}: {link} leads out of the repository"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}: {target.name} has the headings {sorted(anchors(target))}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documents_are_reached_from_another_one(page: Path) -> None:
    if page.parent == ROOT:
        return
    others = [other for other in PAGES if other != page]
    assert any(link.split("#")[0].endswith(page.name) for other in others for link in links(other)), (
        f"no document links to {page.name}"
    )


def test_group_patterns_in_documents_find_a_clip_in_a_whole_path() -> None:
    """The path is absolute, or begins with a bucket: a pattern that begins with a folder of the pool never fits."""
    patterns = [found for page in PAGES for found in re.findall(r'group_pattern = "([^"]+)"', text_of(page))]
    assert patterns
    for pattern in patterns:
        for path in ("/data/pool/clip_07/frame_0030.png", "s3://bucket/pool/clip_07/frame_0030.png"):
            found = re.search(pattern, path)
            assert found is not None, f"{pattern} finds nothing in {path}"
            assert found[1] == "clip_07", pattern


def test_nothing_published_names_the_authors_folders() -> None:
    found = [str(path.relative_to(ROOT)) for path in published() if SHARED in path.read_text(encoding="utf-8")]
    assert not found, f"{SHARED} is named in {found}"


def test_nothing_published_names_a_package_host() -> None:
    """Packages come from whatever index the user configured."""
    found = [(str(path.relative_to(ROOT)), PACKAGE_HOSTS.findall(path.read_text(encoding="utf-8"))) for path in published()]
    assert not [item for item in found if item[1]]


def test_the_licence_is_the_whole_apache_licence() -> None:
    text = text_of(ROOT / "LICENSE")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    for section in range(1, 10):
        assert re.search(rf"^ +{section}\. ", text, re.MULTILINE), f"LICENSE lacks section {section}"
    assert "END OF TERMS AND CONDITIONS" in text
