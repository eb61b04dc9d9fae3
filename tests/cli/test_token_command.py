from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.cli.commands import CommandLine


def test_a_token_is_shown_once_and_listed_without_what_opens(empty: CommandLine) -> None:
    made = empty("token", "create", "ann", "--scope", "operate", "--expires", "90d")
    assert made.code == 0
    text = made.out.strip()
    assert text.startswith("activeseg_")
    assert "ann may read and operate until" in made.err
    [row] = empty("token", "list", "--json").data
    assert (row["name"], row["state"], row["scopes"]) == ("ann", "valid", "read operate")
    lasting = datetime.fromisoformat(row["expires_at"]) - datetime.fromisoformat(row["created_at"])
    assert abs(lasting - timedelta(days=90)) < timedelta(minutes=10)
    assert text not in empty("token", "list").out
    assert "opens nothing" in empty("token", "revoke", "ann").out
    assert empty("token", "list", "--json").data[0]["state"] == "revoked"


def test_a_token_may_only_read_unless_it_is_told(empty: CommandLine) -> None:
    made = empty("token", "create", "prometheus", "--json").data
    assert (made["scopes"], made["expires_at"]) == (["read"], None)


@pytest.mark.parametrize(
    "words", [("--expires", "90"), ("--expires", "soon"), ("--expires", "-1d"), ("--expires", "9" * 40 + "d")]
)
def test_an_end_that_is_no_duration_is_one_line(empty: CommandLine, words: tuple[str, str]) -> None:
    assert "such as 90d" in empty("token", "create", "ann", *words).error


def test_one_made_by_a_person_lets_the_server_listen_elsewhere(empty: CommandLine, tmp_path: Path) -> None:
    refused = empty("serve", "--host", "203.0.113.9", "--port", "0")
    assert "refusing to listen" in refused.error
    assert "activeseg token create" in refused.error
    empty("token", "create", "ann")
    # An address of no machine here: it is tried now.
    assert "cannot listen on 203.0.113.9" in empty("serve", "--host", "203.0.113.9", "--port", "0").error
