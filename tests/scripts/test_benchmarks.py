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


@pytest.mark.slow
@pytest.mark.parametrize(("script", "words"), SMALL.items())
def test_every_measure_has_a_ratio_and_what_it_is_to_reach(script: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "measures.json"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, str(SCRIPTS / script), *words.split(), "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)

    assert done.returncode == 0, done.stderr
    measures = json.loads(file.read_text())["measures"]
    assert measures
    for measure in measures:
        assert measure["ratio"] > 0
        assert "reach" in measure
        assert measure["name"]
