"""The benchmarks of the nightly pass still run, and say of each measure what it is held against."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"

SMALL = {
    "bench_scoring.py": "--architecture lraspp_mobilenet_v3_large --images 2 --turns 1 --documents 1 --batch 2"
    " --short-side 64 --compile never --pools 4 8",
    "bench_reduction.py": "--repeats 1 --network fcn_mobilenet_v2",
    "bench_database.py": "--only sqlite --rows 2000 --images 15000",
}

AIMS = {
    "bench_scoring.py": {"score / bare eager": 0.9, "score / documents": 5.5, "first batch": 1.0, "peak memory": 1.05},
    "bench_reduction.py": {"reduction, 21 x 640 x 960": 10.0, "forward": 0.03, "bytes": 1000},
    "bench_database.py": {"bulk / Core insert()": 1.0, "view, first page, p99": 1.0, "view, any page, p99": 1.0},
}


@pytest.mark.slow
@pytest.mark.parametrize(("script", "words"), SMALL.items())
def test_measures_have_a_ratio_and_those_with_an_aim_say_it(script: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "measures.json"
    # As make does: without its bytecode torch takes several times as long to import.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, str(SCRIPTS / script), *words.split(), "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)

    assert done.returncode == 0, done.stderr
    measures = json.loads(file.read_text())["measures"]
    assert all(measure["ratio"] > 0 for measure in measures)
    aimed_at = {measure["name"]: measure["reach"] for measure in measures if measure["reach"] is not None}
    for name, reach in AIMS[script].items():
        assert [found for measured, found in aimed_at.items() if name in measured][:1] == [reach], aimed_at
