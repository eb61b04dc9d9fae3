"""Settings: frozen, nested, built once from `activeseg.toml` and ACTIVESEG_* variables, then passed down.

Environment beats file: `ACTIVESEG_LABELSTUDIO__URL` sets `[labelstudio] url`. An unknown key is an error. Relative paths
are taken from the folder of the TOML file. Secrets come from the environment or from files, never from the TOML file.
"""

from __future__ import annotations

import json
import os
import stat
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from activeseg.errors import ConfigError

CONFIG_FILE = "activeseg.toml"
ENV_PREFIX = "ACTIVESEG_"
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0)]
Pixels = Annotated[int, Field(gt=0)]
# A variable holds text, and pydantic takes no text for a Literal of numbers.
Stride = Annotated[Literal[4, 8, 16, 32], BeforeValidator(lambda value: int(value) if str(value).isdigit() else value)]


class Section(BaseModel):
    """One table of the TOML file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_unset(cls, data: Any) -> Any:
        # TOML has no null, nor have environment variables: an empty text unsets a key that may be unset.
        if not isinstance(data, dict):
            return data
        unset = {key for key, field in cls.model_fields.items() if field.default is None and data.get(key) == ""}
        return {key: None if key in unset else value for key, value in data.items()}


class DatabaseSection(Section):
    """Where rows live."""

    url: str = Field("sqlite:///activeseg.db", description="SQLAlchemy URL: sqlite:///file or postgresql+psycopg://...")


class ArtifactsSection(Section):
    """Where masks, checkpoints and pictures live."""

    dir: Path = Field(Path("artifacts"), description="folder for masks, checkpoints and pictures")


class PoolSection(Section):
    """The unlabelled images."""

    images: str = Field("images", description="folder or URI of the unlabelled images")
    group_pattern: str | None = Field(
        None,
        description="regular expression on the image's path; its first group names the clip or site the image belongs to",
    )
    max_pixels: int = Field(100_000_000, gt=0, description="larger images are quarantined")
    max_bytes: int = Field(200_000_000, gt=0, description="larger files are quarantined")


class LabelsSection(Section):
    """The classes."""

    file: Path = Field(Path("classes.txt"), description="one class a line: name #rrggbb [ignore]; index = line number from 0")
    overlap: bool = Field(False, description="classes may overlap (multi-label): a sigmoid for each instead of one softmax")
    include_void: bool = Field(False, description="train and count the class marked 'ignore' like any other")


class ModelSection(Section):
    """The network and its input."""

    architecture: str = Field(
        "fcn_mobilenet_v2",
        description="fcn32s_vgg16, fcn16s_vgg16, fcn8s_vgg16, fcn_mobilenet_v2, fcn_resnet50, fcn_resnet101, "
        "deeplabv3_resnet50, deeplabv3_resnet101, deeplabv3_mobilenet_v3_large or lraspp_mobilenet_v3_large",
    )
    width: float = Field(
        1.0,
        gt=0,
        le=4,
        description="channel multiplier of the encoder (fcn32s_vgg16, fcn16s_vgg16, fcn8s_vgg16 and fcn_mobilenet_v2 only)",
    )
    decoder_stride: Stride = Field(8, description="stride of the finest score layer (fcn_mobilenet_v2 only)")
    upsampling: Literal["transposed", "bilinear"] = Field(
        "transposed",
        description="how fcn*_vgg16 enlarge: transposed convolutions straight to the classes, or 1x1 scores first and then "
        "ones that start as bilinear interpolation",
    )
    short_side: int | None = Field(None, ge=32, le=8192, description="resize the shorter side to this; unset keeps the size")
    mean: tuple[float, float, float] = Field(
        (0.485, 0.456, 0.406), description="input mean on the 0..1 scale; 0.5 0.5 0.5 is x/127.5-1"
    )
    std: tuple[Positive, Positive, Positive] = Field(
        (0.229, 0.224, 0.225), description="input standard deviation on the 0..1 scale"
    )
    weights: str | None = Field(None, description="sha256 (or its start) of weights imported by `activeseg weights import`")
    pretrained: bool = Field(
        False,
        description="start from torchvision's published weights: of the same network where they exist, else of its encoder "
        "(needs the network once)",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="autocast of the forward pass; auto = bfloat16 where the device computes it natively"
    )


# What `recipe` gives the keys of [training] that are not set. "modern" is the defaults themselves.
_RECIPES: dict[str, dict[str, Any]] = {
    "modern": {},
    # Void as a class of its own is [labels] include_void, and x / 127.5 - 1 is [model] mean and std 0.5.
    "documents": {
        "epochs": 70,
        "batch_size": 64,
        "augment": "none",
        "crop": (224, 224),
        "color_jitter": 0.0,
        "learning_rate": 0.01,
        "head_lr_factor": 1.0,
        "schedule": "constant",
        "momentum": 0.9,
        "weight_decay": 0.0,
        "warmup_steps": 0,
        "clip_norm": 0.0,
        "class_weights": "none",
        "ema_decay": 0.0,
        "validate_every": 0,
        "patience": 0,
    },
}


class TrainingSection(Section):
    """The recipe."""

    recipe: Literal["modern", "documents"] = Field(
        "modern",
        description="values of the keys that are not set: the defaults below, or those of the FCN documents (see training.md)",
    )
    steps: int = Field(600, gt=0, description="optimiser steps, whatever the number of images")
    epochs: int | None = Field(None, gt=0, description="instead of steps: how often each image is seen; unset = steps count")
    batch_size: int = Field(8, gt=0, description="crops per step")
    augment: Literal["crop", "none"] = Field(
        "crop",
        description="random windows, mirrored half of the time (crop), or whole images resized to the size in crop (none)",
    )
    crop: tuple[Pixels, Pixels] = Field((240, 320), description="height and width the network trains on")
    scale: tuple[Positive, Positive] = Field((0.75, 1.5), description="range of the random resize before cropping")
    color_jitter: float = Field(
        0.2, ge=0, lt=1, description="brightness, contrast and saturation vary by at most this share; 0 = not at all"
    )
    learning_rate: float = Field(0.01, gt=0, description="of the encoder")
    head_lr_factor: float = Field(5.0, gt=0, description="the score layers learn this many times faster")
    schedule: Literal["poly", "constant"] = Field("poly", description="the rate falls to 0 as (1 - step/steps)^0.9, or stays")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD with Nesterov")
    weight_decay: float = Field(1e-4, ge=0, description="L2, not on norms and biases")
    warmup_steps: int = Field(20, ge=0, description="linear warm-up")
    clip_norm: float = Field(5.0, ge=0, description="largest norm of the gradient; 0 = as it comes")
    class_weights: Literal["none", "median_frequency"] = Field(
        "none", description="weight of each class in the loss; median_frequency lifts rare ones (Eigen and Fergus, 2015)"
    )
    ema_decay: float = Field(0.99, ge=0, lt=1, description="moving average of the weights, which is what is kept; 0 = none")
    validate_every: int = Field(
        100,
        ge=0,
        description="steps between looks at the validation split; the best look's weights are kept; 0 = the last ones",
    )
    patience: int = Field(5, ge=0, description="stop after this many looks without a better one; 0 = never")
    save_every: int = Field(100, ge=0, description="steps a killed training repeats at most; 0 = all of them")
    seed: int = Field(0, ge=0, description="of initial weights, order and augmentation")
    start: Literal["pretrained", "champion"] = Field("pretrained", description="where retraining starts from")
    min_train: int = Field(8, gt=0, description="no training below this many annotated training images")
    retrain_after: int = Field(10, gt=0, description="retrain when this many new annotations came in")
    retrain_days: float = Field(7.0, gt=0, description="or after this many days, if there is anything new")

    @model_validator(mode="before")
    @classmethod
    def _fill_recipe(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        preset = dict(_RECIPES.get(str(data.get("recipe")), {}))
        if "steps" in data:
            preset.pop("epochs", None)  # who sets steps means them
        return preset | data

    @field_validator("scale")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("expected the smaller factor first")
        return value

    def planned_steps(self, images: int) -> int:
        """Optimiser steps on so many images: `steps`, or enough for `epochs` passes (the last batch may begin another)."""
        return self.steps if self.epochs is None else -(-self.epochs * images // self.batch_size)


class ScoringSection(Section):
    """One pass over the pool."""

    batch_size: int = Field(8, gt=0, description="images of one size per forward pass")
    chunk_size: int = Field(64, gt=0, description="images per committed chunk; a killed run loses at most this much work")


class SelectionSection(Section):
    """Which images make a query."""

    query_size: int = Field(12, gt=0, description="images per round")
    control_share: Share = Field(0.1, description="share of each query drawn at random, to measure what choosing buys")
    bootstrap_size: int = Field(24, gt=0, description="images of the first query, when there is no model yet")
    val_size: int = Field(8, ge=0, description="annotated images frozen into the validation split on a cold start")
    refill_below: int = Field(4, gt=0, description="a new round opens when fewer tasks than this are open")
    max_open_tasks: int = Field(200, gt=0, description="never more open tasks than this")
    seed: int = Field(0, ge=0, description="of every random draw")


class PromotionSection(Section):
    """When a challenger replaces the champion."""

    tolerance: float = Field(0.02, ge=0, description="mIoU the challenger may lose at most, at the chosen confidence")
    class_floor: Share = Field(0.1, description="IoU that no class may lose")
    floor_min_pixels: int = Field(5_000, ge=0, description="classes with fewer validation pixels have no floor")
    confidence: float = Field(0.8, gt=0, lt=1, description="of the paired bootstrap interval whose lower end decides")


class LabelStudioSection(Section):
    """The server annotators use. The token is never written here: see `token_file`."""

    url: str | None = Field(None, description="http://host:port; unset = no Label Studio")
    token: SecretStr | None = Field(None, description="only by ACTIVESEG_LABELSTUDIO__TOKEN")
    token_file: Path | None = Field(None, description="file (mode 0600) that holds the token")
    project: str = Field("activeseg", min_length=3, max_length=50, description="title of the project, made if missing")
    mask_kind: Literal["brush", "bitmask"] = Field("brush", description="how masks are sent: BrushLabels or BitmaskLabels")
    batch_mb: float = Field(10.0, gt=0, description="largest import request")
    min_region_pixels: int = Field(4, ge=0, description="predicted specks smaller than this are merged before pushing")
    timeout: float = Field(60.0, gt=0, description="seconds per request")


class ScheduleSection(Section):
    """Cron strings (minute hour day month weekday)."""

    timezone: str = Field("UTC", description="IANA name")
    round: str = Field("0 2 * * *", description="nightly: sync, pull, train if due, score, push")
    pull: str = Field("*/10 * * * *", description="collect annotations; train when enough came in")

    @field_validator("timezone")
    @classmethod
    def _known_timezone(cls, value: str) -> str:
        from zoneinfo import ZoneInfo

        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"unknown time zone {value!r}; use an IANA name such as Europe/Berlin") from error
        return value


class ServeSection(Section):
    """The HTTP API."""

    host: str = Field("127.0.0.1", description="loopback unless you know why not")
    port: int = Field(8090, gt=0, lt=65536, description="TCP port")
    token: SecretStr | None = Field(None, description="only by ACTIVESEG_SERVE__TOKEN")
    token_file: Path | None = Field(None, description="file (mode 0600) with the bearer token; made on first use")


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
    serve: ServeSection = ServeSection()

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

    @property
    def images_uri(self) -> str:
        """The pool's location; a relative folder is taken from the configuration's folder."""
        return self.pool.images if "://" in self.pool.images else str(self.path(Path(self.pool.images)))

    def labelstudio_token(self) -> SecretStr:
        """Label Studio's token from the environment or `token_file`. Raises ConfigError where neither is set."""
        section = self.labelstudio
        token = section.token or (read_secret(self.path(section.token_file)) if section.token_file else None)
        if token is None:
            raise ConfigError(
                "no Label Studio token: set ACTIVESEG_LABELSTUDIO__TOKEN or [labelstudio] token_file "
                "(Label Studio: Account & Settings > Personal Access Token)"
            )
        return token


