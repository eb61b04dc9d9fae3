"""Settings: frozen, nested, built once from `activeseg.toml` and ACTIVESEG_* variables, then passed down.

Environment beats file: `ACTIVESEG_LABELSTUDIO__URL` sets `[labelstudio] url`. An unknown key is an error. Relative paths
are taken from the folder of the TOML file. Secrets come from the environment or from files, never from the TOML file.
"""

from activeseg.config.masking import masked, remember_secret
from activeseg.config.operations import (
    AlertsSection,
    DriftSection,
    HousekeepingSection,
    LogSection,
    MlBackendSection,
    ScheduleSection,
    ServeSection,
)
from activeseg.config.secrets import OwnSecret, own_secret, read_secret, write_secret
from activeseg.config.section import Section
from activeseg.config.sections import LabelStudioSection, ModelSection, PromotionSection, TrainingSection
from activeseg.config.settings import CONFIG_FILE, ENV_PREFIX, SECRETS, Settings, load_settings
from activeseg.config.template import commented_toml, toml_value

__all__ = [
    "CONFIG_FILE",
    "ENV_PREFIX",
    "SECRETS",
    "AlertsSection",
    "DriftSection",
    "HousekeepingSection",
    "LabelStudioSection",
    "LogSection",
    "MlBackendSection",
    "ModelSection",
    "OwnSecret",
    "PromotionSection",
    "ScheduleSection",
    "Section",
    "ServeSection",
    "Settings",
    "TrainingSection",
    "commented_toml",
    "load_settings",
    "masked",
    "own_secret",
    "read_secret",
    "remember_secret",
    "toml_value",
    "write_secret",
]
