"""The tables of docs/label-efficiency.md are those of the committed report, and the report is of the committed units."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

STUDY = ROOT / "docs/label-efficiency"


def test_every_row_of_the_tables_stands_in_the_page(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts/study_figures.py", "--report", STUDY / "report.json", "--out", tmp_path]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    page = (ROOT / "docs/label-efficiency.md").read_text(encoding="utf-8")
    rows = [line for line in said.splitlines() if line.startswith("|")]
    assert len(rows) > 20
    assert [row for row in rows if row not in page] == []
    drawn = sorted(file.name for file in tmp_path.iterdir())
    assert drawn == sorted(file.name for file in STUDY.glob("curves-*.png"))


def test_the_report_is_of_the_units() -> None:
    report = json.loads((STUDY / "report.json").read_text(encoding="utf-8"))
    for name, found in report["strategies"].items():
        for number, item in enumerate(found["rounds"]):
            units = [json.loads((STUDY / f"units/{name}-s{seed}-r{number}.json").read_text()) for seed in found["seeds"]]
            assert item["by_seed"] == pytest.approx([unit["overall"]["mean_iou"] for unit in units], abs=1e-4)
            assert {len(unit["labelled"]) for unit in units} == {item["labels"]}
