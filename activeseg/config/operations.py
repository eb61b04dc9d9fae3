"""The sections of `activeseg.toml` about running it: every key with its default and what it means."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

from pydantic import Field, SecretStr, field_validator, model_validator

from activeseg.config.section import Section, Share


def time_zone(name: str) -> ZoneInfo:
    """The zone of this IANA name. Raises ValueError where there is none."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"unknown time zone {name!r}; use an IANA name such as Europe/Berlin") from error


class ScheduleSection(Section):
    """Cron strings: minute hour day month weekday, and the job's own time zone if it has one (`0 2 * * * Asia/Tokyo`)."""

    timezone: str = Field("UTC", description="IANA name; that of all jobs whose cron string names no other")
    round: str = Field("0 2 * * *", description="nightly: sync, pull, train if due, score, push")
    pull: str = Field("*/10 * * * *", description="collect annotations; train when enough came in")
    sync: str | None = Field(None, description="look for new images between the nights; unset = only with `round`")
    score: str | None = Field(None, description="score what is new between the nights; unset = only with `round`")
    push: str | None = Field(None, description="send begun rounds between the nights; unset = only with `round`")
    train: str | None = Field(None, description="train if due and promote; unset = only with `round` and `pull`")
    promote: str | None = Field(
        None, description="the only time new checkpoints are judged, such as '0 8 * * *'; unset = right after a training"
    )
    report: str | None = Field(None, description="send the morning report as an alert, such as '0 7 * * *'; unset = never")
    gc: str | None = Field(None, description="remove what [housekeeping] does not keep, such as '0 5 * * 0'; unset = never")
    catch_up_hours: float = Field(
        6.0, gt=0, le=24, description="a planned time missed by an outage is made up within this, and no later"
    )

    @field_validator("timezone")
    @classmethod
    def _known_timezone(cls, value: str) -> str:
        time_zone(value)
        return value


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class AlertsSection(Section):
    """Who is told when a night went wrong. Nothing is sent unless a webhook or an address is set."""

    webhook_url: str | None = Field(None, description="address that gets each alert as a JSON document by POST; unset = none")
    webhook_secret: SecretStr | None = Field(None, description="only by ACTIVESEG_ALERTS__WEBHOOK_SECRET")
    webhook_secret_file: Path | None = Field(
        None, description="file (mode 0600) with the key alerts are signed with (HMAC-SHA256); unset = not signed"
    )
    email_to: tuple[str, ...] = Field((), description="addresses that get each alert as a mail")
    email_from: str | None = Field(None, description="sender of the mails")
    smtp_host: str | None = Field(None, description="server that takes the mails")
    smtp_port: int = Field(587, gt=0, lt=65536, description="its port")
    smtp_security: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="starttls, tls (from the first byte) or none (on the loopback only)"
    )
    smtp_user: str | None = Field(None, description="to log in with; unset = no login")
    smtp_password: SecretStr | None = Field(None, description="only by ACTIVESEG_ALERTS__SMTP_PASSWORD")
    smtp_password_file: Path | None = Field(None, description="file (mode 0600) with the password")
    idle_days: float = Field(
        7.0, ge=0, description="alert when nobody annotated open tasks, or there was nothing to do, for this long; 0 = never"
    )
    repeat_hours: float = Field(
        20.0,
        gt=0,
        description="what goes on is not told again within this (20: a job that fails every night is told every night)",
    )

    @field_validator("webhook_url")
    @classmethod
    def _whole_address(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("expected an address that begins with http:// or https://")
        return value

    @model_validator(mode="after")
    def _mails_can_be_sent(self) -> AlertsSection:
        if self.email_to and not (self.smtp_host and self.email_from):
            raise ValueError("email_to needs smtp_host and email_from")
        if self.smtp_security == "none" and self.smtp_host is not None and not _is_loopback(self.smtp_host):
            raise ValueError("smtp_security none is for a server on this machine only; use starttls or tls")
        return self

    @field_validator("email_to", "email_from")
    @classmethod
    def _one_address_each(cls, value: tuple[str, ...] | str | None) -> tuple[str, ...] | str | None:
        for address in (value,) if isinstance(value, str) else value or ():
            # What a header cannot carry, or would take for two, never comes near one.
            if not re.fullmatch(r"[^\s@,;:<>()\[\]\"\\\x00-\x1f\x7f]+@[^\s@,;:<>()\[\]\"\\\x00-\x1f\x7f]+", address):
                raise ValueError("expected plain addresses such as ada@example.org, each by itself")
        return value


class DriftSection(Section):
    """When the pool is no longer what it was, as the scoring pass sees it."""

    max_shift: float = Field(
        0.25,
        gt=0,
        description="largest population stability index of an image's mean entropy between what a run scores anew and what "
        "the same checkpoint scored before",
    )
    max_quarantined: Share = Field(0.1, description="largest share of a run's images that cannot be read")
    min_images: int = Field(50, gt=0, description="with fewer images on either side nothing is judged")
    blocks: Literal["nothing", "push", "promotion", "both"] = Field(
        "nothing", description="what waits for a person when a limit is passed: nothing, push, promotion or both"
    )


class HousekeepingSection(Section):
    """What `activeseg gc` keeps, and how much room a stage must find."""

    keep_checkpoints: int = Field(
        5, ge=0, description="newest checkpoints kept besides the champion and those a rollback can go to"
    )
    keep_rollbacks: int = Field(3, ge=1, description="former champions kept, so that a rollback finds them")
    keep_days: float = Field(30.0, ge=0, description="nothing younger than this is removed")
    log_days: float = Field(30.0, gt=0, description="log files older than this are removed")
    # Longer than any [schedule] catch_up_hours: what may still be made up is never forgotten.
    keep_runs_days: float = Field(
        90.0,
        ge=2,
        description="records of runs, planned times and requests older than this are removed, with the runs' log files",
    )
    min_free_gb: float = Field(
        1.0, ge=0, description="a stage that writes files does not begin with less than this free on the artifacts' disk"
    )


class LogSection(Section):
    """What is written down while it runs."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="debug, info, warning or error")
    format: Literal["text", "json"] = Field("text", description="of what goes to standard error: text or json")
    dir: Path | None = Field(Path("logs"), description="folder with a file of JSON lines for each run of a job; '' = none")


class ServeSection(Section):
    """The HTTP API and its pages."""

    host: str = Field("127.0.0.1", description="loopback unless you know why not")
    port: int = Field(8090, gt=0, lt=65536, description="TCP port")
    token: SecretStr | None = Field(None, description="only by ACTIVESEG_SERVE__TOKEN")
    token_file: Path | None = Field(None, description="file (mode 0600) with the bearer token; made on first use")
    hosts: tuple[str, ...] = Field(
        (), description="names of this server in a browser's address line, besides the address it listens on"
    )
    requests_per_minute: int = Field(600, gt=0, description="of one caller; more are answered with 429")
    session_hours: float = Field(12.0, gt=0, le=720, description="a browser that logged in is asked again after this")


class MlBackendSection(Section):
    """Live predictions for Label Studio (`activeseg ml-backend`)."""

    host: str = Field("127.0.0.1", description="loopback unless you know why not")
    port: int = Field(9090, gt=0, lt=65536, description="TCP port")
    user: str = Field("label-studio", min_length=1, description="name Label Studio logs in with (HTTP Basic)")
    password: SecretStr | None = Field(None, description="only by ACTIVESEG_ML_BACKEND__PASSWORD")
    password_file: Path | None = Field(None, description="file (mode 0600) with its password; made on first use")