def load_settings(path: Path | None = None) -> Settings:
    """Settings from `path` (default: $ACTIVESEG_CONFIG, else ./activeseg.toml) and the environment.

    Raises ConfigError with one line that names the key, what was expected and what came.
    """
    file = path or Path(os.environ.get("ACTIVESEG_CONFIG", CONFIG_FILE))
    if not file.is_file():
        raise ConfigError(f"no configuration at {file}: run `activeseg init`, or name one with --config or ACTIVESEG_CONFIG")
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
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


def read_secret(file: Path) -> SecretStr:
    """The stripped content of a secret file. Raises ConfigError where others may read it or there is nothing in it."""
    if not file.is_file():
        raise ConfigError(f"secret file {file} does not exist")
    if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"secret file {file} can be read by others: chmod 600 {file}")
    try:
        secret = file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        # Not chained: the error's text would show the bytes.
        raise ConfigError(f"secret file {file} is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"secret file {file} cannot be read: {error.strerror}") from error
    if not secret:
        raise ConfigError(f"secret file {file} is empty")
    return SecretStr(secret)


def write_secret(file: Path, value: str) -> None:
    """Write a secret file with mode 0600 from its first byte on."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        stream.write(value + "\n")


def _refuse_secrets(data: dict[str, Any], file: Path) -> None:
    for section in ("labelstudio", "serve"):
        table = data.get(section)
        if isinstance(table, dict) and "token" in table:
            raise ConfigError(f"{file}: [{section}] token does not belong in this file; use token_file or the environment")


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
    # What came may be a secret: never shown for tokens, nor for whole tables, which may hold one.
    shown = keys and keys[0] != "token" and not isinstance(problem.get("input"), dict)
    came = f" (got {problem.get('input')!r})" if shown else ""
    message = problem["msg"].removeprefix("Value error, ")
    return f"{source}: {where}{': ' if where else ''}{message}{came}"


def commented_toml(*, images: str, classes: str) -> str:
    """The text of a new activeseg.toml: every key with its default and what it means; the two given ones set."""
    given = {("pool", "images"): images, ("labels", "file"): classes}
    lines = [
        "# activeseg: what every key means stands in docs/configuration.md. ACTIVESEG_SECTION__KEY in the environment",
        "# beats this file. Keys that are commented out have the value shown.",
    ]
    for name, section in Settings.model_fields.items():
        kind = section.annotation
        if not (isinstance(kind, type) and issubclass(kind, Section)):
            continue
        lines += ["", f"# {(kind.__doc__ or '').strip().splitlines()[0]}", f"[{name}]"]
        for key, field in kind.model_fields.items():
            if key == "token":  # secrets never stand in this file
                continue
            lines.append(f"# {field.description}")
            value = given.get((name, key), field.default)
            prefix = "" if (name, key) in given else "# "
            note = "  # unset" if value is None else ""
            lines.append(f"{prefix}{key} = {toml_value(value)}{note}")
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """A value as TOML text; None, which TOML lacks, as the empty text that `Section` takes for unset."""
    if value is None:
        return '""'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    return repr(value) if isinstance(value, int | float) else _toml_text(str(value))


def _toml_text(value: str) -> str:
    # A TOML basic string is a JSON string, but for DEL, which JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
