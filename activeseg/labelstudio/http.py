"""HTTP to Label Studio: tokens, one-line errors, and which calls may be repeated.

Idempotent calls are repeated a little where the network or the server stumbles. A creating call is sent exactly once:
where its answer is lost, LabelStudioDoubt says so and the caller looks before calling again. It goes over a connection of
its own, so that the end of an idle one is never mistaken for a lost answer.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from activeseg.errors import (
    ActivesegError,
    LabelStudioDoubt,
    LabelStudioError,
    LabelStudioRefused,
    LabelStudioUnauthorized,
    LabelStudioUnreachable,
)
from activeseg.labelstudio import deadline

TokenKind = Literal["personal", "legacy"]
Params = Mapping[str, str | int | bool | Sequence[int]]
# An access token lives 300 s by the server's clock; it is renewed by ours, so clocks may differ.
_ACCESS_SECONDS = 240.0
# Nothing was sent, so nothing can have been created.
UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
DOWNLOAD_SECONDS = 300.0
"""For a whole file once its headers came: the timeout of a step begins anew with each part."""
_REFRESH = "/api/token/refresh/"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Http:
    """One Label Studio and one token. `repr` and errors never contain the token.

    retry_delays: seconds before each further attempt of an idempotent call.
    transport: for tests that stage a fault between this program and the server.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout: float = 60.0,
        retry_delays: Sequence[float] = (0.5, 1.5),
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.token_kind: TokenKind = token_kind(token)
        self._token = token
        self._access: str | None = None
        self._renewed_at = 0.0
        self._retry_delays = tuple(retry_delays)
        local = urlsplit(self.url).hostname in _LOOPBACK
        self.client = _Connections(
            base_url=self.url, timeout=timeout, transport=transport, trust_env=not local, auth=_Renewed(self)
        )

    def __repr__(self) -> str:
        return f"Http({self.url!r}, {self.token_kind} token)"

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def get(self, path: str, params: Params | None = None) -> Any:
        """JSON answer of a GET."""
        return self.repeatable("GET", path, params=params)

    def repeatable(self, method: str, path: str, *, params: Params | None = None, body: Any = None) -> Any:
        """JSON answer of a call that may be sent again without harm."""
        content = None if body is None else json_bytes(body)
        return self._json(self._patiently(lambda: self._send(method, path, params=params, content=content)))

    def _patiently(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        """The answer to what may be sent again; where none is any better, the last one."""
        for delay in (*self._retry_delays, None):
            try:
                answer = send()
            except httpx.RequestError as error:
                if delay is None:
                    raise self.unreachable(error) from error
            else:
                if delay is None or not (answer.status_code >= 500 or answer.status_code == 429):
                    return answer
            time.sleep(delay)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def create(self, path: str, body: Any, params: Params | None = None) -> Any:
        """JSON answer of a POST that must not be repeated blindly; sent once.

        body: what becomes JSON, or the bytes of it. Raises LabelStudioDoubt where it may have worked, LabelStudioUnreachable,
        LabelStudioRefused or LabelStudioUnauthorized where it surely did not.
        """
        self._renew()
        try:
            answer = self._send("POST", path, params=params, content=body if isinstance(body, bytes) else json_bytes(body))
        except UNSENT as error:
            raise self.unreachable(error) from error
        except httpx.RequestError as error:
            raise self.doubt(path, type(error).__name__) from error
        # 408: a gateway may have waited for the server, and not for us.
        if answer.status_code >= 500 or answer.status_code == 408:
            raise self.doubt(path, f"HTTP {answer.status_code}: {_detail(answer)}")
        if not answer.is_success:
            return self._json(answer)
        try:
            return self._json(answer)
        except LabelStudioError as error:
            raise self.doubt(path, "its answer is no JSON") from error

    def upload(self, path: str, files: Sequence[tuple[str, bytes]], params: Params | None = None) -> Any:
        """JSON answer of a multipart POST; sent once."""
        parts = [(f"file{number}", file) for number, file in enumerate(files)]
        try:
            return self._json(self._send("POST", path, params=params, files=parts))
        except httpx.RequestError as error:
            raise self.unreachable(error) from error

    def download(self, path: str, *, max_bytes: int) -> bytes:
        """The bytes of a file the server itself serves; no redirect is followed. Raises LabelStudioError for more bytes."""
        try:
            with self.client.stream("GET", path, headers={"Authorization": self._renew()}, follow_redirects=False) as answer:
                if answer.status_code != 200:
                    raise LabelStudioError(f"Label Studio at {self.url} answered GET {path} with HTTP {answer.status_code}")
                data = bytearray()
                until = time.monotonic() + DOWNLOAD_SECONDS
                for part in answer.iter_bytes():
                    data += part
                    if len(data) > max_bytes:
                        raise LabelStudioError(f"the file {path} of Label Studio has more than {max_bytes} bytes")
                    if time.monotonic() > until:
                        raise LabelStudioError(f"the file {path} of Label Studio takes more than {DOWNLOAD_SECONDS:g} s")
        except httpx.RequestError as error:
            raise self.unreachable(error) from error
        return bytes(data)

    def doubt(self, path: str, what: str) -> LabelStudioDoubt:
        """The error for a creating call whose answer was lost."""
        return LabelStudioDoubt(
            f"Label Studio at {self.url} may or may not have carried out POST {path} ({what}): "
            "look for what it would have created before sending it again"
        )

    def failed(self, status: int | None, detail: str, where: str) -> LabelStudioError:
        """The error for an answer that is not a success."""
        if status in (401, 403):
            remedy = "make a new one in Label Studio (Account & Settings > Personal Access Token)"
            if self.token_kind == "legacy":
                remedy = "legacy tokens are off by default: use a Personal Access Token (Account & Settings)"
            return LabelStudioUnauthorized(f"Label Studio at {self.url} refused the token (HTTP {status}: {detail}); {remedy}")
        refused = status is not None and 400 <= status < 500
        kind = LabelStudioRefused if refused else LabelStudioError
        return kind(f"Label Studio at {self.url} answered {where} with HTTP {status}: {detail}")

    @contextmanager
    def expecting(self, where: str) -> Iterator[None]:
        """What is read of an answer has another shape than a Label Studio's: LabelStudioError, and not KeyError or the like."""
        try:
            yield
        except ActivesegError:
            raise
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise LabelStudioError(
                f"{self.url} answered {where} with JSON of an unexpected shape ({what}): is it a Label Studio?"
            ) from error

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        content: bytes | None = None,
        files: Any = None,
    ) -> httpx.Response:
        headers = {"Content-Type": "application/json"} if content is not None else {}
        for _ in range(2):
            used = self._renew()
            answer = self.client.request(
                method, path, params=params, content=content, files=files, headers=headers | {"Authorization": used}, auth=None
            )
            if answer.status_code != 401 or self.token_kind == "legacy":
                break
            self._access = None  # refused before anything was done: renew it and send the request again
        return answer

    def renewed(self) -> str:
        """The Authorization header with an access token made just now: the last one was refused."""
        self._access = None
        return self._renew()

    def _renew(self) -> str:
        """The Authorization header, after renewing the access token where it is old."""
        if self.token_kind == "legacy":
            return f"Token {self._token}"
        if self._access is None or time.monotonic() - self._renewed_at > _ACCESS_SECONDS:
            body = {"refresh": self._token}
            answer = self._patiently(lambda: self.client.request("POST", _REFRESH, json=body, auth=None))
            made = self._json(answer)
            with self.expecting(f"POST {_REFRESH}"):
                self._access = str(made["access"])
            self._renewed_at = time.monotonic()
        return f"Bearer {self._access}"

    def _json(self, answer: httpx.Response) -> Any:
        where = f"{answer.request.method} {answer.request.url.path}"
        if not answer.is_success:
            raise self.failed(answer.status_code, _detail(answer), where)
        if answer.status_code == 204 or not answer.content:
            return None
        try:
            return answer.json()
        except (ValueError, RecursionError) as error:
            raise LabelStudioError(
                f"{self.url} answered {where} with something else than JSON: is it a Label Studio?"
            ) from error

    def unreachable(self, error: httpx.RequestError) -> LabelStudioUnreachable:
        """The error for no answer at all."""
        return LabelStudioUnreachable(
            f"no answer from Label Studio at {self.url} ({type(error).__name__}): is it running, and is the address right?"
        )


