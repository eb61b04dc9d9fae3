"""What a person at a terminal sees while a stage works."""

from __future__ import annotations

import pytest

from activeseg.cli.output import listening


def test_a_bar_says_what_the_pass_waits_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", "120"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    with listening() as listener:
        listener.of("score")(3, 10, "waits for decode 5%")
        listener.of("export")(1, 2)
    shown = capsys.readouterr().err
    assert "waits for decode 5%" in shown
    assert "export" in shown
