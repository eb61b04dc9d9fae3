from __future__ import annotations

import stat
import traceback
from pathlib import Path

import pytest

from activeseg.config import Settings, load_settings, read_secret, write_secret
from activeseg.errors import ConfigError

SECRET = "sesame-open-9"


def load(folder: Path, text: str = "") -> Settings:
    (folder / "activeseg.toml").write_text(text, encoding="utf-8")
    return load_settings(folder / "activeseg.toml")


@pytest.mark.parametrize("section", ["labelstudio", "serve"])
def test_a_token_in_the_file_is_refused_and_not_repeated(tmp_path: Path, section: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[{section}\] token does not belong in this file") as caught:
        load(tmp_path, f'[{section}]\ntoken = "{SECRET}"\n')
    assert SECRET not in str(caught.value)


def test_a_token_from_the_environment_is_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTIVESEG_LABELSTUDIO__TOKEN", SECRET)
    settings = load(tmp_path)
    assert settings.labelstudio_token().get_secret_value() == SECRET
    shown = (repr(settings), str(settings), repr(settings.labelstudio), str(settings.model_dump()), settings.model_dump_json())
    assert not any(SECRET in text for text in (*shown, repr(settings.labelstudio_token())))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACTIVESEG_SELECTION__QUERY_SIZE", "9999"),
        ("ACTIVESEG_TRAINING__STEPS", "x"),
        ("ACTIVESEG_LABELSTUDIO__TOKEN__X", SECRET),
        ("ACTIVESEG_LABELSTUDIO", f'"{SECRET}"'),
        ("ACTIVESEG_LABELSTUDIO", SECRET),
        ("ACTIVESEG_LABELSTUDIO", f'{{"token": ["{SECRET}"]}}'),
        ("ACTIVESEG_LABELSTUDIO", f'["{SECRET}"]'),
    ],
)
def test_a_token_is_in_no_error_not_even_in_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    if SECRET not in value:
        monkeypatch.setenv("ACTIVESEG_LABELSTUDIO__TOKEN", SECRET)
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_secret_file_is_written_for_its_owner_alone_and_read_back(tmp_path: Path) -> None:
    file = tmp_path / "secrets/token"
    write_secret(file, SECRET)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_secret(file).get_secret_value() == SECRET
    assert SECRET not in repr(read_secret(file))


def test_writing_again_replaces_a_file_others_could_read(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old")
    file.chmod(0o644)
    write_secret(file, SECRET)
    assert read_secret(file).get_secret_value() == SECRET


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o610, 0o777])
def test_a_secret_file_others_may_use_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "token"
    write_secret(file, SECRET)
    file.chmod(mode)
    with pytest.raises(ConfigError, match=rf"can be read by others: chmod 600 {file}") as caught:
        read_secret(file)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(("content", "expected"), [(b"", "is empty"), (b" \n", "is empty"), (b"\xff\xfe", "not UTF-8")])
def test_a_secret_file_without_a_secret_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(ConfigError, match=expected):
        read_secret(file)


def test_a_missing_secret_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path}/token does not exist"):
        read_secret(tmp_path / "token")


def test_the_token_file_lies_beside_the_configuration(tmp_path: Path) -> None:
    write_secret(tmp_path / "token", SECRET)
    settings = load(tmp_path, '[labelstudio]\ntoken_file = "token"\n')
    assert settings.labelstudio_token().get_secret_value() == SECRET


def test_the_environment_beats_the_token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_secret(tmp_path / "token", "from the file")
    monkeypatch.setenv("ACTIVESEG_LABELSTUDIO__TOKEN", SECRET)
    settings = load(tmp_path, '[labelstudio]\ntoken_file = "token"\n')
    assert settings.labelstudio_token().get_secret_value() == SECRET


def test_without_a_token_the_error_says_where_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ACTIVESEG_LABELSTUDIO__TOKEN or .* Personal Access Token"):
        load(tmp_path).labelstudio_token()
