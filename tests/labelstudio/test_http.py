"""Faults between this program and Label Studio, staged at the transport."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from activeseg.core.labels import LabelSet
from activeseg.errors import (
    LabelSetMismatch,
    LabelStudioDoubt,
    LabelStudioError,
    LabelStudioRefused,
    LabelStudioUnauthorized,
    LabelStudioUnreachable,
)
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.http import token_kind
from activeseg.labelstudio.labeling import MaskKind, labeling_config

URL = "http://127.0.0.1:9"
LABELS = LabelSet(("sky", "road"), ((1, 2, 3), (4, 5, 6)))
Answer = httpx.Response | Exception


def jwt(**claims: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJIUzI1NiJ9.{body}.c2VjcmV0LXNpZ25hdHVyZQ"


PERSONAL = jwt(token_type="refresh", exp=9_999_999_999)
LEGACY = "0123456789abcdef0123456789abcdef01234567"


class Server:
    """Answers from a script; everything but token renewal is recorded in `calls`. refresh: first answers to renewals."""

    def __init__(self, script: Callable[[httpx.Request], Answer]) -> None:
        self.script = script
        self.calls: list[httpx.Request] = []
        self.renewals = 0
        self.refresh: list[Answer] = []

    def handle(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/token/refresh/":
            self.renewals += 1
            if self.refresh:
                return self._answered(self.refresh.pop(0))
            return httpx.Response(200, json={"access": jwt(token_type="access", exp=9_999_999_999, n=self.renewals)})
        self.calls.append(request)
        return self._answered(self.script(request))

    def _answered(self, answer: Answer) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, token: str = PERSONAL, retries: int = 2) -> LabelStudioClient:
        return LabelStudioClient(URL, token, retry_delays=(0.0,) * retries, transport=httpx.MockTransport(self.handle))


def config_of(*names: str, kind: MaskKind = "brush") -> str:
    return labeling_config(LabelSet(names, LABELS.colors), mask_kind=kind)


def projects_page(request: httpx.Request, projects: list[dict[str, object]], size: int = 100) -> httpx.Response:
    """As Label Studio answers, with pages of at most `size`: past the last one, 404 (and a traceback in its log)."""
    number = int(request.url.params.get("page", "1"))
    start, end = (number - 1) * size, number * size
    if number > 1 and start >= len(projects):
        return httpx.Response(404, json={"detail": "Invalid page."})
    further = f"{URL}/api/projects/?page={number + 1}" if end < len(projects) else None
    return httpx.Response(200, json={"count": len(projects), "next": further, "previous": None, "results": projects[start:end]})


LOST = [
    httpx.ReadTimeout("slow"),
    httpx.RemoteProtocolError("cut"),
    httpx.ReadError("cut"),
    httpx.WriteError("cut"),
    httpx.Response(500),
    httpx.Response(502, text="<html>bad gateway</html>"),
    httpx.Response(504),
    httpx.Response(408),
]
# After a success: something was made, and nobody can read what.
UNREADABLE = [
    httpx.Response(200, text="<html>"),
    httpx.Response(200),
    httpx.Response(201, json=[]),
    httpx.Response(201, json={"task_ids": None}),
    httpx.Response(201, json={"task_ids": ["x"]}),
    httpx.Response(201, json={"task_ids": 1}),
    httpx.DecodingError("bad gzip"),
]


@pytest.mark.parametrize("answer", [*LOST, *UNREADABLE], ids=repr)
def test_a_lost_answer_to_creating_tasks_is_a_doubt_and_nothing_is_sent_again(answer):
    server = Server(lambda _: answer)
    with pytest.raises(LabelStudioDoubt, match="may or may not"):
        server.client().import_tasks(1, [{"data": {}}])
    assert len(server.calls) == 1


@pytest.mark.parametrize("answer", [httpx.ConnectError("refused"), httpx.ConnectTimeout("slow")], ids=repr)
def test_a_request_that_never_left_is_no_doubt(answer):
    server = Server(lambda _: answer)
    with pytest.raises(LabelStudioUnreachable, match="is it running"):
        server.client().import_tasks(1, [{"data": {}}])
    assert len(server.calls) == 1


def test_a_refused_request_is_no_doubt():
    server = Server(lambda _: httpx.Response(400, json={"detail": "bad", "validation_errors": {"data": ["no image"]}}))
    with pytest.raises(LabelStudioRefused, match=r"HTTP 400: .*no image"):
        server.client().import_tasks(1, [{"data": {}}])


def test_fewer_task_numbers_than_tasks_is_a_doubt():
    server = Server(lambda _: httpx.Response(201, json={"task_ids": [1]}))
    with pytest.raises(LabelStudioDoubt, match="1 task ids for 2"):
        server.client().import_tasks(1, [{"data": {}}, {"data": {}}])


@pytest.mark.slow
@pytest.mark.parametrize("answer", [a for a in LOST if not isinstance(a, httpx.Response) or a.status_code == 504], ids=repr)
def test_making_a_project_is_never_repeated_by_the_sdk_either(answer):
    def script(request: httpx.Request) -> Answer:
        if request.method == "POST":
            return answer
        return projects_page(request, [])

    server = Server(script)
    with pytest.raises(LabelStudioDoubt, match="may or may not"):
        server.client().ensure_project("title", LABELS, "brush")
    assert [call.method for call in server.calls].count("POST") == 1


class Hasty(BaseHTTPRequestHandler):
    """A server that keeps connections, and ends an idle one just when a POST goes out on it: nothing of it is carried out."""

    protocol_version = "HTTP/1.1"
    used = False

    def do_GET(self) -> None:
        project = {"id": 4, "title": "ours", "label_config": config_of("sky", "road"), "created_at": "2026-01-02T03:04:05Z"}
        page = {"count": 0, "next": None, "previous": None, "results": []}
        files = [{"id": 5, "file": "a.png"}]
        ends = {"/file-uploads": files, "/projects/": page, "/projects/4/": project, "/tasks/": {"tasks": [], "total": 0}}
        self._answer(next((body for end, body in ends.items() if self.path.split("?")[0].endswith(end)), {}))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.used:
            self.close_connection = True
        else:
            self._answer({"id": 4, "title": "ours", "task_ids": [5], "file_upload_ids": [5], "access": "new"})

    def _answer(self, body: Any) -> None:
        data = json.dumps(body).encode()
        self.used = True
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hasty() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hasty) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


CREATING: list[Callable[[LabelStudioClient], object]] = [
    lambda client: client.import_tasks(4, [{"data": {}}]),
    lambda client: client.upload_files(4, [("a.png", b"x")]),
    lambda client: client.ensure_project("ours", LABELS, "brush"),
    lambda client: client.delete_tasks(4, [5]),
]


@pytest.mark.slow
@pytest.mark.parametrize("token", [PERSONAL, LEGACY], ids=["personal", "legacy"])
@pytest.mark.parametrize("create", CREATING, ids=["tasks", "files", "project", "removal"])
def test_an_idle_connection_that_ends_as_a_creating_call_goes_out_makes_no_doubt(create, hasty, token):
    with LabelStudioClient(hasty, token, retry_delays=()) as client:
        client.task_ids(4)
        create(client)
        client.task_ids(4)
        create(client)


def test_all_projects_are_found_and_no_page_is_asked_for_behind_the_last():
    projects = [{"id": n, "title": "other", "created_at": "2026-01-02T03:04:05Z"} for n in range(1, 8)]
    server = Server(lambda request: projects_page(request, projects, size=3))
    assert sorted(server.client().project_births()) == list(range(1, 8))
    pages = [call.url.params["page"] for call in server.calls if call.url.path == "/api/projects/"]
    assert pages == ["1", "2", "3"]


class Tasks:
    """Answers listings of a project's tasks: number -> when it changed. Pages have at most `size` tasks."""

    def __init__(self, changed: dict[int, datetime], size: int = 1000) -> None:
        self.changed, self.size = changed, size
        self.listed: list[int] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        query = json.loads(request.url.params["query"])
        found = [one for one in self.changed.items() if all(self._fits(rule, *one) for rule in query["filters"]["items"])]
        found.sort(key=(lambda one: one[0]) if query["ordering"] == ["tasks:id"] else (lambda one: one[1]))
        page = found[: min(self.size, int(request.url.params["page_size"]))]
        self.listed.append(len(page))
        tasks = [{"id": number, "updated_at": moment.isoformat()} for number, moment in page]
        return httpx.Response(200, json={"total": len(found), "tasks": tasks})

    def _fits(self, rule: dict[str, Any], number: int, moment: datetime) -> bool:
        value, kind = rule["value"], rule["operator"]
        if rule["filter"] == "filter:tasks:updated_at":
            since = datetime.fromisoformat(value)
            return moment > since if kind == "greater" else moment == since
        if kind == "greater":
            return number > value
        return (value["min"] <= number <= value["max"]) == (kind == "in")


NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "gone", [[], [250], [100, 499], [600], list(range(100, 500))], ids=["none", "one", "ends", "short", "run"]
)
def test_of_numbers_that_are_expected_only_those_are_listed_that_a_count_misses(gone):
    expected = [*range(100, 500), *range(600, 650), *range(1000, 2000)]
    there = sorted({*expected, 5, 550, 3000} - set(gone))
    tasks = Tasks(dict.fromkeys(there, NOON))
    assert Server(tasks).client().task_ids(1, expected=expected) == there
    runs = 400 if {100, 250} & set(gone) and len(gone) < 400 else 0
    assert sum(tasks.listed) <= 53 + runs + 2, "one task shown for each count"
    assert Server(tasks).client().task_ids(1) == there


@pytest.mark.slow
def test_many_short_runs_of_expected_numbers_make_no_long_address():
    expected = [number for number in range(30_000) if number % 300 > 150]
    server = Server(Tasks(dict.fromkeys(expected, NOON)))
    assert server.client().task_ids(1, expected=expected) == expected
    assert max(len(str(call.url)) for call in server.calls) < 8000


@pytest.mark.parametrize("size", [1, 3, 4, 1000])
@pytest.mark.parametrize("together", [1, 2, 5, 12])
def test_changed_tasks_come_once_each_and_in_order_whatever_the_pages_and_however_many_changed_together(size, together):
    changed = {number: NOON + timedelta(seconds=number // together) for number in range(1, 13)}
    tasks = Tasks(changed, size)
    found = [(stamp.id, stamp.updated_at) for stamp in Server(tasks).client().changed_tasks(1, None)]
    assert sorted(found) == sorted(changed.items())
    assert [moment for _, moment in found] == sorted(changed.values())


def test_a_task_that_changes_while_its_page_is_worked_on_comes_again():
    changed = {number: NOON + timedelta(seconds=number) for number in range(1, 7)}
    stamps = Server(Tasks(changed, 3)).client().changed_tasks(1, None)
    first = next(stamps)
    changed[first.id] = NOON + timedelta(seconds=99)
    assert [stamp.id for stamp in stamps] == [2, 3, 4, 5, 6, 1]


@pytest.mark.parametrize(
    "fault", [httpx.ReadTimeout("slow"), httpx.ConnectError("refused"), httpx.Response(503), httpx.Response(429)], ids=repr
)
def test_reading_is_repeated_a_little(fault):
    answers = [fault, fault, httpx.Response(200, json={"tasks": []})]
    server = Server(lambda _: answers.pop(0))
    assert server.client().task_ids(1) == []
    assert len(server.calls) == 3


def test_reading_gives_up_with_the_remedy():
    server = Server(lambda _: httpx.ConnectError("refused"))
    with pytest.raises(LabelStudioUnreachable, match=r"127\.0\.0\.1:9 \(ConnectError\): is it running"):
        server.client().task_ids(1)
    assert len(server.calls) == 3


def test_renewing_the_access_token_is_repeated_a_little_too():
    server = Server(lambda _: httpx.Response(201, json={"task_ids": [5]}))
    server.refresh = [httpx.ReadError("cut"), httpx.Response(502)]
    assert server.client().import_tasks(1, [{"data": {}}]) == [5]
    assert server.renewals == 3


SHAPES = [None, [], {}, "text", 7, [7], {"tasks": 7}, {"tasks": [7]}, {"tasks": [{}], "total": 1}, {"tasks": [{"id": 1}]}]
READING = [
    lambda client: client.version(),
    lambda client: client.task_ids(1),
    lambda client: list(client.changed_tasks(1, None)),
    lambda client: list(client.keyed_tasks(1)),
    lambda client: client.export_tasks(1, [1]),
    lambda client: client.upload_files(1, [("a.png", b"x")]),
    lambda client: client.ensure_tab(1, "tab", []),
    lambda client: client.replace_predictions(1, "m", [{"task": 1}]),
    lambda client: client.project_births(),
    lambda client: client.get_project(1),
]


@pytest.mark.parametrize("token", [PERSONAL, LEGACY], ids=["personal", "legacy"])
@pytest.mark.parametrize("shape", SHAPES, ids=repr)
@pytest.mark.parametrize("read", READING)
def test_an_answer_of_another_shape_is_no_bug(read, shape, token):
    server = Server(lambda _: httpx.Response(200, json=shape))
    if token == PERSONAL:
        server.refresh = [httpx.Response(200, json=shape)]
    # Whatever is raised besides fails the test; an answer that happens to fit is none of its business.
    with contextlib.suppress(LabelStudioError):
        read(server.client(token, retries=0))


def test_an_answer_that_cannot_be_unpacked_is_one_line():
    server = Server(lambda _: httpx.Response(200, headers={"Content-Encoding": "gzip"}, content=b"no gzip"))
    with pytest.raises(LabelStudioError, match="DecodingError"):
        server.client(retries=0).task_ids(1)


def test_tasks_that_are_counted_and_not_shown_are_no_empty_project():
    answers = [{"tasks": [{"id": 1}], "total": 2}, {"tasks": [], "total": 1}]
    server = Server(lambda _: httpx.Response(200, json=answers.pop(0)))
    with pytest.raises(LabelStudioError, match="counts 1 tasks in project 7 and shows none"):
        server.client().task_ids(7)


@pytest.mark.parametrize("answer", LOST, ids=repr)
def test_a_removal_is_sent_once_whatever_becomes_of_its_answer(answer):
    server = Server(lambda _: answer)
    with pytest.raises(LabelStudioDoubt, match="may or may not"):
        server.client().delete_tasks(1, [5])
    assert len(server.calls) == 1


def test_an_access_token_that_ran_out_is_renewed_once_and_the_call_sent_again():
    answers = [httpx.Response(401, json={"detail": "expired"}), httpx.Response(201, json={"task_ids": [5]})]
    server = Server(lambda _: answers.pop(0))
    assert server.client().import_tasks(1, [{"data": {}}]) == [5]
    used = [call.headers["authorization"] for call in server.calls]
    assert server.renewals == 2
    assert used[0] != used[1]


def test_one_access_token_serves_many_calls():
    server = Server(lambda _: httpx.Response(200, json={"tasks": []}))
    client = server.client()
    for _ in range(5):
        client.task_ids(1)
    assert server.renewals == 1


def test_a_legacy_token_is_sent_as_it_is_and_its_refusal_names_the_remedy():
    server = Server(lambda _: httpx.Response(401, json={"detail": "legacy token authentication has been disabled"}))
    with pytest.raises(LabelStudioUnauthorized, match="off by default: use a Personal Access Token"):
        server.client(LEGACY).task_ids(1)
    assert server.calls[0].headers["authorization"] == f"Token {LEGACY}"
    assert (len(server.calls), server.renewals) == (1, 0)


@pytest.mark.parametrize(
    ("token", "kind"),
    [(PERSONAL, "personal"), (LEGACY, "legacy"), (jwt(token_type="access"), "legacy"), ("a.b.c", "legacy"), ("", "legacy")],
)
def test_the_kind_of_a_token_is_seen_in_it(token, kind):
    assert token_kind(token) == kind


@pytest.mark.parametrize("token", [PERSONAL, LEGACY])
@pytest.mark.parametrize(
    "answer", [httpx.Response(401, json={"detail": "no"}), httpx.ReadError("x"), httpx.Response(200, text="<p>")]
)
def test_the_token_is_never_in_errors_or_repr(token, answer):
    client = Server(lambda _: answer).client(token, retries=0)
    with pytest.raises(LabelStudioError) as caught:
        client.task_ids(1)
    chain = [caught.value, caught.value.__cause__, caught.value.__context__]
    for text in (repr(client), repr(client._http), *map(str, chain), *map(repr, chain)):
        assert token not in text
        assert token.split(".")[-1] not in text


def test_something_that_is_no_label_studio_is_named():
    with pytest.raises(LabelStudioError, match="is it a Label Studio"):
        Server(lambda _: httpx.Response(200, text="<html>hello</html>")).client().task_ids(1)


def test_predictions_dropped_without_a_word_are_noticed():
    def script(request: httpx.Request) -> Answer:
        return httpx.Response(200, json={"created": 1} if "import" in request.url.path else {})

    with pytest.raises(LabelStudioError, match="kept 1 of 2 predictions"):
        Server(script).client().replace_predictions(1, "m2", [{"task": 1}, {"task": 2}])


def test_an_empty_selection_is_never_sent_because_it_would_mean_everything():
    server = Server(lambda _: httpx.Response(200, json={}))
    server.client().delete_tasks(1, [])
    assert server.calls == []


@pytest.mark.parametrize(
    ("config", "error", "reason"),
    [
        (config_of("sky", "sea"), LabelSetMismatch, "sky, sea; expected sky, road"),
        (config_of("road", "sky"), LabelSetMismatch, "road, sky"),
        (config_of("sky", "road", kind="bitmask"), LabelStudioError, "mask_kind = 'bitmask'"),
        ("<View/>", LabelStudioError, "no BrushLabels or BitmaskLabels"),
    ],
)
def test_a_project_of_this_title_with_another_screen_is_refused(config, error, reason):
    project = {"id": 4, "title": "ours", "label_config": config, "created_at": "2026-01-02T03:04:05Z"}

    def script(request: httpx.Request) -> Answer:
        if request.url.path == "/api/projects/":
            return projects_page(request, [project])
        return httpx.Response(200, json=project)

    with pytest.raises(error, match=reason):
        Server(script).client().ensure_project("ours", LABELS, "brush")


def test_uploads_are_cut_before_the_server_finds_them_too_large(monkeypatch):
    monkeypatch.setattr("activeseg.labelstudio.client._UPLOAD_BYTES", 10)
    stored: list[str] = []

    def script(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json=[{"id": n, "file": stored[n]} for n in json.loads(request.url.params["ids"])])
        names = re.findall(rb'filename="([^"]+)"', request.read())
        stored.extend(name.decode() for name in names)
        return httpx.Response(201, json={"file_upload_ids": list(range(len(stored) - len(names), len(stored)))})

    server = Server(script)
    files = [("a.png", bytes(4)), ("b.png", bytes(6)), ("c.png", bytes(1)), ("d.png", bytes(40)), ("e.png", b"")]
    assert server.client().upload_files(1, files) == [f"/data/{name}" for name, _ in files]
    posted = [re.findall(rb'filename="(.)', call.read()) for call in server.calls if call.method == "POST"]
    assert posted == [[b"a", b"b"], [b"c"], [b"d"], [b"e"]]
