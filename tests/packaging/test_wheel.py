"""The built wheel works outside the repository: it carries its migrations, and the first commands run.

torch and the other dependencies are not installed again: the new environment reaches those of this one through a .pth
file, which comes after its own packages, so that `activeseg` is the wheel's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from activeseg.db.database import SCHEMA_REVISION
from activeseg.labelstudio.install import SERVER_VERSION

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it, and an empty folder to work in."""

    environment: Path
    folder: Path

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment. Nothing of this repository or of the developer's settings reaches it."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        command = [str(self.environment / "bin" / program), *arguments]
        return subprocess.run(command, cwd=self.folder, env=kept, capture_output=True, text=True, check=False)

    def activeseg(self, *arguments: str) -> str:
        """Standard output of a command that must succeed."""
        done = self.run("activeseg", *arguments)
        assert done.returncode == 0, f"activeseg {' '.join(arguments)}: {done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def uv() -> str:
    local = ROOT / ".cache" / "uv" / "bin" / "uv"
    found = os.environ.get("ACTIVESEG_UV") or shutil.which("uv") or (str(local) if local.exists() else None)
    if found is None or not shutil.which(found):
        pytest.skip("uv is not available: run `make install`, or set ACTIVESEG_UV")
    return found


@pytest.fixture(scope="module")
def wheel(uv: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout. Offline where the build backend is in uv's cache, else from the package index."""
    out = tmp_path_factory.mktemp("wheel")
    command = [uv, "build", "--wheel", "--quiet", "--out-dir", str(out), str(ROOT)]
    done = subprocess.run([*command, "--offline"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"uv build needs a package index once, for hatchling: {done.stderr}"
    (built,) = out.glob("activeseg-*.whl")
    return built


@pytest.fixture(scope="module")
def environment(uv: str, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment outside the repository with the wheel in it."""
    target = tmp_path_factory.mktemp("outside") / "environment"
    _call(uv, "venv", "--quiet", "--offline", "--python", sys.executable, str(target))
    python = str(target / "bin" / "python")
    _call(uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", python, str(wheel))
    (packages,) = target.glob("lib/python*/site-packages")
    # Folders named in a .pth file are searched last, and .pth files inside them (the editable install) are not read.
    theirs = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (packages / "dependencies.pth").write_text("\n".join(sorted(theirs)) + "\n", encoding="utf-8")
    return target


@pytest.fixture
def installed(environment: Path, tmp_path: Path) -> Installed:
    (tmp_path / "pool").mkdir()
    (tmp_path / "classes.txt").write_text("sky #0000ff\nroad #808080\nvoid #000000 ignore\n", encoding="utf-8")
    return Installed(environment, tmp_path)


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


def test_the_wheel_holds_the_package_its_migrations_and_the_pin_list(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "activeseg").rglob("*.py")}
    migrations = {path.relative_to(ROOT).as_posix() for path in (ROOT / "migrations").rglob("*.py")}
    assert len(migrations) >= 2
    assert modules <= names
    assert {f"activeseg/db/{name}" for name in migrations} <= names
    assert f"activeseg/labelstudio/server-{SERVER_VERSION}.txt" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
    strange = [name for name in names if not name.startswith(("activeseg/", "activeseg-")) or "__pycache__" in name]
    assert not strange


def test_the_imported_package_is_the_wheels(installed: Installed) -> None:
    code = (
        "import json, activeseg, sqlalchemy; from activeseg.db.migrate import migrations_folder;"
        "print(json.dumps([activeseg.__file__, str(migrations_folder()), sqlalchemy.__file__]))"
    )
    done = installed.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    package, migrations, dependency = map(Path, json.loads(done.stdout))
    assert package.is_relative_to(installed.environment)
    assert migrations.is_relative_to(installed.environment)
    assert (migrations / "env.py").is_file()
    assert not dependency.is_relative_to(installed.environment)


def test_the_first_commands_run_from_the_wheel(installed: Installed) -> None:
    written = json.loads(installed.activeseg("init", "--images", "pool", "--classes", "classes.txt", "--json"))
    assert written["classes"] == ["sky", "road", "void"]
    assert (installed.folder / "activeseg.toml").is_file()

    upgraded = json.loads(installed.activeseg("db", "upgrade", "--json"))
    assert upgraded == {"before": None, "after": SCHEMA_REVISION}
    assert json.loads(installed.activeseg("db", "upgrade", "--json"))["before"] == SCHEMA_REVISION
    assert json.loads(installed.activeseg("db", "check", "--json")) == {"revision": SCHEMA_REVISION, "differences": []}

    done = installed.run("activeseg", "rankings")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: there is no champion yet")


def test_going_down_and_up_again_works_from_the_wheel(installed: Installed) -> None:
    installed.activeseg("init", "--images", "pool", "--classes", "classes.txt")
    installed.activeseg("db", "upgrade")
    installed.activeseg("db", "downgrade", "base", "--yes")
    done = installed.run("activeseg", "rankings")
    assert (done.returncode, "activeseg db upgrade" in done.stderr) == (1, True)
    installed.activeseg("db", "upgrade")
    installed.activeseg("db", "check")
