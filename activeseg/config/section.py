"""What every section shares: it is frozen, an unknown key is an error, an empty text unsets what may be unset."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0)]
Pixels = Annotated[int, Field(gt=0)]
# A variable holds text, and pydantic takes no text for a Literal of numbers.
Stride = Annotated[Literal[4, 8, 16, 32], BeforeValidator(lambda value: int(value) if str(value).isdigit() else value)]


_HOST = re.compile(r"(\[[^\]@]*\]|[^:@]*)(:\d*)?")


def refuse_user(address: str, instead: str) -> None:
    """Raise ValueError where an address holds a user or password: rows, pages and tasks show it as it is.

    instead: where what lets in belongs.
    """
    scheme, found, rest = address.partition("://")
    # A password may hold signs that nobody wrote as %..: what stands before the first slash is no host and port then.
    plain = _HOST.fullmatch(re.split(r"[/?#]", rest, maxsplit=1)[0])
    if found and scheme != "file" and "@" in rest and not plain:
        raise ValueError(f"expected an address without a user or password in it, because others see it: {instead}")


class Section(BaseModel):
    """One table of the TOML file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_unset(cls, data: Any) -> Any:
        # TOML has no null, nor have environment variables: an empty text unsets a key that may be unset.
        if not isinstance(data, dict):
            return data
        unset = {key for key, field in cls.model_fields.items() if _may_be_unset(field) and data.get(key) == ""}
        return {key: None if key in unset else value for key, value in data.items()}


def _may_be_unset(field: FieldInfo) -> bool:
    return type(None) in get_args(field.annotation)
