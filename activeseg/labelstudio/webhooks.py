"""The project's webhook: Label Studio's hint that annotations changed. A hint only, `pull` finds everything without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from activeseg.errors import LabelStudioDoubt, LabelStudioError, LabelStudioUnauthorized, LabelStudioUnreachable
from activeseg.hints import HOOK_PATH, SECRET_HEADER, hook_address
from activeseg.labelstudio.http import Http
from activeseg.labelstudio.install import SERVER_VERSION

ACTIONS = ("ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED")
"""A skip is an annotation created, too."""

_BLOCKED = "reserved network address"
_UNUSABLE = ("resolve hostname", "valid URL")
_NO_ACTION = "ACTIVESEG_LOOKS_WHETHER_IT_MAY"


@dataclass(frozen=True, slots=True)
class Webhook:
    """A hook as the server holds it. secret: what it sends in our header, None without one."""

    id: int
    url: str
    is_active: bool
    secret: SecretStr | None
    send_payload: bool
    actions: frozenset[str]

    @property
    def is_lean(self) -> bool:
        """Whether it tells of annotations only and sends no payload, which the annotator would wait for."""
        return not self.send_payload and self.actions == set(ACTIONS)

    def problem(self, url: str, secret: SecretStr) -> str | None:
        """What keeps it from giving hints to `activeseg serve` at `url`, in a few words; None where it is right."""
        if self.url != hook_address(url):
            return f"goes to {self.url}, not to {hook_address(url)}"
        if not self.is_active:
            return "is disabled"
        if self.secret is None:
            return f"sends no {SECRET_HEADER}"
        if self.secret.get_secret_value() != secret.get_secret_value():
            return "sends another secret than ours"
        missing = sorted(set(ACTIONS) - self.actions)
        return f"does not tell {', '.join(missing)}" if missing else None


def find_webhook(http: Http, project_id: int, url: str) -> Webhook | None:
    """The project's hook to `activeseg serve`, at `url` if there is one, else at another address; None without any."""
    found = [_webhook(item) for item in http.get("/api/webhooks/", {"project": project_id})]
    ours = [hook for hook in found if hook.secret is not None or hook.url.endswith(HOOK_PATH)]
    return min(ours, key=lambda hook: (hook.url != hook_address(url), hook.id), default=None)


def ensure_webhook(http: Http, project_id: int, url: str, secret: SecretStr) -> Webhook:
    """Make the project's hook, or mend the one it has: address, secret, active, annotations only, no payload.

    url: [labelstudio] webhook_url. secret: `settings.webhook_secret()`; everybody in the server's organisation can read it.

    Raises LabelStudioError with the remedy where the server refuses private addresses, LabelStudioDoubt where the answer
    to making it was lost (calling again finds it).
    """
    found = find_webhook(http, project_id, url)
    body = {
        "url": hook_address(url),
        "headers": {SECRET_HEADER: secret.get_secret_value()},
        "send_payload": False,
        "send_for_all_actions": False,
        "is_active": True,
        "actions": list(ACTIONS),
    }
    if found is not None and found.problem(url, secret) is None and found.is_lean:
        return found
    try:
        if found is None:
            return _webhook(http.create("/api/webhooks/", body | {"project": project_id}))
        # The whole body: a PATCH that leaves out the actions empties them.
        return _webhook(http.repeatable("PATCH", f"/api/webhooks/{found.id}/", body=body))
    except LabelStudioError as error:
        if (why := _refused(error, hook_address(url))) is not None:
            raise LabelStudioError(why) from error
        raise


def can_be_asked(http: Http) -> bool:
    """Whether the server can be asked if it would call an address: only of the tested version is it known to make nothing."""
    answer = http.get("/api/version")
    return isinstance(answer, Mapping) and answer.get("release") == SERVER_VERSION


def refusal(http: Http, url: str) -> str | None:
    """Why the server would not call this address, with the remedy; None where it would try, or cannot be asked.

    Nothing is made: what is sent, once, is no valid hook, for it names no project and an action that does not exist. Were
    one made all the same, it is deleted.
    """
    if not can_be_asked(http):
        return None
    address = hook_address(url)
    try:
        made = http.create("/api/webhooks/", {"url": address, "actions": [_NO_ACTION]})
    except LabelStudioError as error:
        why = _refused(error, address)
        if why is None and isinstance(error, LabelStudioUnreachable | LabelStudioUnauthorized | LabelStudioDoubt):
            raise
        return why
    if isinstance(made, Mapping) and isinstance(made.get("id"), int):
        http.repeatable("DELETE", f"/api/webhooks/{made['id']}/")
    return None


def _refused(error: LabelStudioError, address: str) -> str | None:
    """What an answer to a hook says about its address; None where it is about something else.

    A private address is HTTP 403 and a name that cannot be looked up HTTP 500, both before anything is made.
    """
    if _BLOCKED in str(error):
        return (
            f"Label Studio refuses to call {address}, a private address: start the server with "
            "SSRF_PROTECTION_ENABLED=false, or unset [labelstudio] webhook_url (pulling finds everything without it)"
        )
    if any(words in str(error) for words in _UNUSABLE):
        return (
            f"Label Studio cannot use the address {address}: set [labelstudio] webhook_url to one whose host the server "
            "can look up, written as a full name or a number"
        )
    return None


def _webhook(item: Mapping[str, Any]) -> Webhook:
    headers = {str(name).lower(): value for name, value in (item.get("headers") or {}).items()}
    secret = headers.get(SECRET_HEADER.lower())
    actions = {*ACTIONS, "all others"} if item.get("send_for_all_actions") else item.get("actions") or ()
    return Webhook(
        id=int(item["id"]),
        url=str(item["url"]),
        is_active=bool(item["is_active"]),
        secret=None if secret is None else SecretStr(str(secret)),
        send_payload=bool(item["send_payload"]),
        actions=frozenset(actions),
    )
