from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from activeseg.config import SECRETS, Section, Settings, commented_toml, load_settings, toml_value
from activeseg.errors import ConfigError

TEXT = commented_toml(images="/data/pool", classes="/data/classes.txt")


def keys() -> list[tuple[str, str]]:
    """(section, key) of every line that sets one, commented out or not."""
    found, section = [], ""
    for line in TEXT.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif " = " in line and line.removeprefix("# ").split(" = ")[0].isidentifier():
            found.append((section, line.removeprefix("# ").split(" = ")[0]))
    return found


def uncommented(section: str, key: str) -> str:
    """The new file's text with this one key uncommented."""
    lines, current = [], ""
    for line in TEXT.splitlines():
        if line.startswith("["):
            current = line.strip("[]")
        wanted = current == section and line.startswith(f"# {key} = ")
        lines.append(line.removeprefix("# ") if wanted else line)
    return "\n".join(lines)


def load(folder: Path, text: str) -> Settings:
    file = folder / "activeseg.toml"
    file.write_text(text, encoding="utf-8")
    return load_settings(file)


def problem(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_new_file_loads_and_sets_the_two_given_keys(tmp_path: Path) -> None:
    settings = load(tmp_path, TEXT)
    assert settings.images_uri == "/data/pool"
    assert settings.labels.file == Path("/data/classes.txt")
    assert settings.training == Settings().training
    assert settings.root == tmp_path


@pytest.mark.parametrize("named", ["/data/my pool", "/data/", "/data/old/../my pool", "file:///data/my%20pool"])
def test_a_pool_folder_is_told_as_the_uris_of_its_images_begin(tmp_path: Path, named: str) -> None:
    expected = "/data" if named == "/data/" else "/data/my pool"
    assert load(tmp_path, f'[pool]\nimages = "{named}"\n').images_uri == expected


def test_a_new_file_names_every_key_but_the_secrets() -> None:
    sections = {name: field.annotation for name, field in Settings.model_fields.items() if name != "root"}
    known = [
        (name, key)
        for name, kind in sections.items()
        if isinstance(kind, type) and issubclass(kind, Section)
        for key in kind.model_fields
        if (name, key) not in SECRETS
    ]
    assert keys() == known


@pytest.mark.parametrize(("section", "key"), keys())
def test_uncommenting_a_key_loads_and_changes_nothing(tmp_path: Path, section: str, key: str) -> None:
    text = uncommented(section, key)
    assert key in tomllib.loads(text)[section]
    assert load(tmp_path, text) == load(tmp_path, TEXT)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("model", "short_side"), ("model", "weights"), ("pool", "group_pattern"), ("labelstudio", "url"),
        ("labelstudio", "longest_side"),
    ],
)  # fmt: skip
def test_an_empty_text_unsets_a_key_that_may_be_unset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, key: str
) -> None:
    assert getattr(getattr(load(tmp_path, f'[{section}]\n{key} = ""\n'), section), key) is None
    monkeypatch.setenv(f"ACTIVESEG_{section}__{key}".upper(), "")
    assert getattr(getattr(load(tmp_path, f'[{section}]\n{key} = "128"\n'), section), key) is None


@pytest.mark.parametrize(
    "value", ["plain", 'quo"te', "back\\slash", "täglich ☃", "tab\tnew\nline", "\x7f\x00", "", "# no comment"]
)
def test_any_text_survives_being_written_as_toml(value: str) -> None:
    assert tomllib.loads(f"x = {toml_value(value)}") == {"x": value}


@pytest.mark.parametrize("value", [True, 0, -3, 1e-7, 0.1, [1, 2], ["a", "b"], [[1.5], []]])
def test_any_value_survives_being_written_as_toml(value: Any) -> None:
    assert tomllib.loads(f"x = {toml_value(value)}") == {"x": value}


def test_environment_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTIVESEG_TRAINING__STEPS", "11")
    monkeypatch.setenv("ACTIVESEG_TRAINING__CROP", "[32, 64]")
    settings = load(tmp_path, "[training]\nsteps = 22\nbatch_size = 3\n")
    assert (settings.training.steps, settings.training.batch_size, settings.training.crop) == (11, 3, (32, 64))
    assert settings.training.momentum == 0.9


