"""The audit without a network finds what an advisory says of a locked version, and nothing else."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from scripts import audit_offline

LOCK = """
[[package]]
name = "Some_Package"
version = "1.5.0"
source = { registry = "https://packages.example/simple" }

[[package]]
name = "ours"
version = "1.5.0"
source = { editable = "." }
"""


def advisory(name: str, ecosystem: str = "PyPI", **affected: object) -> dict[str, object]:
    return {"id": "OSV-1", "affected": [{"package": {"name": name, "ecosystem": ecosystem}, **affected}]}


def between(*events: dict[str, str]) -> dict[str, object]:
    return {"ranges": [{"type": "ECOSYSTEM", "events": list(events)}]}


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (advisory("some-package", versions=["1.5.0"]), 1),
        (advisory("some.package", **between({"introduced": "0"}, {"fixed": "1.6"})), 1),
        (advisory("some-package", **between({"introduced": "1.5"}, {"last_affected": "1.5.0"})), 1),
        (advisory("some-package", **between({"introduced": "0"}, {"fixed": "1.2"}, {"introduced": "1.4"})), 1),
        (advisory("some-package", **between({"introduced": "0"}, {"fixed": "1.5.0"})), 0),
        (advisory("some-package", **between({"introduced": "1.6"})), 0),
        (advisory("some-package", "npm", versions=["1.5.0"]), 0),
        (advisory("ours", versions=["1.5.0"]), 0),
        (advisory("some-package", versions=["1.5.0"]) | {"withdrawn": "2026-01-01T00:00:00Z"}, 0),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_what_fits_a_locked_version_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: dict[str, object], status: int, packed: bool
) -> None:
    (tmp_path / "uv.lock").write_text(LOCK, encoding="utf-8")
    place = tmp_path / ("all.zip" if packed else "all")
    if packed:
        with zipfile.ZipFile(place, "w") as archive:
            archive.writestr("OSV-1.json", json.dumps(found))
    else:
        place.mkdir()
        (place / "OSV-1.json").write_text(json.dumps(found), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["audit_offline.py", str(place), "--lock", str(tmp_path / "uv.lock")])
    with pytest.raises(SystemExit) as ended:
        audit_offline.main()
    assert ended.value.code == status


def test_no_advisories_are_no_clean_bill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "uv.lock").write_text(LOCK, encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["audit_offline.py", str(tmp_path), "--lock", str(tmp_path / "uv.lock")])
    with pytest.raises(SystemExit) as ended:
        audit_offline.main()
    assert ended.value.code == 2


def test_the_lock_file_of_this_repository_is_read() -> None:
    packages = audit_offline.locked(Path(__file__).parents[2] / "uv.lock")
    assert "pillow" in packages
    assert "activeseg" not in packages
