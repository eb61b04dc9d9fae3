"""The locked packages against advisories that lie on this machine: for places without a network.

    python scripts/audit_offline.py ADVISORIES [--lock uv.lock]

ADVISORIES: OSV advisories of PyPI as JSON, a folder of files or a zip of them (osv.dev offers all of them as one). Exit
status 1 where one fits a locked version, 2 where there is no advisory to compare with.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version


def locked(lock: Path) -> dict[str, set[str]]:
    """Versions of each package from elsewhere in a lock file, by its plain name."""
    found: dict[str, set[str]] = {}
    for package in tomllib.loads(lock.read_text(encoding="utf-8"))["package"]:
        if "registry" in package.get("source", {}):
            found.setdefault(plain(package["name"]), set()).add(package["version"])
    return found


def plain(name: str) -> str:
    """As PEP 503 compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def advisories(place: Path) -> Iterator[Mapping[str, Any]]:
    """Every advisory in a folder or a zip."""
    if place.is_dir():
        for file in sorted(place.rglob("*.json")):
            yield json.loads(file.read_bytes())
        return
    with zipfile.ZipFile(place) as archive:
        for name in archive.namelist():
            if name.endswith(".json"):
                yield json.loads(archive.read(name))


def affects(advisory: Mapping[str, Any], name: str, version: str) -> bool:
    """Whether an advisory is about this version: listed, or between `introduced` and `fixed` or `last_affected`."""
    for affected in advisory.get("affected", ()):
        package = affected.get("package", {})
        if package.get("ecosystem") != "PyPI" or plain(package.get("name", "")) != name:
            continue
        if version in affected.get("versions", ()):
            return True
        ranges = [found for found in affected.get("ranges", ()) if found.get("type") == "ECOSYSTEM"]
        if any(_within(found["events"], Version(version)) for found in ranges):
            return True
    return False


def _within(events: list[Mapping[str, str]], version: Version) -> bool:
    inside = False
    for event in sorted(events, key=lambda event: _order(next(iter(event.values())))):
        kind, at = next(iter(event.items()))
        if kind == "introduced" and version >= _order(at):
            inside = True
        elif (kind == "fixed" and version >= _order(at)) or (kind == "last_affected" and version > _order(at)):
            inside = False
    return inside


def _order(version: str) -> Version:
    try:
        return Version(version)
    except InvalidVersion:
        return Version("0")


def main() -> None:
    """Compare and tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("advisories", type=Path)
    parser.add_argument("--lock", type=Path, default=Path("uv.lock"))
    options = parser.parse_args()
    packages, count, found = locked(options.lock), 0, 0
    for advisory in advisories(options.advisories):
        count += 1
        if advisory.get("withdrawn"):
            continue
        names = {plain(affected.get("package", {}).get("name", "")) for affected in advisory.get("affected", ())}
        for name in sorted(names & packages.keys()):
            for version in sorted(packages[name]):
                if affects(advisory, name, version):
                    found += 1
                    print(f"{name} {version}: {advisory['id']} {advisory.get('summary', '')}".strip())
    print(f"{len(packages)} packages, {count} advisories, {found} found")
    sys.exit(2 if not count else 1 if found else 0)


if __name__ == "__main__":
    main()
