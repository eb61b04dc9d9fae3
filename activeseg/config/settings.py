"""All settings as one frozen value, built once from the file and the environment, then passed down."""

from __future__ import annotations

import os
import re
import tomllib
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from zoneinfo import ZoneInfo

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from activeseg.config.masking import remember_address, remember_secret
from activeseg.config.operations import (
    AlertsSection,
    DriftSection,
    HousekeepingSection,
    LogSection,
    MlBackendSection,
    ScheduleSection,
    ServeSection,
)
from activeseg.config.secrets import own_secret, read_secret
from activeseg.config.sections import (
    ArtifactsSection,
    DatabaseSection,
    LabelsSection,
    LabelStudioSection,
    ModelSection,
    PoolSection,
    PromotionSection,
    ScoringSection,
    SelectionSection,
    TrainingSection,
)
from activeseg.errors import ConfigError

CONFIG_FILE = "activeseg.toml"
ENV_PREFIX = "ACTIVESEG_"
SECRETS = (
    ("labelstudio", "token"),
    ("labelstudio", "webhook_secret"),
    ("serve", "token"),
    ("ml_backend", "password"),
    ("alerts", "webhook_secret"),
    ("alerts", "smtp_password"),
)
"""Keys that come from the environment or from a file of their own, never from activeseg.toml."""
_WEBHOOK_SECRET_FILE = Path(".activeseg-webhook-secret")
_SECRET_KEYS = frozenset(key for _, key in SECRETS)
_USER = re.compile(r"(?s):.*@")


class Settings(BaseSettings):
    """All settings. Build with `load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        validate_default=False,
        hide_input_in_errors=True,
    )

    root: Path = Field(Path("."), description="folder relative paths start from", exclude=True)
    database: DatabaseSection = DatabaseSection()
    artifacts: ArtifactsSection = ArtifactsSection()
    pool: PoolSection = PoolSection()
    labels: LabelsSection = LabelsSection()
    model: ModelSection = ModelSection()
    training: TrainingSection = TrainingSection()
    scoring: ScoringSection = ScoringSection()
    selection: SelectionSection = SelectionSection()
    promotion: PromotionSection = PromotionSection()
    labelstudio: LabelStudioSection = LabelStudioSection()
    schedule: ScheduleSection = ScheduleSection()
    alerts: AlertsSection = AlertsSection()
    drift: DriftSection = DriftSection()
    housekeeping: HousekeepingSection = HousekeepingSection()
    log: LogSection = LogSection()
    serve: ServeSection = ServeSection()
    ml_backend: MlBackendSection = MlBackendSection()

    @classmethod
    def settings_customise_sources(  # noqa: D102 - pydantic-settings' hook: environment beats file
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings

    @model_validator(mode="after")
    def _query_fits(self) -> Settings:
        if self.selection.query_size > self.selection.max_open_tasks:
            raise ValueError("[selection] query_size must not exceed max_open_tasks")
        return self

    @model_validator(mode="after")
    def _parts_can_be_asked_for(self) -> Settings:
        if self.selection.partial_cells and self.labels.overlap:
            raise ValueError(
                "[selection] partial_cells: where classes overlap, a mask cannot leave pixels unlabelled; set it to 0"
            )
        return self

    def model_post_init(self, context: Any, /) -> None:
        """No secret of these settings is told by logs from now on."""
        for section, key in SECRETS:
            if (value := getattr(getattr(self, section), key)) is not None:
                remember_secret(value.get_secret_value())
        remember_address(self.database.url)
        remember_address(self.alerts.webhook_url or "")

    def path(self, path: Path) -> Path:
        """A configured path, made absolute from the configuration's folder."""
        return path if path.is_absolute() else (self.root / path).resolve()

    @property
    def database_url(self) -> str:
        """The database URL; a relative SQLite file is taken from the configuration's folder."""
        prefix = "sqlite:///"
        url = self.database.url
        if not url.startswith(prefix) or url.startswith(prefix + "/") or ":memory:" in url:
            return url
        return prefix + str(self.path(Path(url.removeprefix(prefix))))

    @cached_property
    def images_uri(self) -> str:
        """The pool's location; a relative folder is taken from the configuration's folder.

        A folder comes as its images' own URIs begin: as a plain path, without `..`.
        """
        images = self.pool.images
        if images.startswith("file://"):
            with suppress(UnicodeDecodeError):
                images = unquote(images.removeprefix("file://"), errors="strict")
        return images if "://" in images else os.path.abspath(self.path(Path(images)))

    @property
    def zone(self) -> ZoneInfo:
        """The zone people are told times in; JSON and the database have UTC."""
        return ZoneInfo(self.schedule.timezone)

    def labelstudio_token(self) -> SecretStr:
        """Label Studio's token from the environment or `token_file`. Raises ConfigError where neither is set."""
        section = self.labelstudio
        file = None if section.token_file is None else self.path(section.token_file)
        token = section.token or (read_secret(file, "[labelstudio] token_file") if file else None)
        if token is None:
            raise ConfigError(
                "no Label Studio token: set ACTIVESEG_LABELSTUDIO__TOKEN or [labelstudio] token_file "
                "(Label Studio: Account & Settings > Personal Access Token)"
            )
        return token

    def webhook_secret(self, *, make: bool = True) -> SecretStr | None:
        """What Label Studio's hints must carry; made at first use. None where no webhook is configured.

        make: False only looks, and gives None too where nothing was made yet.
        Raises ConfigError for one that keeps nobody out or cannot be sent.
        """
        section = self.labelstudio
        if not (section.webhook_url or section.webhook_secret or section.webhook_secret_file):
            return None
        file = self.path(section.webhook_secret_file or _WEBHOOK_SECRET_FILE)
        if not make and section.webhook_secret is None and not file.exists():
            return None
        variable = f"{ENV_PREFIX}LABELSTUDIO__WEBHOOK_SECRET"
        setting = "[labelstudio] webhook_secret_file"
        return own_secret(section.webhook_secret, None, default=file, variable=variable, setting=setting).value


