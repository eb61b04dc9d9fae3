"""People of a private Label Studio: sign in, sign up and personal access tokens, by the pages a browser would use."""

from __future__ import annotations

from typing import Self

import httpx

from activeseg.errors import LabelStudioError, LabelStudioUnauthorized, LabelStudioUnreachable

_LOGIN, _SIGNUP, _TOKENS = "/user/login/", "/user/signup/", "/api/token/"


class Session:
    """A signed-in browser session, without the browser. Close it, or use it as a context manager."""

    def __init__(self, url: str, *, timeout: float = 60.0) -> None:
        self._http = httpx.Client(base_url=url, timeout=timeout, follow_redirects=False, trust_env=False)
        self._url = url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def sign_in(self, email: str, password: str) -> bool:
        """Sign in; False where Label Studio does not know this pair."""
        return self._submit(_LOGIN, {"email": email, "password": password}).is_redirect

    def sign_up(self, email: str, password: str, *, invitation: str) -> None:
        """Make an account in the organisation that gave the invitation. Raises LabelStudioError where it is refused."""
        answer = self._submit(f"{_SIGNUP}?token={invitation}", {"email": email, "password": password})
        if not answer.is_redirect:
            raise LabelStudioError(f"Label Studio refused to make an account for {email} (HTTP {answer.status_code})")

    def invitation(self) -> str:
        """The token that lets a second person join this session's organisation."""
        return str(self._call("GET", "/api/invite").json()["token"])

    def personal_token(self) -> str:
        """A new personal access token. Label Studio shows a token once and allows one each, so a lost one is revoked."""
        for known in self._call("GET", _TOKENS).json():
            self._call("POST", _TOKENS + "blacklist/", json={"refresh": known["token"]})
        return str(self._call("POST", _TOKENS).json()["token"])

    def _submit(self, page: str, form: dict[str, str]) -> httpx.Response:
        self._request("GET", page)
        form = form | {"csrfmiddlewaretoken": self._http.cookies["csrftoken"]}
        return self._request("POST", page, data=form, headers={"Referer": self._url + page})

    def _call(self, method: str, path: str, *, json: object = None) -> httpx.Response:
        headers = {"X-CSRFToken": self._http.cookies.get("csrftoken") or "", "Referer": self._url + "/"}
        answer = self._request(method, path, json=json, headers=headers)
        if answer.status_code in (401, 403):
            raise LabelStudioUnauthorized(f"Label Studio refused {method} {path} (HTTP {answer.status_code}): sign in first")
        if answer.is_error:
            raise LabelStudioError(f"Label Studio answered {method} {path} with HTTP {answer.status_code}")
        return answer

    def _request(
        self,
        method: str,
        path: str,
        *,
        data: dict[str, str] | None = None,
        json: object = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        try:
            return self._http.request(method, path, data=data, json=json, headers=headers)
        except httpx.TransportError as error:
            raise LabelStudioUnreachable(f"no answer from Label Studio at {self._url} ({type(error).__name__})") from error
