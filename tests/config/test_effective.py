"""`activeseg config show`: what holds, who said so, and never a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from activeseg.config import SECRETS, Settings
from activeseg.config.effective import effective_settings, shown
from scripts.write_docs import sections
from tests.cli.commands import CommandLine

SECRET = "s3cr3t-0123456789"


def written(folder: Path, text: str) -> Path:
    file = folder / "activeseg.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_every_setting_is_told_with_where_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, "[training]\nsteps = 7\nbatch_size = 3\n[selection]\nquery_size = 5\n[pool]\nimages = 'images'\n")
    monkeypatch.setenv("ACTIVESEG_TRAINING__STEPS", "9")
    monkeypatch.setenv("activeseg_scoring__readers", "2")
    monkeypatch.setenv("ACTIVESEG_SELECTION", '{"seed": 4}')
    found = {(one.section, one.key): (one.value, one.source) for one in effective_settings(file)}
    assert set(found) == {(name, key) for name, kind in sections() for key in kind.model_fields}
    assert found["training", "steps"] == (9, "environment")
    assert found["scoring", "readers"] == (2, "environment")
    assert found["selection", "seed"] == (4, "environment")
    assert found["training", "batch_size"] == (3, "file")
    assert found["selection", "query_size"] == (5, "file")
    assert found["pool", "images"] == ("images", "file")  # said, though it is the default
    assert found["promotion", "tolerance"] == (Settings().promotion.tolerance, "default")


@pytest.mark.slow
def test_no_secret_is_ever_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for section, key in SECRETS:
        monkeypatch.setenv(f"ACTIVESEG_{section}__{key}".upper(), SECRET)
    monkeypatch.setenv("ACTIVESEG_DATABASE__URL", f"postgresql+psycopg://me:{SECRET}@db.example.org/x?sslmode=require")
    monkeypatch.setenv("ACTIVESEG_ALERTS__WEBHOOK_URL", f"https://hooks.example.org/services/{SECRET}")
    monkeypatch.setenv("ACTIVESEG_LABELSTUDIO__URL", f"https://ls.example.org/?token={SECRET}")
    monkeypatch.setenv("ACTIVESEG_POOL__IMAGES", f"s3://bucket/images?token={SECRET}")
    command = CommandLine(written(tmp_path, "[log]\nlevel = 'info'\n"))
    for words in (("config", "show"), ("config", "show", "--json"), ("config", "show", "--changed")):
        answer = command(*words)
        assert answer.code == 0, answer.err
        assert SECRET not in answer.out + answer.err
        for part in ("db.example.org", "hooks.example.org", "ls.example.org", "bucket/images", "sslmode=require"):
            assert part in answer.out
    rows = {(row["section"], row["key"]): row for row in command("config", "show", "--json").data}
    assert [rows[pair]["value"] for pair in SECRETS] == ["***"] * len(SECRETS)
    assert rows["database", "url"]["value"] == "postgresql+psycopg://me:***@db.example.org/x?sslmode=require"


@pytest.mark.parametrize(("address", "expected"), [
    ("sqlite:///activeseg.db", "sqlite:///activeseg.db"),
    ("sqlite:////srv/a b/activeseg.db", "sqlite:////srv/a b/activeseg.db"),
    ("postgresql://me@host/x", "postgresql://me@host/x"),
    (f"postgresql://me:{SECRET}/?#@x@host/x", "postgresql://***"),
    (f"postgresql://me:{SECRET}/@x@host/x", "postgresql://me:***@host/x"),
    (f"postgresql://host/x?user=me&password={SECRET}&host=/run", "postgresql://host/x?user=***&password=***&host=/run"),
    (f"https://{SECRET}@host:80/path", "https://***@host:80/path"),
    (f"https://host/x?X-Amz-Signature={SECRET}&{SECRET}", "https://host/x?X-Amz-Signature=***&***"),
    (f"https://host/x#{SECRET}", "https://host/x"),
    (f"https://host/x?to=a@b&key={SECRET}", "https://***"),
    ("C:\\images", "C:\\images"),
])  # fmt: skip
def test_addresses_lose_what_may_be_secret(address: str, expected: str) -> None:
    assert shown("pool", "images", address) == expected


def test_what_is_wrong_is_told_as_by_every_command(tmp_path: Path) -> None:
    assert "unknown key [training] stepz" in CommandLine(written(tmp_path, "[training]\nstepz = 1\n"))("config", "show").error
