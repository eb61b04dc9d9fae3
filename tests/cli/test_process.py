from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.commands import PROGRAM, CommandLine

pytestmark = pytest.mark.slow

HEAVY = ("torch", "torchvision", "label_studio_sdk", "cv2", "matplotlib", "alembic")
SHOW_MODULES = """
import atexit, sys
atexit.register(lambda: print("\\n".join(sys.modules), file=sys.stderr))
from activeseg.cli import main
main()
"""


def modules(*arguments: str) -> set[str]:
    """Names of all modules loaded at the end of a call that succeeds."""
    done = subprocess.run([sys.executable, "-c", SHOW_MODULES, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines())


def test_help_loads_nothing_heavy_and_no_database() -> None:
    loaded = modules("--help")
    assert "activeseg.cli.rankings" in loaded
    assert loaded.isdisjoint({*HEAVY, "sqlalchemy", "numpy", "pydantic", "rich.table"})


def test_rankings_reads_the_database_and_loads_nothing_that_works_on_pixels(trained: CommandLine) -> None:
    loaded = modules("--config", str(trained.config), "rankings")
    assert "sqlalchemy" in loaded
    assert loaded.isdisjoint({*HEAVY, "numpy", "PIL"})


def test_a_known_error_is_one_line_and_status_1(empty: CommandLine) -> None:
    done = empty.process("rankings")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: there is no champion yet")
    assert done.stderr.count("\n") == 1


def pipe(command: CommandLine, reader: str, *arguments: str) -> tuple[list[str], str, str]:
    """Statuses of program and reader, what the reader printed, and standard error."""
    program = " ".join(f"'{word}'" for word in [*PROGRAM, "--config", str(command.config), *arguments])
    script = f"{program} | {reader}; echo ${{PIPESTATUS[@]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120)
    *lines, statuses = done.stdout.splitlines()
    return statuses.split(), "\n".join(lines), done.stderr


@pytest.mark.parametrize("form", [[], ["--csv"], ["--json"]])
def test_a_reader_that_leaves_at_once_is_no_error(trained: CommandLine, form: list[str]) -> None:
    statuses, _, err = pipe(trained, "true", "rankings", *form)
    assert (statuses, err) == (["0", "0"], "")


def test_a_reader_that_leaves_early_gets_its_line(trained: CommandLine) -> None:
    statuses, out, err = pipe(trained, "head -1", "rankings", "--csv")
    assert (statuses, err) == (["0", "0"], "")
    assert out.startswith("rank,image_id")


def test_a_reader_that_leaves_hides_no_error(empty: CommandLine) -> None:
    statuses, _, err = pipe(empty, "true", "rankings")
    assert statuses == ["1", "0"]
    assert err.startswith("error: ")


def test_output_that_is_closed_is_no_error(trained: CommandLine) -> None:
    words = " ".join(f"'{word}'" for word in [*PROGRAM, "--config", str(trained.config), "rankings", "--csv"])
    done = subprocess.run(["bash", "-c", f"{words} >&-"], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
