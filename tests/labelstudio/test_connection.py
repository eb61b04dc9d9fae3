"""What `ls connect` made goes again, and where it does not, that is told beside what went wrong first."""

from __future__ import annotations

import httpx

from activeseg.errors import LabelStudioUnreachable
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.connection import TEST_KEY, Undo, _clean_up


def test_a_clean_up_that_fails_is_a_line_of_its_own_and_stops_no_other() -> None:
    done: list[str] = []

    def fails() -> None:
        raise LabelStudioUnreachable("no answer")

    def unlike() -> None:
        raise KeyError("model_version")

    client = LabelStudioClient("http://127.0.0.1:9", "x", transport=httpx.MockTransport(lambda _: httpx.Response(500)))
    undo: list[Undo] = [("a file", lambda: done.append("a file")), ("the task", fails), ("the version", unlike)]
    check = _clean_up(client, undo)
    assert check is not None
    assert (check.name, check.ok, done) == ("clean-up", False, ["a file"])
    for part in ("the task: no answer", "the version: ", TEST_KEY):
        assert part in check.message
    assert _clean_up(client, undo[:1]) is None