def chosen_file(path: Path | None = None) -> Path:
    """The configuration file: `path`, else $ACTIVESEG_CONFIG, else ./activeseg.toml."""
    return path or Path(os.environ.get("ACTIVESEG_CONFIG", CONFIG_FILE))


def load_settings(path: Path | None = None) -> Settings:
    """Settings from `path` (default: $ACTIVESEG_CONFIG, else ./activeseg.toml) and the environment.

    Raises ConfigError with one line that names the key, what was expected and what came.
    """
    file = chosen_file(path)
    if not file.is_file():
        raise ConfigError(f"no configuration at {file}: run `activeseg init`, or name one with --config or ACTIVESEG_CONFIG")
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also no UTF-8, a number of thousands of digits, lists in lists
        raise ConfigError(f"{file} is not valid TOML: {error}") from error
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    _refuse_secrets(data, file)
    _refuse_root(data, file)
    try:
        return Settings(root=file.resolve().parent, **data)
    except ValidationError as error:
        raise ConfigError(_first_problem(error, file)) from error
    except SettingsError as error:
        raise ConfigError(f"{error}: write lists in {ENV_PREFIX}* variables as JSON, such as [240, 320]") from error


def _refuse_secrets(data: dict[str, Any], file: Path) -> None:
    for section, key in SECRETS:
        table = data.get(section)
        if isinstance(table, dict) and key in table:
            raise ConfigError(f"{file}: [{section}] {key} does not belong in this file; use {key}_file or the environment")


def _refuse_root(data: dict[str, Any], file: Path) -> None:
    """`root` is the file's folder and no key; a variable of an unknown section would pass unseen."""
    if "root" in data:
        raise ConfigError(f"{file}: unknown key root; see docs/configuration.md for the known ones")
    for name in os.environ:
        section, nested, _ = name.upper().removeprefix(ENV_PREFIX).partition("__")
        known = section != "ROOT" and (not nested or section.lower() in Settings.model_fields)
        if name.upper().startswith(ENV_PREFIX) and not known:
            raise ConfigError(f"unknown setting in the environment: {name}; see docs/configuration.md for the known ones")


def _first_problem(error: ValidationError, file: Path) -> str:
    problem = error.errors()[0]
    section, *keys = (str(part) for part in problem["loc"]) if problem["loc"] else ("",)
    where = f"[{section}] {'.'.join(keys)}" if keys else section
    variable = "__".join([f"{ENV_PREFIX}{section}", *keys[:1]]).upper()
    source = variable if variable in map(str.upper, os.environ) else str(file)
    if problem["type"] == "extra_forbidden":
        return f"{source}: unknown key {where}; see docs/configuration.md for the known ones"
    if problem["type"] == "model_type":
        return f"{source}: {where}: expected a table, [{where}] and its keys"
    # What came may be a secret: never shown for tokens, nor for whole tables, which may hold one, nor what has a user's part.
    given = problem.get("input")
    shown = keys and keys[0] not in _SECRET_KEYS and not isinstance(given, dict) and not _USER.search(str(given))
    message = problem["msg"].removeprefix("Value error, ")
    told = message.endswith(f"got {problem.get('input')!r}")
    came = f" (got {problem.get('input')!r})" if shown and not told else ""
    return f"{source}: {where}{': ' if where else ''}{message}{came}"
