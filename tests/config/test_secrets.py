from __future__ import annotations

import stat
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import SecretStr

from activeseg.config import OwnSecret, Settings, load_settings, own_secret, read_secret, write_secret
from activeseg.errors import ConfigError
from activeseg.mlbackend.auth import login
from activeseg.web.auth import bearer_token

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


def own(value: str | None, default: Path, *, named: Path | None = None) -> OwnSecret:
    given = None if value is None else SecretStr(value)
    return own_secret(given, named, default=default, variable="ACTIVESEG_X__KEY", setting="[x] key_file")


def test_a_secret_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "secrets/new"
    made = own(None, file)
    assert len(made.value.get_secret_value()) >= 32
    assert (made.file, made.explicit, made.place) == (file, False, str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert own(None, file) == made
    assert [found.name for found in file.parent.iterdir()] == ["new"]
    assert made.value.get_secret_value() not in repr(made)


def test_a_secret_in_a_file_that_a_person_named_was_set_by_hand(tmp_path: Path) -> None:
    named = own(None, tmp_path / "default", named=tmp_path / "mine")
    assert (named.file, named.explicit) == (tmp_path / "mine", True)
    assert [found.name for found in tmp_path.iterdir()] == ["mine"]


def test_all_who_ask_for_a_new_secret_at_once_get_the_same(tmp_path: Path) -> None:
    for number in range(20):
        file = tmp_path / str(number)
        with ThreadPoolExecutor(8) as threads:
            made = list(threads.map(lambda _, file=file: own(None, file).value.get_secret_value(), range(8)))
        assert set(made) == {file.read_text(encoding="utf-8").strip()}


def test_a_given_secret_leaves_no_file(tmp_path: Path) -> None:
    chosen = SECRET * 2
    given = own(chosen, tmp_path / "new", named=tmp_path / "named")
    assert (given.value.get_secret_value(), given.file, given.explicit) == (chosen, None, True)
    assert given.place == "the environment variable ACTIVESEG_X__KEY"
    assert list(tmp_path.iterdir()) == []


def test_a_secret_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match="cannot be made"):
        own(None, tmp_path / "file" / "new")


@pytest.mark.parametrize("value", ["short", "x" * 15, "\u00fcn\u00efcode" * 5, "line\nbreak" * 5, "tab\t" * 9])
def test_what_keeps_nobody_out_or_fits_in_no_header_is_refused_wherever_it_came_from(tmp_path: Path, value: str) -> None:
    write_secret(tmp_path / "file", value)
    for given, remedy in [(value, "set another one, or unset it"), (None, "delete the file and a new one is made")]:
        with pytest.raises(ConfigError, match=f"at least 16 printable ASCII characters.*{remedy}") as caught:
            own(given, tmp_path / "file")
        assert value not in str(caught.value)


def test_without_a_webhook_there_is_no_secret_and_none_is_made(tmp_path: Path) -> None:
    assert load(tmp_path).webhook_secret() is None
    assert [file.name for file in tmp_path.iterdir()] == ["activeseg.toml"]


@pytest.mark.parametrize("key", ['webhook_url = "http://here:8090"', 'webhook_secret_file = "hook"'])
def test_a_configured_webhook_has_a_secret_which_is_looked_at_without_making_it(tmp_path: Path, key: str) -> None:
    settings = load(tmp_path, f"[labelstudio]\n{key}\n")
    assert settings.webhook_secret(make=False) is None
    made = settings.webhook_secret()
    assert made is not None
    assert settings.webhook_secret(make=False) == made == settings.webhook_secret()


@pytest.mark.parametrize("value", ["short", "ünïcode" * 5, "line\nbreak" * 5])
def test_a_webhook_secret_that_keeps_nobody_out_or_fits_in_no_header_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("ACTIVESEG_LABELSTUDIO__WEBHOOK_SECRET", value)
    with pytest.raises(ConfigError, match="ACTIVESEG_LABELSTUDIO__WEBHOOK_SECRET: expected at least 16") as caught:
        load(tmp_path).webhook_secret()
    assert value not in str(caught.value)


READ: dict[tuple[str, str], Callable[[Settings], object]] = {
    ("labelstudio", "token_file"): Settings.labelstudio_token,
    ("labelstudio", "webhook_secret_file"): Settings.webhook_secret,
    ("serve", "token_file"): bearer_token,
    ("ml_backend", "password_file"): login,
}


@pytest.mark.parametrize("mode", [0o600, 0o644])  # empty, and for all to read
@pytest.mark.parametrize(("section", "key"), READ)
def test_what_is_wrong_with_a_secret_file_names_the_setting(tmp_path: Path, section: str, key: str, mode: int) -> None:
    settings = load(tmp_path, f'[{section}]\n{key} = "secret"\n')
    write_secret(tmp_path / "secret", "")
    (tmp_path / "secret").chmod(mode)
    with pytest.raises(ConfigError, match=rf"^\[{section}\] {key}: secret file {tmp_path}/secret "):
        READ[section, key](settings)