@pytest.mark.parametrize(("section", "key"), keys())
def test_every_key_can_be_set_by_the_environment(
    section: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the very value the new file shows, as text: what the file takes, a variable takes."""
    [value] = [v for k, v in tomllib.loads(uncommented(section, key))[section].items() if k == key]
    text = json.dumps(value) if isinstance(value, list) else str(value).lower() if isinstance(value, bool) else str(value)
    monkeypatch.setenv(f"ACTIVESEG_{section}__{key}".upper(), text)
    by_variable = getattr(getattr(load(tmp_path, TEXT), section), key)
    monkeypatch.delenv(f"ACTIVESEG_{section}__{key}".upper())
    assert by_variable == getattr(getattr(load(tmp_path, uncommented(section, key)), section), key)


def test_the_environment_names_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.toml").write_text("[training]\nsteps = 5\n")
    monkeypatch.setenv("ACTIVESEG_CONFIG", str(tmp_path / "other.toml"))
    assert load_settings().training.steps == 5


def test_relative_paths_start_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "place/activeseg.toml").write_text('[pool]\nimages = "here"\n')
    monkeypatch.chdir(tmp_path)
    settings = load_settings(Path("place/activeseg.toml"))
    assert settings.images_uri == str(tmp_path / "place/here")
    assert settings.database_url == f"sqlite:///{tmp_path}/place/activeseg.db"
    assert settings.path(settings.artifacts.dir) == tmp_path / "place/artifacts"


@pytest.mark.parametrize("url", ["sqlite:////absolute/x.db", "sqlite:///:memory:", "postgresql+psycopg://host/x"])
def test_absolute_databases_stay_as_they_are(tmp_path: Path, url: str) -> None:
    assert load(tmp_path, f'[database]\nurl = "{url}"\n').database_url == url


def test_object_stores_stay_as_they_are(tmp_path: Path) -> None:
    assert load(tmp_path, '[pool]\nimages = "s3://bucket/pool"\n').images_uri == "s3://bucket/pool"


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    settings = load(tmp_path, TEXT)
    with pytest.raises(ValueError, match="frozen"):
        settings.training.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[training]\nstepz = 3\n", "unknown key [training] stepz"),
        ("[trainig]\nsteps = 3\n", "unknown key trainig"),
        ("nope = 3\n", "unknown key nope"),
        ('root = "/x"\n', "unknown key root"),
        ("[root]\nx = 1\n", "unknown key root"),
        ('[training]\nsteps = "many"\n', "[training] steps: Input should be a valid integer"),
        ("[training]\nsteps = 1.5\n", "(got 1.5)"),
        ("[training]\nsteps = 0\n", "[training] steps: Input should be greater than 0 (got 0)"),
        ("[training]\ncrop = [240]\n", "[training] crop"),
        ('[training]\ncrop = [240, "b"]\n', "[training] crop.1"),
        ("[training]\ncrop = [0, 8]\n", "[training] crop.0"),
        ("[training]\nscale = [1.5, 0.5]\n", "[training] scale: expected the smaller factor first"),
        ("[training]\nlearning_rate = nan\n", "[training] learning_rate"),
        ("[training]\nlearning_rate = inf\n", "finite number"),
        ("[model]\nstd = [0.1, 0.0, 0.1]\n", "[model] std.1: Input should be greater than 0"),
        ("[model]\ndecoder_stride = 7\n", "[model] decoder_stride"),
        ("[selection]\nquery_size = 9999\n", "[selection] query_size must not exceed max_open_tasks"),
        ('[schedule]\ntimezone = "Mars/Olympus"\n', "unknown time zone 'Mars/Olympus'"),
        ('[schedule]\ntimezone = "Europe"\n', "unknown time zone 'Europe'"),
        ("labelstudio = 5\n", "labelstudio: expected a table"),
        ('training = "x"\n', "training: expected a table"),
        ("x = \n", "is not valid TOML"),
        ('[labelstudio]\nurl = "labels.example.org:8080"\n', "[labelstudio] url: expected an address that begins with http://"),
        ('[labelstudio]\nproject = "ab"\n', "[labelstudio] project"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it_and_the_file(tmp_path: Path, text: str, expected: str) -> None:
    said = problem(tmp_path, text)
    assert expected in said
    assert str(tmp_path / "activeseg.toml") in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("labelstudio.url", "http://ada:hunter2@labels:8080"),
        ("labelstudio.url", "https://hunter2@labels"),
        ("labelstudio.url", "http://ada:hun/ter2@labels:8080"),
        ("labelstudio.webhook_url", "http://ada:hunter2@here:8090"),
        ("labelstudio.link", "https://ada:hunter2@images/{path}"),
        ("pool.images", "s3://ada:hunter2@bucket/pool"),
    ],
)
def test_an_address_with_a_user_or_password_in_it_is_refused_without_repeating_it(tmp_path: Path, key: str, value: str) -> None:
    section, _, name = key.partition(".")
    said = problem(tmp_path, f'[{section}]\n{name} = "{value}"\n')
    assert f"[{section}] {name}: expected an address without a user or password in it" in said
    assert "ter2" not in said


@pytest.mark.parametrize(
    "text",
    [
        '[labelstudio]\nurl = "http://[::1]:8080/labels@home"\nlink = "https://images/@pool/{path}?as=a@b"',
        '[pool]\nimages = "s3://bucket/a@b"',
        '[pool]\nimages = "file:///disk:1/a@b"',
        '[pool]\nimages = "disk:1/a@b"',
    ],
)
def test_an_at_sign_behind_the_host_is_no_user(tmp_path: Path, text: str) -> None:
    load(tmp_path, text)


def test_what_came_is_said_once(tmp_path: Path) -> None:
    said = problem(tmp_path, '[selection]\nacquisition = "entropy"\n')
    assert said.endswith("softrank_NAME; got 'entropy'")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("ACTIVESEG_TRAINING__STEPZ", "3", "unknown key [training] stepz"),
        ("ACTIVESEG_TRAINIG__STEPS", "3", "unknown setting in the environment: ACTIVESEG_TRAINIG__STEPS"),
        ("ACTIVESEG_ROOT", "/x", "unknown setting in the environment: ACTIVESEG_ROOT"),
        ("ACTIVESEG_TRAINING__STEPS", "many", "ACTIVESEG_TRAINING__STEPS: [training] steps"),
        ("ACTIVESEG_TRAINING__CROP", "[240", "as JSON, such as [240, 320]"),
        ("ACTIVESEG_TRAINING__CROP", "240,320", "as JSON, such as [240, 320]"),
        ("ACTIVESEG_TRAINING", "x", "as JSON"),
    ],
)
def test_a_wrong_variable_is_one_line_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(name, value)
    assert expected in problem(tmp_path, TEXT)


def test_variables_of_the_tests_and_the_tools_are_no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTIVESEG_REQUIRE", "postgres")
    load(tmp_path, TEXT)


def test_a_missing_file_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run `activeseg init`"):
        load_settings(tmp_path / "activeseg.toml")


def test_a_file_that_is_no_text_is_not_valid(tmp_path: Path) -> None:
    (tmp_path / "activeseg.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_settings(tmp_path / "activeseg.toml")


def _words(kind: Any) -> list[str]:
    """The texts a setting takes where it takes only some."""
    found = [word for word in get_args(kind) if isinstance(word, str)] if get_origin(kind) is Literal else []
    return found + [word for part in get_args(kind) if not isinstance(part, str) for word in _words(part)]


def test_the_description_of_a_setting_lists_the_words_it_takes() -> None:
    missing = [
        (name, key, word)
        for name, section in Settings.model_fields.items()
        if isinstance(section.annotation, type) and issubclass(section.annotation, Section)
        for key, field in section.annotation.model_fields.items()
        for word in _words(field.annotation)
        if word not in re.findall(r"[\w-]+", field.description or "")
    ]
    assert missing == []