class _Connections(httpx.Client):
    """Keeps connections for reading; each POST, the SDK's too, gets a new one that ends with its answer.

    A server or gateway may end an idle connection at the very moment a request goes out on it. Nobody can tell that from an
    answer that was lost, so what must not be sent twice has no business there.

    timeout: seconds of each step; the whole of a request has its own limit (`labelstudio.deadline`).
    """

    def __init__(self, *, timeout: float, **options: Any) -> None:
        super().__init__(timeout=timeout, **options)
        self._unused = httpx.Client(timeout=timeout, **options, limits=httpx.Limits(max_keepalive_connections=0))
        self._step = timeout
        for client in (self, self._unused):
            deadline.watch(client)

    def send(self, request: httpx.Request, **how: Any) -> httpx.Response:
        """The answer to a request, as httpx gives it."""
        with deadline.within(self._step):
            return self._unused.send(request, **how) if request.method == "POST" else super().send(request, **how)

    def close(self) -> None:
        """Close all connections."""
        self._unused.close()
        super().close()


class _Renewed(httpx.Auth):
    """For calls of others on the same connections (the SDK, downloads): a token that is refused is renewed, and they go again.

    The SDK renews its access token by our clock alone: it would fail where the server's is ahead.
    """

    def __init__(self, http: Http) -> None:
        self._http = http

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        answer = yield request
        if answer.status_code == 401 and self._http.token_kind == "personal" and request.url.path != _REFRESH:
            request.headers["Authorization"] = self._http.renewed()
            yield request


def token_kind(token: str) -> TokenKind:
    """'personal' for a personal access token (a JWT that refreshes), 'legacy' for anything else."""
    parts = token.split(".")
    if len(parts) != 3:
        return "legacy"
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return "legacy"
    return "personal" if isinstance(claims, dict) and claims.get("token_type") == "refresh" else "legacy"


def json_bytes(body: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(body, separators=(",", ":")).encode()


def _detail(answer: httpx.Response) -> str:
    """What the server said, on one line of at most 300 characters."""
    try:
        body = answer.json()
    except (ValueError, RecursionError):
        return answer.reason_phrase or "no detail"
    if isinstance(body, dict):
        body = body.get("validation_errors") or body.get("detail") or body
    return " ".join(str(body).split())[:300]
