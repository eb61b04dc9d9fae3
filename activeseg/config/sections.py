"""The sections of `activeseg.toml` about images, the network and Label Studio: every key with its default and what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from activeseg.config.budget import Budget
from activeseg.config.recipes import RECIPES
from activeseg.config.section import Pixels, Positive, Section, Share, Stride, refuse_user
from activeseg.config.strategies import Strategy


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
    isolation: Literal["first", "always"] = Field(
        "first",
        description="when training and scoring decode an image in a process of its own: first (once, when it is registered) or "
        "always",
    )

    @field_validator("images")
    @classmethod
    def _nothing_secret_in_it(cls, value: str) -> str:
        refuse_user(value, "credentials come from the object store's own environment variables")
        return value


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
        description="how fcn*_vgg16 enlarge: transposed (convolutions straight to the classes) or bilinear (1x1 scores first, "
        "then convolutions that start as bilinear interpolation)",
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
        "auto",
        description="autocast of the forward pass: float32 (none), bfloat16, float16 or auto (bfloat16 where the device "
        "computes it natively)",
    )


class TrainingSection(Section):
    """The recipe."""

    recipe: Literal["modern", "documents"] = Field(
        "modern",
        description="values of the keys that are not set: modern (the defaults below) or documents (those of the FCN "
        "documents, see training.md)",
    )
    steps: int = Field(600, gt=0, description="optimiser steps, whatever the number of images")
    epochs: int | None = Field(None, gt=0, description="instead of steps: how often each image is seen; unset = steps count")
    batch_size: int = Field(8, gt=0, description="crops per step")
    augment: Literal["crop", "none"] = Field(
        "crop",
        description="crop (random windows, mirrored half of the time) or none (whole images, resized to the size in `crop`)",
    )
    crop: tuple[Pixels, Pixels] = Field((240, 320), description="height and width the network trains on")
    scale: tuple[Positive, Positive] = Field((0.75, 1.5), description="range of the random resize before cropping")
    color_jitter: float = Field(
        0.2, ge=0, lt=1, description="brightness, contrast and saturation vary by at most this share; 0 = not at all"
    )
    learning_rate: float = Field(0.01, gt=0, description="of the encoder")
    head_lr_factor: float = Field(5.0, gt=0, description="the score layers learn this many times faster")
    schedule: Literal["poly", "constant"] = Field(
        "poly", description="of the rate: poly (falls to 0 as (1 - step/steps)^0.9) or constant"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD with Nesterov")
    weight_decay: float = Field(1e-4, ge=0, description="L2, not on norms and biases")
    warmup_steps: int = Field(20, ge=0, description="linear warm-up")
    clip_norm: float = Field(5.0, ge=0, description="largest norm of the gradient; 0 = as it comes")
    class_weights: Literal["none", "median_frequency"] = Field(
        "none",
        description="of each class in the loss: none, or median_frequency, which lifts rare ones (Eigen and Fergus, 2015)",
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
    unlabelled: Literal["none", "pseudo"] = Field(
        "none",
        description="what the unlabelled images of the pool teach: none, or pseudo (labels that the averaged network is "
        "sure of; a step then takes more than twice as long)",
    )
    unlabelled_weight: float = Field(1.0, gt=0, description="of the pseudo-labels' loss beside that of the labels")
    unlabelled_after: int = Field(100, ge=0, description="steps on labels alone before the first pseudo-labels")
    pseudo_threshold: float = Field(
        0.9, ge=0.5, lt=1, description="probability that makes a pseudo-label; lower for classes the network is less sure of"
    )
    start: Literal["pretrained", "champion"] = Field(
        "pretrained", description="where retraining starts from: pretrained (as a first training) or champion"
    )
    min_train: int = Field(8, gt=0, description="no training below this many annotated training images")
    retrain_after: int = Field(10, gt=0, description="retrain when this many new annotations came in")
    retrain_days: float = Field(7.0, gt=0, description="or after this many days, if there is anything new")

    @model_validator(mode="before")
    @classmethod
    def _fill_recipe(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        preset = dict(RECIPES.get(str(data.get("recipe")), {}))
        if "steps" in data:
            preset.pop("epochs", None)  # who sets steps means them
        return preset | data

    @field_validator("scale")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("expected the smaller factor first")
        return value

    @model_validator(mode="after")
    def _teacher_is_there(self) -> TrainingSection:
        if self.unlabelled == "pseudo" and not self.ema_decay:
            raise ValueError("unlabelled = 'pseudo' asks the averaged network: set ema_decay (0.99 by default), not 0")
        return self

    def planned_steps(self, images: int) -> int:
        """Optimiser steps on so many images: `steps`, or enough for `epochs` passes (the last batch may begin another)."""
        return self.steps if self.epochs is None else -(-self.epochs * images // self.batch_size)


class ScoringSection(Section):
    """One pass over the pool."""

    batch_size: int = Field(
        8, ge=0, description="images of one size per forward pass, fewer where memory is short; 0 = found by trying on a GPU"
    )
    chunk_size: int = Field(
        64, gt=0, description="a killed run loses at most this many finished images and the batch at hand (two on a GPU)"
    )
    readers: int = Field(0, ge=0, le=256, description="threads that read and decode images; 0 = one for each core, at least 4")
    devices: tuple[str, ...] = Field(
        (),
        description='devices a pass is spread over, a process for each, such as ["cuda:0", "cuda:1"]; ["all"] = every GPU; '
        "empty = [model] device alone",
    )
    compile: Literal["auto", "always", "never"] = Field(
        "auto", description="whether the network is compiled for the common sizes: auto (where that pays), always or never"
    )
    temperature: Literal["validation", "none"] = Field(
        "validation",
        description="what logits are divided by: validation (fitted once on the validation split, when a checkpoint is judged; "
        "with fewer than 4 images there nothing is) or none",
    )
    budget: str | None = Field(
        None, description="what a run may take: a duration (2h, 30m) or a number of images (500); unset = all there is"
    )

    @field_validator("budget")
    @classmethod
    def _known_budget(cls, value: str | None) -> str | None:
        return value if value is None else Budget.parse(value).text


class SelectionSection(Section):
    """Which images make a query."""

    acquisition: str = Field(
        "entropy_sum",
        description="how images are chosen: entropy_sum, entropy_mean, entropy_count, class_balanced_entropy, margin, "
        "least_confidence, bald or tta_jsd, these with power_ or softrank_ in front, kcenter, entropy_kcenter, badge_seg or "
        "random; measured on CamVid with up to 61 labelled images none beat random, and class_balanced_entropy came nearest "
        "(see selection.md)",
    )
    noise_beta: float = Field(
        1.0, gt=0, description="of power_ and softrank_: the higher, the closer to the top of the ranking they draw"
    )
    min_frame_gap: int = Field(
        0, ge=0, description="frames of a clip that are asked about lie at least this many frame numbers apart; 0 = any"
    )
    max_per_group: int = Field(0, ge=0, description="images of one clip or site in a query at most; 0 = any number")
    partial_cells: int = Field(
        0,
        ge=0,
        lt=16,
        description="cells of each image, of 4 x 4, that annotators label: those with the highest entropy; the rest stays "
        "unlabelled; 0 = the whole image",
    )
    query_size: int = Field(12, gt=0, description="images per round")
    control_share: Share = Field(0.1, description="share of each query drawn at random, to measure what choosing buys")
    bootstrap: Literal["random", "kcenter"] = Field(
        "random",
        description="how the first query is chosen: random, or kcenter (spread by what the pretrained encoder sees, but for "
        "val_size images)",
    )
    bootstrap_size: int = Field(24, gt=0, description="images of the first query, when there is no model yet")
    val_size: int = Field(8, ge=0, description="annotated images frozen into the validation split on a cold start")
    refill_below: int = Field(4, gt=0, description="a new round opens when fewer tasks than this are open")
    max_open_tasks: int = Field(200, gt=0, description="never more open tasks than this")
    seed: int = Field(0, ge=0, description="of every random draw")

    @field_validator("acquisition")
    @classmethod
    def _known_acquisition(cls, value: str) -> str:
        return Strategy.parse(value).name


class PromotionSection(Section):
    """When a challenger replaces the champion."""

    tolerance: float = Field(0.02, ge=0, description="mIoU the challenger may lose at most, at the chosen confidence")
    class_floor: Share = Field(0.1, description="IoU that no class may lose")
    floor_min_pixels: int = Field(5_000, ge=0, description="classes with fewer validation pixels have no floor")
    confidence: float = Field(0.8, gt=0, lt=1, description="of the paired bootstrap interval whose lower end decides")
    max_ece_rise: Share = Field(
        0.05, description="rise of the expected calibration error a challenger may bring at most; 1 = any"
    )


class LabelStudioSection(Section):
    """The server annotators use. The token is never written here: see `token_file`."""

    url: str | None = Field(None, description="http://host:port; unset = no Label Studio")
    token: SecretStr | None = Field(None, description="only by ACTIVESEG_LABELSTUDIO__TOKEN")
    token_file: Path | None = Field(None, description="file (mode 0600) that holds the token")
    project: str = Field("activeseg", min_length=3, max_length=50, description="title of the project, made if missing")
    mask_kind: Literal["brush", "bitmask"] = Field(
        "brush", description="how masks are sent and drawn: brush or bitmask (see label-studio.md)"
    )
    images: Literal["upload", "local-files", "link"] = Field(
        "upload",
        description="how Label Studio gets the images: upload (a copy each), local-files (of its own machine) or link (to a "
        "web server or bucket)",
    )
    link: str | None = Field(
        None,
        description="address of an image for images = 'link'; {path} is its path inside the pool: "
        "https://images.example.org/{path}, s3://bucket/{path}",
    )
    local_root: Path | None = Field(
        None, description="for images = 'local-files': the server's LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"
    )
    local_pool: Path | None = Field(
        None, description="for images = 'local-files': the pool's folder as the server sees it; unset = as we see it"
    )
    longest_side: int | None = Field(
        1280, ge=64, description="larger images are shown shrunk to this many pixels; '' = never (browsers get slow)"
    )
    entropy_map: Literal["beside", "folded", "none"] = Field(
        "beside", description="the entropy map: beside (open, at the image's side), folded (away, until a click) or none"
    )
    uncovered: str = Field(
        "ignore", min_length=1, description="what a pixel under no region is: ignore (nobody said), or the name of a class"
    )
    consensus: Literal["latest", "majority", "ground_truth"] = Field(
        "latest",
        description="which mask counts where several people drew: latest (changed last), majority (at each pixel) or "
        "ground_truth (the starred one, else the last)",
    )
    rubber_stamp_seconds: float = Field(
        5.0, ge=0, description="an unchanged mask on an uncertain image submitted faster than this is flagged; 0 = never"
    )
    batch_mb: float = Field(10.0, gt=0, description="largest import request")
    min_region_pixels: int = Field(4, ge=0, description="predicted specks smaller than this are merged before pushing")
    timeout: float = Field(60.0, gt=0, description="seconds per request")
    doubt_seconds: float = Field(
        30.0, ge=0, description="a request whose end is unknown is looked for this long before its tasks are sent again"
    )
    webhook_url: str | None = Field(
        None, description="address of `activeseg serve` as Label Studio reaches it, for hints to pull at once; unset = none"
    )
    webhook_secret: SecretStr | None = Field(None, description="only by ACTIVESEG_LABELSTUDIO__WEBHOOK_SECRET")
    webhook_secret_file: Path | None = Field(
        None, description="file (mode 0600) with the secret Label Studio sends along; made on first use"
    )

    @field_validator("url", "webhook_url")
    @classmethod
    def _whole_address(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("expected an address that begins with http:// or https://")
        return value

    @field_validator("url", "webhook_url", "link")
    @classmethod
    def _nothing_secret_in_it(cls, value: str | None) -> str | None:
        if value is not None:
            refuse_user(
                value, "the token goes into token_file or ACTIVESEG_LABELSTUDIO__TOKEN, the webhook's secret into its own"
            )
        return value

    @model_validator(mode="after")
    def _images_can_be_found(self) -> LabelStudioSection:
        if self.images == "link" and "{path}" not in (self.link or ""):
            raise ValueError("images = 'link' needs link, an address with {path} in it")
        if self.images == "local-files" and self.local_root is None:
            raise ValueError("images = 'local-files' needs local_root")
        return self
